"""Idempotency keys: a repeated request takes effect once, and gets the first request's response.

A key is *begun* before its request is processed. Then it is either *finished* with the response, which is stored for a
day, or *released*, so that a failed request can be retried. If the process dies before that, its key expires after
``in_progress_s``.

    key                                 type    holds
    sploot:idempotency:<sha256>         string  JSON: fingerprint of the body, and owner (in progress) or response

``<sha256>`` is the hash of caller, route and key, so callers cannot collide and no key is stored in plain text. Every
value expires. A crash leaves nothing in Redis before ``begin``, a key in progress before ``finish``, and the response
after it.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Final, Protocol
from uuid import uuid4

import redis

from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.refusals import REDIS_ERRORS, refusal_of

PREFIX: Final = "sploot:idempotency:"

# How long a response is stored: a day. A caller's outbox may retry a request for this long, for example in an outage.
KEEP_S: Final = 24 * 60 * 60

# How long a key may stay in progress: longer than any enqueueing, including the timeouts and retries of Redis calls.
IN_PROGRESS_S: Final = 60

MAX_KEYS_IN_MEMORY: Final = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The stored response to a request."""

    status: int
    headers: Mapping[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """Proof of the right to process a request: the request's key, and the key owner's random name."""

    key: str
    fingerprint: str
    owner: str


class KeyInProgress(Exception):
    """Raised when a request with this key and body is still being processed."""


class KeyReused(Exception):
    """Raised when the key was used before with a different body."""


class IdempotencyStore(Protocol):
    """A store of idempotency keys and their responses. Thread-safe.

    Every method may raise ``errors.StoreUnavailable``.
    """

    def begin(self, key: str, fingerprint: str) -> Ticket | Answer:
        """Return a ticket for processing the request, or the stored response if it was processed before.

        Args:
            key: the hash of caller, route and ``Idempotency-Key``.
            fingerprint: the hash of the request.

        Raises:
            KeyInProgress: the first request with this key is still being processed.
            KeyReused: the key was used before with a different fingerprint.
        """
        ...

    def finish(self, ticket: Ticket, answer: Answer) -> None:
        """Store the response for a day, unless another request has taken the key in the meantime."""
        ...

    def release(self, ticket: Ticket) -> None:
        """Free the key, unless another request has taken it in the meantime."""
        ...


class RedisIdempotencyStore:
    """An :class:`IdempotencyStore` in Redis, shared by all servers that use this Redis."""

    # KEYS[1] a key; ARGV: value of the owner, milliseconds to hold the key. Returns the existing value of the key, or
    # nil. The DEL comes first because a server that is out of memory allows it, and then also allows the SET after it.
    # So requests that free memory, which carry a key too, work on such a server.
    _BEGIN: Final = """
    local held = redis.call('GET', KEYS[1])
    if held then
      return held
    end
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return false
    """

    # KEYS[1] a key; ARGV: value of the owner, the response, milliseconds to keep it.
    # Returns 1, or 0 if another owner holds the key. A key that expired during the request is written again.
    _FINISH: Final = """
    local held = redis.call('GET', KEYS[1])
    if held and held ~= ARGV[1] then
      return 0
    end
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 1
    """

    # KEYS[1] a key; ARGV[1] value of the owner. Returns the number of deleted keys, 0 or 1.
    _RELEASE: Final = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then
      return 0
    end
    return redis.call('DEL', KEYS[1])
    """

    def __init__(
        self, client: redis.Redis | redis.RedisCluster, *, keep_s: float = KEEP_S, in_progress_s: float = IN_PROGRESS_S
    ) -> None:
        self._keep_s, self._in_progress_s = keep_s, in_progress_s
        self._begin = client.register_script(self._BEGIN)
        self._finish = client.register_script(self._FINISH)
        self._release = client.register_script(self._RELEASE)

    def begin(self, key: str, fingerprint: str) -> Ticket | Answer:
        ticket = Ticket(key, fingerprint, owner=uuid4().hex)
        name, mine = PREFIX + key, _written(ticket)
        with _translated("begin an idempotency key"):
            held = self._begin(keys=[name], args=[mine, _ms(self._in_progress_s)])
        if held is None:
            return ticket
        record = json.loads(held)
        if record["fingerprint"] != fingerprint:
            raise KeyReused
        if "answer" not in record:
            # the reply was lost, so redis-py sent the script again, which found the value that it had written itself
            if record["owner"] == ticket.owner:
                return ticket
            raise KeyInProgress
        return Answer(**record["answer"])

    def finish(self, ticket: Ticket, answer: Answer) -> None:
        record = json.dumps({"fingerprint": ticket.fingerprint, "answer": asdict(answer)})
        with _translated("keep an answer"):
            self._finish(keys=[PREFIX + ticket.key], args=[_written(ticket), record, _ms(self._keep_s)])

    def release(self, ticket: Ticket) -> None:
        with _translated("release an idempotency key"):
            self._release(keys=[PREFIX + ticket.key], args=[_written(ticket)])


class MemoryIdempotencyStore:
    """An :class:`IdempotencyStore` in the memory of one process, for tests and single servers.

    Stores up to ``max_keys`` keys; a further key replaces the oldest.
    """

    def __init__(
        self,
        *,
        keep_s: float = KEEP_S,
        in_progress_s: float = IN_PROGRESS_S,
        max_keys: int = MAX_KEYS_IN_MEMORY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_s, self._in_progress_s, self._max_keys, self._clock = keep_s, in_progress_s, max_keys, clock
        self._held: OrderedDict[str, tuple[float, Ticket, Answer | None]] = OrderedDict()
        self._lock = Lock()

    def begin(self, key: str, fingerprint: str) -> Ticket | Answer:
        with self._lock:
            held = self._living(key)
            if held is None:
                ticket = Ticket(key, fingerprint, owner=uuid4().hex)
                self._hold(ticket, None, self._in_progress_s)
                return ticket
            before, answer = held
            if before.fingerprint != fingerprint:
                raise KeyReused
            if answer is None:
                raise KeyInProgress
            return answer

    def finish(self, ticket: Ticket, answer: Answer) -> None:
        with self._lock:
            held = self._living(ticket.key)
            if held is None or held == (ticket, None):
                self._hold(ticket, answer, self._keep_s)

    def release(self, ticket: Ticket) -> None:
        with self._lock:
            if self._living(ticket.key) == (ticket, None):
                del self._held[ticket.key]

    def _living(self, key: str) -> tuple[Ticket, Answer | None] | None:
        held = self._held.get(key)
        if held is None:
            return None
        ends_s, ticket, answer = held
        return (ticket, answer) if self._clock() < ends_s else None

    def _hold(self, ticket: Ticket, answer: Answer | None, for_s: float) -> None:
        self._held[ticket.key] = (self._clock() + for_s, ticket, answer)
        self._held.move_to_end(ticket.key)
        if len(self._held) > self._max_keys:
            self._held.popitem(last=False)


def _written(ticket: Ticket) -> str:
    """Return the value of a key in progress. It is the same text each time, because scripts compare it."""
    return json.dumps({"fingerprint": ticket.fingerprint, "owner": ticket.owner})


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except REDIS_ERRORS as error:
        raise StoreUnavailable(doing=doing, problem=str(error), refusal=refusal_of(error)) from error
