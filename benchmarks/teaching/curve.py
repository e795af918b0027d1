"""The effect that corrections of a whole pet have on later items, by number of corrections.

The first half of each pet arrives and is reclustered. A simulated person, who knows the subject of each item, makes
corrections one after another, each time the one that puts the most items right. Then the second half arrives.

- :func:`curve`: the adjusted Rand index of the second half, whose items no correction names, after k corrections.
- :func:`bill`: the second half arrives in batches. After each batch, the person makes corrections until 95 % of the
  batch's members are right. The corrections of each kind are counted.

*Members* are the items that belong to a subject; all others are strangers. For comparison, learners are trained on the
vectors and corrected clusters of all earlier items, and put each later item in one of these clusters, even a stranger.
Therefore the index ignores strangers, and the bill counts the strangers that are in a cluster. For one learner, the
index is also shown with the engine's noise items counted as noise.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.quality.sets import LabelledSet, Truth
from benchmarks.records import table
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, PetId
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.store.memory import MemoryPetStore

Clusters = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]

PET: Final = PetId(1)
STRANGER: Final = -1
# The kinds of corrections: merge two clusters of one subject; move items of another cluster, or attach items of none,
# to the cluster of their subject; begin a cluster for a subject that has none.
KINDS: Final = ("merge", "move", "attach", "begin")
RIGHT: Final = 0.95
BATCHES: Final = 4
STEPS: Final = (0, 1, 2, 4, 8, 16)
SMALLEST, LARGEST = 100, 600
ARRIVAL, OURS, UNTAUGHT = "this engine, on arrival", "this engine, after a recluster", "this engine, never corrected"


@dataclass(frozen=True, slots=True)
class Correction:
    """A correction that puts ``rows``, which share a subject and a cluster (or none), into the cluster ``into``.

    Attributes:
        kind: one of ``KINDS``.
        cluster: the cluster that the items are in now; NOISE for no cluster.
        into: the largest cluster of their subject; None for a new one.
    """

    kind: str
    rows: list[int]
    cluster: int
    into: int | None


@dataclass(slots=True)
class Bill:
    """The corrections by kind, and the number of strangers in a cluster, for ``n_items`` new items."""

    n_items: int = 0
    corrections: Counter[str] = field(default_factory=Counter)
    strangers: int = 0


class Corrected(Protocol):
    """Clusters that a person can correct."""

    @property
    def clusters(self) -> Clusters:
        """The cluster of each item so far, shape (n,); NOISE for no cluster."""

    def apply(self, correction: Correction) -> None: ...


class Pet:
    """A pet of this engine. The items of a set arrive in their order."""

    def __init__(self, vectors: FloatMatrix) -> None:
        self._vectors, self._store, self._n_made = vectors, MemoryPetStore(), 0

    @property
    def clusters(self) -> Clusters:
        return self._store.load(PET).labels.astype(np.int64)

    def take(self, rows: Rows) -> None:
        service = ClusterService(self._store)
        for row in rows.tolist():
            service.assign(PET, MediaId(str(row)), model="bench@1", vector=self._vectors[row])

    def recluster(self) -> None:
        ClusterService(self._store).recluster(PET)

    def copy(self) -> Pet:
        copied = Pet(self._vectors)
        ClusterService(copied._store).import_pet(ClusterService(self._store).export(PET))
        copied._n_made = self._n_made
        return copied

    def apply(self, correction: Correction) -> None:
        self._n_made += 1
        service, operation = ClusterService(self._store), str(self._n_made)
        into = None if correction.into is None else ClusterId(correction.into)
        if correction.kind == "merge":
            assert into is not None
            service.merge(PET, [into, ClusterId(correction.cluster)], into=into, operation_id=operation, by="person")
        else:
            items = [MediaId(str(row)) for row in correction.rows]
            service.place(PET, items, into=into, operation_id=operation, by="person")


class Listed:
    """Clusters that do not learn from corrections: a correction moves only the items that it names."""

    def __init__(self, clusters: Clusters) -> None:
        self.clusters = clusters.copy()

    def apply(self, correction: Correction) -> None:
        into = self.clusters.max() + 1 if correction.into is None else correction.into
        is_moved = self.clusters == correction.cluster if correction.kind == "merge" else np.array(correction.rows)
        self.clusters[is_moved] = into


def nearest(vectors: FloatMatrix, clusters: Clusters, later: FloatMatrix) -> Clusters:
    """Return, for each later item, the cluster that prevails among its three most similar earlier items."""
    from sklearn.neighbors import KNeighborsClassifier

    found: Clusters = KNeighborsClassifier(3, weights="distance").fit(vectors, clusters).predict(later)
    return found


def propagated(vectors: FloatMatrix, clusters: Clusters, later: FloatMatrix) -> Clusters:
    """Return clusters propagated over a graph of neighbours, in the metric that best separates the earlier clusters."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.semi_supervised import LabelSpreading

    metric = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(vectors, clusters)
    unknown = np.full(len(later), -1)
    spread = LabelSpreading(kernel="knn", n_neighbors=7, alpha=0.2)
    spread.fit(metric.transform(np.concatenate([vectors, later])), np.concatenate([clusters, unknown]))
    found: Clusters = spread.transduction_[len(vectors) :]
    return found


