"""The image that ``make image`` built; these tests are not collected without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.image.container import Image

BUILT = "SPLOOT_IMAGE"  # the output folder of deploy.image


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return None if BUILT in os.environ else True


@pytest.fixture(scope="session")
def image() -> Image:
    return Image(Path(os.environ[BUILT]))
