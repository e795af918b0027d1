"""The Redis side of :class:`tasks.client.ClusterTasks`: enqueues messages, keeps job records, translates errors.

It is a separate module because loading Dramatiq and redis-py, with the asyncio packages that both load, takes about
200 ms of CPU time. A service that imports the client spends that time only when it creates a client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final
from uuid import uuid4

import dramatiq
import redis
from dramatiq.errors import BrokerConnectionError
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker import EnqueueUncertain, MessageTooLarge, QueueStats, RedisStreamsBroker
from broker import QueueFull as BrokerQueueFull
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.jobs import CancelOutcome, JobRef, JobStatus, QueueFull, QueueUnavailable
from sploot_cluster.refusals import refusal_of
from tasks.contracts import EMBEDDING_INGESTED, GROUP, NAMESPACE, QUEUE_OF, QUEUES, Contract
from tasks.job_records import JobOwner, JobRecords, TrackCancelled, status_of
from tasks.queue_limit import QueueLimit
from tasks.redis_access.errors import reaching_redis
from tasks.redis_access.urls import connect
from tasks.shards import SHARDED, queue_of
from tasks.trace_context import TRACEPARENT, current_traceparent

CONNECT_TIMEOUT_S: Final = 1.0
ANSWER_TIMEOUT_S: Final = 1.0
ENQUEUE_TIMEOUT_MS: Final = 1_000  # for retries when a reply was lost; a call then takes about three seconds in total

BATCH: Final = 500  # events per round trip: 1.5 MB at 512 dimensions


class Transport:
    """A transport that enqueues jobs and reads their status, from any thread.

    Every method raises ``QueueUnavailable`` when Redis does not answer or refuses. Enqueueing without a delay raises
    ``QueueFull`` when the queue has reached the limit that the workers set. Delayed jobs are never refused, because
    they are reclusters that the service itself requests, at most one per pet.
    """

    def __init__(self, redis_url: str | None, client: redis.Redis | None) -> None:
        """
        Args:
            redis_url: used if ``client`` is None.
            client: a client that returns bytes; :meth:`close` leaves it open.
        """
        self._owns_client = client is None
        self._client = client or _impatient_client(str(redis_url))
        self._records = JobRecords(self._client)
        self._broker = self._new_broker(None)
        self._limit = QueueLimit(self._client)
        self._bounded: dict[int, RedisStreamsBroker] = {}

    def enqueue(
        self, task: Contract, *, job_id: str | None = None, unique_key: str | None = None, delay_ms: int = 0
    ) -> JobRef:
        """Enqueue a message as a tracked job. If a job with the same ``unique_key`` is waiting, return that job."""
        message = _message(task, job_id=job_id, tracked=True, **({"unique_key": unique_key} if unique_key else {}))
        now = datetime.now(UTC)
        with self._without_dead_connections(), _enqueuing("nothing was enqueued"):
            # written before the job is enqueued, because a worker may start the job before this call returns
            self._records.write(
                message.message_id,
                JobOwner(message.queue_name, message.actor_name, task.pet_id),
                state="delayed" if delay_ms else "queued",
                enqueued_at=now,
                due_at=now + timedelta(milliseconds=delay_ms) if delay_ms else None,
            )
            n_waiting = self._stats(message.queue_name).undelivered
            try:
                sent = (self._broker if delay_ms else self._for_producers(message.queue_name)).enqueue(
                    message, delay=delay_ms or None
                )
            except BrokerQueueFull:
                self._records.forget(task.pet_id, [message.message_id])
                raise
            if sent.message_id == message.message_id:
                return JobRef(message.message_id, message.queue_name, position=n_waiting + 1)
            self._records.forget(task.pet_id, [message.message_id])
            return JobRef(sent.message_id, message.queue_name, coalesced=True, position=max(1, n_waiting))

    def enqueue_many(self, events: Sequence[EmbeddingIngested]) -> None:
        """Enqueue events, ``BATCH`` per round trip, as jobs that are not tracked."""
        messages = [_message(event, job_id=event.event_id) for event in events]
        with (
            self._without_dead_connections(),
            _enqueuing("some may have been enqueued; sending all again is safe"),
        ):
            for start in range(0, len(messages), BATCH):
                self._for_producers(EMBEDDING_INGESTED).enqueue_many(messages[start : start + BATCH])

    def status(self, job_id: str) -> JobStatus | None:
        """Return the status of a job, or None if it was never tracked or ended more than a day ago."""
        with self._without_dead_connections(), reaching_redis("the job was not looked up"):
            record = self._records.find(job_id)
            return status_of(record, self._stats, now=datetime.now(UTC)) if record else None

    def unfinished(self, pet_id: int) -> list[JobStatus]:
        """Return the tracked jobs of a pet that have not ended."""
        with self._without_dead_connections(), reaching_redis("the jobs were not looked up"):
            stats = cache(self._stats)
            now = datetime.now(UTC)
            return [status_of(record, stats, now=now) for record in self._records.unfinished(pet_id)]

    def cancel(self, job_id: str) -> CancelOutcome:
        """Cancel a job in its queue if it is tracked, otherwise in whichever queue it is."""
        with self._without_dead_connections(), reaching_redis("the job may or may not have been cancelled"):
            record = self._records.find(job_id)
            for queue in QUEUES if record is None else (record.queue,):
                outcome = self._broker.cancel(job_id, queue)
                if outcome != "not-found":
                    return outcome
        return "not-found"

    def close(self) -> None:
        """Close the connections that this object opened. Safe to call twice."""
        for one in (self._broker, *self._bounded.values()):
            one.close()
        if self._owns_client:
            self._client.close()

    @contextmanager
    def _without_dead_connections(self) -> Iterator[None]:
        """Drop the idle connections of this object's own client if one of them seems to be dead.

        A firewall forgets all idle connections at once. The broker checks its own connections in the same way.
        """
        start = time.monotonic()
        try:
            yield
        finally:
            pool = getattr(self._client, "connection_pool", None)  # a cluster client has a pool per node
            if self._owns_client and pool is not None and time.monotonic() - start >= ANSWER_TIMEOUT_S:
                pool.disconnect(inuse_connections=False)

    def _for_producers(self, queue: str) -> RedisStreamsBroker:
        """Return a broker that refuses messages beyond the queue limit, if any. A queue's shards share it equally."""
        limit = self._limit.current()
        if not limit:
            return self._broker
        limit = max(1, limit // self._broker.n_shards(queue))
        if limit not in self._bounded:
            self._bounded[limit] = self._new_broker(limit)
        return self._bounded[limit]

    def _new_broker(self, max_queue_length: int | None) -> RedisStreamsBroker:
        return RedisStreamsBroker(
            client=self._client,
            namespace=NAMESPACE,
            group=GROUP,
            middleware=[TrackCancelled(self._records)],
            enqueue_timeout_ms=ENQUEUE_TIMEOUT_MS,
            max_queue_length=max_queue_length,
            sharded=SHARDED,
        )

    def _stats(self, queue_name: str) -> QueueStats:
        try:
            return self._broker.stats(queue_name)
        except BrokerConnectionError:
            # retry once: an idle connection may have been closed, and reading twice is harmless
            return self._broker.stats(queue_name)


@contextmanager
def _enqueuing(outcome: str) -> Iterator[None]:
    with reaching_redis(outcome):
        try:
            yield
        except MessageTooLarge as refused:
            raise InvalidInput("message", str(refused), "send fewer ids at a time") from refused
        except BrokerQueueFull as full:
            raise QueueFull(
                queue=queue_of(full.queue_name), length=full.length, limit=full.limit, outcome=outcome
            ) from full
        except EnqueueUncertain as error:
            raise QueueUnavailable(
                f"{error.problem}; the job may or may not have been enqueued; calling again is safe",
                refusal=refusal_of(error),
            ) from error


def _message(task: Contract, *, job_id: str | None = None, **options: Any) -> dramatiq.Message[Any]:
    # the caller's trace context, if any; an event may also carry its own
    if (traceparent := current_traceparent()) is not None:
        options[TRACEPARENT] = traceparent
    return dramatiq.Message(
        queue_name=QUEUE_OF[task.actor_name],
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
        # retry once on a new connection if an idle one turns out to be closed or dead: all commands may be repeated
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError, redis.TimeoutError)),
    )
