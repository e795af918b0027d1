"""Dead letters: messages that failed permanently, could never run, or killed their workers.

A dead letter is an entry in the queue's dead stream with these fields, of which those without a value are absent:

    reason      one word: failed, skipped, delivery-limit, undecodable, wrong-queue, unknown-actor, oversize;
                unhandled: it failed, and no middleware rejected, retried or skipped it;
                not-enqueued: it is a follow-up message that could not be enqueued;
                held-too-long: its retries have held its ordering key for ``ordering_hold_ms``;
                expired: it did not start within ``expires_in_ms``, and has the option ``keep_expired``;
                passed-over: an operator let later messages of its key run before it
    error       a description of the problem; "ExceptionClass: message" for a failed actor
    field, hint the invalid field, and how to fix it, if the exception has these attributes
    traceback   the last 8 KiB of the last failure's traceback; absent for a message that killed its workers
    actor, message_id, entry_id, deliveries, unique_key
    ordering_key, concurrency_key or rate_key; limits: see KeyLimits
    entry:…     every field of the original entry, as a requeue restores it. A retried message is stored without its
                option ``traceback``, which holds an earlier failure's traceback
    left_out    the number of fields beyond 2,000, which are not stored
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypedDict, Unpack

import dramatiq
import redis
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import SkipMessage

from .deliveries import Delivery
from .entries import LONGEST_SHOWN, PAGE_BYTES, WrongQueue, fields_of, was_retried
from .errors import DeadLetterTooLarge, DeliveryLimitReached, MessageExpired, UndecodableEntry
from .key_limits import KeyLimits, key_limits_of
from .keys import QueueKeys
from .net.connections import Argument, Connections
from .options import is_part_of_composition, unique_key_of
from .scripts import HEADS, LOOK_UP, REQUEUE
from .settings import BrokerSettings

MAX_TRACEBACK_BYTES = 8 * 1024
MAX_ERROR_BYTES = 2 * 1024
ENTRY_PREFIX = b"entry:"
PAGE = 500

# The results of ``put_back`` for dead letters that have no new entry id.
IN_LINE: Final = "in-line"
KEY_HELD: Final = "key-held"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter.

    Attributes:
        id: its entry id in the dead stream, as ``get``, ``requeue`` and ``purge`` expect it.
        reason: one word; see the top of this module.
        error: a readable description of the failure.
        field: the name of the invalid field, or None.
        hint: how to fix the problem, or None.
        actor_name, message_id: the message's actor and id, or None if the entry was not a message.
        entry_id: the original entry's id.
        deliveries: the original entry's delivery count.
        died_at: when it became a dead letter, in UTC on the server's clock.
        fields: the original entry's fields.
        n_bytes_cut: its full size in bytes if only the head of each field was read, otherwise 0.
    """

    id: str
    queue_name: str
    reason: str
    error: str
    field: str | None
    hint: str | None
    traceback: str | None
    actor_name: str | None
    message_id: str | None
    entry_id: str
    deliveries: int
    died_at: datetime
    fields: Mapping[bytes, bytes]
    n_bytes_cut: int = 0


class Wanted(TypedDict, total=False):
    """A filter for dead letters. A dead letter matches if it meets all given conditions.

    Attributes:
        reason, actor_name, message_id: the value that the dead letter must have.
        died_before, died_after: timezone-aware datetimes, on the server's clock.
        where: a function that returns whether a dead letter meets a further condition.
    """

    reason: str | None
    actor_name: str | None
    message_id: str | None
    died_before: datetime
    died_after: datetime
    where: Callable[[DeadLetter], bool]


