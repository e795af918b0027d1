"""What producers and workers of the campaign write down, on a server of its own that nothing happens to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import redis

# How an enqueue ended, as its producer saw it. ``uncertain``: it was told that nobody knows.
Fate = Literal["confirmed", "uncertain", "refused"]


@dataclass(frozen=True, slots=True)
class Entries:
    """Everything in the ledger.

    Attributes:
        kinds: uid -> kind, of every message a producer tried to enqueue, written before it tried.
        fates: uid -> how the enqueue ended; missing where the producer died in between.
        runs: uid -> how often its job ran to its end.
        lines: ordering key -> uids in the order in which their jobs ran to their ends, again and again included.
    """

    kinds: Mapping[str, str]
    fates: Mapping[str, Fate]
    runs: Mapping[str, int]
    lines: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Ledger:
    """Thread-safe; its answers are never lost, because nobody touches its server."""

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
