"""Tests that an import either refuses a file that was changed, before it writes anything, or imports it as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import UnreadableExport
from sploot_cluster.store import archives
from sploot_cluster.store.redis import RedisPetStore
from tasks.redis_access.embedded import EmbeddedRedis
from tests.sploot_cluster.store.mutations import exported, run


@pytest.fixture(scope="module")
def members(redis_server: EmbeddedRedis) -> dict[str, bytes]:
    with redis.Redis.from_url(redis_server.url) as client:
        return exported(client)


@pytest.mark.slow
def test_mutated_file_is_either_refused_or_imported_unchanged(
    redis_client: redis.Redis, members: dict[str, bytes]
) -> None:
    outcomes = run(redis_client, members, 150, seed="suite")

    assert outcomes.total() == 150
    assert outcomes["imported"] > 5
    assert outcomes["refused"] > 50


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("history", 1, "revision"), 25, "history: its revisions are not in ascending order from 1"),
        (("history", 2, "revision"), 99, "history: revision 99 is later than that of the pet, 27"),
        (("ledger", 1, "revision"), 26, "ledger: its revisions are not in ascending order from 1"),
        (("ledger", 0, "by"), None, r"pet.json.ledger\[0\].by: expected text, got None"),
        (("ledger", 0, "groups"), 7, r"pet.json.ledger\[0\]: a correction cannot be read"),
        (("ledger", 0, "at"), "1912-01-01T00:00:00+00:00", "it has a change before 1970"),
        (("revision",), 2**31, "pet.json.revision: expected a whole number from 1 to 2147483647"),
        (("next_cluster",), 2**30, "pet.json.next_cluster: expected a whole number from 1 to 1073741823"),
        (("clusters", 0, "threshold"), 1.5, "clusters: expected thresholds from -1 to 1"),
        (("clusters", 0, "threshold"), float("nan"), "pet.json: NaN is not a number"),
        (("media", 0), "", "media: expected ids of 1 to 256 characters"),
        (("media", 0), "x" * 257, "media: expected ids of 1 to 256 characters"),
        (("media", 0), "\ud800", r"pet.json\['media'\]\[0\]: expected text that can be encoded as UTF-8"),
        (("quarantine", "odd", "model"), "\ud800", r"\['quarantine'\]\['odd'\]\['model'\]: expected text"),
        (("history", 0, "by"), "\ud800", r"pet.json\['history'\]\[0\]\['by'\]: expected text"),
        (("history", 0, "summary"), {"\ud800": 1}, r"\['history'\]\[0\]\['summary'\]: expected text"),
        (("aliases",), {"02": 1}, "pet.json.aliases: '02' is not the id of a cluster"),
        (("shadow", "media", 0), "s0-1", "pet.json.shadow.media has an item twice"),
        (("relabelled_at",), 28, "relabelled_at or past_from is later than the revision of the pet"),
    ],
)
def test_import_of_an_impossible_value_names_it_and_writes_nothing(
    redis_client: redis.Redis, members: dict[str, bytes], path: tuple[Any, ...], value: object, problem: str
) -> None:
    facts = json.loads(members["pet.json"])
    parent = facts
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    file = archives.pack({**members, "pet.json": json.dumps(facts).encode()})

    with pytest.raises(UnreadableExport, match=problem):
        ClusterService(RedisPetStore(redis_client)).import_pet(file)

    assert redis_client.keys("*") == []
