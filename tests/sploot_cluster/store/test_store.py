"""Tests of the contract of every pet store, followed by tests of the Redis store alone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry

from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.errors import (
    ClusterError,
    PetClaimed,
    PetTooLarge,
    RevisionConflict,
    StoreUnavailable,
    UnreadablePet,
)
from sploot_cluster.pet.models import (
    NOISE,
    Arrival,
    Change,
    ClusterCard,
    ClusterId,
    KeptTree,
    MediaId,
    Origin,
    PetId,
    PetState,
    Relabelling,
)
from sploot_cluster.pet.rows import empty_state
from sploot_cluster.pet.times import UNKNOWN
from sploot_cluster.store.cold.moves import UNUSED_MS, ColdPets
from sploot_cluster.store.keys import PETS, SORTED_PETS, PetKeys
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import PAGE_BYTES, RedisPetStore
from tasks.redis_access.embedded import EmbeddedRedis
from tests.sploot_cluster.store.cold.stores import AlwaysCold, DictVectors
from tests.support import eventually

PET = PetId(42)
MODEL, DIM = "clip@1", 4
NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


@pytest.fixture(params=["redis", "memory", "cold"])
def store(request: pytest.FixtureRequest) -> PetStore:
    """An empty store; every test runs once with each kind of store. "cold" moves vectors out before each call."""
    if request.param == "memory":
        return MemoryPetStore()
    client = request.getfixturevalue("redis_client")
    if request.param == "redis":
        return RedisPetStore(client)
    cold = ColdPets(client, DictVectors(), object_bytes=1_024)
    return cast(PetStore, AlwaysCold(RedisPetStore(client, cold=cold), cold))


# a store may leave cold pets out of a batch
hot_stores = pytest.mark.parametrize("store", ["redis", "memory"], indirect=True)


# -- changes to commit -----------------------------------------------------------------------------------------------


def arrival(state: PetState, *names: str, label: int = NOISE, dim: int = DIM) -> Change:
    """Return an arrival of items for a pet in ``state``; each vector is derived from the item's name."""
    media = tuple(
        Arrival(
            MediaId(name),
            vector(name, dim),
            ClusterId(label),
            Origin.ARRIVED if label > 0 else Origin.NOISE,
            occurred_at_ms=time(name),
        )
        for name in names
    )
    first = state.n_media == 0
    return Change(
        "arrival",
        next_cluster=state.next_cluster,
        n_at_recluster=state.n_at_recluster,
        noise_arrivals=state.noise_arrivals + len(names),
        model=MODEL if first else None,
        dim=dim if first else None,
        arrivals=media,
    )


def time(name: str) -> int:
    """Return the time of an item: none for ``c``, long ago for ``b``."""
    return {"b": -(10**13), "c": UNKNOWN}.get(name, 1_769_860_800_000 + len(name))


def vector(name: str, dim: int = DIM) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    values = np.random.default_rng(list(name.encode())).normal(size=dim)
    return (values / np.linalg.norm(values)).astype(np.float32)


def recluster(state: PetState, labels: Sequence[int], **cards: float) -> Change:
    """Return a recluster with these labels and core origins; ``cards`` are thresholds by cluster, e.g. ``c1=0.5``."""
    return Change(
        "recluster",
        next_cluster=ClusterId(max([state.next_cluster, *(label + 1 for label in labels)])),
        n_at_recluster=state.n_media,
        noise_arrivals=0,
        relabelling=Relabelling(np.array(labels, dtype=np.int32), np.full(len(labels), Origin.CORE, dtype=np.uint8)),
        clusters={
            ClusterId(int(name[1:])): ClusterCard(ClusterId(int(name[1:])), threshold, since=state.revision + 1)
            for name, threshold in cards.items()
        },
        summary={"clusters": len(cards)},
    )


def merge(state: PetState, into: int, loser: int) -> Change:
    labels = np.where(state.labels == loser, into, state.labels).astype(np.int32)
    groups = {ClusterId(id_): tuple(np.array(state.media)[state.labels == id_].tolist()) for id_ in (into, loser)}
    return Change(
        "merge",
        next_cluster=state.next_cluster,
        n_at_recluster=state.n_at_recluster,
        noise_arrivals=state.noise_arrivals,
        relabelling=Relabelling(labels, state.origins),
        clusters={ClusterId(loser): None},
        aliases={ClusterId(loser): ClusterId(into)},
        correction=Merge(state.revision + 1, f"op-{state.revision}", "ada", NOW, ClusterId(into), groups),
        by="ada",
        summary={"into": into, "names": ["é", "日"]},
    )


