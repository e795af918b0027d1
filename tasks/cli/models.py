"""Another embedding model beside a pet's own: begin, look what it would change, switch, or end it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tasks.cli.pets import print_diff
from tasks.cli.screen import out, print_json
from tasks.cli.shared import FAILED, REFUSED, AsJson, By, Pet, fail, open_service

app = typer.Typer(help="Run a new embedding model beside a pet's own, and switch to it.", no_args_is_help=True)


@app.command()
def status(pet: Pet, as_json: AsJson = False) -> None:
    """Show the pet's model, and the one beside it."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        view, shadow = service.clusters(PetId(pet)), service.shadow(PetId(pet))
        n_only_here = len(service.only_in_shadow(PetId(pet)))
    if as_json:
        candidate = (
            None
            if shadow is None
            else {name: value for name, value in asdict(shadow).items() if name != "vectors"}
            | {"n_only_here": n_only_here}
        )
        print_json(
            {"pet_id": pet, "model": view.model, "dim": view.dim, "n_media": view.n_media, "candidate": candidate}
        )
        return
    out.print(f"pet {pet}: {view.n_media} media in {view.model} of {view.dim} values")
    if shadow is None:
        out.print("no other model beside it")
    else:
        out.print(
            f"beside it {shadow.n_vectors} media in {shadow.model} of {shadow.dim} values, "
            f"since {shadow.begun_at:%Y-%m-%d %H:%M} UTC by {shadow.by}"
        )
        out.print(f"{view.n_media - shadow.n_vectors + n_only_here} of the {view.n_media} have no vector in it yet")
        if n_only_here:
            out.print(f"{n_only_here} items are in it alone; they are quarantined until the pet is switched")


@app.command()
def begin(
    pet: Pet,
    model: Annotated[str, typer.Argument(help="name@version of the new model.", metavar="MODEL")],
    dim: Annotated[int, typer.Argument(help="How many values its vectors have.", metavar="DIM")],
    by: By,
) -> None:
    """Keep what producers send in another model beside the pet, until it is switched or ended."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        service.begin_model(PetId(pet), model, dim, by=by)
    out.print(f"{model} runs beside pet {pet}: have all of its media embedded with it, then look at the preview")


@app.command()
def preview(pet: Pet, as_json: AsJson = False) -> None:
    """Show what the pet would be in the model beside its own, and a token for it. Computed here, with the engine."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        switch = service.preview_switch(PetId(pet))
    if as_json:
        print_json(
            {
                "token": switch.token,
                "result": asdict(switch.result),
                "diff": asdict(switch.diff),
                "joining": switch.joining,
                "left_out": switch.left_out,
            }
        )
        return
    out.print(f"the switch would make {switch.result.n_clusters} clusters; {switch.result.kept}")
    print_diff(switch.diff, as_json=False)
    if switch.joining:
        out.print(
            f"{len(switch.joining)} items join the pet; a switch back would quarantine them again, "
            "as the model that it has now has no vector of them",
            soft_wrap=True,
        )
    if switch.left_out:
        out.print(
            f"{len(switch.left_out)} items would be quarantined, as {switch.dump.state.model} has no vector of them; "
            "ingest them in it to take them in",
            soft_wrap=True,
        )
    out.print(f"while nothing else changes: sploot-cluster model switch {pet} --apply {switch.token}", soft_wrap=True)


@app.command()
def switch(
    pet: Pet,
    by: By,
    apply: Annotated[str, typer.Option(help="Do exactly what a preview showed, or nothing.", metavar="TOKEN")],
    as_json: AsJson = False,
) -> None:
    """Switch the pet to the model beside its own. The old one is beside it then: switching back is switching again."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        result = service.switch_model(PetId(pet), apply, by=by)
    if as_json:
        print_json(asdict(result))
        return
    out.print(f"pet {pet} is switched, at revision {result.revision}: {result.n_moved} media moved, {result.kept}")


@app.command()
def end(pet: Pet, yes: Annotated[bool, typer.Option("--yes", help="Do it. There is no undo.")] = False) -> None:
    """Forget the model beside the pet's own, with all of its vectors. Without --yes only the plan."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        shadow = service.shadow(PetId(pet))
        if shadow is None:
            fail(FAILED, f"no other model runs beside pet {pet}")
        told = f"{shadow.n_vectors} vectors of {shadow.model}"
        if n_only_here := len(service.only_in_shadow(PetId(pet))):
            told += f"; {n_only_here} items have no other vector, and stay quarantined until they are ingested again"
        if not yes:
            out.print(f"would forget {told}", soft_wrap=True)
            fail(REFUSED, "nothing was done, --yes does it. There is no undo")
        service.end_model(PetId(pet))
    out.print(f"forgotten: {told}", soft_wrap=True)
