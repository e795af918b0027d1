"""The base classes of correction verbs: requests, and the corrections that they put into the ledger.

A verb has one module. It contains the :class:`Request`, the :class:`Statement` that the request puts into the ledger
(except for undo and restore), and everything else that is specific to the verb. ``corrections.VERBS`` lists the
requests. That list drives the client, the actors with their retries, metrics and roles, the HTTP routes, the command
line and the console.

This module and those of the verbs import only the standard library when they are loaded, because producers import the
requests. Code that computes with numpy is in ``planning``, which is imported when a request is planned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, Self, TypedDict, TypeVar

from sploot_cluster.decide.corrections.facts import groups_of, items_in, named, renamed_in
from sploot_cluster.errors import AlreadyMade, InvalidInput
from sploot_cluster.fields import ID, Checked, Field, OneOf, Text, Whole, checked, fields_of, given
from sploot_cluster.pet.models import (
    Change,
    ClusterId,
    Corrected,
    Correction,
    HistoryEntry,
    MediaId,
    PetState,
    Signature,
)

if TYPE_CHECKING:
    from sploot_cluster.pet.past import Past
    from sploot_cluster.pet.vectors import LabelVector, Rows
    from sploot_cluster.settings import ClusterSettings

# The kinds of questions that corrections answer; see ``decide.suggestions``.
SAME_SUBJECT: Final = "same_subject"
STRANGER: Final = "stranger"
TWO_SUBJECTS: Final = "two_subjects"
_SUGGESTIONS: Final = (SAME_SUBJECT, STRANGER, TWO_SUBJECTS)

# The requester that is recorded if the caller names none.
UNKNOWN_REQUESTER: Final = "unknown"


class Signed(TypedDict, total=False):
    """The fields that all requests share: the requester, the revision that was seen, and the suggestion answered."""

    requested_by: str
    expected_revision: int | None
    suggestion: str | None


Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Operation:
    """One attempt to carry out a request.

    Attributes:
        id: the same for a repeated request, so that it takes effect once.
        at: the time to record, timezone-aware.
        history: a function that returns the pet's history, newest first.
        past: a function that returns the pet's former labels up to a state. It raises RevisionConflict if the store has
            a newer state.
    """

    id: str
    at: datetime
    settings: ClusterSettings
    history: Callable[[], Sequence[HistoryEntry]]
    past: Callable[[PetState], Past]


@checked
class Request(Checked, ABC, Generic[Answer]):
    """A labeller's request for one pet. An instance has passed all checks that do not need the pet.

    The docstring of a subclass explains the verb to labellers, in one paragraph. A subclass sets:

    Attributes:
        verb: its name on the client, in HTTP paths, on the command line, in the history and in metrics.
        actor_name: the name of its actor, and of its operation in the OpenAPI document.
        title: what it does, in a few words.
        button: the text of its button, one or two words.
        answers: the kinds of suggestions that it answers -> the answer, ``yes`` or ``no``.
        requested_by: the labeller, for the pet's history.
        expected_revision: the revision that the labeller saw; the request is refused if items have moved since. None:
            no check.
    """

    verb: ClassVar[str]
    actor_name: ClassVar[str]
    title: ClassVar[str]
    button: ClassVar[str]
    answers: ClassVar[Mapping[str, str]] = {}

    pet_id: int = given(ID, "Id of the pet.", 42)
    requested_by: str = given(Text(), "The labeller.", "ada", default=UNKNOWN_REQUESTER, kw_only=True)
    expected_revision: int | None = given(
        Whole(0), "The revision that the labeller saw.", 17, default=None, kw_only=True
    )
    suggestion: str | None = given(
        OneOf(_SUGGESTIONS),
        "The kind of suggestion that the correction answers. The pet's history shows it.",
        None,
        default=None,
        kw_only=True,
    )

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.suggestion is not None and self.suggestion not in self.answers:
            hint = f"send one of: {', '.join(self.answers)}" if self.answers else "leave it out"
            raise InvalidInput("suggestion", f"{self.verb} does not answer {self.suggestion}", hint)

    @classmethod
    def description(cls) -> str:
        """Return what the verb does, as one paragraph for labellers."""
        return " ".join((cls.__doc__ or "").split())

    @classmethod
    def body(cls) -> dict[str, Field]:
        """Return the fields of the request's body: its own, and ``suggestion`` if the verb can answer one."""
        fields = fields_of(cls)
        body = {name: known for name, known in fields.items() if name not in Signed.__annotations__}
        if cls.answers:
            body["suggestion"] = replace(fields["suggestion"], kind=OneOf(tuple(cls.answers)))
        return body

    @classmethod
    def example(cls) -> Self:
        """Return an example of a request, for the documentation and tests."""
        fields: dict[str, Any] = {name: known.example for name, known in cls.body().items()}
        return cls(**fields)

    def check_news(self, state: PetState) -> None:
        """Check that the correction would change something. The pet must have everything that it names.

        Raises:
            AlreadyMade: the pet is already as the request demands.
        """

    def noted(self, change: Change) -> Change:
        """Return the change, with the suggestion's kind and the answer in its summary if the request answers one."""
        if self.suggestion is None:
            return change
        noted = {"suggestion": self.suggestion, "answer": self.answers[self.suggestion]}
        return replace(change, summary={**change.summary, **noted})

    @abstractmethod
    def done_before(self, state: PetState, operation: Operation) -> Answer | None:
        """Return the result if the operation was already done, else None."""

    @abstractmethod
    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Answer]:
        """Return the change to commit on ``state``, and the result for the caller. Pure and deterministic.

        Raises:
            InvalidInput: the request does not fit the pet; subclasses of this error name a cluster, item or revision.
            RevisionConflict: another commit came first.
        """