def with_clusters(store: PetStore) -> PetState:
    """Commit a pet with four items in two clusters and one noise item."""
    state = store.commit(store.load(PET), arrival(store.load(PET), "a", "b", "c", "d", "e"))
    return store.commit(state, recluster(state, [1, 1, 2, 2, -1], c1=0.75, c2=0.1))


def comparable(state: PetState) -> dict[str, object]:
    """Return all values of a state in comparable form."""
    return {
        name: getattr(state, name)
        for name in (
            "revision",
            "version",
            "model",
            "dim",
            "ledger",
            "next_cluster",
            "n_at_recluster",
            "noise_arrivals",
        )
    } | {
        "media": tuple(state.media),
        "rows": dict(state.rows),
        "vectors": state.vectors.tolist(),
        "labels": state.labels.tolist(),
        "origins": state.origins.tolist(),
        "occurred_at_ms": state.occurred_at_ms.tolist(),
        "clusters": dict(state.clusters),
        "aliases": dict(state.aliases),
    }


# -- the contract ----------------------------------------------------------------------------------------------------


def test_unknown_pet_is_empty_at_revision_0(store: PetStore) -> None:
    state = store.load(PET)

    assert (state.revision, state.n_media, state.model, state.dim) == (0, 0, None, None)
    assert state.vectors.shape == (0, 0)
    assert state.next_cluster == 1
    assert list(store.pets()) == []
    assert list(store.history(PET)) == []
    assert store.view(PET).clusters == ()


def test_state_returned_by_commit_equals_a_fresh_load(store: PetStore) -> None:
    state = with_clusters(store)
    state = store.commit(state, merge(state, into=1, loser=2))
    state = store.commit(state, arrival(state, "f", label=1))

    loaded = store.load(PET)

    assert comparable(loaded) == comparable(state)
    assert loaded.labels.tolist() == [1, 1, 1, 1, -1, 1]
    assert loaded.origins.tolist() == [Origin.CORE] * 5 + [Origin.ARRIVED]
    np.testing.assert_array_equal(loaded.vectors, [vector(name) for name in "abcdef"])
    assert loaded.occurred_at_ms.tolist() == [time(name) for name in "abcdef"]
    assert [column.dtype.str for column in (loaded.vectors, loaded.labels, loaded.origins)] == ["<f4", "<i4", "|u1"]
    assert loaded.clusters == {1: ClusterCard(ClusterId(1), 0.75, since=2)}
    assert loaded.aliases == {2: 1}
    assert [correction.operation_id for correction in loaded.ledger] == ["op-2"]
    assert store.pets() == [PET]


def test_load_with_an_older_state_returns_the_newest_state(store: PetStore) -> None:
    known = [store.load(PET)]
    state = store.commit(known[0], arrival(known[0], "a", "b"))
    changes: list[Callable[[PetState], Change]] = [
        lambda state: arrival(state, "c"),
        lambda state: recluster(state, [1, 1, 2], c1=0.5, c2=0.5),
        lambda state: arrival(state, "d", "e", label=2),
        lambda state: merge(state, into=1, loser=2),
        lambda state: arrival(state, "f"),
    ]
    for change in changes:
        known.append(state)
        state = store.commit(state, change(state))

    caught_up = [store.load(PET, known=old) for old in known]

    assert len(caught_up) == 6
    for loaded in caught_up:
        assert comparable(loaded) == comparable(state)


def test_load_without_changes_returns_the_known_state(store: PetStore) -> None:
    state = with_clusters(store)

    assert store.load(PET, known=state) is state


