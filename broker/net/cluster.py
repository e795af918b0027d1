"""The slot map of a Redis Cluster: finds the node that has a queue's slot.

All keys of a queue share one slot, so any of them determines the node. Redirects from nodes correct the map. It is read
from the cluster again when a node cannot be reached.
"""

from __future__ import annotations

import threading
from typing import Any

import redis
from redis.crc import key_slot
from redis.exceptions import RedisClusterException

Node = tuple[str, int]


class Slots:
    """A cluster's slot map: the client's map, corrected by redirects. Thread-safe."""

    def __init__(self, client: redis.RedisCluster) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._corrected: dict[int, Node] = {}

    @property
    def pool(self) -> Any:
        """The connection pool of one node. All nodes have the same settings."""
        return self._client.get_redis_connection(self._client.get_default_node()).connection_pool

    def node_of(self, key: str) -> Node:
        """Return the node that has this key.

        Raises:
            redis.ConnectionError: no node serves the key's slot at the moment.
        """
        slot = slot_of(key)
        with self._lock:
            corrected = self._corrected.get(slot)
        if corrected is not None:
            return corrected
        try:
            node = self._client.nodes_manager.get_node_from_slot(slot)
        except RedisClusterException as error:
            raise redis.ConnectionError(f"slot {slot} has no node: {error}") from error
        return str(node.host), int(node.port)

    def correct(self, error: redis.exceptions.MovedError, asked: Node) -> Node:
        """Store and return the new node of a slot, after the node ``asked`` has sent a permanent redirect."""
        node = redirected(error, asked)
        with self._lock:
            self._corrected[int(error.slot_id)] = node
        return node

    def read_again(self) -> None:
        """Read the map from the cluster again, or keep the old one if the cluster does not answer."""
        with self._lock:
            self._corrected.clear()
        try:
            self._client.nodes_manager.initialize()
        except (RedisClusterException, redis.RedisError, OSError):
            return


def slot_of(key: str) -> int:
    """Return the number of the slot that has this key."""
    return int(key_slot(key.encode()))


def redirected(error: redis.exceptions.AskError, asked: Node) -> Node:
    """Return the node that a redirect names. A redirect without a host means the host of the node ``asked``."""
    return str(error.host) or asked[0], int(error.port)
