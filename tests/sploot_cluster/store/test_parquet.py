"""Tests of the Parquet files of all pets, which pyarrow reads back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.parquet import Written, write_pets
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import name, picture

CATS, DOGS, NEW = PetId(3), PetId(7), PetId(9)
AT = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


def filled(store: MemoryPetStore | RedisPetStore) -> ClusterService:
    """Return a service with two pets: one with two subjects, and one with another model and dimension."""
    service = ClusterService(store)
    for subject in range(2):
        for n in range(6):
            service.assign(
                CATS,
                name(subject, n),
                model="clip@1",
                vector=picture(subject, n),
                occurred_at=AT if n == 0 else None,
            )
    service.recluster(CATS)
    service.assign(DOGS, MediaId("only"), model="dino@2", vector=np.ones(3, np.float32))
    return service


def test_each_item_is_one_row_with_the_values_that_the_service_shows(tmp_path: Path) -> None:
    service = filled(store := MemoryPetStore())
    first, second = service.clusters(CATS).clusters
    service.name(CATS, first.cluster_id, "in the garden", by="ada", operation_id="1")
    service.hide(CATS, [second.cluster_id], by="ada", operation_id="2")

    written = write_pets(store, tmp_path / "new" / "tables")

    assert (written.n_pets, written.n_items, written.unreadable) == (2, 13, [])
    (file,) = written.files
    rows = {(row["pet_id"], row["item_id"]): row for row in pq.read_table(file).to_pylist()}
    assert len(rows) == 13
    for cluster, shown, hidden in ((first, "in the garden", False), (second, None, True)):
        for item in cluster.media_ids:
            row = rows[CATS, item]
            assert (row["cluster_id"], row["cluster_name"], row["is_hidden"]) == (cluster.cluster_id, shown, hidden)
            assert row["revision"] == service.revision(CATS)
    state = store.load(CATS)
    for item, at in state.rows.items():
        np.testing.assert_array_equal(np.float32(rows[CATS, item]["embedding"]), state.vectors[at])
    assert rows[CATS, name(0, 0)]["occurred_at"] == AT
    assert rows[CATS, name(0, 1)]["occurred_at"] is None
    alone = rows[DOGS, "only"]
    assert (alone["model"], len(alone["embedding"]), alone["cluster_id"], alone["origin"]) == (
        "dino@2",
        3,
        None,
        "noise",
    )


def test_files_and_row_groups_end_after_whole_pets(tmp_path: Path) -> None:
    filled(store := MemoryPetStore())

    written = write_pets(store, tmp_path, group_bytes=1, file_bytes=1)

    assert [file.name for file in written.files] == ["pets-0001-00001.parquet", "pets-0001-00002.parquet"]
    assert [set(pq.read_table(file)["pet_id"].to_pylist()) for file in written.files] == [{CATS}, {DOGS}]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet", ".parquet"]


def test_each_pet_is_in_exactly_one_part(tmp_path: Path) -> None:
    filled(store := MemoryPetStore())

    parts = [write_pets(store, tmp_path, part=part, parts=2) for part in (1, 2)]

    found = [set(pq.read_table(part.files[0])["pet_id"].to_pylist()) for part in parts]
    assert found == [{CATS}, {DOGS}]


def test_export_without_pets_writes_a_file_with_columns_but_no_rows(tmp_path: Path) -> None:
    written = write_pets(MemoryPetStore(), tmp_path)

    table = pq.read_table(written.files[0])
    assert (table.num_rows, "embedding" in table.column_names) == (0, True)


def test_existing_files_are_never_mixed_with_new_ones(tmp_path: Path) -> None:
    write_pets(MemoryPetStore(), tmp_path)

    with pytest.raises(InvalidInput, match="exists already; name an empty directory"):
        write_pets(MemoryPetStore(), tmp_path)
    with pytest.raises(InvalidInput, match="name a writable directory"):
        write_pets(MemoryPetStore(), Path("/dev/null/tables"))
    with pytest.raises(InvalidInput, match="send a number from 1 to 2"):
        write_pets(MemoryPetStore(), tmp_path, part=3, parts=2)


def test_unreadable_and_deleted_pets_do_not_stop_the_others(redis_client: redis.Redis, tmp_path: Path) -> None:
    service = filled(store := RedisPetStore(redis_client))
    service.assign(NEW, MediaId("later"), model="clip@1", vector=picture(0, 0))
    redis_client.delete(PetKeys.of(CATS).vectors)

    def delete_the_last(written: Written) -> None:
        if written.n_pets == 1 and service.has_item(NEW, MediaId("later")):
            service.delete_pet(NEW)

    written = write_pets(store, tmp_path, group_bytes=1, after_each=delete_the_last)

    assert (written.unreadable, written.n_pets) == ([CATS], 1)
    assert set(pq.read_table(written.files[0])["pet_id"].to_pylist()) == {DOGS}
