"""Commands on pets: ingest items, correct clusters, and see why an item is where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from sploot_cluster.answer_fields import public
from sploot_cluster.errors import InvalidInput, PetExists, RevisionConflict, UnreadablePet
from sploot_cluster.limits import MAX_INT64
from sploot_cluster.pet.listing import MAX_PETS, PetOrder
from sploot_cluster.pet.models import REFERENCE, PreviewBackend
from sploot_cluster.pet.times import ItemOrder
from tasks.cli.bulk import ALL_PARTS, recluster_all
from tasks.cli.screen import out, print_json, table_of
from tasks.cli.shared import (
    FAILED,
    REFUSED,
    AsJson,
    By,
    Pet,
    Wait,
    command_group,
    ended,
    examples,
    fail,
    open_erasure,
    open_service,
    open_tasks,
    report,
    settings_of_environment,
)

if TYPE_CHECKING:
    from sploot_cluster import ClusterService
    from sploot_cluster.jobs import JobRef, Traces
    from sploot_cluster.pet.diff import PetDiff
    from sploot_cluster.pet.models import PetId
    from sploot_cluster.store.repairs import RawPet
    from tasks.client import ClusterTasks

app = command_group()

MOVES_SHOWN: Final = 50
TRACES_SHOWN: Final = 20
PREVIEW_WAIT_S: Final = 60.0


@app.command(
    epilog=examples(
        "sploot-cluster recluster 42 --wait 60",
        "sploot-cluster recluster 42 --preview",
        "sploot-cluster recluster 42 --preview --backend hdbscan_reference",
        "sploot-cluster recluster --all",
    )
)
def recluster(
    by: By,
    pet: Annotated[int | None, typer.Argument(help="The pet's id; not with --all.", metavar="[PET]")] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what would change, with a token to apply it.")
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            help="With --preview: start from the groups that the package hdbscan finds; the workers need it.",
            metavar=REFERENCE,
        ),
    ] = None,
    apply: Annotated[
        str | None, typer.Option(help="Apply exactly what a preview showed, or nothing.", metavar="TOKEN")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Recluster all pets, with at most 100 reclusters waiting at a time.")
    ] = False,
    after: Annotated[int, typer.Option(help="With --all: only pets with greater ids, to continue.", metavar="PET")] = 0,
    part: Annotated[
        str, typer.Option(help="With --all: one of equal parts of the pets.", metavar="PART/PARTS")
    ] = ALL_PARTS,
    wait: Wait = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the pet's clusters; corrections and ids are kept. A preview waits for a worker, for 60 s by default."""
    if every == (pet is not None):
        raise InvalidInput("PET", "give one pet, or --all", "sploot-cluster recluster 42")
    if preview and apply is not None:
        raise InvalidInput("--apply", "cannot be combined with --preview", "give one of the two")
    if backend is not None and not preview:
        raise InvalidInput("--backend", "is given without --preview", "add --preview")
    if pet is None:
        if preview or apply is not None or wait is not None:
            raise InvalidInput("--all", "cannot be combined with --preview, --apply or --wait", "leave them out")
        recluster_all(by, after=after, part=part, as_json=as_json)
        return
    if apply is not None:
        apply_preview(pet, apply, by, as_json=as_json)
        return
    with open_tasks() as tasks:
        if preview:
            job = tasks.preview(pet, requested_by=by, backend=cast(PreviewBackend | None, backend))
            show_preview(tasks, pet, job, PREVIEW_WAIT_S if wait is None else wait, as_json=as_json)
            return
        report(tasks, tasks.recluster(pet, requested_by=by), wait, as_json=as_json)


def show_preview(tasks: ClusterTasks, pet: int, job: JobRef, wait_s: float, *, as_json: bool) -> None:
    from sploot_cluster.pet.models import PetId

    status = ended(tasks, job, wait_s)
    if status.state == "refused":
        fail(REFUSED, f"no preview: {status.reason}")
    if status.state != "succeeded":
        fail(FAILED, f"no preview: job {status.job_id} is {status.state}: {status.reason}")
    with open_service() as service:
        previewed = service.previewed(PetId(pet), str((status.result or {})["token"]))
    if as_json:
        print_json(previewed)
        return
    result = previewed.result
    out.print(
        f"a recluster of pet {pet} at revision {previewed.revision} would make {result.n_clusters} clusters with "
        f"{result.n_noise} items of noise; {result.kept}"
    )
    print_diff(previewed.diff)
    out.print(
        f"to apply it before {previewed.expires_at:%H:%M:%S} UTC, if the pet does not change: "
        f"sploot-cluster recluster {pet} --apply {previewed.token}",
    )


