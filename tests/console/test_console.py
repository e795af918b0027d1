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
from selenium.webdriver.support.ui import Select

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.api import create_app
from sploot_cluster.pet.models import MediaId
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


def test_pet_page_shows_clusters_and_history(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}")

    page.sees("30 items in 3 clusters, 0 noise")
    page.sees("recluster")
    assert page.complaints() == []


def test_clusters_can_be_merged_and_the_merge_undone(page: Page, album: ClusterService, worker: None) -> None:
    first, second, _ = sorted(cluster.cluster_id for cluster in album.clusters(PET).clusters)
    page.open(f"pet/{PET}")

    page.labelled(f"Choose cluster {first}").click()
    page.labelled(f"Choose cluster {second}").click()
    page.click("Merge: 2 clusters")
    page.sees(f"sploot-cluster merge {PET} {first} {second}")
    page.click("Merge", within="//dialog")

    page.sees("30 items in 2 clusters")
    page.click("Undo…")
    page.click("Undo", within="//dialog")
    page.sees("30 items in 3 clusters")
    assert page.complaints() == []


def test_items_can_be_split_off_a_cluster(page: Page, album: ClusterService, worker: None) -> None:
    cluster = album.clusters(PET).clusters[0]
    page.open(f"pet/{PET}")

    page.click(cluster.media_ids[0])
    page.labelled(f"Choose {cluster.media_ids[0]}").click()
    page.labelled(f"Choose {cluster.media_ids[1]}").click()
    page.click("Split off: 2 items")
    page.click("Split off", within="//dialog")

    page.sees("30 items in 4 clusters")
    assert page.complaints() == []


