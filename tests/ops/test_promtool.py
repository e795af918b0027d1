"""Tests with promtool: the rules are valid, their tests pass, and the tests detect every mutant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.rules import alerts
from tests.ops.mutants import Mutant, mutants_of, unchanged
from tests.ops.tools import OPS, run

pytestmark = pytest.mark.ops

FILES = sorted((OPS / "alerts").glob("*.yaml"))
TESTS = OPS / "alerts" / "tests"
RULES = {path.name: yaml.safe_load(path.read_text()) for path in FILES}
EXPECTED = {path.name: yaml.safe_load((TESTS / path.name).read_text()) for path in FILES}
SINGLE_TESTS = [(name, test) for name, expected in EXPECTED.items() for test in expected["tests"]]
# tests that cover several rule files
COMMON = sorted({*TESTS.glob("*.yaml")} - {TESTS / path.name for path in FILES})
UNCHANGED = [one for name, rules in RULES.items() if len(rules["groups"]) > 1 for one in unchanged(name, rules)]
MUTANTS = [mutant for name, rules in RULES.items() for mutant in mutants_of(name, rules)]

# Mutants that no test can detect -> the reason.
EQUIVALENT = {
    "media_cluster:worker_down: < -> <= at 89": "the share is exactly half in single evaluations only",
    "media_cluster:worker_stuck: max -> min at 0": "a pod has one series",
    "MediaClusterRedisExporterDown: > -> >= at 33": "count() is never 0: without input it returns no sample",
    "media_cluster:servers_up: 4 -> 4.8 at 97": "counts are whole numbers",
    "media_cluster:workers_up: 4 -> 4.8 at 90": "counts are whole numbers",
    "MediaClusterRedisRefusesWrites: > -> >= at 27": "count() is never 0: without input it returns no sample",
    "media_cluster:redis_memory: 0 -> 1 at 95": "no Redis has a limit of one byte",
    "MediaClusterWorkerRestarts: 2 -> 2.4 at 36": "restarts are whole numbers",
    "MediaClusterWorkerDown: > -> >= at 25": "count() is never 0: without input it returns no sample",
    "MediaClusterStalled: > -> >= at 23": "a value that is above 0 in the whole window is above 0 now",
    "media_cluster:stall:10m: max -> min at 0": "only the existence of a sample matters",
    "media_cluster:stall:10m: sum -> max at 362": "a sum of increases is above 0 exactly if one of them is",
    "media_cluster:redis_unseen:2m: [2m] -> [4m] at 204": "the value is multiplied by 0",
    "media_cluster:redis_unseen:2m: sum -> max at 137": "the value is multiplied by 0",
    "media_cluster:redis_memory: max -> min at 0": "an exporter reports one Redis",
    "media_cluster:redis_evictions:10m: max -> min at 6": "an exporter reports one Redis",
}


# Alerts that always fire, and therefore have no mutants.
ALWAYS = {"MediaClusterWatchdog"}


def test_rules_are_valid() -> None:
    checked = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *FILES)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("file", "test"), SINGLE_TESTS, ids=lambda one: one if isinstance(one, str) else one["name"])
def test_rules_pass_their_tests(file: str, test: dict[str, Any], tmp_path: Path) -> None:
    # one promtool run per test, so that the tests run in parallel
    given = {**EXPECTED[file], "rule_files": [str(OPS / "alerts" / file)], "tests": [test]}
    (tmp_path / file).write_text(yaml.safe_dump(given))

    tested = run("promtool", "test", "rules", tmp_path / file)

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("tests", COMMON, ids=lambda path: path.name)
def test_rules_of_several_files_pass_their_common_tests(tests: Path) -> None:
    tested = run("promtool", "test", "rules", tests)

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_mutants() -> None:
    changed = {mutant.name.partition(": ")[0] for mutant in MUTANTS}

    assert set(alerts()) - changed == ALWAYS
    assert set(EQUIVALENT) <= {mutant.name for mutant in MUTANTS}


@pytest.mark.parametrize("rules", UNCHANGED, ids=lambda rules: rules.name)
def test_unchanged_rules_pass(rules: Mutant, tmp_path: Path) -> None:
    tested = run("promtool", "test", "rules", *rules.write(tmp_path, TESTS / rules.file))

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_detected(mutant: Mutant, tmp_path: Path) -> None:
    output = ""
    # run the tests one by one, because the first one detects most mutants
    for tests in mutant.write(tmp_path, TESTS / mutant.file):
        tested = run("promtool", "test", "rules", tests)
        output = tested.stdout + tested.stderr
        if tested.returncode:
            assert "got:" in output, f"promtool did not run the test: {output}"
            assert mutant.name not in EQUIVALENT, f"a test detects this mutant, so it is not equivalent: {output}"
            return
    assert mutant.name in EQUIVALENT, f"no test detects this mutant: {output}"
