"""The faults of a campaign. A nemesis injects one kind of fault repeatedly while messages flow."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import psutil

from tests.faults.checker import GROUP, STREAM
from tests.faults.outage import READ, Where
from tests.faults.stage import LEASE_MS, Stage, WatchedStage

Act = Callable[[Stage, random.Random], str]

# The scripts that run during the life of a message or for maintenance. The proxy can cut the connection at any of them.
SCRIPTS: Final = (
    "enqueue",
    "enqueue_plain",
    READ,
    "settle",
    "retry",
    "bury",
    "take",
    "tick",
    "sweep",
    "hand_back",
    "beat",
    "start",
    "resync",
    "leave",
)
USUAL: Final = {
    "quick": 700,
    "fails-once": 60,
    "delayed": 60,
    "ordered": 50,
    "unique": 40,
    "pipeline": 40,
    "slow": 20,
    "fails": 15,
    "ordered-fails-once": 10,
    "at-most-two": 30,
    "rated": 30,
    "prioritised": 30,
    "long": 2,
}


@dataclass(frozen=True, slots=True)
class Nemesis:
    """A kind of fault.

    Attributes:
        acts: the faults to inject, one at a time, at random; each returns what it did.
        pause_s: the shortest and the longest pause between two acts.
        kinds: the kinds of messages to enqueue during the faults, by weight.
        stage: the class of stage that the faults need.
    """

    name: str
    acts: tuple[Act, ...]
    pause_s: tuple[float, float] = (0.05, 0.4)
    kinds: dict[str, int] = field(default_factory=lambda: dict(USUAL))
    stage: type[Stage] = Stage


def nothing(stage: Stage, rng: random.Random) -> str:
    return "nothing"


def cut_a_script(stage: Stage, rng: random.Random) -> str:
    """Cut the connection at the next calls of a random script, before the call or its reply arrives."""
    name = rng.choice(SCRIPTS)
    where: Where = rng.choice(("before", "after"))
    stage.outage.aim(name, where, times=rng.choice((1, 1, 2, 5)))
    return f"cut {name} {where}"


def cut_everything(stage: Stage, rng: random.Random) -> str:
    stage.outage.cut_all()
    return "cut every connection"


def refuse(stage: Stage, rng: random.Random) -> str:
    with stage.outage.refusing():
        time.sleep(rng.uniform(0.1, 4.0))
    return "refused connections"


def hang(stage: Stage, rng: random.Random) -> str:
    with stage.outage.hanging():
        time.sleep(rng.uniform(0.1, 4.0))
    return "let connections hang"


def kill_a_process(stage: Stage, rng: random.Random) -> str:
    workers = [worker for pod in stage.pods for worker in pod.workers()]
    if not workers:
        return "found no process to kill"
    with suppress(psutil.NoSuchProcess):
        rng.choice(workers).kill()
    return "killed a process"


def kill_a_master(stage: Stage, rng: random.Random) -> str:
    """Kill only a master, as the kernel does when memory runs out; its workers must not outlive it."""
    rng.choice(stage.pods).lose_master()
    return "killed a master"


def block_the_log(stage: Stage, rng: random.Random) -> str:
    """Stop reading a pod's log for longer than the lease."""
    with rng.choice(stage.pods).blocking_its_log():
        time.sleep(LEASE_MS / 1000 * rng.uniform(1.0, 2.5))
    return "blocked a log"


def lose_a_machine(stage: Stage, rng: random.Random) -> str:
    rng.choice(stage.pods).signal_all(signal.SIGKILL)
    return "killed a pod"


def freeze(stage: Stage, rng: random.Random) -> str:
    """Suspend processes for about the length of a lease, then resume them."""
    workers = [worker for pod in stage.pods for worker in pod.workers()]
    frozen = rng.sample(workers, k=min(len(workers), rng.choice((1, 1, 2))))
    for worker in frozen:
        with suppress(psutil.NoSuchProcess):
            worker.suspend()
    time.sleep(LEASE_MS / 1000 * rng.uniform(0.5, 2.0))
    for worker in frozen:
        with suppress(psutil.NoSuchProcess):
            worker.resume()
    return "froze processes"


def freeze_a_pod(stage: Stage, rng: random.Random) -> str:
    pod = rng.choice(stage.pods)
    pod.signal_all(signal.SIGSTOP)
    time.sleep(LEASE_MS / 1000 * rng.uniform(1.1, 2.0))
    pod.signal_all(signal.SIGCONT)
    return "froze a pod"


def delete_a_consumer(stage: Stage, rng: random.Random) -> str:
    consumers = [one["name"] for one in stage.client.xinfo_consumers(STREAM, GROUP)]
    if consumers:
        stage.client.xgroup_delconsumer(STREAM, GROUP, rng.choice(consumers))
    return "XGROUP DELCONSUMER"


def acknowledge_by_hand(stage: Stage, rng: random.Random) -> str:
    ids = _pending(stage, rng)
    if ids:
        stage.client.xack(STREAM, GROUP, *ids)
    return "XACK"


def claim_by_hand(stage: Stage, rng: random.Random) -> str:
    """Claim entries for an operator's consumer, and in half of the cases acknowledge them."""
    ids = _pending(stage, rng)
    if ids:
        stage.client.xclaim(STREAM, GROUP, "rescue-consumer", 0, ids)
        if rng.random() < 0.5:
            stage.client.xack(STREAM, GROUP, *ids)
    return "XCLAIM"


def destroy_the_group(stage: Stage, rng: random.Random) -> str:
    stage.client.xgroup_destroy(STREAM, GROUP)
    return "XGROUP DESTROY"


