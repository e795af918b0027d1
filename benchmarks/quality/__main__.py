"""Measure how well clusters match known groups. ``python -m benchmarks.quality [--seeds 101 102 …] [--json FILE]``.

ARI is the adjusted Rand index over all items. Each noise item and each outlier counts as a separate group, so that "all
noise" scores 0 and an outlier in a group lowers the score. Noise is the number of items without a group, averaged over
sets. "outliers in" is the share of true outliers that ended up in a group, and "of them absorbed" the share of these
that were absorbed, that is, put there with low confidence to keep noise low.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sploot_cluster.threads import one_thread_each

one_thread_each(os.environ)

import numpy as np
import numpy.typing as npt
from sklearn.metrics import adjusted_rand_score

from benchmarks.quality.methods import METHODS
from benchmarks.quality.sets import BANKING77, draw
from benchmarks.records import machine_facts, table

# Seeds of the sets; not 1 to 4, because the defaults were chosen with those.
FRESH: tuple[int, ...] = (101, 102, 103, 104, 105)


@dataclass(frozen=True, slots=True)
class Score:
    """The result of one method on one data set."""

    family: str
    name: str
    seed: int
    n: int
    method: str
    ari: float
    noise: int
    outliers: int
    outliers_in: int
    outliers_absorbed: int
    absorbed: int
    absorbed_right: int


def score_all(seeds: Iterable[int], banking77: Path) -> list[Score]:
    scores = []
    seen = set()
    for seed in seeds:
        for one in draw(seed, banking77=banking77):
            if one.name in seen and one.family in ("digits", "banking77"):
                continue  # whole sets do not depend on the seed
            seen.add(one.name)
            is_outlier = one.truth < 0
            for method, run in METHODS.items():
                found = run(one.vectors)
                scores.append(
                    Score(
                        one.family,
                        one.name,
                        seed,
                        len(one.truth),
                        method,
                        ari=float(adjusted_rand_score(singles(one.truth), singles(found.labels))),
                        noise=int((found.labels < 0).sum()),
                        outliers=int(is_outlier.sum()),
                        outliers_in=int((is_outlier & (found.labels >= 0)).sum()),
                        outliers_absorbed=int((is_outlier & found.absorbed).sum()),
                        absorbed=int(found.absorbed.sum()),
                        absorbed_right=n_right(one.truth, found.labels, found.absorbed),
                    )
                )
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return scores


def singles(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the labels with each -1 replaced by a group of its own."""
    alone = labels < 0
    apart = labels.copy()
    apart[alone] = 1_000_000 + np.arange(np.count_nonzero(alone))
    return apart


def n_right(truth: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], absorbed: npt.NDArray[np.bool_]) -> int:
    """Return the number of absorbed items whose known group is that of most other items in their cluster."""
    right = 0
    for label in np.unique(labels[absorbed]).tolist():
        sure = truth[(labels == label) & ~absorbed & (truth >= 0)]
        if len(sure):
            right += int((truth[(labels == label) & absorbed] == np.bincount(sure).argmax()).sum())
    return right


def report(scores: Sequence[Score]) -> str:
    families = list(dict.fromkeys(score.family for score in scores))
    by: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        by[score.family, score.method].append(score)
    parts = ["ARI, noise counted as groups of one"]
    rows = []
    for method in METHODS:
        means = [mean(one.ari for one in by[family, method]) for family in families]
        rows.append([method, *(f"{value:.3f}" for value in means), f"{mean(means):.3f}"])
    parts.append(table(["method", *families, "mean"], rows))
    parts.append("Items without a group, on average; in brackets the share of true outliers that ended up in a group")
    rows = []
    for method in METHODS:
        cells = []
        for family in families:
            of_family = by[family, method]
            outliers, inside = sum(one.outliers for one in of_family), sum(one.outliers_in for one in of_family)
            share = f" ({inside / outliers:.0%})" if outliers else ""
            cells.append(f"{mean(one.noise for one in of_family):.1f}{share}")
        rows.append([method, *cells])
    parts.append(table(["method", *families], rows))
    parts.append("Absorbed items, on average; in brackets how many of them are right, and how many are true outliers")
    rows = []
    for method in list(METHODS)[:2]:
        cells = []
        for family in families:
            of_family = by[family, method]
            n = sum(one.absorbed for one in of_family)
            right = sum(one.absorbed_right for one in of_family)
            outliers = sum(one.outliers_absorbed for one in of_family)
            shares = f" ({right / n:.0%}, {outliers / n:.0%})" if n else ""
            cells.append(f"{mean(one.absorbed for one in of_family):.1f}{shares}")
        rows.append([method, *cells])
    parts.append(table(["method", *families], rows))
    return "\n\n".join(parts)


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(FRESH))
    parser.add_argument("--json", type=Path, help="also write every score to this file")
    parser.add_argument("--banking77", type=Path, default=BANKING77, help="npz of real sentences; skipped if absent")
    arguments = parser.parse_args()
    scores = score_all(arguments.seeds, arguments.banking77)
    print(report(scores))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine_facts(), "scores": [asdict(score) for score in scores]}, indent=1)
        )


if __name__ == "__main__":
    main()
