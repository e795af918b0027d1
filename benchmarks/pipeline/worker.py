"""``dramatiq benchmarks.pipeline.worker``: tasks.worker with a store that records when each commit got its reply."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.pipeline.stamps import DIRECTORY, Stamps
from sploot_cluster.pet.models import Change, PetState
from sploot_cluster.store.redis import RedisPetStore
from tasks import worker

_stamps = Stamps(Path(os.environ[DIRECTORY]))
_commit = RedisPetStore.commit


def _noting_commit(self: RedisPetStore, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
    committed = _commit(self, state, change, claimant=claimant)
    now = time.monotonic_ns()
    for arrival in change.arrivals:
        _stamps.note(arrival.media, now)
    return committed


RedisPetStore.commit = _noting_commit  # type: ignore[method-assign]  # the only difference from tasks.worker
broker = worker.broker