class DeadLetters:
    """The dead letters of one queue."""

    def __init__(self, connections: Connections, keys: QueueKeys, settings: BrokerSettings) -> None:
        self._connections = connections
        self._keys = keys
        self._settings = settings

    def __len__(self) -> int:
        return int(self._connections.run("XLEN", self._keys.dead))

    def n_bytes(self) -> int:
        """Return how many bytes of server memory the dead letters use. This takes about 10 ms per 100,000 of them."""
        return int(self._connections.run("MEMORY", "USAGE", self._keys.dead, "SAMPLES", 0, key=self._keys.dead) or 0)

    def list(
        self, limit: int = 100, *, before: str | None = None, **wanted: Unpack[Wanted]
    ) -> builtins.list[DeadLetter]:
        """Return at most ``limit`` dead letters, newest first.

        Args:
            before: the id of the previous page's last dead letter.
            wanted: the filter; see :class:`Wanted`.
        """
        page = min(PAGE, limit) if not wanted else PAGE
        return [*islice(self.find(before=before, page=page, **wanted), limit)]

    def find(self, *, before: str | None = None, page: int = PAGE, **wanted: Unpack[Wanted]) -> Iterator[DeadLetter]:
        """Yield every matching dead letter, newest first.

        At most ``page`` dead letters or a few megabytes are read at a time. If a dead letter is larger than a megabyte,
        only its head is read. Dead letters that are added during the iteration are not yielded. Without a date
        condition, all dead letters are read and then filtered.
        """
        died_before, died_after = wanted.get("died_before"), wanted.get("died_after")
        end = "+" if died_before is None else str(_ms(died_before) - 1)
        start = "-" if died_after is None else str(_ms(died_after))
        if before is not None:
            end = f"({before}"
        while found := self._heads("XREVRANGE", end, start, page):
            for dead_letter_id, flat, n_bytes_cut in found:
                dead_letter = self._dead_letter(dead_letter_id.decode(), fields_of(flat), n_bytes_cut)
                if _is_wanted(dead_letter, wanted):
                    yield dead_letter
            end = f"({found[-1][0].decode()}"

    def requeue_where(self, **wanted: Unpack[Wanted]) -> int:
        """Requeue every matching dead letter as ``requeue`` does; return how many were requeued.

        Messages that fail again during the call become new dead letters, which are not requeued.

        Raises:
            DeadLetterTooLarge: a dead letter is too large, as in ``requeue``. The others were requeued.
        """
        return self.requeue(dead_letter.id for dead_letter in self.find(**wanted))

    def purge_where(self, **wanted: Unpack[Wanted]) -> int:
        """Delete every matching dead letter permanently; return how many were deleted."""
        dead_letters, n = self.find(**wanted), 0
        while ids := [dead_letter.id for dead_letter in islice(dead_letters, PAGE)]:
            n += self.purge(ids)
        return n

    def get(self, dead_letter_id: str, *, is_whole: bool = False) -> DeadLetter | None:
        """Return the dead letter with this id, or None if there is none.

        Args:
            is_whole: whether to read a dead letter that is larger than a megabyte in full, instead of only its head.
        """
        try:
            found = self._heads(
                "XRANGE", dead_letter_id, dead_letter_id, 1, longest=1 << 62 if is_whole else LONGEST_SHOWN
            )
        except redis.ResponseError:  # the id is not valid, so there is no such dead letter
            return None
        return self._dead_letter(dead_letter_id, fields_of(found[0][1]), found[0][2]) if found else None

    def _heads(self, command: str, start: str, end: str, count: int, *, longest: int = LONGEST_SHOWN) -> Any:
        return self._connections.run_script(
            HEADS, (self._keys.dead,), (command, start, end, count, longest, PAGE_BYTES)
        )

    def requeue(self, dead_letter_ids: Iterable[str]) -> int:
        """Requeue dead letters unchanged at the end of the queue; return how many were requeued.

        A requeued message takes the lock of its unique key. If another message with that key is waiting, the dead
        letter is neither requeued nor counted. Requeue it later, or purge it.

        Raises:
            DeadLetterTooLarge: a dead letter is larger than ``max_message_bytes``, so workers would refuse it. It was
                not requeued; the others were.
        """
        return sum(map(is_requeued, self.put_back(dead_letter_ids)))

    def put_back(self, dead_letter_ids: Iterable[str]) -> Sequence[str | None]:
        """Requeue dead letters as ``requeue`` does; return their new entry ids in the same order.

        Instead of an entry id, the list contains None for a dead letter that does not exist, ``in-line`` for a requeued
        message that waits in line for its key, and ``key-held`` for a dead letter that was not requeued because
        another message with its unique key is waiting.
        """
        ids = list(dead_letter_ids)
        entries: builtins.list[str | None] = []
        too_large: dict[str, int] = {}
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            found = self._connections.run_script(LOOK_UP, (self._keys.dead,), page)
            fitting = []
            for dead_letter_id, (n_bytes, unique_key) in zip(page, found, strict=True):
                if n_bytes > self._settings.max_message_bytes and self._would_be_refused(dead_letter_id):
                    too_large[dead_letter_id] = n_bytes
                else:
                    fitting.append((dead_letter_id, unique_key.decode()))
            entries += self._put_back(fitting)
        if too_large:
            dead_letter_id, n_bytes = next(iter(too_large.items()))
            dead_letter = self.get(dead_letter_id)
            raise DeadLetterTooLarge(
                message_id=(dead_letter and dead_letter.message_id) or dead_letter_id,
                n_bytes=n_bytes,
                limit=self._settings.max_message_bytes,
                dead_letter_ids=tuple(too_large),
                entry_ids=tuple(entries),
            )
        return entries

    def _put_back(self, dead_letters: Sequence[tuple[str, str]]) -> Iterator[str | None]:
        """Requeue dead letters, given as pairs of id and unique key (or ""); yield the results of ``put_back``."""
        script_keys = [*self._keys.work, self._keys.dead, self._keys.counters]
        args: builtins.list[Argument] = [self._settings.lock_ms({}, 0)]
        for dead_letter_id, unique_key in dead_letters:
            if unique_key:
                script_keys.append(self._keys.unique(unique_key))
            args += (dead_letter_id, len(script_keys) if unique_key else 0)
        for entry_id in self._connections.run_script(REQUEUE, script_keys, args):
            yield entry_id.decode() or None

    def _would_be_refused(self, dead_letter_id: str) -> bool:
        """Return whether workers would refuse this oversized dead letter. They accept retries of any size."""
        dead_letter = self.get(dead_letter_id)
        return dead_letter is not None and not was_retried(dead_letter.fields)

    def purge(self, dead_letter_ids: Iterable[str]) -> int:
        """Delete dead letters permanently; return how many were deleted."""
        ids, n = list(dead_letter_ids), 0
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            n += int(self._connections.run("XDEL", self._keys.dead, *page))
            self._connections.run("ZREM", self._keys.dead_mistakes, *page)
        return n

    def purge_all(self) -> int:
        """Delete all dead letters permanently; return how many were deleted."""
        n = int(self._connections.run("XTRIM", self._keys.dead, "MAXLEN", 0))
        self._connections.run("DEL", self._keys.dead_mistakes)
        return n

    def _dead_letter(self, dead_letter_id: str, stored: Mapping[bytes, bytes], n_bytes_cut: int) -> DeadLetter:
        return dead_letter_from(dead_letter_id, stored, queue_name=self._keys.queue_name, n_bytes_cut=n_bytes_cut)


