"""Previews: reclusters that were computed but not committed.

A preview is stored as the change to commit and is not computed again when it is applied, because the BLAS of another
machine may round differently, and applying must make exactly the changes that were shown. A preview is bound to the
state that it was computed on. So at most one is stored per pet, and two previews of the same state are equal. A preview
takes about a byte per item and expires after 15 minutes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final

import numpy as np

from sploot_cluster.answer_fields import described
from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.diff import PetDiff, Snapshot, compare
from sploot_cluster.pet.models import Change, ClusterCard, ClusterId, PetId, PetState, Reclustered, Relabelling

VERSION: Final = 1

# Lifetime of a preview: long enough to review the moved items of a pet. Later, more items have probably arrived.
KEPT_FOR: Final = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Preview:
    """The changes that a recluster would make, and the token that applies them.

    Attributes:
        token: identifies the changes, and the state on which they were computed.
        state_version: ``PetState.version`` of that state.
        revision: the revision of that state.
        change: the change to commit.
        result: the result of the recluster, with the revision that it would create.
    """

    token: str
    pet: PetId
    state_version: str
    revision: int
    made_at: datetime
    change: Change
    result: Reclustered

    @classmethod
    def of(cls, state: PetState, change: Change, result: Reclustered, *, at: datetime) -> Preview:
        return cls(_token(state, change), state.pet, state.version, state.revision, at, change, result)

    @property
    def expires_at(self) -> datetime:
        return self.made_at + KEPT_FOR

    def against(self, state: PetState) -> Previewed:
        """Return the preview for callers, as differences from ``state``, the state that it was computed on."""
        assert self.change.relabelling is not None
        labels, origins = self.change.relabelling.labels, self.change.relabelling.origins
        diff = compare(Snapshot.of(state), Snapshot(None, state.media, labels, origins))
        return Previewed(self.pet, self.token, self.revision, self.expires_at, self.result, diff)


@dataclass(frozen=True, slots=True)
class Previewed:
    """The changes that a recluster would make. Send `token` as `apply` to make exactly these changes."""

    pet_id: PetId
    token: str
    revision: int = field(
        metadata=described("The pet's revision; the preview can be applied only while it is the newest.")
    )
    expires_at: datetime
    result: Reclustered
    diff: PetDiff

    def up_to(self, limit: int) -> Previewed:
        """Return the preview with at most ``limit`` moved items in its ``diff``."""
        return replace(self, diff=self.diff.up_to(limit))


def _token(state: PetState, change: Change) -> str:
    assert change.relabelling is not None
    content = sha256(state.version.encode())
    content.update(change.relabelling.labels.astype("<i4").tobytes())
    content.update(change.relabelling.origins.tobytes())
    return f"{state.revision}-{content.hexdigest()[:20]}"


def dump(preview: Preview) -> bytes:
    """Return ``preview`` as bytes: one line of JSON, then the compressed labels and origins."""
    change = preview.change
    assert change.relabelling is not None
    facts = {
        "v": VERSION,
        "token": preview.token,
        "state_version": preview.state_version,
        "revision": preview.revision,
        "made_at": preview.made_at.isoformat(),
        "next_cluster": change.next_cluster,
        "n_at_recluster": change.n_at_recluster,
        "noise_arrivals": change.noise_arrivals,
        "clusters": {str(id_): card and asdict(card) for id_, card in change.clusters.items()},
        "aliases": {str(id_): into for id_, into in change.aliases.items()},
        "summary": change.summary,
        "result": asdict(preview.result),
    }
    columns = change.relabelling.labels.astype("<i4").tobytes() + change.relabelling.origins.tobytes()
    return json.dumps(facts, ensure_ascii=False).encode() + b"\n" + zlib.compress(columns)


def load(stored: bytes, *, pet: PetId) -> Preview:
    """Return the preview that :func:`dump` encoded.

    Raises:
        UnreadablePet: the preview has a different format, or is damaged.
    """
    try:
        head, _, packed = stored.partition(b"\n")
        facts: dict[str, Any] = json.loads(head)
        if facts["v"] != VERSION:
            raise ValueError(f"it has version {facts['v']!r}, expected {VERSION}")
        columns = zlib.decompress(packed)
        n = len(columns) // 5
        change = Change(
            "recluster",
            next_cluster=ClusterId(facts["next_cluster"]),
            n_at_recluster=facts["n_at_recluster"],
            noise_arrivals=facts["noise_arrivals"],
            relabelling=Relabelling(
                np.frombuffer(columns, dtype="<i4", count=n).astype(np.int32),
                np.frombuffer(columns, dtype=np.uint8, count=n, offset=4 * n).copy(),
            ),
            clusters={ClusterId(int(id_)): card and ClusterCard(**card) for id_, card in facts["clusters"].items()},
            aliases={ClusterId(int(id_)): _cluster(into) for id_, into in facts["aliases"].items()},
            summary=facts["summary"],
        )
        return Preview(
            facts["token"],
            pet,
            facts["state_version"],
            facts["revision"],
            datetime.fromisoformat(facts["made_at"]),
            change,
            _result(facts["result"]),
        )
    except (ValueError, KeyError, TypeError, zlib.error) as exc:
        raise UnreadablePet(pet=pet, problem=f"its preview cannot be read ({type(exc).__name__}: {exc})") from exc


def _cluster(id_: int | None) -> ClusterId | None:
    return None if id_ is None else ClusterId(id_)


def _result(facts: Mapping[str, Any]) -> Reclustered:
    return Reclustered(**{**facts, "overridden": tuple(facts["overridden"])})
