#!/usr/bin/env python3
"""Replay traffic on a staging queue: from a capture, from dead letters or from orphans.

    replay_staging_traffic.py --capture pet-42.zip              items, jobs and dead letters of a capture
    replay_staging_traffic.py --dead embedding                  dead letters of a queue
    replay_staging_traffic.py --dead embedding --source-url …   copies of the dead letters in another Redis
    replay_staging_traffic.py --orphans embedding               jobs after a manual XACK or XGROUP DELCONSUMER

The script prints its plan and does nothing without --yes. It enqueues each job in one atomic step under a unique name
(the id of its message), and the target remembers the name for 30 days. If the script is killed and started again, it
enqueues only the missing jobs. The target is REDIS_URL. Production is refused without --production.

Exit codes: 0 done, 1 failed, 2 usage, 3 Redis unreachable, 4 refused (no --yes, or production), 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import redis
from dramatiq.errors import BrokerConnectionError

from broker import DeadLetterTooLarge, PendingEntry, RedisStreamsBroker
from broker.dead_letters import KEY_HELD
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.limits import MAX_TEXT
from sploot_cluster.pet.models import PetState
from sploot_cluster.pet.times import time_of
from sploot_cluster.queues import LONGEST_S
from sploot_cluster.refusals import REDIS_ERRORS, explained, refusal_of
from tasks.capture.file import Capture, read_capture
from tasks.contracts import EMBEDDING_INGESTED, GROUP, NAMESPACE, stream_of
from tasks.queue_ops.canary import HELD
from tasks.queue_ops.entries import facts_of
from tasks.queue_ops.operations import queue_named
from tasks.redis_access.urls import connect
from tasks.settings import Settings, masked

FAILED, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 130

REMEMBER_MS: Final = 30 * 24 * 60 * 60 * 1000
CHECKPOINT_EVERY: Final = 50
POLL_S: Final = 0.1
PRODUCTION: Final = re.compile(r"(^|[^a-z])(prod|production|prd|live)([^a-z]|$)", re.IGNORECASE)

# KEYS 1 stream  2 zset of the names of enqueued jobs, scored by the time at which each name expires
# ARGV name, ms to remember it, then names and values of the entry's fields
# Returns 1 if the entry was added now, 0 if it was added before
ADD_ONCE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('ZADD', KEYS[2], 'NX', now + ARGV[2], ARGV[1]) == 0 then
  return 0
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
return 1
"""


@dataclass(frozen=True)
class Job:
    """One job to replay.

    Attributes:
        name: the name by which the target recognises the job.
        dead_letter_id: the id of the dead letter if it is in the target itself: it is then moved instead of copied.
        entry_id: the id of an orphan; orphans are read only from the target.
        at: the time of the job, if it is known.
    """

    name: str
    queue: str
    pet_id: int | None
    fields: Mapping[bytes, bytes]
    at: datetime | None = None
    dead_letter_id: str | None = None
    entry_id: str | None = None


class Refused(Exception):
    """Raised when the script refuses to act."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script and return the exit code."""
    asked = parsed(arguments)
    try:
        settings = Settings.from_env(os.environ)
        url = asked.redis_url or settings.redis_url
        with ExitStack() as until_the_end:
            client = until_the_end.enter_context(connect(url, connect_timeout_s=5.0, answer_timeout_s=10.0))
            broker = until_the_end.enter_context(closing(broker_on(client)))
            source = broker
            if asked.source_url:
                other = connect(asked.source_url, connect_timeout_s=5.0, answer_timeout_s=10.0)
                source = until_the_end.enter_context(closing(broker_on(until_the_end.enter_context(other))))
            jobs = [job for job in jobs_of(asked, source, is_same=source is broker) if is_wanted(job, asked)]
            show_plan(asked, jobs, url)
            refuse_production(url, settings.environment, allowed=asked.production)
            if not asked.yes:
                raise Refused("nothing was done; add --yes to put the jobs back")
            return Replay(asked, client, broker, jobs).run()
    except Refused as refused:
        return fail(REFUSED, str(refused))
    except InvalidInput as wrong:
        return fail(USAGE, str(wrong))
    except (*REDIS_ERRORS, BrokerConnectionError) as error:
        what = "no answer from Redis" if refusal_of(error) is None else "Redis refuses"
        hint = "start it again when Redis is back; no job is put back twice"
        return fail(UNREACHABLE, f"{what}: {explained(error, outcome='the replay ended', hint=hint)}")


