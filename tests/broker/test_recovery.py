"""Entries left behind by dead processes and by operators run again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from dramatiq.errors import BrokerConnectionError

from broker import BrokerSettings, Delivery, DeliveryLimitReached, RedisStreamsBroker, janitor, keeper
from broker.consumer import StreamsConsumer
from broker.keeper import Keeper
from broker.keys import HANDED_BACK
from broker.net.connections import Connections
from broker.net.shared_reads import Timers
from broker.scripts import RESYNC, SETTLE, TAKE, Script
from tests.broker.scene import GROUP, KEYS, QUEUE, QueueState, Scene, fail, label_of, labels, message, received
from tests.support import eventually


def test_entries_of_a_dead_process_are_redelivered_and_counted(scene: Scene) -> None:
    dying = scene.consumer("a")
    scene.brokers["a"].enqueue_many([message("one"), message("two")])
    received(dying, 2)
    scene.die("a")

    taken = received(scene.consumer("b"), 2)

    assert sorted(labels(taken)) == ["one", "two"]
    assert {delivery.deliveries for delivery in taken} == {2}
    assert scene.state() == QueueState(pending={"one": ("b", 2), "two": ("b", 2)})
    assert scene.brokers["b"].counters(QUEUE)["recovered"] == 2


def test_live_process_keeps_its_entries_however_long_jobs_take(scene: Scene) -> None:
    slow = scene.consumer("a")
    scene.brokers["a"].enqueue(message("one"))
    received(slow, 1)
    scene.age(scene.brokers["a"].consumer_name, idle_ms=3_600_000)

    assert next(scene.consumer("b", timeout=100)) is None
    assert scene.state() == QueueState(pending={"one": ("a", 1)})


def test_heartbeat_does_not_reset_the_idle_time_in_xpending(scene: Scene) -> None:
    slow = scene.consumer("a")
    scene.brokers["a"].enqueue(message("one"))
    received(slow, 1)
    scene.age(scene.brokers["a"].consumer_name, idle_ms=3_600_000)

    scene.client.zadd(KEYS.consumers, {scene.brokers["a"].consumer_name: 1})
    scene.beat("a")
    assert scene.client.zscore(KEYS.consumers, scene.brokers["a"].consumer_name) > 1

    (entry,) = scene.client.xpending_range(KEYS.stream, GROUP, "-", "+", 1)
    assert entry["time_since_delivered"] >= 3_600_000


def test_message_that_killed_too_many_workers_becomes_a_dead_letter(scene: Scene) -> None:
    first = scene.consumer("0", max_deliveries=3)
    scene.brokers["0"].enqueue(message("poison"))
    for number in range(3):
        consumer = first if number == 0 else scene.consumer(str(number), max_deliveries=3)
        (delivery,) = received(consumer, 1)
        scene.brokers[str(number)].emit_before("process_message", delivery)
        scene.die(str(number))

    survivor = scene.consumer("survivor", max_deliveries=3)
    (delivery,) = received(survivor, 1)
    with pytest.raises(DeliveryLimitReached) as refused:
        scene.brokers["survivor"].emit_before("process_message", delivery)
    delivery.stuff_exception(refused.value)
    survivor.nack(delivery)

    assert scene.state() == QueueState(dead=(("delivery-limit", "poison"),))


def test_crash_is_not_counted_against_messages_that_only_waited(scene: Scene) -> None:
    consumer = scene.consumer("0", max_deliveries=2, prefetch=3)
    scene.brokers["0"].enqueue_many([message("poison"), message("two"), message("three")])
    for number in range(6):
        deliveries = {delivery.args[0]: delivery for delivery in received(consumer, 3)}
        if number >= 2:
            break
        scene.brokers[str(number)].emit_before("process_message", deliveries["poison"])
        scene.die(str(number))
        consumer = scene.consumer(str(number + 1), max_deliveries=2, prefetch=3)

    broker = scene.brokers["2"]
    with pytest.raises(DeliveryLimitReached):
        broker.emit_before("process_message", deliveries["poison"])
    for label in ("two", "three"):
        broker.emit_before("process_message", deliveries[label])


def test_message_that_ran_alongside_a_killer_runs_again_without_it(scene: Scene) -> None:
    """Two messages ran in two crashes. From then on, each runs in isolation, so a crash counts against one of them."""
    consumer = scene.consumer("0", max_deliveries=5)
    scene.brokers["0"].enqueue_many([message("killer"), message("bystander")])
    for number in range(2):
        for delivery in received(consumer, 2):
            scene.brokers[str(number)].emit_before("process_message", delivery)
        scene.die(str(number))
        consumer = scene.consumer(str(number + 1), max_deliveries=5, lease_ms=60_000)
    broker = scene.brokers["2"]
    deliveries = {delivery.args[0]: delivery for delivery in received(consumer, 2)}
    broker.emit_before("process_message", deliveries["killer"])

    def run_bystander() -> None:
        with suppress(SystemExit):  # this thread ends when its process dies
            broker.emit_before("process_message", deliveries["bystander"])

    waiting = threading.Thread(target=run_bystander)
    waiting.start()
    assert scene.charges() == {"killer": (1, "2"), "bystander": (1, "")}

    scene.die("2")
    waiting.join(30)
    survivor = scene.consumer("3", max_deliveries=5)
    taken = {delivery.args[0]: delivery.charges for delivery in received(survivor, 2)}

    assert taken == {"killer": 2, "bystander": 1}


def test_crash_counts_a_quarter_for_a_suspect_without_isolation(scene: Scene) -> None:
    consumer = scene.consumer("0", max_deliveries=5)
    scene.brokers["0"].enqueue(message("long"))
    for number in range(2):
        (delivery,) = received(consumer, 1)
        scene.brokers[str(number)].emit_before("process_message", delivery)
        scene.die(str(number))
        consumer = scene.consumer(str(number + 1), max_deliveries=5, lease_ms=60_000)
    broker = scene.brokers["2"]
    (suspect,) = received(consumer, 1)
    broker.emit_before("process_message", suspect)
    assert scene.charges() == {"long": (1, "2")}

    # a shutdown releases waiting messages
    broker.enqueue(message("other"))
    (other,) = received(consumer, 1)
    running = threading.Thread(target=broker.emit_before, args=("process_message", other))
    running.start()
    running.join(0.05)
    assert running.is_alive(), "it waits for the suspect"
    broker.emit_before("worker_shutdown", None)
    running.join(30)
    assert scene.charges() == {"long": (1, "2 alongside others")}

    scene.die("2")
    survivor = scene.consumer("3", max_deliveries=5)
    received(survivor, 2)

    assert scene.charges() == {"long": (1.25, "")}


@pytest.mark.parametrize("what_happens", ["it is handed back", "it is tried again"])
def test_suspect_remains_a_suspect_until_it_ends(scene: Scene, what_happens: str) -> None:
    scene.process("producer").enqueue(message("one"))
    scene.die_running("a", "b")
    consumer = scene.consumer("c")
    (suspect,) = received(consumer, 1)
    assert suspect.charges == 1

    if what_happens == "it is handed back":
        consumer.requeue([suspect])
        consumer.close()
        (suspect,) = received(scene.consumer("d"), 1)
        assert suspect.charges == 1
    else:
        fail(scene.brokers["c"], suspect)
        assert scene.client.hlen(KEYS.suspects) == 0


@pytest.mark.parametrize("ends", ["ack", "nack"])
def test_suspect_that_ended_lets_the_next_one_run(scene: Scene, ends: str) -> None:
    consumer = scene.consumer("0")
    scene.brokers["0"].enqueue_many([message("one"), message("two")])
    for number in range(2):
        for delivery in received(consumer, 2):
            scene.brokers[str(number)].emit_before("process_message", delivery)
        scene.die(str(number))
        consumer = scene.consumer(str(number + 1), lease_ms=60_000)
    broker = scene.brokers["2"]

    for delivery in received(consumer, 2):
        broker.emit_before("process_message", delivery)
        assert delivery.is_alone
        getattr(consumer, ends)(delivery)
        assert delivery.args[0] not in scene.state().pending, "written before another suspect may run"

    eventually(lambda: scene.state().pending == {})
    broker.enqueue(message("three"))
    (three,) = received(consumer, 1)
    begins_within_s(30, broker, three)


def begins_within_s(seconds: float, broker: RedisStreamsBroker, delivery: Delivery) -> None:
    """Start running a message. Fail if it has to wait for longer than ``seconds``, as for a suspect in isolation."""
    beginning = threading.Thread(target=broker.emit_before, args=("process_message", delivery), daemon=True)
    beginning.start()
    beginning.join(seconds)
    assert not beginning.is_alive()


def test_suspect_blocks_others_until_its_end_is_written(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.process("producer").enqueue(message("one"))
    scene.die_running("a", "b")
    consumer = scene.consumer("c", lease_ms=60_000)
    broker = scene.brokers["c"]
    (suspect,) = received(consumer, 1)
    broker.enqueue(message("other"))
    (other,) = received(consumer, 1)
    broker.emit_before("process_message", suspect)
    run_script, was_waiting = Connections.run_script, []
    beginning = threading.Thread(target=broker.emit_before, args=("process_message", other))

    def slowly(self: Connections, script: Script, keys: Any, args: Any) -> Any:
        if script is SETTLE:
            beginning.join(0.05)
            was_waiting.append(beginning.is_alive())
        return run_script(self, script, keys, args)

    monkeypatch.setattr(Connections, "run_script", slowly)
    beginning.start()
    consumer.ack(suspect)

    beginning.join(30)
    # otherwise, another message could kill the process, and the crash would count against this one
    assert (was_waiting, beginning.is_alive()) == ([True], False)


def test_message_that_kills_twenty_workers_loses_no_other_message(stage: Scene) -> None:
    n_neighbours, settings = 100, {"max_deliveries": 20, "prefetch": 101}
    consumer = stage.consumer("0", **settings)
    stage.brokers["0"].enqueue_many([message(label) for label in ("poison", *map(str, range(n_neighbours)))])
    n_killed = 0
    while True:
        name = str(n_killed)
        deliveries = {delivery.args[0]: delivery for delivery in received(consumer, n_neighbours + 1)}
        if deliveries["poison"].is_doomed:
            break
        stage.brokers[name].emit_before("process_message", deliveries["poison"])
        stage.die(name)
        n_killed += 1
        consumer = stage.consumer(str(n_killed), **settings)

    for label, delivery in deliveries.items():
        if label != "poison":
            stage.brokers[name].emit_before("process_message", delivery)
            consumer.ack(delivery)
    with pytest.raises(DeliveryLimitReached) as refused:
        stage.brokers[name].emit_before("process_message", deliveries["poison"])
    deliveries["poison"].stuff_exception(refused.value)
    consumer.nack(deliveries["poison"])

    assert n_killed == 20
    eventually(lambda: stage.state() == QueueState(dead=(("delivery-limit", "poison"),)))


@pytest.mark.parametrize("command", ["XACK", "XGROUP DELCONSUMER"])
def test_entry_acknowledged_by_hand_runs_again(scene: Scene, command: str) -> None:
    consumer = scene.consumer("a")
    scene.brokers["a"].enqueue(message("one"))
    (one,) = received(consumer, 1)
    scene.die("a")
    if command == "XACK":
        scene.client.xack(KEYS.stream, GROUP, one.entry_id)
    else:
        (holder,) = scene.client.xinfo_consumers(KEYS.stream, GROUP)
        scene.client.xgroup_delconsumer(KEYS.stream, GROUP, holder["name"])
    assert scene.state() == QueueState(lost=("one",))

    other = scene.consumer("b")
    eventually(lambda: scene.sweep("b").n_orphans or scene.state().lost == ())

    assert labels(received(other, 1)) == ["one"]


def test_entry_claimed_by_an_unknown_consumer_is_redelivered(scene: Scene) -> None:
    consumer = scene.consumer("a")
    scene.brokers["a"].enqueue(message("one"))
    (one,) = received(consumer, 1)
    scene.die("a")
    scene.client.xclaim(KEYS.stream, GROUP, "rescue", 0, [one.entry_id], idle=60_000)
    other = scene.consumer("b")

    scene.sweep("b")

    assert labels(received(other, 1)) == ["one"]


def test_claimed_entry_stays_with_the_operator_for_a_lease(scene: Scene) -> None:
    consumer = scene.consumer("a")
    scene.brokers["a"].enqueue(message("one"))
    (one,) = received(consumer, 1)
    scene.die("a")
    scene.client.xclaim(KEYS.stream, GROUP, "rescue", 0, [one.entry_id])

    assert next(scene.consumer("b", lease_ms=600_000, timeout=200)) is None

    assert scene.state() == QueueState(pending={"one": ("rescue", 2)})


def after_news(scene: Scene, consumer: StreamsConsumer) -> Delivery | None:
    """Wake the janitor, and poll the consumer once for a message."""
    scene.client.xadd(KEYS.timer, {"news": 1})
    return cast("Delivery | None", next(consumer))


class Clock:
    """The keepers' clock, which only the test advances."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keeper, "time", clock)
    return clock


