"""An index that finds a pet's jobs among 100,000, without any help from producers.

A stream can be read by id but not by content, and events arrive by plain ``XADD`` from any language. So the consuming
side indexes waiting entries: every few seconds, each worker process and each server indexes the entries that have
waited for two seconds or more (:class:`KeepPetIndex`). A search first indexes the rest. Entries that are delivered
immediately are never read.

    key                     type  holds                                                  ends
    {ns:q}:pets             zset  entry id, scored by pet; the row -, scored -1          entry by entry, as jobs end
    {ns:q}:pets:progress    hash  up_to: last entry indexed; rank: position of cleanup   when the stream is empty
                                  seen, seen_at, ripe: see pet_index.lua

If the index is deleted, its row ``-`` is missing, and everything is indexed again.

Pet ids above 2^53 share a score with their neighbours, so every result is checked against the entry itself. This check
also drops jobs that have ended since they were indexed. ``benchmarks/find.py`` measures the index.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from itertools import islice
from typing import Any, Final, cast

import dramatiq
import redis
from dramatiq.broker import Broker
from dramatiq.errors import BrokerConnectionError

from broker import Inspector, RedisStreamsBroker
from broker.keys import QueueKeys
from tasks.contracts import CLUSTER_EMBEDDING, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, NAMESPACE
from tasks.queue_ops.entries import EntryFacts, added_at, facts_of
from tasks.shards import shards_of_all

logger = logging.getLogger("sploot-cluster.queue")

INDEXED: Final = (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER)

WAITED_MS: Final = 2_000
PAGE: Final = 200  # entries to index per call, in one to two milliseconds of server time
CATCH_UP_PAGE: Final = 1_000
READ_PAGE: Final = 100  # entries to read in full in one round trip
# Time between two rounds. One process thus indexes a backlog of 100,000 within half a minute, with at most a twentieth
# of the server's time.
ROUND_S: Final = 3.0
PAUSE_S: Final = 0.04

State = str


@dataclass(frozen=True, slots=True)
class FoundJob:
    """An unfinished job of a pet.

    Attributes:
        state: ``waiting``, ``in flight`` or ``delayed``.
        entry_id: None for ``delayed`` jobs, which have no entry yet.
        delayed_as: for ``delayed`` jobs, the name in the sorted set of delayed messages.
        holder: the consumer that works on it, if any.
    """

    queue: str
    state: State
    entry_id: str | None
    message_id: str | None
    actor: str | None
    media_id: str | None
    added_at: datetime | None
    holder: str | None = None
    deliveries: int = 0
    delayed_as: bytes | None = None


class PetIndex:
    """The index of one queue. Thread-safe; any number of processes may use it at once."""

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self._client = client
        keys = QueueKeys(NAMESPACE, queue)
        self._keys = [keys.stream, f"{{{keys.stream}}}:pets", f"{{{keys.stream}}}:pets:progress"]
        self._script = client.register_script(files(__package__).joinpath("pet_index.lua").read_text(encoding="utf-8"))

    def note(self, n: int = PAGE, *, waited_ms: int = WAITED_MS) -> int:
        """Index at most ``n`` entries that have waited for ``waited_ms``, and return the number of entries read."""
        looked_at, _ = cast("list[int]", self._script(keys=self._keys, args=[n, waited_ms]))
        return looked_at

    def catch_up(self) -> int:
        """Index all waiting entries, and return the number of entries read."""
        total = 0
        while True:
            n = self.note(CATCH_UP_PAGE, waited_ms=0)
            total += n
            if n < CATCH_UP_PAGE:
                return total

    def entries_of(self, pet_id: int) -> list[str]:
        """Return the ids of entries that may be the pet's, oldest first; some may have ended."""
        found = cast("list[bytes]", self._client.zrangebyscore(self._keys[1], pet_id, pet_id))
        return sorted((entry_id.decode() for entry_id in found), key=_order)

    def forget(self, entry_ids: Sequence[str]) -> None:
        if entry_ids:
            self._client.zrem(self._keys[1], *entry_ids)


def find_jobs(
    broker: RedisStreamsBroker,
    client: redis.Redis,
    pet_id: int,
    *,
    limit: int = 1_000,
    shards: Sequence[str] | None = None,
) -> tuple[list[FoundJob], int]:
    """Return at most ``limit`` unfinished jobs of the pet per queue, and the number of entries indexed for the search.

    Args:
        shards: the queues or shards to search; None for all.

    Reads the index, the pending entries, and all delayed messages.
    """
    found: list[FoundJob] = []
    n_indexed = 0
    for queue in shards_of_all(broker, INDEXED) if shards is None else shards:
        n, jobs = _search(queue, broker, client, pet_id)
        n_indexed += n
        found += islice(jobs, limit)
    return found, n_indexed


