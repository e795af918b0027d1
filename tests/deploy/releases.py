"""Records of the data that a release leaves in Redis: a pet with corrections, and waiting work of every kind.

    python -m tests.deploy.releases NAME        record this tree into tests/deploy/fixtures/releases/NAME.json
    python tests/deploy/releases.py NAME TREE   record another tree: git archive REF | tar -x -C TREE

A release is recorded once and never again, because later releases must be able to process its data.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__" and len(sys.argv) == 3:
    sys.path.insert(0, sys.argv[2])

import dramatiq
import numpy as np
import redis

RELEASES = Path(__file__).parent / "fixtures" / "releases"
PET = 7
DIM = 16
N_MEDIA = 60
N_DIRECTIONS = 4
ENCODINGS = ("f32le", "f16le", "base64-f32le", "json")


def vector_of(number: int) -> Any:
    """Return a (DIM,) float32 vector near one of four directions; the same number gives the same vector."""
    rng = np.random.default_rng(1_000 + number)
    direction = np.random.default_rng(number % N_DIRECTIONS).normal(size=DIM)
    return (direction + 0.1 * rng.normal(size=DIM)).astype("<f4")


def encoded(number: int, encoding: str) -> bytes:
    vector = vector_of(number)
    if encoding == "f32le":
        return bytes(vector.tobytes())
    if encoding == "f16le":
        return bytes(vector.astype("<f2").tobytes())
    if encoding == "base64-f32le":
        return base64.b64encode(vector.tobytes())
    return json.dumps([float(number) for number in vector]).encode()


def flat_event(number: int, encoding: str = "f32le") -> dict[Any, Any]:
    return {
        "schema": "embedding.ingested/1",
        "event_id": f"event-{number}",
        "pet_id": str(PET),
        "media_id": f"media-{number}",
        "model": "test@1",
        "dim": str(DIM),
        "encoding": encoding,
        "embedding": encoded(number, encoding),
    }


def record(redis_url: str) -> dict[str, Any]:
    """Create a pet, correct it, leave work of every kind waiting, and return the record."""
    from sploot_cluster.pet.models import PetId
    from tasks.client import ClusterTasks
    from tasks.composition import build_client, build_service, build_worker
    from tasks.settings import Settings

    settings = Settings(redis_url=redis_url)
    client = build_client(settings)
    service = build_service(settings, client)
    broker = build_worker(settings)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    with ClusterTasks(redis_url) as tasks:

        def done(job_id: str) -> None:
            _wait(lambda: (status := tasks.job(job_id)) is not None and status.state == "succeeded")

        for number in range(N_MEDIA):
            client.xadd("streams:embedding.ingested", flat_event(number))
        _wait(lambda: client.llen(f"{{pet:{PET}}}:media") == N_MEDIA)
        done(tasks.recluster(pet_id=PET, requested_by="ann").job_id)
        first, second, *_ = [cluster.cluster_id for cluster in service.clusters(PetId(PET)).clusters]
        done(tasks.merge(PET, [first, second], requested_by="ann").job_id)
        merged = service.clusters(PetId(PET))
        leaving = list(merged.clusters[-1].media_ids[:2])
        done(tasks.split(PET, merged.clusters[-1].cluster_id, leaving, requested_by="bob").job_id)
        _wait(lambda: client.xlen("streams:cluster.recluster") == 0)
        worker.stop()
        broker.close()

        view = service.clusters(PetId(PET))
        waiting = [tasks.recluster(pet_id=PET, requested_by="ann")]
        waiting.append(tasks.undo(PET, merged.revision, requested_by="bob"))
        third = view.clusters[0]
        waiting.append(tasks.split(PET, third.cluster_id, list(third.media_ids[:1]), requested_by="bob"))
        vector = vector_of(900).tolist()
        waiting.append(tasks.ingest(pet_id=PET, media_id="by-client", model="test@1", embedding=vector))
        for at, encoding in enumerate(ENCODINGS):
            client.xadd("streams:embedding.ingested", flat_event(N_MEDIA + at, encoding))
    recorded = {
        "pet": PET,
        "revision": view.revision,
        "clusters": {str(cluster.cluster_id): list(cluster.media_ids) for cluster in view.clusters},
        "noise": list(view.noise),
        "waiting": [job.job_id for job in waiting],
        "arriving": ["by-client", *(f"media-{N_MEDIA + at}" for at in range(len(ENCODINGS)))],
        "redis": dump(client),
    }
    client.close()
    return recorded


def dump(client: redis.Redis) -> dict[str, Any]:
    """Return every key with its type and content, in a form that does not depend on the version of Redis."""
    keys: Any = client.keys("*")
    return {key.decode(): _content_of(client, key) for key in sorted(keys)}


def load(client: redis.Redis, dumped: Mapping[str, Any]) -> None:
    """Write the result of :func:`dump` to Redis. Groups are not restored, so in-flight entries wait again."""
    for key, (kind, content) in dumped.items():
        match kind:
            case "string":
                client.set(key, _raw(content))
            case "hash":
                client.hset(key, mapping={_raw(name): _raw(value) for name, value in content})
            case "list":
                client.rpush(key, *map(_raw, content))
            case "set":
                client.sadd(key, *map(_raw, content))
            case "zset":
                client.zadd(key, {_raw(member): score for member, score in content})
            case "stream":
                if not content:
                    # creates an empty stream
                    client.xdel(key, client.xadd(key, {"a": "b"}))
                for entry, fields in content:
                    client.xadd(key, {_raw(name): _raw(value) for name, value in fields}, id=entry)


def _content_of(client: Any, key: bytes) -> tuple[str, Any]:
    kind = client.type(key).decode()
    match kind:
        case "string":
            return kind, _text(client.get(key) or b"")
        case "hash":
            return kind, [[_text(name), _text(value)] for name, value in sorted(client.hgetall(key).items())]
        case "list":
            return kind, [_text(item) for item in client.lrange(key, 0, -1)]
        case "set":
            return kind, [_text(item) for item in sorted(client.smembers(key))]
        case "zset":
            return kind, [[_text(member), score] for member, score in client.zrange(key, 0, -1, withscores=True)]
        case "stream":
            entries = client.xrange(key)
            return kind, [[entry.decode(), _pairs(fields)] for entry, fields in entries]
    raise AssertionError(f"{key!r} is a {kind}")


def _pairs(fields: Mapping[bytes, bytes]) -> list[list[str]]:
    return [[_text(name), _text(value)] for name, value in fields.items()]


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text)


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_done():
        if time.monotonic() > deadline:
            raise AssertionError("not within 60 s")
        time.sleep(0.05)


if __name__ == "__main__":
    from tasks.redis_access.embedded import EmbeddedRedis

    with EmbeddedRedis(options={"appendonly": "no"}) as server:
        text = json.dumps(record(server.url), indent=1)
    (RELEASES / f"{sys.argv[1]}.json").write_text(text + "\n")
    print(f"{len(text) / 1e3:.0f} kB")
