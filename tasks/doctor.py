"""What is wrong with an installation, each with the command that fixes it.

A check looks, changes nothing but a key that ends by itself, and answers with findings: ``ok``, ``warning`` (somebody
should know), ``wrong`` (work is lost, stuck or refused), ``unknown`` (Redis did not let us look). Checks that need
Redis ask it through INFO and the commands that the actions use too, so that the user ``operator`` may run them.
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
from typing import Any, Final, Literal

import redis
from dramatiq.errors import BrokerConnectionError
from redis.cluster import RedisCluster

from broker import QueueStats, RedisStreamsBroker
from broker.keys import HANDED_BACK
from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.pet.models import PetId
from sploot_cluster.refusals import REDIS_ERRORS, refusal_of
from sploot_cluster.settings import PREFIX as CLUSTERING
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.keys import PETS, PetKeys
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.threads import NATIVE, n_cores
from tasks.contracts import CLUSTER_MAINTENANCE, GROUP, QUEUES, stream_of
from tasks.observe.backlog import BACKLOG
from tasks.observe.redis_probe import probe_writes
from tasks.queue_ops.overdue import OverdueJob, command_that_frees, effect_of, overdue_jobs
from tasks.settings import FROM_FILE, MODELS, Settings

Level = Literal["ok", "warning", "wrong", "unknown"]

# Commands of newer servers, which are used where they are there; nothing needs them.
LOWEST: Final = (6, 2)
NEEDED: Final = ("XAUTOCLAIM", "GETDEL", "XADD")

SKEW_WARNING_S, SKEW_WRONG_S = 1.0, 30.0
SAMPLE_OLD_S: Final = 60.0
AHEAD_WRONG_MS: Final = 60_000  # entry ids; what two clocks differ by is less
VANISHED_SHOWN_MS: Final = 24 * 60 * 60 * 1000
FULL_WARNING, FULL_WRONG = 0.8, 0.95
MOST_PETS: Final = 20_000
# Looked at in one round trip; other ones at the next run.
SAMPLE_OF_PETS: Final = 500
MOST_DEAD_LISTED: Final = 5
MOST_BROKEN_LISTED: Final = 5
REDIS_CLI: Final = 'redis-cli -u "$REDIS_URL"'
# Workers make the stream again, with ids of the clock.
DELETE_IF_EMPTY: Final = "if redis.call('XLEN',KEYS[1])==0 then return redis.call('DEL',KEYS[1]) end return 'not empty'"

# What Kubernetes puts into every pod beside a service, whatever it is called.
_OF_KUBERNETES: Final = re.compile(r".*_SERVICE_(HOST|PORT(_.*)?)=.*|.*_PORT_\d+_(TCP|UDP).*=.*|.*_PORT=(tcp|udp)://.*")
# Ours by name, and not by prefix.
_RELATED: Final = re.compile(r"(SPLOOT|WORKER_METRICS|REDIS_UR|SENTRY_D|OTEL_EXPORTER_OTLP_ENDP).*")
# So like a setting that it was meant to be one.
_A_SLIP: Final = 0.9
# Read by others than this program: the scripts of ops/, the demo, the chart.
_OTHERS: Final = frozenset({"SPLOOT_VERSION", "SPLOOT_IMAGE"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Attributes:
        check: what was looked at, one word or two.
        seen: what is there.
        hint: the command or the change that fixes it; empty where nothing needs fixing.
    """

    check: str
    level: Level
    seen: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined.

    Attributes:
        processes, threads: of the workers, as they are or will be started.
    """

    settings: Settings
    environ: Mapping[str, str]
    client: redis.Redis
    broker: RedisStreamsBroker
    processes: int = 2
    threads: int = 4
    clock: Callable[[], float] = field(default=time.time)


def examine(patient: Patient) -> list[Finding]:
    """All findings, in a fixed order. Without Redis: what can be told without it, and that it does not answer."""
    found = [*_unknown_settings(patient), *_threads(patient), *_ports(patient)]
    answers = _reachability(patient)
    found += answers
    if any(finding.level == "wrong" for finding in answers):
        return found
    writes = _writes(patient)
    found.append(writes)
    for where, node in _nodes(patient):
        for check in (_server, _memory, _persistence, _clock):
            found += [replace(finding, seen=where + finding.seen) for finding in _permitted(check, node)]
    for check in (_groups, _queues, _samples, _models, _pets):
        of_queues = _permitted(check, patient)
        if writes.level == "wrong":
            # workers cannot say that they live, nor the scheduler that it ticks: starting them fixes nothing
            of_queues = [
                replace(finding, hint=f"first make Redis take writes, see {writes.check}") if finding.hint else finding
                for finding in of_queues
            ]
        found += of_queues
    return found


def _permitted(check: Callable[[Patient], Iterator[Finding]], patient: Patient) -> list[Finding]:
    """What a check finds, or that it may not look, or that Redis refuses to answer it."""
    name = check.__name__.strip("_")
    try:
        return list(check(patient))
    except redis.exceptions.NoPermissionError as refused:
        return [Finding(name, "unknown", f"this Redis user may not look: {refused}", "use the user operator")]
    except (*REDIS_ERRORS, BrokerConnectionError) as error:
        if (refusal := refusal_of(error)) is None:
            raise
        return [Finding(name, "unknown", f"{refusal.problem}: {error}", refusal.hint)]


def _nodes(patient: Patient) -> Iterator[tuple[str, Patient]]:
    """Every server that holds data: the one there is, or each of a Cluster, with its name before what is seen."""
    client: object = patient.client  # a Cluster's has the commands of one, and is typed as such
    if not isinstance(client, RedisCluster):
        yield "", patient
        return
    for node in client.get_primaries():
        yield f"{node.name}: ", replace(patient, client=client.get_redis_connection(node))


def is_unreachable(found: Sequence[Finding]) -> bool:
    return any(finding.check == "redis" and finding.level == "wrong" for finding in found)


# -- this machine ------------------------------------------------------------------------------------------------------


def _unknown_settings(patient: Patient) -> Iterator[Finding]:
    known = known_variables()
    n_wrong = 0
    for variable, value in sorted(patient.environ.items()):
        if variable in known or variable in _OTHERS or _OF_KUBERNETES.fullmatch(f"{variable}={value}"):
            continue
        is_related = _RELATED.fullmatch(variable)
        close = difflib.get_close_matches(variable, known, n=1, cutoff=0.6 if is_related else _A_SLIP)
        if not (is_related or close):
            continue
        n_wrong += 1
        hint = f"did you mean {close[0]}? " if close else ""
        yield Finding(
            "settings", "wrong", f"{variable} is no setting, and does nothing", f"{hint}see sploot-cluster config show"
        )
    if not n_wrong:
        yield Finding("settings", "ok", "every variable that looks like a setting is one")


def known_variables() -> set[str]:
    """Every variable that is read."""
    named = {setting.metadata["variable"] for setting in fields(Settings) if setting.name != "clustering"}
    secret = {setting.metadata["variable"] for setting in fields(Settings) if setting.metadata.get("is_secret")}
    clustering = {CLUSTERING + setting.name.upper() for setting in fields(ClusterSettings)}
    return named | {variable + FROM_FILE for variable in secret} | clustering | {MODELS}


def _threads(patient: Patient) -> Iterator[Finding]:
    cores, busy = n_cores(), patient.processes * patient.threads
    said = {name: patient.environ[name] for name in NATIVE if patient.environ.get(name, "").isdecimal()}
    most = max((int(value) for value in said.values()), default=1)
    if most > 1 and busy * most > cores:
        names = " ".join(name for name, value in said.items() if int(value) > 1)
        yield Finding(
            "threads",
            "wrong",
            f"{busy} worker threads × {most} native threads on {cores} cores wait for each other, spinning",
            f"unset {names}",
        )
    else:
        yield Finding("threads", "ok", f"{busy} worker threads × {most} native thread on {cores} cores")


def _ports(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    for what, variable, host, port in (
        ("metrics", "WORKER_METRICS_PORT", settings.metrics_host, settings.metrics_port),
        ("http", "SPLOOT_HTTP_PORT", settings.http_host, settings.http_port),
    ):
        check = f"{what} port"
        if port == 0:
            yield Finding(check, "warning", "a free one each time, which no scraper finds", f"set {variable}")
        elif _is_free(host, port):
            yield Finding(check, "ok", f"{host}:{port} is free")
        elif (said := _health_at(host, port)) is not None:
            yield Finding(check, "ok", f"{host}:{port} is served by ours: {said}")
        else:
            yield Finding(check, "wrong", f"{host}:{port} is taken by something else", f"set {variable} to a free port")


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
    """What ours says of itself there; None where something else answers, or nothing."""
    address = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104  compared, not bound
    try:
        with urllib.request.urlopen(f"http://{address}:{port}/healthz", timeout=2) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            told = json.load(error)
        except ValueError:
            return None
    except (OSError, ValueError):
        return None
    status = told.get("status") if isinstance(told, dict) else None
    return status if isinstance(status, str) else None


# -- the server --------------------------------------------------------------------------------------------------------


def _reachability(patient: Patient) -> list[Finding]:
    start = time.perf_counter()
    try:
        patient.client.ping()
    except redis.AuthenticationError as error:
        return [Finding("redis", "wrong", f"it refuses us: {error}", "check user and password in REDIS_URL")]
    except (*REDIS_ERRORS, OSError) as error:
        # a server that may not write refuses PING too, which is an answer
        if refusal_of(error) is None:
            return [Finding("redis", "wrong", f"it does not answer: {error}", "start it, or correct REDIS_URL")]
    return [Finding("redis", "ok", f"answers in {1000 * (time.perf_counter() - start):.1f} ms")]


def _writes(patient: Patient) -> Finding:
    try:
        probe_writes(patient.client)
    except redis.exceptions.NoPermissionError as refused:
        return Finding("writes", "unknown", f"this Redis user may not write: {refused}", "use the user operator")
    except REDIS_ERRORS as error:
        refusal = refusal_of(error)
        if refusal is None:
            return Finding("writes", "wrong", f"Redis does not take them: {error}", "look into the log of Redis")
        return Finding("writes", "wrong", f"{refusal.problem} ({refusal.code})", refusal.hint)
    return Finding("writes", "ok", "Redis takes them")


def _server(patient: Patient) -> Iterator[Finding]:
    info = _info(patient, "server")
    told = str(info.get("redis_version", "?"))
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = tuple(int(part) for part in re.findall(r"\d+", told)[:2])
    if version < LOWEST:
        yield Finding("version", "wrong", f"{name} {told}; 6.2 is needed", "upgrade the server")
    else:
        yield Finding("version", "ok", f"{name} {info.get('valkey_version', told)}")
    missing = [command for command in NEEDED if not _knows(patient.client, command)]
    if missing:
        yield Finding("commands", "wrong", f"it does not know {', '.join(missing)}", "use Redis 6.2, Valkey, or newer")
    else:
        yield Finding("commands", "ok", "it knows every command that is needed")


def _knows(client: redis.Redis, command: str) -> bool:
    # by its whole name, for which redis-py has no reader of its own: the answer is a list, with nil for what is unknown
    (told,) = client.execute_command("COMMAND INFO", command)
    return told is not None


def _memory(patient: Patient) -> Iterator[Finding]:
    info = _info(patient, "memory")
    policy = str(info.get("maxmemory_policy", "?"))
    if policy == "noeviction":
        yield Finding("eviction", "ok", "noeviction")
    else:
        yield Finding(
            "eviction",
            "wrong",
            f"{policy}: a full server throws jobs and pets away",
            f"{REDIS_CLI} CONFIG SET maxmemory-policy noeviction",
        )
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        yield Finding("memory", "ok", f"{used / 2**20:.0f} MiB in use, no limit")
        return
    share = used / most
    level: Level = "wrong" if share >= FULL_WRONG else "warning" if share >= FULL_WARNING else "ok"
    hint = "raise maxmemory, or sploot-cluster queue dead purge" if level != "ok" else ""
    yield Finding("memory", level, f"{share:.0%} of {most / 2**20:.0f} MiB in use", hint)


def _persistence(patient: Patient) -> Iterator[Finding]:
    info = _info(patient, "persistence")
    if not int(info.get("aof_enabled", 0)):
        yield Finding(
            "persistence",
            "wrong",
            "no append-only file: a restart loses jobs and pets",
            f"{REDIS_CLI} CONFIG SET appendonly yes",
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            "persistence", "wrong", "the last write of the append-only file failed", "make room on the server's disk"
        )
    else:
        yield Finding("persistence", "ok", "append-only file")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding(
            "snapshot", "wrong", "the last snapshot failed, and Redis may refuse writes", "make room on its disk"
        )


def _clock(patient: Patient) -> Iterator[Finding]:
    before = patient.clock()
    seconds, microseconds = patient.client.time()
    after = patient.clock()
    skew_s = seconds + microseconds / 1e6 - (before + after) / 2
    uncertain_s = (after - before) / 2
    size = max(0.0, abs(skew_s) - uncertain_s)
    level: Level = "wrong" if size >= SKEW_WRONG_S else "warning" if size >= SKEW_WARNING_S else "ok"
    direction = "ahead of" if skew_s > 0 else "behind"
    seen = "the clocks agree" if level == "ok" else f"Redis is {abs(skew_s):.1f} s {direction} this machine"
    yield Finding("clock", level, seen, "" if level == "ok" else "let both take their time from one NTP server")


# -- the queues --------------------------------------------------------------------------------------------------------


def _groups(patient: Patient) -> Iterator[Finding]:
    for queue in QUEUES:
        stream, groups = stream_of(queue), patient.broker.inspector(queue).groups()
        strangers = [group for group in groups if group != GROUP]
        if strangers:
            yield Finding(
                f"group of {queue}",
                "wrong",
                f"other groups read {stream} too: {', '.join(strangers)}; what they have not read is deleted all the "
                "same",
                f"{REDIS_CLI} XGROUP DESTROY {stream} {strangers[0]}",
            )
        if GROUP in groups:
            yield Finding(f"group of {queue}", "ok", f"{GROUP} on {stream}")
            continue
        is_waited_for = patient.client.xlen(stream) > 0
        yield Finding(
            f"group of {queue}",
            "wrong" if is_waited_for else "warning",
            f"{stream} has no group {GROUP}" + (", and work waits" if is_waited_for else ": no worker was ever there"),
            f"{REDIS_CLI} XGROUP CREATE {stream} {GROUP} 0 MKSTREAM",
        )


def _queues(patient: Patient) -> Iterator[Finding]:
    for queue in QUEUES:
        try:
            stats = patient.broker.stats(queue)
            unowned = patient.broker.inspector(queue).unowned()
            overdue = overdue_jobs(patient.broker, stats)
        except BrokerConnectionError as error:
            yield Finding(queue, "unknown", str(error), "sploot-cluster doctor")
            continue
        problems = [
            *_of_overdue(queue, overdue),
            *_of_ids(patient, stats),
            *_of_queue(stats, len(unowned.orphans), len(unowned.ghosts)),
        ]
        yield from problems or [Finding(queue, "ok", f"{stats.undelivered} wait, {stats.in_flight} are worked on")]


def _of_ids(patient: Patient, stats: QueueStats) -> Iterator[Finding]:
    """What a writer did who went beyond ``XADD key *``: ids of the future, entries that were removed."""
    queue, stream = stats.queue_name, stream_of(stats.queue_name)
    again = (
        f"name the producer and take its XADD away; let workers empty {stream}, then "
        f'{REDIS_CLI} EVAL "{DELETE_IF_EMPTY}" 1 {stream}'
    )
    if stats.is_exhausted:
        yield Finding(
            queue, "wrong", f"{stream} has no more ids to give: every XADD fails, of workers and clients too", again
        )
    elif stats.ids_ahead_ms >= AHEAD_WRONG_MS:
        yield Finding(
            queue,
            "wrong",
            f"the last id of {stream}, {stats.last_id}, is ahead of the clock by {_long(stats.ids_ahead_ms)}: a "
            "producer chose it, or the server's clock was ahead, and the ages of its jobs are unknown",
            again,
        )
    stored = patient.client.hmget(
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
            f"{_n(n_gone, 'entry', 'entries')} left {stream} that no worker settled: an XADD with MAXLEN or MINID, an "
            "XTRIM or an XDEL",
            "find who may write there, have the producers of that time send again: "
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
            f"{_n(n_orphans, 'orphan')}: delivered jobs in nobody's pending list, as XACK by hand leaves them",
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
        yield Finding(queue, "wrong", f"{len(dead) - MOST_DEAD_LISTED} more of these", "sploot-cluster queue status")
    if stats.paused:
        yield Finding(queue, "warning", "it is paused", f"sploot-cluster queue resume {queue} --yes")
    if not any(one.is_alive for one in stats.consumers):
        waits = stats.undelivered or stats.in_flight or stats.delayed
        yield Finding(
            queue,
            "wrong" if waits else "warning",
            "no worker takes its jobs" + (f", and {stats.undelivered} wait" if waits else ""),
            "sploot-cluster worker",
        )
    if stats.dead:
        yield Finding(
            queue,
            "warning",
            f"{_n(stats.dead, 'dead letter')} for a person to look at",
            f"sploot-cluster queue dead list {queue} --groups",
        )


def _samples(patient: Patient) -> Iterator[Finding]:
    sample = patient.client.hmget(BACKLOG, ["pending_at_ms", "lag_at_ms"])
    times = [int(at) for at in sample if at]
    if len(times) < 2:
        yield Finding("scheduler", "warning", "nothing was ever sampled", "sploot-cluster scheduler")
        return
    age_s = patient.client.time()[0] - min(times) / 1000
    if age_s > SAMPLE_OLD_S:
        yield Finding(
            "scheduler",
            "wrong",
            f"the queues were sampled {age_s:.0f} s ago: the gauges are old",
            f"sploot-cluster scheduler, and a worker for {CLUSTER_MAINTENANCE}",
        )
    else:
        yield Finding("scheduler", "ok", f"the queues were sampled {max(0.0, age_s):.0f} s ago")


def _models(patient: Patient) -> Iterator[Finding]:
    """Vectors of different models are never compared, so that a pet of another model is one that got stuck."""
    by_model: Counter[tuple[str, int]] = Counter()
    samples: dict[tuple[str, int], int] = {}
    pets = [int(pet) for pet in _first(patient.client.sscan_iter(PETS, count=1_000), MOST_PETS)]
    for start in range(0, len(pets), 1_000):
        pipe = patient.client.pipeline(transaction=False)
        for pet in pets[start : start + 1_000]:
            pipe.hmget(PetKeys.of(PetId(pet)).meta, ["model", "dim"])
        for pet, (model, dim) in zip(pets[start:], pipe.execute(), strict=False):
            if model:
                kind = model.decode(errors="replace"), int(dim or 0)
                by_model[kind] += 1
                samples.setdefault(kind, pet)
    known = patient.settings.clustering.models
    told = (
        ", ".join(f"{model} of {dim} ({_n(n, 'pet')})" for (model, dim), n in by_model.most_common(5)) or "no pets yet"
    )
    strangers = [kind for kind in by_model if known and known.get(kind[0]) != kind[1]]
    if strangers:
        model, dim = strangers[0]
        pet = samples[strangers[0]]
        yield Finding(
            "models",
            "wrong",
            f"{_n(by_model[strangers[0]], 'pet')}, such as {pet}, with vectors of {model} of {dim} values, which "
            f"{MODELS} does not name: new media are refused",
            f"add {model}={dim} to {MODELS}, or capture the pet and embed its media anew",
        )
    elif len(by_model) > 1 and not known:
        yield Finding(
            "models",
            "warning",
            f"several models are in use: {told}; media of one pet must all be of one",
            f"name those that producers may use in {MODELS}",
        )
    else:
        yield Finding("models", "ok", told)


def _pets(patient: Patient) -> Iterator[Finding]:
    """Whether pets can be read and their items add up: of a random sample, so that repeated runs see them all."""
    store = RedisPetStore(patient.client)
    try:
        pets = store.pets()
        sample = random.sample(pets, min(len(pets), SAMPLE_OF_PETS))
        totals = store.totals(sorted(sample))
    except StoreUnavailable as error:
        if isinstance(error.__cause__, redis.RedisError):
            raise error.__cause__ from error
        raise
    damaged = {PetId(error.pet): error for error in totals.unreadable}
    for pet in totals.unconserved[:MOST_BROKEN_LISTED]:
        if pet in damaged:
            yield Finding("pets", "wrong", f"pet {pet} cannot be read: {damaged[pet].problem}", damaged[pet].hint)
        else:
            yield Finding("pets", "wrong", f"pet {pet} does not add up", f"sploot-cluster tally {pet}")
    if (n_more := len(totals.unconserved) - MOST_BROKEN_LISTED) > 0:
        seen = f"{_n(n_more, 'pet')} more cannot be read or do not add up"
        yield Finding("pets", "wrong", seen, "sploot-cluster tally")
    if not totals.unconserved:
        n_pets = len(pets)
        is_sample = n_pets > len(sample)
        seen = f"{len(sample):,} of {_n(n_pets, 'pet')} are whole, others at the next run" if is_sample else ""
        yield Finding("pets", "ok", seen or (f"all {_n(n_pets, 'pet')} are whole" if n_pets else "no pets yet"))


def _n(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _first(found: Iterator[Any], limit: int) -> Iterator[Any]:
    for _, one in zip(range(limit), found, strict=False):
        yield one


def _info(patient: Patient, section: str) -> Mapping[str, Any]:
    info: dict[str, Any] = patient.client.info(section)
    return info


def patient_of(settings: Settings, client: redis.Redis, broker: RedisStreamsBroker, **more: Any) -> Patient:
    """The installation that this process would be part of."""
    return Patient(settings=settings, environ=os.environ, client=client, broker=broker, **more)
