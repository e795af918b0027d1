"""Tests of previews: applying one makes exactly the changes that it showed, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import StalePreview, UnknownPet, UnreadablePet
from sploot_cluster.pet import previews
from sploot_cluster.pet.models import ClusterId, PetState
from sploot_cluster.pet.previews import Preview
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, grouped, name, take

ONE, TWO = ClusterId(1), ClusterId(2)


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service with clusters 1 and 2 of eight items each, and eight new items of a third subject, which are noise."""
    service = grouped(store, 2, range(8))
    take(service, 2, range(8))
    return service


def comparable(state: PetState) -> tuple[object, ...]:
    return (
        state.labels.tolist(),
        state.origins.tolist(),
        dict(state.clusters),
        dict(state.aliases),
        state.next_cluster,
        state.n_at_recluster,
        state.noise_arrivals,
    )


def kept_preview(store: PetStore) -> Preview:
    preview = store.kept_preview(PET)
    assert preview is not None
    return preview


def test_preview_changes_nothing_and_shows_the_changes(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET)

    previewed = service.preview(PET)

    after = store.load(PET)
    assert after.version == before.version
    assert (previewed.diff.n_from_noise, previewed.diff.new_ids, previewed.diff.kept_ids) == (8, (3,), (1, 2))
    assert (previewed.revision, previewed.result.revision) == (before.revision, before.revision + 1)
    assert previewed.result.kept == "constraints kept 0 of 0"


def test_applied_preview_makes_exactly_the_shown_changes(service: ClusterService, store: PetStore) -> None:
    service.split(PET, ONE, [name(0, 0), name(0, 1)], operation_id="1", by="ada")
    previewed = service.preview(PET)
    shown = kept_preview(store).change.relabelling
    assert shown is not None

    applied = service.apply(PET, previewed.token, by="bob")

    state = store.load(PET)
    assert np.array_equal(state.labels, shown.labels)
    assert np.array_equal(state.origins, shown.origins)
    assert applied == previewed.result
    assert applied.revision == state.revision
    (entry,) = service.history(PET, limit=1)
    assert (entry.kind, entry.by, entry.summary["applied"]) == ("recluster", "bob", previewed.token)
    assert service.compare(PET, state.revision - 1, state.revision).moved == previewed.diff.moved


def test_applied_preview_gives_the_same_state_as_a_recluster(store: PetStore, service: ClusterService) -> None:
    twins_store = MemoryPetStore()
    twin = ClusterService(twins_store)
    for subject in range(2):
        take(twin, subject, range(8))
    twin.recluster(PET)
    take(twin, 2, range(8))

    service.apply(PET, service.preview(PET).token, by="bob")
    twin.recluster(PET)

    assert comparable(store.load(PET)) == comparable(twins_store.load(PET))


@pytest.mark.parametrize(
    "change",
    [
        lambda service: take(service, 0, range(20, 21)),
        lambda service: service.merge(PET, [ONE, TWO], operation_id="1", by="ada"),
        lambda service: service.recluster(PET),
    ],
    ids=["an arrival", "a correction", "a recluster"],
)
def test_stale_preview_is_refused_and_changes_nothing(
    service: ClusterService, store: PetStore, change: Callable[[ClusterService], object]
) -> None:
    token = service.preview(PET).token
    change(service)
    before = store.load(PET)

    with pytest.raises(StalePreview, match="the pet moved from revision 25 to 26") as refused:
        service.apply(PET, token, by="bob")
    with pytest.raises(StalePreview):
        service.previewed(PET, token)

    assert refused.value.token == token
    assert store.load(PET).version == before.version


def test_preview_applied_twice_takes_effect_once(service: ClusterService, store: PetStore) -> None:
    token = service.preview(PET).token

    first = service.apply(PET, token, by="bob")
    second = service.apply(PET, token, by="bob")

    assert first == second
    assert store.view(PET).revision == first.revision


def test_previews_of_the_same_state_are_equal(service: ClusterService) -> None:
    one, other = service.preview(PET), service.preview(PET)

    assert one.token == other.token
    assert one.diff == other.diff == service.previewed(PET).diff


@pytest.mark.parametrize("is_one_waiting", [False, True])
def test_unknown_preview_token_is_refused(service: ClusterService, store: PetStore, is_one_waiting: bool) -> None:
    if is_one_waiting:
        service.preview(PET)
    before = store.load(PET)

    for use in (service.previewed, lambda pet, token: service.apply(pet, token, by="bob")):
        with pytest.raises(StalePreview, match="it expired or was replaced by a newer one"):
            use(PET, "25-0123456789")

    assert store.load(PET).version == before.version


def test_preview_of_an_empty_pet_is_refused(store: PetStore) -> None:
    with pytest.raises(UnknownPet, match="pet 42 has no items"):
        ClusterService(store).preview(PET)


def test_preview_of_a_changed_pet_is_not_stored(service: ClusterService, store: PetStore) -> None:
    service.preview(PET)
    preview = kept_preview(store)
    take(service, 0, range(20, 21))
    later = service.preview(PET)

    assert not store.keep_preview(preview)
    assert kept_preview(store).token == later.token


def test_preview_token_depends_on_the_state_and_not_only_on_its_revision(
    service: ClusterService, store: PetStore
) -> None:
    service.preview(PET)
    preview, state = kept_preview(store), store.load(PET)

    of_another = Preview.of(replace(state, version="another.pet"), preview.change, preview.result, at=preview.made_at)

    assert of_another.token != preview.token


def test_preview_expires_after_15_minutes() -> None:
    now = [datetime(2026, 1, 31, tzinfo=UTC)]
    store = MemoryPetStore(clock=lambda: now[0])
    service = ClusterService(store, clock=lambda: now[0])
    take(service, 0, range(8))
    token = service.preview(PET).token

    now[0] += timedelta(minutes=15)

    with pytest.raises(StalePreview):
        service.apply(PET, token, by="bob")


def test_preview_in_redis_has_an_expiry_time(redis_client: redis.Redis) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(8))

    service.preview(PET)

    assert 0 < redis_client.pttl(PetKeys.of(PET).preview) <= 15 * 60 * 1000


@pytest.mark.parametrize("stored", [b"", b"{}\n", b'{"v": 2}\n', b'{"v": 1}\nno zlib'])
def test_unreadable_preview_is_reported(redis_client: redis.Redis, stored: bytes) -> None:
    store = RedisPetStore(redis_client)
    redis_client.set(PetKeys.of(PET).preview, stored)

    with pytest.raises(UnreadablePet, match="its preview cannot be read"):
        store.kept_preview(PET)


def test_preview_survives_encoding_unchanged(service: ClusterService, store: PetStore) -> None:
    service.preview(PET)
    preview = kept_preview(store)

    again = previews.load(previews.dump(preview), pet=PET)

    assert (again.token, again.made_at, again.result) == (preview.token, preview.made_at, preview.result)
    assert again.change.clusters == preview.change.clusters
    assert again.change.summary == preview.change.summary
