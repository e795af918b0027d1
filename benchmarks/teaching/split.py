"""The effect of a split on later items of two look-alikes.

A simulated person splits a cluster that contains two subjects that look alike. Then 150 other items of both subjects
arrive, with strangers (items of other subjects), and the pet is reclustered. The table shows the shares of the 150
items that are in the cluster of their own subject, in the cluster of the other subject, and elsewhere; and the share of
strangers that are in one of the two clusters. For comparison, it shows the share of the 150 items that a linear
discriminant classifies correctly, which is trained on the items that the person named and never gets strangers.

The look-alikes are synthetic, pairs of digits, and, where its file is present, sentences of banking77: the 38 pairs of
intents whose centres are most similar.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.quality.sets import BANKING77
from benchmarks.records import table
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from sploot_cluster.store.memory import MemoryPetStore

Numbers = npt.NDArray[np.int64]

PET: Final = PetId(1)
MODEL: Final = "bench@1"
N_LATER: Final = 150
N_STRANGERS: Final = 60


@dataclass(frozen=True, slots=True)
class Pair:
    """Two subjects that look alike, in random order.

    Attributes:
        vectors: (n, d) float32 of unit norm.
        truth: (n,) the subject, 0 or 1; -1 for a stranger, an item of one of several other subjects.
        n_named: the number of items of each subject that arrive before the split.
    """

    family: str
    vectors: FloatMatrix
    truth: Numbers
    n_named: int


@dataclass(frozen=True, slots=True)
class Shares:
    """The shares of later items in their own subject's cluster and in the other's, and of strangers in either."""

    right: float
    wrong: float
    strangers: float


def pairs(first_seed: int, n_seeds: int, *, banking77: Path = BANKING77) -> Iterator[Pair]:
    """Yield synthetic look-alikes, real sentences of similar intents if there are any, and pairs of digits."""
    from sklearn.datasets import load_digits

    for seed in range(first_seed, first_seed + n_seeds):
        yield _made_up(seed, n_named=30)
    if banking77.exists():
        stored = np.load(banking77)
        sentences, intent_of = as_vectors(stored["X"]), stored["y"].astype(np.int64)
        alike = _most_alike(sentences, intent_of)
        for seed in range(first_seed, first_seed + n_seeds):
            random = np.random.default_rng(seed)
            yield _pair("banking77", sentences, intent_of, alike[int(random.integers(len(alike)))], random, n_named=10)
    digits = load_digits()
    pictures, digit_of = as_vectors(digits.data), digits.target
    for n_named in (10, 30, 60):
        for seed in range(first_seed, first_seed + n_seeds):
            random = np.random.default_rng(seed)
            two = list(combinations(range(10), 2))[int(random.integers(45))]
            yield _pair("digits", pictures, digit_of, two, random, n_named=n_named)


def _pair(
    family: str,
    vectors: FloatMatrix,
    subject_of: Numbers,
    two: tuple[int, int],
    random: np.random.Generator,
    *,
    n_named: int,
) -> Pair:
    is_one = np.isin(subject_of, two)
    chosen = random.permutation(np.flatnonzero(is_one))
    strangers = random.permutation(np.flatnonzero(~is_one))[:N_STRANGERS]
    truth = np.concatenate([(subject_of[chosen] == two[1]).astype(np.int64), np.full(N_STRANGERS, -1)])
    return Pair(f"{family}, {n_named} of each named", vectors[np.concatenate([chosen, strangers])], truth, n_named)


def _most_alike(vectors: FloatMatrix, subject_of: Numbers) -> list[tuple[int, int]]:
    """Return the pairs of subjects with the most similar centres: half as many pairs as subjects."""
    subjects = np.unique(subject_of)
    centres = as_vectors(np.array([vectors[subject_of == subject].mean(axis=0) for subject in subjects]))
    ones, others = np.triu_indices(len(subjects), 1)
    order = np.argsort(-(centres @ centres.T)[ones, others])[: len(subjects) // 2]
    return [(int(subjects[ones[at]]), int(subjects[others[at]])) for at in order]


def _made_up(seed: int, *, n_named: int, n: int = 200, dim: int = 512) -> Pair:
    random = np.random.default_rng(seed)

    def directions(count: int) -> FloatMatrix:
        # a decreasing spectrum, like that of real embeddings
        return as_vectors(random.normal(size=(count, dim)) / np.sqrt(1 + np.arange(dim) / 40))

    common, difference = directions(1)[0], directions(1)[0]
    vectors = []
    # two look-alikes, and six subjects that are as similar to them as subjects of one pet usually are
    centres = [common + sign * 0.25 * difference for sign in (1, -1)]
    centres += [common + 0.6 * another for another in directions(6)]
    for centre, count in zip(as_vectors(np.array(centres)), [n, n] + [N_STRANGERS // 6] * 6, strict=True):
        likeness = np.clip(random.normal(0.75, 0.04, size=count), 0.3, 0.98)[:, None]
        own = directions(count)
        own = as_vectors(own - np.outer(own @ centre, centre))
        vectors.append(likeness * centre + np.sqrt(1 - likeness**2) * own)
    truth = np.repeat([0, 1, -1], [n, n, N_STRANGERS])
    order = random.permutation(len(truth))
    return Pair(f"made up, {n_named} of each named", as_vectors(np.vstack(vectors))[order], truth[order], n_named)


def taught(pair: Pair) -> tuple[Shares, Shares, float]:
    """Split a cluster; return the shares on arrival and after a recluster, and a linear discriminant's accuracy."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    named = np.concatenate([np.flatnonzero(pair.truth == subject)[: pair.n_named] for subject in (0, 1)])
    later = np.setdiff1d(np.flatnonzero(pair.truth >= 0), named)[:N_LATER]
    strangers = np.flatnonzero(pair.truth < 0)
    service = ClusterService(MemoryPetStore())

    def take(rows: Numbers) -> None:
        for row in rows.tolist():
            service.assign(PET, MediaId(str(row)), model=MODEL, vector=pair.vectors[row])

    take(named)
    service.place(PET, [MediaId(str(row)) for row in named], operation_id="gather", by="person")
    mixed = service.clusters(PET).clusters[0]
    moved = [item for item in mixed.media_ids if pair.truth[int(item)] == 1]
    split = service.split(PET, mixed.cluster_id, moved, operation_id="split", by="person")
    assert split.cluster is not None
    sides = (mixed.cluster_id, split.cluster)
    take(np.random.default_rng(len(later)).permutation(np.concatenate([later, strangers])))
    on_arrival = _shares(service, pair, later, strangers, sides)
    service.recluster(PET)
    after = _shares(service, pair, later, strangers, sides)
    learner = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    learner.fit(pair.vectors[named], pair.truth[named])
    return on_arrival, after, float(np.mean(learner.predict(pair.vectors[later]) == pair.truth[later]))


