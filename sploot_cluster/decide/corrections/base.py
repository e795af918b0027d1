"""What every correction verb has: a request that checks itself, and what the verb does to a pet.

A verb is one module: its :class:`Request`; for all verbs but undo and restore the :class:`Statement` that the request
puts into the ledger; and everything that the house needs to know of the two. ``corrections.VERBS`` lists the requests,
and the client, the actors, their retries, metrics and roles, the HTTP routes, the command line and the console are all
driven by that list.

This module and those of the verbs import only the standard library when they are loaded, because producers import the
requests. What computes with numpy is in ``planning``, which is imported when a request is planned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, Self, TypedDict, TypeVar

from sploot_cluster.fields import ID, Checked, Field, Text, Whole, checked, fields_of, given
from sploot_cluster.pet.models import Change, ClusterId, Corrected, Correction, HistoryEntry, MediaId, PetState

if TYPE_CHECKING:
    from sploot_cluster.pet.past import Past
    from sploot_cluster.pet.vectors import LabelVector, Rows
    from sploot_cluster.settings import ClusterSettings

# The requester when the caller names none.
UNKNOWN_REQUESTER: Final = "unknown"


class Signed(TypedDict, total=False):
    """The fields of every request that say who asks, and which revision they saw; not what to do."""

    requested_by: str
    expected_revision: int | None


Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Operation:
    """One run of a request.

    Attributes:
        id: the same when the request is repeated, so that it is done once.
        at: the time to record, timezone-aware.
        history: returns the pet's history, newest first.
        past: returns the pet's former labels up to a state, or raises RevisionConflict if the store has a newer one.
    """

    id: str
    at: datetime
    settings: ClusterSettings
    history: Callable[[], Sequence[HistoryEntry]]
    past: Callable[[PetState], Past]


@checked
class Request(Checked, ABC, Generic[Answer]):
    """What a labeller asks for, about one pet. A value has passed every check that needs no pet.

    Subclasses say in their docstring what the verb does, in one paragraph for labellers, and set:

    Attributes:
        verb: its name on the client, in HTTP paths, on the command line, in the history and in metrics.
        actor_name: the name of its actor, and of its operation in the OpenAPI document.
        title: what it does, in a few words.
        button: the same in one or two words.
        requested_by: the labeller, for the pet's history.
        expected_revision: the revision that the labeller saw; refused if items have moved since. None: no check.
    """

    verb: ClassVar[str]
    actor_name: ClassVar[str]
    title: ClassVar[str]
    button: ClassVar[str]

    pet_id: int = given(ID, "Id of the pet.", 42)
    requested_by: str = given(Text(), "The labeller.", "ada", default=UNKNOWN_REQUESTER, kw_only=True)
    expected_revision: int | None = given(
        Whole(0), "The revision that the labeller saw.", 17, default=None, kw_only=True
    )

    @classmethod
    def description(cls) -> str:
        """Return what the verb does, as one paragraph for labellers."""
        return " ".join((cls.__doc__ or "").split())

    @classmethod
    def body(cls) -> dict[str, Field]:
        """Return the fields that say what to do, without those that say who asks and what they saw."""
        return {name: known for name, known in fields_of(cls).items() if name not in Signed.__annotations__}

    @classmethod
    def example(cls) -> Self:
        """Return a request for documents and tests."""
        fields: dict[str, Any] = {name: known.example for name, known in cls.body().items()}
        return cls(**fields)

    @abstractmethod
    def done_before(self, state: PetState, operation: Operation) -> Answer | None:
        """Return the answer if the operation was done before; else None."""

    @abstractmethod
    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Answer]:
        """Return the change to commit on ``state``, and the answer. Pure and deterministic.

        Raises:
            InvalidInput: the request does not fit the pet; subclasses of it name a cluster, an item or a revision.
            RevisionConflict: another commit came first.
        """


class LedgerRequest(Request[Corrected]):
    """A request that puts a correction into the ledger."""

    __slots__ = ()

    def done_before(self, state: PetState, operation: Operation) -> Corrected | None:
        from sploot_cluster.decide.corrections import planning

        return planning.done_before(state, operation.id)


class LedgerEntry(Correction):
    """A correction whose request can be made again."""

    __slots__ = ()

    @abstractmethod
    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> LedgerRequest | None:
        """Return the request that makes this correction again; None if none of its items is left.

        Args:
            left: returns those of some items that can be named, in their order.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """The effect that a correction requests, before constraints and ids are resolved.

    Attributes:
        labels: (n,) the cluster of each row; rows of a cluster that must be divided still share a label.
        next_cluster: the next unused id.
        named: rows, and the id for the cluster that most of them end up in; of several ids for one cluster, a living
            one wins.
        returning: aliases -> the ids that they point to again.
    """

    labels: LabelVector
    next_cluster: ClusterId
    named: Sequence[tuple[Rows, ClusterId]] = ()
    returning: Mapping[ClusterId, ClusterId] = field(default_factory=dict)


class Demands(Protocol):
    """Collects what the corrections in force demand of items, newest first; see ``decide.resolving``.

    An older statement yields where newer ones contradict it. That is recorded as a sentence about ``statement``.
    """

    def together(
        self, statement: Statement, media: Sequence[MediaId], cluster_of: Mapping[MediaId, ClusterId] | None = None
    ) -> None:
        """Demand that items share a cluster, and are never noise.

        Args:
            media: where newer corrections divide them, the later ones join the group of the earlier ones if possible.
            cluster_of: the clusters that people joined; None: the items are one.
        """

    def apart(
        self,
        statement: Statement,
        moved: Sequence[MediaId],
        remaining: Sequence[MediaId],
        *,
        is_leaving: bool = False,
    ) -> None:
        """Demand that none of ``moved`` shares a cluster with one of ``remaining``.

        Args:
            is_leaving: also release each of ``moved`` from older corrections that keep it with ``remaining``.
        """

    def barred(self, statement: Statement, media: Sequence[MediaId], cluster: ClusterId) -> None:
        """Demand that no item is in the cluster that an id resolves to, unless a correction places it there."""

    def nowhere(self, statement: Statement, media: Sequence[MediaId]) -> None:
        """Demand that items are in no cluster."""

    def released(self, media: Sequence[MediaId]) -> None:
        """Let no older correction demand anything of items."""


class Statement(LedgerEntry):
    """A correction that demands something of items: every kind but an undo.

    Attributes:
        noun: what it is called in sentences.
    """

    __slots__ = ()

    noun: ClassVar[str]

    @abstractmethod
    def constrain(self, demands: Demands) -> None:
        """State what it demands."""

    @abstractmethod
    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        """Return what it demands of one of its items, in words.

        Args:
            n_mates: number of items that it still keeps together with this one; None if it keeps it with none.
        """

    @abstractmethod
    def plan_again(self, state: PetState) -> Plan:
        """Plan to apply it again, after an undo of it was undone. Enforcing it joins and separates its items."""

    @abstractmethod
    def plan_back(self, state: PetState) -> Plan:
        """Plan to return items to where they were before it, if they are still where it put them."""
