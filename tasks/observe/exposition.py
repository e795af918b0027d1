"""The process next to the workers that answers scrapes and probes, even if the workers are busy.

Dramatiq's master starts it with the function that :class:`~tasks.observe.job_log.ExposeMetrics` names.
``/metrics`` adds up the values of all worker processes and reads the samples of the queues from Redis. ``/healthz``
reports whether every worker process makes progress, without Redis; ``/readyz`` reports whether Redis accepts writes and
every queue has its group. If the port is taken, the process tries again until it is free; jobs run regardless.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.identity import is_running
from sploot_cluster.refusals import REDIS_ERRORS, refusal_of
from tasks.contracts import GROUP, QUEUES, stream_of
from tasks.observe.logs import configure_logging
from tasks.observe.metrics import VARIABLE, forget_the_dead, share_values
from tasks.observe.pulse import Pulse, pulses, why_not_alive
from tasks.redis_access.probe import probe_writes
from tasks.redis_access.urls import connect
from tasks.settings import Settings
from tasks.shards import SHARDED

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

logger = logging.getLogger("sploot-cluster.queue")

# Timeout for Redis. Scrapes time out after ten seconds, probes after one; a later response would be useless.
REDIS_TIMEOUT_S: Final = 0.8
RETRY_S: Final = 5.0
POLL_S: Final = 1.0
DRAIN_POLL_S: Final = 0.1
# Maximum time to wait for a last scrape; Prometheus scrapes every 15 s. Together with a drain of 30 s, this fits into
# the minute that Kubernetes grants.
LAST_SCRAPE_S: Final = 17.0

Exposition = Callable[[str], tuple[bytes, str]]


def serve_metrics() -> int:
    """Serve HTTP until the workers have ended or the master is gone. Dramatiq runs this in a separate process.

    The signal that stops the workers reaches this process too. Workers then drain for up to half a minute, and failures
    in that time must be scraped. So this process stays while a worker runs, and then for one more scrape if there are
    new values; the master waits for it. On a reload it does not wait for that scrape, because the next process needs
    the port.
    """
    values = share_values()
    settings = Settings.from_env(os.environ)
    configure_logging(settings.log_level)
    master = os.getppid()
    client = _client(settings)
    pod = _Pod(client, settings, values)
    pod.exposition = expose(client, settings, with_jobs=True, is_stuck=lambda: pod.why_not_alive() is not None)
    stopping, is_reloading = threading.Event(), threading.Event()

    def stop(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            is_reloading.set()
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    server = _listen(pod, stopping)
    if server is None:
        return 0
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        try:
            while os.getppid() == master and not stopping.wait(POLL_S):
                pass
            pod.is_draining = True
            while os.getppid() == master and pod.has_workers():
                time.sleep(DRAIN_POLL_S)
            deadline = time.monotonic() + LAST_SCRAPE_S
            while os.getppid() == master and not is_reloading.is_set() and pod.awaits_scrape(until=deadline):
                time.sleep(DRAIN_POLL_S)
        finally:
            server.shutdown()
            if values is not None:
                shutil.rmtree(values, ignore_errors=True)
    return 0


def expose(
    client: redis.Redis,
    settings: Settings,
    *,
    with_jobs: bool,
    is_stuck: Callable[[], bool] = lambda: False,
    others: Iterable[Collector] = (),
) -> Exposition:
    """Return the function for ``/metrics``, which turns an ``Accept`` header into a body and its media type.

    Args:
        with_jobs: add up the counts of this master's workers; other processes expose only the samples, and facts about
            themselves.
        is_stuck: returns whether ``/healthz`` reports a worker process that makes no progress.
        others: further collectors, of the process itself.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector

    from broker import RedisStreamsBroker
    from tasks.observe.backlog import BacklogCollector, BacklogSampler
    from tasks.observe.figures.process import Pod, ProcessCollector
    from tasks.observe.media_totals import MediaCollector

    pod = Pod(is_stuck, started_at=time.time()) if with_jobs else None
    queues = RedisStreamsBroker(client=client, middleware=[], group=GROUP, sharded=SHARDED)
    for queue in QUEUES:
        queues.declare_queue(queue)
    sampler = BacklogSampler(queues, client)

    def exposition(accept: str) -> tuple[bytes, str]:
        registry = CollectorRegistry()
        registry.register(BacklogCollector(client, sampler))
        registry.register(MediaCollector(client))
        registry.register(ProcessCollector(client, rollout_percent=settings.ingest_rollout_percent, pod=pod))
        for collector in others:
            registry.register(collector)
        if pod is not None:
            forget_the_dead(Path(os.environ[VARIABLE]))
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped in the library
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type

    return exposition


@dataclass(frozen=True, slots=True)
class Unready:
    """A reason why jobs cannot run now.

    Attributes:
        hint: how to fix it.
    """

    problem: str
    hint: str


