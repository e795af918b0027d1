"""The list of measurements, grouped by the pets that they need, because a gigabyte of pets takes long to create."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.pipeline.pets import Album

Traffic = Literal["uniform", "albums"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measurement: one row of the tables.

    Attributes:
        per_s: to measure latency, the events per second, without a backlog; None: measure the rate, with a backlog.
        is_warm: begin to measure once each process has seen nearly every pet; otherwise a few seconds after its start.
        batch_size: maximum number of waiting events that one call handles; 1: one event per call; None: the default.
        n_shards: number of shards of the queue.
        has_reclusters: whether pets that grew or drifted are reclustered by the same workers, as in production.
        bound: the target: events per second, or milliseconds at p95.
        growth: the comparison to which this measurement belongs: cost by number of pets, items or waiting events.
    """

    album: Album
    n_processes: int = 2
    backlog: int = 2_000
    traffic: Traffic = "uniform"
    per_s: float | None = None
    is_warm: bool = False
    batch_size: int | None = None
    n_shards: int = 1
    has_reclusters: bool = False
    bound: float | None = None
    growth: Literal["pets", "media", "backlog"] | None = None

    @property
    def name(self) -> str:
        load = f"{self.backlog} waiting" if self.per_s is None else f"{self.per_s:.0f}/s"
        processes = f"{self.n_processes} process{'es' if self.n_processes > 1 else ''}"
        sizes = {None: "", 1: ", one by one"}
        batches = sizes.get(self.batch_size, f", batches of {self.batch_size}")
        shards = f", {self.n_shards} shards" if self.n_shards > 1 else ""
        reclusters = ", with reclusters" * self.has_reclusters
        of_workers = f"{', warm' * self.is_warm}{batches}{shards}{reclusters}"
        return f"{self.album.name}, {self.traffic}, {processes}, {load}{of_workers}"


_MIXED: Final = Album(n_pets=1_000, n_media=None)

PLAN: Final[tuple[Measurement, ...]] = (
    # the typical load: many pets, most of them small
    Measurement(album=_MIXED, n_processes=1),
    Measurement(album=_MIXED),
    Measurement(album=_MIXED, n_processes=1, traffic="albums"),
    Measurement(album=_MIXED, traffic="albums"),
    Measurement(album=_MIXED, traffic="albums", per_s=300),
    # the target
    Measurement(album=Album(100, 500), bound=1_000, growth="pets"),
    Measurement(album=Album(100, 500), per_s=500, bound=50),
    Measurement(album=Album(100, 500), backlog=1_000, growth="backlog"),
    Measurement(album=Album(100, 500), backlog=100_000, growth="backlog"),
    Measurement(album=Album(100, 500), backlog=1_000_000, growth="backlog"),
    # without batches, to show what batches save
    Measurement(album=Album(100, 500), batch_size=1),
    Measurement(album=Album(100, 500), batch_size=64),
    Measurement(album=Album(100, 500), traffic="albums", batch_size=1),
    Measurement(album=Album(100, 500), traffic="albums"),
    Measurement(album=Album(100, 500), traffic="albums", batch_size=64),
    # shards: a batch has the events of fewer pets, and each process has its own pets
    Measurement(album=Album(100, 500), n_shards=8),
    Measurement(album=Album(100, 500), traffic="albums", n_shards=8),
    Measurement(album=Album(100, 500), traffic="albums", per_s=500, n_shards=8, bound=50),
    # with the reclusters that the arrivals request
    Measurement(album=Album(300, 500), has_reclusters=True),
    Measurement(album=Album(300, 500), n_shards=8, has_reclusters=True),
    Measurement(album=Album(300, 500), growth="pets"),
    Measurement(album=Album(1_000, 500), bound=1_000),
    Measurement(album=Album(1_000, 500), is_warm=True, bound=1_000, growth="pets"),
    Measurement(album=Album(1_000, 500), traffic="albums", bound=1_000),
    Measurement(album=Album(1_000, 500), traffic="albums", per_s=500, bound=50),
    # how the cost grows with the number of items per pet
    Measurement(album=Album(100, 50), growth="media"),
    Measurement(album=Album(100, 2_000), growth="media"),
)
