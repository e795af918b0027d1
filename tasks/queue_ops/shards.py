"""One plan, one result and one page for all shards of a queue, made from those of each shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from sploot_cluster.errors import InvalidInput
from sploot_cluster.queues import Done, Page, Plan

Record = TypeVar("Record")

MOST_TOLD: Final = 4


def located(
    field: str, ids: Sequence[str], shards: Sequence[str], is_in: Callable[[str, str], bool]
) -> dict[str, list[str]]:
    """Return the shards that hold these ids, each with its ids. Unknown ids are left to the first shard.

    Args:
        is_in: called with a shard and an id; returns whether the shard holds it.

    Raises:
        InvalidInput: two shards hold the same id, which is possible because each numbers its own entries.
    """
    found: dict[str, list[str]] = {}
    for one in dict.fromkeys(ids):
        holders = [shard for shard in shards if is_in(shard, one)] or [shards[0]]
        if len(holders) > 1:
            raise InvalidInput(
                field, f"{one} is in {' and in '.join(holders)}", "give the name of the shard instead of the queue"
            )
        found.setdefault(holders[0], []).append(one)
    return found


def plan_of_all(queue: str, plans: Mapping[str, Plan]) -> Plan:
    """Return one plan for a queue from the plans for its shards."""
    if len(plans) == 1:
        return next(iter(plans.values()))
    first = next(iter(plans.values()))
    acting = [plan for plan in plans.values() if not plan.is_empty] or [first]
    more = f"; and so on, {len(acting)} shards in all" if len(acting) > MOST_TOLD else ""
    return dataclasses.replace(
        first,
        queue=queue,
        effect="; ".join(plan.effect for plan in acting[:MOST_TOLD]) + more,
        commands=tuple(command for plan in acting for command in plan.commands),
        entries=tuple(
            dataclasses.replace(entry, shard=shard) for shard, plan in plans.items() for entry in plan.entries
        ),
        warnings=tuple(dict.fromkeys(warning for plan in plans.values() for warning in plan.warnings)),
    )


def parts_of(plan: Plan) -> list[Plan]:
    """Return the plan for each shard that a plan touches, or the plan itself if it touches a single queue."""
    shards = dict.fromkeys(entry.shard for entry in plan.entries if entry.shard)
    if not shards:
        return [plan]
    return [
        dataclasses.replace(plan, queue=shard, entries=tuple(one for one in plan.entries if one.shard == shard))
        for shard in shards
    ]


def done_of_all(plan: Plan, parts: Sequence[Done]) -> Done:
    """Return the result of a plan from the results in each shard."""
    if len(parts) == 1:
        return dataclasses.replace(parts[0], queue=plan.queue)
    return Done(
        plan.plan_id,
        plan.action,
        plan.queue,
        len(plan.entries),
        sum(part.n_done for part in parts),
        all(part.is_complete for part in parts),
        "; ".join(f"{part.queue}: {part.reason}" for part in parts),
    )


def page_of_all(
    pages: Sequence[Page[Record]], limit: int, *, id_of: Callable[[Record], str | None], newest_first: bool = False
) -> Page[Record]:
    """Return one page from the pages of the shards, in the order of their ids, which are times.

    Records with the same id stay on one page, which may have a few more records than the limit. The cursor is an id.
    """
    if len(pages) == 1:
        return pages[0]

    def order(record: Record) -> tuple[int, int]:
        return order_of(id_of(record) or "0-0")

    records = sorted((one for page in pages for one in page.records), key=order, reverse=newest_first)
    # a shard was read only up to its cursor, so that records of other shards beyond that may not be the next ones
    ends = [order_of(page.cursor) for page in pages if page.cursor is not None]
    end = (max(ends) if newest_first else min(ends)) if ends else None
    if end is not None:
        records_read = [one for one in records if (order(one) >= end if newest_first else order(one) <= end)]
    else:
        records_read = records
    shown = list(_with_ties(records_read, limit, order))
    if len(shown) < len(records_read):
        return Page(shown, _text(order(shown[-1])))
    return Page(shown, None if end is None else _text(end))


def order_of(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


def _text(order: tuple[int, int]) -> str:
    return f"{order[0]}-{order[1]}"


def _with_ties(records: Iterable[Record], limit: int, order: Callable[[Record], tuple[int, int]]) -> Iterator[Record]:
    last = None
    for at, record in enumerate(records):
        if at >= limit and order(record) != last:
            return
        last = order(record)
        yield record
