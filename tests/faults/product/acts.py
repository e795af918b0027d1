"""The faults of the campaign against the product: those of the broker's campaign, and faults on the product's keys."""

from __future__ import annotations

import random
import time
from typing import Final

from tasks.contracts import GROUP, QUEUES, stream_of
from tests.faults.nemeses import (
    SERVER,
    Act,
    block_the_log,
    crash_server,
    cut_a_script,
    cut_everything,
    fill_memory,
    fill_the_disk,
    freeze,
    hang,
    kill_a_master,
    kill_a_process,
    lose_a_machine,
    refuse,
    roll_out,
)
from tests.faults.stage import Stage


def delete_a_key(stage: Stage, rng: random.Random) -> str:
    """Delete a key that the product rebuilds automatically."""
    stream = stream_of(rng.choice(QUEUES))
    keys = [f"{{{stream}}}:{what}" for what in ("consumers", "timer", "swept", "suspects", "promoter")]
    keys += ["sploot:pets", f"{{pet:{rng.randrange(1, 15)}}}:tree", "sploot:backlog", "sploot:media"]
    stage.client.delete(rng.choice(keys))
    return "DEL of a key"


def acknowledge_by_hand(stage: Stage, rng: random.Random) -> str:
    """Acknowledge entries that workers hold, or claim them for another consumer, as an operator may."""
    stream = stream_of(rng.choice(QUEUES))
    found = stage.client.xpending_range(stream, GROUP, "-", "+", 100)
    ids = [one["message_id"] for one in rng.sample(found, k=min(len(found), rng.randrange(1, 10)))]
    if ids and rng.random() < 0.5:
        stage.client.xack(stream, GROUP, *ids)
    elif ids:
        stage.client.xclaim(stream, GROUP, "rescue-consumer", 0, ids)
    return "XACK or XCLAIM"


def delete_a_consumer(stage: Stage, rng: random.Random) -> str:
    stream = stream_of(rng.choice(QUEUES))
    consumers = [one["name"] for one in stage.client.xinfo_consumers(stream, GROUP)]
    if consumers:
        stage.client.xgroup_delconsumer(stream, GROUP, rng.choice(consumers))
    return "XGROUP DELCONSUMER"


def wait(stage: Stage, rng: random.Random) -> str:
    """Let the product work for a while, so that there is something to break."""
    time.sleep(rng.uniform(0.5, 2.0))
    return "waited"


ACTS: Final[tuple[Act, ...]] = (
    *(wait,) * 12,
    *(cut_a_script,) * 4,
    *SERVER,
    cut_everything,
    refuse,
    hang,
    kill_a_process,
    kill_a_process,
    kill_a_master,
    lose_a_machine,
    freeze,
    block_the_log,
    crash_server,
    fill_memory,
    fill_the_disk,
    roll_out,
    delete_a_key,
    delete_a_key,
    acknowledge_by_hand,
    delete_a_consumer,
)
