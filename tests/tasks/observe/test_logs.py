"""Logs with one JSON object per line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import dramatiq
import numpy as np
import pytest
import redis

from sploot_cluster.event import EmbeddingIngested
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, stream_of
from tasks.demo.stack import answers
from tasks.observe.backlog import BACKLOG, TICKED_AT
from tasks.observe.logs import without_payload
from tasks.observe.periodic import BEAT
from tests.support import eventually
from tests.system.events import flat_event, free_port

_TALK = """
import logging, warnings
from tasks.observe.logs import configure_logging
configure_logging("INFO")
configure_logging("INFO")
logger = logging.getLogger("sploot-cluster.queue")
logger.info("job done", extra={"pet_id": 42, "message_id": "mäh\\nline two"})
logger.debug("not logged")
try:
    raise ValueError("no luck")
except ValueError:
    logger.exception("job failed")
logging.getLogger("faiss.loader").info("chatter")
warnings.warn("careful")
"""


def test_every_line_is_one_json_object_with_facts_in_fields() -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", _TALK], env=environ, capture_output=True, text=True, check=True)

    lines = [json.loads(line) for line in done.stderr.splitlines()]

    assert done.stdout == ""
    assert [line["message"].split("\n")[0] for line in lines[:2]] == ["job done", "job failed"]
    assert len(lines) == 3
    first, failed, warning = lines
    assert first["pet_id"] == 42
    assert first["message_id"] == "mäh\nline two"
    assert (first["level"], first["logger"], first["service"]) == ("INFO", "sploot-cluster.queue", "sploot-cluster")
    assert first["timestamp"].endswith("+00:00")
    assert "ValueError: no luck" in failed["exc_info"]
    assert "careful" in warning["message"]


def test_line_with_a_stack_trace_has_the_same_fields_as_one_without() -> None:
    talk = """
import logging
from datetime import UTC, datetime
from tasks.observe.logs import configure_logging
configure_logging("INFO")
facts = {"n": 3, "s": 0.5, "none": None, "at": datetime(2026, 1, 2, tzinfo=UTC), "in": {"at": datetime(2026, 1, 2)},
         "x": [1, "b", b"c"], "mäh": "e\\n"}
for stack_info in (False, True):
    logging.getLogger("a.b").warning("%s happened", "it", extra=facts, stack_info=stack_info)
"""
    done = subprocess.run([sys.executable, "-c", talk], capture_output=True, text=True, check=True)

    alone, candidate = (json.loads(line) for line in done.stderr.splitlines())

    assert candidate.pop("stack_info")
    assert alone.pop("timestamp")[:10] == candidate.pop("timestamp")[:10]
    assert list(alone.items()) == list(candidate.items())


def test_embeddings_in_text_are_replaced_by_their_length() -> None:
    vector = np.random.default_rng(3).normal(size=32).astype(np.float32)
    base64 = b64encode(vector.tobytes()).decode()
    numbers = vector.tolist()
    texts = [base64, repr(vector.tobytes()), str(numbers), str(vector), *(by.join(map(str, numbers)) for by in " ,")]

    for text in texts:
        redacted = without_payload(f"cannot use {text} of pet 42")
        assert text not in redacted
        assert redacted.startswith("cannot use ")
        assert "characters>" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "attempt 3 failed after 12.5 s, 4 of 5 workers are alive, 1,234 jobs wait in 6 queues and 17 processes",
        'File "/srv/venv/lib/python3.11/site-packages/dramatiq/worker.py", line 560, in process_message ' * 3,
        "a sentence that has more than eighty characters and is nothing but words, one after the other, is kept",
        "ペットの写真" * 40,
    ],
)
def test_other_long_text_is_logged_unchanged(text: str) -> None:
    assert without_payload(text) == text


def test_line_is_json_whatever_it_contains() -> None:
    talk = """
