"""A recluster that was computed and not committed, as it waits beside its pet.

It waits as what a commit would write, and is not computed again when it is applied: another machine's BLAS may round
otherwise, and "exactly what was shown" must not hang on that. It is bound to the very state that it was computed on, so
a pet needs one place for it, and a second preview of the same state is the same one. It takes about a byte per item
and is gone after a quarter of an hour.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final

import numpy as np

from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.diff import Diff, Snapshot, compare
from sploot_cluster.pet.models import Change, ClusterCard, ClusterId, PetId, PetState, Reclustered, Relabelling

VERSION: Final = 1

# Long enough to look through the moved media of an album; then somebody has probably uploaded more.
KEPT_FOR: Final = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a recluster would do to a pet, and the token that does it.

    Attributes:
        token: names the state it was computed on and what it makes of it.
        state_version: ``PetState.version`` of that state; ``revision`` is its revision.
        change: what would be committed.
        result: what the recluster would answer; its revision is the one that it would make.
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

    def diff(self, state: PetState) -> Diff:
        """What it would do to ``state``, which is the one that it was computed on."""
        assert self.change.relabelling is not None
        labels, origins = self.change.relabelling.labels, self.change.relabelling.origins
        return compare(Snapshot.of(state), Snapshot(None, state.media, labels, origins))


@dataclass(frozen=True, slots=True)
class Previewed:
    """A preview, and what it would do to its pet."""

    preview: Preview
    diff: Diff


def _token(state: PetState, change: Change) -> str:
    assert change.relabelling is not None
    content = sha256(state.version.encode())
    content.update(change.relabelling.labels.astype("<i4").tobytes())
    content.update(change.relabelling.origins.tobytes())
    return f"{state.revision}-{content.hexdigest()[:20]}"


def dump(preview: Preview) -> bytes:
    """``preview`` as bytes: one line of JSON, and the compressed labels and origins."""
    change = preview.change
    assert change.relabelling is not None
    said = {
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
    return json.dumps(said, ensure_ascii=False).encode() + b"\n" + zlib.compress(columns)


def load(stored: bytes, *, pet: PetId) -> Preview:
    """What :func:`dump` wrote.

    Raises:
        UnreadablePet: another form, or damaged.
    """
    try:
        head, _, packed = stored.partition(b"\n")
        said: dict[str, Any] = json.loads(head)
        if said["v"] != VERSION:
            raise ValueError(f"it is of version {said['v']!r}, this release knows {VERSION}")
        columns = zlib.decompress(packed)
        n = len(columns) // 5
        change = Change(
            "recluster",
            next_cluster=ClusterId(said["next_cluster"]),
            n_at_recluster=said["n_at_recluster"],
            noise_arrivals=said["noise_arrivals"],
            relabelling=Relabelling(
                np.frombuffer(columns, dtype="<i4", count=n).astype(np.int32),
                np.frombuffer(columns, dtype=np.uint8, count=n, offset=4 * n).copy(),
            ),
            clusters={ClusterId(int(id_)): card and ClusterCard(**card) for id_, card in said["clusters"].items()},
            aliases={ClusterId(int(id_)): _cluster(into) for id_, into in said["aliases"].items()},
            summary=said["summary"],
        )
        return Preview(
            said["token"],
            pet,
            said["state_version"],
            said["revision"],
            datetime.fromisoformat(said["made_at"]),
            change,
            _result(said["result"]),
        )
    except (ValueError, KeyError, TypeError, zlib.error) as exc:
        raise UnreadablePet(pet=pet, problem=f"its preview cannot be read ({type(exc).__name__}: {exc})") from exc


def _cluster(id_: int | None) -> ClusterId | None:
    return None if id_ is None else ClusterId(id_)


def _result(said: Mapping[str, Any]) -> Reclustered:
    return Reclustered(**{**said, "overridden": tuple(said["overridden"])})
