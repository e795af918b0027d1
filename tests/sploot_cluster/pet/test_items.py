"""Tests of pages of items, on both stores and over HTTP."""

from __future__ import annotations

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, UnreadablePet
from sploot_cluster.pet.items import ItemPage
from sploot_cluster.pet.models import PetId
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, grouped, name, take
from tests.sploot_cluster.api.front import API, Front


@pytest.fixture(params=["redis", "memory"])
def service(request: pytest.FixtureRequest) -> ClusterService:
    """A service with a pet that has two clusters of eight items each; the third item of the first is dismissed."""
    if request.param == "memory":
        service = grouped(MemoryPetStore(), 2, range(8))
    else:
        service = grouped(RedisPetStore(request.getfixturevalue("redis_client")), 2, range(8))
    service.dismiss(PET, [name(0, 2)], operation_id="1", by="ada")
    return service


def pages(service: ClusterService, *, limit: int) -> list[ItemPage]:
    found = [service.items(PET, limit=limit)]
    while found[-1].next_cursor is not None:
        found.append(service.items(PET, limit=limit, cursor=found[-1].next_cursor))
    return found


@pytest.mark.parametrize(("limit", "sizes"), [(5, [5, 5, 5, 1]), (8, [8, 8]), (100, [16])])
def test_pages_list_every_item_once_with_its_cluster_and_origin(
    service: ClusterService, limit: int, sizes: list[int]
) -> None:
    view = service.clusters(PET)
    places = {item: one.cluster_id for one in view.clusters for item in one.media_ids}

    found = pages(service, limit=limit)

    assert [len(page.items) for page in found] == sizes
    assert {(page.pet_id, page.revision, page.n_media) for page in found} == {(PET, view.revision, 16)}
    items = [item for page in found for item in page.items]
    assert [item.media_id for item in items] == [name(subject, number) for subject in range(2) for number in range(8)]
    assert {item.media_id: item.cluster_id for item in items if item.cluster_id} == places
    assert [item.media_id for item in items if item.origin == "dismissed"] == [name(0, 2)]
    assert {item.origin for item in items} == {"dismissed", "core"}


def test_items_that_arrive_between_pages_are_on_the_last_page(service: ClusterService) -> None:
    first = service.items(PET, limit=10)
    take(service, 0, range(90, 91))

    rest = service.items(PET, limit=10, cursor=first.next_cursor)

    assert (len(rest.items), rest.items[-1].media_id, rest.next_cursor) == (7, name(0, 90), None)


def test_cursor_is_refused_after_a_deletion(service: ClusterService) -> None:
    cursor = service.items(PET, limit=10).next_cursor
    service.delete_media(PET, [name(0, 0)], by="eve")

    with pytest.raises(InvalidInput, match=r"cursor.*deleted.*begin again"):
        service.items(PET, limit=10, cursor=cursor)

    assert len(service.items(PET).items) == 15


def test_pet_without_data_has_one_empty_page(service: ClusterService) -> None:
    page = service.items(PetId(7))

    assert (page.revision, page.n_media, page.items, page.next_cursor) == (0, 0, (), None)


def test_items_of_a_damaged_pet_are_not_listed(redis_client: redis.Redis) -> None:
    service = grouped(RedisPetStore(redis_client), 2, range(8))
    redis_client.delete(PetKeys.of(PET).labels)

    with pytest.raises(UnreadablePet):
        service.items(PET)


def test_items_are_listed_over_http() -> None:
    front = Front()
    take(front.service, 0, range(3))
    with front.http as http:
        first = http.get(f"{API}/pets/{PET}/items", params={"limit": 2})
        cursor = first.json()["next_cursor"]
        rest = http.get(f"{API}/pets/{PET}/items", params={"cursor": cursor})
        unchanged = http.get(f"{API}/pets/{PET}/items", headers={"If-None-Match": first.headers["ETag"]})
        stale = http.get(f"{API}/pets/{PET}/items", params={"cursor": "1-00000000"})
        wrong = http.get(f"{API}/pets/{PET}/items", params={"cursor": "x"})

    item = {"media_id": name(0, 0), "cluster_id": None, "origin": "noise", "occurred_at": None}
    assert (first.status_code, first.json()["items"][0]) == (200, item)
    assert [one["media_id"] for one in rest.json()["items"]] == [name(0, 2)]
    assert unchanged.status_code == 304
    assert [answer.status_code for answer in (stale, wrong)] == [422, 422]
    assert stale.json()["errors"][0]["field"] == "cursor"
