"""Settings for all clustering decisions: one frozen value that validates itself.

Every number has a stated origin. "Measured" means: on scikit-learn's digits, on real sentence embeddings and on
synthetic pets of 30 to 3,000 items, with each noise item counted as its own cluster so that "all noise" does not score
well.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, get_args

from sploot_cluster.errors import InvalidInput
from sploot_cluster.limits import MAX_DIM, MIN_DIM

# Not SPLOOT_CLUSTER_: Kubernetes sets SPLOOT_CLUSTER_PORT, SPLOOT_CLUSTER_SERVICE_HOST and similar variables in every
# pod of a namespace that has a service called sploot-cluster.
PREFIX: Final = "SPLOOT_CLUSTERING_"

_ACCEPTED: Final = "accepted"

ReclusterBackend = Literal["hdbscan_cpu", "hdbscan_gpu"]

# (min_cluster_size, min_samples) for pets with fewer than _FEW items, and for larger pets. Measured; see
# docs/explanation/quality.md.
_FEW: Final = 150
_DENSITY_OF_FEW: Final = (6, 3)
_DENSITY_OF_MANY: Final = (12, 2)

# From this number of items on, a recluster waits in proportion to the size of the pet, but at most this multiple of its
# delay.
_DELAYED_PER_ITEM_FROM: Final = 1_000
_LONGEST_DELAY: Final = 60

_DAY_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Number:
    """A setting that is a number between two inclusive bounds. ``above`` makes the lower one exclusive.

    Every kind of setting has ``read``, which parses the text of a variable or raises ``ValueError`` with the problem,
    and ``hint``, which states what to set instead of a refused value.
    """

    lowest: float
    highest: float = math.inf
    above: bool = False
    is_whole: bool = False

    @property
    def hint(self) -> str:
        if self.above:
            at_most = "" if self.highest == math.inf else f" and at most {self.highest:g}"
            return f"set more than {self.lowest:g}{at_most}"
        return (
            f"set at least {self.lowest:g}" if self.highest == math.inf else f"set {self.lowest:g} to {self.highest:g}"
        )

    def read(self, text: str) -> float:
        try:
            return int(text) if self.is_whole else float(text)
        except ValueError:
            raise ValueError(f"{text[:20]!r} is not a {'whole ' * self.is_whole}number") from None

    def __contains__(self, value: Any) -> bool:
        # comparisons with NaN are false, so NaN is refused
        is_enough = value > self.lowest if self.above else value >= self.lowest
        return bool(is_enough and value <= self.highest and value < math.inf)


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting whose value is one of several words."""

    words: Sequence[str]

    @property
    def hint(self) -> str:
        return f"set {' or '.join(self.words)}"

    def read(self, text: str) -> str:
        return text

    def __contains__(self, value: Any) -> bool:
        return value in self.words


@dataclass(frozen=True, slots=True)
class Models:
    """The type of a setting that lists embedding models: ``name@version`` -> dimension of their vectors."""

    hint: str = f"set name@version=dimension, comma-separated, with {MIN_DIM} to {MAX_DIM} dimensions"

    def read(self, text: str) -> dict[str, int]:
        models = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            model, equals, dim = entry.rpartition("=")
            if not equals or not dim.strip().isdecimal():
                raise ValueError(f"{entry[:40]!r} is not name@version=dimension")
            models[model.strip()] = int(dim)
        return models

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(model and MIN_DIM <= dim <= MAX_DIM for model, dim in value.items())


Accepted = Number | Choice | Models

_BACKENDS: Final = Choice(get_args(ReclusterBackend))


def _whole(default: int, lowest: int, highest: float = math.inf) -> Any:
    return field(default=default, metadata={_ACCEPTED: Number(lowest, highest, is_whole=True)})