class LedgerRequest(Request[Corrected]):
    """A request that puts a correction into the ledger."""

    __slots__ = ()

    def done_before(self, state: PetState, operation: Operation) -> Corrected | None:
        from sploot_cluster.decide.corrections import planning

        return planning.done_before(state, operation.id)


class LedgerEntry(Correction):
    """A correction from which its request can be created again."""

    __slots__ = ()

    @abstractmethod
    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> LedgerRequest | None:
        """Return a request that repeats this correction, or None if none of its items is left.

        Args:
            left: a function that returns the given items, in order, without those that can no longer be named.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """The effect that a correction requests, before constraints and ids are resolved.

    Attributes:
        labels: (n,) the cluster of each row; rows of a cluster that must be divided still share a label.
        next_cluster: the next unused id.
        named: pairs of rows and the id for the cluster that most of these rows end up in. If a cluster has several such
            ids, a living one wins.
        returning: alias -> the id that it points to again.
    """

    labels: LabelVector
    next_cluster: ClusterId
    named: Sequence[tuple[Rows, ClusterId]] = ()
    returning: Mapping[ClusterId, ClusterId] = field(default_factory=dict)


class Demands(Protocol):
    """A collector to which the corrections in force add their demands, newest first; see ``decide.resolving``.

    An older correction yields where newer ones contradict it. This is recorded as a sentence about ``statement``.
    """

    def together(
        self, statement: Statement, media: Sequence[MediaId], cluster_of: Mapping[MediaId, ClusterId] | None = None
    ) -> None:
        """Demand that items share a cluster and never be noise.

        Args:
            media: the items, most important first. Where newer corrections divide them, each item joins the group of a
                more important item if possible.
            cluster_of: item -> the cluster that it was in before users joined the clusters. None: there was only one.
        """

    def merged(self, statement: Statement, clusters: Sequence[ClusterId]) -> None:
        """Demand that the items of clusters that a merge joined share a cluster and never be noise.

        Args:
            clusters: the merged clusters, the most important first, as for :meth:`together`.
        """

    def apart(
        self,
        statement: Statement,
        moved: Sequence[MediaId],
        remaining: Sequence[MediaId],
        *,
        is_leaving: bool = False,
    ) -> None:
        """Demand that no item of ``moved`` share a cluster with an item of ``remaining``.

        Args:
            is_leaving: also release each of ``moved`` from older corrections that keep it with ``remaining``.
        """

    def barred(self, statement: Statement, media: Sequence[MediaId], cluster: ClusterId) -> None:
        """Demand that the items stay out of a cluster. Items that a correction put into a cluster are exempt.

        Args:
            cluster: the id of the cluster; an alias stands for the cluster that it leads to.
        """

    def nowhere(self, statement: Statement, media: Sequence[MediaId]) -> None:
        """Demand that items belong to no cluster."""

    def released(self, media: Sequence[MediaId]) -> None:
        """Release items from the demands of all older corrections."""


class Statement(LedgerEntry):
    """A correction that is not an undo: it demands something of items, or marks a pet or clusters.

    Attributes:
        noun: the word for it in sentences, such as “merge”.
    """

    __slots__ = ()

    noun: ClassVar[str]

    @abstractmethod
    def constrain(self, demands: Demands) -> None:
        """Add what this correction demands to ``demands``."""

    @abstractmethod
    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        """Return what this correction demands of one of its items, in words.

        Args:
            n_mates: number of other items that it still keeps together with this item, or None if it keeps the item
                together with none, or no longer does.
        """

    @abstractmethod
    def plan_again(self, state: PetState) -> Plan:
        """Plan to apply this correction again, after its undo was undone.

        Items that the correction joins or separates need not be moved here: enforcing the constraints does that.
        """

    @abstractmethod
    def plan_back(self, state: PetState) -> Plan:
        """Plan to return items to where they were before this correction, if they are still where it put them."""


class Mark(Statement):
    """A correction that only affects how a pet or cluster is presented, such as a name. It demands nothing of items."""

    __slots__ = ()

    def ids(self) -> Iterable[ClusterId]:
        return ()

    def constrain(self, demands: Demands) -> None:
        pass

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        return "nothing"

    def plan_again(self, state: PetState) -> Plan:
        return Plan(state.labels, state.next_cluster)

    def plan_back(self, state: PetState) -> Plan:
        return Plan(state.labels, state.next_cluster)


class MarkClusters(LedgerRequest):
    """A request that marks clusters or removes a mark from them. Its subclasses have the field ``cluster_ids``."""

    __slots__ = ()

    cluster_ids: Sequence[int]

    @abstractmethod
    def marking(self) -> type[ClusterMark]:
        """Return the class of the correction."""

    def check_news(self, state: PetState) -> None:
        self._changed(state)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        from sploot_cluster.decide.corrections import planning

        anchors = {cluster: planning.anchors(state, cluster) for cluster in self._changed(state)}
        return planning.record(state, self.marking()(*planning.signature(self, state, operation), anchors=anchors))

    def _changed(self, state: PetState) -> list[ClusterId]:
        """Return the clusters that the correction changes.

        Raises:
            AlreadyMade: it would change none.
        """
        from sploot_cluster.decide.corrections import lookup
        from sploot_cluster.decide.presentation import marked

        marking = self.marking()
        clusters = {lookup.living(state, cluster, "cluster_ids") for cluster in self.cluster_ids}
        before = marked(state, marking.mark)
        changed = sorted(clusters - before if marking.outcome == marking.mark else clusters & before)
        if not changed:
            problem = f"all of them are {marking.outcome} already"
            raise AlreadyMade("cluster_ids", problem, "send other clusters, or leave it as it is")
        return changed


@dataclass(frozen=True, slots=True)
class ClusterMark(Mark):
    """A mark on clusters, with typical items of each, by which the cluster is found once its id has ended.

    Attributes:
        mark: the mark, such as ``hidden``.
        outcome: what the clusters become: the mark, or a word such as ``shown`` if the correction removes the mark.
        anchors: cluster -> its typical items; if its id has ended, the mark is on the cluster with most of these items.
    """

    mark: ClassVar[str]
    outcome: ClassVar[str]
    _request: ClassVar[Callable[..., LedgerRequest]]

    anchors: Mapping[ClusterId, tuple[MediaId, ...]]

    @property
    def is_removed(self) -> bool:
        """Whether the correction removes the mark."""
        return self.outcome != self.mark

    def media(self) -> Sequence[MediaId]:
        return items_in(self.anchors)

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Self:
        return replace(self, anchors=renamed_in(self.anchors, name))

    def summary(self) -> dict[str, object]:
        return {"clusters": sorted(self.anchors)}

    def facts(self) -> dict[str, object]:
        return {"anchors": named(self.anchors)}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Self:
        return cls(*signature, groups_of(facts["anchors"]))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> LedgerRequest:
        return type(self)._request(pet_id, tuple(self.anchors), requested_by=self.by)
