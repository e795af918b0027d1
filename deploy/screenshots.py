"""Take screenshots of every page of the console for visual inspection: ``make screenshots`` writes build/screenshots/.

Each page is shown at widths of 1,440 and 390 pixels, in the light and in the dark scheme, with the sample pets of
``deploy.pictures``. The queues have a history of 24 hours and problems to look at: dead letters, a dead worker,
orphans. A worker in this process runs corrections and previews, but no uploads.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import dramatiq
import redis
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from broker import RedisStreamsBroker
from deploy.pictures import FLAGS, NoPicture, sample_console, served
from sploot_cluster import ClusterService
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP
from tasks.job_records import JobRecords, TrackJobs
from tasks.observe.history import PREFIX, SHOWN_STEPS, STEP_S
from tasks.observe.periodic_runs import EVERY, record_sending, recording_run
from tasks.settings import Settings
from tests.tasks.queue_ops.desk import KEYS, Desk

TARGET: Final = Path(__file__).parents[1] / "build" / "screenshots"
SCREENS: Final = {1_440: 900, 390: 844}
SCHEMES: Final = ("light", "dark")
LOADED_WITHIN_S: Final = 30
SETTLED_S: Final = 0.8  # time in which pictures fade in and plots are drawn
LABELLER: Final = "ada:labeller:a-secret-of-the-labeller"

# A function that opens a page's first dialog, or makes a choice, before the screenshot is taken.
Before = Callable[[webdriver.Chrome], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """A screenshot to take.

    Attributes:
        place: the fragment of the page's URL, with a placeholder for the id of the sample pet.
        before: what to do on the page first.
        shows: a selector of what the page shows when it is loaded.
        signs_in: whether the server requires a token, so that the page asks for one.
    """

    place: str
    before: Before = lambda _: None
    shows: str = "main h1"
    signs_in: bool = False


def _click(*selectors: str) -> Before:
    def click(browser: webdriver.Chrome) -> None:
        for selector in selectors:
            WebDriverWait(browser, LOADED_WITHIN_S).until(partial(_clicked, selector=selector))

    return click


def _clicked(browser: webdriver.Chrome, selector: str) -> bool:
    # click by script, because a notice may cover the element, and the page may be redrawn between two commands
    script = "const found = document.querySelector(arguments[0]); found?.click(); return found !== null"
    return browser.execute_script(script, selector) is True


def _press(keys: str) -> Before:
    return lambda browser: browser.switch_to.active_element.send_keys(keys)


CHOOSE: Final = ("[role=option] .tick", "[role=option]:nth-of-type(2) .tick")

SCENES: Final = {
    "pets": Scene("pet"),
    "pets-none": Scene("pet?search=nobody", shows=".empty"),
    "albums": Scene("pet/{pet}", shows="[role=option]"),
    "albums-chosen": Scene("pet/{pet}", _click(*CHOOSE), shows="[role=option]"),
    "album": Scene("pet/{pet}/album/1", shows="[role=option]"),
    "album-chosen": Scene("pet/{pet}/album/1", _click(*CHOOSE), shows="[role=option]"),
    "place": Scene("pet/{pet}/album/1", _click(*CHOOSE[:1], "[data-verb=place]"), shows="[role=option]"),
    "why": Scene("pet/{pet}/album/1", _click("[role=option]"), shows="[role=option]"),
    "keys": Scene("pet/{pet}", _press("?"), shows="[role=option]"),
    "loose": Scene("pet/{pet}/loose", shows="[role=option]"),
    "map": Scene("pet/{pet}/map", shows=".legend-album"),
    "history": Scene("pet/{pet}/history", shows="main table"),
    "review": Scene("pet/{pet}/review", shows=".question"),
    "recluster": Scene("pet/{pet}/recluster", shows=".moves, .banner"),
    "no-pet": Scene("pet/999999"),
    "queues": Scene("queues"),
    "rescue": Scene("queues", _click("main td.actions button")),
    "incidents": Scene("incidents"),
    "incident": Scene("incidents/MediaClusterPendingHigh"),
    "activity": Scene("activity", shows=".chart canvas"),
    "dead-letters": Scene("dead/embedding.ingested"),
    "dead-letter": Scene("dead/embedding.ingested?pet_id={pet}", _click("main details summary")),
    "requeue": Scene("dead/embedding.ingested", _click("main > div.row button")),
    "no-dead-letters": Scene("dead/cluster.feedback"),
    "waiting-jobs": Scene("jobs/embedding.ingested/waiting"),
    "running-jobs": Scene("jobs/embedding.ingested/running"),
    "delayed-jobs": Scene("jobs/cluster.recluster/delayed"),
    "search": Scene("find?text={pet}"),
    "job": Scene("job/{job}"),
    "jobs": Scene("job"),
    "unknown-job": Scene("job/unknown"),
    "broken-link": Scene("nowhere"),
    "sign-in": Scene("pet", shows="#sign-in h1", signs_in=True),
}


@contextmanager
def _browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise NoPicture("expected chromium and chromedriver on the PATH; apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            if not flag.startswith("--virtual-time-budget"):
                options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
        try:
            yield browser
        finally:
            browser.quit()


def photograph(browser: webdriver.Chrome, address: str, scene: Scene, target: Path, *, width: int, scheme: str) -> None:
    """Write a screenshot of one page, at a width and in a colour scheme, once the page is loaded."""
    screen = {"width": width, "height": SCREENS[width], "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get(address)
    browser.execute_script("sessionStorage.clear()")  # forget choices made for the previous screenshot
    browser.refresh()
    WebDriverWait(browser, LOADED_WITHIN_S).until(lambda there: there.find_elements(By.CSS_SELECTOR, scene.shows))
    scene.before(browser)
    time.sleep(SETTLED_S)
    browser.save_screenshot(str(target))


# -- queues with problems ----------------------------------------------------------------------------------------------


def _make_trouble(client: redis.Redis, pets: Sequence[int]) -> str:
    """Fill the queues with jobs in every state, and write a history of 24 hours. Return the id of a job that failed."""
    now_s = int(time.time())
    desk = Desk(client)
    live, dead = "worker-7c9f:17:c0ffee.1:0a1b2c3d", "worker-5d2e:9:c0ffee.2:4e5f6a7b"
    orphans = desk.add(1, 2, pet_id=pets[0])
    desk.deliver()
    client.xack(KEYS.stream, GROUP, *orphans)
    desk.add(*range(10, 13), pet_id=pets[1])
    desk.deliver(dead)
    desk.add(*range(20, 24), pet_id=pets[2])
    desk.deliver(live)
    client.zadd(KEYS.consumers, {live: 1_000 * (now_s + 3_600)})
    for number in range(30, 64):
        desk.add(number, pet_id=pets[number % len(pets)])
    for number in range(9):
        desk.bury(number, pet_id=pets[number % len(pets)], error="TimeoutError: Redis did not answer within 5 s")
    desk.bury(*range(3), pet_id=pets[3], error="DimensionMismatch: dim: pet expects 64 dimensions, got 512")
    desk.bury(77, pet_id=pets[0], error="WorkerLost: it was running in two crashes of its worker", reason="poison")
    desk.operations.act(desk.operations.plan_pause("feedback"), by="ada", via="http", note="INC-7: Redis is slow")
    desk.operations.act(
        desk.operations.plan_resume("feedback"), by="ada", via="http", note="INC-7: Redis is fast again"
    )
    with ClusterTasks(client=client) as tasks:
        for pet in pets:
            tasks.request_recluster(pet, reason="growth", delay_ms=3_600_000 + 1_000 * pet)
        job_id = tasks.merge(pets[0], [1, 999]).job_id
    for actor in EVERY:
        with recording_run(client, actor):
            time.sleep(0.02)
        record_sending(client, actor, 1_000 * now_s)
    _write_past(client, now_s)
    return job_id


def _write_past(client: redis.Redis, now_s: int) -> None:
    """Write 24 hours of activity: the rhythm of a day, with a slow hour that ended in dead letters."""
    pipe = client.pipeline(transaction=False)
    for back in range(SHOWN_STEPS):
        step = now_s // STEP_S - back
        rhythm = 1 + math.sin(2 * math.pi * step / SHOWN_STEPS)
        is_slow = 30 < back < 42
        done = round(180 * rhythm + 7 * (step % 5))
        fields: dict[Any, Any] = {
            f"{EMBEDDING_INGESTED}:done": done,
            f"{EMBEDDING_INGESTED}:{3_000 if is_slow else 30}": done // 3,
            f"{EMBEDDING_INGESTED}:{1_000 if is_slow else 10}": done - done // 3,
            f"{EMBEDDING_INGESTED}:failed": (9 if is_slow else 0) + (step % 17 == 0),
            f"{EMBEDDING_INGESTED}:dead": 1 if is_slow and step % 2 else 0,
            f"{EMBEDDING_INGESTED}:waiting": (400 if is_slow else 6) + step % 7,
            f"{EMBEDDING_INGESTED}:oldest_ms": 90_000 if is_slow else 400 + 90 * (step % 3),
            f"{CLUSTER_RECLUSTER}:done": round(6 * rhythm),
            f"{CLUSTER_RECLUSTER}:3000": round(6 * rhythm),
            f"{CLUSTER_FEEDBACK}:done": step % 4,
            f"{CLUSTER_FEEDBACK}:100": step % 4,
        }
        if back in (12, 160):
            fields["starts"] = 3
        pipe.hset(f"{PREFIX}{step}", mapping=fields)
    pipe.execute()


@contextmanager
def _worker(redis_url: str, client: redis.Redis) -> Iterator[None]:
    """Run corrections, reclusters and previews in this process."""
    middleware = [TimeLimit(), Retries(), CurrentMessage(), TrackJobs(JobRecords(client))]
    with closing(RedisStreamsBroker(redis_url, group=GROUP, middleware=middleware)) as broker:
        declare_actors(broker, ClusterService(RedisPetStore(client)))
        worker = dramatiq.Worker(broker, queues={CLUSTER_FEEDBACK, CLUSTER_RECLUSTER}, worker_threads=1)
        worker.start()
        try:
            yield
        finally:
            worker.stop()


def main() -> int:
    """Write all screenshots, or those whose names are arguments, and return 0, or 1 if Chromium is missing."""
    TARGET.mkdir(parents=True, exist_ok=True)
    chosen = {name: scene for name, scene in SCENES.items() if name in sys.argv[1:] or not sys.argv[1:]}
    try:
        with ExitStack() as open_until_the_end:
            enter = open_until_the_end.enter_context
            sample = enter(sample_console())
            client = enter(redis.Redis.from_url(sample.redis_url))
            private = enter(served(Settings(redis_url=sample.redis_url, api_tokens=LABELLER)))
            enter(_worker(sample.redis_url, client))
            job = _make_trouble(client, sample.pets)
            browser = enter(_browser())
            for (name, scene), width, scheme in product(chosen.items(), SCREENS, SCHEMES):
                target = TARGET / f"{name}-{width}-{scheme}.png"
                address = f"{private if scene.signs_in else sample.address}/#/{scene.place}"
                photograph(browser, address.format(pet=sample.pet, job=job), scene, target, width=width, scheme=scheme)
    except NoPicture as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{len(chosen) * len(SCREENS) * len(SCHEMES)} pictures in {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
