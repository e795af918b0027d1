"""The demo's data: real images with known groups, divided among several pets, and one synthetic pet.

The images are scikit-learn's bundled digits: 1,797 scans of handwritten digits, 8 × 8 pixels (Alpaydin and Kaynak,
UCI 1998). Each digit represents one subject in a pet's photos, called a look. Every image belongs to exactly one pet;
the albums differ in size. The synthetic pet has 512-dimensional vectors: groups of different sizes around random
directions, and outliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.pet.vectors import FloatMatrix, as_vectors

DIGITS_MODEL: Final = "digits@1"
SYNTHETIC_MODEL: Final = "synthetic@1"
SYNTHETIC_DIM: Final = 512

# Pet -> its share of each digit's images. The columns are the digits 0 to 9, and each column adds up to 1.
_DEALING: Final = {
    "Biscuit": (0.70, 0.00, 0.00, 0.00, 0.60, 0.00, 1.00, 0.00, 0.20, 0.00),
    "Mochi": (0.30, 0.25, 0.00, 0.80, 0.00, 0.00, 0.00, 0.75, 0.00, 0.00),
    "Pepper": (0.00, 0.00, 0.60, 0.00, 0.40, 0.30, 0.00, 0.00, 0.00, 0.00),
    "Ziggy": (0.00, 0.75, 0.25, 0.20, 0.00, 0.70, 0.00, 0.00, 0.80, 1.00),
    "Dot": (0.00, 0.00, 0.15, 0.00, 0.00, 0.00, 0.00, 0.25, 0.00, 0.00),
}
_FIRST_PET_ID: Final = 41

Truth = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Album:
    """One pet's items.

    Attributes:
        vectors: (n, d) float32 of unit norm, in order of arrival.
        truth: (n,) the true group of each item; -1 for a planted outlier.
    """

    pet_id: int
    name: str
    model: str
    media_ids: tuple[str, ...]
    vectors: FloatMatrix
    truth: Truth

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])


def albums(*, share: float = 1.0, seed: int = 20_261_124) -> tuple[Album, ...]:
    """Return the albums of the demo's pets; the same arguments give the same albums.

    Args:
        share: part of the sample to use, in (0, 1]; the demo's test uses a small part.
        seed: determines how the images are divided among the pets, the order of arrival and the synthetic pet.
    """
    from sklearn.datasets import load_digits  # imported here, because the import takes a second

    rng = np.random.default_rng(seed)
    digits = load_digits()
    pictures, digit_of = as_vectors(digits.data), digits.target.astype(np.int64)
    dealt = _deal(digit_of, share, rng)
    real = [
        Album(
            pet_id=_FIRST_PET_ID + number,
            name=name,
            model=DIGITS_MODEL,
            media_ids=tuple(f"digit-{row:04d}.png" for row in rows),
            vectors=pictures[rows],
            truth=digit_of[rows],
        )
        for number, (name, rows) in enumerate(dealt.items())
    ]
    return (*real, _synthetic(_FIRST_PET_ID + len(real), round(480 * share), rng))


def _deal(digit_of: Truth, share: float, rng: np.random.Generator) -> dict[str, npt.NDArray[np.int64]]:
    """Return the rows of each pet's images, shuffled."""
    hands: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in _DEALING}
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(digit_of == digit))
        rows = rows[: round(len(rows) * share)]
        shares = np.array([weights[digit] for weights in _DEALING.values()])
        cuts = np.round(np.cumsum(shares) * len(rows)).astype(int)[:-1]
        for name, part in zip(_DEALING, np.split(rows, cuts), strict=True):
            hands[name].append(part)
    return {name: rng.permutation(np.concatenate(parts)) for name, parts in hands.items()}


def _synthetic(pet_id: int, n: int, rng: np.random.Generator, n_groups: int = 9) -> Album:
    """Return a pet with groups of different sizes around random directions, and 6 % outliers."""
    sizes = rng.lognormal(sigma=0.7, size=n_groups)
    n_outliers = round(0.06 * n)
    group = rng.choice(n_groups, size=n - n_outliers, p=sizes / sizes.sum())
    truth = rng.permutation(np.concatenate([group, np.full(n_outliers, -1)])).astype(np.int64)
    centres = rng.normal(size=(n_groups, SYNTHETIC_DIM))
    spread = rng.uniform(0.5, 1.1, size=n_groups)
    noise = rng.normal(size=(n, SYNTHETIC_DIM))
    vectors = np.where(truth[:, None] < 0, noise, centres[truth] + spread[truth][:, None] * noise)
    return Album(
        pet_id=pet_id,
        name="Echo",
        model=SYNTHETIC_MODEL,
        media_ids=tuple(f"echo-{number:04d}.jpg" for number in range(n)),
        vectors=as_vectors(vectors),
        truth=truth,
    )
