"""How often suggestions are right, and how much ten answers improve the clusters: ``python -m benchmarks suggestions``.

Each set with known groups is reclustered as a pet. A simulated person then answers up to ten suggestions, one after the
other, according to the known groups. The table shows, by kind, how many suggestions were made and how many were right
(the answer was yes), and the mean adjusted Rand index before and after the answers (``benchmarks.quality``).
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.metrics import adjusted_rand_score

from benchmarks.quality.__main__ import singles
from benchmarks.quality.sets import BANKING77, LabelledSet, draw
from benchmarks.records import table
from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.suggestions.values import Suggestion
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.service import NewItem
from sploot_cluster.store.memory import MemoryPetStore

PET: Final = PetId(1)
MODEL: Final = "bench@1"
# Seeds of the sets; not 1 to 4, because the weights were fitted on those.
FRESH: Final = (101, 102, 103, 104, 105)
ANSWERS: Final = 10
LARGEST: Final = 1_500

Numbers = npt.NDArray[np.int64]


def service_of(one: LabelledSet) -> ClusterService:
    """Return a service with a pet that has the items of a set and was reclustered."""
    service = ClusterService(MemoryPetStore())
    items = [NewItem(PET, MediaId(str(row)), MODEL, vector) for row, vector in enumerate(one.vectors)]
    for start in range(0, len(items), 500):
        service.assign_many(items[start : start + 500])
    service.recluster(PET)
    return service


def labels_of(service: ClusterService, n: int) -> Numbers:
    labels = np.full(n, -1, dtype=np.int64)
    for cluster in service.clusters(PET).clusters:
        labels[[int(item) for item in cluster.media_ids]] = cluster.cluster_id
    return labels


def subject_of(truth: Numbers, rows: Iterable[int]) -> int | None:
    """Return the group that more than half of the items belong to, or None if there is none."""
    of_rows = truth[list(rows)]
    groups, n = np.unique(of_rows[of_rows >= 0], return_counts=True)
    return int(groups[n.argmax()]) if len(n) and 2 * n.max() > len(of_rows) else None


def is_right(asked: Suggestion, service: ClusterService, truth: Numbers) -> bool:
    """Return whether someone who knows the groups would answer yes."""
    members = {one.cluster_id: [int(item) for item in one.media_ids] for one in service.clusters(PET).clusters}
    of_clusters = [subject_of(truth, members[cluster]) for cluster in asked.cluster_ids]
    if asked.kind == "same_subject":
        return of_clusters[0] is not None and of_clusters[0] == of_clusters[1]
    if asked.kind == "stranger":
        return of_clusters[0] is not None and truth[int(asked.sides[0][0])] != of_clusters[0]
    moved = {int(item) for item in asked.yes.body["media_ids"]}  # type: ignore[attr-defined]
    halves = subject_of(truth, moved), subject_of(truth, {*members[asked.cluster_ids[0]]} - moved)
    return halves[0] != halves[1] and None not in halves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(FRESH))
    parser.add_argument("--banking77", type=Path, default=BANKING77, help="npz of real sentences; skipped if absent")
    given = parser.parse_args()
    asked, right, firsts = Counter[str](), Counter[str](), list[bool]()
    before: dict[str, list[float]] = defaultdict(list)
    after: dict[str, list[float]] = defaultdict(list)
    n_answers: dict[str, list[int]] = defaultdict(list)
    for seed in given.seeds:
        for one in draw(seed, banking77=given.banking77):
            if len(one.truth) > LARGEST:
                continue
            service, truth = service_of(one), singles(one.truth)
            before[one.family].append(adjusted_rand_score(truth, singles(labels_of(service, len(truth)))))
            for answer in range(ANSWERS + 1):
                found = service.suggestions(PET, limit=1).suggestions
                if not found or answer == ANSWERS:
                    break
                yes = is_right(found[0], service, one.truth)
                asked[found[0].kind] += 1
                right[found[0].kind] += yes
                if not answer:
                    firsts.append(yes)
                reply = found[0].yes if yes else found[0].no
                service.correct(VERBS[reply.verb].from_kwargs(dict(reply.body)), operation_id=str(answer))
            n_answers[one.family].append(answer)
            after[one.family].append(adjusted_rand_score(truth, singles(labels_of(service, len(truth)))))
    rows = [[kind, str(n), str(right[kind]), f"{right[kind] / n:.0%}"] for kind, n in sorted(asked.items())]
    total = asked.total(), right.total()
    rows += [["all", *map(str, total), f"{total[1] / total[0]:.0%}"]]
    rows += [["the first of a pet", str(len(firsts)), str(sum(firsts)), f"{fmean(firsts):.0%}"]]
    print(table(["suggestions", "asked", "right", "share"], rows))
    rows = [
        [family, f"{fmean(before[family]):.3f}", f"{fmean(after[family]):.3f}", f"{fmean(n_answers[family]):.1f}"]
        for family in before
    ]
    print("\n" + table(["family", "ARI before", "after", "answers"], rows))


if __name__ == "__main__":
    main()
