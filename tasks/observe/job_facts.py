"""Facts that the running job records for its metrics and its final log line.

The middleware starts a record of facts before a job and reads it after the job; actors add facts that only they know.
The records of a batch's jobs are nested: they are started one after another and closed in reverse order.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from sploot_cluster.errors import InvalidInput

NO_BACKEND = "none"


@dataclass(slots=True)
class JobFacts:
    """Facts about one attempt.

    Attributes:
        pet_id: the pet that the job is about, once known.
        backend: the engine backend that ran; ``none`` if the job reached no engine.
        noise_count: number of items that a recluster left without a cluster.
        n_media: number of items of the pet that was reclustered.
        attempt: number of the attempt, from 1.
        started_s: start time by ``time.perf_counter``; for a job in a batch, the start time of the batch.
        refusal: why the request did not fit the pet, so that nothing was changed, or None if it was not refused.
        outer: the facts of the previous job in its batch, or None outside a batch and for the first job in one.
    """

    pet_id: int | None = None
    backend: str = NO_BACKEND
    noise_count: int | None = None
    n_media: int = 0
    attempt: int = 1
    started_s: float = field(default_factory=time.perf_counter)
    refusal: InvalidInput | None = None
    outer: JobFacts | None = None


_current: ContextVar[JobFacts | None] = ContextVar("job_facts", default=None)


def open_job(attempt: int) -> JobFacts:
    """Start the record of facts for the job that this thread is about to run, and return it."""
    facts = JobFacts(attempt=attempt, outer=_current.get())
    _current.set(facts)
    return facts


def current_job() -> JobFacts:
    """Return the facts of the job that this thread runs; outside a job, return facts that are never read."""
    return _current.get() or JobFacts()


def close_job() -> JobFacts | None:
    """End the record of the job that just ended, and return it, or None if there is none."""
    facts = _current.get()
    if facts is not None:
        _current.set(facts.outer)
    return facts
