"""The pages of docs/reference equal what the code generates."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.reference import PAGES, outdated, pages

PAGE_TEXTS = pages()


@pytest.mark.parametrize("name", sorted(PAGE_TEXTS))
def test_reference_page_equals_generated_page(name: str) -> None:
    committed = (PAGES / name).read_text(encoding="utf-8")

    assert committed == PAGE_TEXTS[name], f"docs/reference/{name} differs from the code; run `make reference`"


def test_reference_check_names_outdated_page(tmp_path: Path) -> None:
    for name, text in PAGE_TEXTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "settings.md").write_text("something else", encoding="utf-8")

    assert outdated(tmp_path) == ["settings.md"]


def test_reference_pages_are_not_empty() -> None:
    assert "### POST /api/v1/internal/clusters/merge" in PAGE_TEXTS["http.md"]
    assert "## queue dead list" in PAGE_TEXTS["command-line.md"]
    assert "`REDIS_URL`" in PAGE_TEXTS["settings.md"]
    assert "`cluster_jobs_total` (counter" in PAGE_TEXTS["metrics.md"]
