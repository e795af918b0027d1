"""A checker that finds the place of every message with raw Redis commands, and every violation of the guarantees.

It uses only the documented key names and none of the broker's code, so it cannot share the broker's bugs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from tests.faults import QUEUE, QUEUES
from tests.faults.ledger import Entries

GROUP = "workers"


def stream_of(queue: str) -> str:
    return f"streams:{queue}"


def key_of(queue: str, what: str) -> str:
    return f"{{{stream_of(queue)}}}:{what}"


STREAM = stream_of(QUEUE)
DELAYED = key_of(QUEUE, "delayed")
DELAYED_MESSAGES = key_of(QUEUE, "delayed:messages")
AT_WORK = key_of(QUEUE, "ordered:at-work")
LINE = key_of(QUEUE, "ordered:line")
IN_LINE = key_of(QUEUE, "ordered:messages")
LOCKS = key_of(QUEUE, "unique:*")
DEAD = key_of(QUEUE, "dead")

# Kind of message -> reason for which its messages must become dead letters. Messages of every other kind must be done.
DEAD_REASONS = {"fails": "failed", "kills": "delivery-limit"}
# Kinds of jobs that run so long that they may be running at each kill of their process, and thus look like the cause.
MAY_SEEM_TO_KILL = {"long", "slow"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The contents of the queues at one moment: uid of a message -> number of times that it occurs.

    Attributes:
        stream: messages that are waiting or in flight.
        pending: number of entries in pending lists, including ghosts.
        delayed: messages that are not due yet, if both their due time and their message are stored.
        dead: uid -> reasons of its dead letters.
        halves: names of messages with a due time but no message, or the reverse; the same for places in line.
        in_line: messages that wait for another message of their ordering key.
        keys_at_work: number of ordering keys that have a message at work.
        locks: number of locks held for unique keys.
    """

    stream: Counter[str]
    pending: int
    delayed: Counter[str]
    dead: Mapping[str, list[str]]
    halves: tuple[str, ...] = ()
    in_line: Counter[str] = field(default_factory=Counter)
    keys_at_work: int = 0
    locks: int = 0

    @property
    def n_held(self) -> int:
        held = self.stream.total() + self.delayed.total() + self.in_line.total()
        return held + self.pending + len(self.halves) + self.keys_at_work + self.locks


def snapshot(client: redis.Redis) -> Snapshot:
    """Return a snapshot of every queue. Each is read in its own transaction, because messages never change queues."""
    found = [_snapshot_of(client, queue) for queue in QUEUES]
    dead: dict[str, list[str]] = {}
    for one in found:
        for uid, reasons in one.dead.items():
            dead.setdefault(uid, []).extend(reasons)
    return Snapshot(
        stream=sum((one.stream for one in found), Counter()),
        pending=sum(one.pending for one in found),
        delayed=sum((one.delayed for one in found), Counter()),
        dead=dead,
        halves=tuple(name for one in found for name in one.halves),
        in_line=sum((one.in_line for one in found), Counter()),
        keys_at_work=sum(one.keys_at_work for one in found),
        locks=sum(one.locks for one in found),
    )


