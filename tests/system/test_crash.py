"""Workers are killed with SIGKILL under load: delivery is at-least-once, effects happen once."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from broker import RedisStreamsBroker
from sploot_cluster.pet.models import PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.demo.stack import BOOT_TIMEOUT_MS, STOP_WITHIN_S, Pod, Pods
from tasks.redis_access.embedded import EmbeddedRedis
from tests.support import eventually
from tests.system.events import flat_event, free_port

N_PETS, N_MEDIA, N_KILLS = 4, 60, 2  # a small case; make test-faults kills workers for much longer


def worker_pod(number: int, redis_url: str, directory: Path) -> Pod:
    """Return a pod that runs the stock worker with one process, and restarts whenever it ends."""
    command = [sys.executable, "-m", "dramatiq", "tasks.worker", "--processes", "1", "--threads", "2"]
    command += ["--worker-fork-timeout", str(BOOT_TIMEOUT_MS)]
    environ = {**os.environ, "REDIS_URL": redis_url, "WORKER_METRICS_PORT": str(free_port()), "SPLOOT_LEASE_MS": "2000"}
    return Pod(f"worker-{number}", command, environ=environ, log=directory / f"worker-{number}.log")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_items_are_stored_exactly_once_when_workers_are_killed(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    events = [flat_event(pet_id=pet, number=number) for number in range(N_MEDIA) for pet in range(1, N_PETS + 1)]
    repeated = rng.sample(events, len(events) // 10)  # producers send some events twice

    with (
        EmbeddedRedis(options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as client,
        Pods(workers := [worker_pod(n, server.url, tmp_path) for n in (1, 2)], stop_within_s=STOP_WITHIN_S),
    ):
        broker = RedisStreamsBroker(client=client, group=GROUP, middleware=[])
        kill_after = set(rng.sample(range(20, len(events)), N_KILLS))
        killed: set[int] = set()
        for number, event in enumerate(events):
            client.xadd(stream_of(EMBEDDING_INGESTED), event)
            if number in kill_after:

                def repeat(sent: int = number + 1) -> None:
                    for again in rng.choices(events[:sent], k=50):
                        client.xadd(stream_of(EMBEDDING_INGESTED), again)

                killed.add(kill_one_that_holds_work(broker, rng, but_not=killed, repeat=repeat))
        for event in repeated:
            client.xadd(stream_of(EMBEDDING_INGESTED), event)
        eventually(lambda: client.xlen(stream_of(EMBEDDING_INGESTED)) == 0, within_s=120)

        store = RedisPetStore(client)
        for pet in range(1, N_PETS + 1):
            state = store.load(PetId(pet))
            assert sorted(state.media) == sorted(f"media-{n}" for n in range(N_MEDIA))
            assert len(state.labels) == len(state.origins) == len(state.vectors) == N_MEDIA
            assert all(label == -1 or label in state.clusters for label in state.labels.tolist())
        assert broker.dead_letters(EMBEDDING_INGESTED).list() == []
        assert broker.counters(EMBEDDING_INGESTED)["recovered"] >= N_KILLS
        assert len(killed) == N_KILLS
        eventually(lambda: sum(pod.restarts for pod in workers) >= N_KILLS, within_s=60)
        broker.close()


def kill_one_that_holds_work(
    broker: RedisStreamsBroker, rng: random.Random, *, but_not: set[int], repeat: Callable[[], None]
) -> int:
    """Kill a worker process that holds events, and return its pid.

    The process is frozen first, so that it cannot finish them. If all events are done, ``repeat`` sends more.
    """

    def frozen_holder() -> int | None:
        stats = broker.stats(EMBEDDING_INGESTED)
        holders = [c for c in stats.consumers if c.is_alive and c.pending]
        holders = [c for c in holders if (pid := int(c.name.split(":")[1])) not in but_not and has_booted(pid)]
        if not holders:
            if not stats.waiting:
                repeat()
            return None
        chosen = rng.choice(holders)
        pid = int(chosen.name.split(":")[1])
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return None
        if any(c.name == chosen.name and c.pending for c in broker.stats(EMBEDDING_INGESTED).consumers):
            return pid
        os.kill(pid, signal.SIGCONT)
        return None

    pid = eventually(frozen_holder, within_s=60)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def has_booted(pid: int) -> bool:
    """Return whether the master has seen the worker process boot, and has started its other children since.

    A worker may hold events earlier than that. If it dies then, its master notices only after the minute that it allows
    for booting.
    """
    try:
        master = psutil.Process(pid).parent()
        return master is not None and len(master.children()) > 1
    except psutil.NoSuchProcess:
        return False
