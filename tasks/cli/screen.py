"""Output of the command line. Text from other programs reaches a terminal only as text, never as control sequences.

Names of queues, actors and media items, errors and tracebacks come from producers. On a terminal, a control sequence in
one of them could set the title, write to the clipboard or forge a row; a bidirectional control could reverse an id.
Every command prints through :data:`out`, :data:`err`, :func:`table_of` and :func:`print_json`, which show such
characters as escapes.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import is_dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sploot_cluster.answer_fields import public


def shown(value: object) -> str:
    """Return a value as text with terminal control characters escaped, such as ``\\x1b``."""
    text = str(value)
    if text.isprintable():
        return text
    # imported when needed: importing the broker takes a tenth of a second
    from broker.command.screen import shown as escaped

    return escaped(text)


class Screen(Console):
    """A console that prints strings literally: no markup, no control characters."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print like rich's ``print``, but escape terminal control characters."""
        options.setdefault("markup", False)
        super().print(*(shown(one) if isinstance(one, str) else one for one in objects), **options)


class _Rows(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(Text(shown(cell)) if isinstance(cell, str) else cell for cell in cells), **options)


out: Final = Screen(highlight=False)
err: Final = Screen(stderr=True, highlight=False)
_wide: Final = Screen(highlight=False, width=1_000)


def table_of(*columns: str) -> Table:
    """Return a table that shows string cells literally, as a :class:`Screen` does."""
    table = _Rows(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(Text(shown(column)), overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table at its full width, because an id that wraps inside its column cannot be copied."""
    _wide.print(table)


def print_block(text: str, screen: Screen = out) -> None:
    """Print text of several lines, such as a traceback, with a bar before each line."""
    for line in text.rstrip("\n").split("\n"):
        screen.print(f"  | {line}", soft_wrap=True)


def print_json(value: object) -> None:
    """Print JSON; a dataclass becomes an object with its public fields, as in the responses of the HTTP API.

    Terminal control characters, and characters that the output's encoding lacks, become JSON escapes, so programs read
    the original text.
    """
    text = json.dumps(value, default=_simple, indent=2, ensure_ascii=_is_narrow(sys.stdout.encoding))
    if not text.isascii() or "\x7f" in text:
        from broker.command.screen import shown_json

        text = shown_json(text)
    print(text)


def _is_narrow(encoding: str | None) -> bool:
    """Return whether some characters are missing from an encoding, such as ASCII or Latin-1."""
    return not (encoding or "utf-8").lower().replace("-", "").startswith("utf")


def _simple(item: object) -> object:
    if is_dataclass(item):
        return public(item)
    return item.isoformat() if isinstance(item, datetime) else str(item)


def show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an uncaught error, in place of ``sys.excepthook``."""
    print_block("".join(traceback.format_exception(kind, error, trace)), err)
