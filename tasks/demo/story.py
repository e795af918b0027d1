"""The main scenario, run once from start to end on real processes. It checks the guarantees during the run.

Each part, called a chapter, does one thing that an owner, a labeller or an operator would see, and records the
guarantee that it checks and whether the guarantee was kept. In code, a guarantee is a :class:`Promise`. Checks read the
HTTP API, the queue and the logs; they never rely only on the data that was sent.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from broker import RedisStreamsBroker
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP, QUEUES, stream_of
from tasks.demo.api import Api
from tasks.demo.sample import DIGITS_MODEL, Album
from tasks.demo.stack import Stack, answers, until

EVENTS_PER_S: Final = 150.0  # about a third of the throughput of two cores, so that the times shown include no queueing
FREEZE_AT, POISON_AT = 0.35, 0.6  # fractions of the items, after which a worker is frozen and a poisoned event is sent
POISON_ID: Final = "poisoned-picture.png"
FREEZE_S: Final = 0.3  # after this time, everything that a process sent before it was frozen has reached Redis
OLDEST_SAMPLE_S: Final = 15.0  # the maximum age of a sample, which the periodic actors guarantee
PATIENCE_S: Final = 60.0  # timeout of a single step on a loaded machine; no step should take more than a few seconds


@dataclass(frozen=True, slots=True)
class Promise:
    """A guarantee that the demo checks, and what the demo observed."""

    text: str
    is_kept: bool
    seen: str


@dataclass(frozen=True, slots=True)
class Merged:
    """A labeller's merge, with the items of both clusters before the merge."""

    pet_id: int
    into: int
    media: frozenset[str]


