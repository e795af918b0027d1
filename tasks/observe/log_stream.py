"""A stream of log lines that never blocks, even if its reader is slow, stopped or gone.

A worker logs through a pipe to its master, which logs to a collector. If either of them stops reading, a write blocks,
and so does every thread that logs. This stream writes a line at once if the reader has room. Otherwise the line waits
in memory, up to :data:`MOST_WAITING` bytes, for a writer thread; lines beyond that are dropped and counted. Lines keep
their order and stay whole. When the reader continues, one line reports how many are missing.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any, Final

# Maximum number of bytes to keep in memory: about 10,000 lines, or a minute of output from a busy process.
MOST_WAITING: Final = 4 * 1024 * 1024
# Number of bytes that a writable pipe accepts without blocking: PIPE_BUF on Linux, less the length that multiprocessing
# adds.
AT_ONCE: Final = 4096 - 4
# Maximum time that an ending process waits for its reader.
FLUSH_S: Final = 2.0

Send = Callable[[bytes], None]

_streams: weakref.WeakSet[LogStream] = weakref.WeakSet()


class LogStream(io.TextIOBase):
    """A replacement for ``sys.stderr``, safe in threads, signal handlers and forked processes.

    Args:
        under: the stream that receives the lines.
        report: returns the line that reports a number of dropped lines.
        count: called with the number of lines dropped; its exceptions are swallowed.
    """

    def __init__(self, under: Any, *, report: Callable[[int], str], count: Callable[[int], None]) -> None:
        self._under, self._report, self._count = under, report, count
        self._send, self._fd = _way_to(under)
        self._most_at_once = 0.0 if self._fd is None else _most_at_once(self._fd)
        self._begin_anew()
        _streams.add(self)
        # Unlike atexit callbacks, finalizers also run in the processes that Dramatiq's master starts.
        Finalize(None, self.drain, exitpriority=10)

    def _begin_anew(self) -> None:
        # reentrant, because a signal handler that logs may interrupt a write in the same thread
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # lines, each with the number of dropped lines that it reports
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._n_bytes = 0
        self._n_dropped = 0
        self._is_writing = False
        self._held = ""
        self._partial = ""
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Write text. An incomplete last line is kept until its end is written."""
        with self._lock:
            whole, end, self._partial = (self._partial + text).rpartition("\n")
            n_dropped = self._put_held(before=len(whole))
            lines, self._held = self._held + whole + end, ""
            if lines:
                n_dropped += self._put(lines.encode("utf-8", errors="backslashreplace"))
        if n_dropped:
            with suppress(Exception):
                self._count(n_dropped)
        return len(text)

    def hold(self, line: str) -> None:
        """Write a whole line in one system call with the lines that follow immediately.

        The line is held until the next :meth:`write` or :meth:`release`, or until one write cannot hold more.
        """
        with self._lock:
            n_dropped = self._put_held(before=len(line))
            self._held += line
        if n_dropped:
            with suppress(Exception):
                self._count(n_dropped)

    def release(self) -> None:
        """Write the lines that :meth:`hold` keeps back."""
        if self._held:
            self.write("")

    def flush(self) -> None:
        """Do nothing, because every line is already written or queued. Use ``drain`` to wait."""

    def drain(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait up to ``timeout_s`` until every line is written, and return whether all are."""
        self.write("\n" if self._partial else "")
        with self._lock:
            return self._changed.wait_for(lambda: not (self._waiting or self._is_writing), timeout_s)

    def fileno(self) -> int:
        return int(self._under.fileno())

    def isatty(self) -> bool:
        return bool(self._under.isatty())

    def writable(self) -> bool:
        return True

    def _put_held(self, *, before: int) -> int:
        """Send the lines that :meth:`hold` keeps back if one write cannot hold them and ``before`` more characters.

        The caller holds the lock.

        Returns:
            the number of lines that were dropped.
        """
        if not self._held or len(self._held) + before < AT_ONCE:
            return 0
        held, self._held = self._held, ""
        return self._put(held.encode("utf-8", errors="backslashreplace"))

    def _put(self, line: bytes) -> int:
        """Send, queue or drop a line, and return the number of dropped lines. The caller holds the lock."""
        if not (self._waiting or self._is_writing) and self._has_room_for(line):
            try:
                self._send(line)
            except (OSError, ValueError):  # the reader is gone
                return self._drop(line)
            return 0
        if self._waiting and self._n_bytes + len(line) > MOST_WAITING:
            return self._drop(line)
        self._report_dropped()
        self._wait(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="log-stream", daemon=True)
            self._thread.start()
        self._changed.notify_all()
        return 0

    def _report_dropped(self) -> None:
        if self._n_dropped:
            n, self._n_dropped = self._n_dropped, 0
            self._wait(self._report(n).encode(), n)

    def _wait(self, line: bytes, n_reported: int = 0) -> None:
        self._waiting.append((line, n_reported))
        self._n_bytes += len(line)

    def _drop(self, line: bytes) -> int:
        n = line.count(b"\n")
        self._n_dropped += n
        return n

    def _has_room_for(self, line: bytes) -> bool:
        if self._fd is None:
            return True  # a stream in memory, as in tests, always has room
        if self._n_dropped or len(line) > self._most_at_once:
            return False
        try:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            return any(event & (select.POLLOUT | select.POLLERR) for _, event in poll.poll(0))
        except (OSError, ValueError):
            return True  # the stream is closed, so the write will raise the error

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._waiting)
                line, n_reported = self._waiting.popleft()
                self._n_bytes -= len(line)
                self._is_writing = True
            is_sent = self._try_to_send(line)
            with self._lock:
                self._is_writing = False
                n_dropped = 0
                if is_sent and not self._waiting:
                    # report now, because there may be no later line that could report it
                    self._report_dropped()
                elif not is_sent and n_reported:
                    self._n_dropped += n_reported
                elif not is_sent:
                    n_dropped = self._drop(line)
                self._changed.notify_all()
            if n_dropped:
                with suppress(Exception):
                    self._count(n_dropped)

    def _try_to_send(self, line: bytes) -> bool:
        try:
            self._send(line)
        except (OSError, ValueError):
            time.sleep(0.01)
            return False
        return True


def stream_over(under: Any, *, report: Callable[[int], str], count: Callable[[int], None]) -> LogStream:
    """Return a ``LogStream`` over ``under``, or ``under`` itself if it already is one."""
    return under if isinstance(under, LogStream) else LogStream(under, report=report, count=count)


def _is_pipe_of_dramatiq(under: Any) -> bool:
    # if Dramatiq was not imported, its pipe cannot be a stream of this process
    compat = sys.modules.get("dramatiq.compat")
    return compat is not None and isinstance(under, compat.StreamablePipe)


def _way_to(under: Any) -> tuple[Send, int | None]:
    """Return the function that sends bytes to a stream, and the stream's descriptor (None if it is in memory)."""
    if _is_pipe_of_dramatiq(under):
        # duplicate the descriptor: Dramatiq closes its pipe before a process logs its last lines
        pipe = Connection(os.dup(under.fileno()), readable=False)
        return pipe.send_bytes, pipe.fileno()
    try:
        with suppress(OSError, ValueError):
            under.flush()
        fd = under.fileno()
    except (OSError, ValueError, AttributeError):

        def send_text(line: bytes) -> None:
            under.write(line.decode())
            under.flush()

        return send_text, None

    def send(line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[os.write(fd, left) :]

    return send, fd


def _most_at_once(fd: int) -> float:
    """Return the maximum length of a line that a writable stream accepts without blocking, or 0 for a terminal."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return 0
    if not hasattr(select, "poll"):
        return 0
    return float("inf") if stat.S_ISREG(mode) else AT_ONCE if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else 0


def _begin_anew_in_child() -> None:
    for stream in list(_streams):
        stream._begin_anew()


def release_all() -> None:
    """Write the lines that every stream holds back; see ``LogStream.hold``."""
    for stream in list(_streams):
        stream.release()


def drain_all() -> None:
    """Wait briefly until every line is written. Call this before another program replaces this process."""
    for stream in list(_streams):
        stream.drain()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)
