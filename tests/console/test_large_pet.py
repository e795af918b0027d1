"""Tests that pages of a pet of the maximum size, 262,000 items, never keep the browser busy for long.

They measure the processor time of each task of the page's thread, from the browser's own trace, because a long task
that ``PerformanceObserver`` reports on a loaded machine may only have waited for the processor. The pet is in memory,
because writing it to Redis would take longer than the rest of the test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from sploot_cluster.pet.models import ClusterCard, ClusterId, HistoryEntry, MediaId, Origin, PetState
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.whole import PetDump
from tests.console.conftest import Page, launch, running
from tests.sploot_cluster.albums import MODEL, PET
from tests.sploot_cluster.api.front import Front
from tests.support import eventually

pytestmark = pytest.mark.slow

N_ITEMS: Final = 262_000
N_CLUSTERS: Final = 5_000
N_LARGEST: Final = 50_000
MOST_MS: Final = 200


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page of the pet in a separate browser, whose trace lists the tasks of all threads."""
    browser = launch(tmp_path, categories=["toplevel", "devtools.timeline"])
    front = Front()
    front.store.replace(None, large_pet())
    with running(front.app) as root:
        yield Page(browser, root)
        browser.quit()


def large_pet() -> PetDump:
    """Return a pet whose largest cluster has a fifth of the items; an eleventh of the other items is noise."""
    numbers = np.arange(N_ITEMS)
    labels = np.where(numbers % 11 == 0, -1, 2 + numbers % (N_CLUSTERS - 1)).astype(np.int32)
    labels[:N_LARGEST] = 1
    clusters = {ClusterId(id_): ClusterCard(ClusterId(id_), 0.5, 2) for id_ in np.unique(labels[labels > 0]).tolist()}
    angles = numbers / N_ITEMS * 2 * np.pi
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    media = [MediaId(f"photo-{number:06d}.jpg") for number in range(N_ITEMS)]
    rows = PetRows(media, vectors, np.zeros(N_ITEMS, dtype=np.int64))
    state = PetState(
        PET, 2, MODEL, 2, rows.media(N_ITEMS), rows.index(N_ITEMS), rows.vectors(N_ITEMS), rows.occurred_at_ms(N_ITEMS),
        labels, np.where(labels > 0, Origin.CORE, Origin.NOISE).astype(np.uint8), clusters, {}, (),
        next_cluster=ClusterId(N_CLUSTERS + 1), n_at_recluster=N_ITEMS, relabelled_at=2,
    )  # fmt: skip
    entry = HistoryEntry(2, "recluster", datetime(2026, 11, 24, tzinfo=UTC), "machine", {})
    return PetDump(state, np.ones(N_ITEMS, dtype=np.uint32), (), 2, (entry,), {}, N_ITEMS)


def longest_task(page: Page, step: str) -> float:
    """Return the processor time of the longest task of a page since the last call, in milliseconds."""
    events: list[dict[str, Any]] = []
    page.browser.execute_script("console.timeStamp(arguments[0])", step)

    def has_ended() -> bool:
        for entry in page.browser.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Tracing.dataCollected":
                events.append(message["params"])
        return any(step in str(event.get("args")) for event in events if event["name"] == "TimeStamp")

    eventually(has_ended, within_s=60, every_s=0.2)
    pages = {(event["pid"], event["tid"]) for event in events if event["name"] == "TimeStamp"}
    # also count parts of tasks, because for some microtask checkpoints the trace lacks the task around them
    return max(int(event.get("tdur", 0)) for event in events if (event["pid"], event["tid"]) in pages) / 1000


@pytest.mark.timeout(300)
def test_pages_of_a_very_large_pet_have_no_long_tasks(page: Page) -> None:
    def shows(selector: str, text: str) -> None:
        # read only the elements of the selector: collecting the text of the whole page takes longer than drawing it
        eventually(lambda: any(text in shown for shown in page.shown(selector)) or None, within_s=60)

    def go(place: str) -> None:
        page.browser.execute_script("location.hash = arguments[0]", f"#/pet/{PET}{place}")

    took = {}
    page.open(f"pet/{PET}")
    shows(".pet-head p", f"{N_ITEMS:,} items in")
    shows(".cell", "Album 1")
    page.browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    took["albums"] = longest_task(page, "albums")
    go("/album/1")
    shows(".cell", "photo-000000")
    page.press("a")
    shows(".chosen", f"{N_LARGEST:,}")
    page.browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    took["album"] = longest_task(page, "album")
    go("/loose")
    shows(".cell", "photo-050006")
    took["loose"] = longest_task(page, "loose")
    go("/map")
    shows(".pet-body p", f"of {N_ITEMS:,} items")
    ActionChains(page.browser).move_to_element(page.browser.find_element(By.CSS_SELECTOR, "canvas.map")).perform()
    took["map"] = longest_task(page, "map")

    assert {place: ms for place, ms in took.items() if ms > MOST_MS} == {}
