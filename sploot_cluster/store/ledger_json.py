"""Corrections as text: what a person said, in a form that outlives this release.

Each is one JSON object with a version ``v``. A reader refuses a version or a kind that it does not know instead of
guessing: a correction read wrongly would undo what somebody did by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from sys import intern
from typing import Any, Final, assert_never

from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.models import ClusterId, Correction, Dismissal, Exclusion, MediaId, Merge, PetId, Split, Undo

VERSION: Final = 1


def dumps(correction: Correction) -> str:
    """The correction as one line of JSON."""
    said: dict[str, object] = {
        "v": VERSION,
        "revision": correction.revision,
        "operation_id": correction.operation_id,
        "by": correction.by,
        "at": correction.at.isoformat(),
    }
    match correction:
        case Merge(into=into, groups=groups, aliases=aliases):
            said |= {"kind": "merge", "into": into, "groups": _named(groups)} | _led(aliases)
        case Split(source=source, created=created, moved=moved, remaining=remaining):
            said |= {"kind": "split", "source": source, "created": created}
            said |= {"moved": list(moved), "remaining": list(remaining)}
        case Exclusion(source=source, media=media, remaining=remaining):
            said |= {"kind": "exclude", "source": source, "media": list(media), "remaining": list(remaining)}
        case Dismissal(groups=groups, aliases=aliases):
            said |= {"kind": "dismiss", "groups": _named(groups)} | _led(aliases)
        case Undo(undone=undone):
            said |= {"kind": "undo", "undone": undone}
        case _:
            assert_never(correction)
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def loads(text: str | bytes, *, pet: PetId) -> Correction:
    """The correction that :func:`dumps` wrote.

    Raises:
        UnreadablePet: no JSON, a version or kind that this release does not know, or a field is missing.
    """
    try:
        said: dict[str, Any] = json.loads(text)
        version, kind = said["v"], said["kind"]
        if version != VERSION:
            raise UnreadablePet(pet=pet, problem=f"a correction has version {version!r}, this release knows {VERSION}")
        revision, operation_id, by = int(said["revision"]), str(said["operation_id"]), str(said["by"])
        at = datetime.fromisoformat(said["at"])
        match kind:
            case "merge":
                into = ClusterId(said["into"])
                return Merge(revision, operation_id, by, at, into, _groups(said["groups"]), _aliases(said))
            case "split":
                source, created = ClusterId(said["source"]), ClusterId(said["created"])
                moved, remaining = _media(said["moved"]), _media(said["remaining"])
                return Split(revision, operation_id, by, at, source, created, moved, remaining)
            case "exclude":
                source, media, remaining = ClusterId(said["source"]), _media(said["media"]), _media(said["remaining"])
                return Exclusion(revision, operation_id, by, at, source, media, remaining)
            case "dismiss":
                return Dismissal(revision, operation_id, by, at, _groups(said["groups"]), _aliases(said))
            case "undo":
                return Undo(revision, operation_id, by, at, undone=int(said["undone"]))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UnreadablePet(pet=pet, problem=f"a correction cannot be read ({type(exc).__name__}: {exc})") from exc
    raise UnreadablePet(pet=pet, problem=f"a correction is of the unknown kind {kind!r}")


def _named(groups: Mapping[ClusterId, Sequence[MediaId]]) -> dict[str, list[MediaId]]:
    return {str(id_): list(media) for id_, media in groups.items()}


def _led(aliases: Mapping[ClusterId, ClusterId]) -> dict[str, object]:
    return {"aliases": {str(old): now for old, now in aliases.items()}} if aliases else {}


def _aliases(said: Mapping[str, Any]) -> dict[ClusterId, ClusterId]:
    # older releases wrote none
    return {ClusterId(int(old)): ClusterId(now) for old, now in said.get("aliases", {}).items()}


def _groups(named: Mapping[str, list[str]]) -> dict[ClusterId, tuple[MediaId, ...]]:
    return {ClusterId(int(id_)): _media(media) for id_, media in named.items()}


def _media(ids: list[str]) -> tuple[MediaId, ...]:
    # interned: corrections of one cluster name the same media again and again
    return tuple(MediaId(intern(id_)) for id_ in ids)
