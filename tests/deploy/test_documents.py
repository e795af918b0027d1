"""Tests that the files, tests and make targets that the deployment documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = (
    "SECURITY.md",
    "docs/broker-guarantees.md",
    "docs/capacity.md",
    "docs/how-to/deployment.md",
    "docs/how-to/upgrades.md",
    "docs/product-guarantees.md",
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_named_in_documents_exist(name: str) -> None:
    text = (ROOT / name).read_text()

    links = [(ROOT / name).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:tests|docs|ops|charts|tasks|benchmarks)/[\w./-]+)`", text)]

    assert [str(path) for path in links + paths if not path.exists()] == []


def test_every_promise_in_the_security_policy_names_a_test() -> None:
    promised = (ROOT / "SECURITY.md").read_text().partition("## What is promised")[2].partition("## What is not")[0]
    rows = [row for row in promised.splitlines() if row.startswith("| ")][1:]

    assert len(rows) >= 10
    assert [row for row in rows if "`tests/" not in row.rpartition(" | ")[2]] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_named_in_documents_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    named = set(re.findall(r"`make ([a-z-]+)", (ROOT / name).read_text()))

    assert named <= targets
