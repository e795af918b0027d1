"""The messages between producers and workers: their names, their fields, and the checks of every field.

A message that passes the checks is a frozen value and needs no further checks; otherwise ``InvalidInput`` gives the
field, the problem and a hint. Producers run the same checks before they send. The event for an item is defined in
``sploot_cluster.event``, and the messages for corrections are the requests in ``sploot_cluster.decide.corrections``.
This module loads only the standard library and modules of ``sploot_cluster`` that do the same, because producers may
not have numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol, Self

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import UNKNOWN_REQUESTER
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.fields import ID, Checked, ListOf, OneOf, Text, checked, given
from sploot_cluster.limits import MAX_MEDIA_IDS
from sploot_cluster.pet.models import REFERENCE, PreviewBackend

# -- names -------------------------------------------------------------------------------------------------------------

NAMESPACE: Final = "streams"
GROUP: Final = "cluster-workers"

EMBEDDING_INGESTED: Final = "embedding.ingested"
CLUSTER_FEEDBACK: Final = "cluster.feedback"
CLUSTER_RECLUSTER: Final = "cluster.recluster"
CLUSTER_MAINTENANCE: Final = "cluster.maintenance"
QUEUES: Final = (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, CLUSTER_MAINTENANCE)

CLUSTER_EMBEDDING: Final = EmbeddingIngested.actor_name
RECLUSTER_PET: Final = "recluster_pet"
PREVIEW_RECLUSTER: Final = "preview_recluster"
DELETE_ITEMS: Final = "delete_items"
EXPORT_PENDING_JOBS: Final = "export_pending_jobs"
EXPORT_STREAM_LAG: Final = "export_stream_lag"
EXPORT_MEDIA_TOTALS: Final = "export_media_totals"
MOVE_COLD_PETS: Final = "move_cold_pets"


def stream_of(queue: str) -> str:
    """Return the name of a queue's stream, as used in the runbook's commands."""
    return f"{NAMESPACE}:{queue}"


# The requester that is recorded if no user requested the job.
MACHINE: Final = "machine"


# -- messages ----------------------------------------------------------------------------------------------------------


class Contract(Protocol):
    """A kind of message: its actor and its form in Dramatiq's JSON. ``QUEUE_OF`` maps the actor to its queue."""

    actor_name: ClassVar[str]

    @property
    def pet_id(self) -> int: ...

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self: ...

    def to_kwargs(self) -> dict[str, Any]: ...


@checked
class ReclusterPet(Checked):
    """A message that requests a recluster of a pet. At most one waits per pet.

    Attributes:
        requested_by: the requester, for the pet's history.
        reason: for logs and the job's status; may be empty.
    """

    actor_name: ClassVar[str] = RECLUSTER_PET

    pet_id: int = given(ID, "Id of the pet.", 42)
    requested_by: str = given(Text(), "The requester, for the history.", "ada", default=UNKNOWN_REQUESTER)
    reason: str = given(Text(shortest=0), "The reason, for the job's status and the logs.", "", default="")

    @property
    def unique_key(self) -> str:
        return f"recluster:{self.pet_id}"


@checked
class PreviewRecluster(Checked):
    """A message that requests a preview of a recluster, stored so that it can be applied. At most one waits per pet.

    Attributes:
        requested_by: the requester, for the logs.
        backend: the package whose groups the preview starts from; None means our own engine.
    """

    actor_name: ClassVar[str] = PREVIEW_RECLUSTER

    pet_id: int = given(ID, "Id of the pet.", 42)
    requested_by: str = given(Text(), "The requester, for the logs.", "ada", default=UNKNOWN_REQUESTER)
    backend: PreviewBackend | None = given(
        OneOf((REFERENCE,)), "The package whose groups to start from.", REFERENCE, default=None
    )

    @property
    def unique_key(self) -> str:
        return f"preview:{self.pet_id}" if self.backend is None else f"preview:{self.pet_id}:{self.backend}"


@checked
class DeleteItems(Checked):
    """A message that requests the permanent deletion of items of a big pet.

    Attributes:
        requested_by: the requester, for the pet's history.
    """

    actor_name: ClassVar[str] = DELETE_ITEMS

    pet_id: int = given(ID, "Id of the pet.", 42)
    media_ids: Sequence[str] = given(ListOf(Text(), MAX_MEDIA_IDS), "Ids of the items to delete.", ("m1",))
    requested_by: str = given(Text(), "The requester, for the history.", "ada", default=UNKNOWN_REQUESTER)


# The queue of every actor. A message for an actor of a different queue is refused: permission to write to one queue
# must not be enough to run the jobs of another.
QUEUE_OF: Final[Mapping[str, str]] = {
    EmbeddingIngested.actor_name: EMBEDDING_INGESTED,
    **{request.actor_name: CLUSTER_FEEDBACK for request in VERBS.values()},
    **dict.fromkeys((RECLUSTER_PET, PREVIEW_RECLUSTER, DELETE_ITEMS), CLUSTER_RECLUSTER),
    **dict.fromkeys((EXPORT_PENDING_JOBS, EXPORT_STREAM_LAG, EXPORT_MEDIA_TOTALS, MOVE_COLD_PETS), CLUSTER_MAINTENANCE),
}
