"""What the queues and the job records still say of a pet or a medium, and its removal.

The pet itself is ``ClusterService``'s; here is what travelled: records of jobs, dead letters, and events that wait. An
event that waits would bring the medium back, so an erasure is refused while there is one: let it run, then erase.

What is outside of Redis is outside of this too: logs, backups, captures and exports that somebody made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

import redis
from dramatiq.errors import BrokerConnectionError

from broker import RedisStreamsBroker
from sploot_cluster.jobs import QueueUnavailable, Traces
from sploot_cluster.queues import LetterFilter
from sploot_cluster.refusals import REDIS_ERRORS, explained, refusal_of
from tasks.contracts import CLUSTER_EMBEDDING, CLUSTER_FEEDBACK, QUEUES
from tasks.jobs import RECORD_PREFIX
from tasks.queue_ops.letters import select
from tasks.queue_ops.pet_index import find_jobs

PAGE: Final = 500
MAX_LETTERS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Erasure:
    """Finds and removes what queues and records say of pets. Implements ``sploot_cluster.jobs.JobTraces``."""

    broker: RedisStreamsBroker
    client: redis.Redis

    def close(self) -> None:
        """Close the connections that the broker made; ``client`` is its owner's."""
        self.broker.close()

    def find(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
        """Return how much there is of a pet, or of some of its media.

        Raises:
            QueueUnavailable: Redis did not answer, or refused.
        """
        with _reaching_redis("nothing was removed"):
            return Traces(
                n_records=sum(1 for _ in self._records(pet_id, media_ids)),
                n_dead_letters=sum(len(ids) for ids in self._letters(pet_id, media_ids).values()),
                n_waiting=self._n_waiting(pet_id, media_ids),
            )

    def erase(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
        """Remove it; what waits is counted and left.

        Raises:
            QueueUnavailable: Redis did not answer, or refused; erase again, which goes on where this ended.
        """
        with _reaching_redis("some may have been removed, erasing again is safe"):
            records = list(self._records(pet_id, media_ids))
            for start in range(0, len(records), PAGE):
                self.client.delete(*records[start : start + PAGE])
            n_letters = 0
            for queue, ids in self._letters(pet_id, media_ids).items():
                n_letters += self.broker.dead_letters(queue).purge(ids)
            return Traces(len(records), n_letters, self._n_waiting(pet_id, media_ids))

    def _records(self, pet_id: int, media_ids: Collection[str] | None) -> Iterator[bytes]:
        page: list[bytes] = []
        for key in cast("Iterator[bytes]", self.client.scan_iter(f"{RECORD_PREFIX}*", count=PAGE)):
            page.append(key)
            if len(page) == PAGE:
                yield from self._of_pet(page, pet_id, media_ids)
                page = []
        yield from self._of_pet(page, pet_id, media_ids)

    def _of_pet(self, keys: list[bytes], pet_id: int, media_ids: Collection[str] | None) -> Iterator[bytes]:
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.hgetall(key)
        for key, record in zip(keys, cast("list[dict[bytes, bytes]]", pipe.execute()), strict=True):
            text = b" ".join((key, *record.values()))
            if record.get(b"pet_id") == str(pet_id).encode() and _names(text, media_ids):
                yield key

    def _letters(self, pet_id: int, media_ids: Collection[str] | None) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for queue in QUEUES:
            letters = self.broker.dead_letters(queue)
            for letter in select(letters, LetterFilter(pet_id=pet_id), now=datetime.now(UTC), limit=MAX_LETTERS):
                text = b" ".join((*letter.fields.values(), letter.error.encode()))
                if _names(text, media_ids):
                    found.setdefault(queue, []).append(letter.id)
        return found

    def _n_waiting(self, pet_id: int, media_ids: Collection[str] | None) -> int:
        jobs, _ = find_jobs(self.broker, self.client, pet_id)
        return sum(
            # whatever medium it is about: one that is refused for naming what is gone becomes a dead letter
            job.queue == CLUSTER_FEEDBACK
            # a flat event has no actor until it is delivered
            or (job.actor in (None, CLUSTER_EMBEDDING) and (media_ids is None or job.media_id in media_ids))
            for job in jobs
        )


@contextmanager
def _reaching_redis(outcome: str) -> Iterator[None]:
    try:
        yield
    except (*REDIS_ERRORS, BrokerConnectionError) as error:
        raise QueueUnavailable(explained(error, outcome=outcome), refusal=refusal_of(error)) from error


def _names(text: bytes, media_ids: Collection[str] | None) -> bool:
    """Whether a text is about one of the media: as it is, or as JSON writes it."""
    if media_ids is None:
        return True
    return any(form in text for medium in media_ids for form in (medium.encode(), json.dumps(medium)[1:-1].encode()))
