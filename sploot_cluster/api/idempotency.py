"""``Idempotency-Key``: a request that is sent again gets the answer of the first, and nothing happens twice.

A key is *begun* before the request is worked on, and then either *finished* with the answer, which is kept for a day,
or *released*, so that a request that failed may be tried again. A process that dies in between leaves a key that frees
itself after ``in_progress_s``.

    key                                 type    holds
    sploot:idempotency:<sha256>         string  JSON: fingerprint of the body, and owner (in progress) or answer

``<sha256>`` is of caller, route and key, so that callers cannot meet and the key itself is nowhere. Every value has a
time limit. What survives a crash: before ``begin`` nothing; until ``finish`` a key in progress; then the answer.
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

# A day: the longest outage over which a caller's outbox keeps trying.
KEEP_S: Final = 24 * 60 * 60

# Longer than any enqueue takes with Redis's own timeouts and retries.
IN_PROGRESS_S: Final = 60

MAX_KEYS_IN_MEMORY: Final = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered."""

    status: int
    headers: Mapping[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """A key that was begun, and by whom."""

    key: str
    fingerprint: str
    owner: str


class KeyInProgress(Exception):
    """Raised when a request with this key and body is being worked on."""


class KeyReused(Exception):
    """Raised when the key came before with another body."""


class IdempotencyStore(Protocol):
    """Keys and the answers that they were given. Safe to use from many threads.

    Every method may raise ``errors.StoreUnavailable``.
    """

    def begin(self, key: str, fingerprint: str) -> Ticket | Answer:
        """A ticket to work on the request, or the answer it was given before.

        Args:
            key: caller, route and ``Idempotency-Key``, hashed.
            fingerprint: of what was sent, hashed.

        Raises:
            KeyInProgress, KeyReused: see there.
        """
        ...

    def finish(self, ticket: Ticket, answer: Answer) -> None:
        """Keep the answer for a day, unless somebody else has begun the key since."""
        ...

    def release(self, ticket: Ticket) -> None:
        """Free the key, unless somebody else has begun it since."""
        ...


class RedisIdempotencyStore:
    """The :class:`IdempotencyStore` that all servers on one Redis share."""

    # KEYS[1] a key; ARGV: what its owner writes, milliseconds to hold it. Returns what somebody else wrote, or nil.
    # The first write needs no memory, so that a full server lets pass what follows: what frees memory comes with a key.
    _BEGIN: Final = """
    local held = redis.call('GET', KEYS[1])
    if held then
      return held
    end
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return false
    """

    # KEYS[1] a key; ARGV: what its owner wrote, the answer, milliseconds to keep it.
    # Returns 1; 0 if somebody else holds the key. A key that ended meanwhile is nobody's.
    _FINISH: Final = """
    local held = redis.call('GET', KEYS[1])
    if held and held ~= ARGV[1] then
      return 0
    end
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 1
    """

    # KEYS[1] a key; ARGV[1] what its owner wrote. Returns how many keys it freed.
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
            # a reply that was lost: redis-py sent the script again, and it found its own
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
    """The :class:`IdempotencyStore` of one process: for tests, and for a single server without a need for more.

    Keeps the newest keys and forgets the oldest when there are more than ``max_keys``.
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
    """What Redis holds of a key in progress; always the same text, because scripts compare it."""
    return json.dumps({"fingerprint": ticket.fingerprint, "owner": ticket.owner})


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except REDIS_ERRORS as error:
        raise StoreUnavailable(doing=doing, problem=str(error), refusal=refusal_of(error)) from error
