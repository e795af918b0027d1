"""Prometheus's own tool: the rules are valid, their tests pass, and their tests notice every change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.thresholds import thresholds
from tests.ops.mutants import Mutant, mutants_of, unchanged
from tests.ops.tools import OPS, run

pytestmark = pytest.mark.ops

FILES = sorted((OPS / "alerts").glob("*.yaml"))
TESTS = OPS / "alerts" / "tests"
RULES = {path.name: yaml.safe_load(path.read_text()) for path in FILES}
EXPECTED = {path.name: yaml.safe_load((TESTS / path.name).read_text()) for path in FILES}
SINGLE_TESTS = [(name, test) for name, expected in EXPECTED.items() for test in expected["tests"]]
UNCHANGED = [one for name, rules in RULES.items() if len(rules["groups"]) > 1 for one in unchanged(name, rules)]
MUTANTS = [mutant for name, rules in RULES.items() for mutant in mutants_of(name, rules)]

# Mutants that no test could notice, and why.
EQUIVALENT = {
    "MediaClusterWorkerDown: > -> >= at 25": "count() is never 0: where nothing is counted there is no sample",
    "MediaClusterRedisUnreachable: > -> >= at 26": "count() is never 0: where nothing is counted there is no sample",
    "MediaClusterRedisRefusesWrites: > -> >= at 27": "count() is never 0: where nothing is counted there is no sample",
    "media_cluster:redis_memory: 0 -> 1 at 71": "no Redis has a limit of one byte",
    "MediaClusterStalled: > -> >= at 23": "what has been older than 0 all the while is older than 0",
    "media_cluster:stall:10m: max -> min at 0": "only whether there is one counts",
    "media_cluster:stall:10m: sum -> max at 284": "the sum of increases is above 0 exactly where one of them is",
    "media_cluster:no_success:10m: sum -> max at 98": "the sum of increases is above 0 exactly where one of them is",
    "media_cluster:redis_unseen: max -> min at 50": "only whether there is one counts",
    "media_cluster:redis_memory: max -> min at 0": "an exporter tells of one Redis",
    "media_cluster:redis_evictions:10m: max -> min at 6": "an exporter tells of one Redis",
}


def test_the_rules_are_valid() -> None:
    checked = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *FILES)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("file", "test"), SINGLE_TESTS, ids=lambda one: one if isinstance(one, str) else one["name"])
def test_what_is_expected_of_the_rules_is_so(file: str, test: dict[str, Any], tmp_path: Path) -> None:
    # each by itself, so that they run side by side
    given = {**EXPECTED[file], "rule_files": [str(OPS / "alerts" / file)], "tests": [test]}
    (tmp_path / file).write_text(yaml.safe_dump(given))

    tested = run("promtool", "test", "rules", tmp_path / file)

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_mutants_are_made_of_every_alert() -> None:
    changed = {mutant.name.partition(": ")[0] for mutant in MUTANTS}

    assert set(thresholds().alerts) <= changed
    assert set(EQUIVALENT) <= {mutant.name for mutant in MUTANTS}


@pytest.mark.parametrize("rules", UNCHANGED, ids=lambda rules: rules.name)
def test_a_right_rule_is_not_complained_about(rules: Mutant, tmp_path: Path) -> None:
    tested = run("promtool", "test", "rules", *rules.write(tmp_path, TESTS / rules.file))

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_rule_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    told = ""
    # one by one, because most are noticed by the first
    for tests in mutant.write(tmp_path, TESTS / mutant.file):
        tested = run("promtool", "test", "rules", tests)
        told = tested.stdout + tested.stderr
        if tested.returncode:
            assert "got:" in told, f"promtool did not run it: {told}"
            assert mutant.name not in EQUIVALENT, f"it is not equivalent, a test notices it: {told}"
            return
    assert mutant.name in EQUIVALENT, f"survived: {told}"
