"""Tests that reading an archive obeys a size limit, whatever the archive declares, and that its JSON is checked."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
import zlib
from typing import Any

import pytest

from sploot_cluster.pet import past
from sploot_cluster.store import archives

MIB = 1024**2


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        packed.writestr("member", content)
    return file.getvalue()


def declaring(file: bytes, n_bytes: int) -> bytes:
    """Return a zip with one member whose directory states ``n_bytes`` as the size of the member."""
    at = file.index(b"PK\x01\x02") + 24
    return file[:at] + n_bytes.to_bytes(4, "little") + file[at + 4 :]


def peak_of_unpacking(file: bytes, problem: str) -> int:
    """Return the peak memory use, in bytes, until the file is refused."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=problem):
        archives.unpack(file, most_bytes=MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_members_are_unpacked_as_they_were_packed() -> None:
    members = {"a.json": b"{}", "b/c": bytes(3 * MIB), "d.zip": archives.pack({"e": b"f"}), "empty": b""}

    packed = archives.pack(members)

    assert archives.unpack(packed) == members
    assert packed == archives.pack(members)
    assert len(packed) < MIB
    assert (archives.has_member(packed, "b/c"), archives.has_member(packed, "c")) == (True, False)
    assert not archives.has_member(b"no zip", "b/c")


def test_archive_above_the_limit_is_refused_before_it_is_inflated() -> None:
    assert peak_of_unpacking(zipped(bytes(64 * MIB)), "67,108,864 bytes unpacked, expected at most 1,048,576") < MIB


def test_limit_applies_to_the_total_size_of_an_archives_members() -> None:
    members = {f"member-{number}": bytes(MIB // 2) for number in range(3)}

    with pytest.raises(ValueError, match="1,572,864 bytes unpacked"):
        archives.unpack(archives.pack(members), most_bytes=MIB)


def test_archive_that_declares_a_false_size_is_not_inflated_beyond_it() -> None:
    assert peak_of_unpacking(declaring(zipped(bytes(64 * MIB)), 1_000), "Bad CRC-32") < 4 * MIB


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_method_that_cannot_be_limited_is_refused(method: int) -> None:
    bomb = declaring(zipped(bytes(8 * MIB), method), 1_000)

    assert peak_of_unpacking(bomb, "neither stored nor deflated") < MIB


def test_encrypted_member_is_refused() -> None:
    file = bytearray(zipped(b"content"))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        file[file.index(signature) + offset] |= 1

    with pytest.raises(ValueError, match="encrypted"):
        archives.unpack(bytes(file))


def test_overwritten_labels_are_not_inflated_beyond_their_limit() -> None:
    bomb = b"\x01" + zlib.compress(bytes(64 * MIB))
    tracemalloc.start()

    with pytest.raises(ValueError, match="the overwritten labels of revision 7"):
        past.load(7, bomb, most_bytes=MIB)

    assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ("text", str),
        (1, float),
        (1.5, float),
        (True, bool),
        (None, None),
        (3, range(1, 4)),
        ("b", frozenset(["a", "b"])),
        (None, (str, None)),
        ([1, 2], [range(3)]),
        ([], [str]),
        ({"x": 1, "y": 2}, {str: int}),
        ({"a": 1, "other": 2}, {"a": int}),
    ],
)
def test_value_of_the_expected_shape_is_accepted(value: object, shape: archives.Shape) -> None:
    archives.check(value, shape, name="it")


@pytest.mark.parametrize(
    ("value", "shape", "problem"),
    [
        (1, str, "it: expected text, got 1"),
        (True, float, "it: expected a number, got True"),
        (True, range(2), "it: expected a whole number from 0 to 1, got True"),
        (4, range(1, 4), "it: expected a whole number from 1 to 3, got 4"),
        (2**70, range(1, 4), "it: expected a whole number from 1 to 3, got a number that is too large"),
        ([], frozenset(["a", "b"]), "it: expected one of a, b, got a list"),
        (3, (str, None), "it: expected null, got 3"),
        ([1, "x"], [int], r"it\[1\]: expected a whole number, got 'x'"),
        ({"x": "y" * 100}, {str: int}, r"it\['x'\]: expected a whole number, got 'y{39}…$"),
        ({}, {"a": int}, "it has no a"),
        ([], {"a": int}, "it: expected an object, got a list"),
        ({"a": 1, "b": 2}, {"a": int, "b": str}, "it.b: expected text, got 2"),
    ],
)
def test_error_for_a_value_of_the_wrong_shape_names_its_position(
    value: Any, shape: archives.Shape, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        archives.check(value, shape, name="it")


def test_time_without_an_offset_is_refused() -> None:
    assert archives.time_of("2026-11-30T12:00:00+01:00").isoformat() == "2026-11-30T12:00:00+01:00"
    with pytest.raises(ValueError, match="has no offset from UTC"):
        archives.time_of("2026-11-30T12:00:00")
