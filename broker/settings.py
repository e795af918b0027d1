"""The settings of a broker: values, checked where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import SettingsError

DAY_MS = 24 * 60 * 60 * 1000
# A century. Redis refuses what its clock cannot count to, in the middle of the script that adds the messages.
LONGEST_LOCK_MS = 100 * 365 * DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How the broker behaves. Times are milliseconds.

    Attributes:
        namespace: what the keys begin with.
        group: the consumer group of every stream.
        lease_ms: a process that has not been heard of for so long loses its messages to the others; at least 2,000.
            Jobs may run as long as they like: the lease is the process's, not the message's.
        max_deliveries: a message whose worker process died so often becomes a dead letter; at least 2, because the
            first crash of a process cannot be told from that of its neighbours.
        max_message_bytes: what an encoded message may weigh.
        max_read_bytes: what a consumer keeps of one read of a queue that has a decoder or a check, whose entries may be
            of any size; of an entry above twice ``max_message_bytes`` it keeps the head, and what else finds no room is
            given back. Other queues have no bound: their writers are trusted to keep to ``max_message_bytes``.
        max_queue_length: how many messages a queue may hold before ``enqueue`` raises ``QueueFull``; None = no limit.
            Those in flight and in line count, delayed ones do not. Retries, delayed messages that fall due and what
            follows a finished message are never refused.
        queue_priorities: a number per queue, 0 where nothing is said; lower ones first, as Dramatiq's priorities. A
            process reads new messages of a queue only while none of its more important queues has messages waiting in
            Redis. What it has fetched runs by the priorities of the actors.
        wait_when_full_ms: how long ``enqueue`` waits for room before it raises ``QueueFull``; 0 = not at all.
        dead_letter_ttl_ms: how long dead letters are kept; 7 days, as Dramatiq's own brokers do.
        dead_letter_max: how many dead letters a queue keeps, about; the oldest go first.
        unique_for_ms: how long the lock of a ``unique_key`` lasts at most, counted from the end of the delay, where the
            message says nothing.
        enqueue_timeout_ms: how long ``enqueue`` tries again after a lost connection before it raises.
        keeper_process: whether a child process of some 4 MB writes the heartbeats, outside the interpreter lock; else a
            thread does.
        master_grace_ms: a worker process of Dramatiq's command whose master has ended drains, and is killed after so
            long; None = it may outlive its master. Workers that were started in any other way have no master.
        overrun_ms: a process all of whose running messages are beyond their time limits by so much is stuck: it reads
            nothing more, and its heartbeat ends, until one of them ends; None = no process is ever judged. Messages
            without a time limit never are.
        read_ahead_ms: where jobs are short, a consumer reads ahead what its Worker will need within so many ms, up to
            128 messages; what finds no place within 50 ms goes back. 0 = nothing is read ahead. The default saves nine
            in ten of the reads of no-ops, and is less than a person, or a timeout, would notice.
        idle_read_ms: how long one blocking read waits at the server.
        tick_ms: how often the janitor of a queue looks around while a lease has lapsed or an answer seems to be lost.
            Half a second below the two seconds within which a dead process's messages must be found after its lease.
            Else it sleeps until the first lease could lapse, or until it is woken.
        sweep_ms: how often the janitor begins a pass for orphans.
        promote_batch: how many due messages one script call moves: some milliseconds of the server.
    """

    namespace: str = "streams"
    group: str = "cluster-workers"
    lease_ms: int = 30_000
    max_deliveries: int = 5
    max_message_bytes: int = 1 << 20
    max_read_bytes: int = 16 << 20
    max_queue_length: int | None = None
    queue_priorities: Mapping[str, int] = field(default_factory=dict)
    wait_when_full_ms: int = 0
    dead_letter_ttl_ms: int = 7 * DAY_MS
    dead_letter_max: int = 100_000
    unique_for_ms: int = DAY_MS
    enqueue_timeout_ms: int = 5_000
    keeper_process: bool = True
    master_grace_ms: int | None = 30_000
    overrun_ms: int | None = 60_000
    read_ahead_ms: int = 15
    idle_read_ms: int = 20_000
    tick_ms: int = 1_500
    sweep_ms: int = 25_000
    promote_batch: int = 200

    def __post_init__(self) -> None:
        lowest = {
            "lease_ms": 2_000,
            "max_deliveries": 2,
            "max_message_bytes": 1,
            "max_read_bytes": 1,
            "max_queue_length": 1,
            "wait_when_full_ms": 0,
            "dead_letter_ttl_ms": 1,
            "dead_letter_max": 1,
            "unique_for_ms": 1,
            "enqueue_timeout_ms": 0,
            "master_grace_ms": 0,
            "overrun_ms": 0,
            "read_ahead_ms": 0,
            "idle_read_ms": 1,
            "tick_ms": 1,
            "sweep_ms": 1,
            "promote_batch": 1,
        }
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(name, f"is {value}", f"must be at least {least}")
        for name in ("namespace", "group"):
            value = getattr(self, name)
            if not value or any(letter in value for letter in "{} \n"):
                raise SettingsError(name, f"is {value!r}", "must be a word without spaces and braces")

    def lock_ms(self, options: Mapping[str, Any], delay_ms: int) -> int:
        """Return for how long a message that has these options and waits from now on holds its unique key at most."""
        asked = options.get("unique_for_ms")
        return min(max(1, delay_ms + self.unique_for_ms if asked is None else int(asked)), LONGEST_LOCK_MS)

    @property
    def beat_ms(self) -> int:
        """How often a process says that it lives: two beats may be lost."""
        return self.lease_ms // 3
