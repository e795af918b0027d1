"""Settings from the environment: defaults, errors that name the variable, masked secrets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import redis

from broker.settings import DAY_MS, BrokerSettings
from sploot_cluster.errors import InvalidInput
from tasks.composition import build_broker, build_service
from tasks.contracts import GROUP
from tasks.settings import Settings, masked


def test_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_env({})

    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert (settings.metrics_host, settings.metrics_port) == ("127.0.0.1", 9105)
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 8080)
    assert settings.lease_ms == 30_000
    assert settings == Settings.from_env({"REDIS_URL": "", "SPLOOT_LEASE_MS": " "})


def test_settings_are_read_from_their_variables() -> None:
    settings = Settings.from_env(
        {
            "REDIS_URL": "rediss://:secret@redis:6380/1",
            "SPLOOT_LEASE_MS": "5000",
            "WORKER_METRICS_HOST": "0.0.0.0",
            "WORKER_METRICS_PORT": "9200",
            "SPLOOT_HTTP_PORT": "0",
            "SPLOOT_CACHE_MB": "64",
            "SPLOOT_API_TOKENS": "auth:producer:correct-horse",
            "SPLOOT_MODELS": "clip@1=512, dino@2=768",
            "SPLOOT_CLUSTERING_GROWTH_RATIO": "0.5",
            "SPLOOT_CLUSTER_PORT": "tcp://10.0.0.1:80",
        }
    )

    assert settings.redis_url == "rediss://:secret@redis:6380/1"
    assert (settings.lease_ms, settings.metrics_host, settings.metrics_port) == (5_000, "0.0.0.0", 9_200)
    assert settings.http_port == 0
    assert settings.cache_mb == 64
    assert settings.clustering.models == {"clip@1": 512, "dino@2": 768}
    assert settings.clustering.growth_ratio == 0.5


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("REDIS_URL", "http://redis"),
        ("REDIS_URL", "redis"),
        ("REDIS_URL", "redis+sentinel://a:26379"),
        ("REDIS_URL", "redis+sentinel://a:b:c/mymaster"),
        ("REDIS_URL", "redis+sentinel://a/mymaster?sentinel_pasword=x"),
        ("REDIS_URL", "redis+cluster://a:7000/3"),
        ("SPLOOT_LEASE_MS", "soon"),
        ("SPLOOT_CACHE_MB", "1g"),
        ("SPLOOT_LEASE_MS", "-1"),
        ("SPLOOT_LEASE_MS", "100"),
        ("SPLOOT_MAX_DELIVERIES", "1"),
        ("SPLOOT_DEAD_LETTER_DAYS", "0"),
        ("SPLOOT_DEAD_LETTER_DAYS", "3651"),
        ("SPLOOT_DEAD_LETTER_DAYS", "7.5"),
        ("SPLOOT_MAX_DEAD_LETTERS", "0"),
        ("SPLOOT_MAX_DEAD_LETTERS_MB", "0"),
        ("SPLOOT_MAX_QUEUE_LENGTH", "-1"),
        ("SPLOOT_READ_AHEAD_MS", "1001"),
        ("SPLOOT_KEEPER_PROCESS", "no"),
        ("SPLOOT_HUNG_AFTER_S", "4"),
        ("SPLOOT_HTTP_PORT", "65536"),
        ("SPLOOT_INGEST_ROLLOUT_PERCENT", "101"),
        ("WORKER_METRICS_PORT", "65536"),
        ("WORKER_METRICS_PORT", "9105.0"),
        ("SPLOOT_HTTP_HOST", "my host"),
        ("SPLOOT_MODELS", "clip@1"),
        ("SPLOOT_MODELS", "clip@1=0"),
        ("SPLOOT_CLUSTERING_GROWTH_RATIO", "much"),
        ("SPLOOT_CLUSTERING_GROWTH_RATIO", "-1"),
        ("SPLOOT_CLUSTERING_COLOUR", "red"),
    ],
)
def test_invalid_variable_is_named(variable: str, text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Settings.from_env({variable: text})

    assert refused.value.field == variable
    assert str(refused.value).startswith(f"{variable}: ")
    assert refused.value.hint


def test_meaning_and_error_of_a_setting_state_its_accepted_range() -> None:
    meanings = {row["variable"]: row["meaning"] for row in Settings().table()}

    for variable, text, accepted in (
        ("SPLOOT_MAX_DELIVERIES", "1", "at least 2"),
        ("SPLOOT_READ_AHEAD_MS", "1001", "0 to 1000"),
    ):
        with pytest.raises(InvalidInput) as refused:
            Settings.from_env({variable: text})
        assert (refused.value.problem, refused.value.hint) == (f"is {text}", f"set {accepted}")
        assert meanings[variable].endswith(f"; {accepted}")


def test_every_process_builds_its_broker_with_the_settings_of_the_operator() -> None:
    defaults, client = BrokerSettings(group=GROUP), redis.Redis()  # the client is never used for a call
    environ = {
        "SPLOOT_LEASE_MS": "5000",
        "SPLOOT_MAX_DELIVERIES": "3",
        "SPLOOT_DEAD_LETTER_DAYS": "30",
        "SPLOOT_MAX_DEAD_LETTERS": "500",
        "SPLOOT_MAX_DEAD_LETTERS_MB": "3",
        "SPLOOT_READ_AHEAD_MS": "0",
        "SPLOOT_KEEPER_PROCESS": "false",
    }

    unset = build_broker(Settings.from_env({}), client, middleware=[]).settings
    chosen = build_broker(Settings.from_env(environ), client, middleware=[]).settings

    assert unset == defaults
    assert chosen == replace(
        defaults,
        lease_ms=5_000,
        max_deliveries=3,
        dead_letter_ttl_ms=30 * DAY_MS,
        dead_letter_max=500,
        dead_letter_max_bytes=3 << 20,
        read_ahead_ms=0,
        keeper_process=False,
    )


def test_errors_and_tables_mask_secrets() -> None:
    settings = Settings.from_env(
        {"REDIS_URL": "redis://user:hunter22@redis/0", "SPLOOT_API_TOKENS": "a:viewer:hunter22,b:operator:hunter22"}
    )

    shown = {row["variable"]: row["value"] for row in settings.table()}

    assert shown["REDIS_URL"] == "redis://user:***@redis/0"
    assert shown["SPLOOT_API_TOKENS"] == "***,***"
    assert "hunter22" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:p%40ss@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://user:p@ss:word@host", "rediss://user:***@host"),
        ("unix:///run/redis.sock?password=secret&db=1", "unix:///run/redis.sock?password=***&db=1"),
        (
            "rediss+sentinel://u:pw@a:1,b:2/main?sentinel_password=pw",
            "rediss+sentinel://u:***@a:1,b:2/main?sentinel_password=***",
        ),
        ("redis+cluster://:pw@a:1,b:2", "redis+cluster://:***@a:1,b:2"),
    ],
)
def test_redis_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert masked("redis_url", url) == shown


def test_every_setting_is_listed_with_its_meaning() -> None:
    rows = Settings.from_env({}).table()

    assert {"REDIS_URL", "SPLOOT_MODELS", "SPLOOT_CLUSTERING_GROWTH_RATIO"} <= {row["variable"] for row in rows}
    assert [row["variable"] for row in rows if not row["meaning"]] == []
    assert all(row["value"] == row["default"] for row in rows)


def test_secret_is_read_from_its_file(tmp_path: Path) -> None:
    url, tokens = tmp_path / "url", tmp_path / "tokens"
    url.write_text("redis://user:hunter22@redis/0\n")
    tokens.write_text("auth:producer:correct-horse-battery\nops:operator:correct-horse-staple\n")

    settings = Settings.from_env({"REDIS_URL_FILE": str(url), "SPLOOT_API_TOKENS_FILE": str(tokens)})

    assert settings.redis_url == "redis://user:hunter22@redis/0"
    assert settings.api_tokens.count("\n") == 1
    assert "hunter22" not in repr(settings) + str(settings.table())


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_unreadable_secret_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "url"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InvalidInput) as refused:
        Settings.from_env({"REDIS_URL_FILE": str(path)})

    assert refused.value.field == "REDIS_URL_FILE"


def test_secret_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        Settings.from_env({"REDIS_URL": "redis://a", "REDIS_URL_FILE": str(tmp_path)})

    assert refused.value.field == "REDIS_URL_FILE"


def test_only_secrets_are_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    path.write_text("5000")

    assert Settings.from_env({"SPLOOT_LEASE_MS_FILE": str(path)}).lease_ms == 30_000


@pytest.mark.parametrize(("cache_mb", "cache_bytes"), [(64, 64 << 20), (0, None)])
def test_cache_size_follows_the_setting(
    monkeypatch: pytest.MonkeyPatch, cache_mb: int, cache_bytes: int | None
) -> None:
    built = Mock()
    monkeypatch.setattr("sploot_cluster.service.ClusterService", built)

    build_service(Settings(cache_mb=cache_mb), redis.Redis())  # the client is never used for a call

    assert built.call_args.kwargs["cache_bytes"] == cache_bytes
