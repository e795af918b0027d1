"""Operators' actions lose no entry, and skip entries that have changed since they were listed."""

from __future__ import annotations

from broker import PendingEntry, Rescued, Retired
from broker.keys import HANDED_BACK
from tests.broker.scene import GROUP, KEYS, QUEUE, QueueState, Scene, labels, message, received

STRANGER = "somebody-by-hand"


def given_held_by_a_stranger(scene: Scene, *names: str) -> None:
    """Enqueue messages, and deliver them to a consumer that has no process."""
    broker = scene.process("producer")
    broker.enqueue_many([message(name) for name in names])
    scene.client.xgroup_create(KEYS.stream, GROUP, id="0")
    scene.client.xreadgroup(GROUP, STRANGER, {KEYS.stream: ">"}, count=len(names))


def test_rescued_entries_run_elsewhere_at_once(scene: Scene) -> None:
    given_held_by_a_stranger(scene, "one", "two")
    inspector = scene.process("operator").inspector(QUEUE)
    seen = inspector.pending(consumer=STRANGER)

    rescued = inspector.rescue(seen)

    assert rescued == Rescued(n_handed_back=2, n_ghosts=0)
    assert scene.state() == QueueState(pending={"one": ("handed back", 1), "two": ("handed back", 1)})
    assert sorted(labels(received(scene.consumer("b"), 2))) == ["one", "two"]
    assert scene.brokers["operator"].counters(QUEUE)["rescued"] == 2


def test_entries_in_flight_are_rescued_after_the_group_was_reset_to_0(scene: Scene) -> None:
    """After the reset, the group's last delivered id is 0, although entries are in flight."""
    given_held_by_a_stranger(scene, "one", "two")
    inspector = scene.process("operator").inspector(QUEUE)
    scene.client.xgroup_setid(KEYS.stream, GROUP, "0")

    rescued = inspector.rescue(inspector.pending(consumer=STRANGER))

    assert rescued == Rescued(n_handed_back=2, n_ghosts=0)


def test_rescue_skips_an_entry_that_changed_since_it_was_seen(scene: Scene) -> None:
    given_held_by_a_stranger(scene, "one", "two")
    inspector = scene.process("operator").inspector(QUEUE)
    first, second = inspector.pending()
    scene.client.xclaim(KEYS.stream, GROUP, "another", 0, [first.id])

    rescued = inspector.rescue([first, second])

    assert rescued == Rescued(n_handed_back=1, n_ghosts=0)
    assert scene.state() == QueueState(pending={"one": ("another", 2), "two": ("handed back", 1)})


def test_orphans_are_requeued_and_ghosts_removed(scene: Scene) -> None:
    given_held_by_a_stranger(scene, "one", "two", "three", "four")
    inspector = scene.process("operator").inspector(QUEUE)
    one, two, three, _ = inspector.pending()
    scene.client.xack(KEYS.stream, GROUP, one.id)  # an old runbook did this to "requeue" an entry
    scene.client.xack(KEYS.stream, GROUP, three.id)
    scene.client.xdel(KEYS.stream, two.id)

    unowned = inspector.unowned()
    rescued = inspector.rescue([*unowned.orphans, *unowned.ghosts])

    assert [orphan.id for orphan in unowned.orphans] == [one.id, three.id]
    assert unowned.ghosts == (PendingEntry(two.id, STRANGER, 1),)
    assert rescued == Rescued(n_handed_back=2, n_ghosts=1)
    assert scene.state() == QueueState(
        pending={"one": ("handed back", 1), "three": ("handed back", 1), "four": (STRANGER, 1)}
    )


def test_undelivered_entry_is_not_listed_as_an_orphan(scene: Scene) -> None:
    given_held_by_a_stranger(scene, "one")
    scene.brokers["producer"].enqueue(message("two"))
    inspector = scene.process("operator").inspector(QUEUE)
    ((waiting_id, _),) = inspector.waiting()

    assert inspector.rescue([PendingEntry(waiting_id, "", 0)]) == Rescued(0, 0)
    assert inspector.unowned().orphans == ()
    assert scene.state() == QueueState(waiting=("two",), pending={"one": (STRANGER, 1)})


def test_consumer_is_removed_only_if_it_holds_nothing(scene: Scene) -> None:
    given_held_by_a_stranger(scene, "one", "two", "three")
    inspector = scene.process("operator").inspector(QUEUE)

    held = inspector.retire(STRANGER)
    inspector.rescue(inspector.pending(consumer=STRANGER))
    retired = inspector.retire(STRANGER)

    assert held == Retired("holds", 3)
    assert retired == Retired("retired")
    assert {consumer["name"] for consumer in scene.client.xinfo_consumers(KEYS.stream, GROUP)} == {HANDED_BACK.encode()}
    assert sorted(labels(received(scene.consumer("b"), 3))) == ["one", "three", "two"]


def test_live_consumer_is_removed_only_if_forced(scene: Scene) -> None:
    scene.consumer("a")
    name = scene.brokers["a"].consumer_name
    inspector = scene.process("operator").inspector(QUEUE)

    refused = inspector.retire(name)
    forced = inspector.retire(name, even_if_alive=True)

    assert refused.outcome == "alive"
    assert forced == Retired("retired")
    scene.beat("a")
    assert scene.client.zscore(KEYS.consumers, name), "its next heartbeat brings it back"


def test_inspector_of_a_missing_stream_finds_nothing(scene: Scene) -> None:
    inspector = scene.process("operator").inspector(QUEUE)

    assert inspector.pending() == []
    assert inspector.waiting() == []
    assert inspector.groups() == []
    assert inspector.entry("1-1") is None
    assert inspector.entry("no id") is None
    assert inspector.find_pending("no id") is None
    assert inspector.unowned().orphans == ()
    assert inspector.rescue([PendingEntry("1-1", STRANGER, 1)]) == Rescued(0, 0)
    assert inspector.retire(STRANGER) == Retired("retired")


def test_orphans_are_found_beyond_one_page(scene: Scene) -> None:
    given_held_by_a_stranger(scene, *map(str, range(1_500)))
    inspector = scene.process("operator").inspector(QUEUE)
    first, *others, last = [entry.id for entry in inspector.pending(1_500)]
    for start in range(0, len(others), 500):
        scene.client.xack(KEYS.stream, GROUP, *others[start : start + 500])

    assert [orphan.id for orphan in inspector.unowned().orphans] == others

    scene.client.xack(KEYS.stream, GROUP, first, last)
    assert len(inspector.unowned().orphans) == 1_500


def test_stats_count_unowned_entries_anywhere_in_the_stream(scene: Scene) -> None:
    given_held_by_a_stranger(scene, "one", "two", "three", "four")
    broker = scene.process("operator")
    one, two, three, four = (entry.id for entry in broker.inspector(QUEUE).pending())

    counts = []
    for orphan in (two, four, one):
        scene.client.xack(KEYS.stream, GROUP, orphan)
        stats = broker.stats(QUEUE)
        counts.append((stats.orphaned, stats.in_flight, stats.waiting))
    scene.client.xdel(KEYS.stream, three)

    assert counts == [(1, 3, 1), (2, 2, 2), (3, 1, 3)]
    stats = broker.stats(QUEUE)
    assert (stats.orphaned, stats.in_flight, stats.waiting) == (3, 1, 3)
