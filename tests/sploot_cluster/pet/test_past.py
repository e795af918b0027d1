"""Tests that every stored revision can be shown, compared and restored, in Redis and in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from sploot_cluster import ClusterService
from sploot_cluster.errors import UnknownRevision, UnreadablePet
from sploot_cluster.pet import past
from sploot_cluster.pet.diff import MovedItem, Snapshot, compare
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, Origin, PetState
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, grouped, name, names, take

ONE, TWO, THREE = ClusterId(1), ClusterId(2), ClusterId(3)


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service with clusters 1, 2 and 3 of eight items each, at revision 25."""
    return grouped(store, 3, range(8))


def where(snapshot: Snapshot | PetState) -> dict[MediaId, int]:
    return dict(zip(snapshot.media, snapshot.labels.tolist(), strict=True))


def busy(service: ClusterService, store: PetStore) -> list[PetState]:
    """Make corrections and arrivals, and return every state."""
    states = [store.load(PET)]
    deeds = [
        lambda: service.merge(PET, [ONE, TWO], operation_id="1", by="ada"),
        lambda: take(service, 0, range(20, 21)),
        lambda: service.split(PET, THREE, [name(2, 0), name(2, 1)], operation_id="2", by="ada"),
        lambda: take(service, 2, range(20, 21)),
        lambda: service.dismiss(PET, [name(0, 0)], operation_id="3", by="ada"),
        lambda: service.recluster(PET),
        lambda: service.exclude(PET, THREE, [name(2, 5)], operation_id="4", by="ada"),
        lambda: service.undo(PET, 26, operation_id="5", by="ada"),
        lambda: service.recluster(PET),
    ]
    for deed in deeds:
        deed()  # type: ignore[no-untyped-call]
        states.append(store.load(PET))
    return states


# -- looking back ----------------------------------------------------------------------------------------------------


def test_every_stored_revision_equals_the_state_at_that_time(service: ClusterService, store: PetStore) -> None:
    states = busy(service, store)

    pet_past = store.past(PET)

    assert pet_past.since == 0
    for state in states:
        then = pet_past.at(state.revision)
        assert where(then) == where(state)
        assert then.origins.tolist() == state.origins.tolist()
    assert where(pet_past.at(10)) == dict.fromkeys([*sorted(names(0, range(8))), name(1, 0), name(1, 1)], NOISE)
    assert where(pet_past.at(0)) == {}


def test_unknown_revision_is_refused(service: ClusterService) -> None:
    with pytest.raises(UnknownRevision, match="the newest is 25"):
        service.at(PET, 26)


