"""What people do in the console, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing

import pytest
import redis
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.by import By

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.api import create_app
from sploot_cluster.models import MediaId
from tasks.contracts import CLUSTER_MAINTENANCE, EMBEDDING_INGESTED, GROUP, stream_of
from tests.console.conftest import Page
from tests.sploot_cluster.albums import MODEL, PET, picture, take
from tests.sploot_cluster.api.front import NotingQueue, client_of
from tests.support import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def album(service: ClusterService) -> ClusterService:
    """A pet of three subjects, ten pictures each, in clusters 1 to 3."""
    for subject in range(3):
        take(service, subject, range(10))
    service.recluster(PET, by="test")
    return service


def test_a_pet_is_shown_with_its_clusters_and_history_and_the_browser_has_no_complaints(
    page: Page, album: ClusterService
) -> None:
    page.open(f"pet/{PET}")

    page.sees("30 media in 3 clusters, 0 noise")
    page.sees("recluster")
    assert page.complaints() == []


def test_two_clusters_are_merged_and_the_merge_is_undone(page: Page, album: ClusterService, worker: None) -> None:
    first, second, _ = sorted(cluster.id for cluster in album.clusters(PET).clusters)
    page.open(f"pet/{PET}")

    page.labelled(f"Choose cluster {first}").click()
    page.labelled(f"Choose cluster {second}").click()
    page.click("Merge 2 clusters")
    page.sees(f"sploot-cluster merge {PET} {first} {second}")
    page.click("Merge", within="//dialog")

    page.sees("30 media in 2 clusters")
    page.click("Undo…")
    page.click("Undo", within="//dialog")
    page.sees("30 media in 3 clusters")
    assert page.complaints() == []


def test_media_are_split_off_a_cluster(page: Page, album: ClusterService, worker: None) -> None:
    cluster = album.clusters(PET).clusters[0]
    page.open(f"pet/{PET}")

    page.click(cluster.media[0])
    page.labelled(f"Choose {cluster.media[0]}").click()
    page.labelled(f"Choose {cluster.media[1]}").click()
    page.click("Split off: 2 media")
    page.click("Split", within="//dialog")

    page.sees("30 media in 4 clusters")
    assert page.complaints() == []


def test_a_queue_is_paused_by_a_plan_and_resumed(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    page.sees("no worker takes jobs of embedding.ingested")

    page.click("Pause…")
    page.sees("In Redis's words:")
    page.sees("sploot-cluster queue pause embedding.ingested --yes")
    assert redis_client.exists("{streams:embedding.ingested}:paused") == 0
    page.click("Yes", within="//dialog")

    page.sees("embedding.ingested is paused")
    assert redis_client.exists("{streams:embedding.ingested}:paused") == 1
    page.click("Resume…")
    page.click("Yes", within="//dialog")
    eventually(lambda: not redis_client.exists("{streams:embedding.ingested}:paused"))
    page.sees("Who did what")
    page.sees("resume")
    assert page.complaints() == []


def test_queues_that_are_well_are_told_apart_from_jobs_that_failed(
    page: Page, redis_client: redis.Redis, redis_url: str, worker: None
) -> None:
    with closing(RedisStreamsBroker(redis_url, middleware=[])) as samples:
        samples.declare_queue(CLUSTER_MAINTENANCE)
        samples.consume(CLUSTER_MAINTENANCE, timeout=100)
        page.open("queues")
        page.sees("Nothing waits for long, and nothing is dead. How jobs end")

        redis_client.xadd(stream_of(EMBEDDING_INGESTED), {"schema": "embedding.ingested/1", "pet_id": "42"})

        page.sees("embedding.ingested: 1 dead, and nobody tries them again but you")
        page.sees("Worth a look.")


def test_a_dead_letter_tells_why_it_died_and_goes_back_to_work(
    page: Page, redis_client: redis.Redis, worker: None
) -> None:
    redis_client.xadd(stream_of(EMBEDDING_INGESTED), {"schema": "embedding.ingested/1", "pet_id": "42"})
    eventually(lambda: redis_client.xlen("{streams:embedding.ingested}:dead") == 1)
    page.open("dead")

    page.sees("event_id")
    page.sees("Mend: send it")
    page.click("UndecodableEntry: event_id")
    page.sees('"schema": "embedding.ingested/1"')
    page.click("Requeue…")
    page.sees("In Redis's words:")
    page.click("Yes, 1 entry", within="//dialog")

    page.sees("back to work")
    # as it was, so that it dies again
    eventually(lambda: redis_client.xlen("{streams:embedding.ingested}:dead") == 1)
    assert page.complaints() == []


def test_a_medium_is_taken_out_of_its_cluster_and_another_is_dismissed(
    page: Page, album: ClusterService, worker: None
) -> None:
    first, second, *_ = album.clusters(PET).clusters[0].media
    page.open(f"pet/{PET}")

    page.click(first)
    page.labelled(f"Choose {first}").click()
    page.click("Not this cluster: 1 medium")
    page.click("Take out", within="//dialog")
    eventually(lambda: album.clusters(PET).revision > 31)
    page.sees("exclude")

    page.open(f"pet/{PET}")
    page.click(second)
    page.labelled(f"Choose {second}").click()
    page.click("Dismiss: 1 medium")
    page.click("Dismiss", within="//dialog")

    page.sees("1 dismissed")
    assert page.complaints() == []


def test_a_medium_tells_why_it_is_where_it_is(page: Page, album: ClusterService) -> None:
    cluster = album.clusters(PET).clusters[0]
    page.open(f"pet/{PET}")

    page.click(f"{cluster.media[0]}, ")
    page.labelled(f"Why is {cluster.media[0]} here?").click()

    page.sees(f"cluster {cluster.id}, core")
    page.sees("nearest")
    page.sees(f"sploot-cluster why {PET} {cluster.media[0]}")
    page.click("Close", within="//dialog")
    assert page.complaints() == []


def test_an_older_revision_is_compared_and_restored(page: Page, album: ClusterService, worker: None) -> None:
    ids = sorted(cluster.id for cluster in album.clusters(PET).clusters)
    before = album.clusters(PET).revision
    album.merge(PET, ids[:2], operation_id="m", by="test")
    page.open(f"pet/{PET}")
    page.sees("30 media in 2 clusters")

    page.click("Since then…")
    page.sees(f"Since revision {before}")
    page.click("Restore", within="//dialog")

    eventually(lambda: album.clusters(PET).revision > before + 1)
    # people's merge holds on: restoring undoes what machines did
    page.sees("30 media in 2 clusters")
    page.sees(f"restored {before}")
    assert page.complaints() == []


def test_a_recluster_is_previewed_and_exactly_that_is_applied(page: Page, album: ClusterService, worker: None) -> None:
    take(album, 3, range(10))
    revision = album.clusters(PET).revision
    page.open(f"pet/{PET}")
    page.sees("40 media")

    page.click("Recluster…")
    page.sees("Constraints kept")
    page.sees("s3-0")
    assert album.clusters(PET).revision == revision
    page.click("Apply exactly this", within="//dialog")

    page.sees("40 media in 4 clusters")
    assert page.complaints() == []


def test_what_a_producer_calls_a_medium_stays_text(page: Page, service: ClusterService) -> None:
    name = MediaId("<img src=x onerror=alert(1)>.jpg")
    service.assign(PET, name, model=MODEL, vector=picture(0, 0))

    page.open(f"pet/{PET}")

    page.sees(name)
    assert page.browser.find_elements(By.CSS_SELECTOR, "main img") == []
    assert page.complaints() == []


def test_on_a_phone_queues_and_drills_are_read_without_scrolling_sideways(
    phone: Page, redis_client: redis.Redis
) -> None:
    stream = stream_of(EMBEDDING_INGESTED)
    redis_client.xgroup_create(stream, GROUP, "0", mkstream=True)
    redis_client.xadd(stream, {"schema": "embedding.ingested/1"})
    redis_client.xreadgroup(GROUP, "sploot-cluster-worker-6d5f7c9b8-x2x7q:17:81234567:9f3a2c1d", {stream: ">"})
    phone.open("queues")
    phone.sees("x2x7q:17:81234567")

    phone.click("Pause…")
    phone.sees("In Redis's words:")
    assert phone.too_wide() == []
    phone.click("Yes", within="//dialog")
    phone.sees("Who did what")
    phone.sees("embedding.ingested is paused; sploot-cluster queue resume")

    assert phone.too_wide() == []
    figures = ["undelivered", "in flight", "delayed", "orphaned", "dead", "oldest", "held for"]
    assert phone.names_of("table:first-of-type tr:first-child td.number")[: len(figures)] == figures
    # also to who hears it
    assert phone.browser.find_element(By.CSS_SELECTOR, "table").aria_role == "table"
    assert phone.browser.find_element(By.CSS_SELECTOR, "td").aria_role == "cell"


def test_on_a_phone_a_dead_letter_is_read_without_scrolling_sideways(
    phone: Page, redis_client: redis.Redis, worker: None
) -> None:
    redis_client.xadd(stream_of(EMBEDDING_INGESTED), {"schema": "embedding.ingested/1", "pet_id": "42"})
    eventually(lambda: redis_client.xlen("{streams:embedding.ingested}:dead") == 1)
    phone.open(f"dead/{EMBEDDING_INGESTED}")

    phone.click("UndecodableEntry: event_id")
    phone.sees('"schema": "embedding.ingested/1"')

    assert phone.too_wide() == []
    assert phone.names_of("tbody tr td")[:5] == ["died", "reason", "actor", "pet", "what happened"]


def test_on_a_phone_a_pet_its_history_and_its_reasons_are_read_without_scrolling_sideways(
    phone: Page, album: ClusterService
) -> None:
    ids = sorted(cluster.id for cluster in album.clusters(PET).clusters)
    album.merge(PET, ids[:2], operation_id="m", by="somebody.of.the.labellers@labelling.sploot.example")
    first = album.clusters(PET).clusters[0].media[0]
    phone.open(f"pet/{PET}")
    phone.sees("30 media in 2 clusters")
    assert phone.too_wide() == []

    phone.click(f"{first}, ")
    phone.labelled(f"Why is {first} here?").click()
    phone.sees("nearest")
    assert phone.too_wide() == []
    phone.click("Close", within="//dialog")

    phone.open(f"pet/{PET}")
    phone.click("Since then…")
    phone.sees("Since revision")
    assert phone.too_wide() == []


def test_a_wrong_pet_is_answered_with_the_mend(page: Page, redis_client: redis.Redis) -> None:
    page.open("pet/Mochi")

    page.sees("in decimal digits")


def test_a_server_with_tokens_asks_for_one(
    browser: webdriver.Chrome, serve: Callable[..., str], album: ClusterService
) -> None:
    secret = "a-secret-of-a-viewer"
    page = Page(browser, serve(api_tokens=f"ann:viewer:{secret}"))
    page.open(f"pet/{PET}")

    page.sees("Who are you?")
    page.labelled("Secret").send_keys(secret)
    page.click("Enter")

    page.sees("30 media in 3 clusters")


def test_nothing_of_the_page_comes_from_elsewhere_wherever_it_is_mounted(service: ClusterService) -> None:
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
