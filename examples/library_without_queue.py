"""Clustering as a library: no queue, no Redis, one process.

It clusters photos of two made-up subjects, twenty of each. A user merges the two clusters, and the next recluster keeps
them merged.
"""

from __future__ import annotations

import numpy as np

from sploot_cluster import ClusterService, MediaId, MemoryPetStore, PetId

PET = PetId(42)


def main() -> None:
    random = np.random.default_rng(7)
    subjects = random.normal(size=(2, 64))
    service = ClusterService(MemoryPetStore())

    for number in range(40):
        vector = subjects[number % 2] + 0.4 * random.normal(size=64)
        service.assign(PET, MediaId(f"photo-{number}.jpg"), model="example@1", vector=vector)
    service.recluster(PET)
    show(service, "after the first recluster")

    first, second = (cluster.cluster_id for cluster in service.clusters(PET).clusters)
    merged = service.merge(PET, [first, second], operation_id="op-1", by="ada")
    service.recluster(PET)
    show(service, "after a merge and another recluster")

    service.undo(PET, merged.revision, operation_id="op-2", by="ada")
    show(service, "after the undo")


def show(service: ClusterService, when: str) -> None:
    pet = service.clusters(PET)
    sizes = ", ".join(f"cluster {cluster.cluster_id}: {cluster.size}" for cluster in pet.clusters)
    print(f"{when}: {sizes}; {pet.n_noise} noise")


if __name__ == "__main__":
    main()