@pytest.fixture
def kept(redis_client: redis.Redis, clock: Clock) -> Iterator[Keeper]:
    """A keeper that has a lease of one minute and has written a heartbeat."""
    connections = Connections(redis_client)
    kept = Keeper(connections, BrokerSettings(lease_ms=60_000, keeper_process=False), consumer_name="me")
    kept.add(KEYS)
    kept.stop()  # write no heartbeats except those that a test requests
    yield kept
    connections.close()


def test_process_with_late_heartbeats_does_not_declare_others_dead(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = scene.consumer("a")
    scene.brokers["a"].enqueue(message("one"))
    received(dying, 1)
    scene.die("a")
    # Redis was unavailable until just now: every heartbeat is old
    monkeypatch.setattr(Keeper, "may_judge", lambda *_: False)
    consumer = scene.consumer("b", timeout=100)

    assert next(consumer) is None
    assert scene.state() == QueueState(pending={"one": ("a", 1)})

    monkeypatch.undo()
    eventually(lambda: after_news(scene, consumer))


def test_process_stops_trusting_its_lease_before_it_ends(kept: Keeper, clock: Clock) -> None:
    def is_sure_after(seconds: float) -> bool:
        clock.now_s = 1_000 + seconds
        return kept.is_sure_of(QUEUE)

    # An unsure process queries Redis before it starts a message. It becomes unsure before the lease lapses, because the
    # query takes time.
    assert [is_sure_after(seconds) for seconds in (30, 55, 60, 3_600)] == [True, False, False, False]


def test_process_waits_after_an_outage_before_it_declares_others_dead(kept: Keeper, clock: Clock) -> None:
    assert kept.may_judge(QUEUE)
    clock.now_s += 40  # two heartbeats were due in that time

    kept.run_once()

    assert kept.is_sure_of(QUEUE)
    assert not kept.may_judge(QUEUE)


def test_destroyed_group_is_recreated_and_nothing_is_lost(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=500)
    broker = scene.brokers["a"]
    broker.enqueue(message("running"))
    (running,) = received(consumer, 1)
    scene.client.xgroup_destroy(KEYS.stream, GROUP)
    broker.enqueue(message("new"))

    (new,) = received(consumer, 1)
    consumer.ack(new)
    consumer.ack(running)

    assert new.args == ("new",)
    eventually(lambda: scene.state() == QueueState())


def test_consumer_survives_flushall(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    assert next(consumer) is None
    scene.client.flushall()

    broker.enqueue(message("after"))

    (after,) = received(consumer, 1)
    consumer.ack(after)
    eventually(lambda: scene.state() == QueueState())


def test_ghosts_of_a_dead_process_are_removed(scene: Scene) -> None:
    dying = scene.consumer("a")
    scene.brokers["a"].enqueue_many([message("one"), message("two")])
    one, _ = received(dying, 2)
    scene.die("a")
    scene.client.xdel(KEYS.stream, one.entry_id)
    assert scene.state().ghosts == 1

    assert labels(received(scene.consumer("b"), 1)) == ["two"]
    eventually(lambda: (scene.sweep("b"), scene.state().ghosts == 0)[1])


def test_message_taken_over_keeps_its_id_and_its_options(scene: Scene) -> None:
    dying = scene.consumer("a")
    sent = scene.brokers["a"].enqueue(message("one", tracked=True))
    received(dying, 1)
    scene.die("a")

    (again,) = received(scene.consumer("b"), 1)

    assert (again.message_id, again.options["tracked"]) == (sent.message_id, True)


def test_resumed_process_notices_that_its_messages_were_taken_over(stage: Scene) -> None:
    mine = stage.consumer("a", lease_ms=60_000)
    stage.brokers["a"].enqueue(message("one"))
    (one,) = received(mine, 1)
    stage.lose_lease("a")
    (taken,) = received(stage.consumer("b"), 1)

    mine.nack(one)

    assert stage.state() == QueueState(pending={"one": ("b", 2)})
    assert taken.message_id == one.message_id


def test_any_number_of_orphans_is_found_in_one_sweep(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=2, timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue_many([message(str(number)) for number in range(3_000)])
    held = received(consumer, 2)
    consumer.close()
    eventually(lambda: scene.n_blocked("xread"))  # the janitor's first sweep has ended
    # operators use this command to skip a backlog
    scene.client.xgroup_setid(KEYS.stream, GROUP, "$")

    assert scene.sweep("a").n_orphans == 2_998

    assert broker.stats(QUEUE).in_flight == 3_000
    assert {entry.holder for entry in broker.inspector(QUEUE).pending(3_000)[2:]} == {"~handed-back"}
    assert len(held) == 2


@pytest.mark.parametrize("when", ["another is added", "a janitor looks around"])
def test_dead_letters_are_deleted_after_their_ttl(scene: Scene, when: str) -> None:
    consumer = scene.consumer("a", dead_letter_ttl_ms=3_600_000)
    broker = scene.brokers["a"]
    for number in range(1, 201):
        scene.client.xadd(KEYS.dead, {"reason": "failed"}, id=f"{number}-1")
    broker.enqueue(message("young"))
    (young,) = received(consumer, 1)

    if when == "another is added":
        consumer.nack(young)
    else:
        scene.sweep("a")

    # Redis trims only whole nodes of a hundred entries, which is cheap and precise enough
    assert [dead_letter.entry_id for dead_letter in broker.dead_letters(QUEUE).list()] == (
        [young.entry_id] if when == "another is added" else []
    )


def test_oldest_dead_letters_are_deleted_beyond_the_limit(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=500, dead_letter_max=100)
    broker = scene.brokers["a"]
    broker.enqueue_many([message(str(number)) for number in range(500)])
    ids = []
    for delivery in received(consumer, 500):
        consumer.nack(delivery)
        ids.append(delivery.entry_id)

    kept = [dead_letter.entry_id for dead_letter in reversed(broker.dead_letters(QUEUE).list(1_000))]

    assert 100 <= len(kept) < 300
    assert kept == ids[-len(kept) :]


def test_undelivered_entry_is_not_swept_as_an_orphan(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=1)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    received(consumer, 1)
    broker.enqueue_many([message("two"), message("three")])

    assert scene.sweep("a").n_orphans == 0

    assert scene.state() == QueueState(pending={"one": ("a", 1)}, waiting=("two", "three"))


def test_waiting_consumer_takes_orphans_at_once(scene: Scene) -> None:
    # the lease is so long that no janitor starts a round during the test
    holder = scene.consumer("a", lease_ms=600_000)
    scene.brokers["a"].enqueue(message("one"))
    (one,) = received(holder, 1)
    consumer = scene.consumer("b", lease_ms=600_000, timeout=20_000)
    got: list[Delivery] = []
    waiting = threading.Thread(target=lambda: got.extend(received(consumer, 1)))
    waiting.start()
    eventually(lambda: (scene.n_blocked("xreadgroup"), scene.n_blocked("xread")) == (1, 2))
    scene.client.xack(KEYS.stream, GROUP, one.entry_id)

    assert scene.sweep("b").n_orphans == 1

    waiting.join(30)
    assert labels(got) == ["one"]


def test_late_isolation_record_of_an_ended_suspect_is_not_fenced(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    consumer.ack(one)
    eventually(lambda: scene.state() == QueueState())

    scene.outcomes("a").record_alongside(one)

    assert broker.counters(QUEUE)["fenced"] == 0
    assert scene.charges() == {}


def consumers(scene: Scene) -> set[bytes]:
    return {one["name"] for one in scene.client.xinfo_consumers(KEYS.stream, GROUP)}


def test_stopped_process_deregisters_its_consumer(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    consumer.ack(received(consumer, 1)[0])
    consumer.close()

    broker.close()

    assert consumers(scene) <= {b"~handed-back"}
    assert scene.client.zcard(KEYS.consumers) == 0


def test_silent_consumer_without_entries_is_forgotten(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = scene.consumer("a", lease_ms=60_000)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    received(consumer, 1)
    for name in ("without a heartbeat", "of an old heartbeat", "dead just now"):
        scene.client.xgroup_createconsumer(KEYS.stream, GROUP, name)
    scene.client.zadd(KEYS.consumers, {"of an old heartbeat": 1, "of an old heartbeat, nowhere else": 1})
    scene.client.zadd(KEYS.consumers, {"dead just now": 0})

    # together with the lease, this is 1 ms, as if five minutes and a lease had passed
    monkeypatch.setattr(janitor, "FORGET_CONSUMER_MS", -59_999)
    eventually(lambda: not scene.sweep("a").n_orphans and b"without a heartbeat" not in consumers(scene))

    assert b"dead just now" in consumers(scene), "an answer may have been on its way to it"
    assert broker.consumer_name.encode() in consumers(scene)
    monkeypatch.setattr(janitor, "FORGET_CONSUMER_MS", 0)
    scene.beat("a")
    scene.sweep("a")
    assert set(scene.client.zrange(KEYS.consumers, 0, -1)) == {b"dead just now", broker.consumer_name.encode()}


@pytest.mark.parametrize("is_made", [True, False], ids=["group made", "group destroyed"])
def test_silent_consumer_is_forgotten_in_a_queue_without_deliveries(scene: Scene, is_made: bool) -> None:
    broker = scene.process("a")
    scene.beat("a")
    scene.client.zadd(KEYS.consumers, {"of an old heartbeat": 1})
    if not is_made:
        scene.client.xgroup_destroy(KEYS.stream, GROUP)

    scene.sweep("a")

    assert scene.client.zrange(KEYS.consumers, 0, -1) == [broker.consumer_name.encode()]


def test_consumer_with_a_long_lease_is_not_forgotten(scene: Scene) -> None:
    scene.consumer("a", lease_ms=3_600_000)
    name = scene.brokers["a"].consumer_name
    half_a_lease_ago = scene.client.zscore(KEYS.consumers, name) - 1_800_000
    scene.client.zadd(KEYS.consumers, {name: half_a_lease_ago})
    other = scene.consumer("b", lease_ms=3_600_000)
    scene.brokers["b"].enqueue(message("one"))
    received(other, 1)

    scene.sweep("b")

    assert scene.client.zscore(KEYS.consumers, name) == half_a_lease_ago


def test_records_of_suspects_are_removed_with_the_suspects(scene: Scene) -> None:
    consumer = scene.consumer("0")
    scene.brokers["0"].enqueue_many([message("one"), message("two")])
    for delivery in received(consumer, 2):
        scene.brokers["0"].emit_before("process_message", delivery)
    scene.die("0")
    consumer = scene.consumer("1", timeout=500)
    broker = scene.brokers["1"]
    _one, two = received(consumer, 2)
    for delivery in (_one, two):
        broker.emit_before("process_message", delivery)
    consumer.close()
    assert scene.charges().keys() == {"one", "two"}
    scene.die("1")
    # a recreated group delivers entries as if for the first time
    scene.client.xgroup_destroy(KEYS.stream, GROUP)
    consumer = scene.consumer("2")
    broker = scene.brokers["2"]
    one, two = sorted(received(consumer, 2), key=lambda delivery: str(delivery.args))

    consumer.ack(one)
    eventually(lambda: scene.charges().keys() == {"two"})
    scene.client.xack(KEYS.stream, GROUP, two.entry_id)
    scene.client.xdel(KEYS.stream, two.entry_id)
    scene.sweep("2")

    assert not scene.client.exists(KEYS.suspects)


def test_reply_lost_on_a_live_connection_is_recovered(scene: Scene) -> None:
    # the lease is so long that no janitor starts a round during the test
    consumer = scene.consumer("a", lease_ms=600_000, timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    consumer.ack(received(consumer, 1)[0])
    eventually(lambda: scene.state() == QueueState())
    broker.enqueue(message("two"))
    scene.client.xreadgroup(GROUP, broker.consumer_name, {KEYS.stream: ">"})
    scene.age(broker.consumer_name, idle_ms=60_000)

    # the reply counts as lost after two rounds of the janitor in a row
    found = eventually(lambda: after_news(scene, consumer))
    assert found is not None
    assert found.args == ("two",)
    assert broker.counters(QUEUE)["redelivered"] == 1


def test_messages_read_ahead_of_a_silent_server_run_on_the_next_connection(scene: Scene) -> None:
    broken = scene.consumer("a", lease_ms=600_000)
    broker = scene.brokers["a"]
    broker.enqueue_many([message("one"), message("two"), message("three")])
    received(broken, 1)
    assert broken.n_buffered == 2

    with scene.silence("a"):
        with pytest.raises((redis.RedisError, BrokerConnectionError)):
            broker.counters(QUEUE)
        broken.close()

    with closing(broker.consume(QUEUE, prefetch=10, timeout=2_000)) as consumer:
        assert labels(received(consumer, 2)) == ["two", "three"]


def test_resync_script_returns_no_more_entries_than_its_limit(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue_many([message(str(number)) for number in range(30)])
    scene.client.xgroup_create(KEYS.stream, GROUP, id="0")
    scene.client.xreadgroup(GROUP, "me", {KEYS.stream: ">"}, count=30)
    held = [entry.id for entry in broker.inspector(QUEUE).pending(3)]

    args: list[str | int] = [GROUP, "me", 0, 10, 1 << 20, 1 << 20, *held]
    found = scene.run(RESYNC, (KEYS.stream, KEYS.counters), *args)

    assert [label_of({flat[0]: flat[1]}) for _, _, flat, _ in found] == [str(number) for number in range(3, 13)]


def test_any_number_of_ghosts_is_removed_in_short_calls(scene: Scene) -> None:
    producer = scene.process("producer")
    producer.enqueue_many([message(str(number)) for number in range(5_000)])
    scene.client.xgroup_create(KEYS.stream, GROUP, id="0")
    scene.client.xreadgroup(GROUP, "by-hand", {KEYS.stream: ">"}, count=5_000)
    inspector = producer.inspector(QUEUE)
    inspector.rescue(inspector.pending(5_000))
    scene.client.xtrim(KEYS.stream, maxlen=0)
    keys = (KEYS.stream, KEYS.consumers, KEYS.suspects, KEYS.counters)

    assert scene.run(TAKE, keys, GROUP, "me", HANDED_BACK, 2_000, 10, 5, 1, 1 << 20, 1 << 20) == []

    assert producer.counters(QUEUE)["ghosts"] == 2_000
    consumer = scene.consumer("a", timeout=100)
    eventually(lambda: next(consumer) is None and producer.counters(QUEUE)["ghosts"] == 5_000, within_s=30)


def test_janitor_that_was_never_started_leaves_no_open_file_descriptor(redis_client: redis.Redis) -> None:
    n_before = len(list(Path("/proc/self/fd").iterdir()))
    connections = Connections(redis_client)
    timers = Timers(connections, block_ms=1_000)
    idle = janitor.Janitor(connections, BrokerSettings(), KEYS, timers, consumer_name="me", on_round=lambda _: False)

    idle.stop()

    assert len(list(Path("/proc/self/fd").iterdir())) == n_before
