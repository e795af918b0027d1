"""A correction moves no items of other clusters, and an undo right after it restores the pet exactly."""

from __future__ import annotations

from random import Random

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import ClusterId, Corrected, PetState
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, name, names
from tests.sploot_cluster.days import Day

KINDS = ("merge", "split", "exclude", "dismiss")


def correct(service: ClusterService, state: PetState, kind: str, random: Random) -> tuple[Corrected, set[int]]:
    """Make a correction of this kind, and return its result and the clusters that it affects."""
    clusters = random.sample(sorted(state.clusters), 2)
    cluster = ClusterId(clusters[0])
    members = [item for item in state.media if state.labels[state.rows[item]] == cluster]
    media = random.sample(members, random.randrange(1, len(members) + 1))
    match kind:
        case "merge":
            return service.merge(PET, clusters, operation_id="first", by="ada"), set(clusters)
        case "split":
            return service.split(PET, cluster, media, operation_id="first", by="ada"), {cluster}
        case "exclude":
            return service.exclude(PET, cluster, media, operation_id="first", by="ada"), {cluster}
        case _:
            return service.dismiss(PET, media, operation_id="first", by="ada"), {cluster}


def test_split_reports_items_that_older_corrections_also_moved() -> None:
    store = MemoryPetStore()
    service = grouped(store, 3, range(6))
    one, two, three = ClusterId(1), ClusterId(2), ClusterId(3)
    service.merge(PET, [two, three], into=two, operation_id="older merge", by="ada")
    merged = service.merge(PET, [one, two], into=one, operation_id="merge", by="ada")
    left, stays = name(1, 0), name(0, 0)
    others = sorted((names(0, range(6)) | names(1, range(6)) | names(2, range(6))) - {left, stays})
    split = service.split(PET, one, others, operation_id="split", by="ada")
    service.exclude(PET, one, [left], operation_id="exclude", by="ada")
    service.undo(PET, split.revision, operation_id="undo", by="ada")

    # the excluded item must not be with the split-off item, but the older merge keeps it with others
    again = service.split(PET, one, [stays], operation_id="again", by="ada")

    state = store.load(PET)
    assert state.labels[state.rows[left]] == merged.cluster
    assert (again.n_moved, again.n_also_moved) == (2, 1)
    assert service.history(PET)[0].summary["n_also_moved"] == 1


# Seeds that once failed: with 240, a cluster lost its id when half of it was excluded; with the others,
# a dismissed cluster did not return. Not covered: if an exclusion takes most items of an old merge out of their
# cluster, items of that merge in another cluster may move with them.
@pytest.mark.parametrize("seed", [101, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (103, 104)), 240])
def test_undo_right_after_a_correction_restores_labels_and_aliases_exactly(seed: int) -> None:
    day, random, n_corrected = Day(seed), Random(seed), 0
    for step in range(40):
        day.go_on()
        state = day.store.load(PET)
        if step % 4 or len(state.clusters) < 2:
            continue
        for kind in KINDS:
            context = f"seed {seed}, step {step}: {kind}"
            store = MemoryPetStore()
            service = ClusterService(store)
            service.import_pet(day.service.export(PET))
            try:
                corrected, about = correct(service, state, kind, random)
            except InvalidInput:
                continue  # the correction would take all items of a cluster
            after = store.load(PET)
            service.undo(PET, corrected.revision, operation_id="taken back", by="ada")

            back, moved = store.load(PET), after.labels != state.labels
            led = {old: now for old, now in back.aliases.items() if old < state.next_cluster}
            assert set(state.labels[moved].tolist()) <= about, context
            assert back.labels.tolist() == state.labels.tolist(), context
            assert led == state.aliases, context
            n_corrected += 1
    assert n_corrected
