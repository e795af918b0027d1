"""Exact arrivals, and the spanning tree that is stored for them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import redis

from sploot_cluster.density import cluster_densely
from sploot_cluster.engine import backends
from sploot_cluster.engine.spanning_tree import SpanningTree, spanning_tree
from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.pet.models import ClusterId, KeptTree, MediaId, PetId
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, as_vector, as_vectors
from sploot_cluster.service import ClusterService
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.states import looks

PET = PetId(7)
EXACT = ClusterSettings(exact_until=10_000)


def album(n: int, seed: int = 1) -> FloatMatrix:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, 16))
    x = centres[rng.choice(5, size=n, p=[0.4, 0.3, 0.15, 0.1, 0.05])] + rng.normal(scale=0.35, size=(n, 16))
    x[rng.random(n) < 0.1] = rng.normal(size=16)
    return as_vectors(x)


def arrive(service: ClusterService, vectors: FloatMatrix, rows: range | list[int]) -> None:
    for row in rows:
        service.assign(PET, MediaId(f"m{row}"), model="clip@1", vector=vectors[row])


def groups(service: ClusterService) -> set[frozenset[str]]:
    return {frozenset(cluster.media_ids) for cluster in service.clusters(PET).clusters}


@pytest.fixture
def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with the number of items of each tree that the test builds from scratch."""
    built: list[int] = []

    def build(vectors: FloatMatrix, min_samples: int, *, threads: int = 1) -> SpanningTree:
        built.append(len(vectors))
        return spanning_tree(vectors, min_samples, threads=threads)

    monkeypatch.setattr(backends, "spanning_tree", build)
    return built


def test_recluster_changes_nothing_after_exact_arrivals() -> None:
    vectors = album(220)
    service = ClusterService(MemoryPetStore(), settings=EXACT)

    for end in (3, 40, 149, 150, 151, 220):
        arrive(service, vectors, range(service.clusters(PET).n_media, end))
        before = groups(service)

        reclustered = service.recluster(PET)

        assert (reclustered.n_moved, reclustered.n_new_ids) == (0, 0), end
        assert groups(service) == before
    assert len(before) >= 4


def test_exact_arrival_may_move_other_items() -> None:
    vectors = album(60)
    service = ClusterService(MemoryPetStore(), settings=EXACT)

    arrive(service, vectors, [0])
    assert service.clusters(PET).n_noise == 1
    arrive(service, vectors, range(1, 60))

    view = service.clusters(PET)
    assert view.n_media == 60
    assert any("m0" in cluster.media_ids for cluster in view.clusters) or "m0" in view.noise
    assert view.revision == 60
    assert service.history(PET) == []


def test_arrivals_extend_the_tree_instead_of_rebuilding_it(count_builds: list[int]) -> None:
    vectors = album(60)
    service = ClusterService(MemoryPetStore(), settings=EXACT)

    arrive(service, vectors, range(60))
    service.recluster(PET)

    assert count_builds == [3, 4]  # rebuilt at four items, the minimum for min_samples=3


def test_arrivals_above_exact_until_are_assigned_by_threshold() -> None:
    vectors = album(40)
    service = ClusterService(MemoryPetStore(), settings=replace(EXACT, exact_until=30))

    arrive(service, vectors, range(30))
    backends = [
        service.assign(PET, MediaId(f"m{row}"), model="clip@1", vector=vectors[row]).backend for row in range(30, 34)
    ]

    assert service.assign(PET, MediaId("m0"), model="clip@1", vector=vectors[0]).is_duplicate
    assert backends == ["faiss"] * 4


def members(service: ClusterService, cluster_id: ClusterId) -> set[MediaId]:
    clusters = service.clusters(PET).clusters
    return set(next(cluster.media_ids for cluster in clusters if cluster.cluster_id == cluster_id))


def test_corrections_hold_during_exact_arrivals() -> None:
    vectors = album(80)
    service = ClusterService(MemoryPetStore(), settings=EXACT)
    arrive(service, vectors, range(50))
    one, other = (cluster.cluster_id for cluster in service.clusters(PET).clusters[:2])
    service.merge(PET, [one, other], into=one, operation_id="op-1", by="ada")
    merged = members(service, one)

    arrive(service, vectors, range(50, 80))

    assert merged <= members(service, one)


