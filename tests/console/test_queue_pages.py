"""Tests of the pages for on-call engineers: the lists that the numbers link to, search, and dead letters by error."""

from __future__ import annotations

import pytest
import redis
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import PetId
from tasks.client import ClusterTasks
from tasks.contracts import (
    CLUSTER_FEEDBACK,
    EMBEDDING_INGESTED,
    EXPORT_MEDIA_TOTALS,
    EXPORT_PENDING_JOBS,
    EXPORT_STREAM_LAG,
    GROUP,
)
from tasks.job_records import JobOwner, JobRecords
from tasks.observe.history import PREFIX, STEP_S, KeepHistory
from tasks.observe.periodic_runs import recording_run
from tests.console.conftest import Page
from tests.sploot_cluster.albums import take
from tests.support import eventually
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk, worker_that_refuses

pytestmark = pytest.mark.slow

LARGE = 2**53 + 1


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


def test_numbers_link_to_the_jobs_that_they_count(page: Page, desk: Desk, redis_client: redis.Redis) -> None:
    desk.add(1, 2, pet_id=LARGE)
    desk.deliver()
    desk.add(3, pet_id=43)
    with ClusterTasks(client=redis_client) as tasks:
        tasks.request_recluster(44, reason="growth", delay_ms=1_000_000)

    page.open("queues")
    page.click("2", within="//main")
    page.sees(STUCK)
    page.sees(str(LARGE))
    page.sees("UTC")
    page.click("Waiting")
    page.sees("43")
    page.open("jobs/cluster.recluster/delayed")
    page.sees("due in ")
    page.sees("44")

    assert page.complaints() == []


def test_jobs_and_dead_letters_show_the_names_of_their_pets(
    page: Page, desk: Desk, service: ClusterService, redis_client: redis.Redis
) -> None:
    take(service, 0, range(1), pet=PetId(LARGE))
    service.name_pet(PetId(LARGE), "Mochi", operation_id="n", by="test")
    desk.add(1, pet_id=LARGE)
    desk.add(2, pet_id=43)
    desk.bury(3, pet_id=LARGE)
    with ClusterTasks(client=redis_client) as tasks:
        job = tasks.merge(LARGE, [1, 2])

    for place in ("jobs/embedding.ingested/waiting", "dead/embedding.ingested", f"job/{job.job_id}"):
        page.open(place)
        page.sees(f"Mochi ({LARGE})")
    eventually(lambda: page.browser.title == f"merge_clusters of Mochi ({LARGE}): queued · sploot-cluster", within_s=30)
    page.click("Mochi")
    eventually(lambda: page.browser.title == "Mochi · sploot-cluster")

    assert page.complaints() == []


def test_workers_are_shown_with_their_current_jobs(page: Page, desk: Desk, redis_client: redis.Redis) -> None:
    (entry,) = desk.add(1, pet_id=LARGE)
    desk.deliver()
    desk.client.xclaim(KEYS.stream, GROUP, STUCK, 0, [entry], idle=60_000, justid=True)
    (held,) = desk.operations.workers()[0].jobs
    redis_client.set(KEYS.progress(str(held.job.job_id)), '[3, 4, "items"]', px=3_600_000)
    now_s, _ = redis_client.time()
    redis_client.zadd(KEYS.consumers, {"pod-7:17:c0ffee.1:0a1b2c3d": 1_000 * (now_s + 60)})

    page.open("queues")
    page.sees("1 worker process is running")
    page.sees("pod-7:17")
    page.sees("idle")
    page.sees(f"cluster_embedding of pet {LARGE}")
    page.sees("75 %, items")
    page.click("Rescue…")
    page.click("Yes, 1 entry")
    page.sees("1 of 1 handed back")

    assert page.complaints() == []


def test_periodic_jobs_are_shown_with_their_runs(page: Page, redis_client: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError), recording_run(redis_client, EXPORT_MEDIA_TOTALS):
        raise redis.ResponseError("no luck")
    with recording_run(redis_client, EXPORT_PENDING_JOBS):
        pass

    page.open("queues")
    page.sees("ResponseError: no luck")

    rows = [row.split("\n") for row in page.shown("h2 + .scroll:has(time) tbody tr")]
    outcomes = {row[0]: " ".join(row) for row in rows}
    assert "succeeded in" in outcomes[EXPORT_PENDING_JOBS]
    assert "failed in" in outcomes[EXPORT_MEDIA_TOTALS]
    assert "has not run" in outcomes[EXPORT_STREAM_LAG]
    assert "no scheduler has run" in outcomes[EXPORT_STREAM_LAG]


