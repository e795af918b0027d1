"""The settings of a broker: one value object that validates itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import SettingsError

DAY_MS = 24 * 60 * 60 * 1000
# Maximum lifetime of a unique key's lock: a century. Redis refuses expiry times beyond the range of its clock, which
# would abort the enqueueing script halfway.
LONGEST_LOCK_MS = 100 * 365 * DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """The settings of a broker. Times are in milliseconds.

    Attributes:
        namespace: the prefix of all keys.
        group: the consumer group of every stream.
        lease_ms: the time without a heartbeat, at least 2,000, after which a process loses its messages to other
            processes. Jobs may run for any length of time, because the lease belongs to the process, not to the
            message.
        max_deliveries: the number of worker crashes, at least 2, after which a message becomes a dead letter. The first
            crash of a process cannot be attributed to one of its messages.
        max_message_bytes: the maximum size of an encoded message.
        max_read_bytes: the maximum number of bytes that a consumer keeps of one read. It applies to queues with a
            decoder or a check, because their entries may have any size. The consumer keeps only the head of an entry
            that is larger than twice ``max_message_bytes``, and hands back entries beyond the limit. Reads of other
            queues are not limited, because their producers respect ``max_message_bytes``.
        max_queue_length: the number of messages in a queue at which ``enqueue`` raises ``QueueFull``; None = no limit.
            Messages in flight and in line count, and delayed messages do not. Retries, delayed messages that fall due
            and follow-up messages are never refused.
        queue_priorities: a number for each queue, 0 by default. As with Dramatiq's priorities, lower numbers come
            first. A process reads new messages from a queue only while none of its queues with lower numbers has
            messages waiting in Redis. Fetched messages run in the order of their actors' priorities.
        wait_when_full_ms: how long ``enqueue`` waits for a full queue before it raises ``QueueFull``; 0 = not at all.
        dead_letter_ttl_ms: how long dead letters are kept; by default 7 days, as in Dramatiq's own brokers.
        dead_letter_max: the approximate maximum number of a queue's dead letters. Dead letters with the same reason,
            actor, field and error class have the same cause. The oldest ones with the most frequent cause are removed
            first.
        dead_letter_max_bytes: the approximate maximum server memory that a queue's dead letters use. The oldest ones
            with the most frequent cause are removed first. The newest dead letter is kept whatever its size.
        unique_for_ms: the maximum time for which a message may lock its ``unique_key``, not counting its delay, unless
            the message sets its own.
        ordering_hold_ms: how long a message's retries may hold its ordering key after its first failure, unless the
            message sets its own; None = no limit. When the time is over, its last attempt runs. If that fails, the
            message becomes a dead letter.
        enqueue_timeout_ms: how long ``enqueue`` tries again after a lost connection before it raises.
        keeper_process: whether a child process (about 4 MB) instead of a thread writes the heartbeats, outside the
            interpreter lock.
        master_grace_ms: how long a worker process of Dramatiq's command may drain after its master has ended, before it
            is killed; None = it may outlive its master. Workers started in any other way have no master.
        overrun_ms: the time beyond its time limit after which a running message is overdue. A process whose running
            messages are all overdue is stuck: it stops reading and writes no heartbeats until one of these messages
            ends. Messages without a time limit are never overdue. None = no process counts as stuck.
        read_ahead_ms: the time for which a consumer reads messages ahead if jobs are short. It reads the messages that
            its Worker will need within this time, at most 128. Those for which the Worker has no room within 50 ms are
            handed back. 0 = nothing is read ahead. The default saves nine of ten reads for no-op jobs, and is too short
            to affect users or timeouts.
        long_job_ms: the duration beyond which a job is long. If most jobs of a queue are long, the Worker gets no more
            messages than it has free threads, so that the others wait in Redis for idle processes. Messages that wait
            in the Worker are taken back if no job of the process ends within this time. None = the Worker always gets
            its prefetch.
        idle_read_ms: the maximum time that one blocking read waits at the server.
        tick_ms: the interval between rounds of a queue's janitor while a lease has lapsed or a reply seems to be lost.
            With the default, a dead process's messages are found within 1.5 seconds after its lease has lapsed; the
            requirement is two seconds. At other times, the janitor sleeps until the first lease could lapse or until it
            is woken.
        sweep_ms: the interval between scans of all entries for orphans.
        promote_batch: the maximum number of due messages that one script call promotes, which takes the server a few
            milliseconds.
    """

    namespace: str = "streams"
    group: str = "workers"
    lease_ms: int = 30_000
    max_deliveries: int = 5
    max_message_bytes: int = 1 << 20
    max_read_bytes: int = 16 << 20
    max_queue_length: int | None = None
    queue_priorities: Mapping[str, int] = field(default_factory=dict)
    wait_when_full_ms: int = 0
    dead_letter_ttl_ms: int = 7 * DAY_MS
    dead_letter_max: int = 10_000
    dead_letter_max_bytes: int = 64 << 20
    unique_for_ms: int = DAY_MS
    ordering_hold_ms: int | None = DAY_MS
    enqueue_timeout_ms: int = 5_000
    keeper_process: bool = True
    master_grace_ms: int | None = 30_000
    overrun_ms: int | None = 60_000
    read_ahead_ms: int = 15
    long_job_ms: int | None = 50
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
            "dead_letter_max_bytes": 1,
            "unique_for_ms": 1,
            "ordering_hold_ms": 0,
            "enqueue_timeout_ms": 0,
            "master_grace_ms": 0,
            "overrun_ms": 0,
            "read_ahead_ms": 0,
            "long_job_ms": 1,
            "idle_read_ms": 1,
            "tick_ms": 1,
            "sweep_ms": 1,
            "promote_batch": 1,
        }
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(name, f"expected at least {least}, got {value}", "set a larger value")
        for name in ("namespace", "group"):
            value = getattr(self, name)
            if not value or any(letter in value for letter in "{} \n"):
                raise SettingsError(name, f"expected a word, got {value!r}", "use a word without spaces and braces")

    def lock_ms(self, options: Mapping[str, Any], delay_ms: int) -> int:
        """Return for how many ms from now a message with these options may hold its unique key at most."""
        asked = options.get("unique_for_ms")
        return min(max(1, delay_ms + self.unique_for_ms if asked is None else int(asked)), LONGEST_LOCK_MS)

    def hold_ms(self, options: Mapping[str, Any]) -> int:
        """Return for how many ms a message's retries may hold its ordering key at most, or -1 for no limit."""
        asked = options.get("ordering_hold_ms", self.ordering_hold_ms)
        return -1 if asked is None else int(asked)

    @property
    def beat_ms(self) -> int:
        """The interval between heartbeats: a third of the lease, so that two heartbeats may be lost."""
        return self.lease_ms // 3
