"""Context managers for Redis servers with users and TLS, and for processes that connect to them, on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import redis

from deploy.redis_users import USERS, render
from tasks.redis_access.embedded import EmbeddedRedis, find_redis_server
from tests.support import eventually
from tests.system.events import free_port

# Passwords of the users: all different, and long enough to be accepted.
TESTER = "tester-of-all-things"
PASSWORDS: Mapping[str, str] = {user: f"correct-horse-of-{user}" for user in USERS}


@contextmanager
def running(
    command: list[str], *, log: Path, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and send it SIGTERM at the end of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=directory
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def acl_file(directory: Path, *, for_redis_6: bool = False) -> Path:
    """Write the shipped users, and a user with all permissions for the test itself."""
    path = directory / "users.acl"
    path.write_text(render(PASSWORDS, for_redis_6=for_redis_6) + f"user tester on >{TESTER} ~* &* +@all\n")
    return path


def client_of(server: EmbeddedRedis, user: str) -> redis.Redis:
    password = TESTER if user == "tester" else PASSWORDS[user]
    return redis.Redis(port=server.port, username=user, password=password, protocol=2)


@contextmanager
def tls_server(directory: Path, *options: str) -> Iterator[int]:
    """Run a server that accepts only TLS, with the files of ``make_certificates`` and our users; yield its port."""
    port = free_port()
    log = directory / f"redis-{port}.log"
    command = [str(find_redis_server()), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--tls-cert-file", "redis.crt", "--tls-key-file", "redis.key", "--tls-ca-cert-file", "ca.crt"]
    command += ["--aclfile", str(acl_file(directory)), "--dir", str(directory), *options]
    with running(command, log=log, directory=directory):
        eventually(lambda: "Ready to accept" in log.read_text(), within_s=20)
        yield port


def make_certificates(directory: Path) -> None:
    """Create a CA (ca.crt), its certificate for 127.0.0.1 (redis.crt, redis.key), and another CA (other.crt)."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                # since Python 3.13, ssl refuses a CA without this extension
                "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                "-subj", f"/CN=test {name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")  # fmt: skip
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=redis",
            "-keyout", "redis.key", "-out", "redis.csr")  # fmt: skip
    (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    openssl("x509", "-req", "-in", "redis.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "extensions", "-out", "redis.crt")  # fmt: skip


def processes_environ(redis_url: str, **more: str) -> dict[str, str]:
    """Return the environment for a worker or scheduler of a test."""
    environ = {**os.environ, "REDIS_URL": redis_url, "WORKER_METRICS_PORT": str(free_port()), "SPLOOT_LEASE_MS": "2000"}
    return environ | more


def worker_command() -> list[str]:
    script = str(Path(sys.executable).with_name("dramatiq"))
    return [script, "tasks.worker", "--processes", "1", "--threads", "2"]


def scheduler_command() -> list[str]:
    return [sys.executable, "-m", "tasks.cli", "scheduler"]