def test_state_is_unchanged_by_later_commits(store: PetStore) -> None:
    before = with_clusters(store)
    as_it_was = comparable(before)

    after = store.commit(before, arrival(before, "f", "g", label=1))
    store.commit(after, recluster(after, [3] * 7, c3=0.5))

    assert comparable(before) == as_it_was
    assert after.n_media == 7
    assert MediaId("f") not in before.rows
    with pytest.raises(ValueError, match="read-only"):
        after.vectors[0, 0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        after.labels[0] = 1


def test_commit_on_a_stale_state_changes_nothing(store: PetStore) -> None:
    stale = with_clusters(store)
    newest = store.commit(stale, arrival(stale, "f"))
    history = list(store.history(PET))

    for change in (arrival(stale, "g"), recluster(stale, [7] * 5, c7=0.5), merge(stale, into=1, loser=2)):
        with pytest.raises(RevisionConflict) as conflict:
            store.commit(stale, change)
        assert (conflict.value.expected, conflict.value.current) == (2, 3)

    assert comparable(store.load(PET)) == comparable(newest)
    assert list(store.history(PET)) == history


def test_only_one_of_two_first_commits_succeeds(store: PetStore) -> None:
    empty = store.load(PET)
    store.commit(empty, arrival(empty, "a"))

    with pytest.raises(RevisionConflict):
        store.commit(empty, arrival(empty, "b"))

    assert list(store.load(PET).media) == ["a"]


def test_one_change_may_relabel_items_and_append_new_ones(store: PetStore) -> None:
    state = with_clusters(store)
    change = replace(recluster(state, [2, 2, 2, 2, 2], c2=0.3), arrivals=arrival(state, "f", label=2).arrivals)

    state = store.commit(state, change)

    assert state.labels.tolist() == [2] * 6
    assert state.origins.tolist() == [Origin.CORE] * 5 + [Origin.ARRIVED]
    assert comparable(store.load(PET)) == comparable(state)


def test_cards_and_aliases_can_be_removed(store: PetStore) -> None:
    state = with_clusters(store)
    state = store.commit(state, merge(state, into=1, loser=2))
    back = replace(
        recluster(state, [1, 1, 2, 2, -1], c1=0.9, c2=-0.25),
        aliases={ClusterId(2): None},
    )

    state = store.commit(state, back)

    assert state.aliases == {}
    assert {id_: card.threshold for id_, card in state.clusters.items()} == {1: 0.9, 2: -0.25}
    assert comparable(store.load(PET)) == comparable(state)


def test_thousands_of_items_and_clusters_fit_into_one_commit(store: PetStore) -> None:
    n = 9_000  # a script can unpack 8,000 at once
    empty = store.load(PET)
    state = store.commit(empty, arrival(empty, *(f"m{i}" for i in range(n)), dim=2))
    change = recluster(state, list(range(1, n + 1)), **{f"c{i}": 0.5 for i in range(1, n + 1)})
    state = store.commit(state, change)

    loaded = store.load(PET)

    assert loaded.n_media == len(loaded.rows) == len(loaded.clusters) == n
    assert comparable(loaded) == comparable(state)


def test_history_lists_all_but_arrivals_newest_first(store: PetStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    state = with_clusters(store)
    state = store.commit(state, arrival(state, "f"))
    store.commit(state, merge(state, into=1, loser=2))

    history = store.history(PET)

    assert [(entry.revision, entry.kind, entry.by) for entry in history] == [
        (4, "merge", "ada"),
        (2, "recluster", "machine"),
    ]
    assert history[0].summary == {"into": 1, "names": ["é", "日"]}
    assert before <= history[1].at <= history[0].at <= datetime.now(UTC) + timedelta(seconds=1)
    assert list(store.history(PET, limit=1)) == [history[0]]
    assert list(store.history(PET, before=history[0].revision)) == [history[1]]
    assert list(store.history(PET, before=history[1].revision)) == []


def test_moved_at_changes_only_when_existing_items_move(store: PetStore) -> None:
    nobody = store.moved_at(PET)
    state = store.commit(store.load(PET), arrival(store.load(PET), "a", "b", "c", "d", "e"))
    arrived = store.moved_at(PET)
    state = store.commit(state, recluster(state, [1, 1, 2, 2, -1], c1=0.75, c2=0.1))
    reclustered = store.moved_at(PET)
    state = store.commit(state, arrival(state, "f"))
    arrived_later = store.moved_at(PET)
    store.commit(state, merge(state, into=1, loser=2))

    assert (nobody, arrived, reclustered, arrived_later, store.moved_at(PET)) == (0, 0, 2, 2, 4)


def test_pets_are_listed_in_order_and_do_not_share_items(store: PetStore) -> None:
    for pet in (11, 2, 301):
        empty = store.load(PetId(pet))
        store.commit(empty, arrival(empty, f"of-{pet}"))

    assert list(store.pets()) == [2, 11, 301]
    assert list(store.load(PetId(2)).media) == ["of-2"]


def test_item_ids_may_be_any_text(store: PetStore) -> None:
    names = ("日本語", "a b\n\x00c", "{pet:1}", "-1", "ü" * 256)
    empty = store.load(PET)
    state = store.commit(empty, arrival(empty, *names))

    assert tuple(store.load(PET).media) == names
    assert [state.rows[MediaId(name)] for name in names] == [0, 1, 2, 3, 4]


def test_view_lists_clusters_by_size_with_the_number_of_items_per_origin(store: PetStore) -> None:
    state = with_clusters(store)
    store.commit(state, arrival(state, "f", label=2))

    view = store.view(PET)

    assert (view.revision, view.model, view.dim, view.n_media, view.n_noise) == (3, MODEL, DIM, 6, 1)
    assert [(cluster.cluster_id, cluster.size, cluster.media_ids) for cluster in view.clusters] == [
        (2, 3, ("c", "d", "f")),
        (1, 2, ("a", "b")),
    ]
    assert view.clusters[0].origins == {"core": 2, "arrived": 1}
    assert (view.clusters[1].threshold, view.clusters[1].since) == (0.75, 2)
    assert view.noise == ("e",)
    assert view.aliases == {}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda state: arrival(state, "a"), "already"),
        (lambda state: arrival(state, "x", "x"), "is repeated"),
        (lambda state: arrival(state, "x", dim=5), "shape"),
        (lambda state: recluster(state, [1, 1]), "relabelling"),
        (lambda state: replace(arrival(state, "x"), model="clip@1", dim=5), "do not fit"),
        (lambda state: merge(replace(state, revision=7), into=1, loser=2), "revision"),
    ],
)
def test_change_that_does_not_fit_its_state_is_refused(
    store: PetStore, spoil: Callable[[PetState], Change], complaint: str
) -> None:
    state = with_clusters(store)

    with pytest.raises(ValueError, match=complaint):
        store.commit(state, spoil(state))

    assert comparable(store.load(PET)) == comparable(state)


