"""The settings of the processes, read from the environment and checked by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from sploot_cluster.errors import InvalidInput
from sploot_cluster.settings import PREFIX as CLUSTERING
from sploot_cluster.settings import ClusterSettings, value_of
from tasks.redis_urls import check
from tasks.rollout import EVERYBODY

DEFAULT_REDIS_URL: Final = "redis://127.0.0.1:6379/0"
FROM_FILE: Final = "_FILE"  # REDIS_URL_FILE names a file that holds the value of REDIS_URL; for secrets only
MODELS: Final = "SPLOOT_MODELS"  # alias of SPLOOT_CLUSTERING_MODELS; takes precedence
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


def _setting(variable: str, meaning: str, *, unit: str = "", default: Any, is_secret: bool = False) -> Any:
    if is_secret:
        meaning += f"; or set {variable}{FROM_FILE} to a file that holds it"
    metadata = {"variable": variable, "meaning": meaning, "unit": unit, "is_secret": is_secret}
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
        "lease: jobs of a worker with no heartbeat for this long go to other workers; at least 2000",
        unit="ms",
        default=30_000,
    )
    max_deliveries: int = _setting(
        "SPLOOT_MAX_DELIVERIES",
        "a job whose worker process died this many times becomes a dead letter; at least 2",
        unit="times",
        default=5,
    )
    metrics_host: str = _setting(
        "WORKER_METRICS_HOST", "address on which workers serve /metrics, /healthz and /readyz", default="127.0.0.1"
    )
    metrics_port: int = _setting("WORKER_METRICS_PORT", "port on which workers serve them; 0: a free one", default=9105)
    hung_after_s: int = _setting(
        "SPLOOT_HUNG_AFTER_S",
        "a worker process whose threads made no progress for this long is reported as hung by /healthz; at least 5",
        unit="s",
        default=60,
    )
    cache_mb: int = _setting(
        "SPLOOT_CACHE_MB",
        "size of each process's cache of pets; 0: 512 MB, or a quarter of all memory divided by the number of cores if "
        "that is more",
        unit="MB",
        default=0,
    )
    http_host: str = _setting("SPLOOT_HTTP_HOST", "address on which the HTTP API listens", default="127.0.0.1")
    http_port: int = _setting("SPLOOT_HTTP_PORT", "port on which the HTTP API listens; 0: a free one", default=8080)
    api_tokens: str = _setting(
        "SPLOOT_API_TOKENS",
        "comma-separated name:role:secret; roles uploader, viewer, labeller, producer, operator; required off loopback",
        default="",
        is_secret=True,
    )
    ingest_rollout_percent: int = _setting(
        "SPLOOT_INGEST_ROLLOUT_PERCENT",
        "share of pets whose items are accepted from producers, always the same pets; 0 to 100",
        unit="%",
        default=EVERYBODY,
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
        _check_range("SPLOOT_LEASE_MS", self.lease_ms, lowest=2_000)
        _check_range("SPLOOT_HUNG_AFTER_S", self.hung_after_s, lowest=5)
        _check_range("SPLOOT_MAX_DELIVERIES", self.max_deliveries, lowest=2)
        _check_range("SPLOOT_INGEST_ROLLOUT_PERCENT", self.ingest_rollout_percent, lowest=0, highest=EVERYBODY)
        for variable, port in (("WORKER_METRICS_PORT", self.metrics_port), ("SPLOOT_HTTP_PORT", self.http_port)):
            _check_range(variable, port, lowest=0, highest=65_535)
        for variable, host in (("WORKER_METRICS_HOST", self.metrics_host), ("SPLOOT_HTTP_HOST", self.http_host)):
            if not host or any(character.isspace() for character in host):
                raise InvalidInput(variable, f"{host!r} is not a host", "set a name or an address, e.g. 127.0.0.1")
        if self.log_level not in LOG_LEVELS:
            raise InvalidInput(
                "SPLOOT_LOG_LEVEL", f"{self.log_level!r} is not a log level", f"set one of {', '.join(LOG_LEVELS)}"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Return the settings of an environment; a variable that is absent or empty keeps its default.

        Raises:
            InvalidInput: a variable cannot be used; the error names it.
        """
        given: dict[str, Any] = {"clustering": _clustering_from(environ)}
        for setting in fields(cls):
            variable = setting.metadata["variable"]
            if text := _text_of(environ, variable, is_secret=setting.metadata.get("is_secret", False)):
                given[setting.name] = _whole(variable, text) if isinstance(setting.default, int) else text
        return cls(**given)

    def table(self) -> list[dict[str, str]]:
        """Return every setting with variable, value, unit, default and meaning; secrets are masked."""
        rows = [
            {
                "variable": setting.metadata["variable"],
                "value": masked(setting.name, getattr(self, setting.name)),
                "unit": setting.metadata["unit"],
                "default": str(setting.default),
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
    """Return the value of a variable, set directly or through a file; empty if it is not set."""
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


def masked(name: str, value: object) -> str:
    """Return the value of a setting in a form that may be printed."""
    text = str(value)
    if name == "redis_url":
        text = re.sub(r"(?<=://)([^:@/]*):.*(?=@)", r"\1:***", text)
        return re.sub(r"(?<=password=)[^&]*", "***", text, flags=re.IGNORECASE)
    if name == "sentry_dsn":
        return re.sub(r"(?<=://)[^@/]*(?=@)", "***", text)
    if name == "api_tokens":
        # not even the names: an operator may have put a secret in the place of a name
        return ",".join("***" for token in text.split(",") if token)
    return text


def _clustering_from(environ: Mapping[str, str]) -> ClusterSettings:
    clustering = ClusterSettings.from_env(environ)
    models = environ.get(MODELS, "").strip()
    return replace(clustering, models=value_of("models", models, MODELS)) if models else clustering


def _attributes_of(documented: type) -> dict[str, str]:
    """Return the text about each attribute in a class's docstring, as one line."""
    described = (documented.__doc__ or "").partition("Attributes:")[2]
    parts = re.split(r"\n {8}(\w+): ", described)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _as_variable(value: object) -> str:
    """Return a value as it is written in the environment."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items())
    return str(value)


def _check_range(variable: str, value: int, *, lowest: int, highest: int | None = None) -> None:
    if value < lowest or (highest is not None and value > highest):
        bounds = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
        raise InvalidInput(variable, f"is {value}", f"set {bounds}")


def _whole(variable: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise InvalidInput(variable, f"{text[:20]!r} is not a whole number", "set digits only")
    return int(text)
