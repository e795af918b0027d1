"""What the decisions about clusters depend on: one value, checked when it is made.

Every number says where it comes from. "Measured" means: on scikit-learn's digits, on real sentence embeddings and on
synthetic pets of 30 to 3,000 media, with noise counted as clusters of one so that "all noise" is no success.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Literal, Self, get_args

# Not SPLOOT_CLUSTER_: Kubernetes puts SPLOOT_CLUSTER_PORT, SPLOOT_CLUSTER_SERVICE_HOST and more of that kind into every
# pod beside a service that is called sploot-cluster.
PREFIX: Final = "SPLOOT_CLUSTERING_"

ReclusterBackend = Literal["hdbscan_cpu", "hdbscan_gpu"]

# (min_cluster_size, min_samples) below so many media, and from there on. Measured; see docs/quality.md.
_FEW: Final = 150
_DENSITY_OF_FEW: Final = (6, 3)
_DENSITY_OF_MANY: Final = (12, 2)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The numbers that decide. Each can be set by ``SPLOOT_CLUSTERING_<NAME>``; see :meth:`from_env`.

    Attributes:
        n_neighbours: media that an arrival is compared with, 3 to 1,024. 64 leaves room for noise and for absorbed
            media, which take places and do not count; it costs no more than 16, because the search is exact.
        arrival_slack: how much farther than its threshold a cluster reaches for an arrival, as a factor on the distance
            1 − similarity, from 0.1 to 10. 1: no farther than its own media lie apart.
        growth_ratio: a pet that grew by this share since its last recluster asks for another, above 0. At 20 % an
            arrival is on average as well placed as by reclustering every time; measured.
        growth_min: and by at least so many media, from 1: a small pet would ask at every arrival.
        drift_min: arrivals without a cluster since the last recluster that ask for another, from 1.
        drift_ratio: and at least this share of all arrivals since then, in (0, 1]. Both measured: a new look of a pet
            shows after ten pictures of it.
        recluster_delay_ms: how long a recluster that was asked for waits for more arrivals, from 0. Ten seconds: an
            album is uploaded in one go, and one recluster after it is enough.
        sharpness: how much more dense regions count than large ones, as the power of the distance by which stability
            is measured, from 1, which is HDBSCAN's own, to 16. Measured: docs/quality.md.
        small_group: the smallest group that a recluster looks for between the others, from 2. Measured.
        noise_floor: media without a cluster that a recluster leaves alone, from 0. 14 keeps a typical pet below the
            15 that operators expect.
        noise_ratio: or this share of the pet if that is more, in [0, 1].
        absorption_slack: the farthest that noise beyond that budget is drawn in, as a factor like ``arrival_slack``,
            from 1. The most similar is drawn in first, and what is farther stays noise whatever the budget; measured.
        overlap_ratio: the least that a group has in common with the cluster whose id it inherits, as a share of the
            smaller one, in (0, 1].
        one_look_similarity: a pet in which density finds mostly noise is one cluster if its media are this similar on
            median, a cosine in (0, 1]. Measured: .80 to .91 within one class of digits, .69 over all of them.
        exact_until: media up to which every arrival is decided like a recluster, together with everybody else's place,
            from 0; larger pets assign by the clusters' own spread and are reclustered when they grew or drifted.
            docs/adr/0009 has what it costs and brings.
        recluster_backend: what builds a spanning tree from nothing, ``hdbscan_cpu`` or ``hdbscan_gpu``; that one needs
            cupy or torch and a GPU, and is done by the processor where either is missing. See docs/gpu.md.
        recluster_threads: threads that compute a recluster, from 0; 0: as many as the process has cores. Arrivals take
            one. See docs/threads.md.
        commit_attempts: how often a change is decided anew when somebody else was faster, from 1.
        models: known embedding models, ``name@version`` -> dimension of their vectors; empty: any model is taken.
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
    one_look_similarity: float = 0.80
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
        _check("recluster_delay_ms", self.recluster_delay_ms, self.recluster_delay_ms >= 0, "from 0")
        _check("sharpness", self.sharpness, 1 <= self.sharpness <= 16, "from 1 to 16")
        _check("small_group", self.small_group, self.small_group >= 2, "from 2")
        _check("noise_floor", self.noise_floor, self.noise_floor >= 0, "from 0")
        _check("noise_ratio", self.noise_ratio, 0 <= self.noise_ratio <= 1, "from 0 to 1")
        _check("absorption_slack", self.absorption_slack, 1 <= self.absorption_slack < math.inf, "from 1")
        _check("overlap_ratio", self.overlap_ratio, 0 < self.overlap_ratio <= 1, "above 0 and at most 1")
        _check("one_look_similarity", self.one_look_similarity, 0 < self.one_look_similarity <= 1, "in (0, 1]")
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
            raise ValueError(f"models must be a mapping of name@version to dimension, is {self.models!r}")
        for model, dim in self.models.items():
            _check("models", f"{model}={dim}", bool(model) and 2 <= dim <= 8_192, "name@version and 2 to 8192")
        object.__setattr__(self, "models", types.MappingProxyType(dict(self.models)))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Settings from ``SPLOOT_CLUSTERING_<NAME>``, for entry points; what is not set keeps its default.

        Args:
            environ: usually ``os.environ``. ``models`` reads as ``clip@1=512,dino@2=768``.

        Raises:
            ValueError: a value that cannot be used, or a variable with the prefix that no setting has; it is named.
        """
        names = {PREFIX + setting.name.upper(): setting.name for setting in fields(cls)}
        values: dict[str, object] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in names:
                raise ValueError(f"{variable} is not a setting; there are: {', '.join(sorted(names))}")
            read = _READERS[str(cls.__dataclass_fields__[names[variable]].type)]
            try:
                value = read(text)
                cls(**{names[variable]: value})  # type: ignore[arg-type]  # checked by the constructor, one by one
            except ValueError as exc:
                raise ValueError(f"{variable}={text!r} cannot be used: {exc}") from exc
            values[names[variable]] = value
        return cls(**values)  # type: ignore[arg-type]  # each was accepted above

    @staticmethod
    def recluster_parameters(n: int) -> tuple[int, int]:
        """``(min_cluster_size, min_samples)`` of HDBSCAN for n media; the medium itself is no sample."""
        return _DENSITY_OF_FEW if n < _FEW else _DENSITY_OF_MANY

    def noise_budget(self, n: int) -> int:
        """How many of n media may stay without a cluster before some are absorbed."""
        return max(self.noise_floor, int(self.noise_ratio * n))


def _check(name: str, value: object, is_good: bool, good: str) -> None:
    # comparisons with NaN are false, so that NaN is refused everywhere
    if not is_good:
        raise ValueError(f"{name} must be {good}, is {value}")


def _read_models(text: str) -> dict[str, int]:
    models = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        model, equals, dim = entry.rpartition("=")
        if not equals or not dim.strip().isdecimal():
            raise ValueError(f"{entry!r} is not name@version=dimension")
        models[model.strip()] = int(dim)
    return models


_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    "ReclusterBackend": str,
    "int": int,
    "float": float,
    "Mapping[str, int]": _read_models,
}
