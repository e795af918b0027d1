"""The shards of ``embedding.ingested``: which one a pet belongs to; and the names of the shards of all queues.

The events of a pet are in one shard, so that a process sees the same pets again and finds them in its memory. Producers
in other languages compute the shard as :func:`bucket_of_pet` does; ``docs/wire`` has examples.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import dramatiq
import redis

from broker import RedisStreamsBroker
from broker.keys import QueueKeys
from broker.sharding.shards import BucketOf, base_name, layout_from, shard_name
from tasks.contracts import EMBEDDING_INGESTED, NAMESPACE, QUEUES

BUCKETS: Final = 1024


def bucket_of_pet(pet_id: int) -> int:
    """Return the bucket of a pet, from 0 to 1023. Its shard is this number modulo the number of shards.

    The bucket is the CRC-16 of the pet's decimal id modulo 1024: the checksum with which Redis Cluster hashes keys
    (CRC-16/XMODEM: polynomial 0x1021, initial value 0).
    """
    return crc_hqx(str(pet_id).encode(), 0) % BUCKETS


def bucket_of(message: dramatiq.Message[Any]) -> int:
    """Return the bucket of the pet that a message names, or 0 if it names none, because it will be refused."""
    pet_id = message.kwargs.get("pet_id")
    return bucket_of_pet(pet_id) if type(pet_id) is int else 0


SHARDED: Final[Mapping[str, BucketOf]] = {EMBEDDING_INGESTED: bucket_of}


def queue_of(shard: str) -> str:
    """Return the queue that a shard belongs to, or the name itself for a queue."""
    return base_name(shard, SHARDED)


def stored_shards(client: redis.Redis, queue: str) -> tuple[str, ...]:
    """Return the names of a queue's shards, without a broker. Errors from redis-py propagate."""
    if queue not in SHARDED:
        return (queue,)
    layout = layout_from(cast("bytes | None", client.get(QueueKeys(NAMESPACE, queue).shards)))
    return tuple(shard_name(queue, number) for number in range(layout.most))


def shards_of_all(broker: RedisStreamsBroker, queues: Iterable[str] = QUEUES) -> list[str]:
    """Return the names of all shards of these queues. A queue that is not divided is its only shard."""
    return [shard for queue in queues for shard in broker.shards(queue)]
