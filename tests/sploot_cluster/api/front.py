"""The HTTP API for tests, with a service in memory and a queue that records what is enqueued."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from fastapi import FastAPI
from starlette.testclient import TestClient

from sploot_cluster import ClusterService
from sploot_cluster.api import create_app
from sploot_cluster.api.idempotency import MemoryIdempotencyStore
from sploot_cluster.decide.corrections.base import Request
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.fields import fields_of
from sploot_cluster.jobs import ENDED, JobRef, JobState, JobStatus
from sploot_cluster.pet.models import PreviewBackend
from sploot_cluster.store.memory import MemoryPetStore
from tasks.contracts import DeleteItems, PreviewRecluster, ReclusterPet

API = "/api/v1/internal"


class NotingQueue:
    """A ``JobQueue`` that validates like the real one and records what is enqueued."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.events: list[EmbeddingIngested] = []
        self.jobs: dict[str, JobStatus] = {}
        self.before: Callable[[], None] = lambda: None

    def recluster(self, pet_id: int, *, requested_by: str = "?", reason: str = "") -> JobRef:
        ReclusterPet(pet_id, requested_by, reason)
        return self._note("recluster", pet_id=pet_id, by=requested_by, reason=reason)

    def preview(self, pet_id: int, *, requested_by: str = "?", backend: PreviewBackend | None = None) -> JobRef:
        PreviewRecluster(pet_id, requested_by, backend)
        return self._note("preview", pet_id=pet_id, by=requested_by, **({"backend": backend} if backend else {}))

    def delete_items(self, pet_id: int, media_ids: Sequence[str], *, requested_by: str = "?") -> JobRef:
        DeleteItems(pet_id, media_ids, requested_by)
        return self._note("delete_items", pet_id=pet_id, media_ids=list(media_ids), by=requested_by)

    def correct(self, request: Request[Any]) -> JobRef:
        facts = {name: value for name in fields_of(type(request)) if (value := getattr(request, name)) is not None}
        return self._note(request.verb, by=facts.pop("requested_by"), **facts)

    def ingest_event(self, event: EmbeddingIngested) -> JobRef:
        self.events.append(event)
        return self._note("ingest", pet_id=event.pet_id, media_id=event.media_id, vector=list(event.vector()))

    def unfinished(self, pet_id: int) -> list[JobStatus]:
        return [status for status in self.jobs.values() if status.pet_id == pet_id and status.state not in ENDED]

    def job(self, job_id: str) -> JobStatus | None:
        self.before()
        return self.jobs.get(job_id)

    def _note(self, what: str, **facts: Any) -> JobRef:
        self.before()
        self.asked.append((what, facts))
        return JobRef(f"job {len(self.asked)}", "some.queue", position=len(self.asked))


def job_status(job_id: str, state: JobState, reason: str, **facts: Any) -> JobStatus:
    """Return the status of a job that never started, with these facts."""
    never: dict[str, Any] = dict.fromkeys(("pet_id", "enqueued_at", "started_at", "finished_at", "due_at", "result"))
    return JobStatus(job_id, state, "cluster.feedback", "merge_clusters", reason, attempts=0, **(never | facts))


class Part:
    """A proxy for a part of a shared application, such as its service. Each test sets ``now`` to its own part."""

    def __init__(self) -> None:
        self.now: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now, name)


class UsedApp:
    """An application that tests share, because building one takes 50 ms. Each test sets its own parts."""

    free: ClassVar[list[UsedApp]] = []

    def __init__(self) -> None:
        self.service, self.jobs, self.idempotency = Part(), Part(), Part()
        self.app = create_app(service=self.service, jobs=self.jobs, idempotency=self.idempotency)


class TrustingService(ClusterService):
    """A service that accepts corrections of pets that it does not have, for tests of other parts of the API."""

    def check(self, request: Request[Any]) -> None:
        pass


class Front:
    """The application with its service and queue. ``service_type`` is the real service or one with fewer checks."""

    def __init__(self, *, service_type: type[ClusterService] = TrustingService, **options: Any) -> None:
        self.store = MemoryPetStore()
        self.service = service_type(self.store)
        self.queue = NotingQueue()
        self.app: FastAPI
        if options:
            self.app = create_app(**{"service": self.service, "jobs": self.queue, **options})
        else:
            used = UsedApp.free.pop() if UsedApp.free else UsedApp()
            used.service.now, used.jobs.now, used.idempotency.now = self.service, self.queue, MemoryIdempotencyStore()
            weakref.finalize(self, UsedApp.free.append, used)
            self.app = used.app
        self.http = client_of(self.app)


def client_of(app: Any, *, peer: str = "127.0.0.1", host: str = "127.0.0.1:8080") -> TestClient:
    """Return a client that connects from ``peer`` to ``host``. It turns exceptions into responses, as a server does."""
    return TestClient(app, base_url=f"http://{host}", client=(peer, 50_000), raise_server_exceptions=False)
