"""A probe that finds out whether Redis accepts writes.

It writes a small key, which Redis refuses whenever it would refuse a job.

A server that is full, has lost its replicas or its disk, or has become a replica still answers every read, so reading
proves nothing. Probes, scrapes and the doctor write this key; it is never read.

    key                     type    holds                                                  ends
    sploot:probe:{stream}   string  empty; in the hash slot of a shard, so that it tests   after a minute
                                    that queue's node of a Cluster
"""

from __future__ import annotations

from typing import Final

import redis

from tasks.contracts import QUEUES, stream_of
from tasks.shards import stored_shards

PREFIX: Final = "sploot:probe:"
KEEP_MS: Final = 60_000


def probe_writes(client: redis.Redis) -> None:
    """Write a key for each shard of each queue in one round trip. Errors from redis-py propagate."""
    shards = [shard for queue in QUEUES for shard in stored_shards(client, queue)]
    pipe = client.pipeline(transaction=False)
    for shard in shards:
        pipe.set(f"{PREFIX}{{{stream_of(shard)}}}", b"", px=KEEP_MS)
    pipe.execute()
