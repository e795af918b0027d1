"""A pet as it was: old labels as a new revision, and what people said since then still holds.

Restoring takes back what machines did, and what corrections moved besides; it takes back no correction. Media that a
correction in force holds elsewhere stay there, and are counted. Who wants a correction gone undoes it.
"""

from __future__ import annotations

import numpy as np

from sploot_cluster.constraints import RowConstraints, count_kept, enforce, resolve
from sploot_cluster.diff import Snapshot
from sploot_cluster.feedback import standings_after
from sploot_cluster.models import NOISE, Change, ClusterId, PetState, Restored, Standing
from sploot_cluster.regrouping import regroup
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.vectors import LabelVector


def plan_restore(
    state: PetState, then: Snapshot, *, settings: ClusterSettings, operation_id: str, by: str
) -> tuple[Change, Restored]:
    """The labels of ``then``, with their ids, as far as corrections in force allow.

    Clusters that people made keep the id they have: whoever merged or split them since knows them by it. Media that
    came later stay in their cluster if its id lived then, and are noise otherwise.

    Args:
        then: of the same pet; its media are the first ones of ``state``.
    """
    assert then.revision is not None
    n_then = len(then.labels)
    labels, standings = state.labels.copy(), state.standings.copy()
    labels[:n_then], standings[:n_then] = then.labels, then.standings
    lived = np.unique(then.labels[then.labels != NOISE])
    labels[n_then:][~np.isin(labels[n_then:], lived)] = NOISE

    constraints = resolve(state.ledger)
    rows = constraints.by_row(state.rows)
    groups = enforce(labels, state.vectors, rows, counts=(standings != Standing.ABSORBED) | rows.placed)
    regrouped = regroup(
        state,
        groups,
        standings_after(standings, groups, rows),
        rows,
        settings,
        given=_ids(state, groups, rows, lived),
    )
    told = dict(zip(state.media, regrouped.labels.tolist(), strict=True))
    aliases = {old: now for old, now in {**state.aliases, **regrouped.aliases}.items() if now is not None}
    kept, total = count_kept(told, constraints, aliases=aliases)
    restored = Restored(
        revision=state.revision + 1,
        restored=then.revision,
        n_moved=regrouped.n_moved,
        n_held=int(np.count_nonzero(regrouped.labels[:n_then] != then.labels)),
        n_later=state.n_media - n_then,
        constraints_kept=kept,
        constraints=total,
        kept=f"constraints kept {kept} of {total}",
        overridden=constraints.overridden,
    )
    summary = {
        "restored": then.revision,
        "operation_id": operation_id,
        "n_moved": restored.n_moved,
        "n_held": restored.n_held,
        "n_later": restored.n_later,
        "constraints": f"{kept} of {total}",
    }
    return regrouped.change(state, "restore", by=by, summary=summary), restored


def _ids(state: PetState, groups: LabelVector, rows: RowConstraints, lived: LabelVector) -> dict[int, ClusterId]:
    """Group -> its id: of those with media that people placed, the one that most of these have; else that of then."""
    placed = rows.placed & (groups != NOISE) & (state.labels != NOISE)
    pairs, n = np.unique(np.stack([groups[placed], state.labels[placed]]), axis=1, return_counts=True)
    given: dict[int, ClusterId] = {}
    for at in np.argsort(-n, kind="stable").tolist():
        group, cluster = int(pairs[0, at]), ClusterId(int(pairs[1, at]))
        if group not in given and cluster not in given.values():
            given[group] = cluster
    for id_ in np.intersect1d(lived, groups).tolist():
        if id_ not in given and id_ not in given.values():
            given[id_] = ClusterId(id_)
    return given
