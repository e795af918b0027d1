"""The commands that run processes: worker, scheduler, server, and the demo that runs all of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from sploot_cluster.errors import InvalidInput
from tasks.cli.shared import REFUSED, USAGE, become, command_group, examples, need, settings_of_environment
from tasks.contracts import QUEUES

app = command_group()

# Code that runs before a stock command, so that its master process logs JSON as well; the first argument is the log
# level.
_LOGGING: Final = "import sys; from tasks.observe.logs import configure_logging; configure_logging(sys.argv.pop(1)); "
# Forked children inherit the imports of the master. Without these imports, the exposition process would answer only
# seconds after the first jobs ran. On SIGHUP, Dramatiq's master executes sys.argv again, so sys.argv must be the
# command that started this program.
DRAMATIQ: Final = (
    _LOGGING + "import broker, tasks.observe.exposition; from dramatiq import cli; "
    "arguments = cli.make_argument_parser().parse_args(); sys.argv = sys.orig_argv; sys.exit(cli.main(arguments))"
)
# periodiq does not handle SIGTERM: as process 1 of a container it would not stop; elsewhere it would end as if killed.
PERIODIQ: Final = (
    _LOGGING + "import signal, periodiq; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); periodiq.entrypoint()"
)


@contextmanager
def _errors_as_json() -> Iterator[None]:
    """If a process does not start, log the reason as JSON, like the rest of its log."""
    from tasks.observe.logs import configure_logging

    configure_logging("INFO")
    try:
        yield
    except InvalidInput as refused:
        _do_not_start(USAGE, str(refused))
    except ModuleNotFoundError as missing:
        from tasks.cli.failures import failure_of

        failure = failure_of(missing)
        if failure is None:
            raise
        _do_not_start(*failure)


def _do_not_start(code: int, problem: str) -> NoReturn:
    from tasks.observe.logs import SERVICE

    logging.getLogger(SERVICE).critical(f"cannot start: {problem}")
    raise SystemExit(code) from None


@app.command(
    epilog=examples(
        "sploot-cluster worker --processes 4 --threads 8", "sploot-cluster worker --queue cluster.recluster"
    )
)
@_errors_as_json()
def worker(
    processes: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads per process.")] = 4,
    queue: Annotated[
        list[str] | None, typer.Option(help=f"Consume only these queues; choose from {', '.join(QUEUES)}.")
    ] = None,
    shutdown_timeout_ms: Annotated[
        int, typer.Option(min=0, help="How long running jobs may continue on shutdown.")
    ] = 30_000,
) -> None:
    """Run jobs: the stock command `dramatiq tasks.worker`, with JSON logs from its master as well.

    It stops when one of its processes dies: run it under a supervisor that restarts it.
    """
    need("periodiq", "faiss")
    settings = settings_of_environment()
    unknown = set(queue or ()) - set(QUEUES)
    if unknown:
        raise InvalidInput(
            "--queue", f"{', '.join(sorted(unknown))} is not a queue", f"choose from {', '.join(QUEUES)}"
        )
    command = [settings.log_level, "tasks.worker", "--processes", str(processes), "--threads", str(threads)]
    command += ["--worker-shutdown-timeout", str(shutdown_timeout_ms)]
    become([sys.executable, "-c", DRAMATIQ, *command, *(["--queues", *queue] if queue else [])])


@app.command(epilog=examples("sploot-cluster scheduler"))
@_errors_as_json()
def scheduler() -> None:
    """Send the periodic jobs, like the stock command `periodiq tasks.worker`. One is enough; a second does no harm."""
    need("periodiq", "faiss")
    settings = settings_of_environment()
    become([sys.executable, "-c", PERIODIQ, settings.log_level, "tasks.worker"])


@app.command(epilog=examples("sploot-cluster serve", "sploot-cluster serve --port 9000"))
@_errors_as_json()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: SPLOOT_HTTP_HOST]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port to listen on.  [default: SPLOOT_HTTP_PORT]")
    ] = None,
) -> None:
    """Serve the HTTP API. Refuses to listen beyond loopback without SPLOOT_API_TOKENS."""
    need("fastapi", "uvicorn")
    from sploot_cluster.api import Tokens, check_bind
    from sploot_cluster.api import serve as serve_app
    from tasks.composition import build_app, build_broker, build_client
    from tasks.observe.error_reports import configure_error_reports
    from tasks.observe.logs import configure_logging
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
        _do_not_start(REFUSED, str(refused))
    configure_logging(settings.log_level)
    configure_error_reports(settings, with_logged_errors=True)
    with build_client(settings) as client, closing(build_broker(settings, client, middleware=[])) as broker:
        # the server updates the index too, because operators search for waiting jobs when no worker runs
        keeper = KeepPetIndex(client)
        keeper.start(broker)
        try:
            serve_app(build_app(settings), settings.http_host, settings.http_port, tokens=tokens)
        finally:
            keeper.stop()


@app.command(epilog=examples("sploot-cluster demo --keep"))
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep running at the end, until Ctrl-C.")] = False,
    directory: Annotated[Path, typer.Option(help="Directory for summary, maps and logs.")] = Path("demo-output"),
) -> None:
    """Run the main scenario with real images and real processes. Fails unless every guarantee was kept."""
    need("sklearn", "matplotlib", "faiss", "fastapi")
    from rich.console import Console

    from tasks.demo import run

    raise typer.Exit(run(keep=keep, directory=directory, console=Console(highlight=False)))
