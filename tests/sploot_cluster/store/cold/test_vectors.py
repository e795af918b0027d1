"""Tests of the contract of every store of vectors: in memory, in a directory, and in an S3 bucket of a real server."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from sploot_cluster.errors import ColdStoreUnavailable
from sploot_cluster.store.cold.moves import UNUSED_MS, ColdPets
from sploot_cluster.store.cold.vectors import PAUSE_S, BucketVectors, FailFast, VectorStore, open_vectors
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, grouped, take
from tests.sploot_cluster.store.cold.stores import DictVectors
from tests.support import eventually, lacking, refusal
from tests.system.events import free_port

BUCKET = "cold"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback, with a bucket; its command is given by ``make test-s3``."""
    command = shlex.split(os.environ.get("S3_SERVER", ""))
    if not command:
        lacking("the command of an S3 server in S3_SERVER", "run make test-s3")
    address = f"http://127.0.0.1:{(port := free_port())}"
    command += ["-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _has_bucket(address), within_s=60, every_s=0.2)
            yield address
        finally:
            process.kill()


def _has_bucket(address: str) -> bool:
    import urllib.request
    from urllib.error import URLError

    request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


@pytest.fixture(params=["memory", "directory", pytest.param("s3", marks=pytest.mark.s3)])
def vectors(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VectorStore:
    """An empty store; every test runs once with each kind of store."""
    if request.param == "memory":
        return DictVectors()
    if request.param == "directory":
        return open_vectors(f"file://{tmp_path}/a%20folder/vectors")
    set_access(monkeypatch, request.getfixturevalue("s3_server"))
    return open_vectors(f"s3://{BUCKET}/{tmp_path.name}")


def set_access(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for variable, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(variable, value)


def test_objects_are_found_by_name_and_folder(vectors: VectorStore) -> None:
    content = bytes(range(256)) * 40
    vectors.put("1/a/0", content)
    vectors.put("1/b/0", b"")
    vectors.put("12/a/0", b"other")

    assert (vectors.get("1/a/0"), vectors.get("1/b/0"), vectors.get("12/a/0")) == (content, b"", b"other")
    assert sorted(vectors.names("1")) == ["1/a/0", "1/b/0"]
    assert list(vectors.names("2")) == []
    with pytest.raises(KeyError):
        vectors.get("1/a/1")


def test_deleted_objects_are_gone(vectors: VectorStore) -> None:
    vectors.put("1/a/0", b"one")
    vectors.put("1/a/3", b"two")

    vectors.delete(["1/a/0", "1/missing/0"])
    vectors.delete(["1/a/0"])

    assert list(vectors.names("1")) == ["1/a/3"]
    with pytest.raises(KeyError):
        vectors.get("1/a/0")


def test_pet_moves_out_and_back_and_out(redis_client: redis.Redis, vectors: VectorStore) -> None:
    cold = ColdPets(redis_client, vectors, object_bytes=300)
    store = RedisPetStore(redis_client, cold=cold)
    service = grouped(store, 2, range(5))
    before = store.load(PET).vectors

    assert cold.move_out(PET)
    np.testing.assert_array_equal(RedisPetStore(redis_client, cold=cold).load(PET).vectors, before)
    take(service, 0, range(5, 6))

    np.testing.assert_array_equal(store.load(PET).vectors[:10], before)
    assert cold.move_out(PET)
    np.testing.assert_array_equal(store.load(PET).vectors[:10], before)
    assert len(vectors.names(str(PET))) == 6
    ColdPets(redis_client, vectors, later_ms=2 * UNUSED_MS).tidy(limit=1)
    assert len(vectors.names(str(PET))) == 3
    service.delete_pet(PET)
    assert list(vectors.names(str(PET))) == []


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
def test_cut_or_damaged_object_is_refused(tmp_path: Path, content: bytes) -> None:
    vectors = open_vectors(f"file://{tmp_path}")
    vectors.put("1/a/0", b"content" * 10)
    (tmp_path / "1/a/0").write_bytes(content)

    with pytest.raises(ValueError, match="cut or damaged"):
        vectors.get("1/a/0")


def test_file_that_a_killed_process_left_is_listed_and_no_folder_stays(tmp_path: Path) -> None:
    vectors = open_vectors(f"file://{tmp_path}")
    vectors.put("1/a/0", b"content")
    (tmp_path / "1/a/3.5f5f.part").write_bytes(b"half of")
    (name,) = (name for name in vectors.names("1") if name != "1/a/0")

    vectors.delete(["1/a/0"])
    assert list(vectors.names("1")) == [name]
    vectors.delete([name])

    assert list(tmp_path.iterdir()) == []


def test_storage_that_is_away_is_not_asked_at_once_again() -> None:
    vectors, now = DictVectors(), [0.0]
    store = FailFast(vectors, clock=lambda: now[0])
    store.put("1/a/0", b"content")
    vectors.is_away = True
    with pytest.raises(ColdStoreUnavailable, match="it is away"):
        store.get("1/a/0")
    vectors.is_away, vectors.n_read = False, 0

    with pytest.raises(ColdStoreUnavailable, match="it is away"):
        store.get("1/a/0")
    assert vectors.n_read == 0
    now[0] += PAUSE_S
    assert store.get("1/a/0") == b"content"


@pytest.mark.s3
def test_bucket_that_does_not_exist_is_reported(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_access(monkeypatch, s3_server)
    vectors = BucketVectors("s3://no-such-bucket/prefix")

    for act in (lambda: vectors.put("1/a/0", b"content"), lambda: vectors.names("1")):
        with pytest.raises(ColdStoreUnavailable, match="no-such-bucket"):
            act()


def test_storage_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    vectors = open_vectors(f"file://{tmp_path}/file/vectors")

    with pytest.raises(ColdStoreUnavailable, match="SPLOOT_COLD_STORE"):
        vectors.put("1/a/0", b"content")


@pytest.mark.parametrize("url", ["", "/var/lib", "file://host/var", "file://", "s3://", "ftp://x/y", "gs://bucket"])
def test_url_of_something_else_is_refused(url: str) -> None:
    assert "neither a directory nor a bucket" in refusal(lambda: open_vectors(url)).problem