def _number(default: float, lowest: float, highest: float = math.inf, *, above: bool = False) -> Any:
    return field(default=default, metadata={_ACCEPTED: Number(lowest, highest, above=above)})


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The parameters of clustering. Each can be set by ``SPLOOT_CLUSTERING_<NAME>``; see :meth:`from_env`.

    Attributes:
        n_neighbours: number of nearest items that an arrival is compared with, 3 to 1,024. 64 leaves room for noise and
            absorbed items among them, which do not count; it costs no more than 16, because the search is exact.
        arrival_slack: highest reach at which a cluster takes an arrival, that is, the distance 1 − similarity as a
            multiple of the distance that the threshold allows, from 0.1 to 10. 1: no farther than the cluster's own
            items are apart.
        growth_ratio: a recluster is requested once a pet has grown by this share since its last recluster, above 0, and
            by at least ``growth_min`` items. At 20 %, arrivals are assigned on average as well as if the pet were
            reclustered every time; measured.
        growth_min: minimum number of new items before growth requests a recluster, from 1; without it, a small pet
            would request one at every arrival.
        drift_min: minimum number of arrivals without a cluster since the last recluster before drift requests another,
            from 1. Measured: after ten items that show a new appearance of a pet, that appearance is recognisable.
        drift_ratio: minimum share of such arrivals among all arrivals since the last recluster before drift requests
            another, in (0, 1]. Measured, together with ``drift_min``.
        recluster_delay_ms: how long a requested recluster waits for more arrivals, from 0 to a day, in a pet of up to
            1,000 items; in a larger one in proportion to its size, at most 60 times as long. Ten seconds: an album is
            uploaded in one go, and one recluster after it is enough. Because a recluster costs in proportion to the
            size or more, the reclusters of one pet take at most a few per cent of a core.
        sharpness: preference for dense regions over large ones: the power of the distance in the stability of a group,
            from 1 (as in HDBSCAN) to 16. Measured: docs/explanation/quality.md.
        small_group: size of the smallest group that a recluster searches for between larger ones, from 2. Measured.
        noise_floor: number of items without a cluster that a recluster tolerates before it absorbs any, from 0. 14
            keeps a typical pet below the 15 that operators expect.
        noise_ratio: share of the pet's items without a cluster that a recluster tolerates, used if it is more than
            ``noise_floor``, in [0, 1].
        absorption_slack: highest reach at which a cluster absorbs noise beyond the budget, that is, the distance
            1 − similarity as a multiple of the distance that the threshold allows, from 1. The most similar items are
            absorbed first; items that are farther away stay noise, whatever the budget. Measured.
        absorption_slack_excluded: used in place of ``absorption_slack``, if it is lower, for pets in which users
            excluded items from clusters. Measured.
        overlap_ratio: minimum overlap of a group with the cluster whose id it inherits, as a share of the smaller of
            the two, in (0, 1].
        single_cluster_similarity: a pet in which density finds mostly noise becomes one cluster if the median
            similarity of its items is at least this, a cosine in (0, 1]. Measured: .80 to .91 within one class of
            digits, .69 over all of them.
        exact_until: size of a pet, in items, up to which every arrival assigns all items again, as a recluster does, so
            that other items may move too, from 0. Larger pets assign arrivals by the thresholds of the clusters and are
            reclustered after growth or drift. See docs/adr/0009 for costs and benefits.
        recluster_backend: backend that builds a spanning tree from scratch, ``hdbscan_cpu`` or ``hdbscan_gpu``. The GPU
            backend needs cupy or torch and a GPU, and falls back to the CPU if either is missing. See
            docs/how-to/gpu.md.
        recluster_threads: threads that compute a recluster, from 0; 0: as many as the process has cores. Arrivals use
            one. See docs/explanation/threads.md.
        commit_attempts: how many times a change is decided, in total, if other writers keep committing first, from 1.
        models: known embedding models, ``name@version`` -> dimension of their vectors; empty: any model is accepted.
    """

    n_neighbours: int = _whole(64, 3, 1_024)
    arrival_slack: float = _number(1.0, 0.1, 10)
    growth_ratio: float = _number(0.20, 0, above=True)
    growth_min: int = _whole(8, 1)
    drift_min: int = _whole(10, 1)
    drift_ratio: float = _number(0.25, 0, 1, above=True)
    recluster_delay_ms: int = _whole(10_000, 0, _DAY_MS)
    sharpness: float = _number(3.0, 1, 16)
    small_group: int = _whole(3, 2)
    noise_floor: int = _whole(14, 0)
    noise_ratio: float = _number(0.03, 0, 1)
    absorption_slack: float = _number(2.5, 1)
    absorption_slack_excluded: float = _number(1.3, 1)
    overlap_ratio: float = _number(0.30, 0, 1, above=True)
    single_cluster_similarity: float = _number(0.80, 0, 1, above=True)
    exact_until: int = _whole(0, 0)
    recluster_backend: ReclusterBackend = field(default="hdbscan_cpu", metadata={_ACCEPTED: _BACKENDS})
    recluster_threads: int = _whole(0, 0, 1_024)
    commit_attempts: int = _whole(10, 1)
    models: Mapping[str, int] = field(default_factory=dict, metadata={_ACCEPTED: Models()})

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check(setting.name, getattr(self, setting.name), setting.metadata[_ACCEPTED])
        object.__setattr__(self, "models", types.MappingProxyType(dict(self.models)))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Return settings from ``SPLOOT_CLUSTERING_<NAME>`` variables, for entry points.

        If a variable is absent or empty, its setting keeps the default.

        Args:
            environ: usually ``os.environ``. The value of ``models`` has the form ``clip@1=512,dino@2=768``.

        Raises:
            InvalidInput: a value is invalid, or a variable with the prefix is not a setting; its ``field`` is the name
                of the variable.
        """
        given = {name: text for name, text in environ.items() if name.startswith(PREFIX) and text.strip()}
        names = {PREFIX + setting.name.upper(): setting.name for setting in fields(cls)}
        for variable in given:
            if variable not in names:
                raise InvalidInput(variable, "is not a setting", f"set one of {', '.join(sorted(names))}")
        return cls(**{names[variable]: value_of(names[variable], text, variable) for variable, text in given.items()})

    @staticmethod
    def recluster_parameters(n: int) -> tuple[int, int]:
        """Return HDBSCAN's ``(min_cluster_size, min_samples)`` for n items. Samples do not include the item itself."""
        return _DENSITY_OF_FEW if n < _FEW else _DENSITY_OF_MANY

    def recluster_wait_ms(self, n: int) -> int:
        """Return the time for which a requested recluster of a pet with n items waits for more arrivals."""
        return round(self.recluster_delay_ms * min(max(n / _DELAYED_PER_ITEM_FROM, 1), _LONGEST_DELAY))

    def noise_budget(self, n: int) -> int:
        """Return the noise budget of ``n`` items: how many of them may be noise before some are absorbed."""
        return max(self.noise_floor, int(self.noise_ratio * n))


def value_of(name: str, text: str, variable: str) -> Any:
    """Parse the value of a setting from the text of an environment variable.

    Args:
        variable: name of the variable, for errors.

    Raises:
        InvalidInput: the text is not a valid value of this setting.
    """
    accepted: Accepted = ClusterSettings.__dataclass_fields__[name].metadata[_ACCEPTED]
    try:
        value = accepted.read(text.strip())
    except ValueError as refused:
        raise InvalidInput(variable, str(refused), accepted.hint) from None
    _check(variable, value, accepted)
    return value


def _check(field_name: str, value: object, accepted: Accepted) -> None:
    if value not in accepted:
        raise InvalidInput(field_name, f"is {value}", accepted.hint)
