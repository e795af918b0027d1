"""Tests that distributions pass the checks of package indexes, contain their files, and work as their READMEs show."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import redis

from deploy.distributions import build, problems
from tests.support import lacking

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    return build(tmp_path_factory.mktemp("dist"))


def test_distributions_pass_the_checks_of_package_indexes(built: list[tuple[Path, Path]]) -> None:
    if not Path(sys.executable).with_name("pyroma").exists():
        lacking("pyroma", "pip install -e '.[deploy]'")

    assert [problem for sdist, wheel in built for problem in problems(sdist, wheel)] == []


def test_source_distribution_has_documents_and_tests_and_nothing_built(built: list[tuple[Path, Path]]) -> None:
    with tarfile.open(built[0][0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"CHANGELOG.md", "ARCHITECTURE.md", "docs/tutorial.md", "docs/wire/golden.json", "ops/runbook.md"} <= names
    assert {"tests/conftest.py", "tests/broker/test_janitor.py", "Makefile", "examples/README.md"} <= names
    assert [name for name in names if re.search(r"\.pyc$|^build/|^dist/|\.venv|\.hypothesis", name)] == []


def test_package_page_has_only_absolute_links(built: list[tuple[Path, Path]]) -> None:
    for _, wheel in built:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            page = archive.read(name).decode()

        links = re.findall(r"\[[^\]]*\]\(([^)]+)\)", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
        assert [link for link in links if not link.startswith(("https://", "#"))] == [], wheel.name
        assert "\nLicense-Expression: MIT\n" in page
        assert "\nProject-URL: Changelog, https://" in page


def test_code_in_the_client_readme_runs_with_its_wheel(
    built: list[tuple[Path, Path]], redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    uv, python = Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin" / "python"
    if not uv.exists():
        lacking("uv", "pip install -e '.[deploy]'")
    (_, wheel) = built[1]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        blocks = re.findall(r"```python\n(.*?)```", archive.read(name).decode(), flags=re.DOTALL)
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, wheel], check=True)

    program = "\n".join(blocks).replace("redis://127.0.0.1:6379/0", redis_url)
    done = subprocess.run([python, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)

    assert done.stderr == ""
    reason, names = done.stdout.splitlines()
    assert "no worker" in reason or "queue" in reason
    assert "base64" in names
    assert redis_client.xlen("streams:embedding.ingested") == 1
