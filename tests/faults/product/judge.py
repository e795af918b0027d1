"""The judge of a finished campaign: it checks confirmed items, corrections, job records and all keys in Redis."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from broker import DeadLetter, RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.errors import ClusterError
from sploot_cluster.jobs import ENDED
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store import export_file
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_MAINTENANCE, EMBEDDING_INGESTED, GROUP, QUEUES
from tasks.queue_ops.dead_letters import pet_of
from tasks.queue_ops.entries import media_of
from tests.faults.product.load import Item, Records
from tests.sploot_cluster.oracle import Demands, demands

# The queues count as stuck after this long without progress, because on a busy machine a lease, a sweep of orphans, the
# back-off of the last retries and a recluster may follow each other.
STUCK_AFTER_S: Final = 150.0

_OWNED: Final = re.compile(
    rb"streams:[a-z.]+|\{streams:[a-z.]+\}:.+|\{pet:(?P<pet>\d+)\}:.+|sploot:\{[a-z]+\}:.+|sploot:[a-z:-]+(\{.+\})?.*"
)


@dataclass(frozen=True)
class Found:
    """The contents of Redis at the end."""

    pets: Mapping[int, PetDump]
    dead_letters: list[DeadLetter]
    keys: list[bytes]


def broker_of(client: redis.Redis) -> RedisStreamsBroker:
    return RedisStreamsBroker(client=client, group=GROUP, middleware=[])


def drain(client: redis.Redis) -> str:
    """Wait until no job waits or runs, and return ""; after ``STUCK_AFTER_S`` without progress, return what is left."""
    broker, left, fewest = broker_of(client), "nothing was seen", 1 << 62
    gives_up_at = time.monotonic() + STUCK_AFTER_S
    while time.monotonic() < gives_up_at:
        try:
            all_stats = [broker.stats(queue) for queue in QUEUES if queue != CLUSTER_MAINTENANCE]
        except Exception as error:  # the server may still be loading its data
            left = f"{type(error).__name__}: {error}"
        else:
            held = {one.queue_name: one.undelivered + one.in_flight + one.delayed + one.orphaned for one in all_stats}
            if not any(held.values()):
                return ""
            left = ", ".join(f"{queue} holds {n}" for queue, n in held.items() if n)
            if sum(held.values()) < fewest:
                fewest, gives_up_at = sum(held.values()), time.monotonic() + STUCK_AFTER_S
        time.sleep(0.5)
    return left


def found_in(client: redis.Redis) -> Found:
    store, broker = RedisPetStore(client), broker_of(client)
    return Found(
        pets={pet: store.dump(pet) for pet in store.pets()},
        dead_letters=[one for queue in QUEUES for one in broker.dead_letters(queue).find()],
        keys=list(client.scan_iter(count=1_000)),
    )


def logged_ends(logs: Iterable[Path]) -> set[str]:
    """Return the ids of the jobs that ended according to the workers' logs."""
    ended = set()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if '"outcome"' in line and (found := re.search(r'"message_id": "([^"]+)"', line)):
                ended.add(found[1])
    return ended


def problems_of(records: Records, found: Found, tasks: ClusterTasks, *, logged: Collection[str] = ()) -> Iterator[str]:
    """Yield a sentence on each broken guarantee.

    Args:
        logged: ids of jobs that ended according to a log. The record of such a job stays outdated if its worker is
            killed during a Redis outage, which is counted but is not a problem.
    """
    yield from _items(records, found)
    yield from _jobs(records, found, tasks, logged)
    yield from _pets(found)
    yield from records.torn
    for key in found.keys:
        owned = _OWNED.fullmatch(key)
        if owned is None or (owned["pet"] and int(owned["pet"]) not in found.pets):
            yield f"the key {key.decode(errors='replace')} belongs to nothing"


def _items(records: Records, found: Found) -> Iterator[str]:
    in_pets = {(pet, item) for pet, dump in found.pets.items() for item in (*dump.state.media, *dump.quarantine)}
    dead = _dead_items(found)
    for item in sorted(records.confirmed):
        is_gone = item in records.deleted
        places = (item in in_pets) + (item in dead)
        if is_gone and places:
            yield f"{item} was deleted and is there"
        elif not is_gone and not places and item not in records.doubtful:
            yield f"{item} was confirmed and is nowhere"
        elif item in in_pets and dead.get(item, "delivery-limit") != "delivery-limit":
            yield f"{item} is in its pet and a dead letter: {dead[item]}"