def test_claimant_that_lost_a_race_blocks_other_commits(store: PetStore) -> None:
    loser = with_clusters(store)
    winner = store.commit(loser, arrival(loser, "f"))
    with pytest.raises(RevisionConflict) as conflict:
        store.commit(loser, recluster(loser, [1] * 5, c1=0.5), claimant="ada")
    assert not isinstance(conflict.value, PetClaimed)

    with pytest.raises(PetClaimed) as claimed:
        store.commit(winner, arrival(winner, "g"))
    with pytest.raises(PetClaimed):
        store.commit(winner, arrival(winner, "g"), claimant="bob")
    state = store.commit(store.load(PET), recluster(winner, [1] * 6, c1=0.5), claimant="ada")

    assert 0 < claimed.value.for_ms <= 2_000
    assert store.commit(state, arrival(state, "g")).revision == 5


def test_claim_ends_when_it_is_released(store: PetStore) -> None:
    loser = with_clusters(store)
    newest = store.commit(loser, arrival(loser, "f"))
    with pytest.raises(RevisionConflict):
        store.commit(loser, arrival(loser, "g"), claimant="ada")

    store.release(PET, "bob")
    with pytest.raises(PetClaimed):
        store.commit(newest, arrival(newest, "g"))
    store.release(PET, "ada")

    assert store.commit(newest, arrival(newest, "g")).revision == 4


def test_existing_claim_is_not_replaced(store: PetStore) -> None:
    loser = with_clusters(store)
    newest = store.commit(loser, arrival(loser, "f"))
    for name in ("ada", "bob"):
        with pytest.raises(RevisionConflict):
            store.commit(loser, arrival(loser, "g"), claimant=name)

    with pytest.raises(PetClaimed):
        store.commit(newest, arrival(newest, "g"), claimant="bob")

    assert store.commit(newest, arrival(newest, "g"), claimant="ada").revision == 4


def three_pets(store: PetStore) -> list[PetState]:
    """Commit one item to each of three pets."""
    empty = [store.load(PetId(pet)) for pet in (7, 8, 9)]
    return [store.commit(state, arrival(state, "a")) for state in empty]


@hot_stores
def test_load_many_returns_each_pet_at_its_newest_revision(store: PetStore) -> None:
    seven, eight, nine = three_pets(store)
    newer = store.commit(eight, arrival(eight, "b"))

    loaded = store.load_many([seven, eight, nine, empty_state(PET)])

    assert [state for state in loaded if isinstance(state, ClusterError)] == []
    assert loaded[0] is seven
    assert comparable(cast(PetState, loaded[1])) == comparable(newer)
    assert loaded[2] is nine
    assert comparable(cast(PetState, loaded[3])) == comparable(empty_state(PET))


