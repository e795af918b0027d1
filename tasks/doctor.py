"""Diagnosis of an installation; each problem comes with the command that fixes it.

Checks only read, except for one that writes a key with an expiry. They yield findings: ``ok``, ``warning`` (an
operator should know), ``wrong`` (work is lost, stuck or refused) or ``unknown`` (Redis did not allow the check). Checks
of Redis use only INFO and commands that actions use as well, so the Redis user ``operator`` may run all of them.
"""

from __future__ import annotations

import difflib
import json
import os
import random
import re
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import redis
from dramatiq.errors import BrokerConnectionError
from redis.cluster import RedisCluster

from broker import QueueStats, RedisStreamsBroker
from broker.keys import HANDED_BACK
from broker.stats import total_of
from sploot_cluster.errors import ColdStoreUnavailable, StoreUnavailable, UnreadablePet
from sploot_cluster.pet.models import PetId
from sploot_cluster.refusals import REDIS_ERRORS, refusal_of
from sploot_cluster.settings import PREFIX as CLUSTERING
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.keys import PETS, PetKeys
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.threads import NATIVE, n_cores
from tasks.composition import build_cold_pets
from tasks.contracts import CLUSTER_MAINTENANCE, GROUP, QUEUES, stream_of
from tasks.observe.backlog import BACKLOG
from tasks.observe.media_totals import MEDIA
from tasks.queue_limit import stored_limit
from tasks.queue_ops.overdue import OverdueJob, command_that_frees, effect_of, overdue_jobs
from tasks.redis_access.probe import probe_writes
from tasks.settings import FROM_FILE, MODELS, Settings
from tasks.shards import shards_of_all

if TYPE_CHECKING:
    from sploot_cluster.store.cold.moves import ColdPets

Level = Literal["ok", "warning", "wrong", "unknown"]

# The lowest supported server version. Commands of newer versions are used where available, but never required.
LOWEST: Final = (6, 2)
NEEDED: Final = ("XAUTOCLAIM", "GETDEL", "XADD")

SKEW_WARNING_S, SKEW_WRONG_S = 1.0, 30.0
SAMPLE_OLD_S: Final = 60.0
# Entry ids that are at least this far ahead of the clock are wrong, because the clocks of two machines differ by less.
AHEAD_WRONG_MS: Final = 60_000
VANISHED_SHOWN_MS: Final = 24 * 60 * 60 * 1000
FULL_WARNING, FULL_WRONG = 0.8, 0.95
MOST_PETS: Final = 20_000
# Maximum number of pets to read, in one round trip. Each run draws a new sample.
SAMPLE_OF_PETS: Final = 500
# Maximum number of cold pets to check, with one request to the storage per pet.
SAMPLE_OF_COLD_PETS: Final = 20
# Number of SCAN calls. Each checks about a thousand keys, in less than a millisecond.
SCANS: Final = 10
MOST_DEAD_LISTED: Final = 5
MOST_BROKEN_LISTED: Final = 5
REDIS_CLI: Final = 'redis-cli -u "$REDIS_URL"'
# Script that deletes a stream if it is empty. Workers create it again, with ids that follow the clock.
DELETE_IF_EMPTY: Final = "if redis.call('XLEN',KEYS[1])==0 then return redis.call('DEL',KEYS[1]) end return 'not empty'"

