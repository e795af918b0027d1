"""What producers import: enqueue from any Python service, with Dramatiq and redis-py and no engine.

Every field is checked before anything is sent. Redis is waited for at most about three seconds, so that no login hangs
because of a queue; a job that could not be enqueued raises ``QueueUnavailable``. One client serves all threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import dramatiq
import redis
from dramatiq.errors import BrokerConnectionError
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker import EnqueueUncertain, MessageTooLarge, QueueStats, RedisStreamsBroker
from sploot_cluster.errors import InvalidInput
from sploot_cluster.jobs import JobRef, JobStatus, QueueUnavailable
from sploot_cluster.refusals import REDIS_ERRORS, explained, refusal_of
from tasks.contracts import (
    GROUP,
    MACHINE,
    NAMESPACE,
    UNKNOWN_REQUESTER,
    Contract,
    DismissMedia,
    EmbeddingIngested,
    ExcludeMedia,
    MergeClusters,
    PreviewRecluster,
    ReclusterPet,
    RestoreRevision,
    SplitCluster,
    UndoFeedback,
)
from tasks.job_records import JobOwner, JobRecords, status_of
from tasks.redis_urls import connect
from tasks.rollout import EVERYBODY, is_rolled_out
from tasks.trace_context import TRACEPARENT, current_traceparent

CONNECT_TIMEOUT_S: Final = 1.0
ANSWER_TIMEOUT_S: Final = 1.0
ENQUEUE_TIMEOUT_MS: Final = 1_000  # for repeating an enqueue whose answer was lost: all in all about three seconds

BATCH: Final = 500  # events a round trip: 1.5 MB at 512 dimensions

__all__ = ["ClusterTasks", "InvalidInput", "JobRef", "JobStatus", "QueueUnavailable"]


class ClusterTasks:
    """Enqueues work and tells what became of it; implements ``sploot_cluster.jobs.JobQueue`` and ``ReclusterRequests``.

    Every method raises ``InvalidInput`` for a field that cannot be used, before anything is sent, and
    ``QueueUnavailable`` when Redis does not answer, or refuses: its ``refusal`` names the cause, such as a full server
    or a replica that takes no writes, and how to fix it. ``requested_by`` goes into the pet's history. A correction
    with ``expected_revision`` is refused if media were moved since that revision, by a person or a recluster.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        client: redis.Redis | None = None,
        ingest_rollout_percent: int = EVERYBODY,
    ) -> None:
        """
        Args:
            redis_url: any form of ``tasks.redis_urls``. No connection is made yet.
            client: instead of a URL; its own timeouts hold, its answers must be bytes.
            ingest_rollout_percent: media of so many percent of all pets are handed in, always of the same ones; see
                ``tasks.rollout``. Nothing is sent for the others, and their JobRef is ``withheld``.
        """
        if (redis_url is None) == (client is None):
            raise TypeError("ClusterTasks takes either redis_url or client")
        if not 0 <= ingest_rollout_percent <= EVERYBODY:
            raise InvalidInput("ingest_rollout_percent", f"is {ingest_rollout_percent}", "give 0 to 100")
        self._rollout_percent = ingest_rollout_percent
        self._owns_client = client is None
        self._client = client or _impatient_client(str(redis_url))
        self._broker = RedisStreamsBroker(
            client=self._client,
            namespace=NAMESPACE,
            group=GROUP,
            middleware=[],
            enqueue_timeout_ms=ENQUEUE_TIMEOUT_MS,
        )
        self._records = JobRecords(self._client)

    def recluster(self, pet_id: int, *, requested_by: str = UNKNOWN_REQUESTER, reason: str = "") -> JobRef:
        """Have the pet's clusters found anew. At most one such job waits per pet: the waiting one is returned."""
        task = ReclusterPet(pet_id, requested_by, reason)
        return self._enqueue(task, unique_key=task.unique_key)

    def preview(self, pet_id: int, *, requested_by: str = UNKNOWN_REQUESTER) -> JobRef:
        """Have computed what a recluster would do. The job's result has the token that applies it."""
        task = PreviewRecluster(pet_id, requested_by)
        return self._enqueue(task, unique_key=task.unique_key)

    def merge(
        self,
        pet_id: int,
        cluster_ids: Sequence[int],
        into: int | None = None,
        *,
        requested_by: str = UNKNOWN_REQUESTER,
        expected_revision: int | None = None,
    ) -> JobRef:
        """Make at least two clusters one, for ever: ``into``, or the one that the service prefers."""
        sent = {"pet_id": pet_id, "cluster_ids": cluster_ids, "into": into}
        return self._correct(MergeClusters, sent, requested_by, expected_revision)

    def split(
        self,
        pet_id: int,
        cluster_id: int,
        media_ids: Sequence[str],
        *,
        requested_by: str = UNKNOWN_REQUESTER,
        expected_revision: int | None = None,
    ) -> JobRef:
        """Make these media of a cluster another one, for ever apart from the rest."""
        sent = {"pet_id": pet_id, "cluster_id": cluster_id, "media_ids": media_ids}
        return self._correct(SplitCluster, sent, requested_by, expected_revision)

    def exclude(
        self,
        pet_id: int,
        cluster_id: int,
        media_ids: Sequence[str],
        *,
        requested_by: str = UNKNOWN_REQUESTER,
        expected_revision: int | None = None,
    ) -> JobRef:
        """Take media out of a cluster, "not this one": they may go elsewhere, and never back."""
        sent = {"pet_id": pet_id, "cluster_id": cluster_id, "media_ids": media_ids}
        return self._correct(ExcludeMedia, sent, requested_by, expected_revision)

    def dismiss(
        self,
        pet_id: int,
        media_ids: Sequence[str],
        *,
        requested_by: str = UNKNOWN_REQUESTER,
        expected_revision: int | None = None,
    ) -> JobRef:
        """Have media in no cluster for ever."""
        sent = {"pet_id": pet_id, "media_ids": media_ids}
        return self._correct(DismissMedia, sent, requested_by, expected_revision)

    def undo(
        self,
        pet_id: int,
        revision: int,
        *,
        requested_by: str = UNKNOWN_REQUESTER,
        expected_revision: int | None = None,
    ) -> JobRef:
        """Take back the correction that made ``revision``."""
        return self._correct(UndoFeedback, {"pet_id": pet_id, "revision": revision}, requested_by, expected_revision)

    def restore(
        self,
        pet_id: int,
        revision: int,
        *,
        requested_by: str = UNKNOWN_REQUESTER,
        expected_revision: int | None = None,
    ) -> JobRef:
        """Make the pet what it was at a revision, as a new one; corrections are kept."""
        return self._correct(RestoreRevision, {"pet_id": pet_id, "revision": revision}, requested_by, expected_revision)

    def ingest(
        self,
        *,
        pet_id: int,
        media_id: str,
        model: str,
        embedding: object,
        encoding: str | None = None,
        event_id: str | None = None,
        occurred_at: str | None = None,
        traceparent: str | None = None,
    ) -> JobRef:
        """Hand in an item that was embedded. The same ``media_id`` again changes nothing.

        Args:
            embedding: a sequence of numbers, a buffer such as a numpy array, bytes, or text of ``base64-f32le``.
            encoding: of bytes and text; bytes are ``f32le`` when None.
            event_id: the job's id; a fresh one when None.
            occurred_at: RFC 3339.
            traceparent: W3C Trace Context of the upload.
        """
        fields = {"pet_id": pet_id, "media_id": media_id, "model": model, "embedding": embedding, "encoding": encoding}
        event = _event(fields | {"event_id": event_id, "occurred_at": occurred_at, "traceparent": traceparent})
        if not is_rolled_out(event.pet_id, self._rollout_percent):
            return JobRef(event.event_id, event.queue_name, withheld=True)
        return self._enqueue(event, job_id=event.event_id)

    def ingest_many(self, events: Iterable[EmbeddingIngested | Mapping[str, Any]]) -> list[JobRef]:
        """Hand in many media: each an event, or the arguments of :meth:`ingest`. All are checked before any is sent.

        They are not tracked: :meth:`job` knows nothing of them. When Redis goes away on the way, some may have been
        sent; sending all again does no harm.
        """
        checked = []
        for at, event in enumerate(events):
            try:
                checked.append(event if isinstance(event, EmbeddingIngested) else _event(event))
            except InvalidInput as refused:
                raise InvalidInput(refused.field, f"event {at}: {refused.problem}", refused.hint) from None
        is_in = [is_rolled_out(event.pet_id, self._rollout_percent) for event in checked]
        messages = [_message(event, job_id=event.event_id) for event, sent in zip(checked, is_in, strict=True) if sent]
        with self._reaching_redis("some may have been enqueued, sending all again is safe"):
            for start in range(0, len(messages), BATCH):
                self._broker.enqueue_many(messages[start : start + BATCH])
        return [
            JobRef(event.event_id, event.queue_name, withheld=not sent)
            for event, sent in zip(checked, is_in, strict=True)
        ]

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        """Have the pet reclustered in about ``delay_ms``, unless a recluster of it waits already."""
        task = ReclusterPet(pet_id, MACHINE, reason)
        self._enqueue(task, unique_key=task.unique_key, delay_ms=delay_ms)

    def job(self, job_id: str) -> JobStatus | None:
        """What is known of a job, with one reason why it waits; None when it was never tracked, or ended a day ago."""
        with self._reaching_redis("the job was not looked up"):
            record = self._records.find(job_id)
            return status_of(record, self._stats, now=datetime.now(UTC)) if record else None

    def close(self) -> None:
        """Close the connections that this client made. Safe to call twice."""
        self._broker.close()
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _correct(
        self, kind: type[Contract], sent: Mapping[str, object], requested_by: str, expected_revision: int | None
    ) -> JobRef:
        return self._enqueue(
            kind.from_kwargs({**sent, "requested_by": requested_by, "expected_revision": expected_revision})
        )

    def _enqueue(
        self, task: Contract, *, job_id: str | None = None, unique_key: str | None = None, delay_ms: int = 0
    ) -> JobRef:
        message = _message(task, job_id=job_id, tracked=True, **({"unique_key": unique_key} if unique_key else {}))
        now = datetime.now(UTC)
        with self._reaching_redis():
            # before it is enqueued: a worker may start it before this call returns
            owner = JobOwner(message.queue_name, message.actor_name, task.pet_id)
            self._records.write(
                message.message_id,
                state="delayed" if delay_ms else "queued",
                owner=owner,
                **owner._asdict(),
                enqueued_at=now,
                due_at=now + timedelta(milliseconds=delay_ms) if delay_ms else None,
            )
            n_waiting = self._stats(message.queue_name).undelivered
            sent = self._broker.enqueue(message, delay=delay_ms or None)
            if sent.message_id == message.message_id:
                return JobRef(message.message_id, message.queue_name, position=n_waiting + 1)
            self._records.forget(message.message_id)
            return JobRef(sent.message_id, message.queue_name, coalesced=True, position=max(1, n_waiting))

    def _stats(self, queue_name: str) -> QueueStats:
        try:
            return self._broker.stats(queue_name)
        except BrokerConnectionError:
            # once more: a connection that lay idle may have been closed, and reading twice does no harm
            return self._broker.stats(queue_name)

    @contextmanager
    def _reaching_redis(self, outcome: str = "nothing was enqueued") -> Iterator[None]:
        try:
            yield
        except MessageTooLarge as refused:
            raise InvalidInput("message", str(refused), "send fewer ids at a time") from refused
        except EnqueueUncertain as error:
            raise QueueUnavailable(
                f"{error.problem}; nobody knows whether the job was enqueued, calling again is safe",
                refusal=refusal_of(error),
            ) from error
        except (*REDIS_ERRORS, BrokerConnectionError) as error:
            raise QueueUnavailable(explained(error, outcome=outcome), refusal=refusal_of(error)) from error


def _event(fields: Mapping[str, Any]) -> EmbeddingIngested:
    """The event of keyword arguments; those that are None count as left out."""
    return EmbeddingIngested.of(**{name: value for name, value in fields.items() if value is not None})


def _message(task: Contract, *, job_id: str | None = None, **options: Any) -> dramatiq.Message[Any]:
    # of a caller that traces itself; an event may bring another one of its own
    if (traceparent := current_traceparent()) is not None:
        options[TRACEPARENT] = traceparent
    return dramatiq.Message(
        queue_name=task.queue_name,
        actor_name=task.actor_name,
        args=(),
        kwargs=task.to_kwargs(),
        options=options,
        message_id=job_id or str(uuid4()),
    )


def _impatient_client(redis_url: str) -> redis.Redis:
    return connect(
        redis_url,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        answer_timeout_s=ANSWER_TIMEOUT_S,
        # once more when a connection that lay idle turns out to be closed; a timeout is not repeated
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
