"""The readers of a queue's shards: every process decides for itself which shards it reads.

All processes compute the same assignment from the names of the live consumers, by rendezvous hashing with a bounded
load. So there is no leader, and a process that joins or leaves changes the readers of few shards. Two processes that
see different consumers for a moment may read the same shard, which is harmless. No message depends on an assigned
reader: a process without other work reads any shard whose oldest message has waited for ``BEHIND_MS``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from typing import Final, Protocol

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from ..keys import HANDED_BACK, KeysByQueue
from ..net.connections import Connections
from ..scripts import WAITING_FOR
from ..settings import BrokerSettings
from .shards import READ_EVERY_S, Shards

BEHIND_MS: Final = 2_000
ROUND_S: Final = 1.0


class Readable(Protocol):
    """The interface of a shard that this process consumes."""

    @property
    def is_waiting(self) -> bool: ...

    def be_reader(self, is_reader: bool) -> None: ...


def assignment(shards: Sequence[str], members: Collection[str]) -> dict[str, frozenset[str]]:
    """Return the shards that each member reads.

    Each shard has a reader, and each member reads at least one shard and at most its share, rounded up. If there are
    more members than shards, some shards have several readers.

    Source: rendezvous hashing (Thaler and Ravishankar, 1998), with the bounded load of Mirrokni et al. (2016).
    """
    most = -(-len(shards) // len(members))
    free, held = set(shards), {member: set[str]() for member in members}
    for _, shard, member in sorted(
        ((_weight(shard, member), shard, member) for shard in shards for member in members), reverse=True
    ):
        if shard in free and len(held[member]) < most:
            held[member].add(shard)
            free.discard(shard)
    return {
        member: frozenset(mine or {max(shards, key=lambda shard: _weight(shard, member))})
        for member, mine in held.items()
    }


def _weight(shard: str, member: str) -> bytes:
    return blake2b(f"{member} {shard}".encode(), digest_size=8).digest()


class Readers:
    """A thread that decides which shards of one queue this process reads. ``begin_stop`` is idempotent."""

    def __init__(
        self,
        connections: Connections,
        settings: BrokerSettings,
        keys: KeysByQueue,
        shards: Shards,
        *,
        consumer_name: str,
        consumed: Callable[[], dict[str, Readable]],
    ) -> None:
        """
        Args:
            consumed: a function that returns the queues that this process consumes, by name.
        """
        self._connections, self._settings, self._keys = connections, settings, keys
        self._shards = shards
        self._me = consumer_name
        self._consumed = consumed
        self._logger: logging.Logger = get_logger(__name__, f"Readers({shards.keys.queue_name})")
        self._reads = frozenset({shards.keys.queue_name})
        self._computed_for: tuple[tuple[str, ...], frozenset[str]] = ((), frozenset())
        self._own = self._reads
        self._declaring = threading.Lock()
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            name = f"broker-readers-{self._shards.keys.queue_name}"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    def reads(self, queue_name: str) -> bool:
        """Return whether this process currently reads the shard."""
        return queue_name in self._reads

    def run_once(self) -> None:
        """Decide which shards to read, and start or stop reading them accordingly.

        Raises:
            BrokerConnectionError: Redis did not answer. This process continues to read the same shards.
        """
        members = self._shards.members(self._settings.lease_ms) | {self._me}
        names = self._shards.names
        if self._computed_for != (names, members):
            self._own = assignment(names, members)[self._me]
            self._computed_for = (names, members)
        queues = self._consumed()
        self._reads = self._own | self._behind([name for name in names if name not in self._own], queues)
        for name in names:
            if name in queues:
                queues[name].be_reader(name in self._reads)
            elif name in self._reads:
                with self._declaring:
                    if not self._is_stopping.is_set():
                        self._shards.declare(name)

    def begin_stop(self) -> None:
        """Tell the thread to end, without waiting for it. It declares no further queues."""
        self._is_stopping.set()
        with self._declaring:
            pass

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the thread, waiting at most ``timeout_s``."""
        self.begin_stop()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _behind(self, names: Sequence[str], queues: dict[str, Readable]) -> frozenset[str]:
        """Return the shards whose oldest message has waited for ``BEHIND_MS``.

        While messages wait in one of this process's own shards, return none.
        """
        if not names or any(queues[name].is_waiting for name in self._own if name in queues):
            return frozenset()
        args = (self._settings.group, HANDED_BACK)
        ages_ms = self._connections.run_scripts(WAITING_FOR, [((self._keys[name].stream,), args) for name in names])
        return frozenset(name for name, age_ms in zip(names, ages_ms, strict=True) if age_ms >= BEHIND_MS)

    def _loop(self) -> None:
        while not self._is_stopping.is_set():
            try:
                self.run_once()
            except (BrokerConnectionError, redis.RedisError) as error:
                self._logger.warning("could not read the list of shards; trying again", extra={"error": str(error)})
            except Exception:
                self._logger.exception("could not decide which shards to read; trying again")
            self._is_stopping.wait(ROUND_S if self._shards.layout.most > 1 else READ_EVERY_S)
