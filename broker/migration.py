"""From Dramatiq's RedisBroker to this one: what its queues still hold is moved, one message after the other.

    python -m broker.migration OLD_URL NEW_URL

Point producers at the new broker, stop the old workers, run this until it says that nothing is left. A message is added
here before it is removed there: a crash in between adds it twice and loses none. What a worker that still lives has
fetched is left to it and counted. Dead letters stay where they are; RedisBroker forgets them after seven days.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dramatiq
import redis

from .broker import RedisStreamsBroker

# RedisBroker's own default: who has not been heard of for so long is dead.
HEARTBEAT_TIMEOUT_MS = 60_000
MESSAGES_SUFFIX, DELAYED_SUFFIX, DEAD_SUFFIX = ".msgs", ".DQ", ".XQ"


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of one old queue.

    Attributes:
        moved: messages that are in the new broker now; delayed ones keep their time.
        left: messages that a living worker of the old broker has fetched. Stop it and drain again.
    """

    moved: int
    left: int


def drain(
    old: redis.Redis,
    broker: RedisStreamsBroker,
    *,
    namespace: str = "dramatiq",
    heartbeat_timeout_ms: int = HEARTBEAT_TIMEOUT_MS,
) -> dict[str, Drained]:
    """Move every message of every queue of a RedisBroker to ``broker``; what was moved, by queue.

    Args:
        old: a client of the old broker's server, which may be the new one's too; ``decode_responses`` must be False.
        namespace: the old broker's.
        heartbeat_timeout_ms: the old broker's; a worker that was heard of since then keeps what it has fetched.

    Raises:
        BrokerConnectionError: one of the servers went away. Drain again.
    """
    client: Any = old
    drained: dict[str, Drained] = {}
    for queue_name in sorted(_queues(client, namespace)):
        counts = [
            _drain_queue(client, broker, namespace, queue_name, suffix, heartbeat_timeout_ms)
            for suffix in ("", DELAYED_SUFFIX)
        ]
        drained[queue_name] = Drained(sum(moved for moved, _ in counts), sum(left for _, left in counts))
    return drained


def _drain_queue(
    client: Any, broker: RedisStreamsBroker, namespace: str, queue_name: str, suffix: str, timeout_ms: int
) -> tuple[int, int]:
    waiting = f"{namespace}:{queue_name}{suffix}"
    messages = waiting + MESSAGES_SUFFIX
    kept = _fetched_by_the_living(client, namespace, queue_name + suffix, timeout_ms)
    moved = 0
    for message_id, payload in _in_order(client, waiting, messages):
        if message_id in kept:
            continue
        old = dramatiq.Message.decode(payload)
        options = {name: value for name, value in old.options.items() if name != "redis_message_id"}
        # the broker turns an eta into a delay
        broker.enqueue(replace(old, queue_name=queue_name, options=options))
        pipe = client.pipeline(transaction=True)
        pipe.lrem(waiting, 0, message_id)
        pipe.hdel(messages, message_id)
        pipe.execute()
        moved += 1
    return moved, len(kept)


def _queues(client: Any, namespace: str) -> set[str]:
    """Their names, from the hashes of messages: a queue without one holds nothing."""
    found = set()
    for key in client.scan_iter(match=f"{namespace}:*{MESSAGES_SUFFIX}", count=1_000):
        name = key.decode().removeprefix(f"{namespace}:").removesuffix(MESSAGES_SUFFIX)
        if not name.endswith(DEAD_SUFFIX):
            found.add(name.removesuffix(DELAYED_SUFFIX))
    return found


def _in_order(client: Any, waiting: str, messages: str) -> Iterator[tuple[bytes, bytes]]:
    """Those that wait, in their order; then those that were fetched by somebody and never acknowledged."""
    seen = set()
    for message_id in client.lrange(waiting, 0, -1):
        payload = client.hget(messages, message_id)
        if payload is not None:
            seen.add(message_id)
            yield message_id, payload
    for message_id in client.hkeys(messages):
        payload = None if message_id in seen else client.hget(messages, message_id)
        if payload is not None:
            yield message_id, payload


def _fetched_by_the_living(client: Any, namespace: str, queue_name: str, timeout_ms: int) -> set[bytes]:
    since_ms = int(time.time() * 1000) - timeout_ms
    kept: set[bytes] = set()
    for worker in client.zrangebyscore(f"{namespace}:__heartbeats__", since_ms, "+inf"):
        kept |= client.smembers(f"{namespace}:__acks__.{worker.decode()}.{queue_name}")
    return kept


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    broker = RedisStreamsBroker(sys.argv[2], middleware=[])
    with redis.Redis.from_url(sys.argv[1]) as old:
        drained = drain(old, broker)
    broker.close()
    for queue_name, one in drained.items():
        print(f"{queue_name}: {one.moved} moved, {one.left} left to workers that still live")
    n_left = sum(one.left for one in drained.values())
    print("nothing is left" if not n_left else f"{n_left} are left: stop the old workers, and run this again")
    return 1 if n_left else 0


if __name__ == "__main__":
    sys.exit(main())
