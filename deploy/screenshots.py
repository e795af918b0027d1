"""Take screenshots of every page of the console for visual inspection: ``make screenshots`` writes build/screenshots/.

Each page is shown at widths of 1,440 and 390 pixels, in the light and in the dark scheme, with the sample data of
``deploy.pictures``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Final

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from deploy.pictures import FLAGS, NoPicture, sample_console

TARGET: Final = Path(__file__).parents[1] / "build" / "screenshots"
SCREENS: Final = {1_440: 900, 390: 844}
SCHEMES: Final = ("light", "dark")
LOADED_WITHIN_S: Final = 30
SETTLED_S: Final = 1.0  # time in which pictures fade in and plots are drawn

# Name of a screenshot -> address of the page, with a placeholder for the id of the sample pet.
PAGES: Final = {
    "pets": "pet",
    "albums": "pet/{pet}",
    "album": "pet/{pet}/album/1",
    "loose": "pet/{pet}/loose",
    "map": "pet/{pet}/map",
    "history": "pet/{pet}/history",
    "review": "pet/{pet}/review",
    "recluster": "pet/{pet}/recluster",
    "no-pet": "pet/999999",
    "queues": "queues",
    "incidents": "incidents",
    "incident": "incidents/MediaClusterPendingHigh",
    "activity": "activity",
    "dead-letters": "dead",
    "waiting-jobs": "jobs/embedding.ingested/waiting",
    "search": "find?text={pet}",
    "job": "job/unknown",
    "broken-link": "nowhere",
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


def photograph(browser: webdriver.Chrome, address: str, target: Path, *, width: int, scheme: str) -> None:
    """Write a screenshot of one page, at a width and in a colour scheme, once the page is loaded."""
    screen = {"width": width, "height": SCREENS[width], "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get(address)
    WebDriverWait(browser, LOADED_WITHIN_S).until(
        lambda there: there.execute_script("return document.querySelector('main h1') !== null")
    )
    time.sleep(SETTLED_S)
    browser.save_screenshot(str(target))


def main() -> int:
    """Write all screenshots and return 0, or 1 if Chromium is missing."""
    TARGET.mkdir(parents=True, exist_ok=True)
    try:
        with sample_console() as (address, pet), _browser() as browser:
            for (name, place), width, scheme in product(PAGES.items(), SCREENS, SCHEMES):
                target = TARGET / f"{name}-{width}-{scheme}.png"
                photograph(browser, f"{address}/#/{place.format(pet=pet)}", target, width=width, scheme=scheme)
    except NoPicture as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{len(PAGES) * len(SCREENS) * len(SCHEMES)} pictures in {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
