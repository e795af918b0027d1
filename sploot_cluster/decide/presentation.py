"""How users want a pet and its clusters presented: names, covers, and which clusters are hidden or locked.

All of this is read from the corrections in force. Such a correction applies to a cluster id. If the id was merged into
another cluster, its name and cover apply to that cluster, but rank below that cluster's own; whether it was hidden or
locked does not matter until the merge is undone. If the id has ended, for example when a recluster divided its cluster,
the correction applies to the cluster that has most of the items that were typical of it (its *anchors*).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from sploot_cluster.decide.corrections.base import ClusterMark
from sploot_cluster.decide.corrections.cover import Covering
from sploot_cluster.decide.corrections.hide import Hiding
from sploot_cluster.decide.corrections.lock import Locking
from sploot_cluster.decide.corrections.name import Naming
from sploot_cluster.decide.corrections.name_pet import PetNaming
from sploot_cluster.decide.resolving import in_force
from sploot_cluster.pet.models import NOISE, ClusterId, Correction, MediaId, PetState
from sploot_cluster.pet.views import Presentation


def presentation_of(state: PetState) -> Presentation:
    """Return the pet's name, the names and chosen covers of living clusters, and those that are hidden or locked."""
    return Presentation(
        pet_name_of(state.ledger), names_of(state), covers_in(state), hidden_in(state), locked_in(state)
    )


def pet_name_of(ledger: Sequence[Correction]) -> str | None:
    """Return the name that the newest naming of the pet gave it, or None if it has no name."""
    newest = next((one for one in in_force(ledger) if isinstance(one, PetNaming)), None)
    return None if newest is None else newest.name or None


def names_of(state: PetState) -> Mapping[ClusterId, tuple[str, ...]]:
    """Return the names of each living cluster that has a name.

    The first name of a cluster is the one to show: the newest of its own id, or else the newest of the ids that were
    merged into it. The others come from clusters that were merged into it, newest first, for users to choose from.
    """
    newest: dict[ClusterId, Naming] = {}
    for statement in in_force(state.ledger):
        if isinstance(statement, Naming):
            newest.setdefault(statement.named, statement)
    names: dict[ClusterId, list[str]] = {}
    for naming in sorted(newest.values(), key=lambda naming: naming.named not in state.clusters):
        cluster = _cluster_of(state, naming.named, naming.anchors)
        if cluster is not None and naming.name not in names.setdefault(cluster, []):
            names[cluster].append(naming.name)
    return {cluster: tuple(found) for cluster, found in names.items()}


def hidden_in(state: PetState) -> Set[ClusterId]:
    """Return the hidden clusters."""
    return marked(state, Hiding.mark)


def locked_in(state: PetState) -> Set[ClusterId]:
    """Return the locked clusters."""
    return marked(state, Locking.mark)


def covers_in(state: PetState) -> Mapping[ClusterId, MediaId]:
    """Return the cover that a user chose for each living cluster, if the item is still in the cluster.

    The newest choice for a cluster's own id takes precedence over choices for ids that were merged into it.
    """
    newest: dict[ClusterId, Covering] = {}
    for statement in in_force(state.ledger):
        if isinstance(statement, Covering):
            newest.setdefault(statement.covered, statement)
    covers: dict[ClusterId, MediaId] = {}
    for covering in sorted(newest.values(), key=lambda covering: covering.covered not in state.clusters):
        cluster = _cluster_of(state, covering.covered, covering.anchors)
        row = state.rows.get(covering.item)
        if cluster is not None and row is not None and state.labels[row] == cluster:
            covers.setdefault(cluster, covering.item)
    return covers


def marked(state: PetState, mark: str) -> Set[ClusterId]:
    """Return the living clusters that have a mark, such as ``hidden``.

    The newest correction that sets or removes the mark decides. A cluster that was merged into another one does not
    pass its mark on.
    """
    newest = dict[ClusterId, tuple[bool, Sequence[MediaId]]]()
    for statement in in_force(state.ledger):
        if isinstance(statement, ClusterMark) and statement.mark == mark:
            for cluster, anchors in statement.anchors.items():
                newest.setdefault(cluster, (statement.is_removed, anchors))
    found: set[ClusterId] = set()
    for cluster, (is_removed, items) in newest.items():
        now = None if cluster in state.aliases else _cluster_of(state, cluster, items)
        if not is_removed and now is not None and (now == cluster or now not in newest):
            found.add(now)
    return found


def _cluster_of(state: PetState, cluster: ClusterId, anchors: Sequence[MediaId]) -> ClusterId | None:
    """Return the living cluster that an id resolves to, or else the one that has most of its anchors, if any."""
    now = state.aliases.get(cluster, cluster)
    if now in state.clusters:
        return now
    labels = (int(state.labels[state.rows[item]]) for item in anchors if item in state.rows)
    most = Counter(label for label in labels if label != NOISE).most_common(1)
    return ClusterId(most[0][0]) if most and 2 * most[0][1] > len(anchors) else None
