"""The command that sends the items of a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.limits import MAX_INT64
from tasks.cli.screen import err, out
from tasks.cli.shared import FAILED, command_group, examples, open_tasks, settings_of_environment
from tasks.contracts import EMBEDDING_INGESTED, stream_of

if TYPE_CHECKING:
    from tasks.client import ClusterTasks

app = command_group()

EVENTS_PER_BATCH: Final = 500
ERRORS_SHOWN: Final = 5
PETS_SHOWN: Final = 3


@dataclass(slots=True)
class _Sent:
    """The outcomes of the entries so far. ``dims`` counts the vectors of each model and dimension."""

    n: int = 0
    n_withheld: int = 0
    n_refused: int = 0
    pets: dict[int, None] = field(default_factory=dict)
    dims: Counter[tuple[str, int]] = field(default_factory=Counter)

    def send(self, tasks: ClusterTasks, events: list[EmbeddingIngested]) -> None:
        n_out = sum(job.withheld for job in tasks.ingest_many(events))
        self.n, self.n_withheld = self.n + len(events) - n_out, self.n_withheld + n_out

    def note(self, event: EmbeddingIngested) -> None:
        self.dims[event.model, len(event.embedding) // 4] += 1
        if len(self.pets) <= PETS_SHOWN:
            self.pets[event.pet_id] = None


@app.command(
    epilog=examples(
        "sploot-cluster ingest photos.npz",
        "sploot-cluster ingest vectors.npy --pet 42 --model clip@1",
        "sploot-cluster ingest export.parquet --pet 42 --model clip@1 --id-column filename",
    )
)
def ingest(
    file: Annotated[
        Path,
        typer.Argument(help="A .npz, .npy, .jsonl, .jsonl.gz or .parquet file, or - for JSON lines from a pipe."),
    ],
    pet: Annotated[
        int | None, typer.Option(min=1, max=MAX_INT64, help="The pet of all items, in place of pet_id in the file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model of all items, in place of model in the file.", metavar="NAME@VERSION")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="The array, column or field with the ids, if it is not media_id.", metavar="NAME")
    ] = None,
) -> None:
    """Send embedded items.

    An .npz file holds the arrays media_id (n) and embedding (n, dim), and pet_id and model with one value or n values.
    A .npy file holds embeddings only; its ids are the name of the file and the row. A JSON line is an object with
    pet_id, media_id, model and embedding, or a whole flat event; a Parquet file has these columns. Other arrays,
    columns and fields are ignored. Invalid entries are reported, and the others are sent.
    """
    from tasks.cli.files.media_files import Given, event_of, items_of, progress_of

    items = items_of(file, Given(pet, model, id_column))
    sent = _Sent()
    errors: list[str] = []
    with open_tasks() as tasks:
        events: list[EmbeddingIngested] = []
        for number, record in enumerate(progress_of(items), start=1):
            try:
                event = event_of(record)
            except InvalidInput as refused:
                sent.n_refused += 1
                if len(errors) < ERRORS_SHOWN:
                    errors.append(f"entry {number}: {refused}")
                continue
            sent.note(event)
            events.append(event)
            if len(events) == EVENTS_PER_BATCH:
                sent.send(tasks, events)
                events = []
        sent.send(tasks, events)
    _report(sent, errors, items.notes)
    if sent.n_refused:
        raise typer.Exit(FAILED)


def _report(sent: _Sent, errors: list[str], notes: list[str]) -> None:
    summary = f"{sent.n} items sent to {stream_of(EMBEDDING_INGESTED)}"
    if sent.n_withheld:
        summary += f", {sent.n_withheld} withheld: the rollout has not reached their pets"
    out.print(summary + (f", {sent.n_refused} refused" if sent.n_refused else ""))
    for note in notes:
        out.print(note)
    for error in errors:
        err.print(error)
    if sent.n_refused > len(errors):
        err.print(f"and {sent.n_refused - len(errors)} more entries were refused")
    if len(sent.dims) > 1:
        kinds = ", ".join(f"{n} of {model} with {dim} dimensions" for (model, dim), n in sent.dims.most_common(3))
        err.print(
            f"the vectors differ: {kinds}; a pet takes one model and dimension, and items with others go to its "
            "quarantine (sploot-cluster tally PET lists them)",
        )
    if not sent.n:
        return
    if _has_no_worker():
        err.print("no worker runs, so the items wait; start one: sploot-cluster worker")
    pets = list(sent.pets)
    more = ", …" if len(pets) > PETS_SHOWN else ""
    next_steps = ", ".join(f"sploot-cluster clusters {pet}" for pet in pets[:PETS_SHOWN])
    err.print(f"next, to see the clusters: {next_steps}{more}")


def _has_no_worker() -> bool:
    """Return whether the queue certainly has no live consumer, or False if this Redis user may not read that."""
    from sploot_cluster.refusals import REDIS_ERRORS
    from tasks.composition import build_broker, build_client

    settings = settings_of_environment()
    try:
        with build_client(settings) as client:
            stats = build_broker(settings, client, middleware=[]).stats(EMBEDDING_INGESTED)
    except REDIS_ERRORS:
        return False
    return not any(consumer.is_alive for consumer in stats.consumers)