def _shares(
    service: ClusterService, pair: Pair, later: Numbers, strangers: Numbers, sides: tuple[ClusterId, ClusterId]
) -> Shares:
    cluster_of = {item: view.cluster_id for view in service.clusters(PET).clusters for item in view.media_ids}

    def share(rows: Numbers, wanted: dict[int, tuple[ClusterId, ...]]) -> float:
        return fmean(cluster_of.get(MediaId(str(row))) in wanted[int(pair.truth[row])] for row in rows.tolist())

    return Shares(
        right=share(later, {0: sides[:1], 1: sides[1:]}),
        wrong=share(later, {0: sides[1:], 1: sides[:1]}),
        strangers=share(strangers, {-1: sides}),
    )


def report(taught_pairs: Iterable[Pair]) -> str:
    rows: dict[str, list[tuple[Shares, Shares, float]]] = {}
    for pair in taught_pairs:
        rows.setdefault(pair.family, []).append(taught(pair))
    names = ["right on arrival", "after a recluster", "wrong side", "strangers on arrival", "after", "a discriminant"]
    lines = []
    for family, results in rows.items():
        cells = (
            fmean(one.right for one, _, _ in results),
            fmean(after.right for _, after, _ in results),
            fmean(after.wrong for _, after, _ in results),
            fmean(one.strangers for one, _, _ in results),
            fmean(after.strangers for _, after, _ in results),
            fmean(learner for _, _, learner in results),
        )
        lines.append([f"{family} ({len(results)} draws)", *(f"{cell:.2f}" for cell in cells)])
    return table(["", *names], lines)
