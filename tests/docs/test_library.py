"""The library page documents exactly the names that ``sploot_cluster`` exports, and its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sploot_cluster
from sploot_cluster.decide.corrections import VERBS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "library.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "examples" / "library_without_queue.py").read_text(encoding="utf-8")


def test_page_lists_every_exported_name_and_no_other() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)

    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(sploot_cluster.__all__)


@pytest.mark.parametrize("name", sploot_cluster.__all__)
def test_exported_name_is_an_object_of_that_name(name: str) -> None:
    assert getattr(sploot_cluster, name).__name__ == name


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cluster'"):
        _ = sploot_cluster.Cluster


def test_page_names_every_public_method_of_the_service() -> None:
    methods = {name for name in vars(sploot_cluster.ClusterService) if not name.startswith("_")}

    assert {name for name in methods - VERBS.keys() if f"`{name}`" not in PAGE} == set()


def test_example_imports_only_exported_names() -> None:
    modules = re.findall(r"^(?:from|import) (sploot_cluster[\w.]*)", EXAMPLE, flags=re.MULTILINE)

    assert set(modules) == {"sploot_cluster"}


def test_import_of_errors_needs_no_third_party_package() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sploot_cluster.errors as e; print(e.InvalidInput)"

    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout == "<class 'sploot_cluster.errors.InvalidInput'>\n"


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
def test_example_on_the_page_runs(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example, {})

    assert capsys.readouterr().out.strip().isdecimal()
