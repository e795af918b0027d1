"""The outcomes of messages: writes retries and dead letters, and checks whether this process may still run a message.

Every script for a delivered message is fenced: it does nothing unless this process still holds the entry. So a message
that another process has taken over is neither started nor retried here, and does not become a dead letter. settler.py
writes acknowledgements.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from secrets import token_hex
from typing import Any, Protocol

import redis
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from dramatiq.logging import get_logger

from .dead_letters import dead_letter_from, facts_of_delivery, facts_of_entry, facts_of_follower, reason_of, stored_from
from .deliveries import Delivery, PendingRetry, held_too_long, unhandled_failure
from .entries import MESSAGE_FIELD, Oversize, as_dead_letter, check_text, with_types
from .errors import UndecodableEntry
from .keeper import Keeper
from .key_limits import key_limits_of
from .keys import HANDED_BACK, KeysByQueue, QueueKeys
from .net.connections import Connections
from .options import EXPIRES_AT, delay_ms_of, expires_at_ms_of, unique_key_of
from .scripts import BURY, CANCEL, CONDEMN, EXPIRE, RETRY, START
from .settings import BrokerSettings

# How long Redis records that a follow-up message was enqueued, so that it is added only once if the worker dies before
# the acknowledgement and the message runs again. A crash is almost certainly noticed within this time. The record is
# deleted when the message ends.
REMEMBER_FOLLOWERS_MS = 15 * 60 * 1000


class Emit(Protocol):
    """A function that calls the middleware methods named ``signal``."""

    def __call__(self, signal: str, *args: Any) -> object: ...


class Outcomes:
    """Writes the outcomes of one process's messages."""

    def __init__(
        self,
        connections: Connections,
        settings: BrokerSettings,
        keys: KeysByQueue,
        *,
        consumer_name: str,
        keeper: Keeper,
        emit: Emit,
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._keys = keys
        self._consumer_name = consumer_name
        self._keeper = keeper
        self._emit = emit
        self._logger: logging.Logger = get_logger(__name__, type(self))

    def may_run(self, delivery: Delivery) -> bool:
        """Return whether this process still holds the message. Redis is queried only if necessary.

        If the message did not start in time, ``delivery.is_expired`` is set.

        Raises:
            BrokerConnectionError: Redis was queried and did not answer.
        """
        is_asked = (
            delivery.is_redelivered
            or delivery.is_noted
            or delivery.may_expire
            or (delivery.limits is not None and delivery.limits.are_asked_at_start)
            or not self._keeper.is_sure_of(delivery.queue)
        )
        return self._start(delivery) if is_asked else True

    def record_alongside(self, delivery: Delivery) -> None:
        """Record that a suspect no longer runs in isolation, so that a crash counts less against it."""
        try:
            self._start(delivery, is_running=True)
        except (BrokerConnectionError, redis.RedisError) as error:
            self._logger.warning("could not record the end of a suspect's isolation: %s", error)

    def _start(self, delivery: Delivery, *, is_running: bool = False) -> bool:
        keys = self._keys[delivery.queue]
        script_keys = (*keys.work, keys.suspects, keys.counters)
        is_asked = delivery.limits is not None and delivery.limits.are_asked_at_start
        key, limits = _key_and_limits(delivery) if is_asked else ("", "")
        args = (int(delivery.is_alone), int(is_running), key, limits, expires_at_ms_of(delivery.options))
        answer, *coalesced = self._fenced(START, keys, delivery, script_keys, args)
        if answer != b"LOST":
            delivery.coalesced = coalesced[0] if coalesced else None
            delivery.is_noted = bool(coalesced)
        delivery.is_expired = answer == b"EXPIRED"
        return bool(answer != b"LOST")

    def write_retry(self, delivery: Delivery) -> bool:
        """Write a message's retry and remove its entry; return whether the retry was written.

        The retry is not written if another process holds the message, if the message was cancelled (then
        ``delivery.was_ended`` is set), or if its retries have held its ordering key for the maximum time. In the last
        case, the message must become a dead letter for the reason in ``delivery.unhandled``.

        Raises:
            BrokerConnectionError: it is unknown whether the retry was written. Call again: it is written only once.
        """
        pending, keys = delivery.pending_retry, self._keys[delivery.queue]
        hold_ms = self._settings.hold_ms(delivery.options)
        assert pending is not None
        try:
            answer = self._fenced(
                RETRY,
                keys,
                delivery,
                (*keys.work, keys.suspects, keys.counters, keys.cancelled),
                (
                    pending.payload,
                    pending.name,
                    pending.delay_ms,
                    *_key_and_limits(delivery),
                    pending.lock_ms,
                    hold_ms,
                ),
            )
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error
        delivery.pending_retry = None
        if answer == b"HELD":
            delivery.unhandled = held_too_long(hold_ms)
            return False
        if answer.startswith(b"CANCELLED"):
            delivery.dropped = answer.partition(b" ")[2].decode()
            delivery.end_cancelled()
            return False
        delivery.is_settled = True
        delivery.is_lost = answer == b"FENCED"
        if answer != b"RETRIED":
            # FENCED: another process holds the message. GONE: it was flushed, or an earlier attempt wrote this retry.
            self._logger.info("retry not written", extra={"entry": delivery.entry_id, "answer": answer.decode()})
            return False
        self._emit("after_enqueue", pending.message, pending.delay)
        return True

    def begin_retry(self, delivery: Delivery, delay: int | None) -> Message[Any]:
        """Write a failed message's retry, and return it. Until it is written, the message cannot be acknowledged.

        The retry is written whatever its size, and middleware cannot refuse it, because the message was accepted and
        there is no producer to receive an error.

        Raises:
            BrokerConnectionError: Redis did not accept the retry. ``Consumer.ack`` tries again.
            Exception: the retry cannot be encoded, or its delay is not a number.
        """
        message: Message[Any] = delivery.copy()
        message.options.pop(EXPIRES_AT, None)  # a message that has started does not expire
        delay_ms = delay_ms_of(delay)
        self._emit("before_enqueue", message, delay)
        payload = message.encode()
        if len(payload) > self._settings.max_message_bytes:
            # leave out the traceback, which may have any length; a dead letter stores its own traceback
            message.options.pop("traceback", None)
            payload = message.encode()
        lock_ms = self._settings.lock_ms(message.options, delay_ms)
        name = token_hex(8) if delivery.limits is None else delivery.limits.name_in_delayed()
        delivery.pending_retry = PendingRetry(message, delay, payload, delay_ms, name, lock_ms)
        self.write_retry(delivery)
        return message

    def expire(self, delivery: Delivery) -> None:
        """Remove a message that did not start in time, unless another process holds it."""
        keys = self._keys[delivery.queue]
        script_keys = (*keys.work, keys.suspects, keys.counters)
        answer = self._fenced(EXPIRE, keys, delivery, script_keys, (_key_and_limits(delivery)[0],))
        delivery.is_lost = answer == b"FENCED"

    def bury_delivery(self, delivery: Delivery) -> None:
        """Turn a failed message into a dead letter, unless another process holds it."""
        keys = self._keys[delivery.queue]
        facts = facts_of_delivery(delivery)
        # if the facts contain the last failure's traceback, drop the one in the message, which an earlier failure left
        lean = as_dead_letter(delivery.payload, has_traceback="traceback" in facts[::2]) if delivery.payload else None
        answer = self._fenced(
            BURY,
            keys,
            delivery,
            (*keys.work, keys.dead, keys.suspects, keys.counters),
            (*self._bounds(), _key_and_limits(delivery)[0], lean or "", *facts),
        )
        delivery.is_lost = answer[0] == b"FENCED"
        if answer[0] == b"BURIED":
            # only the server has the entry's fields, so report the encoded message instead
            stored = stored_from(facts, _fields_of(delivery) if lean is None else {MESSAGE_FIELD: lean})
            dead_letter = dead_letter_from(answer[1].decode(), stored, queue_name=keys.queue_name)
            self._emit("after_dead_letter", dead_letter)

    def cancel_delivery(self, delivery: Delivery) -> None:
        """Remove a cancelled message whose job this process interrupted or skipped, unless another process holds it."""
        keys = self._keys[delivery.queue]
        args = (
            self._settings.group,
            delivery.entry_id,
            delivery.message_id,
            _key_and_limits(delivery)[0],
            delivery.consumer_name,
            delivery.deliveries,
            HANDED_BACK,
            self._settings.lease_ms,
            "",
            0,
        )
        (answer,) = self._connections.run_script(CANCEL, keys.cancelling(unique_key_of(delivery.options)), args)
        delivery.is_lost = answer == b"FENCED"
        if not delivery.is_lost:  # CANCELLED, or GONE if the reply to an earlier attempt was lost
            self._emit("after_cancel", delivery)

    def bury_entry(
        self, keys: QueueKeys, entry_id: str, deliveries: int, fields: Mapping[bytes, bytes], error: UndecodableEntry
    ) -> None:
        """Turn an entry that is not a valid message into a dead letter."""
        reason = "oversize" if isinstance(error, Oversize) else reason_of(error)
        facts = facts_of_entry(reason, error, entry_id=entry_id, deliveries=deliveries)
        message_id = key = ""
        script_keys = [*keys.work, keys.dead, keys.suspects, keys.counters]
        if error.message is not None and error.message.queue_name == keys.name_of_messages:
            # free its unique key and its turn, too
            message_id = error.message.message_id
            limits = key_limits_of(error.message)
            key = "" if limits is None else limits.name
            unique_key = unique_key_of(error.message.options)
            if unique_key is not None:
                script_keys.append(keys.unique(unique_key))
        answer = self._connections.run_script(
            BURY,
            script_keys,
            (
                self._settings.group,
                self._consumer_name,
                deliveries,
                entry_id,
                message_id,
                *self._bounds(),
                key,
                "",
                *facts,
            ),
        )
        self._logger.error(
            "an entry is not a valid message; it became a dead letter",
            extra={"queue": keys.queue_name, "entry": entry_id, "reason": reason, "error": str(error)},
        )
        if answer[0] == b"BURIED":
            dead_letter = dead_letter_from(answer[1].decode(), stored_from(facts, fields), queue_name=keys.queue_name)
            self._emit("after_dead_letter", dead_letter)
            if error.message is not None:
                self._report_refusal(error.message, error)

    def condemn(self, finished: Delivery, message: Message[Any], error: Exception) -> None:
        """Turn a follow-up message that cannot be enqueued into a dead letter of its queue.

        If the finished message runs again, the second call does nothing.

        Raises:
            BrokerConnectionError: Redis did not answer.
            redis.RedisError: Redis did not accept the dead letter.
            Exception: the follow-up message cannot be encoded.
        """
        message = with_types(message)
        check_text(message)
        fields = {b"message": message.encode()}
        keys = self._keys[message.queue_name]
        facts = facts_of_follower(error, message, entry_id=finished.entry_id)
        stored = stored_from(facts, fields)
        follower_id = finished.name_of_follower(message)
        recent = keys.recent(follower_id)
        shared = finished.shared_followers.get(message.message_id)
        if shared is None:
            finished.remember_follower(recent)
        dead_letter_id = self._connections.run_script(
            CONDEMN,
            (keys.dead, recent, keys.counters),
            (
                follower_id,
                REMEMBER_FOLLOWERS_MS if shared is None else shared.remember_ms,
                *self._bounds(),
                *(part for pair in stored.items() for part in pair),
            ),
        )
        self._logger.error(
            "a follow-up message cannot be enqueued; it became a dead letter",
            extra={"queue": keys.queue_name, "message_id": message.message_id, "error": str(error)},
        )
        if dead_letter_id:
            self._emit(
                "after_dead_letter", dead_letter_from(dead_letter_id.decode(), stored, queue_name=keys.queue_name)
            )
            self._report_refusal(message, error)

    def forget_followers(self, delivery: Delivery) -> None:
        """Delete a message's ``follower_keys`` in Redis, after its entry was removed. Failures are only logged.

        If another process holds the message, the keys are kept, because it may enqueue the same follow-up messages.
        """
        if not delivery.follower_keys or delivery.is_lost:
            return
        try:
            self._connections.delete(delivery.follower_keys)
        except (BrokerConnectionError, redis.RedisError) as error:
            self._logger.info("keys of follow-up messages were not deleted; they expire", extra={"error": str(error)})

    def bury_unhandled(self, delivery: Delivery) -> None:
        """Turn a failed message into a dead letter if no middleware retried, rejected or skipped it."""
        if delivery.unhandled is None:
            delivery.unhandled = unhandled_failure()
        self.bury_delivery(delivery)
        if delivery._exception is not None:
            delivery.fail()
            self._report_nack(delivery)

    def _bounds(self) -> tuple[int, int, int]:
        """Return the limits for dead letters: their maximum age in ms, number, and total size in bytes."""
        settings = self._settings
        return settings.dead_letter_ttl_ms, settings.dead_letter_max, settings.dead_letter_max_bytes

    def _report_refusal(self, message: Message[Any], error: Exception) -> None:
        """Call the middleware for a rejected message that the Worker never receives; callers may await its result."""
        refused = MessageProxy(message)
        refused.fail()
        refused.stuff_exception(error)
        self._report_nack(refused)

    def _report_nack(self, message: MessageProxy) -> None:
        self._emit("before_nack", message)
        self._emit("after_nack", message)

    def _fenced(
        self, script: Any, keys: QueueKeys, delivery: Delivery, script_keys: tuple[str, ...], args: Any = ()
    ) -> Any:
        """Run a script that does nothing unless this process holds the entry; return its reply."""
        unique_key = unique_key_of(delivery.options)
        return self._connections.run_script(
            script,
            script_keys if unique_key is None else (*script_keys, keys.unique(unique_key)),
            (
                self._settings.group,
                delivery.consumer_name,
                delivery.deliveries,
                delivery.entry_id,
                delivery.message_id,
                *args,
            ),
        )


def _key_and_limits(delivery: Delivery) -> tuple[str, str]:
    """Return a message's key and limits in the form that the scripts use, or two empty strings."""
    return ("", "") if delivery.limits is None else (delivery.limits.name, delivery.limits.stored)


def _fields_of(delivery: Delivery) -> dict[bytes, bytes]:
    """Return the fields of the delivery's entry, or none if the actor has changed the arguments and encoding fails."""
    try:
        return {b"message": delivery._message.encode()}
    except Exception:
        return {}
