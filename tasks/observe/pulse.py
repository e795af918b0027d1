"""Whether worker processes move: each says so every second in a file, and the exposition process reads them all.

A process that is stopped, or holds Python's lock for ever, writes no more; one that writes says of its own threads
whether they are alive, whether consumers ask for messages, and whether a job runs far beyond its time limit. Redis is
asked nothing: an outage of it must restart nobody. Files lie beside the metrics, in the directory of the master.
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
from typing import Final

import dramatiq
from dramatiq.broker import Broker, MessageProxy

from broker import RedisStreamsBroker
from tasks.retry_policy import LIMIT_GRACE_S, limit_ms

PREFIX: Final = "pulse-"
EVERY_S: Final = 1.0

# How long a pod may take until its first process has booted: loading the engine takes seconds, a cold disk a minute.
BOOT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a worker process said of itself.

    Attributes:
        at_s: on the machine's monotonic clock, which all of its processes share.
        queues: that it consumes.
        stuck: what does not move; None when everything does.
    """

    pid: int
    at_s: float
    queues: Sequence[str]
    stuck: str | None = None


class KeepPulse(dramatiq.Middleware):
    """Says every second that this worker process moves, from its boot to its end.

    Args:
        directory: where; the one that the processes of a master share.
        hung_after_s: consumers that have not moved for so long are stuck.
    """

    def __init__(self, directory: Path, *, hung_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._hung_after_s, self._clock = directory, hung_after_s, clock
        self._running: dict[int, tuple[MessageProxy, float]] = {}
        self._is_stopping = threading.Event()
        self._is_draining = False
        self._thread: threading.Thread | None = None

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._running[threading.get_ident()] = message, self._clock()

    # Not when the job has returned: what the other middleware does after it, such as to log, may hang as well. Nor when
    # Redis has taken the result: an outage must restart nobody.

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._running.pop(threading.get_ident(), None)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._running.pop(threading.get_ident(), None)

    def after_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self.write(broker, worker)
        self._thread = threading.Thread(target=self._loop, args=(broker, worker), name="pulse", daemon=True)
        self._thread.start()

    def before_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        # threads end now, one after the other; how long that may take is the master's business
        self._is_draining = True

    def after_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._file().unlink(missing_ok=True)

    def write(self, broker: Broker, worker: dramatiq.Worker) -> None:
        """Say it once."""
        stuck = None if self._is_draining else self._why_stuck(broker, worker)
        pulse = Pulse(os.getpid(), self._clock(), sorted(worker.consumers), stuck)
        file = self._file()
        unfinished = file.with_suffix(".tmp")
        with suppress(OSError):  # the directory goes with the master
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
                    return f"the consumer of {queue} has not asked for a message for {now - moved_at:.0f} s"
        if any(not thread.is_alive() for thread in worker.workers):
            return "a worker thread has ended"
        for message, since in list(self._running.values()):
            limit_s = limit_ms(message) / 1000
            if now - since > limit_s + LIMIT_GRACE_S:
                return (
                    f"{message.actor_name} {message.message_id} runs for {now - since:.0f} s, "
                    f"{limit_s:.0f} s are its limit"
                )
        return None

    def _file(self) -> Path:
        return self._directory / f"{PREFIX}{os.getpid()}.json"


def pulses(directory: Path) -> list[Pulse]:
    """What every worker process of a master said last."""
    found = []
    for file in sorted(directory.glob(f"{PREFIX}*.json")):
        with suppress(OSError, ValueError, TypeError):
            found.append(Pulse(**json.loads(file.read_text())))
    return found


def why_not_alive(said: Sequence[Pulse], *, hung_after_s: float, up_for_s: float, now_s: float) -> str | None:
    """Why the pod should be started anew; None when every process moves.

    Args:
        up_for_s: since the process that asks began; a pod has :data:`BOOT_S` until the first process must have booted.
    """
    if not said:
        return None if up_for_s <= BOOT_S else f"no worker process has booted for {up_for_s:.0f} s"
    for pulse in said:
        silent_s = now_s - pulse.at_s
        if silent_s > hung_after_s:
            return f"worker process {pulse.pid} has not moved for {silent_s:.0f} s"
        if pulse.stuck is not None:
            return f"worker process {pulse.pid}: {pulse.stuck}"
    return None
