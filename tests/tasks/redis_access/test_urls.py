"""Every form of REDIS_URL yields the right client with the right options."""

from __future__ import annotations

import pytest
import redis
from redis.sentinel import SentinelConnectionPool

from sploot_cluster.errors import InvalidInput
from tasks.redis_access.urls import check, connect


def client_of(url: str) -> redis.Redis:
    return connect(url, connect_timeout_s=0.5, answer_timeout_s=1.5)


def test_url_of_a_single_server_is_parsed_by_redis_py() -> None:
    client = client_of("rediss://user:p%40ss@host:6380/2?ssl_ca_certs=/ca.pem")

    options = client.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["db"], options["password"]) == ("host", 6380, 2, "p@ss")
    assert (options["ssl_ca_certs"], options["socket_connect_timeout"], options["socket_timeout"]) == (
        "/ca.pem",
        0.5,
        1.5,
    )


def test_url_of_sentinels_connects_to_their_master() -> None:
    client = client_of("rediss+sentinel://user:p%40ss@a:1,b/main/3?sentinel_password=other&ssl_ca_certs=/ca.pem")

    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    options = pool.connection_kwargs
    assert (pool.service_name, options["db"], options["username"], options["password"]) == ("main", 3, "user", "p@ss")
    sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(s["host"], s["port"]) for s in sentinels] == [("a", 1), ("b", 26379)]
    assert {(s["password"], s["ssl_ca_certs"]) for s in sentinels} == {("other", "/ca.pem")}


def test_unreachable_cluster_raises_connection_error() -> None:
    with pytest.raises(redis.ConnectionError):
        client_of("redis+cluster://127.0.0.1:1")


@pytest.mark.parametrize(
    "url", ["hunter2", "hunter2://x", "http://user:hunter2@host", "redis+sentinel://:hunter2@a:b:c/m"]
)
def test_refused_url_shows_no_secret(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check(url)

    assert "hunter2" not in str(refused.value)