def test_queue_can_be_paused_by_a_plan_and_resumed(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    page.sees("embedding.ingested has no running worker")

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


def test_queues_page_distinguishes_healthy_queues_from_failed_jobs(
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


def test_item_can_be_excluded_and_another_dismissed(page: Page, album: ClusterService, worker: None) -> None:
    first, second, *_ = album.clusters(PET).clusters[0].media_ids
    page.open(f"pet/{PET}")

    page.click(first)
    page.labelled(f"Choose {first}").click()
    page.click("Not this cluster: 1 item")
    page.click("Not this cluster", within="//dialog")
    eventually(lambda: album.clusters(PET).revision > 31)
    page.sees("exclude")

    page.open(f"pet/{PET}")
    page.click(second)
    page.labelled(f"Choose {second}").click()
    page.click("Dismiss: 1 item")
    page.click("Dismiss", within="//dialog")

    page.sees("1 dismissed")
    assert page.complaints() == []


def test_item_can_be_placed_in_another_cluster(page: Page, album: ClusterService, worker: None) -> None:
    source, target, *_ = album.clusters(PET).clusters
    item = source.media_ids[0]
    page.open(f"pet/{PET}")

    page.click(item)
    page.labelled(f"Choose {item}").click()
    page.click("Place: 1 item")
    Select(page.browser.find_element(By.CSS_SELECTOR, "#dialog select[name=into]")).select_by_value(
        str(target.cluster_id)
    )
    page.sees(f"sploot-cluster place {PET} --media {item} --into {target.cluster_id}")
    page.click("Place", within="//dialog")

    page.sees("Place items in a cluster: succeeded")
    assert item in next(one.media_ids for one in album.clusters(PET).clusters if one.cluster_id == target.cluster_id)
    assert page.complaints() == []


def test_cluster_can_be_named_and_the_name_undone(page: Page, album: ClusterService, worker: None) -> None:
    cluster = album.clusters(PET).clusters[0].cluster_id
    page.open(f"pet/{PET}")

    page.labelled(f"Choose cluster {cluster}").click()
    page.click(f"Name: cluster {cluster}")
    page.browser.switch_to.active_element.send_keys("Rex at sea")
    page.sees(f"sploot-cluster name {PET} {cluster} 'Rex at sea'")
    page.click("Name", within="//dialog")
    page.sees("Name a cluster: succeeded")
    page.sees(f"cluster {cluster} since revision")
    named = album.clusters(PET).clusters[0].name
    page.click("Undo…")
    page.click("Undo", within="//dialog")

    page.sees("Undo a correction: succeeded")
    assert named == "Rex at sea"
    assert album.clusters(PET).clusters[0].name is None
    assert page.complaints() == []


def test_cluster_can_be_hidden_and_shown(page: Page, album: ClusterService, worker: None) -> None:
    cluster = album.clusters(PET).clusters[0].cluster_id
    page.open(f"pet/{PET}")

    page.labelled(f"Choose cluster {cluster}").click()
    page.click("Hide: 1 cluster")
    page.sees(f"sploot-cluster hide {PET} {cluster}")
    page.click("Hide", within="//dialog")
    page.click("Hidden (1)")
    page.labelled(f"Choose cluster {cluster}").click()
    page.click("Show: 1 cluster")
    page.click("Show", within="//dialog")

    page.sees("Show hidden clusters: succeeded")
    assert not any(one.is_hidden for one in album.clusters(PET).clusters)
    assert page.complaints() == []


def test_item_shows_why_it_is_in_its_cluster(page: Page, album: ClusterService) -> None:
    cluster = album.clusters(PET).clusters[0]
    page.open(f"pet/{PET}")

    page.click(f"{cluster.media_ids[0]}, ")
    page.labelled(f"Why is {cluster.media_ids[0]} here?").click()

    page.sees(f"cluster {cluster.cluster_id}, core")
    page.sees("nearest")
    page.sees(f"sploot-cluster why {PET} {cluster.media_ids[0]}")
    page.click("Close", within="//dialog")
    assert page.complaints() == []


def test_older_revision_can_be_compared_and_restored(page: Page, album: ClusterService, worker: None) -> None:
    ids = sorted(cluster.cluster_id for cluster in album.clusters(PET).clusters)
    before = album.clusters(PET).revision
    album.merge(PET, ids[:2], operation_id="m", by="test")
    page.open(f"pet/{PET}")
    page.sees("30 items in 2 clusters")

    page.click("Compare…")
    page.sees(f"Since revision {before}")
    page.click("Restore", within="//dialog")

    eventually(lambda: album.clusters(PET).revision > before + 1)
    # the user's merge is still in force: restoring undoes no correction
    page.sees("30 items in 2 clusters")
    page.sees(f"restored {before}")
    assert page.complaints() == []


def test_recluster_preview_is_applied_exactly(page: Page, album: ClusterService, worker: None) -> None:
    take(album, 3, range(10))
    revision = album.clusters(PET).revision
    page.open(f"pet/{PET}")
    page.sees("40 items")

    page.click("Recluster…")
    page.sees("Constraints kept:")
    page.sees("s3-0")
    assert album.clusters(PET).revision == revision
    page.click("Apply this preview", within="//dialog")

    page.sees("40 items in 4 clusters")
    assert page.complaints() == []


def test_media_id_with_html_is_shown_as_text(page: Page, service: ClusterService) -> None:
    name = MediaId("<img src=x onerror=alert(1)>.jpg")
    service.assign(PET, name, model=MODEL, vector=picture(0, 0))

    page.open(f"pet/{PET}")

    page.sees(name)
    assert page.browser.find_elements(By.CSS_SELECTOR, "main img") == []
    assert page.complaints() == []


def test_queues_and_plans_fit_a_phone_screen(phone: Page, redis_client: redis.Redis) -> None:
    stream = stream_of(EMBEDDING_INGESTED)
    redis_client.xgroup_create(stream, GROUP, "0", mkstream=True)
    redis_client.xadd(stream, {"schema": "embedding.ingested/1"})
    redis_client.xreadgroup(GROUP, "sploot-cluster-worker-6d5f7c9b8-x2x7q:17:81234567:9f3a2c1d", {stream: ">"})
    phone.open("queues")
    phone.sees("x2x7q:17:81234567")

    phone.click("Pause…")
    phone.sees("Redis commands:")
    assert phone.too_wide() == []
    phone.click("Yes", within="//dialog")
    phone.sees("Audit log")
    phone.sees("the queue is paused; sploot-cluster queue resume")

    assert phone.too_wide() == []
    figures = ["undelivered", "in flight", "delayed", "orphaned", "dead", "oldest", "held for"]
    assert phone.names_of("table:first-of-type tr:first-child td.number")[: len(figures)] == figures
    # a screen reader still sees a table
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


def test_pet_history_and_reasons_fit_a_phone_screen(phone: Page, album: ClusterService) -> None:
    ids = sorted(cluster.cluster_id for cluster in album.clusters(PET).clusters)
    album.merge(PET, ids[:2], operation_id="m", by="somebody.of.the.labellers@labelling.sploot.example")
    first = album.clusters(PET).clusters[0].media_ids[0]
    phone.open(f"pet/{PET}")
    phone.sees("30 items in 2 clusters")
    assert phone.too_wide() == []

    phone.click(f"{first}, ")
    phone.labelled(f"Why is {first} here?").click()
    phone.sees("nearest")
    assert phone.too_wide() == []
    phone.click("Close", within="//dialog")

    phone.open(f"pet/{PET}")
    phone.click("Compare…")
    phone.sees("Since revision")
    assert phone.too_wide() == []


def test_invalid_pet_id_is_answered_with_a_hint(page: Page, redis_client: redis.Redis) -> None:
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

    page.sees("30 items in 3 clusters")


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
