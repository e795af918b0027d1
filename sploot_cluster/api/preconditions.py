"""Conditional requests: ``If-None-Match`` for reads and ``If-Match`` for corrections.

The entity tag of a pet is its revision, and arrivals create new revisions. For reads, ``If-None-Match`` matches
only the newest revision. For corrections, ``If-Match`` names the revision that the caller saw, and matches as long as
no item that was in the pet at that revision has moved. Arrivals, except for exact ones, move no other items, so a pet
that receives uploads can be corrected. The job of the correction carries the revision and checks it again by the same
rule when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any, Final, Protocol

from fastapi import Header
from pydantic import TypeAdapter
from starlette.responses import Response

from sploot_cluster.api.problems import STALE_PAGE, FieldProblem, InvalidFields, Refusal
from sploot_cluster.pet.models import HistoryEntry, PetId

# Maximum number of changes to list in the response to a correction from a stale page, newest first.
MAX_CHANGES: Final = 100

_ETAGS: Final = re.compile(r'(W/)?"([^"]*)"')

_REVISION: Final = re.compile(r"0|[1-9][0-9]{0,18}")

_IF_MATCH: Final = r'^ *(\*|(W/)?"[^"]*"( *, *(W/)?"[^"]*")*) *$'

IfNoneMatch = Annotated[
    str | None, Header(description="The ETag of your copy. The response is 304 if the copy is current.")
]
IfMatch = Annotated[
    str | None,
    Header(
        description="The ETag of the pet as you saw it. Items that arrived since do not matter: `Arrivals-Since` "
        "counts them. If a user, a recluster or a deletion moved items since, the response is 412 and "
        "lists the changes. If that happens before the correction runs, its job fails and nothing is changed.",
        examples=['"17"'],
        # documented here but not enforced, because expected_revision returns a better error
        json_schema_extra={"pattern": _IF_MATCH},
    ),
]

TAGGED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The present state.",
        "headers": {"ETag": {"description": "The revision, in quotes.", "schema": {"type": "string"}}},
    },
    304: {"description": "Unchanged since the ETag in If-None-Match."},
}


ARRIVALS: Final = "Arrivals-Since"

ARRIVALS_HEADER: Final[dict[str, Any]] = {
    ARRIVALS: {
        "description": "With If-Match: the number of items that arrived since that revision.",
        "schema": {"type": "integer", "minimum": 0},
    }
}


class Revisions(Protocol):
    """The part of the service that reads the revisions and the history of pets."""

    def revision(self, pet: PetId) -> int: ...

    def moved_at(self, pet: PetId) -> int: ...

    def history(self, pet: PetId, *, limit: int = ..., before: int | None = ...) -> Sequence[HistoryEntry]: ...


def tagged(revision: int, if_none_match: str | None, answer: Callable[[], Any]) -> Response:
    """Return the result of ``answer`` with an ETag, or 304 if the caller already has the current revision."""
    # no-cache: clients may store it but must revalidate; private: shared caches must not store it
    headers = {"ETag": f'"{revision}"', "Cache-Control": "private, no-cache"}
    known = if_none_match or ""
    if known.strip() == "*" or str(revision) in (tag for _, tag in _ETAGS.findall(known)):
        return Response(status_code=304, headers=headers)
    body = answer()
    writer = _writer(type(body))  # type: ignore[arg-type]  # mypy does not accept a class as hashable
    return Response(writer.dump_json(body, by_alias=True), headers=headers, media_type="application/json")


@cache
def _writer(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def expected_revision(revisions: Revisions, pet: PetId, if_match: str | None, response: Response) -> int | None:
    """Return the revision that the caller saw, to be checked again when the correction runs, or None without If-Match.

    Sets ``Arrivals-Since`` of the response to the number of items that arrived after that revision.

    Raises:
        Refusal: 412, with the changes since that revision.
    """
    if if_match is None:
        return None
    # the order of these reads matters: a move between them only makes `now` larger, and the job checks the revision
    # again
    moved_at, now = revisions.moved_at(pet), revisions.revision(pet)
    if if_match.strip() == "*" and now:
        return now
    tags = _ETAGS.findall(if_match)
    if not tags and if_match.strip() != "*":
        hint = 'send the ETag of the pet with its quotes, such as "17"'
        raise InvalidFields([FieldProblem(field="If-Match", problem="is not an entity tag", hint=hint)])
    # a weak tag never matches (RFC 9110, section 13.1.1)
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
        f"pet {pet} is at revision {now}, but you saw {last_seen or 'another state'}; since then: {what or 'nothing'}"
    )
    return Refusal(
        STALE_PAGE,
        f"{detail}; load the pet again, and repeat the correction if it still applies",
        headers={"ETag": f'"{now}"'},
        facts={
            "current_revision": now,
            "n_arrivals": n_arrived,
            "changes": [_writer(HistoryEntry).dump_python(entry, mode="json") for entry in since],
        },
    )