def broker_on(client: redis.Redis) -> RedisStreamsBroker:
    """Return a broker that reads dead letters and orphans of this Redis and starts nothing."""
    return RedisStreamsBroker(client=client, namespace=NAMESPACE, group=GROUP, middleware=[])


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="replay_staging_traffic.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--capture", type=Path, metavar="FILE", help="a file that sploot-cluster capture wrote")
    source.add_argument("--dead", metavar="QUEUE", help="dead letters of this queue")
    source.add_argument("--orphans", metavar="QUEUE", help="orphans of this queue")
    parser.add_argument("--source-url", metavar="URL", help="with --dead: the Redis to read from; it is not changed")
    parser.add_argument(
        "--redis-url",
        metavar="URL",
        help="the Redis to put jobs into; by default REDIS_URL, which keeps a password out of the process list",
    )
    parser.add_argument("--since", type=duration, metavar="2h", help="only jobs of the last 30s, 15m, 2h or 7d")
    parser.add_argument("--pet-id", type=int, metavar="ID", help="only jobs of this pet")
    parser.add_argument("--rate", type=float, default=50.0, metavar="N", help="jobs per second; 0 means no limit")
    parser.add_argument(
        "--max-pending", type=int, default=1_000, metavar="N", help="wait while a stream holds this many jobs"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="record the progress in this file, and resume from it"
    )
    parser.add_argument("--yes", action="store_true", help="put the jobs back")
    parser.add_argument("--production", action="store_true", help="allow a target that looks like production")
    parser.add_argument("--json", action="store_true", help="print plan and report as JSON lines")
    asked = parser.parse_args(arguments)
    if asked.source_url and not asked.dead:
        parser.error("--source-url needs --dead")
    if asked.rate < 0 or asked.max_pending < 1:
        parser.error("--rate must be 0 or more, --max-pending 1 or more")
    return asked


def duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)(s|m|h|d)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 30s, 15m, 2h or 7d")
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2]]
    if seconds > LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than a hundred years; write a shorter one, such as 7d")
    return timedelta(seconds=seconds)


# -- the jobs to replay ------------------------------------------------------------------------------------------------


def jobs_of(asked: argparse.Namespace, source: RedisStreamsBroker, *, is_same: bool) -> Iterator[Job]:
    """Yield all jobs of the source, oldest first."""
    if asked.capture is not None:
        yield from from_capture(read_capture(asked.capture))
    elif asked.dead is not None:
        yield from from_dead_letters(source, queue_named(asked.dead), is_same=is_same)
    else:
        yield from from_orphans(source, queue_named(asked.orphans))


def from_capture(capture: Capture) -> Iterator[Job]:
    if capture.pet is not None:
        yield from from_pet(capture.pet.state)
    for job in capture.jobs:
        yield Job(name_of(job.fields), job.queue, facts_of(job.fields).pet_id, job.fields)
    for dead_letter in capture.dead_letters:
        if dead_letter.n_bytes_cut:
            print(f"{dead_letter.id} is left out: only its head was captured", file=sys.stderr)
            continue
        fields = dead_letter.fields
        yield Job(name_of(fields), dead_letter.queue, facts_of(fields).pet_id, fields, at=dead_letter.died_at)


