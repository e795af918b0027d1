"""Many threads, interrupted threads and forked processes share a broker, and no reply reaches the wrong one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import TimeLimitExceeded

from broker import RedisStreamsBroker
from broker.net.connections import Connections
from broker.scripts import Script

STREAM = "streams:q"


def message(label: str, **options: Any) -> dramatiq.Message[Any]:
    return dramatiq.Message("q", "work", (label,), {}, options)


def labels(client: Any) -> list[str]:
    return [dramatiq.Message.decode(fields[b"message"]).args[0] for _, fields in client.xrange(STREAM)]


INTERRUPTED = """
import ctypes, json, random, sys, threading
import dramatiq
from dramatiq.middleware import TimeLimitExceeded
from broker import RedisStreamsBroker

broker = RedisStreamsBroker(sys.argv[1], middleware=[])
confirmed, tried, interrupted, crossed = [], [], [], []
# Threads that are done stay alive: the system would give their ids to new threads, which an interrupt could then hit.
done, stop = set(), threading.Event()

def enqueue(name):
    for number in range(40):
        label = f"{name}-{number}"
        try:
            tried.append(label)
            sent = dramatiq.Message("q", "work", (label,), {}, {"unique_key": label})
            answered = broker.enqueue(sent)
            # a crossed answer would have the id of another thread's message
            (confirmed if answered.message_id == sent.message_id else crossed).append(label)
        except TimeLimitExceeded:
            interrupted.append(label)
    done.add(threading.current_thread())
    stop.wait()

threads = [threading.Thread(target=enqueue, args=(name,), daemon=True) for name in range(32)]
for thread in threads:
    thread.start()
rng = random.Random(1)
while any(thread.is_alive() and thread not in done for thread in threads):
    victim = rng.choice(threads)
    if victim.is_alive() and victim not in done and len(interrupted) < 200:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(victim.ident or 0), ctypes.py_object(TimeLimitExceeded)
        )
    victim.join(0.002)
stop.set()
broker.close()
print(json.dumps([confirmed, tried, interrupted, crossed]))
"""


@pytest.mark.slow
def test_interrupted_threads_never_receive_replies_to_other_threads(redis_url: str, redis_client: redis.Redis) -> None:
    """Interrupt threads as TimeLimit and Shutdown do, with an exception at any bytecode, even during a socket read.

    The threads run in a separate process, because an interrupt may hit a destructor, and Python then prints a report.
    """
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, redis_url], capture_output=True, text=True, timeout=100)
    confirmed, tried, interrupted, crossed = json.loads(done.stdout)

    found = labels(redis_client)
    assert interrupted
    assert not crossed
    assert len(found) == len(set(found)), "nothing was enqueued twice"
    assert set(confirmed) <= set(found) <= set(tried)


def test_hundred_producers_with_one_unique_key_all_get_the_same_message(
    redis_url: str, redis_client: redis.Redis
) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[])
    told: list[str] = []
    start = threading.Barrier(100)

    def produce(number: int) -> None:
        start.wait(30)
        told.append(broker.enqueue(message(str(number), unique_key="one")).message_id)

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    broker.close()

    assert len(told) == 100
    assert len(set(told)) == 1
    assert redis_client.xlen(STREAM) == 1


FORKING = """
import os, sys, threading
import dramatiq
from broker import RedisStreamsBroker

broker = RedisStreamsBroker(sys.argv[1], middleware=[])

def enqueue(who):
    for number in range(100):
        sent = dramatiq.Message("q", "work", (f"{who}-{number}",), {}, {"unique_key": f"{who}-{number}"})
        assert broker.enqueue(sent).message_id == sent.message_id

enqueue("preload")
busy = threading.Thread(target=enqueue, args=("parent",))
busy.start()
children = []
for number in range(4):
    pid = os.fork()
    if not pid:
        enqueue(f"child {number}")
        os._exit(0)
    children.append(pid)
