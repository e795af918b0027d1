"""What callers get, besides problems."""

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

# Of what differs between two revisions; a page that shows more helps nobody.
MAX_MOVES: Final = 1_000


class JobAccepted(BaseModel):
    """A job will run; `Location` says where to ask for it."""

    job_id: str
    coalesced: bool = Field(description="It was waiting already, and this request added nothing.")
    position: int | None = Field(
        description="Jobs that waited in its queue when it was enqueued, itself included; null where nobody counted."
    )

    @classmethod
    def of(cls, job: JobRef) -> Self:
        return cls(job_id=job.job_id, coalesced=job.coalesced, position=job.position)


class EmbeddingAccepted(JobAccepted):
    """An item was handed in, unless the rollout has not reached its pet."""

    withheld: bool = Field(description="The rollout has not reached the pet: nothing was enqueued, no such job runs.")

    @classmethod
    def of(cls, job: JobRef) -> Self:
        return cls(job_id=job.job_id, coalesced=job.coalesced, position=job.position, withheld=job.withheld)


class EmbeddingOutcome(BaseModel):
    """What became of one entry of a list: a job, or errors."""

    index: int = Field(description="Its position in the list, from 0.")
    job: EmbeddingAccepted | None = None
    errors: list[FieldProblem] = []


class EmbeddingOutcomes(BaseModel):
    """What became of a list, entry by entry, in its order."""

    accepted: int
    refused: int
    items: list[EmbeddingOutcome]


class Cluster(BaseModel):
    cluster_id: int
    size: int
    media_ids: Sequence[str] = Field(description="In the order of their arrival.")
    origins: Mapping[str, int] = Field(
        description="How many of them came to it in which way: core, arrived, absorbed, corrected."
    )
    threshold: float = Field(description="The mean top-3 cosine similarity that an arrival must reach.")
    since: int = Field(
        description="The revision at which the id was given out; of one that ended and came back, when it did."
    )
    split_from: int | None = Field(description="The cluster in which most of its media were then.")
    merged_from: Sequence[int] = Field(description="Ids that lead to it.")

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
    """One cluster, by the id that was asked for."""

    pet_id: int
    revision: int
    asked_id: int = Field(description="As it was asked for; the cluster's own id differs if that was merged away.")
    cluster: Cluster


