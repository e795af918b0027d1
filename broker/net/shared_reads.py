"""Shared reads: blocking commands that wait for entries in many streams on one connection.

Redis answers a blocked command as soon as any of its streams has an entry. So a process needs one connection to wait
for the timer streams of all its queues, and another one to read new messages from all queues. A process with few queues
reads each queue on a separate connection, which saves a thread switch. In a cluster, a command can only read streams in
one slot, so every queue has separate connections.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from dramatiq.logging import get_logger

from .bounded_read import Bounds
from .connections import Argument, BlockingRead, Connections

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 2.0
# Time to wait for further timers before a command is sent. A process adds many timers when it starts, and each change
# of the set of timers costs a new connection.
GATHER_S: Final = 0.02
LOOK_AGAIN_S: Final = 60.0
# Number of entries that scripts keep in a timer stream.
MOST_ENTRIES: Final = 16
# Pause before a blocked command that did not end is interrupted again. The first interrupt may have reached the server
# before the command did.
INTERRUPT_AGAIN_S: Final = 0.005
ANSWER_S: Final = 5.0
# After entries have arrived, the next command reads the same queues, because checking which queues have room takes
# longer than passing on an entry. If no entries arrive for this long, the queues are checked.
REVIEW_AFTER_S: Final = 0.02

# An entry's id and its flat list of field names and values.
Entry = tuple[bytes, list[bytes]]


class Timers:
    """The threads that wait for the timers of all of a process's queues. ``stop`` is idempotent."""

    def __init__(self, connections: Connections, *, block_ms: int) -> None:
        """
        Args:
            block_ms: the maximum time that one command blocks at the server.
        """
        self._connections = connections
        self._block_ms = block_ms
        self._lock = threading.Lock()
        self._watches: dict[str | None, _Watch] = {}
        self._is_stopping = False

    def timer(self, key: str) -> Timer:
        """Return a timer for the timer stream at ``key``. Until ``expect`` is called, no thread waits for entries."""
        return Timer(self, key)

    def add(self, timer: Timer, *, again: bool) -> None:
        """Wait for a timer's entries from now on.

        Args:
            again: whether the blocked command must be sent again, because the timer's ``last_id`` is now lower.
        """
        name = timer.key if self._connections.is_cluster else None
        with self._lock:
            if self._is_stopping:
                return
            watch = self._watches.get(name)
            if watch is None:
                watch = self._watches[name] = _Watch(self._connections, timer.key, self._block_ms)
        watch.add(timer, again=again)

    def remove(self, timer: Timer) -> None:
        """Stop waiting for a timer's entries."""
        for watch in list(self._watches.values()):
            watch.remove(timer)

    def begin_stop(self) -> None:
        """Tell the threads to end, without waiting for them."""
        with self._lock:
            self._is_stopping = True
        for watch in list(self._watches.values()):
            watch.begin_stop()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the threads, and wait at most ``timeout_s`` for each."""
        self.begin_stop()
        for watch in list(self._watches.values()):
            watch.stop(timeout_s)


class Timer:
    """A queue's timer stream, in which scripts notify the queue's janitors.

    Attributes:
        key: the stream's key.
        last_id: the newest known entry id.
    """

    def __init__(self, timers: Timers, key: str) -> None:
        self._timers = timers
        self.key = key
        self.last_id = b"0-0"
        self._has_news = threading.Event()
        self._entries: list[Entry] = []

    def expect(self, last_id: bytes) -> None:
        """Start waiting for entries that are newer than ``last_id``, the newest one that the janitor has read."""
        if self._has_news.is_set():  # the janitor has not read an announced entry yet
            return
        is_behind = _place(last_id) < _place(self.last_id)  # the ids start again, because the stream was deleted
        self.last_id = last_id
        self._timers.add(self, again=is_behind)

    def wait(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for a new entry or a call of ``wake``; return whether there was one."""
        has_news = self._has_news.wait(timeout_s)
        self._has_news.clear()
        return has_news

    def entries(self) -> list[Entry] | None:
        """Return the entries that were announced since the last call, or None if some may be missing.

        Some may be missing if the stream has dropped old entries, or if ``wake`` was called.
        """
        entries, self._entries = self._entries, []
        return entries if 0 < len(entries) < MOST_ENTRIES else None

    def wake(self) -> None:
        """Make ``wait`` return, from any thread."""
        self._has_news.set()

    def announce(self, entries: Sequence[Entry]) -> None:
        """Record that entries were added to the stream, and make ``wait`` return."""
        if entries[-1][0] != self.last_id:
            self.last_id = entries[-1][0]
            self._entries += entries
            self._has_news.set()

    def close(self) -> None:
        """Stop waiting for new entries."""
        self._timers.remove(self)


