"""Many threads on one broker, and exceptions that strike anywhere, as Dramatiq's time limits do."""

from __future__ import annotations

import random
import threading
import time

import pytest
from dramatiq.threading import raise_thread_exception

from tests.broker.scene import QUEUE, Scene, label_of, message
from tests.support import eventually


class Struck(BaseException):
    """Raised in a thread by another one."""


def test_a_call_that_is_struck_between_command_and_answer_leaves_no_answer_to_the_next(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = stage.process("a")._session.connections
    connections.run("SET", "told", "right")

    def strike(_: object) -> None:
        raise Struck

    with monkeypatch.context() as struck:
        struck.setattr(connections, "answer", strike)
        with pytest.raises(Struck):
            connections.run("INCR", "number")

    assert connections.run("GET", "told") == b"right"


# A thread that is struck while it connects leaves its socket to the garbage collector, and one between two calls dies.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_that_are_struck_in_the_middle_of_a_call_leave_no_answer_to_others(stage: Scene) -> None:
    seed = 20
    rng = random.Random(seed)
    broker = stage.process("a")
    returned: list[str] = []
    n_struck = 0
    wrong: list[BaseException] = []
    is_over = threading.Event()

    def produce(number: int) -> None:
        nonlocal n_struck
        n = 0
        while not is_over.is_set():
            try:
                n += 1
                label = f"{number}/{n}"
                sent = broker.enqueue(message(label))
                assert sent.args == (label,)
                returned.append(label)
                assert broker.stats(QUEUE).queue_name == QUEUE
                assert broker.counters(QUEUE)["enqueued"] >= 1
            except Struck:
                n_struck += 1
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        time.sleep(rng.random() / 100)
        victim = rng.choice(threads)
        assert victim.ident is not None
        if victim.is_alive():
            raise_thread_exception(victim.ident, Struck)
    is_over.set()
    for thread in threads:
        thread.join(30)

    assert wrong == [], f"seed {seed}"
    labels = [label_of(fields) for _, fields in stage.client.xrange("streams:q")]
    assert len(labels) == len(set(labels)), "nothing is there twice"
    assert set(returned) <= set(labels)
    assert eventually(lambda: n_struck) > 0