def _dead_items(found: Found) -> dict[Item, str]:
    """Return item -> reason for the uploads that became dead letters."""
    dead: dict[Item, str] = {}
    for letter in found.dead_letters:
        pet = pet_of(letter)
        if letter.queue_name == EMBEDDING_INGESTED and pet is not None:
            # an upload with the other model is quarantined or already known; its dead letter reports the model mismatch
            reason = letter.reason if "Mismatch" not in letter.error else "delivery-limit"
            dead |= {(pet, item): reason for item in media_of(letter.fields)}
    return dead


def _jobs(records: Records, found: Found, tasks: ClusterTasks, logged: Collection[str]) -> Iterator[str]:
    ledgers = {pet: Counter(one.operation_id for one in dump.state.ledger) for pet, dump in found.pets.items()}
    killed = {letter.message_id for letter in found.dead_letters if letter.reason == "delivery-limit"}
    for job_id, pet in {**records.corrections, **records.jobs}.items():
        status = tasks.job(job_id)
        if status is None or status.state not in ENDED:
            if job_id in logged:
                records.behind.add(job_id)
            else:
                yield f"job {job_id} of pet {pet} has not ended: {status and status.state}"
            continue
        if job_id in records.jobs:
            continue
        n = ledgers.get(pet, Counter())[job_id]
        if status.state == "succeeded" and n != 1:
            yield f"correction {job_id} succeeded and is {n} times in the ledger of pet {pet}"
        elif status.state == "dead" and n and job_id not in killed:
            yield f"correction {job_id} is dead and in the ledger of pet {pet}"


def _pets(found: Found) -> Iterator[str]:
    for pet, dump in found.pets.items():
        for problem in export_file.problems(dump):
            yield f"pet {pet}: {problem}"
        state = dump.state
        labels = dict(zip(state.media, state.labels.tolist(), strict=True))
        if broken := broken_demands(demands(state.ledger), labels, state.aliases):
            yield f"pet {pet}: its corrections are broken for {broken[:3]}"


def broken_demands(
    demanded: Demands, labels: Mapping[MediaId, int], aliases: Mapping[ClusterId, ClusterId]
) -> list[str]:
    """Return the oracle's demands that the labels violate: the same as its method ``broken``, but in less time."""
    clusters = {id(mates): {labels[item] for item in mates & labels.keys()} for mates in demanded.components.values()}
    broken = [
        f"{item} is not with the items of its corrections"
        for item in sorted(demanded.placed & labels.keys())
        if len(of_mates := clusters[id(demanded.components[item])]) != 1 or -1 in of_mates
    ]
    for pair in demanded.cannot:
        mates = [demanded.components[item] for item in pair if item in demanded.components]
        if len(mates) == 2 and mates[0] is not mates[1]:
            shared = set.intersection(*({labels[item] for item in some & labels.keys()} for some in mates)) - {-1}
            broken += [f"{' and '.join(sorted(pair))} are together"] if shared else []
    for item, cluster in demanded.barred:
        if item in labels and item not in demanded.placed and labels[item] == aliases.get(cluster, cluster):
            broken.append(f"{item} is in cluster {cluster}, from which it was excluded")
    return broken + [f"{item} is dismissed" for item in demanded.dismissed & labels.keys() if labels[item] != -1]


def recluster_all(client: redis.Redis) -> Iterator[str]:
    """Recluster every pet, after which all corrections must still hold; yield a sentence on each pet that fails."""
    service = ClusterService(RedisPetStore(client))
    for pet in service.pets():
        try:
            service.recluster(PetId(pet))
        except ClusterError as error:
            yield f"pet {pet}: {type(error).__name__}: {error}"
    totals = service.totals()
    if totals.unconserved:
        yield f"pets {totals.unconserved} do not add up"


def outcome_of(records: Records, found: Found) -> dict[str, Any]:
    return {
        "confirmed": len(records.confirmed),
        "corrections": len(records.corrections),
        "deleted": len(records.deleted),
        "job records that stayed behind": len(records.behind),
        "in pets": sum(dump.state.n_media for dump in found.pets.values()),
        "quarantined": sum(len(dump.quarantine) for dump in found.pets.values()),
        "dead letters": len(found.dead_letters),
        **records.done,
    }