# Kubernetes sets these in every pod for each service, whatever its name.
_OF_KUBERNETES: Final = re.compile(r".*_SERVICE_(HOST|PORT(_.*)?)=.*|.*_PORT_\d+_(TCP|UDP).*=.*|.*_PORT=(tcp|udp)://.*")
_META: Final = re.compile(rb"\{pet:([1-9][0-9]{0,18})\}:meta")
# Variables whose names begin like those of our settings.
_RELATED: Final = re.compile(r"(SPLOOT|WORKER_METRICS|REDIS_UR|SENTRY_D|OTEL_EXPORTER_OTLP_ENDP).*")
# Minimum similarity to the name of a setting at which any other variable counts as a misspelling of it.
_A_SLIP: Final = 0.9
# Variables that only other programs read: the scripts in ops/, the demo, the chart.
_OTHERS: Final = frozenset({"SPLOOT_VERSION", "SPLOOT_IMAGE"})


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check, one or two words.
        seen: what the check observed.
        hint: the command or change that fixes it, or an empty string if nothing needs fixing.
    """

    check: str
    level: Level
    seen: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Installation:
    """The installation to check, and how to reach it.

    Attributes:
        processes, threads: numbers of processes and threads with which the workers are or will be started.
    """

    settings: Settings
    environ: Mapping[str, str]
    client: redis.Redis
    broker: RedisStreamsBroker
    processes: int = 2
    threads: int = 4
    clock: Callable[[], float] = field(default=time.time)


def diagnose(installation: Installation) -> list[Finding]:
    """Run all checks in a fixed order. If Redis is unreachable, return that finding and those of this machine."""
    found = [*_unknown_settings(installation), *_threads(installation), *_ports(installation)]
    answers = _reachability(installation)
    found += answers
    if any(finding.level == "wrong" for finding in answers):
        return found
    writes = _writes(installation)
    found.append(writes)
    for where, node in _nodes(installation):
        for check in (_server, _memory, _persistence, _clock):
            found += [replace(finding, seen=where + finding.seen) for finding in _permitted(check, node)]
    for check in (_groups, _limit, _queues, _samples, _models, _pets, _cold):
        of_queues = _permitted(check, installation)
        if writes.level == "wrong":
            # workers cannot write heartbeats and the scheduler cannot write ticks, so starting more of them would not
            # help
            of_queues = [
                replace(finding, hint=f"first make Redis accept writes; see {writes.check}")
                if finding.hint
                else finding
                for finding in of_queues
            ]
        found += of_queues
    return found


def _permitted(check: Callable[[Installation], Iterator[Finding]], installation: Installation) -> list[Finding]:
    """Return the findings of a check, or a finding with the reason why Redis refused it."""
    name = check.__name__.strip("_")
    try:
        return list(check(installation))
    except redis.exceptions.NoPermissionError as refused:
        return [
            Finding(name, "unknown", f"this Redis user lacks the permission: {refused}", "use the Redis user operator")
        ]
    except (*REDIS_ERRORS, BrokerConnectionError) as error:
        if (refusal := refusal_of(error)) is None:
            raise
        return [Finding(name, "unknown", f"{refusal.problem}: {error}", refusal.hint)]


def _nodes(installation: Installation) -> Iterator[tuple[str, Installation]]:
    """Yield a prefix for findings and the installation, for the only server or for each primary of a Cluster."""
    # the client of a Cluster has the same commands, but is typed as the client of a single server
    client: object = installation.client
    if not isinstance(client, RedisCluster):
        yield "", installation
        return
    for node in client.get_primaries():
        yield f"{node.name}: ", replace(installation, client=client.get_redis_connection(node))


def is_unreachable(found: Sequence[Finding]) -> bool:
    return any(finding.check == "redis" and finding.level == "wrong" for finding in found)


# -- this machine ------------------------------------------------------------------------------------------------------


def _unknown_settings(installation: Installation) -> Iterator[Finding]:
    known = known_variables()
    n_wrong = 0
    for variable, value in sorted(installation.environ.items()):
        if variable in known or variable in _OTHERS or _OF_KUBERNETES.fullmatch(f"{variable}={value}"):
            continue
        is_related = _RELATED.fullmatch(variable)
        close = difflib.get_close_matches(variable, known, n=1, cutoff=0.6 if is_related else _A_SLIP)
        if not (is_related or close):
            continue
        n_wrong += 1
        hint = f"did you mean {close[0]}? " if close else ""
        yield Finding(
            "settings",
            "wrong",
            f"{variable} is not a setting and has no effect",
            f"{hint}see sploot-cluster config show",
        )
    if not n_wrong:
        yield Finding("settings", "ok", "all variables that look like settings are known")


def known_variables() -> set[str]:
    """Return the names of all variables that the processes read."""
    named = {setting.metadata["variable"] for setting in fields(Settings) if setting.name != "clustering"}
    secret = {setting.metadata["variable"] for setting in fields(Settings) if setting.metadata.get("is_secret")}
    clustering = {CLUSTERING + setting.name.upper() for setting in fields(ClusterSettings)}
    return named | {variable + FROM_FILE for variable in secret} | clustering | {MODELS}


def _threads(installation: Installation) -> Iterator[Finding]:
    cores, busy = n_cores(), installation.processes * installation.threads
    limits = {name: installation.environ[name] for name in NATIVE if installation.environ.get(name, "").isdecimal()}
    most = max((int(value) for value in limits.values()), default=1)
    if most > 1 and busy * most > cores:
        names = " ".join(name for name, value in limits.items() if int(value) > 1)
        yield Finding(
            "threads",
            "wrong",
            f"{busy} worker threads × {most} native threads on {cores} cores busy-wait for each other",
            f"unset {names}",
        )
    else:
        yield Finding("threads", "ok", f"{busy} worker threads × {most} native thread on {cores} cores")


def _ports(installation: Installation) -> Iterator[Finding]:
    settings = installation.settings
    for what, variable, host, port in (
        ("metrics", "WORKER_METRICS_PORT", settings.metrics_host, settings.metrics_port),
        ("http", "SPLOOT_HTTP_PORT", settings.http_host, settings.http_port),
    ):
        check = f"{what} port"
        if port == 0:
            yield Finding(
                check, "warning", "a random free port, which scrapers cannot find", f"set {variable} to a fixed port"
            )
        elif _is_free(host, port):
            yield Finding(check, "ok", f"{host}:{port} is free")
        elif (status := _health_at(host, port)) is not None:
            yield Finding(check, "ok", f"{host}:{port} is served by this application: {status}")
        else:
            yield Finding(
                check, "wrong", f"{host}:{port} is in use by another program", f"set {variable} to a free port"
            )


def _is_free(host: str, port: int) -> bool:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError:
        return False
    return True


def _health_at(host: str, port: int) -> str | None:
    """Return the status that /healthz reports at this host and port, or None if no process of ours answers."""
    address = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104  compared, not bound
    try:
        with urllib.request.urlopen(f"http://{address}:{port}/healthz", timeout=2) as answer:
            health = json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            health = json.load(error)
        except ValueError:
            return None
    except (OSError, ValueError):
        return None
    status = health.get("status") if isinstance(health, dict) else None
    return status if isinstance(status, str) else None


# -- the server --------------------------------------------------------------------------------------------------------


def _reachability(installation: Installation) -> list[Finding]:
    start = time.perf_counter()
    try:
        installation.client.ping()
    except redis.AuthenticationError as error:
        return [
            Finding("redis", "wrong", f"authentication failed: {error}", "correct the user and password in REDIS_URL")
        ]
    except (*REDIS_ERRORS, OSError) as error:
        # a server that refuses writes also refuses PING, but a refusal shows that the server is reachable
        if refusal_of(error) is None:
            return [Finding("redis", "wrong", f"no answer: {error}", "start Redis, or correct REDIS_URL")]
    return [Finding("redis", "ok", f"answers in {1000 * (time.perf_counter() - start):.1f} ms")]


def _writes(installation: Installation) -> Finding:
    try:
        probe_writes(installation.client)
    except redis.exceptions.NoPermissionError as refused:
        return Finding("writes", "unknown", f"this Redis user may not write: {refused}", "use the Redis user operator")
    except REDIS_ERRORS as error:
        refusal = refusal_of(error)
        if refusal is None:
            return Finding("writes", "wrong", f"Redis does not accept them: {error}", "see the log of Redis")
        return Finding("writes", "wrong", f"{refusal.problem} ({refusal.code})", refusal.hint)
    return Finding("writes", "ok", "Redis accepts them")


def _server(installation: Installation) -> Iterator[Finding]:
    info = _info(installation, "server")
    version_text = str(info.get("redis_version", "?"))
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = tuple(int(part) for part in re.findall(r"\d+", version_text)[:2])
    if version < LOWEST:
        yield Finding("version", "wrong", f"expected 6.2 or newer, found {name} {version_text}", "upgrade the server")
    else:
        yield Finding("version", "ok", f"{name} {info.get('valkey_version', version_text)}")
    missing = [command for command in NEEDED if not _knows(installation.client, command)]
    if missing:
        yield Finding("commands", "wrong", f"missing: {', '.join(missing)}", "use Redis 6.2 or newer, or Valkey")
    else:
        yield Finding("commands", "ok", "all required commands are available")


def _knows(client: redis.Redis, command: str) -> bool:
    # redis-py has no parser for this two-word command, so it returns the raw reply: a list, with nil for an unknown
    # command
    (answer,) = client.execute_command("COMMAND INFO", command)
    return answer is not None


def _memory(installation: Installation) -> Iterator[Finding]:
    info = _info(installation, "memory")
    policy = str(info.get("maxmemory_policy", "?"))
    if policy == "noeviction":
        yield Finding("eviction", "ok", "noeviction")
    else:
        yield Finding(
            "eviction",
            "wrong",
            f"{policy}: a full server evicts jobs and pets",
            f"{REDIS_CLI} CONFIG SET maxmemory-policy noeviction",
        )
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        # as in docs/capacity.md; INFO of a provider's server may lack the memory of its machine
        wanted = int(0.7 * int(info.get("total_system_memory", 0)) / 2**20)
        command = f"{REDIS_CLI} CONFIG SET maxmemory {wanted}mb"
        yield Finding(
            "memory",
            "warning",
            f"{used / 2**20:.0f} MiB in use, no limit: Redis may fill its machine and be killed",
            command if wanted else "set maxmemory to 70 % of the memory of its machine",
        )
        return
    share = used / most
    level: Level = "wrong" if share >= FULL_WRONG else "warning" if share >= FULL_WARNING else "ok"
    hint = "raise maxmemory, or free memory with sploot-cluster queue dead purge" if level != "ok" else ""
    yield Finding("memory", level, f"{share:.0%} of {most / 2**20:.0f} MiB in use", hint)


def _persistence(installation: Installation) -> Iterator[Finding]:
    info = _info(installation, "persistence")
    if not int(info.get("aof_enabled", 0)):
        yield Finding(
            "persistence",
            "wrong",
            "no append-only file: a restart loses jobs and pets",
            f"{REDIS_CLI} CONFIG SET appendonly yes",
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            "persistence", "wrong", "the last write to the append-only file failed", "free disk space on the server"
        )
    else:
        yield Finding("persistence", "ok", "append-only file")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding(
            "snapshot", "wrong", "the last snapshot failed; Redis may refuse writes", "free disk space on the server"
        )


def _clock(installation: Installation) -> Iterator[Finding]:
    before = installation.clock()
    seconds, microseconds = installation.client.time()
    after = installation.clock()
    skew_s = seconds + microseconds / 1e6 - (before + after) / 2
    uncertain_s = (after - before) / 2
    size = max(0.0, abs(skew_s) - uncertain_s)
    level: Level = "wrong" if size >= SKEW_WRONG_S else "warning" if size >= SKEW_WARNING_S else "ok"
    direction = "ahead of" if skew_s > 0 else "behind"
    seen = "the clocks agree" if level == "ok" else f"Redis is {abs(skew_s):.1f} s {direction} this machine"
    yield Finding("clock", level, seen, "" if level == "ok" else "synchronise both with the same NTP server")


# -- the queues --------------------------------------------------------------------------------------------------------


def _groups(installation: Installation) -> Iterator[Finding]:
    for queue in shards_of_all(installation.broker):
        stream, groups = stream_of(queue), installation.broker.inspector(queue).groups()
        strangers = [group for group in groups if group != GROUP]
        if strangers:
            yield Finding(
                f"group of {queue}",
                "wrong",
                f"other groups read {stream} too: {', '.join(strangers)}; entries are deleted even if these have not "
                "read them",
                f"{REDIS_CLI} XGROUP DESTROY {stream} {strangers[0]}",
            )
        if GROUP in groups:
            yield Finding(f"group of {queue}", "ok", f"{GROUP} on {stream}")
            continue
        is_waited_for = installation.client.xlen(stream) > 0
        yield Finding(
            f"group of {queue}",
            "wrong" if is_waited_for else "warning",
            f"{stream} has no group {GROUP}" + (", and jobs wait" if is_waited_for else "; no worker has run yet"),
            f"{REDIS_CLI} XGROUP CREATE {stream} {GROUP} 0 MKSTREAM",
        )


def _limit(installation: Installation) -> Iterator[Finding]:
    """Compare the queue limit that producers obey with the setting of this process."""
    stored, here = stored_limit(installation.client), installation.settings.max_queue_length
    limit = f"{stored} jobs" if stored else "none"
    if stored == here:
        yield Finding("queue limit", "ok", limit)
    else:
        yield Finding(
            "queue limit",
            "warning",
            f"producers obey the limit that the workers stored, {limit}; here SPLOOT_MAX_QUEUE_LENGTH is {here}",
            "give all processes the same SPLOOT_MAX_QUEUE_LENGTH; workers store theirs every ten seconds",
        )


def _queues(installation: Installation) -> Iterator[Finding]:
    limit = stored_limit(installation.client)
    for queue in QUEUES:
        try:
            parts = installation.broker.stats_of_shards(queue)
            stats = total_of(parts)
            inspectors = [installation.broker.inspector(part.queue_name) for part in parts]
            unowned = [inspector.unowned() for inspector in inspectors]
            stale = [lock for inspector in inspectors for lock in inspector.stale_locks()]
            overdue = [job for part in parts for job in overdue_jobs(installation.broker, part)]
        except BrokerConnectionError as error:
            yield Finding(queue, "unknown", str(error), "sploot-cluster doctor")
            continue
        problems = [
            *_of_overdue(queue, overdue),
            *(finding for part in parts for finding in _of_ids(installation, part)),
            *_of_limit(stats, limit),
            *_of_queue(stats, sum(len(one.orphans) for one in unowned), sum(len(one.ghosts) for one in unowned)),
            *_of_stale_locks(queue, len(stale)),
            *_of_dead_letters(installation, stats),
        ]
        shards = f" in {len(parts)} shards; {stats.queue_name} itself is only the first" if len(parts) > 1 else ""
        seen = f"{stats.undelivered} wait, {stats.in_flight} in progress{shards}"
        yield from problems or [Finding(queue, "ok", seen)]


def _of_ids(installation: Installation, stats: QueueStats) -> Iterator[Finding]:
    """Yield findings about damage by other programs: ids ahead of the clock, and removed entries."""
    queue, stream = stats.queue_name, stream_of(stats.queue_name)
    again = (
        f"find the producer and revoke its XADD; let workers empty {stream}, then "
        f'{REDIS_CLI} EVAL "{DELETE_IF_EMPTY}" 1 {stream}'
    )
    if stats.is_exhausted:
        yield Finding(
            queue,
            "wrong",
            f"{stream} has used its last possible id: every XADD fails, also those of workers and clients",
            again,
        )
    elif stats.ids_ahead_ms >= AHEAD_WRONG_MS:
        yield Finding(
            queue,
            "wrong",
            f"the last id of {stream}, {stats.last_id}, is ahead of the clock by {_long(stats.ids_ahead_ms)}: a "
            "producer chose it, or the server's clock was ahead; the ages of its jobs are unknown",
            again,
        )
    stored = installation.client.hmget(
        BACKLOG, [f"{queue}:removed_by_others", f"{queue}:vanished", f"{queue}:vanished_at_ms"]
    )
    sampled, vanished, at_ms = (int(value or 0) for value in stored)
    n_gone = max(0, stats.removed_by_others - sampled)
    if at_ms and stats.clock_ms - at_ms < VANISHED_SHOWN_MS:
        n_gone += vanished
    if n_gone:
        yield Finding(
            queue,
            "wrong",
            f"{_n(n_gone, 'entry', 'entries')} left {stream} unprocessed, by an XADD with MAXLEN or MINID, an "
            "XTRIM or an XDEL",
            "find out which users may write there, and let the producers of that time send again: "
            "ops/runbook.md#mediaclusterentriesvanished",
        )


def _long(ms: int) -> str:
    days = ms / 86_400_000
    return f"{days / 365:,.0f} years" if days > 730 else f"{days:,.0f} days" if days > 2 else f"{ms / 1000:,.0f} s"


def _of_overdue(queue: str, jobs: Sequence[OverdueJob]) -> Iterator[Finding]:
    if jobs:
        level: Level = "wrong" if jobs[0].is_certain else "warning"
        yield Finding(
            queue, level, effect_of(jobs), f"end that process, or {command_that_frees(queue, jobs[:MOST_DEAD_LISTED])}"
        )


def _of_queue(stats: QueueStats, n_orphans: int, n_ghosts: int) -> Iterator[Finding]:
    queue = stats.queue_name
    if n_orphans:
        yield Finding(
            queue,
            "wrong",
            f"{_n(n_orphans, 'orphan')}: delivered jobs in no pending list, e.g. after a manual XACK",
            f"sploot-cluster queue rescue {queue} --unowned --yes",
        )
    if n_ghosts:
        yield Finding(
            queue,
            "wrong",
            f"{_n(n_ghosts, 'ghost')}: pending ids whose entry was deleted",
            f"sploot-cluster queue rescue {queue} --unowned --yes",
        )
    dead = [one for one in stats.consumers if not one.is_alive and one.pending and one.name != HANDED_BACK]
    for consumer in dead[:MOST_DEAD_LISTED]:
        yield Finding(
            queue,
            "wrong",
            f"{consumer.name} is dead and still holds {consumer.pending}",
            f"sploot-cluster queue retire-consumer {queue} {consumer.name} --yes",
        )
    if len(dead) > MOST_DEAD_LISTED:
        yield Finding(
            queue,
            "wrong",
            f"{len(dead) - MOST_DEAD_LISTED} more dead consumers hold jobs",
            "sploot-cluster queue status",
        )
    if stats.paused:
        yield Finding(queue, "warning", "the queue is paused", f"sploot-cluster queue resume {queue} --yes")
    if not any(one.is_alive for one in stats.consumers):
        waits = stats.undelivered or stats.in_flight or stats.delayed
        yield Finding(
            queue,
            "wrong" if waits else "warning",
            "no worker takes its jobs" + (f", and {stats.undelivered} wait" if waits else ""),
            "sploot-cluster worker",
        )


def _of_limit(stats: QueueStats, limit: int) -> Iterator[Finding]:
    # maintenance jobs are sent by the scheduler, which is never refused
    if not limit or stats.queue_name == CLUSTER_MAINTENANCE:
        return
    held = stats.undelivered + stats.orphaned + stats.in_flight
    share = held / limit
    if share >= FULL_WARNING:
        yield Finding(
            stats.queue_name,
            "wrong" if share >= FULL_WRONG else "warning",
            f"{held} of at most {limit} jobs: " + ("producers are refused" if held >= limit else "nearly full"),
            "add workers, or raise SPLOOT_MAX_QUEUE_LENGTH of the workers",
        )


def _of_stale_locks(queue: str, n: int) -> Iterator[Finding]:
    if n:
        yield Finding(
            queue,
            "warning",
            f"{_n(n, 'unique key')} of jobs removed by hand, e.g. by XDEL: the next job with such a key takes it",
            "start a worker, which frees them: sploot-cluster worker",
        )


def _of_dead_letters(installation: Installation, stats: QueueStats) -> Iterator[Finding]:
    queue, settings = stats.queue_name, installation.settings
    if not stats.dead:
        return
    used_mb = installation.broker.dead_letters(queue).n_bytes() / 2**20
    bound = variable = ""
    if stats.dead >= FULL_WARNING * settings.max_dead_letters:
        bound, variable = f"{settings.max_dead_letters}", "SPLOOT_MAX_DEAD_LETTERS"
    elif used_mb >= FULL_WARNING * settings.max_dead_letters_mb:
        bound, variable = f"{settings.max_dead_letters_mb} MB", "SPLOOT_MAX_DEAD_LETTERS_MB"
    if bound:
        yield Finding(
            queue,
            "wrong",
            f"{_n(stats.dead, 'dead letter')} of {used_mb:.1f} MB, and beyond about {bound} the oldest are deleted",
            f"requeue or purge them, or raise {variable}: sploot-cluster queue dead list {queue} --groups",
        )
    else:
        yield Finding(
            queue,
            "warning",
            f"{_n(stats.dead, 'dead letter')} to review, each deleted after {_n(settings.dead_letter_days, 'day')}",
            f"sploot-cluster queue dead list {queue} --groups",
        )


def _samples(installation: Installation) -> Iterator[Finding]:
    sample = installation.client.hmget(BACKLOG, ["pending_at_ms", "lag_at_ms"])
    times = [int(at) for at in sample if at]
    if len(times) < 2:
        yield Finding("scheduler", "warning", "the queues were never sampled", "sploot-cluster scheduler")
        return
    age_s = installation.client.time()[0] - min(times) / 1000
    if age_s > SAMPLE_OLD_S:
        yield Finding(
            "scheduler",
            "wrong",
            f"the queues were sampled {age_s:.0f} s ago: the gauges are stale",
            f"sploot-cluster scheduler, and a worker for {CLUSTER_MAINTENANCE}",
        )
    else:
        yield Finding("scheduler", "ok", f"the queues were sampled {max(0.0, age_s):.0f} s ago")


def _models(installation: Installation) -> Iterator[Finding]:
    """Check the pets' models. If ``SPLOOT_MODELS`` does not list the model of a pet, its new items are refused."""
    by_model: Counter[tuple[str, int]] = Counter()
    samples: dict[tuple[str, int], int] = {}
    pets = [int(pet) for pet in _first(installation.client.sscan_iter(PETS, count=1_000), MOST_PETS)]
    for start in range(0, len(pets), 1_000):
        pipe = installation.client.pipeline(transaction=False)
        for pet in pets[start : start + 1_000]:
            pipe.hmget(PetKeys.of(PetId(pet)).meta, ["model", "dim"])
        for pet, (model, dim) in zip(pets[start:], pipe.execute(), strict=False):
            if model:
                kind = model.decode(errors="replace"), int(dim or 0)
                by_model[kind] += 1
                samples.setdefault(kind, pet)
    known = installation.settings.clustering.models
    summary = (
        ", ".join(f"{model} with {dim} dimensions ({_n(n, 'pet')})" for (model, dim), n in by_model.most_common(5))
        or "no pets yet"
    )
    strangers = [kind for kind in by_model if known and known.get(kind[0]) != kind[1]]
    if strangers:
        model, dim = strangers[0]
        pet = samples[strangers[0]]
        yield Finding(
            "models",
            "wrong",
            f"{_n(by_model[strangers[0]], 'pet')} (e.g. pet {pet}) with vectors of {model} ({dim} dimensions), which "
            f"{MODELS} does not list: their new items are refused",
            f"add {model}={dim} to {MODELS}, or capture the pet and embed its items again",
        )
    elif len(by_model) > 1 and not known:
        yield Finding(
            "models",
            "warning",
            f"several models are in use: {summary}; all items of a pet must have the same model",
            f"list the models that producers may use in {MODELS}",
        )
    else:
        yield Finding("models", "ok", summary)


