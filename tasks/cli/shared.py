"""Parts that commands share: exit codes, common options, access to Redis, and the output about jobs."""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from sploot_cluster.answer_fields import public
from sploot_cluster.jobs import ENDED, JobRef, JobStatus, QueueUnavailable
from tasks.cli.screen import err, out, print_json
from tasks.observe.log_stream import drain_all
from tasks.settings import Settings, masked

if TYPE_CHECKING:
    from sploot_cluster import ClusterService
    from tasks.client import ClusterTasks
    from tasks.erasure import Erasure

FAILED, USAGE, UNREACHABLE, REFUSED = 1, 2, 3, 4

POLL_S: Final = 0.2

Pet = Annotated[int, typer.Argument(help="The pet's id.", metavar="PET")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
By = Annotated[str, typer.Option(help="Your name, for the history.", default_factory=lambda: _login())]
Wait = Annotated[
    float | None, typer.Option(help="Wait up to this many seconds for the job to end, and print its result.")
]


def command_group(help: str | None = None) -> typer.Typer:  # noqa: A002  # Typer's own name
    """Return a command group with plain-text help, which renders in a third of the time of rich's boxed panels."""
    return typer.Typer(help=help, no_args_is_help=help is not None, rich_markup_mode=None, add_completion=False)


def examples(*commands: str) -> str:
    """Return the epilog of a command's help, with example commands."""
    lines = "\n".join(f"  {command}" for command in commands)
    # after \b, click does not rewrap the lines
    return f"\b\n{'Example' if len(commands) == 1 else 'Examples'}:\n{lines}"


def need(*packages: str) -> None:
    """Check that packages are installed, before a command starts something that would fail without them.

    Raises:
        ModuleNotFoundError: one of them is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def settings_of_environment() -> Settings:
    return Settings.from_env(os.environ)


def shown_url() -> str:
    return masked("redis_url", settings_of_environment().redis_url)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"  # a container may run as a user that has no name


def become(command: Sequence[str]) -> NoReturn:
    # replace this process, so that signals reach the command itself
    sys.stdout.flush()
    drain_all()
    os.execv(command[0], list(command))  # noqa: S606  no shell involved


def fail(code: int, message: str) -> NoReturn:
    err.print(f"sploot-cluster: {message}")
    raise SystemExit(code)


@contextmanager
def open_tasks() -> Iterator[ClusterTasks]:
    from tasks.client import ClusterTasks

    settings = settings_of_environment()
    with ClusterTasks(settings.redis_url, ingest_rollout_percent=settings.ingest_rollout_percent) as tasks:
        yield tasks


@contextmanager
def open_service() -> Iterator[ClusterService]:
    from tasks.composition import build_client, build_service

    settings = settings_of_environment()
    with build_client(settings) as client:
        yield build_service(settings, client)


@contextmanager
def open_erasure() -> Iterator[Erasure]:
    from tasks.composition import build_client, build_erasure

    settings = settings_of_environment()
    with build_client(settings) as client, closing(build_erasure(settings, client)) as erasure:
        yield erasure


def report(tasks: ClusterTasks, job: JobRef, wait_s: float | None, *, as_json: bool) -> None:
    """Print the job. If the command waits, print the job's outcome instead, and fail unless it succeeds in time."""
    status = ended(tasks, job, wait_s) if wait_s is not None else None
    if as_json:
        print_json(public(job) | ({} if status is None else public(status)))
    elif status is None:
        waiting = "is already waiting" if job.coalesced else "enqueued"
        out.print(f"job {job.job_id} {waiting} in queue {job.queue}, position {job.position}")
    else:
        out.print(f"job {job.job_id} {status.state}: {status.reason}")
        for name, value in (status.result or {}).items():
            out.print(f"  {name}: {value}")
    if status is not None and status.state != "succeeded":
        raise typer.Exit(REFUSED if status.state == "refused" else FAILED)


def ended(tasks: ClusterTasks, job: JobRef, wait_s: float) -> JobStatus:
    """Return the status of a job when it ends, or its latest status when the time is up."""
    deadline = time.monotonic() + wait_s
    while True:
        status = tasks.job(job.job_id)
        if status is None:
            raise QueueUnavailable("the job's record no longer exists")
        if status.state in ENDED or time.monotonic() > deadline:
            return status
        time.sleep(POLL_S)


def duration_text(ms: int | None) -> str:
    if ms is None:
        return "-"
    seconds = ms / 1000
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
