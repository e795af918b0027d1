"""The producers' client. Any Python service can enqueue with it; it needs Dramatiq and redis-py, but not the engine.

Every field is checked before anything is sent. A call waits for Redis for about three seconds at most, so a user's
login, for example, never hangs because of a queue. If a job cannot be enqueued, the call raises ``QueueUnavailable``.
Clients are thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from sploot_cluster.decide.corrections.base import UNKNOWN_REQUESTER, Request, Signed
from sploot_cluster.decide.corrections.cover import CoverCluster
from sploot_cluster.decide.corrections.dismiss import DismissMedia
from sploot_cluster.decide.corrections.exclude import ExcludeMedia
from sploot_cluster.decide.corrections.hide import HideClusters, ShowClusters
from sploot_cluster.decide.corrections.keep_apart import KeepApart
from sploot_cluster.decide.corrections.lock import LockClusters, UnlockClusters
from sploot_cluster.decide.corrections.merge import MergeClusters
from sploot_cluster.decide.corrections.name import NameCluster
from sploot_cluster.decide.corrections.name_pet import NamePet
from sploot_cluster.decide.corrections.place import PlaceMedia
from sploot_cluster.decide.corrections.restore import RestoreRevision
from sploot_cluster.decide.corrections.split import SplitCluster
from sploot_cluster.decide.corrections.undo import UndoFeedback
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.jobs import CancelOutcome, JobRef, JobStatus, QueueFull, QueueUnavailable
from tasks.contracts import EMBEDDING_INGESTED, MACHINE, DeleteItems, PreviewRecluster, ReclusterPet
from tasks.rollout import EVERYBODY, is_rolled_out

if TYPE_CHECKING:
    import redis

    from sploot_cluster.pet.models import PreviewBackend

__all__ = ["ClusterTasks", "InvalidInput", "JobRef", "JobStatus", "QueueFull", "QueueUnavailable"]


class ClusterTasks:
    """A client that enqueues jobs and reports their status.

    It implements the protocols ``JobQueue`` and ``ReclusterRequests`` of ``sploot_cluster.jobs``.

    Every method raises ``InvalidInput`` for an invalid field, before anything is sent. It raises ``QueueUnavailable``
    when Redis does not answer or refuses the call; the error's ``refusal`` names the cause, such as a full server or a
    read-only replica, and the fix. Corrections also take ``requested_by``, which is shown in the pet's history, and
    ``expected_revision``: the correction is refused if a correction or a recluster has moved items since that revision.
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
            redis_url: a URL in any form that ``tasks.redis_access.urls`` describes. No connection is opened yet.
            client: replaces ``redis_url``; its own timeouts apply, and it must return bytes.
            ingest_rollout_percent: percentage of pets whose items are sent, always the same pets; see
                ``tasks.rollout``. Items of other pets are not sent, and their JobRef is ``withheld``.
        """
        if (redis_url is None) == (client is None):
            raise TypeError("ClusterTasks takes either redis_url or client")
        if not 0 <= ingest_rollout_percent <= EVERYBODY:
            raise InvalidInput("ingest_rollout_percent", f"is {ingest_rollout_percent}", "set 0 to 100")
        self._rollout_percent = ingest_rollout_percent
        # imported here because it loads Dramatiq and redis-py
        from tasks.transport import Transport

        self._transport = Transport(redis_url, client)

    def recluster(self, pet_id: int, *, requested_by: str = UNKNOWN_REQUESTER, reason: str = "") -> JobRef:
        """Enqueue a recluster of the pet, or return the job that is already waiting: at most one waits per pet."""
        task = ReclusterPet(pet_id, requested_by, reason)
        return self._transport.enqueue(task, unique_key=task.unique_key)

    def preview(
        self, pet_id: int, *, requested_by: str = UNKNOWN_REQUESTER, backend: PreviewBackend | None = None
    ) -> JobRef:
        """Enqueue a preview of a recluster. The job's result contains the token that applies it.

        Args:
            backend: ``hdbscan_reference``: start from the groups that the package hdbscan finds, and not from our own.
                The job is refused if the workers lack the extra ``[reference]``, or if the pet is too large.
        """
        task = PreviewRecluster(pet_id, requested_by, backend)
        return self._transport.enqueue(task, unique_key=task.unique_key)

    def delete_items(self, pet_id: int, media_ids: Sequence[str], *, requested_by: str = UNKNOWN_REQUESTER) -> JobRef:
        """Enqueue the permanent deletion of items. The job's result has only counts, no ids."""
        return self._transport.enqueue(DeleteItems(pet_id, media_ids, requested_by))

    def correct(self, request: Request[Any]) -> JobRef:
        """Enqueue a correction, which a worker then applies. Each method below does the same for one verb."""
        return self._transport.enqueue(request)

    def merge(
        self, pet_id: int, cluster_ids: Sequence[int], into: int | None = None, **signed: Unpack[Signed]
    ) -> JobRef:
        """Merge at least two clusters into ``into``, or into the largest of them."""
        return self.correct(MergeClusters(pet_id, cluster_ids, into, **signed))

    def split(self, pet_id: int, cluster_id: int, media_ids: Sequence[str], **signed: Unpack[Signed]) -> JobRef:
        """Split these items off from a cluster into a new one."""
        return self.correct(SplitCluster(pet_id, cluster_id, media_ids, **signed))

    def keep_apart(self, pet_id: int, cluster_ids: Sequence[int], **signed: Unpack[Signed]) -> JobRef:
        """Keep clusters apart: no computation joins their items until this is undone or they are merged."""
        return self.correct(KeepApart(pet_id, cluster_ids, **signed))

    def place(self, pet_id: int, media_ids: Sequence[str], into: int | None = None, **signed: Unpack[Signed]) -> JobRef:
        """Place items in the cluster ``into``, wherever they are now; without ``into``, in a new cluster."""
        return self.correct(PlaceMedia(pet_id, media_ids, into, **signed))

    def exclude(self, pet_id: int, cluster_id: int, media_ids: Sequence[str], **signed: Unpack[Signed]) -> JobRef:
        """Exclude items from a cluster. They may join others; only a newer correction can place them there again."""
        return self.correct(ExcludeMedia(pet_id, cluster_id, media_ids, **signed))

    def dismiss(self, pet_id: int, media_ids: Sequence[str], **signed: Unpack[Signed]) -> JobRef:
        """Dismiss items: they are in no cluster until this is undone or a newer correction contradicts it."""
        return self.correct(DismissMedia(pet_id, media_ids, **signed))

    def name(self, pet_id: int, cluster_id: int, name: str, **signed: Unpack[Signed]) -> JobRef:
        """Name a cluster; the name stays with it until this is undone."""
        return self.correct(NameCluster(pet_id, cluster_id, name, **signed))

    def cover(self, pet_id: int, cluster_id: int, media_id: str, **signed: Unpack[Signed]) -> JobRef:
        """Choose the item that stands for a cluster."""
        return self.correct(CoverCluster(pet_id, cluster_id, media_id, **signed))

    def lock(self, pet_id: int, cluster_ids: Sequence[int], **signed: Unpack[Signed]) -> JobRef:
        """Lock clusters: reclusters leave their items as they are, and only very similar new items join them."""
        return self.correct(LockClusters(pet_id, cluster_ids, **signed))

    def unlock(self, pet_id: int, cluster_ids: Sequence[int], **signed: Unpack[Signed]) -> JobRef:
        """Unlock clusters that were locked."""
        return self.correct(UnlockClusters(pet_id, cluster_ids, **signed))

    def hide(self, pet_id: int, cluster_ids: Sequence[int], **signed: Unpack[Signed]) -> JobRef:
        """Hide clusters: they take in similar items, and are not shown."""
        return self.correct(HideClusters(pet_id, cluster_ids, **signed))

    def show(self, pet_id: int, cluster_ids: Sequence[int], **signed: Unpack[Signed]) -> JobRef:
        """Show clusters that were hidden."""
        return self.correct(ShowClusters(pet_id, cluster_ids, **signed))

    def name_pet(self, pet_id: int, name: str, **signed: Unpack[Signed]) -> JobRef:
        """Name a pet, so that users can find it by name; empty text removes the name."""
        return self.correct(NamePet(pet_id, name, **signed))

    def undo(self, pet_id: int, revision: int, **signed: Unpack[Signed]) -> JobRef:
        """Undo the correction that made ``revision``."""
        return self.correct(UndoFeedback(pet_id, revision, **signed))

    def restore(self, pet_id: int, revision: int, **signed: Unpack[Signed]) -> JobRef:
        """Restore the labels of a revision as a new revision; corrections stay in force."""
        return self.correct(RestoreRevision(pet_id, revision, **signed))

    def ingest(  # noqa: PLR0913  # the fields of the event, by name
        self,
        *,
        pet_id: int,
        media_id: str,
        model: str,
        embedding: object,
        encoding: str | None = None,
        event_id: str | None = None,
        occurred_at: str | None = None,
        replace: bool = False,
        traceparent: str | None = None,
    ) -> JobRef:
        """Send an item with its embedding. Without ``replace``, sending the same ``media_id`` again changes nothing.

        Args:
            embedding: a sequence of numbers, a buffer such as a numpy array, bytes, or ``base64-f32le`` text.
            encoding: the encoding of bytes or text; for bytes, None means ``f32le``.
            event_id: the job's id; None generates one.
            occurred_at: when the item occurred, as RFC 3339 text. It is shown, and lists can be sorted by it.
            replace: replace the embedding of an item that the pet has, because the picture was edited. Corrections of
                the item stay in force; an item that no correction names is assigned again.
            traceparent: W3C Trace Context of the upload.
        """
        return self.ingest_event(
            EmbeddingIngested.of(
                pet_id=pet_id,
                media_id=media_id,
                model=model,
                embedding=embedding,
                encoding=encoding,
                event_id=event_id,
                occurred_at=occurred_at,
                replace=replace or None,
                traceparent=traceparent,
            )
        )

    def ingest_event(self, event: EmbeddingIngested) -> JobRef:
        """Send an item with its embedding."""
        if not is_rolled_out(event.pet_id, self._rollout_percent):
            return JobRef(event.event_id, EMBEDDING_INGESTED, withheld=True)
        return self._transport.enqueue(event, job_id=event.event_id)

    def ingest_many(self, events: Iterable[EmbeddingIngested | Mapping[str, Any]]) -> list[JobRef]:
        """Send many items, each as an event or as the arguments of :meth:`ingest`. All are checked before any is sent.

        Unknown names in the arguments are ignored. The jobs are not tracked, so :meth:`job` cannot find them. If Redis
        becomes unavailable during the call, some items may have been sent; sending all of them again is harmless.
        """
        checked = []
        for at, event in enumerate(events):
            try:
                checked.append(event if isinstance(event, EmbeddingIngested) else EmbeddingIngested.of(**event))
            except InvalidInput as refused:
                raise InvalidInput(refused.field, f"event {at}: {refused.problem}", refused.hint) from None
        is_in = [is_rolled_out(event.pet_id, self._rollout_percent) for event in checked]
        self._transport.enqueue_many([event for event, sent in zip(checked, is_in, strict=True) if sent])
        return [
            JobRef(event.event_id, EMBEDDING_INGESTED, withheld=not sent)
            for event, sent in zip(checked, is_in, strict=True)
        ]

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        """Enqueue a recluster of the pet in about ``delay_ms``, unless one is already waiting."""
        task = ReclusterPet(pet_id, MACHINE, reason)
        self._transport.enqueue(task, unique_key=task.unique_key, delay_ms=delay_ms)

    def job(self, job_id: str) -> JobStatus | None:
        """Return the status of a job, and why it waits, or None if it was never tracked or ended over a day ago."""
        return self._transport.status(job_id)

    def unfinished(self, pet_id: int) -> Sequence[JobStatus]:
        """Return the tracked jobs of a pet that have not ended, in the order in which they last changed.

        Corrections, reclusters and previews are tracked, and items that were sent one at a time.
        """
        return self._transport.unfinished(pet_id)

    def cancel(self, job_id: str) -> CancelOutcome:
        """Cancel a job: a waiting one is removed, a running one is interrupted. It is not retried.

        If the same recluster or preview was requested again while this job waited, the later request runs in its place.
        The Redis user ``client`` may not cancel jobs; use ``operator`` or ``server``. Items that another program sent
        with a plain ``XADD`` are not found; operators can cancel them.

        Returns:
            ``cancelled``: it was waiting and was removed. ``requested``: its worker will end it, unless the job ends
            before that. ``not-found``: it has ended, or never existed.
        """
        return self._transport.cancel(job_id)

    def close(self) -> None:
        """Close the connections that this client opened. Safe to call twice."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
