"""Fixtures for tests in a browser, on the real application with a real queue and a worker.

The tests need chromium and chromedriver. Without them they are skipped with a reason, or fail where
``REQUIRE_ALL_TOOLS`` is set, as in CI.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
import uvicorn
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit
from fastapi import FastAPI
from selenium import webdriver
from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.api.server import PatientProtocol
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.composition import build_app
from tasks.contracts import GROUP
from tasks.job_records import JobRecords, TrackJobs
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tasks.wire import DECODERS
from tests.sploot_cluster.albums import PET, take
from tests.support import eventually

# All pages share one renderer process: by default, each page that a test opens would start one, which costs as much CPU
# as the page itself.
FLAGS = (
    "--renderer-process-limit=1", "--disable-back-forward-cache", "--disable-site-isolation-trials",
    "--disable-features=SpareRendererForSitePerProcess,ProactivelySwapBrowsingInstance,IsolateOrigins,site-per-process",
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1280,1000",
)  # fmt: skip


def launch(profile: Path, *, categories: Sequence[str] = ()) -> webdriver.Chrome:
    """Start a browser; skip the test if there is none. Traces of these ``categories`` go to its log ``performance``."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "the console's tests need chromium and chromedriver: apt-get install chromium chromium-driver"
        if os.environ.get("REQUIRE_ALL_TOOLS"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", **({"performance": "ALL"} if categories else {})})
    if categories:
        traced = {"traceCategories": ",".join(categories), "enableNetwork": False, "enablePage": False}
        options.add_experimental_option("perfLoggingPrefs", traced)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser = launch(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()


# Returns the elements that extend beyond the screen or have to be scrolled sideways.
TOO_WIDE = """
const isHidden = (element) => element.closest("thead")?.clientWidth <= 1 || !element.getClientRects().length;
const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
return [...document.querySelectorAll("body, body *")]
  .filter((element) => !isHidden(element))
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 1
    || (scrolls(element) && element.scrollWidth > element.clientWidth + 1))
  .map((element) => `${element.tagName}.${element.className}: ${element.textContent.slice(0, 60)}`);
"""

# Returns the column names that the style sheet shows before the cells of a table on a narrow screen.
CELL_NAMES = """
return [...document.querySelectorAll(arguments[0])].map((cell) => getComputedStyle(cell, "::before").content);
"""


@dataclass
class Page:
    """The console as a user sees and operates it."""

    browser: webdriver.Chrome
    root: str

    def open(self, place: str) -> None:
        # load a new document even if only the fragment of the URL changes
        self.browser.get("about:blank")
        self.browser.get(f"{self.root}/#/{place}")

    def sees(self, text: str) -> None:
        """Wait until the page shows the text."""
        eventually(lambda: self._has(text) or None, within_s=30)

    def click(self, text: str, *, within: str = "//body") -> None:
        """Wait for a clickable button or link whose text starts with ``text``, and click it."""

        def clicked() -> bool:
            for element in self.browser.find_elements(
                By.XPATH, f"{within}//*[self::button or self::a or self::summary]"
            ):
                try:
                    if element.text.startswith(text) and element.is_displayed() and element.is_enabled():
                        element.click()
                        return True
                except StaleElementReferenceException:
                    return False
            return False

        eventually(clicked, within_s=30)

    def labelled(self, label: str) -> WebElement:
        def found() -> WebElement | None:
            try:
                return self.browser.find_element(By.CSS_SELECTOR, f'[aria-label="{label}"]')
            except NoSuchElementException:
                return None

        element = eventually(found, within_s=30)
        assert element is not None
        return element

    def choose(self, *names: str) -> None:
        """Select the albums or items of a grid whose labels begin with these strings."""
        for name in names:
            selector = f'[role=option][aria-label^="{name}"] .tick'
            eventually(partial(self._clicked, selector), within_s=30)

    def correct(self, verb: str) -> None:
        """Click the button of a correction."""
        eventually(lambda: self._clicked(f"[data-verb={verb}]"), within_s=30)

    def click_on(self, selector: str) -> None:
        """Wait for an element that matches the selector, and click it."""
        eventually(lambda: self._clicked(selector), within_s=30)

    def press(self, *keys: str) -> None:
        """Send keys to the element that has the focus."""
        self.browser.switch_to.active_element.send_keys(*keys)

    def shown(self, selector: str) -> list[str]:
        """Return the text of each matching element, all read at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText.trim())"
        found: list[str] = self.browser.execute_script(script, selector)
        return found

    def chosen(self) -> set[str]:
        """Return the labels of the selected albums or items on the screen."""
        script = "return [...document.querySelectorAll('[aria-selected=true]')].map((one) => one.ariaLabel)"
        found: list[str] = self.browser.execute_script(script)
        return set(found)

    def _clicked(self, selector: str) -> bool:
        try:
            self.browser.find_element(By.CSS_SELECTOR, selector).click()
        except (NoSuchElementException, StaleElementReferenceException, ElementNotInteractableException):
            return False
        return True

    def too_wide(self) -> list[str]:
        """Return the elements that cannot be read without scrolling sideways."""
        found: list[str] = self.browser.execute_script(TOO_WIDE)
        return found

    def names_of(self, selector: str) -> list[str]:
        """Return the column name that the page shows next to or above each of these cells."""
        # one script for all cells, so that the page cannot redraw between two of them
        names: list[str] = self.browser.execute_script(CELL_NAMES, selector)
        return [name.strip('"') for name in names]

    def role_of(self, selector: str) -> str:
        """Return the role that a screen reader announces for the first element that matches."""

        def role() -> str | None:
            try:
                return self.browser.find_element(By.CSS_SELECTOR, selector).aria_role
            except StaleElementReferenceException:
                return None

        found = eventually(role)
        assert found is not None
        return found

    def complaints(self) -> list[str]:
        """Return the errors that the browser logged since the last call, including refused scripts."""
        entries: Any = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def _has(self, text: str) -> bool:
        try:
            return text in self.browser.find_element(By.TAG_NAME, "body").text
        except StaleElementReferenceException:
            return False


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an application until the end of the block, and yield its URL."""
    # use the protocol class of `serve`, which ends the streams of open pages at shutdown
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=PatientProtocol, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def serve(redis_server: EmbeddedRedis) -> Iterator[Callable[..., str]]:
    """A function that starts the real application with these settings at its first call, and returns the URL."""
    with ExitStack() as apps:

        @cache
        def start(**settings: Any) -> str:
            return apps.enter_context(running(build_app(Settings(redis_url=redis_server.url, **settings))))

        yield start


@pytest.fixture
def page(browser: webdriver.Chrome, serve: Callable[..., str], redis_client: redis.Redis) -> Iterator[Page]:
    page = Page(browser, serve())
    browser.get("about:blank")  # leave the last test's page, which may still request a job that is gone
    page.complaints()
    yield page
    if browser.current_url.startswith(page.root):
        browser.execute_script("sessionStorage.clear()")  # otherwise the tab keeps the page's selection


@pytest.fixture
def phone(page: Page) -> Iterator[Page]:
    """The page on a screen of 390 by 844 pixels."""
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    yield page
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def service(redis_client: redis.Redis) -> ClusterService:
    return ClusterService(RedisPetStore(redis_client))


@pytest.fixture
def album(service: ClusterService) -> ClusterService:
    """A service with a pet that has ten items of each of three subjects, in clusters 1 to 3, and two noise items."""
    for subject in range(3):
        take(service, subject, range(10))
    service.recluster(PET, by="test")
    take(service, 7, range(1))
    take(service, 8, range(1))
    return service


@pytest.fixture
def worker(redis_url: str, redis_client: redis.Redis, service: ClusterService) -> Iterator[None]:
    """A worker in this process that runs corrections and reclusters."""
    broker = RedisStreamsBroker(
        redis_url,
        group=GROUP,
        middleware=[TimeLimit(), Retries(), CurrentMessage(), TrackJobs(JobRecords(redis_client))],
        decoders=DECODERS,
    )
    declare_actors(broker, service)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    yield
    worker.stop()
    broker.close()
