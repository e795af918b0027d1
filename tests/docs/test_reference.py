"""The pages of docs/reference, and the JSON Schema of docs/wire, equal what the code generates."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.reference import DOCS, outdated, pages, runbook_of_incidents

HEADINGS = {
    "reference/http.md": "### POST /api/v1/internal/clusters/merge",
    "reference/command-line.md": "## queue dead list",
    "reference/settings.md": "- `REDIS_URL` (default",
    "reference/metrics.md": "- `cluster_jobs_total` (counter",
    "reference/platforms.md": "| Linux arm64 | resolved |",
    "wire/embedding.ingested-1.schema.json": '"title": "embedding.ingested/1"',
}


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("name", sorted(HEADINGS))
def test_reference_page_equals_the_generated_page(generated: dict[str, str], name: str) -> None:
    committed = (DOCS / name).read_text(encoding="utf-8")

    assert committed == generated[name], f"docs/{name} differs from the code; run `make reference`"


@pytest.mark.parametrize("name", sorted(HEADINGS))
def test_generated_page_contains_a_known_entry(generated: dict[str, str], name: str) -> None:
    assert generated.keys() == HEADINGS.keys()
    assert HEADINGS[name] in generated[name]


def test_console_contains_the_current_runbook_sections() -> None:
    file, text = runbook_of_incidents()

    assert file.read_text(encoding="utf-8") == text, "run `make reference`"


def test_outdated_lists_a_generated_page_that_differs(generated: dict[str, str], tmp_path: Path) -> None:
    for name, text in generated.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "reference/settings.md").write_text("something else", encoding="utf-8")

    assert outdated(tmp_path) == ["reference/settings.md"]
