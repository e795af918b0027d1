"""The labelling effort: the corrections that a labeller makes per 100 new items. ``make bench ARGS=bill``.

Pets with known groups grow in eight batches. After each batch the pet is reclustered, and a simulated person corrects
all errors: the person moves items to the cluster of their subject or to a new one, excludes strangers, dismisses
clusters that contain only strangers, and merges clusters of one subject. Items in no cluster are ignored. A correction
of many items at once counts as one. The table compares settings for absorbing noise by the number of corrections, and
by the share of the items of known groups that end up in a cluster.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np

from benchmarks.quality.sets import BANKING77, LabelledSet, draw
from benchmarks.records import table
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, PetId
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.threads import quiet_blas

PET: Final = PetId(1)
BATCHES: Final = 8
SMALLEST, LARGEST = 100, 600
STRANGER: Final = -1
VERBS: Final = ("exclude", "dismiss", "merge", "place")
# Minimum number of items that the person puts in a new cluster as a separate subject; fewer count as strangers.
SUBJECT_FROM: Final = 3

CHOICES: Final = {
    "absorb up to a reach of 2.5; of 1.3 after an exclusion (default)": ClusterSettings(),
    "absorb up to a reach of 2.5": ClusterSettings(absorption_slack_excluded=2.5),
    "absorb up to a reach of 1.6": ClusterSettings(absorption_slack=1.6),
    "absorb up to a reach of 1.3": ClusterSettings(absorption_slack=1.3),
    "absorb nothing": ClusterSettings(noise_ratio=1.0),
}


@dataclass(slots=True)
class Bill:
    """The corrections of one pet by verb, and the resulting quality.

    Attributes:
        n_items: the number of items that arrived.
        in_cluster: the share of the items of known groups that are in a cluster at the end.
        right: the share of these items that are in the cluster of their own group.
        noise: the number of items in no cluster at the end.
    """

    corrections: Counter[str] = field(default_factory=Counter)
    n_items: int = 0
    in_cluster: float = 0.0
    right: float = 0.0
    noise: int = 0


class Person:
    """A simulated person who knows the subject of each item and corrects all errors in the clusters of a pet."""

    def __init__(self, service: ClusterService, subject_of: Callable[[MediaId], int]) -> None:
        self._service, self._subject_of = service, subject_of
        self.made: Counter[str] = Counter()

    def look(self) -> None:
        """Correct all errors in the clusters of the pet."""
        self._merge()
        home = {subject: cluster for cluster, subject in self._owners().items()}
        for cluster, media in self._clusters().items():
            self._tidy(cluster, media, home)

    def _clusters(self) -> dict[ClusterId, list[MediaId]]:
        return {view.cluster_id: list(view.media_ids) for view in self._service.clusters(PET).clusters}

    def _owners(self) -> dict[ClusterId, int]:
        """Return the most frequent subject of each cluster."""
        return {
            cluster: Counter(map(self._subject_of, media)).most_common(1)[0][0]
            for cluster, media in self._clusters().items()
        }

    def _merge(self) -> None:
        clusters_of = defaultdict(list)
        for cluster, subject in self._owners().items():
            clusters_of[subject].append(cluster)
        for subject, clusters in clusters_of.items():
            if subject != STRANGER and len(clusters) > 1:
                self._service.merge(PET, sorted(clusters), operation_id=self._next("merge"), by="person")

    def _tidy(self, cluster: ClusterId, media: list[MediaId], home: dict[int, ClusterId]) -> None:
        by_subject = defaultdict(list)
        for item in media:
            by_subject[self._subject_of(item)].append(item)
        owner = max(by_subject, key=lambda subject: len(by_subject[subject]))
        if owner == STRANGER:
            self._service.dismiss(PET, by_subject.pop(STRANGER), operation_id=self._next("dismiss"), by="person")
        strangers = list[MediaId]()
        for subject, items in by_subject.items():
            if subject == owner:
                continue
            if subject != STRANGER and (subject in home or len(items) >= SUBJECT_FROM):
                placed = self._service.place(
                    PET, items, into=home.get(subject), operation_id=self._next("place"), by="person"
                )
                assert placed.cluster is not None
                home[subject] = placed.cluster
            else:
                strangers += items
        if strangers and owner != STRANGER:
            self._service.exclude(PET, cluster, strangers, operation_id=self._next("exclude"), by="person")

    def _next(self, verb: str) -> str:
        self.made[verb] += 1
        return f"{verb} {self.made[verb]}"


def bill(one: LabelledSet, settings: ClusterSettings) -> Bill:
    """Return the corrections and the quality for a pet that grows to the set ``one``."""
    store = MemoryPetStore()
    service = ClusterService(store, settings=settings)
    person = Person(service, lambda item: int(one.truth[int(item)]))
    for batch in np.array_split(np.arange(len(one.truth)), BATCHES):
        for row in batch.tolist():
            service.assign(PET, MediaId(str(row)), model="bench@1", vector=one.vectors[row])
        service.recluster(PET)
        person.look()
    labels = store.load(PET).labels
    is_member = one.truth != STRANGER
    owner = {
        cluster: Counter(one.truth[labels == cluster].tolist()).most_common(1)[0][0]
        for cluster in np.unique(labels[labels != NOISE]).tolist()
    }
    right = [owner.get(label) == truth for label, truth in zip(labels.tolist(), one.truth.tolist(), strict=True)]
    return Bill(
        person.made,
        len(one.truth),
        float(np.mean(labels[is_member] != NOISE)),
        float(np.mean(np.array(right)[is_member])),
        service.clusters(PET).n_noise,
    )


def report(sets: Iterable[LabelledSet]) -> str:
    chosen = [one for one in sets if SMALLEST <= len(one.truth) <= LARGEST]
    rows = []
    for name, settings in CHOICES.items():
        bills = [bill(one, settings) for one in chosen]
        n = sum(one.n_items for one in bills)
        made = [100 * sum(one.corrections[verb] for one in bills) / n for verb in VERBS]
        rows.append(
            [
                name,
                f"{sum(made):.1f}",
                *(f"{value:.1f}" for value in made),
                f"{fmean(one.in_cluster for one in bills):.0%}",
                f"{fmean(one.right for one in bills):.0%}",
                f"{fmean(one.noise for one in bills):.1f}",
            ]
        )
    return table(
        ["per 100 new items", "corrections", *VERBS, "members in a cluster", "in the right one", "noise"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.bill", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102])
    parser.add_argument("--banking77", type=Path, default=BANKING77)
    arguments = parser.parse_args()
    with quiet_blas():
        print(report(one for seed in arguments.seeds for one in draw(seed, banking77=arguments.banking77)))


if __name__ == "__main__":
    main()
