"""What the running job notes about itself, for the metrics and the log line that end it.

The middleware opens the facts before a job and reads them after it; actors fill in what only they know.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

NO_BACKEND = "none"


@dataclass(slots=True)
class JobFacts:
    """Facts of one attempt.

    Attributes:
        pet_id: the pet it is about, once that is known.
        backend: what computed; ``none`` for a job that reached no engine.
        noise_count: media that a recluster left without a cluster.
        attempt: which one it is, from 1.
        started_s: when it began, on the clock of ``time.perf_counter``.
    """

    pet_id: int | None = None
    backend: str = NO_BACKEND
    noise_count: int | None = None
    attempt: int = 1
    started_s: float = field(default_factory=time.perf_counter)


_current: ContextVar[JobFacts | None] = ContextVar("job_facts", default=None)


def open_job(attempt: int) -> None:
    """Begin the facts of the job that this thread is about to run."""
    _current.set(JobFacts(attempt=attempt))


def current_job() -> JobFacts:
    """The facts of the job that this thread runs. Outside a job, facts that nobody will read."""
    return _current.get() or JobFacts()


def close_job() -> JobFacts | None:
    """The facts of the job that just ended; None if none was begun."""
    facts = _current.get()
    _current.set(None)
    return facts
