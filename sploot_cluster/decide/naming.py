"""The names of clusters, read from the corrections in force.

A name belongs to a cluster id. It follows that id into the cluster that it was merged into, and returns when the merge
is undone. If the id has ended, for example because its cluster was dissolved by a recluster, the name belongs to the
cluster that has most of the items that were typical of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sploot_cluster.decide.corrections.name import Naming
from sploot_cluster.decide.resolving import in_force
from sploot_cluster.pet.models import NOISE, ClusterId, PetState


def names_of(state: PetState) -> Mapping[ClusterId, tuple[str, ...]]:
    """Return the names of living clusters; clusters without a name are left out.

    The first name of a cluster is the one to show: the newest of its own id, or else the newest of the ids that were
    merged into it. The others are those of merged clusters, newest first, for people to choose from.
    """
    newest: dict[ClusterId, Naming] = {}
    for statement in in_force(state.ledger):
        if isinstance(statement, Naming):
            newest.setdefault(statement.named, statement)
    names: dict[ClusterId, list[str]] = {}
    for naming in sorted(newest.values(), key=lambda naming: naming.named not in state.clusters):
        cluster = _cluster_of(state, naming)
        if cluster is not None and naming.name not in names.setdefault(cluster, []):
            names[cluster].append(naming.name)
    return {cluster: tuple(found) for cluster, found in names.items()}


def _cluster_of(state: PetState, naming: Naming) -> ClusterId | None:
    now = state.aliases.get(naming.named, naming.named)
    if now in state.clusters:
        return now
    labels = (int(state.labels[state.rows[item]]) for item in naming.anchors if item in state.rows)
    most = Counter(label for label in labels if label != NOISE).most_common(1)
    return ClusterId(most[0][0]) if most and 2 * most[0][1] > len(naming.anchors) else None
