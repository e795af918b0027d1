"""Tests of dependencies and input data: data is never executed, licences are known, failed audits are reported."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.audit import NOT_ASKED, verdict
from deploy.licences import PAGE, UNKNOWN, licensed, page
from tests.support import lacking

ROOT = Path(__file__).parent.parent.parent

# Modules that may execute the data they read.
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "jsonpickle"}
# Files without any of these words are not parsed, because parsing is slow.
WORDS = {*RUNS_WHAT_IT_READS, "marshal", "allow_pickle", "yaml.", "set_encoder"}
# Files that may use marshal: the keeper and its parent have a private socket pair, and marshal creates values, not
# code.
MARSHAL_MAY = {"broker/keeper.py", "broker/keeper_process.py"}
# Tests that may use pickle: errors must survive a process pool, and the tests read only what they have just written.
TESTS_OF_PICKLING = {
    "tests/broker/test_errors.py",
    "tests/sploot_cluster/test_errors.py",
    "tests/sploot_cluster/store/test_damage.py",
    "tests/tasks/test_queue_limit.py",
}


def sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def dangers(tree: ast.AST, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for module in imported:
            root = module.partition(".")[0]
            if root in RUNS_WHAT_IT_READS or (root == "marshal" and name not in MARSHAL_MAY):
                yield f"{name} imports {module}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            for argument in node.keywords:
                if argument.arg == "allow_pickle" and not (
                    isinstance(argument.value, ast.Constant) and argument.value.value is False
                ):
                    yield f"{name}:{node.lineno} allows pickles"
            if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                yield f"{name}:{node.lineno} calls {called}"
            if called.endswith("set_encoder") and "Pickle" in ast.unparse(node):
                yield f"{name}:{node.lineno} encodes messages as pickles"


def test_sources_never_execute_data_they_read() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}
    named = {name: ast.parse(text) for name, text in texts.items() if any(word in text for word in WORDS)}
    found = [danger for name, tree in named.items() for danger in dangers(tree, name) if name not in TESTS_OF_PICKLING]

    assert "broker/keeper.py" in named
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import marshal",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text)",
    ],
)
def test_check_finds_each_way_to_execute_data(code: str) -> None:
    assert len(list(dangers(ast.parse(code), "somewhere.py"))) == 1


def test_licences_are_listed_known_and_allowed() -> None:
    listed = {one.name: one.licence for one in licensed()}
    if missing := [name for name, licence in listed.items() if licence == UNKNOWN]:
        lacking(", ".join(missing), "pip install -e '.[deploy]'; licences come from installed packages")

    assert page() == PAGE.read_text(), "make licences"
    assert listed["dramatiq"] == listed["periodiq"] == "LGPL-3.0-or-later"
    assert [name for name, licence in listed.items() if "AGPL" in licence or licence.startswith("GPL")] == []


def a_report(**flaws: list[dict[str, Any]]) -> dict[str, Any]:
    return {"dependencies": [{"name": name, "version": "1", "vulns": found} for name, found in flaws.items()]}


def test_audit_reports_that_no_service_could_be_reached() -> None:
    unknown = {"dependencies": [{"name": "redis", "skip_reason": "not found"}]}

    assert verdict(None)[0] == verdict(unknown)[0] == NOT_ASKED


def test_audit_with_findings_fails_and_lists_them() -> None:
    code, lines = verdict(a_report(redis=[], numpy=[{"id": "PYSEC-1", "fix_versions": ["2.9"]}]))

    assert code == 1
    assert lines == ["numpy 1: PYSEC-1, fixed in 2.9"]


def test_audit_without_findings_passes() -> None:
    assert verdict(a_report(redis=[], numpy=[])) == (0, [])
