"""The keeper process: when a process keeps its lease, and when the lease lapses."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from broker import BrokerSettings, RedisStreamsBroker, keeper
from broker.net.connections import Connections
from broker.scripts import BEAT, LEAVE
from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.processes import consumer_name_of, forked, keepers_of, started
from tests.broker.scene import GROUP, KEYS, QUEUE, Scene, labels, message, received
from tests.support import eventually

SHORT_MS, LONG_MS = 2_000, 60_000


def ran(client: Any) -> list[str]:
    return [what.decode() for what in client.lrange("ran", 0, -1)]


def calling(actor: str, *args: Any) -> Any:
    return message("").copy(actor_name=actor, args=args)


def keeper_of(process_id: int) -> psutil.Process:
    (child,) = keepers_of(process_id)
    return child


def await_beat(client: Any, consumer_name: str | bytes) -> None:
    before = client.zscore(KEYS.consumers, consumer_name)
    eventually(lambda: client.zscore(KEYS.consumers, consumer_name) > before)


def ignores(process: psutil.Process, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.fixture
def two_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's processes from each other, so that they learn of deaths only through Redis."""
    monkeypatch.setattr("broker.janitor.is_dead_sibling", lambda _: False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis server that the test may stop."""
    with EmbeddedRedis(directory=tmp_path, options={"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


@pytest.mark.slow
def test_process_keeps_its_messages_while_c_code_holds_the_gil(stage: Scene, redis_client: redis.Redis) -> None:
    producer = stage.process("producer")
    with started(stage.url, lease_ms=SHORT_MS, threads=1):
        producer.enqueue_many([calling("hold_interpreter_lock", "a", 3), calling("work", "b")])
        eventually(lambda: "began a" in ran(redis_client))

        assert next(stage.consumer("robber", lease_ms=SHORT_MS, timeout=2_800)) is None

        eventually(lambda: ran(redis_client) == ["began a", "ended a", "work b"])
    assert producer.counters(QUEUE)["recovered"] == 0


@pytest.mark.slow
def test_process_frozen_by_sigstop_loses_its_messages(
    stage: Scene, redis_client: redis.Redis, two_worlds: None
) -> None:
    with started(stage.url, lease_ms=SHORT_MS, threads=1) as process:
        stage.process("producer").enqueue(calling("sleep", "a", 60))
        eventually(lambda: "began a" in ran(redis_client))
        process.send_signal(signal.SIGSTOP)

        (taken,) = received(stage.consumer("other", lease_ms=SHORT_MS, timeout=20_000), 1)

        assert (taken.actor_name, taken.deliveries) == ("sleep", 2)


@pytest.mark.slow
def test_messages_of_a_killed_process_run_at_once_despite_a_long_lease(
    stage: Scene, redis_client: redis.Redis, two_worlds: None
) -> None:
    with started(stage.url, lease_ms=LONG_MS, threads=1) as process:
        stage.process("producer").enqueue_many([calling("sleep", "a", 60), calling("work", "b")])
        eventually(lambda: "began a" in ran(redis_client))
        other = stage.consumer("other", lease_ms=LONG_MS, timeout=20_000)

        process.kill()

        assert {one.actor_name: one.deliveries for one in received(other, 2)} == {"sleep": 2, "work": 2}


@pytest.mark.slow
def test_keeper_ignores_signals_and_ends_with_its_process(stage: Scene) -> None:
    with started(stage.url, lease_ms=SHORT_MS) as process:
        child = keeper_of(process.pid)
        (name,) = stage.client.zrange(KEYS.consumers, 0, -1)
        # until the child has started, a thread writes the heartbeats
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        eventually(lambda: all(ignores(child, number) for number in signals))
        for number in signals:
            child.send_signal(number)

        await_beat(stage.client, name)

        assert keeper_of(process.pid).pid == child.pid
        process.send_signal(signal.SIGTERM)
        process.wait()
        eventually(lambda: not child.is_running())
    eventually(lambda: stage.client.zcard(KEYS.consumers) == 0)


@pytest.mark.slow
def test_killed_keeper_is_replaced_before_a_lease_lapses(stage: Scene) -> None:
    with started(stage.url, lease_ms=SHORT_MS) as process:
        child = keeper_of(process.pid)
        (name,) = stage.client.zrange(KEYS.consumers, 0, -1)

        observer = stage.process("observer", lease_ms=SHORT_MS)

        def is_replaced() -> bool:
            (consumer,) = observer.stats(QUEUE).consumers
            assert consumer.is_alive
            return any(one.pid != child.pid for one in keepers_of(process.pid))

        child.kill()
        eventually(is_replaced)
        for _ in range(2):
            await_beat(stage.client, name)
        assert is_replaced()


@pytest.mark.slow
def test_keeper_survives_a_redis_outage_and_shows_no_secret(server: EmbeddedRedis) -> None:
    client: Any = redis.Redis.from_url(server.url)
    client.acl_setuser("ops", enabled=True, passwords=["+very-secret"], commands=["+@all"], keys=["*"])
    url = server.url.replace("redis://", "redis://ops:very-secret@")
    with started(url, lease_ms=SHORT_MS) as process:
        child = keeper_of(process.pid)

        server.kill()
        server.start()
        client.acl_setuser("ops", enabled=True, passwords=["+very-secret"], commands=["+@all"], keys=["*"])

        (name,) = eventually(lambda: client.zrange(KEYS.consumers, 0, -1))
        await_beat(client, name)
        users = eventually(lambda: {one["user"] for one in client.client_list() if one["cmd"].startswith("eval")})
        assert keeper_of(process.pid).pid == child.pid
        assert "secret" not in " ".join(child.cmdline()) + str(child.environ())
        assert "ops" in users
    client.close()


def test_late_heartbeat_does_not_make_a_dead_process_alive(scene: Scene) -> None:
    consumer = scene.consumer("a", lease_ms=LONG_MS)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    received(consumer, 1)
    me = broker.consumer_name
    scene.run(LEAVE, (KEYS.stream, KEYS.consumers, KEYS.timer), GROUP, me, 1)

    assert scene.run(BEAT, (KEYS.stream, KEYS.consumers), GROUP, me, LONG_MS) == 0

    assert labels(received(scene.consumer("b", lease_ms=LONG_MS), 1)) == ["one"]
    dead = [one for one in broker.stats(QUEUE).consumers if one.name == me]
    assert [(one.heartbeat_age_ms, one.is_alive) for one in dead] == [(None, False)]


def test_thread_writes_heartbeats_if_no_keeper_process_can_start(
    stage: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "CAN_HAVE_CHILD", False)
    with caplog.at_level(logging.WARNING):
        stage.consumer("a", keeper_process=True, lease_ms=SHORT_MS)
        await_beat(stage.client, stage.brokers["a"].consumer_name)

    assert keepers_of(os.getpid()) == []
    assert [record.message for record in caplog.records if "no keeper process" in record.message]


def test_siblings_report_a_process_that_died_with_its_keeper(stage: Scene) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = consumer_name_of(process.pid)
    stage.process("producer").enqueue(message("one"))
    stage.client.xgroup_create(KEYS.stream, GROUP, id="0")
    stage.client.xreadgroup(GROUP, name, {KEYS.stream: ">"})
    seconds, _ = stage.client.time()
    stage.client.zadd(KEYS.consumers, {name: seconds * 1_000})
    # the lease is so long that no janitor starts a round during the test
    sibling = stage.consumer("b", lease_ms=10 * LONG_MS, timeout=20_000)
    eventually(lambda: stage.n_blocked("xread"))

    process.kill()
    process.communicate()

    assert labels(received(sibling, 1)) == ["one"]


def test_stop_does_not_wait_for_a_starting_keeper_process(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    start = subprocess.Popen

    def slowly(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.set()
        may_go_on.wait(30)
        return start(*args, **options)

    monkeypatch.setattr("broker.keeper.subprocess.Popen", slowly)
    connections = Connections(redis_client)
    ours = keeper.Keeper(connections, BrokerSettings(lease_ms=LONG_MS), consumer_name="me")
    others = set(threading.enumerate())
    ours.add(KEYS)
    (thread,) = {one for one in threading.enumerate() if one.name == "broker-keeper"} - others
    assert begun.wait(30)

    ours.stop(timeout_s=0.01)
    may_go_on.set()

    thread.join(30)
    assert not thread.is_alive()
    ours.close(is_holding=False)
    connections.close()


def test_forked_process_does_not_end_the_keeper_of_its_parent(stage: Scene) -> None:
    stage.consumer("a", keeper_process=True, lease_ms=SHORT_MS)
    broker = stage.brokers["a"]
    (child,) = eventually(lambda: keepers_of(os.getpid()))
    parents_name = broker.consumer_name

    def use_and_close() -> None:
        broker.enqueue(message("from the fork"))
        assert broker.consumer_name != parents_name
        broker.close()

    _, status = os.waitpid(forked(use_and_close), 0)

    assert os.waitstatus_to_exitcode(status) == 0
    await_beat(stage.client, parents_name)
    assert keepers_of(os.getpid()) == [child]


def test_job_that_outlives_close_runs_again_after_its_process_ends(
    redis_client: redis.Redis, redis_url: str, two_worlds: None
) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[], lease_ms=LONG_MS)
    broker.declare_queue(QUEUE)
    broker.enqueue(message("one"))

    def close_with_a_job() -> None:
        consumer = broker.consume(QUEUE, timeout=5_000)
        next(consumer)
        eventually(lambda: keepers_of(os.getpid()))
        consumer.close()
        broker.close()

    _, status = os.waitpid(forked(close_with_a_job), 0)
    assert status == 0

    consumer = broker.consume(QUEUE, timeout=20_000)

    (again,) = received(consumer, 1)
    assert again.args == ("one",)
    consumer.ack(again)
    consumer.close()
    broker.close()
