"""The environment of a campaign: a server, a proxy in front of it, and worker pods that restart when they end."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, Signals
from types import TracebackType
from typing import IO, Any, Final, Self

import psutil
import redis
from redis.sentinel import Sentinel

from tasks.redis_access.embedded import EmbeddedRedis, find_redis_server
from tests.faults.address import MASTER
from tests.faults.ledger import Ledger
from tests.faults.outage import Outage
from tests.sentinel import FAILOVER_WITHIN_S, alert, sentinel_of
from tests.support import eventually

ROOT = Path(__file__).parents[2]
LEASE_MS: Final = 2_000

# fsync before every reply, so that a killed server keeps every write that it confirmed
OPTIONS: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "enable-debug-command": "yes",
    # keep the file short, because the slow server takes long to load it
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "1mb",
    # the master copies to a replica at once instead of waiting for others that may need the same copy
    "repl-diskless-sync-delay": "0",
}
# delay in microseconds per command, so that the server answers LOADING for a second or two
SLOW_LOADING: Final = {"key-load-delay": "50", "loading-process-events-interval-bytes": "1024"}


class Pod:
    """A command with its processes; a watcher restarts it when it ends, as Kubernetes would."""

    def __init__(self, log: Path, environment: Mapping[str, str], command: Sequence[str]) -> None:
        self._log = log
        self._environment = environment
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_ending = threading.Event()
        self._leaves_orphans = False
        self._may_read = threading.Event()
        self._may_read.set()
        self._watcher = threading.Thread(target=self._watch, name="pod", daemon=True)
        self.restarts = -1

    def start(self) -> Self:
        self._watcher.start()
        return self

    @property
    def master(self) -> psutil.Process | None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return None
            with suppress(psutil.NoSuchProcess):
                return psutil.Process(self._process.pid)
        return None

    def workers(self) -> list[psutil.Process]:
        """Return all descendants of the master: worker processes and their helper processes."""
        master = self.master
        if master is None:
            return []
        with suppress(psutil.NoSuchProcess):
            found: list[psutil.Process] = master.children(recursive=True)
            return found
        return []

    def signal(self, number: Signals) -> None:
        """Send a signal only to the master."""
        master = self.master
        if master is not None:
            with suppress(psutil.NoSuchProcess):
                master.send_signal(number)

    def lose_master(self) -> None:
        """Kill only the master. The processes that it leaves behind continue in parallel with the next master."""
        self._leaves_orphans = True
        self.signal(SIGKILL)

    @contextmanager
    def blocking_its_log(self) -> Iterator[None]:
        """Read nothing of what the pod writes during the block."""
        self._may_read.clear()
        try:
            yield
        finally:
            self._may_read.set()

    def signal_all(self, number: Signals) -> None:
        """Send a signal to every process of the pod; SIGKILL simulates the loss of a machine."""
        with self._lock:
            if self._process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)

    def stop(self) -> None:
        self._is_ending.set()
        self.signal(SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(15)
        self.signal_all(SIGKILL)
        self._watcher.join(20)

    def _watch(self) -> None:
        while not self._is_ending.is_set():
            # end the other processes too, as the loss of a machine or container would
            if not self._leaves_orphans:
                self.signal_all(SIGKILL)
            self._leaves_orphans = False
            with self._lock:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=ROOT,
                    env={**os.environ, **self._environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            threading.Thread(target=self._read, args=(self._process.stdout,), name="pod-log", daemon=True).start()
            self.restarts += 1
            self._process.wait()

    def _read(self, output: IO[bytes]) -> None:
        """Copy what the pod writes to its log file, until the last of its processes has ended."""
        with self._log.open("ab") as log, output:
            while some := output.read1(65536):  # type: ignore[attr-defined]  # the stream is a BufferedReader
                log.write(some)
                log.flush()
                self._may_read.wait()


class Stage:
    """The server, the proxy and the pods into which faults are injected. A context manager that ends all of them."""

    def __init__(self, directory: Path, *, n_pods: int = 3, processes: int = 1, threads: int = 4) -> None:
        self.directory = directory
        self._ledger_server = EmbeddedRedis(directory=_made(directory / "ledger"), options={"appendonly": "no"})
        files = _made(directory / "server")
        surviving = _surviving_a_full_disk(directory / "redis-server")
        self.server = EmbeddedRedis(directory=files, executable=surviving, options=OPTIONS)
        self._slow_server = EmbeddedRedis(directory=files, executable=surviving, options={**OPTIONS, **SLOW_LOADING})
        self._slow_server.port = self.server.port
        self._shape = (n_pods, processes, threads)
        self.pods: list[Pod] = []

    def __enter__(self) -> Self:
        self._ledger_server.start()
        self.server.start()
        self.ledger = Ledger(self._ledger_server.url)
        # commands of the campaign itself bypass the proxy
        self.client: Any = redis.Redis(port=self.server.port, socket_timeout=30)
        self.outage = Outage(("127.0.0.1", self.server.port)).start()
        self.environment = {
            # shorter than redis-py's defaults, so that a hanging server is noticed while it hangs
            "FAULTS_BROKER_URL": f"{self.outage.url}?socket_timeout=1.5&socket_connect_timeout=1.5",
            "FAULTS_LEDGER_URL": self._ledger_server.url,
            "FAULTS_LEASE_MS": str(LEASE_MS),
            "PYTHONPATH": str(ROOT),
        }
        self._start_pods()
        return self

    def _start_pods(self) -> None:
        n_pods, processes, threads = self._shape
        command = [sys.executable, "-m", "dramatiq", "tests.faults.worker", "--worker-shutdown-timeout", "3000"]
        command += ["--processes", str(processes), "--threads", str(threads)]
        for number in range(n_pods):
            self.pods.append(Pod(self.directory / f"pod-{number}.log", self.environment, command).start())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopping = [threading.Thread(target=pod.stop) for pod in self.pods]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        self.outage.stop()
        self.client.close()
        self.ledger.close()
        self._slow_server.stop()
        self.server.stop()
        self._ledger_server.stop()

    def crash_server(self) -> None:
        """Kill the server with SIGKILL, whether it is the normal or the slow one."""
        self.server.kill()
        self._slow_server.kill()

    def stop_server(self) -> None:
        """Stop the server as an operator does; its files stay."""
        self.server.stop()
        self._slow_server.stop()

    def start_server(self, *, slowly: bool = False) -> None:
        """Start the server with its data; with ``slowly``, it answers LOADING for a while."""
        if self.server.pid is None and self._slow_server.pid is None:
            (self._slow_server if slowly else self.server).start()

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Let the server write nothing to its files during the block, so that it refuses writes as on a full disk.

        With appendfsync=always, the server would exit instead.
        """
        pid = self.server.pid or self._slow_server.pid
        if pid is None:
            yield
            return
        self.client.config_set("appendfsync", "everysec")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            eventually(lambda: self.client.info("persistence")["aof_last_write_status"] == "ok", within_s=60)
            self.client.config_set("appendfsync", "always")

    def heal(self) -> None:
        """End every fault that is still active."""
        self.outage.forget_aims()
        self.start_server()
        self.client.config_set("maxmemory", 0)
        for pod in self.pods:
            pod.signal_all(SIGCONT)

    def producer(
        self, name: str, n_confirmed: int, seed: int, for_s: float, kinds: dict[str, int]
    ) -> subprocess.Popen[bytes]:
        words = [name, str(n_confirmed), str(seed), str(for_s), *(f"{kind}={weight}" for kind, weight in kinds.items())]
        with (self.directory / "producers.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.producer", *words],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

    def last_words(self, paths: Sequence[str] = ("producers.log",), *, n_lines: int = 15) -> str:
        return "\n".join(
            line
            for path in paths
            for line in (self.directory / path).read_text(errors="replace").splitlines()[-n_lines:]
        )


