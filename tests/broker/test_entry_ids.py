"""If entry ids are ahead of the clock or the greatest possible, messages still run and ages are correct."""

from __future__ import annotations

import pytest

from broker.stats import LAST_ID
from tests.broker.scene import GROUP, KEYS, QUEUE, QueueState, Scene, message, received
from tests.support import eventually


def ahead(scene: Scene) -> str:
    """Return an entry id one hour ahead of the clock."""
    return f"{1000 * (scene.client.time()[0] + 3_600)}-0"


def add(scene: Scene, label: str, entry_id: str) -> None:
    scene.client.xadd(KEYS.stream, {"message": message(label).encode()}, id=entry_id)


def test_oldest_age_is_unknown_for_an_id_ahead_of_the_clock(scene: Scene) -> None:
    broker = scene.process("a")
    add(scene, "odd", ahead(scene))
    stats = broker.stats(QUEUE)

    assert stats.oldest_age_ms is None
    assert 3_500_000 < stats.ids_ahead_ms <= 3_600_000
    assert (stats.first_id, stats.is_exhausted, stats.undelivered) == (stats.last_id, False, 1)


def test_oldest_age_is_correct_if_only_a_later_id_is_ahead_of_the_clock(scene: Scene) -> None:
    broker = scene.process("a")
    add(scene, "good", f"{1000 * (scene.client.time()[0] - 60)}-0")
    add(scene, "odd", ahead(scene))

    age_ms = broker.stats(QUEUE).oldest_age_ms

    assert age_ms is not None
    assert 59_000 < age_ms < 120_000


def test_entry_with_the_greatest_id_exhausts_the_stream_and_still_runs(scene: Scene) -> None:
    consumer = scene.consumer("a")
    add(scene, "last", LAST_ID)
    (last,) = received(consumer, 1)

    assert scene.brokers["a"].stats(QUEUE).is_exhausted
    assert [entry.id for entry in scene.brokers["a"].inspector(QUEUE).pending()] == [LAST_ID]
    assert scene.brokers["a"].inspector(QUEUE).waiting() == []
    scene.sweep("a")
    consumer.ack(last)
    eventually(lambda: scene.state() == QueueState())


def test_orphans_and_ghosts_with_the_greatest_id_are_found(scene: Scene) -> None:
    consumer = scene.consumer("a")
    inspector = scene.brokers["a"].inspector(QUEUE)
    add(scene, "last", LAST_ID)
    received(consumer, 1)
    eventually(lambda: scene.n_blocked("xread"))  # the janitor's first sweep is over

    scene.client.xack(KEYS.stream, GROUP, LAST_ID)
    assert [orphan.id for orphan in inspector.unowned().orphans] == [LAST_ID]
    assert scene.brokers["a"].stats(QUEUE).orphaned == 1
    assert scene.sweep("a").n_orphans == 1
    scene.client.xdel(KEYS.stream, LAST_ID)
    assert [ghost.id for ghost in inspector.unowned().ghosts] == [LAST_ID]


def test_delayed_messages_wait_until_an_exhausted_stream_is_recreated(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue(message("later"), delay=1)
    broker.enqueue(message("behind"), delay=2)
    add(scene, "last", LAST_ID)
    consumer = broker.consume(QUEUE, prefetch=10, timeout=2_000)
    (last,) = received(consumer, 1)

    assert scene.sweep("a").n_promoted == 0
    assert scene.state().delayed == ("behind", "later")

    consumer.ack(last)
    eventually(lambda: scene.client.xlen(KEYS.stream) == 0)
    scene.client.delete(KEYS.stream)
    assert {delivery.args[0] for delivery in received(consumer, 2)} == {"later", "behind"}
    consumer.close()


@pytest.mark.parametrize("dead_letter_id", ["99999999999999999-0", "18446744073709551615-1"])
def test_dead_letter_with_any_id_can_be_listed(scene: Scene, dead_letter_id: str) -> None:
    broker = scene.process("a")
    scene.client.xadd(KEYS.dead, {"reason": "failed", "error": "E: x"}, id=dead_letter_id)

    assert [dead_letter.id for dead_letter in broker.dead_letters(QUEUE).list()] == [dead_letter_id]
