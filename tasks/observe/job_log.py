"""Middleware that counts every attempt of a job and writes its final log line."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import dramatiq
from dramatiq.broker import Broker, MessageProxy
from dramatiq.middleware import TimeLimitExceeded

from broker import DeadLetter, NotDoneInBatch
from sploot_cluster.errors import (
    AlreadyMade,
    AlreadyUndone,
    InvalidInput,
    StaleRevision,
    UnknownCluster,
    UnknownMedia,
    UnknownPet,
    UnknownRevision,
)
from sploot_cluster.pet.models import Assigned
from tasks.contracts import CLUSTER_EMBEDDING, QUEUE_OF, RECLUSTER_PET
from tasks.observe.exposition import serve_metrics
from tasks.observe.job_facts import NO_BACKEND, JobFacts, close_job, open_job
from tasks.observe.log_stream import release_all
from tasks.observe.logs import FOLLOWED, pet_id_of
from tasks.observe.metrics import (
    OPERATIONS,
    UNCOUNTED_QUEUES,
    JobMetrics,
    Outcome,
    Refusal,
    job_metrics,
    observe_all,
)
from tasks.queue_ops.dead_letters import message_id_of, pet_of
from tasks.trace_context import current_traceparent, trace_id_of, traceparent_of

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

logger = logging.getLogger("sploot-cluster.queue")

# Reasons for which a message becomes a dead letter before any actor runs it, so that no attempt is counted.
NEVER_RAN: Final = frozenset({"undecodable", "wrong-queue", "unknown-actor", "oversize", "not-enqueued"})


class NoiseNotes(Protocol):
    """An object that records how much noise each recluster left, such as a ``NoiseWatch``."""

    def note(self, n_noise: int, *, pet_id: int | None, n_media: int) -> object: ...


class Counted(Protocol):
    """An object that counts attempts of jobs, such as a ``KeepHistory``."""

    def count(self, queue: str, *, is_success: bool, duration_s: float) -> None: ...


class _Series(NamedTuple):
    """The series, one per metric, that count an attempt."""

    jobs: Counter
    by_actor: Counter
    durations: Histogram
    waits: Histogram


class _OfBatch(threading.local):
    """The counts and log facts that this thread has yet to write for the ended jobs of its batch, or for a single job.

    One write for each series takes far less time than one for each job.

    Attributes:
        counts: how often each counter is to be increased.
        observed: the values that each histogram is to observe.
        record: the attributes that log records of its jobs have in common; None before the first.
    """

    def __init__(self) -> None:
        self.counts: dict[Counter, int] = {}
        self.observed: dict[Histogram, list[float]] = {}
        self.record: dict[str, Any] | None = None

    def count(self, counter: Counter) -> None:
        self.counts[counter] = self.counts.get(counter, 0) + 1

    def observe(self, histogram: Histogram, value: float) -> None:
        self.observed.setdefault(histogram, []).append(value)

    def write(self) -> None:
        counts, observed = self.counts, self.observed
        self.counts, self.observed, self.record = {}, {}, None
        for counter, n in counts.items():
            counter.inc(n)
        for histogram, values in observed.items():
            observe_all(histogram, values)


class RecordJobs(dramatiq.Middleware):
    """Middleware that counts and logs every attempt of a job. A failure in it never affects the job.

    Each job of a batch is counted and logged, with the duration of the batch. A job that its batch did not
    mark as done is counted when it has run individually.

    Args:
        metrics: the counters; by default those of this process.
        history: also counts every attempt.
        clock: returns seconds since the epoch, to compute waiting times.
    """

    def __init__(
        self,
        *,
        noise: NoiseNotes,
        metrics: JobMetrics | None = None,
        history: Counted | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._noise, self._history, self._clock = noise, history, clock
        self._metrics = metrics or job_metrics()
        self._series: dict[tuple[str, Outcome, str], _Series] = {}
        self._of_batch = _OfBatch()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        # read before the job runs: after a failure, the Retries middleware may already have increased it
        if open_job(message.options.get("retries", 0) + 1).outer is None:
            self._metrics.in_progress.inc()

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        facts = self._close()
        if facts is None:
            return
        try:
            if not isinstance(exception, NotDoneInBatch):  # not an attempt, because the job now runs individually
                self._record(message, facts, result, exception)
        finally:
            self._end(facts)

    def _end(self, facts: JobFacts) -> None:
        """Write the counts and lines of a batch after its last job, or those of a single job."""
        if facts.outer is None:
            self._of_batch.write()
            release_all()

    def _record(self, message: MessageProxy, facts: JobFacts, result: Any, exception: BaseException | None) -> None:
        """Log and count an attempt."""
        if isinstance(result, Assigned):
            facts.backend = result.backend
        duration_s = time.perf_counter() - facts.started_s
        age_s = self._age_s(message)
        operation = OPERATIONS.get(message.actor_name)
        if facts.refusal is not None and operation is not None:
            self._log(message, facts, "refused", duration_s, age_s, facts.refusal)
            self._of_batch.count(self._metrics.refused.labels(operation, reason_of(facts.refusal)))
            return
        outcome = outcome_of(exception)
        self._log(message, facts, outcome, duration_s, age_s, exception)
        if self._history is not None:
            self._history.count(message.queue_name, is_success=exception is None, duration_s=duration_s)
        if message.queue_name in UNCOUNTED_QUEUES:
            return
        series, of_batch = self._series_of(message.actor_name, outcome, facts.backend), self._of_batch
        of_batch.count(series.jobs)
        of_batch.count(series.by_actor)
        of_batch.observe(series.durations, duration_s)
        if age_s is not None and facts.attempt == 1:
            of_batch.observe(series.waits, max(0.0, age_s - duration_s))
        if age_s is not None and outcome == "success" and message.actor_name == CLUSTER_EMBEDDING:
            of_batch.observe(self._metrics.freshness, age_s)
        if operation is not None:
            of_batch.count(self._metrics.feedback.labels(operation, outcome))
        if message.actor_name == RECLUSTER_PET and facts.noise_count is not None:
            self._note_noise(facts.noise_count, facts)

    def _series_of(self, actor: str, outcome: Outcome, backend: str) -> _Series:
        """Return the series of an attempt from a cache, because a look-up by labels takes longer than counting."""
        series = self._series.get((actor, outcome, backend))
        if series is None:
            of = self._metrics
            series = self._series[actor, outcome, backend] = _Series(
                of.jobs.labels(outcome, backend),
                of.by_actor.labels(actor, outcome),
                of.durations.labels(backend),
                of.waits.labels(actor),
            )
        return series

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        facts = self._close()
        if facts is not None:
            self._end(facts)

    def after_cancel(self, broker: Broker, message: dramatiq.Message[Any] | MessageProxy) -> None:
        """Log a job that was cancelled while this process held it. It counts neither as an attempt nor as a failure."""
        logger.info(
            "job cancelled",
            extra={
                "pet_id": pet_id_of(message),
                "message_id": message.message_id,
                "actor": message.actor_name,
                "queue": message.queue_name,
                "outcome": "cancelled",
            },
        )

    def after_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self._metrics.threads.set(worker.worker_threads)

    def after_enqueue(self, broker: Broker, message: dramatiq.Message[Any], delay: int | None) -> None:
        if message.options.get("retries"):
            self._metrics.retries.labels(message.actor_name).inc()

    def after_dead_letter(self, broker: Broker, dead_letter: DeadLetter) -> None:
        """Log the dead letter. Count it as invalid if no actor ran it, or as an error if it killed its workers."""
        if dead_letter.reason in NEVER_RAN:
            self._metrics.jobs.labels("invalid", NO_BACKEND).inc()
        elif dead_letter.reason == "delivery-limit":
            self._metrics.jobs.labels("error", NO_BACKEND).inc()
            if QUEUE_OF.get(dead_letter.actor_name or "") not in (None, *UNCOUNTED_QUEUES):
                self._metrics.by_actor.labels(dead_letter.actor_name, "error").inc()
        logger.warning(
            "dead letter",
            extra={
                "queue": dead_letter.queue_name,
                "dead_letter_id": dead_letter.id,
                "reason": dead_letter.reason,
                "actor": dead_letter.actor_name,
                "pet_id": pet_of(dead_letter),
                "message_id": message_id_of(dead_letter),
                "field": dead_letter.field,
                "error": dead_letter.error,
                "hint": dead_letter.hint,
                "deliveries": dead_letter.deliveries,
            },
        )

    def _close(self) -> JobFacts | None:
        facts = close_job()
        if facts is not None and facts.outer is None:
            self._metrics.in_progress.dec()
        return facts

    def _log(
        self,
        message: MessageProxy,
        facts: JobFacts,
        outcome: Outcome | Literal["refused"],
        duration_s: float,
        age_s: float | None,
        exception: BaseException | None,
    ) -> None:
        line: dict[str, Any] = {
            "pet_id": facts.pet_id or pet_id_of(message),
            "message_id": message.message_id,
            "actor": message.actor_name,
            "attempt": facts.attempt,
            "backend_used": facts.backend,
            "outcome": outcome,
            "duration_ms": round(1000 * duration_s, 1),
            "queue_ms": None if age_s is None else round(1000 * max(0.0, age_s - duration_s), 1),
            "age_ms": None if age_s is None else round(1000 * age_s, 1),
            "trace_id": trace_id_of(traceparent_of(message.kwargs, message.options) or current_traceparent()),
        }
        if facts.outer is not None:
            line[FOLLOWED] = True  # the lines about the other jobs of this batch follow
        if facts.noise_count is not None:
            line["noise_count"] = facts.noise_count
        if exception is None:
            level = logging.DEBUG if message.queue_name in UNCOUNTED_QUEUES else logging.INFO
            if logger.isEnabledFor(level):
                logger.handle(self._done(level, line))
        elif outcome == "refused":
            logger.info("correction refused", extra=line | {"reason": str(exception)})
        else:
            line["error"] = f"{type(exception).__name__}: {exception}"
            logger.warning("job failed", extra=line, exc_info=exception if outcome == "error" else None)

    def _done(self, level: int, line: dict[str, Any]) -> logging.LogRecord:
        """Return the record of a job that succeeded. The records of a batch share all attributes but the ``line``."""
        common = self._of_batch.record
        if common is None or common["levelno"] != level:
            # made directly, because finding the calling line of code would take a third of the time
            made = logger.makeRecord(logger.name, level, __file__, 0, "job done", (), None)
            common = self._of_batch.record = made.__dict__
        record = logging.LogRecord.__new__(logging.LogRecord)
        record.__dict__ = common | line
        return record

    def _age_s(self, message: MessageProxy) -> float | None:
        """Return the time since the job was enqueued, or None if its entry id or timestamp lies in the future."""
        now_ms = 1000 * self._clock()
        added_ms = int(getattr(message, "entry_id", "0").partition("-")[0])
        return (
            None if max(added_ms, message.message_timestamp) > now_ms else (now_ms - message.message_timestamp) / 1000
        )

    def _note_noise(self, n_noise: int, facts: JobFacts) -> None:
        try:
            self._noise.note(n_noise, pet_id=facts.pet_id, n_media=facts.n_media)
        except Exception:
            logger.warning("could not record the noise of a recluster", exc_info=True)


class ExposeMetrics(dramatiq.Middleware):
    """Middleware through which the master starts a process that serves ``/metrics``, ``/healthz`` and ``/readyz``."""

    @property
    def forks(self) -> list[Callable[[], int]]:
        return [serve_metrics]


class LoadEngine(dramatiq.Middleware):
    """Middleware that imports the engine when a worker process boots, so that no job waits a second for it."""

    def after_process_boot(self, broker: Broker) -> None:
        import sploot_cluster.density
        import sploot_cluster.engine.neighbours  # noqa: F401


def reason_of(refusal: InvalidInput) -> Refusal:
    """Return why a correction was refused, in one word."""
    match refusal:
        case StaleRevision():
            return "stale"
        case AlreadyUndone() | AlreadyMade():
            return "done"
        case UnknownPet() | UnknownCluster() | UnknownMedia() | UnknownRevision():
            return "unknown"
        case _:
            return "unfit"


def outcome_of(exception: BaseException | None) -> Outcome:
    """Return the outcome of an attempt, in one word."""
    match exception:
        case None:
            return "success"
        case InvalidInput():
            return "invalid"
        case TimeLimitExceeded():
            return "timeout"
        case _:
            return "error"
