"""The README is short, and its examples work exactly as written."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

import tasks.client
from sploot_cluster.event import EmbeddingIngested
from tasks.contracts import EMBEDDING_INGESTED, stream_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_readme_fits_on_two_screens() -> None:
    lines = README.splitlines()

    assert len(lines) <= 90
    assert max(map(len, lines)) <= 200


@pytest.mark.parametrize("name", ["console.png", "dashboard.png"])
def test_picture_is_shown_in_the_readme_and_its_file_is_small(name: str) -> None:
    picture = ROOT / "docs" / "pictures" / name

    assert f"](docs/pictures/{name})" in README
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert picture.stat().st_size <= 200_000, "make pictures"


def test_every_make_command_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    shown = set(re.findall(r"make ([a-z-]+)\b", "\n".join(blocks("bash"))))

    assert {"demo", "test"} <= shown <= targets


def test_python_example_in_the_readme_runs(
    redis_url: str, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sploot_cluster_client", tasks.client)  # the name in the thin client's wheel
    (example,) = blocks("python")
    assert "redis://127.0.0.1:6379/0" in example

    exec(example.replace("redis://127.0.0.1:6379/0", redis_url), {})

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("False")
    assert "wait" in printed[1] or "ahead" in printed[1] or "worker" in printed[1]
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 1


def test_xadd_example_in_the_readme_is_accepted_as_an_event(redis_client: redis.Redis) -> None:
    (example,) = [block for block in blocks("bash") if "XADD" in block]
    words = shlex.split(example.replace("\\\n", " "))

    redis_client.execute_command(*words[words.index("XADD") :])

    entries: Any = redis_client.xrange(stream_of(EMBEDDING_INGESTED))
    ((_, fields),) = entries
    event = EmbeddingIngested.from_fields(fields)
    assert (event.pet_id, event.media_id, event.dim) == (42, "beach.jpg", 3)
    assert list(event.vector()) == pytest.approx([0.1, 0.2, 0.3])
