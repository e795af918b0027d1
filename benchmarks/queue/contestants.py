"""The contestants: their releases, settings and measurements.

Settings that are not listed have the release's defaults. Every contestant parses replies with hiredis where it can,
and keeps no results. Contestants with threads use four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

THREADS: Final = 4

ENVIRONMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "dramatiq": ("dramatiq==2.2.1", "redis==8.1.0", "hiredis==3.5.0"),
    "taskiq": ("taskiq==0.13.0", "taskiq-redis==1.2.4", "redis==8.1.0", "hiredis==3.5.0"),
    "streaq": ("streaq==7.2.0", "coredis==6.9.0", "hiredis==3.5.0"),
    "arq": ("arq==0.28.0", "redis==5.3.1", "hiredis==3.5.0"),
    # saq imports typing_extensions without declaring it
    "saq": ("saq==0.26.4", "redis==7.4.1", "hiredis==3.5.0", "typing-extensions==4.16.0"),
    "celery": ("celery==5.7.0", "kombu==5.7.0", "redis==8.1.0", "hiredis==3.5.0", "packaging==26.3"),
    "huey": ("huey==3.5.4", "redis==8.1.0", "hiredis==3.5.0"),
    "rq": ("rq==3.0.0", "redis==8.1.0", "hiredis==3.5.0"),
}

Measure = Literal["drain-1", "drain-2", "enqueue", "latency", "memory", "idle", "redelivery", "host-loss"]
MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)
# Measures that run in one round only, because they wait for leases to lapse and give the same result each time.
ONCE: Final[frozenset[Measure]] = frozenset({"redelivery", "host-loss"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One row of the tables.

    Attributes:
        adapter: ``module:variant`` of benchmarks.queue.adapters.
        environ: additional environment variables of its processes.
        drain_per_s: approximate rate of one process; determines how many jobs the first round enqueues.
    """

    name: str
    environment: str
    adapter: str
    settings: str
    drain_per_s: int
    environ: Mapping[str, str] = field(default_factory=dict)
    measures: frozenset[Measure] = frozenset(MEASURES) - {"host-loss"}


_PREFETCH_128: Final = {"dramatiq_queue_prefetch": "128"}
_DRAINS: Final = frozenset[Measure]({"drain-1", "drain-2"})

CONTESTANTS: Final[tuple[Contestant, ...]] = (
    Contestant(
        name="ours",
        environment="dramatiq",
        adapter="dramatiq_brokers:ours",
        settings="RedisStreamsBroker(url), default prefetch (8)",
        drain_per_s=9_000,
        measures=frozenset(MEASURES),
    ),
    Contestant(
        name="ours, prefetch 128",
        environment="dramatiq",
        adapter="dramatiq_brokers:ours",
        settings="the same with dramatiq_queue_prefetch=128",
        drain_per_s=12_000,
        environ=_PREFETCH_128,
        measures=_DRAINS,
    ),
    Contestant(
        name="ours, each job one round trip",
        environment="dramatiq",
        adapter="dramatiq_brokers:ours-writing",
        settings="jobs write one key each; default prefetch (8)",
        drain_per_s=3_000,
        measures=frozenset({"drain-1"}),
    ),
    Contestant(
        name="ours, the same in batches",
        environment="dramatiq",
        adapter="dramatiq_brokers:ours-writing-batches",
        settings="one round trip per batch of at most 64 jobs",
        drain_per_s=15_000,
        measures=frozenset({"drain-1"}),
    ),
    Contestant(
        name="Dramatiq RedisBroker",
        environment="dramatiq",
        adapter="dramatiq_brokers:redis",
        settings="RedisBroker(url=url), default prefetch (8)",
        drain_per_s=1_500,
    ),
    Contestant(
        name="Dramatiq RedisBroker, prefetch 128",
        environment="dramatiq",
        adapter="dramatiq_brokers:redis",
        settings="the same with dramatiq_queue_prefetch=128",
        drain_per_s=3_000,
        environ=_PREFETCH_128,
        measures=_DRAINS,
    ),
    Contestant(
        name="taskiq-redis streams",
        environment="taskiq",
        adapter="taskiq_streams:",
        settings="RedisStreamBroker(url), ack_time=WHEN_EXECUTED, max_async_tasks=100",
        drain_per_s=2_500,
    ),
    Contestant(
        name="streaq",
        environment="streaq",
        adapter="streaq_worker:",
        settings="Worker(redis_url, concurrency=32), ttl=0",
        drain_per_s=1_100,
    ),
    Contestant(
        name="arq",
        environment="arq",
        adapter="arq_worker:",
        settings="max_jobs=200, poll_delay=0.05, keep_result=0 (the defaults, 10 jobs every 0.5 s, drain 200/s)",
        drain_per_s=800,
    ),
    Contestant(
        name="saq",
        environment="saq",
        adapter="saq_worker:",
        settings="Worker(queue, concurrency=32), Job(ttl=-1)",
        drain_per_s=1_300,
    ),
    Contestant(
        name="Celery",
        environment="celery",
        adapter="celery_worker:",
        settings="--pool=threads --concurrency=4, task_acks_late, task_ignore_result, worker_prefetch_multiplier=32",
        drain_per_s=800,
    ),
    Contestant(
        name="huey",
        environment="huey",
        adapter="huey_consumer:",
        settings="RedisHuey(results=False), 4 threads; loses the jobs of a killed worker",
        drain_per_s=2_300,
    ),
    Contestant(
        name="RQ",
        environment="rq",
        adapter="rq_worker:fork",
        settings="Worker, result_ttl=0; forks for every job",
        drain_per_s=60,
    ),
    Contestant(
        name="RQ SimpleWorker",
        environment="rq",
        adapter="rq_worker:simple",
        settings="SimpleWorker, result_ttl=0; no fork, no protection from a job's crash",
        drain_per_s=500,
    ),
    Contestant(
        name="bare Streams probe",
        environment="dramatiq",
        adapter="dramatiq_brokers:bare",
        settings="Dramatiq's Worker, XREADGROUP for many, one thread acknowledges; no recovery, delays, dead letters",
        drain_per_s=9_000,
        measures=_DRAINS | {"enqueue", "latency", "memory"},
    ),
    Contestant(
        name="bare Streams probe, prefetch 128",
        environment="dramatiq",
        adapter="dramatiq_brokers:bare",
        settings="the same with dramatiq_queue_prefetch=128",
        drain_per_s=12_000,
        environ=_PREFETCH_128,
        measures=_DRAINS,
    ),
    Contestant(
        name="ceiling: Worker, in-memory broker",
        environment="dramatiq",
        adapter="dramatiq_brokers:memory",
        settings="Dramatiq's Worker on its StubBroker: no Redis",
        drain_per_s=15_000,
        measures=frozenset({"drain-1"}),
    ),
    Contestant(
        name="ceiling: redis-py loops",
        environment="dramatiq",
        adapter="dramatiq_brokers:raw",
        settings="XADD; XREADGROUP COUNT 100, XACK and XDEL in a pipeline, one thread, no messages decoded",
        drain_per_s=60_000,
        measures=_DRAINS | {"enqueue"},
    ),
)
