"""Tests of many workers on one pet: nothing is lost or duplicated, and corrections hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections.base import Statement
from sploot_cluster.decide.corrections.dismiss import Dismissal
from sploot_cluster.decide.corrections.exclude import Exclusion
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.split import Split
from sploot_cluster.pet.models import NOISE, Correction, MediaId, PetState
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, name, names, take
from tests.sploot_cluster.busy_pet import Answers, Worker
from tests.support import eventually

ROOT = Path(__file__).parents[2]


# -- invariants ------------------------------------------------------------------------------------------------------


def columns_agree(client: redis.Redis) -> bool:
    """Return whether all columns of the pet have the same length and contain the same items."""
    keys = PetKeys.of(PET)
    n, dim = (int(value or 0) for value in client.hmget(keys.meta, "n_media", "dim"))
    media = client.lrange(keys.media, 0, -1)
    rows = {item: int(row) for item, row in client.hgetall(keys.rows).items()}
    vectors = client.lrange(keys.vectors, 0, -1)
    assert {*map(len, vectors)} <= {4 * dim}
    lengths = (len(vectors), client.strlen(keys.labels) // 4, client.strlen(keys.origins))
    return rows == {item: row for row, item in enumerate(media)} and lengths == (n, n, n) and len(media) == n


def standing_alone(ledger: Sequence[Correction]) -> list[Statement]:
    """Return the corrections in force whose items no later correction names. They hold whatever else happens."""
    alone: list[Statement] = []
    taken_back: set[int] = set()
    named: set[MediaId] = set()
    for correction in reversed(ledger):
        if correction.revision in taken_back:
            continue
        undoes = correction.undoes()
        if undoes is not None:
            taken_back.add(undoes)
            continue
        assert isinstance(correction, Statement)
        media = {*correction.media()}
        if not media & named:
            alone.append(correction)
        named |= media
    return alone


def holds(correction: Statement, state: PetState) -> bool:
    def labels(media: Iterable[MediaId]) -> set[int]:
        return {int(state.labels[state.rows[item]]) for item in media}

    match correction:
        case Merge():
            return len(labels(item for group in correction.groups.values() for item in group)) == 1
        case Dismissal():
            return labels(correction.media()) == {NOISE}
        case Split():
            moved, remaining = labels(correction.moved), labels(correction.remaining)
            return len(moved) == 1 and not moved & remaining
        case Exclusion():
            return not (labels(correction.excluded) - {NOISE}) & labels(correction.remaining)
        case _:
            raise TypeError(f"no rule for {correction.kind}")


def assert_nothing_was_lost(client: redis.Redis, answers: Sequence[Answers]) -> PetState:
    state = RedisPetStore(client).load(PET)
    revisions = sorted(revision for worker in answers for revision in worker.revisions)
    operations = sorted(operation for worker in answers for operation in worker.operations)

    assert columns_agree(client)
    assert len(set(state.media)) == state.n_media
    assert set(state.media) == {item for worker in answers for item in worker.media}
    assert revisions == list(range(1, state.revision + 1))
    assert sorted(correction.operation_id for correction in state.ledger) == operations
    assert [correction.revision for correction in state.ledger] == sorted(
        correction.revision for correction in state.ledger
    )
    assert set(np.unique(state.labels)) - {-1} == set(state.clusters)
    assert sum(worker.constraints_lost for worker in answers) == 0
    assert all(holds(correction, state) for correction in standing_alone(state.ledger))
    return state


# -- threads, each with its own cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_threads_that_change_the_same_pet_lose_nothing(redis_client: redis.Redis, seed: int) -> None:
    store = RedisPetStore(redis_client)
    workers = [Worker(ClusterService(store), seed * 100 + number) for number in range(4)]

    with ThreadPoolExecutor(len(workers)) as pool:
        answers = list(pool.map(lambda worker: worker.work(40), workers))

    state = assert_nothing_was_lost(redis_client, answers)
    assert state.ledger, "a run without corrections proves little"
    assert state.n_media > 40


def test_recluster_of_a_busy_pet_finishes(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    for subject in range(3):
        take(ClusterService(store), subject, range(30))
    is_over = Event()

    def arrive(subject: int) -> int:
        service, number = ClusterService(store), 1_000 * (subject + 1)
        while not is_over.is_set():
            take(service, subject, range(number, number + 1))
            number += 1
        return number - 1_000 * (subject + 1)

    with ThreadPoolExecutor(3) as pool:
        arrived = [pool.submit(arrive, subject) for subject in range(3)]
        try:
            eventually(lambda: store.view(PET).n_media > 120)
            reclustered = [ClusterService(store).recluster(PET) for _ in range(3)]
        finally:
            is_over.set()

    view = store.view(PET)
    assert [entry.revision for entry in store.history(PET)] == [answer.revision for answer in reversed(reclustered)]
    assert view.n_media == 90 + sum(future.result() for future in arrived)
    subjects = {name(subject, 0) for subject in range(3)}
    assert all(subjects & set(cluster.media_ids) for cluster in view.clusters)


def test_album_sent_to_every_worker_is_ingested_once(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: take(ClusterService(store), 0, range(25)), range(4)))

    state = store.load(PET)
    assert sorted(state.media) == sorted(names(0, range(25)))
    assert state.revision == 25
    assert sum(not assigned.is_duplicate for album in answers for assigned in album) == 25


# -- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def busy_processes(url: str, operations: int, *, workers: Sequence[int]) -> Iterator[list[subprocess.Popen[str]]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sploot_cluster.busy_pet", url, str(worker), str(operations)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in workers
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_processes_that_change_the_same_pet_lose_nothing(redis_client: redis.Redis, redis_url: str) -> None:
    with busy_processes(redis_url, 60, workers=(7, 8)) as processes:
        outputs = [process.communicate(timeout=100)[0] for process in processes]

    answers = [Answers(**json.loads(output)) for output in outputs]
    state = assert_nothing_was_lost(redis_client, answers)
    assert state.ledger


@pytest.mark.slow
def test_pet_is_consistent_after_its_workers_are_killed(redis_client: redis.Redis, redis_url: str) -> None:
    store = RedisPetStore(redis_client)
    for round_ in range(2):
        begun = store.view(PET).revision
        with busy_processes(redis_url, 1_000_000, workers=(2 * round_, 2 * round_ + 1)) as processes:
            eventually(lambda: store.view(PET).revision >= begun + 20, within_s=60)  # noqa: B023  called within the round
            for process in processes:
                process.send_signal(signal.SIGKILL)
            codes = [process.wait(timeout=30) for process in processes]

        state = store.load(PET)
        assert codes == [-signal.SIGKILL] * 2
        assert columns_agree(redis_client)
        assert len(set(state.media)) == state.n_media
        assert set(np.unique(state.labels)) - {-1} <= set(state.clusters)
        assert all(holds(correction, state) for correction in standing_alone(state.ledger))

    survivors = Worker(ClusterService(store), 99).work(20)
    assert set(survivors.media) <= set(store.load(PET).media)
