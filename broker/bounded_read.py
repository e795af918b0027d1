"""Reads the answer to a blocking read from its socket, and keeps no more of it than a consumer may hold.

A stream may hold entries of any size, whoever wrote them, and ``XREADGROUP`` answers with all of each. Redis has no
command that would leave the large ones out, so they are left out here: what is longer than allowed is read past, and
its head is kept for the dead letter. What a process holds of one answer is bounded by :class:`Bounds`, whatever was
sent.

Only the second version of Redis' protocol, which is what ``Connections`` speaks.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Final

import redis

CHUNK: Final = 64 * 1024
HEAD: Final = 4 * 1024  # bytes kept of a string that is too long
MOST_PARTS: Final = 4_000  # names and values of one entry; bury.lua keeps as many
DEPTH_OF_FIELDS: Final = 5  # of the nested lists that XREADGROUP answers with


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept of one answer, in bytes.

    Attributes:
        longest: of one string; of a longer one the head.
        budget: of all strings together; what comes when it is used up is cut as well.
    """

    longest: int
    budget: int


class CutFields(list[bytes]):
    """Names and values of an entry of which not all was kept.

    Attributes:
        n_bytes: how many bytes all of them have.
    """

    def __init__(self, kept: list[bytes], n_bytes: int) -> None:
        super().__init__(kept)
        self.n_bytes = n_bytes


class BoundedReader:
    """Reads answers from a socket that nobody else reads from meanwhile."""

    def __init__(self, sock: socket.socket, bounds: Bounds) -> None:
        self._sock = sock
        self._bounds = bounds
        self._buffer = bytearray()
        self._at = 0
        self._kept = 0
        self._n_bytes = 0  # of the entry that is being read
        self._is_cut = False

    def read(self) -> Any:
        """Return the next answer, in which an entry that was too large is a :class:`CutFields`.

        Raises:
            redis.ResponseError: the answer is an error.
            redis.ConnectionError: the server closed the connection.
            OSError: the socket failed, or its timeout passed.
        """
        self._kept = 0
        return self._value(1)

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
        """Return a name or a value; at once where all of it is here, as nearly always."""
        at, buffer = self._at, self._buffer
        end = buffer.find(b"\r\n", at, at + 20)
        if end > 0:
            n = int(buffer[at + 1 : end])
            there = end + 2 + n
            kept = self._kept + n
            if 0 <= n <= self._bounds.longest and kept <= self._bounds.budget and there + 2 <= len(buffer):
                self._at, self._kept = there + 2, kept
                self._n_bytes += n
                return bytes(buffer[end + 2 : there])
        return self._value(DEPTH_OF_FIELDS + 1)

    def _bulk(self, n: int, *, is_field: bool) -> bytes | None:
        if n < 0:
            return None
        self._n_bytes += n
        keep = n
        # names of streams and ids are short, and needed whatever becomes of the entry
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
        while (there := len(self._buffer) - self._at) < n:
            n -= there
            self._buffer.clear()
            self._at = 0
            self._receive()
        self._at += n

    def _receive(self) -> None:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        chunk = self._sock.recv(CHUNK)
        if not chunk:
            raise redis.ConnectionError("Connection closed by server.")
        self._buffer += chunk


def _error_of(text: str) -> redis.RedisError:
    word, _, rest = text.partition(" ")
    if word == "MOVED":
        return redis.exceptions.MovedError(rest)
    if word == "ASK":
        return redis.exceptions.AskError(rest)
    return redis.ResponseError(text)