def dead_letter_from(
    dead_letter_id: str, stored: Mapping[bytes, bytes], *, queue_name: str, n_bytes_cut: int = 0
) -> DeadLetter:
    """Return the dead letter that has these stored fields."""

    def text(name: bytes) -> str | None:
        value = stored.get(name)
        return None if value is None else value.decode(errors="replace")

    return DeadLetter(
        id=dead_letter_id,
        queue_name=queue_name,
        reason=text(b"reason") or "failed",
        error=text(b"error") or "",
        field=text(b"field"),
        hint=text(b"hint"),
        traceback=text(b"traceback"),
        actor_name=text(b"actor"),
        message_id=text(b"message_id"),
        entry_id=text(b"entry_id") or "",
        deliveries=int(text(b"deliveries") or 0),
        died_at=_moment(int(dead_letter_id.partition("-")[0])),
        fields={
            name.removeprefix(ENTRY_PREFIX): value for name, value in stored.items() if name.startswith(ENTRY_PREFIX)
        },
        n_bytes_cut=n_bytes_cut,
    )


def is_requeued(entry_id: str | None) -> bool:
    """Return whether a result of ``DeadLetters.put_back`` means that the dead letter was requeued."""
    return entry_id not in (None, KEY_HELD)


def _is_wanted(dead_letter: DeadLetter, wanted: Wanted) -> bool:
    asked = ((name, wanted.get(name)) for name in ("reason", "actor_name", "message_id"))
    where = wanted.get("where")
    return all(value is None or getattr(dead_letter, name) == value for name, value in asked) and (
        where is None or where(dead_letter)
    )


def _moment(ms: int) -> datetime:
    try:
        return datetime.fromtimestamp(ms / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError):  # the time in the id is out of range, because a client chose the id
        return datetime.max.replace(tzinfo=UTC)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def facts_of_delivery(delivery: Delivery) -> list[Argument]:
    """Return the dead-letter field names and values for a message that failed in this process."""
    exception, unhandled = delivery._exception, delivery.unhandled
    facts = _facts(
        _reason(exception) if unhandled is None else unhandled.reason,
        exception,
        entry_id=delivery.entry_id,
        deliveries=delivery.deliveries,
        **_named(delivery),
    )
    if unhandled is not None:
        problem = unhandled.problem if exception is None else f"{_error(exception)}; {unhandled.problem}"
        facts["error"] = _cut(problem, MAX_ERROR_BYTES)
        facts["hint"] = unhandled.hint
    return flat(facts)


