"""Records of jobs in Redis. The code that changes the state of a job writes them; status reports read them.

    key                        type  holds                                   ends
    sploot:{jobs}:record:<id>  hash  the latest known state of a job         24 hours after its last change
    sploot:{jobs}:pet:<pet>    zset  ids of the jobs of a pet, scored by     record by record
                                     the second of their last change

Producers write a record before they enqueue; the middleware :class:`TrackJobs` updates it whenever the job starts,
fails or ends. Only messages with the option ``tracked`` have a record, because it would triple the cost of a flat
event. The reason why a job waits is not stored, but read from its queue. In a Redis Cluster, all these keys are on one
node, so that one script can write a record and list it with its pet.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, NamedTuple, Protocol, assert_never, cast

import dramatiq
import redis
from dramatiq.broker import Broker, MessageProxy

from broker import DeadLetter, QueueStats
from sploot_cluster.jobs import ENDED, FailedAttempt, JobStage, JobState, JobStatus
from tasks.retry_policy import LIMIT_GRACE_S, LONGEST_LIMIT_MS, limit_of_actor_ms
from tasks.shards import queue_of

logger = logging.getLogger("sploot-cluster.queue")

RECORD_PREFIX: Final = "sploot:{jobs}:record:"
PET_PREFIX: Final = "sploot:{jobs}:pet:"
RECORD_TTL_S: Final = 24 * 60 * 60
PAGE: Final = 500  # maximum number of records to read or delete in one round trip
FAILED: Final = "failed:"  # prefix of the fields with the time and error of a failed attempt, named by its number
MOST_UNWRITTEN: Final = 1_000  # maximum number of records that a process keeps in memory until it can write them
LONGEST_ERROR: Final = 500  # maximum length of a stored error, in characters

# KEYS: 1 the record, 2 the list of its pet's records, if it has a pet. ARGV: seconds to keep it; how (``new``,
# ``change``, or ``start`` and ``known``, which change only an existing record); job id; queue, actor and pet of the
# job; then names and values. A success is final: a message may be delivered again, or to two workers at once, but the
# job is done all the same. A new job with a reused id starts a new record. A record belongs to one job: a message that
# reuses the id for a different job, which any producer that knows the id can send, does not change it.
_WRITE: Final = """
local found = redis.call('HMGET', KEYS[1], 'state', 'queue', 'actor', 'pet_id')
local keep_s, how, id, owner = ARGV[1], ARGV[2], ARGV[3], {ARGV[4], ARGV[5], ARGV[6]}
if how == 'new' then
  redis.call('DEL', KEYS[1])
elseif found[1] == 'succeeded' or (how ~= 'change' and not found[1]) then
  return 0
elseif found[1] then
  for i = 1, 3 do
    if owner[i] ~= (found[i + 1] or '') then
      return 0
    end
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 7))
if how == 'start' then
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
end
redis.call('EXPIRE', KEYS[1], keep_s)
if KEYS[2] then
  local now = redis.call('TIME')[1]
  redis.call('ZADD', KEYS[2], now, id)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. (now - keep_s))
  redis.call('EXPIRE', KEYS[2], keep_s)
end
return 1
"""

How = Literal["new", "start", "change", "known"]


class JobOwner(NamedTuple):
    """The queue, actor and pet of a job. Together with the job id, they identify the job that a record is about."""

    queue: str
    actor: str
    pet_id: int | None


_answer: ContextVar[Callable[[], Mapping[str, object]] | None] = ContextVar("answer", default=None)


_refusal: ContextVar[str | None] = ContextVar("refusal", default=None)


_on_stage: ContextVar[Callable[[int, int, str], None] | None] = ContextVar("on_stage", default=None)


def stage(number: int, total: int, activity: str) -> None:
    """Record the stage that the running job enters, if the job is tracked; see :class:`JobStage`."""
    record = _on_stage.get()
    if record is not None:
        record(number, total, activity)


def refuse(reason: str) -> None:
    """Record that the running job was refused, and why. A refused job ends without having changed anything."""
    _refusal.set(reason)


def answer(result: Callable[[], Mapping[str, object]]) -> None:
    """Set the function that returns the running job's result as JSON values.

    That function is called only if the job is tracked.
    """
    _answer.set(result)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The latest known state of a job.

    Attributes:
        worker: the consumer that runs the job, or ran it last.
        error: the exception of the last failed attempt.
        failures: the attempts that failed and were retried, oldest first.
    """

    job_id: str
    state: JobState
    queue: str
    actor: str
    attempts: int = 0
    pet_id: int | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    due_at: datetime | None = None
    worker: str | None = None
    error: str | None = None
    result: Mapping[str, object] | None = None
    failures: Sequence[FailedAttempt] = ()
    stage: JobStage | None = None


