"""Simulated days of a pet: arrivals, deletions, corrections, undos, reclusters and restores in random order.

``python -m tests.sploot_cluster.days [EVENTS] [SEED]``, or ``make promises``, simulates days until EVENTS events have
happened. After every event it checks that all corrections hold (``oracle``) and that no id changed its meaning
(``lineage``). It prints its seed first, and exits with 1 if a check fails.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from random import Random, SystemRandom

import numpy as np

from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections.dismiss import Dismissal
from sploot_cluster.decide.corrections.exclude import Exclusion
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.place import Placement
from sploot_cluster.decide.corrections.split import Split
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import ClusterId, MediaId, PetState
from sploot_cluster.pet.times import ms_of
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.albums import DIM, MODEL, PET, name, picture, taken_at
from tests.sploot_cluster.lineage import Witness
from tests.sploot_cluster.oracle import (
    covers_in_force,
    demands,
    locked_in_force,
    merged_in,
    names_in_force,
    pet_name_in_force,
)

STEPS = 70
EVENTS = 10_000


class Day:
    """A pet to which random events happen.

    Args:
        upheavals: include deletions, model switches, names, covers, hiding, locks, separations and replacements. False
            by default, so that known seeds still produce the same days.
        store: the store that holds the pet.
    """

    def __init__(self, seed: int, *, upheavals: bool = False, store: Witness | None = None) -> None:
        self.seed, self.random = seed, Random(seed)
        self.store = store or Witness()
        self.sent: set[MediaId] = set()  # the items sent, except those that were deleted later
        # some pets use exact arrivals, which move existing items
        self.service = ClusterService(
            self.store, settings=ClusterSettings(exact_until=self.random.choice([0, 0, 10_000]))
        )
        self.n_pictures = self.n_steps = self.n_switches = 0
        self.ids_ever: set[int] = set()
        self.revisions: list[int] = []
        self.deeds = {
            self.arrive: 45,
            self.mistake: 3,
            self.merge: 13,
            self.split: 10,
            self.exclude: 10,
            self.dismiss: 5,
            self.place: 8,
            self.undo: 12,
            self.restore: 4,
            self.recluster: 10,
        }
        if upheavals:
            self.deeds |= {self.delete: 3, self.switch: 2, self.name: 6, self.keep_apart: 6, self.hide: 3}
            self.deeds |= {self.cover: 4, self.lock: 8, self.replace: 6}

    def go_on(self) -> str:
        """Run a random event, check the pet, and return the name of the event.

        Raises:
            AssertionError: a check failed.
        """
        deed = self.random.choices([*self.deeds], weights=[*self.deeds.values()])[0]
        self.n_steps += 1
        event = deed.__name__
        try:
            deed(self.store.load(PET), str(self.n_steps))
        except InvalidInput:
            event += " refused"
        check(self, f"seed {self.seed}, step {self.n_steps}: {event}")
        return event

    def arrive(self, state: PetState, operation_id: str) -> None:
        for _ in range(5):
            subject, number = self.random.randrange(4), self.n_pictures
            self._embed(name(subject, number))
            self.n_pictures += 1

    def mistake(self, state: PetState, operation_id: str) -> None:
        """Send the next item with a vector of the wrong model, and perhaps the correct vector after it."""
        if not state.n_media:
            return
        vector = picture(self.random.randrange(4), self.n_pictures)
        item = name(self.random.randrange(4), self.n_pictures)
        self.sent.add(item)
        self.service.assign(PET, item, model=f"not-{MODEL}", vector=vector, occurred_at=taken_at(item))

    def merge(self, state: PetState, operation_id: str) -> None:
        ids = self.random.sample(sorted(state.clusters), min(len(state.clusters), self.random.choice([2, 2, 3])))
        self.service.merge(PET, ids, operation_id=operation_id, by="ada")

    def split(self, state: PetState, operation_id: str) -> None:
        cluster, media = self._some(state)
        split = self.service.split(PET, cluster, media, operation_id=operation_id, by="ada")
        now = self.store.load(PET)
        moved = [item for item, was, label in zip(state.media, state.labels, now.labels, strict=True) if was != label]
        assert {*media} <= {*moved}
        assert (split.n_moved, split.n_also_moved) == (len(moved), len({*moved} - {*media}))
        assert split.cluster is not None
        is_unannounced = now.clusters.keys() - state.clusters.keys() - {split.cluster}
        assert split.n_also_moved or not is_unannounced, "a split made clusters that nobody asked for"

    def exclude(self, state: PetState, operation_id: str) -> None:
        cluster, media = self._some(state)
        self.service.exclude(PET, cluster, media[:3], operation_id=operation_id, by="ada")

    def dismiss(self, state: PetState, operation_id: str) -> None:
        media = self.random.sample(list(state.media), min(state.n_media, self.random.randrange(1, 4)))
        self.service.dismiss(PET, media, operation_id=operation_id, by="ada")

    def place(self, state: PetState, operation_id: str) -> None:
        media = self.random.sample(list(state.media), min(state.n_media, self.random.randrange(1, 5)))
        into = self.random.choice([None, *sorted(state.clusters)])
        self.service.place(PET, media, into=into, operation_id=operation_id, by="ada")

    def keep_apart(self, state: PetState, operation_id: str) -> None:
        ids = self.random.sample(sorted(state.clusters), min(len(state.clusters), self.random.choice([2, 2, 3])))
        self.service.keep_apart(PET, ids, operation_id=operation_id, by="ada")

    def hide(self, state: PetState, operation_id: str) -> None:
        change = self.random.choice([self.service.hide, self.service.hide, self.service.show])
        change(
            PET,
            self.random.sample(sorted(state.clusters), min(len(state.clusters), 2)),
            operation_id=operation_id,
            by="ada",
        )

    def cover(self, state: PetState, operation_id: str) -> None:
        cluster, media = self._some(state)
        self.service.cover(PET, cluster, (media or ["nothing"])[0], operation_id=operation_id, by="ada")  # type: ignore[list-item]

    def replace(self, state: PetState, operation_id: str) -> None:
        """Replace the vector of an item with one of a random subject, and check that no other item moves."""
        if not state.n_media or self.n_switches:
            return
        item = self.random.choice(list(state.media))
        vector = picture(self.random.randrange(4), 500_000 + self.n_steps)
        replaced = self.service.assign(
            PET, item, model=MODEL, vector=vector, occurred_at=taken_at(item), is_replacement=True
        )
        now, row = self.store.load(PET), state.rows[item]
        others = np.arange(state.n_media) != row
        assert (now.labels[others] == state.labels[others]).all()
        assert list(now.media) == list(state.media)
        assert np.array_equal(now.vectors[row], vector)
        assert (replaced.is_duplicate, now.labels[row]) == (False, replaced.cluster)
        again = self.service.assign(PET, item, model=MODEL, vector=vector, is_replacement=True)
        assert (again.is_duplicate, self.store.load(PET).revision) == (True, now.revision)

    def lock(self, state: PetState, operation_id: str) -> None:
        change = self.random.choice([self.service.lock, self.service.lock, self.service.unlock])
        ids = self.random.sample(sorted(state.clusters), min(len(state.clusters), 2))
        change(PET, ids, operation_id=operation_id, by="ada")

    def name(self, state: PetState, operation_id: str) -> None:
        cluster = self.random.choice([ClusterId(1), *sorted(state.clusters)])
        if self.random.random() < 0.3:
            self.service.name_pet(PET, self.random.choice(["Mochi", "Rex", ""]), operation_id=operation_id, by="ada")
            return
        self.service.name(PET, cluster, f"subject {self.random.randrange(9)}", operation_id=operation_id, by="ada")

    def undo(self, state: PetState, operation_id: str) -> None:
        revisions = [correction.revision for correction in state.ledger] or [1]
        self.service.undo(PET, self.random.choice(revisions), operation_id=operation_id, by="ada")

    def restore(self, state: PetState, operation_id: str) -> None:
        revision = self.random.choice(self.revisions) if self.revisions else state.revision
        then = next((one for one in self.store.seen if one.revision == revision), state)
        restored = self.service.restore(PET, then.revision, operation_id=operation_id, by="ada")
        assert restored.constraints_kept == restored.constraints
        now = self.store.load(PET)
        n_elsewhere = int(np.count_nonzero(now.labels[: then.n_media] != then.labels))
        assert restored.n_held == n_elsewhere
        if then.ledger == state.ledger:
            assert n_elsewhere == 0, "items are elsewhere without any correction since then"

    def recluster(self, state: PetState, operation_id: str) -> None:
        reclustered = self.service.recluster(PET)
        after = self.store.load(PET)
        is_held = np.isin(state.labels, sorted(locked_in_force(state.ledger)))
        assert (after.labels[is_held] == state.labels[is_held]).all(), "a recluster changed a locked cluster"
        assert reclustered.constraints_kept == reclustered.constraints
        assert reclustered.kept == f"constraints kept {reclustered.constraints} of {reclustered.constraints}"
        if state.n_media:
            again = self.service.recluster(PET)
            assert (again.n_moved, again.n_new_ids, again.n_retired_ids) == (0, 0, 0)

    def delete(self, state: PetState, operation_id: str) -> None:
        if state.n_media > 3:
            gone = self.random.sample(list(state.media), 2)
            self.sent -= set(gone)
            self.service.delete_media(PET, gone, by="eve")

    def switch(self, state: PetState, operation_id: str) -> None:
        """Switch to a new model. Its vectors differ slightly, and it may have items that the old model lacks.

        Sometimes end the candidate model instead of switching to it, and sometimes switch back afterwards.
        """
        if not state.n_media:
            return
        self.n_switches += 1
        self.service.begin_model(PET, self._model(), DIM, by="eve")
        for item in state.media:
            self._embed(item)
        for _ in range(self.random.randrange(3)):
            self._embed(name(self.random.randrange(4), self.n_pictures))
            self.n_pictures += 1
        if self.random.random() < 0.2:
            self.service.end_model(PET)
            self.n_switches -= 1
            return
        switched = self.service.preview_switch(PET)
        self.service.switch_model(PET, switched.token, by="eve")
        if self.random.random() < 0.3:
            self.n_switches -= 1
            self.service.switch_model(PET, self.service.preview_switch(PET).token, by="eve")
        self.service.end_model(PET)

    def _model(self) -> str:
        return MODEL if not self.n_switches else f"{MODEL}.{self.n_switches}"

    def _embed(self, item: MediaId) -> None:
        self.sent.add(item)
        subject, number = map(int, item.removeprefix("s").split("-"))
        vector = picture(subject, number + 100_000 * self.n_switches)
        self.service.assign(PET, item, model=self._model(), vector=vector, occurred_at=taken_at(item))

    def _some(self, state: PetState) -> tuple[ClusterId, list[MediaId]]:
        cluster = self.random.choice(sorted(state.clusters) or [ClusterId(1)])
        media = [item for item in state.media if state.labels[state.rows[item]] == cluster]
        return cluster, self.random.sample(media, self.random.randrange(len(media) // 2 + 2)) if media else []


def check(day: Day, context: str) -> None:
    """Assert that the pet obeys its corrections according to the oracle, and that ids and columns are consistent."""
    state = day.store.load(PET)
    cluster_of = dict(zip(state.media, state.labels.tolist(), strict=True))
    assert demands(state.ledger).broken(cluster_of, state.aliases) == [], context
    assert set(np.unique(state.labels).tolist()) - {-1} == set(state.clusters), context
    assert not state.aliases.keys() & state.clusters.keys(), context
    assert set(state.aliases.values()) <= state.clusters.keys(), context
    assert state.next_cluster > max([0, *day.ids_ever, *state.clusters]), context
    day.ids_ever.update(state.clusters)
    assert ((state.labels == -1) == np.isin(state.origins, (0, 5))).all(), context
    tally = day.store.tally(PET).tally
    assert tally.is_conserved, f"{context}: {tally}"
    assert tally.ingested - tally.quarantined == state.n_media, f"{context}: {tally}"
    assert tally.ingested == len(day.sent), f"{context}: {tally}, {len(day.sent)} were sent"
    times = dict(zip(state.media, state.occurred_at_ms.tolist(), strict=True))
    times |= {item: why.occurred_at_ms for item, why in day.store.tally(PET).quarantine.items()}
    assert times == {item: ms_of(taken_at(item)) for item in day.sent}, context
    day.revisions.append(state.revision)
    if state.ledger and state.ledger[-1].revision == state.revision:
        n_also_moved = day.store.history(PET)[0].summary.get("n_also_moved", 0)
        match state.ledger[-1]:
            case Merge(into=into) as merge:
                merged = merged_in(merge, state.ledger).values()
                assert {cluster_of[item] for media in merged for item in media} == {into}, context
            case Split(source=source, created=created, moved=moved, remaining=remaining):
                assert {cluster_of[item] for item in moved} == {created}, context
                assert sum(cluster_of[item] != source for item in remaining) <= n_also_moved, context
            case Placement(into=into) as placement:
                assert {cluster_of[item] for item in placement.placed} == {into}, context
            case Exclusion(source=source, excluded=excluded, remaining=remaining):
                assert source not in {cluster_of[item] for item in excluded}, context
                assert sum(cluster_of[item] != source for item in remaining) <= n_also_moved, context
            case Dismissal() as dismissal:
                assert {cluster_of[item] for item in dismissal.media()} == {-1}, context
    view = day.service.clusters(PET)
    assert all(one.cover in one.media_ids for one in view.clusters), context
    chosen = {cluster.cluster_id: cluster.cover for cluster in view.clusters}
    for covered, item in covers_in_force(state.ledger).items():
        assert cluster_of.get(item) != covered or chosen[covered] == item, context
    is_locked = {cluster.cluster_id for cluster in view.clusters if cluster.is_locked}
    assert locked_in_force(state.ledger) & state.clusters.keys() <= is_locked, context
    shown = {cluster.cluster_id: cluster.name for cluster in view.clusters}
    assert view.name == pet_name_in_force(state.ledger), context
    for cluster, wanted in names_in_force(state.ledger).items():
        assert shown.get(cluster, wanted) == wanted, context


def check_past(day: Day) -> None:
    """Assert that every recorded revision can still be read, with all of its items that still exist."""
    past = day.store.past(PET)
    for state in day.store.seen:
        then = past.at(state.revision)
        assert list(then.media) == list(state.media), f"seed {day.seed}, revision {state.revision}"
        assert np.array_equal(then.labels, state.labels), f"seed {day.seed}, revision {state.revision}"
        assert np.array_equal(then.origins, state.origins), f"seed {day.seed}, revision {state.revision}"
        assert then.aliases == state.aliases, f"seed {day.seed}, revision {state.revision}"


def main(n_events: int, first: int) -> int:
    print(f"days of {STEPS} events, until {n_events} have happened; seed {first}", flush=True)
    random, began, happened = Random(first), time.perf_counter(), Counter[str]()
    while happened.total() < n_events:
        seed, upheavals = random.randrange(2**32), random.random() < 0.5
        day = Day(seed, upheavals=upheavals)
        try:
            for _ in range(min(STEPS, n_events - happened.total())):
                happened[day.go_on()] += 1
            check_past(day)
        except AssertionError as broken:
            traceback.print_exc()
            replay = f"replay it with Day({seed}, upheavals={upheavals})"
            print(f"BROKEN after {happened.total()} events: {broken}; {replay}")
            return 1
    for event, n in sorted(happened.items()):
        print(f"  {event}: {n}")
    print(f"{happened.total()} events, 0 violations, {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(
        main(
            arguments[0] if arguments else EVENTS,
            arguments[1] if len(arguments) > 1 else SystemRandom().randrange(2**32),
        )
    )
