"""Corrections as JSON.

Each correction is one object with a version ``v``. A reader refuses an unknown version or kind instead of guessing,
because a misread correction would undo a person's work.
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
    """Return the correction as one line of JSON."""
    facts: dict[str, object] = {
        "v": VERSION,
        "revision": correction.revision,
        "operation_id": correction.operation_id,
        "by": correction.by,
        "at": correction.at.isoformat(),
    }
    match correction:
        case Merge(into=into, groups=groups, aliases=aliases):
            facts |= {"kind": "merge", "into": into, "groups": _named(groups)} | _led(aliases)
        case Split(source=source, created=created, moved=moved, remaining=remaining):
            facts |= {"kind": "split", "source": source, "created": created}
            facts |= {"moved": list(moved), "remaining": list(remaining)}
        case Exclusion(source=source, media=media, remaining=remaining):
            facts |= {"kind": "exclude", "source": source, "media": list(media), "remaining": list(remaining)}
        case Dismissal(groups=groups, aliases=aliases):
            facts |= {"kind": "dismiss", "groups": _named(groups)} | _led(aliases)
        case Undo(undone=undone):
            facts |= {"kind": "undo", "undone": undone}
        case _:
            assert_never(correction)
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))


def loads(text: str | bytes, *, pet: PetId) -> Correction:
    """Return the correction that :func:`dumps` wrote.

    Raises:
        UnreadablePet: it is not JSON, has an unknown version or kind, or lacks a field.
    """
    try:
        facts: dict[str, Any] = json.loads(text)
        version, kind = facts["v"], facts["kind"]
        if version != VERSION:
            raise UnreadablePet(pet=pet, problem=f"a correction has version {version!r}, expected {VERSION}")
        revision, operation_id, by = int(facts["revision"]), str(facts["operation_id"]), str(facts["by"])
        at = datetime.fromisoformat(facts["at"])
        match kind:
            case "merge":
                into = ClusterId(facts["into"])
                return Merge(revision, operation_id, by, at, into, _groups(facts["groups"]), _aliases(facts))
            case "split":
                source, created = ClusterId(facts["source"]), ClusterId(facts["created"])
                moved, remaining = _media(facts["moved"]), _media(facts["remaining"])
                return Split(revision, operation_id, by, at, source, created, moved, remaining)
            case "exclude":
                source, media, remaining = (
                    ClusterId(facts["source"]),
                    _media(facts["media"]),
                    _media(facts["remaining"]),
                )
                return Exclusion(revision, operation_id, by, at, source, media, remaining)
            case "dismiss":
                return Dismissal(revision, operation_id, by, at, _groups(facts["groups"]), _aliases(facts))
            case "undo":
                return Undo(revision, operation_id, by, at, undone=int(facts["undone"]))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UnreadablePet(pet=pet, problem=f"a correction cannot be read ({type(exc).__name__}: {exc})") from exc
    raise UnreadablePet(pet=pet, problem=f"a correction has the unknown kind {kind!r}")


def _named(groups: Mapping[ClusterId, Sequence[MediaId]]) -> dict[str, list[MediaId]]:
    return {str(id_): list(media) for id_, media in groups.items()}


def _led(aliases: Mapping[ClusterId, ClusterId]) -> dict[str, object]:
    return {"aliases": {str(old): now for old, now in aliases.items()}} if aliases else {}


def _aliases(facts: Mapping[str, Any]) -> dict[ClusterId, ClusterId]:
    # left out if there are none
    return {ClusterId(int(old)): ClusterId(now) for old, now in facts.get("aliases", {}).items()}


def _groups(named: Mapping[str, list[str]]) -> dict[ClusterId, tuple[MediaId, ...]]:
    return {ClusterId(int(id_)): _media(media) for id_, media in named.items()}


def _media(ids: list[str]) -> tuple[MediaId, ...]:
    # interned, because many corrections name the same items
    return tuple(MediaId(intern(id_)) for id_ in ids)
