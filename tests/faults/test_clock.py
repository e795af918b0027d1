"""Tests with a server whose clock jumps, as when an operator sets it or a machine resumes from a snapshot."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dramatiq
import pytest
import redis

from broker import RedisStreamsBroker
from tasks.redis_access.embedded import EmbeddedRedis
from tests.support import eventually, lacking, redis_6_2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HOUR_MS = 3_600_000
QUEUE, CONSUMERS = "q", "{streams:q}:consumers"


class ClockedServer:
    """A Redis whose wall clock the test sets; its monotonic clock continues, as on a real machine."""

    def __init__(self, server: EmbeddedRedis, offset: Path) -> None:
        self.url = server.url
        self._offset = offset

    def jump(self, seconds: int) -> None:
        """Set the clock to this offset from the true time, and return once the server uses it."""
        with redis.Redis.from_url(self.url) as client:
            true_s = _now_s(client) - self._read()
            written = self._offset.with_suffix(".new")
            written.write_text(f"{seconds:+d}")
            written.replace(self._offset)
            eventually(lambda: abs(_now_s(client) - true_s - seconds) < 1_000)

    def has_heard_of(self, crew: Crew) -> bool:
        """Return whether the last heartbeat of every worker in the crew is within a minute of the server's clock."""
        with redis.Redis.from_url(self.url) as client:
            now_ms = _now_s(client) * 1_000
            beats = client.zrange(CONSUMERS, 0, -1, withscores=True)
        return len(beats) == len(crew.brokers) and all(abs(now_ms - beat) < 60_000 for _, beat in beats)

    def _read(self) -> int:
        return int(self._offset.read_text())


def _now_s(client: redis.Redis) -> int:
    return int(client.time()[0])


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[ClockedServer]:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        lacking("libfaketime", "apt-get install faketime")
    # Redis 6.2, because Debian's builds use jemalloc, which reads the clock before libfaketime is ready
    if (executable := redis_6_2()) is None:
        pytest.skip("no Redis 6.2 for this Python and machine")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    program = tmp_path / "server"
    program.write_text(
        f"#!/bin/sh\nLD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={offset} FAKETIME_NO_CACHE=1 "
        f'FAKETIME_DONT_FAKE_MONOTONIC=1 exec {executable} "$@"\n'
    )
    program.chmod(0o755)
    directory = tmp_path / "data"
    directory.mkdir()
    with EmbeddedRedis(directory=directory, executable=program, options={"appendonly": "no"}) as server:
        yield ClockedServer(server, offset)


class Crew:
    """Two workers of one queue in this process, and a record of their jobs."""

    def __init__(self, url: str) -> None:
        self.ran: Counter[str] = Counter()
        self.may_end = threading.Event()
        self._stack = ExitStack()
        self.brokers = [self._worker(url) for _ in range(2)]

    def _worker(self, url: str) -> RedisStreamsBroker:
        broker = RedisStreamsBroker(url, middleware=[], lease_ms=2_000)
        self._stack.callback(broker.close)

        @dramatiq.actor(broker=broker, queue_name=QUEUE)
        def work(label: str) -> None:
            self.ran[label] += 1

        @dramatiq.actor(broker=broker, queue_name=QUEUE)
        def wait(label: str) -> None:
            self.ran[label] += 1
            self.may_end.wait(60)

        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
        worker.start()
        self._stack.callback(worker.stop)
        return broker

    def send(self, actor: str, *labels: str, delay: int | None = None) -> None:
        broker = self.brokers[0]
        for label in labels:
            broker.enqueue(broker.get_actor(actor).message(label), delay=delay)

    def close(self) -> None:
        self.may_end.set()
        self._stack.close()


@pytest.fixture
def crew(clocked: ClockedServer) -> Iterator[Crew]:
    crew = Crew(clocked.url)
    yield crew
    crew.close()


def labels(prefix: str, n: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(n)]


@pytest.mark.parametrize("jump_s", [3_600, -3_600])
def test_no_message_is_lost_or_stuck_when_the_clock_jumps(clocked: ClockedServer, crew: Crew, jump_s: int) -> None:
    # two jobs run and two wait in each of the workers
    crew.send("wait", *labels("begun", 8))
    eventually(lambda: len(crew.ran) == 4)
    crew.send("work", *labels("waiting", 20))

    clocked.jump(jump_s)
    crew.send("work", *labels("after", 20))
    crew.send("work", *labels("delayed", 5), delay=500)
    eventually(lambda: clocked.has_heard_of(crew))
    crew.may_end.set()

    everything = {*labels("begun", 8), *labels("waiting", 20), *labels("after", 20), *labels("delayed", 5)}
    eventually(lambda: crew.ran.keys() == everything, within_s=30)
    crew.brokers[0].join(QUEUE, timeout=30_000)
    # between the jump and the next heartbeat, live workers look dead, so jobs that run in that time may run again
    assert max(crew.ran.values()) <= 2


def test_delayed_messages_become_due_by_the_new_clock(clocked: ClockedServer, crew: Crew) -> None:
    crew.send("work", *labels("in half an hour", 5), delay=HOUR_MS // 2)

    clocked.jump(3_600)

    eventually(lambda: crew.ran == Counter(labels("in half an hour", 5)), within_s=30)
