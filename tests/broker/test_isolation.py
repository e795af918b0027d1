from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import dramatiq
import pytest

from broker.deliveries import Delivery
from broker.running.isolation import Isolation
from tests.support import eventually


def delivery(*, charges: int = 0) -> Delivery:
    message: dramatiq.Message[None] = dramatiq.Message("default", "work", (), {}, {})
    return Delivery(message, entry_id="1-1", queue="default", consumer_name="me", deliveries=1, pid=1, charges=charges)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def entering(threads: ThreadPoolExecutor, isolation: Isolation, one: Delivery) -> Future[Delivery | None]:
    """Call ``enter`` in a thread, and check that the message has to wait. Return a future with the result."""
    n_before = isolation.n_waiting
    future = threads.submit(isolation.enter, one)
    eventually(lambda: isolation.n_waiting == n_before + 1)
    assert not future.done()
    return future


def test_messages_that_are_not_suspects_run_alongside_each_other() -> None:
    isolation = Isolation(patience_s=60)

    assert [isolation.enter(delivery()) for _ in range(3)] == [None] * 3


def test_suspect_runs_in_isolation_and_the_others_run_after_it(threads: ThreadPoolExecutor) -> None:
    isolation, suspect = Isolation(patience_s=60), delivery(charges=1)
    isolation.enter(suspect)
    assert suspect.is_alone
    waiting = [entering(threads, isolation, delivery()) for _ in range(3)]

    isolation.leave(suspect)

    assert [one.result(30) for one in waiting] == [None] * 3


def test_suspect_waits_until_the_others_have_ended(threads: ThreadPoolExecutor) -> None:
    isolation, others, suspect = Isolation(patience_s=60), [delivery(), delivery()], delivery(charges=1)
    for other in others:
        isolation.enter(other)
    future = threads.submit(isolation.enter, suspect)
    late = delivery()
    eventually(lambda: isolation.is_held)
    held_off = entering(threads, isolation, late)

    for other in others:
        assert not future.done()
        isolation.leave(other)

    assert future.result(30) is None
    assert suspect.is_alone
    isolation.leave(suspect)
    assert held_off.result(30) is None


def test_suspects_run_one_at_a_time(threads: ThreadPoolExecutor) -> None:
    isolation, at_once, most = Isolation(patience_s=60), threading.Semaphore(1), []

    def run(suspect: Delivery) -> None:
        isolation.enter(suspect)
        most.append(at_once.acquire(blocking=False) and suspect.is_alone)
        at_once.release()
        isolation.leave(suspect)

    for future in [threads.submit(run, delivery(charges=1)) for _ in range(50)]:
        future.result(30)

    assert most == [True] * 50


def test_suspect_is_reported_once_when_its_isolation_times_out() -> None:
    isolation, suspect = Isolation(patience_s=0.01), delivery(charges=1)
    isolation.enter(suspect)

    assert isolation.enter(delivery()) is suspect
    assert not suspect.is_alone
    assert isolation.enter(delivery()) is None


def test_suspect_runs_alongside_a_job_that_outlasts_its_patience() -> None:
    isolation, suspect = Isolation(patience_s=0.01), delivery(charges=1)
    isolation.enter(delivery())

    assert isolation.enter(suspect) is None
    assert not suspect.is_alone


def test_second_suspect_joins_the_first_after_the_timeout() -> None:
    isolation, first, second = Isolation(patience_s=0.01), delivery(charges=1), delivery(charges=1)
    isolation.enter(first)

    assert isolation.enter(second) is first
    assert (first.is_alone, second.is_alone) == (False, False)
    isolation.leave(first)
    isolation.leave(second)
    third = delivery(charges=1)
    isolation.enter(third)
    assert third.is_alone


def test_shutdown_releases_waiting_messages(threads: ThreadPoolExecutor) -> None:
    isolation, running, other, suspect = Isolation(patience_s=60), delivery(charges=1), delivery(), delivery(charges=1)
    isolation.enter(running)
    waiting = [entering(threads, isolation, other), entering(threads, isolation, suspect)]

    isolation.release()

    told = [one.result(30) for one in waiting]
    assert [one for one in told if one is not None] == [running], "told once"
    assert (running.is_alone, suspect.is_alone) == (False, False)


def test_leaving_isolation_twice_or_without_entering_does_nothing() -> None:
    isolation, suspect, stranger = Isolation(patience_s=60), delivery(charges=1), delivery()
    isolation.leave(stranger)
    isolation.enter(suspect)
    isolation.leave(stranger)
    assert isolation.is_held
    isolation.leave(suspect)
    isolation.leave(suspect)

    assert not isolation.is_held


def test_several_suspects_delay_a_message_no_longer_than_one_does(
    threads: ThreadPoolExecutor,
) -> None:
    isolation, suspect = Isolation(patience_s=0.2), delivery(charges=1)
    isolation.enter(suspect)
    isolation._until = time.monotonic() + 3_600  # as if further suspects followed for an hour
    other, second = delivery(), delivery(charges=1)

    try:
        told = [threads.submit(isolation.enter, one).result(30) for one in (other, second)]
    finally:
        isolation.release()

    assert told == [suspect, None]
    assert (suspect.is_alone, second.is_alone) == (False, False)
