"""Views of queues with entries of many megabytes read only the start of each entry, and still find its pet."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import redis

from broker import DeadLetterTooLarge
from broker.entries import LONGEST_SHOWN, PAGE_BYTES
from sploot_cluster.queues import DeadLetterFilter
from tasks.contracts import EMBEDDING_INGESTED
from tests.tasks.queue_ops.desk import KEYS, Desk

LARGE = b"x" * (24 << 20)
HOW_MANY = 5


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    """Add large waiting entries and large dead letters, between small ones."""
    desk = Desk(redis_client)
    desk.add(1)
    desk.bury(1)
    for number in range(HOW_MANY):
        event = {"schema": "embedding.ingested/1", "pet_id": "7", "media_id": f"large-{number}", "embedding": LARGE}
        desk.client.xadd(KEYS.stream, event)
        facts = {"reason": "oversize", "error": "Oversize: entry", "entry_id": "1-1", "deliveries": 1}
        desk.client.xadd(KEYS.dead, facts | {f"entry:{name}": value for name, value in event.items()})
    desk.bury(2)
    return desk


LOOK = """
import resource, sys
from tasks.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.argv = ["sploot-cluster", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(grown, file=sys.stderr)
    raise
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["dead list embedding", "dead list embedding --groups", "peek embedding", "find --pet 7"]
)
def test_listing_of_large_entries_needs_little_memory(desk: Desk, redis_url: str, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, "queue", *command.split()],
        env={"REDIS_URL": redis_url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    # in MB: enough for the imports and a few pages; the entries take 120
    assert int(done.stderr.split()[-1]) < 80
    assert ("large-3" in done.stdout) or "dead" in command


def test_large_dead_letters_are_listed_and_stay_whole(desk: Desk) -> None:
    found = list(
        desk.operations.stored_dead_letters(
            EMBEDDING_INGESTED, DeadLetterFilter(pet_id=7, reason="oversize"), limit=100
        )
    )

    assert len(found) == HOW_MANY
    assert all(
        dead_letter.n_bytes_cut > len(LARGE) and len(dead_letter.fields[b"embedding"]) < 10_000 for dead_letter in found
    )
    whole = desk.broker.dead_letters(EMBEDDING_INGESTED).get(found[0].id, is_whole=True)
    assert whole is not None
    assert (whole.n_bytes_cut, whole.fields[b"embedding"]) == (0, LARGE)

    with pytest.raises(DeadLetterTooLarge, match="max_message_bytes"):
        desk.broker.dead_letters(EMBEDDING_INGESTED).requeue([found[0].id])
    assert desk.broker.dead_letters(EMBEDDING_INGESTED).get(found[0].id, is_whole=True) == whole


def test_large_dead_letters_are_read_in_bounded_pages_until_all_are_listed(desk: Desk, redis_client: Any) -> None:
    ids = []
    for number in range(12):
        facts = {"reason": "failed", "error": "E: x", "entry_id": "1-1", "deliveries": 1}
        event = {"entry:pet_id": "9", "entry:data": b"y" * (LONGEST_SHOWN - 1_000), "entry:number": str(number)}
        ids.append(redis_client.xadd(KEYS.dead, facts | event).decode())
    assert 12 * (LONGEST_SHOWN - 1_000) > 2 * PAGE_BYTES

    found = list(desk.operations.stored_dead_letters(EMBEDDING_INGESTED, DeadLetterFilter(pet_id=9), limit=100))

    assert [dead_letter.id for dead_letter in found] == ids[::-1]
    assert all(dead_letter.n_bytes_cut == 0 for dead_letter in found)
