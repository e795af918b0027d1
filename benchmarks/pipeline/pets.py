"""Pets that already have items, and events that resemble these items.

The items of all pets come from the same groups, of which each pet has a slice, because the cost of an arrival depends
on the number of a pet's items and not on their content. One event in twenty is noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import redis

from benchmarks.pipeline.stamps import media_id
from sploot_cluster.event import SCHEMA
from sploot_cluster.pet.models import Arrival, Change, ClusterCard, ClusterId, MediaId, Origin, PetId
from sploot_cluster.pet.rows import empty_state
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from sploot_cluster.store.redis import RedisPetStore
from tasks.contracts import EMBEDDING_INGESTED, stream_of
from tasks.shards import bucket_of_pet

DIM: Final = 512
MODEL: Final = "bench@1"
MEDIA_PER_GROUP: Final = 40
MOST_MEDIA: Final = 2_000
ALBUM: Final = 20
NOISE_RATIO: Final = 0.05
Event = dict[Any, Any]  # dict[Any, Any], because redis-py accepts names and values of several types
STREAM: Final = stream_of(EMBEDDING_INGESTED)


@dataclass(frozen=True, slots=True)
class Album:
    """The number and the size of the pets of a measurement.

    Attributes:
        n_media: number of items in every pet; None: pets of 50 to 2,000 items, most of them small.
    """

    n_pets: int
    n_media: int | None

    def sizes(self) -> Sequence[int]:
        if self.n_media is not None:
            return [self.n_media] * self.n_pets
        rng = np.random.default_rng(7)
        return [int(size) for size in np.clip(rng.lognormal(5.5, 0.9, size=self.n_pets), 50, MOST_MEDIA)]

    @property
    def name(self) -> str:
        return f"{self.n_pets} pets of {self.n_media or '50 to 2000'}"


class World:
    """The groups from which all items and events are drawn."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(11)
        self._centres = self._rng.normal(size=(MOST_MEDIA // MEDIA_PER_GROUP, DIM)) + self._rng.normal(size=DIM)
        self._media = as_vectors(
            np.repeat(self._centres, MEDIA_PER_GROUP, axis=0) + 0.8 * self._rng.normal(size=(MOST_MEDIA, DIM))
        )

    def populate(self, store: RedisPetStore, album: Album) -> None:
        """Write every pet in one commit, as a recluster would leave it."""
        threshold = 0.55
        for number, size in enumerate(album.sizes(), start=1):
            labels = [1 + row // MEDIA_PER_GROUP for row in range(size)]
            arrivals = tuple(
                Arrival(
                    MediaId(f"{number:020d}/{row:015d}"),
                    self._media[row],
                    ClusterId(label),
                    Origin.CORE,
                )
                for row, label in enumerate(labels)
            )
            cards = {
                ClusterId(label): ClusterCard(ClusterId(label), threshold=threshold, since=1)
                for label in sorted(set(labels))
            }
            store.commit(
                empty_state(PetId(number)),
                Change(
                    "recluster",
                    next_cluster=ClusterId(len(cards) + 1),
                    n_at_recluster=size,
                    noise_arrivals=0,
                    model=MODEL,
                    dim=DIM,
                    arrivals=arrivals,
                    clusters=cards,
                ),
            )

    def events(self, album: Album, n: int, *, traffic: str) -> Iterator[Event]:
        """Yield flat events. ``uniform``: each for a random pet; ``albums``: twenty per pet, fifty pets at a time."""
        sizes = album.sizes()
        pool = self._vectors(4_096)
        pets = self._pets(album, n, traffic)
        for number in range(n):
            pet = int(pets[number])
            # choose among the groups that the pet has
            n_groups = max(1, sizes[pet - 1] // MEDIA_PER_GROUP)
            yield {
                "schema": SCHEMA,
                "event_id": f"{number:036d}",
                "pet_id": pet,
                "media_id": media_id(time.monotonic_ns(), number),
                "model": MODEL,
                "dim": DIM,
                "encoding": "f32le",
                "embedding": pool[number % n_groups][number % len(pool[0])],
            }

    def _pets(self, album: Album, n: int, traffic: str) -> Sequence[int]:
        if traffic == "uniform":
            return [int(pet) for pet in self._rng.integers(1, album.n_pets + 1, size=n)]
        n_albums = -(-n // ALBUM)
        owners = self._rng.integers(1, album.n_pets + 1, size=n_albums)
        at_once = 50
        order: list[int] = []
        for start in range(0, n_albums, at_once):
            order += [int(pet) for pet in np.tile(owners[start : start + at_once], ALBUM)]
        return order[:n]

    def _vectors(self, n: int) -> list[list[bytes]]:
        """Return, for each group, the vectors of some events as bytes; a few in each group are noise."""
        per_group = max(8, n // len(self._centres))
        pool = []
        for centre in self._centres:
            x = centre + 0.8 * self._rng.normal(size=(per_group, DIM))
            is_noise = self._rng.random(per_group) < NOISE_RATIO
            x[is_noise] = 4 * self._rng.normal(size=(int(is_noise.sum()), DIM))
            vectors: FloatMatrix = as_vectors(x)
            pool.append([row.astype("<f4").tobytes() for row in vectors])
        return pool


def send(
    client: redis.Redis, events: Iterator[Event], *, streams: Sequence[str] = (STREAM,), per_s: float | None = None
) -> int:
    """Send the events with XADD, as fast as possible or ``per_s`` a second; return the number of events.

    Args:
        streams: the streams of the shards of the queue, in order.
    """

    def stream_for(event: Event) -> str:
        return streams[bucket_of_pet(int(event["pet_id"])) % len(streams)]

    n, start = 0, time.monotonic()
    if per_s is not None:
        for event in events:
            ahead_s = start + n / per_s - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)
                event["media_id"] = media_id(time.monotonic_ns(), n)
            client.xadd(stream_for(event), event)
            n += 1
        return n
    pipeline = client.pipeline(transaction=False)
    for event in events:
        pipeline.xadd(stream_for(event), event)
        n += 1
        if n % 500 == 0:
            pipeline.execute()
    pipeline.execute()
    return n
