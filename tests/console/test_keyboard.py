"""Tests that labellers and on-call engineers can do all of their tasks with the keyboard alone."""

from __future__ import annotations

import pytest
import redis
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from sploot_cluster import ClusterService
from tests.console.conftest import Page
from tests.sploot_cluster.albums import PET
from tests.support import eventually
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk

pytestmark = pytest.mark.slow

MOST_TABS = 120

# Returns the label or text of the element that has the focus.
FOCUSED = "const held = document.activeElement; return held.ariaLabel ?? held.innerText?.trim() ?? '';"

# Returns the label of the option that a screen reader announces in the list box that has the focus.
ANNOUNCED = """
const id = document.activeElement.getAttribute("aria-activedescendant");
const option = id && document.getElementById(id);
return option?.role === "option" ? option.ariaLabel : null;
"""


def press(page: Page, *keys: str) -> None:
    """Press keys one after the other, wherever the focus is."""
    for key in keys:
        ActionChains(page.browser).send_keys(key).perform()


def tab_to(page: Page, text: str) -> None:
    """Press Tab until the focus is on an element whose label or text begins like this."""
    for _ in range(MOST_TABS):
        press(page, Keys.TAB)
        if page.browser.execute_script(FOCUSED).startswith(text):
            return
    raise AssertionError(f"{MOST_TABS} tabs did not lead to {text}")


def activate(page: Page, text: str, *, shows: str) -> None:
    """Go to an element by Tab, press Enter on it, and wait until the page shows the text."""
    tab_to(page, text)
    press(page, Keys.ENTER)
    page.sees(shows)


def test_labeller_does_every_task_by_keyboard(page: Page, album: ClusterService, worker: None) -> None:
    page.open("pet")
    page.sees("32")
    tab_to(page, "Name or id of a pet")
    press(page, str(PET), Keys.ENTER)
    page.sees("32 items in 3 albums, 2 loose")

    press(page, Keys.ARROW_RIGHT, Keys.SPACE, Keys.ARROW_RIGHT, Keys.SPACE)
    page.sees("2 selected")
    press(page, "m")
    page.sees("32 items in 2 albums")
    press(page, "z")
    page.sees("32 items in 3 albums")

    press(page, Keys.HOME, Keys.ENTER)
    page.sees("cluster 1 · since")
    press(page, Keys.ARROW_RIGHT, Keys.ENTER)
    page.sees("Nearest neighbours")
    press(page, Keys.ESCAPE, Keys.SPACE)
    page.sees("1 selected")
    press(page, "s")
    page.sees("32 items in 4 albums")
    press(page, Keys.SPACE, "n")
    page.sees("3 loose")
    press(page, Keys.SPACE, "d")
    page.sees("1 dismissed")

    press(page, "3")
    page.sees("Loose items 3")
    press(page, Keys.ARROW_RIGHT, "a", "p")
    page.sees("New album")
    press(page, Keys.ARROW_DOWN, Keys.ENTER)
    page.sees("Loose items 0")

    activate(page, "Recluster…", shows="constraints from corrections kept")
    activate(page, "Apply", shows="Reclustered exactly as previewed.")

    press(page, "5")
    page.sees("All changes")
    tab_to(page, "Revision")
    press(page, Keys.ARROW_LEFT)
    page.sees("place by")
    activate(page, "Compare with now", shows="Since revision")
    activate(page, "Restore revision", shows="restored")

    assert [entry.kind for entry in album.history(PET)] == [
        "restore", "recluster", "place", "dismiss", "exclude", "split", "undo", "merge", "recluster"
    ]  # fmt: skip
    assert page.complaints() == []


def test_on_call_engineer_does_every_task_by_keyboard(page: Page, redis_client: redis.Redis) -> None:
    desk = Desk(redis_client)
    orphans = desk.add(1, pet_id=42)
    desk.deliver("gone")
    redis_client.xack(KEYS.stream, "cluster-workers", *orphans)
    desk.add(2, pet_id=42)
    desk.deliver()
    desk.bury(3, pet_id=42)

    page.open("queues")
    page.sees("stuck-worker")
    activate(page, "Pause…", shows="Redis commands:")
    press(page, "INC-7", Keys.ENTER)
    page.sees("embedding.ingested is paused")
    activate(page, "Resume…", shows="Redis commands:")
    press(page, Keys.ENTER)
    page.sees("embedding.ingested is resumed")
    activate(page, "Rescue orphans…", shows="Redis commands:")
    press(page, Keys.ENTER)
    page.sees("1 of 1")
    activate(page, "Rescue…", shows=f"Rescue {STUCK}")
    press(page, Keys.ENTER)
    eventually(lambda: desk.holders() and STUCK not in desk.holders().values(), within_s=30)

    press(page, "/", "42", Keys.ENTER)
    page.sees("Search: 42")
    activate(page, "event-42-2", shows="Search the queues for it")

    activate(page, "Dead letters", shows="ValueError: no")
    activate(page, "ValueError: no", shows='"pet_id": "42"')
    activate(page, "Requeue…", shows="Redis commands:")
    press(page, Keys.ENTER)
    page.sees("0 in embedding.ingested")

    activate(page, "Activity", shows="Jobs done per minute")
    activate(page, "Incidents", shows="MediaClusterNoWorkers")
    activate(page, "Runbook", shows="Resolves when")

    assert [record.action for record in desk.operations.audit().records] == [
        "requeue", "rescue", "rescue", "resume", "pause"
    ]  # fmt: skip
    assert [line for line in page.complaints() if "404" not in line] == []


def test_keyboard_walks_the_points_of_the_map(page: Page, album: ClusterService) -> None:
    points = album.map(PET, limit=100)
    places = {str(item): (x, -y) for item, x, y in zip(points.media_ids, points.x, points.y, strict=True)}
    page.open(f"pet/{PET}/map")
    page.sees("Axes:")
    tab_to(page, "Map of the items")
    assert page.role_of("canvas") == "listbox"
    seen = [reached(page)]

    for key, axis, sign in (
        (Keys.ARROW_RIGHT, 0, 1), (Keys.ARROW_DOWN, 1, 1), (Keys.ARROW_LEFT, 0, -1), (Keys.ARROW_UP, 1, -1)
    ):  # fmt: skip
        for _ in range(3):
            press(page, key)
            now = reached(page)
            # the last point in a direction stays the active one
            assert now == seen[-1] or sign * (places[now][axis] - places[seen[-1]][axis]) >= 0
            seen.append(now)
    assert len({*seen}) >= 6

    press(page, Keys.ENTER)
    page.sees("Nearest neighbours")
    page.sees(seen[-1])
    press(page, Keys.ESCAPE, Keys.ARROW_LEFT)
    reached(page)
    assert page.complaints() == []


def reached(page: Page) -> str:
    """Return the item of the map that is announced."""
    label = eventually(lambda: page.browser.execute_script(ANNOUNCED))
    return str(label).rpartition(", ")[0]
