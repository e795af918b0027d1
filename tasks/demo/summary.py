"""The demo's final output: a table, the guarantees, a JSON file and a map of each pet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tasks.demo.maps import draw_map
from tasks.demo.sample import Album
from tasks.demo.story import Seen


@dataclass(frozen=True, slots=True)
class PetFigures:
    """One pet's row of the summary.

    Attributes:
        ari: adjusted Rand index against the truth, with noise and planted outliers as singletons, so that labelling
            everything as noise scores 0.
    """

    pet_id: int
    name: str
    media: int
    clusters: int
    noise: int
    ari: float
    corrections: int
    constraints_kept: str


def figures_of(album: Album, seen: Seen) -> PetFigures:
    """Return the measurements of one pet after the last recluster."""
    from sklearn.metrics import adjusted_rand_score  # imported here, because the import takes a second

    labels = np.array([seen.clusters[album.pet_id].get(item, -1) for item in album.media_ids])
    corrections = [correction for correction in seen.corrections if correction.pet_id == album.pet_id]
    return PetFigures(
        pet_id=album.pet_id,
        name=album.name,
        media=len(album.media_ids),
        clusters=len(set(labels[labels >= 0].tolist())),
        noise=int((labels < 0).sum()),
        ari=float(adjusted_rand_score(_as_singletons(album.truth), _as_singletons(labels))),
        corrections=len(corrections),
        constraints_kept=seen.constraints.get(album.pet_id, "–"),
    )


def write_summary(directory: Path, albums: Sequence[Album], seen: Seen) -> None:
    """Write summary.json, summary.txt and pet-<id>.png into ``directory``."""
    figures = [figures_of(album, seen) for album in albums]
    document = {
        "pets": [asdict(row) for row in figures],
        "jobs": dict(seen.jobs),
        "event_to_assignment_ms": {"p50": seen.age_quantile_ms(0.5), "p95": seen.age_quantile_ms(0.95)},
        "promises": [asdict(promise) for promise in seen.promises],
    }
    (directory / "summary.json").write_text(json.dumps(document, indent=2) + "\n")
    with (directory / "summary.txt").open("w") as text:
        Console(file=text, width=110).print(render(albums, seen))
    for album, row in zip(albums, figures, strict=True):
        where, corrected = seen.clusters[album.pet_id], seen.corrected.get(album.pet_id, set())
        draw_map(
            directory / f"pet-{album.pet_id}.png",
            title=f"{album.name} · pet {album.pet_id}",
            subtitle=f"{row.media} items in {row.clusters} clusters, {row.noise} noise · "
            f"adjusted Rand index {row.ari:.2f} · constraints kept {row.constraints_kept}",
            vectors=album.vectors,
            labels=[where.get(item, -1) for item in album.media_ids],
            corrected=[item in corrected for item in album.media_ids],
        )


def render(albums: Sequence[Album], seen: Seen) -> Group:
    """Return the summary in printable form."""
    pets = Table(title="Pets after the last recluster", title_justify="left")
    pets.add_column("pet")
    for name in ("items", "clusters", "noise", "ARI", "corrections", "constraints kept"):
        pets.add_column(name, justify="right")
    for row in (figures_of(album, seen) for album in albums):
        cells = (row.media, row.clusters, row.noise, f"{row.ari:.2f}", row.corrections, row.constraints_kept)
        pets.add_row(f"{row.pet_id} {row.name}", *map(str, cells))
    jobs = Text.assemble(
        ("Jobs ", "bold"),
        f"{seen.jobs['done']:,} done, {seen.jobs['retried']} retried, "
        f"{seen.jobs['recovered']} recovered from the killed worker, {seen.jobs['dead']} dead\n",
        ("From event to assignment ", "bold"),
        f"p50 {seen.age_quantile_ms(0.5):.0f} ms, p95 {seen.age_quantile_ms(0.95):.0f} ms "
        f"over {len(seen.ages_ms):,} events in {seen.ingest_s:.0f} s",
    )
    promises = Table(title="Guarantees and observations", title_justify="left", show_header=False)
    for promise in seen.promises:
        mark = Text("kept", style="green") if promise.is_kept else Text("BROKEN", style="bold red")
        promises.add_row(mark, promise.text, promise.seen)
    return Group(pets, jobs, promises)


def _as_singletons(labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    """Return the labels with each -1 replaced by a group of its own."""
    return [int(label) if label >= 0 else -1 - row for row, label in enumerate(labels)]
