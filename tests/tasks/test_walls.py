"""The boundaries between packages: what an import loads, and what import-linter refuses."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "tasks", "sploot_cluster")
# lint-imports is always next to the interpreter, but on PATH only in an active environment.
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

ENGINE = {"numpy", "faiss", "hdbscan", "sklearn", "scipy", "fastapi", "prometheus_client", "periodiq"}


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after this code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages_of(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_import_of_the_thin_client_loads_neither_dramatiq_nor_redis() -> None:
    modules = modules_after("import tasks.client, tasks.contracts")

    assert packages_of(modules) & {"asyncio", "broker", "dramatiq", "redis"} == set()


def test_thin_client_in_use_loads_no_engine() -> None:
    modules = modules_after("from tasks.client import ClusterTasks; ClusterTasks('redis://127.0.0.1:6379/0')")

    assert "broker.broker" in modules
    assert packages_of(modules) & ENGINE == set()
    ours = {module for module in modules if module.startswith("sploot_cluster.")}
    requests = {module for module in ours if module.startswith("sploot_cluster.decide.corrections")}
    assert "sploot_cluster.decide.corrections.planning" not in requests
    assert ours - requests <= {
        "sploot_cluster.decide",
        "sploot_cluster.encodings",
        "sploot_cluster.errors",
        "sploot_cluster.event",
        "sploot_cluster.fields",
        "sploot_cluster.jobs",
        "sploot_cluster.limits",
        "sploot_cluster.pet",
        "sploot_cluster.pet.models",
        "sploot_cluster.pet.times",
        "sploot_cluster.printable",
        "sploot_cluster.answer_fields",
        "sploot_cluster.refusals",
    }


def test_broker_import_loads_only_dramatiq_and_redis() -> None:
    allowed = modules_after("import dramatiq, redis, redis.sentinel, redis.cluster")

    modules = modules_after("import broker")

    assert "broker.broker" in modules
    assert packages_of(modules) - packages_of(allowed) - sys.stdlib_module_names == {"broker"}


def test_broker_imports_only_dramatiq_redis_and_itself() -> None:
    named = set()
    for path in (ROOT / "broker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= packages_of({alias.name for alias in node.names})
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                named |= packages_of({node.module})

    # hiredis is optional: it parses small replies faster
    assert named - sys.stdlib_module_names == {"dramatiq", "redis", "hiredis"}


@pytest.mark.slow
def test_domain_imports_do_not_load_the_queue() -> None:
    everything = """
import importlib, pkgutil, sploot_cluster
for module in pkgutil.walk_packages(sploot_cluster.__path__, "sploot_cluster."):
    importlib.import_module(module.name)
"""

    modules = modules_after(everything)

    assert {"sploot_cluster.service", "sploot_cluster.density", "sploot_cluster.store.redis"} <= modules
    assert packages_of(modules) & {"dramatiq", "broker", "tasks", "periodiq", "hdbscan", "sklearn"} == set()


# Name of a contract -> imports that it forbids.
FORBIDDEN = {
    "broker imports only dramatiq and redis": [
        ("broker/settings.py", "sploot_cluster.errors"),
        ("broker/settings.py", "prometheus_client"),
    ],
    "sploot_cluster imports neither dramatiq, broker nor tasks": [
        ("sploot_cluster/pet/models.py", "dramatiq"),
        ("sploot_cluster/service.py", "tasks.client"),
    ],
    "the thin client and the contracts never reach the engine": [
        ("tasks/contracts.py", "numpy"),
        ("sploot_cluster/encodings.py", "sploot_cluster.pet.vectors"),
    ],
}


@pytest.mark.slow
def test_import_linter_refuses_forbidden_imports(tmp_path: Path) -> None:
    """``make check`` shows that import-linter accepts the code as it is."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, imported in chain.from_iterable(FORBIDDEN.values()):
        with (tmp_path / module).open("a") as file:
            # inside a function, because late imports are forbidden too
            file.write(f"\n\ndef _hole() -> None:\n    import {imported}\n")

    linted = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo", "--config", ROOT / "setup.cfg"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        check=False,
        capture_output=True,
        text=True,
    )

    assert linted.returncode == 1
    for contract, imports in FORBIDDEN.items():
        assert f"{contract} BROKEN" in linted.stdout
        for module, imported in imports:
            importer = module.removesuffix(".py").replace("/", ".")
            assert f"{importer} -> {imported} (" in linted.stdout, linted.stdout