busy.join()
sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))
"""


@pytest.mark.slow
def test_producer_that_forks_shares_no_connection_with_its_child(redis_url: str, redis_client: redis.Redis) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING, redis_url], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    found = labels(redis_client)
    assert len(found) == len(set(found)) == 6 * 100


def test_client_without_timeout_does_not_wait_for_a_hanging_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.net.connections.TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        client = redis.Redis(port=hanging.getsockname()[1], socket_timeout=None)
        broker = RedisStreamsBroker(client=client, middleware=[], enqueue_timeout_ms=0)
        raised: list[BaseException] = []

        def enqueue() -> None:
            try:
                broker.enqueue(message("one"))
            except BrokerConnectionError as error:
                raised.append(error)

        thread = threading.Thread(target=enqueue, daemon=True)
        thread.start()
        thread.join(30)

    assert raised


def test_reply_to_an_interrupted_call_reaches_no_other_call(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(redis.Redis.from_url(redis_url))

    def interrupted(*_: Any) -> None:
        raise TimeLimitExceeded

    monkeypatch.setattr(Connections, "answer", interrupted)
    with pytest.raises(TimeLimitExceeded):
        connections.run("PING", key="k")

    monkeypatch.undo()
    assert connections.run("ECHO", "ours", key="k") == b"ours"
    connections.close()


def test_batched_calls_are_answered_when_the_script_cache_is_flushed(redis_url: str) -> None:
    connections = Connections(redis.Redis.from_url(redis_url))
    # a hash that no server knows stands for a script that was just flushed
    forgotten = Script("echo", "return KEYS[1]", "0" * 40)

    answers = connections.run_scripts(forgotten, [([f"k{number}"], []) for number in range(3)])

    assert answers == [b"k0", b"k1", b"k2"]
    connections.close()


LEAVES_ITS_JOB = """
import os, sys, time
import dramatiq
from dramatiq.middleware import Retries
from broker import RedisStreamsBroker

class Forking(dramatiq.Middleware):
    def after_ack(self, broker, message):
        if message.args == ("return",):
            while worker.work_queue.empty():
                time.sleep(0.01)
            pid = os.fork()  # the child goes on with a copy of the Worker, which holds the next messages
            if pid:
                print("after ack", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

broker = RedisStreamsBroker(sys.argv[1], middleware=[Retries(max_retries=0), Forking()], long_job_ms=None)

def retry():
    message = broker.running
    message.options["retries"] = 1
    broker.enqueue(message, delay=3_600_000)
    os._exit(4)

leave = {"exit": lambda: sys.exit(3), "raise": lambda: 1 / 0, "return": lambda: None, "retry": retry}

class Noting(dramatiq.Middleware):
    def before_process_message(self, broker, message):
        broker.running = message

broker.add_middleware(Noting())

@dramatiq.actor(broker=broker, queue_name="q", actor_name="work")
def work(how):
    pid = os.fork()
    if pid == 0:
        return leave[how]()
    _, status = os.waitpid(pid, 0)
    print(how, os.waitstatus_to_exitcode(status), flush=True)

worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
worker.start()
deadline = time.monotonic() + 60
while (broker.stats("q").undelivered or broker.stats("q").in_flight) and time.monotonic() < deadline:
    time.sleep(0.01)
worker.stop()
broker.close()
"""


@pytest.mark.slow
def test_forked_child_that_leaves_its_job_settles_nothing(redis_client: redis.Redis, redis_url: str) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[])
    broker.enqueue_many([message(how) for how in ("exit", "raise", "return", "exit", "retry")])

    done = subprocess.run(
        [sys.executable, "-c", LEAVES_ITS_JOB, redis_url], capture_output=True, text=True, check=True, timeout=90
    )

    assert done.stdout.splitlines() == ["exit 3", "raise 1", "return 0", "after ack 0", "exit 3", "retry 4"]
    counters = broker.counters("q")
    assert (counters["acked"], counters["retried"], counters["dead"], counters["fenced"]) == (5, 0, 0, 0)
    assert broker.stats("q").delayed == 1, "the child sent a message of its own"
    broker.close()
