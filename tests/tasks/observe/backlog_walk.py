"""A random walk through the states of a queue, by workers and operators, with the truth according to Redis.

The truth is read with plain commands and counted here, entry by entry, so that it shares nothing with the sampler: not
its script, not its arithmetic, and not ``lag``, which Redis itself loses in many of these states.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import dramatiq
import redis

from broker import RedisStreamsBroker
from broker.keys import QueueKeys
from tasks.contracts import CLUSTER_FEEDBACK, GROUP, NAMESPACE

QUEUE = CLUSTER_FEEDBACK
KEYS = QueueKeys(NAMESPACE, QUEUE)
CONSUMERS = ("by-hand-1", "by-hand-2", "by-hand-3")
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Truth:
    """The contents of a queue, counted entry by entry."""

    pending: int
    undelivered: int
    orphaned: int
    delayed: int
    dead: int
    oldest_ms: int | None
    oldest_idle_ms: int | None
    is_lag_known: bool


class Walk:
    """A queue on which one random operation runs at a time."""

    def __init__(self, client: redis.Redis, broker: RedisStreamsBroker, rng: random.Random) -> None:
        self._client: Any = client  # redis-py types a reply as the union of all its forms
        self._broker, self._rng = broker, rng
        self._client.xgroup_create(KEYS.stream, GROUP, "0", mkstream=True)

    def step(self) -> str:
        """Run one random operation, and return its name."""
        # mostly deliveries, or the queue would only grow
        odds = {
            self.enqueue: 14.0,
            self.delay: 3,
            self.deliver: 20,
            self.finish: 12,
            self.acknowledge: 3,
            self.claim: 3,
            self.bury: 3,
            self.requeue: 2,
            self.delete_any: 2,
            self.delete_last_delivered: 2,
            self.drop_consumer: 1,
            self.lose_the_group: 0.3,
            self.promote: 2,
        }
        (do,) = self._rng.choices(list(odds), list(odds.values()))
        do()
        return do.__name__

    def enqueue(self) -> None:
        for _ in range(self._rng.randint(1, 6)):
            self._broker.enqueue(self._message())

    def delay(self) -> None:
        self._broker.enqueue(self._message(), delay=self._rng.choice((1, DAY_MS)))

    def deliver(self) -> None:
        self._client.xreadgroup(GROUP, self._consumer(), {KEYS.stream: ">"}, count=self._rng.randint(1, 5))

    def finish(self) -> None:
        """Acknowledge and delete in one transaction, as a worker does."""
        for entry_id in self._some_pending(3):
            pipe = self._client.pipeline(transaction=True)
            pipe.xack(KEYS.stream, GROUP, entry_id)
            pipe.xdel(KEYS.stream, entry_id)
            pipe.execute()

    def acknowledge(self) -> None:
        """Acknowledge by hand, which leaves orphans."""
        for entry_id in self._some_pending(2):
            self._client.xack(KEYS.stream, GROUP, entry_id)

    def claim(self) -> None:
        for entry_id in self._some_pending(2):
            idle = self._rng.randint(0, 100_000)
            self._client.xclaim(KEYS.stream, GROUP, self._consumer(), 0, [entry_id], idle=idle, justid=True)

    def bury(self) -> None:
        for entry_id in self._some_pending(1):
            fields = self._client.xrange(KEYS.stream, entry_id, entry_id)
            if not fields:
                continue
            entry = {f"entry:{name.decode()}": value for name, value in fields[0][1].items()}
            pipe = self._client.pipeline(transaction=True)
            pipe.xadd(KEYS.dead, {"reason": "failed", **entry})
            pipe.xack(KEYS.stream, GROUP, entry_id)
            pipe.xdel(KEYS.stream, entry_id)
            pipe.execute()

    def requeue(self) -> None:
        for dead_letter_id, fields in self._client.xrange(KEYS.dead, count=1):
            self._client.xadd(KEYS.stream, {"message": fields[b"entry:message"]})
            self._client.xdel(KEYS.dead, dead_letter_id)

    def delete_any(self) -> None:
        """Delete an entry by hand: waiting, pending (leaves a ghost) or orphaned."""
        entries = self._client.xrange(KEYS.stream)
        if entries:
            self._client.xdel(KEYS.stream, self._rng.choice(entries)[0])

    def delete_last_delivered(self) -> None:
        """Delete the last delivered entry, which makes Redis lose its ``lag``."""
        self._client.xdel(KEYS.stream, self._group()["last-delivered-id"])

    def drop_consumer(self) -> None:
        self._client.xgroup_delconsumer(KEYS.stream, GROUP, self._consumer())

    def lose_the_group(self) -> None:
        """Recreate the group at 0, as a worker does: all remaining entries are delivered again."""
        self._client.xgroup_destroy(KEYS.stream, GROUP)
        self._client.xgroup_create(KEYS.stream, GROUP, "0")

    def promote(self) -> None:
        for name in self._client.zrangebyscore(KEYS.delayed, "-inf", self._now_ms(), start=0, num=5):
            self._client.xadd(KEYS.stream, {"message": self._client.hget(KEYS.delayed_messages, name)})
            self._client.zrem(KEYS.delayed, name)
            self._client.hdel(KEYS.delayed_messages, name)

    def truth(self) -> Truth:
        """Return the contents of the queue, read with plain commands."""
        entries = [_order(entry_id) for entry_id, _ in self._client.xrange(KEYS.stream)]
        pending = self._client.xpending_range(KEYS.stream, GROUP, "-", "+", 100_000)
        held = {_order(one["message_id"]) for one in pending}
        group = self._group()
        last = _order(group["last-delivered-id"])
        now = self._now_ms()
        return Truth(
            pending=len(pending),
            undelivered=sum(entry > last and entry not in held for entry in entries),
            orphaned=sum(entry <= last and entry not in held for entry in entries),
            delayed=self._client.zcard(KEYS.delayed),
            dead=self._client.xlen(KEYS.dead),
            oldest_ms=max(0, now - entries[0][0]) if entries else None,
            oldest_idle_ms=pending[0]["time_since_delivered"] if pending else None,
            is_lag_known=group.get("lag") is not None,
        )

    def _message(self) -> dramatiq.Message[Any]:
        return dramatiq.Message(QUEUE, "undo_feedback", (), {}, {})

    def _consumer(self) -> str:
        return self._rng.choice(CONSUMERS)

    def _some_pending(self, n: int) -> list[bytes]:
        pending = self._client.xpending_range(KEYS.stream, GROUP, "-", "+", 100_000)
        return [one["message_id"] for one in self._rng.sample(pending, min(n, len(pending)))]

    def _group(self) -> dict[str, Any]:
        (group,) = self._client.xinfo_groups(KEYS.stream)
        return dict(group)

    def _now_ms(self) -> int:
        seconds, microseconds = self._client.time()
        return int(seconds * 1_000 + microseconds // 1_000)


def _order(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
