"""Tests that both stores hold equal pets, now and at every revision, after the same random changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.pet.diff import Snapshot, compare
from sploot_cluster.pet.models import Change, MediaId, PetId, PetState
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, name, take
from tests.sploot_cluster.days import Day
from tests.sploot_cluster.lineage import Witness

LIVES = 8
STEPS = 40


class Mirrored(Witness):
    """A store in memory that repeats each change in a second store, from which it never reads."""

    def __init__(self, twin: PetStore) -> None:
        super().__init__()
        self.twin = twin

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        after = super().commit(state, change, claimant=claimant)
        self.twin.commit(self.twin.load(state.pet), change)
        return after

    def replace(self, before: PetDump | None, after: PetDump, *, claimant: str | None = None) -> PetState:
        state = super().replace(before, after, claimant=claimant)
        self.twin.replace(self.twin.dump(state.pet), after)
        return state

    def quarantine(self, state: PetState, media: MediaId, why: Quarantined) -> bool:
        return super().quarantine(state, media, why) and self.twin.quarantine(self.twin.load(state.pet), media, why)

    def begin_shadow(self, state: PetState, shadow: Shadow) -> bool:
        return super().begin_shadow(state, shadow) and self.twin.begin_shadow(self.twin.load(state.pet), shadow)

    def add_to_shadow(self, state: PetState, media: MediaId, vector: FloatVector, why: Quarantined) -> bool:
        self.twin.add_to_shadow(self.twin.load(state.pet), media, vector, why)
        return super().add_to_shadow(state, media, vector, why)

    def end_shadow(self, pet: PetId) -> bool:
        return self.twin.end_shadow(pet) and super().end_shadow(pet)


def comparable(snapshot: Snapshot) -> tuple[Any, ...]:
    return (list(snapshot.media), snapshot.labels.tolist(), snapshot.origins.tolist(), dict(snapshot.aliases))


def pasts(store: PetStore) -> list[Snapshot]:
    """Return the pet at every revision."""
    past = store.past(PET)
    assert past.since == 0
    return [past.at(revision) for revision in range(past.state.revision + 1)]


def facts(store: PetStore) -> dict[str, Any]:
    """Return all stored data of the pet, except values that each store generates itself."""
    dump, shadow = store.dump(PET), store.shadow(PET)
    return {
        "media": list(dump.state.media),
        "labels": dump.state.labels.tolist(),
        "origins": dump.state.origins.tolist(),
        "clusters": dict(dump.state.clusters),
        "aliases": dict(dump.state.aliases),
        "ledger": dump.state.ledger,
        "numbers": (dump.state.revision, dump.state.relabelled_at, dump.past_from, dump.ingested, dump.overflowed),
        "model": (dump.state.model, dump.state.dim),
        "arrived": dump.arrived.tolist(),
        "kinds": [(entry.revision, entry.kind, dict(entry.summary)) for entry in dump.history],
        "quarantine": dict(dump.quarantine),
        "tally": store.tally(PET),
        "shadow": None if shadow is None else replace(shadow, vectors={}),
        "only in shadow": list(store.only_in_shadow(PET)),
        "totals": store.totals(),
        "summary": store.summaries(store.pets()),
    }


@pytest.mark.parametrize("seed", range(LIVES))
def test_random_changes_leave_equal_pets_in_both_stores(redis_client: redis.Redis, seed: int) -> None:
    twin = RedisPetStore(redis_client)
    mirrored = Mirrored(twin)
    day = Day(seed, upheavals=True, store=mirrored)
    # frequent enough that deletions and switches come before the first recluster in most runs
    day.deeds |= {day.delete: 8, day.switch: 4, day.recluster: 4}

    for step in range(STEPS):
        happened = day.go_on()
        if twin.load(PET).revision:
            assert facts(twin) == facts(mirrored), f"seed {seed}, step {step}: {happened}"

    ours, theirs = pasts(mirrored), pasts(twin)
    assert [comparable(snapshot) for snapshot in theirs] == [comparable(snapshot) for snapshot in ours]
    assert [compare(*pair) for pair in pairwise(theirs)] == [compare(*pair) for pair in pairwise(ours)]


def story(store: PetStore, deeds: Sequence[str]) -> tuple[list[tuple[Any, ...]], tuple[Any, ...]]:
    """Change a pet with two subjects; return it at every revision, and after a restore of revision 6."""
    service = ClusterService(store)
    take(service, 0, range(6))
    take(service, 1, range(6))
    for deed in deeds:
        match deed:
            case "delete":
                service.delete_media(PET, [store.load(PET).media[0]], by="eve")
            case "recluster":
                service.recluster(PET)
            case "dismiss":
                service.dismiss(PET, [name(1, 5)], operation_id=deed, by="ada")
            case "switch":
                service.begin_model(PET, "clip@2", 16, by="eve")
                state = store.load(PET)
                for row, item in enumerate(state.media):
                    service.assign(PET, item, model="clip@2", vector=state.vectors[row])
                service.switch_model(PET, service.preview_switch(PET).token, by="eve")
    past = [comparable(snapshot) for snapshot in pasts(store)]
    service.restore(PET, 6, operation_id="restore", by="ada")
    return past, comparable(Snapshot.of(store.load(PET)))


@pytest.mark.parametrize(
    "deeds",
    [
        ("delete",),
        ("delete", "recluster"),
        ("delete", "delete", "dismiss"),
        ("switch",),
        ("switch", "dismiss"),
        ("switch", "delete", "recluster"),
        ("delete", "switch", "recluster"),
        ("recluster", "delete", "switch", "delete", "recluster"),
    ],
    ids="-".join,
)
def test_revisions_before_the_first_relabelling_are_stored(store: PetStore, deeds: Sequence[str]) -> None:
    past, restored = story(store, deeds)

    assert past[0] == ([], [], [], {})
    assert len(past[5][0]) == 5 - deeds.count("delete")
    assert restored[0] == past[-1][0]
