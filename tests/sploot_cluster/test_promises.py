"""Random days of a pet: media arrive, people correct and change their minds, reclusters run. Nothing said is lost."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput
from sploot_cluster.memory_store import MemoryPetStore
from sploot_cluster.models import ClusterId, Merge, PetState, Split
from tests.sploot_cluster.albums import PET, take
from tests.sploot_cluster.oracle import demands

STEPS = 70


class Day:
    """One pet, and the next thing that happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = MemoryPetStore()
        self.service = ClusterService(self.store)
        self.n_pictures = self.n_operations = 0

    def go_on(self) -> str:
        deed = self.random.choices(
            (self.arrive, self.merge, self.split, self.undo, self.recluster), weights=(50, 15, 15, 10, 10)
        )[0]
        self.n_operations += 1
        try:
            deed(self.store.load(PET), str(self.n_operations))
        except InvalidInput:
            return f"{deed.__name__} refused"
        return deed.__name__

    def arrive(self, state: PetState, operation_id: str) -> None:
        for _ in range(5):
            take(self.service, self.random.randrange(4), range(self.n_pictures, self.n_pictures + 1))
            self.n_pictures += 1

    def merge(self, state: PetState, operation_id: str) -> None:
        ids = self.random.sample(sorted(state.clusters), min(len(state.clusters), self.random.choice([2, 2, 3])))
        self.service.merge(PET, ids, operation_id=operation_id, by="ada")

    def split(self, state: PetState, operation_id: str) -> None:
        cluster = self.random.choice(sorted(state.clusters) or [ClusterId(1)])
        media = [medium for medium in state.media if state.labels[state.rows[medium]] == cluster]
        moved = self.random.sample(media, self.random.randrange(len(media) // 2 + 2)) if media else []
        self.service.split(PET, cluster, moved, operation_id=operation_id, by="ada")

    def undo(self, state: PetState, operation_id: str) -> None:
        revisions = [correction.revision for correction in state.ledger] or [1]
        self.service.undo(PET, self.random.choice(revisions), operation_id=operation_id, by="ada")

    def recluster(self, state: PetState, operation_id: str) -> None:
        reclustered = self.service.recluster(PET)
        assert reclustered.constraints_kept == reclustered.constraints
        if state.n_media:
            again = self.service.recluster(PET)
            assert (again.n_moved, again.n_new_ids, again.n_retired_ids) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_that_people_said_is_ever_broken(seed: int) -> None:
    day = Day(seed)
    ids_ever: set[int] = set()

    for step in range(STEPS):
        deed = day.go_on()

        state = day.store.load(PET)
        told = dict(zip(state.media, state.labels.tolist(), strict=True))
        context = f"seed {seed}, step {step}: {deed}"
        assert demands(state.ledger).broken(told) == [], context
        assert set(np.unique(state.labels).tolist()) - {-1} == set(state.clusters), context
        assert not state.aliases.keys() & state.clusters.keys(), context
        assert set(state.aliases.values()) <= state.clusters.keys(), context
        assert state.next_cluster > max([0, *ids_ever, *state.clusters]), context
        ids_ever.update(state.clusters)
        assert ((state.labels == -1) == (state.standings == 0)).all(), context
        if state.ledger and state.ledger[-1].revision == state.revision:
            match state.ledger[-1]:
                case Merge(into=into, groups=groups):
                    assert {told[medium] for media in groups.values() for medium in media} == {into}, context
                case Split(source=source, created=created, moved=moved, remaining=remaining):
                    assert {told[medium] for medium in moved} == {created}, context
                    assert {told[medium] for medium in remaining} == {source}, context
