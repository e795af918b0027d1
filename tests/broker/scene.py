"""A scene of several simulated processes on one queue, whose state can be compared as a table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dramatiq
import redis

from broker import Delivery, RedisStreamsBroker, keeper
from broker.consumer import StreamsConsumer
from broker.janitor import Round
from broker.keys import QueueKeys

QUEUE = "q"
KEYS = QueueKeys("streams", QUEUE)
GROUP = "cluster-workers"


def message(label: str, **options: Any) -> dramatiq.Message[Any]:
    """Return a message that is identified by its only argument."""
    return dramatiq.Message(queue_name=QUEUE, actor_name="work", args=(label,), kwargs={}, options=options)


@dataclass(frozen=True)
class QueueState:
    """The whole content of a queue, by the labels of its messages.

    ``pending``: label -> (process, deliveries); ``lost``: in the stream, delivered, in no pending list;
    ``ghosts``: the number of pending ids without an entry.
    """

    waiting: tuple[str, ...] = ()
    pending: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    ghosts: int = 0
    delayed: tuple[str, ...] = ()
    dead: tuple[tuple[str, str], ...] = ()
    locks: tuple[str, ...] = ()


class Scene:
    """Simulated processes by name, each with its own broker on one queue."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client: Any = client  # redis-py types each answer as the union of all possible ones
        self.url = url
        self.brokers: dict[str, RedisStreamsBroker] = {}
        self._consumers: dict[str, list[StreamsConsumer]] = {}
        self._names: dict[str, str] = {"~handed-back": "handed back"}

    def process(self, name: str, **settings: Any) -> RedisStreamsBroker:
        """Return a broker that simulates a process."""
        broker = RedisStreamsBroker(self.url, **{"middleware": [], "lease_ms": 2_000, **settings})
        broker.declare_queue(QUEUE)
        self.brokers[name] = broker
        self._names[broker.consumer_name] = name
        return broker

    def consumer(self, name: str, *, prefetch: int = 10, timeout: int = 2_000, **settings: Any) -> StreamsConsumer:
        consumer = self.process(name, **settings).consume(QUEUE, prefetch=prefetch, timeout=timeout)
        self._consumers.setdefault(name, []).append(consumer)
        return consumer

    def die(self, name: str) -> None:
        """End a process as a SIGKILL one lease ago: its threads stop, its entries and its old heartbeat stay."""
        broker = self.brokers.pop(name)
        for consumer in self._consumers.pop(name, []):
            consumer._read.drop()  # as its sockets are closed: the server would deliver into an open one
        session = broker._session
        session.keeper.close(is_holding=False)
        for queue in session._queues.values():
            queue.janitor.stop()
        session._queues.clear()
        consumer_name = broker.consumer_name
        self.client.zadd(KEYS.consumers, {consumer_name: 1})
        self.age(consumer_name, idle_ms=60_000)
        session.settler._is_stopping.set()
        session.settler._has_work.set()
        session.connections.close()

    def die_running(self, *names: str) -> None:
        """Start processes one after the other, each of which dies while it runs the next message."""
        for name in names:
            (delivery,) = received(self.consumer(name), 1)
            self.brokers[name].emit_before("process_message", delivery)
            self.die(name)

    def age(self, consumer_name: str, *, idle_ms: int) -> None:
        """Set the idle time of a consumer's entries."""
        for one in self.client.xpending_range(KEYS.stream, GROUP, "-", "+", 1_000, consumername=consumer_name):
            self.client.xclaim(
                KEYS.stream,
                GROUP,
                consumer_name,
                0,
                [one["message_id"]],
                idle=idle_ms,
                retrycount=one["times_delivered"],
                justid=True,
            )

    def state(self) -> QueueState:
        labels = {entry_id: label_of(fields) for entry_id, fields in self.client.xrange(KEYS.stream)}
        pending, ghosts, last = {}, 0, b"0-0"
        if any(one["name"] == GROUP.encode() for one in groups(self.client)):
            last = next(one["last-delivered-id"] for one in groups(self.client) if one["name"] == GROUP.encode())
            for one in self.client.xpending_range(KEYS.stream, GROUP, "-", "+", 1_000):
                label = labels.pop(one["message_id"], None)
                if label is None:
                    ghosts += 1
                else:
                    who = one["consumer"].decode()
                    pending[label] = (self._names.get(who, who), one["times_delivered"])
        return QueueState(
            waiting=tuple(label for entry_id, label in labels.items() if order(entry_id) > order(last)),
            pending=pending,
            lost=tuple(label for entry_id, label in labels.items() if order(entry_id) <= order(last)),
            ghosts=ghosts,
            delayed=tuple(sorted(label_of({b"message": m}) for m in self.client.hvals(KEYS.delayed_messages))),
            dead=tuple(
                (fields[b"reason"].decode(), label_of({b"message": fields.get(b"entry:message", b"null")}))
                for _, fields in self.client.xrange(KEYS.dead)
            ),
            locks=tuple(sorted(key.decode().rpartition(":")[2] for key in self.client.keys("*:unique:*"))),
        )

    def charges(self) -> dict[str, tuple[float, str]]:
        """Return for each suspect its crash count and the process that now runs it, in isolation or not."""
        labels = {entry_id: label_of(fields) for entry_id, fields in self.client.xrange(KEYS.stream)}
        noted = {}
        for entry_id, note in self.client.hgetall(KEYS.suspects).items():
            charges, _, rest = note.decode().partition(" ")
            _, _, ran = rest.partition(" ")
            who, space, company = ran.partition(" ")
            noted[labels[entry_id]] = (float(charges), self._names.get(who, who) + space + company)
        return noted

    def close(self) -> None:
        for consumers in self._consumers.values():
            for consumer in consumers:
                consumer.close()
        for broker in self.brokers.values():
            broker.close()
        while keeper._watching:  # the simulated processes end with the scene, so their keeper processes must end, too
            keeper._watching.pop().end()