def _pets(installation: Installation) -> Iterator[Finding]:
    """Check that a random sample of pets can be read, that their counts add up, and that searches find their names.

    In time, all pets are sampled.
    """
    store = RedisPetStore(installation.client)
    try:
        pets = store.pets()
        sample = random.sample(pets, min(len(pets), SAMPLE_OF_PETS))
        totals = store.totals(sorted(sample))
        unnamed = store.not_found_by_name(sorted(sample))
    except StoreUnavailable as error:
        if isinstance(error.__cause__, redis.RedisError):
            raise error.__cause__ from error
        raise
    damaged = {PetId(error.pet): error for error in totals.unreadable}
    for pet in totals.unconserved[:MOST_BROKEN_LISTED]:
        if pet in damaged:
            yield Finding("pets", "wrong", f"pet {pet} cannot be read: {damaged[pet].problem}", damaged[pet].hint)
        else:
            yield Finding("pets", "wrong", f"the counts of pet {pet} do not add up", f"sploot-cluster tally {pet}")
    if (n_more := len(totals.unconserved) - MOST_BROKEN_LISTED) > 0:
        seen = f"{_n(n_more, 'pet')} more cannot be read or have counts that do not add up"
        yield Finding("pets", "wrong", seen, "sploot-cluster tally")
    if totals.fullness >= FULL_WARNING:
        yield Finding(
            "pets",
            "wrong" if totals.fullness >= FULL_WRONG else "warning",
            f"pet {totals.fullest} is {totals.fullness:.0%} full; when it is full, its new items become dead letters",
            "delete items of the pet, or ingest new ones under another pet: ops/runbook.md#mediaclusterpetnearlyfull",
        )
    if unnamed:
        seen = f"a search for its name does not find pet {unnamed[0]}; {_n(len(unnamed), 'pet')} of the sample in all"
        yield Finding("pets", "wrong", seen, "sploot-cluster repair --list --yes")
    unlisted = _unlisted_pets(installation)
    if unlisted:
        seen = f"pet {unlisted[0]} has data and is not in {PETS}, so totals, alerts and lists leave it out"
        seen += f"; so do {_n(len(unlisted) - 1, 'pet')} more" if len(unlisted) > 1 else ""
        yield Finding("pets", "wrong", seen, "sploot-cluster repair --list --yes")
    if not totals.unconserved and not unlisted:
        n_pets = len(pets)
        is_sample = n_pets > len(sample)
        seen = f"{len(sample):,} of {_n(n_pets, 'pet')} are intact; the next run checks others" if is_sample else ""
        yield Finding("pets", "ok", seen or (f"all {_n(n_pets, 'pet')} are intact" if n_pets else "no pets yet"))


