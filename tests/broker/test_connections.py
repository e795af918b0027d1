"""Connections of producers and workers: dead and idle connections, shared connections, and limits on their number."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.errors import ConnectionFailed

from broker import EnqueueUncertain, RedisStreamsBroker
from broker.keys import HANDED_BACK
from broker.net.connections import Connections
from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.scene import KEYS, QUEUE, message, received
from tests.broker.test_dramatiq_options import broker_on, working
from tests.faults.outage import Outage
from tests.support import eventually


@pytest.fixture
def network(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> Iterator[Outage]:
    """A network between the producer and an empty server."""
    with Outage(redis_server.url.removeprefix("unix://")) as outage:
        yield outage


@pytest.fixture
def producer(network: Outage, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisStreamsBroker]:
    """A producer whose connections count as idle at once. Its enqueue timeout is less than its read timeout."""
    monkeypatch.setattr("broker.net.pool.PROBE_AFTER_IDLE_S", 0.0)
    monkeypatch.setattr("broker.net.connections.IDLE_ANSWER_S", 0.05)
    client = redis.Redis.from_url(network.url, socket_timeout=10, health_check_interval=1)
    broker = RedisStreamsBroker(client=client, middleware=[], enqueue_timeout_ms=0)
    yield broker
    broker.close()
    client.close()


def fill_pool(network: Outage, producer: RedisStreamsBroker, n: int) -> None:
    """Let the producer open ``n`` connections, which are idle afterwards."""
    threads = [threading.Thread(target=producer.enqueue, args=(message(f"{number}"),)) for number in range(n)]
    with network.hanging():
        for thread in threads:
            thread.start()
        eventually(lambda: network.n_open == n)
    for thread in threads:
        thread.join()


def test_enqueue_works_after_idle_connections_died(
    network: Outage, producer: RedisStreamsBroker, redis_client: Any
) -> None:
    fill_pool(network, producer, 3)
    network.forget()

    sent = [producer.enqueue(message("after"))]
    sent += producer.enqueue_many([message("a"), message("b").copy(queue_name="other")])

    assert redis_client.xlen(KEYS.stream) == 3 + 2
    assert redis_client.xlen("streams:other") == 1
    assert len({one.message_id for one in sent}) == 3
    eventually(lambda: network.n_forgotten == 0)


def test_every_enqueue_of_a_burst_works_after_idle_connections_died(
    network: Outage, producer: RedisStreamsBroker, redis_client: Any
) -> None:
    fill_pool(network, producer, 3)
    network.forget()

    threads = [threading.Thread(target=producer.enqueue, args=(message(f"{number}"),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert redis_client.xlen(KEYS.stream) == 6


def test_message_is_enqueued_once_if_only_the_reply_was_lost(
    network: Outage, producer: RedisStreamsBroker, redis_client: Any
) -> None:
    producer.enqueue(message("before"))

    network.aim("enqueue_plain", "after")
    producer.enqueue(message("after"))

    assert network.cuts["enqueue_plain", "after"] == 1
    assert redis_client.xlen(KEYS.stream) == 2


def test_enqueue_is_uncertain_if_the_server_hangs(network: Outage, producer: RedisStreamsBroker) -> None:
    producer.enqueue(message("before"))

    with network.hanging(), pytest.raises(EnqueueUncertain) as raised:
        producer.enqueue(message("after"))

    assert len(raised.value.message_ids) == 1


def enqueue_at_once(network: Outage, broker: RedisStreamsBroker, n: int, *, n_open: int) -> list[Exception]:
    """Enqueue from ``n`` threads. Let the network hang until it has ``n_open`` connections; return the errors."""
    raised: list[Exception] = []

    def enqueue(label: str) -> None:
        try:
            broker.enqueue(message(label))
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=enqueue, args=(f"{number}",)) for number in range(n)]
    with network.hanging():
        for thread in threads:
            thread.start()
        eventually(lambda: network.n_open == n_open)
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("kind", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_threads_share_as_many_connections_as_the_client_allows(
    network: Outage, redis_client: Any, kind: type[redis.ConnectionPool]
) -> None:
    pool = kind.from_url(network.url, max_connections=2)
    broker = RedisStreamsBroker(client=redis.Redis(connection_pool=pool), middleware=[])

    raised = enqueue_at_once(network, broker, 12, n_open=2)

    assert raised == []
    assert network.n_open == 2
    assert redis_client.xlen(KEYS.stream) == 12
    broker.close()


def test_enqueue_fails_if_no_connection_becomes_free_in_time(network: Outage) -> None:
    pool = redis.BlockingConnectionPool.from_url(network.url, max_connections=1, timeout=0.05, socket_timeout=1)
    broker = RedisStreamsBroker(client=redis.Redis(connection_pool=pool), middleware=[], enqueue_timeout_ms=0)
    first = threading.Thread(target=broker.enqueue, args=(message("first"),))

    with network.hanging():
        first.start()
        eventually(lambda: network.n_open == 1)
        with pytest.raises(ConnectionFailed, match="raise max_connections"):
            broker.enqueue(message("second"))
    first.join()
    broker.close()


def test_connection_lost_by_an_interrupted_thread_is_not_counted(redis_url: str) -> None:
    client = redis.Redis(connection_pool=redis.BlockingConnectionPool.from_url(redis_url, max_connections=1))
    connections = Connections(client)
    connections.run("SET", "k", 1)

    taken = connections.take(None)  # a command takes a connection; then a time limit ends its thread
    del taken

    assert connections.run("GET", "k") == b"1"
    connections.close()


def test_idle_connections_are_closed(network: Outage, redis_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.net.connections.CLOSE_AFTER_IDLE_S", 0.05)
    with broker_on(network.url) as broker:
        enqueue_at_once(network, broker, 3, n_open=3)

        eventually(lambda: network.n_open == 0)

        broker.enqueue(message("after"))
        assert redis_client.xlen(KEYS.stream) == 4
        eventually(lambda: network.n_open == 0)


def test_successive_commands_start_one_thread_to_close_idle_connections(
    redis_url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def start(function: Any, args: tuple[Any, ...]) -> int:
        started.append(function)
        return start_new_thread(function, args)

    monkeypatch.setattr("broker.net.connections.start_new_thread", start)
    with broker_on(redis_url) as broker:
        for number in range(200):
            broker.enqueue(message(f"{number}"))

    assert len(started) == 1


def test_threads_share_connections_if_the_server_accepts_no_more_clients(network: Outage, redis_client: Any) -> None:
    with broker_on(network.url) as broker:
        broker.enqueue(message("first"))
        n_connected = redis_client.info("clients")["connected_clients"]
        before = redis_client.config_get("maxclients")["maxclients"]
        redis_client.config_set("maxclients", n_connected)
        try:
            raised = enqueue_at_once(network, broker, 6, n_open=6)
        finally:
            redis_client.config_set("maxclients", before)

        assert raised == []
        assert redis_client.xlen(KEYS.stream) == 7
        eventually(lambda: network.n_open == 1)


def test_statistics_are_read_after_idle_connections_died(network: Outage, producer: RedisStreamsBroker) -> None:
    producer.enqueue(message("one"))
    network.forget()

    assert producer.stats(QUEUE).undelivered == 1


QUEUES = [f"q{number}" for number in range(10)]


def blocked(client: Any, command: str) -> list[str]:
    """Return the ids of the clients that are blocked in this command."""
    return [one["id"] for one in client.client_list() if one["cmd"] == command and "b" in one["flags"]]


@contextmanager
def consuming(broker: RedisStreamsBroker) -> Iterator[list[str]]:
    """Run a worker of ten queues. Yield a list to which the queue name of each message that ran is added."""
    ran: list[str] = []
    for queue in QUEUES:
        broker.declare_actor(
            dramatiq.Actor(ran.append, broker=broker, actor_name=queue, queue_name=queue, priority=0, options={})
        )
    with working(broker):
        yield ran


def send(broker: RedisStreamsBroker, queue: str, *, delay: int | None = None) -> None:
    broker.enqueue(dramatiq.Message(queue, queue, (queue,), {}, {}), delay=delay)


def test_one_connection_waits_for_notifications_of_all_queues(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        eventually(lambda: len(blocked(redis_client, "xread")) == 1)

        for round_of in (1, 2):
            for queue in QUEUES:
                send(broker, queue, delay=60_000)
                send(broker, queue, delay=1)
            eventually(lambda: sorted(ran) == sorted(round_of * QUEUES))  # noqa: B023


def test_notification_arrives_after_its_connection_was_lost(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        (lost,) = eventually(lambda: blocked(redis_client, "xread"))
        redis_client.client_kill_filter(_id=lost)
        eventually(lambda: blocked(redis_client, "xread") not in ([], [lost]))

        send(broker, "q3", delay=1)

        eventually(lambda: ran == ["q3"])


def test_notification_arrives_after_all_keys_were_deleted(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        broker.pause("q3")
        broker.resume("q3")
        eventually(lambda: blocked(redis_client, "xread"))
        redis_client.flushall()

        send(broker, "q3", delay=1)

        eventually(lambda: ran == ["q3"])


def run_once_each(broker: RedisStreamsBroker, ran: list[str]) -> None:
    """Send a message to every queue, and check that each runs once."""
    ran.clear()
    for queue in QUEUES:
        send(broker, queue)
    eventually(lambda: sorted(ran) == sorted(QUEUES))


def test_worker_of_ten_queues_needs_at_most_twelve_connections(
    redis_url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.net.connections.CLOSE_AFTER_IDLE_S", 0.1)
    n_before = len(redis_client.client_list())
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        eventually(lambda: len(redis_client.client_list()) - n_before <= 12)
        run_once_each(broker, ran)
        run_once_each(broker, ran)

        eventually(lambda: len(blocked(redis_client, "xreadgroup")) == 1)
        eventually(lambda: len(blocked(redis_client, "xread")) == 1)


def test_many_messages_in_many_queues_each_run_once(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url, checks={"q1": lambda _: None}) as broker:
        messages: list[dramatiq.Message[Any]] = [
            dramatiq.Message(queue, queue, (queue,), {}, {}) for queue in QUEUES for _ in range(50)
        ]
        broker.enqueue_many(messages)
        with consuming(broker) as ran:
            for queue in QUEUES:
                broker.join(queue, timeout=30_000)
            run_once_each(broker, ran)
            # one read for q1, whose entries may have any size, and one for the other queues
            eventually(lambda: len(blocked(redis_client, "xreadgroup")) == 2)
        eventually(lambda: [broker.counters(queue)["acked"] for queue in QUEUES] == [51] * len(QUEUES))


@pytest.mark.parametrize("command", ["xreadgroup", "xread"])
def test_queues_are_served_after_the_connection_that_they_share_was_lost(
    redis_url: str, redis_client: Any, command: str
) -> None:
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        run_once_each(broker, ran)
        (lost,) = eventually(lambda: blocked(redis_client, command))

        redis_client.client_kill_filter(_id=lost)

        run_once_each(broker, ran)
        eventually(lambda: [broker.counters(queue)["acked"] for queue in QUEUES] == [2] * len(QUEUES))


def test_queues_are_served_after_all_keys_were_deleted(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        run_once_each(broker, ran)

        redis_client.flushall()

        run_once_each(broker, ran)


@pytest.mark.slow
def test_queue_of_the_wrong_type_does_not_stop_the_others(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        run_once_each(broker, ran)
        redis_client.set("streams:q3", "a string")
        ran.clear()

        for queue in QUEUES:
            if queue != "q3":
                send(broker, queue)

        eventually(lambda: sorted(ran) == sorted(set(QUEUES) - {"q3"}))


def test_paused_queue_is_not_read_together_with_the_others(redis_url: str) -> None:
    with broker_on(redis_url) as broker, consuming(broker) as ran:
        run_once_each(broker, ran)
        broker.pause("q3")
        eventually(lambda: broker.stats("q3").paused)
        ran.clear()

        for _ in range(2):
            for queue in QUEUES:
                send(broker, queue)
        eventually(lambda: len(ran) >= 18)
        name = broker.consumer_name
        eventually(lambda: not any(one.pending for one in broker.stats("q3").consumers if one.name == name))
        assert ran.count("q3") <= 2  # a pause takes a moment to be noticed

        broker.resume("q3")
        eventually(lambda: sorted(ran) == sorted(2 * QUEUES))


def test_queue_is_read_again_once_its_consumer_has_room(redis_url: str) -> None:
    with broker_on(redis_url, read_ahead_ms=0) as broker:
        consumers = {}
        for queue in QUEUES:
            broker.declare_queue(queue)
            consumers[queue] = broker.consume(queue, prefetch=1, timeout=20)
        for consumer in consumers.values():
            assert next(consumer) is None
        consumer = consumers["q0"]
        for _ in range(3):
            send(broker, "q0")

        for _ in range(3):
            (delivery,) = received(consumer, 1)
            assert next(consumer) is None  # the Worker has no room
            consumer.ack(delivery)
        for one in consumers.values():
            one.close()
        assert broker.stats("q0").waiting == 0


def test_closed_consumer_hands_back_entries_that_a_shared_read_returns(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url) as broker:
        consumers = {}
        for queue in QUEUES:
            broker.declare_queue(queue)
            consumers[queue] = broker.consume(queue, prefetch=5, timeout=20)
        for consumer in consumers.values():
            assert next(consumer) is None
        for _ in range(3):
            send(broker, "q0")

        def is_read() -> bool:
            if not broker.stats("q0").in_flight:
                # on a loaded machine, this consumer may not have started its read when it was polled above
                consumers["q0"].requeue([given] if (given := next(consumers["q0"])) is not None else [])
            return broker.stats("q0").in_flight > 0

        eventually(is_read)

        for consumer in consumers.values():
            consumer.close()

        (pending,) = redis_client.xpending("streams:q0", broker.settings.group)["consumers"]
        assert pending["name"] == HANDED_BACK.encode()
        assert pending["pending"] + broker.stats("q0").undelivered == 3


def test_user_without_client_unblock_can_consume(redis_url: str, redis_client: Any) -> None:
    redis_client.acl_setuser(
        "few", enabled=True, passwords=["+secret"], commands=["+@all", "-client|unblock", "-client|id"], keys=["*"]
    )
    try:
        client = redis.Redis.from_url(redis_url, username="few", password="secret")
        broker = RedisStreamsBroker(client=client, middleware=[])
        with consuming(broker) as ran:
            run_once_each(broker, ran)
            run_once_each(broker, ran)
        broker.close()
    finally:
        redis_client.acl_deluser("few")


def test_worker_of_ten_queues_works_with_three_connections(redis_url: str, redis_client: Any) -> None:
    pool = redis.BlockingConnectionPool.from_url(redis_url, max_connections=3)
    broker = RedisStreamsBroker(client=redis.Redis(connection_pool=pool), middleware=[], keeper_process=False)
    n_before = len(redis_client.client_list())
    with consuming(broker) as ran:
        run_once_each(broker, ran)
        run_once_each(broker, ran)
        assert len(redis_client.client_list()) - n_before <= 3
    broker.close()


def test_worker_reports_that_it_needs_more_connections(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = redis.BlockingConnectionPool.from_url(redis_url, max_connections=2)
    broker = RedisStreamsBroker(client=redis.Redis(connection_pool=pool), middleware=[], keeper_process=False)
    with consuming(broker):
        eventually(lambda: any("got 2; raise it" in getattr(one, "error", "") for one in caplog.records))
    broker.close()
