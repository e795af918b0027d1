"""Commands on all pets, whose work can be divided into parts and continued where it stopped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sploot_cluster.errors import InvalidInput, UnreadablePet
from sploot_cluster.jobs import ENDED, QueueUnavailable
from tasks.cli.screen import err, out, print_json
from tasks.cli.shared import (
    FAILED,
    POLL_S,
    REFUSED,
    AsJson,
    command_group,
    examples,
    fail,
    open_service,
    open_tasks,
    settings_of_environment,
)

if TYPE_CHECKING:
    from sploot_cluster.pet.models import PetId
    from sploot_cluster.store.parquet import Written
    from tasks.client import ClusterTasks

app = command_group()

ALL_PARTS: Final = "1/1"
# Maximum number of reclusters of `recluster --all` that wait at a time, so that reclusters that users request meanwhile
# wait behind only a few.
WAITING: Final = 100
FAILURES_SHOWN: Final = 5


def part_of(text: str) -> tuple[int, int]:
    """Parse ``PART/PARTS`` and return the two numbers."""
    part, _, parts = text.partition("/")
    if part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise InvalidInput("--part", f"{text!r} is not one of a number of parts", "write for example 2/8")


@app.command(epilog=examples("sploot-cluster parquet export/", "sploot-cluster parquet export/ --part 2/8"))
def parquet(
    directory: Annotated[Path, typer.Argument(help="Directory for the files; created if it does not exist.")],
    part: Annotated[
        str, typer.Option(help="Write only one of equal parts of the pets.", metavar="PART/PARTS")
    ] = ALL_PARTS,
    as_json: AsJson = False,
) -> None:
    """Write all items with vectors, clusters, names and origins as Parquet files, for DuckDB, Spark, Ray or pandas."""
    from rich.console import Console

    from sploot_cluster.store.parquet import write_pets
    from tasks.composition import build_client, build_store

    settings = settings_of_environment()
    number, parts = part_of(part)
    with build_client(settings) as client, Console(stderr=True).status("reading pets") as status:

        def show(written: Written) -> None:
            status.update(f"{written.n_pets:,} pets, {written.n_items:,} items")

        written = write_pets(build_store(settings, client), directory, part=number, parts=parts, after_each=show)
    if as_json:
        print_json(
            {
                "pets": written.n_pets,
                "items": written.n_items,
                "files": [str(file) for file in written.files],
                "unreadable": written.unreadable,
            }
        )
    else:
        out.print(
            f"{written.n_items:,} items of {written.n_pets:,} pets written: {len(written.files)} files in {directory}",
        )
    if written.unreadable:
        first = written.unreadable[0]
        err.print(
            f"{len(written.unreadable)} pets are unreadable and left out; the first is {first}: sploot-cluster doctor",
        )
        raise typer.Exit(FAILED)


@app.command(
    epilog=examples("sploot-cluster cold", "sploot-cluster cold --out 30 --yes", "sploot-cluster cold --back --yes")
)
def cold(
    out_days: Annotated[
        int | None,
        typer.Option(
            "--out", help="Move the vectors of pets without changes for this many days out of Redis.", metavar="DAYS"
        ),
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Put the vectors of all cold pets back in Redis.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read all vectors in the cold store to check them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Move them now; without it, only count them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count the pets whose vectors are in the cold store, check these vectors, or move vectors out of Redis or back."""
    from rich.console import Console

    from sploot_cluster.store.cold.rounds import DAY_MS
    from tasks.composition import build_client, build_cold_pets, build_store

    settings = settings_of_environment()
    is_out = out_days is not None
    if is_out + back + check > 1:
        raise InvalidInput("--out, --back, --check", "cannot be combined", "give one of them")
    with build_client(settings) as client, Console(stderr=True).status("reading pets"):
        found = build_cold_pets(settings, client)
        if found is None:
            raise InvalidInput("SPLOOT_COLD_STORE", "is not set", "set it to the directory or bucket of cold vectors")
        store = build_store(settings, client, cold=found)
        pets = store.pets()
        chosen = found.cold_among(pets)
        if out_days is not None:
            are_cold, idle = {*chosen}, zip(pets, found.idle_ms(pets), strict=True)
            chosen = [pet for pet, idle_ms in idle if idle_ms >= out_days * DAY_MS and pet not in are_cold]
        n_bytes = store.totals(chosen).vector_bytes
        acts = {"out": found.move_out, "back": found.bring_back, "check": found.check}
        act = "check" if check else "out" if is_out and yes else "back" if back and yes else None
        n_done, failed = (0, []) if act is None else _for_each(chosen, acts[act])
    if as_json:
        moved = 0 if check else n_done
        print_json({"pets": len(chosen), "bytes": n_bytes, "moved": moved, "unreadable": [one.pet for one in failed]})
    else:
        where = "can be moved out of Redis" if is_out else "are in the cold store"
        out.print(f"vectors of {len(chosen):,} pets, {n_bytes / 1e6:,.1f} MB, {where}")
        if act is not None:
            out.print(f"{n_done:,} {'intact' if check else 'moved'}")
    for one in failed:
        err.print(f"pet {one.pet} cannot be read: {one.problem}")
    if failed:
        raise typer.Exit(FAILED)
    if (is_out or back) and not yes:
        fail(REFUSED, "nothing was moved; add --yes to move them")


