"""Erasure of the data about a pet or an item from the queues and job records.

``ClusterService`` erases the pet itself; this module handles job records, dead letters and waiting events. A waiting
event would bring the item back, so an erasure is refused until the event has been processed.

A dead letter is the only copy of a failed job. It is deleted only if its fields, or the list of ids in its error, name
an item of this pet exactly. An unreadable one that may belong to this pet is reported and stays.

Data outside Redis is out of scope: logs, backups, captures and exports.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import cast

import redis

from broker import RedisStreamsBroker
from sploot_cluster.errors import UnknownMedia
from sploot_cluster.jobs import DeadLetterRef, Traces
from tasks.contracts import CLUSTER_EMBEDDING, CLUSTER_FEEDBACK
from tasks.job_records import PAGE, RECORD_PREFIX, JobRecords
from tasks.observe.figures.noise import NoiseWatch
from tasks.queue_ops.dead_letters import pet_of
from tasks.queue_ops.entries import is_unclear, media_of
from tasks.queue_ops.pet_index import each_job
from tasks.redis_access.errors import reaching_redis
from tasks.shards import shards_of_all


@dataclass(frozen=True, slots=True)
class Erasure:
    """An eraser of the traces of pets in queues and job records. Implements ``sploot_cluster.jobs.JobTraces``."""

    broker: RedisStreamsBroker
    client: redis.Redis

    def close(self) -> None:
        """Close the connections that the broker opened; ``client`` belongs to the caller."""
        self.broker.close()

    def find(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
        """Return the data about a pet, or about some of its items, that queues and job records hold.

        Raises:
            QueueUnavailable: Redis did not answer or refused.
        """
        with reaching_redis("nothing was removed"):
            return self._found(pet_id, media_ids)

    def erase(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
        """Erase this data and return what was erased. Waiting jobs are counted but not erased.

        Raises:
            QueueUnavailable: Redis did not answer or refused; a second call erases the rest.
        """
        with reaching_redis("some may have been removed; erasing again is safe"):
            found = self._found(pet_id, media_ids)
            JobRecords(self.client).forget(pet_id, found.records)
            if media_ids is None:
                NoiseWatch(self.client).forget(pet_id)
            for queue in dict.fromkeys(dead_letter.queue for dead_letter in found.dead_letters):
                ids = [dead_letter.dead_letter_id for dead_letter in found.dead_letters if dead_letter.queue == queue]
                self.broker.dead_letters(queue).purge(ids)
            return found

    def _found(self, pet_id: int, media_ids: Collection[str] | None) -> Traces:
        records = list(self._records(pet_id, media_ids))
        dead_letters, unreadable = self._dead_letters(pet_id, media_ids)
        return Traces(
            n_records=len(records),
            n_dead_letters=len(dead_letters),
            n_waiting=self._n_waiting(pet_id, media_ids),
            records=tuple(records),
            dead_letters=tuple(dead_letters),
            unreadable=tuple(unreadable),
        )

    def _records(self, pet_id: int, media_ids: Collection[str] | None) -> Iterator[str]:
        ids = JobRecords(self.client).ids_of(pet_id)
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            pipe = self.client.pipeline(transaction=False)
            for job_id in page:
                pipe.hmget(RECORD_PREFIX + job_id, ["pet_id", "result", "error"])
            answers = cast("list[tuple[bytes | None, bytes | None, bytes | None]]", pipe.execute())
            for job_id, (pet, result, error) in zip(page, answers, strict=True):
                named = _media_of_result(result) | media_of_error((error or b"").decode(errors="replace"))
                # the job id may have been reused for a job of another pet
                if pet == str(pet_id).encode() and (media_ids is None or not named.isdisjoint(media_ids)):
                    yield job_id

    def _dead_letters(
        self, pet_id: int, media_ids: Collection[str] | None
    ) -> tuple[list[DeadLetterRef], list[DeadLetterRef]]:
        """Return the dead letters about the pet or its items, and the unreadable ones that may be about them."""
        found: list[DeadLetterRef] = []
        unreadable: list[DeadLetterRef] = []
        for queue in shards_of_all(self.broker):
            before: str | None = None
            while page := self.broker.dead_letters(queue).list(PAGE, before=before):
                for dead_letter in page:
                    named = media_of(dead_letter.fields) | media_of_error(dead_letter.error)
                    if is_unclear(dead_letter.fields, pet_id):
                        unreadable.append(DeadLetterRef(queue, dead_letter.id))
                    elif pet_of(dead_letter) == pet_id and (media_ids is None or not named.isdisjoint(media_ids)):
                        found.append(DeadLetterRef(queue, dead_letter.id))
                before = page[-1].id
        return found, unreadable

    def _n_waiting(self, pet_id: int, media_ids: Collection[str] | None) -> int:
        return sum(
            # a correction counts whichever items it names, because it becomes a dead letter if an item is gone
            job.queue == CLUSTER_FEEDBACK
            # An entry that cannot be read has no actor. If it is too large to be read whole, its item may be unknown.
            or (
                job.actor in (None, CLUSTER_EMBEDDING)
                and (media_ids is None or job.media_id is None or job.media_id in media_ids)
            )
            for job in each_job(self.broker, self.client, pet_id)
        )


def _media_of_result(result: bytes | None) -> frozenset[str]:
    """Return the ids of the items that a job's result names."""
    try:
        answered = json.loads(result or b"null")
    except ValueError:
        return frozenset()
    if not isinstance(answered, dict):
        return frozenset()
    values = [answered.get(name) for name in ("media", "media_id", "media_ids")]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return frozenset(item for item in items if isinstance(item, str))


def media_of_error(error: str) -> frozenset[str]:
    """Return the item ids that the text of an :class:`UnknownMedia` error lists as JSON strings.

    Other errors are not searched, because they may quote models and fields that look like ids. A truncated id is left
    out.
    """
    _, found, rest = error.partition(f"{UnknownMedia.__name__}: media_ids: ")
    names, decoder = set(), json.JSONDecoder()
    while found and rest.startswith('"'):
        try:
            name, end = decoder.raw_decode(rest)
        except ValueError:
            break
        names.add(name)
        rest = rest[end:].removeprefix(", ")
    return frozenset(names)
