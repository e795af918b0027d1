"""Random days of a pet: media come and go, people correct and change their minds, reclusters run, old revisions return.

``python -m tests.sploot_cluster.days [EVENTS] [SEED]`` lives through many days, until so many events have happened, and
compares after every one: nothing said is lost (``oracle``), and no id means another group (``lineage``). It prints its
seed first, and ends with 1 at a broken promise; ``make promises``.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from random import Random, SystemRandom

import numpy as np

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput
from sploot_cluster.models import ClusterId, Dismissal, Exclusion, MediaId, Merge, PetState, Split
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.albums import DIM, MODEL, PET, name, picture
from tests.sploot_cluster.lineage import Witness
from tests.sploot_cluster.oracle import demands

STEPS = 70
EVENTS = 10_000


class Day:
    """One pet, and the next thing that happens to it.

    Args:
        upheavals: media are deleted too, and models exchanged. Without them old seeds live the days that they were
            found on.
    """

    def __init__(self, seed: int, *, upheavals: bool = False) -> None:
        self.seed, self.random = seed, Random(seed)
        self.store = Witness()
        # some pets decide every arrival exactly, which moves media that were there
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
            self.undo: 12,
            self.restore: 4,
            self.recluster: 10,
        }
        if upheavals:
            self.deeds |= {self.delete: 2, self.switch: 1}

    def go_on(self) -> str:
        """Let something happen, and raise AssertionError if a promise is broken after it; what happened."""
        deed = self.random.choices([*self.deeds], weights=[*self.deeds.values()])[0]
        self.n_steps += 1
        told = deed.__name__
        try:
            deed(self.store.load(PET), str(self.n_steps))
        except InvalidInput:
            told += " refused"
        check(self, f"seed {self.seed}, step {self.n_steps}: {told}")
        return told

    def arrive(self, state: PetState, operation_id: str) -> None:
        for _ in range(5):
            subject, number = self.random.randrange(4), self.n_pictures
            self._embed(name(subject, number))
            self.n_pictures += 1

    def mistake(self, state: PetState, operation_id: str) -> None:
        """A producer sends the next picture in another model's space; it may come again as it should."""
        if not state.n_media:
            return
        vector = picture(self.random.randrange(4), self.n_pictures)
        self.service.assign(PET, name(self.random.randrange(4), self.n_pictures), model=f"not-{MODEL}", vector=vector)

    def merge(self, state: PetState, operation_id: str) -> None:
        ids = self.random.sample(sorted(state.clusters), min(len(state.clusters), self.random.choice([2, 2, 3])))
        self.service.merge(PET, ids, operation_id=operation_id, by="ada")

    def split(self, state: PetState, operation_id: str) -> None:
        cluster, some = self._some(state)
        self.service.split(PET, cluster, some, operation_id=operation_id, by="ada")

    def exclude(self, state: PetState, operation_id: str) -> None:
        cluster, some = self._some(state)
        self.service.exclude(PET, cluster, some[:3], operation_id=operation_id, by="ada")

    def dismiss(self, state: PetState, operation_id: str) -> None:
        some = self.random.sample(list(state.media), min(state.n_media, self.random.randrange(1, 4)))
        self.service.dismiss(PET, some, operation_id=operation_id, by="ada")

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
            assert n_elsewhere == 0, "nobody said anything since"

    def recluster(self, state: PetState, operation_id: str) -> None:
        reclustered = self.service.recluster(PET)
        assert reclustered.constraints_kept == reclustered.constraints
        assert reclustered.kept == f"constraints kept {reclustered.constraints} of {reclustered.constraints}"
        if state.n_media:
            again = self.service.recluster(PET)
            assert (again.n_moved, again.n_new_ids, again.n_retired_ids) == (0, 0, 0)

    def delete(self, state: PetState, operation_id: str) -> None:
        if state.n_media > 3:
            self.service.delete_media(PET, self.random.sample(list(state.media), 2), by="eve")

    def switch(self, state: PetState, operation_id: str) -> None:
        """Another model comes, and sees the same pictures a little differently; sometimes the old one comes back."""
        if not state.n_media:
            return
        self.n_switches += 1
        self.service.begin_model(PET, self._model(), DIM, by="eve")
        for medium in state.media:
            self._embed(medium)
        switched = self.service.preview_switch(PET)
        self.service.switch_model(PET, switched.token, by="eve")
        if self.random.random() < 0.3:
            self.n_switches -= 1
            self.service.switch_model(PET, self.service.preview_switch(PET).token, by="eve")
        self.service.end_model(PET)

    def _model(self) -> str:
        return MODEL if not self.n_switches else f"{MODEL}.{self.n_switches}"

    def _embed(self, medium: MediaId) -> None:
        subject, number = map(int, medium.removeprefix("s").split("-"))
        vector = picture(subject, number + 100_000 * self.n_switches)
        self.service.assign(PET, medium, model=self._model(), vector=vector)

    def _some(self, state: PetState) -> tuple[ClusterId, list[MediaId]]:
        cluster = self.random.choice(sorted(state.clusters) or [ClusterId(1)])
        media = [medium for medium in state.media if state.labels[state.rows[medium]] == cluster]
        return cluster, self.random.sample(media, self.random.randrange(len(media) // 2 + 2)) if media else []


def check(day: Day, context: str) -> None:
    """Whether the pet keeps what was said, by the oracle, and its ids and columns fit together."""
    state = day.store.load(PET)
    told = dict(zip(state.media, state.labels.tolist(), strict=True))
    assert demands(state.ledger).broken(told, state.aliases) == [], context
    assert set(np.unique(state.labels).tolist()) - {-1} == set(state.clusters), context
    assert not state.aliases.keys() & state.clusters.keys(), context
    assert set(state.aliases.values()) <= state.clusters.keys(), context
    assert state.next_cluster > max([0, *day.ids_ever, *state.clusters]), context
    day.ids_ever.update(state.clusters)
    assert ((state.labels == -1) == np.isin(state.standings, (0, 5))).all(), context
    tally = day.store.tally(PET).tally
    assert tally.is_conserved, f"{context}: {tally}"
    assert tally.ingested - tally.quarantined == state.n_media, f"{context}: {tally}"
    day.revisions.append(state.revision)
    if state.ledger and state.ledger[-1].revision == state.revision:
        match state.ledger[-1]:
            case Merge(into=into, groups=groups):
                assert {told[medium] for media in groups.values() for medium in media} == {into}, context
            case Split(source=source, created=created, moved=moved, remaining=remaining):
                assert {told[medium] for medium in moved} == {created}, context
                assert {told[medium] for medium in remaining} == {source}, context
            case Exclusion(source=source, media=media, remaining=remaining):
                assert source not in {told[medium] for medium in media}, context
                assert {told[medium] for medium in remaining} == {source}, context
            case Dismissal() as dismissal:
                assert {told[medium] for medium in dismissal.media} == {-1}, context


def check_past(day: Day) -> None:
    """Whether every revision that was seen can still be told, in all its media."""
    past = day.store.past(PET)
    for state in day.store.seen:
        then = past.at(state.revision)
        assert list(then.media) == list(state.media), f"seed {day.seed}, revision {state.revision}"
        assert np.array_equal(then.labels, state.labels), f"seed {day.seed}, revision {state.revision}"
        assert np.array_equal(then.standings, state.standings), f"seed {day.seed}, revision {state.revision}"
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
    for told, n in sorted(happened.items()):
        print(f"  {told}: {n}")
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
