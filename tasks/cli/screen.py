"""Output of the command line. Text from other programs reaches a terminal only as text, never as control sequences.

Names of queues, actors and media items, errors and tracebacks come from producers. On a terminal, a control sequence in
one of them could set the title, write to the clipboard or forge a row; a bidirectional control could reverse an id.
Every command prints through :data:`out`, :data:`err`, :func:`table_of` and :func:`print_json`, which show such
characters as escapes. Lines are as long as their text, because an id that is wrapped cannot be copied; only a table
that is wider than its terminal is folded. The demo and progress bars use rich; importing it would take a tenth of the
time of a command.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from shutil import get_terminal_size
from types import TracebackType
from typing import Final, Literal, Self, TextIO, cast

from sploot_cluster.answer_fields import public

_BOLD: Final = 1  # an SGR code
_GAP: Final = "  "  # between two columns
_NARROWEST: Final = 8  # columns of a folded cell


def shown(value: object) -> str:
    """Return a value as text with terminal control characters escaped, such as ``\\x1b``."""
    text = str(value)
    if text.isprintable():
        return text
    # imported when needed: importing the broker takes a tenth of a second
    from broker.command.screen import shown as escaped

    return escaped(text)


class Styled(str):
    """Text of a table cell that is not escaped. On a terminal it has a style: an SGR code, such as 32 for green."""

    code: int

    def __new__(cls, text: str, code: int = 0) -> Self:
        """Return the text with its style. The text must contain no control characters except line feeds."""
        styled = super().__new__(cls, text)
        styled.code = code
        return styled


class Table:
    """A table without lines between its columns and rows."""

    def __init__(self, *columns: str) -> None:
        self._rows: list[tuple[str, ...]] = [tuple(Styled(shown(column), _BOLD) for column in columns)]

    def add_row(self, *cells: str) -> None:
        """Add a row. Control characters are escaped, except in :class:`Styled` cells."""
        self._rows.append(tuple(cell if isinstance(cell, Styled) else shown(cell) for cell in cells))

    def text(self, width: int | None = None, *, is_styled: bool = False) -> str:
        """Return the lines of the table, with cells folded if it is wider than ``width``."""
        wide = [
            max(_columns_of(line) for cell in column for line in cell.split("\n"))
            for column in zip(*self._rows, strict=True)
        ]
        if width is not None:
            _narrow(wide, width - len(_GAP) * (len(wide) - 1))
        return "\n".join(line for row in self._rows for line in _lines_of(row, wide, is_styled=is_styled))


def _narrow(wide: list[int], room: int) -> None:
    """Narrow the widest columns until all fit, but none below ``_NARROWEST``."""
    while sum(wide) > room and max(wide) > _NARROWEST:
        wide[wide.index(max(wide))] -= 1


def _lines_of(row: Sequence[str], wide: Sequence[int], *, is_styled: bool) -> Iterator[str]:
    columns = [
        [part for line in cell.split("\n") for part in _folded(line, width)]
        for cell, width in zip(row, wide, strict=True)
    ]
    for at in range(max(map(len, columns))):
        parts = []
        for cell, lines, width in zip(row, columns, wide, strict=True):
            part = lines[at] if at < len(lines) else ""
            padding = " " * (width - _columns_of(part))
            code = cell.code if isinstance(cell, Styled) and is_styled else 0
            parts.append(f"\x1b[{code}m{part}\x1b[0m{padding}" if code and part else part + padding)
        yield _GAP.join(parts).rstrip()


def _folded(line: str, width: int) -> Iterator[str]:
    """Yield the parts of a line, broken at spaces where possible."""
    while _columns_of(line) > width:
        end = next(at for at in range(len(line), 0, -1) if _columns_of(line[:at]) <= max(width, 2))
        if (space := line.rfind(" ", 0, end + 1)) > 0:
            end = space
        yield line[:end]
        line = line[end:].lstrip(" ")
    yield line


def _columns_of(text: str) -> int:
    """Return how many terminal columns the text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


class Screen:
    """Standard output or standard error. Strings are printed literally, with control characters escaped.

    Attributes:
        width: maximum width of a table in columns. None: the width of the terminal, or no limit without a terminal.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name
        self.width: int | None = None

    @property
    def is_terminal(self) -> bool:
        return bool(self._stream.isatty())

    def print(self, *objects: object) -> None:
        """Print objects, separated by spaces, or a table that is folded if the terminal is too narrow."""
        width = self.width or (get_terminal_size().columns if self.is_terminal else None)
        self.print_text(" ".join(self._text(one, width) for one in objects))

    def print_whole(self, table: Table) -> None:
        """Print a table at its full width."""
        self.print_text(self._text(table, None))

    def print_text(self, text: str) -> None:
        """Print text whose control characters are intended."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _text(self, one: object, width: int | None) -> str:
        if isinstance(one, Table):
            is_styled = self.is_terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
            return one.text(width, is_styled=is_styled)
        return shown(one)

    @property
    def _stream(self) -> TextIO:
        # tests and typer replace these streams
        return cast(TextIO, getattr(sys, self._name))


out: Final = Screen("stdout")
err: Final = Screen("stderr")


def table_of(*columns: str) -> Table:
    """Return a table that shows string cells literally, as a :class:`Screen` does."""
    return Table(*columns)


def print_table(table: Table) -> None:
    """Print a table at its full width, because an id that wraps inside its column cannot be copied."""
    out.print_whole(table)


def print_block(text: str, screen: Screen = out) -> None:
    """Print multi-line text, such as a traceback, with a bar before each line."""
    for line in text.rstrip("\n").split("\n"):
        screen.print(f"  | {line}")


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
