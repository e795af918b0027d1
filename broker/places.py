"""Places for messages in a process: limits on how many the Worker gets and how many a consumer reads ahead.

Dramatiq's Worker takes up to twice as many messages as it has threads. If jobs are long, half of these messages would
wait for running jobs while other processes are idle. So a consumer whose queue has long jobs gives the Worker a message
only when a thread is free for it, and takes back messages that wait in the Worker while no job ends. The queues of a
process take turns.

If jobs are short, a read for every few messages costs more than the jobs. So consumers read ahead. Messages that were
read ahead wait in the consumer for at most ``HAND_BACK_AFTER_S``. If they are still waiting after that, jobs took
longer than expected: the messages are handed back for idle consumers, and nothing is read ahead for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dramatiq import Worker
from dramatiq.common import iter_queue

from .deliveries import Deliveries, Delivery
from .running.batches import Batch

# One bit for each of a queue's last eight jobs. Eight are considered, so that a single unusual job changes nothing.
ALL_WERE_LONG: Final = 0xFF
MAJORITY: Final = 5

# If no job has ended for this long, even blocked reads are ended. They are not ended sooner, because each ended read
# costs a new connection.
SATURATED_S: Final = 1.0

# Maximum number of messages to read ahead. A larger number saves nothing measurable, and at the end of a backlog, one
# process could keep that number of messages from idle ones.
MOST_AHEAD: Final = 128

# Maximum time that messages that were read ahead wait for the Worker: about three times the default of
# ``read_ahead_ms``. This is long enough for jobs that take slightly longer than expected, and short enough that an idle
# worker soon gets the messages.
HAND_BACK_AFTER_S: Final = 0.05

# How long reading ahead is suspended after messages were handed back: in a mix of long and short jobs, more long jobs
# usually follow an unexpectedly long one.
NOTHING_AHEAD_FOR_S: Final = 1.0


class Sharing(Protocol):
    """The interface of a queue that shares the Worker with the other queues of its process.

    Attributes:
        are_jobs_long: whether most of the queue's last jobs took longer than ``long_job_ms``.
        is_eager: whether messages are known to wait in Redis, and no higher-priority queue has waiting messages.
        n_at_worker: the number of the queue's messages that the Worker holds, including running ones.
        served_at: when the Worker last got messages of the queue, on the monotonic clock.
    """

    deliveries: Deliveries
    served_at: float

    @property
    def are_jobs_long(self) -> bool: ...

    @property
    def is_eager(self) -> bool: ...

    @property
    def n_at_worker(self) -> int: ...


class Durations:
    """A record of whether a queue's last jobs were long.

    Thread-safe, except that two jobs that end at once may count as one.
    """

    def __init__(self, long_s: float) -> None:
        self._long_s = long_s
        self._were_long = ALL_WERE_LONG  # one bit per job, 1 if it was long

    def record(self, duration_s: float) -> None:
        self._were_long = (self._were_long << 1 | (duration_s > self._long_s)) & ALL_WERE_LONG

    @property
    def are_long(self) -> bool:
        """Whether most of the last jobs were long, or only a few jobs have ended so far."""
        return self._were_long.bit_count() >= MAJORITY


class Places:
    """Assigns the Worker's free threads to the queues of one process. Thread-safe.

    Attributes:
        worker: the Worker, or None if the consumers are used without one. Without a Worker, each consumer returns as
            many messages as its prefetch allows.
        ended_at: when a job of this process last ended, on the monotonic clock.
        awaiting: the queues whose consumers wait for a free thread.
    """

    def __init__(self, long_job_ms: int | None, queues: Callable[[], Sequence[Sharing]]) -> None:
        self.worker: Worker | None = None
        self.ended_at = float("-inf")
        self.awaiting: set[Sharing] = set()
        self._long_s = None if long_job_ms is None else long_job_ms / 1000
        self._queues = queues
        self._lock = threading.Lock()

    @property
    def is_stalled(self) -> bool:
        """Whether no job has ended for ``long_job_ms``, so that the running jobs are probably long."""
        return self._long_s is not None and time.monotonic() - self.ended_at > self._long_s

    def are_few(self, queue: Sharing) -> bool:
        """Return whether the Worker must get no more of the queue's messages than it has free threads."""
        return self._long_s is not None and self.worker is not None and (queue.are_jobs_long or self.is_stalled)

    def n_free(self, queue: Sharing) -> int:
        """Return the number of threads that are free for the queue's messages. It may be negative.

        A thread that runs a short job counts as free. A thread for which another queue has waited longer does not.
        """
        if self.worker is None:
            return 0
        is_stalled = self.is_stalled
        n_taken = sum(one.n_at_worker for one in self._queues() if is_stalled or one.are_jobs_long)
        others = [one for one in tuple(self.awaiting) if one is not queue]
        n_first = sum(one.served_at < queue.served_at and one.is_eager for one in others)
        return self.worker.worker_threads - n_taken - n_first

    def is_saturated(self, queue: Sharing) -> bool:
        """Return whether no thread is free and no job has ended for ``SATURATED_S``, so that blocked reads must end."""
        if self._long_s is None or self.worker is None:
            return False
        return time.monotonic() - self.ended_at > SATURATED_S and self.n_free(queue) <= 0

    def stalls_in_s(self, queue: Sharing) -> float | None:
        """Return the seconds until messages that wait in the Worker must be taken back, or None if none wait."""
        if self._long_s is None or self.worker is None or self.worker.work_queue.empty():
            return None
        return max(self.ended_at, queue.served_at) + self._long_s - time.monotonic()

    def take_back(self, queue_name: str) -> list[Delivery | Batch]:
        """Take a queue's messages that have not started from the Worker, and return them."""
        if self.worker is None:
            return []
        waiting = self.worker.work_queue
        taken: list[Delivery | Batch] = []
        with self._lock:
            items = list(iter_queue(waiting))
            for item in items:
                if isinstance(item.message, Delivery | Batch) and item.message.queue == queue_name:
                    taken.append(item.message)
                else:
                    waiting.put(item)
                waiting.task_done()
        return taken

    def let_others_look(self, queue: Sharing) -> None:
        """Wake the other queues that wait for a thread. Called when a queue has freed a thread or given up its turn."""
        for other in tuple(self.awaiting):
            if other is not queue:
                other.deliveries.wake()


