"""Tests of candidate models: vectors of two models never mix, and a switch matches its preview."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.decide.assignment import threshold_of
from sploot_cluster.errors import (
    DimensionMismatch,
    InvalidInput,
    ModelMismatch,
    RevisionConflict,
    StalePreview,
    UnknownPet,
)
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from sploot_cluster.pet.times import time_of
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import MODEL, PET, grouped, name, names, take, taken_at

ONE, TWO, THREE = ClusterId(1), ClusterId(2), ClusterId(3)
NEW, NEW_DIM = "clip@2", 24


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service with three clusters of eight items each, the first two merged."""
    service = grouped(store, 3, range(8))
    service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    return service


def seen_by_new(subject: int, number: int) -> FloatVector:
    """Return the vector of an item in the new model, which places the first two items of subject 2 with subject 0."""
    rng = np.random.default_rng([99, subject, number])
    vector = rng.normal(scale=0.05, size=NEW_DIM)
    vector[20 - (0 if subject == 2 and number < 2 else subject)] += 1.0
    return vector.astype(np.float32)


def embed(service: ClusterService, subject: int, numbers: range) -> None:
    for number in numbers:
        item = name(subject, number)
        service.assign(PET, item, model=NEW, vector=seen_by_new(subject, number), occurred_at=taken_at(item))


def begin(service: ClusterService) -> None:
    service.begin_model(PET, NEW, NEW_DIM, by="eve")
    for subject in range(3):
        embed(service, subject, range(8))


def test_vectors_of_the_candidate_model_are_stored_only_in_the_shadow(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET)

    begin(service)
    embed(service, 0, range(3))  # repeated, as events may be

    after, shadow = store.load(PET), store.shadow(PET)
    assert after.version == before.version
    assert after.dim == 16
    assert shadow is not None
    assert (shadow.model, shadow.dim, shadow.by, shadow.n_vectors) == (NEW, NEW_DIM, "eve", 24)
    assert service.tally(PET).quarantine == {}


def test_pet_accepts_arrivals_and_reclusters_while_a_candidate_model_runs(service: ClusterService) -> None:
    begin(service)

    (late,) = take(service, 2, range(20, 21))
    service.recluster(PET)

    assert not late.is_duplicate
    assert service.clusters(PET).model == MODEL


def test_third_model_and_wrong_dimensions_are_refused(service: ClusterService) -> None:
    service.begin_model(PET, NEW, NEW_DIM, by="eve")

    with pytest.raises(ModelMismatch):
        service.assign(PET, MediaId("x"), model="dino@1", vector=[1.0] * NEW_DIM)
    with pytest.raises(DimensionMismatch, match="expects 24 dimensions"):
        service.assign(PET, MediaId("x"), model=NEW, vector=[1.0] * 8)
    for model in (MODEL, "dino@1"):
        with pytest.raises(InvalidInput):
            service.begin_model(PET, model, 16, by="eve")
    with pytest.raises(UnknownPet):
        service.begin_model(PetId(7), NEW, NEW_DIM, by="eve")


def test_switch_matches_its_preview_and_keeps_corrections(service: ClusterService, store: PetStore) -> None:
    begin(service)
    embed(service, 1, range(8, 10))  # items that only the new model has
    before = store.load(PET)
    preview = service.preview_switch(PET)

    result = service.switch_model(PET, preview.token, by="eve")

    state = store.load(PET)
    where = dict(zip(state.media, state.labels.tolist(), strict=True))
    assert (state.model, state.dim, state.n_media, state.revision) == (NEW, NEW_DIM, 26, before.revision + 1)
    assert np.allclose(state.vectors[state.rows[name(2, 5)]], _unit(seen_by_new(2, 5)), atol=1e-6)
    assert {where[item] for item in names(0, range(8)) | names(1, range(8))} == {ONE}
    assert {where[item] for item in names(2, range(2, 8))} == {THREE}, "ids are kept"
    assert where[name(2, 0)] == ONE, "the new model places it elsewhere, and no correction names it"
    assert (result.kept, state.ledger) == ("constraints kept 1 of 1", before.ledger)
    assert (preview.diff.n_arrived, preview.diff.n_moved) == (2, 2)
    assert service.compare(PET, before.revision, state.revision).moved == preview.diff.moved
    assert service.tally(PET).tally.is_conserved
    (entry,) = service.history(PET, limit=1)
    assert (entry.kind, entry.by, entry.summary["from"], entry.summary["to"]) == ("switch", "eve", MODEL, NEW)
    assert all(np.isfinite(card.threshold) for card in state.clusters.values())


