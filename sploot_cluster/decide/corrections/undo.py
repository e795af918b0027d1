"""Undo: a correction is taken back, except for what another correction in force demands too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import LedgerEntry, LedgerRequest, Mark, Operation
from sploot_cluster.errors import AlreadyUndone, UnknownRevision
from sploot_cluster.fields import ID, checked, given
from sploot_cluster.pet.models import Change, ClusterId, Corrected, MediaId, PetState, Signature


@checked
class UndoFeedback(LedgerRequest):
    """Undo any correction, however old, including an undo. Later corrections stay in force. Items that are still where
    the correction put them return to where they came from.
    """

    verb: ClassVar[str] = "undo"
    actor_name: ClassVar[str] = "undo_feedback"
    title: ClassVar[str] = "Undo a correction"
    button: ClassVar[str] = "Undo"

    revision: int = given(ID, "Revision of the correction to undo; see the pet's history.", 17)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        from sploot_cluster.decide.corrections import planning
        from sploot_cluster.decide.resolving import in_force, statement_of

        check_undoable(state, self.revision)
        undo = Undo(*planning.signature(self, state, operation), undone=self.revision)
        statement = statement_of(state.ledger, self.revision)
        if isinstance(statement, Mark):
            return planning.record(state, undo)
        is_in_force = statement in in_force((*state.ledger, undo))
        plan = statement.plan_again(state) if is_in_force else statement.plan_back(state)
        return planning.correct(state, undo, plan, operation.settings)


def check_undoable(state: PetState, revision: int) -> None:
    """Check that a revision was made by a correction, and that this correction has not been undone.

    Raises:
        UnknownRevision: no correction made the revision.
        AlreadyUndone: the correction has been undone.
    """
    from sploot_cluster.decide.resolving import taken_back

    if all(correction.revision != revision for correction in state.ledger):
        raise UnknownRevision(pet=state.pet, revision=revision)
    if revision in taken_back(state.ledger):
        raise AlreadyUndone(pet=state.pet, revision=revision)


@dataclass(frozen=True, slots=True)
class Undo(LedgerEntry):
    """An undo of the correction that created revision ``undone``. An undo can itself be undone."""

    kind: ClassVar[str] = UndoFeedback.verb

    undone: int

    def undoes(self) -> int | None:
        return self.undone

    def media(self) -> Sequence[MediaId]:
        return ()

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Undo:
        return self

    def ids(self) -> Iterable[ClusterId]:
        return ()

    def summary(self) -> dict[str, object]:
        return {"undone": self.undone}

    def facts(self) -> dict[str, object]:
        return {"undone": self.undone}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Undo:
        return cls(*signature, undone=int(facts["undone"]))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> UndoFeedback | None:
        return UndoFeedback(pet_id, self.undone, requested_by=self.by)