@hot_stores
def test_commit_many_writes_each_pet_and_reports_lost_races(store: PetStore) -> None:
    seven, eight, nine = three_pets(store)
    newer = store.commit(eight, arrival(eight, "b"))
    new = empty_state(PET)

    done = store.commit_many([(state, arrival(state, "c", "d")) for state in (seven, eight, nine, new)])

    assert isinstance(done[1], RevisionConflict)
    assert (done[1].expected, done[1].current) == (1, 2)
    for at, pet, items in ((0, 7, "acd"), (2, 9, "acd"), (3, PET, "cd")):
        assert list(cast(PetState, done[at]).media) == list(items)
        assert comparable(store.load(PetId(pet))) == comparable(cast(PetState, done[at]))
    assert comparable(store.load(PetId(8))) == comparable(newer)
    assert store.pets() == [7, 8, 9, PET]


@hot_stores
def test_commit_many_does_not_wait_for_a_claimed_pet(store: PetStore) -> None:
    seven, eight, _ = three_pets(store)
    with pytest.raises(RevisionConflict):
        store.commit(empty_state(PetId(7)), arrival(empty_state(PetId(7)), "x"), claimant="slow")

    claimed, written = store.commit_many([(state, arrival(state, "b")) for state in (seven, eight)])

    assert isinstance(claimed, PetClaimed)
    assert cast(PetState, written).revision == 2


def test_commit_many_refuses_a_change_that_does_not_fit_its_state(store: PetStore) -> None:
    seven, eight, _ = three_pets(store)

    with pytest.raises(ValueError, match="one of 1 arrivals is in pet 8 already"):
        store.commit_many([(seven, arrival(seven, "b")), (eight, arrival(eight, "a"))])

    assert [store.load(PetId(pet)).revision for pet in (7, 8)] == [1, 1]


