"""Tests of how pages stay up to date: pushed events, polling in their place, and the age that the page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tasks.client import ClusterTasks
from tasks.composition import build_operations
from tasks.settings import Settings
from tests.console.conftest import Page
from tests.support import eventually
from tests.tasks.queue_ops.desk import Desk

pytestmark = pytest.mark.slow

STREAM = "streams:embedding.ingested"
PAUSED = f"{{{STREAM}}}:paused"

# Returns how many times the page loaded the queues and opened the stream.
LOADS = """
return performance.getEntriesByType("resource").filter((one) => one.name.endsWith(arguments[0])).length;
"""
# Each is one script, because the page may be redrawn between two browser commands.
FOCUS = """
[...document.querySelectorAll("main button")].filter((one) => one.innerText.startsWith("Pause"))[1].focus();
"""
FOCUSED = """
const held = document.activeElement;
return [held.closest("tr")?.querySelector("strong").innerText, held.innerText];
"""
HIDE = """
Object.defineProperty(document, "hidden", { value: arguments[0], configurable: true });
document.dispatchEvent(new Event("visibilitychange"));
"""
# Simulates a proxy that buffers responses until they are complete, so that no event is delivered.
BUFFERING = """
const load = fetch;
window.fetch = (address, options) => String(address).endsWith("/events")
  ? new Promise((_, reject) => options.signal.addEventListener("abort", () => reject(options.signal.reason)))
  : load(address, options);
"""


def state_of(page: Page) -> str:
    """Return what the page shows about its age."""
    return " ".join(page.shown("#freshness"))


def becomes_live(page: Page) -> None:
    eventually(lambda: state_of(page).endswith("live"), within_s=30)


@pytest.fixture
def buffering(page: Page) -> Iterator[None]:
    """Put a simulated proxy that holds events back between the page and the server."""
    added: Any = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": BUFFERING})
    yield
    page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_pushed_change_preserves_focus_and_scroll_position(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    becomes_live(page)
    assert "as of " in state_of(page)
    page.browser.execute_script(FOCUS)
    page.browser.execute_script("scrollTo(0, 50)")

    redis_client.set(PAUSED, "1")
    page.sees("embedding.ingested is paused")

    assert page.browser.execute_script(LOADS, "/queues") == 1
    assert page.browser.execute_script(FOCUSED) == ["cluster.feedback", "Pause…"]
    assert page.browser.execute_script("return scrollY") == 50
    assert page.complaints() == []


def test_pushed_event_does_not_interrupt_a_click(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    becomes_live(page)

    def press() -> bool:
        button = page.browser.find_element(By.XPATH, "//button[starts-with(text(), 'Cancel jobs')]")
        try:
            ActionChains(page.browser).click_and_hold(button).perform()
        except StaleElementReferenceException:
            return False
        return True

    eventually(press)
    before = state_of(page)
    # an event arrived while the button was held
    eventually(lambda: state_of(page) != before)
    ActionChains(page.browser).release().perform()

    page.sees("Enter a job id")


def test_focus_returns_to_the_button_of_a_dialog_despite_a_redraw(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    becomes_live(page)
    page.browser.execute_script(FOCUS)
    page.press(Keys.ENTER)
    page.sees("Redis commands:")

    redis_client.set(PAUSED, "1")
    page.sees("embedding.ingested is paused")
    page.press(Keys.ESCAPE)

    page.sees("nothing was changed")
    assert page.browser.execute_script(FOCUSED) == ["cluster.feedback", "Pause…"]


def test_page_behind_a_buffering_proxy_polls_for_data(buffering: None, page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    page.sees("No worker is running")
    assert "every 5 s" in state_of(page)

    redis_client.set(PAUSED, "1")

    page.sees("embedding.ingested is paused")
    assert page.complaints() == []


def test_page_shows_the_age_of_its_data_while_redis_fails(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    becomes_live(page)

    redis_client.set(STREAM, "not a stream")

    page.sees("This page shows what was true at")
    page.sees("reconnecting")
    eventually(lambda: " s old" in state_of(page))
    redis_client.delete(STREAM)
    becomes_live(page)
    assert not page.browser.find_element(By.ID, "stale").is_displayed()


def test_lists_are_loaded_again_when_a_push_reports_a_change(page: Page, redis_client: redis.Redis) -> None:
    desk = Desk(redis_client)
    desk.bury(1)
    page.open("dead/embedding.ingested")
    becomes_live(page)
    loads = page.browser.execute_script(LOADS, "/dead/groups")
    before = state_of(page)
    eventually(lambda: state_of(page) != before and state_of(page).endswith("live"), within_s=30)
    assert page.browser.execute_script(LOADS, "/dead/groups") == loads

    desk.bury(2)
    page.sees("2 in embedding.ingested")

    page.open("jobs/embedding.ingested/waiting")
    becomes_live(page)
    page.sees("No job waits.")
    desk.add(3, pet_id=43)
    page.sees("43")
    # the page reads the counts before the jobs, so that the next push may correct them
    eventually(lambda: page.shown(".tabs a")[0].split() == ["Waiting", "1"], within_s=30)
    assert page.complaints() == []


def test_job_and_activity_are_loaded_again_when_a_push_reports_a_change(page: Page, redis_client: redis.Redis) -> None:
    job_id = ClusterTasks(client=redis_client).merge(7, [1, 2]).job_id
    page.open(f"job/{job_id}")
    becomes_live(page)
    assert page.shown("main .state") == ["queued"]
    operations = build_operations(Settings(), redis_client)

    operations.act(operations.plan_cancel("cluster.feedback", job_ids=[job_id]), by="ada", via="http", note="")

    eventually(lambda: page.shown("main .state") == ["cancelled"], within_s=30)

    page.open("activity")
    becomes_live(page)
    page.sees("Jobs done per minute")
    assert page.complaints() == []


def test_hidden_page_sends_no_requests(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    becomes_live(page)
    loads = page.browser.execute_script(LOADS, "/queues")

    page.browser.execute_script(HIDE, True)
    eventually(lambda: not state_of(page).endswith("live"))
    redis_client.set(PAUSED, "1")
    page.browser.execute_script("return new Promise((resolve) => setTimeout(resolve, 2500))")  # longer than a round

    assert page.browser.execute_script(LOADS, "/queues") == loads
    assert "is paused" not in page.browser.find_element(By.TAG_NAME, "main").text
    page.browser.execute_script(HIDE, False)
    page.sees("embedding.ingested is paused")
    becomes_live(page)


def test_expired_session_is_reported_and_continues_after_signing_in(
    browser: webdriver.Chrome, serve: Callable[..., str], redis_client: redis.Redis
) -> None:
    secret = "another-secret-of-a-viewer"
    page = Page(browser, serve(api_tokens=f"bea:viewer:{secret}"))
    page.open("queues")
    page.labelled("Secret").send_keys(secret, Keys.ENTER)
    becomes_live(page)

    browser.execute_script("sessionStorage.setItem('sploot-token', 'a-secret-that-was-replaced')")
    page.click("Refresh")
    page.sees("Your session has ended")
    page.labelled("Secret").send_keys(secret, Keys.ENTER)

    becomes_live(page)
    page.sees("embedding.ingested")
    page.click("Sign out")
