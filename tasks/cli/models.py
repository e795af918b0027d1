"""Commands for a candidate embedding model next to a pet's own: begin, preview, switch, end."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.pets import print_diff
from tasks.cli.screen import out, print_json
from tasks.cli.shared import FAILED, REFUSED, AsJson, By, Pet, command_group, examples, fail, open_service

app = command_group("Run a candidate embedding model next to a pet's own, and switch to it.")


@app.command(epilog=examples("sploot-cluster model status 42"))
def status(pet: Pet, as_json: AsJson = False) -> None:
    """Show the pet's model and its candidate model."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        own = service.model(PetId(pet))
    if as_json:
        print_json(own)
        return
    out.print(f"pet {pet}: {own.n_media} items in {own.model} with {own.dim} dimensions")
    candidate = own.candidate
    if candidate is None:
        out.print("no candidate model")
    else:
        out.print(
            f"candidate: {candidate.n_vectors} items in {candidate.model} with {candidate.dim} dimensions, "
            f"since {candidate.begun_at:%Y-%m-%d %H:%M} UTC by {candidate.by}"
        )
        n_missing = own.n_media - candidate.n_vectors + candidate.n_only_here
        out.print(f"{n_missing} of the {own.n_media} items have no vector in it yet")
        if candidate.n_only_here:
            out.print(
                f"{candidate.n_only_here} items exist only in the candidate; they stay quarantined until "
                "the pet is switched"
            )


@app.command(epilog=examples("sploot-cluster model begin 42 clip@2 512"))
def begin(
    pet: Pet,
    model: Annotated[str, typer.Argument(help="name@version of the candidate model.", metavar="MODEL")],
    dim: Annotated[int, typer.Argument(help="Number of dimensions of its vectors.", metavar="DIM")],
    by: By,
) -> None:
    """Collect vectors of a candidate model next to the pet's own, until you switch to it or end it."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        service.begin_model(PetId(pet), model, dim, by=by)
    out.print(f"{model} is now the candidate of pet {pet}: embed all its items with it, then see the preview")


@app.command(epilog=examples("sploot-cluster model preview 42"))
def preview(pet: Pet, as_json: AsJson = False) -> None:
    """Preview the switch to the candidate model and print a token to apply it. Runs locally."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        switch = service.preview_switch(PetId(pet))
    if as_json:
        print_json(
            {
                "token": switch.token,
                "result": switch.result,
                "diff": switch.diff,
                "joining": switch.joining,
                "left_out": switch.left_out,
            }
        )
        return
    out.print(f"the switch would make {switch.result.n_clusters} clusters; {switch.result.kept}")
    print_diff(switch.diff)
    if switch.joining:
        out.print(
            f"{len(switch.joining)} items join the pet; switching back would quarantine them again, "
            "because the current model has no vectors of them",
        )
    if switch.left_out:
        out.print(
            f"{len(switch.left_out)} items would be quarantined: {switch.dump.state.model} has no vectors of them; "
            "ingest them in that model to keep them",
        )
    out.print(
        f"to apply it, if the pet does not change: sploot-cluster model switch {pet} --apply {switch.token}",
    )


@app.command(epilog=examples("sploot-cluster model switch 42 --apply TOKEN"))
def switch(
    pet: Pet,
    by: By,
    apply: Annotated[str, typer.Option(help="Apply exactly what a preview showed, or nothing.", metavar="TOKEN")],
    as_json: AsJson = False,
) -> None:
    """Switch the pet to its candidate model. The old model becomes the candidate, so switching again switches back."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        result = service.switch_model(PetId(pet), apply, by=by)
    if as_json:
        print_json(result)
        return
    out.print(f"pet {pet} switched, at revision {result.revision}: {result.n_moved} items moved, {result.kept}")


@app.command(epilog=examples("sploot-cluster model end 42 --yes"))
def end(
    pet: Pet, yes: Annotated[bool, typer.Option("--yes", help="Delete now. This cannot be undone.")] = False
) -> None:
    """Delete the candidate model with all its vectors. Without --yes, print the plan."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        candidate = service.model(PetId(pet)).candidate
        if candidate is None:
            fail(FAILED, f"pet {pet} has no candidate model")
        summary = f"{candidate.n_vectors} vectors of {candidate.model}"
        if candidate.n_only_here:
            summary += f"; {candidate.n_only_here} items have no other vector and stay quarantined until ingested again"
        if not yes:
            out.print(f"would delete {summary}")
            fail(REFUSED, "nothing was deleted; add --yes to delete. This cannot be undone")
        service.end_model(PetId(pet))
    out.print(f"deleted: {summary}")
