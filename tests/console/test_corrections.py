"""Tests that a correction applies once, to exactly what was selected, and never to a pet that has changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
import redis
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import ClusterId, MediaId
from tests.console.conftest import Page
from tests.sploot_cluster.albums import MODEL, PET, name, picture, take
from tests.support import eventually

pytestmark = pytest.mark.slow


def kinds(service: ClusterService) -> list[str]:
    return [entry.kind for entry in service.history(PET)]


# -- choosing --------------------------------------------------------------------------------------------------------


def test_shift_selects_a_range_and_only_that_range_is_split_off(
    page: Page, album: ClusterService, worker: None
) -> None:
    page.open(f"pet/{PET}/album/1")
    page.choose("s0-1")
    end = page.labelled("s0-4")
    ActionChains(page.browser).key_down(Keys.SHIFT).click(end).key_up(Keys.SHIFT).perform()
    chosen = page.chosen()
    page.sees("4 selected")

    page.correct("split")

    page.sees("32 items in 4 albums")
    eventually(lambda: len(album.clusters(PET).clusters) == 4, within_s=30)
    assert chosen == {"s0-1", "s0-2", "s0-3", "s0-4"}
    assert chosen in [set(one.media_ids) for one in album.clusters(PET).clusters]
    assert page.chosen() == set()


def test_items_can_be_selected_and_corrected_by_keyboard_alone(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}")
    page.sees("Album 1")
    page.press(Keys.ARROW_RIGHT)  # moves the focus to the grid
    page.press(Keys.ENTER)
    page.sees("cluster 1 · since")
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.SHIFT + Keys.ARROW_RIGHT)
    page.sees("2 selected")
    page.press("n")
    page.sees("4 loose")
    page.press("3")
    page.sees("Loose items 4")
    page.press(Keys.ARROW_RIGHT)
    page.press("a")
    page.sees("4 selected")
    page.press(Keys.ESCAPE)
    eventually(lambda: page.chosen() == set())
    page.press("z")
    page.sees("2 loose")

    eventually(lambda: kinds(album) == ["undo", "exclude", "recluster"], within_s=30)
    page.press("?")
    page.sees("select a range")
    assert page.complaints() == []


def test_selection_survives_a_reload_except_for_items_that_moved(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}/album/1")
    page.choose("s0-0", "s0-1")
    album.split(PET, ClusterId(1), [name(0, 0)], operation_id="s", by="another user")

    page.browser.refresh()

    page.sees("Album 1 9")
    eventually(lambda: page.chosen() == {"s0-1"})


DROP = """
const [from, to] = arguments;
const dataTransfer = new DataTransfer();
const event = (type) => new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true });
const fire = (element, type) => element.dispatchEvent(event(type));
fire(from, "dragstart"); fire(to, "dragenter"); fire(to, "dragover"); fire(to, "drop");
"""


def test_items_dropped_on_an_album_are_placed_in_it(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}/loose")
    page.choose("s7-0", "s8-0")
    target = page.browser.find_element(By.CSS_SELECTOR, ".rail-album[href$='/album/2']")
    page.browser.execute_script(DROP, page.labelled("s7-0"), target)
    page.sees("0 loose")

    page.click("Albums")
    page.sees("Album 3")
    cells = {text: page.labelled(text) for text in ("Album 3, 10 items", "Album 1, 10 items")}
    page.browser.execute_script(DROP, *cells.values())

    page.sees("32 items in 2 albums")
    eventually(lambda: kinds(album) == ["merge", "place", "recluster"], within_s=30)
    assert {one.cluster_id: one.size for one in album.clusters(PET).clusters} == {1: 20, 2: 12}


# -- nothing twice, nothing on a pet that changed ----------------------------------------------------------------------


def test_waiting_correction_is_shown_after_a_reload_until_it_ends(
    page: Page, album: ClusterService, redis_client: redis.Redis, request: pytest.FixtureRequest
) -> None:
    page.open(f"pet/{PET}")
    page.choose("Album 1", "Album 2")
    page.correct("merge")
    page.sees("1 in progress")
    # the buttons disappear with the selection, so a second click has no effect
    assert not page.browser.find_element(By.CSS_SELECTOR, ".verbs").is_displayed()
    eventually(lambda: redis_client.xlen("streams:cluster.feedback") == 1)

    page.browser.refresh()
    page.sees("Not shown yet: merge clusters (queued)")
    page.sees("32 items in 3 albums")
    request.getfixturevalue("worker")
    page.sees("Someone has changed this pet since the page was loaded.")
    page.click("Show the current state")

    page.sees("32 items in 2 albums")
    assert kinds(album) == ["merge", "recluster"]


def test_stale_correction_is_refused_and_later_ones_are_not_sent(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}")
    page.choose("Album 1", "Album 2")
    album.merge(PET, [ClusterId(2), ClusterId(3)], operation_id="m", by="bob")
    take(album, 0, range(20, 22))

    page.correct("merge")

    page.sees("since then: merge by bob, 2 arrivals")
    # the page shows the pet as it is now
    page.sees("34 items in 2 albums")
    assert kinds(album) == ["merge", "recluster"]


def test_split_reports_how_many_unnamed_items_it_moves(page: Page, album: ClusterService, worker: None) -> None:
    one, two, three = ClusterId(1), ClusterId(2), ClusterId(3)
    album.merge(PET, [two, three], into=two, operation_id="a", by="bob")
    album.merge(PET, [one, two], into=one, operation_id="b", by="bob")
    kept = {name(0, 0), name(1, 0)}
    others = [
        name(subject, number) for subject in range(3) for number in range(10) if name(subject, number) not in kept
    ]
    split = album.split(PET, one, others, operation_id="c", by="bob")
    album.exclude(PET, one, [name(1, 0)], operation_id="d", by="bob")
    # the excluded item must leave the other one, but the first merge keeps it with the rest of its subject
    album.undo(PET, split.revision, operation_id="e", by="bob")
    page.open(f"pet/{PET}/album/1")
    page.choose("s0-0")

    page.correct("split")

    page.sees("1 item that it does not name moved too")


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
    page.choose("Album 1", "Album 2")
    seen = album.revision(PET)

    with uploads(album):
        eventually(lambda: album.revision(PET) > seen)
        page.correct("merge")
        eventually(lambda: kinds(album) == ["merge", "recluster"], within_s=30)

    assert len(album.clusters(PET).clusters) == 2