def test_switch_recomputes_all_thresholds(service: ClusterService, store: PetStore) -> None:
    service.delete_media(PET, [name(2, 0), name(2, 1)], by="eve")
    service.begin_model(PET, NEW, NEW_DIM, by="eve")
    for subject, numbers in ((0, range(8)), (1, range(8)), (2, range(2, 8))):
        embed(service, subject, numbers)

    result = service.switch_model(PET, service.preview_switch(PET).token, by="eve")

    state = store.load(PET)
    assert result.n_moved == 0
    assert {id_: card.threshold for id_, card in state.clusters.items()} == {
        id_: threshold_of(state.vectors[state.labels == id_]) for id_ in (ONE, THREE)
    }


def test_switched_pet_accepts_arrivals_and_can_be_switched_back(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET)
    begin(service)
    service.switch_model(PET, service.preview_switch(PET).token, by="eve")

    embed(service, 2, range(30, 31))
    take(service, 2, range(30, 31))
    back = service.preview_switch(PET)
    service.switch_model(PET, back.token, by="eve")

    state = store.load(PET)
    assert (state.model, state.n_media) == (MODEL, 25)
    assert state.labels[: before.n_media].tolist() == before.labels.tolist()
    assert np.array_equal(state.vectors[: before.n_media], before.vectors)


def test_switch_is_refused_while_items_lack_vectors(service: ClusterService) -> None:
    service.begin_model(PET, NEW, NEW_DIM, by="eve")
    embed(service, 0, range(8))

    with pytest.raises(InvalidInput, match="16 of 24 items of pet 42 have no vector of clip@2: s1-0"):
        service.preview_switch(PET)


def test_switch_is_refused_if_the_pet_changed_since_the_preview(service: ClusterService, store: PetStore) -> None:
    begin(service)
    token = service.preview_switch(PET).token
    embed(service, 0, range(40, 41))
    before = store.load(PET)

    with pytest.raises(StalePreview):
        service.switch_model(PET, token, by="eve")

    assert store.load(PET).version == before.version


def test_switch_is_refused_if_vectors_changed_since_the_preview(service: ClusterService, store: PetStore) -> None:
    begin(service)
    token = service.preview_switch(PET).token
    service.end_model(PET)
    service.begin_model(PET, NEW, NEW_DIM, by="eve")
    for subject in range(3):
        for number in range(8):
            vector = seen_by_new(subject, number) * np.float32(1 + 1e-3 * np.arange(NEW_DIM))
            service.assign(PET, name(subject, number), model=NEW, vector=vector)

    assert service.preview_switch(PET).token != token
    with pytest.raises(StalePreview):
        service.switch_model(PET, token, by="eve")


def test_shadow_is_not_opened_for_a_recreated_pet(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET)
    service.begin_model(PET, NEW, NEW_DIM, by="eve")
    shadow = store.shadow(PET)
    service.delete_pet(PET)
    take(service, 0, range(3))

    assert shadow is not None
    assert not store.begin_shadow(before, shadow)
    assert store.shadow(PET) is None


def test_ended_candidate_model_leaves_no_data(
    service: ClusterService, store: PetStore, redis_client: redis.Redis
) -> None:
    begin(service)

    assert service.end_model(PET)
    assert not service.end_model(PET)
    assert store.shadow(PET) is None
    with pytest.raises(InvalidInput, match="no candidate model"):
        service.preview_switch(PET)
    if isinstance(store, RedisPetStore):
        keys = PetKeys.of(PET)
        assert not redis_client.exists(keys.shadow, keys.shadow_vectors)


