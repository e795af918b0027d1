"""The records of the campaign's producers and workers, on a separate server that suffers no faults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import redis

# Result of an enqueue as its producer saw it. ``uncertain``: the broker could not determine the outcome.
Fate = Literal["confirmed", "uncertain", "refused"]


@dataclass(frozen=True, slots=True)
class Entries:
    """The contents of the ledger.

    Attributes:
        kinds: uid -> kind of every message that a producer tried to enqueue, written before the attempt.
        fates: uid -> result of the enqueue; missing if the producer died before it recorded the result.
        runs: uid -> number of times its job ran to its end.
        lines: ordering key -> uids in the order in which their jobs ended, including repeated runs.
    """

    kinds: Mapping[str, str]
    fates: Mapping[str, Fate]
    runs: Mapping[str, int]
    lines: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Ledger:
    """The records. Thread-safe; no fault is injected into its server, so no record is lost."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url, decode_responses=True)

    def will_enqueue(self, kinds: Mapping[str, str]) -> None:
        self._client.hset("kinds", mapping=kinds)

    def did_enqueue(self, uids: Iterable[str], fate: Fate) -> None:
        self._client.hset("fates", mapping=dict.fromkeys(uids, fate))

    def ran(self, uid: str, *, line: str | None = None) -> None:
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hincrby("runs", uid, 1)
            if line is not None:
                pipe.sadd("lines", line)
                pipe.rpush(f"line:{line}", uid)
            pipe.execute()

    def read(self) -> Entries:
        kinds, fates, runs = (self._client.hgetall(name) for name in ("kinds", "fates", "runs"))
        lines = {line: self._client.lrange(f"line:{line}", 0, -1) for line in self._client.smembers("lines")}
        return Entries(kinds, fates, {uid: int(n) for uid, n in runs.items()}, lines)

    def clear(self) -> None:
        self._client.flushall()

    def close(self) -> None:
        self._client.close()