def discriminant(vectors: FloatMatrix, clusters: Clusters, later: FloatMatrix) -> Clusters:
    """Return the clusters that a linear discriminant with a shrunk covariance predicts."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    learner = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(vectors, clusters)
    found: Clusters = learner.predict(later)
    return found


NEAREST: Final = "3 most similar items"
SAME_NOISE: Final = f"{NEAREST}, noise of this engine"
LEARNERS: Final[Mapping[str, Callable[[FloatMatrix, Clusters, FloatMatrix], Clusters]]] = {
    NEAREST: nearest,
    "propagation in a learnt metric": propagated,
    "linear discriminant": discriminant,
}


def curve(one: LabelledSet, steps: Sequence[int] = STEPS) -> dict[str, list[float]]:
    """Return the adjusted Rand index of the second half of a set after each number of corrections, by learner.

    Noise items count as groups of one. The figures for zero corrections show what the engine finds by itself.
    """
    from sklearn.metrics import adjusted_rand_score

    first, second = np.array_split(np.arange(len(one.truth)), 2)
    members = second[one.truth[second] != STRANGER]
    pet = Pet(one.vectors)
    pet.take(first)
    pet.recluster()
    found = defaultdict(list)
    n_made = 0
    for n in steps:
        for _ in range(n - n_made):
            _correct(pet, one.truth, first)
        n_made = n
        known = pet.clusters
        then = pet.copy()
        then.take(second)
        after = {ARRIVAL: then.clusters}
        then.recluster()
        after[OURS] = then.clusters
        for name, learn in LEARNERS.items():
            after[name] = np.concatenate([known, _learnt(learn, one.vectors, known, second)])
        after[SAME_NOISE] = np.where(after[OURS] == NOISE, NOISE, after[NEAREST])
        for name, clusters in after.items():
            alone = np.where(clusters == NOISE, -2 - np.arange(len(clusters)), clusters)
            found[name].append(float(adjusted_rand_score(one.truth[members], alone[members])))
    return dict(found)


def bill(one: LabelledSet) -> dict[str, Bill]:
    """Return the corrections that the second half of a set needs, by learner.

    Only corrections of items of the newest batch count. A pet that was never corrected shows what each batch would need
    if earlier corrections had taught nothing.
    """
    first, second = np.array_split(np.arange(len(one.truth)), 2)
    untaught = Pet(one.vectors)
    untaught.take(first)
    untaught.recluster()
    ours = untaught.copy()
    _put_right(ours, one.truth, first)
    lists = {name: Listed(ours.clusters) for name in LEARNERS}
    bills = {name: Bill() for name in (UNTAUGHT, OURS, *LEARNERS)}
    for batch in np.array_split(second, BATCHES):
        for pet in (untaught, ours):
            pet.take(batch)
            pet.recluster()
        for name, learn in LEARNERS.items():
            known = lists[name].clusters
            lists[name] = Listed(np.concatenate([known, _learnt(learn, one.vectors, known, batch)]))
        corrected: dict[str, Corrected] = {UNTAUGHT: Listed(untaught.clusters), OURS: ours, **lists}
        for name, clusters in corrected.items():
            is_stranger = (clusters.clusters[batch] != NOISE) & (one.truth[batch] == STRANGER)
            bills[name].n_items += len(batch)
            bills[name].strangers += int(np.count_nonzero(is_stranger))
            bills[name].corrections += _put_right(clusters, one.truth, batch)
    return bills


def _learnt(
    learn: Callable[[FloatMatrix, Clusters, FloatMatrix], Clusters], vectors: FloatMatrix, known: Clusters, later: Rows
) -> Clusters:
    """Return clusters for later items, learned from the earlier items that are in a cluster."""
    clustered = np.flatnonzero(known != NOISE)
    found = np.unique(known[clustered])
    if len(found) < 2:  # nothing to learn
        return np.full(len(later), found[0] if len(found) else NOISE, dtype=np.int64)
    return learn(vectors[clustered], known[clustered], vectors[later])


def _put_right(corrected: Corrected, truth: Truth, rows: Rows) -> Counter[str]:
    """Make corrections until enough of ``rows`` are right, and return the number of corrections by kind."""
    made = Counter[str]()
    most_wrong = (1 - RIGHT) * np.count_nonzero(truth[rows] != STRANGER)
    for _ in rows:  # at most one correction for each item
        if sum(len(one.rows) for one in corrections(corrected.clusters, truth, rows)) <= most_wrong:
            break
        made[_correct(corrected, truth, rows)] += 1
    return made


def _correct(corrected: Corrected, truth: Truth, rows: Rows) -> str:
    """Make the correction that puts the most of ``rows`` right, and return its kind, or "" if all are right."""
    for one in corrections(corrected.clusters, truth, rows)[:1]:
        corrected.apply(one)
        return one.kind
    return ""


def corrections(clusters: Clusters, truth: Truth, rows: Rows) -> list[Correction]:
    """Return the corrections that put all ``rows`` right, the one with the most items first.

    An item is right in the largest cluster of its subject. The subject of a cluster is its items' most frequent one.

    Args:
        clusters: (n,) clusters of the items so far.
        truth: (n or more,) subjects.
        rows: the items to correct; strangers count as right everywhere.
    """
    shares = Counter(zip(clusters.tolist(), truth.tolist(), strict=False)).most_common()
    owner, home = dict[int, int](), dict[int, int]()
    for (cluster, subject), _ in shares:
        if cluster != NOISE and owner.setdefault(cluster, subject) == subject != STRANGER:
            home.setdefault(subject, cluster)
    wrong = defaultdict[tuple[int, int], list[int]](list)
    for row in rows[truth[rows] != STRANGER].tolist():
        cluster, subject = int(clusters[row]), int(truth[row])
        if home.get(subject) != cluster:
            wrong[cluster, subject].append(row)
    found = []
    for (cluster, subject), items in wrong.items():
        into = home.get(subject)
        merges = owner.get(cluster) == subject
        kind = "begin" if into is None else "merge" if merges else "attach" if cluster == NOISE else "move"
        found.append(Correction(kind, items, cluster, into))
    return sorted(found, key=lambda one: -len(one.rows))


def report(sets: Iterable[LabelledSet], steps: Sequence[int] = STEPS) -> str:
    """Return both tables as Markdown. Each family of sets counts once in the index."""
    curves = defaultdict[str, list[dict[str, list[float]]]](list)
    total = defaultdict[str, Bill](Bill)
    for one in sets:
        if not SMALLEST <= len(one.truth) <= LARGEST:
            continue
        print(".", end="", file=sys.stderr, flush=True)
        curves[one.family].append(curve(one, steps))
        for name, its in bill(one).items():
            total[name].n_items += its.n_items
            total[name].strangers += its.strangers
            total[name].corrections += its.corrections
    indices = []
    for name in (ARRIVAL, OURS, *LEARNERS, SAME_NOISE):
        means = [[fmean(its[name][at] for its in of) for of in curves.values()] for at in range(len(steps))]
        indices.append([name, *(f"{fmean(of_families):.3f}" for of_families in means)])
    costs = []
    for name, its in total.items():
        figures = [its.corrections.total(), *(its.corrections[kind] for kind in KINDS), its.strangers]
        costs.append([name, *(f"{100 * figure / its.n_items:.1f}" for figure in figures)])
    return "\n\n".join(
        [
            "Adjusted Rand index of later members after k corrections",
            table(["k", *map(str, steps)], indices),
            "Corrections per 100 new items until 95 % of the members are right, and strangers in a cluster",
            table(["per 100 new items", "corrections", *KINDS, "strangers"], costs),
        ]
    )


# expected: a discriminant also estimates the covariance of clusters with one item
warnings.filterwarnings("ignore", message="Only one sample available")
