"""Plans that wait for confirmation.

key               type    holds                                   ends
sploot:plan:<id>  string  the plan as JSON with its frozen ids     when it is taken, or after an hour
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from secrets import token_hex
from typing import Final, cast

import redis

from sploot_cluster.errors import PlanUnknown
from sploot_cluster.queues import Plan, PlannedEntry

KEEP_S: Final = 60 * 60

# KEYS: 1 the plan. ARGV: the plan as JSON, seconds to keep it. The first write needs no memory, so a full server also
# accepts the second one: operators must be able to plan a purge of dead letters when Redis is full.
_KEEP: Final = """
redis.call('DEL', KEYS[1])
return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
"""

# One command, so that only one operator acts if two apply the same plan. GETDEL needs Redis 6.2.
_TAKE: Final = "GETDEL"


def new_plan_id() -> str:
    return f"p-{token_hex(4)}"


class Plans:
    """The store of plans. Errors from redis-py propagate."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._keep = client.register_script(_KEEP)

    def keep(self, plan: Plan) -> None:
        stored = asdict(plan) | {
            "made_at": plan.made_at.isoformat(),
            "entries": [
                [entry.id, entry.holder, entry.deliveries, entry.entry_id, entry.shard] for entry in plan.entries
            ],
        }
        self._keep(keys=[_key(plan.plan_id)], args=[json.dumps(stored), KEEP_S])

    def take(self, plan_id: str) -> Plan:
        """Return a plan and delete it. Raises PlanUnknown."""
        stored = cast("bytes | None", self._client.execute_command(_TAKE, _key(plan_id)))
        if stored is None:
            raise PlanUnknown(plan_id)
        facts = json.loads(stored)
        facts["made_at"] = datetime.fromisoformat(facts["made_at"])
        facts["entries"] = tuple(PlannedEntry(*entry) for entry in facts["entries"])
        return Plan(**facts | {name: tuple(facts[name]) for name in ("commands", "warnings")})


def _key(plan_id: str) -> str:
    return f"sploot:plan:{plan_id}"