class JobRecords:
    """The records of jobs in Redis, by job id. Errors from redis-py propagate."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._script = client.register_script(_WRITE)

    def write(self, job_id: str, owner: JobOwner, *, state: JobState, how: How = "change", **facts: object) -> None:
        """Record the state and other facts, named like attributes of :class:`JobRecord`. None is not recorded.

        Args:
            owner: the job that the facts are about; the record of a different job is not changed.
            how: ``new`` replaces an older record, ``start`` counts an attempt. ``start`` and ``known`` do not create a
                record.
        """
        keys = [RECORD_PREFIX + job_id]
        if owner.pet_id is not None:
            keys.append(f"{PET_PREFIX}{owner.pet_id}")
        pairs: list[str | int] = ["state", state]
        for name, value in (owner._asdict() | facts).items():
            if value is not None:
                pairs += [name, _stored(value)]
        pet = "" if owner.pet_id is None else owner.pet_id
        self._script(keys=keys, args=[RECORD_TTL_S, how, job_id, owner.queue, owner.actor, pet, *pairs])

    def find(self, job_id: str) -> JobRecord | None:
        return _record(job_id, cast(dict[bytes, bytes], self._client.hgetall(RECORD_PREFIX + job_id)))

    def unfinished(self, pet_id: int) -> list[JobRecord]:
        """Return the records of unfinished jobs among the pet's newest ``PAGE`` jobs, oldest change first."""
        job_ids = self.ids_of(pet_id, newest=PAGE)
        pipeline = self._client.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hgetall(RECORD_PREFIX + job_id)
        found = (_record(job_id, stored) for job_id, stored in zip(job_ids, pipeline.execute(), strict=True))
        return [record for record in found if record is not None and record.state not in ENDED]

    def ids_of(self, pet_id: int, *, newest: int = 0) -> list[str]:
        """Return the ids of a pet's jobs that may have a record, in the order in which the records last changed.

        Args:
            newest: maximum number of ids to return, those whose records changed last; 0 means all.
        """
        ids = cast(list[bytes], self._client.zrange(f"{PET_PREFIX}{pet_id}", -newest, -1))
        return [job_id.decode(errors="replace") for job_id in ids]

    def forget(self, pet_id: int, job_ids: Sequence[str]) -> None:
        """Delete the records of these jobs of a pet."""
        for start in range(0, len(job_ids), PAGE):
            page = job_ids[start : start + PAGE]
            self._client.delete(*(RECORD_PREFIX + job_id for job_id in page))
            self._client.zrem(f"{PET_PREFIX}{pet_id}", *page)


def _record(job_id: str, stored: Mapping[bytes, bytes]) -> JobRecord | None:
    facts = {name.decode(): value.decode() for name, value in stored.items()}
    if not {"state", "queue", "actor"} <= facts.keys():
        return None
    return JobRecord(
        job_id=job_id,
        state=cast(JobState, facts["state"]),
        queue=facts["queue"],
        actor=facts["actor"],
        attempts=int(facts.get("attempts", 0)),
        pet_id=int(facts["pet_id"]) if "pet_id" in facts else None,
        enqueued_at=_time(facts.get("enqueued_at")),
        started_at=_time(facts.get("started_at")),
        finished_at=_time(facts.get("finished_at")),
        due_at=_time(facts.get("due_at")),
        worker=facts.get("worker"),
        error=facts.get("error"),
        result=json.loads(facts["result"]) if "result" in facts else None,
        failures=_failures(facts),
        stage=_stage(facts),
    )


