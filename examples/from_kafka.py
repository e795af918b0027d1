"""Ingest the embeddings of a Kafka topic without losing any; a full queue slows down the consumer.

    python examples/from_kafka.py broker-1:9092 embeddings

A record is a JSON object with ``pet_id``, ``media_id``, ``model`` and ``embedding``, as for ``ClusterTasks.ingest``.
Offsets are committed after the items are in Redis. After a crash some items are sent again, which changes nothing,
because a pet accepts each ``media_id`` only once. Refused records go to the topic ``<topic>.refused``, with the reason
in a header. Set ``REDIS_URL``; set further librdkafka settings, such as ``security.protocol``, in ``KAFKA_SETTINGS`` as
JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer

from sploot_cluster.event import EmbeddingIngested
from tasks.client import ClusterTasks, InvalidInput, QueueUnavailable

BATCH = 500
REFUSED = ".refused"


def main(servers: str, topic: str) -> None:
    kafka = {"bootstrap.servers": servers} | json.loads(os.environ.get("KAFKA_SETTINGS", "{}"))
    consumer = Consumer(
        kafka | {"group.id": "sploot-cluster", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    )
    producer = Producer(kafka)
    is_ending: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: is_ending.append(received))
    consumer.subscribe([topic])
    with ClusterTasks(os.environ["REDIS_URL"]) as tasks:
        while not is_ending:
            records = consumer.consume(BATCH, timeout=1.0)
            if not records:
                continue
            events = [event for record in records if (event := event_of(record, topic, producer)) is not None]
            # refused records must be in Kafka before their offsets are committed
            if producer.flush(30):
                raise SystemExit("Kafka does not accept the refused records; nothing was committed")
            if send(tasks, events, consumer, is_ending):
                consumer.commit(asynchronous=False)
    consumer.close()


def event_of(record: Message, topic: str, producer: Producer) -> EmbeddingIngested | None:
    """Return the event of a record; None if it is refused, and therefore sent to the topic of refused records."""
    if (error := record.error()) is not None:
        raise KafkaException(error)
    try:
        fields: dict[str, Any] = json.loads(record.value() or b"")
        names = ("pet_id", "media_id", "model", "embedding", "encoding", "occurred_at")
        given = {name: fields[name] for name in names if name in fields}
        return EmbeddingIngested.of(**given, event_id=f"{topic}-{record.partition()}-{record.offset()}")
    except (InvalidInput, ValueError, TypeError) as error:
        producer.produce(topic + REFUSED, record.value(), record.key(), headers={"reason": str(error)[:500]})
        return None


def send(tasks: ClusterTasks, events: list[EmbeddingIngested], consumer: Consumer, is_ending: list[int]) -> bool:
    """Send the events. While the queue is full or Redis is down, wait without leaving the consumer group.

    Returns:
        False if the program has to end before the events could be sent.
    """
    while not is_ending:
        try:
            tasks.ingest_many(events)
        except QueueUnavailable as unavailable:
            print(f"waiting: {unavailable}", file=sys.stderr, flush=True)
            consumer.pause(consumer.assignment())
            consumer.poll(1.0)
        else:
            consumer.resume(consumer.assignment())
            return True
    return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
