"""Measurements of the main job: events per second with a backlog, and latency of events at half that load."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis

from benchmarks.pipeline import stamps
from benchmarks.pipeline.pets import Album, World, send
from benchmarks.records import ROOT, Values
from broker import RedisStreamsBroker
from broker.sharding.shards import shard_name
from sploot_cluster.store.redis import RedisPetStore
from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.redis_access.embedded import ends_with_parent
from tasks.shards import SHARDED

START_TIMEOUT_S: Final = 60.0

# Maximum growth of the pets, as a share of their size. If they grew more, they are recreated before the next
# measurement, because the cost of an arrival depends on the size of its pet.
MOST_GROWTH: Final = 0.1
# Number of random events per pet and process for warming up: after six, a process has seen all pets except one in 400.
VISITS_TO_BE_WARM: Final = 6
# Settings that suppress reclusters: a thousand arrivals a second on a hundred pets would request far more of them than
# real uploads do. Some measurements leave them on; benchmarks.density measures a recluster by itself.
NO_RECLUSTERS: Final = {"SPLOOT_CLUSTERING_GROWTH_RATIO": "1000", "SPLOOT_CLUSTERING_DRIFT_MIN": "1000000"}


@dataclass(frozen=True, slots=True)
class Effort:
    """The duration of a measurement, and the number of threads per worker process."""

    seconds: float = 10.0
    threads: int = 8


@dataclass(frozen=True, slots=True)
class Setup:
    """The configuration of the workers and their queue.

    Attributes:
        batch_size: the setting ``SPLOOT_BATCH_SIZE``; None: the default.
        n_shards: number of shards of the queue.
        has_reclusters: whether pets request reclusters.
    """

    batch_size: int | None = None
    n_shards: int = 1
    has_reclusters: bool = False


USUAL: Final = Setup()


class Failed(Exception):
    """Raised when the workers fail to do the work that is to be measured."""


class Bench:
    """A series of measurements on one server, with one set of pets at a time."""

    def __init__(self, url: str, *, effort: Effort) -> None:
        self.url, self.effort = url, effort
        self.client = redis.Redis.from_url(url)
        self._world = World()
        self._album: Album | None = None
        self._streams: tuple[str, ...] = ()
        self._n_sent = 0

    def throughput(
        self,
        album: Album,
        *,
        n_processes: int,
        backlog: int,
        traffic: str,
        is_warm: bool,
        setup: Setup = USUAL,
    ) -> Values:
        """Measure the rate and the cost per event while a backlog, of ``backlog`` events at the start, never runs out.

        The cost includes the reclusters that the setup allows.
        """
        self._populate(album, setup.n_shards)
        self._send(self.client, album, backlog, traffic)
        with (
            _directory() as directory,
            self._workers(directory, n_processes, setup),
            self._feeder(album, traffic, keep_waiting=min(backlog, 2_000)),
        ):
            # wait until every process has loaded its engine and seen its first pets
            _wait_for(
                lambda: stamps.n_processes_at_work(directory) == n_processes, "not every worker committed an event"
            )
            if is_warm:
                n_seen = VISITS_TO_BE_WARM * album.n_pets * n_processes
                _wait_for(lambda: stamps.n_noted(directory) >= n_seen, f"did not process {n_seen} events to warm up")
            time.sleep(self.effort.seconds / 5)
            return self._observe(directory)

    def latency(self, album: Album, *, n_processes: int, per_s: float, traffic: str, setup: Setup = USUAL) -> Values:
        """Measure the milliseconds from XADD to the reply to the commit, at ``per_s`` events/s without a backlog."""
        self._populate(album, setup.n_shards)
        with _directory() as directory, self._workers(directory, n_processes, setup):
            warm_up = max(1, int(2 * per_s))
            self._send(self.client, album, warm_up, traffic, per_s=per_s)
            _wait_for(lambda: stamps.n_noted(directory) >= warm_up, "did not process the events to warm up")
            n = max(2, int(self.effort.seconds * per_s))
            began_ns = time.monotonic_ns()
            self._send(self.client, album, n, traffic, per_s=per_s)
            _wait_for(lambda: stamps.n_noted(directory) >= warm_up + n, f"did not process {n} events at {per_s:.0f}/s")
            pairs = stamps.read(directory)
        pairs = pairs[pairs[:, 0] >= began_ns]
        ms = (pairs[:, 1] - pairs[:, 0]) / 1e6
        p50, p95, p99 = np.percentile(ms, [50, 95, 99])
        sent_s = (pairs[:, 0].max() - pairs[:, 0].min()) / 1e9
        return {"n": len(ms), "sent_per_s": len(ms) / sent_s, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}

    def _observe(self, directory: Path) -> Values:
        cpu_before, before = _workers_cpu_s(), self._server_facts()
        n_before, began = stamps.n_noted(directory), time.monotonic()
        time.sleep(self.effort.seconds)
        # on a busy machine, there may be no event in the short duration of a smoke test
        _wait_for(lambda: stamps.n_noted(directory) > n_before, "did not commit another event")
        seconds, n = time.monotonic() - began, stamps.n_noted(directory) - n_before
        cpu, after = _workers_cpu_s() - cpu_before, self._server_facts()
        waiting = self._n_waiting(self.client)
        # `commands` excludes the feeder's commands, on average one XADD per committed event
        return {
            "n": n,
            "per_s": n / seconds,
            "worker_cpu_us": 1e6 * cpu / n,
            "redis_cpu_us": 1e6 * (after["cpu_s"] - before["cpu_s"]) / n,
            "commands": (after["commands"] - before["commands"]) / n,
            "round_trips": (after["round_trips"] - before["round_trips"]) / n,
            "bytes_in": (after["bytes_in"] - before["bytes_in"]) / n,
            "bytes_out": (after["bytes_out"] - before["bytes_out"]) / n,
            "still_waiting": waiting,
        }

    def _populate(self, album: Album, n_shards: int) -> None:
        """Prepare the pets, and an empty queue with this number of shards."""
        is_fit = (self._album, len(self._streams)) == (album, n_shards)
        if is_fit and self._n_sent < MOST_GROWTH * sum(album.sizes()):
            # remove the events that an earlier measurement left in the queue
            self.client.unlink(*self._streams)
            return
        self.client.flushall()
        self._world.populate(RedisPetStore(self.client), album)
        self._album, self._n_sent = album, 0
        self._streams = tuple(stream_of(shard_name(EMBEDDING_INGESTED, number)) for number in range(n_shards))
        if n_shards > 1:
            broker = RedisStreamsBroker(client=self.client, middleware=[], group=GROUP, sharded=SHARDED)
            broker.set_shards(EMBEDDING_INGESTED, n_shards)
            broker.close()

    def _n_waiting(self, client: redis.Redis) -> int:
        return sum(int(client.xlen(stream)) for stream in self._streams)

    def _send(self, client: redis.Redis, album: Album, n: int, traffic: str, *, per_s: float | None = None) -> None:
        events = self._world.events(album, n, traffic=traffic)
        self._n_sent += send(client, events, streams=self._streams, per_s=per_s)

    @contextlib.contextmanager
    def _feeder(self, album: Album, traffic: str, *, keep_waiting: int) -> Iterator[None]:
        """Keep at least ``keep_waiting`` events waiting by adding events whenever there are fewer."""
        ended = threading.Event()
        client = redis.Redis.from_url(self.url)

        def feed() -> None:
            while not ended.wait(0.02):
                missing = keep_waiting - self._n_waiting(client)
                if missing > 0:
                    self._send(client, album, missing, traffic)

        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextlib.contextmanager
    def _workers(self, directory: Path, n_processes: int, setup: Setup) -> Iterator[None]:
        command = [sys.executable, "-m", "dramatiq", "benchmarks.pipeline.worker"]
        command += ["--processes", str(n_processes), "--threads", str(self.effort.threads)]
        environ = dict(os.environ) | {
            "REDIS_URL": self.url,
            "WORKER_METRICS_PORT": "0",
            **({} if setup.has_reclusters else NO_RECLUSTERS),
            stamps.DIRECTORY: str(directory),
            "PYTHONPATH": str(ROOT),
        }
        if setup.batch_size is not None:
            environ["SPLOOT_BATCH_SIZE"] = str(setup.batch_size)
        log = directory / "workers.log"
        with log.open("wb") as output:
            master = subprocess.Popen(
                command,
                env=environ,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=ends_with_parent(),
            )
        _masters.append(master.pid)
        try:
            yield
        except Failed as error:
            last_words = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Failed(" / ".join([str(error), *last_words])) from error
        finally:
            _masters.remove(master.pid)
            master.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                master.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(master.pid, signal.SIGKILL)
            master.wait()

    def _server_facts(self) -> dict[str, float]:
        info: Any = self.client.info("all")
        calls = {name: facts["calls"] for name, facts in info.items() if name.startswith("cmdstat_")}
        return {
            "commands": sum(calls.values()) - calls.get("cmdstat_xadd", 0) - calls.get("cmdstat_xlen", 0),
            "round_trips": float(info["total_writes_processed"]),
            "bytes_in": float(info["total_net_input_bytes"]),
            "bytes_out": float(info["total_net_output_bytes"]),
            "cpu_s": float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
        }


_masters: Final[list[int]] = []


def _workers_cpu_s() -> float:
    """Return the user and system time, in seconds, of all living descendants of the worker masters."""
    parents, times = {}, {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                parents[int(directory.name)] = int(fields[1])
                times[int(directory.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_ours(pid: int) -> bool:
        while pid not in _masters:
            pid = parents.get(pid, 0)
            if pid <= 1:
                return False
        return True

    return sum(seconds for pid, seconds in times.items() if is_ours(pid))


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        yield Path(directory)


def _wait_for(is_so: Callable[[], bool], otherwise: str) -> None:
    gives_up_at = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        if time.monotonic() > gives_up_at:
            raise Failed(f"{otherwise} within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.01)
