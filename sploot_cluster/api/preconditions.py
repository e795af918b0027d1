"""What a caller has seen: ``If-None-Match`` of what is read, ``If-Match`` of what is corrected.

The entity tag of a pet is its revision, and every arrival makes a new one. For reading, a tag is current only while it
is the newest: ``If-None-Match`` compares whole revisions. For correcting, ``If-Match`` names the state that the caller
looked at, and holds until a person, a recluster or a deletion moves media that were there: arrivals move none of them,
so a correction of a pet that receives uploads goes through. The correction takes the caller's revision along and is
checked once more, by the same rule, when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Protocol

from fastapi import Header
from pydantic import BaseModel
from starlette.responses import Response

from sploot_cluster.api.answers import HistoryLine
from sploot_cluster.api.problems import STALE_PAGE, FieldProblem, InvalidFields, Refusal
from sploot_cluster.pet.models import HistoryEntry, PetId

# A page that is older than so many corrections and reclusters is told of the newest.
MAX_CHANGES: Final = 100

_ETAGS: Final = re.compile(r'(W/)?"([^"]*)"')

_REVISION: Final = re.compile(r"0|[1-9][0-9]{0,18}")

IfNoneMatch = Annotated[str | None, Header(description="The ETag of what you have; 304 if it is still that.")]
IfMatch = Annotated[
    str | None,
    Header(
        description="The ETag of the pet that you looked at. Media that arrived since do not matter: the answer counts "
        "them in `Arrivals-Since`. If a person, a recluster or a deletion moved media since, the answer is 412 and "
        "lists the changes; if one does so before the correction runs, the job fails and changes nothing.",
        examples=['"17"'],
    ),
]

TAGGED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "As it is now.",
        "headers": {"ETag": {"description": "The revision, in quotes.", "schema": {"type": "string"}}},
    },
    304: {"description": "It is still what the ETag of If-None-Match names."},
}


ARRIVALS: Final = "Arrivals-Since"

ARRIVALS_HEADER: Final[dict[str, Any]] = {
    ARRIVALS: {
        "description": "With If-Match: how many media arrived since that revision.",
        "schema": {"type": "integer", "minimum": 0},
    }
}


class Revisions(Protocol):
    """Where the revision of a pet is read, and what made it."""

    def revision(self, pet: PetId) -> int: ...

    def moved_at(self, pet: PetId) -> int: ...

    def history(self, pet: PetId, *, limit: int = ...) -> Sequence[HistoryEntry]: ...


def tagged(revision: int, if_none_match: str | None, answer: Callable[[], BaseModel]) -> Response:
    """The answer with its ETag, or 304 if the caller has it."""
    # no-cache: keep it, and ask each time whether it is still right; private: it is one pet's
    headers = {"ETag": f'"{revision}"', "Cache-Control": "private, no-cache"}
    known = if_none_match or ""
    if known.strip() == "*" or str(revision) in (tag for _, tag in _ETAGS.findall(known)):
        return Response(status_code=304, headers=headers)
    return Response(answer().model_dump_json(), headers=headers, media_type="application/json")


def expected_revision(revisions: Revisions, pet: PetId, if_match: str | None, response: Response) -> int | None:
    """Return the revision that the caller looked at, to be checked again when the correction runs.

    None without If-Match. Counts in the answer's ``Arrivals-Since`` what arrived after that revision.

    Raises:
        Refusal: 412, with what changed since.
    """
    if if_match is None:
        return None
    # in this order: what is moved in between makes `now` larger, and the correction is checked again when it runs
    moved_at, now = revisions.moved_at(pet), revisions.revision(pet)
    if if_match.strip() == "*" and now:
        return now
    tags = _ETAGS.findall(if_match)
    if not tags and if_match.strip() != "*":
        hint = 'send the ETag of the pet, such as "17", with its quotes'
        raise InvalidFields([FieldProblem(field="If-Match", problem="is not an entity tag", hint=hint)])
    # a weak tag never matches: it names something alike, and a correction is about exactly this
    seen = [int(tag) for is_weak, tag in tags if not is_weak and _REVISION.fullmatch(tag)]
    good = [revision for revision in seen if moved_at <= revision <= now]
    if not good:
        raise _stale(revisions, pet, now, seen)
    looked_at = max(good)
    changes = _since(revisions, pet, looked_at) if now > looked_at else ()
    response.headers[ARRIVALS] = str(_n_arrivals(looked_at, now, changes))
    return looked_at


def _since(revisions: Revisions, pet: PetId, revision: int) -> Sequence[HistoryEntry]:
    return [entry for entry in revisions.history(pet, limit=MAX_CHANGES) if entry.revision > revision]


def _n_arrivals(revision: int, now: int, since: Sequence[HistoryEntry]) -> int:
    return max(0, now - revision - len(since))


def _stale(revisions: Revisions, pet: PetId, now: int, seen: Sequence[int]) -> Refusal:
    last_seen = max(seen, default=0)
    since = _since(revisions, pet, last_seen)
    n_arrived = _n_arrivals(last_seen, now, since)
    what = ", ".join(
        [*(f"{entry.kind} by {entry.by}" for entry in since[:3]), *([f"{n_arrived} arrivals"] * (n_arrived > 0))]
    )
    detail = (
        f"pet {pet} is at revision {now}, you looked at {last_seen or 'another state'}; since then: {what or 'nothing'}"
    )
    return Refusal(
        STALE_PAGE,
        f"{detail}; load it again, and say it again if it is still right",
        headers={"ETag": f'"{now}"'},
        facts={
            "current_revision": now,
            "n_arrivals": n_arrived,
            "changes": [HistoryLine.of(entry).model_dump(mode="json") for entry in since],
        },
    )
