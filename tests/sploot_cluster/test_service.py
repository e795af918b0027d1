"""Tests of the use cases on a real Redis: arrivals, corrections, reclusters and reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import (
    DimensionMismatch,
    InvalidInput,
    ModelMismatch,
    RevisionConflict,
    UnknownCluster,
    UnknownMedia,
    UnknownRevision,
)
from sploot_cluster.pet.models import NOISE, Change, ClusterId, MediaId, PetId, PetState, PetView
from sploot_cluster.service import STAGES_FROM, NewItem
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import DIM, MODEL, PET, name, names, picture, take

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


@pytest.fixture
def store(redis_client: redis.Redis) -> RedisPetStore:
    return RedisPetStore(redis_client)


@pytest.fixture
def service(store: RedisPetStore) -> ClusterService:
    return ClusterService(store)


@pytest.fixture
def three_subjects(service: ClusterService) -> PetView:
    """A pet with twelve items of each of three subjects, reclustered into clusters 1, 2 and 3."""
    for subject in range(3):
        take(service, subject, range(12))
    service.recluster(PET)
    return service.clusters(PET)


def cluster_of(view: PetView, item: MediaId) -> ClusterId:
    return next((cluster.cluster_id for cluster in view.clusters if item in cluster.media_ids), NOISE)


def members(view: PetView) -> list[set[MediaId]]:
    return sorted((set(cluster.media_ids) for cluster in view.clusters), key=min)


# -- arrivals --------------------------------------------------------------------------------------------------------


def test_first_item_is_noise_and_sets_the_model_of_its_pet(service: ClusterService) -> None:
    assigned = service.assign(PET, MediaId("a"), model=MODEL, vector=[3.0, 4.0])

    assert (assigned.cluster, assigned.similarity, assigned.is_duplicate, assigned.revision) == (NOISE, None, False, 1)
    assert assigned.backend == "faiss"
    view = service.clusters(PET)
    assert (view.model, view.dim, view.noise) == (MODEL, 2, ("a",))
    assert list(service.pets()) == [PET]


def test_arrival_joins_the_most_similar_cluster(service: ClusterService, three_subjects: PetView) -> None:
    (assigned,) = take(service, 1, range(12, 13))

    assert assigned.cluster == cluster_of(three_subjects, name(1, 0)) != NOISE
    assert assigned.similarity is not None
    assert 0.9 < assigned.similarity <= 1.0
    now = next(cluster for cluster in service.clusters(PET).clusters if cluster.cluster_id == assigned.cluster)
    assert (now.size, now.origins["arrived"]) == (13, 1)


def test_arrival_that_resembles_no_cluster_is_noise(service: ClusterService, three_subjects: PetView) -> None:
    (assigned,) = take(service, 9, range(1))

    assert assigned.cluster == NOISE
    assert assigned.similarity is not None
    assert assigned.similarity < 0.5
    assert service.clusters(PET).noise == (*three_subjects.noise, name(9, 0))


def test_known_item_changes_nothing_whatever_its_vector(service: ClusterService, three_subjects: PetView) -> None:
    again = service.assign(PET, name(1, 0), model="other@7", vector=[1.0, 0.0])

    assert again.is_duplicate
    assert again.cluster == cluster_of(three_subjects, name(1, 0))
    assert again.revision == three_subjects.revision
    assert service.clusters(PET) == three_subjects


def test_repeated_item_changes_nothing(service: ClusterService, three_subjects: PetView) -> None:
    (again,) = take(service, 1, range(1))

    assert (again.is_duplicate, again.revision) == (True, three_subjects.revision)
    assert service.clusters(PET) == three_subjects


@pytest.mark.parametrize(
    ("pet", "media", "model", "vector", "field"),
    [
        (0, "a", MODEL, [1.0], "pet_id"),
        (42, "", MODEL, [1.0], "media_id"),
        (42, "a" * 257, MODEL, [1.0], "media_id"),
        (42, "\ud800", MODEL, [1.0], "media_id"),
        (42, "a", "", [1.0], "model"),
        (42, "a", MODEL, [0.0, 0.0], "embedding"),
        (42, "a", MODEL, [1.0, float("nan")], "embedding"),
        (42, "a", MODEL, [[1.0]], "embedding"),
        (42, "a", MODEL, ["x"], "embedding"),
    ],
)
def test_error_for_an_invalid_field_names_it_and_nothing_is_written(
    service: ClusterService, redis_client: redis.Redis, pet: int, media: str, model: str, vector: object, field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.assign(PetId(pet), MediaId(media), model=model, vector=np.asarray(vector))

    assert refused.value.field == field
    assert redis_client.keys("*") == []


def test_unknown_model_is_refused(store: RedisPetStore) -> None:
    service = ClusterService(store, settings=ClusterSettings(models={"clip@1": 2, "clip@2": 3}))

    with pytest.raises(InvalidInput, match=r"model: 'dino@1' is not a known model; send one of: clip@1, clip@2"):
        service.assign(PET, MediaId("a"), model="dino@1", vector=[1.0, 0.0])
    with pytest.raises(InvalidInput, match=r"dim: expected 3 dimensions for 'clip@2', got 2"):
        service.assign(PET, MediaId("a"), model="clip@2", vector=[1.0, 0.0])

    assert service.assign(PET, MediaId("a"), model="clip@1", vector=[1.0, 0.0]).revision == 1


def test_vectors_of_a_wrong_model_or_dimension_are_refused(service: ClusterService, three_subjects: PetView) -> None:
    with pytest.raises(DimensionMismatch) as dimension:
        service.assign(PET, MediaId("a"), model=MODEL, vector=[1.0, 2.0])
    with pytest.raises(ModelMismatch) as model:
        service.assign(PET, MediaId("a"), model="clip@2", vector=picture(0, 99))

    assert (dimension.value.expected, dimension.value.got) == (DIM, 2)
    assert (model.value.expected, model.value.got) == (MODEL, "clip@2")
    assert service.clusters(PET) == three_subjects


# -- requests for reclusters ----------------------------------------------------------------------------------------


class Requests:
    """A recorder of recluster requests, which fails while ``is_down`` is set."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.is_down = False

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        assert reason
        if self.is_down:
            raise ConnectionError("the queue is unavailable")
        self.asked.append((pet_id, delay_ms))


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def asking(store: RedisPetStore, requests: Requests, clock: Clock) -> ClusterService:
    return ClusterService(store, reclusters=requests, clock=clock)


