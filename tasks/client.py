"""What producers import: enqueue from any Python service, with Dramatiq and redis-py and no engine.

Every field is checked before anything is sent. Redis is waited for at most about three seconds, so that no login hangs
because of a queue; a job that could not be enqueued raises ``QueueUnavailable``. One client serves all threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sploot_cluster.errors import InvalidInput
from sploot_cluster.jobs import JobRef, JobStatus, QueueUnavailable
from tasks.contracts import (
    MACHINE,
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
from tasks.rollout import EVERYBODY, is_rolled_out

if TYPE_CHECKING:
    import redis

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
        # here and not above: it brings Dramatiq and redis-py
        from tasks.transport import Transport

        self._transport = Transport(redis_url, client)

    def recluster(self, pet_id: int, *, requested_by: str = UNKNOWN_REQUESTER, reason: str = "") -> JobRef:
        """Have the pet's clusters found anew. At most one such job waits per pet: the waiting one is returned."""
        task = ReclusterPet(pet_id, requested_by, reason)
        return self._transport.enqueue(task, unique_key=task.unique_key)

    def preview(self, pet_id: int, *, requested_by: str = UNKNOWN_REQUESTER) -> JobRef:
        """Have computed what a recluster would do. The job's result has the token that applies it."""
        task = PreviewRecluster(pet_id, requested_by)
        return self._transport.enqueue(task, unique_key=task.unique_key)

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
        return self._transport.enqueue(event, job_id=event.event_id)

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
        self._transport.enqueue_many([event for event, sent in zip(checked, is_in, strict=True) if sent])
        return [
            JobRef(event.event_id, event.queue_name, withheld=not sent)
            for event, sent in zip(checked, is_in, strict=True)
        ]

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        """Have the pet reclustered in about ``delay_ms``, unless a recluster of it waits already."""
        task = ReclusterPet(pet_id, MACHINE, reason)
        self._transport.enqueue(task, unique_key=task.unique_key, delay_ms=delay_ms)

    def job(self, job_id: str) -> JobStatus | None:
        """What is known of a job, with one reason why it waits; None when it was never tracked, or ended a day ago."""
        return self._transport.status(job_id)

    def close(self) -> None:
        """Close the connections that this client made. Safe to call twice."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _correct(
        self, kind: type[Contract], sent: Mapping[str, object], requested_by: str, expected_revision: int | None
    ) -> JobRef:
        return self._transport.enqueue(
            kind.from_kwargs({**sent, "requested_by": requested_by, "expected_revision": expected_revision})
        )


def _event(fields: Mapping[str, Any]) -> EmbeddingIngested:
    """The event of keyword arguments; those that are None count as left out."""
    return EmbeddingIngested.of(**{name: value for name, value in fields.items() if value is not None})
