"""What the broker's README says is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import dramatiq
import redis

import broker
from broker import RedisStreamsBroker
from tests.support import eventually

README = Path(broker.__file__).with_name("README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_examples_run(redis_url: str, redis_client: redis.Redis) -> None:
    use, look = blocks("python")
    assert "redis://127.0.0.1:6379/0" in use
    # functions of an example have no file whose annotations could be read
    scope: dict[str, object] = {}
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


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", README, flags=re.MULTILINE))
    parameters = inspect.signature(RedisStreamsBroker).parameters
    settings = {
        name: str(parameter.default) if not isinstance(parameter.default, str) else f'"{parameter.default}"'
        for name, parameter in parameters.items()
        if name not in {"url", "client", "middleware", "decoders"}
    }

    assert documented == settings


def test_every_key_is_named() -> None:
    table = re.findall(r"\{ns:q\}:([\w:]+)", (Path(broker.__file__).with_name("keys.py")).read_text())

    assert len(table) == 13
    for name in table:
        assert f":{name.partition(':<')[0]}" in README, name


def test_what_it_imports_is_public() -> None:
    names = set(re.findall(r"from broker import (\w+)", README))

    assert names
    assert names <= set(broker.__all__)
