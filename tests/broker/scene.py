"""Several simulated processes on one queue. A test can compare the whole state of the queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dramatiq
import redis

from broker import Delivery, RedisStreamsBroker
from broker.consumer import StreamsConsumer
from broker.janitor import Janitor, Round
from broker.keeper import Keeper
from broker.keys import KeysByQueue, QueueKeys
from broker.net.connections import Argument, Connections
from broker.net.shared_reads import Timers
from broker.outcomes import Outcomes
from broker.scripts import BEAT, Script

QUEUE = "q"
KEYS = QueueKeys("streams", QUEUE)
GROUP = "workers"


def message(label: str, **options: Any) -> dramatiq.Message[Any]:
    """Return a message that is identified by its only argument."""
    return dramatiq.Message(queue_name=QUEUE, actor_name="work", args=(label,), kwargs={}, options=options)


@dataclass(frozen=True)
class QueueState:
    """A queue's whole content, by the labels of its messages.

    ``pending`` maps a label to its process and delivery count. ``lost`` lists the orphans: delivered entries that are
    in no pending list. ``ghosts`` is the number of pending ids without an entry.
    """

    waiting: tuple[str, ...] = ()
    pending: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    ghosts: int = 0
    delayed: tuple[str, ...] = ()
    dead: tuple[tuple[str, str], ...] = ()
    locks: tuple[str, ...] = ()


class Line:
    """A link between a simulated process and Redis. Tests can cut it."""

    def __init__(self) -> None:
        self.is_cut_by: type[BaseException] | None = None

    def check(self) -> None:
        if self.is_cut_by is not None:
            raise self.is_cut_by


class CuttableConnection(redis.UnixDomainSocketConnection):
    """A connection that fails once its line is cut."""

    def __init__(self, *, line: Line, **settings: Any) -> None:
        self._line = line
        super().__init__(**settings)  # type: ignore[no-untyped-call]

    def connect(self) -> None:
        self._line.check()
        super().connect()  # type: ignore[no-untyped-call]

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        self._line.check()
        super().send_packed_command(*args, **options)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        answer = super().read_response(*args, **options)
        self._line.check()
        return answer


class Scene:
    """Simulated processes on one queue. Each has a name and its own broker.

    Threads write the heartbeats: a keeper process would outlive the simulated death of its process.
    """

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client: Any = client  # redis-py types each reply as the union of all possible ones
        self.url = url
        self.brokers: dict[str, RedisStreamsBroker] = {}
        self._connections = Connections(client)
        self._lines: dict[str, Line] = {}
        self._consumers: dict[str, list[StreamsConsumer]] = {}
        self._names: dict[str, str] = {"~handed-back": "handed back"}

    def process(self, name: str, *, keeper_process: bool = False, **settings: Any) -> RedisStreamsBroker:
        """Return a broker that simulates a process; one with a keeper process cannot ``die``."""
        if keeper_process:
            client = redis.Redis.from_url(self.url)
        else:
            line = self._lines[name] = Line()
            pool = redis.ConnectionPool.from_url(self.url, connection_class=CuttableConnection, line=line)
            client = redis.Redis(connection_pool=pool)
        defaults: dict[str, Any] = {"middleware": [], "lease_ms": 10_000}
        broker = RedisStreamsBroker(client=client, keeper_process=keeper_process, **(defaults | settings))
        broker.declare_queue(QUEUE)
        self.brokers[name] = broker
        self._names[broker.consumer_name] = name
        return broker

    def consumer(self, name: str, *, prefetch: int = 10, timeout: int = 2_000, **settings: Any) -> StreamsConsumer:
        consumer = self.process(name, **settings).consume(QUEUE, prefetch=prefetch, timeout=timeout)
        self._consumers.setdefault(name, []).append(consumer)
        return consumer

    @contextmanager
    def silence(self, name: str) -> Iterator[None]:
        """Make a process's commands time out until the ``with`` block ends, as if the server did not answer."""
        line = self._lines[name]
        line.is_cut_by = redis.TimeoutError
        try:
            yield
        finally:
            line.is_cut_by = None

    def die(self, name: str) -> None:
        """End a process as if SIGKILL had ended it a lease ago: its threads end; its entries and heartbeat remain."""
        broker, line = self.brokers.pop(name), self._lines.pop(name)
        consumer_name = broker.consumer_name
        line.is_cut_by = redis.TimeoutError
        broker.emit_before("worker_shutdown", None)  # releases threads that are waiting for a suspect
        for consumer in self._consumers.pop(name, []):
            consumer.close()
        broker.close()
        line.is_cut_by = SystemExit  # ends any thread that still runs a message
        self.client.zadd(KEYS.consumers, {consumer_name: 1})
        self.age(consumer_name, idle_ms=60_000)

    def die_running(self, *names: str) -> None:
        """Start the processes one after another. Each dies while it runs the next message."""
        for name in names:
            (delivery,) = received(self.consumer(name), 1)
            self.brokers[name].emit_before("process_message", delivery)
            self.die(name)

    def age(self, consumer_name: str, *, idle_ms: int) -> None:
        """Set the idle time of all of a consumer's entries."""
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
        """Return each suspect's crash count, and the process that runs it, with a note if it is not isolated."""
        labels = {entry_id: label_of(fields) for entry_id, fields in self.client.xrange(KEYS.stream)}
        noted = {}
        for entry_id, note in self.client.hgetall(KEYS.suspects).items():
            charges, _, rest = note.decode().partition(" ")
            _, _, ran = rest.partition(" ")
            who, space, company = ran.partition(" ")
            noted[labels[entry_id]] = (float(charges), self._names.get(who, who) + space + company)
        return noted

    def lose_lease(self, name: str) -> None:
        """Let a live process's lease lapse, as after a SIGSTOP, so that others can take over its entries.

        The lease must be at least a minute, because the next heartbeat, a third of a lease later, would renew it.
        """
        broker = self.brokers[name]
        assert broker.settings.lease_ms >= 60_000
        self.client.zadd(KEYS.consumers, {broker.consumer_name: 1})
        self.age(broker.consumer_name, idle_ms=120_000)

    def run(self, script: Script, keys: Sequence[str], *args: Argument) -> Any:
        """Run one of the broker's scripts and return its reply."""
        return self._connections.run_script(script, keys, args)

    def beat(self, name: str) -> None:
        """Write a heartbeat for a process, and create the consumer group if it does not exist."""
        broker = self.brokers[name]
        self.run(BEAT, (KEYS.stream, KEYS.consumers), GROUP, broker.consumer_name, broker.settings.lease_ms, 1)

    def sweep(self, name: str) -> Round:
        """Run one round of this process's janitor, including a sweep for orphans; return the findings."""
        broker = self.brokers[name]
        # without these keys, this process becomes the promoter and scans all entries
        self.client.delete(KEYS.promoter, KEYS.swept)
        janitor = Janitor(
            self._connections,
            broker.settings,
            KEYS,
            Timers(self._connections, block_ms=1_000),
            consumer_name=broker.consumer_name,
            on_round=lambda _: False,
        )
        try:
            return janitor.run_once()
        finally:
            janitor.stop()

    def outcomes(self, name: str) -> Outcomes:
        """Return the ``Outcomes`` of a process that is never sure of its lease, so that it queries Redis every time."""
        broker = self.brokers[name]
        keeper = Keeper(self._connections, broker.settings, consumer_name=broker.consumer_name)
        return Outcomes(
            self._connections,
            broker.settings,
            KeysByQueue(broker.settings.namespace),
            consumer_name=broker.consumer_name,
            keeper=keeper,
            emit=lambda *_: None,
        )

    def promote(self, name: str) -> None:
        """Make all delayed messages fall due, and promote them."""
        for one in self.client.zrange(KEYS.delayed, 0, -1):
            self.client.zadd(KEYS.delayed, {one: 1}, xx=True)
        self.sweep(name)

    def n_blocked(self, command: str) -> int:
        """Return how many clients are blocked in a command: consumers in ``xreadgroup``, and janitors in ``xread``."""
        return sum(one["cmd"] == command and "b" in one["flags"] for one in self.client.client_list())

    def close(self) -> None:
        for consumers in self._consumers.values():
            for consumer in consumers:
                consumer.close()
        for broker in self.brokers.values():
            broker.close()
        self._connections.close()


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
    """Return the consumer's next ``n`` messages, polling it again if its timeout is short."""
    got: list[Delivery] = []
    give_up_at = time.monotonic() + 10
    while len(got) < n:
        delivery = next(consumer)
        if delivery is None and time.monotonic() < give_up_at:
            continue
        assert isinstance(delivery, Delivery), f"only {len(got)} of {n} messages came"
        got.append(delivery)
    return got


def labels(deliveries: list[Delivery]) -> list[str]:
    return [delivery.args[0] for delivery in deliveries]


def fail(broker: RedisStreamsBroker, delivery: Delivery, *, delay: int = 60_000) -> None:
    """Retry a failed message as the Retries middleware does."""
    delivery.options["retries"] = delivery.options.get("retries", 0) + 1
    broker.enqueue(delivery, delay=delay)  # type: ignore[arg-type]  # Dramatiq passes the proxy too