def _for_each(pets: Sequence[PetId], act: Callable[[PetId], bool]) -> tuple[int, list[UnreadablePet]]:
    """Call ``act`` for each pet; return how often it returned True, and the errors of unreadable pets."""
    n_done, failed = 0, list[UnreadablePet]()
    for pet in pets:
        try:
            n_done += act(pet)
        except UnreadablePet as error:
            failed.append(error)
    return n_done, failed


def recluster_all(by: str, *, after: int, part: str, as_json: bool) -> None:
    """Recluster all pets through the queue, and wait for the last job."""
    from rich.console import Console

    number, parts = part_of(part)
    with open_service() as service:
        pets = [pet for pet in list(service.pets())[number - 1 :: parts] if pet > after]
    with open_tasks() as tasks, Console(stderr=True).status("sending reclusters") as status:
        waiting: deque[str] = deque()
        failed: list[str] = []
        sent = after
        try:
            for n_sent, sent in enumerate(pets, start=1):
                waiting.append(tasks.recluster(sent, requested_by=by).job_id)
                status.update(f"{n_sent:,} of {len(pets):,} pets")
                failed += _ended(tasks, waiting, at_most=WAITING)
            status.update("waiting for the last reclusters")
            failed += _ended(tasks, waiting, at_most=0)
        except (KeyboardInterrupt, QueueUnavailable):
            err.print(f"what was sent continues; to send the rest, repeat the command with --after {sent}")
            raise
    _report(len(pets), failed, as_json=as_json)


def _ended(tasks: ClusterTasks, waiting: deque[str], *, at_most: int) -> Sequence[str]:
    """Wait, oldest job first, until at most ``at_most`` jobs remain, and return the ended jobs that failed."""
    failed = []
    while len(waiting) > at_most:
        status = tasks.job(waiting[0])
        if status is not None and status.state not in ENDED:
            time.sleep(POLL_S)
            continue
        if status is not None and status.state != "succeeded":
            failed.append(waiting[0])
        waiting.popleft()
    return failed


def _report(n_pets: int, failed: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"pets": n_pets, "failed": failed})
    else:
        out.print(f"{n_pets - len(failed):,} of {n_pets:,} pets reclustered")
    if failed:
        first = ", ".join(failed[:FAILURES_SHOWN])
        err.print(f"{len(failed)} reclusters failed; the first jobs: {first}")
        raise typer.Exit(FAILED)
