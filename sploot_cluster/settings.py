"""Settings of all clustering decisions: one frozen value that validates itself.

Every number has a stated origin. "Measured" means: on scikit-learn's digits, on real sentence embeddings and on
synthetic pets of 30 to 3,000 items, with each noise item counted as its own cluster so that "all noise" does not score
well.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Literal, Self, get_args

# Not SPLOOT_CLUSTER_: Kubernetes sets SPLOOT_CLUSTER_PORT, SPLOOT_CLUSTER_SERVICE_HOST and similar variables in every
# pod of a namespace that has a service called sploot-cluster.
PREFIX: Final = "SPLOOT_CLUSTERING_"

ReclusterBackend = Literal["hdbscan_cpu", "hdbscan_gpu"]

# (min_cluster_size, min_samples) below this many items, and from there on. Measured; see docs/explanation/quality.md.
_FEW: Final = 150
_DENSITY_OF_FEW: Final = (6, 3)
_DENSITY_OF_MANY: Final = (12, 2)

_DAY_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The parameters of clustering. Each can be set by ``SPLOOT_CLUSTERING_<NAME>``; see :meth:`from_env`.

    Attributes:
        n_neighbours: items that an arrival is compared with, 3 to 1,024. 64 leaves room for noise and absorbed items,
            which occupy places but do not count; it costs no more than 16, because the search is exact.
        arrival_slack: how much farther than its threshold a cluster may be to take an arrival, as a factor on the
            distance 1 − similarity, from 0.1 to 10. 1: no farther than its own items are apart.
        growth_ratio: a recluster is requested once a pet has grown by this share since its last recluster, above 0, and
            by at least ``growth_min`` items. At 20 % an arrival is on average placed as well as by reclustering every
            time; measured.
        growth_min: least number of new items before growth requests a recluster, from 1; without it, a small pet would
            request one at every arrival.
        drift_min: least number of arrivals without a cluster since the last recluster before drift requests another,
            from 1. Measured: a new appearance of a pet shows after ten pictures of it.
        drift_ratio: least share of such arrivals among all arrivals since the last recluster before drift requests
            another, in (0, 1]. Measured, together with ``drift_min``.
        recluster_delay_ms: how long a requested recluster waits for more arrivals, from 0 to a day. Ten seconds: an
            album is uploaded in one go, and one recluster after it is enough.
        sharpness: preference for dense regions over large ones, as the power of the distance in the stability of a
            group, from 1, which is HDBSCAN's own, to 16. Measured: docs/explanation/quality.md.
        small_group: size of the smallest group that a recluster searches for between larger ones, from 2. Measured.
        noise_floor: number of items without a cluster that a recluster tolerates before it absorbs any, from 0. 14
            keeps a typical pet below the 15 that operators expect.
        noise_ratio: share of the pet's items without a cluster that a recluster tolerates, used if it is more than
            ``noise_floor``, in [0, 1].
        absorption_slack: how much farther than its threshold a cluster may be to absorb noise beyond the budget, as a
            factor on the distance 1 − similarity, from 1. The most similar items are absorbed first; items that are
            farther stay noise whatever the budget. Measured.
        overlap_ratio: least overlap of a group with the cluster whose id it inherits, as a share of the smaller one, in
            (0, 1].
        single_cluster_similarity: a pet in which density finds mostly noise becomes one cluster if the median
            similarity of its items is at least this, a cosine in (0, 1]. Measured: .80 to .91 within one class of
            digits, .69 over all of them.
        exact_until: size of a pet, in items, up to which every arrival is decided like a recluster, together with the
            places of all other items, from 0. Larger pets assign arrivals by the spread of the clusters and are
            reclustered after growth or drift. See docs/adr/0009 for costs and benefits.
        recluster_backend: backend that builds a spanning tree from scratch, ``hdbscan_cpu`` or ``hdbscan_gpu``. The GPU
            backend needs cupy or torch and a GPU, and falls back to the CPU if either is missing. See
            docs/how-to/gpu.md.
        recluster_threads: threads that compute a recluster, from 0; 0: as many as the process has cores. Arrivals use
            one. See docs/explanation/threads.md.
        commit_attempts: how many times a change is decided in total when other writers commit first, from 1.
        models: known embedding models, ``name@version`` -> dimension of their vectors; empty: any model is accepted.
    """

    n_neighbours: int = 64
    arrival_slack: float = 1.0
    growth_ratio: float = 0.20
    growth_min: int = 8
    drift_min: int = 10
    drift_ratio: float = 0.25
    recluster_delay_ms: int = 10_000
    sharpness: float = 3.0
    small_group: int = 3
    noise_floor: int = 14
    noise_ratio: float = 0.03
    absorption_slack: float = 2.5
    overlap_ratio: float = 0.30
    single_cluster_similarity: float = 0.80
    exact_until: int = 0
    recluster_backend: ReclusterBackend = "hdbscan_cpu"
    recluster_threads: int = 0
    commit_attempts: int = 10
    models: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("n_neighbours", self.n_neighbours, 3 <= self.n_neighbours <= 1_024, "from 3 to 1024")
        _check("arrival_slack", self.arrival_slack, 0.1 <= self.arrival_slack <= 10, "from 0.1 to 10")
        _check("growth_ratio", self.growth_ratio, 0 < self.growth_ratio < math.inf, "above 0")
        _check("growth_min", self.growth_min, self.growth_min >= 1, "from 1")
        _check("drift_min", self.drift_min, self.drift_min >= 1, "from 1")
        _check("drift_ratio", self.drift_ratio, 0 < self.drift_ratio <= 1, "above 0 and at most 1")
        _check(
            "recluster_delay_ms", self.recluster_delay_ms, 0 <= self.recluster_delay_ms <= _DAY_MS, "from 0 to a day"
        )
        _check("sharpness", self.sharpness, 1 <= self.sharpness <= 16, "from 1 to 16")
        _check("small_group", self.small_group, self.small_group >= 2, "from 2")
        _check("noise_floor", self.noise_floor, self.noise_floor >= 0, "from 0")
        _check("noise_ratio", self.noise_ratio, 0 <= self.noise_ratio <= 1, "from 0 to 1")
        _check("absorption_slack", self.absorption_slack, 1 <= self.absorption_slack < math.inf, "from 1")
        _check("overlap_ratio", self.overlap_ratio, 0 < self.overlap_ratio <= 1, "above 0 and at most 1")
        _check(
            "single_cluster_similarity",
            self.single_cluster_similarity,
            0 < self.single_cluster_similarity <= 1,
            "above 0 and at most 1",
        )
        _check("exact_until", self.exact_until, self.exact_until >= 0, "from 0")
        _check(
            "recluster_backend",
            self.recluster_backend,
            self.recluster_backend in get_args(ReclusterBackend),
            "hdbscan_cpu or hdbscan_gpu",
        )
        _check("recluster_threads", self.recluster_threads, 0 <= self.recluster_threads <= 1_024, "from 0 to 1024")
        _check("commit_attempts", self.commit_attempts, self.commit_attempts >= 1, "from 1")
        if not isinstance(self.models, Mapping):
            raise ValueError(f"models must be a mapping of name@version to dimension, got {self.models!r}")
        for model, dim in self.models.items():
            _check("models", f"{model}={dim}", bool(model) and 2 <= dim <= 8_192, "name@version and 2 to 8192")
        object.__setattr__(self, "models", types.MappingProxyType(dict(self.models)))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Return settings from ``SPLOOT_CLUSTERING_<NAME>`` variables, for entry points; unset ones keep their
        defaults.

        Args:
            environ: usually ``os.environ``. The value of ``models`` has the form ``clip@1=512,dino@2=768``.

        Raises:
            ValueError: an invalid value, or a variable with the prefix that is not a setting; the text names it.
        """
        names = {PREFIX + setting.name.upper(): setting.name for setting in fields(cls)}
        values: dict[str, object] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in names:
                raise ValueError(f"{variable} is not a setting; expected one of: {', '.join(sorted(names))}")
            read = _READERS[str(cls.__dataclass_fields__[names[variable]].type)]
            try:
                value = read(text)
                cls(**{names[variable]: value})  # type: ignore[arg-type]  # the constructor checks the value
            except ValueError as exc:
                raise ValueError(f"{variable}={text!r} is invalid: {exc}") from exc
            values[names[variable]] = value
        return cls(**values)  # type: ignore[arg-type]  # each value was checked above

    @staticmethod
    def recluster_parameters(n: int) -> tuple[int, int]:
        """Return HDBSCAN's ``(min_cluster_size, min_samples)`` for n items; an item is not its own sample."""
        return _DENSITY_OF_FEW if n < _FEW else _DENSITY_OF_MANY

    def noise_budget(self, n: int) -> int:
        """Return how many of n items may stay without a cluster before some are absorbed."""
        return max(self.noise_floor, int(self.noise_ratio * n))


def _check(name: str, value: object, is_good: bool, good: str) -> None:
    # comparisons with NaN are false, so every check rejects it
    if not is_good:
        raise ValueError(f"{name} must be {good}, got {value}")


def _read_models(text: str) -> dict[str, int]:
    models = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        model, equals, dim = entry.rpartition("=")
        if not equals or not dim.strip().isdecimal():
            raise ValueError(f"expected name@version=dimension, got {entry!r}")
        models[model.strip()] = int(dim)
    return models


_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    "ReclusterBackend": str,
    "int": int,
    "float": float,
    "Mapping[str, int]": _read_models,
}
