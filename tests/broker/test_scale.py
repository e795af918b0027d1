"""Behaviour with up to a million messages. ``make test-scale`` runs these slow tests and prints measurements."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from broker import RedisStreamsBroker
from broker.janitor import Janitor
from broker.keys import QueueKeys
from broker.net.connections import Connections
from broker.net.shared_reads import Timers
from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.processes import started
from tests.broker.scene import GROUP, KEYS, QUEUE, Scene, message, scene_on
from tests.support import eventually

pytestmark = [pytest.mark.scale, pytest.mark.timeout(600)]

# Maximum time for which a script may block the server. Other clients do not notice ten milliseconds.
LONGEST_SCRIPT_US = 10_000


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Scene]:
    """A dedicated server that logs every command longer than ten milliseconds."""
    options = {"appendonly": "no", "slowlog-log-slower-than": str(LONGEST_SCRIPT_US), "slowlog-max-len": "1000"}
    with (
        EmbeddedRedis(directory=tmp_path, unix_socket=True, options=options) as server,
        redis.Redis.from_url(server.url) as client,
        scene_on(client, server.url) as scene,
    ):
        yield scene


def slow_commands(client: Any) -> list[int]:
    """Return the durations, in µs, of the scripts that took more than ten milliseconds."""
    return [one["duration"] for one in client.slowlog_get(1_000) if one["command"].startswith(b"EVAL")]


def test_a_million_due_messages_are_promoted_in_short_steps_and_in_order(large: Scene) -> None:
    n, step = 1_000_000, 10_000
    payload = message("x").encode()
    fill = """for i = tonumber(ARGV[1]), tonumber(ARGV[1]) + tonumber(ARGV[2]) - 1 do
      redis.call('ZADD', KEYS[1], 1000 + i, 'n' .. i)
      redis.call('HSET', KEYS[2], 'n' .. i, ARGV[3] .. i)
    end"""
    for first in range(0, n, step):
        large.client.eval(fill, 2, KEYS.delayed, KEYS.delayed_messages, first, step, payload)
    large.client.slowlog_reset()

    broker, other = large.process("a"), large.process("b")
    began = time.monotonic()
    consumers = [one.consume(QUEUE, prefetch=0, timeout=50) for one in (broker, other)]
    worst_ping_s, n_pings = 0.0, 0
    while large.client.zcard(KEYS.delayed):
        before = time.monotonic()
        large.client.ping()
        worst_ping_s = max(worst_ping_s, time.monotonic() - before)
        n_pings += 1
        time.sleep(0.005)
    took_s = time.monotonic() - began
    for consumer in consumers:
        consumer.close()

    print(
        f"\n{n} due messages by two janitors in {took_s:.1f} s; slowest of {n_pings} pings {worst_ping_s * 1e3:.1f} ms"
    )
    print(f"scripts of more than {LONGEST_SCRIPT_US} us: {slow_commands(large.client)}")
    assert large.client.xlen(KEYS.stream) == n
    assert large.client.exists(KEYS.delayed_messages) == 0
    last = -1
    for _, fields in large.client.xrange(KEYS.stream, count=100_000):
        number = int(fields[b"message"][len(payload) :])
        assert number > last
        last = number
    assert broker.counters(QUEUE)["promoted"] == n


def test_orphans_behind_200_000_pending_entries_are_found_in_one_sweep(large: Scene) -> None:
    n, n_orphans = 200_000, 30
    broker = large.process("a")
    large.beat("a")
    fill = """for i = 1, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', 'message', ARGV[2]) end"""
    for _ in range(0, n, 10_000):
        large.client.eval(fill, 1, KEYS.stream, 10_000, message("x").encode())
    while large.client.xreadgroup(GROUP, broker.consumer_name, {KEYS.stream: ">"}, count=10_000):
        pass
    tail = [entry_id for entry_id, _ in large.client.xrevrange(KEYS.stream, count=n_orphans)]
    large.client.xack(KEYS.stream, GROUP, *tail)
    large.client.slowlog_reset()

    connections = Connections(large.client)
    name = broker.consumer_name
    timers = Timers(connections, block_ms=1_000)
    janitor = Janitor(connections, broker.settings, KEYS, timers, consumer_name=name, on_round=lambda _: False)
    began, n_found, n_rounds = time.monotonic(), 0, 0
    while n_found < n_orphans and n_rounds < 1_000:
        n_found += janitor.run_once().n_orphans
        n_rounds += 1

    print(f"\n{n_found} orphans behind {n} pending entries after {n_rounds} rounds, {time.monotonic() - began:.2f} s")
    print(f"scripts of more than {LONGEST_SCRIPT_US} us: {slow_commands(large.client)}")
    assert n_found == n_orphans
    assert n_rounds <= n / 10_000 + 1, "more than one pass"
    assert large.client.xpending(KEYS.stream, GROUP)["pending"] == n
    janitor.stop()
    connections.close()


