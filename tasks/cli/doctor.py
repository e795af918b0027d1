"""The command that diagnoses an installation; each problem comes with the command that fixes it."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.screen import Styled, out, print_json, shown, table_of
from tasks.cli.shared import FAILED, UNREACHABLE, AsJson, command_group, examples, settings_of_environment

app = command_group()

_MARKS = {
    "ok": Styled("ok", 32),
    "warning": Styled("warning", 33),
    "wrong": Styled("WRONG", 31),
    "unknown": Styled("?"),
}


@app.command(name="doctor", epilog=examples("sploot-cluster doctor", "sploot-cluster doctor --processes 4 --threads 8"))
def doctor(
    processes: Annotated[int, typer.Option(min=1, help="Worker processes you start.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads per process.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Diagnose settings, threads, ports, Redis, queues and models. Exits 1 if something is wrong."""
    from tasks.composition import build_broker, build_client
    from tasks.doctor import diagnose, installation_of, is_unreachable

    settings = settings_of_environment()
    with build_client(settings) as client:
        broker = build_broker(settings, client, middleware=[])
        found = diagnose(installation_of(settings, client, broker, processes=processes, threads=threads))
    if as_json:
        print_json(found)
    else:
        table = table_of("", "check", "found")
        for finding in found:
            hint = f"\n→ {shown(finding.hint)}" if finding.hint and finding.level != "ok" else ""
            table.add_row(_MARKS[finding.level], finding.check, Styled(shown(finding.seen) + hint))
        out.print(table)
    if is_unreachable(found):
        raise typer.Exit(UNREACHABLE)
    if any(finding.level == "wrong" for finding in found):
        raise typer.Exit(FAILED)
