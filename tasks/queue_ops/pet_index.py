"""Where a pet's work is, among 100,000 jobs, without asking anything of producers.

A stream can be read by id and not by content, and events come by plain ``XADD`` from any language. So what waits is
indexed by a reader: every worker process and every server notes every few seconds what has waited for two seconds or
more (:class:`KeepPetIndex`), and whoever asks catches up on the rest first. What goes straight through is never read.

    key                     type  holds                                                  ends
    {ns:q}:pets             zset  entry id, scored by pet                                entry by entry, with the work
    {ns:q}:pets:progress    hash  up_to: the last entry noted; rank: where forgetting is  with the work
                                  seen, seen_at, ripe: see pet_index.lua

Pet ids above 2^53 share a score with their neighbours; every answer is checked against the entry itself, which also
passes over what has ended meanwhile. Measured in ``benchmarks/find.py``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any, Final, cast

import dramatiq
import redis
from dramatiq.broker import Broker

from broker import Inspector, RedisStreamsBroker
from broker.keys import QueueKeys
from tasks.contracts import CLUSTER_EMBEDDING, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, NAMESPACE
from tasks.queue_ops.entries import EntryFacts, added_at, facts_of

logger = logging.getLogger("sploot-cluster.queue")

INDEXED: Final = (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER)

WAITED_MS: Final = 2_000
PAGE: Final = 200  # entries a call: one to two milliseconds of the server
CATCH_UP_PAGE: Final = 1_000
READ_PAGE: Final = 100  # entries of which all is read at once
# A backlog of 100,000 is noted within half a minute by one process, for at most a twentieth of the server's time.
ROUND_S: Final = 3.0
PAUSE_S: Final = 0.04

State = str


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job of a pet that has not ended.

    Attributes:
        state: ``waiting``, ``in flight``, ``delayed``, or ``in line`` behind another one of its ordering key.
        entry_id: None for the last two, which have none yet.
        holder: who works on it, where somebody does.
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


class PetIndex:
    """The index of one queue. Thread-safe, and safe in any number of processes at once."""

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self._client = client
        keys = QueueKeys(NAMESPACE, queue)
        self._keys = [keys.stream, f"{{{keys.stream}}}:pets", f"{{{keys.stream}}}:pets:progress"]
        self._script = client.register_script(files(__package__).joinpath("pet_index.lua").read_text(encoding="utf-8"))

    def note(self, n: int = PAGE, *, waited_ms: int = WAITED_MS) -> int:
        """Note at most ``n`` entries that have waited so long; how many those were."""
        looked_at, _ = cast("list[int]", self._script(keys=self._keys, args=[n, waited_ms]))
        return looked_at

    def catch_up(self) -> int:
        """Note all that waits; how many entries were read for that."""
        total = 0
        while True:
            n = self.note(CATCH_UP_PAGE, waited_ms=0)
            total += n
            if n < CATCH_UP_PAGE:
                return total

    def entries_of(self, pet_id: int) -> list[str]:
        """Entries that may be the pet's, oldest first; some may have ended."""
        found = cast("list[bytes]", self._client.zrangebyscore(self._keys[1], pet_id, pet_id))
        return sorted((entry_id.decode() for entry_id in found), key=_order)

    def forget(self, entry_ids: Sequence[str]) -> None:
        if entry_ids:
            self._client.zrem(self._keys[1], *entry_ids)


def find_jobs(
    broker: RedisStreamsBroker, client: redis.Redis, pet_id: int, *, limit: int = 1_000
) -> tuple[list[FoundJob], int]:
    """The pet's jobs that have not ended, of every queue, at most ``limit`` of each; and how many entries were indexed.

    Reads the index, what workers hold, and what is not in the stream yet; the last is read whole.
    """
    found: list[FoundJob] = []
    n_indexed = 0
    for queue in INDEXED:
        index, inspector = PetIndex(client, queue), broker.inspector(queue)
        n_indexed += index.catch_up()
        pending = {entry.id: entry for entry in inspector.pending(10_000)}
        candidates = index.entries_of(pet_id)
        known = _facts_of(inspector, candidates[:limit])
        index.forget([entry_id for entry_id, facts in zip(candidates, known, strict=False) if facts is None])
        for entry_id, facts in zip(candidates, known, strict=False):
            if facts is not None and facts.pet_id == pet_id:
                found.append(_job(queue, inspector, entry_id, facts, pending))
        # what was delivered at once was never indexed
        unknown = [entry_id for entry_id in pending if entry_id not in set(candidates)]
        for entry_id, facts in zip(unknown, _facts_of(inspector, unknown), strict=True):
            if facts is not None and facts.pet_id == pet_id:
                found.append(_job(queue, inspector, entry_id, facts, pending))
        for state, messages in (("delayed", inspector.delayed()), ("in line", inspector.in_line())):
            for message in messages:
                facts = facts_of({b"message": message})
                if facts.pet_id == pet_id:
                    found.append(FoundJob(queue, state, None, facts.message_id, facts.actor, facts.media_id, None))
    return found, n_indexed


class KeepPetIndex(dramatiq.Middleware):
    """Keeps the index of what waits, in a thread of each worker process, or from ``start`` to ``stop``."""

    def __init__(self, client: redis.Redis) -> None:
        self._indexes = [PetIndex(client, queue) for queue in INDEXED]
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self.start()

    def before_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self.stop()

    def start(self) -> None:
        self._is_stopping.clear()
        self._thread = threading.Thread(target=self._loop, name="pet-index", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Safe to call twice."""
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def run_once(self) -> int:
        """Note what waits, page by page; how many entries those were."""
        total = 0
        for index in self._indexes:
            while n := index.note():
                total += n
                if n < PAGE or self._is_stopping.wait(PAUSE_S):
                    break
        return total

    def _loop(self) -> None:
        while not self._is_stopping.wait(ROUND_S):
            try:
                self.run_once()
            except redis.RedisError as error:
                logger.debug("waiting work not indexed", extra={"error": str(error)})


def _facts_of(inspector: Inspector, entry_ids: Sequence[str]) -> list[EntryFacts | None]:
    """What entries say of themselves; None for one that has ended."""
    found: list[EntryFacts | None] = []
    for start in range(0, len(entry_ids), READ_PAGE):
        page = inspector.entries(entry_ids[start : start + READ_PAGE])
        found += [None if fields is None else facts_of(fields) for fields in page]
    return found


def _job(queue: str, inspector: Inspector, entry_id: str, facts: EntryFacts, pending: dict[str, Any]) -> FoundJob:
    held = pending.get(entry_id)
    return FoundJob(
        queue=queue,
        state="waiting" if held is None or held.is_handed_back else "in flight",
        entry_id=entry_id,
        message_id=facts.message_id,
        # a flat event does not name its actor; its queue has only one
        actor=facts.actor or (CLUSTER_EMBEDDING if facts.form == "event" else None),
        media_id=facts.media_id,
        added_at=added_at(entry_id),
        holder=None if held is None or held.is_handed_back else held.holder,
        deliveries=0 if held is None else held.deliveries,
    )


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)