def move_the_group(stage: Stage, rng: random.Random) -> str:
    """Move the group to the end of the stream, as an operator does to skip a backlog, or to its beginning."""
    where = rng.choice(("$", "0"))
    stage.client.xgroup_setid(STREAM, GROUP, where)
    return f"XGROUP SETID {where}"


def flush_scripts(stage: Stage, rng: random.Random) -> str:
    stage.client.script_flush()
    return "SCRIPT FLUSH"


def kill_clients(stage: Stage, rng: random.Random) -> str:
    stage.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    return "CLIENT KILL"


def pause_clients(stage: Stage, rng: random.Random) -> str:
    ms = rng.randrange(100, 3_000)
    stage.client.execute_command("CLIENT", "PAUSE", ms, rng.choice(("WRITE", "ALL")))
    time.sleep(ms / 1000)
    return "CLIENT PAUSE"


def sleep_server(stage: Stage, rng: random.Random) -> str:
    stage.client.execute_command("DEBUG", "SLEEP", rng.uniform(0.1, 3.0))
    return "DEBUG SLEEP"


def crash_server(stage: Stage, rng: random.Random) -> str:
    stage.crash_server()
    time.sleep(rng.choice((0.0, 0.3, 3.0)))
    slowly = rng.random() < 0.4
    stage.start_server(slowly=slowly)
    return "crashed Redis" + (", LOADING" if slowly else "")


def restart_server(stage: Stage, rng: random.Random) -> str:
    stage.client.config_set("appendfsync", "everysec")
    stage.stop_server()
    time.sleep(rng.uniform(0.0, 1.0))
    stage.start_server()
    return "restarted Redis"


def fill_memory(stage: Stage, rng: random.Random) -> str:
    stage.client.config_set("maxmemory", 1)
    time.sleep(rng.uniform(0.2, 4.0))
    stage.client.config_set("maxmemory", 0)
    return "filled the memory"


def fill_the_disk(stage: Stage, rng: random.Random) -> str:
    with stage.full_disk():
        time.sleep(rng.uniform(1.0, 5.0))
    return "filled the disk"


def reload(stage: Stage, rng: random.Random) -> str:
    """Send SIGHUP to a master, which may still be booting."""
    rng.choice(stage.pods).signal(signal.SIGHUP)
    return "SIGHUP"


def roll_out(stage: Stage, rng: random.Random) -> str:
    rng.choice(stage.pods).signal(signal.SIGTERM)
    return "SIGTERM"


def die_between_retry_and_ack(stage: Stage, rng: random.Random) -> str:
    """Cut connections at retries, before or after the server runs them, and crash the server meanwhile."""
    stage.outage.aim("retry", rng.choice(("before", "after")), times=4)
    time.sleep(rng.uniform(0.02, 0.1))
    stage.crash_server()
    time.sleep(rng.uniform(0.0, 1.0))
    stage.start_server()
    return "crashed Redis amid retries"


def fail_over(stage: Stage, rng: random.Random) -> str:
    """Kill the master so that its replica takes over. Every command that got a reply has been replicated."""
    assert isinstance(stage, WatchedStage)
    stage.lose_master()
    time.sleep(rng.choice((0.0, 1.0)))
    stage.bring_back()
    return "failed over"


def _pending(stage: Stage, rng: random.Random) -> list[bytes]:
    found = stage.client.xpending_range(STREAM, GROUP, "-", "+", 200)
    return [one["message_id"] for one in rng.sample(found, k=min(len(found), rng.randrange(1, 20)))]


OPERATOR: Final = (delete_a_consumer, acknowledge_by_hand, claim_by_hand, destroy_the_group, move_the_group)
SERVER: Final = (flush_scripts, kill_clients, pause_clients, sleep_server)
BY_NAME: Final = {
    nemesis.name: nemesis
    for nemesis in (
        Nemesis("calm", (nothing,)),
        Nemesis("wire", (cut_a_script, cut_a_script, cut_a_script, cut_everything), (0.01, 0.1)),
        Nemesis("outages", (refuse, hang), (0.2, 1.5)),
        Nemesis("kills", (kill_a_process, kill_a_process, lose_a_machine), (0.2, 2.0)),
        Nemesis("masters", (kill_a_master,), (0.5, 2.5)),
        Nemesis("logs", (block_the_log,), (0.0, 0.2), {**USUAL, "talks": 200}),
        Nemesis("freezes", (freeze, freeze, freeze_a_pod), (0.1, 1.0)),
        Nemesis("operator", OPERATOR),
        Nemesis("server", SERVER, (0.1, 0.6)),
        Nemesis("crashes", (crash_server,), (0.5, 3.0)),
        Nemesis("restarts", (restart_server,), (0.5, 3.0)),
        Nemesis("memory", (fill_memory,), (0.3, 1.5)),
        Nemesis("disk", (fill_the_disk,), (0.3, 1.5)),
        Nemesis("reloads", (reload, reload, roll_out), (0.1, 2.0)),
        Nemesis("retries", (die_between_retry_and_ack,), (0.5, 2.0), {"fails-once": 6, "fails": 1, "quick": 3}),
        Nemesis(
            "priorities",
            (cut_a_script, cut_a_script, cut_a_script, kill_a_process, reload),
            (0.05, 0.5),
            {**USUAL, "urgent": 500},
        ),
        Nemesis("failovers", (fail_over,), (0.5, 3.0), stage=WatchedStage),
        Nemesis("poison", (nothing,), kinds={**USUAL, "kills": 2}),
        Nemesis(
            "everything",
            (
                *(cut_a_script,) * 10,
                *OPERATOR,
                *SERVER,
                refuse,
                hang,
                kill_a_process,
                kill_a_master,
                block_the_log,
                lose_a_machine,
                freeze,
                crash_server,
                fill_memory,
                fill_the_disk,
                reload,
                roll_out,
            ),
            (0.05, 0.5),
        ),
    )
}
