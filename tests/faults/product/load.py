"""The actions of users in the campaign: uploads (client, HTTP, plain XADD), corrections, deletions, switches, exports.

Every thread has its own connections through the proxy. It records only actions that were confirmed; after an error, the
outcome of an action is unknown.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import ClusterError, InvalidInput, StoreUnavailable
from sploot_cluster.jobs import QueueUnavailable
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.service import NewItem
from sploot_cluster.store import export_file
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks
from tests.faults.product.stage import OWN, SWITCHING, ProductStage
from tests.system.events import DIM, vectors

PETS: Final = range(1, 13)
SWITCHED: Final = range(13, 15)  # pets with two models at a time
PREFIX: Final = "/api/v1/internal"

Item = tuple[int, str]


@dataclass
class Records:
    """The confirmed actions.

    Attributes:
        confirmed: item -> the time at which its upload was confirmed.
        deleted: items whose deletion was confirmed.
        doubtful: items whose deletion was requested, but neither confirmed nor refused.
        corrections: job id -> pet, of corrections that were accepted.
        jobs: ids of all other jobs that were accepted.
        behind: jobs that ended, although their records show an earlier state.
        torn: exports that an import would refuse, with the problem.
        done: how often each action succeeded or failed.
    """

    confirmed: dict[Item, float] = field(default_factory=dict)
    deleted: set[Item] = field(default_factory=set)
    doubtful: set[Item] = field(default_factory=set)
    corrections: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    torn: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)


class Load:
    """Threads that act as users until :meth:`stop`."""

    def __init__(self, stage: ProductStage, seed: int) -> None:
        self.records = Records()
        self.crashes: list[str] = []
        self._stage, self._seed = stage, seed
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._is_ending = threading.Event()
        users: tuple[Callable[[random.Random], None], ...] = (
            self._by_client,
            self._by_http,
            self._by_xadd,
            self._correct,
            self._correct,
            self._delete,
            self._switch,
            self._export,
        )
        self._threads = [
            threading.Thread(target=self._run, args=(user, number), daemon=True) for number, user in enumerate(users)
        ]

    def start(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def seed_pets(self) -> None:
        """Give every pet some clusters while nothing is broken, so that there is something to correct."""
        service = ClusterService(RedisPetStore(self._stage.client))
        for pet in (*PETS, *SWITCHED):
            items = [(PetId(pet), MediaId(f"m{next(self._numbers)}"), OWN) for _ in range(24)]
            service.assign_many(
                [
                    NewItem(pet, media, model, vectors(pet_id=pet, n=1_000)[int(media[1:]) % 1_000])
                    for pet, media, model in items
                ]
            )
            service.recluster(PetId(pet))
            self._sent("seeded", [(pet, media) for pet, media, _ in items])

    def stop(self) -> None:
        self._is_ending.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, user: Callable[[random.Random], None], number: int) -> None:
        try:
            user(random.Random(f"{self._seed}/{number}"))
        except Exception as error:
            self.crashes.append(f"{user.__name__}: {type(error).__name__}: {error}")

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self._stage.redis_url)

    def _item(self, rng: random.Random) -> tuple[int, str, str, list[float]]:
        """Return a new item: its pet, id, model and vector."""
        number = next(self._numbers)
        pet = rng.choice((*PETS, *SWITCHED))
        model = rng.choice((OWN, SWITCHING)) if pet in SWITCHED else OWN
        return pet, f"m{number}", model, vectors(pet_id=pet, n=1_000)[number % 1_000].tolist()

    def _sent(self, by: str, items: list[Item]) -> None:
        with self._lock:
            self.records.confirmed |= dict.fromkeys(items, time.monotonic())
            self.records.done[by] += len(items)

    # -- uploads ------------------------------------------------------------------------------------------------------

    def _by_client(self, rng: random.Random) -> None:
        with ClusterTasks(client=self._client()) as tasks:
            while not self._is_ending.wait(rng.uniform(0.02, 0.2)):
                events = [self._item(rng) for _ in range(rng.choice((1, 1, 5, 20)))]
                items = [(pet, media) for pet, media, *_ in events]
                try:
                    tasks.ingest_many(
                        {"pet_id": pet, "media_id": media, "model": model, "embedding": vector}
                        for pet, media, model, vector in events
                    )
                except QueueUnavailable:
                    self.records.done["uploads refused or uncertain"] += len(items)
                else:
                    self._sent("uploads by the client", items)

    def _by_http(self, rng: random.Random) -> None:
        while not self._is_ending.wait(rng.uniform(0.02, 0.3)):
            pet, media, model, vector = self._item(rng)
            body = {"pet_id": pet, "media_id": media, "model": model, "embedding": vector}
            status, _ = self._http("POST", "/embeddings", body)
            if status == 202:
                self._sent("uploads by HTTP", [(pet, media)])
            else:
                self.records.done[f"uploads by HTTP answered {status}"] += 1

    def _by_xadd(self, rng: random.Random) -> None:
        with self._client() as client:
            while not self._is_ending.wait(rng.uniform(0.02, 0.2)):
                pet, media, model, vector = self._item(rng)
                content = np.array(vector, dtype="<f4").tobytes()
                event: dict[Any, Any] = {"schema": "embedding.ingested/1", "event_id": f"e-{media}", "pet_id": str(pet)}
                event |= {"media_id": media, "model": model, "dim": str(DIM), "encoding": "f32le", "embedding": content}
                try:
                    client.xadd("streams:embedding.ingested", event)
                except redis.RedisError:
                    self.records.done["uploads refused or uncertain"] += 1
                else:
                    self._sent("uploads by XADD", [(pet, media)])

    # -- labellers and operators --------------------------------------------------------------------------------------

    def _correct(self, rng: random.Random) -> None:
        client = self._client()
        service = ClusterService(RedisPetStore(client))
        with ClusterTasks(client=client) as tasks:
            while not self._is_ending.wait(rng.uniform(0.1, 0.6)):
                pet = rng.choice((*PETS, *SWITCHED))
                try:
                    job = self._corrected(rng, tasks, service, PetId(pet))
                except (ClusterError, QueueUnavailable):
                    self.records.done["corrections refused or uncertain"] += 1
                    continue
                if job is not None:
                    self.records.done["corrections"] += 1

    def _corrected(self, rng: random.Random, tasks: ClusterTasks, service: ClusterService, pet: PetId) -> str | None:
        view = service.clusters(pet)
        if len(view.clusters) < 2:
            return None
        one, other = rng.sample(view.clusters, 2)
        some = list(rng.sample(one.media_ids, min(len(one.media_ids), rng.randrange(1, 4))))
        match rng.choice(("merge", "split", "exclude", "dismiss", "place", "name", "keep_apart", "undo", "recluster")):
            case "recluster":
                job = tasks.recluster(pet)
                self.records.jobs[job.job_id] = pet
                return job.job_id
            case "merge":
                job = tasks.merge(pet, [one.cluster_id, other.cluster_id])
            case "split":
                job = tasks.split(pet, one.cluster_id, some)
            case "exclude":
                job = tasks.exclude(pet, one.cluster_id, some)
            case "dismiss":
                job = tasks.dismiss(pet, some[:1])
            case "place":
                job = tasks.place(pet, some, into=other.cluster_id)
            case "name":
                job = tasks.name(pet, one.cluster_id, f"name {rng.randrange(1_000)}")
            case "keep_apart":
                job = tasks.keep_apart(pet, [one.cluster_id, other.cluster_id])
            case _:
                entries = [
                    entry for entry in service.history(pet) if entry.kind not in ("recluster", "switch", "delete")
                ]
                if not entries:
                    return None
                job = tasks.undo(pet, rng.choice(entries).revision)
        self.records.corrections[job.job_id] = pet
        return job.job_id

    def _delete(self, rng: random.Random) -> None:
        while not self._is_ending.wait(rng.uniform(0.3, 1.0)):
            before = time.monotonic() - 3
            with self._lock:
                confirmed = list(self.records.confirmed.items())
            old = [item for item, at in confirmed if at < before and item[0] in PETS]
            candidates = [item for item in old if item not in self.records.deleted | self.records.doubtful]
            if not candidates:
                continue
            pet, media = rng.choice(candidates)
            self.records.doubtful.add((pet, media))
            status, _ = self._http("DELETE", f"/pets/{pet}/media/{media}")
            self.records.done[f"deletions answered {status}"] += 1
            if status == 200:
                self.records.deleted.add((pet, media))
            if status in (200, 404, 409):  # the outcome is certain: deleted, or nothing changed
                self.records.doubtful.discard((pet, media))

    def _switch(self, rng: random.Random) -> None:
        with self._client() as client:
            service = ClusterService(RedisPetStore(client))
            while not self._is_ending.wait(rng.uniform(1.0, 5.0)):
                pet = PetId(rng.choice(SWITCHED))
                with suppress(InvalidInput, StoreUnavailable, ClusterError):
                    self._switched(rng, service, pet)

    def _switched(self, rng: random.Random, service: ClusterService, pet: PetId) -> None:
        model = service.model(pet)
        if model.candidate is None:
            service.begin_model(pet, SWITCHING if model.model == OWN else OWN, DIM, by="switcher")
            self.records.done["candidate models begun"] += 1
        elif rng.random() < 0.2:
            self.records.done["candidate models ended"] += service.end_model(pet)
        else:
            # as producers do, send vectors of the candidate model for some of the items that lack one
            view = service.clusters(pet)
            media_ids = [*view.noise, *(media for cluster in view.clusters for media in cluster.media_ids)]
            if model.candidate.n_vectors < view.n_media:
                with ClusterTasks(client=self._client()) as tasks, suppress(QueueUnavailable):
                    tasks.ingest_many(
                        {
                            "pet_id": pet,
                            "media_id": media,
                            "model": model.candidate.model,
                            "embedding": vectors(pet_id=pet, n=1_000)[int(media[1:]) % 1_000].tolist(),
                        }
                        for media in rng.sample(media_ids, min(len(media_ids), 200))
                    )
            service.switch_model(pet, service.preview_switch(pet).token, by="switcher")
            self.records.done["switches"] += 1

    def _export(self, rng: random.Random) -> None:
        with self._client() as client:
            service = ClusterService(RedisPetStore(client))
            while not self._is_ending.wait(rng.uniform(0.5, 2.0)):
                pet = PetId(rng.choice((*PETS, *SWITCHED)))
                try:
                    file = service.export(pet)
                except ClusterError:
                    self.records.done["exports refused"] += 1
                    continue
                self.records.done["exports"] += 1
                try:
                    export_file.load(file)
                except ClusterError as torn:
                    self.records.torn.append(f"pet {pet}: {torn}")

    def _http(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return the status of a response, or 0 if there was none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._stage.http_port, timeout=20)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, PREFIX + path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()
