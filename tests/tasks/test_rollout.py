"""A rollout by pet: all languages include the same pets, and a higher percentage only adds pets."""

from __future__ import annotations

import pytest
import redis

from sploot_cluster.errors import InvalidInput
from tasks.client import ClusterTasks
from tasks.contracts import EMBEDDING_INGESTED, stream_of
from tasks.rollout import is_rolled_out


# The examples in the docstring of the module, for producers in other languages.
@pytest.mark.parametrize(("pet_id", "reached_at"), [(1, 84), (42, 89), (9, 10)])
def test_checksum_determines_the_percentage_that_includes_a_pet(pet_id: int, reached_at: int) -> None:
    assert not is_rolled_out(pet_id, reached_at - 1)
    assert is_rolled_out(pet_id, reached_at)


def test_rollout_includes_no_pet_at_0_and_all_at_100() -> None:
    assert not any(is_rolled_out(pet_id, 0) for pet_id in range(1, 2_000))
    assert all(is_rolled_out(pet_id, 100) for pet_id in range(1, 2_000))


def test_higher_percentage_removes_no_pet() -> None:
    for pet_id in range(1, 500):
        reached = [is_rolled_out(pet_id, percent) for percent in range(101)]
        assert reached == sorted(reached)


@pytest.mark.parametrize("first", [1, 10**9, 2**62])
def test_share_of_pets_is_close_to_the_percentage(first: int) -> None:
    n_in = sum(is_rolled_out(pet_id, 10) for pet_id in range(first, first + 20_000))

    assert n_in == pytest.approx(2_000, rel=0.1)


def test_client_withholds_items_of_pets_outside_the_rollout(redis_url: str, redis_client: redis.Redis) -> None:
    with ClusterTasks(redis_url, ingest_rollout_percent=50) as tasks:
        one = [tasks.ingest(pet_id=pet, media_id="m", model="clip@1", embedding=[0.1, 0.2]) for pet in (9, 42)]
        many = tasks.ingest_many(
            {"pet_id": pet, "media_id": "n", "model": "clip@1", "embedding": [0.1, 0.2]} for pet in (42, 9)
        )

        assert [job.withheld for job in one] == [False, True]
        assert [job.withheld for job in many] == [True, False]
        assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 2
        assert tasks.job(one[1].job_id) is None
        # corrections and reclusters concern pets that already have clusters
        assert not tasks.recluster(pet_id=42).withheld


@pytest.mark.parametrize("percent", [-1, 101])
def test_percentage_out_of_range_is_refused(percent: int) -> None:
    with pytest.raises(InvalidInput, match="ingest_rollout_percent"):
        ClusterTasks("redis://127.0.0.1:1", ingest_rollout_percent=percent)