def test_orphans_can_be_rescued_from_the_page(page: Page, desk: Desk) -> None:
    ids = desk.add(1, 2)
    desk.deliver()
    desk.client.xack("streams:embedding.ingested", "cluster-workers", *ids)

    page.open("queues")
    page.click("Rescue orphans…")
    page.click("Yes, 2 entries")
    page.sees("2 of 2")

    page.open("jobs/embedding.ingested/running")
    page.sees("waiting")


def test_search_finds_pets_items_jobs_and_errors(
    page: Page, desk: Desk, service: ClusterService, redis_client: redis.Redis
) -> None:
    take(service, 0, range(3), pet=PetId(LARGE))
    desk.bury(1, pet_id=43, error="TimeoutError: slow Redis")
    with ClusterTasks(client=redis_client) as tasks:
        job = tasks.merge(LARGE, [1, 2])

    def search(text: str) -> None:
        page.browser.find_element(By.TAG_NAME, "main").send_keys("/")
        box = page.labelled("Search jobs, pets, actors and errors")
        assert page.browser.switch_to.active_element == box
        box.clear()
        box.send_keys(text + Keys.ENTER)
        page.sees(f"Search: {text}")

    page.open("queues")
    page.sees("embedding.ingested")
    search(str(LARGE))
    page.sees("merge_clusters")
    search(job.job_id)
    page.sees("no worker takes jobs")
    search("slow redis")
    page.sees("TimeoutError: slow Redis")
    search(f"{LARGE} s0-1")
    page.sees(f"Item s0-1 of pet {LARGE}")
    search("nothing")
    page.sees("Nothing matches this id")
    page.click("Pets", within="//header")

    assert [line for line in page.complaints() if "404" not in line] == []


def test_dead_letters_can_be_paged_and_filtered_by_error(page: Page, desk: Desk) -> None:
    desk.bury(*range(101), error="ValueError: no")
    desk.bury(200, error="TimeoutError: slow")

    page.open("dead/embedding.ingested")
    page.sees("By error")
    page.click("Next page")
    page.sees("First page")
    page.open("dead/embedding.ingested")
    page.click("TimeoutError", within="//table")
    page.sees("1 of 102 match")


def test_many_dead_letters_are_requeued_by_a_canary(page: Page, desk: Desk, redis_client: redis.Redis) -> None:
    desk.bury(*range(12), error="ValueError: no")
    desk.bury(20, error="TimeoutError: slow")

    page.open("dead/embedding.ingested")
    page.click("Requeue…", within="//tr[td//a[text()='ValueError']]")
    page.sees("One first, as a canary")
    page.sees("--canary --rate 10 --stop-after 3")
    page.click("Yes, 12 entries")
    page.sees("Canary running")
    page.sees("1 of 12 requeued")
    with worker_that_refuses(redis_client, *(f"media-{number}" for number in range(1, 12))):
        page.sees("Canary stopped")
    page.sees("failed again")

    assert desk.operations.audit().records[0].state == "failed"
    assert page.complaints() == []


def test_canary_can_be_stopped_from_the_page(page: Page, desk: Desk) -> None:
    desk.bury(*range(3))

    page.open("dead/embedding.ingested")
    page.click("Requeue all…")
    page.click_on("[name=how][value=canary]")
    page.click("Yes, 3 entries")
    page.sees("Canary running")
    page.click("Stop", within="//section")

    page.sees("an operator stopped it")
    assert len(desk.dead_letter_ids()) == 2


def test_activity_is_drawn_with_thresholds(page: Page, redis_client: redis.Redis) -> None:
    history = KeepHistory(redis_client)
    history.count(EMBEDDING_INGESTED, is_success=True, duration_s=0.2)
    history.flush()

    page.open("activity")
    page.sees("Jobs done per minute")

    assert len(eventually(lambda: page.browser.find_elements(By.CSS_SELECTOR, ".chart canvas"))) == 7
    chart = page.browser.find_element(By.CSS_SELECTOR, ".chart").get_attribute("aria-label")
    assert chart is not None
    assert chart.startswith("Jobs done per minute: embedding.ingested 0.2")
    assert page.complaints() == []


