"""The values of suggestions: questions about a pet's clusters, with a correction for each answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sploot_cluster.answer_fields import described
from sploot_cluster.pet.models import ClusterId, MediaId, PetId


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a question, as the correction to send."""

    verb: str = field(metadata=described("The verb of the correction: `POST …/clusters/<verb>`."))
    body: Mapping[str, object] = field(metadata=described("The body of the correction's request."))


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A question about a pet's clusters. *Yes* changes something; *no* confirms what is there."""

    suggestion_id: str = field(
        metadata=described("Stays the same while the question does, so that clients can remember a *later*.")
    )
    kind: str = field(
        metadata=described(
            "`same_subject`: two clusters may show one subject. `stranger`: an item may not belong to its cluster. "
            "`two_subjects`: a cluster may show two subjects."
        )
    )
    question: str
    cluster_ids: tuple[ClusterId, ...] = field(metadata=described("The clusters in question."))
    sides: tuple[tuple[MediaId, ...], tuple[MediaId, ...]] = field(
        metadata=described("Items to show next to each other: typical ones of both sides, or the item and its cluster.")
    )
    probability: float = field(metadata=described("The estimated probability that the answer is yes, in [0, 1]."))
    gain: float = field(
        metadata=described("The expected number of items that the answer corrects. Suggestions are sorted by it.")
    )
    yes: Reply
    no: Reply


@dataclass(frozen=True, slots=True)
class PetSuggestions:
    """The questions to ask about a pet, at one revision."""

    pet_id: PetId
    revision: int
    suggestions: tuple[Suggestion, ...] = field(metadata=described("Suggestions, highest expected gain first."))
    paused: tuple[str, ...] = field(
        metadata=described("Kinds that wait for the next recluster, because their last three answers were no.")
    )


@dataclass(frozen=True, slots=True)
class DoubtfulItem:
    """An item that may not belong to its cluster."""

    media_id: MediaId
    cluster_id: ClusterId
    origin: str = field(metadata=described("The origin of its membership, such as `absorbed`."))
    similarity: float = field(metadata=described("Mean top-3 cosine similarity to accepted items of its cluster."))
    threshold: float = field(metadata=described("The similarity that an arriving item must reach."))
    second_cluster_id: ClusterId | None = field(metadata=described("The most similar other cluster."))
    second_similarity: float | None
    probability: float = field(
        metadata=described("The estimated probability that the item does not belong, in [0, 1].")
    )


@dataclass(frozen=True, slots=True)
class DoubtfulItems:
    """The items of a pet, or of a cluster, that are least certain to belong to their cluster."""

    pet_id: PetId
    revision: int
    items: tuple[DoubtfulItem, ...] = field(metadata=described("Items, least certain first."))
