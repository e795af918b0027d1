"""The queue of embeddings in shards: where events go, and what operators and metrics see of all shards together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import dramatiq
import pytest
import redis

from broker import RedisStreamsBroker
from sploot_cluster.errors import InvalidInput
from sploot_cluster.jobs import QueueFull
from sploot_cluster.queues import DeadLetterFilter
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, GROUP, NAMESPACE
from tasks.erasure import Erasure
from tasks.observe.backlog import BacklogCollector, BacklogSampler
from tasks.queue_limit import MAX_QUEUE_LENGTH
from tasks.queue_ops import Operations
from tasks.redis_access.probe import probe_writes
from tasks.shards import SHARDED, bucket_of_pet
from tasks.wire import CHECKS, DECODERS
from tests.support import refusal
from tests.system.events import flat_event

N = 4
STUCK = "stuck-worker"
PETS = range(1, 13)
ALL = DeadLetterFilter()


def shard_of(pet_id: int) -> str:
    number = bucket_of_pet(pet_id) % N
    return EMBEDDING_INGESTED if number == 0 else f"{EMBEDDING_INGESTED}.s{number}"


class Divided:
    """The queue of embeddings in four shards, and the actions on it."""

    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client
        self.broker = self.new_broker()
        self.broker.set_shards(EMBEDDING_INGESTED, N)
        self.operations = Operations(self.broker, client)
        self.tasks = ClusterTasks(client=client)

    def new_broker(self) -> RedisStreamsBroker:
        return RedisStreamsBroker(
            client=self.client,
            namespace=NAMESPACE,
            group=GROUP,
            middleware=[],
            lease_ms=2_000,
            keeper_process=False,
            sharded=SHARDED,
            decoders=DECODERS,
            checks=CHECKS,
        )

    def send(self, *pets: int) -> None:
        """Send one event of each pet with the client."""
        self.tasks.ingest_many([_event(pet_id) for pet_id in pets])

    def deliver(self) -> None:
        """Deliver the waiting entries of every shard to a consumer without a heartbeat, like that of a dead worker."""
        for shard in self.broker.shards(EMBEDDING_INGESTED):
            stream = f"{NAMESPACE}:{shard}"
            self.client.xgroup_create(stream, GROUP, id="0", mkstream=True)
            self.client.xreadgroup(GROUP, STUCK, {stream: ">"}, count=100)

    def bury(self, *pets: int) -> None:
        """Add a dead letter for an event of each pet, in the pet's shard. All have different ids."""
        for number, pet_id in enumerate(pets, 1):
            entry = {f"entry:{name!s}": value for name, value in flat_event(pet_id=pet_id, number=pet_id).items()}
            facts = {"reason": "failed", "error": "ValueError: no", "actor": CLUSTER_EMBEDDING, "deliveries": 1}
            facts |= {"entry_id": "1-1", "message_id": entry["entry:event_id"]}
            self.client.xadd(f"{{{NAMESPACE}:{shard_of(pet_id)}}}:dead", facts | entry, id=f"{number}-0")

    def ran(self) -> list[int]:
        """Run a worker until the queue is empty, and return the pets of the events that it ran."""
        broker, pets = self.new_broker(), list[int]()

        @dramatiq.actor(broker=broker, queue_name=EMBEDDING_INGESTED, actor_name=CLUSTER_EMBEDDING)
        def run(pet_id: int, **_: Any) -> None:
            pets.append(pet_id)

        # a process that has not read the shards yet runs all messages where they are
        assert broker.n_shards(EMBEDDING_INGESTED) == N
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
        worker.start()
        try:
            broker.join(EMBEDDING_INGESTED, timeout=30_000)
        finally:
            worker.stop()
            broker.close()
        return sorted(pets)


def _event(pet_id: int) -> dict[str, Any]:
    return {"pet_id": pet_id, "media_id": f"{pet_id}.jpg", "model": "m@1", "embedding": [1.0, 0.5]}


@pytest.fixture
def divided(redis_client: redis.Redis) -> Iterator[Divided]:
    divided = Divided(redis_client)
    with closing(divided.broker), closing(divided.operations), divided.tasks:
        yield divided


