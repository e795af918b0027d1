"""The command line: ``sploot-cluster``, or ``python -m tasks.cli``.

Commands parse arguments, call the same functions as the HTTP API, and print. Exit codes: 0 done, 1 failed, 2 usage (a
bad argument or setting), 3 Redis is unreachable or refuses, 4 the command was refused.
"""

from __future__ import annotations

import io
import os
import sys
from types import TracebackType
from typing import Annotated

from sploot_cluster.threads import one_thread_each

# numpy reads these variables on its first import, so they are set before any other import
one_thread_each(os.environ)

_LONG_RUNNING = frozenset({"worker", "scheduler", "serve"})

try:
    # A long-running process logs JSON from its first line, including warnings and errors from the imports below.
    if sys.argv[1:2] and sys.argv[1] in _LONG_RUNNING:
        from tasks.observe.logs import configure_logging

        configure_logging("INFO")

    import typer
except ImportError as missing:
    print(
        f"sploot-cluster: the command line needs {missing.name}; pip install 'sploot-cluster[worker]' or '[server]'",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

from sploot_cluster import __version__
from tasks.cli.index import Index

app = typer.Typer(
    name="sploot-cluster",
    cls=Index,
    help="Groups every pet's photos into clusters and never undoes a user's correction.",
    epilog="Start with `sploot-cluster demo`, or `sploot-cluster worker` and `sploot-cluster ingest FILE`. "
    "`sploot-cluster COMMAND --help` has examples.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"sploot-cluster {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from tasks.cli.screen import show_uncaught

    show_uncaught(kind, error, trace)


def main() -> None:
    """Run the command line."""
    if not _LONG_RUNNING & {*sys.argv[1:2]}:
        from tasks.cli.unused import leave_out

        leave_out()
    if sys.excepthook is sys.__excepthook__:  # the long-running processes install their own hook
        sys.excepthook = _show_uncaught
    # an ASCII terminal shows a character that it does not know, such as “…”, as an escape
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        from tasks.cli.shared import fail

        fail(130, "interrupted")
    except Exception as error:
        from tasks.cli.failures import failure_of
        from tasks.cli.shared import fail

        failure = failure_of(error)
        if failure is None:
            raise
        fail(*failure)