import logging
from tasks.observe.logs import configure_logging
configure_logging("INFO")
log = logging.getLogger("x")
facts = {"nan": float("nan"), "raw": b"\\xff\\x00", "bad": "\\udcff", "many": list(range(1000)), "o": object()}
log.info("odd", extra=facts)
log.info("args %s", {"a": 1})
log.info("100 % sure")
import threading
threading.Thread(target=lambda: 1 / 0).start()
raise RuntimeError("the end")
"""
    done = subprocess.run([sys.executable, "-c", talk], capture_output=True, text=True)

    lines = [json.loads(line, parse_constant=_refuse) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line["message"] for line in lines] == [
        "odd",
        "args {'a': 1}",
        "100 % sure",
        "uncaught error; the thread ends",
        "uncaught error; the process ends",
    ]
    assert (lines[0]["nan"], lines[0]["raw"], lines[0]["many"]) == ("nan", "<2 bytes>", "<1000 values>")
    assert "ZeroDivisionError" in lines[3]["exc_info"]


def test_unwritable_line_is_reported_as_json() -> None:
    talk = """
import logging
from tasks.observe.logs import configure_logging
configure_logging("INFO")
log = logging.getLogger("x")
class Bad:
    def __str__(self): raise ValueError("no text")
log.info({"a": 1, "many": list(range(1000))})
log.info("a %d", b"secret")
log.info("b %s", Bad())
log.info("c", extra={"bad": Bad()})
log.info(Bad())
log.info("the end")
"""
    done = subprocess.run([sys.executable, "-c", talk], capture_output=True, text=True, check=True)

    first, *lost, last = lines_of(done.stderr)
    assert (first["a"], first["many"]) == (1, "<1000 values>")
    assert {(line["level"], line["message"]) for line in lost} == {("ERROR", "could not write a log line")}
    assert [(line["of"], line["error"]) for line in lost] == [
        ("a %d", "TypeError"),
        ("b %s", "ValueError"),
        ("c", "ValueError"),
        ("Bad", "ValueError"),
    ]
    assert {line["at"] for line in lost} == {f"<string>:{number}" for number in (9, 10, 11, 12)}
    assert "secret" not in done.stderr
    assert last["message"] == "the end"


SHIPPED = ("worker", "scheduler", "serve")  # the commands that the chart, the compose file and the image run


def ended(environ: dict[str, str]) -> dict[str, tuple[int, str]]:
    """Run all three commands in parallel with these environment variables; return each exit code and output."""
    everything = {**os.environ, "REDIS_URL": "redis://127.0.0.1:1/0", **environ}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tasks.cli", name],
            env=everything,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in SHIPPED
    }
    outputs = {name: process.communicate(timeout=100)[0] for name, process in processes.items()}
    return {name: (processes[name].returncode, outputs[name]) for name in SHIPPED}


def lines_of(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line, parse_constant=_refuse) for line in text.splitlines()]
    assert [line for line in lines if not isinstance(line, dict)] == []
    return lines


@pytest.mark.slow
def test_invalid_settings_are_reported_as_json() -> None:
    for name, (code, text) in ended({"SPLOOT_LEASE_MS": "long"}).items():
        (line,) = lines_of(text)
        assert (code, line["level"]) == (2, "CRITICAL"), name
        assert "SPLOOT_LEASE_MS: 'long' is not a whole number" in line["message"]


@pytest.mark.slow
def test_missing_import_is_reported_as_json(tmp_path: Path) -> None:
    broken = 'import warnings\nwarnings.warn("old library")\nraise ImportError("its .so is missing")\n'
    for needed in ("periodiq", "uvicorn"):
        (tmp_path / f"{needed}.py").write_text(broken)

    for name, (code, text) in ended({"PYTHONPATH": str(tmp_path)}).items():
        lines = lines_of(text)
        assert code != 0, name
        assert any("old library" in line["message"] for line in lines), text
        assert "its .so is missing" in text


@pytest.mark.slow
def test_scheduler_and_server_write_only_json(redis_client: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    environ = {**os.environ, "REDIS_URL": redis_url, "SPLOOT_HTTP_PORT": str(port), "SPLOOT_LOG_LEVEL": "DEBUG"}
    environ["TMPDIR"] = str(tmp_path)
    processes = []
    for name in ("scheduler", "serve"):
        with (tmp_path / name).open("wb") as output:
            command = [sys.executable, "-m", "tasks.cli", name]
            processes.append(subprocess.Popen(command, env=environ, stdout=output, stderr=output))
    try:
        eventually(lambda: redis_client.hexists(BACKLOG, TICKED_AT), within_s=90)
        eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz"), within_s=60)
        assert not answers(f"http://127.0.0.1:{port}/nowhere")
        assert (tmp_path / BEAT.name).exists(), "its livenessProbe would end the scheduler"
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait(timeout=60) for process in processes]

    assert codes[0] == 0
    assert codes[1] in (0, -signal.SIGTERM)  # uvicorn shuts down cleanly, then ends by the signal itself
    assert lines_of((tmp_path / "serve").read_text()) != []
    lines_of((tmp_path / "scheduler").read_text())  # a scheduler without problems may write no line


@pytest.mark.slow
def test_workers_write_only_json_that_names_jobs_and_hides_embeddings(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    embeddings = _send_good_and_bad_work(redis_client)
    log = tmp_path / "worker.log"
    environ = {
        **os.environ,
        "REDIS_URL": redis_url,
        "WORKER_METRICS_PORT": str(free_port()),
        "SPLOOT_LOG_LEVEL": "DEBUG",
        "SPLOOT_LEASE_MS": "2000",
    }
    command = [sys.executable, "-m", "tasks.cli", "worker", "--processes", "1", "--threads", "2"]
    with log.open("wb") as output:
        master = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
    try:
        # nine of ten are valid; each invalid one becomes a dead letter
        eventually(lambda: redis_client.llen("{pet:42}:media") == 9, within_s=60)
        eventually(lambda: _n_dead(redis_client) == 5, within_s=60)
    finally:
        master.terminate()
        master.wait(timeout=60)

    text = log.read_text()
    lines = lines_of(text)
    assert {"job done", "job failed", "dead letter"} <= {line["message"] for line in lines}
    assert any("booting up" in line["message"] for line in lines), "the master's own lines are missing"
    about_jobs = [line for line in lines if line.get("message_id") or line.get("actor")]
    assert len({line["message_id"] for line in about_jobs}) >= 14
    assert [line for line in lines if "entry" in line and "reason" in line] == [], "a dead letter is logged twice"
    assert [line for line in about_jobs if "pet_id" not in line or not line.get("message_id")] == []
    assert any("<" in line["message"] and "messages>" in line["message"] for line in lines), "no line about a batch"
    # the only job without a pet is the one whose pet id is unreadable
    assert {line["message_id"] for line in about_jobs if line["pet_id"] != 42} == {"petless"}
    assert [word for word in embeddings if word in text] == []


def _send_good_and_bad_work(client: Any) -> list[str]:
    """Send nine items of pet 42 and five failing jobs; return strings that would reveal embeddings."""
    stream, words = stream_of(EMBEDDING_INGESTED), []
    for number in range(9):
        event = flat_event(pet_id=42, number=number)
        client.xadd(stream, event)
        embedding = event["embedding"]
        assert isinstance(embedding, bytes)
        vector = np.frombuffer(embedding, "<f4")
        words += [b64encode(vector.tobytes()).decode()[4:40], str(float(vector[5])), str(vector[6])]
    spoilt = flat_event(pet_id=42, number=100)
    client.xadd(stream, spoilt | {"dim": "17", "event_id": "of-another-length"})
    client.xadd(stream, spoilt | {"pet_id": "nobody", "event_id": "petless"})
    good = EmbeddingIngested.of(pet_id=42, media_id="m", model="other@1", embedding=[0.25] * 16, event_id="other-model")
    kwargs = good.to_kwargs()
    # a vector of the wrong model for the pet: refused by the service, not at admission
    client.xadd(stream, {"message": _encoded(CLUSTER_EMBEDDING, kwargs, "other-model")})
    client.xadd(stream, {"message": _encoded("no_such_actor", kwargs, "unknown-actor")})
    broken = kwargs | {"embedding": b64encode(np.full(16, np.nan, "<f4").tobytes()).decode()}
    client.xadd(stream, {"message": _encoded(CLUSTER_EMBEDDING, broken, "not-a-number")})
    return [*words, str(kwargs["embedding"]), str(broken["embedding"])]


def _encoded(actor: str, kwargs: dict[str, Any], message_id: str) -> bytes:
    message: dramatiq.Message[Any] = dramatiq.Message(EMBEDDING_INGESTED, actor, (), kwargs, {}, message_id=message_id)
    return message.encode()


def _n_dead(client: redis.Redis) -> int:
    return int(client.xlen(f"{{{stream_of(EMBEDDING_INGESTED)}}}:dead"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
