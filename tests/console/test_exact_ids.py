"""Tests that ids beyond 2**53, which JavaScript would round to those of other pets, stay exact on every page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import redis
from selenium.webdriver.common.keys import Keys

from broker.keys import QueueKeys
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from tasks.contracts import CLUSTER_FEEDBACK, NAMESPACE
from tasks.job_records import JobRecords
from tests.console.conftest import Page
from tests.sploot_cluster.albums import MODEL, picture, take
from tests.support import eventually
from tests.tasks.queue_ops.desk import Desk

pytestmark = pytest.mark.slow

MINE, NEIGHBOUR = PetId(2**53 + 1), PetId(2**53)
assert float(MINE) == float(NEIGHBOUR)
# of the integers with 19 digits, a double can represent only one in 256
LONG, LONG_NEIGHBOUR = PetId(1_800_000_000_000_000_001), PetId(1_800_000_000_000_000_000)
assert float(LONG) == float(LONG_NEIGHBOUR)


def fill(service: ClusterService, *pets: PetId) -> None:
    """Give each pet three clusters of six items, at the same revision."""
    for pet in pets:
        for subject in range(3):
            take(service, subject, range(6), pet=pet)
        service.recluster(pet, by="test")


@pytest.fixture
def twins(service: ClusterService) -> ClusterService:
    """A service with two pets that have the same content, and different ids that a double rounds to one value."""
    fill(service, MINE, NEIGHBOUR)
    return service


def texts(page: Page, selector: str) -> list[str]:
    # one script for all elements, so that the page cannot redraw between two of them
    script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText)"
    found: list[str] = page.browser.execute_script(script, selector)
    return found


def links(page: Page) -> list[str]:
    script = "return [...document.querySelectorAll('main a')].map((link) => link.href.split('#')[1])"
    found: list[str] = page.browser.execute_script(script)
    return found


def merge(page: Page, pet: PetId) -> None:
    page.choose("Album 1", "Album 2")
    page.correct("merge")


def split(page: Page, pet: PetId) -> None:
    page.browser.execute_script(f"location.hash = '#/pet/{pet}/album/1'")
    page.choose("s0-0", "s0-1")
    page.correct("split")


def exclude(page: Page, pet: PetId) -> None:
    page.browser.execute_script(f"location.hash = '#/pet/{pet}/album/1'")
    page.choose("s0-0")
    page.correct("exclude")


def undo(page: Page, pet: PetId) -> None:
    page.click("History")
    page.click("Undo", within="//td")


def restore(page: Page, pet: PetId) -> None:
    page.click("History")
    page.labelled("Revision").send_keys(Keys.ARROW_LEFT)
    page.click("Restore revision 19")


def recluster(page: Page, pet: PetId) -> None:
    page.click("Recluster…")
    page.sees(f"sploot-cluster recluster {pet} --apply ")
    page.click("Apply")


Act = Callable[[Page, PetId], None]


@pytest.mark.parametrize("act", [merge, split, exclude, recluster])
def test_correction_of_a_pet_with_a_large_id_spares_the_adjacent_pet(
    page: Page, twins: ClusterService, worker: None, act: Act
) -> None:
    before = twins.clusters(NEIGHBOUR)
    page.open(f"pet/{MINE}")
    page.sees(f"Pet {MINE}")

    act(page, MINE)

    eventually(lambda: twins.revision(MINE) > before.revision, within_s=30)
    assert twins.clusters(NEIGHBOUR) == before
    assert page.complaints() == []


@pytest.mark.parametrize("act", [undo, restore])
def test_undo_or_restore_of_a_pet_with_a_large_id_spares_the_adjacent_pet(
    page: Page, twins: ClusterService, worker: None, act: Act
) -> None:
    for pet in (MINE, NEIGHBOUR):
        twins.merge(pet, [ClusterId(1), ClusterId(2)], operation_id="m", by="test")
    before = twins.clusters(NEIGHBOUR)
    page.open(f"pet/{MINE}")
    page.sees(f"Pet {MINE}")

    act(page, MINE)

    eventually(lambda: twins.revision(MINE) > before.revision, within_s=30)
    assert twins.clusters(NEIGHBOUR) == before
    assert page.complaints() == []


def test_merge_in_a_pet_with_a_19_digit_id_spares_the_adjacent_pet(
    page: Page, service: ClusterService, worker: None
) -> None:
    fill(service, LONG, LONG_NEIGHBOUR)
    page.open(f"pet/{LONG}")

    merge(page, LONG)

    eventually(lambda: len(service.clusters(LONG).clusters) == 2, within_s=30)
    assert len(service.clusters(LONG_NEIGHBOUR).clusters) == 3


def test_every_page_shows_a_large_id_exactly(
    page: Page, twins: ClusterService, redis_client: redis.Redis, worker: None
) -> None:
    page.open("pet")
    page.sees(f"Pet {NEIGHBOUR}")
    page.labelled("Name or id of a pet").send_keys(str(MINE))
    page.click("Show")
    page.sees("18 items in 3 albums")
    assert page.browser.title.startswith(f"Pet {MINE} ")

    page.browser.execute_script(f"location.hash = '#/pet/{MINE}/album/1'")
    page.labelled("s0-0").click()
    page.sees(f"sploot-cluster why {MINE} s0-0")
    page.click("Close", within="//dialog")
    page.click("Albums")

    merge(page, MINE)
    page.sees("18 items in 2 albums")
    job = eventually(lambda: next(iter(JobRecords(redis_client).ids_of(MINE)), None))
    page.open(f"job/{job}")
    page.sees("succeeded")
    page.sees(str(MINE))
    assert [link for link in links(page) if "/pet/" in link] == [f"/pet/{MINE}"]
    assert str(NEIGHBOUR) not in " ".join(texts(page, "body"))


@pytest.mark.parametrize(("pet", "neighbour"), [(MINE, NEIGHBOUR), (LONG, LONG_NEIGHBOUR)])
def test_dead_letters_of_a_pet_with_a_large_id_link_to_that_pet(
    page: Page, redis_client: redis.Redis, pet: PetId, neighbour: PetId
) -> None:
    desk = Desk(redis_client)
    desk.bury(1, pet_id=pet)
    desk.bury(2, pet_id=neighbour)

    page.open("dead")
    page.sees("2 in embedding.ingested")
    assert links(page) == [f"/pet/{neighbour}", f"/pet/{pet}"]

    page.labelled("pet").send_keys(str(pet))
    page.click("Filter")
    page.sees("1 of 2 match")
    assert links(page) == [f"/pet/{pet}"]
    page.click("ValueError: no")
    page.sees(f'"pet_id": "{pet}"')
    assert "null" not in " ".join(texts(page, "main"))
    page.click(str(pet))
    page.sees(f"Pet {pet}")


@pytest.mark.parametrize("verb", ["Purge", "Requeue"])
def test_action_on_dead_letters_of_a_large_id_spares_the_adjacent_pet(
    page: Page, redis_client: redis.Redis, verb: str
) -> None:
    desk = Desk(redis_client)
    desk.bury(1, pet_id=MINE)
    (other,) = desk.bury(2, pet_id=NEIGHBOUR)
    page.open(f"dead/embedding.ingested?pet_id={MINE}")
    page.sees("1 of 2 match")

    page.click(f"{verb} all matches…")
    page.sees(f"sploot-cluster queue dead {verb.lower()} embedding.ingested --pet {MINE} --yes")
    page.click("Yes, 1 entry", within="//dialog")

    eventually(lambda: desk.dead_letter_ids() == [other], within_s=30)
    assert len(desk.entry_ids()) == (verb == "Requeue")
    page.open("queues")
    page.sees("Audit log")
    page.sees(verb.lower())
    assert page.complaints() == []


def test_dead_letter_shows_the_large_id_of_its_message_exactly(page: Page, redis_client: redis.Redis) -> None:
    message: dramatiq.Message[Any] = dramatiq.Message(
        CLUSTER_FEEDBACK, "merge_clusters", (), {"pet_id": MINE, "cluster_ids": [1, MINE]}, {}
    )
    facts: Any = {
        "reason": "failed",
        "error": "ValueError: no",
        "actor": "merge_clusters",
        "entry_id": "1-1",
        "deliveries": 1,
    }
    redis_client.xadd(QueueKeys(NAMESPACE, CLUSTER_FEEDBACK).dead, {**facts, "entry:message": message.encode()})

    page.open(f"dead/{CLUSTER_FEEDBACK}?pet_id={MINE}")
    page.sees("1 of 1 match")
    page.click("ValueError: no")

    page.sees(f'"pet_id": {MINE}')
    assert str(NEIGHBOUR) not in " ".join(texts(page, "main"))


# -- the console's JSON reader and writer --------------------------------------------------------------------------

READ_AND_WRITTEN = """
const [root, texts, isOld, done] = arguments;
const raw = JSON.rawJSON;
if (isOld) delete JSON.rawJSON;
import(`${root}/console/exact.js`).then(({ read, write }) => {
  const written = texts.map((text) => write(read(text)));
  if (isOld) JSON.rawJSON = raw;
  done(written);
});
"""

SAME_WRITTEN = [
    '{"pet_id":9007199254740993}',
    '{"pet_id":-9223372036854775808,"to":[9223372036854775807,9007199254740991]}',
    '{"name":"9007199254740993","a \\\\\\" 9007199254740993":"x\\\\"}',
    '{"similarity":0.12345678901234568,"n":1e+21}',
    "[42,true,null]",
]


def test_json_is_read_and_written_without_rounding(page: Page) -> None:
    page.open("pet")

    written: Any = page.browser.execute_async_script(READ_AND_WRITTEN, page.root, SAME_WRITTEN, False)

    assert written == SAME_WRITTEN


def test_json_keeps_large_ids_as_text_in_older_browsers(page: Page) -> None:
    page.open("pet")

    written: Any = page.browser.execute_async_script(READ_AND_WRITTEN, page.root, SAME_WRITTEN, True)

    assert written[0] == '{"pet_id":"9007199254740993"}'
    assert written[1] == '{"pet_id":"-9223372036854775808","to":["9223372036854775807",9007199254740991]}'
    assert written[2:] == SAME_WRITTEN[2:]


def test_item_id_that_consists_of_digits_stays_text(page: Page, service: ClusterService, worker: None) -> None:
    digits = MediaId("9007199254740993")
    service.assign(MINE, digits, model=MODEL, vector=picture(0, 0))
    page.open(f"pet/{MINE}/loose")

    page.choose(digits)
    page.correct("dismiss")

    eventually(lambda: service.clusters(MINE).dismissed == (digits,), within_s=30)
