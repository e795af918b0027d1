"""The map in ARCHITECTURE.md matches the folders of the packages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sploot_cluster.decide.corrections import VERBS

ROOT = Path(__file__).parents[2]
MAP = re.search(r"### Rooms\n.*?```\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), flags=re.DOTALL)
PACKAGES = ("broker", "tasks", "sploot_cluster")
NOT_LISTED = {"__init__", "__main__"}
# Maximum number of modules in a folder; 16 in folders that are not listed, because newcomers do not read longer lists.
# The verbs of corrections are all alike, so reading one is enough.
MOST_MODULES = {"broker": 30, "tasks": 21, "sploot_cluster/decide/corrections": 20}


def mapped() -> dict[str, set[str]]:
    """Return the modules that the map lists, by folder."""
    assert MAP is not None
    rooms: dict[str, set[str]] = {}
    room = ""
    for line in MAP[1].splitlines():
        if line.startswith(" "):
            rooms[room] |= {name for name in line.split() if not name.endswith("/")}
        else:
            room = line.split("/  ")[0].strip("/")
            rooms[room] = set()
    return {room: modules for room, modules in rooms.items() if room.split("/")[0] in PACKAGES}


def in_tree() -> dict[str, set[str]]:
    """Return the modules of each folder in the packages; folders without modules are left out."""
    rooms: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.stem not in NOT_LISTED:
                rooms.setdefault(str(path.parent.relative_to(ROOT)), set()).add(path.stem)
    return rooms


def test_architecture_map_lists_every_module() -> None:
    # the map only states that each correction verb is a module, so a new verb needs no entry there
    verbs = {request.__module__.rpartition(".")[2] for request in VERBS.values()}
    rooms = in_tree()
    rooms["sploot_cluster/decide/corrections"] -= verbs

    assert mapped() == rooms


@pytest.mark.parametrize("room", sorted(in_tree()))
def test_no_folder_has_too_many_modules(room: str) -> None:
    assert len(in_tree()[room]) <= MOST_MODULES.get(room, 16)
