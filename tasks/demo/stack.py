"""The demo's processes: worker pods, scheduler and HTTP server, each with its own log.

They are the stock commands that an operator would run. Like Kubernetes, the stack restarts a pod that ends
unexpectedly: Dramatiq's master stops when one of its worker processes dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.redis_access.embedded import ends_with_parent

POLL_S = 0.1
DRAIN_TIMEOUT_MS = 20_000
STOP_WITHIN_S = DRAIN_TIMEOUT_MS / 1000 + 5
BOOT_TIMEOUT_MS = 60_000


class Pod:
    """One supervised command. ``log`` collects the output of all its runs."""

    def __init__(self, name: str, command: list[str], *, environ: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self._command, self._environ = command, dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = False
        self._lock = threading.Lock()  # prevents a stop or start while the supervisor handles an ended command
        self.restarts = 0

    def start(self) -> None:
        """Start the command unless it is running. It is restarted whenever it ends, until :meth:`ask_to_stop`."""
        with self._lock:
            self._is_wanted = True
            if self._process is None or self._process.poll() is not None:
                self._spawn()

    def keep_up(self) -> None:
        """Restart the command if it ended unexpectedly; called by the stack's supervisor."""
        with self._lock:
            if self._is_wanted and self._process is not None and self._process.poll() is not None:
                self.restarts += 1
                self._spawn()

    def ask_to_stop(self) -> None:
        """Send SIGTERM: a worker drains, other processes end."""
        with self._lock:
            self._is_wanted = False
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL to the command and its children, as the kernel does when memory runs out."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is not None and self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code after :meth:`ask_to_stop`; kill the command if it takes too long."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()

    def _spawn(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # a separate process group, so that Ctrl-C reaches only the demo, which then lets all pods drain
                start_new_session=True,
                preexec_fn=ends_with_parent(),
            )


class Pods:
    """Pods that start at the same time, are kept running, and end one group after another.

    Args:
        groups: groups of pods in the order in which they end; the pods of one group end at the same time.
        stop_within_s: how long each pod may drain.
    """

    def __init__(self, *groups: Sequence[Pod], stop_within_s: float) -> None:
        self._groups, self._stop_within_s = groups, stop_within_s
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        for pod in self._each():
            pod.start()
        self._supervisor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._supervisor.join()
        for group in self._groups:
            stop(group, self._stop_within_s)

    def _supervise(self) -> None:
        while not self._stopping.wait(POLL_S):
            for pod in self._each():
                pod.keep_up()

    def _each(self) -> Iterator[Pod]:
        return chain.from_iterable(self._groups)


def stop(pods: Sequence[Pod], within_s: float) -> None:
    """Let all pods drain and end; they are not restarted."""
    for pod in pods:
        pod.ask_to_stop()
    for pod in pods:
        pod.wait(timeout_s=within_s)


class Stack:
    """Two worker pods, the scheduler and the server on one Redis.

    Attributes:
        http: base URL of the HTTP API.
        metrics: URLs of the workers' /metrics.
        own_environ: the variables, besides ``REDIS_URL``, for a worker that is started by hand in place of the first
            pod, or for a scheduler or a server.
    """

    def __init__(
        self,
        redis_url: str,
        directory: Path,
        *,
        models: Mapping[str, int],
        lease_ms: int,
        hung_after_s: int = 60,
        media_url_template: str = "",
    ) -> None:
        self._directory = directory
        self._ports = Ports(9105, 9106, 8080)
        ports = self._ports.numbers
        self.metrics = tuple(f"http://127.0.0.1:{port}/metrics" for port in ports[:2])
        self.http = f"http://127.0.0.1:{ports[2]}"
        settings = {
            "SPLOOT_LEASE_MS": str(lease_ms),
            "SPLOOT_HUNG_AFTER_S": str(hung_after_s),
            "SPLOOT_MODELS": ",".join(f"{model}={dim}" for model, dim in models.items()),
        }
        self.own_environ = {"WORKER_METRICS_PORT": str(ports[0]), "SPLOOT_HTTP_PORT": str(ports[2]), **settings}
        environ = {**os.environ, "REDIS_URL": redis_url, **settings, "PYTHONUNBUFFERED": "1"}
        python = [sys.executable, "-m"]
        worker = [*python, "dramatiq", "tasks.worker", "--processes", "1", "--threads", "4"]
        # longer than the default fork timeout: a worker that boots more slowly than that would have no metrics
        worker += ["--worker-shutdown-timeout", str(DRAIN_TIMEOUT_MS), "--worker-fork-timeout", str(BOOT_TIMEOUT_MS)]
        serve = [*python, "tasks.cli", "serve", "--host", "127.0.0.1", "--port", str(ports[2])]
        self.workers = tuple(
            self._pod(f"worker-{n}", worker, {**environ, "WORKER_METRICS_PORT": str(port)})
            for n, port in enumerate(ports[:2], start=1)
        )
        # the script next to the interpreter, because periodiq cannot be run with -m
        periodiq = str(Path(sys.executable).with_name("periodiq"))
        self.scheduler = self._pod("scheduler", [periodiq, "tasks.worker"], environ)
        self.server = self._pod("server", serve, {**environ, "SPLOOT_MEDIA_URL_TEMPLATE": media_url_template})
        self._pods = Pods((*self.workers, self.scheduler, self.server), stop_within_s=STOP_WITHIN_S)

    def _pod(self, name: str, command: list[str], environ: Mapping[str, str]) -> Pod:
        return Pod(name, command, environ=environ, log=self._directory / f"{name}.log")

    @property
    def worker_logs(self) -> tuple[Path, ...]:
        return tuple(pod.log for pod in self.workers)

    def __enter__(self) -> Self:
        self._pods.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pods.__exit__(kind, error, trace)
        self._ports.close()


def answers(address: str, *, timeout_s: float = 2.0) -> bool:
    """Return whether a GET of the URL returns 200."""
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as answer:  # noqa: S310 - an address of this stack
            return bool(answer.status == 200)
    except OSError:
        return False


def until(deadline_s: float) -> Iterator[float]:
    """Yield the elapsed seconds until the deadline, with a short pause between two values."""
    start = time.monotonic()
    while (passed := time.monotonic() - start) < deadline_s:
        yield passed
        time.sleep(POLL_S)


class Ports:
    """Loopback ports reserved until :meth:`close`: the preferred ports, or free ones if those are in use.

    A socket that is bound but never listens keeps other programs off the port. Our processes can still bind to it,
    because they use ``SO_REUSEADDR``. Therefore two demos never use the same port.
    """

    def __init__(self, *preferred: int) -> None:
        self._held = [self._hold(port) for port in preferred]
        self.numbers: list[int] = [held.getsockname()[1] for held in self._held]

    def close(self) -> None:
        for held in self._held:
            held.close()

    def _hold(self, port: int) -> socket.socket:
        for wanted in (port, 0):
            held = socket.socket()
            try:
                held.bind(("127.0.0.1", wanted))
            except OSError:
                held.close()
                continue
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return held
        raise OSError("no loopback port is free")
