"""The benchmark's worker, ``dramatiq benchmarks.pipeline.worker``.

It is ``tasks.worker`` with a store that records when the reply to each commit arrived.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pipeline.stamps import DIRECTORY, Stamps
from sploot_cluster.errors import ClusterError
from sploot_cluster.pet.models import Change, PetState
from sploot_cluster.store.redis import RedisPetStore
from tasks import worker

_stamps = Stamps(Path(os.environ[DIRECTORY]))
_commit, _commit_many = RedisPetStore.commit, RedisPetStore.commit_many


def _noting_commit(self: RedisPetStore, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
    committed = _commit(self, state, change, claimant=claimant)
    now = time.monotonic_ns()
    for arrival in change.arrivals:
        _stamps.note(arrival.media, now)
    return committed


def _noting_commits(
    self: RedisPetStore, changes: Sequence[tuple[PetState, Change]]
) -> Sequence[PetState | ClusterError]:
    committed = _commit_many(self, changes)
    now = time.monotonic_ns()
    for (_, change), after in zip(changes, committed, strict=True):
        if isinstance(after, PetState):
            for arrival in change.arrivals:
                _stamps.note(arrival.media, now)
    return committed


RedisPetStore.commit_many = _noting_commits  # type: ignore[method-assign]
RedisPetStore.commit = _noting_commit  # type: ignore[method-assign]  # these are the only differences from tasks.worker
broker = worker.broker