class ReadAhead:
    """An estimate of how many messages a consumer may read ahead. It depends on how fast earlier ones were finished.

    Not thread-safe.

    Args:
        ahead_ms: how long the messages that are read ahead should last; 0 disables reading ahead.
        clock: a function that returns the time in seconds.
    """

    def __init__(self, ahead_ms: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ahead_s = ahead_ms / 1000
        self._clock = clock
        self._n_finished_then = 0
        self._filled_at = self._asked_at = self._nothing_until = float("-inf")
        self._n_asked = 0

    @property
    def most(self) -> int:
        """The maximum number of messages to read ahead."""
        return MOST_AHEAD if self._ahead_s else 0

    def expect(self, n_finished: int) -> int:
        """Return the number of messages to read ahead, in addition to those for which the Worker has room.

        It is at most twice the number that was finished since the last read, because two fast messages do not predict a
        hundred.

        Args:
            n_finished: the number of messages that the consumer's Worker has finished so far.
        """
        self._asked_at = self._clock()
        elapsed_s = self._asked_at - self._filled_at
        if elapsed_s > HAND_BACK_AFTER_S or self._asked_at < self._nothing_until:
            self._n_asked = 0
        else:
            n = n_finished - self._n_finished_then
            self._n_asked = int(min(self.most, 2 * n, n * self._ahead_s / max(elapsed_s, 1e-4)))
        return self._n_asked

    def n_still_expected(self) -> int:
        """Return the last result of ``expect``, or 0 if it is too old.

        It is too old if the read has waited for entries for longer than ``HAND_BACK_AFTER_S``.
        """
        return self._n_asked if self._clock() - self._asked_at <= HAND_BACK_AFTER_S else 0

    def filled(self, n_finished: int) -> None:
        """Record that a read returned messages."""
        self._n_finished_then, self._filled_at = n_finished, self._clock()

    def left_s(self) -> float:
        """Return the seconds for which messages that were read ahead may still wait for the Worker."""
        return self._filled_at + HAND_BACK_AFTER_S - self._clock()

    def stalled(self) -> None:
        """Record that messages waited for the Worker for too long, so that nothing is read ahead for a while."""
        self._nothing_until = self._clock() + NOTHING_AHEAD_FOR_S
