"""Tests that redraws preserve the user's input and position, errors are shown in place, and roles limit the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sploot_cluster import ClusterService
from tests.console.conftest import Page
from tests.sploot_cluster.albums import PET, take
from tests.support import eventually
from tests.tasks.queue_ops.desk import Desk

pytestmark = pytest.mark.slow

RETURN_TO_THE_TAB = "document.dispatchEvent(new Event('visibilitychange'))"

SELECT_TYPED_TEXT = """
document.querySelector("[name=reason]").focus();
document.querySelector("[name=reason]").setSelectionRange(1, 3);
"""

HELD = """
const reason = document.activeElement;
return {
  focus: [reason.name, reason.value, reason.selectionStart, reason.selectionEnd],
  open: [...document.querySelectorAll("details[open]")].map((one) => one.innerText.match(/"media_id": "(.*)"/)[1]),
};
"""


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


def test_redraw_keeps_focus_selection_open_details_and_typed_text(page: Page, desk: Desk) -> None:
    desk.bury(1, 2)
    page.open("dead/embedding.ingested")
    page.click("ValueError: no")
    page.sees('"pet_id"')
    page.labelled("reason").send_keys("fail")
    page.browser.execute_script(SELECT_TYPED_TEXT)

    desk.bury(3)
    page.browser.execute_script(RETURN_TO_THE_TAB)
    page.sees("3 in embedding.ingested")

    # the dead letter moved down by one row and is still open
    held: Any = page.browser.execute_script(HELD)
    assert held["focus"] == ["reason", "fail", 1, 3]
    assert held["open"] == ["media-2"]
    assert page.complaints() == []


def test_selected_text_survives_a_redraw(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    page.sees("embedding.ingested")
    page.browser.execute_script("getSelection().selectAllChildren(document.querySelector('main td strong'))")

    redis_client.set("{streams:embedding.ingested}:paused", "1")
    page.browser.execute_script(RETURN_TO_THE_TAB)
    page.sees("embedding.ingested is paused")

    assert page.browser.execute_script("return String(getSelection())") == "embedding.ingested"


def test_refresh_shows_new_items_and_back_restores_the_scroll_position(page: Page, service: ClusterService) -> None:
    take(service, 0, range(2))
    page.open(f"pet/{PET}/loose")
    page.sees("2 items")
    take(service, 0, range(2, 150))
    page.sees("148 newer revisions: items arrived")
    page.click("Refresh")
    page.sees("150 items")

    page.browser.execute_script("scrollTo(0, 400)")
    eventually(lambda: page.browser.execute_script("return scrollY") == 400)
    page.browser.execute_script("location.hash = '#/job'")
    page.sees("Enter the id of a job")
    page.browser.execute_script("history.back()")

    page.sees("150 items")
    eventually(lambda: page.browser.execute_script("return scrollY") == 400)


def test_form_stays_next_to_its_error_so_that_it_can_be_corrected(page: Page, desk: Desk) -> None:
    page.open("job/unknown")
    page.sees("job unknown is unknown")
    assert page.labelled("Job id").get_attribute("value") == "unknown"

    page.open("dead/embedding.ingested")
    page.labelled("pet").send_keys("abc")
    page.click("Filter")
    page.sees("in decimal digits")
    field = page.labelled("pet")
    assert field.get_attribute("value") == "abc"
    field.clear()
    field.send_keys(Keys.ENTER)
    page.sees("0 in embedding.ingested")


def test_caller_signs_in_sees_only_permitted_actions_and_signs_out(
    browser: webdriver.Chrome, serve: Callable[..., str], service: ClusterService
) -> None:
    take(service, 0, range(3))
    secret = "another-secret-of-a-viewer"
    page = Page(browser, serve(api_tokens=f"bea:viewer:{secret}"))
    page.open(f"pet/{PET}")

    page.labelled("Secret").send_keys("not-the-secret", Keys.ENTER)
    page.sees("does not know that secret")
    page.labelled("Secret").send_keys(secret, Keys.ENTER)

    page.sees("bea viewer")
    page.sees("3 items")
    texts = [element.text for element in browser.find_elements(By.CSS_SELECTOR, "button, nav a")]
    assert not any(text.startswith(("Merge", "Recluster", "Undo", "Dead letters")) for text in texts)
    page.click("Queues")
    page.sees("embedding.ingested")
    assert not [text for text in page.shown("main button") if "Pause" in text]

    page.click("Sign out")
    page.sees("This server requires a token")
    assert "embedding.ingested" not in browser.find_element(By.TAG_NAME, "body").text
