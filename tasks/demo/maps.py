"""A map of each pet: its items as points, coloured by cluster."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sploot_cluster.pet.vectors import FloatMatrix

NOISE_COLOUR = "#9aa0a6"


def draw_map(
    path: Path,
    *,
    title: str,
    subtitle: str,
    vectors: FloatMatrix,
    labels: Sequence[int],
    corrected: Sequence[bool],
) -> None:
    """Write a PNG with one point per item, laid out so that similar items lie together.

    Args:
        vectors: (n, d) float32 of unit norm.
        labels: (n,) cluster ids; negative for noise.
        corrected: (n,) bool, whether a correction placed the item; such items are drawn with a ring.
    """
    # Imported only when a map is drawn, and without pyplot, which takes a second to import and searches for a display.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    places = _layout(vectors)
    label, ringed = np.asarray(labels), np.asarray(corrected, dtype=bool)
    clusters = [int(c) for c in np.unique(label) if c >= 0]
    figure = Figure(figsize=(9, 7.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    noise = label < 0
    axes.scatter(
        places[noise, 0],
        places[noise, 1],
        s=26,
        c=NOISE_COLOUR,
        marker="x",
        linewidths=1,
        label=f"noise · {noise.sum()}",
    )
    colours = colormaps["tab20"](np.arange(len(clusters)) % 20)
    for colour, cluster in zip(colours, clusters, strict=True):
        members = label == cluster
        axes.scatter(
            places[members, 0],
            places[members, 1],
            s=22,
            color=colour,
            linewidths=0,
            label=f"{cluster} · {members.sum()}",
        )
        x, y = np.median(places[members], axis=0)
        axes.annotate(str(cluster), (x, y), ha="center", va="center", fontsize=11, weight="bold", bbox=_TAG)
    if ringed.any():
        x, y = places[ringed].T
        axes.scatter(x, y, s=58, facecolors="none", edgecolors="black", linewidths=0.9, label="placed by a correction")
    axes.set_title(f"{title}\n", loc="left", fontsize=15, weight="bold")
    axes.text(0, 1.012, subtitle, transform=axes.transAxes, fontsize=10, color="#444444")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d0d0")
    axes.legend(title="cluster · items", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    figure.savefig(path)


_TAG: dict[str, Any] = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "#888888", "alpha": 0.85}


def _layout(vectors: FloatMatrix) -> npt.NDArray[np.float64]:
    """Return positions (n, 2) computed by t-SNE from the principal components; equal for equal vectors."""
    from sklearn.manifold import TSNE

    n = len(vectors)
    if n < 5:
        return np.column_stack([np.arange(n, dtype=np.float64), np.zeros(n)])
    with warnings.catch_warnings():
        # scikit-learn warns about changes of defaults that are set explicitly here
        warnings.simplefilter("ignore")
        layout = TSNE(
            n_components=2,
            init="pca",
            learning_rate="auto",
            perplexity=min(30.0, (n - 1) / 3),
            max_iter=400,
            random_state=0,
        )
        places: npt.NDArray[np.float64] = layout.fit_transform(vectors).astype(np.float64)
    return places