def test_job_shows_its_attempts_as_a_timeline(page: Page, redis_client: redis.Redis) -> None:
    with ClusterTasks(client=redis_client) as tasks:
        job = tasks.merge(42, [1, 2])
    owner, at = JobOwner(CLUSTER_FEEDBACK, "merge_clusters", 42), "2026-11-30T12:00:00+00:00"
    records = JobRecords(redis_client)
    records.write(job.job_id, owner, state="running", how="start", started_at=at)
    records.write(
        job.job_id, owner, state="retrying", how="known", due_at=at, **{"failed:1": [at, "TimeoutError: slow"]}
    )

    page.open(f"job/{job.job_id}")
    page.sees("Timeline")
    page.sees("attempt 1 failed")
    page.sees("TimeoutError: slow")

    assert page.complaints() == []


def test_incident_shows_runbook_plot_and_jobs_and_its_action_is_audited(
    page: Page, desk: Desk, redis_client: redis.Redis
) -> None:
    desk.bury(1, 2, error="TimeoutError: slow Redis")
    now_s, _ = redis_client.time()
    redis_client.hincrby(f"{PREFIX}{now_s // STEP_S}", f"{EMBEDDING_INGESTED}:dead", 2)

    page.open("queues")
    page.click("Incidents: runbook")
    page.sees("MediaClusterNoWorkers")
    page.sees("MediaClusterDeadLettersNew embedding.ingested")
    page.sees("TimeoutError 2 of cluster_embedding")
    incident = "//section[starts-with(@aria-label, 'MediaClusterDeadLettersNew')]"
    page.click("Runbook", within=incident)
    page.sees("dead letters are not retried")
    assert "sploot-cluster queue dead list --since 1h --groups" in page.shown(".incident details .command code")
    eventually(lambda: page.browser.find_elements(By.CSS_SELECTOR, ".incident canvas"))
    page.click("Requeue those of the last half hour", within=incident)
    eventually(lambda: page.browser.find_elements(By.NAME, "note"))
    page.browser.find_element(By.NAME, "note").send_keys("INC-7")
    page.click("Yes, 2 entries")
    page.sees("2 of 2")

    page.open("queues")
    page.sees("INC-7")
    assert page.complaints() == []


def test_link_in_an_alert_opens_the_page_with_its_incident_on_top(page: Page, desk: Desk) -> None:
    page.open("incidents/MediaClusterPendingHigh")
    page.sees("The condition of this alert does not hold now.")
    page.sees("Resolves when")
    assert page.shown("section.incident")[0].startswith("MediaClusterPendingHigh")

    page.open("incidents/MediaClusterRedisMemoryHigh")
    page.sees("does not watch the condition")
    page.open("incidents/MediaClusterNoSuchAlert")
    page.sees("There is no alert of this name.")
    page.open("incidents/MediaClusterNoWorkers")
    page.sees("Otherwise start the workers")
    assert page.shown("section.incident")[0].startswith("MediaClusterNoWorkers")
    assert page.complaints() == []


def test_pause_can_be_reversed_from_its_notice_and_the_audit_log(
    page: Page, desk: Desk, redis_client: redis.Redis
) -> None:
    desk.add(1)
    desk.deliver()
    desk.client.xclaim(KEYS.stream, GROUP, STUCK, 0, desk.entry_ids(), idle=60_000, justid=True)

    page.open("incidents")
    incident = "//section[starts-with(@aria-label, 'MediaClusterStreamLag')]"
    page.click("Pause…", within=incident)
    page.click("Yes", within="//dialog")
    page.sees("embedding.ingested is paused")
    page.click("Take back…", within="//*[@id='notices']")
    page.sees("Redis commands:")
    page.click("Yes", within="//dialog")
    page.sees("embedding.ingested is resumed")
    eventually(lambda: not redis_client.exists(KEYS.paused))

    page.open("queues")
    page.sees("Audit log")
    # only an action that is still in effect can be reversed: the resume, but not the pause before it
    assert len(eventually(lambda: page.browser.find_elements(By.XPATH, "//td/button[text()='Take back…']"))) == 1
    page.click("Take back…", within="//main")
    page.click("Yes", within="//dialog")
    eventually(lambda: redis_client.exists(KEYS.paused))
    assert [record.action for record in desk.operations.audit().records] == ["pause", "resume", "pause"]


@pytest.mark.parametrize(
    "place", ["jobs/embedding.ingested/running", "find?text=42", "dead/embedding.ingested", "activity", "incidents"]
)
def test_page_fits_a_phone(phone: Page, desk: Desk, place: str) -> None:
    desk.add(1, 2, pet_id=42)
    desk.deliver()
    desk.bury(3, pet_id=42)

    phone.open(place)
    phone.sees(place.capitalize() if place in ("activity", "incidents") else "42")

    assert phone.too_wide() == []
