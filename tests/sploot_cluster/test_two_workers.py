"""Tests of two workers on one pet in Redis: if one commits right before the other, both updates are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, RevisionConflict, StalePreview
from sploot_cluster.pet.models import Change, ClusterId, MediaId, PetState
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, name, take
from tests.sploot_cluster.oracle import demands

ACTIONS = ("arrive", "merge", "split", "exclude", "dismiss", "undo", "recluster", "restore", "delete", "apply")
actions = st.tuples(st.sampled_from(ACTIONS), st.integers(0, 10_000))


class OvertakenStore(RedisPetStore):
    """A store that lets another writer commit once, right before its next write."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.before: Callable[[], None] | None = None

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        self._let_overtake()
        return super().commit(state, change, claimant=claimant)

    def replace(self, before: PetDump | None, after: PetDump, *, claimant: str | None = None) -> PetState:
        self._let_overtake()
        return super().replace(before, after, claimant=claimant)

    def _let_overtake(self) -> None:
        before, self.before = self.before, None
        if before is not None:
            before()


class Pair:
    """Two workers with separate caches, and the items and operations that must exist according to their results."""

    def __init__(self, client: redis.Redis) -> None:
        client.flushall()
        self.slow = OvertakenStore(client)
        self.workers = (ClusterService(self.slow), ClusterService(RedisPetStore(client)))
        self.media: set[MediaId] = set()
        self.operations: set[str] = set()
        self.n_deeds = 0

    def do(self, worker: ClusterService, deed: str, seed: int) -> None:
        self.n_deeds += 1
        operation_id, number = f"op-{self.n_deeds}", 100 + self.n_deeds
        request: dict[str, Any] = {"operation_id": operation_id, "by": "ada"}
        state = self.slow.load(PET)
        clusters = sorted(state.clusters)
        cluster = clusters[seed % len(clusters)] if clusters else ClusterId(1)
        inside = [item for item in state.media if state.labels[state.rows[item]] == cluster]
        media = inside[seed % 3 : seed % 3 + 1 + seed % 2]
        revisions = [correction.revision for correction in state.ledger] or [1]
        act: dict[str, Callable[[], object]] = {
            "arrive": lambda: take(worker, seed % 3, range(number, number + 1)),
            "merge": lambda: worker.merge(PET, clusters[:2], **request),
            "split": lambda: worker.split(PET, cluster, media, **request),
            "exclude": lambda: worker.exclude(PET, cluster, media, **request),
            "dismiss": lambda: worker.dismiss(PET, media, **request),
            "undo": lambda: worker.undo(PET, revisions[seed % len(revisions)], **request),
            "recluster": lambda: worker.recluster(PET),
            "restore": lambda: worker.restore(PET, 1 + seed % state.revision, **request),
            "delete": lambda: worker.delete_media(PET, media, by="eve"),
            "apply": lambda: worker.apply(PET, worker.preview(PET).token, by="bob"),
        }
        try:
            _as_the_queue_does(act[deed])
        except (InvalidInput, StalePreview):
            return  # the other worker has changed the state for which the operation was intended
        match deed:
            case "arrive":
                self.media.add(name(seed % 3, number))
            case "delete":
                self.media -= set(media)
            case "merge" | "split" | "exclude" | "dismiss" | "undo":
                self.operations.add(operation_id)


def _as_the_queue_does(act: Callable[[], object]) -> None:
    while True:
        try:
            act()
        except RevisionConflict:
            continue
        return


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(actions, actions), min_size=2, max_size=5))
def test_change_that_lost_a_race_is_planned_again_without_any_loss(
    redis_client: redis.Redis, days: list[tuple[tuple[str, int], tuple[str, int]]]
) -> None:
    pair = Pair(redis_client)
    one, other = pair.workers
    for subject in range(3):
        pair.media |= {assigned.media for assigned in take(one, subject, range(6))}
    one.recluster(PET)

    for mine, theirs in days:
        pair.slow.before = lambda theirs=theirs: pair.do(other, *theirs)
        pair.do(one, *mine)

        state = RedisPetStore(redis_client).load(PET)
        cluster_of = dict(zip(state.media, state.labels.tolist(), strict=True))
        context = f"{mine} overtaken by {theirs}"
        assert set(state.media) == pair.media, context
        assert {correction.operation_id for correction in state.ledger} == pair.operations, context
        assert demands(state.ledger).broken(cluster_of, state.aliases) == [], context
        assert pair.slow.tally(PET).tally.is_conserved, context
        for worker in pair.workers:
            memory = worker.why(PET, state.media[0])
            assert memory.revision == state.revision, context