def facts_of_follower(error: Exception, message: dramatiq.Message[Any], *, entry_id: str) -> list[Argument]:
    """Return the dead-letter field names and values for a follow-up message that could not be enqueued.

    Args:
        entry_id: the entry id of the message that it follows.
    """
    return flat(_facts("not-enqueued", error, entry_id=entry_id, deliveries=0, **_named(message)))


def facts_of_entry(reason: str, error: UndecodableEntry, *, entry_id: str, deliveries: int) -> list[Argument]:
    """Return the dead-letter field names and values for an entry that is not a valid message."""
    named = {} if error.message is None else _named(error.message)
    return flat(_facts(reason, error, entry_id=entry_id, deliveries=deliveries, **named))


def facts_of_passed_over(
    message: dramatiq.Message[Any] | None, limits: KeyLimits, *, entry_id: str, deliveries: int
) -> list[Argument]:
    """Return the dead-letter field names and values for a message that an operator passed over."""
    facts: dict[str, Argument] = {
        "reason": "passed-over",
        "error": "an operator let the other messages of its key pass it",
        "hint": "requeue this dead letter: it runs after the messages of its key that wait then",
        "entry_id": entry_id,
        "deliveries": deliveries,
        **limits.facts,
    }
    return flat(facts | (_named(message) if message is not None else {}))


def _named(message: dramatiq.Message[Any] | Delivery) -> dict[str, str]:
    """Return the dead-letter fields with the message's actor and id, and with the keys that a requeue needs."""
    # messages in a pipeline or group are never coalesced, so a requeue must not check their unique keys
    unique_key = None if is_part_of_composition(message.options) else unique_key_of(message.options)
    limits = key_limits_of(message)
    return {
        "actor": message.actor_name,
        "message_id": message.message_id,
        **({} if limits is None else limits.facts),
        **({} if unique_key is None else {"unique_key": unique_key}),
    }


def reason_of(error: UndecodableEntry) -> str:
    return "wrong-queue" if isinstance(error, WrongQueue) else "undecodable"


def _reason(exception: BaseException | None) -> str:
    match exception:
        case DeliveryLimitReached():
            return "delivery-limit"
        case MessageExpired():
            return "expired"
        case ActorNotFound():
            return "unknown-actor"
        case SkipMessage():
            return "skipped"
        case _:
            return "failed"


def _facts(
    reason: str, exception: BaseException | None, *, entry_id: str, deliveries: int, **more: str
) -> dict[str, Argument]:
    facts: dict[str, Argument] = {
        "reason": reason,
        "error": _cut(_error(exception), MAX_ERROR_BYTES),
        "entry_id": entry_id,
        "deliveries": deliveries,
        **more,
    }
    for name in ("field", "hint"):
        value: Any = getattr(exception, name, None)
        if value is not None:
            facts[name] = _cut(str(value), MAX_ERROR_BYTES)
    if exception is not None and exception.__traceback__ is not None and reason != "delivery-limit":
        text = "".join(traceback.format_exception(exception)).encode(errors="replace")
        facts["traceback"] = text[-MAX_TRACEBACK_BYTES:].decode(errors="ignore")
    return facts


def flat(facts: Mapping[str, Argument]) -> list[Argument]:
    return [part for pair in facts.items() for part in pair]


def _error(exception: BaseException | None) -> str:
    if exception is None:
        return "rejected without an exception"
    try:
        return f"{type(exception).__name__}: {exception}"
    except Exception:  # the __str__ of a user's exception may itself raise
        return type(exception).__name__


def _cut(text: str, n_bytes: int) -> str:
    return text.encode(errors="replace")[:n_bytes].decode(errors="ignore")


def stored_from(facts: Sequence[Argument], fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields of a dead letter, as Redis stores them, from its facts and the original entry's fields."""
    stored = {
        str(name).encode(): value if isinstance(value, bytes) else str(value).encode()
        for name, value in zip(facts[::2], facts[1::2], strict=True)
    }
    return stored | {ENTRY_PREFIX + name: value for name, value in fields.items()}