def why_not_ready(client: redis.Redis, queues: Iterable[str] = ()) -> str | None:
    """Return why jobs cannot run now, and how to fix it, as one sentence, or None when they can."""
    unready = find_unready(client, queues)
    return None if unready is None else f"{unready.problem}; {unready.hint}"


def find_unready(client: redis.Redis, queues: Iterable[str] = ()) -> Unready | None:
    """Return why jobs cannot run now, or None if Redis accepts writes and the queues have their groups.

    Args:
        queues: queues that must have a group; their first consumer creates it.
    """
    try:
        probe_writes(client)
        for queue in queues:
            if not _has_group(client, stream_of(queue)):
                return Unready(f"{stream_of(queue)} has no group {GROUP}", "workers create it when they start")
    except REDIS_ERRORS as error:
        if (refusal := refusal_of(error)) is not None:
            return Unready(refusal.problem, refusal.hint)
        return Unready(
            f"Redis does not answer: {error}", "check that the Redis at REDIS_URL is up and accepts connections"
        )
    return None


def _has_group(client: redis.Redis, stream: str) -> bool:
    try:
        groups: list[dict[str, Any]] = client.xinfo_groups(stream)
    except redis.ResponseError:  # the stream does not exist
        return False
    return any(group["name"] in (GROUP, GROUP.encode()) for group in groups)


class _Pod:
    """The state of one master and its processes."""

    exposition: Exposition

    def __init__(self, client: redis.Redis, settings: Settings, shared: Path | None) -> None:
        self.client, self.settings = client, settings
        self._shared = shared
        self._began_at = time.monotonic()
        self._scraped_at: tuple[float, ...] = ()
        self._scraped = self._counted()
        self.is_draining = False

    def scrape(self, accept: str) -> tuple[bytes, str]:
        # taken before the values are added up, so that jobs counted during this scrape await the next scrape
        self._scraped = self._counted()
        self._scraped_at = (*self._scraped_at[-1:], time.monotonic())
        return self.exposition(accept)

    def has_workers(self) -> bool:
        """Return whether a worker process is running, from its boot to the end of its drain."""
        return any(is_running(pulse.pid) for pulse in self._pulses())

    def awaits_scrape(self, *, until: float) -> bool:
        """Return whether a regular scraper is due before ``until`` and has not seen the latest counts."""
        if len(self._scraped_at) < 2 or self._counted() == self._scraped:
            return False
        before, last = self._scraped_at
        # a scraper that is half an interval late has stopped
        return time.monotonic() < min(until, last + 1.5 * (last - before))

    def _counted(self) -> dict[str, bytes]:
        """Return a digest of the counters of each process, by file name."""
        files = sorted(self._shared.glob("counter_*.db")) if self._shared is not None else []
        counted = {}
        for file in files:
            with suppress(OSError):
                counted[file.name] = hashlib.blake2b(file.read_bytes()).digest()
        return counted

    def why_not_alive(self) -> str | None:
        if self.is_draining:
            return None
        now = time.monotonic()
        return why_not_alive(
            self._pulses(), hung_after_s=self.settings.hung_after_s, up_for_s=now - self._began_at, now_s=now
        )

    def why_not_ready(self) -> str | None:
        found = self._pulses()
        if not found:
            return "no worker process has booted yet"
        return why_not_ready(self.client, sorted({queue for pulse in found for queue in pulse.queues}))

    def _pulses(self) -> list[Pulse]:
        return pulses(self._shared) if self._shared is not None else []


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], pod: _Pod) -> None:
        self.pod = pod
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # in seconds, for a client that connects and sends nothing

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                body, media_type = self.server.pod.scrape(self.headers.get("Accept", ""))
                self._answer(200, body, media_type)
            case "/healthz":
                self._verdict(self.server.pod.why_not_alive())
            case "/readyz":
                self._verdict(self.server.pod.why_not_ready())
            case _:
                self._json(404, {"status": "not found; try /metrics, /healthz or /readyz"})

    def _verdict(self, problem: str | None) -> None:
        self._json(503 if problem else 200, {"status": problem or "ok"})

    def _json(self, status: int, body: Mapping[str, str]) -> None:
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _answer(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that http.server requires
        logger.debug("scraped", extra={"request": format % args})


def _client(settings: Settings) -> redis.Redis:
    return connect(
        settings.redis_url,
        connect_timeout_s=REDIS_TIMEOUT_S,
        answer_timeout_s=REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def _listen(pod: _Pod, stopping: threading.Event) -> _Server | None:
    """Return the server as soon as its port is free, or None if ``stopping`` is set first."""
    address = pod.settings.metrics_host, pod.settings.metrics_port
    while not stopping.is_set():
        try:
            server = _Server(address, pod)
        except OSError as error:
            logger.error(
                "cannot listen on the metrics address: %s; set WORKER_METRICS_PORT to a free port; jobs run meanwhile",
                error,
                extra={"host": address[0], "port": address[1], "retry_s": RETRY_S},
            )
            stopping.wait(RETRY_S)
        else:
            logger.info("serving metrics", extra={"host": address[0], "port": server.server_address[1]})
            return server
    return None
