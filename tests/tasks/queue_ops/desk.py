"""A queue with jobs, and the actions on it, shared by several test modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import redis
from dramatiq.middleware import Retries

from broker import RedisStreamsBroker
from broker.keys import QueueKeys
from sploot_cluster.errors import InvalidInput
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, GROUP, NAMESPACE
from tasks.queue_ops import Operations
from tasks.wire import DECODERS
from tests.system.events import flat_event

KEYS = QueueKeys(NAMESPACE, EMBEDDING_INGESTED)
STUCK = "stuck-worker"


class Desk:
    """The actions on a real Redis, with access to the streams."""

    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client
        self.broker = RedisStreamsBroker(
            client=client, namespace=NAMESPACE, group=GROUP, middleware=[], decoders=DECODERS, lease_ms=2_000
        )
        self.operations = Operations(self.broker, client)

    def add(self, *numbers: int, pet_id: int = 7) -> list[str]:
        """Add flat events as a producer does; return their entry ids."""
        return [self.client.xadd(KEYS.stream, flat_event(pet_id=pet_id, number=number)).decode() for number in numbers]

    def deliver(self, consumer: str = STUCK, count: int = 100) -> None:
        """Deliver waiting entries to a consumer without a heartbeat, like that of a dead worker."""
        if KEYS.stream.encode() not in self.client.keys(KEYS.stream) or not self.client.xinfo_groups(KEYS.stream):
            self.client.xgroup_create(KEYS.stream, GROUP, id="0", mkstream=True)
        self.client.xreadgroup(GROUP, consumer, {KEYS.stream: ">"}, count=count)

    def holders(self) -> dict[str, str]:
        """Return the consumer that holds each pending entry, by entry id."""
        return {entry.id: entry.holder for entry in self.broker.inspector(EMBEDDING_INGESTED).pending(10_000)}

    def bury(self, *numbers: int, pet_id: int = 7, error: str = "ValueError: no", reason: str = "failed") -> list[str]:
        """Add dead letters of flat events; return their ids."""
        ids = []
        for number in numbers:
            event = flat_event(pet_id=pet_id, number=number)
            fields = {f"entry:{name!s}": value for name, value in event.items()}
            facts = {"reason": reason, "error": error, "actor": CLUSTER_EMBEDDING, "entry_id": "1-1", "deliveries": 1}
            facts["message_id"] = str(event["event_id"])
            ids.append(self.client.xadd(KEYS.dead, facts | fields).decode())
        return ids

    def bury_with_unique_key(self, *numbers: int, unique_key: str = "k") -> list[str]:
        """Add dead letters of messages with one unique key; return their ids."""
        ids = []
        for number in numbers:
            message = self.message(number, unique_key=unique_key)
            facts = {"reason": "failed", "error": "ValueError: no", "entry_id": "1-1", "deliveries": 1}
            facts |= {"actor": message.actor_name, "message_id": message.message_id, "unique_key": unique_key}
            ids.append(self.client.xadd(KEYS.dead, {**facts, "entry:message": message.encode()}).decode())
        return ids

    def message(self, number: int, **options: Any) -> dramatiq.Message[Any]:
        """Return a message for the embedding actor."""
        return dramatiq.Message(
            queue_name=EMBEDDING_INGESTED,
            actor_name=CLUSTER_EMBEDDING,
            args=(),
            kwargs={"pet_id": 7, "media_id": f"media-{number}"},
            options=options,
        )

    def bury_too_large(self) -> str:
        """Add a dead letter larger than a message may be; return its id."""
        facts = {"reason": "oversize", "error": "MessageTooLarge", "entry_id": "1-1", "deliveries": 1}
        return str(self.client.xadd(KEYS.dead, {**facts, "entry:message": b"x" * ((1 << 20) + 1)}).decode())

    def dead_letter_ids(self) -> list[str]:
        return [dead_letter_id.decode() for dead_letter_id, _ in self.client.xrange(KEYS.dead)]

    def entry_ids(self) -> list[str]:
        return [entry_id.decode() for entry_id, _ in self.client.xrange(KEYS.stream)]


@contextmanager
def worker_that_refuses(client: redis.Redis, *media: str) -> Iterator[list[str]]:
    """Run a worker whose actor fails permanently for these items; yield the items it ran."""
    broker = RedisStreamsBroker(
        client=client, middleware=[Retries()], decoders=DECODERS, lease_ms=2_000, namespace=NAMESPACE, group=GROUP
    )
    ran: list[str] = []

    def run(media_id: str, **_: Any) -> None:
        ran.append(media_id)
        if media_id in media:
            raise InvalidInput("embedding", "is still broken", "hint the producer")

    actor = dramatiq.actor(
        actor_name=CLUSTER_EMBEDDING, queue_name=EMBEDDING_INGESTED, broker=broker, throws=InvalidInput, max_retries=0
    )
    actor(run)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        yield ran
    finally:
        worker.stop()
        broker.close()
