"""The inspector: operators' view of a queue's entries, and safe actions on them.

Redis's ``XACK`` and ``XGROUP DELCONSUMER`` remove entries from the pending lists before their jobs are done. The
actions of this class claim an entry before they remove anything, and skip entries that have changed since they were
listed. Whichever step fails, every entry remains in the stream or in a pending list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import dramatiq
import redis
from dramatiq.encoder import JSONEncoder

from .dead_letters import facts_of_passed_over
from .entries import (
    LONGEST_SHOWN,
    MESSAGE_FIELD,
    PAGE_BYTES,
    EntryDecoder,
    MessageCheck,
    as_dead_letter,
    decode,
    fields_of,
)
from .errors import UndecodableEntry
from .key_limits import KeyAtWork, MessageAtWork, limits_from
from .keys import HANDED_BACK, QueueKeys
from .net.connections import Argument, Connections
from .options import unique_key_of
from .scripts import HEADS, KEYS_AT_WORK, PASS_OVER, RESCUE, RETIRE, SEARCH, STALE_LOCKS, UNOWNED
from .settings import BrokerSettings
from .stats import LAST_ID

State = Literal["in-line", "delayed", "in-stream"]

PAGE = 500
# The structures that hold messages, in the order in which messages move, with the state that ``find`` returns for each.
PLACES: Final[Mapping[str, State]] = {"line": "in-line", "delayed": "delayed", "stream": "in-stream"}
# Maximum number of strings for which scripts search. With more, this process reads and compares all messages.
MOST_TEXTS: Final = 50
# Maximum number of messages at work to list per key.
MOST_AT_WORK = 10

PassedOver = Literal["passed", "moved", "received"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The conditions that select messages. A message is selected if it meets all that are given.

    Attributes:
        actor: the name of the messages' actor.
        message_ids: the ids of the messages.
        where: a function that returns whether a message meets a further condition.
        entry_ids: the ids of the stream entries to check, or None to search the whole stream. This is not a condition.
    """

    actor: str | None = None
    message_ids: Collection[str] | None = None
    where: Callable[[dramatiq.Message[Any]], bool] | None = None
    entry_ids: Collection[str] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no condition was given, so that all messages are selected."""
        return self.actor is None and self.message_ids is None and self.where is None

    def matches(self, message: dramatiq.Message[Any]) -> bool:
        return (self.message_ids is None or message.message_id in self.message_ids) and self._matches(message)

    def drops(self, coalesced: dramatiq.Message[Any]) -> bool:
        """Return whether a coalesced message is cancelled together with the message that it was coalesced onto.

        The message ids are not compared, because callers got the id of the message that it was coalesced onto.
        """
        return (self.actor is not None or self.where is not None) and self._matches(coalesced)

    def _matches(self, message: dramatiq.Message[Any]) -> bool:
        return (self.actor is None or message.actor_name == self.actor) and (self.where is None or self.where(message))


@dataclass(frozen=True, slots=True)
class FoundMessage:
    """A message that has not ended.

    Attributes:
        place: its entry id, its name in the sorted set of delayed messages, or its member in the line's sorted set.
        state: ``in-stream`` if it is undelivered or a worker has received it; otherwise ``delayed`` or ``in-line``.
    """

    place: bytes
    state: State
    message: dramatiq.Message[Any]


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """A pending entry or an orphan, as it was when it was read.

    Attributes:
        id: the entry's id.
        holder: the consumer whose pending list contains it, or "" for an orphan, which is in no pending list.
        deliveries: its delivery count.
        idle_ms: time since its delivery, or None if the method that returned it does not read this.
    """

    id: str
    holder: str
    deliveries: int
    idle_ms: int | None = None

    @property
    def is_handed_back(self) -> bool:
        """Whether the entry was handed back and waits for the next worker."""
        return self.holder == HANDED_BACK


@dataclass(frozen=True, slots=True)
class Unowned:
    """The entries that no worker would finish: orphans (delivered but not pending) and ghosts (pending but deleted)."""

    orphans: tuple[PendingEntry, ...]
    ghosts: tuple[PendingEntry, ...]


@dataclass(frozen=True, slots=True)
class Rescued:
    """The result of a rescue.

    Attributes:
        n_handed_back: the number of entries that were requeued.
        n_ghosts: the number of ghosts that were removed.
    """

    n_handed_back: int
    n_ghosts: int


@dataclass(frozen=True, slots=True)
class Retired:
    """The result of removing a consumer.

    Attributes:
        outcome: ``retired`` if the consumer was removed, or else the reason why not: ``holds`` if it holds ``n``
            entries, or ``alive`` if its last heartbeat is only ``n`` ms old.
    """

    outcome: Literal["retired", "holds", "alive"]
    n: int = 0


class Inspector:
    """A view of one queue's entries, for operators.

    Every method raises ``BrokerConnectionError`` if Redis does not answer.
    """

    def __init__(
        self,
        connections: Connections,
        settings: BrokerSettings,
        keys: QueueKeys,
        decoder: EntryDecoder | None,
        check: MessageCheck | None,
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._decoder = decoder
        self._check = check
        self.keys = keys
        self.group = settings.group

    def pending(
        self, limit: int = PAGE, *, consumer: str | None = None, idle_ms: int = 0, after: str | None = None
    ) -> list[PendingEntry]:
        """Return at most ``limit`` pending entries, lowest id first. If the group does not exist, there are none.

        Args:
            consumer: return only the entries that this consumer holds.
            idle_ms: return only the entries that were delivered at least this long ago.
            after: the id of the previous page's last entry.
        """
        found: list[PendingEntry] = []
        start = "-" if after is None else f"({after}"
        while len(found) < limit:
            command: list[Argument] = ["XPENDING", self.keys.stream, self.group]
            if idle_ms:
                command += ["IDLE", idle_ms]
            command += [start, "+", min(PAGE, limit - len(found))]
            if consumer is not None:
                command.append(consumer)
            page = self._asked(*command)
            if not page:
                break
            found += [
                PendingEntry(entry_id.decode(), holder.decode(errors="replace"), int(deliveries), int(idle))
                for entry_id, holder, idle, deliveries in page
            ]
            if found[-1].id == LAST_ID:
                break
            start = f"({found[-1].id}"
        return found

    def find_pending(self, entry_id: str) -> PendingEntry | None:
        """Return the pending entry with this id, or None if there is none or the id is invalid."""
        for found_id, holder, idle, deliveries in self._asked(
            "XPENDING", self.keys.stream, self.group, entry_id, entry_id, 1
        ):
            return PendingEntry(found_id.decode(), holder.decode(errors="replace"), int(deliveries), int(idle))
        return None

    def waiting(self, limit: int = 10, *, after: str | None = None) -> list[tuple[str, Mapping[bytes, bytes]]]:
        """Return the ids and fields of the next undelivered entries, oldest first.

        The result is at most ``limit`` entries and a few megabytes. Only the head of a large entry is returned.

        Args:
            after: the id of the previous page's last entry.
        """
        start = self.last_delivered_id()
        if after is not None:
            start = max(start, after, key=lambda entry_id: tuple(map(int, entry_id.split("-"))))
        if start == LAST_ID:
            return []
        args = ("XRANGE", f"({start}", "+", max(1, limit), LONGEST_SHOWN, PAGE_BYTES)
        found = self._connections.run_script(HEADS, (self.keys.stream,), args)
        return [(entry_id.decode(), fields_of(flat)) for entry_id, flat, _ in found]

    def entries(self, entry_ids: Sequence[str]) -> list[Mapping[bytes, bytes] | None]:
        """Return the fields of these entries in one round trip, or None for an entry that does not exist.

        Only the head of an entry that is larger than a quarter of a megabyte is returned. Request at most about a
        hundred entries at a time.
        """
        calls = [((self.keys.stream,), ("XRANGE", one, one, 1, LONGEST_SHOWN // 4, 1)) for one in entry_ids]
        answers = self._connections.run_scripts(HEADS, calls) if calls else []
        return [fields_of(found[0][1]) if found else None for found in answers]

    def delayed(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the name and the encoded form of each message that is not due yet, including retries, in any order.

        The name is the message's member in the sorted set of delayed messages.
        """
        yield from self._items(self.keys.delayed_messages)

    def in_line(self) -> Iterator[bytes]:
        """Yield the encoded messages that wait for the limits of their keys, in any order."""
        for _, stored in self._items(self.keys.messages_in_line):
            yield stored.partition(b" ")[2]  # the first part is the time at which the message is due

    def keys_at_work(self, limit: int = 100, *, after: KeyAtWork | None = None) -> list[KeyAtWork]:
        """Return the keys that have messages at work, with their limits and the number of messages in line.

        Args:
            limit: the maximum number of keys to return. Keys are sorted by their bytes: concurrency keys first, then
                rates and priorities, then ordering keys.
            after: the previous page's last key.
        """
        start = "" if after is None else ("\3" if after.limits.kind in ("rate", "priority") else "") + after.limits.name
        args = (self.group, start, limit, MOST_AT_WORK, LONGEST_SHOWN // 4)
        return [self._key_at_work(one) for one in self._connections.run_script(KEYS_AT_WORK, self.keys.work, args)]

    def _key_at_work(self, answer: Sequence[Any]) -> KeyAtWork:
        name, stored, n, n_started, in_line, failing, wait, found = answer
        limits = limits_from(name.decode(errors="replace"), stored.decode())
        at_work = tuple(
            MessageAtWork(
                limits,
                place,
                self._message(place, payload),
                due_ms=None if int(due) < 0 else int(due),
                consumer="" if consumer == HANDED_BACK.encode() else consumer.decode(errors="replace"),
                deliveries=int(deliveries),
                age_ms=int(age),
            )
            for place, due, consumer, deliveries, age, payload in found
        )
        return KeyAtWork(
            limits,
            int(n),
            at_work,
            n_started=int(n_started),
            in_line=int(in_line),
            longest_wait_ms=None if int(wait) < 0 else int(wait),
            failing_for_ms=None if int(failing) < 0 else int(failing),
        )

    def _message(self, place: bytes, payload: bytes) -> dramatiq.Message[Any] | None:
        try:
            return self.decode(place.decode(errors="replace"), {MESSAGE_FIELD: payload})
        except UndecodableEntry:
            return None

    def in_line_for(self, key: KeyAtWork, limit: int = 100) -> list[bytes]:
        """Return at most ``limit`` encoded messages that wait for a key's limits, next one first."""
        name = key.limits.name.encode()
        lowest, highest = b"[" + name + b"\0", b"(" + name + b"\1"
        members = self._connections.run("ZRANGEBYLEX", self.keys.line, lowest, highest, "LIMIT", 0, limit)
        if not members:
            return []
        stored = self._connections.run("HMGET", self.keys.messages_in_line, *members)
        # the first part is the time at which the message is due; None stands for a message that has left the line
        return [one.partition(b" ")[2] for one in stored if one is not None]

    def pass_over(self, seen: MessageAtWork, *, even_if_received: bool = False) -> PassedOver:
        """Turn a message at work into a dead letter (reason ``passed-over``), so that the next message of its key runs.

        The dead letter can be requeued. It then runs after the messages of its key that are waiting at that time. No
        result is stored for it, and callbacks are not called.

        Args:
            seen: the message, as ``keys_at_work`` returned it.
            even_if_received: whether to pass the message over even if a worker has received it. A worker that is
                running the message continues, at the same time as the next message of the key. Its success has no
                effect, and its failure is not retried.

        Returns:
            ``passed``, or the reason why nothing was changed: ``moved`` if the message has moved since it was listed,
            ``received`` if a worker has received it.
        """
        message, script_keys = seen.message, [*self.keys.work, self.keys.dead, self.keys.suspects, self.keys.counters]
        unique_key = None if message is None else unique_key_of(message.options)
        if unique_key is not None:
            script_keys.append(self.keys.unique(unique_key))
        args: list[Argument] = [self.group, HANDED_BACK, seen.limits.name, seen.place]
        args += ["" if message is None else message.message_id, int(even_if_received)]
        args += [
            self._settings.dead_letter_ttl_ms,
            self._settings.dead_letter_max,
            self._settings.dead_letter_max_bytes,
        ]
        args.append("" if message is None else as_dead_letter(message.encode(), has_traceback=False) or "")
        entry_id = "" if seen.due_ms is not None else seen.place.decode()
        args += facts_of_passed_over(message, seen.limits, entry_id=entry_id, deliveries=seen.deliveries)
        answer: PassedOver = self._connections.run_script(PASS_OVER, script_keys, args).decode().lower()
        return answer

    def _items(self, key: str) -> Iterator[tuple[bytes, bytes]]:
        cursor: Any = 0
        while True:
            cursor, flat = self._connections.run("HSCAN", key, cursor, "COUNT", PAGE)
            yield from zip(flat[::2], flat[1::2], strict=True)
            if int(cursor) == 0:
                return

    def find(self, wanted: Selection) -> Iterator[FoundMessage]:
        """Yield the selected messages that have not ended: messages in line, then delayed ones, then the stream's.

        This is the order in which messages move, except for retries. Short scripts search the queue, which takes about
        three seconds per million small messages. With a custom encoder, more than 50 ids, or no condition other than
        ``where``, this process reads all messages instead. In a queue with a decoder, a foreign entry is found by its
        message id only if one of its fields contains the id.
        """
        texts = self._texts(wanted)
        for place_of, state in PLACES.items():
            is_known = state == "in-stream" and wanted.entry_ids is not None
            for place, flat in self._known(wanted.entry_ids or ()) if is_known else self._searched(place_of, texts):
                message = self._decoded(place.decode(errors="replace"), flat)
                if message is not None and wanted.matches(message):
                    yield FoundMessage(place, state, message)

    def _searched(self, place_of: str, texts: Sequence[str]) -> Iterator[tuple[bytes, Sequence[bytes]]]:
        """Yield the place and fields of each message that contains one of the strings, or of every message if none."""
        cursor: bytes | str = ""
        while True:
            args: list[Argument] = [place_of, cursor, PAGE, 2 * self._settings.max_message_bytes, PAGE_BYTES]
            cursor, *page = self._connections.run_script(SEARCH, self.keys.work, [*args, *texts])
            yield from zip(page[::2], page[1::2], strict=True)
            if not cursor:
                return

    def _known(self, entry_ids: Collection[str]) -> Iterator[tuple[bytes, Sequence[bytes]]]:
        """Yield the id and fields of each of these entries, skipping those that no longer exist."""
        ids, longest = list(entry_ids), 2 * self._settings.max_message_bytes
        for start in range(0, len(ids), 20):
            calls = [((self.keys.stream,), ("XRANGE", one, one, 1, longest, 1)) for one in ids[start : start + 20]]
            for found in self._connections.run_scripts(HEADS, calls):
                yield from ((entry_id, flat) for entry_id, flat, n_bytes_cut in found if not n_bytes_cut)

    def _texts(self, wanted: Selection) -> list[str]:
        """Return strings of which each selected message contains one, or none if all messages must be read."""
        texts = wanted.message_ids
        if texts is None and self._decoder is None and wanted.actor is not None:
            texts = [wanted.actor]  # foreign entries, for which there would be a decoder, do not name their actor
        if texts is None or len(texts) > MOST_TEXTS or type(dramatiq.get_encoder()) is not JSONEncoder:
            return []
        return sorted({form for text in texts for form in (text, json.dumps(text)[1:-1])})

    def _decoded(self, entry_id: str, flat: Sequence[bytes]) -> dramatiq.Message[Any] | None:
        try:
            name = self.keys.name_of_messages
            return decode(entry_id, fields_of(flat), queue_name=name, decoder=self._decoder, check=None)
        except UndecodableEntry:  # this entry will become a dead letter
            return None

    def entry(self, entry_id: str) -> Mapping[bytes, bytes] | None:
        """Return an entry's fields, or None if it is not in the stream. Only the head of a large entry is returned."""
        try:
            args = ("XRANGE", entry_id, entry_id, 1, LONGEST_SHOWN, 1)
            found = self._connections.run_script(HEADS, (self.keys.stream,), args)
        except redis.ResponseError:  # the id is not valid, so there is no such entry
            return None
        return fields_of(found[0][1]) if found else None

    def decode(self, entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
        """Return the message in an entry.

        Raises:
            UndecodableEntry: the entry is not a message.
        """
        name = self.keys.name_of_messages
        return decode(entry_id, fields, queue_name=name, decoder=self._decoder, check=self._check)

    def groups(self) -> list[str]:
        """Return the names of the stream's consumer groups, or an empty list if the stream does not exist."""
        return [group["name"].decode(errors="replace") for group in self._groups()]

    def last_delivered_id(self) -> str:
        """Return the id of the last entry delivered to the group, or ``0-0`` if the group does not exist."""
        for group in self._groups():
            if group["name"] == self.group.encode():
                return str(group["last-delivered-id"].decode())
        return "0-0"

    def unowned(self, limit: int = 10_000) -> Unowned:
        """Return up to ``limit`` orphans and ``limit`` ghosts. This scans all pending entries in short scripts."""
        orphans: list[PendingEntry] = []
        ghosts: list[PendingEntry] = []
        for found_orphans, found_ghosts in self._unowned_pages():
            orphans += [PendingEntry(entry_id.decode(), "", 0) for entry_id in found_orphans]
            ghosts += [
                PendingEntry(entry_id.decode(), holder.decode(errors="replace"), int(deliveries))
                for entry_id, holder, deliveries in zip(
                    found_ghosts[::3], found_ghosts[1::3], found_ghosts[2::3], strict=True
                )
            ]
            if len(orphans) >= limit or len(ghosts) >= limit:
                break
        return Unowned(tuple(orphans[:limit]), tuple(ghosts[:limit]))

    def stale_locks(self, limit: int = 10_000) -> list[str]:
        """Return the ids of messages that were removed by hand, for example by ``XDEL``, but still lock a unique key.

        The next message with the key takes over the lock. Janitors release such locks within about 25 s.

        Args:
            limit: the approximate number of unique keys to check.
        """
        found: list[str] = []
        cursor: bytes | str = "0"
        for _ in range(0, limit, PAGE):
            cursor, *ids = self._connections.run_script(STALE_LOCKS, self.keys.work, (cursor, PAGE))
            found += [message_id.decode() for message_id in ids]
            if cursor == b"0":
                break
        return found

    def rescue(self, entries: Sequence[PendingEntry]) -> Rescued:
        """Requeue entries, skipping those whose holder or delivery count has changed. Ghosts are removed.

        A worker that is running one of these messages continues. Its success is accepted, and its failure is ignored.
        """
        keys = (self.keys.stream, self.keys.timer, self.keys.counters, self.keys.suspects)
        n_handed_back = n_ghosts = 0
        for start in range(0, len(entries), PAGE):
            args: list[Argument] = [self.group, HANDED_BACK]
            for entry in entries[start : start + PAGE]:
                args += (entry.id, entry.holder, entry.deliveries)
            n, n_gone = self._connections.run_script(RESCUE, keys, args)
            n_handed_back, n_ghosts = n_handed_back + n, n_ghosts + n_gone
        return Rescued(n_handed_back, n_ghosts)

    def retire(self, consumer: str, *, even_if_alive: bool = False) -> Retired:
        """Remove a consumer that holds no entries. If it holds entries, rescue them first.

        Args:
            even_if_alive: whether to remove the consumer even if its heartbeat is younger than the lease.
        """
        outcome, *n = self._connections.run_script(
            RETIRE,
            (self.keys.stream, self.keys.consumers),
            (self.group, consumer, int(even_if_alive), self._settings.lease_ms),
        )
        return Retired(outcome.decode().lower(), int(n[0]) if n else 0)

    def _unowned_pages(self) -> Iterator[tuple[list[bytes], list[Any]]]:
        cursor: bytes | str = "-"
        while cursor:
            cursor, orphans, ghosts = self._connections.run_script(
                UNOWNED, (self.keys.stream,), (self.group, cursor, PAGE)
            )
            yield orphans, ghosts

    def _groups(self) -> list[dict[str, Any]]:
        return [
            {name.decode(): value for name, value in zip(group[::2], group[1::2], strict=True)}
            for group in self._asked("XINFO", "GROUPS", self.keys.stream)
        ]

    def _asked(self, *command: Argument) -> Any:
        """Return a command's reply, or an empty list if the stream or group does not exist or the id is invalid."""
        try:
            return self._connections.run(*command)
        except redis.ResponseError as error:
            if any(word in str(error) for word in ("NOGROUP", "no such key", "Invalid stream ID")):
                return []
            raise