def test_revision_older_than_the_stored_past_is_refused(
    service: ClusterService, store: PetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store.redis", "store.memory"):
        monkeypatch.setattr(f"sploot_cluster.{module}.KEPT", 3)

    states = busy(service, store)

    pet_past = store.past(PET)
    stored = [state for state in states if state.revision >= pet_past.since]
    assert len(pet_past.overwritten) == 3
    assert 1 < len(stored) < len(states)
    for state in stored:
        assert where(pet_past.at(state.revision)) == where(state)
    with pytest.raises(UnknownRevision, match=f"the oldest is {pet_past.since}") as refused:
        pet_past.at(pet_past.since - 1)
    assert refused.value.field == "revision"


def test_unreadable_past_is_reported(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    for subject in range(2):
        take(ClusterService(store), subject, range(8))
    ClusterService(store).recluster(PET)
    redis_client.delete(PetKeys.of(PET).overwritten)
    redis_client.xadd(PetKeys.of(PET).overwritten, {"was": b"\x02?"}, id="17-0")

    with pytest.raises(UnreadablePet, match="the overwritten labels of revision 17 have format"):
        store.past(PET)


CLUSTERS = st.integers(1, 2**31 - 1).map(ClusterId)

overwritten = st.builds(
    lambda rows, seed, aliases: past.Overwritten(
        7,
        np.array(sorted(rows), dtype=np.uint32),
        np.random.default_rng(seed).integers(-1, 2**31 - 1, size=len(rows), dtype=np.int32),
        np.random.default_rng(seed).integers(0, 255, size=len(rows), dtype=np.uint8),
        aliases,
    ),
    st.sets(st.integers(0, 2**32 - 1), max_size=50),
    st.integers(0, 2**32),
    st.dictionaries(CLUSTERS, st.none() | CLUSTERS, max_size=5),
)


@given(overwritten)
def test_record_of_overwritten_labels_survives_encoding(one: past.Overwritten) -> None:
    again = past.load(7, past.dump(one))

    assert [column.tolist() for column in (again.rows, again.labels, again.origins)] == [
        column.tolist() for column in (one.rows, one.labels, one.origins)
    ]
    assert again.aliases == one.aliases


PACKED = past.dump(
    past.Overwritten(7, np.arange(3, dtype=np.uint32), np.ones(3, np.int32), np.ones(3, np.uint8), {ONE: TWO})
)


@pytest.mark.parametrize("stored", [b"", b"\x01no zlib", b"\x02", PACKED[:9], PACKED[:-1]])
def test_damaged_record_of_overwritten_labels_is_refused(stored: bytes) -> None:
    with pytest.raises(ValueError, match="the overwritten labels of revision 7"):
        past.load(7, stored)


# -- comparing -------------------------------------------------------------------------------------------------------


def snapshot(labels: str, *, revision: int | None = None, absorbed: str = "") -> Snapshot:
    """Return a snapshot of the items a, b, c, … in these clusters, e.g. ``"1 1 2 -"``; ``-`` is noise."""
    values = [NOISE if label == "-" else int(label) for label in labels.split()]
    media = [MediaId(chr(ord("a") + row)) for row in range(len(values))]
    origins = [Origin.ABSORBED if item in absorbed else Origin.CORE for item in media]
    return Snapshot(revision, media, np.array(values, dtype=np.int32), np.array(origins, dtype=np.uint8))


def test_diff_lists_moved_items_and_kept_new_and_ended_ids() -> None:
    diff = compare(snapshot("1 1 1 2 2 3 3 3 -", revision=4), snapshot("1 1 - 1 1 3 9 9 3 -", revision=9))

    assert (diff.from_revision, diff.to_revision) == (4, 9)
    assert {(move.media_id, move.before, move.after) for move in diff.moved} == {
        ("c", 1, None),
        ("d", 2, 1),
        ("e", 2, 1),
        ("g", 3, 9),
        ("h", 3, 9),
        ("i", None, 3),
        ("j", None, None),
    }
    assert (diff.n_same, diff.n_moved, diff.n_new_noise, diff.n_from_noise, diff.n_arrived) == (3, 4, 1, 1, 1)
    assert (diff.merged, diff.split) == ({2: 1}, {9: 3})
    assert (diff.kept_ids, diff.new_ids, diff.ended_ids) == ((1, 3), (9,), (2,))


def test_cluster_whose_items_were_scattered_is_not_listed_as_merged() -> None:
    diff = compare(snapshot("1 1 2 2 2 2"), snapshot("1 1 3 3 4 -"))

    assert diff.merged == {}
    assert diff.split == {3: 2, 4: 2}


def test_absorbed_items_do_not_affect_the_successor_of_a_cluster() -> None:
    diff = compare(snapshot("5 5 5 5", absorbed="bcd"), snapshot("1 2 2 2"))

    assert diff.merged == {5: 1}


def test_backward_diff_lists_items_that_had_not_arrived_yet() -> None:
    diff = compare(snapshot("1 1 2"), snapshot("1"))

    assert [(move.before, move.after) for move in diff.moved] == [(1, None), (2, None)]
    assert diff.moved[0] == MovedItem(MediaId("b"), ONE, None)


# -- restoring -------------------------------------------------------------------------------------------------------


def test_restore_brings_back_the_labels_and_ids_of_the_revision(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET)
    merged = service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")
    service.undo(PET, merged.revision, operation_id="2", by="ada")
    take(service, 1, range(30, 34))
    service.recluster(PET)

    restored = service.restore(PET, before.revision, operation_id="3", by="bob")

    now = store.load(PET)
    assert now.labels[: before.n_media].tolist() == before.labels.tolist()
    assert (restored.n_held, restored.n_later, restored.restored) == (0, 4, before.revision)
    assert restored.revision == now.revision == service.history(PET)[0].revision
    assert [(entry.kind, entry.by) for entry in service.history(PET, limit=1)] == [("restore", "bob")]


def test_past_ignores_a_commit_made_while_it_is_read(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisPetStore(redis_client)
    service = grouped(store, 2, range(8))
    before, get = store.load(PET), redis_client.get

    def be_overtaken(key: str) -> Any:  # called after the state was read, and before the rest
        monkeypatch.setattr(redis_client, "get", get)
        take(service, 0, range(20, 21))
        service.dismiss(PET, [name(0, 0), name(0, 20)], operation_id="1", by="ada")
        return get(key)

    monkeypatch.setattr(redis_client, "get", be_overtaken)
    past = store.past(PET)

    assert redis_client.get == get  # another commit came first
    assert past.state.revision == before.revision
    assert past.at(before.revision).labels.tolist() == before.labels.tolist()
    with pytest.raises(UnknownRevision):
        past.at(before.revision + 1)


def test_items_of_a_cluster_newer_than_the_restored_revision_become_noise(
    service: ClusterService, store: PetStore
) -> None:
    before = store.load(PET)
    take(service, 5, range(8))
    take(service, 0, range(30, 31))
    service.recluster(PET)
    then = where(store.load(PET))

    restored = service.restore(PET, before.revision, operation_id="1", by="bob")

    now = where(store.load(PET))
    assert NOISE not in {then[item] for item in names(5, range(8))}
    assert {now[item] for item in names(5, range(8))} == {NOISE}
    assert now[name(0, 30)] == now[name(0, 0)] == then[name(0, 0)]
    assert (restored.n_later, restored.n_held) == (9, 0)


def test_restore_keeps_corrections_in_force(service: ClusterService, store: PetStore) -> None:
    before = store.view(PET).revision
    service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    service.dismiss(PET, [name(2, 0)], operation_id="2", by="ada")

    restored = service.restore(PET, before, operation_id="3", by="bob")

    now = where(store.load(PET))
    assert {now[item] for item in names(0, range(8)) | names(1, range(8))} == {1}
    assert now[name(2, 0)] == NOISE
    assert (restored.n_held, restored.kept) == (9, "constraints kept 2 of 2")


def test_restore_keeps_ids_of_clusters_that_users_made_later(service: ClusterService, store: PetStore) -> None:
    before = store.view(PET).revision
    moved, remaining = names(0, range(5)), names(0, range(5, 8))
    split = service.split(PET, ONE, sorted(moved), operation_id="1", by="ada")
    merged = service.merge(PET, [TWO, ClusterId(3)], into=ClusterId(3), operation_id="2", by="ada")

    service.restore(PET, before, operation_id="3", by="bob")

    now = where(store.load(PET))
    assert ({now[item] for item in moved}, {now[item] for item in remaining}) == ({split.cluster}, {ONE})
    assert {now[item] for item in names(1, range(8)) | names(2, range(8))} == {merged.cluster}
    assert store.view(PET).aliases == {TWO: 3}


def test_repeated_restore_operation_takes_effect_once(service: ClusterService, store: PetStore) -> None:
    before = store.view(PET).revision
    split = service.split(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    service.undo(PET, split.revision, operation_id="2", by="ada")
    first = service.restore(PET, before, operation_id="3", by="bob")
    service.split(PET, ONE, [name(0, 1)], operation_id="4", by="ada")

    second = service.restore(PET, before, operation_id="3", by="bob")

    assert (second.revision, second.is_duplicate) == (first.revision, True)
    assert store.view(PET).revision == first.revision + 1


def test_repeated_restore_is_recognised_after_many_corrections(service: ClusterService, store: PetStore) -> None:
    """This happens, for example, if a worker is suspended for a day and then runs its message again."""
    before = store.view(PET).revision
    first = service.restore(PET, before, operation_id="r", by="bob")
    for number in range(60):
        dismissed = service.dismiss(PET, [name(0, 0)], operation_id=f"d{number}", by="ada")
        service.undo(PET, dismissed.revision, operation_id=f"u{number}", by="ada")

    second = service.restore(PET, before, operation_id="r", by="bob")

    assert (second.revision, second.is_duplicate) == (first.revision, True)


def test_unknown_revision_cannot_be_restored(service: ClusterService, store: PetStore) -> None:
    with pytest.raises(UnknownRevision):
        service.restore(PET, 99, operation_id="1", by="bob")

    assert store.view(PET).revision == 25