class PetClusters(BaseModel):
    """A pet at one revision; revision 0 is a pet that has nothing yet."""

    pet_id: int
    revision: int
    model: str | None
    dim: int | None
    n_media: int
    n_noise: int
    clusters: list[Cluster] = Field(description="The largest first.")
    noise: Sequence[str] = Field(description="Media in no cluster, in the order of their arrival.")
    dismissed: Sequence[str] = Field(description="Media that a person dismissed, and that are noise for ever.")
    aliases: Mapping[str, int] = Field(description="Ids that were merged away, and the cluster they lead to.")

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
    """Where the media of a pet are counted."""

    pet_id: int
    ingested: int = Field(description="Media that came, counted one by one.")
    clustered: int
    noise: int
    quarantined: int
    dismissed: int
    overflowed: int = Field(description="Arrivals that found the quarantine full; no part of ingested.")
    is_conserved: bool = Field(description="ingested = clustered + noise + quarantined + dismissed")
    quarantine: list[QuarantinedItem] = Field(
        description="Media whose vectors are of another model or dimension than the pet's."
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
    """Where a dead letter is, or was."""

    queue: str
    dead_letter_id: str

    @classmethod
    def of(cls, dead_letter: DeadLetterRef) -> Self:
        return cls(queue=dead_letter.queue, dead_letter_id=dead_letter.dead_letter_id)


class Erased(BaseModel):
    """What was deleted of a pet, for good."""

    pet_id: int
    n_media: int
    n_corrections: int = Field(description="That named one of them; all of a pet that was deleted.")
    n_records: int = Field(description="Records of jobs.")
    n_dead_letters: int
    records: Sequence[str] = Field(description="The ids of these jobs.")
    dead_letters: list[DeadLetterPlace] = Field(description="Those that went.")
    unreadable: list[DeadLetterPlace] = Field(
        description="Dead letters of which cannot be read what they are about. They are still there."
    )
    revision: int = Field(description="The pet's now; 0 when the whole pet is gone.")

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
    n_vectors: int = Field(description="Media that have a vector of it.")
    n_only_here: int = Field(description="Those of them that the pet's own model has no vector of; quarantined.")
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
    """The embedding model of a pet, and the one that runs beside it."""

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
    similarity: float = Field(description="Mean top-3 cosine similarity to its accepted media.")
    threshold: float = Field(description="What an arrival must reach.")
    is_forbidden: bool = Field(description="A correction in force keeps the item out of it.")


class DemandOf(BaseModel):
    """What a correction in force demands of an item."""

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
    cluster_id: int | None = Field(description="null for noise, and for an item that is quarantined.")
    origin: str = Field(description="noise, core, arrived, absorbed, corrected, dismissed or quarantined.")
    reason: str = Field(description="One sentence.")
    similarity: float | None = Field(description="Mean top-3 cosine similarity to its own cluster.")
    threshold: float | None = Field(description="What an arrival must reach there.")
    second: RivalCluster | None = Field(description="The most similar of the other clusters.")
    margin: float | None = Field(description="How much more similar its own cluster is; below 0 where people put it.")
    nearest: list[NearItem] = Field(description="Media of clusters that were not merely absorbed, nearest first.")
    corrections: list[DemandOf] = Field(description="What corrections in force demand of it, the newest first.")

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
    """What a recluster did, or would do."""

    revision: int = Field(description="The one that it made, or would make.")
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
    kept: str = Field(description="constraints kept n of n")
    overridden: Sequence[str] = Field(description="Older corrections that newer ones contradict.")

    @classmethod
    def of(cls, result: Reclustered) -> Self:
        return cls(**{name: getattr(result, name) for name in cls.model_fields})


class Applied(BaseModel):
    """A preview was applied: the pet is exactly what it showed."""

    pet_id: int
    result: ReclusterResult


class ReclusterPreview(BaseModel):
    """What a recluster would do. Send `token` as `apply` to have exactly that."""

    pet_id: int
    token: str
    revision: int = Field(description="The pet's; the preview can be applied while it is the newest.")
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
    """A recluster or a correction."""

    revision: int
    kind: ChangeKind
    at: datetime
    by: str = Field(description="Who asked: a token's name, `loopback`, or `machine`.")
    summary: Mapping[str, Any] = Field(description="What it did, in numbers.")

    @classmethod
    def of(cls, entry: HistoryEntry) -> Self:
        return cls(revision=entry.revision, kind=entry.kind, at=entry.at, by=entry.by, summary=entry.summary)


class PetHistory(BaseModel):
    """What happened to a pet besides plain arrivals, newest first."""

    pet_id: int
    entries: list[HistoryLine]

    @classmethod
    def of(cls, pet: PetId, entries: Sequence[HistoryEntry]) -> Self:
        return cls(pet_id=pet, entries=[HistoryLine.of(entry) for entry in entries])


class MovedItem(BaseModel):
    media_id: str
    before: int | None = Field(
        alias="from", description="Its cluster in the earlier one; null for noise, or when it was not there."
    )
    after: int | None = Field(alias="to", description="Its cluster in the later one; null for noise.")


class PetDiff(BaseModel):
    """What differs between two revisions of a pet, or between its newest one and a recluster that was previewed."""

    from_revision: int | None
    to_revision: int | None = Field(description="null for a preview.")
    n_same: int
    n_moved: int = Field(description="Media that went from one cluster to another.")
    n_new_noise: int = Field(description="Media that fell out of a cluster.")
    n_from_noise: int = Field(description="Media that were noise and found a cluster.")
    n_arrived: int = Field(description="Media that the earlier one does not have.")
    moved: list[MovedItem] = Field(description="All of these media, up to the limit.")
    is_truncated: bool = Field(description="There are more of them.")
    merged: Mapping[str, int] = Field(description="Ids that ended, and the cluster that most of their media are in.")
    split: Mapping[str, int] = Field(description="Ids that began, and the cluster that most of their media come from.")
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
    """Where the media of a pet were at a revision."""

    pet_id: int
    revision: int | None
    clusters: Mapping[str, Sequence[str]] = Field(description="Media by the id of their cluster then.")
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
    """What is known of a job."""

    job_id: str
    state: JobState
    reason: str = Field(description="One sentence: why it waits, what it is doing, or how it ended.")
    queue: str
    actor: str
    attempts: int = Field(description="How often it was started.")
    pet_id: int | None
    enqueued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None = Field(description="When a job that is delayed or retrying runs.")
    result: Mapping[str, Any] | None = Field(description="What it answered, once it succeeded.")

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
    checks: list[str] = Field(description="What was looked at.")
