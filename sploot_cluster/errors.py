"""Everything the clustering domain can refuse, and who has to act.

    ClusterError
    ├── InvalidInput            the caller must change something; trying again changes nothing
    │   ├── DimensionMismatch   a vector of another length than the pet's
    │   ├── ModelMismatch       a vector of another model than the pet's
    │   ├── UnreadableExport    a file that no pet can be made of
    │   ├── UnknownPet          no item of this pet ever arrived
    │   ├── UnknownCluster      no such cluster, and no alias leads to one
    │   ├── UnknownMedia        no such item in this pet or cluster
    │   ├── UnknownRevision     no correction made this revision, it is undone already, or it is not kept any more
    │   └── StaleRevision       media were moved since the revision that the caller looked at
    ├── PetExists               a pet cannot be imported over one that holds something
    ├── StalePreview            the pet moved since the preview, or the preview is gone; preview again
    ├── RevisionConflict        somebody else committed first; load again and decide again
    │   └── PetClaimed          somebody who lost that race before has the right of way; wait a moment
    ├── StoreUnavailable        Redis did not answer or did not take it; trying again is safe
    ├── PetTooLarge             the store cannot hold another item of this pet
    ├── NotConserved            a commit would lose media, or the pet has lost some; a person must look
    └── UnreadablePet           what is stored is damaged, or of a newer release; a person must look

Only the standard library is imported here, so that the thin client and the message contracts may use this tree.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sploot_cluster.refusals import RedisRefusal


class ClusterError(Exception):
    """Root of everything this package raises on purpose."""


class InvalidInput(ClusterError):
    """Raised when a field of an event, a task or a call cannot be used.

    Attributes:
        field: the name of the field as the caller wrote it, e.g. ``embedding``.
        problem: what is wrong with it, without the value of an embedding.
        hint: what the caller can do about it.
    """

    def __init__(self, field: str, problem: str, hint: str) -> None:
        super().__init__(f"{field}: {problem}; {hint}")
        self.field, self.problem, self.hint = field, problem, hint

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses take other arguments; results backends and process pools pickle exceptions by their args.
        return (InvalidInput, (self.field, self.problem, self.hint))


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


class UnreadableExport(InvalidInput):
    """Raised when no pet can be made of a file."""

    def __init__(self, problem: str) -> None:
        super().__init__("file", problem, "send a file that `sploot-cluster export` wrote, unchanged")


class UnknownPet(InvalidInput):
    """Raised when a pet has no media."""

    def __init__(self, *, pet: int) -> None:
        super().__init__("pet_id", f"pet {pet} has no media", "send the id of a pet that has some")
        self.pet = pet


class UnknownCluster(InvalidInput):
    """Raised when a cluster id is not one of the pet's, nor an alias of one."""

    def __init__(self, *, pet: int, cluster: int, field: str = "cluster_id", has_ended: bool = False) -> None:
        """``has_ended``: it was one, and its media went to none that more than half of them are in."""
        ended = " any more, and its media did not stay together" if has_ended else ""
        super().__init__(
            field,
            f"pet {pet} has no cluster {cluster}{ended}",
            f"choose one of GET /api/v1/internal/pets/{pet}/clusters",
        )
        self.pet, self.cluster = pet, cluster


class UnknownMedia(InvalidInput):
    """Raised when media named in a correction are not where the caller says they are."""

    def __init__(self, *, pet: int, media: tuple[str, ...], where: str) -> None:
        # as JSON strings, so that each name can be read back out of the text of an error, whatever it holds
        shown = ", ".join(json.dumps(item, ensure_ascii=False) for item in media[:5])
        shown += f" and {len(media) - 5} more" if len(media) > 5 else ""
        super().__init__(
            "media_ids",
            f"{shown} not in {where} of pet {pet}",
            "load the cluster again and send media that are in it now",
        )
        self.pet, self.media = pet, media


class UnknownRevision(InvalidInput):
    """Raised when a revision cannot be undone, or looked at, or restored."""

    def __init__(
        self,
        *,
        pet: int,
        revision: int,
        problem: str = "is not a correction",
        hint: str = "choose the revision of a correction from the pet's history",
    ) -> None:
        super().__init__("revision", f"revision {revision} of pet {pet} {problem}", hint)
        self.pet, self.revision = pet, revision


class StaleRevision(InvalidInput):
    """Raised when media of a pet were moved since the revision that a person looked at."""

    def __init__(self, *, pet: int, expected: int, moved_at: int) -> None:
        super().__init__(
            "expected_revision",
            f"media of pet {pet} were moved at revision {moved_at}, after revision {expected} that was looked at",
            "load the clusters again, and say it again if it is still right",
        )
        self.pet, self.expected, self.moved_at = pet, expected, moved_at


class PetExists(ClusterError):
    """Raised when a pet shall be imported that holds something already; nothing was written."""

    def __init__(self, *, pet: int, revision: int) -> None:
        super().__init__(
            f"pet {pet} holds something already, at revision {revision}; delete it first, or import under another id"
        )
        self.pet, self.revision = pet, revision

    def __reduce__(self) -> tuple[object, ...]:
        return (_pet_exists, (self.pet, self.revision))


class StalePreview(ClusterError):
    """Raised when a preview cannot be applied any more; nothing was written.

    Attributes:
        problem: why not.
    """

    def __init__(self, *, pet: int, token: str, problem: str) -> None:
        super().__init__(f"preview {token!r} of pet {pet} cannot be applied: {problem}; preview again, and look again")
        self.pet, self.token, self.problem = pet, token, problem

    def __reduce__(self) -> tuple[object, ...]:
        return (_stale_preview, (self.pet, self.token, self.problem))


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


