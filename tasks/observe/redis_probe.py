"""Whether Redis takes writes: a small key is written, and refused as the next job would be.

A server that is full, lost its replicas or its disk, or became a replica answers every read, so that reading alone
cannot tell. Probes, scrapes and the doctor write; nothing reads what they wrote.

    key                     type    holds                                                  ends
    sploot:probe:{stream}   string  nothing; it lies in the slot of a queue, whose node    after a minute
                                    of a Cluster is asked therefore
"""

from __future__ import annotations

from typing import Final

import redis

from tasks.contracts import QUEUES, stream_of

PREFIX: Final = "sploot:probe:"
KEEP_MS: Final = 60_000


def probe_writes(client: redis.Redis) -> None:
    """Write a key for each queue, in one round trip. Errors of redis-py pass through."""
    pipe = client.pipeline(transaction=False)
    for queue in QUEUES:
        pipe.set(f"{PREFIX}{{{stream_of(queue)}}}", b"", px=KEEP_MS)
    pipe.execute()