def _cold(installation: Installation) -> Iterator[Finding]:
    """Check that the cold store works, and that it is configured if there are cold pets."""
    stored = cast("bytes | None", installation.client.hget(MEDIA, "cold"))
    n_cold, settings = int(stored or 0), installation.settings
    cold = build_cold_pets(settings, installation.client)
    if cold is None:
        if n_cold:
            seen = f"the vectors of {_n(n_cold, 'pet')} are in a cold store, and SPLOOT_COLD_STORE is not set here"
            yield Finding("cold", "wrong", seen, "set SPLOOT_COLD_STORE to the workers' value")
        return
    try:
        cold.probe()
    except ColdStoreUnavailable as away:
        hint = "make the storage reachable; arrivals for cold pets wait until then: docs/how-to/cold-pets.md"
        yield Finding("cold", "wrong", away.problem, hint)
        return
    yield from _cold_objects(cold, f"{settings.cold_store} answers; it has the vectors of {_n(n_cold, 'pet')}")


def _cold_objects(cold: ColdPets, seen: str) -> Iterator[Finding]:
    """Check that the storage lists all objects of a random sample of cold pets; ``seen`` describes success."""
    lost: list[str] = []
    for pet in cold.some(SAMPLE_OF_COLD_PETS):
        try:
            lost += cold.lost(pet)
        except UnreadablePet:
            continue  # another check reports damaged pets
        except ColdStoreUnavailable as away:
            yield Finding("cold", "wrong", away.problem, "run the doctor again")
            return
    if lost:
        hint = "restore the objects from an old version: ops/runbook.md#mediaclustercoldmovesfail"
        yield Finding("cold", "wrong", f"{_n(len(lost), 'object')} of cold pets are missing, e.g. {lost[0]}", hint)
    else:
        yield Finding("cold", "ok", seen)


