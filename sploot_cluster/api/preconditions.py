"""What a caller has seen: ``If-None-Match`` of what is read, ``If-Match`` of what is corrected.

The entity tag of a pet is its revision. A page that is older than the pet is told what happened since, and corrects
nothing; what happens after that, before the correction runs, is looked at again when it does.
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
from sploot_cluster.models import HistoryEntry, PetId

# A page that is older than so many corrections and reclusters is told of the newest.
MAX_CHANGES: Final = 100

_ETAGS: Final = re.compile(r'(W/)?"([^"]*)"')

IfNoneMatch = Annotated[str | None, Header(description="The ETag of what you have; 304 if it is still that.")]
IfMatch = Annotated[
    str | None,
    Header(
        description="The ETag of the pet that you looked at. If the pet changed since, 412 says how; if media are "
        "moved by a person or a recluster before the correction runs, it is refused then.",
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


class Revisions(Protocol):
    """Where the revision of a pet is read, and what made it."""

    def revision(self, pet: PetId) -> int: ...

    def history(self, pet: PetId, *, limit: int = ...) -> Sequence[HistoryEntry]: ...


def tagged(revision: int, if_none_match: str | None, answer: Callable[[], BaseModel]) -> Response:
    """The answer with its ETag, or 304 if the caller has it."""
    # no-cache: keep it, and ask each time whether it is still right; private: it is one pet's
    headers = {"ETag": f'"{revision}"', "Cache-Control": "private, no-cache"}
    known = if_none_match or ""
    if known.strip() == "*" or str(revision) in (tag for _, tag in _ETAGS.findall(known)):
        return Response(status_code=304, headers=headers)
    return Response(answer().model_dump_json(), headers=headers, media_type="application/json")


def seen_revision(revisions: Revisions, pet: PetId, if_match: str | None) -> int | None:
    """The revision that the caller looked at, if it says so and the pet is still there.

    Raises:
        Refusal: 412, with what changed since.
    """
    if if_match is None:
        return None
    now = revisions.revision(pet)
    if if_match.strip() == "*" and now:
        return now
    # a weak tag never matches: it names something alike, and a correction is about exactly this
    seen = [tag for is_weak, tag in _ETAGS.findall(if_match) if not is_weak]
    if str(now) in seen:
        return now
    if not _ETAGS.findall(if_match) and if_match.strip() != "*":
        mend = 'send the ETag of the pet, such as "17", with its quotes'
        raise InvalidFields([FieldProblem(field="If-Match", problem="is no entity tag", mend=mend)])
    raise _stale(revisions, pet, now, [int(tag) for tag in seen if tag.isdecimal() and len(tag) < 20])


def _stale(revisions: Revisions, pet: PetId, now: int, seen: Sequence[int]) -> Refusal:
    last_seen = max(seen, default=0)
    since = [entry for entry in revisions.history(pet, limit=MAX_CHANGES) if entry.revision > last_seen]
    n_arrived = max(0, now - last_seen - len(since))
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
