"""The command that repairs damaged pets, and the list of all pets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sploot_cluster.errors import InvalidInput
from sploot_cluster.limits import MAX_INT64
from tasks.cli.screen import out, print_json
from tasks.cli.shared import REFUSED, AsJson, By, command_group, examples, fail, open_tasks, settings_of_environment

if TYPE_CHECKING:
    from sploot_cluster.pet.models import PetId
    from sploot_cluster.store.repairs import PetRepairs
    from sploot_cluster.store.salvage import Salvaged
    from tasks.settings import Settings

app = command_group()

PETS_SHOWN: Final = 20


@app.command(
    epilog=examples("sploot-cluster repair 42", "sploot-cluster repair 42 --yes", "sploot-cluster repair --list")
)
def repair(
    by: By,
    pet: Annotated[
        int | None, typer.Argument(min=1, max=MAX_INT64, help="The id of the damaged pet.", metavar="[PET]")
    ] = None,
    pets: Annotated[
        bool, typer.Option("--list", help="Repair the list of all pets; needs a Redis user that may list keys.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The model of its vectors, if no key names it any more.", metavar="NAME@VERSION")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to save its keys as they are; default: pet-<id>-damaged.zip."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Repair now, instead of printing the plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Repair a damaged pet: compute what follows from other keys, and drop what is lost. Without --yes, print the plan.

    Before anything is written, the keys are saved to a file as they are; `import` puts them back.
    """
    from tasks.composition import build_client

    if (pet is None) is not pets:
        raise InvalidInput("PET", "expected exactly one thing to repair", "give either the id of a pet or --list")
    settings = settings_of_environment()
    with build_client(settings) as client:
        from sploot_cluster.pet.models import PetId
        from sploot_cluster.store.repairs import PetRepairs
        from tasks.composition import build_cold_pets

        repairs = PetRepairs(client, cold=build_cold_pets(settings, client))
        if pet is None:
            _repair_list(repairs, yes=yes, as_json=as_json)
        else:
            target = output or Path(f"pet-{pet}-damaged.zip")
            _repair_pet(repairs, PetId(pet), settings, by=by, model=model, output=target, yes=yes, as_json=as_json)


def _repair_pet(
    repairs: PetRepairs,
    pet: PetId,
    settings: Settings,
    *,
    by: str,
    model: str | None,
    output: Path,
    yes: bool,
    as_json: bool,
) -> None:
    from sploot_cluster.store import archives
    from sploot_cluster.store.salvage import salvage
    from tasks.capture.file import write_capture
    from tasks.capture.raw import members_of

    damage = repairs.damage(pet)
    if damage is None:
        print_json({"pet_id": pet, "damage": None}) if as_json else out.print(f"pet {pet} is intact; nothing to repair")
        return
    raw = repairs.read(pet)
    found = salvage(raw, by=by, at=datetime.now(UTC), model=model)
    if not as_json:
        _show(pet, damage, found)
    if not yes:
        if as_json:
            print_json(_facts(pet, damage, found))
        fail(REFUSED, "nothing was written; add --yes to repair")
    write_capture(archives.pack(members_of(raw, redact=False)), output)
    repairs.rewrite(raw, found.pet)
    if as_json:
        print_json(_facts(pet, damage, found) | {"saved_to": str(output)})
    else:
        out.print(f"pet {pet} is repaired, at revision {found.pet.state.revision}; its keys as they were: {output}")
    with open_tasks() as tasks:
        job = tasks.recluster(pet, requested_by=by)
    if not as_json:
        out.print(f"job {job.job_id} will recluster it")


def _facts(pet: PetId, damage: str, found: Salvaged) -> dict[str, object]:
    return {
        "pet_id": pet,
        "damage": damage,
        "derived": list(found.derived),
        "lost": list(found.lost),
        "revision": found.pet.state.revision,
        "n_media": found.pet.state.n_media,
        "n_quarantined": len(found.pet.quarantine),
    }


def _show(pet: PetId, damage: str, found: Salvaged) -> None:
    state = found.pet.state
    out.print(f"pet {pet} is damaged: {damage}")
    out.print(
        f"after the repair, it has {state.n_media} items in {len(state.clusters)} clusters and the noise, "
        f"{len(found.pet.quarantine)} quarantined items and {len(state.ledger)} corrections",
    )
    for title, lines in (("computed from other keys", found.derived), ("lost", found.lost)):
        out.print(f"{title}:" if lines else f"{title}: nothing")
        for line in lines:
            out.print(f"  {line}")


def _repair_list(repairs: PetRepairs, *, yes: bool, as_json: bool) -> None:
    found = repairs.compare_lists()
    if yes:
        repairs.relist(found)
    if as_json:
        print_json({**found._asdict(), "is_written": yes})
    else:
        done = "" if yes else "would be "
        added, gone, unnamed = map(_examples, found)
        out.print(f"{len(found.unlisted)} pets {done}added to the list of all pets{added}")
        out.print(f"{len(found.gone)} ids without data {done}removed from it{gone}")
        out.print(f"{len(found.unnamed)} names of pets {done}added to the index of names{unnamed}")
    if not yes and any(found):
        fail(REFUSED, "nothing was written; add --yes to write the list")


def _examples(pets: Sequence[PetId]) -> str:
    more = f" and {len(pets) - PETS_SHOWN} more" if len(pets) > PETS_SHOWN else ""
    return ": " + ", ".join(map(str, pets[:PETS_SHOWN])) + more if pets else ""