def each_job(broker: RedisStreamsBroker, client: redis.Redis, pet_id: int) -> Iterator[FoundJob]:
    """Yield all unfinished jobs of the pet, page by page, however many there are.

    A job that is retried or becomes due during the search is found too.
    """
    for queue in shards_of_all(broker, INDEXED):
        yield from _search(queue, broker, client, pet_id)[1]


def _search(queue: str, broker: RedisStreamsBroker, client: redis.Redis, pet_id: int) -> tuple[int, Iterator[FoundJob]]:
    """Index the waiting entries of a queue; return how many were indexed, and the pet's unfinished jobs."""
    index, inspector = PetIndex(client, queue), broker.inspector(queue)
    # Delayed messages are read before and after the entries, because meanwhile a message may become an entry, and an
    # entry that is retried becomes a delayed message.
    delayed = list(_delayed(queue, inspector, pet_id))
    return index.catch_up(), _jobs_of(queue, index, inspector, pet_id, delayed)


def _jobs_of(
    queue: str, index: PetIndex, inspector: Inspector, pet_id: int, delayed: Sequence[FoundJob]
) -> Iterator[FoundJob]:
    candidates = index.entries_of(pet_id)
    pending = {entry.id: entry for entry in inspector.pending(sys.maxsize)}
    # entries that were delivered immediately were never indexed
    unknown = sorted(pending.keys() - set(candidates), key=_order)
    found = set[str | None]()
    for entry_ids in (candidates, unknown):
        for start in range(0, len(entry_ids), READ_PAGE):
            page = entry_ids[start : start + READ_PAGE]
            known = list(zip(page, _facts_of(inspector, page), strict=True))
            index.forget([entry_id for entry_id, facts in known if facts is None])
            for entry_id, facts in known:
                if facts is not None and facts.pet_id == pet_id:
                    found.add(facts.message_id)
                    yield _job(queue, inspector, entry_id, facts, pending)
    for job in [*delayed, *_delayed(queue, inspector, pet_id)]:
        if job.message_id not in found:
            found.add(job.message_id)
            yield job


def _delayed(queue: str, inspector: Inspector, pet_id: int) -> Iterator[FoundJob]:
    for name, message in inspector.delayed():
        facts = facts_of({b"message": message})
        if facts.pet_id == pet_id:
            yield FoundJob(queue, "delayed", None, facts.message_id, facts.actor, facts.media_id, None, delayed_as=name)


class KeepPetIndex(dramatiq.Middleware):
    """Middleware that updates the index in a thread of each worker process; servers call ``start`` and ``stop``."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._indexes = {queue: PetIndex(client, queue) for queue in INDEXED}
        self._broker: RedisStreamsBroker | None = None
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, RedisStreamsBroker)
        self.start(broker)

    def before_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self.stop()

    def start(self, broker: RedisStreamsBroker | None = None) -> None:
        """Start the thread. It indexes the shards that ``broker`` knows or, without a broker, undivided queues."""
        self._broker = broker
        self._is_stopping.clear()
        self._thread = threading.Thread(target=self._loop, name="pet-index", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. Safe to call twice."""
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def run_once(self) -> int:
        """Index waiting entries page by page, and return the number of entries indexed."""
        total = 0
        for shard in INDEXED if self._broker is None else shards_of_all(self._broker, INDEXED):
            index = self._indexes.setdefault(shard, PetIndex(self._client, shard))
            while n := index.note():
                total += n
                if n < PAGE or self._is_stopping.wait(PAUSE_S):
                    break
        return total

    def _loop(self) -> None:
        while not self._is_stopping.wait(ROUND_S):
            try:
                self.run_once()
            except (redis.RedisError, BrokerConnectionError) as error:
                logger.debug("waiting work not indexed", extra={"error": str(error)})


def _facts_of(inspector: Inspector, entry_ids: Sequence[str]) -> list[EntryFacts | None]:
    """Return the facts of each entry, or None for an entry that has ended."""
    return [None if fields is None else facts_of(fields) for fields in inspector.entries(entry_ids)]


def _job(queue: str, inspector: Inspector, entry_id: str, facts: EntryFacts, pending: dict[str, Any]) -> FoundJob:
    held = pending.get(entry_id)
    return FoundJob(
        queue=queue,
        state="waiting" if held is None or held.is_handed_back else "in flight",
        entry_id=entry_id,
        message_id=facts.message_id,
        # a flat event does not name its actor, but its queue has only one actor
        actor=facts.actor or (CLUSTER_EMBEDDING if facts.form == "event" else None),
        media_id=facts.media_id,
        added_at=added_at(entry_id),
        holder=None if held is None or held.is_handed_back else held.holder,
        deliveries=0 if held is None else held.deliveries,
    )


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)
