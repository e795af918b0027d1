"""Zip archives that contain JSON: the format in which pets and captures are written to files.

Anyone may have changed a file. So :func:`unpack` compares the sizes that an archive declares with a limit before it
inflates anything, and :func:`check` compares JSON with its expected shape before anything in it is used.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Maximum total size of an archive's members in bytes, uncompressed. The vectors of a pet take at most 512 MiB, the
# maximum size of a Redis value; the rest is for a candidate model with longer vectors.
MOST_BYTES: Final = 4 * 1024**3

# The date of every member, so that archives of the same members are identical: the earliest that a zip can store.
_OLDEST: Final = (1980, 1, 1, 0, 0, 0)

# Suffixes of the members to store uncompressed. Archives are already compressed; compressing vectors saves only 7 % and
# makes writing far slower.
_STORED: Final = (".zip", ".f32le")

_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_WORDS: Final[Mapping[type | None, str]] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    None: "null",
}

Shape = Any
"""The expected form of a JSON value:

    str, int, float, bool, dict     this type; bool is not a number, and float includes whole numbers
    None                            null
    range(1, 10)                    a whole number in this range
    frozenset of str                one of these strings
    (shape, shape)                  one of these shapes
    [shape]                         a list, every item of this shape
    {str: shape}                    an object, every value of this shape
    {"name": shape, …}              an object with at least these fields
"""


def pack(members: Mapping[str, bytes | memoryview]) -> bytes:
    """Return a zip archive of these members. The same members always give the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in members.items():
            method = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
            packed.writestr(zipfile.ZipInfo(name, _OLDEST), content, method)
    return file.getvalue()


Member = tuple[str, int, Iterable[bytes | memoryview]]
"""A member of an archive that is written in parts: its name, its size or an upper limit of it, and its parts."""


def packed(members: Iterable[Member]) -> Iterator[bytes]:
    """Yield a zip archive of these members in parts, without holding it in memory.

    The same members always give the same bytes, however they are divided into parts. A member may be created after the
    ones before it are written.
    """
    tape = _Tape()
    with zipfile.ZipFile(tape, "w") as archive:
        for name, most_bytes, parts in members:
            member = zipfile.ZipInfo(name, _OLDEST)
            member.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
            member.file_size = most_bytes  # a member of more than 2 GiB needs a longer header
            with archive.open(member, "w") as opened:
                for part in parts:
                    opened.write(part)
                    yield from tape.taken()
    yield from tape.taken()


class _Tape(io.RawIOBase):
    """A write-only file from which the written bytes are taken in parts."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: Buffer) -> int:
        self._parts.append(bytes(part))
        return len(self._parts[-1])

    def taken(self) -> Iterator[bytes]:
        parts, self._parts = self._parts, []
        if parts:
            yield parts[0] if len(parts) == 1 else b"".join(parts)


def unpack(file: bytes, *, most_bytes: int = MOST_BYTES) -> dict[str, bytes]:
    """Return the members of a zip by name.

    Raises:
        ValueError: the file is not a zip, is damaged, or would have more than ``most_bytes`` when unpacked.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as packed:
            members = packed.infolist()
            n_bytes = sum(member.file_size for member in members)
            if n_bytes > most_bytes:
                raise ValueError(f"it has {n_bytes:,} bytes unpacked, expected at most {most_bytes:,}")
            if any(member.compress_type not in _METHODS for member in members):
                # with other compression methods, zipfile cannot stop at a size limit
                raise ValueError("it has members that are neither stored nor deflated")
            return {member.filename: _content(packed, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OSError) as exc:
        raise ValueError(f"{type(exc).__name__}: {exc}") from exc


def _content(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with packed.open(member) as opened:
        # never read without a limit: if the declared size is false, zipfile would inflate the whole member first
        return opened.read(member.file_size + 1)


def has_member(file: bytes, name: str) -> bool:
    """Return whether a file is a zip with a member of this name."""
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as packed:
            return name in packed.namelist()
    except (zipfile.BadZipFile, struct.error, RuntimeError, ValueError, OSError):
        return False


def check(value: object, shape: Shape, *, name: str) -> None:
    """Check that a JSON value has the expected shape.

    Raises:
        ValueError: it has another shape; the message gives the path of the wrong part, starting with ``name``.
    """
    match shape:
        case tuple():
            _check_any(value, shape, name)
        case range():
            if type(value) is not int or value not in shape:
                raise _other(name, f"a whole number from {shape.start} to {shape.stop - 1}", value)
        case [item]:
            for number, one in enumerate(_of_type(value, list, name)):
                check(one, item, name=f"{name}[{number}]")
        case dict() if str in shape:
            for key, one in _of_type(value, dict, name).items():
                check(one, shape[str], name=f"{name}[{_shown(key)}]")
        case dict():
            fields = _of_type(value, dict, name)
            for field, of_field in shape.items():
                if field not in fields:
                    raise ValueError(f"{name} has no {field}")
                check(fields[field], of_field, name=f"{name}.{field}")
        case frozenset():
            if not isinstance(value, str) or value not in shape:
                raise _other(name, f"one of {', '.join(sorted(shape))}", value)
        case type() | None:
            _of_type(value, shape, name)


def unencodable(value: object, *, name: str) -> str | None:
    """Return the path of a string with an unpaired surrogate, which UTF-8 cannot encode, or None if there is none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        inner = (unencodable(part, name=f"{name}[{_shown(at)}]") for at, part in parts)
        return next(filter(None, inner), name)
    return None


def time_of(text: str) -> datetime:
    """Parse a time that ``isoformat`` wrote.

    Raises:
        ValueError: the text is not a time, or has no offset from UTC.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"the time {text} has no offset from UTC")
    return time


def _check_any(value: object, shapes: Sequence[Shape], name: str) -> None:
    for shape in shapes[:-1]:
        try:
            return check(value, shape, name=name)
        except ValueError:
            continue
    return check(value, shapes[-1], name=name)


def _of_type(value: object, expected: type | None, name: str) -> Any:
    accepted = (float, int) if expected is float else (type(None) if expected is None else expected,)
    if type(value) not in accepted:
        raise _other(name, _WORDS[expected], value)
    return value


def _other(name: str, expected: str, value: object) -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {_shown(value)}")


def _shown(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case int() if value.bit_length() > 64:
            return "a number that is too large"  # str() refuses very long integers
        case _:
            text = repr(value)
            return text if len(text) <= 40 else f"{text[:40]}…"