def test_growing_pet_requests_one_recluster_per_delay(asking: ClusterService, requests: Requests, clock: Clock) -> None:
    delay_ms = ClusterSettings().recluster_delay_ms

    answers = take(asking, 0, range(40))
    asked_at_once = list(requests.asked)
    clock.now += timedelta(milliseconds=delay_ms)
    take(asking, 0, range(40, 41))

    assert answers[0].recluster_reason is None
    assert answers[-1].recluster_reason
    assert asked_at_once == [(PET, delay_ms)]
    assert requests.asked == [(PET, delay_ms)] * 2


def test_recluster_clears_its_pending_request(asking: ClusterService, requests: Requests) -> None:
    take(asking, 0, range(40))
    asking.recluster(PET)

    (assigned,) = take(asking, 0, range(40, 41))

    assert assigned.recluster_reason is None
    assert len(requests.asked) == 1


def test_arrival_succeeds_although_the_queue_is_unavailable(
    asking: ClusterService, requests: Requests, caplog: pytest.LogCaptureFixture
) -> None:
    requests.is_down = True
    take(asking, 0, range(40))
    requests.is_down = False
    take(asking, 0, range(40, 41))

    assert asking.clusters(PET).n_media == 41
    assert len(requests.asked) == 1
    assert "recluster could not be requested" in caplog.messages


# -- corrections -----------------------------------------------------------------------------------------------------


def test_merged_clusters_stay_merged(service: ClusterService, three_subjects: PetView) -> None:
    one, other = (cluster_of(three_subjects, name(subject, 0)) for subject in (0, 1))

    corrected = service.merge(PET, [one, other], into=other, operation_id="op-1", by="ada")
    reclustered = service.recluster(PET)

    assert (corrected.cluster, corrected.n_moved, corrected.is_duplicate) == (other, 12, False)
    assert corrected.overridden == ()
    view = service.clusters(PET)
    assert members(view) == [names(0, range(12)) | names(1, range(12)), names(2, range(12))]
    assert cluster_of(view, name(0, 0)) == other
    assert view.aliases == {one: other}
    assert reclustered.constraints_kept == reclustered.constraints > 0