class WatchedStage(Stage):
    """A stage whose server has a replica, and a sentinel that promotes the replica."""

    def __init__(self, directory: Path, **shape: int) -> None:
        super().__init__(directory, **shape)
        self._replica = EmbeddedRedis(directory=_made(directory / "replica"), options=OPTIONS)
        self._more = ExitStack()

    def _start_pods(self) -> None:
        self._more.enter_context(self._replica)
        self._follow(self._replica, self.server)
        directory = self.directory / "sentinel"
        self._sentinel_port = self._more.enter_context(sentinel_of(self.server.port, directory, name=MASTER))
        self.environment["FAULTS_SENTINEL_PORT"] = str(self._sentinel_port)
        sentinel = Sentinel([("127.0.0.1", self._sentinel_port)], socket_timeout=30)
        self.client.close()
        self.client = sentinel.master_for(MASTER, socket_timeout=30)
        self._sentinel = sentinel.sentinels[0]
        self._until_it_knows_a_replica()
        super()._start_pods()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._more.close()

    def lose_master(self) -> None:
        """Kill the master with SIGKILL after its replica has everything that the master confirmed."""
        master = self._master()
        with redis.Redis(port=master.port, socket_timeout=30) as client:
            # block writes, and wait until all confirmed ones are replicated
            client.execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
            eventually(lambda: _is_replicated(client), within_s=30)
            master.kill()
        other = self._replica if master is self.server else self.server
        with alert(self._sentinel_port, name=MASTER):
            eventually(lambda: self._master() is other, within_s=FAILOVER_WITHIN_S)

    def bring_back(self) -> None:
        """Start the lost server as a replica of the other one."""
        master = self._master()
        lost = self._replica if master is self.server else self.server
        lost.start()
        self._follow(lost, master)
        self._until_it_knows_a_replica()

    def heal(self) -> None:
        self.bring_back()
        super().heal()

    def _master(self) -> EmbeddedRedis:
        sentinel: Any = self._sentinel
        _, port = sentinel.sentinel_get_master_addr_by_name(MASTER)
        return self.server if port == self.server.port else self._replica

    def _follow(self, server: EmbeddedRedis, master: EmbeddedRedis) -> None:
        with redis.Redis(port=server.port, socket_timeout=30) as client:
            if client.info("replication")["role"] == "master":
                client.replicaof("127.0.0.1", str(master.port))
            eventually(lambda: client.info("replication").get("master_link_status") == "up", within_s=30)

    def _until_it_knows_a_replica(self) -> None:
        """Wait until the sentinel knows a replica that it could promote."""
        eventually(lambda: any(_may_follow(one) for one in self._sentinel.sentinel_slaves(MASTER)), within_s=60)


def _may_follow(replica: Mapping[str, Any]) -> bool:
    return replica["master-link-status"] == "ok" and not (replica["is_sdown"] or replica["is_disconnected"])


def _is_replicated(client: Any) -> bool:
    info = client.info("replication")
    replica = info.get("slave0")
    return replica is not None and replica["state"] == "online" and replica["offset"] == info["master_repl_offset"]


def _surviving_a_full_disk(program: Path) -> Path:
    """Write a program that starts the server without the signal that would end it at a limit on the size of files."""
    _made(program.parent)
    program.write_text(f'#!/bin/sh\ntrap "" XFSZ\nexec {shlex.quote(str(find_redis_server()))} "$@"\n')
    program.chmod(0o755)
    return program


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
