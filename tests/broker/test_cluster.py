"""Queues on a real Redis Cluster of three nodes. In one test, a queue's slot moves under load."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Pipelines, Retries
from redis.crc import key_slot

from broker import RedisStreamsBroker
from broker.keeper import Keeper
from broker.keys import QueueKeys
from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.processes import forked, keepers_of
from tests.support import eventually

QUEUES = ("red", "green", "blue")


class Cluster:
    """A cluster's nodes, and the actions of its operator."""

    def __init__(self, servers: list[EmbeddedRedis]) -> None:
        self.ports = [server.port for server in servers]
        self.pids = {server.port: server.pid for server in servers if server.pid is not None}
        self.nodes: dict[int, Any] = {port: redis.Redis(port=port) for port in self.ports}

    def client(self) -> redis.RedisCluster:
        return redis.RedisCluster(host="127.0.0.1", port=self.ports[0])

    def port_of(self, key: str) -> int:
        """Return the port of the node that holds the key's slot."""
        slot = key_slot(key.encode())
        client = self.client()
        port = int(client.get_node_from_key(key).port)
        client.close()
        assert slot in range(16_384)
        return port

    def move(self, key: str) -> int:
        """Move the key's slot, with its contents, to another node, and announce the move to all nodes."""
        slot, source = key_slot(key.encode()), self.port_of(key)
        target = next(port for port in self.ports if port != source)
        ids = {port: node.execute_command("CLUSTER", "MYID").decode() for port, node in self.nodes.items()}
        self.nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        self.nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        while keys := self.nodes[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.nodes[source].execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5_000, "KEYS", *keys)
        for port in (target, source, *self.ports):
            self.nodes[port].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        return target

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        servers: list[EmbeddedRedis] = []
        while len(servers) < 3:
            directory = Path(tmp_path_factory.mktemp("node"))
            options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000", "appendonly": "no"}
            server = EmbeddedRedis(directory=directory, options=options)
            if server.port < 55_000:  # the node's cluster bus uses a port that is 10,000 higher
                servers.append(stack.enter_context(server))
        nodes = [f"127.0.0.1:{server.port}" for server in servers]
        made = ["redis-cli", "--cluster", "create", *nodes, "--cluster-yes"]
        subprocess.run(made, check=True, capture_output=True, timeout=60)
        cluster = Cluster(servers)
        eventually(lambda: all(is_whole(node) for node in cluster.nodes.values()), within_s=30)
        yield cluster
        cluster.close()


def is_whole(node: Any) -> bool:
    return b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO")


@pytest.fixture
def broker(cluster: Cluster) -> Iterator[RedisStreamsBroker]:
    client = cluster.client()
    client.flushall(target_nodes="primaries")
    broker = RedisStreamsBroker(
        client=client, middleware=[Retries(min_backoff=1, max_backoff=20, max_retries=10)], lease_ms=2_000
    )
    try:
        yield broker
    finally:
        broker.close()
        client.close()


def test_queues_spread_over_nodes_and_each_uses_one_slot(cluster: Cluster, broker: RedisStreamsBroker) -> None:
    ran: list[tuple[str, int]] = []

    def actor_of(queue: str) -> dramatiq.Actor[[int], None]:
        @dramatiq.actor(broker=broker, queue_name=queue, actor_name=queue)
        def work(number: int) -> None:
            ran.append((queue, number))

        return work

    actors = {queue: actor_of(queue) for queue in QUEUES}
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        broker.enqueue_many([actors[queue].message(number) for number in range(100) for queue in QUEUES])
        actors["red"].send_with_options(args=(100,), delay=50)
        for queue in QUEUES:
            broker.join(queue, timeout=30_000)
    finally:
        worker.stop()

    assert sorted(ran) == sorted([(queue, n) for queue in QUEUES for n in range(100)] + [("red", 100)])
    assert len({cluster.port_of(QueueKeys("streams", queue).stream) for queue in QUEUES}) > 1
    for queue in QUEUES:
        keys = QueueKeys("streams", queue)
        slots = {key_slot(key.encode()) for key in (*keys.work, keys.dead, keys.counters, keys.unique("k"))}
        assert slots == {key_slot(keys.stream.encode())}


