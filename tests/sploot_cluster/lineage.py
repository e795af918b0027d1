"""Checks that cluster ids keep their meaning, derived from all earlier states and not from a store's history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sploot_cluster.pet.models import Change, ClusterId, MediaId, Origin, PetState
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store.memory import MemoryPetStore


class Witness(MemoryPetStore):
    """A store that records every state and raises AssertionError if a commit changes the meaning of an id.

    Attributes:
        seen: every state, without the items that were deleted or left out afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[PetState] = []

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        after = super().commit(state, change, claimant=claimant)
        self.seen = self.seen or [state]
        context = f"revision {after.revision}, {change.kind} {dict(change.summary)}"
        if change.kind == "restore":
            revision = change.summary["restored"]
            then = next(state for state in self.seen if state.revision == revision)
            check_restored(state, then, [one for one in self.seen if one.revision >= then.revision], after, context)
        else:
            check_went_on(state, after, context, undone=self.seen if change.kind == "undo" else None)
        self.seen.append(after)
        return after

    def replace(self, before: PetDump | None, after: PetDump, *, claimant: str | None = None) -> PetState:
        state = super().replace(before, after, claimant=claimant)
        assert before is not None
        is_switch = state.model != before.state.model
        self.seen = [without(one, state) for one in self.seen]
        if is_switch:
            check_went_on(self.seen[-1], state, f"revision {state.revision}, another model", undone=None)
        self.seen.append(state)
        return state


def without(state: PetState, now: PetState) -> PetState:
    """Return the state as it would have been without the items that no longer exist."""
    keep = [row for row, item in enumerate(state.media) if item in now.rows]
    media = [state.media[row] for row in keep]
    labels = state.labels[keep]
    return replace(
        state,
        media=media,
        rows={item: row for row, item in enumerate(media)},
        labels=labels,
        origins=state.origins[keep],
        clusters={id_: card for id_, card in state.clusters.items() if id_ in labels},
        ledger=now.ledger[: len(state.ledger)],
    )


def check_went_on(before: PetState, after: PetState, context: str, *, undone: Sequence[PetState] | None) -> None:
    """Check after any change but a restore that each retired id points to the cluster with most of its items.

    Args:
        undone: all earlier states if the change is an undo, else None. After an undo, ids may return for items that
            they once held, but must not take over a cluster of other items.
    """
    held, now_in = members(before), members(after)
    came = {id_ for id_ in after.clusters.keys() - before.clusters.keys() if id_ < before.next_cluster}
    assert not came or undone is not None, f"{context}: {came} returned"
    for id_ in came:
        meant = {item for state in undone or () for item in members(state).get(id_, set())}
        assert now_in[id_] & meant, f"{context}: {id_} returned for other items"
        for ended in before.clusters.keys() - after.clusters.keys():
            n_of_others = len(now_in[id_] & held[ended] - meant)
            assert n_of_others <= len(now_in[id_] & meant), f"{context}: {id_} took over {ended}"
    for id_ in (before.clusters.keys() | before.aliases.keys()) - after.clusters.keys():
        target = before.aliases.get(id_, id_)
        expected = target if target in after.clusters else heir(held.get(target, set()), after)
        now = after.aliases.get(id_)
        # an undo restores the aliases from before a merge, and updates those of the ids that it could not restore
        assert now == expected or (undone is not None and id_ in before.aliases), f"{context}: {id_} points to {now}"


def check_restored(before: PetState, then: PetState, since: Sequence[PetState], after: PetState, context: str) -> None:
    """Check ids after a restore.

    Args:
        before: the last state before the restore.
        then: the earlier state that was restored.
        since: every state from ``then`` to ``before``.
        after: the state that the restore committed.
    """
    held: dict[ClusterId, set[MediaId]] = {}
    for state in since:
        held |= members(state)

    def leads_to(id_: ClusterId) -> ClusterId | None:
        return id_ if id_ in after.clusters else heir(held[id_], after)

    for id_ in held.keys() | then.aliases.keys() | before.aliases.keys() | after.aliases.keys():
        if id_ in after.clusters:
            continue
        if id_ in held:
            expected = leads_to(id_)
        else:
            targets = [led[id_] for led in (then.aliases, before.aliases) if id_ in led]
            expected = leads_to(targets[0]) if targets else None
        now = after.aliases.get(id_)
        assert now == expected, f"{context}: {id_} points to {now}, not {expected}"

    for id_, now_in in members(after).items():
        if id_ >= before.next_cluster:
            continue
        meant = [members(then).get(id_, set()), held.get(id_, set())]
        assert any(id_ in most_went_to(media, after) for media in meant) or (
            id_ in before.clusters and now_in & held[id_]
        ), f"{context}: {id_} means another group"
    if then.ledger == before.ledger:
        assert list(after.labels[: then.n_media]) == list(then.labels), context
        assert then.aliases.items() - after.aliases.items() <= {(id_, then.aliases.get(id_)) for id_ in held}, context


def members(state: PetState) -> Mapping[ClusterId, set[MediaId]]:
    """Return the items of each living cluster, without absorbed ones."""
    found: dict[ClusterId, set[MediaId]] = {id_: set() for id_ in state.clusters}
    for item, label, origin in zip(state.media, state.labels.tolist(), state.origins.tolist(), strict=True):
        if label != -1 and origin != Origin.ABSORBED:
            found[ClusterId(label)].add(item)
    return found


def heir(media: set[MediaId], after: PetState) -> ClusterId | None:
    """Return the cluster that has more than half of these items, or None if no cluster does."""
    went = Counter(int(after.labels[after.rows[item]]) for item in media)
    most = max(went, key=lambda label: went[label], default=-1)
    return ClusterId(most) if most != -1 and 2 * went[most] > went.total() else None


def most_went_to(media: set[MediaId], after: PetState) -> set[int]:
    """Return the clusters with the largest number of these items: several in case of a tie."""
    went = Counter(int(after.labels[after.rows[item]]) for item in media)
    del went[-1]
    return {label for label in went if went[label] == max(went.values())}