class TrackCancelled(dramatiq.Middleware):
    """Middleware that records the end of tracked messages that this process cancels, for operators and producers."""

    def __init__(self, records: JobRecords, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._records = records
        self._clock = clock
        # final records that could not be written, kept for another attempt; without it, these jobs would look
        # unfinished forever
        self._unwritten: deque[tuple[str, Callable[[], None]]] = deque(maxlen=MOST_UNWRITTEN)

    def after_cancel(self, broker: Broker, message: dramatiq.Message[Any] | MessageProxy) -> None:
        if _is_tracked(message):
            self._write(message, state="cancelled", how="known", finished_at=self._clock())

    def _write(self, message: dramatiq.Message[Any] | MessageProxy, *, state: JobState, **facts: Any) -> None:
        pet_id = message.kwargs.get("pet_id")
        owner = JobOwner(message.queue_name, message.actor_name, pet_id if type(pet_id) is int else None)
        self._record(message.message_id, owner, state=state, **facts)

    def _record(self, job_id: str, owner: JobOwner, *, state: JobState, **facts: Any) -> None:
        write = partial(self._records.write, job_id, owner, state=state, **facts)
        try:
            write()
        except redis.RedisError:
            logger.warning("job record not written", extra={"message_id": job_id}, exc_info=True)
            if state in ENDED:
                self._unwritten.append((job_id, write))
        else:
            self._write_the_rest()

    def _write_the_rest(self) -> None:
        """Retry the writes that failed, and stop when one fails again."""
        while self._unwritten:
            try:
                job_id, write = self._unwritten.popleft()
            except IndexError:
                return  # another thread has taken the last write
            try:
                write()
            except redis.RedisError:
                self._unwritten.appendleft((job_id, write))
                return
            logger.info("job record written late", extra={"message_id": job_id})


class TrackJobs(TrackCancelled):
    """Middleware that keeps records of messages with the option ``tracked``, as set by ``send_with_options``.

    If a record cannot be written, this is logged and the job continues. The final record of a job is then written
    later, after another job of the process or when the process stops. If the process is killed before that, the record
    keeps an outdated state.
    """

    @property
    def actor_options(self) -> set[str]:
        return {"tracked"}

    def before_enqueue(self, broker: Broker, message: dramatiq.Message[Any], delay: int | None) -> None:
        if not _is_tracked(message):
            return
        now = self._clock()
        due = now + timedelta(milliseconds=delay) if delay else None
        if message.options.get("retries"):
            # written before the retry is enqueued, so before a worker can start it: the state never goes backwards
            error = _last_line(message.options.get("traceback"))
            failure = {f"{FAILED}{message.options['retries']}": [now.isoformat(), error or "failed"]}
            self._write(message, state="retrying", how="known", due_at=due or now, error=error, **failure)
        else:
            self._write(message, state="delayed" if due else "queued", how="new", enqueued_at=now, due_at=due)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        if _is_tracked(message):
            _answer.set(None)
            _refusal.set(None)
            worker = getattr(message, "consumer_name", None)
            self._write(message, state="running", how="start", started_at=self._clock(), worker=worker)
            _on_stage.set(partial(self._write_stage, message))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        refusal = _refusal.get()
        if _is_tracked(message) and refusal is not None:
            error = refusal[:LONGEST_ERROR]
            self._write(message, state="refused", how="known", finished_at=self._clock(), error=error)
        elif _is_tracked(message) and exception is None:
            result_of = _answer.get()
            self._write(
                message, state="succeeded", how="known", finished_at=self._clock(), result=result_of and result_of()
            )
        _answer.set(None)
        _refusal.set(None)
        _on_stage.set(None)
        if self._unwritten:
            self._write_the_rest()

    def _write_stage(self, message: MessageProxy, number: int, total: int, activity: str) -> None:
        stage = [self._clock().isoformat(), number, total, activity]
        self._write(message, state="running", how="known", stage=stage)

    def before_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        self._write_the_rest()

    def after_dead_letter(self, broker: Broker, dead_letter: DeadLetter) -> None:
        """Record that a job became a dead letter, whether it failed, killed its workers or has no known actor."""
        if dead_letter.message_id is None:
            return
        from tasks.queue_ops.entries import facts_of

        owner = JobOwner(
            queue_of(dead_letter.queue_name), dead_letter.actor_name or "", facts_of(dead_letter.fields).pet_id
        )
        facts = {"finished_at": dead_letter.died_at, "error": dead_letter.error}
        self._record(dead_letter.message_id, owner, state="dead", how="known", **facts)


class Stats(Protocol):
    """A function that returns the state of a queue, such as ``RedisStreamsBroker.stats``."""

    def __call__(self, queue_name: str) -> QueueStats: ...


def status_of(record: JobRecord, stats: Stats, *, now: datetime) -> JobStatus:
    """Return the status of a job from its record. Until the job ends, its queue supplies the reason."""
    state, reason = _state_and_reason(record, stats, now)
    return JobStatus(
        job_id=record.job_id,
        state=state,
        queue=record.queue,
        actor=record.actor,
        reason=reason,
        attempts=record.attempts,
        pet_id=record.pet_id,
        enqueued_at=record.enqueued_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        due_at=record.due_at if state in ("delayed", "retrying") else None,
        result=record.result,
        failures=record.failures,
        stage=record.stage if state == "running" else None,
    )


def _state_and_reason(record: JobRecord, stats: Stats, now: datetime) -> tuple[JobState, str]:
    failed = f"attempt {record.attempts} failed: {record.error}; " if record.error else ""
    match record.state:
        case "succeeded":
            return "succeeded", f"attempt {record.attempts} succeeded"
        case "dead":
            return "dead", record.error or "became a dead letter"
        case "running":
            queue = stats(record.queue)
            if any(consumer.name == record.worker and consumer.is_alive for consumer in queue.consumers):
                return "running", f"attempt {record.attempts} {_how_it_runs(record, now)}"
            return "queued", f"its worker {record.worker} died; {_why_it_waits(queue)}"
        case "cancelled":
            return "cancelled", "was cancelled"
        case "refused":
            return "refused", f"{record.error}; nothing was changed"
        case "retrying":
            if record.due_at is not None and record.due_at > now:
                return "retrying", f"{failed}next attempt at {_clock_time(record.due_at)}"
            return "retrying", failed + _why_it_waits(stats(record.queue))
        case "delayed" | "queued":
            if record.due_at is not None and record.due_at > now:
                return "delayed", f"due at {_clock_time(record.due_at)}"
            return "queued", _why_it_waits(stats(record.queue))
        case _:
            assert_never(record.state)


def _how_it_runs(record: JobRecord, now: datetime) -> str:
    """Return where the job runs, with advice if it exceeds its time limit."""
    limit_s = limit_of_actor_ms(record.actor) / 1000
    runs_s = (now - record.started_at).total_seconds() if record.started_at is not None else 0.0
    if runs_s <= limit_s + LIMIT_GRACE_S:
        now_in = f": it {record.stage.activity}" if record.stage is not None else ""
        return f"is running in {record.worker}{now_in}"
    return (
        f"has run for {runs_s:.0f} s in {record.worker}; its time limit is {limit_s:.0f} s, so it hangs: end that "
        f"process, or run sploot-cluster queue rescue {record.queue} --consumer {record.worker} --even-if-alive"
    )


def _why_it_waits(queue: QueueStats) -> str:
    """Return why the job waits, in one sentence; the most important reason wins."""
    if queue.paused:
        return f"queue {queue.queue_name} is paused; resume it"
    if not any(consumer.is_alive for consumer in queue.consumers):
        return f"no worker takes jobs of queue {queue.queue_name}; start one: sploot-cluster worker"
    waits = f"{queue.undelivered} jobs wait in queue {queue.queue_name}, {queue.in_flight} are with workers"
    held_s = (queue.oldest_pending_idle_ms or 0) / 1000
    if held_s > LONGEST_LIMIT_MS / 1000 + LIMIT_GRACE_S:
        waits += (
            f"; the oldest has been with a worker for {held_s:.0f} s, beyond any time limit: sploot-cluster queue "
            f"status shows it"
        )
    return waits


def _stage(facts: Mapping[str, str]) -> JobStage | None:
    """Return the stage of the current attempt; that of an earlier attempt is outdated."""
    if "stage" not in facts:
        return None
    entered_at, number, total, activity = json.loads(facts["stage"])
    started_at = _time(facts.get("started_at"))
    is_outdated = started_at is not None and datetime.fromisoformat(entered_at) < started_at
    return None if is_outdated else JobStage(number, total, activity)


def _failures(facts: Mapping[str, str]) -> Sequence[FailedAttempt]:
    """Return the failed attempts, which a record keeps in separate fields."""
    numbers = sorted(int(name.removeprefix(FAILED)) for name in facts if name.startswith(FAILED))
    found = []
    for number in numbers:
        failed_at, error = json.loads(facts[f"{FAILED}{number}"])
        found.append(FailedAttempt(number, datetime.fromisoformat(failed_at), error))
    return tuple(found)


def _is_tracked(message: dramatiq.Message[Any] | MessageProxy) -> bool:
    return bool(message.options.get("tracked"))


def _stored(value: object) -> str | int:
    match value:
        case datetime():
            return value.isoformat()
        case str() | int():
            return value
        case _:
            return json.dumps(value)


def _time(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(stored)


def _clock_time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _last_line(traceback: str | None) -> str | None:
    """Return the last line of a traceback, which is the error itself."""
    return traceback.strip().rpartition("\n")[2][:LONGEST_ERROR] if traceback else None
