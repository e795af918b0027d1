"""The keeper: writes the heartbeats that renew a process's lease on all messages that it holds.

A heartbeat is the score of the consumer in a sorted set per queue: a time on the server's clock. Entries are not
touched, so XPENDING still shows the time since delivery.

A child process (``keeper_process.py``) writes the heartbeats, so that a process keeps its messages even if a job holds
the interpreter lock for longer than the lease. When the process dies, its child reports the death in Redis, and other
processes take over its messages at once. A thread listens to the child. While there is no child, because it has not
started yet, cannot start, or was killed, the thread writes the heartbeats.
"""

from __future__ import annotations

import logging
import marshal
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from . import master
from .keys import QueueKeys
from .net.connections import Connections
from .running.judgement import Judgement
from .scripts import BEAT, LEAVE
from .settings import BrokerSettings

PROGRAM: Final = Path(__file__).with_name("keeper_process.py")
# Environment variables that are passed to the child. Python needs them to start and to verify certificates.
ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF", "OPENSSL_MODULES")
MOST_BYTES: Final = 1 << 16
CAN_HAVE_CHILD: Final = sys.platform.startswith("linux") and Path("/proc/self/stat").exists() and PROGRAM.exists()
# Maximum time to wait until the child ends. While the child waits for Redis, it does not read the request to end.
CHILD_ENDS_S: Final = 2.0
# How often to check whether a stuck process makes progress again.
LOOK_AGAIN_S: Final = 0.5
# Pauses before restarts of the child. Further restarts use the last pause.
RESTART_PAUSES_S: Final = (0.0, 1.0, 10.0, 60.0)