class _Watch:
    """A thread that waits on one connection for the entries of many timers."""

    def __init__(self, connections: Connections, key: str, block_ms: int) -> None:
        self._read = BlockingRead(connections, key, block_ms=block_ms)
        self._block_ms = block_ms
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._lock = threading.Lock()
        self._timers: dict[str, Timer] = {}
        self._must_ask_again = False
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="broker-timers", daemon=True)
        self._thread.start()

    def add(self, timer: Timer, *, again: bool) -> None:
        with self._lock:
            is_new = self._timers.get(timer.key) is not timer
            self._timers[timer.key] = timer
            if not (is_new or again):
                return
            self._must_ask_again = True
        self._read.wake()

    def remove(self, timer: Timer) -> None:
        with self._lock:
            if self._timers.get(timer.key) is timer:
                del self._timers[timer.key]

    def begin_stop(self) -> None:
        self._is_stopping.set()
        self._read.wake()

    def stop(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._is_stopping.is_set():
            try:
                self._round()
                pause_s = FIRST_PAUSE_S
                continue
            except (BrokerConnectionError, redis.RedisError) as error:
                if self._is_stopping.is_set():
                    break
                self._logger.warning("could not wait for notifications; trying again", extra={"error": str(error)})
            except Exception:
                self._logger.exception("could not wait for notifications; trying again")
            self._read.drop()
            for timer in self._known():
                timer.wake()
            self._is_stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self._read.close()

    def _round(self) -> None:
        """Wait until a timer has a new entry or the set of timers changes."""
        if not self._read.is_waiting:
            if self._must_ask_again:
                self._is_stopping.wait(GATHER_S)
                self._must_ask_again = False
            timers = self._known()
            if timers:
                ids = [timer.last_id for timer in timers]
                self._read.send("XREAD", "BLOCK", self._block_ms, "STREAMS", *(t.key for t in timers), *ids)
        if self._read.wait(LOOK_AGAIN_S):
            by_key = {timer.key.encode(): timer for timer in self._known()}
            for key, entries in self._read.answer() or ():
                if key in by_key:
                    by_key[key].announce(entries)
        elif self._must_ask_again:
            self._read.drop()

    def _known(self) -> list[Timer]:
        with self._lock:
            return list(self._timers.values())


class OwnRead:
    """A reader of one queue on its own connection."""

    def __init__(
        self, connections: Connections, stream: str, *, head: Sequence[Argument], block_ms: int, bounds: Bounds | None
    ) -> None:
        """
        Args:
            head: the read command up to and including ``COUNT``.
            block_ms: the maximum time that one command blocks at the server.
            bounds: the size limits for one reply, or None for no limits.
        """
        self._read = BlockingRead(connections, stream, block_ms=block_ms, bounds=bounds)
        self._stream = stream
        self._head = head
        self._block_ms = block_ms
        self._n_asked = 0

    @property
    def is_waiting(self) -> bool:
        """Whether a read command has been sent whose reply was not taken yet."""
        return self._read.is_waiting

    def start(self, n: int) -> None:
        """Request at most ``n`` entries without waiting for them."""
        self._n_asked = n
        self._read.send(*self._head, n, "BLOCK", self._block_ms, "STREAMS", self._stream, ">")

    def wait(self, timeout_s: float) -> bool:
        """Wait for the reply or a wake-up; return whether the reply has arrived."""
        return self._read.wait(timeout_s)

    def take(self) -> tuple[Sequence[Any], bool, bool]:
        """Return the reply's entries, whether there may be more, and False, because no entries can have been lost."""
        answer = self._read.answer()
        entries = answer[0][1] if answer else ()
        return entries, len(entries) >= self._n_asked, False

    def wake(self) -> None:
        """Make ``wait`` return, from any thread."""
        self._read.wake()

    def stop(self, *, timeout_s: float) -> tuple[Sequence[Any], bool]:
        """Stop reading, and drop the connection.

        Returns:
            An empty sequence, and whether entries may have been lost with the connection.
        """
        was_waiting = self._read.is_waiting
        self._read.drop()
        return (), was_waiting

    def close(self, *, timeout_s: float) -> tuple[Sequence[Any], bool]:
        """Stop reading permanently. Returns the same values as ``stop``."""
        was_waiting = self._read.is_waiting
        self._read.close()
        return (), was_waiting


class GroupReads:
    """A thread that reads several queues' new entries on one connection.

    Each queue reports for how many entries it has room. A command reads the queues that have room, and requests as many
    entries per queue as the one with the least room can take. If another queue gets room, the blocked command is
    interrupted.
    """

    def __init__(
        self, connections: Connections, key: str, *, head: Sequence[Argument], block_ms: int, bounds: Bounds | None
    ) -> None:
        """
        Args:
            key: any key on the server.
            head: the read command up to and including ``COUNT``.
            block_ms: the maximum time that one command blocks at the server.
            bounds: the size limits for one reply, or None for no limits.
        """
        self._connections = connections
        self._key = key
        self._head = head
        self._block_ms = block_ms
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._read = BlockingRead(connections, key, block_ms=block_ms, bounds=bounds)
        self._client_id: int | None = None
        self._changed = threading.Condition()
        self._queues: set[SharedRead] = set()
        self._covered: dict[SharedRead, int] = {}
        self._is_hurried = False  # whether a queue has room again or must no longer be read
        self._is_stale = False
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="broker-reads", daemon=True)
        self._thread.start()

    def covers(self, queue: SharedRead) -> bool:
        """Return whether the current command reads this queue, so that its entries may arrive at any time."""
        return queue in self._covered

    def include(self, queue: SharedRead) -> None:
        """Read this queue from now on, while it has room."""
        with self._changed:
            self._queues.add(queue)
            if queue in self._covered:
                return
            self._is_hurried = True
        self._read.wake()

    def exclude(self, queue: SharedRead, *, timeout_s: float) -> bool:
        """Stop reading this queue, and wait up to ``timeout_s`` until no more of its entries can arrive.

        Returns:
            Whether that is certain.
        """
        with self._changed:
            self._queues.discard(queue)
            if queue not in self._covered:
                return True
            self._is_hurried = True
            self._read.wake()
            return self._changed.wait_for(lambda: queue not in self._covered, timeout_s)

    def begin_stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._is_stopping.set()
        self._read.wake()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the thread, waiting at most ``timeout_s``."""
        self.begin_stop()
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        pause_s = 0.0
        while not self._is_stopping.is_set():
            try:
                self._round()
                pause_s = 0.0
                continue
            except (BrokerConnectionError, redis.RedisError) as error:
                # One of the queues causes an error reply, for example because its group does not exist. Then each queue
                # is read separately once, so that the error is raised for the right one.
                is_reply = isinstance(error, redis.ResponseError) or isinstance(error.__cause__, redis.ResponseError)
                self._interrupt(error, is_lost=not is_reply)
            except Exception as error:
                self._logger.exception("could not read several queues; trying again")
                self._interrupt(error, is_lost=True)
            self._is_stopping.wait(pause_s)
            pause_s = min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._read.close()
        self._cover({})

    def _round(self) -> None:
        """Send one command, wait for its reply and pass on the entries."""
        if self._is_hurried or self._is_stale or not self._covered or min(self._covered.values()) <= 0:
            self._cover(self._wanted())
        rooms = self._covered
        if not rooms:
            self._read.wait(LOOK_AGAIN_S)
            return
        if not self._read.is_connected:
            self._client_id = self._ask_for_id()
        n_asked = min(rooms.values())
        streams = [queue.stream for queue in rooms]
        self._read.send(*self._head, n_asked, "BLOCK", self._block_ms, "STREAMS", *streams, *(">" for _ in streams))
        if not self._wait_for_answer():
            return
        by_stream = {queue.stream.encode(): queue for queue in rooms}
        for stream, entries in self._read.answer() or ():
            queue, is_full = by_stream[stream], len(entries) >= n_asked
            queue.receive(entries, is_full=is_full)
            # other changes in the queues' room are noticed when no entries arrive
            rooms[queue] = 0 if is_full else rooms[queue] - len(entries)
        time.sleep(0)  # let the threads that wait for these entries run first

    def _wanted(self) -> dict[SharedRead, int]:
        """Return the queues that have room, each with the number of entries for which it has room."""
        with self._changed:
            self._is_hurried = False
            queues = list(self._queues)
        # call ``wanted`` without the lock, because each queue checks the state of other queues
        return {queue: n for queue in queues if (n := queue.wanted()) > 0}

    def _wait_for_answer(self) -> bool:
        """Wait for the reply to the command. Return True when it has arrived, or False if this thread must end."""
        timeout_s = REVIEW_AFTER_S
        while not self._read.wait(timeout_s):
            if self._is_stopping.is_set():
                return False
            if not (self._is_hurried or self._is_stale):
                timeout_s = LOOK_AGAIN_S
                wanted = self._wanted()
                self._is_stale = wanted.keys() != self._covered.keys()
                self._covered.update(wanted if not self._is_stale else {})
            if self._is_hurried or self._is_stale:
                self._end_command()
                timeout_s = INTERRUPT_AGAIN_S
        return True

    def _cover(self, wanted: dict[SharedRead, int]) -> None:
        with self._changed:
            dropped = self._covered.keys() - wanted.keys()
            self._covered = wanted
            self._is_stale = False
            self._changed.notify_all()
        for queue in dropped:
            queue.wake()  # the queue may be waiting for entries that can no longer arrive

    def _ask_for_id(self) -> int | None:
        """Return the client id with which to interrupt this connection, or None if the Redis user may not query it."""
        self._read.send("CLIENT", "ID")
        deadline = time.monotonic() + ANSWER_S
        while not self._read.wait(deadline - time.monotonic()):  # a wake-up also ends the wait, so wait again
            if time.monotonic() > deadline:
                raise ConnectionClosed("no answer to CLIENT ID")
        try:
            return int(self._read.answer())
        except redis.ResponseError as error:
            self._logger.warning(
                "this Redis user may not run CLIENT ID and CLIENT UNBLOCK; reads of many queues cost more connections",
                extra={"error": str(error)},
            )
            return None

    def _end_command(self) -> None:
        """Make the server end the blocked command.

        Raises:
            ConnectionClosed: the Redis user may not run ``CLIENT UNBLOCK``, so the connection must be dropped.
        """
        try:
            if self._client_id is not None:
                self._connections.run("CLIENT", "UNBLOCK", self._client_id, key=self._key)
                return
        except redis.ResponseError:
            self._client_id = None
        raise ConnectionClosed("a blocked read had to be dropped, because this user may not run CLIENT UNBLOCK")

    def _interrupt(self, error: BaseException, *, is_lost: bool) -> None:
        if is_lost:
            self._read.drop()
            if not self._is_stopping.is_set():
                self._logger.warning("could not read several queues; trying again", extra={"error": str(error)})
        queues = list(self._covered)
        self._cover({})
        for queue in queues:
            queue.interrupt(is_lost=is_lost)


class SharedRead:
    """A reader of one queue on a connection that ``GroupReads`` shares. It buffers entries until they are taken.

    Args:
        wanted: a function that returns the number of entries for which the queue has room.
        look: a function that reads up to the given number of entries without waiting.
        hand_back: a function that hands back entries that arrived after ``close``.
    """

    def __init__(
        self,
        reads: GroupReads,
        stream: str,
        *,
        wanted: Callable[[], int],
        look: Callable[[int], Sequence[Any]],
        hand_back: Callable[[Sequence[Any]], None],
    ) -> None:
        self.stream = stream
        self._reads = reads
        self._wanted = wanted
        self._look = look
        self._hand_back = hand_back
        self._lock = threading.Lock()
        self._entries: list[Any] = []
        self._is_full = False
        self._is_open = False
        self._must_look = True
        self._is_lost = False
        self._has_news = threading.Event()

    def open(self) -> None:
        """Start accepting entries. Entries whose reply was lost before remain pending for this consumer."""
        with self._lock:
            self._entries = []
            self._is_open = self._must_look = True
            self._is_lost = False

    @property
    def is_waiting(self) -> bool:
        """Whether entries have arrived, or may arrive at any time."""
        return bool(self._entries) or self._reads.covers(self)

    def start(self, n: int) -> None:
        """If the last read may have left entries, read them now. Otherwise, let the shared read wait for new ones."""
        if self._must_look:
            self._must_look = False
            try:
                found = self._look(n)
            except BaseException:
                self._must_look = True
                raise
            if found:
                self.receive(found, is_full=len(found) >= n)
                return
        self._reads.include(self)

    def wait(self, timeout_s: float) -> bool:
        """Wait for entries or a wake-up; return whether there are entries or some may have been lost."""
        if not self._entries:
            self._has_news.wait(timeout_s)
        self._has_news.clear()
        return bool(self._entries) or self._is_lost

    def take(self) -> tuple[Sequence[Any], bool, bool]:
        """Return the entries that have arrived, whether there may be more, and whether others may have been lost.

        Entries are lost if their connection breaks before they arrive. They are pending for this consumer.
        """
        with self._lock:
            entries, self._entries = self._entries, []
            is_full, self._is_full = self._is_full, False
            is_lost, self._is_lost = self._is_lost, False
        return entries, is_full, is_lost

    def wake(self) -> None:
        """Make ``wait`` return, from any thread."""
        self._has_news.set()

    def stop(self, *, timeout_s: float) -> tuple[Sequence[Any], bool]:
        """Stop reading.

        Returns:
            The entries that were not taken, and whether others may still arrive or have been lost.
        """
        self._must_look = True
        is_excluded = self._reads.exclude(self, timeout_s=timeout_s)
        entries, _, is_lost = self.take()
        return entries, is_lost or not is_excluded

    def close(self, *, timeout_s: float) -> tuple[Sequence[Any], bool]:
        """Stop reading permanently. Entries that arrive later are handed back. Returns the same values as ``stop``."""
        entries, is_lost = self.stop(timeout_s=timeout_s)
        with self._lock:
            self._is_open = False
            late, self._entries = self._entries, []
        return [*entries, *late], is_lost

    def wanted(self) -> int:
        """Return the number of entries that the shared read may currently read for this queue."""
        return 0 if self._must_look else self._wanted() - len(self._entries)

    def receive(self, entries: Sequence[Any], *, is_full: bool) -> None:
        """Add entries that were read to the buffer, or hand them back if the reader is closed.

        Args:
            is_full: whether the read returned as many entries as it requested, so that there may be more.
        """
        with self._lock:
            if is_open := self._is_open:
                self._entries.extend(entries)
                self._is_full = is_full
                self._must_look = self._must_look or is_full
        if is_open:
            self._has_news.set()
        else:
            self._hand_back(entries)

    def interrupt(self, *, is_lost: bool) -> None:
        """Make ``wait`` return because the shared read failed.

        Args:
            is_lost: whether entries may have been lost.
        """
        self._must_look = True
        self._is_lost = self._is_lost or is_lost
        self._has_news.set()


def _place(entry_id: bytes) -> tuple[int, int]:
    """Return an entry id as a tuple that can be compared."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
