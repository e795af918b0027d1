"""The liveness of worker processes: each writes a file every second, and the exposition process reads all of them.

A process stops writing if it is stopped or never releases Python's interpreter lock. A process that writes also reports
whether its threads are alive, whether its consumers fetch messages, and whether a job far exceeds its time limit. Redis
is not involved, because an outage must not restart any process. The files are in the master's directory, next to the
metrics.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import dramatiq
from dramatiq.broker import Broker, MessageProxy

from broker import NotDoneInBatch, RedisStreamsBroker
from tasks.retry_policy import LIMIT_GRACE_S, limit_ms

PREFIX: Final = "pulse-"
EVERY_S: Final = 1.0

# Maximum time in which a pod must boot its first process. The engine loads in seconds, or in a minute from a cold disk.
BOOT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker process's report about itself.

    Attributes:
        at_s: time on the machine's monotonic clock, which all processes share.
        queues: the queues it consumes.
        stuck: the part that makes no progress, and why, or None if every part makes progress.
    """

    pid: int
    at_s: float
    queues: Sequence[str]
    stuck: str | None = None


class KeepPulse(dramatiq.Middleware):
    """Middleware that writes the pulse of this worker process every second, from boot to shutdown.

    Args:
        directory: the directory in which to write, which the processes of a master share.
        hung_after_s: time without progress after which a consumer is stuck.
    """

    def __init__(self, directory: Path, *, hung_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._hung_after_s, self._clock = directory, hung_after_s, clock
        self._running: dict[int, tuple[MessageProxy, float]] = {}
        self._is_stopping = threading.Event()
        self._is_draining = False
        self._thread: threading.Thread | None = None

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._running[threading.get_ident()] = message, self._clock()

    # A job counts as running until its ack or nack begins, because other middleware may hang after its function has
    # returned. The ack itself does not count, because a Redis outage must not restart any process.

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._running.pop(threading.get_ident(), None)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._running.pop(threading.get_ident(), None)

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        # the message is neither acknowledged nor rejected, because it now runs individually
        if isinstance(exception, NotDoneInBatch) and self._running.get(threading.get_ident(), (None,))[0] is message:
            del self._running[threading.get_ident()]

    def after_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self.write(broker, worker)
        self._thread = threading.Thread(target=self._loop, args=(broker, worker), name="pulse", daemon=True)
        self._thread.start()

    def before_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        # from here on, threads stop one after another; the master decides how long that may take
        self._is_draining = True

    def after_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._file().unlink(missing_ok=True)

    def write(self, broker: Broker, worker: dramatiq.Worker) -> None:
        """Write the pulse once."""
        stuck = None if self._is_draining else self._why_stuck(broker, worker)
        pulse = Pulse(os.getpid(), self._clock(), sorted(worker.consumers), stuck)
        file = self._file()
        unfinished = file.with_suffix(".tmp")
        with suppress(OSError):  # the master deletes the directory when it ends
            unfinished.write_text(json.dumps(asdict(pulse)))
            unfinished.replace(file)

    def _loop(self, broker: Broker, worker: dramatiq.Worker) -> None:
        while not self._is_stopping.wait(EVERY_S):
            self.write(broker, worker)

    def _why_stuck(self, broker: Broker, worker: dramatiq.Worker) -> str | None:
        now = self._clock()
        for queue, consumer in list(worker.consumers.items()):
            if not consumer.is_alive():
                return f"the consumer thread of {queue} has ended"
        if isinstance(broker, RedisStreamsBroker):
            for queue, moved_at in broker.consumers_moved_at().items():
                if now - moved_at > self._hung_after_s:
                    return f"the consumer of {queue} has not fetched messages for {now - moved_at:.0f} s"
        if any(not thread.is_alive() for thread in worker.workers):
            return "a worker thread has ended"
        for message, since in list(self._running.values()):
            limit_s = limit_ms(message) / 1000
            if now - since > limit_s + LIMIT_GRACE_S:
                return (
                    f"{message.actor_name} {message.message_id} has run for {now - since:.0f} s, "
                    f"its limit is {limit_s:.0f} s"
                )
        return None

    def _file(self) -> Path:
        return self._directory / f"{PREFIX}{os.getpid()}.json"


def pulses(directory: Path) -> list[Pulse]:
    """Return the last pulse of every worker process of a master."""
    found = []
    for file in sorted(directory.glob(f"{PREFIX}*.json")):
        with suppress(OSError, ValueError, TypeError):
            found.append(Pulse(**json.loads(file.read_text())))
    return found


def why_not_alive(found: Sequence[Pulse], *, hung_after_s: float, up_for_s: float, now_s: float) -> str | None:
    """Return why the pod should be restarted, or None if every process makes progress.

    Args:
        up_for_s: age of the calling process; the first worker process must have booted within :data:`BOOT_S`.
    """
    if not found:
        return None if up_for_s <= BOOT_S else f"no worker process has booted within {up_for_s:.0f} s"
    for pulse in found:
        silent_s = now_s - pulse.at_s
        if silent_s > hung_after_s:
            return f"worker process {pulse.pid} has made no progress for {silent_s:.0f} s"
        if pulse.stuck is not None:
            return f"worker process {pulse.pid}: {pulse.stuck}"
    return None
