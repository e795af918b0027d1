"""The index of commands. With it, a module is imported only when one of its commands runs or shows its help.

Importing all commands would take longer than most of them run. ``index.json`` names the module and the summary of each
command; ``make reference`` writes it from the commands themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from importlib.resources import files
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_group

LONGEST_SUMMARY: Final = 64

# The modules with commands, in the order in which help lists them; modules with a name are groups of commands.
MODULES: Final[Mapping[str, str]] = {
    "processes": "",
    "files.ingestion": "",
    "pets": "",
    "bulk": "",
    "corrections": "",
    "review": "",
    "jobs": "",
    "models": "model",
    "queues": "queue",
    "config": "config",
    "files.captures": "",
    "repairs": "",
    "doctor": "",
}


def generated() -> str:
    """Generate the text of ``index.json`` from the commands."""
    rows = {
        name: {"module": module, "summary": _summary(command.help or "")}
        for module in MODULES
        for name, command in _commands_of(module).items()
    }
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _summary(text: str) -> str:
    """Return the main clause of the first sentence of a help text."""
    first = re.split(r"[.:;](?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
    return first if len(first) <= LONGEST_SUMMARY else first.partition(",")[0]


def _commands_of(module: str) -> Mapping[str, Any]:
    group = get_group(import_module(f"tasks.cli.{module}").app)
    group.name = MODULES[module] or None
    return {group.name: group} if group.name else group.commands


class _LazyCommands(MutableMapping[str, Any]):
    """A mapping of commands by name, which imports a command's module when the command is read."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = json.loads(
            files(__package__).joinpath("index.json").read_text(encoding="utf-8")
        )
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded |= _commands_of(self.rows[name]["module"])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self.rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Index(TyperGroup):
    """The root of the command line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = self._lazy = _LazyCommands()

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """List the commands with their summaries, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row["summary"]) for name, row in self._lazy.rows.items()])
