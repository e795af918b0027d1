"""Tests of the review page, which shows one question at a time, answered by keys or touch."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.by import By

from sploot_cluster import ClusterService
from tests.console.conftest import Page
from tests.sploot_cluster.albums import PET, two_looks
from tests.support import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def looks(service: ClusterService) -> ClusterService:
    """A service whose pet has two albums of one subject, 1 and 2, and four of other subjects."""
    two_looks(service)
    return service


def kinds(service: ClusterService) -> list[str]:
    return [entry.kind for entry in service.history(PET) if entry.kind != "recluster"]


def test_keys_answer_undo_and_postpone_questions(page: Page, looks: ClusterService, worker: None) -> None:
    n_items = looks.clusters(PET).n_media
    page.open(f"pet/{PET}/review")
    page.sees("Do Album 1 and Album 2 show the same subject?")
    assert len(page.shown(".side")) == 2

    page.press("s")
    page.sees("1 answer")
    page.sees(f"{n_items} items in 5 albums")
    eventually(lambda: kinds(looks) == ["merge"], within_s=30)
    page.sees("1 of 1 corrections kept")
    assert looks.history(PET)[0].summary["answer"] == "yes"

    page.press("z")
    page.sees("Do Album 1 and Album 2 show the same subject?")
    eventually(lambda: kinds(looks) == ["undo", "merge"], within_s=30)
    page.press("d")
    eventually(lambda: kinds(looks)[0] == "keep_apart", within_s=30)
    page.sees("That is all for now")
    assert page.complaints() == []


def test_postponed_question_returns_and_a_foreign_album_is_hidden(
    page: Page, looks: ClusterService, worker: None
) -> None:
    page.open(f"pet/{PET}/review")
    page.sees("Do Album 1 and Album 2 show the same subject?")

    page.press("l")
    page.sees("No questions about this pet")
    page.click("Ask the 1 left for later")
    page.sees("Do Album 1 and Album 2 show the same subject?")
    page.press("x")

    eventually(lambda: kinds(looks) == ["hide"], within_s=30)
    assert [one.cluster_id for one in looks.clusters(PET).clusters if one.is_hidden] == [2]


def test_answer_buttons_are_large_and_within_the_phone_screen(phone: Page, looks: ClusterService, worker: None) -> None:
    phone.open(f"pet/{PET}/review")
    phone.sees("Do Album 1 and Album 2 show the same subject?")

    answers = phone.browser.find_elements(By.CSS_SELECTOR, ".answer")
    assert all(button.rect["height"] >= 40 and button.rect["width"] >= 120 for button in answers)
    assert all(button.rect["y"] + button.rect["height"] <= 844 for button in answers)
    assert phone.too_wide() == []
    phone.click("Different")

    eventually(lambda: kinds(looks) == ["keep_apart"], within_s=30)
