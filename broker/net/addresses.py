"""A server's address, in plain values that can be sent to another process.

The values include secrets. They are sent through a socket pair, and never appear in a command line or an environment.
"""

from __future__ import annotations

import ssl
from typing import Any, TypedDict

import redis
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection


class Address(TypedDict):
    """A server's address and credentials, in types that ``marshal`` supports."""

    path: str | None
    host: str
    port: int
    db: int
    username: str | None
    password: str | None
    timeout_s: float
    tls: dict[str, Any] | None


KNOWN = (
    redis.Connection,
    redis.UnixDomainSocketConnection,
    redis.SSLConnection,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
TLS_SETTINGS = ("ca_certs", "ca_path", "ca_data", "certfile", "keyfile", "password", "ciphers")
TLS_UNKNOWN = (
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
    "ssl_include_verify_flags",
    "ssl_exclude_verify_flags",
)


def address_of(connection_class: type, settings: dict[str, Any], node: tuple[str, int] | None) -> Address | None:
    """Return the address in a connection class and its settings, or None if only redis-py can connect with them."""
    if connection_class not in KNOWN or settings.get("redis_connect_func") is not None:
        return None
    is_tls = issubclass(connection_class, redis.SSLConnection)
    if is_tls and any(settings.get(name) for name in TLS_UNKNOWN):
        return None
    provider = settings.get("credential_provider")
    if provider is not None:
        credentials = tuple(provider.get_credentials())
    else:
        credentials = tuple(v for v in (settings.get("username"), settings.get("password")) if v)
    host, port = node or (settings.get("host", "localhost"), settings.get("port", 6379))
    return {
        "path": settings.get("path"),
        "host": str(host),
        "port": int(port),
        "db": int(settings.get("db") or 0),
        "username": str(credentials[0]) if len(credentials) == 2 else None,
        "password": str(credentials[-1]) if credentials else None,
        "timeout_s": float(settings.get("socket_connect_timeout") or settings.get("socket_timeout") or 5.0),
        "tls": _tls(settings) if is_tls else None,
    }


def _tls(settings: dict[str, Any]) -> dict[str, Any]:
    wanted = settings.get("ssl_cert_reqs", "required")
    if isinstance(wanted, str):
        wanted = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}[wanted]
    tls: dict[str, Any] = {name: settings.get(f"ssl_{name}") for name in TLS_SETTINGS}
    lowest = settings.get("ssl_min_version")
    return tls | {
        "verify": int(ssl.CERT_NONE if wanted is None else wanted),
        "check_hostname": bool(settings.get("ssl_check_hostname", True)) and wanted != ssl.CERT_NONE,
        "min_version": None if lowest is None else int(lowest),
    }
