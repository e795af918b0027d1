"""The janitors' total number of rounds does not grow with the number of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from broker import janitor as janitor_module
from broker.janitor import Janitor
from broker.net.connections import Connections
from broker.net.shared_reads import Timers
from broker.settings import BrokerSettings
from tests.broker.scene import GROUP, KEYS, QueueState, Scene, message, received
from tests.support import eventually

NewJanitor = Callable[..., Janitor]


@pytest.fixture
def janitor(redis_client: redis.Redis) -> Iterator[NewJanitor]:
    """A function that returns the janitor of a new process, whose heartbeat is in the far future."""
    with ExitStack() as at_end:

        def new(name: str, *, on_takeable: Callable[[], None] = lambda: None, **settings: Any) -> Janitor:
            connections = Connections(redis_client)
            timers = Timers(connections, block_ms=20_000)
            redis_client.zadd(KEYS.consumers, {name: 4e12})
            made = Janitor(
                connections,
                BrokerSettings(**settings),
                KEYS,
                timers,
                consumer_name=name,
                on_round=lambda _: False,
                on_takeable=on_takeable,
            )
            at_end.callback(connections.close)
            at_end.callback(timers.stop)
            at_end.callback(made.stop)
            return made

        yield new


def make_due(scene: Scene, label: str) -> None:
    """Add a delayed message that is already due."""
    scene.brokers["producer"].enqueue(message(label, delay=60_000), delay=60_000)
    for name in scene.client.zrange(KEYS.delayed, 0, -1):
        scene.client.zadd(KEYS.delayed, {name: 1})


def n_scripts(client: Any) -> int:
    n: int = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    return n


@pytest.fixture
def scene_with_producer(stage: Scene) -> Scene:
    stage.process("producer")
    stage.client.xgroup_create(KEYS.stream, GROUP, id="0", mkstream=True)
    return stage


def test_one_process_promotes_until_it_stops(
    scene_with_producer: Scene, janitor: NewJanitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor_module, "PROMOTE_ALONE_MS", 600_000)
    scene = scene_with_producer
    first, second = janitor("first"), janitor("second")
    make_due(scene, "one")
    assert first.run_once().n_promoted == 1

    make_due(scene, "two")
    assert second.run_once().n_promoted == 0
    assert first.run_once().n_promoted == 1

    scene.brokers["producer"].enqueue(message("later"), delay=3_600_000)
    first.start()
    eventually(lambda: scene.n_blocked("xread"))
    first.stop()
    make_due(scene, "three")
    assert second.run_once().n_promoted == 2


def test_lost_promoter_is_replaced_by_another_process(scene_with_producer: Scene, janitor: NewJanitor) -> None:
    scene = scene_with_producer
    make_due(scene, "one")
    janitor("lost").run_once()  # the only round, as if the machine was lost afterwards
    for name in "abc":
        janitor(name).start()

    scene.brokers["producer"].enqueue(message("two"), delay=50)

    eventually(lambda: scene.state() == QueueState(waiting=("one", "two")))


def test_number_of_rounds_does_not_grow_with_the_number_of_processes(
    scene_with_producer: Scene, janitor: NewJanitor
) -> None:
    scene, n_processes, n_messages = scene_with_producer, 12, 40
    for number in range(n_processes):
        janitor(str(number)).start()
    eventually(lambda: scene.n_blocked("xread") == n_processes)
    before = n_scripts(scene.client)

    for number in range(n_messages):
        scene.brokers["producer"].enqueue(message(str(number)), delay=300 + 10 * number)
    eventually(lambda: len(scene.state().waiting) == n_messages, within_s=30)

    # A message needs one script to enqueue and one to promote it. If every process ran a round for each message, there
    # would be 480 scripts more.
    assert n_scripts(scene.client) - before <= 2 * n_messages + n_messages * n_processes / 4


def test_notification_of_delayed_or_handed_back_messages_needs_no_round(
    scene_with_producer: Scene, janitor: NewJanitor
) -> None:
    scene, heard = scene_with_producer, threading.Event()
    janitor("first", on_takeable=heard.set).start()
    eventually(lambda: scene.n_blocked("xread"))
    before = n_scripts(scene.client)

    scene.client.xadd(KEYS.timer, {"due": 4_000_000_000_000})
    scene.client.xadd(KEYS.timer, {"handed_back": 1})
    assert heard.wait(30)
    assert n_scripts(scene.client) == before

    scene.client.xadd(KEYS.timer, {"paused": 1})  # requires a round, which reads whether the queue is paused
    eventually(lambda: n_scripts(scene.client) > before)


def test_no_script_reads_all_consumers(scene_with_producer: Scene, janitor: NewJanitor) -> None:
    scene = scene_with_producer
    consumer, one = scene.consumer("reader"), janitor("one")
    one.run_once()  # this round scans all entries and compares the consumers with their heartbeats
    scene.brokers["reader"].enqueue(message("one"))
    scene.client.config_resetstat()

    for _ in range(3):
        one.run_once()
        consumer.requeue(received(consumer, 1))  # received through the script that takes over entries

    commands = scene.client.info("commandstats")
    assert "cmdstat_xpending" in commands
    assert not [name for name in commands if name.startswith("cmdstat_xinfo")]


def test_one_process_scans_all_entries_for_orphans(scene_with_producer: Scene, janitor: NewJanitor) -> None:
    scene = scene_with_producer
    first, second = janitor("first", sweep_ms=600_000), janitor("second", sweep_ms=600_000)
    assert first.run_once().n_orphans == 0
    scene.brokers["producer"].enqueue(message("one"))
    ((_, [(entry_id, _)]),) = scene.client.xreadgroup(GROUP, "x", {KEYS.stream: ">"})
    scene.client.xack(KEYS.stream, GROUP, entry_id)

    assert second.run_once().n_orphans == 0

    scene.client.delete(KEYS.swept)  # as if the interval between two passes were over
    assert janitor("third").run_once().n_orphans == 1