def from_pet(state: PetState) -> Iterator[Job]:
    for item, vector, ms in zip(state.media, state.vectors, state.occurred_at_ms.tolist(), strict=True):
        stated = time_of(ms)
        event_id = f"replay-{state.pet}-{item}"
        if len(event_id) > MAX_TEXT:
            event_id = f"replay-{hashlib.sha256(event_id.encode()).hexdigest()}"
        event = EmbeddingIngested.of(
            pet_id=state.pet,
            media_id=item,
            model=state.model,
            embedding=vector,
            event_id=event_id,
            occurred_at=stated.isoformat() if stated else None,
        )
        yield Job(event_id, EMBEDDING_INGESTED, event.pet_id, event.to_fields())


def from_dead_letters(broker: RedisStreamsBroker, queue: str, *, is_same: bool) -> Iterator[Job]:
    dead_letters, found, before = broker.dead_letters(queue), [], None
    while page := dead_letters.list(500, before=before):
        found += page
        before = page[-1].id
    for dead_letter in reversed(found):
        pet_id = facts_of(dead_letter.fields).pet_id
        name = name_of(dead_letter.fields)
        yield Job(
            name,
            queue,
            pet_id,
            dead_letter.fields,
            at=dead_letter.died_at,
            dead_letter_id=dead_letter.id if is_same else None,
        )


def from_orphans(broker: RedisStreamsBroker, queue: str) -> Iterator[Job]:
    inspector = broker.inspector(queue)
    for orphan in inspector.unowned().orphans:
        fields = inspector.entry(orphan.id) or {}
        at = datetime.fromtimestamp(int(orphan.id.partition("-")[0]) / 1000, tz=UTC)
        yield Job(name_of(fields), queue, facts_of(fields).pet_id, fields, at=at, entry_id=orphan.id)


def name_of(fields: Mapping[bytes, bytes]) -> str:
    """Return the id of the message, or a digest of all fields if there is none."""
    message_id = facts_of(fields).message_id
    if message_id:
        return message_id
    return hashlib.sha256(b"\0".join(part for pair in sorted(fields.items()) for part in pair)).hexdigest()


def is_wanted(job: Job, asked: argparse.Namespace) -> bool:
    if asked.pet_id is not None and job.pet_id != asked.pet_id:
        return False
    # jobs without a time, such as items of a capture, always match
    return asked.since is None or job.at is None or job.at >= datetime.now(UTC) - asked.since


# -- plan and act ------------------------------------------------------------------------------------------------------


def show_plan(asked: argparse.Namespace, jobs: Sequence[Job], url: str) -> None:
    queues = Counter(job.queue for job in jobs)
    pets = len({job.pet_id for job in jobs})
    target = masked("redis_url", url)
    if asked.json:
        plan = {"plan": dict(queues), "jobs": len(jobs), "pets": pets, "target": target, "rate": asked.rate}
        print(json.dumps(plan | {"max_pending": asked.max_pending}), flush=True)
        return
    pace = f"{asked.rate:g} per second" if asked.rate else "without a rate limit"
    print(f"{len(jobs)} jobs of {pets} pets to {target}, {pace}:")
    for queue, n in sorted(queues.items()):
        print(f"  {n:>7} {stream_of(queue)}")
    for job in jobs[:3]:
        print(f"  such as {job.name} of pet {job.pet_id}")
    sys.stdout.flush()


def refuse_production(url: str, environment: str, *, allowed: bool) -> None:
    """Raise ``Refused`` if the target looks like production and is not allowed."""
    parts = urlsplit(url)
    named = [name for name in (environment, parts.netloc.rpartition("@")[2], parts.path) if PRODUCTION.search(name)]
    if named and not allowed:
        raise Refused(f"{named[0]} looks like production; add --production if this is intended")


