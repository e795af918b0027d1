"""The migration of messages from Dramatiq's real RedisBroker."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from broker.command import main
from broker.migration import Drained, drain
from tests.broker.test_dramatiq_options import broker_on, working
from tests.support import eventually


@pytest.fixture
def old(redis_url: str) -> Any:
    broker = RedisBroker(url=redis_url, middleware=[])
    yield broker
    broker.client.close()
    broker.close()


def actor_on(broker: dramatiq.Broker, ran: Counter[str]) -> Any:
    @dramatiq.actor(broker=broker)
    def work(label: str) -> None:
        ran[label] += 1

    return work


def test_migration_moves_waiting_delayed_and_abandoned_messages(
    old: RedisBroker, redis_url: str, redis_client: redis.Redis
) -> None:
    ran: Counter[str] = Counter()
    work = actor_on(old, ran)
    abandoned = work.send("abandoned")
    crashed = RedisBroker(url=redis_url, middleware=[])
    crashed.declare_queue("default")
    fetched = next(crashed.consume("default", prefetch=1, timeout=100))
    assert fetched is not None
    assert fetched.message_id == abandoned.message_id
    redis_client.zadd("dramatiq:__heartbeats__", {crashed.broker_id: 1})
    crashed.client.close()
    for n in range(5):
        work.send(f"waiting {n}")
    work.send_with_options(args=("soon",), delay=300)
    work.send_with_options(args=("later",), delay=3_600_000)

    with broker_on(redis_url) as broker:
        assert drain(redis_client, broker) == {"default": Drained(moved=8, left=0)}

        entries: Any = redis_client.xrange("streams:default")
        order = [dramatiq.Message.decode(fields[b"message"]).args[0] for _, fields in entries]
        # RedisBroker requeues abandoned messages at random times, in any of its commands
        assert [name for name in order if name != "abandoned"] == [f"waiting {n}" for n in range(5)]
        assert order.count("abandoned") == 1
        assert broker.stats("default").delayed == 2
        assert redis_client.exists("dramatiq:default", "dramatiq:default.msgs", "dramatiq:default.DQ.msgs") == 0
        actor_on(broker, ran)
        with working(broker):
            eventually(lambda: broker.counters("default")["acked"] == 7, within_s=30)
        assert broker.stats("default").delayed == 1
    assert ran == Counter([*order, "soon"])


def test_migration_leaves_messages_that_a_live_worker_has_fetched(
    old: RedisBroker, redis_url: str, redis_client: redis.Redis
) -> None:
    work = actor_on(old, Counter())
    work.send("fetched")
    work.send("waiting")
    consumer = old.consume("default", prefetch=1, timeout=100)
    fetched = next(consumer)
    assert fetched is not None

    with broker_on(redis_url) as broker:
        assert drain(redis_client, broker) == {"default": Drained(moved=1, left=1)}
        consumer.ack(fetched)
        assert drain(redis_client, broker) == {}
        assert broker.stats("default").waiting == 1


def test_migration_command_prints_its_results(
    old: RedisBroker,
    redis_url: str,
    redis_client: redis.Redis,
    capsys: pytest.CaptureFixture[str],
) -> None:
    actor_on(old, Counter()).send("one")

    assert main(["migrate", redis_url, "--url", redis_url]) == 0

    assert capsys.readouterr().out == "default: 1 moved, 0 left to live workers\nnothing is left\n"
    assert redis_client.xlen("streams:default") == 1


def test_old_server_is_taken_from_the_environment(
    old: RedisBroker, redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor_on(old, Counter()).send("one")
    monkeypatch.setenv("OLD_REDIS_URL", redis_url)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    assert main(["migrate", "--url", redis_url]) == 0

    assert redis_client.xlen("streams:default") == 1


def test_old_server_with_a_password_is_refused_as_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "redis://:secret@127.0.0.1:1/0"]) == 2

    shown = capsys.readouterr()
    assert "OLD_REDIS_URL" in shown.err
    assert "secret" not in shown.err + shown.out


def test_old_pipeline_continues_after_the_migration(
    old: RedisBroker, redis_url: str, redis_client: redis.Redis
) -> None:
    ran: Counter[str] = Counter()
    work = actor_on(old, ran)
    dramatiq.pipeline(
        [work.message("first"), work.message_with_options(args=("second",), pipe_ignore=True)], broker=old
    ).run()

    with broker_on(redis_url, dramatiq.middleware.Pipelines()) as broker:
        drain(redis_client, broker)
        actor_on(broker, ran)
        with working(broker):
            broker.join("default", timeout=30_000)

    assert ran == Counter(["first", "second"])


def test_migration_leaves_refused_messages_and_moves_the_others(
    old: RedisBroker, redis_url: str, redis_client: redis.Redis
) -> None:
    work = actor_on(old, Counter())
    work.send("first")
    large = work.send("x" * 20_000)
    work.send("second")
    strange = work.send_with_options(args=("strange",), time_limit="1 min")
    damaged = work.send("damaged")
    work.send("last")
    work.send_with_options(args=("x" * 20_000,), delay=3_600_000)
    messages: Any = redis_client.hgetall("dramatiq:default.msgs")
    for internal_id, payload in messages.items():
        if dramatiq.Message.decode(payload).message_id == damaged.message_id:
            redis_client.hset("dramatiq:default.msgs", internal_id, b"{no message")

    with broker_on(redis_url, max_message_bytes=10_000) as broker:
        drained = drain(redis_client, broker)["default"]

        assert (drained.moved, drained.left, len(drained.refused)) == (3, 0, 4)
        errors = [one.error for one in drained.refused]
        assert large.message_id in errors[0]
        assert strange.message_id in errors[1]
        assert "DecodeError" in errors[2]
        entries: Any = redis_client.xrange("streams:default")
        moved = [dramatiq.Message.decode(fields[b"message"]).args[0] for _, fields in entries]
        assert moved == ["first", "second", "last"]
        assert redis_client.llen("dramatiq:default") == 3
        assert drain(redis_client, broker)["default"] == Drained(moved=0, left=0, refused=drained.refused)


def test_migration_moves_refused_messages_after_the_limit_was_raised(
    old: RedisBroker,
    redis_url: str,
    redis_client: redis.Redis,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = actor_on(old, Counter())
    large = work.send("x" * 20_000)
    work.send("small")
    arguments = ["migrate", "--url", redis_url, "--namespace", "new", "--max-message-bytes"]

    assert main([*arguments, "10000"]) == 1
    refused = capsys.readouterr().out
    assert main([*arguments, "30000"]) == 0
    moved = capsys.readouterr().out

    assert "default: 1 moved, 0 left to live workers, 1 refused\n" in refused
    assert large.message_id in refused
    assert "nothing is left" not in refused
    assert moved == "default: 1 moved, 0 left to live workers\nnothing is left\n"
    assert redis_client.xlen("new:default") == 2


def test_migration_command_reads_queues_in_another_namespace(redis_url: str, redis_client: redis.Redis) -> None:
    old = RedisBroker(url=redis_url, middleware=[], namespace="ours")
    actor_on(old, Counter()).send("one")

    assert main(["migrate", "--url", redis_url, "--old-namespace", "ours"]) == 0

    assert redis_client.xlen("streams:default") == 1
    old.client.close()
    old.close()
