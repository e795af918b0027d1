"""Corrections as JSON.

Each correction is one object with a version ``v``. A reader refuses an unknown version or kind instead of guessing,
because a misread correction would undo a user's work.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

from sploot_cluster.decide.corrections import ENTRIES
from sploot_cluster.decide.corrections.base import LedgerEntry
from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.models import Correction, PetId, Signature

VERSIONS: Final = (1, 2)


def dumps(correction: Correction) -> str:
    """Return the correction as one line of JSON."""
    facts = {
        "v": correction.version,
        "revision": correction.revision,
        "operation_id": correction.operation_id,
        "by": correction.by,
        "at": correction.at.isoformat(),
        "kind": correction.kind,
        **correction.facts(),
    }
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))


def loads(text: str | bytes, *, pet: PetId) -> LedgerEntry:
    """Return the correction that :func:`dumps` wrote.

    Raises:
        UnreadablePet: it is not JSON, has an unknown version or kind, or lacks a field.
    """
    try:
        facts: dict[str, Any] = json.loads(text)
        version, kind = facts["v"], facts["kind"]
        if version not in VERSIONS:
            expected = " or ".join(map(str, VERSIONS))
            raise UnreadablePet(pet=pet, problem=f"a correction has version {version!r}, expected {expected}")
        if kind not in ENTRIES:
            raise UnreadablePet(pet=pet, problem=f"a correction has the unknown kind {kind!r}")
        at = datetime.fromisoformat(facts["at"])
        signature: Signature = int(facts["revision"]), str(facts["operation_id"]), str(facts["by"]), at
        return ENTRIES[kind].read(signature, facts)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UnreadablePet(pet=pet, problem=f"a correction cannot be read ({type(exc).__name__}: {exc})") from exc
