"""The composition of the processes: the only module that connects Redis, queue, store, service, actors and HTTP API.

Nothing here opens a connection, so a worker can be imported while Redis is down; it then waits for Redis. Each function
imports what it composes, so that a command that only reads a pet does not import the broker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis

from tasks.client import ClusterTasks
from tasks.contracts import GROUP, NAMESPACE
from tasks.redis_access.urls import connect
from tasks.settings import Settings

if TYPE_CHECKING:
    from dramatiq.middleware import Middleware
    from fastapi import FastAPI

    from broker import RedisStreamsBroker
    from sploot_cluster import ClusterService
    from sploot_cluster.engine.backends import Fallback
    from sploot_cluster.jobs import ReclusterRequests
    from sploot_cluster.store.cold.moves import ColdPets, Moved
    from sploot_cluster.store.redis import RedisPetStore
    from tasks.erasure import Erasure
    from tasks.queue_ops import Operations

CONNECT_TIMEOUT_S: Final = 5.0
# Maximum time to wait for a reply from Redis. The longest script, a commit, takes a fraction of a second, so a server
# that is silent for this long is unavailable.
ANSWER_TIMEOUT_S: Final = 10.0


def build_client(settings: Settings) -> redis.Redis:
    """Return a Redis client for one process, shared by its threads. Replies are bytes."""
    return connect(settings.redis_url, connect_timeout_s=CONNECT_TIMEOUT_S, answer_timeout_s=ANSWER_TIMEOUT_S)


def build_store(settings: Settings, client: redis.Redis, *, cold: ColdPets | None = None) -> RedisPetStore:
    """Return the store of pets. It also reads cold pets, if a cold store is configured.

    Args:
        cold: the cold pets, if the caller already has them; None builds them.
    """
    from sploot_cluster.store.redis import RedisPetStore

    return RedisPetStore(client, cold=cold or build_cold_pets(settings, client))


def build_cold_pets(
    settings: Settings, client: redis.Redis, *, on_move: Callable[[Moved], None] = lambda _: None
) -> ColdPets | None:
    """Return the cold pets of the Redis server, or None if no cold store is configured."""
    if not settings.cold_store:
        return None
    from sploot_cluster.store.cold.moves import ColdPets
    from sploot_cluster.store.cold.vectors import open_vectors

    return ColdPets(client, open_vectors(settings.cold_store), on_move=on_move)


def build_service(
    settings: Settings,
    client: redis.Redis,
    *,
    reclusters: ReclusterRequests | None = None,
    on_fallback: Callable[[Fallback], None] = lambda _: None,
    cold: ColdPets | None = None,
) -> ClusterService:
    """Return the service with Redis as its store. Only a process that assigns arrivals needs ``reclusters``."""
    from sploot_cluster.service import ClusterService

    return ClusterService(
        build_store(settings, client, cold=cold),
        settings=settings.clustering,
        reclusters=reclusters,
        cache_bytes=settings.cache_mb * 1024 * 1024 or None,
        on_fallback=on_fallback,
    )


def build_broker(settings: Settings, client: redis.Redis, *, middleware: list[Middleware]) -> RedisStreamsBroker:
    """Return the broker with this middleware."""
    from broker import RedisStreamsBroker
    from broker.settings import DAY_MS
    from tasks.shards import SHARDED
    from tasks.wire import CHECKS, DECODERS

    return RedisStreamsBroker(
        client=client,
        namespace=NAMESPACE,
        group=GROUP,
        lease_ms=settings.lease_ms,
        max_deliveries=settings.max_deliveries,
        dead_letter_ttl_ms=settings.dead_letter_days * DAY_MS,
        dead_letter_max=settings.max_dead_letters,
        dead_letter_max_bytes=settings.max_dead_letters_mb << 20,
        read_ahead_ms=settings.read_ahead_ms,
        keeper_process=settings.keeper_process,
        sharded=SHARDED,
        decoders=DECODERS,
        checks=CHECKS,
        middleware=middleware,
    )


def build_operations(settings: Settings, client: redis.Redis) -> Operations:
    """Return the operations on queues."""
    from tasks.job_records import JobRecords, TrackCancelled
    from tasks.queue_ops import Operations

    return Operations(build_broker(settings, client, middleware=[TrackCancelled(JobRecords(client))]), client)


def build_erasure(settings: Settings, client: redis.Redis) -> Erasure:
    """Return the object that erases a deleted pet's traces from queues and job records."""
    from tasks.erasure import Erasure

    return Erasure(build_broker(settings, client, middleware=[]), client)