def test_client_adds_the_events_of_a_pet_to_its_shard(divided: Divided) -> None:
    divided.send(*PETS, *PETS)

    for part in divided.broker.stats_of_shards(EMBEDDING_INGESTED):
        assert part.undelivered == 2 * sum(shard_of(pet_id) == part.queue_name for pet_id in PETS)
    assert divided.ran() == sorted([*PETS, *PETS])


def test_flat_events_run_whichever_shard_a_producer_chose(divided: Divided) -> None:
    for pet_id in PETS:
        divided.client.xadd(f"{NAMESPACE}:{EMBEDDING_INGESTED}", flat_event(pet_id=pet_id, number=1))
        divided.client.xadd(f"{NAMESPACE}:{shard_of(pet_id)}", flat_event(pet_id=pet_id, number=2))

    assert divided.ran() == sorted([*PETS, *PETS])
    n_strays = sum(shard_of(pet_id) != EMBEDDING_INGESTED for pet_id in PETS)
    assert divided.broker.counters(EMBEDDING_INGESTED)["moved"] == n_strays
    assert divided.broker.stats(EMBEDDING_INGESTED).entries_added == 24


def test_raw_commands_on_a_shard_lose_nothing(divided: Divided) -> None:
    divided.send(*PETS)
    divided.deliver()
    for shard in divided.broker.shards(EMBEDDING_INGESTED):
        stream = f"{NAMESPACE}:{shard}"
        pending = divided.client.xpending_range(stream, GROUP, "-", "+", 10)
        divided.client.xack(stream, GROUP, pending[0]["message_id"])
        divided.client.xgroup_delconsumer(stream, GROUP, STUCK)

    assert divided.ran() == list(PETS)


def test_limit_of_the_queue_is_shared_by_its_shards(divided: Divided) -> None:
    divided.client.set(MAX_QUEUE_LENGTH, 8)
    pet_id = next(one for one in PETS if shard_of(one) != EMBEDDING_INGESTED)

    with ClusterTasks(client=divided.client) as tasks:
        tasks.ingest_many([_event(pet_id)])
        tasks.ingest_many([_event(pet_id)])
        with pytest.raises(QueueFull) as full:
            tasks.ingest_many([_event(pet_id)])

    assert full.value.queue == EMBEDDING_INGESTED
    assert divided.broker.stats(EMBEDDING_INGESTED).undelivered == 2


def test_status_and_lists_show_all_shards_together(divided: Divided) -> None:
    divided.send(*PETS)
    divided.bury(*PETS)

    status = next(one for one in divided.operations.queues() if one.queue == EMBEDDING_INGESTED)
    assert (status.undelivered, status.dead, status.stream) == (12, 12, "streams:embedding.ingested")
    waiting = divided.operations.jobs("embedding", "waiting", limit=5)
    rest = divided.operations.jobs("embedding", "waiting", limit=50, cursor=waiting.cursor)
    assert sorted(job.pet_id or 0 for job in [*waiting.records, *rest.records]) == list(PETS)
    assert rest.cursor is None
    dead = divided.operations.dead_letters("embedding", ALL, limit=5)
    older = divided.operations.dead_letters("embedding", ALL, limit=50, cursor=dead.cursor)
    assert sorted(view.pet_id or 0 for view in [*dead.records, *older.records]) == list(PETS)
    [group] = divided.operations.dead_letter_groups("embedding", ALL)
    assert (group.n, group.queue) == (12, EMBEDDING_INGESTED)
    sample = divided.operations.dead_letter("embedding", group.sample_id)
    assert sample is not None


def test_jobs_and_dead_letters_of_a_pet_are_found_in_its_shard(divided: Divided) -> None:
    divided.send(*PETS)
    divided.bury(7)

    found = divided.operations.search("7", limit=10)
    assert [job.queue for job in found.jobs] == [shard_of(7)]
    assert [view.queue for view in found.dead_letters] == [shard_of(7)]
    with closing(divided.new_broker()) as broker:
        erased = Erasure(broker, divided.client).erase(7)
    assert (erased.n_dead_letters, erased.n_waiting) == (1, 1)
    assert divided.broker.stats(EMBEDDING_INGESTED).dead == 0


