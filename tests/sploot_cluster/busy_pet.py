"""A process that keeps changing one pet, as workers do: ``python -m tests.sploot_cluster.busy_pet URL WORKER N``.

It prints the results of the service's calls after N operations. A test that kills the process passes a large N.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from random import Random

import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, RevisionConflict
from sploot_cluster.pet.models import Corrected, MediaId
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import MODEL, PET, name, picture


@dataclass(slots=True)
class Answers:
    """The results of a worker's calls: the revisions, and the items and operations that must exist afterwards."""

    revisions: list[int] = field(default_factory=list)
    media: list[MediaId] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    constraints_lost: int = 0


class Worker:
    """One of several workers on the same pet. It sends items of two kinds: its own, and items that all workers send."""

    def __init__(self, service: ClusterService, worker: int) -> None:
        self.service, self.worker = service, worker
        self.random = Random(worker)
        self.answers = Answers()

    def work(self, operations: int) -> Answers:
        for number in range(operations):
            deed = self.random.choices(
                (self.arrive, self.merge, self.split, self.exclude, self.dismiss, self.undo, self.recluster),
                weights=(80, 7, 5, 5, 3, 4, 3),
            )[0]
            operation_id = f"{self.worker}-{number}"
            while True:
                try:
                    deed(number, operation_id)
                except RevisionConflict:
                    continue  # retry with the same operation id, as the queue would
                except InvalidInput:
                    pass  # other workers have changed the clusters that the operation names
                break
        return self.answers

    def arrive(self, number: int, operation_id: str) -> None:
        subject = self.random.randrange(4)
        picture_number = number * 2 if number % 2 else (number * 16 + self.worker) * 2 + 1
        item = name(subject, picture_number)
        assigned = self.service.assign(PET, item, model=MODEL, vector=picture(subject, picture_number))
        self.answers.media.append(item)
        if not assigned.is_duplicate:
            self.answers.revisions.append(assigned.revision)

    def merge(self, number: int, operation_id: str) -> None:
        ids = [cluster.cluster_id for cluster in self.service.clusters(PET).clusters]
        if len(ids) >= 2:
            self._note(
                operation_id, self.service.merge(PET, self.random.sample(ids, 2), operation_id=operation_id, by="ada")
            )

    def split(self, number: int, operation_id: str) -> None:
        clusters = [cluster for cluster in self.service.clusters(PET).clusters if cluster.size > 1]
        if clusters:
            cluster = self.random.choice(clusters)
            media = self.random.sample(cluster.media_ids, self.random.randrange(1, min(cluster.size, 6)))
            corrected = self.service.split(PET, cluster.cluster_id, media, operation_id=operation_id, by="ada")
            self._note(operation_id, corrected)

    def exclude(self, number: int, operation_id: str) -> None:
        clusters = [cluster for cluster in self.service.clusters(PET).clusters if cluster.size > 1]
        if clusters:
            cluster = self.random.choice(clusters)
            media = self.random.sample(cluster.media_ids, self.random.randrange(1, min(cluster.size, 3)))
            corrected = self.service.exclude(PET, cluster.cluster_id, media, operation_id=operation_id, by="ada")
            self._note(operation_id, corrected)

    def dismiss(self, number: int, operation_id: str) -> None:
        view = self.service.clusters(PET)
        media = [item for cluster in view.clusters for item in cluster.media_ids] + list(view.noise)
        if media:
            dismissed = self.random.sample(media, 1)
            self._note(operation_id, self.service.dismiss(PET, dismissed, operation_id=operation_id, by="ada"))

    def undo(self, number: int, operation_id: str) -> None:
        corrections = [entry for entry in self.service.history(PET) if entry.kind != "recluster"]
        if corrections:
            revision = self.random.choice(corrections).revision
            self._note(operation_id, self.service.undo(PET, revision, operation_id=operation_id, by="ada"))

    def recluster(self, number: int, operation_id: str) -> None:
        reclustered = self.service.recluster(PET)
        if reclustered.n_media:
            self.answers.revisions.append(reclustered.revision)
            self.answers.constraints_lost += reclustered.constraints - reclustered.constraints_kept

    def _note(self, operation_id: str, corrected: Corrected) -> None:
        self.answers.operations.append(operation_id)
        if not corrected.is_duplicate:
            self.answers.revisions.append(corrected.revision)


if __name__ == "__main__":
    url, worker, operations = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with redis.Redis.from_url(url) as client:
        answers = Worker(ClusterService(RedisPetStore(client)), worker).work(operations)
    print(json.dumps(asdict(answers)))