def test_shadow_survives_deletions_and_exports(service: ClusterService, store: PetStore) -> None:
    begin(service)
    service.delete_media(PET, [name(0, 0)], by="eve")
    file = service.export(PET)
    service.delete_pet(PET)
    gone = store.shadow(PET)
    service.import_pet(file)

    dump = store.dump(PET)
    assert gone is None
    assert dump.shadow is not None
    assert dump.shadow.vectors.keys() == set(dump.state.media)
    assert service.export(PET) == file


def test_deleted_pet_leaves_no_shadow(redis_client: redis.Redis) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(8))
    service.begin_model(PET, NEW, NEW_DIM, by="eve")
    embed(service, 0, range(8))

    service.delete_pet(PET)

    assert redis_client.keys("*") == []


# -- items that only one of the two models has -----------------------------------------------------------------------


def where(store: PetStore) -> dict[MediaId, int]:
    state = store.load(PET)
    return dict(zip(state.media, state.labels.tolist(), strict=True))


def times(store: PetStore) -> dict[MediaId, datetime | None]:
    state = store.load(PET)
    return dict(zip(state.media, map(time_of, state.occurred_at_ms.tolist()), strict=True))


def test_shadow_only_items_are_quarantined_until_the_switch(service: ClusterService, store: PetStore) -> None:
    begin(service)
    embed(service, 1, range(8, 10))
    embed(service, 1, range(8, 10))  # repeated, as events may be
    new = names(1, range(8, 10))

    before, why = service.tally(PET), service.why(PET, name(1, 8))
    preview = service.preview_switch(PET)
    service.switch_model(PET, preview.token, by="eve")

    assert before.tally.is_conserved
    assert (before.tally.ingested, before.tally.quarantined) == (26, 2)
    assert set(before.quarantine) == set(preview.joining) == set(preview.dump.state.media[24:]) == new
    assert (why.origin, why.cluster_id) == ("quarantined", None)
    assert "quarantined: its vector is of 'clip@2' (24 dimensions)" in why.reason
    assert "a switch to that model adds it to the pet" in why.reason
    assert (service.tally(PET).tally.ingested, service.tally(PET).quarantine) == (26, {})
    assert {where(store)[item] for item in new} == {ONE}
    assert why.occurred_at == taken_at(name(1, 8)) is not None
    assert times(store) == {item: taken_at(item) for item in store.load(PET).media}


def test_shadow_only_items_stay_quarantined_when_the_candidate_model_ends(
    service: ClusterService, store: PetStore
) -> None:
    begin(service)
    embed(service, 1, range(8, 10))

    only_there = store.only_in_shadow(PET)
    service.end_model(PET)
    ended, why = service.tally(PET), service.why(PET, name(1, 8))
    take(service, 1, range(8, 10))

    assert set(only_there) == set(ended.quarantine) == names(1, range(8, 10))
    assert (ended.tally.ingested, ended.tally.is_conserved) == (26, True)
    assert "ingest it with a vector of 'clip@1'" in why.reason
    assert store.only_in_shadow(PET) == []
    assert (service.tally(PET).tally.ingested, service.tally(PET).tally.quarantined) == (26, 0)


def test_vector_of_the_pets_model_ends_quarantine_of_a_shadow_only_item(
    service: ClusterService, store: PetStore
) -> None:
    begin(service)
    embed(service, 1, range(8, 9))
    take(service, 1, range(8, 9))

    assert (service.tally(PET).tally.ingested, service.tally(PET).quarantine) == (25, {})
    assert store.only_in_shadow(PET) == []
    service.switch_model(PET, service.preview_switch(PET).token, by="eve")
    assert store.load(PET).n_media == 25


