"""The broker's own distribution: built offline, and run with only Dramatiq and redis-py."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import dramatiq
import pytest
import redis

import broker
from deploy.broker_distribution import PACKAGE, ROOT, build

PROGRAM = f"""
import sys
import dramatiq
from {PACKAGE} import RedisStreamsBroker
from {PACKAGE}.command import main

assert "broker" not in sys.modules, "the copy imports the original"
assert not [place for place in sys.path if place.startswith({str(ROOT)!r})], sys.path
broker = RedisStreamsBroker(sys.argv[1], lease_ms=2000)
dramatiq.set_broker(broker)
ran = []

@dramatiq.actor
def work(label):
    ran.append(label)

work.send("one")
work.send_with_options(args=("two",), delay=50)
worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
worker.start()
broker.join("default", timeout=30_000)
worker.stop()
broker.close()
assert main(["status", "--url", sys.argv[1]]) == 0
print(sorted(ran), sys.modules["{PACKAGE}"].__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("wheel"))
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.stdout}{error.stderr}")


@pytest.mark.slow
def test_wheel_contains_scripts_types_and_readme(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = Path(broker.__file__).parent
    here = {str(path.relative_to(package)) for suffix in ("py", "lua") for path in package.rglob(f"*.{suffix}")}

    assert {name.partition("/")[2] for name in names if name.startswith(f"{PACKAGE}/")} == {
        *here,
        "py.typed",
        "README.md",
        "CHANGELOG.md",
    }
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    described = zipfile.ZipFile(wheel).read(metadata).decode()
    assert f"from {PACKAGE} import RedisStreamsBroker" in described
    assert "from broker import" not in described
    assert f"\nVersion: {broker.__version__}\n" in described


@pytest.mark.slow
def test_wheel_runs_a_message_without_this_repository(
    wheel: Path, tmp_path: Path, redis_url: str, redis_client: redis.Redis
) -> None:
    target, others = tmp_path / "target", tmp_path / "others"
    zipfile.ZipFile(wheel).extractall(target)  # pip would do the same for pure Python, but takes a second longer
    others.mkdir()
    for package in (dramatiq, redis):
        assert package.__file__ is not None
        (others / package.__name__).symlink_to(Path(package.__file__).parent)
    paths = f"import sys; sys.path[:0] = [{str(target)!r}, {str(others)!r}]\n"

    # -I -S: without the current folder, the environment variables and the installed packages
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", paths + PROGRAM, redis_url], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    *shown, ran = done.stdout.splitlines()
    assert shown[1].split()[:2] == ["default", "0"]
    assert ran == f"['one', 'two'] {target / PACKAGE / '__init__.py'}"


def test_wheel_has_the_same_requirements_as_the_base_installation() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = re.findall(r"^(?:dramatiq|redis) .*$", setup["options"]["install_requires"], flags=re.MULTILINE)
    project = tomllib.loads((ROOT / "deploy" / "broker_distribution" / "pyproject.toml").read_text())["project"]

    assert project["dependencies"] == wanted


def test_changelog_has_a_dated_section_for_the_version() -> None:
    sections = re.findall(r"^## (.+)$", Path(broker.__file__).with_name("CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert sections[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(broker.__version__)} – \d{{4}}-\d\d-\d\d", sections[1])
