"""Restore: the labels of an earlier revision become a new revision. ``decide.restoring`` plans the change."""

from __future__ import annotations

from typing import ClassVar, cast

from sploot_cluster.decide.corrections.base import Operation, Request
from sploot_cluster.fields import ID, checked, given
from sploot_cluster.pet.models import Change, PetState, Restored


@checked
class RestoreRevision(Request[Restored]):
    """Restore the labels of an earlier revision, as a new revision. Corrections made since stay in force, and items
    that arrived since stay in the pet; undo the corrections that you no longer want.
    """

    verb: ClassVar[str] = "restore"
    actor_name: ClassVar[str] = "restore_revision"
    title: ClassVar[str] = "Restore an earlier revision"
    button: ClassVar[str] = "Restore"

    revision: int = given(ID, "Revision to restore; see the pet's history.", 17)

    def done_before(self, state: PetState, operation: Operation) -> Restored | None:
        done = next((entry for entry in operation.history() if entry.summary.get("operation_id") == operation.id), None)
        if done is None:
            return None
        return Restored(
            revision=done.revision,
            restored=cast("int", done.summary["restored"]),
            n_moved=0,
            n_held=0,
            n_later=0,
            constraints_kept=0,
            constraints=0,
            kept="",
            overridden=(),
            is_duplicate=True,
        )

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Restored]:
        from sploot_cluster.decide.restoring import plan_restore

        past = operation.past(state)
        return plan_restore(
            state, past, self.revision, settings=operation.settings, operation_id=operation.id, by=self.requested_by
        )