def _snapshot_of(client: redis.Redis, queue: str) -> Snapshot:
    pipe = client.pipeline(transaction=True)
    for command in (
        ("XRANGE", stream_of(queue), "-", "+"),
        ("XPENDING", stream_of(queue), GROUP),
        ("ZRANGE", key_of(queue, "delayed"), 0, -1),
        ("HGETALL", key_of(queue, "delayed:messages")),
        ("XRANGE", key_of(queue, "dead"), "-", "+"),
        ("ZRANGE", key_of(queue, "ordered:line"), 0, -1),
        ("HGETALL", key_of(queue, "ordered:messages")),
        ("ZCARD", key_of(queue, "ordered:at-work")),
        ("KEYS", key_of(queue, "unique:*")),
    ):
        pipe.execute_command(*command)
    answers: list[Any] = pipe.execute(raise_on_error=False)
    entries, pending, due, messages, dead_letters, line, in_line, keys_at_work, locks = answers
    for answer in (entries, due, messages, dead_letters, line, in_line, keys_at_work, locks):
        if isinstance(answer, Exception):
            raise answer
    if isinstance(pending, redis.ResponseError) and "NOGROUP" not in str(pending):
        raise pending
    dead: dict[str, list[str]] = {}
    for _, dead_letter in dead_letters:
        dead.setdefault(_uid(dead_letter.get(b"entry:message")), []).append(dead_letter[b"reason"].decode())
    return Snapshot(
        stream=Counter(_uid(entry.get(b"message")) for _, entry in entries if entry),
        pending=0 if isinstance(pending, Exception) else int(pending["pending"]),
        delayed=Counter(_uid(messages[name]) for name in due if name in messages),
        dead=dead,
        halves=tuple(name.decode() for name in (set(due) ^ set(messages)) | (set(line) ^ set(in_line))),
        in_line=Counter(_uid(in_line[place].partition(b" ")[2]) for place in line if place in in_line),
        keys_at_work=keys_at_work,
        locks=len(locks),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of comparing the ledger with the queues.

    Attributes:
        lost: confirmed messages that are in no place.
        doubled: messages in more than one of done, dead, delayed, stream and line, or more than once in one of the last
            four.
        conjured: messages that are present although they were refused or never sent.
        misplaced: messages that did not end as their kind must, as "uid: kind, place".
        overtaken: messages done after a later one of their ordering key, as "uid: by uid".
        endings: final place -> number of uids; only uncertain messages may have "never arrived".
        reruns: number of runs of messages beyond the first; the cost of at-least-once delivery.
    """

    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    conjured: tuple[str, ...] = ()
    misplaced: tuple[str, ...] = ()
    overtaken: tuple[str, ...] = ()
    endings: Mapping[str, int] = field(default_factory=dict)
    fates: Mapping[str, int] = field(default_factory=dict)
    reruns: int = 0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.conjured or self.misplaced or self.overtaken)


def lost_at_this_moment(before: Entries, queue: Snapshot, after: Entries) -> tuple[str, ...]:
    """Return messages that were confirmed before the snapshot, but are neither in it nor recorded as done later.

    There must be none at any moment, even during a fault, because a job records its effect before it is acknowledged.
    """
    held = queue.stream.keys() | queue.delayed.keys() | queue.in_line.keys() | queue.dead.keys()
    confirmed = {uid for uid, fate in before.fates.items() if fate == "confirmed"}
    return tuple(sorted(confirmed - held - after.runs.keys()))


def judge(ledger: Entries, queue: Snapshot) -> Verdict:
    """Check the guarantees once the faults have ended and the queue has had time to drain."""
    places: dict[str, list[str]] = {}
    for uid in ledger.runs:
        places.setdefault(uid, []).append("done")
    for uid, reasons in queue.dead.items():
        places.setdefault(uid, []).extend("dead" for _ in reasons)
    for uid, n in queue.delayed.items():
        places.setdefault(uid, []).extend(["delayed"] * n)
    for uid, n in queue.stream.items():
        places.setdefault(uid, []).extend(["stream"] * n)
    for uid, n in queue.in_line.items():
        places.setdefault(uid, []).extend(["in line"] * n)

    expected = set(ledger.kinds)
    lost, conjured, misplaced = [], [], []
    endings: Counter[str] = Counter()
    for uid, kind in ledger.kinds.items():
        fate, found = ledger.fates.get(uid, "uncertain"), places.get(uid, [])
        if not found:
            endings["never arrived" if fate != "confirmed" else "lost"] += 1
            if fate == "confirmed":
                lost.append(uid)
            continue
        endings[found[0]] += 1
        if fate == "refused":
            conjured.append(uid)
        ending = queue.dead[uid][0] if found == ["dead"] else found[0]
        if ending != DEAD_REASONS.get(kind, "done") and not (kind in MAY_SEEM_TO_KILL and ending == "delivery-limit"):
            misplaced.append(f"{uid}: {kind}, {ending}")
        if kind == "pipeline" and found == ["done"]:
            expected.add(f"{uid}/2")
            if not places.get(f"{uid}/2"):
                lost.append(f"{uid}/2")
            else:
                endings[places[f"{uid}/2"][0]] += 1
    return Verdict(
        lost=tuple(lost),
        doubled=tuple(f"{uid}: {', '.join(found)}" for uid, found in places.items() if len(found) > 1),
        conjured=(*conjured, *sorted(places.keys() - expected)),
        misplaced=tuple(misplaced),
        overtaken=tuple(f"{uid}: by {other}" for uid, other in _overtaken(ledger)),
        endings=dict(endings),
        fates=dict(Counter(ledger.fates.get(uid, "unsaid") for uid in ledger.kinds)),
        reruns=sum(n - 1 for n in ledger.runs.values()),
    )


def _overtaken(ledger: Entries) -> Iterator[tuple[str, str]]:
    """Yield each uid whose first run ended after the first run of a later uid of its ordering key, with the later uid.

    Unconfirmed messages are left out: their enqueue may have reached the server long after the producer continued.
    """
    for line in ledger.lines.values():
        youngest = None
        for uid in dict.fromkeys(line):
            if ledger.fates.get(uid) != "confirmed":
                continue
            if youngest is not None and _number(uid) < _number(youngest):
                yield uid, youngest
            else:
                youngest = uid


def _number(uid: str) -> int:
    return int(uid.rpartition("-")[2])


def _uid(payload: bytes | None) -> str:
    """Return the uid of a message, or a unique string for a payload that is not a message of the campaign."""
    try:
        message = json.loads(payload or b"")
        return str(message["kwargs"].get("uid") or message["args"][0])
    except (ValueError, LookupError, TypeError):
        return f"not a message: {payload!r}"
