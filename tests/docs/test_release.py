"""All parts of the project have the same version, and the changelog describes it."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import yaml

from sploot_cluster import __version__

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_package_chart_and_client_have_one_version() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    chart = yaml.safe_load((ROOT / "charts" / "sploot-cluster" / "Chart.yaml").read_text())

    assert setup["metadata"]["version"] == __version__
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_command_line_prints_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks.cli", "--version"], cwd=ROOT, check=True, capture_output=True, text=True
    )

    assert done.stdout == f"sploot-cluster {__version__}\n"


def test_changelog_has_a_dated_section_for_the_version() -> None:
    sections = re.findall(r"^## (.+)$", CHANGELOG, flags=re.MULTILINE)

    assert sections[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(__version__)} – \d{{4}}-\d\d-\d\d", sections[1])
