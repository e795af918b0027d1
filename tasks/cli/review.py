"""Commands that show what a user may want to review: suggestions, and doubtful items."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sploot_cluster.fields import required_of
from sploot_cluster.limits import MAX_INT64
from tasks.cli.screen import out, print_json, table_of
from tasks.cli.shared import AsJson, Pet, command_group, examples, open_service

if TYPE_CHECKING:
    from sploot_cluster.decide.suggestions.values import Reply

app = command_group()

ITEMS_SHOWN: Final = 20


@app.command(epilog=examples("sploot-cluster suggestions 42"))
def suggestions(
    pet: Pet,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of questions.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the questions about a pet that are most worth an answer, with the command for each answer.

    A question that was answered is not asked again. After three answers “no” in a row, questions of
    that kind wait for the next recluster.
    """
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        found = service.suggestions(PetId(pet), limit=limit)
    if as_json:
        print_json(found)
        return
    if not found.suggestions:
        out.print(f"pet {pet} at revision {found.revision}: no questions")
    for one in found.suggestions:
        out.print(f"{one.question} (probability of yes {one.probability:.0%})")
        for side in one.sides:
            out.print(f"  {', '.join(side)}")
        for answer, reply in (("yes", one.yes), ("no", one.no)):
            out.print(f"  {answer}: {command_of(reply)}")
    if found.paused:
        kinds = ", ".join(found.paused)
        out.print(f"kinds of question paused until the next recluster, because three answers in a row were no: {kinds}")


@app.command(epilog=examples("sploot-cluster doubtful 42 --cluster 3"))
def doubtful(
    pet: Pet,
    cluster: Annotated[
        int | None, typer.Option(min=1, max=MAX_INT64, help="Only items of this cluster.", metavar="ID")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of items.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the items of a pet, or of a cluster, that are least certain to belong to their cluster."""
    from sploot_cluster.pet.models import ClusterId, PetId

    with open_service() as service:
        found = service.doubtful(PetId(pet), None if cluster is None else ClusterId(cluster), limit=limit)
    if as_json:
        print_json(found)
        return
    table = table_of("item", "cluster", "origin", "similarity", "threshold", "next cluster", "similarity", "doubt")
    for item in found.items:
        own = f"{item.similarity:.3f}", f"{item.threshold:.3f}"
        second = ("", "")
        if item.second_similarity is not None:
            second = (str(item.second_cluster_id), f"{item.second_similarity:.3f}")
        table.add_row(item.media_id, str(item.cluster_id), item.origin, *own, *second, f"{item.probability:.0%}")
    out.print(table)


def command_of(reply: Reply) -> str:
    """Return the command that makes the correction of a reply; a long list of items is cut."""
    from sploot_cluster.decide.corrections import VERBS

    words, options = ["sploot-cluster", reply.verb, str(reply.body["pet_id"])], list[str]()
    for name, value in reply.body.items():
        option = f"--{name.removesuffix('_ids')}"
        match value:
            case [str(), *_] as items:
                options += [f"{option} {shlex.quote(str(item))}" for item in items[:ITEMS_SHOWN]]
                options += [f"… ({len(items) - ITEMS_SHOWN} more, see --json)"] if len(items) > ITEMS_SHOWN else []
            case [*ids]:
                words += map(str, ids)
            case _ if name == "pet_id":
                pass
            case _ if name in required_of(VERBS[reply.verb]):
                words.append(str(value))
            case _:
                options.append(f"{option} {value}")
    return " ".join([*words, *options])
