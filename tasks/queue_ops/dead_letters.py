"""Selection, grouping and display of dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from broker import DeadLetter, DeadLetters
from sploot_cluster.queues import DeadLetterFilter, DeadLetterGroup, DeadLetterView, Page
from tasks.queue_ops.entries import facts_of, without_embedding
from tasks.shards import queue_of

# Maximum number of dead letters to read for one page; this takes 150 ms if they have no embeddings.
LOOKED_AT: Final = 5_000
PAGE: Final = 500


def select(dead_letters: DeadLetters, wanted: DeadLetterFilter, *, now: datetime, limit: int) -> Iterator[DeadLetter]:
    """Yield the dead letters that match, newest first. Reads a few megabytes at a time until enough match."""
    return islice(_matching(dead_letters, wanted, now), limit)


def page_of(
    dead_letters: DeadLetters, wanted: DeadLetterFilter, *, now: datetime, limit: int, before: str | None = None
) -> Page[DeadLetterView]:
    """Return a page of the dead letters that match; its cursor is the id of the last dead letter that was read.

    Args:
        before: the cursor of the previous page.
    """
    since = _since(wanted, now)
    views: list[DeadLetterView] = []
    last = before
    for n_seen, dead_letter in enumerate(dead_letters.find(before=before, page=min(limit + 1, PAGE))):
        if since is not None and dead_letter.died_at < since:
            break
        if len(views) == limit or n_seen == LOOKED_AT:
            return Page(views, last)
        last = dead_letter.id
        if _is_wanted(dead_letter, wanted):
            views.append(view_of(dead_letter))
    return Page(views)


def groups_of(dead_letters: Iterable[DeadLetter]) -> Sequence[DeadLetterGroup]:
    """Group dead letters by kind, largest group first."""
    # keep only ids and times, because a queue may have 100,000 dead letters with embeddings
    by_kind: dict[tuple[str, str, str | None, str, str | None], list[tuple[str, datetime]]] = {}
    for dead_letter in dead_letters:
        key = (
            queue_of(dead_letter.queue_name),
            dead_letter.reason,
            dead_letter.actor_name,
            kind_of_error(dead_letter),
            dead_letter.field,
        )
        by_kind.setdefault(key, []).append((dead_letter.id, dead_letter.died_at))
    sizes = Counter({key: len(found) for key, found in by_kind.items()})
    return [
        DeadLetterGroup(
            n=n,
            queue=key[0],
            reason=key[1],
            actor=key[2],
            error=key[3],
            field=key[4],
            newest=max(died_at for _, died_at in by_kind[key]),
            oldest=min(died_at for _, died_at in by_kind[key]),
            sample_id=by_kind[key][0][0],
        )
        for key, n in sizes.most_common()
    ]


def view_of(dead_letter: DeadLetter, *, is_whole: bool = False) -> DeadLetterView:
    """Return the view of a dead letter without embeddings, and with traceback and fields only if ``is_whole``."""
    return DeadLetterView(
        dead_letter_id=dead_letter.id,
        queue=dead_letter.queue_name,
        died_at=dead_letter.died_at,
        reason=dead_letter.reason,
        actor=dead_letter.actor_name,
        pet_id=pet_of(dead_letter),
        message_id=message_id_of(dead_letter),
        deliveries=dead_letter.deliveries,
        field=dead_letter.field,
        error=dead_letter.error,
        hint=dead_letter.hint,
        traceback=dead_letter.traceback if is_whole else None,
        fields=without_embedding(dead_letter.fields) if is_whole else {},
    )


def kind_of_error(dead_letter: DeadLetter) -> str:
    """Return the class name of the exception, or the reason if there was no exception."""
    name, colon, _ = dead_letter.error.partition(":")
    return name if colon and name.isidentifier() else dead_letter.reason


def pet_of(dead_letter: DeadLetter) -> int | None:
    return facts_of(dead_letter.fields).pet_id


def message_id_of(dead_letter: DeadLetter) -> str | None:
    """Return the id of the message, or of the flat event."""
    return dead_letter.message_id or facts_of(dead_letter.fields).message_id


def _matching(dead_letters: DeadLetters, wanted: DeadLetterFilter, now: datetime) -> Iterator[DeadLetter]:
    since = _since(wanted, now)
    for dead_letter in dead_letters.find():
        if since is not None and dead_letter.died_at < since:
            return
        if _is_wanted(dead_letter, wanted):
            yield dead_letter


def _since(wanted: DeadLetterFilter, now: datetime) -> datetime | None:
    return None if wanted.since_s is None else now - timedelta(seconds=wanted.since_s)


def _is_wanted(dead_letter: DeadLetter, wanted: DeadLetterFilter) -> bool:
    return (
        (wanted.reason is None or dead_letter.reason == wanted.reason)
        and (wanted.actor is None or dead_letter.actor_name == wanted.actor)
        and (wanted.error is None or wanted.error in dead_letter.error)
        and (wanted.pet_id is None or pet_of(dead_letter) == wanted.pet_id)
    )
