"""The command line's output: tables and JSON, with control characters escaped.

Names, arguments and errors come from producers. On a terminal, control sequences in them could set the title or forge a
row, and bidirectional controls could reverse an id. So control characters are escaped. JSON output uses JSON escapes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any, Final

# Unicode categories of the characters to escape: control, format, surrogate, line separator and paragraph separator.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
LONGEST_CELL: Final = 100


def shown(value: object) -> str:
    """Return a value as text, with terminal control characters escaped, for example as ``\\x1b``."""
    text = str(value)
    if text.isprintable():  # also false for harmless characters such as wide spaces, which are kept below
        return text
    return "".join(_escape(character) if _is_hidden(character) else character for character in text)


def json_text(value: object) -> str:
    """Return a value as JSON, with terminal control characters as JSON escapes.

    Dataclasses become objects, times become ISO 8601 strings, and bytes become text.
    """
    return shown_json(json.dumps(value, default=_simple, indent=2, ensure_ascii=False))


def shown_json(text: str) -> str:
    """Return JSON text with its terminal control characters as JSON escapes, which programs read as the same text."""
    return re.sub(r"[^\n -~]", lambda found: _in_json(found[0]), text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as a text table. None is shown as ``-``, and long cells are cut."""
    lines = [[column.upper() for column in columns], *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def age(ms: int | None) -> str | None:
    """Return a duration in a readable form, such as ``15 min``, or None for None."""
    if ms is None:
        return None
    for unit, of_ms in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * of_ms:
            return f"{ms / of_ms:.0f} {unit}"
    return f"{ms / 1000:.1f} s"


def _cell(value: object) -> str:
    text = "-" if value is None else shown(value)
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _in_json(character: str) -> str:
    return json.dumps(character)[1:-1] if _is_hidden(character) else character


def _simple(value: Any) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.isoformat() if isinstance(value, datetime) else str(value)
