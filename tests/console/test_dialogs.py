"""Tests of the dialogs: keyboard use, the commands that they show, and the notices about the outcome."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from sploot_cluster import ClusterService
from tasks.client import ClusterTasks
from tests.console.conftest import Page
from tests.sploot_cluster.albums import PET, take
from tests.support import eventually
from tests.tasks.queue_ops.desk import Desk

pytestmark = pytest.mark.slow

PAUSED = "{streams:embedding.ingested}:paused"


@pytest.fixture
def album(service: ClusterService) -> ClusterService:
    for subject in range(3):
        take(service, subject, range(6))
    service.recluster(PET, by="test")
    return service


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


def focused(page: Page) -> WebElement:
    return page.browser.switch_to.active_element


def is_open(page: Page) -> bool:
    return bool(page.browser.execute_script("return document.getElementById('dialog').open"))


def press(page: Page, *keys: str) -> None:
    focused(page).send_keys(*keys)


def commands(page: Page) -> list[str]:
    return [code.text for code in page.browser.find_elements(By.CSS_SELECTOR, "#dialog code")]


# -- actions on queues ----------------------------------------------------------------------------------------------


def test_enter_in_the_note_confirms_a_pause_and_records_the_note(page: Page, redis_client: redis.Redis) -> None:
    page.open("queues")
    page.click("Pause…")
    page.sees("Redis commands:")

    assert focused(page).get_attribute("name") == "note"
    press(page, "INC-7", Keys.ENTER)

    eventually(lambda: redis_client.exists(PAUSED) == 1, within_s=30)
    page.sees("embedding.ingested is paused")
    page.sees("INC-7")
    assert not is_open(page)


def test_enter_in_the_note_does_not_confirm_a_purge(page: Page, desk: Desk) -> None:
    dead_letters = desk.bury(1, 2)
    page.open("dead/embedding.ingested")
    page.click("Purge all…")
    page.sees("Redis commands:")

    press(page, "INC-7", Keys.ENTER)

    page.sees("Enter does not confirm this action. Press “Yes, 2 entries”.")
    assert is_open(page)
    assert desk.dead_letter_ids() == dead_letters
    page.click("Yes, 2 entries", within="//dialog")
    eventually(lambda: desk.dead_letter_ids() == [], within_s=30)


def test_jobs_of_a_pet_are_cancelled_after_the_plan_was_shown(page: Page, desk: Desk) -> None:
    desk.broker.enqueue(desk.message(1), delay=3_600_000)
    page.open("queues")
    page.click("Cancel jobs…")
    page.sees("Enter a job id")
    page.browser.find_element(By.NAME, "pet").send_keys("7")
    assert commands(page) == ["sploot-cluster queue cancel embedding.ingested --pet 7"]
    page.click("Show the plan", within="//dialog")
    page.sees("Redis commands:")

    page.click("Yes, 1 entry", within="//dialog")

    page.sees("1 of 1 cancelled")
    assert desk.broker.stats("embedding.ingested").delayed == 0


def test_job_is_cancelled_from_its_page(page: Page, redis_client: redis.Redis) -> None:
    with ClusterTasks(client=redis_client) as tasks:
        tasks.request_recluster(7, reason="it grew", delay_ms=3_600_000)
        job_id = tasks.recluster(7).job_id
    page.open(f"job/{job_id}")
    page.click("Cancel…")
    page.sees("Redis commands:")

    page.click("Yes, 1 entry", within="//dialog")

    page.sees("was cancelled")
    assert not page.browser.find_elements(By.XPATH, "//button[text()='Cancel…']")


@pytest.mark.parametrize("way_out", ["Cancel", Keys.ESCAPE])
def test_cancelled_action_reports_that_nothing_was_changed(page: Page, redis_client: redis.Redis, way_out: str) -> None:
    page.open("queues")
    page.click("Pause…")
    page.sees("Redis commands:")
    press(page, "INC-7")

    if way_out == "Cancel":
        page.click("Cancel", within="//dialog")
    else:
        press(page, way_out)

    page.sees("Pause embedding.ingested: cancelled; nothing was changed.")
    assert not is_open(page)
    assert redis_client.exists(PAUSED) == 0


def test_commands_shown_for_an_action_include_its_note(page: Page, desk: Desk) -> None:
    desk.bury(1, 2)
    page.open("dead/embedding.ingested")
    page.click("Requeue all…")
    page.sees("Redis commands:")

    press(page, "INC 7")

    applies_plan, plans_again = commands(page)
    assert applies_plan.startswith("sploot-cluster queue apply p-")
    assert applies_plan.endswith(" --note 'INC 7' --yes")
    assert plans_again == "sploot-cluster queue dead requeue embedding.ingested --all --note 'INC 7' --yes"


def test_command_of_a_plan_acts_on_exactly_its_entries(page: Page, desk: Desk) -> None:
    desk.bury(1)
    page.open("dead/embedding.ingested")
    page.click("Requeue all…")
    page.sees("Redis commands:")
    (later,) = desk.bury(2)

    plan = desk.operations.take(commands(page)[0].split()[3])
    desk.operations.act(plan, by="test", via="command line")

    assert desk.dead_letter_ids() == [later]


# -- corrections -----------------------------------------------------------------------------------------------------


def test_enter_confirms_the_dialog_for_a_name(page: Page, album: ClusterService, worker: None) -> None:
    page.open(f"pet/{PET}/album/1")
    page.sees("cluster 1 · since")
    page.press("r")
    page.sees("Name a cluster")

    assert focused(page).get_attribute("name") == "name"
    press(page, "Rex", Keys.ENTER)

    page.sees("Rex")
    eventually(lambda: album.clusters(PET).clusters[0].name == "Rex", within_s=30)


def test_escape_cancels_a_placement_and_keeps_the_selection(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}/album/1")
    page.choose("s0-0")
    page.correct("place")
    page.sees("New album")

    press(page, Keys.ESCAPE)

    page.sees("Place 1 item: cancelled; nothing was changed.")
    assert page.chosen() == {"s0-0"}


def test_explanation_has_one_button_that_closes_it_without_a_notice(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}/album/1")
    page.labelled("s0-0").click()
    page.sees("Nearest neighbours")

    assert focused(page).text == "Close"
    assert [button.text for button in page.browser.find_elements(By.CSS_SELECTOR, "#dialog menu button")] == ["Close"]
    press(page, Keys.ENTER)

    eventually(lambda: not is_open(page))
    assert page.browser.find_elements(By.CSS_SELECTOR, ".notice") == []


# -- copying and links -----------------------------------------------------------------------------------------------


def test_command_is_copied_without_the_clipboard_api(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}/album/1")
    page.labelled("s0-0").click()
    page.sees("Nearest neighbours")
    # as on a page that was loaded over plain http from another machine
    page.browser.execute_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.browser.execute_script(
        "addEventListener('copy', () => (document.title = `copied ${getSelection()}`), { once: true })"
    )

    page.click("copy", within="//dialog")

    page.sees("copied")
    assert page.browser.title == f"copied sploot-cluster why {PET} s0-0"
    assert page.complaints() == []


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("pet/%", "“pet/%” is incomplete or mistyped"),
        ("job/%E0%A4%A", "“job/%E0%A4%A” is incomplete or mistyped"),
        ("dead/%ff", "“dead/%ff” is incomplete or mistyped"),
        ("nowhere", "There is no page “nowhere”."),
        ("constructor", "There is no page “constructor”."),
        ("__proto__/1", "There is no page “__proto__”."),
    ],
)
def test_broken_link_is_reported_with_its_cause(page: Page, place: str, problem: str) -> None:
    page.open(place)

    page.sees(problem)
    assert page.complaints() == []
    page.click("Pets")
    page.labelled("Name or id of a pet")


def test_error_for_a_broken_link_replaces_the_previous_page(page: Page, album: ClusterService) -> None:
    page.open(f"pet/{PET}")
    page.sees("18 items")

    page.browser.execute_script("location.hash = '#/pet/%'")
    page.sees("Broken link")
    assert "18 items" not in page.browser.find_element(By.TAG_NAME, "body").text

    page.browser.execute_script(f"location.hash = '#/pet/{PET}'")
    page.sees("18 items")


def test_broken_link_is_reported_before_signing_in(
    browser: webdriver.Chrome, serve: Callable[..., str], redis_client: redis.Redis
) -> None:
    page = Page(browser, serve(api_tokens="ann:viewer:a-secret-of-a-viewer"))

    page.open("pet/%")

    page.sees("“pet/%” is incomplete or mistyped")
