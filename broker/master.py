"""Supervision of the master (Dramatiq's command) by its worker processes, which must not outlive it.

Unless a container or a control group ends them, worker processes survive a killed master. No supervisor would see them,
and they would run together with the next master's workers. So each worker process watches its master. When the master
has ended, the worker process drains as after SIGTERM and is killed after ``master_grace_ms``. The keeper process also
watches the master, because the worker process may be stopped or hold the interpreter lock.

Only processes that Dramatiq's command started have a master. A Worker in a web server, a script or a test has none.
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from dramatiq.logging import get_logger

from .identity import OtherProcess

LOOK_EVERY_S: Final = 0.5
# If Dramatiq's main loop has not begun to stop after this time, it is stuck, because it checks for signals once a
# second.
STUCK_AFTER_S: Final = 2.0


class Master:
    """This process's master.

    Attributes:
        pid: the master's pid.
        grace_s: how long jobs may continue after the master has ended.
        is_draining: whether the Worker is already shutting down, so that another signal would end the process at once.
    """

    def __init__(self, pid: int, *, grace_s: float, drain: Callable[[], bool]) -> None:
        """
        Args:
            drain: a function that stops the process from taking messages and returns whether it holds none. It is
                called repeatedly.
        """
        self.pid, self.grace_s = pid, grace_s
        self._drain = drain
        self.is_draining = False
        self._watched_by = os.getpid()
        self._process = OtherProcess(pid)

    @property
    def is_ours(self) -> bool:
        """Whether the master started this process, so that it is not a fork of a worker process."""
        return os.getpid() == self._watched_by

    def watch(self) -> None:
        """Wait until the master has ended, then end this process."""
        while not self._process.has_ended():
            time.sleep(LOOK_EVERY_S)
        if not self.is_draining:
            os.kill(os.getpid(), signal.SIGTERM)
        # log in another thread, because a log pipe without a reader must not keep this thread from killing the process
        threading.Thread(target=self._report, name="broker-master-report", daemon=True).start()
        ended_at = time.monotonic()
        while (left_s := ended_at + self.grace_s - time.monotonic()) > 0:
            time.sleep(min(left_s, LOOK_EVERY_S))
            # a worker that is booting waits for its master, so it would wait forever
            is_stuck = not self.is_draining and time.monotonic() > ended_at + STUCK_AFTER_S
            if is_stuck and self._drain():
                break
        os.kill(os.getpid(), signal.SIGKILL)

    def _report(self) -> None:
        get_logger(__name__, type(self)).critical(
            "The master process %d has ended; this worker drains and is killed in %.0f s.", self.pid, self.grace_s
        )


_master: Master | None = None


def of_this_process() -> Master | None:
    """Return this process's master, or None if the process has no master or may outlive it."""
    return _master if _master is not None and _master.is_ours else None


def begin_watch(grace_ms: int | None, drain: Callable[[], bool]) -> None:
    """Watch this process's master, if it has one. Called when Dramatiq's command boots a worker process.

    Args:
        grace_ms: how long jobs may continue after the master has ended, or None if the process may outlive it.
        drain: see ``Master``.
    """
    global _master
    import multiprocessing  # imported here, because only worker processes need it, and they have loaded it already

    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    _close_inherited_pipes()
    if grace_ms is None or of_this_process() is not None:
        return
    _master = Master(parent.pid, grace_s=grace_ms / 1000, drain=drain)
    threading.Thread(target=_master.watch, name="broker-master-watch", daemon=True).start()


def _close_inherited_pipes() -> None:
    """Close the reading ends of the workers' log pipes, which a forked worker inherits from its master.

    While a worker holds these ends, a dead master's pipe still has a reader, so writers block instead of getting EPIPE.
    Only local variables of Dramatiq's ``main``, which is on a forked worker's stack, refer to the ends.
    """
    from multiprocessing.connection import Connection

    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "dramatiq.cli" and frame.f_code.co_name == "main":
            for pipe in (frame.f_locals.get("read_pipe"), *frame.f_locals.get("worker_pipes", ())):
                if isinstance(pipe, Connection) and not pipe.closed:
                    pipe.close()
        frame = frame.f_back
