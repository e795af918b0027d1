"""The image that ``make image`` has just built; without it these tests are not collected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.image.container import Image

BUILT = "SPLOOT_IMAGE"  # the directory that deploy.image wrote


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return None if BUILT in os.environ else True


@pytest.fixture(scope="session")
def image() -> Image:
    return Image(Path(os.environ[BUILT]))
