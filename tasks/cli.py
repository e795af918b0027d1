"""The command line: ``sploot-cluster``, or ``python -m tasks.cli``.

Commands parse, call what the services and the HTTP API call too, and print. Exit codes: 0 done, 1 failed, 2 usage (a
bad argument or setting), 3 Redis unreachable, 4 refused.
"""

from __future__ import annotations

import getpass
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import redis
from dramatiq.errors import BrokerConnectionError

from sploot_cluster.errors import ClusterError, InvalidInput, StoreUnavailable
from sploot_cluster.jobs import JobRef, JobStatus, QueueUnavailable
from tasks.contracts import QUEUES, SCHEMA, EmbeddingIngested, stream_of
from tasks.settings import SettingInvalid, Settings, masked

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
except ImportError as missing:
    print(
        f"sploot-cluster: the command line needs {missing.name}; pip install 'sploot-cluster[worker]' or '[server]'",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from sploot_cluster import ClusterService
    from tasks.client import ClusterTasks

FAILED, USAGE, UNREACHABLE, REFUSED = 1, 2, 3, 4

EVENTS_PER_BATCH: Final = 500
POLL_S: Final = 0.2

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

app = typer.Typer(
    name="sploot-cluster",
    help="Groups every pet's media into clusters, and keeps people's corrections for ever.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
queue_app = typer.Typer(help="Look at the queues.", no_args_is_help=True)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(queue_app, name="queue")
app.add_typer(config_app, name="config")

Pet = Annotated[int, typer.Argument(help="The pet's id.", metavar="PET")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
By = Annotated[str, typer.Option(help="Who asks, for the pet's history.", default_factory=lambda: _login())]
Wait = Annotated[float | None, typer.Option(help="Wait so many seconds for the job to end, and print its result.")]


def main() -> None:
    """The console script."""
    try:
        app()
    except (SettingInvalid, InvalidInput) as refused:
        _fail(USAGE, str(refused))
    except (
        BrokerConnectionError,
        QueueUnavailable,
        StoreUnavailable,
        redis.ConnectionError,
        redis.TimeoutError,
    ) as error:
        _fail(UNREACHABLE, f"no answer from Redis at {_shown_url()}: {error}")
    except ClusterError as error:
        _fail(FAILED, str(error))
    except KeyboardInterrupt:
        _fail(130, "interrupted")


# -- processes -------------------------------------------------------------------------------------------------------


@app.command()
def worker(
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.")] = 4,
    queue: Annotated[list[str] | None, typer.Option(help=f"Only these queues, of {', '.join(QUEUES)}.")] = None,
    shutdown_timeout_ms: Annotated[
        int, typer.Option(min=0, help="How long running jobs may take at the end.")
    ] = 30_000,
) -> None:
    """Run jobs: the stock command `dramatiq tasks.worker`.

    It stops when one of its processes dies: run it under something that starts it again.
    """
    _settings()
    unknown = set(queue or ()) - set(QUEUES)
    if unknown:
        raise InvalidInput("--queue", f"{', '.join(sorted(unknown))} is not known", f"choose of {', '.join(QUEUES)}")
    command = ["dramatiq", "tasks.worker", "--processes", str(processes), "--threads", str(threads)]
    command += ["--worker-shutdown-timeout", str(shutdown_timeout_ms)]
    _become([sys.executable, "-m", *command, *(["--queues", *queue] if queue else [])])


@app.command()
def scheduler() -> None:
    """Send the periodic jobs: the stock command `periodiq tasks.worker`. One is enough, two do no harm."""
    _settings()
    _become([sys.executable, "-c", "import periodiq; periodiq.entrypoint()", "tasks.worker"])


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Where to listen.  [default: SPLOOT_HTTP_HOST]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Its port.  [default: SPLOOT_HTTP_PORT]")] = None,
) -> None:
    """Serve the HTTP API. Off loopback it refuses to start without SPLOOT_API_TOKENS."""
    from sploot_cluster.api import Tokens, check_bind
    from sploot_cluster.api import serve as serve_app
    from tasks.composition import build_app
    from tasks.logs import configure_logging

    settings = _settings()
    settings = replace(
        settings,
        http_host=settings.http_host if host is None else host,
        http_port=settings.http_port if port is None else port,
    )
    tokens = Tokens.parse(settings.api_tokens)
    try:
        check_bind(settings.http_host, tokens)
    except InvalidInput as refused:
        _fail(REFUSED, str(refused))
    configure_logging(settings.log_level)
    serve_app(build_app(settings), settings.http_host, settings.http_port, tokens=tokens)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up at the end, until Ctrl-C.")] = False,
    directory: Annotated[Path, typer.Option(help="Where summary, maps and logs go.")] = Path("demo-output"),
) -> None:
    """The main job on real pictures and real processes; fails unless everything it promises was seen."""
    from tasks.demo import run

    raise typer.Exit(run(keep=keep, directory=directory, console=out))


# -- media and corrections -------------------------------------------------------------------------------------------


@app.command()
def ingest(
    file: Annotated[Path, typer.Argument(help="An .npz file, JSON lines, or - for JSON lines on standard input.")],
) -> None:
    """Hand in media that were embedded.

    An .npz file holds the arrays media_id (n), embedding (n, dim), and pet_id and model, one for all or one each.
    A JSON line is an object with pet_id, media_id, model and embedding, or a whole flat event. Bad entries are
    reported by their number, the others are sent.
    """
    n_sent = n_bad = 0
    with _tasks() as tasks:
        events: list[EmbeddingIngested] = []
        for number, record in enumerate(_progress(_records(file)), start=1):
            try:
                events.append(_event(record))
            except InvalidInput as refused:
                n_bad += 1
                err.print(f"entry {number}: {refused}", markup=False)
            if len(events) == EVENTS_PER_BATCH:
                n_sent += len(tasks.ingest_many(events))
                events = []
        n_sent += len(tasks.ingest_many(events))
    out.print(f"{n_sent} media sent to {stream_of('embedding.ingested')}" + (f", {n_bad} refused" if n_bad else ""))
    if n_bad:
        raise typer.Exit(FAILED)


@app.command()
def recluster(pet: Pet, by: By, wait: Wait = None, as_json: AsJson = False) -> None:
    """Find the pet's clusters anew; corrections and ids are kept."""
    with _tasks() as tasks:
        _report(tasks, tasks.recluster(pet, requested_by=by), wait, as_json=as_json)


@app.command()
def merge(
    pet: Pet,
    cluster_ids: Annotated[list[int], typer.Argument(help="The clusters that are one.", metavar="ID ID...")],
    by: By,
    into: Annotated[int | None, typer.Option(help="Which of them goes on; by default the largest.")] = None,
    wait: Wait = None,
    as_json: AsJson = False,
) -> None:
    """Say that clusters are one. Their media stay together for ever, unless undone."""
    with _tasks() as tasks:
        _report(tasks, tasks.merge(pet, cluster_ids, into, requested_by=by), wait, as_json=as_json)


@app.command()
def split(
    pet: Pet,
    cluster_id: Annotated[int, typer.Argument(help="The cluster that they leave.", metavar="ID")],
    media: Annotated[list[str], typer.Option(help="A medium that leaves; repeat it for more.")],
    by: By,
    wait: Wait = None,
    as_json: AsJson = False,
) -> None:
    """Say that media are another cluster. They stay apart from the rest for ever, unless undone."""
    with _tasks() as tasks:
        _report(tasks, tasks.split(pet, cluster_id, media, requested_by=by), wait, as_json=as_json)


@app.command()
def undo(
    pet: Pet,
    revision: Annotated[int, typer.Argument(help="The correction's revision, from `history`.", metavar="REVISION")],
    by: By,
    wait: Wait = None,
    as_json: AsJson = False,
) -> None:
    """Take a correction back. An undo can be undone."""
    with _tasks() as tasks:
        _report(tasks, tasks.undo(pet, revision, requested_by=by), wait, as_json=as_json)


@app.command()
def clusters(pet: Pet, as_json: AsJson = False) -> None:
    """Show the pet's clusters."""
    from sploot_cluster.models import PetId, Standing

    with _service() as service:
        view = service.clusters(PetId(pet))
    if as_json:
        found = [
            {
                "cluster_id": cluster.id,
                "media_ids": list(cluster.media),
                "standings": {Standing(how).name.lower(): n for how, n in cluster.standings.items()},
                "threshold": cluster.threshold,
                "since": cluster.since,
            }
            for cluster in view.clusters
        ]
        facts = {"pet_id": view.pet, "revision": view.revision, "model": view.model, "dim": view.dim}
        _print_json(facts | {"clusters": found, "noise": list(view.noise), "aliases": dict(view.aliases)})
        return
    out.print(
        f"pet {pet} at revision {view.revision}: {view.n_media} media, {len(view.clusters)} clusters, "
        f"{view.n_noise} noise" + (f", model {view.model} of {view.dim} values" if view.model else "")
    )
    table = _table("cluster", "media", "core", "arrived", "absorbed", "corrected", "since", "first media")
    ways = (Standing.CORE, Standing.ARRIVED, Standing.ABSORBED, Standing.CORRECTED)
    for cluster in view.clusters:
        counts = (str(cluster.standings.get(way, 0)) for way in ways)
        first = ", ".join(cluster.media[:3]) + (", …" if cluster.size > 3 else "")
        table.add_row(str(cluster.id), str(cluster.size), *counts, str(cluster.since), first)
    out.print(table)


@app.command()
def history(
    pet: Pet,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the newest reclusters and corrections; `undo` takes a revision."""
    from sploot_cluster.models import PetId

    with _service() as service:
        entries = service.history(PetId(pet), limit=limit)
    if as_json:
        _print_json([asdict(entry) for entry in entries])
        return
    table = _table("revision", "kind", "when (UTC)", "by", "what")
    for entry in entries:
        what = ", ".join(f"{name} {value}" for name, value in entry.summary.items() if value not in (None, []))
        table.add_row(str(entry.revision), entry.kind, f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.by, what)
    out.print(table)


# -- operations ------------------------------------------------------------------------------------------------------


@queue_app.command("status")
def queue_status(as_json: AsJson = False) -> None:
    """Show what every queue holds, and who works on it."""
    from broker import RedisStreamsBroker
    from tasks.composition import build_client

    with build_client(_settings()) as client:
        broker = RedisStreamsBroker(client=client, middleware=[])
        stats = [broker.stats(queue) for queue in QUEUES]
    if as_json:
        _print_json([asdict(queue) for queue in stats])
        return
    table = _table("queue", "waiting", "in flight", "delayed", "orphaned", "dead", "oldest", "held for", "workers")
    for queue in stats:
        n_alive = sum(consumer.is_alive for consumer in queue.consumers)
        numbers = (queue.waiting, queue.in_flight, queue.delayed, queue.orphaned, queue.dead)
        table.add_row(
            queue.queue_name + (" (paused)" if queue.paused else ""),
            *map(str, numbers),
            _duration(queue.oldest_age_ms),
            _duration(queue.oldest_pending_idle_ms),
            str(n_alive) if n_alive else "none: start sploot-cluster worker",
        )
    out.print(table)


@config_app.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Show every setting with its value, unit and meaning; secrets are masked."""
    rows = _settings().table()
    if as_json:
        _print_json(rows)
        return
    table = _table("variable", "value", "meaning")
    table.columns[0].no_wrap = True
    for row in rows:
        changed = "" if row["value"] == row["default"] else f" (default {row['default'] or 'empty'})"
        table.add_row(row["variable"], f"{row['value']} {row['unit']}", row["meaning"] + changed)
    out.print(table)


# -- what the commands share -----------------------------------------------------------------------------------------


def _settings() -> Settings:
    return Settings.from_env(os.environ)


def _shown_url() -> str:
    return masked("redis_url", _settings().redis_url)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"  # a container whose user has no name


def _become(command: Sequence[str]) -> NoReturn:
    # exec, so that signals reach the command itself
    sys.stdout.flush()
    os.execv(command[0], list(command))  # noqa: S606  no shell is wanted


def _fail(code: int, message: str) -> NoReturn:
    err.print(f"sploot-cluster: {message}", markup=False, soft_wrap=True)
    raise SystemExit(code)


@contextmanager
def _tasks() -> Iterator[ClusterTasks]:
    from tasks.client import ClusterTasks

    with ClusterTasks(_settings().redis_url) as tasks:
        yield tasks


@contextmanager
def _service() -> Iterator[ClusterService]:
    from tasks.composition import build_client, build_service

    settings = _settings()
    with build_client(settings) as client:
        yield build_service(settings, client)


def _report(tasks: ClusterTasks, job: JobRef, wait_s: float | None, *, as_json: bool) -> None:
    """Print the job, or how it ended; a job that did not succeed in time fails the command."""
    status = _ended(tasks, job, wait_s) if wait_s is not None else None
    if as_json:
        _print_json(asdict(job) | ({} if status is None else asdict(status)))
    elif status is None:
        waiting = "waits already" if job.coalesced else "enqueued"
        out.print(f"job {job.job_id} {waiting} in queue {job.queue}, position {job.position}")
    else:
        out.print(f"job {job.job_id} {status.state}: {status.because}", markup=False, soft_wrap=True)
        for name, value in (status.result or {}).items():
            out.print(f"  {name}: {value}", markup=False)
    if status is not None and status.state != "succeeded":
        raise typer.Exit(FAILED)


def _ended(tasks: ClusterTasks, job: JobRef, wait_s: float) -> JobStatus:
    deadline = time.monotonic() + wait_s
    while True:
        status = tasks.job(job.job_id)
        if status is None:
            raise QueueUnavailable("the record of the job is gone")
        if status.state in ("succeeded", "dead") or time.monotonic() > deadline:
            return status
        time.sleep(POLL_S)


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    """The entries of a file; one that is no JSON object comes as an empty one with the problem as its only field."""
    if file.suffix == ".npz":
        yield from _npz_records(file)
        return
    with ExitStack() as stack:
        if str(file) == "-":
            lines: Iterable[str] = sys.stdin
        else:
            try:
                lines = stack.enter_context(file.open(encoding="utf-8"))
            except OSError as error:
                raise InvalidInput("FILE", f"{file} cannot be read: {error.strerror}", "name a file") from error
        for line in filter(str.strip, lines):
            try:
                record = json.loads(line)
            except ValueError as error:
                record = _NotAnObject(f"is no JSON: {error}")
            yield record if isinstance(record, dict) else _NotAnObject("is no JSON object")


class _NotAnObject(dict[str, Any]):
    """A line that cannot be an event, and why."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem


def _npz_records(file: Path) -> Iterator[Mapping[str, Any]]:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise InvalidInput("FILE", f"{file} is no .npz file: {error}", "write it with numpy.savez") from error
    missing = {"pet_id", "media_id", "model", "embedding"} - columns.keys()
    if missing:
        raise InvalidInput("FILE", f"{file} lacks {', '.join(sorted(missing))}", "add the arrays")
    n = len(columns["embedding"])
    for name, column in columns.items():
        if column.ndim and len(column) != n:
            raise InvalidInput(
                "FILE", f"{name} has {len(column)} entries, embedding {n}", "give one each, or one for all"
            )
    for row in range(n):
        record: dict[str, Any] = {name: column[row] if column.ndim else column[()] for name, column in columns.items()}
        yield record | {name: str(record[name]) for name in ("media_id", "model")}


def _event(record: Mapping[str, Any]) -> EmbeddingIngested:
    if isinstance(record, _NotAnObject):
        raise InvalidInput("line", record.problem, "write one JSON object a line")
    if "dim" in record or "schema" in record:
        return EmbeddingIngested.from_kwargs({"schema": SCHEMA, **record})
    return EmbeddingIngested.of(**record)


def _progress(records: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    with Progress(
        TextColumn("media"), BarColumn(), MofNCompleteColumn(), console=err, disable=not err.is_terminal
    ) as progress:
        task = progress.add_task("media", total=None)
        for number in itertools.count(1):
            record = next(records, None)
            if record is None:
                return
            progress.update(task, completed=number)
            yield record


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _duration(ms: int | None) -> str:
    if ms is None:
        return "-"
    seconds = ms / 1000
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _print_json(value: object) -> None:
    def simple(item: object) -> object:
        return item.isoformat() if isinstance(item, datetime) else str(item)

    print(json.dumps(value, default=simple, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