@dataclass(frozen=True, slots=True)
class SplitOff:
    """A labeller's split: the items moved and the items that stayed."""

    pet_id: int
    moved: frozenset[str]
    remaining: frozenset[str]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A suspended worker process, to be killed once it holds jobs.

    Attributes:
        since_s: when it was suspended, on the monotonic clock.
        recovered: how many events had been recovered from all processes until then.
    """

    name: str
    pid: int
    since_s: float
    recovered: int


@dataclass(slots=True)
class Seen:
    """What the story observed, for the summary."""

    promises: list[Promise] = field(default_factory=list)
    clusters: dict[int, dict[str, int]] = field(default_factory=dict)  # pet id -> item id -> cluster id, -1 = noise
    corrected: dict[int, set[str]] = field(default_factory=dict)
    merges: list[Merged] = field(default_factory=list)
    splits: list[SplitOff] = field(default_factory=list)
    constraints: dict[int, str] = field(default_factory=dict)  # pet id -> constraints, as "<kept> of <total>"
    jobs: Counter[str] = field(default_factory=Counter)
    ages_ms: list[float] = field(default_factory=list)
    ingest_s: float = 0.0

    def promise(self, text: str, is_kept: bool, seen: object) -> None:
        self.promises.append(Promise(text, is_kept, str(seen)))

    @property
    def corrections(self) -> list[Merged | SplitOff]:
        return [*self.merges, *self.splits]

    @property
    def is_good(self) -> bool:
        return bool(self.promises) and all(promise.is_kept for promise in self.promises)

    def age_quantile_ms(self, q: float) -> float:
        return float(np.quantile(self.ages_ms, q)) if self.ages_ms else float("nan")


class Story:
    """The chapters in order; :meth:`tell` runs all of them.

    Args:
        on_chapter: called before each chapter, with its name.
    """

    def __init__(
        self,
        *,
        stack: Stack,
        albums: Sequence[Album],
        redis_url: str,
        console: Console,
        on_chapter: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.stack, self.albums, self.console, self.on_chapter = stack, albums, console, on_chapter
        self.redis = redis.Redis.from_url(redis_url)
        self.broker = RedisStreamsBroker(client=self.redis, group=GROUP, middleware=[])
        self.tasks = ClusterTasks(client=self.redis)
        self.api = Api(stack.http)
        self.seen = Seen()
        self._frozen: Frozen | None = None

    def tell(self) -> Seen:
        """Run every chapter, and return what was observed, including whether each guarantee was kept."""
        for chapter in (self.open, self.ingest, self.settle, self.correct, self.recluster, self.check):
            self.on_chapter(chapter.__name__)
            chapter()
        return self.seen

    def close(self) -> None:
        self.broker.close()
        self.redis.close()

    # -- chapters ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Wait for the worker pods, the scheduler's broker and the server."""
        addresses = [f"{self.stack.http}/readyz", *self.stack.metrics]
        with self.console.status("starting two worker pods, the scheduler and the server"):
            up = _wait_until_all_answer(addresses)
        self.seen.promise("server and workers answer", up == addresses, f"{len(up)} of {len(addresses)} URLs")

    def ingest(self) -> None:
        """Send every item at a steady rate. While sending, kill a worker process and send a poisoned event."""
        total = sum(len(album.media_ids) for album in self.albums)
        steps = {round(total * FREEZE_AT): self._freeze_a_worker, round(total * POISON_AT): self._send_poison}
        start = time.monotonic()
        with _progress(self.console) as progress:
            sent_bar = progress.add_task("events sent", total=total)
            done_bar = progress.add_task("items assigned", total=total)
            for number, (album, row) in enumerate(_order_of_arrival(self.albums), start=1):
                self._send(album, row)
                if step := steps.get(number):
                    progress.console.print(step())
                self._kill_frozen_if_it_holds_events(progress.console)
                progress.update(sent_bar, completed=number)
                if number % 25 == 0:
                    progress.update(done_bar, completed=number - self._unfinished(EMBEDDING_INGESTED))
                    time.sleep(max(0.0, start + number / EVENTS_PER_S - time.monotonic()))
            for _ in until(PATIENCE_S):
                # a slow machine may have sent the rest within less than FREEZE_S
                self._kill_frozen_if_it_holds_events(progress.console)
                left = self._unfinished(EMBEDDING_INGESTED)
                progress.update(done_bar, completed=total - min(left, total))
                if not left:
                    break
        self.seen.ingest_s = time.monotonic() - start
        if self._frozen is not None:
            self._thaw()

    def settle(self) -> None:
        """Wait for the reclusters that growth requested, then recluster every pet as in the runbook."""
        self._wait_until_idle("reclusters requested by growth")
        for album in self.albums:
            self._run(self.api.recluster(album.pet_id))

    def correct(self) -> None:
        """Correct as a labeller: name each pet, merge two clusters of one look, and split off items of another look."""
        for album in self.albums:
            self._run(self.api.name_pet(album.pet_id, album.name))
            truth = dict(zip(album.media_ids, album.truth.tolist(), strict=True))
            clusters = self.api.clusters(album.pet_id)
            if pair := _same_look(clusters, truth):
                before = frozenset(clusters[pair[0]] + clusters[pair[1]])
                if self._run(self.api.merge(album.pet_id, list(pair), into=pair[0])):
                    self.seen.merges.append(Merged(album.pet_id, pair[0], before))
                clusters = self.api.clusters(album.pet_id)
                clusters.pop(pair[0], None)  # do not split this cluster, because a newer split would override the merge
            if mixed := _strangers(clusters, truth):
                cluster, strangers = mixed
                rest = frozenset(clusters[cluster]) - strangers
                if self._run(self.api.split(album.pet_id, cluster, sorted(strangers))):
                    self.seen.splits.append(SplitOff(album.pet_id, strangers, rest))
        for merge in self.seen.merges:
            self.seen.corrected.setdefault(merge.pet_id, set()).update(merge.media)
        for split in self.seen.splits:
            self.seen.corrected.setdefault(split.pet_id, set()).update(split.moved)
        n_merges, n_splits = len(self.seen.merges), len(self.seen.splits)
        self.seen.promise(
            "labellers merged and split clusters",
            n_merges > 0 and n_splits > 0,
            f"{n_merges} merges, {n_splits} splits",
        )

    def recluster(self) -> None:
        """Recluster every pet again, and check that corrections hold."""
        for album in self.albums:
            job = self._run(self.api.recluster(album.pet_id))
            result = job.get("result") or {}
            kept, of = result.get("constraints_kept"), result.get("constraints")
            self.seen.constraints[album.pet_id] = f"{kept} of {of}"
            if kept != of or kept is None:
                self.seen.promise(f"recluster of pet {album.pet_id} keeps every constraint", False, f"{kept} of {of}")
        self._wait_until_idle("the last jobs")

    def check(self) -> None:
        """Check every guarantee once more."""
        for album in self.albums:
            self.seen.clusters[album.pet_id] = self.api.memberships(album.pet_id)
        self._check_media()
        self._check_corrections()
        self._check_poison()
        self._check_metrics()
        self._check_queues()
        self._read_logs()

    # -- steps on the way ----------------------------------------------------------------------------------------

    def _send(self, album: Album, row: int) -> None:
        media_id, vector = album.media_ids[row], album.vectors[row]
        if album.model == DIGITS_MODEL:
            # a plain XADD of a flat event, as a producer in any language would send it
            self.redis.xadd(stream_of(EMBEDDING_INGESTED), flat_event(album, media_id, vector.tobytes()))
        else:
            self.tasks.ingest(pet_id=album.pet_id, media_id=media_id, model=album.model, embedding=vector)

    def _freeze_a_worker(self) -> str:
        """Suspend the worker process that holds the most jobs (SIGSTOP). It keeps jobs that it receives later."""
        consumers = self.broker.stats(EMBEDDING_INGESTED).consumers
        name = max((one for one in consumers if one.is_alive), key=lambda one: one.pending).name
        pid = int(name.split(":")[1])
        recovered = self._recovered()
        os.kill(pid, signal.SIGSTOP)
        self._frozen = Frozen(name, pid, time.monotonic(), recovered)
        return f"  worker process {pid} is stopped until it holds events"

    def _kill_frozen_if_it_holds_events(self, console: Console) -> None:
        """Kill the frozen process with SIGKILL, and wait until other processes have taken over its events.

        Do nothing if no process is frozen, if it was frozen so recently that Redis may not have received everything
        that it sent, or if it holds no events.
        """
        frozen = self._frozen
        if frozen is None or time.monotonic() - frozen.since_s < FREEZE_S:
            return
        # On a slow machine, its lease may already have expired. Read this count first, so that an event that is taken
        # over between the two reads is not counted twice.
        held = self._recovered() - frozen.recovered + self._pending_of(frozen.name)
        if not held:
            return
        self._frozen = None
        os.kill(frozen.pid, signal.SIGKILL)
        for _ in until(PATIENCE_S):
            if not self._pending_of(frozen.name):
                break
        recovered = self._recovered() - frozen.recovered
        self.seen.promise(
            "a killed worker loses nothing",
            recovered >= held,
            f"held {held} events, {recovered} ran elsewhere",
        )
        console.print(f"  [red]kill -9[/]: it held {held} events; {recovered} of them now run elsewhere")

    def _thaw(self) -> None:
        """Resume the frozen process, because it never held an event, and record the guarantee as broken."""
        assert self._frozen is not None
        os.kill(self._frozen.pid, signal.SIGCONT)
        self.seen.promise("a killed worker loses nothing", False, "the process to be killed never held an event")

    def _recovered(self) -> int:
        return self.broker.counters(EMBEDDING_INGESTED).get("recovered", 0)

    def _pending_of(self, name: str) -> int:
        consumers = self.broker.stats(EMBEDDING_INGESTED).consumers
        return sum(consumer.pending for consumer in consumers if consumer.name == name)

    def _send_poison(self) -> str:
        """Send an event with a NaN in its embedding."""
        album = self.albums[0]
        vector = album.vectors[0].copy()
        vector[3] = np.nan
        self.redis.xadd(stream_of(EMBEDDING_INGESTED), flat_event(album, POISON_ID, vector.tobytes()))
        return f"  [red]poisoned event[/] sent: {POISON_ID} has a NaN in its embedding"

    def _run(self, job_id: str) -> dict[str, Any]:
        """Wait for a job to end and return its status. If it did not succeed, record that and return an empty dict."""
        status: dict[str, Any] = {}
        for _ in until(PATIENCE_S):
            status = self.api.job(job_id)
            if status["state"] in ("succeeded", "dead", "cancelled", "refused"):
                break
        if status.get("state") != "succeeded":
            self.seen.promise(f"job {job_id} succeeds", False, f"{status.get('state')}: {status.get('reason')}")
            return {}
        return status

    def _unfinished(self, queue: str) -> int:
        stats = self.broker.stats(queue)
        return stats.waiting + stats.in_flight + stats.delayed

    def _wait_until_idle(self, what: str) -> None:
        with self.console.status(f"waiting for {what}"):
            for _ in until(PATIENCE_S):
                if not any(map(self._unfinished, (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER))):
                    return

    # -- checks --------------------------------------------------------------------------------------------------

    def _check_media(self) -> None:
        total = sum(len(album.media_ids) for album in self.albums)
        found = sum(len(members) for members in self.seen.clusters.values())
        exact = all(
            sorted(self.seen.clusters[album.pet_id]) == sorted(album.media_ids)
            and self.api.n_listed(album.pet_id) == len(album.media_ids)
            for album in self.albums
        )
        self.seen.promise("every item is in exactly one place", exact, f"{found} of {total} items")

    def _check_corrections(self) -> None:
        merges = [m for m in self.seen.merges if {self.seen.clusters[m.pet_id][x] for x in m.media} == {m.into}]
        splits = [s for s in self.seen.splits if self._is_apart(s)]
        self.seen.promise(
            "merges survived the recluster, under the chosen id",
            len(merges) == len(self.seen.merges),
            f"{len(merges)} of {len(self.seen.merges)}",
        )
        self.seen.promise(
            "splits survived the recluster",
            len(splits) == len(self.seen.splits),
            f"{len(splits)} of {len(self.seen.splits)}",
        )

    def _is_apart(self, split: SplitOff) -> bool:
        where = self.seen.clusters[split.pet_id]
        moved = {where[item] for item in split.moved}
        return len(moved) == 1 and -1 not in moved and moved.isdisjoint(where[item] for item in split.remaining)

    def _check_poison(self) -> None:
        dead_letters = [dead_letter for queue in QUEUES for dead_letter in self.broker.dead_letters(queue).list()]
        texts = [f"{dead_letter.field}: {dead_letter.error}" for dead_letter in dead_letters]
        named = [dead_letter for dead_letter in dead_letters if dead_letter.field == "embedding" and dead_letter.hint]
        self.seen.promise(
            "the poisoned event, and nothing else, is a dead letter that names field and hint",
            len(dead_letters) == len(named) == 1,
            "; ".join(texts) or "no dead letter",
        )

    def _check_metrics(self) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        samples: Counter[str] = Counter()
        sampled_at: list[float] = []
        # the pod of the killed process may still be starting
        for address in _wait_until_all_answer(self.stack.metrics):
            for family in text_string_to_metric_families(self.api.get_text(address)):
                for sample in family.samples:
                    if sample.name == "cluster_jobs_total":
                        samples[sample.labels["outcome"]] += int(sample.value)
                    if sample.name == "media_cluster_backlog_sample_timestamp_seconds":
                        sampled_at.append(sample.value)
                    samples[sample.name] += 1
        age_s = time.time() - min(sampled_at, default=0)
        complete = samples["success"] > 0 and samples["invalid"] == 1 and samples["media_cluster_pending_jobs"] > 0
        complete = complete and age_s < OLDEST_SAMPLE_S and len(sampled_at) == len(self.stack.metrics)
        seen = (
            f"success {samples['success']}, invalid {samples['invalid']} since the workers started; "
            f"queues sampled {age_s:.0f} s ago"
        )
        self.seen.promise("/metrics shows the jobs and a recent sample", complete, seen)

    def _check_queues(self) -> None:
        left = {queue: self._unfinished(queue) for queue in (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER)}
        summary = self.redis.xpending(stream_of(EMBEDDING_INGESTED), GROUP)
        for queue in (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER):
            counters = self.broker.counters(queue)
            self.seen.jobs["done"] += counters.get("acked", 0)
            self.seen.jobs["retried"] += counters.get("retried", 0)
            self.seen.jobs["recovered"] += counters.get("recovered", 0)
            self.seen.jobs["dead"] += counters.get("dead", 0)
        self.seen.promise(
            "no job is left waiting",
            not any(left.values()),
            f"{sum(left.values())} jobs, XPENDING {summary['pending']}",
        )

    def _read_logs(self) -> None:
        """Read the times from event to committed assignment from the workers' logs."""
        for line in _json_lines(self.stack.worker_logs):
            if line.get("actor") == "cluster_embedding" and line.get("outcome") == "success":
                self.seen.ages_ms.append(float(line["age_ms"]))
        total = sum(len(album.media_ids) for album in self.albums)
        enough = len(self.seen.ages_ms) >= 0.95 * total  # the last lines of the killed process are lost
        self.seen.promise("workers log each job as JSON", enough, f"{len(self.seen.ages_ms)} lines for {total} items")


