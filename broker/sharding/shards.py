"""A queue's shards: their number, their names, and to which of them a message belongs.

Shard 0 is the queue itself. Shard *i* is the queue ``<queue>.s<i>``, with its own stream, delayed messages and dead
letters, possibly on another node of a cluster. In all shards, the messages' ``queue_name`` is the queue's name. The
number of shards is stored in Redis, and every process reads it again every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import redis
from dramatiq import Message
from dramatiq.errors import BrokerConnectionError, ConnectionFailed

from ..deliveries import Delivery
from ..errors import InvalidOption
from ..keys import QueueKeys
from ..net.connections import Connections
from ..scripts import SET_SHARDS, SHARDS

# Maximum number of shards. Each process reads a few of them, but statistics are read from all of them.
MOST_SHARDS: Final = 256
# How long a process uses the number of shards before it reads the number again.
READ_EVERY_S: Final = 5.0

# A function that returns a non-negative integer for a message. Messages with the same integer are in the same shard.
BucketOf = Callable[[Message[Any]], int]


@dataclass(frozen=True, slots=True)
class Layout:
    """The number of a queue's shards.

    Attributes:
        n: the number of shards to which new messages are added, a power of two.
        most: the largest ``n`` that the queue has ever had. The shards from ``n`` on may hold older messages.
    """

    n: int = 1
    most: int = 1


def shard_name(queue_name: str, number: int) -> str:
    """Return the queue name of the shard with this number."""
    return queue_name if number == 0 else f"{queue_name}.s{number}"


def base_name(queue_name: str, sharded: Collection[str]) -> str:
    """Return the name of the queue to which a shard belongs. Other names are returned unchanged.

    Args:
        sharded: the names of the queues that may have shards.
    """
    base, _, number = queue_name.rpartition(".s")
    return base if base in sharded and number.isdecimal() else queue_name


def layout_from(stored: bytes | None) -> Layout:
    """Parse a layout from its form in Redis, ``<n> <most>``."""
    n, _, most = (stored or b"1 1").partition(b" ")
    return Layout(int(n), int(most)) if n.isdigit() and most.isdigit() else Layout()


def check_shards(n: int) -> None:
    """Check that a queue can have ``n`` shards.

    Raises:
        InvalidOption: ``n`` is not a power of two from 1 to ``MOST_SHARDS``.
    """
    if not 1 <= n <= MOST_SHARDS or n & (n - 1):
        problem = f"expected a power of two from 1 to {MOST_SHARDS}, got {n}"
        raise InvalidOption("shards", problem, "choose about four shards for each worker process")


class Shards:
    """The shards of one queue, as this process last read them. Thread-safe.

    Args:
        declare: a function that declares a shard as a queue of this process.
    """

    def __init__(self, keys: QueueKeys, bucket_of: BucketOf, declare: Callable[[str], None]) -> None:
        self.keys = keys
        self.declare = declare
        self.layout = Layout()
        self._bucket_of = bucket_of
        self._read_at = float("-inf")
        self._connections: Connections

    def use(self, connections: Connections) -> None:
        """Use these connections from now on."""
        self._connections = connections

    def current(self) -> Layout:
        """Return the layout, which was read at most ``READ_EVERY_S`` ago unless Redis does not answer.

        Raises:
            ConnectionFailed: the layout was never read, and Redis did not answer.
        """
        now = time.monotonic()
        if now - self._read_at >= READ_EVERY_S:
            try:
                self.layout = layout_from(self._connections.run("GET", self.keys.shards, is_repeatable=True))
            except redis.exceptions.NoPermissionError:
                # A Redis user whose access rules predate shards may not read the key. Its producers add messages to
                # shard 0, whose readers move them to their shards.
                pass
            except (BrokerConnectionError, redis.RedisError) as error:
                if self._read_at == float("-inf"):
                    raise ConnectionFailed(f"{error}; nothing was sent") from error
            self._read_at = now
        return self.layout

    def members(self, lease_ms: int) -> frozenset[str]:
        """Read the layout again, and return the names of the queue's live consumers.

        If the queue has never had more than one shard, return no names.
        """
        stored, *names = self._connections.run_script(SHARDS, (self.keys.shards, self.keys.consumers), (lease_ms,))
        self.layout, self._read_at = layout_from(stored), time.monotonic()
        return frozenset(name.decode() for name in names)

    def change(self, n: int) -> Layout:
        """Set the number of shards to which new messages are added, and return the new layout.

        Raises:
            InvalidOption: ``n`` is not a power of two from 1 to ``MOST_SHARDS``.
        """
        check_shards(n)
        answer = self._connections.run_script(SET_SHARDS, (self.keys.shards,), (n,))
        self.layout, self._read_at = layout_from(answer), time.monotonic()
        return self.layout

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all shards that may hold messages, shard 0 first."""
        return tuple(shard_name(self.keys.queue_name, number) for number in range(self.layout.most))

    def home(self, message: Message[Any]) -> str:
        """Return the name of the shard to which a new message is added."""
        n = self.current().n
        return self.keys.queue_name if n == 1 else shard_name(self.keys.queue_name, self._bucket_of(message) % n)

    def home_of_stray(self, delivery: Delivery) -> str:
        """Return the name of the shard to which a message belongs that was read from shard 0.

        The message stays in shard 0 if its bucket cannot be computed, or if more than its entry would have to be moved.
        """
        if not delivery.is_plain or delivery.is_noted or delivery.may_expire:
            return self.keys.queue_name
        try:
            return self.home(delivery._message)
        except Exception:  # the user's function may raise anything; then the message runs where it is
            return self.keys.queue_name

    def moves_strays(self, queue_name: str) -> bool:
        """Return whether readers of this shard move messages to other shards, because it is shard 0 of several."""
        return self.layout.n > 1 and queue_name == self.keys.queue_name