def test_plans_for_the_queue_act_in_every_shard(divided: Divided) -> None:
    operations = divided.operations
    divided.send(*PETS)
    divided.deliver()
    divided.bury(*PETS)

    rescued = operations.act(operations.plan_rescue("embedding", consumer=STUCK), by="ada", via="test")
    assert (rescued.n_done, rescued.is_complete, rescued.queue) == (12, True, EMBEDDING_INGESTED)
    retired = operations.act(operations.plan_retire("embedding", STUCK), by="ada", via="test")
    assert retired.is_complete
    assert all(one.name != STUCK for one in divided.broker.stats(EMBEDDING_INGESTED).consumers)

    plan = operations.plan_requeue("embedding", matching=ALL)
    operations.keep(plan)  # as the command line and HTTP do, until it is confirmed
    assert operations.act(operations.take(plan.plan_id), by="ada", via="test").n_done == 12
    paused = operations.act(operations.plan_pause("embedding"), by="ada", via="test")
    assert paused.is_complete
    assert all(part.paused for part in divided.broker.stats_of_shards(EMBEDDING_INGESTED))
    operations.act(operations.plan_resume("embedding"), by="ada", via="test")
    cancelled = operations.act(operations.plan_cancel("embedding", pet_id=7), by="ada", via="test")
    assert cancelled.n_done == 2
    assert divided.ran() == sorted(pet for pet in [*PETS, *PETS] if pet != 7)


def test_ids_are_found_in_their_shards(divided: Divided) -> None:
    operations = divided.operations
    divided.bury(*PETS)
    ids = [view.dead_letter_id for view in operations.dead_letters("embedding", ALL, limit=50).records]

    done = operations.act(operations.plan_purge("embedding", dead_letter_ids=ids[:7]), by="ada", via="test")

    assert done.n_done == 7
    assert divided.broker.stats(EMBEDDING_INGESTED).dead == 5
    refused = refusal(lambda: operations.plan_purge("embedding", dead_letter_ids=["1-1"]))
    assert refused.field == "dead_letter_ids"


def test_id_that_exists_in_two_shards_is_refused(divided: Divided) -> None:
    one, other = PETS[0], next(pet_id for pet_id in PETS if shard_of(pet_id) != shard_of(PETS[0]))
    divided.bury(one)
    divided.bury(other)

    refused = refusal(lambda: divided.operations.plan_purge("embedding", dead_letter_ids=["1-0"]))

    assert shard_of(one) in refused.problem
    assert shard_of(other) in refused.problem


def test_shards_are_changed_by_a_plan(divided: Divided) -> None:
    operations = divided.operations

    plan = operations.plan_shards("embedding", 8)
    operations.keep(plan)
    assert operations.act(operations.take(plan.plan_id), by="ada", via="test").is_complete
    assert len(operations.shards("embedding")) == 8
    assert operations.audit().records[0].action == "set-shards"
    assert refusal(lambda: operations.plan_shards("embedding", 3)).field == "shards"
    assert refusal(lambda: operations.plan_shards("feedback", 2)).field == "queue"
    operations.act(operations.plan_pause("embedding"), by="ada", via="test")
    with pytest.raises(InvalidInput, match="is paused"):
        operations.plan_shards("embedding", 16)


def test_gauges_are_sums_over_the_shards(divided: Divided) -> None:
    divided.send(*PETS)
    divided.bury(*PETS)
    sampler = BacklogSampler(divided.broker, divided.client)
    sampler.sample_pending()
    sampler.sample_lag()

    families = {family.name: family for family in BacklogCollector(divided.client).collect()}

    def value(name: str) -> float:
        samples = families[name].samples
        return next(one.value for one in samples if one.labels["stream"] == "streams:embedding.ingested")

    assert value("media_cluster_undelivered_jobs") == 12
    assert value("media_cluster_dead_letters") == 12
    shards = families["media_cluster_shard_undelivered_jobs"].samples
    assert [one.labels["shard"] for one in shards] == ["0", "1", "2", "3"]
    assert sum(one.value for one in shards) == 12


def test_probe_writes_to_the_node_of_every_shard(divided: Divided) -> None:
    probe_writes(divided.client)

    assert divided.client.exists("sploot:probe:{streams:embedding.ingested.s3}")