@pytest.mark.parametrize("exact_until", [0, 10_000])
@pytest.mark.parametrize("n_merged", [5, 8, 25])
def test_later_items_stay_in_a_merged_cluster_until_undo(n_merged: int, exact_until: int) -> None:
    """Density still finds two groups, and as items arrive, the merged items become a minority of each."""
    vectors = looks(40, 40, 40, spread=0.1, dim=32)
    first = [start + row for start in (0, 40, 80) for row in range(n_merged)]
    service = ClusterService(MemoryPetStore(), settings=ClusterSettings(exact_until=exact_until))
    arrive(service, vectors, first)
    service.recluster(PET)
    of = {media: cluster.cluster_id for cluster in service.clusters(PET).clusters for media in cluster.media_ids}
    one, other = of[MediaId("m0")], of[MediaId("m40")]
    merge = service.merge(PET, [one, other], into=one, operation_id="op-1", by="ada")

    arrive(service, vectors, [row for row in range(80) if row not in first])
    service.recluster(PET)
    sizes = {cluster.cluster_id: cluster.size for cluster in service.clusters(PET).clusters}
    service.undo(PET, merge.revision, operation_id="op-2", by="ada")
    service.recluster(PET)

    assert sizes == {one: 80, of[MediaId("m80")]: n_merged}
    assert sorted(cluster.size for cluster in service.clusters(PET).clusters) == [n_merged, 40, 40]


@pytest.mark.parametrize("exact_until", [0, 10_000])
def test_unrelated_items_do_not_follow_an_item_merged_by_mistake(exact_until: int) -> None:
    """Density first puts the few unrelated items into the nearest group, and separates them once there are more."""
    rng = np.random.default_rng(5)

    def around(centre: FloatVector, n: int) -> FloatMatrix:
        return as_vectors(centre + 0.6 * as_vectors(rng.normal(size=(n, 48))))

    one, other, side = as_vectors(rng.normal(size=(3, 48)))
    stranger = as_vector(0.85 * as_vector(one + other) + np.sqrt(1 - 0.85**2) * side)
    service = ClusterService(MemoryPetStore(), settings=ClusterSettings(exact_until=exact_until))
    arrive(service, np.concatenate([around(one, 20), around(other, 20), around(stranger, 1)]), range(41))
    service.recluster(PET)
    clusters = [cluster.cluster_id for cluster in service.clusters(PET).clusters]
    service.merge(PET, clusters, operation_id="op-1", by="ada")

    for day in range(8):
        pictures = np.concatenate([around(one, 3), around(other, 3), around(stranger, 6)])
        for number, vector in enumerate(pictures):
            kind = "stranger" if number >= 6 else "known"
            service.assign(PET, MediaId(f"{kind}-{day}-{number}"), model="clip@1", vector=vector)
        service.recluster(PET)

    merged = next(cluster for cluster in service.clusters(PET).clusters if MediaId("m0") in cluster.media_ids)
    assert MediaId("m40") in merged.media_ids, "the merge placed it there"
    assert [media for media in merged.media_ids if media.startswith("stranger")] == []


def test_second_worker_extends_the_tree_that_the_first_worker_stored(redis_url: str, count_builds: list[int]) -> None:
    vectors = album(330)
    with redis.Redis.from_url(redis_url) as client:
        arrive(ClusterService(RedisPetStore(client)), vectors, range(300))
        ClusterService(RedisPetStore(client)).recluster(PET)
        assert count_builds == [300]

        worker = ClusterService(RedisPetStore(client), settings=EXACT)
        arrive(worker, vectors, range(300, 330))
        ClusterService(RedisPetStore(client)).recluster(PET)

        assert count_builds == [300]
        state = RedisPetStore(client).load(PET)
    anew = cluster_densely(vectors)
    clustered = (state.labels >= 0) & (state.origins == 1)
    pairs = state.labels[clustered][:, None] == state.labels[clustered]
    np.testing.assert_array_equal(pairs, anew.labels[clustered][:, None] == anew.labels[clustered])


