"""The move of messages, unchanged, from shard 0 to the shards to which they belong.

Programs that do not know about shards add messages to shard 0, and so does a producer for a few seconds after the
number of shards has changed. The process that reads such a message adds its entry to the right shard and then removes
it from shard 0. If the process dies in between, the message runs twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..deliveries import Delivery
from ..keys import QueueKeys
from ..net.connections import Argument, Connections
from ..scripts import MOVE_IN, MOVE_OUT


@dataclass(frozen=True, slots=True)
class Stray:
    """A message that was read from shard 0 but belongs to another shard.

    Attributes:
        flat: the field names and values of its entry.
        home: the name of the shard to which it belongs.
    """

    delivery: Delivery
    flat: Sequence[bytes]
    home: str


def move(connections: Connections, keys: QueueKeys, strays: Sequence[Stray], *, group: str) -> None:
    """Add messages to their shards, in one round trip per node, and then remove them from shard 0.

    Raises:
        BrokerConnectionError, redis.RedisError: the messages are still in shard 0, and some may be in both shards.
    """
    by_home: dict[str, list[Argument]] = {}
    for stray in strays:
        by_home.setdefault(stray.home, []).extend((len(stray.flat), *stray.flat))
    connections.run_scripts(MOVE_IN, [((f"{keys.namespace}:{home}",), args) for home, args in by_home.items()])
    connections.run_script(
        MOVE_OUT, (keys.stream, keys.counters), (group, *(stray.delivery.entry_id for stray in strays))
    )