def _wait_until_all_answer(addresses: Sequence[str]) -> list[str]:
    """Wait up to ``PATIENCE_S`` for all URLs to answer, and return those that do."""
    for _ in until(PATIENCE_S):
        if all(answers(address) for address in addresses):
            break
    return [address for address in addresses if answers(address)]


def flat_event(album: Album, media_id: str, embedding: bytes) -> dict[Any, Any]:
    """Return an event of the album's pet in the form that a producer in any language writes."""
    # this type is what redis-py accepts, because its dict type is invariant
    return {
        "schema": "embedding.ingested/1",
        "event_id": f"demo-{album.pet_id}-{media_id}",
        "pet_id": str(album.pet_id),
        "media_id": media_id,
        "model": album.model,
        "dim": str(album.dim),
        "encoding": "f32le",
        "embedding": embedding,
    }


def _order_of_arrival(albums: Sequence[Album]) -> Iterable[tuple[Album, int]]:
    """Return arrivals that fill all albums in parallel, each in its own order. Deterministic."""
    arrivals = [(row / len(album.media_ids), album, row) for album in albums for row in range(len(album.media_ids))]
    arrivals.sort(key=lambda arrival: (arrival[0], arrival[1].pet_id))
    return [(album, row) for _, album, row in arrivals]


def _same_look(clusters: Mapping[int, Sequence[str]], truth: Mapping[str, int]) -> tuple[int, int] | None:
    """Return the two largest clusters that mostly show the same look, larger first, or None without such a pair."""
    looks: dict[int, list[int]] = {}
    for cluster in sorted(clusters, key=lambda c: (-len(clusters[c]), c)):
        looks.setdefault(statistics.mode(truth[item] for item in clusters[cluster]), []).append(cluster)
    torn = [ids for ids in looks.values() if len(ids) > 1]
    return (torn[0][0], torn[0][1]) if torn else None


def _strangers(clusters: Mapping[int, Sequence[str]], truth: Mapping[str, int]) -> tuple[int, frozenset[str]] | None:
    """Return the cluster with the most items of a second look, and those items, or None if all have one look."""
    best: tuple[int, frozenset[str]] | None = None
    for cluster, media in clusters.items():
        looks = Counter(truth[item] for item in media).most_common(2)
        if len(looks) == 2 and (best is None or looks[1][1] > len(best[1])):
            best = cluster, frozenset(item for item in media if truth[item] == looks[1][0])
    return best


def _json_lines(logs: Iterable[Path]) -> Iterable[dict[str, Any]]:
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                yield json.loads(line)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<15}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