@pytest.mark.slow
def test_two_workers_on_one_pet_get_the_same_result_as_one_worker(redis_url: str) -> None:
    vectors = album(180)
    with redis.Redis.from_url(redis_url) as client:
        workers = [
            ClusterService(RedisPetStore(client), settings=replace(EXACT, commit_attempts=100)) for _ in range(2)
        ]
        threads = [
            threading.Thread(target=arrive, args=(worker, vectors, range(start, 180, 2)))
            for start, worker in enumerate(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        view = workers[0].clusters(PET)
        before = groups(workers[0])
        fresh = ClusterService(RedisPetStore(client), settings=EXACT).recluster(PET)

        assert view.n_media == 180
        assert (fresh.n_moved, fresh.n_new_ids) == (0, 0)
        assert groups(workers[1]) == before


@pytest.mark.parametrize("knows", ["the same worker", "another worker"])
def test_deletion_updates_the_tree_instead_of_discarding_it(
    redis_url: str, count_builds: list[int], knows: str
) -> None:
    vectors = album(340)
    with redis.Redis.from_url(redis_url) as client:
        service = ClusterService(RedisPetStore(client))
        arrive(service, vectors, range(340))
        service.recluster(PET)
        other = service if knows == "the same worker" else ClusterService(RedisPetStore(client))

        other.delete_media(PET, [MediaId(f"m{row}") for row in (3, 100, 339)], by="ada")
        ClusterService(RedisPetStore(client)).recluster(PET)

        assert count_builds == [340]
        state = RedisPetStore(client).load(PET)
    anew = cluster_densely(np.delete(vectors, [3, 100, 339], axis=0))
    clustered = (state.labels >= 0) & (state.origins == 1)
    assert clustered.sum() > 200
    pairs = state.labels[clustered][:, None] == state.labels[clustered]
    np.testing.assert_array_equal(pairs, anew.labels[clustered][:, None] == anew.labels[clustered])


def test_tree_is_rebuilt_after_a_server_without_the_engine_deleted_items(
    monkeypatch: pytest.MonkeyPatch, count_builds: list[int]
) -> None:
    vectors, store = album(300), MemoryPetStore()
    arrive(ClusterService(store), vectors, range(300))
    ClusterService(store).recluster(PET)
    with monkeypatch.context() as without_engine:
        without_engine.setitem(sys.modules, "sploot_cluster.pet_density", None)
        ClusterService(store).delete_media(PET, [MediaId("m7")], by="ada")

    ClusterService(store).recluster(PET)

    assert count_builds == [300, 299]


def test_updated_tree_of_two_workers_matches_a_fresh_build(redis_url: str, count_builds: list[int]) -> None:
    for seed in range(2):
        rng, vectors = np.random.default_rng(seed), album(500, seed=seed)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
            workers = [ClusterService(RedisPetStore(client), settings=EXACT) for _ in range(2)]
            arrive(ClusterService(RedisPetStore(client)), vectors, range(280))
            here, come = list(range(280)), 280
            workers[0].recluster(PET)
            count_builds.clear()
            for _ in range(40):
                worker = workers[int(rng.integers(2))]
                if rng.random() < 0.7:
                    arrive(worker, vectors, [come])
                    here.append(come)
                    come += 1
                else:
                    gone = rng.choice(here, size=int(rng.integers(1, 3)), replace=False).tolist()
                    worker.delete_media(PET, [MediaId(f"m{row}") for row in gone], by="ada")
                    here = [row for row in here if row not in gone]
            workers[1].recluster(PET)
            assert count_builds == [], seed
            state = RedisPetStore(client).load(PET)

        assert list(state.media) == [f"m{row}" for row in here], seed
        anew = cluster_densely(vectors[here])
        clustered = (state.labels >= 0) & (state.origins == 1)
        pairs = state.labels[clustered][:, None] == state.labels[clustered]
        np.testing.assert_array_equal(
            pairs, anew.labels[clustered][:, None] == anew.labels[clustered], err_msg=str(seed)
        )
        np.testing.assert_array_equal(anew.labels[state.origins == 1] >= 0, True, err_msg=str(seed))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: replace(stored, body=b"nonsense"),
        lambda stored: replace(stored, body=stored.body[:-8]),
        lambda stored: replace(stored, body=stored.body.replace(b"spanning-tree/1", b"spanning-tree/9")),
        lambda stored: replace(stored, body=stored.body[: -8 * 299] + b"\xff" * 8 * 299),
    ],
    ids=["nonsense", "too short", "of another format", "not a number"],
)
def test_unreadable_stored_tree_is_rebuilt(spoil: Callable[[KeptTree], KeptTree], count_builds: list[int]) -> None:
    vectors, store = album(300), MemoryPetStore()
    arrive(ClusterService(store), vectors, range(300))
    ClusterService(store).recluster(PET)
    stored = store.kept_tree(PET)
    assert stored is not None
    store.keep_tree(PET, spoil(stored))

    reclustered = ClusterService(store).recluster(PET)

    assert count_builds == [300, 300]
    assert reclustered.n_moved == 0


def test_stored_tree_of_other_items_is_not_used(count_builds: list[int]) -> None:
    vectors, store, other = album(300), MemoryPetStore(), MemoryPetStore()
    for each, order in ((store, list(range(300))), (other, list(range(299, -1, -1)))):
        arrive(ClusterService(each), vectors, order)
        ClusterService(each).recluster(PET)
    stored = other.kept_tree(PET)
    assert stored is not None
    store.keep_tree(PET, replace(stored, born=store.load(PET).born))

    ClusterService(store).recluster(PET)

    assert count_builds == [300, 300, 300]


def test_recluster_works_when_the_store_cannot_keep_trees(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(MemoryPetStore):
        def keep_tree(self, pet: PetId, tree: KeptTree) -> None:
            raise StoreUnavailable(doing="keep the tree", problem="away")

        def kept_tree(self, pet: PetId) -> KeptTree | None:
            raise StoreUnavailable(doing="read the tree", problem="away")

    vectors = album(300)
    service = ClusterService(Forgetful())
    arrive(service, vectors, range(300))

    assert service.recluster(PET).n_media == 300
    assert [record.message for record in caplog.records] == [
        "could not read stored spanning tree",
        "could not store spanning tree",
    ]
