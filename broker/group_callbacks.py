"""Group callbacks that run once, after all members: a drop-in replacement for Dramatiq's ``GroupCallbacks``.

Dramatiq counts how often members ran. If a member's worker dies before the acknowledgement, the member runs again and
counts twice, so the callbacks run before the last member, and once more after it. This middleware instead stores the
ids of the members that have ended. All members enqueue a callback under the same id, so that it is added once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import dramatiq
from dramatiq.broker import Broker, MessageProxy
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger
from dramatiq.middleware import GroupCallbacks as DramatiqsGroupCallbacks
from dramatiq.rate_limits import RateLimiterBackend

from .deliveries import Delivery, SharedFollower
from .keys import KeysByQueue
from .net.connections import Connections
from .scripts import END_MEMBER, OPEN_GROUP
from .settings import DAY_MS

# How long Redis remembers a group's callbacks after the group's record was deleted. Another process may still be about
# to enqueue them.
FORGET_CALLBACKS_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Group:
    """A message's group, as stored in the message's options.

    Attributes:
        keep_ms: how long Redis keeps the group's record after its last change.
    """

    id: str
    callbacks: Sequence[dramatiq.Message[Any]]
    keep_ms: int


class Groups:
    """The records of groups in Redis, with one key per group. Thread-safe.

    Args:
        follow: enqueues a follow-up message; see ``Producer.follow``.
    """

    def __init__(
        self,
        connections: Connections,
        namespace: str,
        keys: KeysByQueue,
        follow: Callable[[Delivery, dramatiq.Message[Any], int | None], object],
    ) -> None:
        self._connections = connections
        self._namespace = namespace
        self._keys = keys
        self._follow = follow
        self._logger: logging.Logger = get_logger(__name__, type(self))

    def open(self, group_id: str, n_members: int, keep_ms: int) -> bool:
        """Store a group's number of members before they are enqueued; return whether the group is new.

        Raises:
            BrokerConnectionError: Redis did not answer.
        """
        return bool(self._connections.run_script(OPEN_GROUP, (self._members(group_id),), (n_members, keep_ms)))

    def end_member(self, delivery: Delivery, group: Group) -> None:
        """Record that a member has ended. If it was the last one, enqueue the group's callbacks.

        If Redis does not answer, ``Consumer.ack`` tries again before it acknowledges the member.
        """
        try:
            self._end_member(delivery, group)
        except BrokerConnectionError as error:
            self._logger.warning("the end of a group's member waits for Redis; it is noted before the ack: %s", error)
            delivery.pending_step = partial(self._end_member, delivery, group)

    def _end_member(self, delivery: Delivery, group: Group) -> None:
        members = self._members(group.id)
        if self._connections.run_script(END_MEMBER, (members,), (delivery.message_id, group.keep_ms)) != 0:
            return
        remembered = []
        for message in group.callbacks:
            # all members use the same name, so that the callback is added only once
            shared = SharedFollower(f"group/{group.id}/{message.message_id}", group.keep_ms)
            delivery.shared_followers = {**delivery.shared_followers, message.message_id: shared}
            self._follow(delivery, message, None)
            remembered.append(self._keys[message.queue_name].recent(shared.name))
        if delivery.pending_followers:
            return  # ``Consumer.ack`` enqueues the callbacks, and the keys expire
        try:
            self._connections.delete([members])
            for key in remembered:
                self._connections.run("PEXPIRE", key, FORGET_CALLBACKS_MS, is_repeatable=True)
        except BrokerConnectionError as error:
            self._logger.info("the keys of a group were not deleted; they expire", extra={"error": str(error)})

    def _members(self, group_id: str) -> str:
        return f"{{{self._namespace}:group:{group_id}}}:members"


class GroupCallbacks(DramatiqsGroupCallbacks):
    """Middleware for group completion callbacks on a ``RedisStreamsBroker``.

    Use it in place of Dramatiq's ``GroupCallbacks``. ``dramatiq.group`` works unchanged, and no rate limiter backend is
    needed. A group's members must be different messages. If a message is added twice, it counts as one member, and the
    group never completes.

    Args:
        barrier_ttl: how long a group's record is kept after a member last ended, in ms.
    """

    def __init__(self, *, barrier_ttl: int = DAY_MS) -> None:
        self._opener = _Opener()
        super().__init__(self._opener, barrier_ttl=barrier_ttl)

    def after_declare_queue(self, broker: Any, queue_name: str) -> None:
        self._opener.broker = broker

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        group_id = message.options.get("group_completion_uuid")
        callbacks = message.options.get("group_completion_callbacks")
        if exception is None and group_id and callbacks and isinstance(message, Delivery):
            group = Group(group_id, [dramatiq.Message(**one) for one in callbacks], self.barrier_ttl)
            groups: Groups = broker.groups  # type: ignore[attr-defined]  # deliveries are this package's broker's
            groups.end_member(message, group)


class _Opener(RateLimiterBackend):
    """The rate limiter backend with which ``dramatiq.group`` creates its barrier. It stores the group's size."""

    broker: Any = None

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Store a group's number of members; return whether the group is new.

        Raises:
            RuntimeError: the middleware does not belong to a ``RedisStreamsBroker``, or no queue was declared.
            BrokerConnectionError: Redis did not answer.
        """
        groups: Groups | None = getattr(self.broker, "groups", None)
        if groups is None:
            raise RuntimeError(
                "expected GroupCallbacks on a RedisStreamsBroker with a declared queue; declare the group's actors "
                "first, and use dramatiq.middleware.GroupCallbacks with other brokers"
            )
        return groups.open(key, value, ttl)