def build_worker(settings: Settings, *, shared: Path | None = None) -> RedisStreamsBroker:
    """Return the broker of a worker or the scheduler, with every actor declared.

    Args:
        shared: directory in which the processes of one master write their pulse; None without a master.
    """
    from dramatiq.middleware import AgeLimit, CurrentMessage, Retries, ShutdownNotifications, TimeLimit
    from periodiq import PeriodiqMiddleware

    from sploot_cluster.store.cold.rounds import ColdRounds
    from tasks.actors import declare_actors
    from tasks.cold_pets import WaitForColdStore, declare_cold_actor
    from tasks.erasure import Erasure
    from tasks.job_records import JobRecords, TrackJobs
    from tasks.observe.backlog import BacklogSampler
    from tasks.observe.error_reports import ReportDeadJobs
    from tasks.observe.figures.noise import NoiseWatch
    from tasks.observe.history import KeepHistory
    from tasks.observe.job_log import ExposeMetrics, LoadEngine, RecordJobs
    from tasks.observe.logs import NameJobs
    from tasks.observe.media_totals import MediaSampler, declare_media_actor
    from tasks.observe.metrics import count_fallback, count_move
    from tasks.observe.periodic import declare_periodic_actors
    from tasks.observe.pulse import KeepPulse
    from tasks.observe.tracing import tracing_middleware
    from tasks.queue_ops.pet_index import KeepPetIndex

    client = build_client(settings)
    history = KeepHistory(client)
    broker = build_broker(
        settings,
        client,
        middleware=[
            NameJobs(),
            *tracing_middleware(settings),
            # Dramatiq's own middleware, in Dramatiq's order. Pipelines and Callbacks are left out: through them, a
            # message could make a worker enqueue other messages with the worker's permissions.
            AgeLimit(),
            TimeLimit(),
            ShutdownNotifications(),
            Retries(),
            *([WaitForColdStore()] if settings.cold_store else []),
            CurrentMessage(),
            # drop messages that are 30 s late, because a sample taken that late would be useless
            PeriodiqMiddleware(skip_delay=30),
            TrackJobs(JobRecords(client)),
            ReportDeadJobs(),
            RecordJobs(noise=NoiseWatch(client, budget=settings.clustering.noise_budget), history=history),
            history,
            ExposeMetrics(),
            LoadEngine(),
            KeepPetIndex(client),
            *([KeepPulse(shared, hung_after_s=settings.hung_after_s)] if shared is not None else []),
        ],
    )
    cold = build_cold_pets(settings, client, on_move=count_move)
    service = build_service(
        settings, client, reclusters=ClusterTasks(client=client), on_fallback=count_fallback, cold=cold
    )
    declare_actors(broker, service, batch_size=settings.batch_size, traces=Erasure(broker, client))
    declare_periodic_actors(broker, BacklogSampler(broker, client, max_queue_length=settings.max_queue_length), client)
    declare_media_actor(broker, MediaSampler(service, client), client)
    if cold is not None:
        rounds = ColdRounds(client, cold, service.pets_page, idle_days=settings.cold_after_days)
        declare_cold_actor(broker, rounds, client)
    return broker


def build_app(settings: Settings) -> FastAPI:
    """Return the HTTP API as an ASGI application, to be served or mounted in another one.

    Raises:
        InvalidInput: ``SPLOOT_API_TOKENS`` or ``SPLOOT_HTTP_PUBLIC`` is invalid.
    """
    from sploot_cluster.api import (
        ReadinessCheck,
        ReadinessReport,
        RedisIdempotencyStore,
        Tokens,
        create_app,
    )
    from sploot_cluster.api.public import groups_of
    from sploot_cluster.api.traffic import operations_of
    from tasks.observe.exposition import expose, find_unready
    from tasks.observe.figures.requests import RequestMetrics
    from tasks.trace_context import TakeTraceparent

    to_close = ExitStack()
    client = to_close.enter_context(build_client(settings))
    jobs = to_close.enter_context(ClusterTasks(client=client, ingest_rollout_percent=settings.ingest_rollout_percent))
    operations = to_close.enter_context(closing(build_operations(settings, client)))
    requests = RequestMetrics()
    exposition = expose(client, settings, with_jobs=False, others=[requests])

    def ready() -> ReadinessReport:
        unready = find_unready(client)
        check = ReadinessCheck("redis") if unready is None else ReadinessCheck("redis", unready.problem, unready.hint)
        return ReadinessReport([check])

    app = create_app(
        service=build_service(settings, client),
        jobs=jobs,
        traces=to_close.enter_context(closing(build_erasure(settings, client))),
        operations=operations,
        tokens=Tokens.parse(settings.api_tokens),
        idempotency=RedisIdempotencyStore(client),
        ready=ready,
        metrics=lambda: exposition(""),
        on_answer=requests.count,
        on_close=to_close.close,
        media_url_template=settings.media_url_template,
        max_rate_per_s=settings.http_rate,
        public=groups_of(settings.http_public),
    )
    requests.expect(operations_of(app))
    app.add_middleware(TakeTraceparent)
    return app
