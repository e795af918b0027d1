"""The examples, settings and links of the broker's README are correct."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

import broker
from broker import RedisStreamsBroker
from broker.command import main
from broker.keys import QueueKeys
from broker.metrics import GAUGES
from broker.places import HAND_BACK_AFTER_S, MOST_AHEAD, NOTHING_AHEAD_FOR_S
from deploy.broker_distribution import PACKAGE
from tests.faults.nemeses import BY_NAME
from tests.support import eventually

ROOT = Path(broker.__file__).parents[1]
README = Path(broker.__file__).with_name("README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def block(language: str, *, containing: str) -> str:
    return next(one for one in blocks(language) if containing in one)


@pytest.fixture(autouse=True)
def wheels_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the package importable under the wheel's name, which the README's examples use."""
    monkeypatch.setitem(sys.modules, PACKAGE, broker)


def test_readme_examples_run(redis_url: str, redis_client: redis.Redis) -> None:
    use, look = block("python", containing="__main__"), block("python", containing="broker.stats")
    assert "redis://127.0.0.1:6379/0" in use
    # functions defined by exec have no source file from which annotations could be read
    scope: dict[str, object] = {"__name__": "__main__"}
    before = dramatiq.broker.global_broker
    try:
        exec(use.replace("redis://127.0.0.1:6379/0", redis_url), scope)
        exec(look, scope)
        used = scope["broker"]
        assert isinstance(used, RedisStreamsBroker)
        stats = used.stats("default")
        worker = dramatiq.Worker(used, worker_timeout=50)
        worker.start()
        eventually(lambda: used.counters("default")["acked"] == 1_004, within_s=30)
        worker.stop()
        used.close()
    finally:
        dramatiq.broker.global_broker = before

    assert (stats.waiting, stats.delayed) == (1_003, 1)
    assert redis_client.xlen("streams:default") == 0


