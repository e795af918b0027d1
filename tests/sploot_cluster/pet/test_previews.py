"""A recluster can be looked at before it is done, and what is done then is what was shown, or nothing."""

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
    """Clusters 1 and 2 of eight pictures each, and eight new pictures of a third subject that are noise."""
    service = grouped(store, 2, range(8))
    take(service, 2, range(8))
    return service


def told(state: PetState) -> tuple[object, ...]:
    return (
        state.labels.tolist(),
        state.origins.tolist(),
        dict(state.clusters),
        dict(state.aliases),
        state.next_cluster,
        state.n_at_recluster,
        state.noise_arrivals,
    )


def test_a_preview_changes_nothing_and_tells_what_would_change(service: ClusterService, store: PetStore) -> None:
    before = store.load(PET)

    previewed = service.preview(PET)

    after = store.load(PET)
    assert after.version == before.version
    assert (previewed.diff.n_from_noise, previewed.diff.new_ids, previewed.diff.kept_ids) == (8, (3,), (1, 2))
    assert (previewed.preview.revision, previewed.preview.result.revision) == (before.revision, before.revision + 1)
    assert previewed.preview.result.kept == "constraints kept 0 of 0"


def test_applying_gives_exactly_what_was_shown(service: ClusterService, store: PetStore) -> None:
    service.split(PET, ONE, [name(0, 0), name(0, 1)], operation_id="1", by="ada")
    previewed = service.preview(PET)
    shown = previewed.preview.change.relabelling
    assert shown is not None

    applied = service.apply(PET, previewed.preview.token, by="bob")

    state = store.load(PET)
    assert np.array_equal(state.labels, shown.labels)
    assert np.array_equal(state.origins, shown.origins)
    assert applied == previewed.preview.result
    assert applied.revision == state.revision
    (entry,) = service.history(PET, limit=1)
    assert (entry.kind, entry.by, entry.summary["applied"]) == ("recluster", "bob", previewed.preview.token)
    assert service.compare(PET, state.revision - 1, state.revision).moved == previewed.diff.moved


def test_an_applied_preview_is_what_a_recluster_would_have_done(store: PetStore, service: ClusterService) -> None:
    twin = ClusterService(MemoryPetStore())
    for subject in range(2):
        take(twin, subject, range(8))
    twin.recluster(PET)
    take(twin, 2, range(8))

    service.apply(PET, service.preview(PET).preview.token, by="bob")
    twin.recluster(PET)

    assert told(store.load(PET)) == told(twin._store.load(PET))


@pytest.mark.parametrize(
    "change",
    [
        lambda service: take(service, 0, range(20, 21)),
        lambda service: service.merge(PET, [ONE, TWO], operation_id="1", by="ada"),
        lambda service: service.recluster(PET),
    ],
    ids=["an arrival", "a correction", "a recluster"],
)
def test_a_preview_of_a_pet_that_changed_is_refused_and_changes_nothing(
    service: ClusterService, store: PetStore, change: Callable[[ClusterService], object]
) -> None:
    token = service.preview(PET).preview.token
    change(service)
    before = store.load(PET)

    with pytest.raises(StalePreview, match="the pet moved from revision 25 to 26") as refused:
        service.apply(PET, token, by="bob")
    with pytest.raises(StalePreview):
        service.previewed(PET, token)

    assert refused.value.token == token
    assert store.load(PET).version == before.version


def test_applying_twice_is_applying_once(service: ClusterService, store: PetStore) -> None:
    token = service.preview(PET).preview.token

    first = service.apply(PET, token, by="bob")
    second = service.apply(PET, token, by="bob")

    assert first == second
    assert store.view(PET).revision == first.revision


def test_two_who_preview_the_same_pet_see_the_same(service: ClusterService) -> None:
    one, other = service.preview(PET), service.preview(PET)

    assert one.preview.token == other.preview.token
    assert one.diff == other.diff == service.previewed(PET).diff


@pytest.mark.parametrize("is_one_waiting", [False, True])
def test_a_token_that_nobody_gave_out_is_refused(
    service: ClusterService, store: PetStore, is_one_waiting: bool
) -> None:
    if is_one_waiting:
        service.preview(PET)
    before = store.load(PET)

    for use in (service.previewed, lambda pet, token: service.apply(pet, token, by="bob")):
        with pytest.raises(StalePreview, match="it is too old, or another one was made since"):
            use(PET, "25-0123456789")

    assert store.load(PET).version == before.version


def test_a_pet_without_media_has_no_preview(store: PetStore) -> None:
    with pytest.raises(UnknownPet, match="pet 42 has no items"):
        ClusterService(store).preview(PET)


def test_a_preview_of_a_pet_that_moved_on_is_not_kept(service: ClusterService, store: PetStore) -> None:
    preview = service.preview(PET).preview
    take(service, 0, range(20, 21))
    later = service.preview(PET).preview

    assert not store.keep_preview(preview)
    kept = store.kept_preview(PET)
    assert kept is not None
    assert kept.token == later.token


def test_a_token_names_the_very_state_and_not_its_revision_alone(service: ClusterService, store: PetStore) -> None:
    preview, state = service.preview(PET).preview, store.load(PET)

    of_another = Preview.of(replace(state, version="another.pet"), preview.change, preview.result, at=preview.made_at)

    assert of_another.token != preview.token


def test_a_preview_is_forgotten_after_a_quarter_of_an_hour() -> None:
    now = [datetime(2026, 1, 31, tzinfo=UTC)]
    store = MemoryPetStore(clock=lambda: now[0])
    service = ClusterService(store, clock=lambda: now[0])
    take(service, 0, range(8))
    token = service.preview(PET).preview.token

    now[0] += timedelta(minutes=15)

    with pytest.raises(StalePreview):
        service.apply(PET, token, by="bob")


def test_a_preview_in_redis_ends_by_itself(redis_client: redis.Redis) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(8))

    service.preview(PET)

    assert 0 < redis_client.pttl(PetKeys.of(PET).preview) <= 15 * 60 * 1000


@pytest.mark.parametrize("stored", [b"", b"{}\n", b'{"v": 2}\n', b'{"v": 1}\nno zlib'])
def test_a_preview_that_cannot_be_read_says_so(redis_client: redis.Redis, stored: bytes) -> None:
    store = RedisPetStore(redis_client)
    redis_client.set(PetKeys.of(PET).preview, stored)

    with pytest.raises(UnreadablePet, match="its preview cannot be read"):
        store.kept_preview(PET)


def test_a_preview_comes_back_as_it_was_kept(service: ClusterService) -> None:
    preview = service.preview(PET).preview

    again = previews.load(previews.dump(preview), pet=PET)

    assert (again.token, again.made_at, again.result) == (preview.token, preview.made_at, preview.result)
    assert again.change.clusters == preview.change.clusters
    assert again.change.summary == preview.change.summary
