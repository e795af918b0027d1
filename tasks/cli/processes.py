"""The processes: worker, scheduler, server, and the demo that runs all of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

from sploot_cluster.errors import InvalidInput
from tasks.cli.shared import REFUSED, USAGE, become, settings_of_environment
from tasks.contracts import QUEUES
from tasks.observe.logs import SERVICE, configure_logging
from tasks.settings import SettingInvalid

app = typer.Typer()

# Before the commands begin, so that what their masters say is JSON too; the log level is the first argument.
_LOGGING: Final = "import sys; from tasks.observe.logs import configure_logging; configure_logging(sys.argv.pop(1)); "
# What the master has imported, its children have. Without it, the process that answers scrapes would serve seconds
# after the first jobs ran. Dramatiq's master answers SIGHUP by executing sys.argv again: that must be the command by
# which this program began.
DRAMATIQ: Final = (
    _LOGGING + "import broker, tasks.observe.exposition; from dramatiq import cli; "
    "arguments = cli.make_argument_parser().parse_args(); sys.argv = sys.orig_argv; sys.exit(cli.main(arguments))"
)
# periodiq has no answer to SIGTERM: as process 1 of a container it would not end, elsewhere it ends as if killed.
PERIODIQ: Final = (
    _LOGGING + "import signal, periodiq; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); periodiq.entrypoint()"
)


@contextmanager
def _told_in_json() -> Iterator[None]:
    """Who reads the lines of a process as JSON reads so, too, why it does not start."""
    configure_logging("INFO")
    try:
        yield
    except (SettingInvalid, InvalidInput) as refused:
        _do_not_start(USAGE, refused)


def _do_not_start(code: int, refused: Exception) -> NoReturn:
    logging.getLogger(SERVICE).critical(f"cannot start: {refused}")
    raise SystemExit(code) from None


@app.command()
@_told_in_json()
def worker(
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.")] = 4,
    queue: Annotated[list[str] | None, typer.Option(help=f"Only these queues, of {', '.join(QUEUES)}.")] = None,
    shutdown_timeout_ms: Annotated[
        int, typer.Option(min=0, help="How long running jobs may take at the end.")
    ] = 30_000,
) -> None:
    """Run jobs: the stock command `dramatiq tasks.worker`, whose master logs JSON too.

    It stops when one of its processes dies: run it under something that starts it again.
    """
    settings = settings_of_environment()
    unknown = set(queue or ()) - set(QUEUES)
    if unknown:
        raise InvalidInput("--queue", f"{', '.join(sorted(unknown))} is not known", f"choose of {', '.join(QUEUES)}")
    command = [settings.log_level, "tasks.worker", "--processes", str(processes), "--threads", str(threads)]
    command += ["--worker-shutdown-timeout", str(shutdown_timeout_ms)]
    become([sys.executable, "-c", DRAMATIQ, *command, *(["--queues", *queue] if queue else [])])


@app.command()
@_told_in_json()
def scheduler() -> None:
    """Send the periodic jobs: the stock command `periodiq tasks.worker`. One is enough, two do no harm."""
    settings = settings_of_environment()
    become([sys.executable, "-c", PERIODIQ, settings.log_level, "tasks.worker"])


@app.command()
@_told_in_json()
def serve(
    host: Annotated[str | None, typer.Option(help="Where to listen.  [default: SPLOOT_HTTP_HOST]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Its port.  [default: SPLOOT_HTTP_PORT]")] = None,
) -> None:
    """Serve the HTTP API. Off loopback it refuses to start without SPLOOT_API_TOKENS."""
    from sploot_cluster.api import Tokens, check_bind
    from sploot_cluster.api import serve as serve_app
    from tasks.composition import build_app, build_client
    from tasks.observe.error_reports import configure_error_reports
    from tasks.queue_ops.pet_index import KeepPetIndex

    settings = settings_of_environment()
    settings = replace(
        settings,
        http_host=settings.http_host if host is None else host,
        http_port=settings.http_port if port is None else port,
    )
    tokens = Tokens.parse(settings.api_tokens)
    try:
        check_bind(settings.http_host, tokens)
    except InvalidInput as refused:
        _do_not_start(REFUSED, refused)
    configure_logging(settings.log_level)
    configure_error_reports(settings, with_logged_errors=True)
    with build_client(settings) as client:
        # also while no worker runs, which is when people look for what waits
        keeper = KeepPetIndex(client)
        keeper.start()
        try:
            serve_app(build_app(settings), settings.http_host, settings.http_port, tokens=tokens)
        finally:
            keeper.stop()


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up at the end, until Ctrl-C.")] = False,
    directory: Annotated[Path, typer.Option(help="Where summary, maps and logs go.")] = Path("demo-output"),
) -> None:
    """The main job on real pictures and real processes; fails unless everything it promises was seen."""
    from tasks.demo import run

    raise typer.Exit(run(keep=keep, directory=directory, console=Console(highlight=False)))
