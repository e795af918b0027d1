"""The actors on an in-memory broker and store: messages go in, the pet shows their effect."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit
from periodiq import PeriodiqMiddleware

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.jobs import Traces
from sploot_cluster.pet.models import PetView
from sploot_cluster.store.cold.moves import ColdPets
from sploot_cluster.store.cold.rounds import ColdRounds
from sploot_cluster.store.memory import MemoryPetStore
from tasks.actors import declare_actors
from tasks.cold_pets import declare_cold_actor
from tasks.contracts import (
    CLUSTER_EMBEDDING,
    CLUSTER_FEEDBACK,
    CLUSTER_MAINTENANCE,
    CLUSTER_RECLUSTER,
    DELETE_ITEMS,
    EMBEDDING_INGESTED,
    GROUP,
    PREVIEW_RECLUSTER,
    RECLUSTER_PET,
)
from tasks.observe.backlog import BacklogSampler
from tasks.observe.media_totals import MediaSampler, declare_media_actor
from tasks.observe.periodic import declare_periodic_actors
from tasks.retry_policy import POLICIES
from tasks.wire import decode_embedding
from tests.sploot_cluster.albums import MODEL, PET, name, names, picture, take

QUEUE_OF = {
    CLUSTER_EMBEDDING: EMBEDDING_INGESTED,
    **{request.actor_name: CLUSTER_FEEDBACK for request in VERBS.values()},
    RECLUSTER_PET: CLUSTER_RECLUSTER,
    PREVIEW_RECLUSTER: CLUSTER_RECLUSTER,
    DELETE_ITEMS: CLUSTER_RECLUSTER,
}


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    return ClusterService(store)


@pytest.fixture
def broker(service: ClusterService) -> Iterator[StubBroker]:
    """The actors with a worker that runs them."""
    broker = StubBroker(middleware=[CurrentMessage(), Retries(), TimeLimit()])
    declare_actors(broker, service)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    yield broker
    worker.stop()
    broker.close()


@pytest.fixture
def three_subjects(service: ClusterService) -> PetView:
    """A pet with twelve items of each of three subjects, in clusters 1, 2 and 3."""
    for subject in range(3):
        take(service, subject, range(12))
    service.recluster(PET)
    view = service.clusters(PET)
    assert {int(cluster.cluster_id) for cluster in view.clusters} == {1, 2, 3}
    return view


def event(**changes: Any) -> dict[str, Any]:
    """Return the event of a new item that is similar to a stored item of the first subject, with changes."""
    arrival = EmbeddingIngested.of(pet_id=PET, media_id=name(0, 99), model=MODEL, embedding=picture(0, 0))
    return arrival.to_kwargs() | changes


def run(broker: StubBroker, actor: str, *args: Any, **kwargs: Any) -> dramatiq.Message[Any]:
    """Send a message, wait until it has run, and raise its final exception."""
    message = broker.get_actor(actor).send(*args, **kwargs)
    finish(broker, actor)
    return message


def finish(broker: StubBroker, actor: str) -> None:
    broker.join(QUEUE_OF[actor], timeout=20_000)


def test_every_actor_has_its_queue_and_retry_policy(broker: StubBroker) -> None:
    declared = {actor.actor_name: actor for actor in broker.actors.values()}

    assert {name: actor.queue_name for name, actor in declared.items()} == QUEUE_OF
    for actor_name, actor in declared.items():
        assert actor.options == POLICIES[actor_name].actor_options()


def test_policies_cover_exactly_the_actors_of_a_worker(service: ClusterService) -> None:
    client = redis.Redis()  # this client is never used for a call
    broker = StubBroker(middleware=[CurrentMessage(), Retries(), TimeLimit(), PeriodiqMiddleware()])

    declare_actors(broker, service)
    declare_periodic_actors(
        broker, BacklogSampler(RedisStreamsBroker(client=client, group=GROUP, middleware=[]), client), client
    )
    declare_media_actor(broker, MediaSampler(service, client), client)
    rounds = ColdRounds(client, ColdPets(client, None), service.pets_page, idle_days=1)
    declare_cold_actor(broker, rounds, client)

    assert broker.actors.keys() == POLICIES.keys()
    assert {actor.queue_name for actor in broker.actors.values()} == {*QUEUE_OF.values(), CLUSTER_MAINTENANCE}


def test_event_assigns_its_item_to_a_cluster(
    broker: StubBroker, service: ClusterService, three_subjects: PetView
) -> None:
    run(broker, CLUSTER_EMBEDDING, **event())

    (own,) = (cluster for cluster in service.clusters(PET).clusters if name(0, 0) in cluster.media_ids)
    assert set(own.media_ids) == names(0, range(12)) | {name(0, 99)}


def test_decoded_event_is_not_checked_again(
    service: ClusterService, three_subjects: PetView, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = StubBroker(middleware=[CurrentMessage(), Retries(), TimeLimit()])
    declare_actors(broker, service)
    arrival = EmbeddingIngested.of(pet_id=PET, media_id=name(0, 99), model=MODEL, embedding=picture(0, 0))
    fields = arrival.to_kwargs() | {"encoding": "f32le", "embedding": arrival.embedding}
    message = decode_embedding(
        "1-0", {k.encode(): v if k == "embedding" else str(v).encode() for k, v in fields.items()}
    )
    monkeypatch.setattr(EmbeddingIngested, "from_kwargs", None)

    running = MessageProxy(message)
    broker.emit_before("process_message", running)
    broker.get_actor(CLUSTER_EMBEDDING)(**message.kwargs)
    broker.emit_after("process_message", running)

    assert name(0, 99) in {item for cluster in service.clusters(PET).clusters for item in cluster.media_ids}


def test_repeated_event_adds_its_item_once(broker: StubBroker, service: ClusterService) -> None:
    run(broker, CLUSTER_EMBEDDING, **event())
    run(broker, CLUSTER_EMBEDDING, **event(event_id="sent again"))

    assert service.clusters(PET).noise == (name(0, 99),)


@pytest.mark.parametrize(
    ("actor", "kwargs", "field"),
    [
        (CLUSTER_EMBEDDING, event(pet_id=0), "pet_id"),
        (CLUSTER_EMBEDDING, event(media_id=""), "media_id"),
        (CLUSTER_EMBEDDING, event(embedding="not base64"), "embedding"),
        ("merge_clusters", {"pet_id": 42, "cluster_ids": [3]}, "cluster_ids"),
        ("split_cluster", {"pet_id": 42, "cluster_id": 3, "media_ids": []}, "media_ids"),
        ("exclude_media", {"pet_id": 42, "cluster_id": 3, "media_ids": []}, "media_ids"),
        ("dismiss_media", {"pet_id": 42, "media_ids": "a"}, "media_ids"),
        ("undo_feedback", {"pet_id": 42}, "revision"),
        ("restore_revision", {"pet_id": 42, "revision": 0}, "revision"),
        (RECLUSTER_PET, {"pet_id": "42"}, "pet_id"),
    ],
)
def test_invalid_field_is_refused_without_retries(
    broker: StubBroker, service: ClusterService, actor: str, kwargs: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        run(broker, actor, **kwargs)

    assert refused.value.field == field
    (dead_letter,) = broker.dead_letters
    assert "retries" not in dead_letter.options
    assert service.pets() == []


def test_worker_continues_after_an_invalid_message(broker: StubBroker, service: ClusterService) -> None:
    broker.get_actor(CLUSTER_EMBEDDING).send(**event(dim="many"))
    broker.get_actor(CLUSTER_EMBEDDING).send(**event())

    broker.join(EMBEDDING_INGESTED, timeout=20_000, fail_fast=False)

    assert [dead_letter.kwargs["dim"] for dead_letter in broker.dead_letters] == ["many"]
    assert service.clusters(PET).n_media == 1


@pytest.mark.parametrize("actor", QUEUE_OF)
def test_positional_arguments_are_refused(broker: StubBroker, actor: str) -> None:
    with pytest.raises(InvalidInput, match="args: positional arguments have no names; send keyword arguments"):
        run(broker, actor, 42, **event() if actor == CLUSTER_EMBEDDING else {"pet_id": 42})


@pytest.mark.parametrize(
    ("actor", "kwargs"),
    [
        ("merge_clusters", {"cluster_ids": [1, 77]}),
        ("split_cluster", {"cluster_id": 1, "media_ids": ["nobody's"]}),
        ("undo_feedback", {"revision": 7_777}),
        ("restore_revision", {"revision": 7_777}),
    ],
)
def test_correction_that_no_longer_fits_the_pet_leaves_no_dead_letter(
    broker: StubBroker, service: ClusterService, three_subjects: PetView, actor: str, kwargs: dict[str, Any]
) -> None:
    run(broker, actor, pet_id=PET, **kwargs)

    assert broker.dead_letters == []
    assert service.clusters(PET) == three_subjects


def test_merge_split_and_undo_change_the_clusters(
    broker: StubBroker, service: ClusterService, three_subjects: PetView
) -> None:
    def members() -> dict[int, int]:
        return {int(cluster.cluster_id): cluster.size for cluster in service.clusters(PET).clusters}

    third = next(cluster for cluster in three_subjects.clusters if cluster.cluster_id == 3)
    run(broker, "merge_clusters", pet_id=PET, cluster_ids=[1, 2], into=2, requested_by="anna")
    merged, merge_revision = members(), service.clusters(PET).revision
    run(broker, "split_cluster", pet_id=PET, cluster_id=3, media_ids=list(third.media_ids[:4]))
    split = members()
    run(broker, "undo_feedback", pet_id=PET, revision=merge_revision)
    undone = members()

    assert merged == {2: 24, 3: 12}
    assert sorted(split.values()) == [4, 8, 24]
    assert sorted(undone.values()) == [4, 8, 12, 12]
    assert [(entry.kind, entry.by) for entry in service.history(PET, limit=3)] == [
        ("undo", "unknown"),
        ("split", "unknown"),
        ("merge", "anna"),
    ]


def test_exclusion_and_dismissal_are_applied(
    broker: StubBroker, service: ClusterService, three_subjects: PetView
) -> None:
    run(broker, "exclude_media", pet_id=PET, cluster_id=1, media_ids=[name(0, 0)], requested_by="anna")
    run(broker, "dismiss_media", pet_id=PET, media_ids=[name(1, 0)], expected_revision=service.clusters(PET).revision)

    view = service.clusters(PET)
    assert (view.noise, view.dismissed) == ((name(0, 0),), (name(1, 0),))
    assert [(entry.kind, entry.by) for entry in service.history(PET, limit=2)] == [
        ("dismiss", "unknown"),
        ("exclude", "anna"),
    ]


def test_correction_delivered_twice_is_applied_once(
    broker: StubBroker, store: MemoryPetStore, three_subjects: PetView
) -> None:
    message = run(broker, "merge_clusters", pet_id=PET, cluster_ids=[1, 2])
    revision = store.load(PET).revision

    broker.enqueue(message)  # as if a worker had died before the ack
    finish(broker, "merge_clusters")

    assert [correction.operation_id for correction in store.load(PET).ledger] == [message.message_id]
    assert store.load(PET).revision == revision


def test_recluster_finds_clusters_and_records_the_requester(broker: StubBroker, service: ClusterService) -> None:
    for subject in range(2):
        take(service, subject, range(12))
    assert service.clusters(PET).n_noise == 24

    run(broker, RECLUSTER_PET, pet_id=PET, requested_by="anna", reason="grew by 20%")

    assert sorted(cluster.size for cluster in service.clusters(PET).clusters) == [12, 12]
    assert [(entry.kind, entry.by) for entry in service.history(PET, limit=1)] == [("recluster", "anna")]


def test_preview_is_stored_so_that_it_can_be_applied(broker: StubBroker, service: ClusterService) -> None:
    take(service, 0, range(12))

    run(broker, PREVIEW_RECLUSTER, pet_id=PET, requested_by="anna")

    previewed = service.previewed(PET)
    assert (previewed.diff.n_from_noise, service.clusters(PET).n_noise) == (12, 12)


def test_items_are_deleted_with_their_traces_and_a_repeat_changes_nothing(service: ClusterService) -> None:
    erased: list[tuple[int, list[str]]] = []

    class Found:
        def find(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
            return Traces(2, 1, 0)

        def erase(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
            erased.append((pet_id, list(media_ids or [])))
            return self.find(pet_id)

    take(service, 0, range(4))
    broker = StubBroker(middleware=[CurrentMessage(), Retries(), TimeLimit()])
    declare_actors(broker, service, traces=Found())
    delete = broker.get_actor(DELETE_ITEMS)

    for _ in range(2):
        delete(pet_id=PET, media_ids=[name(0, 1)], requested_by="eve")

    assert service.clusters(PET).n_media == 3
    assert erased == [(PET, [name(0, 1)])] * 2
    assert [(entry.kind, entry.by) for entry in service.history(PET)] == [("delete", "eve")]


def test_deletion_that_waiting_jobs_would_undo_is_refused(service: ClusterService) -> None:
    class Waiting:
        def find(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
            return Traces(0, 0, 1)

        erase = find

    take(service, 0, range(4))
    broker = StubBroker(middleware=[CurrentMessage(), Retries(), TimeLimit()])
    declare_actors(broker, service, traces=Waiting())

    broker.get_actor(DELETE_ITEMS)(pet_id=PET, media_ids=[name(0, 1)], requested_by="eve")

    assert service.clusters(PET).n_media == 4


def test_broker_without_current_message_is_refused(service: ClusterService) -> None:
    broker = StubBroker(middleware=[Retries(), TimeLimit()])

    with pytest.raises(ValueError, match=r"add dramatiq\.middleware\.CurrentMessage to it"):
        declare_actors(broker, service)

    assert broker.actors == {}


def test_correction_called_without_a_queue_is_refused(
    broker: StubBroker, service: ClusterService, three_subjects: PetView
) -> None:
    with pytest.raises(RuntimeError, match="without a queue, call ClusterService"):
        broker.get_actor("merge_clusters")(pet_id=PET, cluster_ids=[1, 2])

    assert service.clusters(PET).revision == three_subjects.revision
