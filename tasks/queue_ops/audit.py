"""Who did what to a queue: two entries each, before and after, so that an action that was killed shows.

key           type    holds                                                            ends
sploot:audit  stream  plan, state (begun, done, failed), by, via, action, queue, note,  the oldest, beyond some 10,000
                      planned, done, ids (the first 100), digest (of all), result
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import redis

from sploot_cluster.queues import Action, AuditRecord, Done, Plan
from sploot_cluster.refusals import REDIS_ERRORS

logger = logging.getLogger("sploot-cluster.queue")

AUDIT: Final = "sploot:audit"
KEPT: Final = 10_000
SHOWN_IDS: Final = 100
POSSIBLE_WHEN_FULL: Final[frozenset[Action]] = frozenset({"purge", "pause", "resume"})


@dataclass
class Entry:
    """An action under way; set ``done`` to what became of it."""

    done: Done | None = None


class AuditLog:
    """Errors of redis-py pass through: what cannot be written down is not done."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @contextmanager
    def writing(self, plan: Plan, *, by: str, via: str, note: str) -> Iterator[Entry]:
        """Note that the plan is begun, and how it ended: with ``done``, or with the error that left the block."""
        facts: dict[str, str | int] = {
            "plan": plan.plan_id,
            "by": by,
            "via": via,
            "action": plan.action,
            "queue": plan.queue,
            "note": note,
            "planned": len(plan.entries),
            "ids": " ".join(entry.id for entry in plan.entries[:SHOWN_IDS]) or (plan.consumer or ""),
            "digest": digest_of([entry.id for entry in plan.entries]),
        }
        try:
            self._add(facts | {"state": "begun"})
        except redis.OutOfMemoryError:
            # what frees memory, or lets no more come, must be possible when there is none left
            if plan.action not in POSSIBLE_WHEN_FULL:
                raise
        entry = Entry()
        try:
            yield entry
        except BaseException as error:
            # what failed is to be raised, not that it could not be written down
            with suppress(*REDIS_ERRORS):
                self._add(facts | {"state": "failed", "result": f"{type(error).__name__}: {error}"[:500]})
            raise
        done = entry.done
        assert done is not None
        state = "done" if done.is_complete else "failed"
        try:
            self._add(facts | {"state": state, "done": done.n_done, "result": done.reason})
        except redis.OutOfMemoryError:
            logger.warning("an action is not in the audit, because Redis is full", extra={"plan": plan.plan_id})

    def newest(self, limit: int = 50) -> Sequence[AuditRecord]:
        """What was done, newest first, one record each."""
        records: dict[str, AuditRecord] = {}
        # two entries each; an action whose end is within the page and whose begin is not is told by its end alone
        for entry_id, fields in cast(list[Any], self._client.xrevrange(AUDIT, count=2 * limit + 1)):
            record = _record(entry_id, {name.decode(): value.decode() for name, value in fields.items()})
            records.setdefault(record.plan_id, record)
        return list(records.values())[:limit]

    def _add(self, facts: dict[str, str | int]) -> None:
        self._client.xadd(AUDIT, cast(Any, facts), maxlen=KEPT, approximate=True)


def digest_of(ids: Sequence[str]) -> str:
    """Tells whether two actions touched the same set."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def _record(entry_id: bytes, stored: dict[str, str]) -> AuditRecord:
    return AuditRecord(
        plan_id=stored["plan"],
        at=datetime.fromtimestamp(int(entry_id.partition(b"-")[0]) / 1000, tz=UTC),
        by=stored["by"],
        via=stored["via"],
        action=cast(Action, stored["action"]),
        queue=stored["queue"],
        state=cast(Any, stored["state"]),
        n_planned=int(stored["planned"]),
        n_done=int(stored["done"]) if "done" in stored else None,
        note=stored["note"],
        ids=stored["ids"].split(),
        result=stored.get("result", ""),
    )