def test_quarantine_limit_does_not_apply_to_shadow_only_items(
    service: ClusterService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store.redis", "store.memory"):
        monkeypatch.setattr(f"sploot_cluster.{module}.MAX_QUARANTINED", 1)
    begin(service)

    embed(service, 1, range(8, 12))
    with pytest.raises(ModelMismatch):
        service.assign(PET, MediaId("x"), model="dino@1", vector=[1.0] * NEW_DIM)

    tally = service.tally(PET).tally
    assert (tally.ingested, tally.quarantined, tally.overflowed) == (28, 4, 1)


def test_vector_with_wrong_dimensions_is_quarantined(service: ClusterService) -> None:
    begin(service)

    with pytest.raises(DimensionMismatch, match="expects 24 dimensions"):
        service.assign(PET, MediaId("x"), model=NEW, vector=[1.0] * 8)

    why = service.tally(PET).quarantine[MediaId("x")]
    assert (why.model, why.dim) == (NEW, 8)
    assert "ingest it with a vector of" in service.why(PET, MediaId("x")).reason


def test_switch_back_quarantines_items_without_a_vector_of_that_model(service: ClusterService, store: PetStore) -> None:
    """Items and corrections from between the switches are kept: another switch to the new model restores both."""
    at_first = where(store)
    begin(service)
    embed(service, 1, range(8, 10))
    service.switch_model(PET, service.preview_switch(PET).token, by="eve")
    embed(service, 2, range(30, 33))
    service.dismiss(PET, [name(2, 30)], operation_id="2", by="ada")
    new = names(1, range(8, 10)) | names(2, range(30, 33))
    in_new = where(store)

    back = service.preview_switch(PET)
    service.switch_model(PET, back.token, by="eve")

    counted = service.tally(PET)
    assert {item: time_of(why.occurred_at_ms) for item, why in counted.quarantine.items()} == {
        item: taken_at(item) for item in new
    }
    assert set(back.left_out) == set(counted.quarantine) == set(store.only_in_shadow(PET)) == new
    assert {move.media_id for move in back.diff.moved if move.after is None} == new
    assert (counted.tally.ingested, counted.tally.is_conserved) == (29, True)
    assert where(store) == at_first
    (entry,) = service.history(PET, limit=1)
    assert (entry.summary["n_left_out"], entry.summary["n_joined"], entry.summary["constraints"]) == (5, 0, "1 of 1")
    for revision in range(store.load(PET).revision + 1):
        assert set(service.at(PET, revision).media) <= set(at_first)
    assert store.load(PET).ledger[-1].operation_id == "2"

    forth = service.preview_switch(PET)
    service.switch_model(PET, forth.token, by="eve")

    assert set(forth.joining) == new
    assert where(store)[name(2, 30)] == -1
    assert where(store) == in_new
    assert forth.result.kept == "constraints kept 2 of 2"
    assert service.tally(PET).quarantine == {}


def test_switch_back_to_a_model_without_vectors_is_refused(service: ClusterService) -> None:
    begin(service)
    embed(service, 1, range(8, 9))
    service.switch_model(PET, service.preview_switch(PET).token, by="eve")
    service.delete_media(PET, [*names(0, range(8)), *names(1, range(8)), *names(2, range(8))], by="eve")

    with pytest.raises(InvalidInput, match="no item of pet 42 has a vector of clip@1"):
        service.preview_switch(PET)


# -- concurrent changes ---------------------------------------------------------------------------------------------


@pytest.fixture
def overtake(store: PetStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """A function that makes a given function run right before the next call of a store method."""

    def overtake(method: str, deed: Callable[[], object]) -> None:
        call = getattr(store, method)

        def overtaken(*args: object, **kwargs: object) -> object:
            monkeypatch.setattr(store, method, call)
            deed()
            return call(*args, **kwargs)

        monkeypatch.setattr(store, method, overtaken)

    return overtake


Overtake = Callable[[str, Callable[[], object]], None]


def test_item_that_arrives_during_a_switch_is_not_lost(
    service: ClusterService, store: PetStore, overtake: Overtake
) -> None:
    begin(service)
    token = service.preview_switch(PET).token
    overtake("replace", lambda: embed(ClusterService(store), 1, range(40, 41)))

    with pytest.raises(StalePreview, match="the pet or its candidate model changed"):
        service.switch_model(PET, token, by="eve")
    service.switch_model(PET, service.preview_switch(PET).token, by="eve")

    assert name(1, 40) in store.load(PET).rows


def test_item_added_to_the_shadow_during_a_deletion_is_not_lost(
    service: ClusterService, store: PetStore, overtake: Overtake
) -> None:
    begin(service)
    overtake("replace", lambda: embed(ClusterService(store), 1, range(40, 41)))

    service.delete_media(PET, [name(0, 0)], by="eve")

    shadow = store.dump(PET).shadow
    assert shadow is not None
    assert name(1, 40) in shadow.vectors
    assert name(0, 0) not in shadow.vectors


@pytest.mark.parametrize("is_opened", [True, False])
def test_change_of_the_shadow_during_a_deletion_of_items_is_kept(
    service: ClusterService, store: PetStore, overtake: Overtake, is_opened: bool
) -> None:
    if not is_opened:
        service.begin_model(PET, NEW, NEW_DIM, by="eve")
    other = ClusterService(store)
    overtake("replace", lambda: other.begin_model(PET, NEW, NEW_DIM, by="bob") if is_opened else other.end_model(PET))

    service.delete_media(PET, [name(0, 0)], by="eve")

    assert (store.shadow(PET) is not None) is is_opened


def test_item_quarantined_during_a_deletion_is_counted(
    service: ClusterService, store: PetStore, overtake: Overtake
) -> None:
    def quarantine() -> None:
        with pytest.raises(ModelMismatch):
            ClusterService(store).assign(PET, MediaId("odd"), model="dino@1", vector=[1.0] * 16)

    overtake("replace", quarantine)

    service.delete_media(PET, [name(0, 0)], by="eve")

    tally = service.tally(PET)
    assert tally.quarantine.keys() == {"odd"}
    assert tally.tally.ingested == 24


def test_recluster_of_the_old_model_is_not_committed_after_a_switch(
    service: ClusterService, store: PetStore, overtake: Overtake
) -> None:
    begin(service)
    other = ClusterService(store)
    token = other.preview_switch(PET).token
    overtake("load", lambda: overtake("load", lambda: other.switch_model(PET, token, by="eve")))

    with pytest.raises(RevisionConflict):
        service.recluster(PET)

    assert [entry.kind for entry in store.history(PET, limit=1)] == ["switch"]


def test_arrival_of_the_new_model_during_a_switch_succeeds_when_retried(
    service: ClusterService, store: PetStore, overtake: Overtake
) -> None:
    begin(service)
    other = ClusterService(store)
    token = other.preview_switch(PET).token
    overtake("shadow", lambda: other.switch_model(PET, token, by="eve"))

    with pytest.raises(RevisionConflict):
        embed(service, 1, range(40, 41))
    embed(service, 1, range(40, 41))  # retried, as the queue would

    assert name(1, 40) in store.load(PET).rows
    assert service.tally(PET).quarantine == {}


def test_arrival_for_a_model_that_just_ended_is_quarantined_when_retried(
    service: ClusterService, store: PetStore, overtake: Overtake
) -> None:
    begin(service)
    overtake("add_to_shadow", lambda: ClusterService(store).end_model(PET))

    with pytest.raises(RevisionConflict):
        embed(service, 1, range(40, 41))
    with pytest.raises(ModelMismatch):
        embed(service, 1, range(40, 41))

    assert service.tally(PET).quarantine.keys() == {name(1, 40)}


def _unit(vector: FloatVector) -> FloatVector:
    return (vector / np.linalg.norm(vector)).astype(np.float32)
