"""The places for messages in a process: how many its Worker may get, and how many a consumer reads ahead.

Dramatiq's Worker takes up to twice as many messages as it has threads. Where jobs are long, the second half would wait
behind them while other processes are idle. So a queue whose jobs are long gives the Worker a message only when a thread
is free for it, and takes back messages that wait in the Worker while no job ends. Queues that share a process take
turns.

Where jobs are short, a read for every few free places costs more than the jobs. Messages that were read ahead wait in
the consumer, for at most ``HAND_BACK_AFTER_S``. If they are still waiting then, jobs took longer than expected: the
messages are handed back for idle consumers, and nothing is read ahead for a while.
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

# A queue is judged by its last eight jobs, so that a single odd one changes nothing.
ALL_WERE_LONG: Final = 0xFF
MAJORITY: Final = 5

# After this long without the end of a job, even reads that wait at the server are ended. Not sooner, because each costs
# a new connection.
SATURATED_S: Final = 1.0

# A larger number saves nothing measurable, and at the end of a backlog one process could keep that many messages from
# the others.
MOST_AHEAD: Final = 128

# About three times the default read-ahead: jobs slightly longer than the previous ones do not cause a hand-back, and a
# message that an idle worker could have run does not wait long.
HAND_BACK_AFTER_S: Final = 0.05

# Where long and short jobs are mixed, a job that took longer than expected is usually followed by more long jobs.
NOTHING_AHEAD_FOR_S: Final = 1.0


class Sharing(Protocol):
    """A queue that shares the Worker with the other queues of its process.

    Attributes:
        are_jobs_long: whether most of its last jobs took longer than ``long_job_ms``.
        is_eager: whether it would take messages now, because some are waiting in Redis as far as is known.
        n_at_worker: the number of its messages that the Worker holds, running ones included.
        served_at: when it gave the Worker its last message.
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
    """The durations of a queue's last jobs. Thread-safe: two jobs that end at once may be recorded as one."""

    def __init__(self, long_s: float) -> None:
        self._long_s = long_s
        self._were_long = ALL_WERE_LONG  # one bit per job

    def record(self, duration_s: float) -> None:
        self._were_long = (self._were_long << 1 | (duration_s > self._long_s)) & ALL_WERE_LONG

    @property
    def are_long(self) -> bool:
        """Whether most of the last jobs were long; True before some have ended."""
        return self._were_long.bit_count() >= MAJORITY


class Places:
    """The places of the Worker of one process. Thread-safe.

    Attributes:
        worker: the Worker; None if the consumers are used without one, so that each gives as many messages as its
            prefetch.
        ended_at: when the last job of the process ended, on the monotonic clock.
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
        """Whether no job has ended for longer than a short job takes, so that none may end soon."""
        return self._long_s is not None and time.monotonic() - self.ended_at > self._long_s

    def are_few(self, queue: Sharing) -> bool:
        """Return whether the queue must not give the Worker more messages than it has free threads."""
        return self._long_s is not None and self.worker is not None and (queue.are_jobs_long or self.is_stalled)

    def n_free(self, queue: Sharing) -> int:
        """Return how many threads are free for messages of the queue. May be negative.

        A thread that runs a short job counts as free. Threads for which other queues have waited longer do not.
        """
        if self.worker is None:
            return 0
        is_stalled = self.is_stalled
        n_taken = sum(one.n_at_worker for one in self._queues() if is_stalled or one.are_jobs_long)
        others = [one for one in tuple(self.awaiting) if one is not queue]
        n_first = sum(one.served_at < queue.served_at and one.is_eager for one in others)
        return self.worker.worker_threads - n_taken - n_first

    def is_saturated(self, queue: Sharing) -> bool:
        """Return whether threads have been busy for so long that reads of the queue should end."""
        if self._long_s is None or self.worker is None:
            return False
        return time.monotonic() - self.ended_at > SATURATED_S and self.n_free(queue) <= 0

    def stalls_in_s(self, queue: Sharing) -> float | None:
        """Return the seconds until messages that wait in the Worker must be taken back; None if none waits."""
        if self._long_s is None or self.worker is None or self.worker.work_queue.empty():
            return None
        return max(self.ended_at, queue.served_at) + self._long_s - time.monotonic()

    def take_back(self, queue_name: str) -> list[Delivery | Batch]:
        """Take the messages of a queue from the Worker that none of its threads has begun, and return them."""
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
        """Wake the other queues that wait for a thread, because this one freed a thread or gave up its turn."""
        for other in tuple(self.awaiting):
            if other is not queue:
                other.deliveries.wake()


class ReadAhead:
    """The read-ahead of one consumer, estimated from how fast its Worker used up the last read. Not thread-safe.

    Args:
        ahead_ms: how long the messages read ahead should last; 0 disables read-ahead.
        clock: returns the time in seconds.
    """

    def __init__(self, ahead_ms: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ahead_s = ahead_ms / 1000
        self._clock = clock
        self._n_finished_then = 0
        self._filled_at = self._asked_at = self._nothing_until = float("-inf")
        self._n_asked = 0

    @property
    def most(self) -> int:
        """The largest number of messages to read ahead."""
        return MOST_AHEAD if self._ahead_s else 0

    def expect(self, n_finished: int) -> int:
        """Return how many messages to read beyond the free slots, given the number finished so far.

        The result is at most twice the number finished since the last read: two fast messages do not predict a hundred.
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
        """Return the last result of ``expect``, or 0 if it is old: the read may have waited for new entries since."""
        return self._n_asked if self._clock() - self._asked_at <= HAND_BACK_AFTER_S else 0

    def filled(self, n_finished: int) -> None:
        """Record that a read returned messages."""
        self._n_finished_then, self._filled_at = n_finished, self._clock()

    def left_s(self) -> float:
        """Return how long messages that were read ahead may still wait for a place."""
        return self._filled_at + HAND_BACK_AFTER_S - self._clock()

    def stalled(self) -> None:
        """Record that messages read ahead found no place in time; read nothing ahead for a while."""
        self._nothing_until = self._clock() + NOTHING_AHEAD_FOR_S