def test_split_items_stay_apart(service: ClusterService, three_subjects: PetView) -> None:
    source = cluster_of(three_subjects, name(0, 0))
    moved = sorted(names(0, range(5)))

    corrected = service.split(PET, source, moved, operation_id="op-1", by="ada")
    service.recluster(PET)

    view = service.clusters(PET)
    assert corrected.cluster == cluster_of(view, name(0, 0)) != source
    assert cluster_of(view, name(0, 5)) == source
    assert {cluster_of(view, item) for item in moved} == {corrected.cluster}
    assert not names(0, range(5, 12)) & {
        item for cluster in view.clusters if cluster.cluster_id == corrected.cluster for item in cluster.media_ids
    }


def test_undone_merge_has_no_effect_on_the_next_recluster(service: ClusterService, three_subjects: PetView) -> None:
    ids = [cluster_of(three_subjects, name(subject, 0)) for subject in (0, 1)]
    merged = service.merge(PET, ids, operation_id="op-1", by="ada")

    undone = service.undo(PET, merged.revision, operation_id="op-2", by="bob")
    service.recluster(PET)

    assert undone.revision == merged.revision + 1
    assert members(service.clusters(PET)) == members(three_subjects)
    with pytest.raises(UnknownRevision):
        service.undo(PET, merged.revision, operation_id="op-3", by="bob")


def test_repeated_operation_writes_nothing(service: ClusterService, three_subjects: PetView) -> None:
    ids = [cluster.cluster_id for cluster in three_subjects.clusters[:2]]
    merged = service.merge(PET, ids, operation_id="merge", by="ada")
    split = service.split(PET, three_subjects.clusters[2].cluster_id, [name(2, 0)], operation_id="split", by="ada")
    undone = service.undo(PET, merged.revision, operation_id="undo", by="ada")
    before = service.clusters(PET)

    again = [
        service.merge(PET, ids, operation_id="merge", by="ada"),
        service.split(PET, three_subjects.clusters[2].cluster_id, [name(2, 0)], operation_id="split", by="ada"),
        service.undo(PET, merged.revision, operation_id="undo", by="ada"),
    ]

    assert [answer.revision for answer in again] == [merged.revision, split.revision, undone.revision]
    assert all(answer.is_duplicate for answer in again)
    assert again[1].cluster == split.cluster
    assert service.clusters(PET) == before


def test_corrections_of_unknown_clusters_or_items_are_refused(service: ClusterService, three_subjects: PetView) -> None:
    here = three_subjects.clusters[0].cluster_id
    stranger = MediaId("stranger")
    refusals: list[tuple[type[InvalidInput], Callable[[], object]]] = [
        (UnknownCluster, lambda: service.merge(PET, [here, ClusterId(99)], operation_id="op", by="ada")),
        (UnknownCluster, lambda: service.split(PET, ClusterId(99), [stranger], operation_id="op", by="ada")),
        (UnknownMedia, lambda: service.split(PET, here, [stranger], operation_id="op", by="ada")),
        (UnknownRevision, lambda: service.undo(PET, 1, operation_id="op", by="ada")),
        (InvalidInput, lambda: service.merge(PET, [here], operation_id="op", by="ada")),
        (InvalidInput, lambda: service.undo(PET, 1, operation_id="", by="ada")),
    ]

    for error, correct in refusals:
        with pytest.raises(error):
            correct()

    assert service.clusters(PET) == three_subjects


# -- reclusters ------------------------------------------------------------------------------------------------------


def test_recluster_finds_the_subjects(service: ClusterService, three_subjects: PetView) -> None:
    assert members(three_subjects) == [names(subject, range(12)) for subject in range(3)]
    assert three_subjects.n_noise == 0
    assert all(cluster.origins == {"core": 12} for cluster in three_subjects.clusters)


def test_second_recluster_keeps_all_cluster_ids(service: ClusterService, three_subjects: PetView) -> None:
    reclustered = service.recluster(PET)

    assert (reclustered.n_moved, reclustered.n_new_ids, reclustered.n_retired_ids) == (0, 0, 0)
    assert reclustered.n_kept_ids == reclustered.n_clusters == 3
    assert members(service.clusters(PET)) == members(three_subjects)
    assert {cluster.cluster_id for cluster in service.clusters(PET).clusters} == {
        cluster.cluster_id for cluster in three_subjects.clusters
    }


def test_recluster_of_an_empty_pet_changes_nothing(service: ClusterService, redis_client: redis.Redis) -> None:
    reclustered = service.recluster(PET)

    assert (reclustered.revision, reclustered.n_media, reclustered.n_clusters) == (0, 0, 0)
    assert redis_client.keys("*") == []


