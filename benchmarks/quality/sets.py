"""Data sets with known groups for measuring quality: real pictures, real sentences, and synthetic pets.

A set is drawn from a seed. ``truth`` is the group of each item, -1 for an outlier, which belongs to no group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.pet.vectors import FloatMatrix, as_vectors

Truth = npt.NDArray[np.int64]

# Default path of embeddings of real sentences with known intents, 3,080 × 384; used if the file exists.
BANKING77: Final = Path(__file__).resolve().parents[3] / "shared" / "cluster" / "banking77_test.npz"

PET_SIZES: Final = (60, 150, 300, 800)
MADE_UP_SIZES: Final = (30, 60, 150, 400, 1_000, 3_000)
# Sets with bursts: (number of items before any are copied, frames of one burst per subject including the original,
# copies of each stranger). 0 copies: no strangers.
BURSTS: Final = ((100, 8, 0), (100, 20, 3), (250, 12, 3), (600, 20, 0))
# Sets of small groups: (number of groups, number of outliers).
SMALL: Final = ((12, 0), (40, 0), (120, 60), (400, 0))


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Vectors with known groups.

    Attributes:
        family: the kind of data set; results are averaged per family.
        vectors: (n, d) float32 of unit norm.
        truth: (n,) group, -1 = outlier.
    """

    family: str
    name: str
    vectors: FloatMatrix
    truth: Truth


def draw(seed: int, *, banking77: Path = BANKING77) -> Iterator[LabelledSet]:
    """Yield all data sets of one seed. Some sets are used whole and do not depend on the seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures, digit_of = as_vectors(digits.data), digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    yield LabelledSet("digits", "digits", pictures, digit_of)
    yield from _albums(seed)
    for n in PET_SIZES[:3]:
        yield _pet("pets of digits", pictures, digit_of, n, rng, n_groups=int(rng.integers(2, 8)))
    if banking77.exists():
        stored = np.load(banking77)
        sentences, intent_of = as_vectors(stored["X"]), stored["y"].astype(np.int64)
        yield LabelledSet("banking77", "banking77", sentences, intent_of)
        for n in PET_SIZES:
            groups = int(rng.integers(max(3, n // 40), max(6, n // 14)))
            yield _pet("pets of banking77", sentences, intent_of, n, rng, n_groups=groups)
    for n in MADE_UP_SIZES:
        yield _made_up(n, rng)
    for n, n_frames, n_copies in BURSTS:
        yield _bursts(n, n_frames, n_copies, rng)
    for n_groups, n_outliers in SMALL:
        yield _small_groups(n_groups, n_outliers, rng)


def _albums(seed: int) -> Iterator[LabelledSet]:
    """Yield the pets of the demo. In pets with planted outliers, the first item is one of these."""
    from tasks.demo.sample import albums

    for album in albums(seed=seed):
        yield LabelledSet("demo", f"demo: {album.name}", album.vectors, album.truth)


def _pet(
    family: str, vectors: FloatMatrix, truth: Truth, n: int, rng: np.random.Generator, *, n_groups: int
) -> LabelledSet:
    """Return uneven groups from a real set, and 7 % outliers: single items from other groups."""
    groups = rng.permutation(np.unique(truth))
    chosen, others = groups[:n_groups], groups[n_groups:]
    n_outliers = round(0.07 * n)
    sizes = np.round(rng.dirichlet(np.full(n_groups, 1.5)) * (n - n_outliers)).astype(int)
    rows: list[int] = []
    labels: list[int] = []
    for group, size in zip(chosen.tolist(), np.maximum(sizes, 3).tolist(), strict=True):
        members = rng.permutation(np.flatnonzero(truth == group))[:size]
        rows += members.tolist()
        labels += [group] * len(members)
    # one item from each other group, or two if there are few groups, so that outliers do not form a group
    strangers = [rng.permutation(np.flatnonzero(truth == group))[:2] for group in others.tolist()]
    for item in [int(one[0]) for one in strangers][:n_outliers] + [int(one[1]) for one in strangers][
        : max(0, n_outliers - len(strangers))
    ]:
        rows.append(item)
        labels.append(-1)
    order = rng.permutation(len(rows))
    name = f"{family}, {len(rows)} media of {n_groups} groups"
    return LabelledSet(family, name, vectors[np.array(rows)[order]], np.array(labels, dtype=np.int64)[order])


def _made_up(n: int, rng: np.random.Generator, *, dim: int = 512) -> LabelledSet:
    """Return uneven, anisotropic groups in a cone, with 8 % outliers in the same cone."""
    n_groups = max(2, round(n / rng.uniform(12, 60)))
    sizes = rng.lognormal(0, 0.9, size=n_groups)
    truth = rng.choice(n_groups, size=n, p=sizes / sizes.sum()).astype(np.int64)
    truth[rng.random(n) < 0.08] = -1
    cone = rng.normal(size=dim) * rng.uniform(0.5, 1.5)
    scale = rng.lognormal(0, 0.5, size=dim)
    centres = rng.normal(size=(n_groups, dim)) * scale
    spread = rng.uniform(0.5, 1.25, size=n_groups)
    noise = rng.normal(size=(n, dim)) * scale
    x = np.where(truth[:, None] < 0, noise, centres[truth] + spread[truth][:, None] * noise) + cone
    return LabelledSet("made up", f"made up, {n} media of {n_groups} groups", as_vectors(x), truth)


def _bursts(n: int, n_frames: int, n_copies: int, rng: np.random.Generator, *, dim: int = 512) -> LabelledSet:
    """Return five subjects of n / 5 items, each with a burst: ``n_frames - 1`` near copies of one of its items.

    If ``n_copies`` is not 0, there are also ten strangers, each ``n_copies`` times.
    """
    n_subjects, n_strangers = 5, 10 * bool(n_copies)
    truth = np.arange(n) % n_subjects
    centres = as_vectors(rng.normal(size=(n_subjects, dim)))
    items = as_vectors(0.78 * centres[truth] + 0.62 * as_vectors(rng.normal(size=(n, dim))))
    strangers = as_vectors(rng.normal(size=(n_strangers, dim))) if n_strangers else items[:0]
    frames = np.repeat(items[:n_subjects], n_frames - 1, axis=0)
    frames = as_vectors(frames + 0.08 * as_vectors(rng.normal(size=frames.shape)))
    x = np.concatenate([items, frames, np.repeat(strangers, n_copies, axis=0)])
    groups = [truth, np.repeat(truth[:n_subjects], n_frames - 1), np.full(n_strangers * n_copies, -1)]
    order = rng.permutation(len(x))
    name = f"bursts, {len(x)} media with {n_frames} frames each"
    return LabelledSet("bursts", name, x[order], np.concatenate(groups).astype(np.int64)[order])


def _small_groups(n_groups: int, n_outliers: int, rng: np.random.Generator, *, dim: int = 512) -> LabelledSet:
    """Return groups of 3 to 11 items, fewer than a large group needs, around unrelated centres."""
    groups = np.repeat(np.arange(n_groups), rng.integers(3, 12, size=n_groups))
    truth = np.append(groups, np.full(n_outliers, -1))
    x = rng.normal(size=(len(truth), dim))
    centres, spread = rng.normal(size=(n_groups, dim)), rng.uniform(0.3, 0.8, size=(n_groups, 1))
    x[: len(groups)] = centres[groups] + spread[groups] * x[: len(groups)]
    order = rng.permutation(len(truth))
    name = f"small groups, {len(truth)} media of {n_groups} groups"
    return LabelledSet("small groups", name, as_vectors(x)[order], truth[order])
