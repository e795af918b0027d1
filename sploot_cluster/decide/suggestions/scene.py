"""The data from which questions about a pet are computed: its clusters with their centres, and its corrections.

Everything is computed with numpy from labels and vectors, so that a server without the engine can make suggestions.
*Accepted* items are those in a cluster that were not merely absorbed into it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import cached_property
from typing import Final

import numpy as np

from sploot_cluster.decide.constraints import RowConstraints, Sides
from sploot_cluster.decide.presentation import hidden_in, locked_in
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, Origin, PetState
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, Rows

# Maximum number of clusters to ask about, the largest ones. Computing the distances between 1,000 centres takes half a
# second.
MOST_CLUSTERS: Final = 1_000

# Maximum number of members that represent a cluster when items are compared one by one.
MOST_MEMBERS: Final = 256

SHOWN: Final = 4  # number of typical items to show for each side of a question

# Added to distances, so that the logarithm of the distance between identical pictures is finite.
SMALLEST: Final = 1e-3


class Scene:
    """The clusters of a pet that questions can be about: those that are not hidden, largest first.

    Attributes:
        clusters: their ids.
        members: the accepted items of each, as ascending rows.
        sizes: (c,) the number of these items.
        centres: (c, d) the mean of their vectors.
        spreads: (c,) the mean squared distance of these vectors from their mean.
    """

    def __init__(self, state: PetState) -> None:
        self.state = state
        hidden = hidden_in(state)
        rows = np.flatnonzero((state.labels != NOISE) & (state.origins != Origin.ABSORBED))
        order = rows[np.argsort(state.labels[rows], kind="stable")]
        labels, starts = np.unique(state.labels[order], return_index=True)
        members = np.split(order, starts[1:]) if len(order) else []
        shown = [at for at, label in enumerate(labels.tolist()) if label not in hidden]
        shown = sorted(shown, key=lambda at: (-len(members[at]), at))[:MOST_CLUSTERS]
        self.clusters: Sequence[ClusterId] = [ClusterId(int(labels[at])) for at in shown]
        self.members: Sequence[Rows] = [members[at] for at in shown]
        self.sizes = np.array([len(rows) for rows in self.members], dtype=np.float64)
        self.centres: FloatMatrix = np.array(
            [state.vectors[rows].mean(axis=0) for rows in self.members], dtype=np.float32
        ).reshape(len(shown), state.vectors.shape[1])
        self.spreads = np.maximum(1 - np.einsum("cd,cd->c", self.centres, self.centres, dtype=np.float64), 0)

    @cached_property
    def locked(self) -> Set[ClusterId]:
        """The locked clusters. A user declared that their items belong together."""
        return locked_in(self.state)

    @cached_property
    def rows(self) -> RowConstraints:
        """The constraints in force."""
        return resolve(self.state.ledger).by_row(self.state.rows)

    def all_rows(self, at: int) -> Rows:
        """Return all rows of a cluster, including those of absorbed items."""
        return np.flatnonzero(self.state.labels == self.clusters[at])

    def sides(self, at: int) -> Sides:
        """Return the combined sides that a cluster's items are on in all corrections."""
        return self.rows.sides_of(self.all_rows(at))

    def some_of(self, at: int, n: int = MOST_MEMBERS) -> Rows:
        """Return at most n of a cluster's accepted rows, evenly spaced."""
        members = self.members[at]
        return members[np.linspace(0, len(members) - 1, num=min(n, len(members))).astype(np.intp)]

    def typical(self, rows: Rows, n: int = SHOWN) -> tuple[MediaId, ...]:
        """Return the n most central of the given items."""
        centrality = self.state.vectors[rows] @ self.state.vectors[rows].sum(axis=0)
        return tuple(self.state.media[row] for row in rows[np.argsort(-centrality, kind="stable")[:n]].tolist())


def probability(weights: Sequence[float], features: Sequence[FloatVector | float], intercept: float) -> FloatVector:
    """Return the logistic function of weighted features plus ``intercept``."""
    total = sum((weight * np.asarray(feature) for weight, feature in zip(weights, features, strict=True)), intercept)
    result: FloatVector = (1 / (1 + np.exp(-np.asarray(total)))).astype(np.float32)
    return result