def test_shards_of_a_queue_are_on_several_nodes(cluster: Cluster, broker: RedisStreamsBroker) -> None:
    ran: list[int] = []
    client = cluster.client()
    divided = RedisStreamsBroker(client=client, middleware=[], sharded={"red": lambda message: int(message.args[0])})
    dramatiq.actor(broker=divided, queue_name="red", actor_name="work")(ran.append)
    before = [dramatiq.Message[None]("red", "work", (number,), {}, {}) for number in range(20)]
    divided.enqueue_many(before)  # a backlog of the undivided queue
    divided.set_shards("red", 8)
    worker = dramatiq.Worker(divided, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        divided.enqueue_many([dramatiq.Message[None]("red", "work", (n,), {}, {}) for n in range(20, 100)])
        divided.join("red", timeout=30_000)
    finally:
        worker.stop()
        divided.close()
        client.close()

    assert sorted(ran) == list(range(100))
    assert len({cluster.port_of(f"streams:{shard}") for shard in divided.shards("red")}) == 3


def test_pipeline_across_cluster_nodes_leaves_no_keys(cluster: Cluster, broker: RedisStreamsBroker) -> None:
    broker.add_middleware(Pipelines())
    ran: list[str] = []

    def actor_of(queue: str) -> dramatiq.Actor[..., None]:
        return dramatiq.actor(broker=broker, queue_name=queue, actor_name=queue)(lambda *_: ran.append(queue))

    actors = [actor_of(queue) for queue in QUEUES]
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        for _ in range(5):
            dramatiq.pipeline([actor.message() for actor in actors], broker=broker).run()
        eventually(lambda: len(ran) == 15)
    finally:
        worker.stop()
    broker.close()  # writes the acknowledgements

    assert [key for node in cluster.nodes.values() for key in node.keys("*:recent:*/*")] == []


@pytest.mark.slow
def test_queue_loses_nothing_when_its_slot_moves_under_load(cluster: Cluster, broker: RedisStreamsBroker) -> None:
    ran: set[int] = set()

    @dramatiq.actor(broker=broker, queue_name="red")
    def work(number: int) -> None:
        ran.add(number)

    keys = QueueKeys("streams", "red")
    client = cluster.client()
    impatient = RedisStreamsBroker(client=client, middleware=[], enqueue_timeout_ms=0)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        sent = 0
        for _ in range(3):
            for _ in range(100):
                work.send(sent)
                sent += 1
            broker.enqueue_many([work.message(sent + n) for n in range(50)])
            sent += 50
            impatient.enqueue(work.message(sent))
            target = cluster.move(keys.stream)
            impatient.enqueue(work.message(sent + 1))  # right after the move, so that the slot map is outdated
            work.send(sent + 2)
            sent += 3
            eventually(lambda: len(ran) == sent, within_s=30)  # noqa: B023
            (name,) = cluster.nodes[target].zrange(keys.consumers, 0, -1)
            before = cluster.nodes[target].zscore(keys.consumers, name)
            eventually(lambda: cluster.nodes[target].zscore(keys.consumers, name) > before)  # noqa: B023
        broker.join("red", timeout=30_000)
    finally:
        worker.stop()
        impatient.close()
        client.close()

    assert ran == set(range(sent))


def test_queue_recovers_when_its_slot_is_served_again(cluster: Cluster, broker: RedisStreamsBroker) -> None:
    keys = QueueKeys("streams", "blue")
    slot, port = key_slot(keys.stream.encode()), cluster.port_of(keys.stream)
    client = cluster.client()
    producer = RedisStreamsBroker(client=client, middleware=[], enqueue_timeout_ms=0)
    message = dramatiq.Message[None]("blue", "work", (), {}, {})
    for node in cluster.nodes.values():
        node.execute_command("CLUSTER", "DELSLOTS", slot)

    with pytest.raises(BrokerConnectionError, match="cannot do this now"):
        producer.enqueue(message)

    cluster.nodes[port].execute_command("CLUSTER", "ADDSLOTS", slot)
    eventually(lambda: all(is_whole(node) for node in cluster.nodes.values()), within_s=30)
    eventually(lambda: producer_takes(producer, message), within_s=30)
    producer.close()
    client.close()


def producer_takes(producer: RedisStreamsBroker, message: dramatiq.Message[None]) -> bool:
    with suppress(BrokerConnectionError):
        producer.enqueue(message)
        return True
    return False


def test_messages_of_a_dead_process_are_taken_over_on_a_cluster(
    cluster: Cluster, broker: RedisStreamsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.janitor.is_dead_sibling", lambda _: False)
    broker.declare_queue("green")
    message = dramatiq.Message[None]("green", "work", (), {}, {})
    broker.enqueue(message)
    node = cluster.nodes[cluster.port_of(QueueKeys("streams", "green").stream)]

    def receive() -> None:
        next(broker.consume("green", timeout=5_000))
        # only keeper processes use EVAL, so this client is the keeper
        eventually(lambda: any(one["cmd"] == "eval" for one in node.client_list()))

    os.waitpid(forked(receive), 0)

    consumer = broker.consume("green", timeout=20_000)
    taken: Any = next(consumer)

    assert (taken.message_id, taken.deliveries) == (message.message_id, 2)
    consumer.ack(taken)
    consumer.close()


@pytest.mark.slow
def test_queues_on_other_nodes_keep_their_leases_while_a_node_hangs(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_ms = 10_000
    streams = {queue: QueueKeys("streams", queue) for queue in (*QUEUES, *(f"red-{number}" for number in range(48)))}
    hanging = cluster.port_of(streams["red"].stream)
    elsewhere = next(queue for queue in QUEUES if cluster.port_of(streams[queue].stream) != hanging)
    there = [queue for queue, keys in streams.items() if cluster.port_of(keys.stream) == hanging]
    assert len(there) >= 12, "to ask for each of them in turn would take longer than the lease"
    keys = streams[elsewhere]
    node = cluster.nodes[cluster.port_of(keys.stream)]
    port = node.connection_pool.connection_kwargs["port"]
    with ExitStack() as stack:
        for one in cluster.nodes.values():
            one.config_set("cluster-require-full-coverage", "no")
            stack.callback(one.config_set, "cluster-require-full-coverage", "yes")

        def process(*, keeper_process: bool) -> RedisStreamsBroker:
            client = redis.RedisCluster(host="127.0.0.1", port=port, socket_timeout=1)
            broker = RedisStreamsBroker(client=client, middleware=[], lease_ms=lease_ms, keeper_process=keeper_process)
            stack.callback(client.close)
            stack.callback(broker.close)
            for queue in (*there, elsewhere):
                broker.declare_queue(queue)
                stack.callback(broker.consume(queue, timeout=100).close)
            return broker

        by_thread, by_child = process(keeper_process=False), process(keeper_process=True)
        eventually(lambda: keepers_of(os.getpid()))
        # simulate C code that holds the interpreter lock: while the keeper has a child, its thread does nothing
        run_once = Keeper.run_once
        monkeypatch.setattr(Keeper, "run_once", lambda keeper: None if keeper.child_pid else run_once(keeper))
        pid = cluster.pids[hanging]
        os.kill(pid, signal.SIGSTOP)
        stack.callback(lambda: eventually(lambda: all(is_whole(one) for one in cluster.nodes.values()), within_s=30))
        stack.callback(os.kill, pid, signal.SIGCONT)

        seconds, _ = node.time()
        late_enough = seconds * 1_000 + lease_ms // 2  # later than any heartbeat that was in transit
        beats = [0]
        while min(beats) < late_enough:
            seconds, micros = node.time()
            beats = [node.zscore(keys.consumers, broker.consumer_name) for broker in (by_thread, by_child)]
            assert seconds * 1_000 + micros // 1_000 - min(beats) < lease_ms, "others may take its messages"
            time.sleep(0.05)
