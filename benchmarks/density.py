"""Density clustering: this engine, hdbscan and scikit-learn. ``make bench`` or ``python -m benchmarks.density``.

Each round runs every engine once, each in a separate process, in an order that rotates with the round. The printed
figures are medians over the rounds: times after one warm-up call, and the peak memory beyond imports and data. CPU
times include all threads; on a busy machine, they are more meaningful than wall times. For sizes that hdbscan can
compute exactly, the agreement is measured too: the weight of the spanning tree, and the ARI of the labels. All engines
get the same vectors: uneven cones with 8 % noise, 512 values each.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.records import machine_facts, number, table
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors

DIM: Final = 512
MIN_CLUSTER_SIZE, MIN_SAMPLES = 5, 3
# Maximum size for each engine; beyond it, the engine takes minutes, or more memory than a worker has.
MOST: Final = {"ours": 100_000, "hdbscan": 5_000, "hdbscan generic": 10_000, "scikit-learn brute": 10_000}

Labels = npt.NDArray[np.intp]


def pictures(n: int, *, seed: int = 1) -> FloatMatrix:
    """Return (n, 512) unit vectors in many uneven groups, with noise."""
    rng = np.random.default_rng(seed)
    weights = rng.lognormal(3.5, 1, size=max(3, n // 60))
    group = rng.choice(len(weights), size=n, p=weights / weights.sum())
    centres = rng.normal(size=(len(weights), DIM)) + rng.normal(size=DIM)
    spread = rng.uniform(0.5, 1.2, size=len(weights))
    x = centres[group] + rng.normal(size=(n, DIM)) * spread[group][:, None]
    is_noise = rng.random(n) < 0.08
    x[is_noise] = rng.normal(size=(int(is_noise.sum()), DIM)) + rng.normal(size=DIM) * 0.5
    return as_vectors(x)


def engine(name: str) -> Callable[[FloatMatrix], Labels]:
    """Import an engine by name and return its function."""
    match name:
        case "ours":
            from sploot_cluster.density import cluster_densely

            return lambda x: cluster_densely(
                x, min_cluster_size=MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES
            ).labels.astype(np.intp)
        case "hdbscan" | "hdbscan generic":
            import hdbscan

            generic = {"algorithm": "generic", "approx_min_span_tree": False} if name.endswith("generic") else {}
            return lambda x: (
                hdbscan.HDBSCAN(min_cluster_size=MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES, **generic)
                .fit(x.astype(np.float64))
                .labels_
            )
        case "scikit-learn brute":
            from sklearn.cluster import HDBSCAN

            # scikit-learn counts the point itself
            return lambda x: (
                HDBSCAN(min_cluster_size=MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES + 1, algorithm="brute", copy=True)
                .fit(x)
                .labels_
            )
    raise ValueError(f"unknown engine {name!r}; expected one of {', '.join(MOST)}")


def measure(name: str, n: int) -> dict[str, float]:
    """Call an engine after a short warm-up call; return its times, its MB above the imports, and the clusters found."""
    warnings.simplefilter("ignore")
    run, x = engine(name), pictures(n)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(x[: min(n, 500)])
    start, cpu_start = time.perf_counter(), time.process_time()
    labels = run(x)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb, "clusters": float(labels.max() + 1)}


def agreement(n: int) -> dict[str, float]:
    """Compare our engine with hdbscan: the relative difference in total tree weight, and the ARI of the labels."""
    import hdbscan
    from sklearn.metrics import adjusted_rand_score

    from sploot_cluster.density import cluster_densely
    from sploot_cluster.engine.spanning_tree import spanning_tree

    warnings.simplefilter("ignore")
    x = pictures(n)
    theirs = hdbscan.HDBSCAN(
        min_cluster_size=MIN_CLUSTER_SIZE,
        min_samples=MIN_SAMPLES,
        algorithm="generic",
        approx_min_span_tree=False,
        gen_min_span_tree=True,
    ).fit(x.astype(np.float64))
    weight = float(theirs.minimum_spanning_tree_.to_numpy()[:, 2].sum())
    ours = float(spanning_tree(x, MIN_SAMPLES).weights.sum())
    labels = cluster_densely(x, min_cluster_size=MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES).labels
    return {
        "weight": abs(ours - weight) / weight,
        "ari": float(adjusted_rand_score(theirs.labels_, labels)),
    }


def _in_its_own_process(name: str, n: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.density", "--measure", name, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[200, 1_000, 5_000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--measure", metavar="ENGINE", help="run one engine in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.sizes[0])))
        return
    rows: list[list[str]] = []
    found_of: dict[int, dict[str, dict[str, float]]] = {}
    for n in arguments.sizes:
        names = [name for name, most in MOST.items() if n <= most]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for turn in range(arguments.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(_in_its_own_process(name, n))
        medians = {
            name: {fact: statistics.median(one[fact] for one in rounds) for fact in rounds[0]}
            for name, rounds in found.items()
        }
        found_of[n] = medians
        for name, median in medians.items():
            ratio = median["seconds"] / medians["ours"]["seconds"]
            cpu_ratio = median["cpu_seconds"] / medians["ours"]["cpu_seconds"]
            facts = [number(median[fact]) for fact in ("seconds", "cpu_seconds", "peak_mb")]
            rows.append([f"{n:,} {name}", *facts, f"{median['clusters']:.0f}", number(ratio), number(cpu_ratio)])
    print(table(["media, engine", "seconds", "CPU s", "peak MB", "clusters", "x ours", "x CPU"], rows))
    agreements = {n: agreement(n) for n in arguments.sizes if n <= MOST["hdbscan generic"]}
    print()
    print(
        table(
            ["media", "weight of the tree, relative difference to hdbscan", "ARI with hdbscan's labels"],
            [[f"{n:,}", f"{one['weight']:.1e}", f"{one['ari']:.4f}"] for n, one in agreements.items()],
        )
    )
    if arguments.json:
        found_json = {"machine": machine_facts(), "engines": found_of, "agreement": agreements}
        arguments.json.write_text(json.dumps(found_json, indent=1))


if __name__ == "__main__":
    main()