@contextmanager
def scene_on(client: redis.Redis, url: str) -> Iterator[Scene]:
    scene = Scene(client, url)
    try:
        yield scene
    finally:
        scene.close()


def groups(client: Any) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = client.xinfo_groups(KEYS.stream)
    except redis.ResponseError:  # the key does not exist
        return []
    return found


def order(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)


def label_of(fields: Mapping[bytes, bytes]) -> str:
    try:
        return str(json.loads(fields[b"message"])["args"][0])
    except (KeyError, TypeError, ValueError):
        return "?"


def received(consumer: StreamsConsumer, n: int) -> list[Delivery]:
    """Return the next ``n`` messages, however short the consumer's timeout is."""
    got: list[Delivery] = []
    give_up_at = time.monotonic() + 10
    while len(got) < n:
        delivery = next(consumer)
        if delivery is None and time.monotonic() < give_up_at:
            continue
        assert isinstance(delivery, Delivery), f"only {len(got)} of {n} messages came"
        got.append(delivery)
    return got


def swept(broker: RedisStreamsBroker) -> Round:
    """Run one round of the process's janitor at once, including a sweep for orphans; return its findings."""
    janitor = next(iter(broker._session._queues.values())).janitor
    # the janitor's thread may be in a round that has swept already and postpones the next sweep
    with janitor._round:
        janitor._next_sweep_at = 0.0
        return janitor._run_once()


def labels(deliveries: list[Delivery]) -> list[str]:
    return [delivery.args[0] for delivery in deliveries]


def fail(broker: RedisStreamsBroker, delivery: Delivery, *, delay: int = 60_000) -> None:
    """Retry a failed message as the Retries middleware does."""
    delivery.options["retries"] = delivery.options.get("retries", 0) + 1
    broker.enqueue(delivery, delay=delay)  # type: ignore[arg-type]  # Dramatiq passes the proxy too