def test_full_pet_refuses_arrivals(redis_client: redis.Redis) -> None:
    limit, dim = 64 * 1024, 64
    fits = [f"m{i}" for i in range(limit // (4 * dim))]

    for store in (RedisPetStore(redis_client, max_vector_bytes=limit), MemoryPetStore(max_vector_bytes=limit)):
        state = store.load(PET)
        for names in (fits[:128], fits[128:]):
            state = store.commit(state, arrival(state, *names, dim=dim))
        with pytest.raises(PetTooLarge) as refused:
            store.commit(state, arrival(state, "one more", dim=dim))
        (among_many,) = store.commit_many([(state, arrival(state, "one more", dim=dim))])

        assert refused.value.n_media == 256
        assert isinstance(among_many, PetTooLarge)
        assert comparable(store.load(PET)) == comparable(state)


def test_tree_is_stored_with_its_pet(store: PetStore) -> None:
    state = store.commit(store.load(PET), arrival(store.load(PET), "a", "b"))
    assert store.kept_tree(PET) is None
    tree = KeptTree(state.born, 2, b"\x00\xff tree")

    store.keep_tree(PET, tree)

    assert store.kept_tree(PET) == tree
    assert store.load(PET).version == state.version
    assert store.commit(state, arrival(state, "c")).born == state.born


def test_smaller_tree_does_not_replace_a_larger_one(store: PetStore) -> None:
    state = store.commit(store.load(PET), arrival(store.load(PET), "a", "b", "c"))
    store.keep_tree(PET, KeptTree(state.born, 3, b"three"))

    store.keep_tree(PET, KeptTree(state.born, 2, b"two"))

    assert store.kept_tree(PET) == KeptTree(state.born, 3, b"three")


def test_tree_of_a_recreated_pet_is_not_stored(store: PetStore) -> None:
    store.keep_tree(PET, KeptTree("nobody", 2, b"of a pet that has nothing"))
    store.commit(store.load(PET), arrival(store.load(PET), "a", "b"))

    store.keep_tree(PET, KeptTree("somebody", 2, b"of the one before"))

    assert store.kept_tree(PET) is None


# -- Redis only ------------------------------------------------------------------------------------------------------


def test_load_transfers_only_new_data(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    empty = store.load(PET)
    known = store.commit(empty, arrival(empty, *(f"m{i}" for i in range(500)), dim=256))
    store.commit(known, arrival(known, "new", dim=256))

    def sent_by_server() -> int:
        return int(redis_client.info("stats")["total_net_output_bytes"])

    idle = -sent_by_server() + sent_by_server()
    before = sent_by_server()
    state = store.load(PET, known=known)
    tail = sent_by_server() - before - idle
    before = sent_by_server()
    store.load(PET)
    whole = sent_by_server() - before - idle

    assert state.n_media == 501
    assert tail < 4 * 256 + 2_000
    assert whole > 500 * 4 * 256


def test_large_pet_is_read_in_consistent_pages(redis_client: redis.Redis) -> None:
    store, dim = RedisPetStore(redis_client), 2048
    empty = store.load(PET)
    n = 2 * PAGE_BYTES // (4 * dim) + 7
    state = store.commit(empty, arrival(empty, *(f"m{i}" for i in range(n)), dim=dim))

    loaded = store.load(PET)

    np.testing.assert_array_equal(loaded.vectors, state.vectors)
    assert loaded.media == state.media


def test_load_and_commit_call_one_script_each(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    state = with_clusters(store)

    def scripts() -> int:
        return int(redis_client.info("commandstats")["cmdstat_evalsha"]["calls"])

    before = scripts()
    state = store.load(PET, known=state)
    store.commit(state, arrival(state, "f"))

    assert scripts() - before == 2


def test_load_many_and_commit_many_take_one_round_trip_each(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    states = three_pets(store)
    before = int(redis_client.info("stats")["total_reads_processed"])

    store.load_many(states)
    store.commit_many([(state, arrival(state, "b")) for state in states])

    # one read for load_many, one for commit_many, and one for the second INFO
    assert int(redis_client.info("stats")["total_reads_processed"]) - before == 3


@pytest.mark.parametrize("rising", [True, False])
def test_pets_are_listed_page_by_page_in_the_order_of_their_ids(store: PetStore, rising: bool) -> None:
    ids = [PetId(number) for number in (1, 2, 9, 10, 11, 100, 2**63 - 1)]
    for pet in reversed(ids):
        state = store.load(pet)
        store.commit(state, arrival(state, "a"))
    store.delete(PetId(9))

    pages: list[Sequence[PetId]] = []
    n, page = store.pets_in_order(None, rising=rising, limit=4)
    while page:
        pages.append(page)
        n, page = store.pets_in_order(page[-1], rising=rising, limit=4)

    expected = [pet for pet in ids if pet != 9]
    expected = expected if rising else expected[::-1]
    assert (n, pages) == (6, [expected[:4], expected[4:]])


@pytest.mark.parametrize("change", ["lost", "too few", "too many"])
def test_next_reader_repairs_the_sorted_list_of_pets(redis_client: redis.Redis, change: str) -> None:
    store = RedisPetStore(redis_client)
    three_pets(store)
    match change:
        case "lost":
            redis_client.delete(SORTED_PETS)
        case "too few":
            redis_client.zremrangebyrank(SORTED_PETS, 0, 0)
        case "too many":
            redis_client.zadd(SORTED_PETS, {f"{99:019d}": 0})

    assert store.pets_in_order(None, rising=True, limit=10) == (3, store.pets())
    assert redis_client.zcard(SORTED_PETS) == 3


def test_commit_many_lists_pets_that_are_missing_from_the_set(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    states = three_pets(store)
    redis_client.delete(PETS)

    store.commit_many([(state, arrival(state, "b")) for state in states[:2]])

    assert store.pets() == [7, 8]


def test_damaged_pet_does_not_affect_other_pets_of_the_same_call(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    states = three_pets(store)
    redis_client.delete(PetKeys.of(PetId(8)).labels)

    loaded = store.load_many(states)
    done = store.commit_many([(state, arrival(state, "b")) for state in states])

    for answers in (loaded, done):
        assert [type(answer) for answer in answers] == [PetState, UnreadablePet, PetState]


def test_damage_of_an_unchecked_pet_is_found_by_its_commit(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    states = three_pets(store)
    changed = store.commit(states[2], arrival(states[2], "b"))
    redis_client.delete(PetKeys.of(PetId(8)).labels, PetKeys.of(PetId(9)).labels)

    loaded = store.load_many(states, unchecked={PetId(8), PetId(9)})
    done = store.commit_many([(state, arrival(state, "c")) for state in (*states[:2], changed)])

    assert loaded[1] is states[1]
    for answers in (loaded, done):
        assert isinstance(answers[2], UnreadablePet)
    assert isinstance(done[1], UnreadablePet)


def test_commits_of_many_pets_with_a_lost_reply_are_applied_once(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisPetStore(redis_client)
    states = three_pets(store)
    answers = lose_one_answer(monkeypatch)

    done = store.commit_many([(state, arrival(state, "b")) for state in states])
    monkeypatch.undo()

    assert len(answers) == 1
    for state in done:
        assert isinstance(state, PetState)
        assert state.revision == 2
        assert comparable(store.load(state.pet)) == comparable(state)


def test_full_server_refuses_commits_of_many_pets(redis_client: redis.Redis, request: pytest.FixtureRequest) -> None:
    store = RedisPetStore(redis_client)
    states = three_pets(store)
    request.addfinalizer(lambda: redis_client.config_set("maxmemory", 0))
    redis_client.config_set("maxmemory", 1)

    with pytest.raises(StoreUnavailable, match="memory"):
        store.commit_many([(state, arrival(state, "b")) for state in states])

    assert [cast(PetState, state).revision for state in store.load_many(states)] == [1, 1, 1]


def test_all_columns_in_redis_have_the_same_number_of_rows(redis_client: redis.Redis) -> None:
    store, keys = RedisPetStore(redis_client), PetKeys.of(PET)
    state = with_clusters(store)
    store.commit(state, arrival(state, "f"))

    assert redis_client.hgetall(keys.rows) == {name.encode(): str(row).encode() for row, name in enumerate("abcdef")}
    assert redis_client.lrange(keys.media, 0, -1) == [name.encode() for name in "abcdef"]
    assert [len(row) for row in redis_client.lrange(keys.vectors, 0, -1)] == 6 * [4 * DIM]
    assert redis_client.strlen(keys.labels) == 6 * 4
    assert redis_client.strlen(keys.origins) == 6
    assert redis_client.hget(keys.meta, "n_media") == b"6"
    assert set(redis_client.keys("*")) <= {key.encode() for key in (PETS, SORTED_PETS, *keys)}


def test_commit_with_a_lost_reply_is_applied_once(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisPetStore(redis_client)
    state = with_clusters(store)
    answers = lose_one_answer(monkeypatch)

    after = store.commit(state, arrival(state, "f"))
    monkeypatch.undo()

    assert [answer[:2] for answer in answers] == [[b"OK", 3]]
    assert after.revision == 3
    assert comparable(store.load(PET)) == comparable(after)


def test_load_with_a_lost_reply_is_repeated(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisPetStore(redis_client)
    state = with_clusters(store)
    answers = lose_one_answer(monkeypatch)

    again = store.load(PET)

    assert len(answers) == 1
    assert comparable(again) == comparable(state)


def lose_one_answer(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Drop the next reply and break its connection; return a list to which the lost reply will be added."""
    read, lost = AbstractConnection.read_response, list[Any]()

    def read_or_lose(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = read(self, *args, **kwargs)
        if not lost:
            lost.append(answer)
            self.disconnect()
            raise redis.ConnectionError("cut")
        return answer

    monkeypatch.setattr(AbstractConnection, "read_response", read_or_lose)
    return lost


def test_recreated_pet_is_not_mistaken_for_the_known_one(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    known = with_clusters(store)
    redis_client.flushdb()
    for names in (("a", "b", "c", "d", "e"), ("f",), ("g",)):
        state = store.load(PET)
        store.commit(state, arrival(state, *names))

    with pytest.raises(RevisionConflict):
        store.commit(known, arrival(known, "h"))

    assert comparable(store.load(PET, known=known)) == comparable(store.load(PET))


def test_load_forgets_writes_that_a_failover_lost(redis_client: redis.Redis) -> None:
    store, keys = RedisPetStore(redis_client), PetKeys.of(PET)
    before = with_clusters(store)
    backup = {key: redis_client.dump(key) or b"" for key in redis_client.keys("{pet:42}:*")}
    lost = store.commit(before, arrival(before, "lost"))
    # the promoted replica lacks the last commit, and other workers continued from its state
    for key, value in backup.items():
        redis_client.restore(key, 0, value, replace=True)

    caught_up = store.load(PET, known=lost)
    truth = store.commit(before, arrival(before, "kept"))
    with pytest.raises(RevisionConflict):
        store.commit(lost, arrival(lost, "x"))
    caught_up_later = store.load(PET, known=lost)
    truth_later = store.commit(truth, arrival(truth, "another"))

    assert comparable(caught_up) == comparable(before)
    assert comparable(caught_up_later) == comparable(truth)
    assert comparable(store.load(PET, known=lost)) == comparable(truth_later)
    assert redis_client.llen(keys.media) == 7


def test_keys_of_a_pet_are_in_one_cluster_slot(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        if int(client.info("server")["redis_version"].partition(".")[0]) < 7:
            pytest.skip("before 7.0 the port of a cluster's bus cannot be chosen")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bus = {"cluster-enabled": "yes", "cluster-port": str(free.getsockname()[1])}
    with EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"} | bus) as node:
        with redis.Redis.from_url(node.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        with redis.RedisCluster(host="127.0.0.1", port=node.port) as cluster:
            store = RedisPetStore(cluster)
            known = with_clusters(store)
            state = store.commit(known, merge(known, into=1, loser=2))
            store.release(PET, "nobody")

            assert comparable(store.load(PET, known=known)) == comparable(store.load(PET)) == comparable(state)
            assert [entry.kind for entry in store.history(PET)] == ["merge", "recluster"]
            assert store.pets() == [PET]

            many = store.commit_many([(one, arrival(one, "b")) for one in three_pets(store)])
            assert [cast(PetState, one).revision for one in many] == [2, 2, 2]
            assert [cast(PetState, one).revision for one in store.load_many(cast(list[PetState], many))] == [2, 2, 2]

            cold = ColdPets(cluster, DictVectors(), later_ms=2 * UNUSED_MS)
            with_cold = RedisPetStore(cluster, cold=cold)
            assert cold.idle_ms([PET, PetId(7)]) == [0, 0]
            assert cold.move_out(PET)
            assert (cold.cold_among(store.pets()), cold.some(3), cold.lost(PET)) == ([PET], [PET], ())
            assert comparable(with_cold.load(PET)) == comparable(state)
            assert cold.bring_back(PET)
            assert comparable(store.load(PET)) == comparable(state)
            assert with_cold.delete(PET)


def test_client_that_decodes_responses_is_refused_with_a_hint(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)

    with pytest.raises(ValueError, match="decode_responses=False"):
        RedisPetStore(client)


def test_unreachable_redis_raises_store_unavailable() -> None:
    with redis.Redis(port=1, retry=Retry(NoBackoff(), 0)) as client:
        store = RedisPetStore(client)

        with pytest.raises(StoreUnavailable, match="load pet 42") as refused:
            store.load(PET)

    assert isinstance(refused.value.__cause__, redis.ConnectionError)


def test_server_out_of_memory_writes_nothing(redis_client: redis.Redis, request: pytest.FixtureRequest) -> None:
    store = RedisPetStore(redis_client)
    state = with_clusters(store)
    request.addfinalizer(lambda: redis_client.config_set("maxmemory", 0))
    redis_client.config_set("maxmemory", 1)

    with pytest.raises(StoreUnavailable, match="memory"):
        store.commit(state, arrival(state, "f"))
    with pytest.raises(StoreUnavailable, match="memory"):
        store.commit(state, recluster(state, [1] * 5, c1=0.5))

    assert comparable(store.load(PET)) == comparable(state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda client, keys: client.delete(keys.labels),
        lambda client, keys: client.lset(keys.vectors, 0, b"123"),
        lambda client, keys: client.hset(keys.meta, "format", 2),
        lambda client, keys: client.lpop(keys.media),
    ],
)
def test_load_of_an_inconsistent_pet_is_refused(
    redis_client: redis.Redis, damage: Callable[[redis.Redis, PetKeys], object]
) -> None:
    store = RedisPetStore(redis_client)
    with_clusters(store)
    damage(redis_client, PetKeys.of(PET))

    with pytest.raises(UnreadablePet, match="pet 42 cannot be read"):
        store.load(PET)


def test_scripts_are_reloaded_after_a_flush(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    state = with_clusters(store)
    redis_client.script_flush()

    state = store.commit(state, arrival(state, "f"))
    assert state.revision == 3
    redis_client.script_flush()

    (state_of_many,) = store.commit_many([(state, arrival(state, "g"))])
    assert cast(PetState, state_of_many).revision == 4
