"""Bounded reads: parse replies from the socket, and keep only as much data as a consumer may hold.

Other programs can write entries of any size, and ``XREADGROUP`` returns whole entries. No Redis command can leave out
large ones. So this module cuts strings that are too long and keeps only their heads, for the dead letter.
:class:`Bounds` limits the memory that one reply uses, whatever the server sends. Most replies are too small to reach a
limit. If hiredis is installed, it parses these in a tenth of the time.

The module supports only version 2 of the Redis protocol, which ``Connections`` uses.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

try:
    import hiredis
except ImportError:
    HAS_HIREDIS = False
else:
    HAS_HIREDIS = True

CHUNK: Final = 64 * 1024
HEAD: Final = 4 * 1024  # number of bytes that are kept of a string that is too long
MOST_PARTS: Final = 4_000  # maximum number of names and values that are kept of one entry, as in bury.lua
LARGEST_SMALL: Final = 1 << 20  # maximum size in bytes of a reply that hiredis parses
DEPTH_OF_FIELDS: Final = 5  # nesting depth of an entry's fields in the reply to XREADGROUP


@dataclass(frozen=True, slots=True)
class Bounds:
    """The size limits for one reply, in bytes.

    Attributes:
        longest: the maximum size of a string. Only the head of a longer string is kept.
        budget: the maximum total size of all strings. Strings beyond it are cut, too.
    """

    longest: int
    budget: int


class CutFields(list[bytes]):
    """The field names and values of an entry that was too large, cut to the limits.

    Attributes:
        n_bytes: the size of the whole entry.
    """

    def __init__(self, parts: list[bytes], n_bytes: int) -> None:
        super().__init__(parts)
        self.n_bytes = n_bytes


_UNKNOWN: Final = object()


class BoundedReader:
    """Reads replies from a socket, from which nothing else may read."""

    def __init__(self, sock: socket.socket, bounds: Bounds) -> None:
        self._sock = sock
        self._bounds = bounds
        # a reply of at most this size cannot contain a string that is too long or exceed the budget
        self._largest_small = min(LARGEST_SMALL, bounds.longest, bounds.budget)
        self._buffer = bytearray()
        self._at = 0
        self._kept = 0
        self._n_bytes = 0  # size of the part of the current entry that has been read
        self._is_cut = False

    def read(self) -> Any:
        """Return the next reply. The fields of an entry that was too large are :class:`CutFields`.

        Raises:
            redis.ResponseError: the reply is an error.
            redis.ConnectionError: the server closed the connection.
            OSError: the socket failed, or its timeout passed.
        """
        if HAS_HIREDIS and self._at == len(self._buffer):
            answer = self._small_answer()
            if answer is not _UNKNOWN:
                return answer
        self._kept = 0
        return self._value(1)

    def _small_answer(self) -> Any:
        """Return the next reply, or ``_UNKNOWN`` if it may exceed the limits. Its bytes are then kept in the buffer."""
        parser = hiredis.Reader(protocolError=redis.InvalidResponse, replyError=_error_of, notEnoughData=_UNKNOWN)
        answer: Any = _UNKNOWN
        while answer is _UNKNOWN:
            chunk = self._receive()
            if len(self._buffer) > self._largest_small:
                return _UNKNOWN
            parser.feed(chunk)
            answer = parser.gets()
        if parser.has_data() or any(
            fields and len(fields) > MOST_PARTS for _, entries in _streams_of(answer) for _, fields in entries
        ):
            return _UNKNOWN
        self._buffer.clear()
        if isinstance(answer, redis.RedisError):
            raise answer
        return answer

    def _value(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return self._bulk(int(rest), is_field=depth > DEPTH_OF_FIELDS)
        if kind == b"*":
            return self._list(int(rest), depth)
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            raise _error_of(rest.decode(errors="replace"))
        raise redis.InvalidResponse(f"Protocol Error: {line[:40]!r}")

    def _list(self, n: int, depth: int) -> list[Any] | None:
        if n < 0:
            return None
        if depth < DEPTH_OF_FIELDS:
            return [self._value(depth + 1) for _ in range(n)]
        self._n_bytes, self._is_cut = 0, n > MOST_PARTS
        parts = [self._part() for _ in range(min(n, MOST_PARTS))]
        for _ in range(n - MOST_PARTS):
            n_bytes = int(self._line()[1:])
            self._n_bytes += n_bytes
            self._skip(n_bytes + 2)
        return CutFields(parts, self._n_bytes) if self._is_cut else parts

    def _part(self) -> Any:
        """Return the next field name or value, by a fast path if the buffer holds all of it."""
        at, buffer = self._at, self._buffer
        end = buffer.find(b"\r\n", at, at + 20)
        if end > 0:
            n = int(buffer[at + 1 : end])
            stop = end + 2 + n
            n_kept = self._kept + n
            if 0 <= n <= self._bounds.longest and n_kept <= self._bounds.budget and stop + 2 <= len(buffer):
                self._at, self._kept = stop + 2, n_kept
                self._n_bytes += n
                return bytes(buffer[end + 2 : stop])
        return self._value(DEPTH_OF_FIELDS + 1)

    def _bulk(self, n: int, *, is_field: bool) -> bytes | None:
        if n < 0:
            return None
        self._n_bytes += n
        keep = n
        # cut only fields, because stream names and ids are short and always needed
        if is_field and (n > self._bounds.longest or self._kept + n > self._bounds.budget):
            self._is_cut = True
            keep = min(n, HEAD, max(0, self._bounds.budget - self._kept))
        self._fill(keep)
        part = bytes(self._buffer[self._at : self._at + keep])
        self._at += keep
        self._kept += keep * is_field
        self._skip(n - keep + 2)
        return part

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            self._receive()
        line = bytes(self._buffer[self._at : end])
        self._at = end + 2
        return line

    def _fill(self, n: int) -> None:
        while len(self._buffer) - self._at < n:
            self._receive()

    def _skip(self, n: int) -> None:
        while (n_buffered := len(self._buffer) - self._at) < n:
            n -= n_buffered
            self._buffer.clear()
            self._at = 0
            self._receive()
        self._at += n

    def _receive(self) -> bytes:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        chunk = self._sock.recv(CHUNK)
        if not chunk:
            raise redis.ConnectionError("Connection closed by server.")
        self._buffer += chunk
        return chunk


def _streams_of(answer: Any) -> Sequence[Any]:
    """Return the streams in the reply to a read, or an empty sequence for another reply."""
    return answer if isinstance(answer, list) else ()


def _error_of(text: str) -> redis.RedisError:
    word, _, rest = text.partition(" ")
    if word == "MOVED":
        return redis.exceptions.MovedError(rest)
    if word == "ASK":
        return redis.exceptions.AskError(rest)
    return redis.ResponseError(text)
