"""Tests of script calls on reused connections: whatever happens to a connection, callers get their own replies."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import redis
from redis.connection import AbstractConnection

from sploot_cluster.store.short_calls import ShortCalls

ECHO = "return ARGV[1]"


def n_connections(client: redis.Redis) -> int:
    return len(client.client_list())


def test_one_thread_uses_one_connection(redis_client: redis.Redis) -> None:
    echo = ShortCalls(redis_client).script(ECHO)
    redis_client.script_flush()
    assert echo(keys=(), args=("loads it",)) == b"loads it"
    before = n_connections(redis_client)

    answers = [echo(keys=(), args=(str(number),)) for number in range(20)]

    assert answers == [str(number).encode() for number in range(20)]
    assert n_connections(redis_client) == before


def test_short_lived_stores_share_a_connection(redis_client: redis.Redis) -> None:
    ShortCalls(redis_client).script(ECHO)(keys=(), args=("loads it",))
    before = n_connections(redis_client)

    for number in range(200):
        assert ShortCalls(redis_client).script(ECHO)(keys=(), args=(str(number),)) == str(number).encode()

    assert n_connections(redis_client) == before


def test_pool_of_one_connection_stays_usable_for_others(redis_client: redis.Redis) -> None:
    options = redis_client.connection_pool.connection_kwargs
    pool = redis.ConnectionPool(
        max_connections=1, connection_class=redis_client.connection_pool.connection_class, **options
    )
    with redis.Redis(connection_pool=pool) as client:
        echo = ShortCalls(client).script(ECHO)

        assert echo(keys=(), args=("one",)) == b"one"
        assert client.ping()
    pool.disconnect()


def test_connection_closed_by_the_server_is_replaced(redis_client: redis.Redis) -> None:
    echo = ShortCalls(redis_client).script(ECHO)
    echo(keys=(), args=("one",))
    redis_client.client_kill_filter(_type="normal", skipme=False)

    assert echo(keys=(), args=("two",)) == b"two"
    assert echo(keys=(), args=("three",)) == b"three"


def test_script_is_reloaded_after_a_script_flush(redis_client: redis.Redis) -> None:
    echo = ShortCalls(redis_client).script(ECHO)
    echo(keys=(), args=("one",))
    redis_client.script_flush()

    assert echo(keys=(), args=("two",)) == b"two"


def test_error_reply_of_a_script_is_raised(redis_client: redis.Redis) -> None:
    fails = ShortCalls(redis_client).script("return redis.error_reply('MINE no')")

    for _ in range(3):
        with pytest.raises(redis.ResponseError, match="MINE no"):
            fails(keys=())


def test_connection_to_a_demoted_server_is_replaced(redis_client: redis.Redis) -> None:
    calls = ShortCalls(redis_client)
    refuses, echo = calls.script("return redis.error_reply('READONLY no')"), calls.script(ECHO)
    echo(keys=(), args=("loads it",))
    with pytest.raises(redis.ResponseError):
        refuses(keys=())  # this call loads the script
    before = {one["id"] for one in redis_client.client_list()}

    with pytest.raises(redis.ResponseError):
        refuses(keys=())

    assert echo(keys=(), args=("one",)) == b"one"
    assert {one["id"] for one in redis_client.client_list()} - before


class TimeIsUp(BaseException):
    """An exception like Dramatiq's time limit, which can be raised at any point in a thread."""


def test_reply_to_an_interrupted_call_is_never_read_by_a_later_call(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = ShortCalls(redis_client).script(ECHO)
    echo(keys=(), args=("one",))

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise TimeIsUp

    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "read_response", interrupted)
        with pytest.raises(TimeIsUp):
            echo(keys=(), args=("two",))

    assert echo(keys=(), args=("three",)) == b"three"


def test_blocking_pool_of_one_connection_stays_usable_for_others(redis_client: redis.Redis) -> None:
    options = redis_client.connection_pool.connection_kwargs
    pool = redis.BlockingConnectionPool(
        max_connections=1, timeout=1, connection_class=redis_client.connection_pool.connection_class, **options
    )
    with redis.Redis(connection_pool=pool) as client:
        echo = ShortCalls(client).script(ECHO)

        assert echo(keys=(), args=("one",)) == b"one"
        assert client.ping()
    pool.disconnect()


def test_forked_process_opens_its_own_connections(redis_url: str) -> None:
    talk = """
import os, sys
import redis
from sploot_cluster.store.short_calls import ShortCalls
echo = ShortCalls(redis.Redis.from_url(sys.argv[1])).script("return ARGV[1]")
for name in ("first", "second"):
    echo(keys=(), args=(name,))
child = os.fork()
who = "parent" if child else "child"
answers = [echo(keys=(), args=(f"{who} {number}",)).decode() for number in range(2_000)]
assert answers == [f"{who} {number}" for number in range(2_000)], answers
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", talk, redis_url], check=True, timeout=60)
