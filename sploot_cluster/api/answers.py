"""Response bodies of successful requests, for routes that do not simply return a dataclass of the domain.

Most routes return the domain's dataclasses unchanged: `PetView`, `Why`, `PetDiff`, `TallyView`, `PetModel`,
`JobStatus` and the dataclasses of `queues`. Their fields carry the descriptions for the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field

from sploot_cluster.api.problems import FieldProblem
from sploot_cluster.jobs import DeadLetterRef, Traces
from sploot_cluster.pet.diff import Snapshot
from sploot_cluster.pet.models import NOISE, ClusterView, Deleted, HistoryEntry, Origin, PetId, Reclustered

NEXT_CURSOR: Final = "The cursor of the next page; null on the last page."

# Maximum number of moved items that a comparison or a preview lists. Longer lists are not readable.
MAX_MOVES: Final = 1_000


class JobAccepted(BaseModel):
    """A job that was enqueued. The `Location` header is the URL of its status."""

    model_config = ConfigDict(from_attributes=True)  # the attributes of a JobRef

    job_id: str
    coalesced: bool = Field(description="An identical job was waiting already, so this request enqueued nothing.")
    position: int | None = Field(
        description="Number of jobs in the queue, including this one, when it was enqueued; null if not counted."
    )


class EmbeddingAccepted(JobAccepted):
    """The job that ingests an item. It is `withheld`, and no job exists, if the rollout has not reached the pet."""

    withheld: bool = Field(
        description="The rollout has not reached the pet: nothing was enqueued, and the job does not exist."
    )


class EmbeddingOutcome(BaseModel):
    """The outcome for one entry of a list: a job, or errors."""

    index: int = Field(description="Position of the entry in the list, from 0.")
    job: EmbeddingAccepted | None = None
    errors: list[FieldProblem] = []


class EmbeddingOutcomes(BaseModel):
    """The outcomes for the entries of a list, in order."""

    accepted: int
    refused: int
    items: list[EmbeddingOutcome]


class PetCluster(BaseModel):
    """One cluster, with the id that was requested."""

    pet_id: int
    revision: int
    asked_id: int = Field(
        description="The id that was requested. The cluster's own id differs if the requested one was merged away."
    )
    cluster: ClusterView


class Erased(BaseModel):
    """The data of a pet that was permanently deleted."""

    pet_id: int
    n_media: int
    n_corrections: int = Field(description="Corrections that named a deleted item, or all if the pet was deleted.")
    n_records: int = Field(description="Number of deleted job records.")
    n_dead_letters: int
    records: Sequence[str] = Field(description="The ids of the jobs whose records were deleted.")
    dead_letters: Sequence[DeadLetterRef] = Field(description="The dead letters that were deleted.")
    unreadable: Sequence[DeadLetterRef] = Field(
        description="Dead letters that cannot be read and may belong to the pet. They were not deleted."
    )
    revision: int = Field(description="The pet's revision after the deletion; 0 if the whole pet was deleted.")

    @classmethod
    def of(cls, pet: PetId, deleted: Deleted, traces: Traces) -> Self:
        return cls(pet_id=pet, **asdict(deleted), **asdict(traces))


class Applied(BaseModel):
    """The result of a preview that was applied."""

    pet_id: int
    result: Reclustered


class PetHistory(BaseModel):
    """The reclusters and corrections of a pet, newest first."""

    pet_id: int
    entries: Sequence[HistoryEntry]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class PetAt(BaseModel):
    """The clusters of a pet at an earlier revision."""

    pet_id: int
    revision: int | None
    clusters: Mapping[str, Sequence[str]] = Field(description="Items by the id of their cluster at that revision.")
    noise: Sequence[str]
    dismissed: Sequence[str]

    @classmethod
    def of(cls, pet: PetId, then: Snapshot) -> Self:
        clusters: dict[str, list[str]] = {}
        noise: list[str] = []
        dismissed: list[str] = []
        for item, label, origin in zip(then.media, then.labels.tolist(), then.origins.tolist(), strict=True):
            if label != NOISE:
                clusters.setdefault(str(label), []).append(item)
            else:
                (dismissed if origin == Origin.DISMISSED else noise).append(item)
        return cls(pet_id=pet, revision=then.revision, clusters=clusters, noise=noise, dismissed=dismissed)


class Alive(BaseModel):
    status: str = "alive"


class Ready(BaseModel):
    status: str = "ready"
    checks: list[str] = Field(description="The checks that passed.")