def test_history_lists_changes_with_their_requesters(service: ClusterService, three_subjects: PetView) -> None:
    ids = [cluster.cluster_id for cluster in three_subjects.clusters[:2]]
    service.merge(PET, ids, operation_id="op-1", by="ada")
    service.recluster(PET, by="bob")

    history = service.history(PET)

    assert [(entry.kind, entry.by) for entry in history] == [
        ("recluster", "bob"),
        ("merge", "ada"),
        ("recluster", "machine"),
    ]
    assert [entry.revision for entry in history] == [39, 38, 37]


class OvertakenStore(MemoryPetStore):
    """A store that shares the pets of a given store, and lets another writer commit before its first commits."""

    def __init__(self, store: MemoryPetStore, overtake: Iterator[Callable[[], object]]) -> None:
        self.__dict__ = {**store.__dict__, "overtake": overtake}
        self.overtake = overtake

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        next(self.overtake, lambda: None)()
        return super().commit(state, change, claimant=claimant)


def test_items_that_arrive_during_a_recluster_are_in_its_result() -> None:
    store = MemoryPetStore()
    other = ClusterService(store)
    for subject in range(3):
        take(other, subject, range(12))
    like_the_others = 14
    overtaking = [lambda: take(other, 0, range(like_the_others, like_the_others + 1))]
    service = ClusterService(OvertakenStore(store, iter(overtaking)))

    reclustered = service.recluster(PET)

    view = service.clusters(PET)
    assert reclustered.revision == view.revision == 38
    assert view.n_media == 37
    assert members(view)[0] == names(0, range(12)) | {name(0, like_the_others)}


def test_change_that_loses_every_race_raises_a_conflict() -> None:
    store = MemoryPetStore()
    rival = ClusterService(store)
    numbers = iter(range(10_000))
    settings = ClusterSettings(commit_attempts=1)

    def overtake() -> Iterator[Callable[[], object]]:
        while True:
            yield lambda: take(rival, 1, range(number := next(numbers), number + 1))

    service = ClusterService(OvertakenStore(store, overtake()), settings=settings)

    with pytest.raises(RevisionConflict):
        take(service, 0, range(1))

    assert name(0, 0) not in store.load(PET).rows


def test_threads_of_one_process_do_not_race_on_a_pet(store: RedisPetStore) -> None:
    service = ClusterService(store, settings=ClusterSettings(commit_attempts=1))
    failures: list[BaseException] = []

    def album(subject: int) -> None:
        try:
            take(service, subject, range(20))
        except BaseException as exc:
            failures.append(exc)

    threads = [Thread(target=album, args=(subject,)) for subject in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert service.clusters(PET).revision == 80


def test_evicted_pet_gets_the_same_decisions(store: RedisPetStore) -> None:
    remembering, forgetful = ClusterService(store), ClusterService(store, cache_bytes=0)

    for number in range(30):
        take(remembering if number % 2 else forgetful, number % 3, range(number, number + 1))
    for service in (remembering, forgetful):
        service.recluster(PET)
    answers = [take(service, 1, range(100 + i, 101 + i))[0] for i, service in enumerate((remembering, forgetful))]

    assert answers[0].cluster == answers[1].cluster != NOISE


def test_reads_do_not_import_the_engine(redis_url: str) -> None:
    program = """
import sys, redis
from sploot_cluster import ClusterService
from sploot_cluster.store.redis import RedisPetStore
service = ClusterService(RedisPetStore(redis.Redis.from_url(sys.argv[1])))
service.clusters(42), service.history(42), service.pets()
print(sorted({"faiss", "scipy", "sklearn", "sploot_cluster.engine.selection"} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, redis_url], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_recluster_and_preview_report_stages_only_for_a_large_pet() -> None:
    service = ClusterService(MemoryPetStore())
    small, stages = PetId(8), list[tuple[int, int, str]]()
    for pet, n in ((PET, STAGES_FROM), (small, STAGES_FROM - 1)):
        items = [NewItem(pet, name(number % 3, number), MODEL, picture(number % 3, number)) for number in range(n)]
        for start in range(0, n, 100):
            service.assign_many(items[start : start + 100])

    for pet in (PET, small):
        service.recluster(pet, on_stage=lambda *stage: stages.append(stage))
        service.preview(pet, on_stage=lambda *stage: stages.append(stage))

    assert stages == 2 * [
        (1, 2, "computes the density of 1,000 items"),
        (2, 2, "finds the clusters of 1,000 items and enforces corrections"),
    ]
