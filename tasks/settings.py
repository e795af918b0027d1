"""The settings of the processes, read from environment variables and validated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from sploot_cluster.errors import InvalidInput
from sploot_cluster.settings import PREFIX as CLUSTERING
from sploot_cluster.settings import ClusterSettings, Number, value_of
from tasks.redis_access.urls import check
from tasks.rollout import EVERYBODY

DEFAULT_REDIS_URL: Final = "redis://127.0.0.1:6379/0"
FROM_FILE: Final = "_FILE"  # REDIS_URL_FILE names a file that holds the value of REDIS_URL; for secrets only
MODELS: Final = "SPLOOT_MODELS"  # alias of SPLOOT_CLUSTERING_MODELS; takes precedence
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


def _whole(lowest: int, highest: float = math.inf) -> Number:
    return Number(lowest, highest, is_whole=True)


_PORTS: Final = _whole(0, 65_535)


def _setting(
    variable: str, meaning: str, *, unit: str = "", default: Any, accepts: Number | None = None, is_secret: bool = False
) -> Any:
    if accepts is not None:
        meaning += f"; {accepts.hint.removeprefix('set ')}"
    if is_secret:
        meaning += f"; or set {variable}{FROM_FILE} to a file that holds it"
    metadata = {"variable": variable, "meaning": meaning, "unit": unit, "accepts": accepts, "is_secret": is_secret}
    return field(default=default, repr=not is_secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a process. Each field's metadata holds its variable, unit and meaning; see :meth:`table`."""

    redis_url: str = _setting(
        "REDIS_URL",
        "the Redis that holds queues and pets: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
        default=DEFAULT_REDIS_URL,
        is_secret=True,
    )
    lease_ms: int = _setting(
        "SPLOOT_LEASE_MS",
        "lease: jobs of a worker with no heartbeat for this long go to other workers",
        unit="ms",
        default=30_000,
        accepts=_whole(2_000),
    )
    max_deliveries: int = _setting(
        "SPLOOT_MAX_DELIVERIES",
        "a job whose worker process died this many times becomes a dead letter",
        unit="times",
        default=5,
        accepts=_whole(2),
    )
    dead_letter_days: int = _setting(
        "SPLOOT_DEAD_LETTER_DAYS",
        "workers delete dead letters this long after their jobs failed",
        unit="days",
        default=7,
        accepts=_whole(1, 3_650),
    )
    max_dead_letters: int = _setting(
        "SPLOOT_MAX_DEAD_LETTERS",
        "about how many dead letters a queue keeps; beyond that, workers delete the oldest",
        unit="dead letters",
        default=10_000,
        accepts=_whole(1),
    )
    max_dead_letters_mb: int = _setting(
        "SPLOOT_MAX_DEAD_LETTERS_MB",
        "about how much of Redis' memory the dead letters of a queue may use; beyond that, workers delete the oldest",
        unit="MB",
        default=64,
        accepts=_whole(1),
    )
    max_queue_length: int = _setting(
        "SPLOOT_MAX_QUEUE_LENGTH",
        "how many jobs may wait and run in a queue before producers are refused (HTTP 503); workers store it in Redis "
        "for all clients; 0: no limit",
        unit="jobs",
        default=0,
        accepts=_whole(0),
    )
    read_ahead_ms: int = _setting(
        "SPLOOT_READ_AHEAD_MS",
        "how far a worker process reads ahead if jobs are short, up to 128 jobs per queue; 0: not at all",
        unit="ms",
        default=15,
        accepts=_whole(0, 1_000),
    )
    batch_size: int = _setting(
        "SPLOOT_BATCH_SIZE",
        "how many waiting embedding events one call handles and commits together; 1: each event individually",
        unit="events",
        default=256,
        accepts=_whole(1, 500),
    )
    keeper_process: bool = _setting(
        "SPLOOT_KEEPER_PROCESS",
        "whether a child process of 5 MB writes the heartbeats of each worker process and reports its death; "
        "otherwise a thread writes them, and killed jobs run again only after the lease; true or false",
        default=True,
    )
    metrics_host: str = _setting(
        "WORKER_METRICS_HOST", "address on which workers serve /metrics, /healthz and /readyz", default="127.0.0.1"
    )
    metrics_port: int = _setting(
        "WORKER_METRICS_PORT", "port on which workers serve them; 0: a free one", default=9105, accepts=_PORTS
    )
    hung_after_s: int = _setting(
        "SPLOOT_HUNG_AFTER_S",
        "a worker process whose threads made no progress for this long is reported as hung by /healthz",
        unit="s",
        default=60,
        accepts=_whole(5),
    )
    cache_mb: int = _setting(
        "SPLOOT_CACHE_MB",
        "size of each process's cache of pets; 0: 512 MB, or a quarter of all memory divided by the number of cores if "
        "that is more",
        unit="MB",
        default=0,
    )
    cold_store: str = _setting(
        "SPLOOT_COLD_STORE",
        "where the vectors of pets without changes are kept instead of in Redis: s3://bucket/prefix, or a "
        "file:///directory that all processes share; a bucket needs the extra [cold]; set it equally for workers, "
        "scheduler, server and commands; empty: all vectors stay in Redis",
        default="",
    )
    cold_after_days: int = _setting(
        "SPLOOT_COLD_AFTER_DAYS",
        "after how long without changes the vectors of a pet are moved there",
        unit="days",
        default=30,
        accepts=_whole(1, 3_650),
    )
    http_host: str = _setting("SPLOOT_HTTP_HOST", "address on which the HTTP API listens", default="127.0.0.1")
    http_port: int = _setting(
        "SPLOOT_HTTP_PORT", "port on which the HTTP API listens; 0: a free one", default=8080, accepts=_PORTS
    )
    api_tokens: str = _setting(
        "SPLOOT_API_TOKENS",
        "comma-separated name:role:secret; roles uploader, viewer, labeller, producer, operator; required off loopback",
        default="",
        is_secret=True,
    )
    http_public: str = _setting(
        "SPLOOT_HTTP_PUBLIC",
        "what the HTTP API serves to other machines without a token: none, or some of health, metrics, openapi and "
        "console, comma-separated",
        default="health",
    )
    http_rate: int = _setting(
        "SPLOOT_HTTP_RATE",
        "how many requests per second each caller of the HTTP API may send to one server before it gets 429; a burst "
        "may have as many as five seconds allow; 0: no limit",
        unit="requests/s",
        default=200,
        accepts=_whole(0),
    )
    media_url_template: str = _setting(
        "SPLOOT_MEDIA_URL_TEMPLATE",
        "where the console loads the picture of an item, e.g. https://media.example/{pet_id}/{media_id}?w={width}; "
        "empty: it shows no pictures",
        default="",
    )
    ingest_rollout_percent: int = _setting(
        "SPLOOT_INGEST_ROLLOUT_PERCENT",
        "share of pets whose items are accepted from producers; the selection of pets is stable",
        unit="%",
        default=EVERYBODY,
        accepts=_whole(0, EVERYBODY),
    )
    environment: str = _setting(
        "SPLOOT_ENVIRONMENT",
        "environment, e.g. staging or production; for error reports, traces, and scripts that refuse production",
        default="development",
    )
    sentry_dsn: str = _setting(
        "SENTRY_DSN", "where jobs that failed permanently are reported; empty: nowhere", default="", is_secret=True
    )
    otlp_endpoint: str = _setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "where spans of jobs are sent by OTLP over HTTP; empty: nowhere; needs the extra [otel]",
        default="",
    )
    log_level: str = _setting(
        "SPLOOT_LOG_LEVEL", "lowest level that is logged: DEBUG, INFO, WARNING or ERROR", default="INFO"
    )
    clustering: ClusterSettings = field(default_factory=ClusterSettings, metadata={"variable": f"{CLUSTERING}*"})

    def __post_init__(self) -> None:
        check(self.redis_url)
        for setting in fields(self):
            accepts, value = setting.metadata.get("accepts"), getattr(self, setting.name)
            if accepts is not None and value not in accepts:
                raise InvalidInput(setting.metadata["variable"], f"is {value}", accepts.hint)
        for variable, host in (("WORKER_METRICS_HOST", self.metrics_host), ("SPLOOT_HTTP_HOST", self.http_host)):
            if not host or any(character.isspace() for character in host):
                raise InvalidInput(variable, f"{host!r} is not a host", "set a name or an address, e.g. 127.0.0.1")
        if self.cold_store:
            from sploot_cluster.store.cold.vectors import check_place

            check_place(self.cold_store, "SPLOOT_COLD_STORE")
        if self.log_level not in LOG_LEVELS:
            raise InvalidInput(
                "SPLOOT_LOG_LEVEL", f"{self.log_level!r} is not a log level", f"set one of {', '.join(LOG_LEVELS)}"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Return the settings from environment variables.

        If a variable is absent or empty, its setting keeps the default.

        Raises:
            InvalidInput: a variable has an invalid value; the error names it.
        """
        given: dict[str, Any] = {"clustering": _clustering_from(environ)}
        for setting in fields(cls):
            variable = setting.metadata["variable"]
            if text := _text_of(environ, variable, is_secret=setting.metadata.get("is_secret", False)):
                given[setting.name] = _parsed(variable, text, type(setting.default))
        return cls(**given)

    def table(self) -> list[dict[str, str]]:
        """Return every setting with its variable, value, unit, default and meaning; secrets are masked."""
        rows = [
            {
                "variable": setting.metadata["variable"],
                "value": masked(setting.name, _as_variable(getattr(self, setting.name))),
                "unit": setting.metadata["unit"],
                "default": _as_variable(setting.default),
                "meaning": setting.metadata["meaning"],
            }
            for setting in fields(self)
            if setting.name != "clustering"
        ]
        meanings, defaults = _attributes_of(ClusterSettings), ClusterSettings()
        return rows + [
            {
                "variable": MODELS if setting.name == "models" else CLUSTERING + setting.name.upper(),
                "value": _as_variable(getattr(self.clustering, setting.name)),
                "unit": "ms" if setting.name.endswith("_ms") else "",
                "default": _as_variable(getattr(defaults, setting.name)),
                "meaning": meanings.get(setting.name, ""),
            }
            for setting in fields(ClusterSettings)
        ]


def _text_of(environ: Mapping[str, str], variable: str, *, is_secret: bool) -> str:
    """Return the value of a variable that is set directly or through a file, or an empty string if it is not set."""
    text = environ.get(variable, "").strip()
    named = environ.get(variable + FROM_FILE, "").strip() if is_secret else ""
    if not named:
        return text
    if text:
        raise InvalidInput(variable + FROM_FILE, f"is set together with {variable}", "set only one of them")
    try:
        return Path(named).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        hint = "name a text file that this process may read"
        raise InvalidInput(variable + FROM_FILE, f"{named}: {problem}", hint) from None


def masked(name: str, text: str) -> str:
    """Return the value of a setting in a form that may be printed."""
    if name == "redis_url":
        text = re.sub(r"(?<=://)([^:@/]*):.*(?=@)", r"\1:***", text)
        return re.sub(r"(?<=password=)[^&]*", "***", text, flags=re.IGNORECASE)
    if name == "sentry_dsn":
        return re.sub(r"(?<=://)[^@/]*(?=@)", "***", text)
    if name == "api_tokens":
        # names are masked too: an operator may have put a secret in place of a name
        return ",".join("***" for token in text.split(",") if token)
    return text


def _clustering_from(environ: Mapping[str, str]) -> ClusterSettings:
    clustering = ClusterSettings.from_env(environ)
    models = environ.get(MODELS, "").strip()
    return replace(clustering, models=value_of("models", models, MODELS)) if models else clustering


def _attributes_of(documented: type) -> dict[str, str]:
    """Return the description of each attribute from a class's docstring, as one line."""
    described = (documented.__doc__ or "").partition("Attributes:")[2]
    parts = re.split(r"\n {8}(\w+): ", described)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _as_variable(value: object) -> str:
    """Return a value as it is written in the environment."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items())
    return str(value)


def _parsed(variable: str, text: str, kind: type) -> bool | int | str:
    """Return the value of a variable as ``kind``, the type of its default."""
    if kind is bool:
        if text not in ("true", "false"):
            raise InvalidInput(variable, f"{text[:20]!r} is neither true nor false", "set true or false")
        return text == "true"
    if kind is int:
        if not re.fullmatch(r"[0-9]{1,12}", text):
            raise InvalidInput(variable, f"{text[:20]!r} is not a whole number", "set digits only")
        return int(text)
    return text
