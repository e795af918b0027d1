"""Everything the clustering domain can refuse, and who has to act.

    ClusterError
    ├── InvalidInput            the caller must change something; trying again changes nothing
    │   ├── DimensionMismatch   a vector of another length than the pet's
    │   ├── ModelMismatch       a vector of another model than the pet's
    │   ├── UnknownCluster      no such cluster, and no alias leads to one
    │   ├── UnknownMedia        no such medium in this pet or cluster
    │   └── UnknownRevision     no correction made this revision, or it is undone already
    ├── RevisionConflict        somebody else committed first; load again and decide again
    └── PetTooLarge             the store cannot hold another medium of this pet

Only the standard library is imported here, so that the thin client and the message contracts may use this tree.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Root of everything this package raises on purpose."""


class InvalidInput(ClusterError):
    """Raised when a field of an event, a task or a call cannot be used.

    Attributes:
        field: the name of the field as the caller wrote it, e.g. ``embedding``.
        problem: what is wrong with it, without the value of an embedding.
        mend: what the caller can do about it.
    """

    def __init__(self, field: str, problem: str, mend: str) -> None:
        super().__init__(f"{field}: {problem}; {mend}")
        self.field, self.problem, self.mend = field, problem, mend

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses take other arguments; results backends and process pools pickle exceptions by their args.
        return (InvalidInput, (self.field, self.problem, self.mend))


class DimensionMismatch(InvalidInput):
    """Raised when a vector of one length meets a pet with vectors of another."""

    def __init__(self, *, pet: int, expected: int, got: int) -> None:
        super().__init__(
            "dim",
            f"pet {pet} has {expected}-dimensional vectors, got {got}",
            f"send embeddings of {expected} values, or ingest another model's under another pet",
        )
        self.pet, self.expected, self.got = pet, expected, got


class ModelMismatch(InvalidInput):
    """Raised when a vector of one embedding model meets a pet with vectors of another."""

    def __init__(self, *, pet: int, expected: str, got: str) -> None:
        super().__init__(
            "model",
            f"pet {pet} is embedded with {expected!r}, got {got!r}",
            f"send embeddings of {expected!r}; vectors of different models are never compared",
        )
        self.pet, self.expected, self.got = pet, expected, got


class UnknownCluster(InvalidInput):
    """Raised when a cluster id is not one of the pet's, nor an alias of one."""

    def __init__(self, *, pet: int, cluster: int, field: str = "cluster_id") -> None:
        super().__init__(
            field,
            f"pet {pet} has no cluster {cluster}",
            f"choose one of GET /api/v1/internal/pets/{pet}/clusters",
        )
        self.pet, self.cluster = pet, cluster


class UnknownMedia(InvalidInput):
    """Raised when media named in a correction are not where the caller says they are."""

    def __init__(self, *, pet: int, media: tuple[str, ...], where: str) -> None:
        shown = ", ".join(media[:5]) + (f" and {len(media) - 5} more" if len(media) > 5 else "")
        super().__init__(
            "media_ids",
            f"{shown} not in {where} of pet {pet}",
            "load the cluster again and send media that are in it now",
        )
        self.pet, self.media = pet, media


class UnknownRevision(InvalidInput):
    """Raised when a revision cannot be undone."""

    def __init__(self, *, pet: int, revision: int, problem: str = "is not a correction") -> None:
        super().__init__(
            "revision",
            f"revision {revision} of pet {pet} {problem}",
            "choose the revision of a merge, split or undo from the pet's history",
        )
        self.pet, self.revision = pet, revision


class RevisionConflict(ClusterError):
    """Raised when a change was decided on a revision that is no longer the newest."""

    def __init__(self, *, pet: int, expected: int, current: int) -> None:
        super().__init__(
            f"pet {pet} moved from revision {expected} to {current} while this change was decided; "
            "load it again and decide again"
        )
        self.pet, self.expected, self.current = pet, expected, current

    def __reduce__(self) -> tuple[object, ...]:
        return (_conflict, (self.pet, self.expected, self.current))


class PetTooLarge(ClusterError):
    """Raised when one more medium would exceed what one Redis value can hold (512 MB of vectors)."""

    def __init__(self, *, pet: int, n_media: int) -> None:
        super().__init__(
            f"pet {pet} holds {n_media} media and its vectors fill one Redis value; "
            "delete media or split the pet"
        )
        self.pet, self.n_media = pet, n_media

    def __reduce__(self) -> tuple[object, ...]:
        return (_too_large, (self.pet, self.n_media))


def _conflict(pet: int, expected: int, current: int) -> RevisionConflict:
    return RevisionConflict(pet=pet, expected=expected, current=current)


def _too_large(pet: int, n_media: int) -> PetTooLarge:
    return PetTooLarge(pet=pet, n_media=n_media)
