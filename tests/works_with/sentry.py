"""A program with sentry-sdk's Dramatiq integration, which prints the reports that it would send.

    python -m tests.works_with.sentry REDIS_URL

sentry-sdk changes Dramatiq's Broker for the whole process, so it runs in a separate process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import dramatiq
import sentry_sdk
from sentry_sdk.integrations.dramatiq import DramatiqIntegration

events: list[Any] = []
transactions: list[Any] = []


def keep(kept: list[Any]) -> Any:
    def before_send(event: Any, _: Any) -> None:
        kept.append(event)

    return before_send


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    traces_sample_rate=1.0,
    before_send=keep(events),
    before_send_transaction=keep(transactions),
    integrations=[DramatiqIntegration()],
    # no thread that outlives the program
    auto_session_tracking=False,
)

from broker import RedisStreamsBroker  # noqa: E402  # after sentry_sdk.init, as its documentation demands

broker = RedisStreamsBroker(
    sys.argv[1], lease_ms=2_000, max_deliveries=2, middleware=[dramatiq.middleware.Retries(max_retries=0)]
)


@dramatiq.actor(broker=broker, queue_name="q")
def work(label: str) -> None:
    raise AssertionError(f"{label} must not run")


@dramatiq.actor(broker=broker, queue_name="q")
def fail() -> None:
    raise ValueError("as asked")


@dramatiq.actor(broker=broker, queue_name="q")
def succeed() -> None:
    pass


if __name__ == "__main__":
    with sentry_sdk.start_transaction(name="request") as request:
        fail.send()
        succeed.send()
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    broker.join("q", timeout=30_000)
    worker.stop()
    broker.close()
    failures = [event["exception"]["values"][-1] | event["contexts"]["dramatiq"]["data"] for event in events]
    jobs = [(one["transaction"], one["contexts"]["trace"]) for one in transactions if one["transaction"] != "request"]
    answer = {
        # a set, because on every broker Sentry reports each failure a second time, from Dramatiq's log
        "failures": sorted({(failure["type"], failure["actor_name"]) for failure in failures}),
        "jobs": sorted([name, trace["status"], trace["trace_id"] == request.trace_id] for name, trace in jobs),
    }
    print(json.dumps(answer))
