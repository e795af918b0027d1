"""Tests that a correction applies to exactly the boxes that are ticked, and that uploads do not block corrections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from selenium.webdriver.common.by import By

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import ClusterId, MediaId
from tests.console.conftest import Page
from tests.sploot_cluster.albums import MODEL, PET, name, picture, take
from tests.support import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def album(service: ClusterService) -> ClusterService:
    """A service with a pet that has ten items of each of three subjects, in clusters 1 to 3, and two noise items."""
    for subject in range(3):
        take(service, subject, range(10))
    service.recluster(PET, by="test")
    take(service, 7, range(1))
    take(service, 8, range(1))
    return service


def ticked(page: Page) -> set[str]:
    """Return the labels of the boxes that are ticked, including those in collapsed clusters."""
    boxes = page.browser.find_elements(By.CSS_SELECTOR, "#main input:checked")
    return {str(box.get_attribute("aria-label")).removeprefix("Choose ") for box in boxes}


def open_cluster(page: Page, subject: int) -> None:
    page.click(f"s{subject}-0, ")


def tick(page: Page, *labels: str) -> None:
    for label in labels:
        page.labelled(f"Choose {label}").click()


def listed(page: Page) -> set[str]:
    """Return the items that the dialog lists."""
    return {item.text for item in page.browser.find_elements(By.CSS_SELECTOR, "#dialog li")}


# -- ticked boxes ----------------------------------------------------------------------------------------------------


def test_ticking_an_item_unticks_items_of_other_clusters(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}")
    open_cluster(page, 0)
    open_cluster(page, 1)
    tick(page, "s0-0", "s0-1", "s0-2")

    tick(page, "s1-0")

    assert ticked(page) == {"s1-0"}
    page.sees("3 unticked: a correction applies to clusters, or to items of one cluster.")
    page.click("Split off: 1 item")
    assert listed(page) == {"s1-0"}
    page.click("Split off", within="//dialog")
    page.sees("32 items in 4 clusters")
    assert {cluster.media_ids for cluster in album.clusters(PET).clusters if cluster.size == 1} == {("s1-0",)}
    assert ticked(page) == set()


def test_unticking_does_not_restore_an_earlier_selection(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}")
    open_cluster(page, 0)
    open_cluster(page, 1)
    tick(page, "s0-0", "s0-1", "s1-0")

    tick(page, "s1-0")

    assert ticked(page) == set()
    page.sees("Split off: choose items")
    tick(page, "s0-2")
    assert ticked(page) == {"s0-2"}
    page.sees("Split off: 1 item")


def test_ticking_noise_unticks_items_of_clusters(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}")
    open_cluster(page, 0)
    tick(page, "s0-0", "s0-1")

    tick(page, "s7-0", "s8-0")

    assert ticked(page) == {"s7-0", "s8-0"}
    page.click("Dismiss: 2 items")
    assert listed(page) == {"s7-0", "s8-0"}
    page.click("Dismiss", within="//dialog")
    page.sees("2 dismissed")
    assert set(album.clusters(PET).dismissed) == {"s7-0", "s8-0"}


def test_clusters_and_items_are_never_ticked_together(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}")
    open_cluster(page, 0)
    tick(page, "s0-0", "s0-1")

    tick(page, "cluster 1", "cluster 2")
    clusters = ticked(page)
    tick(page, "s0-3")

    assert (clusters, ticked(page)) == ({"cluster 1", "cluster 2"}, {"s0-3"})
    page.sees("Merge: choose clusters")
    assert page.browser.find_elements(By.CSS_SELECTOR, ".cluster.is-chosen") == []


def test_moved_items_are_unticked_when_the_pet_is_reloaded(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}")
    open_cluster(page, 0)
    tick(page, "s0-0", "s0-1")
    album.split(PET, ClusterId(1), [name(0, 0)], operation_id="s", by="another user")

    page.click("Not this cluster: 2 items")
    page.click("Not this cluster", within="//dialog")

    page.sees("since then: split by another user")
    page.sees("1 unticked: no longer in the same place.")
    assert ticked(page) == {"s0-1"}
    page.click("Not this cluster: 1 item")
    assert listed(page) == {"s0-1"}


def test_merge_dialog_shows_the_command_of_its_button(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}")
    tick(page, "cluster 1", "cluster 3")
    page.click("Merge: 2 clusters")
    command = page.browser.find_element(By.CSS_SELECTOR, "#dialog code")
    assert command.text == f"sploot-cluster merge {PET} 1 3"

    page.browser.find_element(By.CSS_SELECTOR, "#dialog option[value='3']").click()

    page.sees(f"sploot-cluster merge {PET} 1 3 --into 3")
    page.click("Merge", within="//dialog")
    eventually(lambda: sorted(cluster.cluster_id for cluster in album.clusters(PET).clusters) == [2, 3], within_s=30)


# -- while items arrive ----------------------------------------------------------------------------------------------


@contextmanager
def uploads(service: ClusterService) -> Iterator[None]:
    """Upload items of the pet from another thread, one every 20 ms."""
    ended = threading.Event()

    def upload() -> None:
        for number in count(100):
            if ended.wait(0.02):
                return
            service.assign(PET, MediaId(f"up-{number}"), model=MODEL, vector=picture(number % 3, number))

    thread = threading.Thread(target=upload)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_merge_succeeds_while_items_arrive(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}")
    tick(page, "cluster 1", "cluster 2")
    seen = album.revision(PET)

    with uploads(album):
        eventually(lambda: album.revision(PET) > seen)
        page.click("Merge: 2 clusters")
        arrived = album.revision(PET)
        eventually(lambda: album.revision(PET) > arrived)
        page.click("Merge", within="//dialog")
        page.sees("arrived since this page was loaded")
        page.sees("Merge clusters: succeeded")

    assert len(album.clusters(PET).clusters) == 2
    assert [entry.kind for entry in album.history(PET)] == ["merge", "recluster"]


def test_merge_is_refused_when_another_user_merged_the_clusters(
    page: Page, album: ClusterService, worker: None
) -> None:
    page.open(f"pet/{PET}")
    tick(page, "cluster 1", "cluster 2")
    album.merge(PET, [ClusterId(2), ClusterId(3)], operation_id="m", by="bob")
    take(album, 0, range(20, 22))

    page.click("Merge: 2 clusters")
    page.click("Merge", within="//dialog")

    page.sees("since then: merge by bob, 2 arrivals")
    # the page reloads to show the current clusters
    page.sees("34 items in 2 clusters")
    assert [entry.kind for entry in album.history(PET)] == ["merge", "recluster"]
