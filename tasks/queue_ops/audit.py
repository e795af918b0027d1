"""The audit of actions on queues: one entry before and one after each action, so that an interrupted one is visible.

key           type    holds                                                            ends
sploot:audit  stream  plan, state (begun, done, failed), by, via, action, queue, note,  when trimmed, oldest first, to
                      planned, done, ids (the first 100), digest (of all), result       about 10,000 entries
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

from sploot_cluster.queues import Action, AuditRecord, Done, Page, Plan
from sploot_cluster.refusals import REDIS_ERRORS

logger = logging.getLogger("sploot-cluster.queue")

AUDIT: Final = "sploot:audit"
KEPT: Final = 10_000
# Number of entries newer than the page that are searched for the second entry of an action, so that the page does not
# list an action again that an earlier page showed as ended.
OVERLAP: Final = 200
SHOWN_IDS: Final = 100
POSSIBLE_WHEN_FULL: Final[frozenset[Action]] = frozenset({"purge", "pause", "resume", "cancel"})


@dataclass
class Entry:
    """The audit of an action in progress; set ``done`` to the result of the action."""

    done: Done | None = None


class AuditLog:
    """The audit log. Errors from redis-py propagate, so an action that cannot be audited is not applied.

    The exceptions are ``POSSIBLE_WHEN_FULL``: these are applied even if a full Redis refuses their audit entries.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @contextmanager
    def writing(self, plan: Plan, *, by: str, via: str, note: str) -> Iterator[Entry]:
        """Record that the action started and how it ended: with ``done``, or with the error that ended the block."""
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
            # actions that free memory, pause or resume must work even if Redis has no memory left
            if plan.action not in POSSIBLE_WHEN_FULL:
                raise
        entry = Entry()
        try:
            yield entry
        except BaseException as error:
            # raise the original error even if the failure cannot be recorded
            with suppress(*REDIS_ERRORS):
                self._add(facts | {"state": "failed", "result": f"{type(error).__name__}: {error}"[:500]})
            raise
        done = entry.done
        assert done is not None
        state = "done" if done.is_complete else "failed"
        try:
            self._add(facts | {"state": state, "done": done.n_done, "result": done.reason})
        except redis.OutOfMemoryError:
            logger.warning("could not write the audit entry, because Redis is full", extra={"plan": plan.plan_id})

    def page(self, limit: int = 50, *, before: str | None = None) -> Page[AuditRecord]:
        """Return records, newest first, one per action; the cursor is the id of the last entry that was read.

        Args:
            before: the cursor of the previous page.
        """
        newest = "+" if before is None else f"({before}"
        # an action has two entries; if only the last one is on the page, the record is made from that entry alone
        entries = cast(list[Any], self._client.xrevrange(AUDIT, max=newest, count=2 * limit + 1))
        records: dict[str, AuditRecord] = {}
        ended = set() if before is None else self._plans_after(before)
        last = b""
        for entry_id, fields in entries:
            record = _record(entry_id, {name.decode(): value.decode() for name, value in fields.items()})
            if record.plan_id not in records and record.plan_id not in ended:
                if len(records) == limit:
                    return Page(list(records.values()), last.decode())
                records[record.plan_id] = record
            last = entry_id
        return Page(list(records.values()), last.decode() if len(entries) > 2 * limit else None)

    def _plans_after(self, cursor: str) -> set[str]:
        """Return the plans whose last entry was on an earlier page. A plan has two entries, close together."""
        entries = cast(list[Any], self._client.xrange(AUDIT, min=cursor, count=OVERLAP))
        return {fields[b"plan"].decode() for _, fields in entries}

    def _add(self, facts: dict[str, str | int]) -> None:
        self._client.xadd(AUDIT, cast(Any, facts), maxlen=KEPT, approximate=True)


def digest_of(ids: Sequence[str]) -> str:
    """Return a digest that is equal for two actions on the same ids."""
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
