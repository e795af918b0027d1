"""The program of the campaign's workers: ``dramatiq tests.faults.worker``."""

from __future__ import annotations

import logging
import os
import random
import signal
import time

import dramatiq
from dramatiq.middleware import Callbacks, CurrentMessage, Pipelines, Retries, ShutdownNotifications, TimeLimit

from broker import RedisStreamsBroker
from tasks.observe.logs import configure_logging
from tests.faults import QUEUE, URGENT
from tests.faults.address import where_redis_is
from tests.faults.ledger import Ledger

configure_logging("INFO")
logger = logging.getLogger("faults")
lease_ms = int(os.environ["FAULTS_LEASE_MS"])
ledger = Ledger(os.environ["FAULTS_LEDGER_URL"])
broker = RedisStreamsBroker(
    **where_redis_is(os.environ),
    lease_ms=lease_ms,
    master_grace_ms=1_000,
    queue_priorities={URGENT: -1},
    # shorter than an outage, so that follow-ups of a finished job cannot be enqueued during one
    enqueue_timeout_ms=500,
    middleware=[
        TimeLimit(),
        ShutdownNotifications(),
        Callbacks(),
        Pipelines(),
        Retries(min_backoff=20, max_backoff=200, max_retries=3),
        CurrentMessage(),
    ],
)
dramatiq.set_broker(broker)


class AlwaysFails(Exception):
    """Raised by jobs that fail on purpose."""


@dramatiq.actor(queue_name=QUEUE)
def job(uid: str, kind: str) -> None:
    """Behave as the kind of the message requires, and record the end of the job."""
    message = CurrentMessage.get_current_message()
    assert message is not None
    match kind:
        case "fails-once" | "ordered-fails-once" if not message.options.get("retries"):
            raise AlwaysFails("the first time")
        case "fails":
            raise AlwaysFails("every time")
        case "kills":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        case "ordered":
            time.sleep(random.uniform(0, 0.02))
        case "talks":
            for _ in range(20):
                logger.info("a long line, so that a log which nobody reads is full soon", extra={"more": "-" * 2_000})
        case "slow":
            time.sleep(0.2)
        case "long":
            time.sleep(lease_ms / 1000 * 2.5)
    ledger.ran(uid, line=message.options.get("ordering_key"))


@dramatiq.actor(queue_name=URGENT, priority=-1)
def urgent_job(uid: str, _: str) -> None:
    """Run a job of the queue with the higher priority."""
    ledger.ran(uid)


@dramatiq.actor(queue_name=QUEUE)
def follow(_: object, uid: str) -> None:
    """Run the second stage of a pipeline."""
    ledger.ran(uid)
