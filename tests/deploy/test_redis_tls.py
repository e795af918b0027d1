"""Tests of TLS with a private CA: only clients that trust it connect, and least-privilege users can run everything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sploot_cluster.jobs import ENDED
from tasks.client import ClusterTasks
from tasks.contracts import EMBEDDING_INGESTED, stream_of
from tasks.redis_access.urls import connect
from tests.deploy.servers import (
    PASSWORDS,
    TESTER,
    make_certificates,
    processes_environ,
    running,
    scheduler_command,
    tls_server,
    worker_command,
)
from tests.support import eventually
from tests.system.events import flat_event

STREAM = stream_of(EMBEDDING_INGESTED)
DEAD = f"{{{STREAM}}}:dead"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = Path(tmp_path_factory.mktemp("tls"))
    make_certificates(directory)
    return directory


@pytest.fixture(scope="module")
def port(certificates: Path) -> Iterator[int]:
    with tls_server(certificates, "--tls-auth-clients", "no") as port:
        yield port


def client_of(url: str) -> redis.Redis:
    return connect(url, connect_timeout_s=5, answer_timeout_s=5, retry=Retry(NoBackoff(), 0))


def url_of(user: str, port: int, ca: Path, host: str = "127.0.0.1") -> str:
    password = TESTER if user == "tester" else PASSWORDS[user]
    return f"rediss://{user}:{password}@{host}:{port}/0?ssl_ca_certs={ca}"


def test_tls_client_with_the_ca_connects(port: int, certificates: Path) -> None:
    with client_of(url_of("worker", port, certificates / "ca.crt")) as client:
        assert client.ping()


def refusal_of(url: str) -> str:
    """Return the error of a client that fails to connect to this URL."""
    client = client_of(url)
    with client, pytest.raises((redis.ConnectionError, redis.TimeoutError)) as refused:
        client.ping()
    return str(refused.value)


def test_tls_client_refuses_a_server_certificate_from_another_ca(port: int, certificates: Path) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in refusal_of(url_of("worker", port, certificates / "other.crt"))


def test_tls_client_without_the_ca_refuses_the_server(port: int) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in refusal_of(f"rediss://worker:{PASSWORDS['worker']}@127.0.0.1:{port}/0")


def test_tls_client_refuses_a_certificate_for_another_host(certificates: Path) -> None:
    # 127.0.0.2 is this machine too, but is not in the certificate
    with tls_server(certificates, "--tls-auth-clients", "no", "--bind", "127.0.0.2") as port:
        refusal = refusal_of(url_of("worker", port, certificates / "ca.crt", host="127.0.0.2"))

    assert "CERTIFICATE_VERIFY_FAILED" in refusal


def test_tls_server_refuses_plain_text(port: int) -> None:
    refusal = refusal_of(f"redis://worker:{PASSWORDS['worker']}@127.0.0.1:{port}/0")

    assert "refused" not in refusal  # which would mean that the port is closed


def test_tls_server_requires_and_accepts_client_certificates(certificates: Path) -> None:
    with tls_server(certificates, "--tls-auth-clients", "yes") as port:
        url = url_of("worker", port, certificates / "ca.crt")
        assert "refused" not in refusal_of(url)

        own = f"{url}&ssl_certfile={certificates / 'redis.crt'}&ssl_keyfile={certificates / 'redis.key'}"
        with client_of(own) as client:
            assert client.ping()


@pytest.mark.deploy
def test_least_privilege_users_run_everything_over_tls(port: int, certificates: Path, tmp_path: Path) -> None:
    def url(user: str) -> str:
        return url_of(user, port, certificates / "ca.crt")

    log = tmp_path / "worker.log"
    with (
        client_of(url("tester")) as tester,
        running(worker_command(), log=log, environ=processes_environ(url("worker"))),
        running(scheduler_command(), log=tmp_path / "scheduler.log", environ=processes_environ(url("scheduler"))),
        ClusterTasks(url("client")) as tasks,
        client_of(url("producer")) as producer,
    ):
        tester.execute_command("ACL", "LOG", "RESET")
        for number in range(30):
            producer.xadd(STREAM, flat_event(pet_id=7, number=number))
        eventually(lambda: tester.llen("{pet:7}:media") == 30, within_s=60)
        jobs = [tasks.recluster(pet_id=7), tasks.merge(7, [1, 2])]
        ended = [eventually(partial(_end_of, tasks, job.job_id), within_s=60) for job in jobs]
        producer.xadd(STREAM, {"schema": "embedding.ingested/1", "pet_id": "nonsense"})
        eventually(lambda: tester.xlen(DEAD) == 1, within_s=30)
        eventually(lambda: tester.hgetall("sploot:backlog"), within_s=90)
        for command in (
            "queue status",
            "queue pending embedding.ingested",
            "queue dead list embedding.ingested",
            "doctor",
            "clusters 7",
            "history 7",
        ):
            asked = _asked(command, url("operator"))
            assert asked.returncode in (0, 1), f"{command}: {asked.stderr}"
            assert "permission" not in (asked.stdout + asked.stderr).lower(), f"{command}: {asked.stdout}{asked.stderr}"
        exported = tmp_path / "pet"
        for command in (f"export 7 {exported}", f"import {exported} --as 8", "history 8"):
            asked = _asked(command, url("server"))
            assert asked.returncode == 0, f"{command}: {asked.stdout}{asked.stderr}"
        denied = _commands_of(tester.execute_command("ACL", "LOG"))

    assert ended[0] == "succeeded", log.read_text()
    assert denied == set(), log.read_text()


def _asked(command: str, redis_url: str) -> subprocess.CompletedProcess[str]:
    """Run an operator's command. The doctor exits with 1 if it finds a problem."""
    environ = processes_environ(redis_url)
    words = [sys.executable, "-m", "tasks.cli", *command.split()]
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)


def _end_of(tasks: ClusterTasks, job_id: str) -> str | None:
    status = tasks.job(job_id)
    return status.state if status is not None and status.state in ENDED else None


def _commands_of(log: list[dict[str, object]]) -> set[str]:
    """Return the denied commands, without the optional CLIENT commands of redis-py."""
    denied = {f"{entry.get('username')} {entry.get('object')}" for entry in log}
    return {what for what in denied if "client|" not in what and " client" not in what}
