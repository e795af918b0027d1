"""Replacement of vectors: the item of an edited picture keeps its id and its corrections."""

from __future__ import annotations

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import DimensionMismatch
from sploot_cluster.pet.models import Assigned, ClusterId, MediaId
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.service import NewItem
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import MODEL, PET, grouped, name, picture, take, taken_at

ONE, TWO, THREE = (ClusterId(number) for number in range(1, 4))
EDITED = name(0, 3)


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> PetStore:
    if request.param == "memory":
        return MemoryPetStore()
    client: redis.Redis = request.getfixturevalue("redis_client")
    return RedisPetStore(client)


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))


def edit(service: ClusterService, item: MediaId, vector: FloatVector) -> Assigned:
    return service.assign(PET, item, model=MODEL, vector=vector, is_replacement=True)


def where(service: ClusterService, item: MediaId) -> int | None:
    return service.why(PET, item).cluster_id


def test_item_with_a_replaced_vector_is_assigned_again(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET)
    other_worker = ClusterService(store)
    other_worker.why(PET, EDITED)

    edited = edit(service, EDITED, picture(1, 99))

    after = other_worker.why(PET, EDITED)  # its cache holds the former vector
    assert (edited.cluster, edited.is_duplicate, edited.revision) == (TWO, False, before.revision + 1)
    assert (after.cluster_id, after.similarity is not None and after.similarity > 0.9) == (TWO, True)
    now = store.load(PET)
    assert np.array_equal(now.vectors[now.rows[EDITED]], picture(1, 99))
    assert np.count_nonzero(now.labels != before.labels) == 1
    assert now.occurred_at_ms.tolist() == before.occurred_at_ms.tolist()
    assert store.tally(PET).tally.is_conserved


def test_repeated_replacement_and_repeated_plain_event_change_nothing(service: ClusterService, store: PetStore) -> None:
    first = edit(service, EDITED, picture(1, 99))

    repeated = edit(service, EDITED, picture(1, 99))
    plain = service.assign(PET, EDITED, model=MODEL, vector=picture(2, 99))

    assert (repeated.is_duplicate, plain.is_duplicate) == (True, True)
    assert store.load(PET).revision == first.revision


def test_history_and_past_show_the_replacement(service: ClusterService) -> None:
    before = service.revision(PET)

    edit(service, EDITED, picture(1, 99))
    take(service, 2, range(12, 14))

    (entry, *_) = service.history(PET)
    then = service.at(PET, before)
    assert (entry.kind, entry.summary) == ("replace", {"n_replaced": 1, "n_moved": 1})
    assert then.labels[list(then.media).index(EDITED)] == ONE
    (move,) = service.compare(PET, before, entry.revision).moved
    assert (move.media_id, move.before, move.after) == (EDITED, ONE, TWO)


def test_replaced_item_stays_where_it_was_placed_until_undo(service: ClusterService) -> None:
    placed = service.place(PET, [EDITED], into=THREE, operation_id="1", by="ada")

    edited = edit(service, EDITED, picture(1, 99))
    service.recluster(PET)
    stayed = where(service, EDITED)
    service.undo(PET, placed.revision, operation_id="2", by="ada")
    service.recluster(PET)

    assert (edited.cluster, stayed, where(service, EDITED)) == (THREE, THREE, TWO)


def test_dismissed_and_excluded_items_stay_out_after_a_replacement(service: ClusterService) -> None:
    service.dismiss(PET, [EDITED], operation_id="1", by="ada")
    service.exclude(PET, TWO, [name(1, 3)], operation_id="2", by="ada")

    assert edit(service, EDITED, picture(0, 99)).cluster == -1
    assert edit(service, name(1, 3), picture(1, 99)).cluster == -1


def test_thresholds_after_a_replacement_match_a_pet_built_from_scratch(
    service: ClusterService, store: PetStore
) -> None:
    lowest = {id_: card.threshold for id_, card in store.load(PET).clusters.items()}

    edit(service, EDITED, picture(1, 99))
    service.recluster(PET)

    fresh = grouped(MemoryPetStore(), 0, range(0))
    for subject in range(3):
        for number in range(12):
            item, vector = name(subject, number), picture(subject, number)
            vector = picture(1, 99) if item == EDITED else vector
            fresh.assign(PET, item, model=MODEL, vector=vector, occurred_at=taken_at(item))
    fresh.recluster(PET)
    shown = {view.size: view.threshold for view in service.clusters(PET).clusters}
    assert shown == pytest.approx({view.size: view.threshold for view in fresh.clusters(PET).clusters})
    assert lowest[ONE] != shown[11]


def test_new_item_may_be_sent_as_a_replacement(service: ClusterService) -> None:
    assert edit(service, name(1, 50), picture(1, 50)).cluster == TWO


def test_replacement_vector_of_another_dimension_is_refused(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET).revision

    with pytest.raises(DimensionMismatch):
        edit(service, EDITED, np.ones(3, dtype=np.float32))

    assert store.load(PET).revision == before


def test_assign_many_skips_replacements(service: ClusterService) -> None:
    items = [
        NewItem(PET, EDITED, MODEL, picture(1, 99), is_replacement=True),
        NewItem(PET, name(1, 60), MODEL, picture(1, 60)),
    ]

    replaced, arrived = service.assign_many(items)

    assert replaced is None
    assert arrived is not None
    assert where(service, EDITED) == ONE
