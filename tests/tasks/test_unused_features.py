"""Ordering keys are a feature of the broker that this product does not use: they add no key and no command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import redis
from dramatiq.middleware import Retries

from broker import RedisStreamsBroker
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, GROUP, stream_of
from tests.support import eventually


def commands_until(monitor: Any, mark: str) -> Iterator[str]:
    """Yield the commands that the server ran until the mark was echoed, including those in scripts."""
    while (command := str(monitor.next_command()["command"])) != f"ECHO {mark}":
        yield command


def test_job_without_an_ordering_key_uses_no_redis_keys_of_that_feature(redis_client: redis.Redis) -> None:
    broker = RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[Retries(max_retries=1, min_backoff=1)])
    ran: list[int] = []

    def undo(revision: int, **_: Any) -> None:
        ran.append(revision)
        if revision == 1:
            raise RuntimeError("retried, then a dead letter")

    dramatiq.actor(actor_name="undo_feedback", queue_name=CLUSTER_FEEDBACK, broker=broker)(undo)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    with redis_client.monitor() as monitor, ClusterTasks(client=redis_client) as tasks:
        worker.start()
        for revision in (1, 2, 3):
            tasks.undo(42, revision)
        eventually(lambda: broker.stats(CLUSTER_FEEDBACK).dead == 1 and broker.counters(CLUSTER_FEEDBACK)["acked"] == 2)
        worker.stop()
        broker.close()
        redis_client.echo("done")
        commands = list(commands_until(monitor, "done"))

    ordered = f"{{{stream_of(CLUSTER_FEEDBACK)}}}:ordered"
    touched = {command.split()[0].upper() for command in commands if ordered in command} - {"EVALSHA", "EVAL"}
    assert sorted(ran) == [1, 1, 2, 3]
    # one command each: stats counts messages in line, and the janitor looks for keys of messages that disappeared
    assert touched <= {"ZCARD", "EXISTS"}, touched
    assert redis_client.keys("*ordered*") == []