def test_delayed_messages_run_when_they_are_due(large: Scene) -> None:
    consumer = large.consumer("a", prefetch=100, timeout=10_000)
    late_ms = []
    for n in range(100):
        delay = 50 + 7 * n % 300
        seconds, us = large.client.time()
        due_ms = seconds * 1000 + us / 1000 + delay
        large.brokers["a"].enqueue(message(str(n)), delay=delay)
        assert next(consumer) is not None
        seconds, us = large.client.time()
        late_ms.append(seconds * 1000 + us / 1000 - due_ms)

    late_ms.sort()
    print(f"\nlate by: median {late_ms[50]:.1f} ms, p90 {late_ms[90]:.1f} ms, worst {late_ms[-1]:.1f} ms")
    assert late_ms[0] > -2, "nothing runs early"


def test_cost_per_queue_and_process_stays_bounded_with_fifty_queues(tmp_path: Path) -> None:
    n_queues, n_processes, n_threads = 50, 8, 4
    names = [QUEUE, *(f"{QUEUE}-{number}" for number in range(1, n_queues))]
    options = {"appendonly": "no"}
    with (
        EmbeddedRedis(directory=tmp_path, unix_socket=True, options=options) as server,
        redis.Redis.from_url(server.url) as connection,
        ExitStack() as stack,
    ):
        client: Any = connection
        began = time.monotonic()
        for _ in range(n_processes):
            stack.enter_context(started(server.url, lease_ms=30_000, threads=n_threads, queues=n_queues))
        eventually(lambda: all(has_consumers(client, name, n_processes) for name in names), within_s=300)
        booted_s = time.monotonic() - began

        producer = RedisStreamsBroker(server.url, middleware=[])
        stack.callback(producer.close)
        for name in names:
            producer.enqueue(dramatiq.Message(name, "work", (name,), {}, {}))
        expected = sorted(f"work {name}".encode() for name in names)
        eventually(lambda: sorted(client.lrange("ran", 0, -1)) == expected, within_s=120)

        before, began = calls(client), time.monotonic()
        time.sleep(30)
        per_second = (calls(client) - before) / (time.monotonic() - began) / n_queues / n_processes
        n_connections = len(client.client_list())

    n_each = n_connections / n_processes
    print(f"\n{n_processes} processes of {n_queues} queues boot in {booted_s:.1f} s, one after the other")
    print(f"{n_each:.1f} connections a process, {per_second:.2f} commands a second, process and queue")
    assert per_second <= 2
    # one connection reads all queues, one waits for notifications, one is the keeper's, and threads share the others
    assert n_each <= 40


def has_consumers(client: Any, queue_name: str, n: int) -> bool:
    return bool(client.zcard(QueueKeys("streams", queue_name).consumers) == n)


def calls(client: Any) -> int:
    """Return how many commands the server has run, including those in scripts, but not those of this function."""
    told = client.info("commandstats")
    return sum(one["calls"] for name, one in told.items() if name not in ("cmdstat_info", "cmdstat_client|list"))
