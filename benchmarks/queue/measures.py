"""Measurements of queues. Each starts with an empty server and new processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

import redis

from benchmarks.queue import adapters, producer, tally, worker
from benchmarks.queue.contestants import THREADS, Contestant, Measure
from benchmarks.queue.tally import Tallies
from benchmarks.records import ROOT, Values
from tasks.redis_access.embedded import ends_with_parent

START_TIMEOUT_S: Final = 30.0
BATCH: Final = 100


@dataclass(frozen=True, slots=True)
class Effort:
    """The duration and size of measurements; ``SMOKE`` only checks that everything runs."""

    drain_s: float = 3.0
    n_enqueued: int = 5_000
    n_pings: int = 300
    n_slow_pings: int = 30
    n_waiting: int = 20_000
    idle_s: float = 10.0
    redelivery_limit_s: float = 60.0


SMOKE: Final = Effort(
    drain_s=0.02, n_enqueued=100, n_pings=5, n_slow_pings=2, n_waiting=200, idle_s=0.5, redelivery_limit_s=5.0
)


class Bench:
    """A series of measurements of contestants, all on one server."""

    def __init__(self, url: str, *, effort: Effort, pin: bool, python_of: Callable[[str], Path]) -> None:
        """
        Args:
            pin: whether to keep each worker process on one core, because Python threads lose time when they move.
            python_of: returns the interpreter of an environment.
        """
        self.url, self.effort, self.pin, self._python_of = url, effort, pin, python_of
        self.client = redis.Redis.from_url(url)
        self._rates: dict[str, float] = {}

    def measure(self, contestant: Contestant, measure: Measure) -> Values:
        """Return the measured values, or ``{"failed": reason}`` if the contestant did not do the work."""
        self.client.flushall()
        self.client.config_resetstat()
        try:
            with tempfile.TemporaryDirectory(prefix="bench-") as directory:
                tallies = Tallies(Path(directory))
                tallies.close_gate()
                match measure:
                    case "drain-1":
                        return self._drain(contestant, tallies, n_processes=1)
                    case "drain-2":
                        return self._drain(contestant, tallies, n_processes=2)
                    case "enqueue":
                        return self._enqueue(contestant)
                    case "latency":
                        return self._latency(contestant, tallies)
                    case "memory":
                        return self._memory(contestant)
                    case "idle":
                        return self._idle(contestant, tallies)
                    case "redelivery":
                        return self._redelivery(contestant, tallies, stop_host=False)
                    case "host-loss":
                        return self._redelivery(contestant, tallies, stop_host=True)
        except Failed as error:
            return {"failed": str(error)}
        assert_never(measure)

    def _enqueue(self, contestant: Contestant) -> Values:
        n = self.effort.n_enqueued
        seconds, cpu_s = self._produce(contestant, "send", n)
        values = {"one_by_one_per_s": n / seconds, "one_by_one_cpu_us": 1e6 * cpu_s / n}
        self.client.flushall()
        if batches := self._produce(contestant, "batches", 4 * n, BATCH):
            seconds, cpu_s = batches
            values |= {"batches_per_s": 4 * n / seconds, "batches_cpu_us": 1e6 * cpu_s / (4 * n)}
        return values

    def _drain(self, contestant: Contestant, tallies: Tallies, *, n_processes: int) -> Values:
        rate = self._rates.get(contestant.name, contestant.drain_per_s)
        n = max(4 * THREADS * n_processes, int(rate * self.effort.drain_s * (1 if n_processes == 1 else 1.6)))
        in_memory = contestant.adapter.endswith(":memory")
        if not in_memory:
            self._produce(contestant, "fill", n, BATCH)
        environ = {adapters.N_JOBS: str(n)}
        with self._workers(contestant, tallies, n_processes, environ) as processes:
            _wait_for(lambda: tallies.n_at_work == n_processes, START_TIMEOUT_S, "not every worker began a job")
            cpu_before = [_cpu_s(process.pid) for process in processes]
            before = self._server_facts()
            started_ns = tallies.open_gate()
            _wait_for(lambda: tallies.n_done >= n, 20 * self.effort.drain_s + 30, f"did not drain {n} jobs")
            after = self._server_facts()
            cpu = [_cpu_s(process.pid) - start for process, start in zip(processes, cpu_before, strict=True)]
            last_ns = max(words[tally.LAST_NS] for words in tallies.read())
            seconds = (last_ns - started_ns) / 1e9
            time.sleep(min(1.0, self.effort.drain_s))
        per_s = n / seconds
        if n_processes == 1:
            self._rates[contestant.name] = per_s
        return {
            "n": n,
            "per_s": per_s,
            "worker_cpu_us": 1e6 * sum(cpu) / n,
            "redis_cpu_us": 1e6 * (after["cpu_s"] - before["cpu_s"]) / n,
            "commands": (after["commands"] - before["commands"]) / n,
            "round_trips": (after["round_trips"] - before["round_trips"]) / n,
            **self._left_behind(n),
        }

    def _latency(self, contestant: Contestant, tallies: Tallies) -> Values:
        tallies.open_gate()
        with self._workers(contestant, tallies, 1):
            environ = {producer.PINGS: str(tallies.directory)}
            # the first ping also waits for the worker to start
            self._produce(contestant, "ping", 3, 0.01, environ=environ)
            frequent = sorted(self._produce(contestant, "ping", self.effort.n_pings, 0.02, environ=environ))
            rare = self._produce(contestant, "ping", self.effort.n_slow_pings, 0.5, environ=environ)
        return {
            "p50_ms": statistics.median(frequent),
            "p99_ms": frequent[min(len(frequent) - 1, int(0.99 * len(frequent)))],
            "apart_p50_ms": statistics.median(rare),
        }

    def _memory(self, contestant: Contestant) -> Values:
        empty, n = self._used_memory(), self.effort.n_waiting
        self._produce(contestant, "fill", n, BATCH)
        return {"bytes_per_message": (self._used_memory() - empty) / n}

    def _idle(self, contestant: Contestant, tallies: Tallies) -> Values:
        tallies.open_gate()
        with self._workers(contestant, tallies, 1):
            self._produce(contestant, "ping", 1, 0.0, environ={producer.PINGS: str(tallies.directory)})
            time.sleep(min(2.0, self.effort.idle_s))
            before = self._server_facts()
            time.sleep(self.effort.idle_s)
            after = self._server_facts()
        return {
            "commands_per_s": (after["requests"] - before["requests"]) / self.effort.idle_s,
            "in_scripts_per_s": (after["commands"] - before["commands"]) / self.effort.idle_s,
        }

    def _redelivery(self, contestant: Contestant, tallies: Tallies, *, stop_host: bool) -> Values:
        """Measure the seconds from the death of a worker until its jobs run again in another worker."""
        tallies.open_gate()
        with self._workers(contestant, tallies, 1, {tally.IS_VICTIM: "1"}) as (victim,):
            self._produce(contestant, "hold", THREADS)
            _wait_for(lambda: bool(tallies.starts()), START_TIMEOUT_S, "the victim did not begin a job")
            time.sleep(0.5)
            held = {number for number, _, _ in tallies.starts()}
            victims = {pid for _, pid, _ in tallies.starts()}
            with self._workers(contestant, tallies, 1):
                # send several jobs, because the victim may have prefetched the first ones
                for _ in range(10):
                    if tallies.n_done:
                        break
                    self._produce(contestant, "send", 1)
                    time.sleep(0.5)
                lost_ns = time.monotonic_ns()
                os.killpg(victim.pid, signal.SIGSTOP if stop_host else signal.SIGKILL)

                def back() -> set[int]:
                    return {number for number, pid, _ in tallies.starts() if number in held and pid not in victims}

                limit_s = self.effort.redelivery_limit_s
                gives_up_at = time.monotonic() + limit_s
                while back() != held and time.monotonic() < gives_up_at:
                    time.sleep(0.01)
                if back() != held:
                    return {"seconds": None, "limit_s": limit_s, "back": len(back()), "held": len(held)}
                ends = [ns for number, pid, ns in tallies.starts() if number in held and pid not in victims]
                return {
                    "seconds": (max(ends) - lost_ns) / 1e9,
                    "limit_s": limit_s,
                    "back": len(held),
                    "held": len(held),
                }

    def _produce(self, contestant: Contestant, *verb: str | float, environ: Mapping[str, str] | None = None) -> Any:
        command = [
            str(self._python_of(contestant.environment)),
            "-m",
            producer.__name__,
            contestant.adapter,
            *(str(part) for part in verb),
        ]
        done = subprocess.run(
            command, env=self._environ(contestant, environ or {}), cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(f"{' '.join(map(str, verb))}: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
        return json.loads(done.stdout.splitlines()[-1])

    @contextlib.contextmanager
    def _workers(
        self, contestant: Contestant, tallies: Tallies, n: int, environ: Mapping[str, str] | None = None
    ) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Start worker processes, each the leader of its own process group; end the groups when the block ends."""
        cores = sorted(os.sched_getaffinity(0)) if self.pin else []
        python = self._python_of(contestant.environment)
        processes = []
        with (tallies.directory / "workers.log").open("ab") as log:
            for number in range(n):
                own = dict(environ or {}) | {tally.DIRECTORY: str(tallies.directory)}
                if cores:
                    own[worker.CORE] = str(cores[number % len(cores)])
                processes.append(
                    subprocess.Popen(
                        [python, "-m", worker.__name__, contestant.adapter],
                        env=self._environ(contestant, own),
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=ends_with_parent(),
                    )
                )
        try:
            yield processes
        except Failed as error:
            last_words = (tallies.directory / "workers.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise Failed(" / ".join([str(error), *last_words])) from error
        finally:
            for process in processes:
                _end(process)

    def _environ(self, contestant: Contestant, more: Mapping[str, str]) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("dramatiq_")},
            "PYTHONPATH": str(ROOT),
            adapters.URL: self.url,
            adapters.THREADS: str(THREADS),
            **contestant.environ,
            **more,
        }

    def _used_memory(self) -> int:
        # wait, because clients that have just ended still have buffers on the server
        time.sleep(min(0.3, self.effort.idle_s))
        info: Any = self.client.info("memory")
        return int(info["used_memory"])

    def _left_behind(self, n: int) -> Values:
        """Return the memory of the remaining keys, in total and per finished job, and the number of these keys."""
        keys: Any = self.client.keys()
        sizes: Any = [self.client.memory_usage(key, samples=0) for key in keys]
        # a key that has expired since the listing takes nothing
        n_bytes = sum(size or 0 for size in sizes)
        return {"left_bytes": n_bytes, "left_bytes_per_message": n_bytes / n, "left_keys": len(keys)}

    def _server_facts(self) -> dict[str, float]:
        """Return the server's totals of commands (including those in scripts), requests, round trips and CPU time."""
        info: Any = self.client.info("all")
        calls = {
            name.removeprefix("cmdstat_"): facts["calls"] for name, facts in info.items() if name.startswith("cmdstat_")
        }
        return {
            "commands": sum(n for name, n in calls.items() if name != "info"),
            "requests": float(info["total_reads_processed"]),
            # a client waits once for all commands that it sends at once, so each write of replies is one round trip
            "round_trips": float(info["total_writes_processed"]),
            "cpu_s": float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
        }


class Failed(Exception):
    """Raised when a contestant does not do the work to be measured."""


def _wait_for(is_so: Callable[[], bool], within_s: float, otherwise: str) -> None:
    gives_up_at = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > gives_up_at:
            raise Failed(f"{otherwise} within {within_s:.0f} s")
        time.sleep(0.005)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate the process, then kill its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cpu_s(pid: int) -> float:
    """Return the user and system time, in seconds, of a process and of the children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
