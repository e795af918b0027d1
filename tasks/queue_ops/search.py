"""A search of all queues for a job id, a pet, an item, an actor, or part of an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

import redis

from broker import DeadLetter, RedisStreamsBroker, Selection
from broker.keys import QueueKeys
from sploot_cluster.limits import MAX_INT64
from sploot_cluster.queues import DeadLetterView, Found, QueueJob
from tasks.contracts import NAMESPACE
from tasks.queue_ops.dead_letters import LOOKED_AT, message_id_of, view_of
from tasks.queue_ops.entries import added_at, facts_of
from tasks.queue_ops.listing import delayed_jobs
from tasks.queue_ops.pet_index import FoundJob, find_jobs
from tasks.shards import shards_of_all

_PET: Final = re.compile(r"[1-9][0-9]{0,18}")
# Ids of jobs and events have at least 8 characters; a search of the waiting entries for a shorter text would find too
# many.
_ID: Final = re.compile(r"[\w.:-]{8,200}")


def search(broker: RedisStreamsBroker, client: redis.Redis, text: str, *, limit: int) -> Found:
    """Return at most ``limit`` unfinished jobs, and per queue at most ``limit`` dead letters from the newest 5,000.

    A number is searched for as the id of a pet, and any other text as the id of a job, item or actor, and in errors.
    """
    jobs: list[QueueJob] = []
    if _PET.fullmatch(text) and int(text) <= MAX_INT64:
        found, _ = find_jobs(broker, client, int(text), limit=limit + 1)
        for job in found[: limit + 1]:
            jobs += _delayed(client, job.queue, job.delayed_as) if job.delayed_as else [_of_pet(job, int(text))]
    else:
        for queue in shards_of_all(broker):
            jobs += islice(_unfinished(broker, client, queue, text), limit + 1)
    dead_letters: list[DeadLetterView] = []
    is_complete = len(jobs) <= limit
    for queue in shards_of_all(broker):
        newest = broker.dead_letters(queue)
        seen = list(islice(newest.find(), LOOKED_AT + 1))
        matching = [one for one in seen[:LOOKED_AT] if _is_about(one, text)]
        dead_letters += map(view_of, matching[:limit])
        is_complete = is_complete and len(seen) <= LOOKED_AT and len(matching) <= limit
    dead_letters.sort(key=lambda view: view.died_at, reverse=True)
    return Found(jobs[:limit], dead_letters, is_complete)


def _unfinished(broker: RedisStreamsBroker, client: redis.Redis, queue: str, text: str) -> Iterator[QueueJob]:
    """Yield the queue's unfinished messages with this actor or id."""
    inspector = broker.inspector(queue)
    is_actor = re.fullmatch(r"[a-z]+(_[a-z]+)+", text) is not None
    if not is_actor and not _ID.fullmatch(text):
        return
    wanted = Selection(actor=text) if is_actor else Selection(message_ids=frozenset({text}))
    for found in inspector.find(wanted):
        message = found.message
        if found.state == "delayed":
            yield from _delayed(client, queue, found.place)
            continue
        pet_id, media_id = message.kwargs.get("pet_id"), message.kwargs.get("media_id")
        entry_id = found.place.decode() if found.state == "in-stream" else None
        yield QueueJob(
            queue=queue,
            state="waiting" if entry_id is not None else "delayed",
            job_id=message.message_id,
            entry_id=entry_id,
            actor=message.actor_name,
            pet_id=pet_id if type(pet_id) is int else None,
            media_id=media_id if isinstance(media_id, str) else None,
            added_at=None if entry_id is None else added_at(entry_id),
        )


def _delayed(client: redis.Redis, queue: str, name: bytes) -> list[QueueJob]:
    """Return a delayed or retrying job, or nothing if it has become due meanwhile."""
    due_ms = client.zscore(QueueKeys(NAMESPACE, queue).delayed, name)
    return [] if due_ms is None else delayed_jobs(client, queue, [(name, due_ms)])


def _of_pet(job: FoundJob, pet_id: int) -> QueueJob:
    return QueueJob(
        queue=job.queue,
        state="running" if job.state == "in flight" else "waiting",
        job_id=job.message_id,
        entry_id=job.entry_id,
        actor=job.actor,
        pet_id=pet_id,
        media_id=job.media_id,
        added_at=job.added_at,
        worker=job.holder,
        deliveries=job.deliveries,
    )


def _is_about(dead_letter: DeadLetter, text: str) -> bool:
    facts = facts_of(dead_letter.fields)
    if _PET.fullmatch(text):
        return str(facts.pet_id) == text
    ids = (dead_letter.id, message_id_of(dead_letter), dead_letter.actor_name, facts.media_id)
    return text in ids or text.casefold() in dead_letter.error.casefold()
