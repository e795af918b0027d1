"""The migration from Dramatiq's RedisBroker: moves the messages in its queues to this broker, one by one.

    python -m broker migrate OLD_URL --url NEW_URL

Point producers at the new broker, stop the old workers, and repeat this command until nothing is left. A message is
added to the new queue before it is removed from the old one, so a crash in between adds it twice but does not lose it.
Messages that a live worker has fetched are left to that worker and counted. A message that the new broker refuses, for
example because it is too large, stays in the old queue and is listed, and the other messages are moved. Dead letters
are not moved, because RedisBroker deletes them after seven days.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dramatiq
import redis
from dramatiq.errors import BrokerConnectionError

from .broker import RedisStreamsBroker
from .errors import QueueFull

# RedisBroker's default timeout: a worker without a heartbeat for this long counts as dead.
HEARTBEAT_TIMEOUT_MS = 60_000
MESSAGES_SUFFIX, DELAYED_SUFFIX, DEAD_SUFFIX = ".msgs", ".DQ", ".XQ"


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that stays in the old queue.

    Attributes:
        message_id: RedisBroker's id for the message, which is the key in the old queue's message hash.
        error: why the new broker refused the message, and how to fix the problem.
    """

    message_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Drained:
    """The result of draining one old queue.

    Attributes:
        moved: the number of messages that were moved to the new broker. Delayed messages are due at the same time.
        left: the number of messages that were not moved because the old broker's live workers have fetched them. Stop
            these workers and drain again.
        refused: the messages that the new broker refused. They stay in the old queue.
    """

    moved: int
    left: int
    refused: tuple[Refused, ...] = ()


def drain(
    old: redis.Redis,
    broker: RedisStreamsBroker,
    *,
    namespace: str = "dramatiq",
    heartbeat_timeout_ms: int = HEARTBEAT_TIMEOUT_MS,
) -> dict[str, Drained]:
    """Move all messages in a RedisBroker's queues to ``broker``; return the results by queue name.

    Args:
        old: a client for the old broker's server, with ``decode_responses=False``. Both brokers may use one server.
        namespace: the old broker's namespace.
        heartbeat_timeout_ms: the old broker's timeout. A worker with a younger heartbeat keeps the messages that it
            fetched.

    Raises:
        BrokerConnectionError: one of the servers is not available. Drain again.
        QueueFull: ``broker`` has reached its ``max_queue_length``. Drain again when workers have made room.
    """
    client: Any = old
    drained: dict[str, Drained] = {}
    for queue_name in sorted(_queues(client, namespace)):
        waiting, delayed = (
            _drain_queue(client, broker, namespace, queue_name, suffix, heartbeat_timeout_ms)
            for suffix in ("", DELAYED_SUFFIX)
        )
        drained[queue_name] = Drained(
            waiting.moved + delayed.moved, waiting.left + delayed.left, waiting.refused + delayed.refused
        )
    return drained


def _drain_queue(
    client: Any, broker: RedisStreamsBroker, namespace: str, queue_name: str, suffix: str, timeout_ms: int
) -> Drained:
    waiting = f"{namespace}:{queue_name}{suffix}"
    messages = waiting + MESSAGES_SUFFIX
    fetched = _fetched_by_live_workers(client, namespace, queue_name + suffix, timeout_ms)
    moved, refused = 0, []
    for message_id, payload in _in_order(client, waiting, messages):
        if message_id in fetched:
            continue
        try:
            _move(broker, queue_name, payload)
        except (BrokerConnectionError, QueueFull):
            raise
        except Exception as error:
            # whatever the error is, later messages must still be moved
            refused.append(Refused(message_id.decode(errors="replace"), f"{type(error).__name__}: {error}"))
            continue
        pipe = client.pipeline(transaction=True)
        pipe.lrem(waiting, 0, message_id)
        pipe.hdel(messages, message_id)
        pipe.execute()
        moved += 1
    return Drained(moved, len(fetched), tuple(refused))


def _move(broker: RedisStreamsBroker, queue_name: str, payload: bytes) -> None:
    old = dramatiq.Message.decode(payload)
    options = {name: value for name, value in old.options.items() if name != "redis_message_id"}
    # the broker turns an eta into a delay
    broker.enqueue(replace(old, queue_name=queue_name, options=options))


def _queues(client: Any, namespace: str) -> set[str]:
    """Return the names of the old queues that hold messages, found by a scan for their message hashes."""
    found = set()
    for key in client.scan_iter(match=f"{namespace}:*{MESSAGES_SUFFIX}", count=1_000):
        name = key.decode().removeprefix(f"{namespace}:").removesuffix(MESSAGES_SUFFIX)
        if not name.endswith(DEAD_SUFFIX):
            found.add(name.removesuffix(DELAYED_SUFFIX))
    return found


def _in_order(client: Any, waiting: str, messages: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the waiting messages in order, then those that were fetched but never acknowledged."""
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


def _fetched_by_live_workers(client: Any, namespace: str, queue_name: str, timeout_ms: int) -> set[bytes]:
    since_ms = int(time.time() * 1000) - timeout_ms
    fetched: set[bytes] = set()
    for worker in client.zrangebyscore(f"{namespace}:__heartbeats__", since_ms, "+inf"):
        fetched |= client.smembers(f"{namespace}:__acks__.{worker.decode()}.{queue_name}")
    return fetched