def apply_preview(pet: int, token: str, by: str, *, as_json: bool) -> None:
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        result = service.apply(PetId(pet), token, by=by)
    if as_json:
        print_json({"pet_id": pet, "result": result})
        return
    out.print(f"pet {pet} is as previewed, at revision {result.revision}: {result.n_moved} items moved, {result.kept}")


@app.command(
    epilog=examples("sploot-cluster pets", "sploot-cluster pets --search mochi", "sploot-cluster pets --order noise")
)
def pets(
    search: Annotated[
        str,
        typer.Option(
            help="Only pets whose id contains these digits, or whose name begins with this text.", metavar="TEXT"
        ),
    ] = "",
    order: Annotated[PetOrder, typer.Option(help="Order of the pets; most noise or items first.")] = PetOrder.ID,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PETS, help="Maximum number to show.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="The cursor that the previous page printed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the pets."""
    with open_service() as service:
        page = service.page_of_pets(search=search, order=order, limit=limit, cursor=cursor)
    if as_json:
        print_json(page)
        return
    is_named = any(pet.name for pet in page.pets)
    table = table_of("pet", *(["name"] if is_named else []), "items", "clusters", "noise", "revision", "model")
    for pet in page.pets:
        numbers = (pet.n_media, pet.n_clusters, pet.n_noise, pet.revision)
        name = [pet.name or "-"] if is_named else []
        table.add_row(str(pet.pet_id), *name, *map(str, numbers), pet.model or "-")
    out.print(table)
    if page.next_cursor is not None:
        out.print(f"{page.n_matching} pets match; the next page: --cursor {page.next_cursor}")


@app.command(epilog=examples("sploot-cluster clusters 42", "sploot-cluster clusters 42 --order occurred_at --json"))
def clusters(
    pet: Pet,
    order: Annotated[
        ItemOrder, typer.Option(help="Order of the items; with occurred_at, those without a time come last.")
    ] = ItemOrder.ARRIVED,
    name: Annotated[
        str, typer.Option(help="Only clusters with a name that begins with this text, in upper or lower case.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show the pet's clusters."""
    from sploot_cluster.pet.models import PetId
    from sploot_cluster.pet.views import named, ordered

    with open_service() as service:
        whole = service.clusters(PetId(pet))
    view = ordered(named(whole, name), order)
    if as_json:
        print_json(view)
        return
    title = f"pet {pet} ({view.name})" if view.name else f"pet {pet}"
    out.print(
        f"{title} at revision {view.revision}: {view.n_media} items, {len(whole.clusters)} clusters, "
        f"{view.n_noise} noise"
        + (f", {len(whole.dismissed)} dismissed" if whole.dismissed else "")
        + (f", model {view.model} with {view.dim} dimensions" if view.model else "")
    )
    origins = ("core", "arrived", "absorbed", "corrected")
    is_named = any(cluster.name or cluster.is_hidden or cluster.is_locked for cluster in view.clusters)
    table = table_of("cluster", *(["name"] if is_named else []), "items", *origins, "since", "first items")
    for cluster in view.clusters:
        counts = (str(cluster.origins.get(origin, 0)) for origin in origins)
        first = ", ".join(cluster.media_ids[:3]) + (", …" if cluster.size > 3 else "")
        marks = " (hidden)" * cluster.is_hidden + " (locked)" * cluster.is_locked
        shown_name = [(cluster.name or "") + marks] if is_named else []
        table.add_row(str(cluster.cluster_id), *shown_name, str(cluster.size), *counts, str(cluster.since), first)
    out.print(table)


@app.command(epilog=examples("sploot-cluster tally", "sploot-cluster tally 42"))
def tally(
    pet: Annotated[int | None, typer.Argument(help="The pet's id; default: all pets.", metavar="[PET]")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that every ingested item is accounted for. Exits 1 if the counts do not add up."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        if pet is None:
            totals = service.totals()
            if as_json:
                unreadable = [
                    {"pet": error.pet, "key": error.key, "expected": error.expected, "found": error.found}
                    for error in totals.unreadable
                ]
                print_json(public(totals) | {"unreadable": unreadable})
            else:
                out.print(f"{totals.n_pets} pets: {totals.tally}")
                if totals.fullest is not None:
                    out.print(f"the largest, pet {totals.fullest}, is {totals.fullness:.1%} full")
                damaged = {error.pet: error for error in totals.unreadable}
                for broken in totals.unconserved:
                    what = f"cannot be read: {damaged[broken].problem}" if broken in damaged else "does not add up"
                    out.print(f"pet {broken} {what}")
            is_conserved = not totals.unconserved
        else:
            counted = service.tally(PetId(pet))
            if as_json:
                print_json(counted.view(PetId(pet)))
            else:
                out.print(f"pet {pet}: {counted.tally}")
                table = table_of("quarantined", "model", "dimensions", "when (UTC)")
                for item, facts in sorted(counted.quarantine.items()):
                    table.add_row(item, facts.model, str(facts.dim), f"{facts.at:%Y-%m-%d %H:%M:%S}")
                if counted.quarantine:
                    out.print(table)
            is_conserved = counted.tally.is_conserved
    if not is_conserved:
        raise typer.Exit(FAILED)


@app.command(epilog=examples("sploot-cluster delete 42 --yes", "sploot-cluster delete 42 --media beach.jpg --yes"))
def delete(
    pet: Pet,
    by: By,
    media: Annotated[
        list[str] | None, typer.Option(help="Delete only this item of the pet; repeat the option for more.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete now. This cannot be undone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a pet, or some of its items, permanently, with every trace in Redis. Without --yes, print the plan."""
    from sploot_cluster.pet.models import Deleted, MediaId, PetId

    named = list(dict.fromkeys(media or []))
    with open_service() as service, open_erasure() as erasure:
        present = [item for item in named if service.has_item(PetId(pet), MediaId(item))]
        found = erasure.find(pet, named or None)
        what, has_something = _whole_pet(service, PetId(pet))
        if named:
            what, has_something = f"{len(present)} of {len(named)} items of pet {pet}", bool(present)
        plan = f"{what}, {found.n_records} job records, {found.n_dead_letters} dead letters"
        if found.n_waiting:
            fail(
                REFUSED,
                f"{found.n_waiting} waiting jobs would bring it back or name it; let them finish, or cancel them "
                f"(sploot-cluster queue cancel QUEUE --pet {pet}), then delete",
            )
        if not has_something and not (found.n_records or found.n_dead_letters):
            fail(FAILED, f"found nothing to delete: {plan}")
        if not yes:
            out.print(f"would delete permanently: {plan}")
            _print_traces(found)
            fail(
                REFUSED,
                "nothing was deleted; add --yes to delete. This cannot be undone; `sploot-cluster export` keeps a copy",
            )
        deleted = Deleted(0, 0, 0)
        if present:
            deleted = service.delete_media(PetId(pet), [MediaId(item) for item in present], by=by)
        elif not named and has_something:
            deleted = service.delete_pet(PetId(pet))
        erased = erasure.erase(pet, named or None)
    if as_json:
        print_json({"pet_id": pet} | public(deleted) | public(erased))
        return
    out.print(
        f"deleted: {deleted.n_media} items, {deleted.n_corrections} corrections that named them, "
        f"{erased.n_records} job records, {erased.n_dead_letters} dead letters"
    )
    _print_traces(erased)


def _whole_pet(service: ClusterService, pet: PetId) -> tuple[str, bool]:
    """Return what a deletion of the pet would remove, and whether there is anything to remove."""
    try:
        n_media, n_entries = service.tally(pet).tally.ingested, len(service.history(pet, limit=100_000))
    except UnreadablePet as damaged:
        return f"pet {pet} with all its remaining data ({damaged.problem})", True
    return f"pet {pet} with {n_media} items and {n_entries} history entries", n_media > 0


def _print_traces(traces: Traces) -> None:
    """Print which job records and dead letters a deletion removes, and which it leaves because they are unreadable."""
    lines = [f"job record {job_id}" for job_id in traces.records]
    lines += [f"dead letter {dead_letter.dead_letter_id} of {dead_letter.queue}" for dead_letter in traces.dead_letters]
    for line in lines[:TRACES_SHOWN]:
        out.print(f"  {line}")
    if len(lines) > TRACES_SHOWN:
        out.print(f"  and {len(lines) - TRACES_SHOWN} more; --json lists all of them after a deletion")
    if traces.unreadable:
        first = traces.unreadable[0]
        out.print(
            f"{len(traces.unreadable)} dead letters are unreadable and stay; they may belong to this pet; "
            f"sploot-cluster queue dead show {first.queue} {first.dead_letter_id} shows the first",
        )


@app.command(name="export", epilog=examples("sploot-cluster export 42 pet-42.zip"))
def export_pet(
    pet: Pet, file: Annotated[Path | None, typer.Argument(help="File to write; default: pet-<id>.zip.")] = None
) -> None:
    """Write a pet with all its data to one file."""
    from sploot_cluster.pet.models import PetId

    target = file or Path(f"pet-{pet}.zip")
    with open_service() as service:
        while True:
            try:
                n_bytes = _written(target, service.export_parts(PetId(pet)))
            except RevisionConflict:
                continue  # start again, because items were deleted meanwhile, or the model was switched
            break
    out.print(f"pet {pet} written to {target}: {n_bytes:,} bytes")


def _written(target: Path, parts: Iterator[bytes]) -> int:
    """Write a file part by part and return its size; if a part cannot be read, no file is created.

    Raises:
        InvalidInput: the file cannot be written.
    """
    first, n_bytes = next(parts), 0
    # write to another name until the file is whole, unless the target is a device or a pipe
    unfinished = target.with_name(f"{target.name}.unfinished") if target.is_file() or not target.exists() else target
    try:
        with unfinished.open("wb") as opened:
            for part in chain([first], parts):
                n_bytes += opened.write(part)
        if unfinished != target:
            unfinished.replace(target)
    except OSError as error:
        raise InvalidInput("FILE", f"{target}: {error.strerror}", "name a writable file") from error
    finally:
        if unfinished != target:
            unfinished.unlink(missing_ok=True)
    return n_bytes


@app.command(name="import", epilog=examples("sploot-cluster import pet-42.zip --as 43"))
def import_pet(
    file: Annotated[Path, typer.Argument(help="File written by `export`, `capture --pet` or `repair`.")],
    pet: Annotated[
        int | None, typer.Option("--as", min=1, max=MAX_INT64, help="Import under this id instead of its own.")
    ] = None,
) -> None:
    """Import an exported pet into Redis, exactly as it was. Refused if the pet already has data."""
    from sploot_cluster.pet.models import PetId
    from tasks.capture.file import pet_in
    from tasks.capture.raw import raw_in

    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidInput("FILE", f"{file}: {error.strerror}", "name a file written by `export`") from error
    if (raw := raw_in(content)) is not None:
        put_back(raw if pet is None else replace(raw, pet=PetId(pet)))
        return
    content = pet_in(content)
    with open_service() as service:
        view = service.import_pet(content, pet=None if pet is None else PetId(pet))
    out.print(
        f"pet {view.pet_id} imported at revision {view.revision}: {view.n_media} items, {len(view.clusters)} clusters"
    )


def put_back(raw: RawPet) -> None:
    """Write the keys of a pet as they were in a raw capture, whole or damaged."""
    from sploot_cluster.store.repairs import PetRepairs
    from tasks.composition import build_client, build_cold_pets

    settings = settings_of_environment()
    with build_client(settings) as client:
        try:
            PetRepairs(client, cold=build_cold_pets(settings, client)).put_back(raw)
        except RevisionConflict as conflict:
            raise PetExists(pet=conflict.pet, revision=conflict.current) from conflict
    out.print(f"pet {raw.pet} has its {len(raw.keys)} keys back as they were captured")


@app.command(epilog=examples("sploot-cluster why 42 beach.jpg"))
def why(
    pet: Pet, media: Annotated[str, typer.Argument(help="The item's id.", metavar="MEDIA")], as_json: AsJson = False
) -> None:
    """Show why an item is where it is: its nearest items, the most similar other cluster, and related corrections."""
    from sploot_cluster.decide.why import QUARANTINED
    from sploot_cluster.pet.models import MediaId, PetId

    with open_service() as service:
        reasons = service.why(PetId(pet), MediaId(media))
    if as_json:
        print_json(reasons)
        return
    if reasons.origin == QUARANTINED:
        out.print(f"{media} is in no cluster: {reasons.reason}")
        return
    place = "in no cluster" if reasons.cluster_id is None else f"in cluster {reasons.cluster_id}"
    out.print(f"{media} is {place}, {reasons.origin}: {reasons.reason}")
    if reasons.occurred_at is not None:
        out.print(f"occurred at {reasons.occurred_at:%Y-%m-%d %H:%M:%S} UTC")
    if reasons.similarity is not None:
        out.print(f"similarity to its cluster {reasons.similarity:.3f}, threshold for arrivals {reasons.threshold:.3f}")
    if reasons.second is not None:
        margin = "" if reasons.margin is None else f", margin of its own {reasons.margin:+.3f}"
        forbidden = ", which a correction forbids" if reasons.second.is_forbidden else ""
        out.print(
            f"next cluster {reasons.second.cluster_id}: similarity {reasons.second.similarity:.3f}{margin}{forbidden}"
        )
    for demand in reasons.corrections:
        out.print(f"{demand.kind} of revision {demand.revision} by {demand.by}: {demand.demand}")
    table = table_of("nearest items", "cluster", "similarity")
    for near in reasons.nearest:
        table.add_row(near.media_id, str(near.cluster_id), f"{near.similarity:.3f}")
    out.print(table)


@app.command(epilog=examples("sploot-cluster history 42", "sploot-cluster history 42 --diff 17 31"))
def history(
    pet: Pet,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of newest entries to show.")] = 20,
    before: Annotated[
        int | None, typer.Option(min=1, max=MAX_INT64, help="Show only entries of earlier revisions.")
    ] = None,
    diff: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Show the difference between two revisions instead.", metavar="FROM TO"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest reclusters and corrections; `undo` and `restore` take a revision."""
    from sploot_cluster.pet.models import PetId

    with open_service() as service:
        if diff is not None:
            found = service.compare(PetId(pet), *diff)
            if as_json:
                print_json(found)
            else:
                print_diff(found)
            return
        entries = service.history(PetId(pet), limit=limit + 1, before=before)
    is_last = len(entries) <= limit
    entries = entries[:limit]
    if as_json:
        print_json({"pet_id": pet, "entries": entries, "next_cursor": None if is_last else str(entries[-1].revision)})
        return
    table = table_of("revision", "kind", "when (UTC)", "by", "what")
    for entry in entries:
        what = ", ".join(f"{name} {value}" for name, value in entry.summary.items() if value not in (None, []))
        table.add_row(str(entry.revision), entry.kind, f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.by, what)
    out.print(table)


def print_diff(diff: PetDiff) -> None:
    """Print the difference between two revisions, with at most ``MOVES_SHOWN`` items."""
    out.print(
        f"{diff.n_same} items unchanged, {diff.n_moved} in another cluster, {diff.n_new_noise} newly noise, "
        f"{diff.n_from_noise} no longer noise, {diff.n_arrived} arrived since"
    )
    out.print(f"{len(diff.kept_ids)} ids kept, {len(diff.new_ids)} new, {len(diff.ended_ids)} ended")
    for old, into in diff.merged.items():
        out.print(f"  cluster {old} merged into {into}")
    for new, source in diff.split.items():
        out.print(f"  cluster {new} split from {source}")
    table = table_of("item", "from", "to")
    for move in diff.moved[:MOVES_SHOWN]:
        ends = ("-" if cluster is None else str(cluster) for cluster in (move.before, move.after))
        table.add_row(move.media_id, *ends)
    out.print(table)
    if len(diff.moved) > MOVES_SHOWN:
        out.print(f"and {len(diff.moved) - MOVES_SHOWN} more; --json lists all of them")