def test_examples_of_features_run(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    used = RedisStreamsBroker(redis_url)
    dramatiq.set_broker(used)
    scope: dict[str, Any] = {"dramatiq": dramatiq, "resize": dramatiq.actor(actor_name="resize")(print)}

    for part in ("max_concurrent", "report_progress", "@batch"):
        exec(block("python", containing=part), scope)
    messages = [broker.BatchedMessage(scope["index"].message(document)) for document in ("a.txt", "b.txt")]
    scope["index_many"](messages)
    # in a new thread, because in this one, an earlier test may have simulated the death of a process that ran a job
    with ThreadPoolExecutor(1) as thread:
        thread.submit(scope["export"], ["a", "b"]).result()
    limits = [(key.limits.kind, key.n_at_work) for key in used.inspector("default").keys_at_work()]
    used.close()

    assert all(message.is_done for message in messages)
    assert capsys.readouterr().out == "indexing a.txt b.txt\n"
    assert sorted(limits) == [("concurrency", 2), ("ordering", 1), ("rate", 1), ("rate", 1)]


def test_migration_example_runs_and_leaves_nothing_behind(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before, after) = (
        one.replace("redis://127.0.0.1:6379/0", redis_url) for one in blocks("python") if "namespace=" in one
    )
    (migrate,) = [line for one in blocks("bash") for line in one.splitlines() if " migrate " in line]
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    scope: dict[str, object] = {}

    for program in (before, after):
        exec(program, scope)
        used = scope["broker"]
        assert isinstance(used, dramatiq.Broker)
        assert dramatiq.get_broker() is used
        used.declare_queue("default")
        used.enqueue(dramatiq.Message("default", "resize", (type(used).__name__,), {}, {}))
        used.close()
    _, *arguments = shlex.split(migrate.replace("redis://127.0.0.1:6379/0", redis_url))
    done = subprocess.run([sys.executable, "-m", "broker", *arguments], capture_output=True, text=True, cwd=ROOT)

    assert done.stdout.endswith("nothing is left\n"), done.stderr
    assert redis_client.xlen("streams:default") == 2


def test_redis_commands_shown_in_the_readme_work(redis_url: str, redis_client: redis.Redis) -> None:
    used = RedisStreamsBroker(redis_url, middleware=[], lease_ms=2_000)
    used.declare_queue("default")
    used.enqueue(dramatiq.Message("default", "resize", (), {}, {}))
    consumer = used.consume("default", timeout=2_000)
    delivery = next(consumer)
    assert delivery is not None
    consumer.nack(delivery)
    shown = [line for one in blocks("bash") for line in one.splitlines() if line.startswith("redis-cli")]

    answers = []
    for line in shown:
        words = shlex.split(line, comments=True)[1:]
        answers.append(
            redis_client.execute_command(*[used.consumer_name if word == "NAME" else word for word in words])
        )
    consumer.close()
    used.close()

    assert len(answers) == 4
    (dead_letter,) = answers[2]
    assert b"failed" in dead_letter[1].values()


def test_commands_shown_in_the_readme_run(redis_url: str, redis_client: redis.Redis) -> None:
    used = RedisStreamsBroker(redis_url, middleware=[])
    used.enqueue(dramatiq.Message("default", "resize", ("cat.jpg",), {}, {}))
    used.close()
    shown = [line for one in blocks("bash") for line in one.splitlines() if line.startswith("dramatiq-durable-streams")]

    codes = {}
    for line in shown:
        command, *arguments = shlex.split(line, comments=True)[1:]
        if command not in ("metrics", "migrate"):
            codes[command] = main([command, *arguments, "--url", redis_url])

    assert len(codes) >= 9
    assert set(codes.values()) == {0}
    assert redis_client.xlen("streams:default") == 0, "the message was cancelled"


def test_every_test_named_in_the_guarantees_exists() -> None:
    page = (ROOT / "docs" / "broker-guarantees.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    rounds = {word for line in re.findall(r"campaign (`.+`)", page) for word in re.findall(r"`(\w+)`", line)}

    assert len(named) > 30
    assert [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text()] == []
    assert rounds
    assert rounds <= BY_NAME.keys()
    numbers = [int(number) for number in re.findall(r"^### (\d+)\. ", page, flags=re.MULTILINE)]
    assert numbers == [*range(1, len(numbers) + 1)]


def test_readme_refers_to_nothing_in_this_repository() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)

    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert re.findall(r"`make |sploot|python -m broker|(?:from|import) broker\b", README) == []


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", README, flags=re.MULTILINE))
    parameters = inspect.signature(RedisStreamsBroker).parameters
    settings = {
        name: str(parameter.default) if not isinstance(parameter.default, str) else f'"{parameter.default}"'
        for name, parameter in parameters.items()
        if name not in {"url", "client", "middleware", "sharded", "decoders", "checks"}
    }

    assert documented == settings


def test_readme_names_every_redis_key() -> None:
    keys = QueueKeys("streams", "<queue>")
    properties = [name for name, of_class in vars(QueueKeys).items() if isinstance(of_class, cached_property)]
    single = {getattr(keys, name) for name in properties if name != "work"}

    named = set(re.findall(r"`((?:\{streams:<queue>\})?:[\w:-]+(?:<\w+>)?)`", README))

    assert {f"{{streams:<queue>}}{name.removeprefix('{streams:<queue>}')}" for name in named} == {
        *single - {keys.stream},
        keys.unique("<key>"),
        keys.recent("<producer>"),
        keys.progress("<id>"),
    }


def test_readme_examples_import_only_public_names() -> None:
    names = set(re.findall(rf"from {PACKAGE} import (\w+)", README))

    assert names
    assert names <= set(broker.__all__)


def test_readme_names_every_gauge_and_the_wheel_of_this_version() -> None:
    (gauges,) = re.findall(r"^- Gauges: (.*?)\n- ", README, flags=re.MULTILINE | re.DOTALL)

    assert re.findall(r"`(\w+)`", gauges) == [name for name, *_ in GAUGES]
    assert f"pip install {PACKAGE}-{broker.__version__}-py3-none-any.whl\n" in README


def test_readme_lists_the_limits_of_reading_ahead() -> None:
    (table,) = re.findall(r"^\| reading ahead \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, flags=re.MULTILINE)

    assert [float(cell) for cell in re.findall(r"\| ([\d.]+) \|$", table, flags=re.MULTILINE)] == [
        MOST_AHEAD,
        1_000 * HAND_BACK_AFTER_S,
        1_000 * NOTHING_AHEAD_FOR_S,
    ]
