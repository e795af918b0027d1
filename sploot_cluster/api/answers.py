"""Response bodies of successful requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Self

from pydantic import BaseModel, Field

from sploot_cluster.api.problems import FieldProblem
from sploot_cluster.decide.why import Why
from sploot_cluster.jobs import DeadLetterRef, JobRef, JobState, JobStatus, Traces
from sploot_cluster.pet.diff import Diff, Snapshot
from sploot_cluster.pet.models import (
    NOISE,
    ChangeKind,
    ClusterView,
    Deleted,
    HistoryEntry,
    Origin,
    PetId,
    PetView,
    Reclustered,
)
from sploot_cluster.pet.previews import Previewed
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import PetTally

# Limit of the moved items that a comparison of two revisions lists; longer lists are not readable.
MAX_MOVES: Final = 1_000


class JobAccepted(BaseModel):
    """A job that was enqueued. The `Location` header is the address of its status."""

    job_id: str
    coalesced: bool = Field(description="An identical job was waiting already, so this request enqueued nothing.")
    position: int | None = Field(
        description="Number of jobs in its queue when it was enqueued, itself included; null if not counted."
    )

    @classmethod
    def of(cls, job: JobRef) -> Self:
        return cls(job_id=job.job_id, coalesced=job.coalesced, position=job.position)


class EmbeddingAccepted(JobAccepted):
    """The job that ingests an item, unless the rollout has not reached its pet."""

    withheld: bool = Field(
        description="The rollout has not reached the pet: nothing was enqueued, and the job does not exist."
    )

    @classmethod
    def of(cls, job: JobRef) -> Self:
        return cls(job_id=job.job_id, coalesced=job.coalesced, position=job.position, withheld=job.withheld)


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


class Cluster(BaseModel):
    cluster_id: int
    size: int
    media_ids: Sequence[str] = Field(description="Its items, in order of arrival.")
    origins: Mapping[str, int] = Field(
        description="Number of its items by the origin of their membership: core, arrived, absorbed, corrected."
    )
    threshold: float = Field(description="The mean top-3 cosine similarity that an arriving item must reach.")
    since: int = Field(
        description="The revision at which the id was assigned, or assigned again after the cluster had ended."
    )
    split_from: int | None = Field(description="The cluster that most of its items were in at that revision.")
    merged_from: Sequence[int] = Field(description="Ids of clusters that were merged into it.")

    @classmethod
    def of(cls, view: ClusterView) -> Self:
        return cls(
            cluster_id=view.id,
            size=view.size,
            media_ids=view.media,
            origins={origin.name.lower(): count for origin, count in view.origins.items()},
            threshold=view.threshold,
            since=view.since,
            split_from=view.split_from,
            merged_from=view.merged_from,
        )


class PetCluster(BaseModel):
    """One cluster, with the id that was requested."""

    pet_id: int
    revision: int
    asked_id: int = Field(
        description="The id that was requested; the cluster's own id differs if that one was merged away."
    )
    cluster: Cluster


class PetClusters(BaseModel):
    """The clusters of a pet at one revision. A pet without data has revision 0."""

    pet_id: int
    revision: int
    model: str | None
    dim: int | None
    n_media: int
    n_noise: int
    clusters: list[Cluster] = Field(description="Clusters, largest first.")
    noise: Sequence[str] = Field(description="Items in no cluster, in order of arrival.")
    dismissed: Sequence[str] = Field(
        description="Items that a person dismissed; they stay in no cluster until that is undone."
    )
    aliases: Mapping[str, int] = Field(description="Ids that were merged away, with the cluster that each resolves to.")

    @classmethod
    def of(cls, view: PetView) -> Self:
        return cls(
            pet_id=view.pet,
            revision=view.revision,
            model=view.model,
            dim=view.dim,
            n_media=view.n_media,
            n_noise=view.n_noise,
            clusters=[Cluster.of(cluster) for cluster in view.clusters],
            noise=view.noise,
            dismissed=view.dismissed,
            aliases={str(merged): into for merged, into in view.aliases.items()},
        )


class QuarantinedItem(BaseModel):
    media_id: str
    model: str
    dim: int
    at: datetime


class PetTallied(BaseModel):
    """The accounting of a pet: every ingested item is counted exactly once."""

    pet_id: int
    ingested: int = Field(description="Number of ingested items, counted on arrival.")
    clustered: int
    noise: int
    quarantined: int
    dismissed: int
    overflowed: int = Field(description="Arrivals dropped because the quarantine was full; not part of ingested.")
    is_conserved: bool = Field(description="Whether ingested = clustered + noise + quarantined + dismissed.")
    quarantine: list[QuarantinedItem] = Field(
        description="Items whose vectors have another model or dimension than the pet's."
    )

    @classmethod
    def of(cls, pet: PetId, counted: PetTally) -> Self:
        tally = counted.tally
        return cls(
            pet_id=pet,
            ingested=tally.ingested,
            clustered=tally.clustered,
            noise=tally.noise,
            quarantined=tally.quarantined,
            dismissed=tally.dismissed,
            overflowed=tally.overflowed,
            is_conserved=tally.is_conserved,
            quarantine=[
                QuarantinedItem(media_id=item, model=why.model, dim=why.dim, at=why.at)
                for item, why in sorted(counted.quarantine.items())
            ],
        )


class DeadLetterPlace(BaseModel):
    """The queue and id of a dead letter."""

    queue: str
    dead_letter_id: str

    @classmethod
    def of(cls, dead_letter: DeadLetterRef) -> Self:
        return cls(queue=dead_letter.queue, dead_letter_id=dead_letter.dead_letter_id)


class Erased(BaseModel):
    """What was deleted of a pet, permanently."""

    pet_id: int
    n_media: int
    n_corrections: int = Field(description="Corrections that named a deleted item; all of them if the pet was deleted.")
    n_records: int = Field(description="Number of deleted job records.")
    n_dead_letters: int
    records: Sequence[str] = Field(description="The ids of the jobs whose records were deleted.")
    dead_letters: list[DeadLetterPlace] = Field(description="The dead letters that were deleted.")
    unreadable: list[DeadLetterPlace] = Field(
        description="Dead letters that cannot be read and may belong to the pet. They were not deleted."
    )
    revision: int = Field(description="The pet's revision after the deletion; 0 if the whole pet was deleted.")

    @classmethod
    def of(cls, pet: PetId, deleted: Deleted, traces: Traces | None) -> Self:
        return cls(
            pet_id=pet,
            n_media=deleted.n_media,
            n_corrections=deleted.n_corrections,
            n_records=traces.n_records if traces else 0,
            n_dead_letters=traces.n_dead_letters if traces else 0,
            records=traces.records if traces else (),
            dead_letters=[DeadLetterPlace.of(dead_letter) for dead_letter in traces.dead_letters] if traces else [],
            unreadable=[DeadLetterPlace.of(dead_letter) for dead_letter in traces.unreadable] if traces else [],
            revision=deleted.revision,
        )


class CandidateModel(BaseModel):
    model: str
    dim: int
    n_vectors: int = Field(description="Number of items that have a vector of this model.")
    n_only_here: int = Field(description="Those without a vector of the pet's own model; they are quarantined.")
    begun_at: datetime
    by: str

    @classmethod
    def of(cls, shadow: Shadow, n_only_here: int = 0) -> Self:
        return cls(
            model=shadow.model,
            dim=shadow.dim,
            n_vectors=shadow.n_vectors,
            n_only_here=n_only_here,
            begun_at=shadow.begun_at,
            by=shadow.by,
        )


class PetModel(BaseModel):
    """The embedding model of a pet, and the candidate model that runs in parallel."""

    pet_id: int
    revision: int
    model: str | None
    dim: int | None
    n_media: int
    candidate: CandidateModel | None


class NearItem(BaseModel):
    media_id: str
    cluster_id: int
    similarity: float = Field(description="Cosine similarity.")


class RivalCluster(BaseModel):
    cluster_id: int
    similarity: float = Field(description="Mean top-3 cosine similarity to the accepted items of the cluster.")
    threshold: float = Field(description="The similarity that an arriving item must reach.")
    is_forbidden: bool = Field(description="Whether a correction in force keeps the item out of the cluster.")


class DemandOf(BaseModel):
    """The effect of a correction in force on an item."""

    revision: int
    kind: ChangeKind
    by: str
    at: datetime
    demand: str


class ItemWhy(BaseModel):
    """Why an item is where it is."""

    pet_id: int
    media_id: str
    revision: int
    cluster_id: int | None = Field(description="null if the item is noise or quarantined.")
    origin: str = Field(description="noise, core, arrived, absorbed, corrected, dismissed or quarantined.")
    reason: str = Field(description="One sentence.")
    similarity: float | None = Field(description="Mean top-3 cosine similarity to its own cluster.")
    threshold: float | None = Field(description="The similarity that an arriving item must reach to join its cluster.")
    second: RivalCluster | None = Field(description="The most similar other cluster.")
    margin: float | None = Field(
        description="Similarity to its own cluster minus that to `second`; below 0 if a correction placed it there."
    )
    nearest: list[NearItem] = Field(
        description="Its nearest accepted items, that is, items in clusters that were not absorbed; nearest first."
    )
    corrections: list[DemandOf] = Field(description="Corrections in force that affect it, newest first.")

    @classmethod
    def of(cls, pet: PetId, why: Why) -> Self:
        second = why.second
        return cls(
            pet_id=pet,
            media_id=why.media,
            revision=why.revision,
            cluster_id=None if why.cluster == NOISE else why.cluster,
            origin="quarantined" if why.origin is None else why.origin.name.lower(),
            reason=why.reason,
            similarity=why.similarity,
            threshold=why.threshold,
            second=None
            if second is None
            else RivalCluster(
                cluster_id=second.cluster,
                similarity=second.similarity,
                threshold=second.threshold,
                is_forbidden=second.is_forbidden,
            ),
            margin=why.margin,
            nearest=[
                NearItem(media_id=near.media, cluster_id=near.cluster, similarity=near.similarity)
                for near in why.nearest
            ],
            corrections=[
                DemandOf(revision=one.revision, kind=one.kind, by=one.by, at=one.at, demand=one.demand)
                for one in why.demands
            ],
        )


class ReclusterResult(BaseModel):
    """The changes that a recluster made or would make."""

    revision: int = Field(description="The revision that it created or would create.")
    n_media: int
    n_clusters: int
    n_noise: int
    n_dismissed: int
    n_absorbed: int
    n_moved: int
    n_kept_ids: int
    n_new_ids: int
    n_retired_ids: int
    constraints_kept: int
    constraints: int
    kept: str = Field(description="Summary: constraints kept n of n.")
    overridden: Sequence[str] = Field(description="Older corrections that newer ones override.")

    @classmethod
    def of(cls, result: Reclustered) -> Self:
        return cls(**{name: getattr(result, name) for name in cls.model_fields})


class Applied(BaseModel):
    """The result of a preview that was applied."""

    pet_id: int
    result: ReclusterResult


class ReclusterPreview(BaseModel):
    """The changes that a recluster would make. Send `token` as `apply` to make exactly these changes."""

    pet_id: int
    token: str
    revision: int = Field(description="The pet's revision; the preview can be applied only while it is the newest.")
    expires_at: datetime
    result: ReclusterResult
    diff: PetDiff

    @classmethod
    def of(cls, previewed: Previewed) -> Self:
        preview = previewed.preview
        return cls(
            pet_id=preview.pet,
            token=preview.token,
            revision=preview.revision,
            expires_at=preview.expires_at,
            result=ReclusterResult.of(preview.result),
            diff=PetDiff.of(previewed.diff),
        )


class HistoryLine(BaseModel):
    """A recluster or a correction in the history of a pet."""

    revision: int
    kind: ChangeKind
    at: datetime
    by: str = Field(description="The requester: the name of a token, `loopback` or `machine`.")
    summary: Mapping[str, Any] = Field(description="What the change did, as figures.")

    @classmethod
    def of(cls, entry: HistoryEntry) -> Self:
        return cls(revision=entry.revision, kind=entry.kind, at=entry.at, by=entry.by, summary=entry.summary)


class PetHistory(BaseModel):
    """The reclusters and corrections of a pet, newest first."""

    pet_id: int
    entries: list[HistoryLine]

    @classmethod
    def of(cls, pet: PetId, entries: Sequence[HistoryEntry]) -> Self:
        return cls(pet_id=pet, entries=[HistoryLine.of(entry) for entry in entries])


class MovedItem(BaseModel):
    media_id: str
    before: int | None = Field(
        alias="from", description="Its cluster in the earlier revision; null if it was noise or not yet present."
    )
    after: int | None = Field(alias="to", description="Its cluster in the later revision; null for noise.")


class PetDiff(BaseModel):
    """The differences between two revisions of a pet, or between its newest revision and a preview."""

    from_revision: int | None
    to_revision: int | None = Field(description="null for a preview.")
    n_same: int
    n_moved: int = Field(description="Items that moved from one cluster to another.")
    n_new_noise: int = Field(description="Items that were in a cluster and are noise now.")
    n_from_noise: int = Field(description="Items that were noise and are in a cluster now.")
    n_arrived: int = Field(description="Items that the earlier revision does not have.")
    moved: list[MovedItem] = Field(description="All these items, up to the limit.")
    is_truncated: bool = Field(description="Whether `moved` was cut at the limit.")
    merged: Mapping[str, int] = Field(description="Retired ids, with the cluster that most of their items are in now.")
    split: Mapping[str, int] = Field(description="New ids, with the cluster that most of their items come from.")
    kept_ids: Sequence[int]
    new_ids: Sequence[int]
    ended_ids: Sequence[int]

    @classmethod
    def of(cls, diff: Diff, limit: int = MAX_MOVES) -> Self:
        def known(cluster: int | None) -> int | None:
            return None if cluster == NOISE else cluster

        return cls(
            from_revision=diff.from_revision,
            to_revision=diff.to_revision,
            n_same=diff.n_same,
            n_moved=diff.n_moved,
            n_new_noise=diff.n_new_noise,
            n_from_noise=diff.n_from_noise,
            n_arrived=diff.n_arrived,
            moved=[
                MovedItem(media_id=move.media, **{"from": known(move.before), "to": known(move.after)})
                for move in diff.moved[:limit]
            ],
            is_truncated=len(diff.moved) > limit,
            merged={str(ended): into for ended, into in diff.merged.items()},
            split={str(new): source for new, source in diff.split.items()},
            kept_ids=diff.kept_ids,
            new_ids=diff.new_ids,
            ended_ids=diff.ended_ids,
        )


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


class Job(BaseModel):
    """The status of a job."""

    job_id: str
    state: JobState
    reason: str = Field(description="One sentence: why the job waits, what it is doing, or how it ended.")
    queue: str
    actor: str
    attempts: int = Field(description="Number of times it was started.")
    pet_id: int | None
    enqueued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None = Field(description="When a delayed or retrying job is due to run.")
    result: Mapping[str, Any] | None = Field(description="The result of a job that succeeded.")

    @classmethod
    def of(cls, job: JobStatus) -> Self:
        return cls(
            job_id=job.job_id,
            state=job.state,
            reason=job.reason,
            queue=job.queue,
            actor=job.actor,
            attempts=job.attempts,
            pet_id=job.pet_id,
            enqueued_at=job.enqueued_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            due_at=job.due_at,
            result=job.result,
        )


class Alive(BaseModel):
    status: str = "alive"


class Ready(BaseModel):
    status: str = "ready"
    checks: list[str] = Field(description="The checks that passed.")
