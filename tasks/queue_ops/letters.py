"""Dead letters: which are meant, and what they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from broker import DeadLetter, DeadLetters
from sploot_cluster.queues import LetterFilter, LetterView
from tasks.queue_ops.entries import facts_of, without_embedding


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Letters that died of the same: actor, kind of error, field to blame."""

    n: int
    reason: str
    actor: str | None
    error: str
    field: str | None
    newest: datetime
    oldest: datetime
    sample_id: str


def select(letters: DeadLetters, wanted: LetterFilter, *, now: datetime, limit: int) -> Iterator[DeadLetter]:
    """Yield the letters that match, newest first. Reads until it has found enough, some megabytes at a time."""
    return islice(_matching(letters, wanted, now), limit)


def groups_of(letters: Iterable[DeadLetter]) -> Sequence[LetterGroup]:
    """The largest first."""
    # ids and times alone: a queue keeps 100,000 letters, embeddings and all
    by_kind: dict[tuple[str, str | None, str, str | None], list[tuple[str, datetime]]] = {}
    for letter in letters:
        key = letter.reason, letter.actor_name, kind_of_error(letter), letter.field
        by_kind.setdefault(key, []).append((letter.id, letter.died_at))
    sizes = Counter({key: len(found) for key, found in by_kind.items()})
    return [
        LetterGroup(
            n=n,
            reason=key[0],
            actor=key[1],
            error=key[2],
            field=key[3],
            newest=max(died_at for _, died_at in by_kind[key]),
            oldest=min(died_at for _, died_at in by_kind[key]),
            sample_id=by_kind[key][0][0],
        )
        for key, n in sizes.most_common()
    ]


def view_of(letter: DeadLetter, *, is_whole: bool = False) -> LetterView:
    """The letter without its embeddings; its traceback and fields only where they are wanted."""
    return LetterView(
        letter_id=letter.id,
        queue=letter.queue_name,
        died_at=letter.died_at,
        reason=letter.reason,
        actor=letter.actor_name,
        pet_id=pet_of(letter),
        message_id=message_id_of(letter),
        deliveries=letter.deliveries,
        field=letter.field,
        error=letter.error,
        mend=letter.mend,
        traceback=letter.traceback if is_whole else None,
        fields=without_embedding(letter.fields) if is_whole else {},
    )


def kind_of_error(letter: DeadLetter) -> str:
    """The class of the exception; the reason of a letter that had none."""
    name, colon, _ = letter.error.partition(":")
    return name if colon and name.isidentifier() else letter.reason


def pet_of(letter: DeadLetter) -> int | None:
    return facts_of(letter.fields).pet_id


def message_id_of(letter: DeadLetter) -> str | None:
    """By which the job of a letter is known, a flat event's own id too."""
    return letter.message_id or facts_of(letter.fields).message_id


def _matching(letters: DeadLetters, wanted: LetterFilter, now: datetime) -> Iterator[DeadLetter]:
    since = None if wanted.since_s is None else now - timedelta(seconds=wanted.since_s)
    for letter in letters.find():
        if since is not None and letter.died_at < since:
            return
        if _is_wanted(letter, wanted):
            yield letter


def _is_wanted(letter: DeadLetter, wanted: LetterFilter) -> bool:
    return (
        (wanted.reason is None or letter.reason == wanted.reason)
        and (wanted.actor is None or letter.actor_name == wanted.actor)
        and (wanted.error is None or wanted.error in letter.error)
        and (wanted.pet_id is None or pet_of(letter) == wanted.pet_id)
    )
