"""Every program in ``examples/`` runs as its README describes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import dramatiq
import numpy as np
import pytest
import redis
from confluent_kafka import Consumer, Producer
from starlette.testclient import TestClient

from sploot_cluster import ClusterService
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.contracts import EMBEDDING_INGESTED, stream_of
from tasks.queue_limit import MAX_QUEUE_LENGTH
from tasks.redis_access.embedded import EmbeddedRedis
from tests.support import eventually, lacking
from tests.system.events import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(options={"appendonly": "no"}) as server:
        yield server


def run(*command: str | Path, **environ: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def running(*command: str, log: Path, **environ: str) -> Iterator[None]:
    with log.open("ab") as output:
        script = Path(sys.executable).with_name(command[0])
        process = subprocess.Popen(
            [script, *command[1:]], cwd=ROOT, env={**os.environ, **environ}, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def answers(url: str) -> bool:
    try:
        with urlopen(url) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError):
        return False


def test_readme_lists_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text()

    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".mjs")}

    assert programs == {name for name in programs if f"({name})" in text}
    assert len(programs) == 7


@pytest.mark.slow
def test_library_without_a_queue_keeps_a_merge_after_a_recluster() -> None:
    printed = run(sys.executable, EXAMPLES / "library_without_queue.py").splitlines()

    assert printed == [
        "after the first recluster: cluster 1: 20, cluster 2: 20; 0 noise",
        "after a merge and another recluster: cluster 1: 40; 0 noise",
        "after the undo: cluster 1: 20, cluster 2: 20; 0 noise",
    ]


@pytest.mark.slow
def test_javascript_producer_enqueues_a_64_bit_pet_id_exactly(server: EmbeddedRedis) -> None:
    node = shutil.which("node")
    if node is None:
        lacking("node", "install Node.js 18 or newer")

    run(node, EXAMPLES / "producer.mjs", "9007199254740993", "beach.jpg", REDIS_URL=server.url)

    with redis.Redis.from_url(server.url) as client:
        entries: Any = client.xrange(stream_of(EMBEDDING_INGESTED))
    ((_, fields),) = entries
    event = EmbeddingIngested.from_fields(fields)
    assert (event.pet_id, event.media_id) == (2**53 + 1, "beach.jpg")
    assert list(event.vector()) == pytest.approx([0.1, -0.25, 1.5, 3e-5])


def test_upload_service_enqueues_and_reports_bad_input(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    from examples.upload_service import app

    with TestClient(app) as http:
        taken = http.post("/pets/42/photos", json={"media_id": "beach.jpg", "embedding": [0.1, 0.2, 0.3]})
        refused = http.post("/pets/42/photos", json={"media_id": "beach.jpg", "embedding": [0.0, 0.0, 0.0]})

    assert taken.status_code == 202
    assert taken.json()["job_id"]
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 1
    assert refused.status_code == 422
    assert "embedding" in refused.json()["detail"]


def test_async_service_enqueues_uploads(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    from examples.async_service import app

    with TestClient(app) as http:
        sent, repeated = http.post("/pictures/cat.jpg"), http.post("/pictures/cat.jpg")

    assert sent.status_code == 202
    assert repeated.json() == sent.json()
    assert redis_client.xlen("streams:default") == 1


@pytest.mark.slow
def test_broker_without_sploot_cluster_enqueues_and_runs_jobs(server: EmbeddedRedis, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"

    printed = run(sys.executable, "-m", "examples.broker_alone", REDIS_URL=server.url)
    with running("dramatiq", "examples.broker_alone", "--processes", "1", log=log, REDIS_URL=server.url):
        eventually(lambda: log.read_text().count("hello, ") == 3, within_s=60)

    assert printed == "3 messages wait\n"


@pytest.mark.slow
def test_labeller_merges_and_undoes_over_http(server: EmbeddedRedis, tmp_path: Path) -> None:
    log, port = tmp_path / "processes.log", free_port()
    environ = {"REDIS_URL": server.url, "WORKER_METRICS_PORT": str(free_port())}
    with redis.Redis.from_url(server.url) as client:
        service, random = ClusterService(RedisPetStore(client)), np.random.default_rng(7)
        subjects = random.normal(size=(2, 64))
        for number in range(20):
            vector = subjects[number % 2] + 0.4 * random.normal(size=64)
            service.assign(PetId(42), MediaId(f"{number}.jpg"), model="example@1", vector=vector)
        service.recluster(PetId(42))

    with (
        running("sploot-cluster", "worker", "--processes", "1", log=log, **environ),
        running("sploot-cluster", "serve", "--port", str(port), log=log, **environ),
    ):
        eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz"), within_s=60)
        printed = run(sys.executable, EXAMPLES / "labeller.py", f"http://127.0.0.1:{port}", "42").splitlines()

    assert printed[:2] == ["cluster 1: 10 items", "cluster 2: 10 items"]
    assert printed[2].startswith("merged [1, 2] at revision ")
    assert printed[3].startswith("undone at revision ")


@pytest.mark.slow
def test_kafka_program_ingests_a_topic_and_waits_while_the_queue_is_full(server: EmbeddedRedis, tmp_path: Path) -> None:
    # librdkafka's mock of a Kafka cluster listens in this process, on loopback
    kafka = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored"})
    broker = kafka.list_topics(timeout=30).brokers[1]
    address, log = f"127.0.0.1:{broker.port}", tmp_path / "program.log"
    for number in range(20):
        record = {"pet_id": 42, "media_id": f"{number}.jpg", "model": "clip@1", "embedding": [1.0, number / 10]}
        kafka.produce("embeddings", json.dumps(record), "42")
    kafka.produce("embeddings", "{no json", "42")
    kafka.produce("embeddings", json.dumps({"pet_id": 42, "media_id": "x.jpg", "model": "clip@1", "embedding": [0, 0]}))
    assert kafka.flush(30) == 0

    program = ("python", "-m", "examples.from_kafka", address, "embeddings")
    # the mock does not notice when a member leaves its group
    environ = {"REDIS_URL": server.url, "KAFKA_SETTINGS": '{"session.timeout.ms": 6000}'}
    stream = stream_of(EMBEDDING_INGESTED)
    with redis.Redis.from_url(server.url) as client, closing(_reader_of("embeddings.refused", address)) as refused:
        client.set(MAX_QUEUE_LENGTH, 30)
        for _ in range(30):
            client.xadd(stream, {"other": "producer"})
        with running(*program, log=log, **environ):
            eventually(lambda: "waiting: " in log.read_text(), within_s=60)
            assert client.xlen(stream) == 30
            client.xtrim(stream, 0, approximate=False)
            eventually(lambda: client.xlen(stream) == 20, within_s=60)
            reasons: list[str] = []
            eventually(lambda: len(_read_reasons(refused, reasons)) == 2, within_s=60)
        # records whose offsets were committed are not read again
        with running(*program, log=log, **environ):
            kafka.produce("embeddings", json.dumps(record | {"media_id": "last.jpg"}), "42")
            kafka.flush(30)
            eventually(lambda: client.xlen(stream) > 20, within_s=60)
        entries: Any = client.xrange(stream)

    items = [json.loads(fields[b"message"])["kwargs"]["media_id"] for _, fields in entries]
    assert items == [*(f"{number}.jpg" for number in range(20)), "last.jpg"], log.read_text()
    assert any("embedding: " in reason for reason in reasons)


def _reader_of(topic: str, address: str) -> Consumer:
    reader = Consumer({"bootstrap.servers": address, "group.id": "test", "auto.offset.reset": "earliest"})
    reader.subscribe([topic])
    return reader


def _read_reasons(reader: Consumer, reasons: list[str]) -> list[str]:
    read = [record for record in reader.consume(10, timeout=0.2) if record.error() is None]
    reasons.extend(str(dict(record.headers() or [])["reason"]) for record in read)
    return reasons
