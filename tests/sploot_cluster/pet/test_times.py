"""Tests of the times that producers state for items, and of the order of items by these times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.pet.times import UNKNOWN, ItemOrder, ms_of, time_of
from sploot_cluster.pet.views import ordered
from sploot_cluster.store.port import PetStore

PET = PetId(42)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "time",
    [
        NOON,
        NOON.replace(microsecond=999_000),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
    ],
    ids=str,
)
def test_time_is_stored_to_the_millisecond(time: datetime) -> None:
    assert time_of(ms_of(time)) == time
    assert time_of(ms_of(time + timedelta(microseconds=1))) == time


def test_time_in_another_time_zone_is_stored_in_utc() -> None:
    time = time_of(ms_of(NOON.astimezone(timezone(timedelta(hours=-9)))))

    assert (time, time and time.tzinfo) == (NOON, UTC)


def test_none_is_stored_as_the_unknown_time_and_read_back_as_none() -> None:
    assert (ms_of(None), time_of(UNKNOWN)) == (UNKNOWN, None)


def test_items_are_sorted_by_time_and_items_without_a_time_come_last(store: PetStore) -> None:
    service = ClusterService(store)
    times = {"a": None, "b": NOON, "c": NOON - timedelta(days=1), "d": None, "e": NOON}
    for item, time in times.items():
        service.assign(PET, MediaId(item), model="clip@1", vector=[1.0, 0.1], occurred_at=time)
    service.dismiss(PET, [MediaId("a"), MediaId("c")], operation_id="1", by="ada")

    view = ordered(service.clusters(PET), ItemOrder.OCCURRED_AT)

    assert ordered(service.clusters(PET), ItemOrder.ARRIVED).dismissed == ("a", "c")
    assert view.occurred_at == {item: time for item, time in times.items() if time}
    assert [*view.noise, *(item for cluster in view.clusters for item in cluster.media_ids)] == ["b", "e", "d"]
    assert view.dismissed == ("c", "a")


def test_item_that_is_sent_again_keeps_its_time(store: PetStore) -> None:
    service = ClusterService(store)
    for time in (NOON, None, NOON + timedelta(days=1)):
        service.assign(PET, MediaId("a"), model="clip@1", vector=[1.0, 0.1], occurred_at=time)

    assert service.clusters(PET).occurred_at == {"a": NOON}
    assert service.why(PET, MediaId("a")).occurred_at == NOON
