"""The forms of ``REDIS_URL``, and a client for each.

    redis://user:password@host:6379/0        one server; rediss:// with TLS, unix:///path/to.sock through a socket
    redis+sentinel://user:password@host:26379,host:26379/mymaster/0
                                             the master of this name, found through these sentinels; rediss+sentinel://
    redis+cluster://user:password@host:7000,host:7001
                                             a Redis Cluster, found through any of these nodes; rediss+cluster://

Options follow a ``?``. All forms accept redis-py's TLS options: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``,
``ssl_check_hostname``. For sentinels with a password of their own, add ``sentinel_username`` and
``sentinel_password``. Passwords must be percent-encoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from sploot_cluster.errors import InvalidInput

if TYPE_CHECKING:
    import redis
    from redis.retry import Retry

ONE_SERVER: Final = ("redis", "rediss", "unix")
SENTINEL: Final = ("redis+sentinel", "rediss+sentinel")
CLUSTER: Final = ("redis+cluster", "rediss+cluster")
SCHEMES: Final = ONE_SERVER + SENTINEL + CLUSTER

SENTINEL_PORT: Final = 26379
REDIS_PORT: Final = 6379

_TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"})
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})


def connect(url: str, *, connect_timeout_s: float, answer_timeout_s: float, retry: Retry | None = None) -> redis.Redis:
    """Return a client for a URL of any form. Replies are bytes.

    Args:
        retry: what redis-py retries, and how often; None means redis-py's default.

    No connection is opened yet, except to a Cluster, in order to read its slot map.

    Raises:
        InvalidInput: the URL has no known form; the text shows no secrets.
        redis.ConnectionError: no node of the Cluster answers.
    """
    # imported here, because the import takes longer than printing --help or checking the settings
    import redis
    from redis.cluster import ClusterNode
    from redis.exceptions import RedisClusterException
    from redis.sentinel import Sentinel

    options: dict[str, Any] = {"socket_connect_timeout": connect_timeout_s, "socket_timeout": answer_timeout_s}
    if retry is not None:
        options["retry"] = retry
    scheme = check(url)
    if scheme in ONE_SERVER:
        return redis.Redis.from_url(url, **options)
    parts = _Parts.of(url)
    options |= parts.credentials() | parts.tls()
    if scheme in SENTINEL:
        sentinels = Sentinel(parts.addresses(SENTINEL_PORT), sentinel_kwargs=parts.of_sentinels(options))
        client: redis.Redis = sentinels.master_for(parts.path[0], db=int((parts.path[1:] or ["0"])[0]), **options)
        return client
    nodes = [ClusterNode(host, port) for host, port in parts.addresses(REDIS_PORT)]
    try:
        # RedisCluster is not a subclass of Redis, but has the same commands
        return cast(redis.Redis, redis.RedisCluster(startup_nodes=nodes, **options))
    except RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error


def check(url: str) -> str:
    """Return the scheme of a valid URL.

    Raises:
        InvalidInput: the URL cannot be used; the text shows no secrets.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "://" not in url:
        # show the scheme only if it looks like one, because a value that is not a URL may be a password
        shown = scheme if re.fullmatch(r"[a-z+]{1,20}", scheme) and "://" in url else "…"
        raise _invalid(f"scheme {shown!r} is unknown", "set a URL such as redis://127.0.0.1:6379/0")
    if scheme in ONE_SERVER:
        return scheme
    parts = _Parts.of(url)
    if scheme in SENTINEL and not (len(parts.path) in (1, 2) and all(n.isdecimal() for n in parts.path[1:])):
        raise _invalid("the URL names no master", "write redis+sentinel://host:26379,host:26379/mymaster/0")
    if scheme in CLUSTER and parts.path not in ((), ("0",)):
        raise _invalid("a Cluster has one database", "write redis+cluster://host:7000,host:7001")
    return scheme


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a URL with several hosts, which ``urlsplit`` alone cannot parse."""

    is_tls: bool
    username: str
    password: str
    hosts: tuple[tuple[str, int | None], ...]
    path: tuple[str, ...]
    options: dict[str, str]

    @classmethod
    def of(cls, url: str) -> Self:
        scheme = url.partition("://")[0]
        split = urlsplit(url)
        userinfo, _, addresses = split.netloc.rpartition("@")
        username, _, password = userinfo.partition(":")
        options = dict(parse_qsl(split.query))
        known = _TLS_OPTIONS | (_SENTINEL_OPTIONS if scheme in SENTINEL else frozenset())
        if unknown := sorted(set(options) - known):
            raise _invalid(f"option {unknown[0]!r} is unknown", f"this form accepts {', '.join(sorted(known))}")
        return cls(
            is_tls=scheme.startswith("rediss"),
            username=unquote(username),
            password=unquote(password),
            hosts=tuple(_host(address) for address in addresses.split(",")),
            path=tuple(filter(None, split.path.split("/"))),
            options=options,
        )

    def addresses(self, default_port: int) -> list[tuple[str, int]]:
        return [(host, port or default_port) for host, port in self.hosts]

    def credentials(self) -> dict[str, Any]:
        named = {"username": self.username, "password": self.password}
        return {name: value for name, value in named.items() if value}

    def tls(self) -> dict[str, Any]:
        given: dict[str, Any] = {name: value for name, value in self.options.items() if name in _TLS_OPTIONS}
        if "ssl_check_hostname" in given:
            given["ssl_check_hostname"] = given["ssl_check_hostname"].lower() in ("true", "1", "yes")
        return {"ssl": True, **given} if self.is_tls else {}

    def of_sentinels(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options for connections to the sentinels: the servers' options with the sentinels' credentials."""
        own = {name: value for name, value in options.items() if name not in ("username", "password", "retry")}
        given = {name.removeprefix("sentinel_"): self.options[name] for name in _SENTINEL_OPTIONS & set(self.options)}
        return own | given


def _host(address: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?", address)
    if match is None:
        raise _invalid("an address in the URL is not host:port", "separate several with commas")
    return match[1].strip("[]"), int(match[2]) if match[2] else None


def _invalid(problem: str, hint: str) -> InvalidInput:
    return InvalidInput("REDIS_URL", problem, hint)
