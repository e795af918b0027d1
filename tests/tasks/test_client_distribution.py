"""The thin client's wheel needs only Dramatiq and redis-py, and works next to a service's own ``tasks`` package."""

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

from deploy.client_distribution import PACKAGE, ROOT, build, renamed
from tasks.contracts import CLUSTER_RECLUSTER, EMBEDDING_INGESTED, stream_of

IMPORT = f"""
import sys
import {PACKAGE}

loaded = {{name.partition(".")[0] for name in sys.modules}}
assert not loaded & {{"asyncio", "dramatiq", "redis", "numpy"}}, loaded
"""
ENQUEUE = f"""
import sys
import tasks
from {PACKAGE} import ClusterTasks, InvalidInput

assert tasks.OF_THE_SERVICE
with ClusterTasks(sys.argv[1]) as client:
    job = client.ingest(pet_id=42, media_id="beach.jpg", model="clip@1", embedding=[0.1, 0.2, 0.3])
    again = [client.recluster(42), client.recluster(42)]
    try:
        client.merge(42, [1])
    except InvalidInput as refused:
        print(refused.field, again[1].coalesced, client.job(job.job_id).state)
loaded = {{name.partition(".")[0] for name in sys.modules}}
assert not loaded & {{"broker", "sploot_cluster", "numpy"}}, loaded
assert not [place for place in sys.path if place.startswith({str(ROOT)!r})], sys.path
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("wheel"))
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.stdout}{error.stderr}")


@pytest.fixture(scope="module")
def places(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The import path of a service that has the wheel, Dramatiq, redis-py and a package ``tasks`` of its own."""
    target, others = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("others")
    offline = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", target, wheel], check=True)
    (others / "tasks.py").write_text("OF_THE_SERVICE = True\n")
    for package in (dramatiq, redis):
        assert package.__file__ is not None
        (others / package.__name__).symlink_to(Path(package.__file__).parent)
    return [str(others), str(target)]


def run(program: str, places: list[str], *arguments: str) -> str:
    # -I -S: ignore the working folder, the environment variables and all installed packages
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {places!r}\n{program}", *arguments]
    done = subprocess.run(command, cwd=places[0], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_holds_one_package_without_the_engine(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]

    assert {name.partition("/")[0] for name in names} == {PACKAGE}
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/broker/lua/enqueue.lua", f"{PACKAGE}/tasks/client.py"} <= set(names)
    assert [name for name in names if re.search(r"/(service|actors|worker|cli|engine|store)\b", name)] == []


@pytest.mark.slow
def test_import_loads_neither_dramatiq_nor_redis(places: list[str]) -> None:
    run(IMPORT, places)


@pytest.mark.slow
def test_client_enqueues_next_to_a_package_called_tasks(
    places: list[str], redis_url: str, redis_client: redis.Redis
) -> None:
    printed = run(ENQUEUE, places, redis_url)

    assert printed == "cluster_ids True queued\n"
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 1
    assert redis_client.xlen(stream_of(CLUSTER_RECLUSTER)) == 1


def test_wheel_has_version_and_requirements_of_the_main_package() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    project = tomllib.loads((ROOT / "deploy" / "client_distribution" / "pyproject.toml").read_text())["project"]

    assert project["version"] == setup["metadata"]["version"]
    assert project["requires-python"] == setup["options"]["python_requires"]
    assert project["dependencies"] == re.findall(r"^(?:dramatiq|redis) .*$", setup["options"]["install_requires"], re.M)


def test_wheel_build_renames_only_imports_of_our_packages() -> None:
    text = "from tasks.client import A\nfrom broker import B\nfrom taskset import C\nlogger = 'tasks from broker'\n"

    assert renamed(text) == (
        f"from {PACKAGE}.tasks.client import A\nfrom {PACKAGE}.broker import B\n"
        "from taskset import C\nlogger = 'tasks from broker'\n"
    )
