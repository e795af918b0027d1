"""The actors. Each actor unpacks its message, makes one call to the service and records the outcome.

The broker and the service are passed in, so a test can declare the same actors with its own broker and a store in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar, cast

import dramatiq
from dramatiq.middleware import CurrentMessage

from broker import BatchedMessage, batch
from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import Request
from sploot_cluster.errors import InvalidInput, UnknownMedia, UnknownPet
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.jobs import JobTraces, Traces
from sploot_cluster.pet.models import Assigned, Corrected, Deleted, MediaId, PetId, Reclustered, Restored
from sploot_cluster.service import ClusterService, NewItem
from tasks.contracts import (
    QUEUE_OF,
    Contract,
    DeleteItems,
    PreviewRecluster,
    ReclusterPet,
)
from tasks.job_records import answer, refuse, stage
from tasks.observe.job_facts import current_job
from tasks.retry_policy import POLICIES
from tasks.wire import CheckedArguments

C = TypeVar("C", bound=Contract)


# Maximum number of batches that a process holds: one runs while another waits for Redis. More would only wait for the
# interpreter, and their messages would count as pending jobs, for which alerts fire at 100 and 250.
BATCHES_HELD: Final = 2


@dataclass(frozen=True, slots=True)
class PreviewKept:
    """The result of a preview job: what a caller needs to apply the preview, which is stored next to the pet."""

    token: str
    revision: int
    expires_at: str
    n_moved: int
    n_new_noise: int
    n_from_noise: int
    kept: str


@dataclass(frozen=True, slots=True)
class ItemsDeleted:
    """The result of deleting items: how many items, corrections, job records and dead letters were deleted.

    It contains no item ids, because the job's record outlives the items.
    """

    n_media: int
    n_corrections: int
    n_records: int
    n_dead_letters: int
    revision: int


Answer = Assigned | Corrected | Restored | Reclustered | PreviewKept | ItemsDeleted


def declare_actors(
    broker: dramatiq.Broker, service: ClusterService, *, batch_size: int = 1, traces: JobTraces | None = None
) -> None:
    """Declare an actor for every kind of message about a pet, named as in ``tasks.contracts``.

    Args:
        batch_size: maximum number of waiting embedding events that one call handles, 1 to 500.
        traces: erases the job records and dead letters of deleted items; None: they stay.

    Raises:
        ValueError: the broker lacks Dramatiq's ``CurrentMessage``, which supplies a correction's operation id.
    """
    if not any(isinstance(middleware, CurrentMessage) for middleware in broker.middleware):
        raise ValueError("the broker has no CurrentMessage middleware; add dramatiq.middleware.CurrentMessage to it")

    @_actor_for(EmbeddingIngested, broker)
    def cluster_embedding(event: EmbeddingIngested) -> Assigned:
        assigned = service.assign(
            PetId(event.pet_id),
            MediaId(event.media_id),
            model=event.model,
            vector=event.vector(),
            occurred_at=event.time,
            is_replacement=bool(event.replace),
        )
        current_job().backend = assigned.backend
        return assigned

    if batch_size > 1:

        @batch(broker.get_actor(EmbeddingIngested.actor_name), max_size=batch_size, max_held=BATCHES_HELD)
        def cluster_embeddings(messages: Sequence[BatchedMessage]) -> None:
            checked = [(message, event) for message in messages if (event := _event_of(message)) is not None]
            items = [
                NewItem(
                    PetId(event.pet_id),
                    MediaId(event.media_id),
                    event.model,
                    event.vector(),
                    event.time,
                    bool(event.replace),
                )
                for _, event in checked
            ]
            for (message, _), assigned in zip(checked, service.assign_many(items), strict=True):
                if assigned is not None:
                    message.done(assigned)

    for request in VERBS.values():

        @_actor_for(request, broker)
        def correct(task: Request[Any]) -> Answer | None:
            try:
                # a redelivery has the same message id, so it is the same operation
                return cast(Answer, service.correct(task, operation_id=_message_id()))
            except InvalidInput as refused:
                # The pet has changed since the sender read it. The correction changed nothing and a retry would not
                # help, so the job ends. It does not become a dead letter, because an operator could not fix it.
                current_job().refusal = refused
                refuse(f"{refused.problem}; {refused.hint}")
                return None

    @_actor_for(ReclusterPet, broker)
    def recluster_pet(task: ReclusterPet) -> Reclustered:
        reclustered = service.recluster(PetId(task.pet_id), by=task.requested_by, on_stage=stage)
        current_job().backend = reclustered.backend
        current_job().noise_count, current_job().n_media = reclustered.n_noise, reclustered.n_media
        return reclustered

    @_actor_for(PreviewRecluster, broker)
    def preview_recluster(task: PreviewRecluster) -> PreviewKept | None:
        try:
            previewed = service.preview(PetId(task.pet_id), backend=task.backend, on_stage=stage)
        except InvalidInput as refused:  # the backend is not available; a retry would not help
            refuse(f"{refused.problem}; {refused.hint}")
            return None
        current_job().backend = previewed.result.backend
        return PreviewKept(
            previewed.token,
            previewed.revision,
            previewed.expires_at.isoformat(),
            n_moved=previewed.diff.n_moved,
            n_new_noise=previewed.diff.n_new_noise,
            n_from_noise=previewed.diff.n_from_noise,
            kept=previewed.result.kept,
        )

    _declare_deletion(broker, service, traces)


def _declare_deletion(broker: dramatiq.Broker, service: ClusterService, traces: JobTraces | None) -> None:
    @_actor_for(DeleteItems, broker)
    def delete_items(task: DeleteItems) -> ItemsDeleted | None:
        pet, found = PetId(task.pet_id), traces.find(task.pet_id, task.media_ids) if traces else Traces(0, 0, 0)
        if found.n_waiting:
            refuse(f"{found.n_waiting} jobs that wait would restore or name the items; let them run, and delete again")
            return None
        try:
            deleted = service.delete_media(pet, [MediaId(item) for item in task.media_ids], by=task.requested_by)
        except (UnknownPet, UnknownMedia):
            # they were already deleted, perhaps by an attempt that ended before it erased the traces
            deleted = Deleted(0, 0, service.revision(pet))
        erased = traces.erase(task.pet_id, task.media_ids) if traces else found
        return ItemsDeleted(
            deleted.n_media, deleted.n_corrections, erased.n_records, erased.n_dead_letters, deleted.revision
        )


def _actor_for(contract: type[C], broker: dramatiq.Broker) -> Callable[[Callable[[C], Answer | None]], None]:
    """Return a decorator that declares the actor of a message type, with the options from ``POLICIES``.

    The actor calls the decorated function with the checked message. The function returns None if it refused the job.
    """

    def declare(run: Callable[[C], Answer | None]) -> None:
        def unpack_and_run(*positional: Any, **kwargs: Any) -> None:
            if positional:
                raise InvalidInput("args", "positional arguments have no names", "send keyword arguments")
            message = _checked(contract) or contract.from_kwargs(kwargs)
            current_job().pet_id = message.pet_id
            done = run(message)
            if done is not None:
                answer(lambda: asdict(done))

        dramatiq.actor(
            actor_name=contract.actor_name,
            queue_name=QUEUE_OF[contract.actor_name],
            broker=broker,
            **POLICIES[contract.actor_name].actor_options(),
        )(unpack_and_run)

    return declare


def _checked(contract: type[C]) -> C | None:
    """Return the running message if this process already checked it on decoding, otherwise None."""
    message = CurrentMessage.get_current_message()
    arguments = None if message is None else message.kwargs
    if isinstance(arguments, CheckedArguments) and isinstance(arguments.event, contract):
        return arguments.event
    return None


def _event_of(message: BatchedMessage) -> EmbeddingIngested | None:
    """Return the event of a message in a batch, or None if it is invalid; its actor then reports the error."""
    if isinstance(message.kwargs, CheckedArguments):
        return message.kwargs.event
    try:
        return None if message.args else EmbeddingIngested.from_kwargs(message.kwargs)
    except InvalidInput:
        return None


def _message_id() -> str:
    """Return the id of the running message."""
    message = CurrentMessage.get_current_message()
    if message is None:
        raise RuntimeError("a correction runs as a message; without a queue, call ClusterService")
    return message.message_id
