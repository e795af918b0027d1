"""The command that repairs damaged pets, and captures of pets that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.store.keys import NAMES, PETS, PetKeys
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.store.repairs import PetRepairs
from tests.sploot_cluster.albums import PET, take
from tests.tasks.command_line import CommandLine

KEYS = PetKeys.of(PET)


@pytest.fixture
def service(redis_client: redis.Redis) -> ClusterService:
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(3))
    return service


@pytest.fixture
def cli(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> CommandLine:
    monkeypatch.chdir(tmp_path)  # the command writes files of damaged pets to the working folder
    return CommandLine(redis_url, monkeypatch, capsys)


def test_repair_command_prints_a_plan_then_saves_the_keys_and_repairs(
    redis_client: redis.Redis, cli: CommandLine, service: ClusterService, tmp_path: Path
) -> None:
    redis_client.delete(KEYS.vectors)
    before = PetRepairs(redis_client).read(PET)

    planned = cli("repair", str(PET), "--by", "eve")
    unchanged = PetRepairs(redis_client).read(PET)
    done = cli("repair", str(PET), "--by", "eve", "--yes", "--json")
    again = cli("repair", str(PET), "--by", "eve")

    assert (planned.code, unchanged) == (4, before)
    assert f"pet {PET} is damaged: {KEYS.vectors}: expected 3 items, found 0 items" in planned.out
    assert "3 items whose vectors are lost are quarantined until they are sent again: s0-0, s0-1, s0-2" in planned.out
    assert "nothing was written; add --yes to repair" in planned.err
    assert (done.code, done.json["n_quarantined"], done.json["saved_to"]) == (0, 3, f"pet-{PET}-damaged.zip")
    assert (again.code, again.out) == (0, f"pet {PET} is intact; nothing to repair\n")
    assert service.tally(PET).tally.quarantined == 3
    assert service.history(PET)[0].by == "eve"
    assert redis_client.exists("streams:cluster.recluster") + redis_client.exists("{streams:cluster.recluster}:delayed")

    service.delete_pet(PET)
    put_back = cli("import", str(tmp_path / f"pet-{PET}-damaged.zip"))
    assert (put_back.code, put_back.out) == (
        0,
        f"pet {PET} has its {len(before.keys)} keys back as they were captured\n",
    )
    assert PetRepairs(redis_client).read(PET) == before
    assert cli("import", str(tmp_path / f"pet-{PET}-damaged.zip")).code != 0


def test_raw_capture_of_an_unreadable_pet_can_be_imported_with_another_id(
    redis_client: redis.Redis, cli: CommandLine, service: ClusterService, tmp_path: Path
) -> None:
    redis_client.delete(KEYS.ledger, KEYS.meta)

    refused = cli("capture", "--pet", str(PET), "-o", "whole.zip")
    captured = cli("capture", "--pet", str(PET), "--raw", "-o", "raw.zip")
    redacted = cli("capture", "--pet", str(PET), "--raw", "--redact", "-o", "redacted.zip")
    put_back = cli("import", "raw.zip", "--as", "7")

    assert (refused.code, f"sploot-cluster repair {PET}" in refused.err) == (1, True)
    assert (captured.code, redacted.code, put_back.code) == (0, 0, 0)
    assert PetRepairs(redis_client).read(PET).keys == PetRepairs(redis_client).read(service.pets()[0]).keys
    assert service.pets() == [7, PET]
    assert cli("replay", "raw.zip").err.startswith("sploot-cluster: FILE: the capture has the keys of a pet")
    vector: Any = redis_client.lindex(KEYS.vectors, 0)
    assert vector[:16] not in (tmp_path / "redacted.zip").read_bytes()
    assert "embeddings were left out" in cli("import", "redacted.zip", "--as", "8").err
    assert "no key of pet 9 exists" in cli("capture", "--pet", "9", "--raw", "-o", "none.zip").err


def test_repair_command_rebuilds_the_list_of_all_pets(
    redis_client: redis.Redis, cli: CommandLine, service: ClusterService
) -> None:
    service.name_pet(PET, "Mochi", operation_id="1", by="ada")
    redis_client.delete(PETS, NAMES)

    planned = cli("repair", "--list")
    done = cli("repair", "--list", "--yes", "--json")

    assert (planned.code, planned.out.splitlines()) == (
        4,
        [
            f"1 pets would be added to the list of all pets: {PET}",
            "0 ids without data would be removed from it",
            f"1 names of pets would be added to the index of names: {PET}",
        ],
    )
    assert json.loads(done.out) == {"unlisted": [PET], "gone": [], "unnamed": [PET], "is_written": True}
    assert service.pets() == [PET]
    assert service.page_of_pets(search="mochi").n_matching == 1
    assert cli("repair", "--list").code == 0
    assert cli("repair").code == cli("repair", "7", "--list").code == 2