class PetClaimed(RevisionConflict):
    """Raised when a commit must wait for somebody who lost the race before and has the right of way.

    Attributes:
        for_ms: how long the claim lasts at most; it ends with the claimant's commit.
    """

    def __init__(self, *, pet: int, revision: int, for_ms: int) -> None:
        super().__init__(pet=pet, expected=revision, current=revision)
        self.args = (f"pet {pet} is claimed by another change for at most {for_ms} ms; load it again and decide again",)
        self.for_ms = for_ms

    def __reduce__(self) -> tuple[object, ...]:
        return (_claimed, (self.pet, self.current, self.for_ms))


class StoreUnavailable(ClusterError):
    """Raised when Redis did not answer, or answered that it cannot do this now.

    A commit that ended so may have been written. Trying it again is safe: media and corrections are known by their ids.

    Attributes:
        doing: what was asked of the store, e.g. ``commit pet 42``.
        problem: what Redis or the connection said.
        refusal: why Redis refused, and how to fix it; None where it did not answer.
    """

    def __init__(self, *, doing: str, problem: str, refusal: RedisRefusal | None = None) -> None:
        hint = "check that Redis is up, has memory left and takes writes (redis-cli INFO)"
        if refusal is not None:
            problem, hint = f"{refusal.problem} ({problem})", refusal.hint
        super().__init__(f"could not {doing}: {problem}; {hint}, then try again")
        self.doing, self.problem, self.refusal = doing, problem, refusal

    def __reduce__(self) -> tuple[object, ...]:
        return (_unavailable, (self.args[0], self.doing, self.problem, self.refusal))


class PetTooLarge(ClusterError):
    """Raised when one more item would exceed what one Redis value can hold (512 MB of vectors)."""

    def __init__(self, *, pet: int, n_media: int) -> None:
        super().__init__(
            f"pet {pet} holds {n_media} media and its vectors fill one Redis value; delete media or split the pet"
        )
        self.pet, self.n_media = pet, n_media

    def __reduce__(self) -> tuple[object, ...]:
        return (_too_large, (self.pet, self.n_media))


class NotConserved(ClusterError):
    """Raised when media that came are not all accounted for after a commit; nothing was written.

    Attributes:
        problem: the sides that do not agree.
    """

    def __init__(self, *, pet: int, problem: str) -> None:
        super().__init__(
            f"pet {pet} would not account for all of its media: {problem}; nothing was written: report it with "
            f"`sploot-cluster export {pet}`, and restore the pet from a backup if its keys were changed by hand"
        )
        self.pet, self.problem = pet, problem

    def __reduce__(self) -> tuple[object, ...]:
        return (_not_conserved, (self.pet, self.problem))


class UnreadablePet(ClusterError):
    """Raised when what is stored of a pet does not fit together, or is of a form that this release does not know.

    Nothing was written. Nothing is, until its keys fit together again or the pet is deleted.

    Attributes:
        problem: what does not fit.
        key: the key that is damaged, with the field of a hash after a space; None where it is not known.
        expected, found: how long that key should be, and how long it is.
        hint: how to get the pet back.
    """

    def __init__(
        self, *, pet: int, problem: str, key: str | None = None, expected: str | None = None, found: str | None = None
    ) -> None:
        self.pet, self.problem, self.key, self.expected, self.found = pet, problem, key, expected, found
        self.hint = (
            f"nothing was written. Run the release that wrote it, or restore its keys {{pet:{pet}}}:* from a backup "
            "(ops/runbook.md, A pet that cannot be read)"
        )
        super().__init__(f"pet {pet} cannot be read: {problem}; {self.hint}")

    @classmethod
    def of_key(cls, *, pet: int, key: str, expected: str, found: str) -> UnreadablePet:
        """The error for a key whose length or value is not what the pet's other keys ask for."""
        problem = f"{key}: expected {expected}, found {found}"
        return cls(pet=pet, problem=problem, key=key, expected=expected, found=found)

    def __reduce__(self) -> tuple[object, ...]:
        return (_unreadable, (self.pet, self.problem, self.key, self.expected, self.found))


def _pet_exists(pet: int, revision: int) -> PetExists:
    return PetExists(pet=pet, revision=revision)


def _stale_preview(pet: int, token: str, problem: str) -> StalePreview:
    return StalePreview(pet=pet, token=token, problem=problem)


def _conflict(pet: int, expected: int, current: int) -> RevisionConflict:
    return RevisionConflict(pet=pet, expected=expected, current=current)


def _too_large(pet: int, n_media: int) -> PetTooLarge:
    return PetTooLarge(pet=pet, n_media=n_media)


def _claimed(pet: int, revision: int, for_ms: int) -> PetClaimed:
    return PetClaimed(pet=pet, revision=revision, for_ms=for_ms)


def _unavailable(text: str, doing: str, problem: str, refusal: RedisRefusal | None) -> StoreUnavailable:
    error = StoreUnavailable(doing=doing, problem=problem)
    error.args, error.refusal = (text,), refusal
    return error


def _not_conserved(pet: int, problem: str) -> NotConserved:
    return NotConserved(pet=pet, problem=problem)


def _unreadable(pet: int, problem: str, key: str | None, expected: str | None, found: str | None) -> UnreadablePet:
    return UnreadablePet(pet=pet, problem=problem, key=key, expected=expected, found=found)