class Replay:
    """The replay of jobs, one after another."""

    def __init__(
        self, asked: argparse.Namespace, client: redis.Redis, broker: RedisStreamsBroker, jobs: Sequence[Job]
    ) -> None:
        self._asked, self._client, self._broker, self._jobs = asked, client, broker, jobs
        self._add_once = client.register_script(ADD_ONCE)
        self._is_interrupted = False
        self._counts: Counter[str] = Counter(enqueued=0, already=0)

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        start, began_at = self._resume_at(), time.monotonic()
        for place, job in enumerate(self._jobs[start:], start=1):
            self._wait_for_room(job.queue)
            if self._is_interrupted:
                break
            try:
                self._counts[self._put_back(job)] += 1
            except DeadLetterTooLarge as refused:
                self._counts["refused"] += 1
                print(f"{job.dead_letter_id} stays a dead letter: {refused}", file=sys.stderr)
            if place % CHECKPOINT_EVERY == 0:
                self._note(start + place)
            if self._asked.rate:
                time.sleep(max(0.0, began_at + place / self._asked.rate - time.monotonic()))
        done = sum(self._counts.values())
        self._note(start + done)
        self._report(start)
        return INTERRUPTED if self._is_interrupted else 0

    def _put_back(self, job: Job) -> str:
        """Replay a job, unless it was replayed to this target before; return the outcome."""
        if job.dead_letter_id is not None:
            (entry_id,) = self._broker.dead_letters(job.queue).put_back([job.dead_letter_id])
            if entry_id == KEY_HELD:
                print(f"{job.dead_letter_id} stays a dead letter: {HELD}", file=sys.stderr)
                return "refused"
            return _outcome(entry_id is not None)
        if job.entry_id is not None:
            rescued = self._broker.inspector(job.queue).rescue([PendingEntry(job.entry_id, "", 0)])
            return _outcome(rescued.n_handed_back == 1)
        stream = stream_of(job.queue)
        flat_fields = [part for pair in job.fields.items() for part in pair]
        keys = [stream, f"{{{stream}}}:replayed"]
        return _outcome(bool(self._add_once(keys=keys, args=[job.name, REMEMBER_MS, *flat_fields])))

    def _wait_for_room(self, queue: str) -> None:
        while not self._is_interrupted and self._client.xlen(stream_of(queue)) >= self._asked.max_pending:
            time.sleep(POLL_S)

    def _resume_at(self) -> int:
        """Return the number of jobs to skip. This only saves time: the target recognises jobs by their names."""
        file: Path | None = self._asked.checkpoint
        if file is None or not file.exists():
            return 0
        try:
            checkpoint = json.loads(file.read_text())
            n, of = int(checkpoint["done"]), str(checkpoint["of"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InvalidInput("--checkpoint", f"{file} is not a checkpoint", "name a new file, or remove it") from None
        return n if of == self._digest() and 0 <= n <= len(self._jobs) else 0

    def _note(self, n: int) -> None:
        file: Path | None = self._asked.checkpoint
        if file is None:
            return
        unfinished = file.with_name(f"{file.name}.tmp")
        unfinished.write_text(json.dumps({"done": n, "of": self._digest()}))
        unfinished.replace(file)

    def _digest(self) -> str:
        """Return a digest of the jobs, so that a checkpoint for other jobs is ignored."""
        return hashlib.sha256("\n".join(job.name for job in self._jobs).encode()).hexdigest()[:16]

    def _report(self, skipped: int) -> None:
        report = {**self._counts, "before": skipped, "of": len(self._jobs)}
        if self._asked.json:
            print(json.dumps({"report": report}))
        else:
            left = len(self._jobs) - skipped - sum(self._counts.values())
            print(
                f"{report['enqueued']} enqueued, {report['already']} already enqueued before"
                + (f", {skipped} skipped by the checkpoint" if skipped else "")
                + (f", {self._counts['refused']} refused" if self._counts["refused"] else "")
                + (f", {left} left" if left else "")
            )

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._is_interrupted = True


def _outcome(was_missing: bool) -> str:
    return "enqueued" if was_missing else "already"


def fail(code: int, message: str) -> int:
    print(f"replay_staging_traffic.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
