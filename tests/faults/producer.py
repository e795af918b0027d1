"""A producer of the campaign: it enqueues until enough messages are confirmed, and records how each enqueue ended.

Usage: ``python -m tests.faults.producer NAME N_CONFIRMED SEED FOR_S KIND=WEIGHT…``
"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

import dramatiq
from dramatiq.errors import BrokerConnectionError

from broker import EnqueueUncertain, QueueFull, RedisStreamsBroker
from tests.faults import QUEUE, URGENT
from tests.faults.address import where_redis_is
from tests.faults.ledger import Fate, Ledger

MOST_AT_ONCE = 50
# Number of ordering keys of each producer. No other producer uses them, so the order of their messages is known.
N_LINES = 4


def messages_of(uid: str, kind: str, rng: random.Random) -> dramatiq.Message[Any]:
    options: dict[str, Any] = {}
    if kind == "delayed":
        options["delay"] = rng.randrange(1, 2_000)
    if kind.startswith("ordered"):
        options["ordering_key"] = f"{uid.partition('-')[0]}/{rng.randrange(N_LINES)}"
    if kind == "at-most-two":
        options |= {"concurrency_key": rng.choice("abc"), "max_concurrent": 2}
    if kind == "rated":
        options |= {"rate": "50/s"}
    if kind == "prioritised":
        options |= {"priority": rng.randrange(-2, 3)}
    if kind == "unique":
        options["unique_key"] = uid
    if kind == "pipeline":
        following: dramatiq.Message[Any] = dramatiq.Message(
            queue_name=QUEUE, actor_name="follow", args=(), kwargs={"uid": f"{uid}/2"}, options={}
        )
        options["pipe_target"] = following.asdict()
    queue, actor = (URGENT, "urgent_job") if kind == "urgent" else (QUEUE, "job")
    return dramatiq.Message(queue_name=queue, actor_name=actor, args=(uid, kind), kwargs={}, options=options)


def main(name: str, n_confirmed: int, seed: int, for_s: float, weights: dict[str, int]) -> None:
    """Enqueue the messages, spread over ``for_s`` seconds; faults make it take longer."""
    began = time.monotonic()
    rng = random.Random(f"{seed}/{name}")
    ledger = Ledger(os.environ["FAULTS_LEDGER_URL"])
    broker = RedisStreamsBroker(**where_redis_is(os.environ), middleware=[], enqueue_timeout_ms=3_000)
    n_done, number = 0, 0
    while n_done < n_confirmed:
        n = min(rng.choice((1, 1, 2, 10, MOST_AT_ONCE)), n_confirmed - n_done)
        kinds = dict(
            zip(
                (f"{name}-{number + i}" for i in range(n)),
                rng.choices(list(weights), list(weights.values()), k=n),
                strict=True,
            )
        )
        number += n
        ledger.will_enqueue(kinds)
        messages = [messages_of(uid, kind, rng) for uid, kind in kinds.items()]
        fate: Fate = "confirmed"
        try:
            if n == 1:
                broker.enqueue(messages[0], delay=messages[0].options.get("delay"))
            else:
                broker.enqueue_many(messages)
            n_done += n
        except EnqueueUncertain:
            fate = "uncertain"
        except (BrokerConnectionError, QueueFull):
            # one queue may have accepted its messages before the other queue refused
            fate = "refused" if len({message.queue_name for message in messages}) == 1 else "uncertain"
            time.sleep(0.1)
        ledger.did_enqueue(kinds, fate)
        # without this pause, all messages of a round could be sent in one second without faults; after a fault, a burst
        # makes up for the delay
        time.sleep(max(0.0, began + n_done / n_confirmed * for_s - time.monotonic()))
    broker.close()


if __name__ == "__main__":
    weights = {kind: int(weight) for kind, _, weight in (word.partition("=") for word in sys.argv[5:])}
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), weights)