class Keeper:
    """Writes the heartbeats for all queues of a process. ``stop`` is idempotent.

    Args:
        judge: a function that returns whether the process makes progress. While it does not, no heartbeat is written.
            If None, the process always counts as making progress.
        on_judgement: a function that is called with True or False when the process starts or stops making progress.
    """

    def __init__(
        self,
        connections: Connections,
        settings: BrokerSettings,
        *,
        consumer_name: str,
        judge: Callable[[], Judgement] | None = None,
        on_judgement: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._judge = judge
        self._on_judgement = on_judgement
        self._moves = True
        self._connections = connections
        self._settings = settings
        self._sure_for_s = settings.lease_ms / 1000 * 0.8
        self._consumer_name = consumer_name
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._lock = threading.Lock()
        self._queues: dict[str, QueueKeys] = {}
        self._confirmed_at: dict[str, float] = {}
        self._late_at = float("-inf")
        self._child: _Child | None = None
        self._known: set[str] = set()
        self._lost: set[str] = set()
        self._n_failures = 0
        self._next_child_at = 0.0 if settings.keeper_process else float("inf")
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, keys: QueueKeys) -> None:
        """Write the first heartbeat for a queue, and write further ones from now on.

        Raises:
            BrokerConnectionError: the first heartbeat could not be written.
        """
        self._beat([keys])
        with self._lock:
            self._queues[keys.queue_name] = keys
            if self._thread is None and not self._is_stopping.is_set():
                self._thread = threading.Thread(target=self._loop, name="broker-keeper", daemon=True)
                self._thread.start()
        self._introduce_new_queues()

    def run_once(self) -> None:
        """Write one heartbeat for every queue, in one round trip to each node.

        Raises:
            BrokerConnectionError: a heartbeat could not be written. In a cluster, those on other nodes were written.
        """
        with self._lock:
            queues = {keys.stream: keys for keys in self._queues.values()}
        failure: Exception | None = None
        for streams in self._connections.together(list(queues)):
            try:
                self._beat([queues[stream] for stream in streams])
            except (BrokerConnectionError, redis.RedisError) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    @property
    def child_pid(self) -> int | None:
        """The pid of the keeper process, or None if it is not running."""
        child = self._child
        return None if child is None else child.process.pid

    def is_sure_of(self, queue_name: str) -> bool:
        """Return whether it is certain that this process's lease has not lapsed, so that it still holds its messages.

        The lease is measured on the local clock, from just before the last confirmed heartbeat was sent. So a process
        that was stopped (``SIGSTOP``) notices this when it continues.
        """
        confirmed_at = self._confirmed_at.get(queue_name, float("-inf"))
        return time.monotonic() - confirmed_at < self._sure_for_s

    def may_judge(self, queue_name: str) -> bool:
        """Return whether an old heartbeat of another consumer proves that it is dead.

        Immediately after a Redis outage, it does not: all heartbeats are old, and live processes have not yet written
        new ones.
        """
        since_late_s = time.monotonic() - self._late_at
        return self.is_sure_of(queue_name) and since_late_s > self._settings.beat_ms / 1000 + 1

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """Stop writing heartbeats.

        The child keeps running until ``close`` is called, so that it can report this process's death.
        """
        self._is_stopping.set()
        if self._child is not None:
            self._child.tell("rest")
        if self._thread is not None:
            self._thread.join(timeout_s)

    def close(self, *, is_holding: bool, timeout_s: float = 5.0) -> None:
        """Stop writing heartbeats, and end the child.

        Args:
            is_holding: whether the process still holds entries. If so, the child keeps running until the process dies,
                and then frees these entries by reporting the death.
        """
        self.stop(timeout_s=timeout_s)
        if is_holding:
            with suppress(BrokerConnectionError, redis.RedisError):
                self._introduce_new_queues()
        child, self._child = self._child, None
        if child is not None and is_holding:
            _watching.append(child)
        elif child is not None:
            child.end(min(timeout_s, CHILD_ENDS_S))

    def abandon(self) -> None:
        """Let go of the child, which belongs to the parent. Called in a forked process."""
        if self._child is not None:
            self._child.let_go()
            self._child = None

    def _beat(self, queues: list[QueueKeys]) -> None:
        sent_at = time.monotonic()
        args = (self._settings.group, self._consumer_name, self._settings.lease_ms, 1)
        answers = self._connections.run_scripts(BEAT, [((keys.stream, keys.consumers), args) for keys in queues])
        for keys, was_in_time in zip(queues, answers, strict=True):
            self._confirm(keys.queue_name, sent_at, was_in_time=bool(was_in_time))

    def _confirm(self, queue_name: str, sent_at: float, *, was_in_time: bool) -> None:
        confirmed_at = self._confirmed_at.get(queue_name)
        if confirmed_at is not None:
            if sent_at - confirmed_at > 1.75 * self._settings.beat_ms / 1000:
                self._late_at = time.monotonic()
            if not was_in_time:
                self._logger.warning(
                    "the lease had lapsed; messages held here may also run elsewhere", extra={"queue": queue_name}
                )
        self._confirmed_at[queue_name] = max(sent_at, confirmed_at or sent_at)

    def _loop(self) -> None:
        while not self._is_stopping.is_set():
            try:
                moves = self._check_progress()
                has_heard = self._listen((0.0 if self._lost else self._until_late_s()) if moves else LOOK_AGAIN_S)
                if self._is_stopping.is_set():
                    return
                if not moves:
                    continue
                if self._lost and not has_heard:
                    self._find_again()
                elif self._until_late_s() <= 0:
                    self.run_once()
            except (BrokerConnectionError, redis.RedisError) as error:
                self._logger.warning("could not write a heartbeat; trying again", extra={"error": str(error)})
                self._is_stopping.wait(min(0.5, self._settings.beat_ms / 1000))
            except Exception:
                self._logger.exception("the keeper failed; trying again")
                self._is_stopping.wait(min(0.5, self._settings.beat_ms / 1000))

    def _check_progress(self) -> bool:
        """Return whether this process makes progress. Send the child the time until which it may write heartbeats."""
        if self._judge is None:
            return True
        judged = self._judge()
        moves = judged.stuck is None
        if self._child is not None:
            self._child.tell("moves", judged.moves_until)
        if moves != self._moves:
            self._moves = moves
            if moves:
                self._logger.warning("this process makes progress again and takes messages")
            else:
                self._logger.error("this process is stuck; others take over its messages: %s", judged.stuck)
            self._on_judgement(moves)
        return moves

    def _until_late_s(self) -> float:
        """Return the seconds until this thread must write heartbeats.

        They are due one interval after the last heartbeat. If there is a child, which should write them, the thread
        waits for 1.4 intervals.
        """
        n_beats = 1.0 if self._child is None else 1.4
        oldest = min((self._confirmed_at.get(name, 0.0) for name in list(self._queues)), default=time.monotonic())
        return oldest + n_beats * self._settings.beat_ms / 1000 - time.monotonic()

    def _find_again(self) -> None:
        """Write heartbeats on this process's connections, which find a moved server, and give the child its address."""
        lost, self._lost = self._lost, set()
        try:
            self.run_once()
        finally:
            self._known -= lost

    def _listen(self, timeout_s: float) -> bool:
        """Wait for a message from the child, which is started if there is none; return whether one was received."""
        if self._child is None and time.monotonic() >= self._next_child_at:
            self._start_child()
        child = self._child
        if child is None:
            self._is_stopping.wait(max(0.0, min(timeout_s, self._next_child_at - time.monotonic())))
            return False
        self._introduce_new_queues()
        message = child.heard(max(0.001, timeout_s))
        if message is None:
            return False
        if not message:
            if self._child is child and not self._is_stopping.is_set():
                self._child = None
                self._do_without(f"it ended with status {child.end()}")
            return False
        kind, *rest = message
        if kind == "beat":
            self._n_failures = 0
            queue_name, sent_at, was_in_time = rest
            self._confirm(queue_name, sent_at, was_in_time=bool(was_in_time))
        elif kind == "lost":
            self._lost.add(rest[0])
        return True

    def _start_child(self) -> None:
        if not CAN_HAVE_CHILD:
            self._do_without("there is no /proc that shows whether this process is stopped", for_good=True)
            return
        try:
            child = _Child(
                os.getpid(),
                self._settings.beat_ms / 1000,
                [BEAT.text, LEAVE.text],
                self._settings.group,
                self._consumer_name,
                self._settings.lease_ms,
                *((ours.pid, ours.grace_s) if (ours := master.of_this_process()) is not None else (0, 0.0)),
            )
        except (OSError, ValueError) as error:
            self._do_without(f"{type(error).__name__}: {error}")
            return
        with self._lock:
            self._child, self._known = child, set()
        if self._is_stopping.is_set():
            child.tell("rest")  # when ``stop`` was called, there was no child to which it could send this

    def _do_without(self, problem: str, *, for_good: bool = False) -> None:
        pause_s = RESTART_PAUSES_S[min(self._n_failures, len(RESTART_PAUSES_S) - 1)]
        self._n_failures += 1
        self._next_child_at = float("inf") if for_good else time.monotonic() + pause_s
        self._logger.warning(
            "no keeper process: %s; a thread writes heartbeats, which code holding the interpreter lock can delay",
            problem,
        )

    def _introduce_new_queues(self) -> None:
        """Send the child the keys and the server address of each queue that is new to it."""
        with self._lock:
            child = self._child
            unknown = [] if child is None else [k for name, k in self._queues.items() if name not in self._known]
        for keys in unknown:
            assert child is not None
            address = self._connections.address(keys.stream)
            if address is None:
                self._child = None
                child.end()
                self._do_without("this client's connection settings cannot be passed to one", for_good=True)
                return
            child.tell("queue", keys.queue_name, [keys.stream, keys.consumers, keys.timer], dict(address))
            self._known.add(keys.queue_name)


