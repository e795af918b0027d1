"""Links between the Markdown files: every linked file and section exists."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_OURS = re.compile(r"\..*|build|dist|demo-output|node_modules|.*\.egg-info")
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)>\s]+)>?\)")


@cache
def documents() -> list[str]:
    """Return the Markdown files of the repository, without hidden folders and build outputs."""
    found: list[str] = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not NOT_OURS.fullmatch(name)]
        found += [str(Path(folder, name).relative_to(ROOT)) for name in files if name.endswith(".md")]
    return sorted(found)


def links(text: str) -> list[str]:
    """Return the targets of links to other files and sections, without those in code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`\n]*`", "`code`", prose)
    return [target for target in LINK.findall(prose) if not re.match(r"[a-z]+:", target)]


@cache
def sections(path: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, flags=re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        repeated = sum(one == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", one) is not None for one in found)
        found.append(f"{anchor}-{repeated}" if repeated else anchor)
    ids = re.findall(r'<a (?:id|name)="([^"]+)"', text)
    return frozenset([*found, *ids])


def missing(page: Path, target: str) -> str | None:
    """Return what is wrong with a link, or None if its target exists."""
    name, _, section = target.partition("#")
    linked = (page.parent / name).resolve() if name else page
    if not linked.exists():
        return f"{target}: no such file"
    if section and linked.suffix == ".md" and section not in sections(linked):
        return f"{target}: no such section"
    return None


@pytest.mark.parametrize("name", documents())
def test_links_lead_to_files_and_sections_that_exist(name: str) -> None:
    page = ROOT / name

    problems = [missing(page, target) for target in links(page.read_text(encoding="utf-8"))]

    assert [problem for problem in problems if problem] == []


def test_link_to_a_missing_section_is_reported(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n## `two` and three\n\n[a](#two-and-three) [b](#four) [c](other.md)\n")

    assert [missing(page, target) for target in links(page.read_text())] == [
        None,
        "#four: no such section",
        "other.md: no such file",
    ]
