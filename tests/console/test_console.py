"""Actions of users in the console, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing

import pytest
import redis
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.api import create_app
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from tasks.contracts import CLUSTER_MAINTENANCE, EMBEDDING_INGESTED, GROUP, stream_of
from tests.console.conftest import Page
from tests.sploot_cluster.albums import MODEL, PET, picture, take
from tests.sploot_cluster.api.front import NotingQueue, client_of
from tests.support import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def album(service: ClusterService) -> ClusterService:
    """A service with a pet that has ten items of each of three subjects, in clusters 1 to 3."""
    for subject in range(3):
        take(service, subject, range(10))
    service.recluster(PET, by="test")
    return service


def test_pet_page_shows_albums_and_history(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}")

    page.sees("30 items in 3 albums, 0 loose")
    assert [name.split("\n")[0] for name in page.shown(".album-name")] == ["Album 1", "Album 2", "Album 3"]
    page.click("History")
    page.sees("recluster")
    assert page.complaints() == []


def test_albums_are_merged_immediately_and_a_key_undoes_the_merge(
    page: Page, album: ClusterService, worker: None
) -> None:
    page.open(f"pet/{PET}")

    page.choose("Album 1", "Album 2")
    page.correct("merge")
    page.sees("30 items in 2 albums")
    eventually(lambda: len(album.clusters(PET).clusters) == 2, within_s=30)
    page.press("z")

    page.sees("30 items in 3 albums")
    eventually(lambda: len(album.clusters(PET).clusters) == 3, within_s=30)
    page.click("History")
    page.sees("undone")
    # the merge is undone, so the only correction that can be undone is this undo
    assert len(page.shown("td.actions button")) == 1
    assert page.complaints() == []


def test_items_can_be_split_off_excluded_dismissed_and_placed(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}/album/1")

    page.choose("s0-0", "s0-1")
    page.correct("split")
    page.sees("30 items in 4 albums")
    page.choose("s0-2")
    page.correct("exclude")
    page.sees("1 loose")
    page.choose("s0-3")
    page.correct("dismiss")
    page.sees("1 dismissed")
    page.choose("s0-4")
    page.correct("place")
    page.click_on("#dialog label:has(input[value='2'])")
    page.click("Place", within="//dialog")

    eventually(
        lambda: [entry.kind for entry in album.history(PET, limit=4)] == ["place", "dismiss", "exclude", "split"]
    )
    view = album.clusters(PET)
    assert (view.noise, view.dismissed) == (("s0-2",), ("s0-3",))
    assert {"s0-0", "s0-1"} in [set(one.media_ids) for one in view.clusters]
    assert "s0-4" in next(one.media_ids for one in view.clusters if one.cluster_id == 2)
    assert page.complaints() == []


def test_queue_can_be_paused_and_resumed_with_a_plan(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    page.sees("No worker is running")

    page.click("Pause…")
    page.sees("Redis commands:")
    page.sees("sploot-cluster queue pause embedding.ingested --yes")
    assert redis_client.exists("{streams:embedding.ingested}:paused") == 0
    page.click("Yes", within="//dialog")

    page.sees("embedding.ingested is paused")
    assert redis_client.exists("{streams:embedding.ingested}:paused") == 1
    page.click("Resume…")
    page.click("Yes", within="//dialog")
    eventually(lambda: not redis_client.exists("{streams:embedding.ingested}:paused"))
    page.sees("Audit log")
    page.sees("resume")
    assert page.complaints() == []


def test_queues_page_shows_healthy_queues_and_then_a_dead_letter(
    page: Page, redis_client: redis.Redis, redis_url: str, worker: None
) -> None:
    with closing(RedisStreamsBroker(redis_url, group=GROUP, middleware=[])) as samples:
        samples.declare_queue(CLUSTER_MAINTENANCE)
        samples.consume(CLUSTER_MAINTENANCE, timeout=100)
        page.open("queues")
        page.sees("No job has waited too long, and there are no dead letters.")

        redis_client.xadd(stream_of(EMBEDDING_INGESTED), {"schema": "embedding.ingested/1", "pet_id": "42"})

        page.sees("embedding.ingested: 1 dead; dead letters are not retried until you requeue them")
        page.sees("Warning")


def test_dead_letter_shows_its_cause_and_can_be_requeued(page: Page, redis_client: redis.Redis, worker: None) -> None:
    redis_client.xadd(stream_of(EMBEDDING_INGESTED), {"schema": "embedding.ingested/1", "pet_id": "42"})
    eventually(lambda: redis_client.xlen("{streams:embedding.ingested}:dead") == 1)
    page.open("dead")

    page.sees("media_id")
    page.sees("Fix: send it")
    page.click("UndecodableEntry: media_id")
    page.sees('"schema": "embedding.ingested/1"')
    page.click("Requeue…")
    page.sees("Redis commands:")
    page.click("Yes, 1 entry", within="//dialog")

    page.sees("back to work")
    # the message is unchanged, so it fails again
    eventually(lambda: redis_client.xlen("{streams:embedding.ingested}:dead") == 1)
    assert page.complaints() == []


def test_album_can_be_named_hidden_and_shown(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}/album/1")

    page.correct("name")
    page.sees("Name a cluster")
    page.press("Rex at sea")
    page.click("Name", within="//dialog")
    page.sees("Rex at sea")
    page.correct("hide")
    page.sees("30 items in 2 albums")
    eventually(lambda: album.clusters(PET).clusters[0].is_hidden, within_s=30)
    page.click("Albums")
    page.click("Show 1 hidden")
    page.choose("Rex at sea")
    page.correct("show")

    page.sees("30 items in 3 albums")
    eventually(lambda: not any(one.is_hidden for one in album.clusters(PET).clusters), within_s=30)
    assert album.clusters(PET).clusters[0].name == "Rex at sea"
    assert page.complaints() == []


def test_album_can_be_locked_and_its_cover_chosen(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}/album/1")

    page.correct("lock")
    page.labelled("locked")
    page.choose("s0-5")
    page.correct("cover")

    eventually(lambda: album.clusters(PET).clusters[0].cover == "s0-5", within_s=30)
    assert album.clusters(PET).clusters[0].is_locked
    page.sees("revision 33")
    page.press("z")
    page.press("z")
    eventually(lambda: not album.clusters(PET).clusters[0].is_locked, within_s=30)
    assert page.complaints() == []


def test_item_shows_why_it_is_in_its_album(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}/album/1")

    page.labelled("s0-0").click()

    page.sees("cluster 1, core")
    page.sees("Nearest neighbours")
    page.sees(f"sploot-cluster why {PET} s0-0")
    assert len(page.shown(".neighbours li")) == 5
    page.press(Keys.ARROW_RIGHT)
    page.sees(f"sploot-cluster why {PET} s0-1")
    page.click("Close", within="//dialog")
    assert page.complaints() == []


def test_older_revision_can_be_shown_compared_and_restored(page: Page, album: ClusterService, worker: None) -> None:
    before = album.clusters(PET).revision
    album.merge(PET, [ClusterId(1), ClusterId(2)], operation_id="m", by="test")
    page.open(f"pet/{PET}/history")
    page.sees("2 albums, 0 loose")

    page.labelled("Revision").send_keys(Keys.ARROW_LEFT)
    page.sees(f"Revision {before}")
    page.sees("3 albums, 0 loose")
    page.click("Compare with now")
    page.sees("10 move")
    page.click("Restore revision")

    eventually(lambda: album.clusters(PET).revision > before + 1, within_s=30)
    # the merge is still in force, because a restore does not undo corrections
    page.sees("30 items in 2 albums")
    page.sees(f"restored {before}")
    assert page.complaints() == []


def test_recluster_preview_is_shown_as_moves_and_applied_exactly(
    page: Page, album: ClusterService, worker: None
) -> None:
    take(album, 3, range(10))
    revision = album.clusters(PET).revision
    page.open(f"pet/{PET}")
    page.sees("40 items")

    page.click("Recluster…")
    page.sees("constraints from corrections kept")
    page.sees("10 find an album")
    assert album.clusters(PET).revision == revision
    page.click("Apply this preview")

    page.sees("40 items in 4 albums")
    assert page.complaints() == []


def test_map_shows_every_item_at_a_place_that_corrections_do_not_change(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}/map")

    page.sees("30 items. Axes:")
    assert page.shown(".legend-album")[0].split() == ["Album", "1", "10"]
    assert page.complaints() == []


def test_media_id_with_html_is_shown_as_text(page: Page, service: ClusterService) -> None:
    name = MediaId("<img src=x onerror=alert(1)>.jpg")
    service.assign(PET, name, model=MODEL, vector=picture(0, 0))

    page.open(f"pet/{PET}/loose")

    page.sees(name)
    assert page.browser.find_elements(By.CSS_SELECTOR, "main img") == []
    assert page.complaints() == []


def test_queues_and_plans_fit_a_phone_screen(phone: Page, redis_client: redis.Redis) -> None:
    stream = stream_of(EMBEDDING_INGESTED)
    redis_client.xgroup_create(stream, GROUP, "0", mkstream=True)
    redis_client.xadd(stream, {"schema": "embedding.ingested/1"})
    redis_client.xreadgroup(GROUP, "sploot-cluster-worker-6d5f7c9b8-x2x7q:17:81234567:9f3a2c1d", {stream: ">"})
    phone.open("queues")
    phone.sees("x2x7q:17")

    phone.click("Pause…")
    phone.sees("Redis commands:")
    assert phone.too_wide() == []
    phone.click("Yes", within="//dialog")
    phone.sees("Audit log")
    phone.sees("sploot-cluster queue resume")

    assert phone.too_wide() == []
    figures = ["undelivered", "in flight", "delayed", "orphaned", "dead", "oldest", "held for"]
    assert phone.names_of("table:first-of-type tr:first-child td.number")[: len(figures)] == figures
    # for a screen reader it is still a table
    assert phone.role_of("table") == "table"
    assert phone.role_of("td") == "cell"


def test_dead_letter_fits_a_phone_screen(phone: Page, redis_client: redis.Redis, worker: None) -> None:
    redis_client.xadd(stream_of(EMBEDDING_INGESTED), {"schema": "embedding.ingested/1", "pet_id": "42"})
    eventually(lambda: redis_client.xlen("{streams:embedding.ingested}:dead") == 1)
    phone.open(f"dead/{EMBEDDING_INGESTED}")

    phone.click("UndecodableEntry: media_id")
    phone.sees('"schema": "embedding.ingested/1"')

    assert phone.too_wide() == []
    assert phone.names_of("tbody tr td")[:5] == ["died", "reason", "actor", "pet", "error"]


def test_pages_of_a_pet_fit_a_phone_screen(phone: Page, album: ClusterService) -> None:
    album.merge(PET, [ClusterId(1), ClusterId(2)], operation_id="m", by="somebody.of.the.labellers@sploot.example")
    for place, text in (
        ("", "Album 1"),
        ("/album/1", "s0-0"),
        ("/history", "All changes"),
        ("/map", "Axes"),
        ("/review", "No questions"),
    ):
        phone.open(f"pet/{PET}{place}")
        phone.sees(text)
        assert phone.too_wide() == [], place

    phone.open(f"pet/{PET}/album/1")
    phone.labelled("s0-0").click()
    phone.sees("Nearest neighbours")
    assert phone.too_wide() == []


def test_pets_can_be_listed_searched_and_opened(page: Page, album: ClusterService) -> None:
    take(album, 0, range(2), pet=PetId(777))
    page.open("pet")

    page.sees("Pet 777")
    page.sees("2 loose")
    page.labelled("Name or id of a pet").send_keys("42")
    eventually(lambda: page.shown(".pet-name strong") == ["Pet 42"])
    page.press(Keys.ENTER)

    page.sees("30 items in 3 albums")
    page.open("pet?search=9")
    page.sees("No pet is called 9, and no id contains it")
    assert page.complaints() == []


def test_list_of_too_many_pets_to_sort_shows_the_newest_first(
    page: Page, album: ClusterService, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(album, 0, range(2), pet=PetId(777))
    monkeypatch.setattr("sploot_cluster.pet.listing.MAX_SORTED", 1)
    page.open("pet")

    page.sees("newest ids")
    eventually(lambda: page.shown(".pet-name strong") == ["Pet 777", f"Pet {PET}"])


def test_pet_can_be_named_by_keyboard_and_found_by_name(page: Page, album: ClusterService, worker: None) -> None:
    take(album, 0, range(2), pet=PetId(777))
    page.open(f"pet/{PET}")
    page.sees("Album 1")

    page.press("r")
    page.sees(f"Name pet {PET}")
    page.press("Mochi", Keys.ENTER)
    eventually(lambda: page.shown("h1") == ["Pets / Mochi"])
    eventually(lambda: album.clusters(PET).name == "Mochi", within_s=30)
    page.open("pet")
    page.sees("Pet 777")
    page.labelled("Name or id of a pet").send_keys("moch")
    eventually(lambda: page.shown(".pet-name") == [f"Mochi\nPet {PET} · {MODEL}"])
    page.press(Keys.ENTER)

    page.sees("30 items in 3 albums")
    assert page.complaints() == []
    page.open("find?text=mochi")
    page.sees(f"Mochi ({PET})")


def test_console_shows_a_hint_for_an_invalid_pet_id(page: Page, redis_client: redis.Redis) -> None:
    page.open("pet/Mochi")

    page.sees("in decimal digits")


def test_console_asks_for_a_token_when_the_server_has_tokens(
    browser: webdriver.Chrome, serve: Callable[..., str], album: ClusterService
) -> None:
    secret = "a-secret-of-a-viewer"
    page = Page(browser, serve(api_tokens=f"ann:viewer:{secret}"))
    page.open(f"pet/{PET}")

    page.sees("Sign in")
    page.labelled("Secret").send_keys(secret)
    page.click("Sign in")

    page.sees("30 items in 3 albums")


def test_mounted_console_loads_files_only_from_its_own_server(service: ClusterService) -> None:
    outer = FastAPI()
    outer.mount("/media", create_app(service=service, jobs=NotingQueue()))
    http = client_of(outer)

    answer = http.get("/media/")

    addresses = re.findall(r'(?:src|href)="([^"]*)"', answer.text)
    assert [address for address in addresses if not address.startswith(("#", "/media/console/"))] == []
    files = [address for address in addresses if not address.startswith("#")]
    assert {http.get(file).status_code for file in files} == {200}
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert http.get("/media/console/index.html").status_code == 404