class _Child:
    """A running keeper process and the parent's socket to it."""

    def __init__(self, *setup: Any) -> None:
        # each message is sent as one packet, which the kernel never splits
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = _start(theirs)
        self.tell(*setup)

    def tell(self, *message: Any) -> None:
        """Send a message, and ignore failures. ``heard`` detects that the child has ended."""
        with suppress(OSError):
            self._socket.send(marshal.dumps(message))

    def heard(self, timeout_s: float) -> tuple[Any, ...] | None:
        """Return the child's next message, None if ``timeout_s`` passes without one, or () if the child has ended."""
        try:
            self._socket.settimeout(timeout_s)
            packet = self._socket.recv(MOST_BYTES)
        except TimeoutError:
            return None
        except OSError:
            return ()
        message: tuple[Any, ...] = marshal.loads(packet) if packet else ()  # noqa: S302  # from our own child
        return message

    def end(self, timeout_s: float = CHILD_ENDS_S) -> int:
        """End the child, by SIGKILL after ``timeout_s``, and return its exit status."""
        self.tell("stop")
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._socket.close()
        return status

    def let_go(self) -> None:
        """Close this end of the socket without sending a message."""
        self._socket.close()


def _start(control: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # --of shows the parent's pid in the process list
        [sys.executable, "-I", "-S", str(PROGRAM), "--of", str(os.getpid())],
        stdin=control.fileno(),
        # the child must not inherit a pipe as its stdout: the pipe's reader would also wait for the child to end
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        start_new_session=True,
    )


# Children whose only remaining task is to report this process's death.
_watching: list[_Child] = []