def _unlisted_pets(installation: Installation) -> list[PetId]:
    """Return pets that have data but are not in the set of all pets, from a random sample of the keys.

    Returns none unless the Redis user is the default one: no user of ``users.acl`` may list keys, and Redis would log
    the attempt as a denied command.
    """
    found: set[PetId] = set()
    for _, node in _nodes(installation):
        if node.client.connection_pool.connection_kwargs.get("username") not in (None, "default"):
            return []
        cursor = random.getrandbits(32)  # any number is a valid cursor: the scan begins at a random position
        for _ in range(SCANS):
            try:
                cursor, keys = cast(
                    "tuple[int, list[bytes]]", node.client.scan(cursor, match="{pet:*}:meta", count=1_000)
                )
            except redis.exceptions.NoPermissionError:
                return []
            found |= {PetId(int(one[1])) for key in keys if (one := _META.fullmatch(key))}
    pets = sorted(found)
    pipe = installation.client.pipeline(transaction=False)
    for pet in pets:
        pipe.sismember(PETS, str(pet))
    return [pet for pet, is_listed in zip(pets, pipe.execute() if pets else (), strict=True) if not is_listed]


def _n(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _first(found: Iterator[Any], limit: int) -> Iterator[Any]:
    for _, one in zip(range(limit), found, strict=False):
        yield one


def _info(installation: Installation, section: str) -> Mapping[str, Any]:
    info: dict[str, Any] = installation.client.info(section)
    return info


def installation_of(settings: Settings, client: redis.Redis, broker: RedisStreamsBroker, **more: Any) -> Installation:
    """Return the installation that this process would be part of."""
    return Installation(settings=settings, environ=os.environ, client=client, broker=broker, **more)
