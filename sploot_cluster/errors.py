"""The errors of the clustering domain, and how to handle each.

    ClusterError
    ├── InvalidInput            the caller must change the input; retrying does not help
    │   ├── DimensionMismatch   the vector has a different length from the pet's vectors
    │   ├── ModelMismatch       the vector is from a different model than the pet's vectors
    │   ├── UnreadableExport    a file that is not a valid export of a pet
    │   ├── UnknownPet          the pet has no items
    │   ├── UnknownCluster      the pet has no such cluster or alias
    │   ├── UnknownMedia        the pet or cluster has no such item
    │   ├── UnknownRevision     not a correction, or no longer stored
    │   │   └── AlreadyUndone   a correction that is already undone
    │   ├── AlreadyMade         a correction that would change nothing
    │   └── StaleRevision       items were moved since the revision that the caller saw
    ├── PetExists               an import would overwrite an existing pet
    ├── StalePreview            the pet changed since the preview, or the preview expired; preview again
    ├── RevisionConflict        another commit came first; load and decide again
    │   └── PetClaimed          another change has claimed the pet for a moment; wait and retry
    ├── StoreUnavailable        Redis did not reply or refused a command; retrying is safe
    │   └── ColdStoreUnavailable  the storage of cold vectors did not reply; retrying is safe
    ├── PetIsCold               a batch met a pet whose vectors are in the cold store; handle its items one by one
    ├── PetTooLarge             the store cannot hold more items of this pet
    ├── NotConserved            a commit would lose items, or the pet has lost some; an operator must act
    └── UnreadablePet           the stored data is damaged or from a newer release; an operator must act

Only the standard library is imported here, so that the thin client and the message contracts can use these errors.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sploot_cluster.refusals import RedisRefusal


class ClusterError(Exception):
    """The base class of all errors that this package raises deliberately."""


class InvalidInput(ClusterError):
    """Raised when a field of an event, a message, a call or the settings is invalid.

    Attributes:
        field: the name of the field as the caller wrote it, e.g. ``embedding``.
        problem: what is wrong with it; never contains the value of an embedding.
        hint: how the caller can fix it.
    """

    def __init__(self, field: str, problem: str, hint: str) -> None:
        super().__init__(f"{field}: {problem}; {hint}")
        self.field, self.problem, self.hint = field, problem, hint

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled as class and ``args``, for example by result backends and process pools, but subclasses
        # take other arguments. So pickle an instance of the base class.
        return (InvalidInput, (self.field, self.problem, self.hint))


class DimensionMismatch(InvalidInput):
    """Raised when a vector has a different length from the vectors of its pet."""

    def __init__(self, *, pet: int, expected: int, got: int) -> None:
        super().__init__(
            "dim",
            f"pet {pet} expects {expected} dimensions, got {got}",
            f"send embeddings of {expected} dimensions, or ingest those of another model under another pet",
        )
        self.pet, self.expected, self.got = pet, expected, got


class ModelMismatch(InvalidInput):
    """Raised when a vector is from a different embedding model than the vectors of its pet."""

    def __init__(self, *, pet: int, expected: str, got: str) -> None:
        super().__init__(
            "model",
            f"pet {pet} expects vectors of model {expected!r}, got {got!r}",
            f"send embeddings of {expected!r}; vectors of different models are never compared",
        )
        self.pet, self.expected, self.got = pet, expected, got


class UnreadableExport(InvalidInput):
    """Raised when a file is not a valid export of a pet."""

    def __init__(self, problem: str) -> None:
        super().__init__("file", problem, "send an unmodified file written by `sploot-cluster export`")


class UnknownPet(InvalidInput):
    """Raised when a pet has no items."""

    def __init__(self, *, pet: int) -> None:
        super().__init__("pet_id", f"pet {pet} has no items", "send the id of a pet that has items")
        self.pet = pet


class UnknownCluster(InvalidInput):
    """Raised when an id is neither the id nor an alias of a cluster of the pet."""

    def __init__(self, *, pet: int, cluster: int, field: str = "cluster_id", has_ended: bool = False) -> None:
        """``has_ended``: the cluster existed, but now no single cluster holds more than half of its items."""
        ended = " any more, and its items did not stay together" if has_ended else ""
        super().__init__(
            field,
            f"pet {pet} has no cluster {cluster}{ended}",
            "choose a cluster that the pet has now",
        )
        self.pet, self.cluster = pet, cluster


class UnknownMedia(InvalidInput):
    """Raised when items of a correction are not where the caller expects them."""

    def __init__(self, *, pet: int, media: tuple[str, ...], where: str, field: str = "media_ids") -> None:
        # quoted as JSON strings, so that each id can be parsed from the error's text, whatever characters it contains
        shown = ", ".join(json.dumps(item, ensure_ascii=False) for item in media[:5])
        shown += f" and {len(media) - 5} more" if len(media) > 5 else ""
        super().__init__(
            field,
            f"{shown} not in {where} of pet {pet}",
            "load the cluster again and send items that are in it now",
        )
        self.pet, self.media = pet, media


class UnknownRevision(InvalidInput):
    """Raised when a revision cannot be undone, shown or restored."""

    def __init__(
        self,
        *,
        pet: int,
        revision: int,
        problem: str = "is not a correction",
        hint: str = "choose the revision of a correction from the pet's history",
    ) -> None:
        super().__init__("revision", f"{revision} of pet {pet} {problem}", hint)
        self.pet, self.revision = pet, revision


class AlreadyUndone(UnknownRevision):
    """Raised when a correction that should be undone is already undone."""

    def __init__(self, *, pet: int, revision: int) -> None:
        super().__init__(
            pet=pet, revision=revision, problem="is already undone", hint="undo its undo to make the correction again"
        )


class AlreadyMade(InvalidInput):
    """Raised when a correction would change nothing, because the pet already is as the correction demands."""


class StaleRevision(InvalidInput):
    """Raised when items of a pet were moved since the revision that the caller saw."""

    def __init__(self, *, pet: int, expected: int, moved_at: int) -> None:
        super().__init__(
            "expected_revision",
            f"items of pet {pet} were moved at revision {moved_at}, after the expected revision {expected}",
            "load the clusters again, and repeat the correction if it still applies",
        )
        self.pet, self.expected, self.moved_at = pet, expected, moved_at


class PetExists(ClusterError):
    """Raised when an import would overwrite an existing pet. Nothing was written."""

    def __init__(self, *, pet: int, revision: int) -> None:
        super().__init__(
            f"pet {pet} already exists, at revision {revision}; delete it first, or import under another id"
        )
        self.pet, self.revision = pet, revision

    def __reduce__(self) -> tuple[object, ...]:
        return (_pet_exists, (self.pet, self.revision))


class StalePreview(ClusterError):
    """Raised when a preview cannot be applied any more. Nothing was written.

    Attributes:
        problem: the reason.
    """

    def __init__(self, *, pet: int, token: str, problem: str) -> None:
        super().__init__(
            f"preview {token!r} of pet {pet} cannot be applied: {problem}; preview again, and review the result"
        )
        self.pet, self.token, self.problem = pet, token, problem

    def __reduce__(self) -> tuple[object, ...]:
        return (_stale_preview, (self.pet, self.token, self.problem))


class RevisionConflict(ClusterError):
    """Raised when a change was decided on a revision that is no longer the newest."""

    def __init__(self, *, pet: int, expected: int, current: int) -> None:
        super().__init__(
            f"pet {pet} moved from revision {expected} to {current} while this change was decided; "
            "load the pet and decide again"
        )
        self.pet, self.expected, self.current = pet, expected, current

    def __reduce__(self) -> tuple[object, ...]:
        return (_conflict, (self.pet, self.expected, self.current))


class PetClaimed(RevisionConflict):
    """Raised when a commit must wait, because another change lost a race and therefore claimed the pet.

    Attributes:
        for_ms: maximum remaining time of the claim in milliseconds; the claimant's commit ends it earlier.
    """

    def __init__(self, *, pet: int, revision: int, for_ms: int) -> None:
        super().__init__(pet=pet, expected=revision, current=revision)
        self.args = (f"pet {pet} is claimed by another change for at most {for_ms} ms; load the pet and decide again",)
        self.for_ms = for_ms

    def __reduce__(self) -> tuple[object, ...]:
        return (_claimed, (self.pet, self.current, self.for_ms))


class StoreUnavailable(ClusterError):
    """Raised when Redis did not reply or refused a command.

    A commit that failed this way may have been written. Retrying is safe, because items and corrections are recognised
    by their ids.

    Attributes:
        doing: the operation that failed, e.g. ``commit pet 42``.
        problem: the error from Redis or from the connection.
        refusal: why Redis refused, and how to fix it, or None if it did not reply.
    """

    def __init__(self, *, doing: str, problem: str, refusal: RedisRefusal | None = None) -> None:
        hint = "check that Redis is up, has free memory and accepts writes (redis-cli INFO)"
        if refusal is not None:
            problem, hint = f"{refusal.problem} ({problem})", refusal.hint
        super().__init__(f"could not {doing}: {problem}; {hint}, then try again")
        self.doing, self.problem, self.refusal = doing, problem, refusal

    def __reduce__(self) -> tuple[object, ...]:
        return (_unavailable, (self.args[0], self.doing, self.problem, self.refusal))


class ColdStoreUnavailable(StoreUnavailable):
    """Raised when the storage of cold vectors did not reply or refused a request. Retrying is safe."""

    def __init__(self, *, doing: str, problem: str) -> None:
        super().__init__(doing=doing, problem=problem)
        hint = "check that the storage is up and SPLOOT_COLD_STORE names it"
        self.args = (f"could not {doing}: {problem}; {hint}, then try again",)

    def __reduce__(self) -> tuple[object, ...]:
        return (_cold_unavailable, (self.doing, self.problem))


class PetIsCold(ClusterError):
    """Raised for a pet of a batch whose vectors are in the cold store, because fetching them would delay the others."""

    def __init__(self, *, pet: int) -> None:
        super().__init__(f"the vectors of pet {pet} are in the cold store; handle its items one by one")
        self.pet = pet

    def __reduce__(self) -> tuple[object, ...]:
        return (_is_cold, (self.pet,))


class PetTooLarge(ClusterError):
    """Raised when the vectors of a pet would exceed 512 MB, the size limit of a pet."""

    def __init__(self, *, pet: int, n_media: int) -> None:
        super().__init__(
            f"pet {pet} has {n_media} items, and their vectors fill one Redis value; delete items or split the pet"
        )
        self.pet, self.n_media = pet, n_media

    def __reduce__(self) -> tuple[object, ...]:
        return (_too_large, (self.pet, self.n_media))


class NotConserved(ClusterError):
    """Raised when a commit would not account for all ingested items. Nothing was written.

    Attributes:
        problem: the equation of conservation, with the counts that do not add up.
    """

    def __init__(self, *, pet: int, problem: str) -> None:
        super().__init__(
            f"pet {pet} would not account for all of its items: {problem}; nothing was written: keep a copy with "
            f"`sploot-cluster export {pet}`, and see what `sploot-cluster repair {pet}` changes"
        )
        self.pet, self.problem = pet, problem

    def __reduce__(self) -> tuple[object, ...]:
        return (_not_conserved, (self.pet, self.problem))


class UnreadablePet(ClusterError):
    """Raised when the stored data of a pet is inconsistent, or has a format that this release does not know.

    Nothing was written, and nothing will be until its keys are consistent again or the pet is deleted.

    Attributes:
        problem: the inconsistency.
        key: the damaged key; for a hash, followed by a space and the field, or None if unknown.
        expected, found: the expected length of that key, and its actual length.
        hint: how to make the pet readable again.
    """

    def __init__(
        self, *, pet: int, problem: str, key: str | None = None, expected: str | None = None, found: str | None = None
    ) -> None:
        self.pet, self.problem, self.key, self.expected, self.found = pet, problem, key, expected, found
        self.hint = (
            f"nothing was written. Run the release that wrote it, or see what `sploot-cluster repair {pet}` restores "
            "(ops/runbook.md, A pet that cannot be read)"
        )
        super().__init__(f"pet {pet} cannot be read: {problem}; {self.hint}")

    @classmethod
    def of_key(cls, *, pet: int, key: str, expected: str, found: str) -> UnreadablePet:
        """Return the error for a key whose length or value does not match the pet's other keys."""
        problem = f"{key}: expected {expected}, found {found}"
        return cls(pet=pet, problem=problem, key=key, expected=expected, found=found)

    def __reduce__(self) -> tuple[object, ...]:
        return (_unreadable, (self.pet, self.problem, self.key, self.expected, self.found))


class PlanUnknown(LookupError):
    """Raised when a plan does not exist: it was applied, is older than an hour, or was never made."""

    def __init__(self, plan_id: str) -> None:
        super().__init__(f"plan {plan_id} does not exist: it was applied or is older than an hour; make a new plan")
        self.plan_id = plan_id


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


def _cold_unavailable(doing: str, problem: str) -> ColdStoreUnavailable:
    return ColdStoreUnavailable(doing=doing, problem=problem)


def _is_cold(pet: int) -> PetIsCold:
    return PetIsCold(pet=pet)


def _not_conserved(pet: int, problem: str) -> NotConserved:
    return NotConserved(pet=pet, problem=problem)


def _unreadable(pet: int, problem: str, key: str | None, expected: str | None, found: str | None) -> UnreadablePet:
    return UnreadablePet(pet=pet, problem=problem, key=key, expected=expected, found=found)
