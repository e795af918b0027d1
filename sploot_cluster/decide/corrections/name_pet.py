"""Name a pet: the name is shown next to its id, and pets can be found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import LedgerRequest, Mark, Operation
from sploot_cluster.errors import AlreadyMade, UnknownPet
from sploot_cluster.fields import Text, checked, given
from sploot_cluster.limits import MAX_NAME
from sploot_cluster.pet.models import Change, Corrected, MediaId, PetState, Signature


@checked
class NamePet(LedgerRequest):
    """Name a pet, or give it another name. The name is shown next to the pet's id, and pets can be found by name.
    Several pets may have the same name. Empty text removes the name.
    """

    verb: ClassVar[str] = "name_pet"
    actor_name: ClassVar[str] = "name_pet"
    title: ClassVar[str] = "Name a pet"
    button: ClassVar[str] = "Name the pet"

    name: str = given(
        Text(shortest=0, longest=MAX_NAME, is_trimmed=True), "The name of the pet; empty removes it.", "Mochi"
    )

    def check_news(self, state: PetState) -> None:
        from sploot_cluster.decide.presentation import pet_name_of

        if self.name == (pet_name_of(state.ledger) or ""):
            is_there = "has this name already" if self.name else "has no name"
            raise AlreadyMade("name", f"pet {state.pet} {is_there}", "send another, or leave it as it is")

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        from sploot_cluster.decide.corrections import planning

        if not state.n_media:
            raise UnknownPet(pet=state.pet)
        self.check_news(state)
        return planning.record(state, PetNaming(*planning.signature(self, state, operation), name=self.name))


@dataclass(frozen=True, slots=True)
class PetNaming(Mark):
    """A correction that names the pet, or removes its name if empty. It demands nothing of items."""

    kind: ClassVar[str] = NamePet.verb
    noun: ClassVar[str] = "naming of the pet"

    name: str

    def media(self) -> Sequence[MediaId]:
        return ()

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> PetNaming:
        return self

    def summary(self) -> dict[str, object]:
        return {"name": self.name}

    def facts(self) -> dict[str, object]:
        return {"name": self.name}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> PetNaming:
        return cls(*signature, str(facts["name"]))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> NamePet:
        return NamePet(pet_id, self.name, requested_by=self.by)
