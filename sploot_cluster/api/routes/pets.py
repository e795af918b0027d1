"""Routes that read, delete and export a pet, and that manage its candidate model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Final, Protocol

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sploot_cluster.api.admission import BEARER, READS, WRITES, Admission, CallerOf
from sploot_cluster.api.answers import MAX_MOVES, Erased, JobAccepted, PetAt, PetCluster, PetHistory
from sploot_cluster.api.bodies import BeginModel
from sploot_cluster.api.numbers import IdInAddress, RevisionInAddress
from sploot_cluster.api.preconditions import TAGGED, IfNoneMatch, tagged
from sploot_cluster.api.problems import (
    EVENTS_WAIT,
    NOT_FOUND,
    QUEUE_UNAVAILABLE,
    UNREADABLE_PET,
    Refusal,
    documented,
    field_problem,
    shown,
)
from sploot_cluster.api.routes.clusters import Previews
from sploot_cluster.api.routes.jobs import PREFIX, accepted, location_header
from sploot_cluster.decide.suggestions.values import DoubtfulItems, PetSuggestions
from sploot_cluster.decide.why import Why
from sploot_cluster.engine.projection import PetMap
from sploot_cluster.errors import UnknownCluster, UnknownMedia, UnknownPet, UnknownRevision
from sploot_cluster.jobs import JobQueue, JobTraces, Traces
from sploot_cluster.limits import MAX_NAME
from sploot_cluster.pet.diff import PetDiff, Snapshot
from sploot_cluster.pet.items import CURSOR as ITEM_CURSOR
from sploot_cluster.pet.items import ItemPage
from sploot_cluster.pet.listing import CURSOR as PET_CURSOR
from sploot_cluster.pet.listing import MAX_PETS, MAX_SORTED, PetOrder, PetPage
from sploot_cluster.pet.models import ClusterId, Deleted, MediaId, PetId, PetSummary, PetView
from sploot_cluster.pet.shadow import CandidateModel, PetModel
from sploot_cluster.pet.tally import PetTally, TallyView
from sploot_cluster.pet.times import ItemOrder
from sploot_cluster.pet.views import named, ordered

MAX_HISTORY: Final = 1_000
MAX_ITEMS: Final = 1_000
MAX_SUGGESTIONS: Final = 100
MAX_DOUBTFUL: Final = 500
MAX_NAMED: Final = 100

CURSOR_OF_PAGE: Final = "`next_cursor` of the previous page; without it, the first page."
_REVISION_CURSOR: Final = "^[1-9][0-9]{0,18}$"


class PetService(Previews, Protocol):
    """The service that these routes call, e.g. ``ClusterService``."""

    def clusters(self, pet: PetId) -> PetView: ...

    def items(self, pet: PetId, *, limit: int = ..., cursor: str | None = ...) -> ItemPage: ...

    def page_of_pets(
        self, *, search: str = ..., order: PetOrder = ..., limit: int = ..., cursor: str | None = ...
    ) -> PetPage: ...

    def summaries(self, pets: Sequence[PetId]) -> Sequence[PetSummary]: ...

    def at(self, pet: PetId, revision: int) -> Snapshot: ...

    def compare(self, pet: PetId, from_revision: int, to_revision: int) -> PetDiff: ...

    def tally(self, pet: PetId) -> PetTally: ...

    def delete_pet(self, pet: PetId) -> Deleted: ...

    def delete_media(self, pet: PetId, media_ids: Collection[MediaId], *, by: str) -> Deleted: ...

    def has_item(self, pet: PetId, media: MediaId) -> bool: ...

    def is_big(self, pet: PetId) -> bool: ...

    def export_parts(self, pet: PetId) -> Iterator[bytes]: ...

    def model(self, pet: PetId) -> PetModel: ...

    def begin_model(self, pet: PetId, model: str, dim: int, *, by: str) -> CandidateModel: ...

    def end_model(self, pet: PetId) -> bool: ...

    def map(self, pet: PetId, *, limit: int = ...) -> PetMap: ...

    def why(self, pet: PetId, media: MediaId) -> Why: ...

    def suggestions(self, pet: PetId, *, limit: int = ...) -> PetSuggestions: ...

    def doubtful(self, pet: PetId, cluster: ClusterId | None = ..., *, limit: int = ...) -> DoubtfulItems: ...


PetInPath = Annotated[IdInAddress, Path(description="Id of the pet.", examples=[42])]


def pets_router(admission: Admission, service: PetService, jobs: JobQueue, traces: JobTraces | None) -> APIRouter:
    """Return the routes under ``/pets``.

    Args:
        jobs: deletes items of big pets.
        traces: removes the job records and dead letters of deleted data.
    """
    router = APIRouter(
        prefix=f"{PREFIX}/pets/{{pet_id}}",
        tags=["pets"],
        route_class=admission.route_class(),
        dependencies=[BEARER],
        responses={**documented(*READS, UNREADABLE_PET), **TAGGED},
    )

    @router.get("/clusters", operation_id="get_clusters", summary="Get a pet's clusters", response_model=PetView)
    def get_clusters(
        pet_id: PetInPath,
        order: Annotated[
            ItemOrder,
            Query(description="Order of the items in each list. With `occurred_at`, items without a time come last."),
        ] = ItemOrder.ARRIVED,
        name: Annotated[
            str,
            Query(
                description="Only clusters with a name, or other name, that begins with this text, in upper or lower "
                "case. `noise` and `dismissed` are then empty.",
                max_length=MAX_NAME,
            ),
        ] = "",
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return the current clusters of a pet. A pet without data has revision 0."""
        view = ordered(named(service.clusters(PetId(pet_id)), name), order)
        return tagged(view.revision, if_none_match, lambda: view)

    @router.get(
        "/clusters/{cluster_id}",
        operation_id="get_cluster",
        summary="Get a cluster by any id it ever had",
        response_model=PetCluster,
        responses=documented(NOT_FOUND),
    )
    def get_cluster(
        pet_id: PetInPath, cluster_id: Annotated[IdInAddress, Path()], if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return a cluster. An id that was merged away resolves to the cluster it was merged into."""
        view = service.clusters(PetId(pet_id))
        now = view.aliases.get(ClusterId(cluster_id), ClusterId(cluster_id))
        found = next((cluster for cluster in view.clusters if cluster.cluster_id == now), None)
        if found is None:
            detail = f"pet {pet_id} has no cluster {cluster_id}; GET …/pets/{pet_id}/clusters lists its clusters"
            raise Refusal(NOT_FOUND, detail)
        answer = PetCluster(pet_id=pet_id, revision=view.revision, asked_id=cluster_id, cluster=found)
        return tagged(view.revision, if_none_match, lambda: answer)

    @router.get("/tally", operation_id="get_tally", summary="Get the tally of a pet's items")
    def get_tally(pet_id: PetInPath) -> TallyView:
        """Return counts in which every item appears once: ingested = clustered + noise + quarantined + dismissed."""
        return service.tally(PetId(pet_id)).view(PetId(pet_id))

    # a `path` parameter, because the id of an item may contain slashes
    @router.get(
        "/media/{media_id:path}/why",
        operation_id="get_why",
        summary="Explain why an item is where it is",
        response_model=Why,
        responses=documented(NOT_FOUND),
    )
    def get_why(pet_id: PetInPath, media_id: str, if_none_match: IfNoneMatch = None) -> Response:
        """Explain why an item is where it is: the nearest items, and its similarity to its own and the next cluster.

        The response also lists the corrections in force that affect the item.
        """
        try:
            why = service.why(PetId(pet_id), MediaId(media_id))
        except UnknownMedia:
            raise Refusal(NOT_FOUND, f"pet {pet_id} has no item {shown(media_id)}") from None
        return tagged(why.revision, if_none_match, lambda: why)

    @router.get("/model", operation_id="get_model", summary="Get a pet's embedding model and its candidate")
    def get_model(pet_id: PetInPath) -> PetModel:
        """Return the embedding model of a pet and its candidate model, if any.

        Vectors of two models never mix. `sploot-cluster model preview` shows what a switch would change.
        """
        return service.model(PetId(pet_id))

    @router.post(
        "/model",
        operation_id="begin_model",
        status_code=201,
        summary="Start a candidate embedding model",
        responses=documented(*WRITES, NOT_FOUND),
    )
    def begin_model(pet_id: PetInPath, body: BeginModel, caller: CallerOf) -> CandidateModel:
        """Start a candidate model. From now on its vectors are stored separately, until a switch or its end."""
        with _of_known_pet():
            return service.begin_model(PetId(pet_id), body.model, body.dim, by=caller.name)

    @router.delete(
        "/model",
        operation_id="end_model",
        status_code=204,
        summary="End the candidate embedding model",
        responses=documented(NOT_FOUND),
    )
    def end_model(pet_id: PetInPath) -> None:
        """Delete the candidate model and its vectors. Items that only it has stay quarantined. Cannot be undone."""
        if not service.end_model(PetId(pet_id)):
            raise Refusal(NOT_FOUND, f"pet {pet_id} has no candidate model")

    @router.get(
        "/export",
        operation_id="export_pet",
        summary="Export a pet as one file",
        response_class=Response,
        responses={
            200: {"description": "The file with all data of the pet.", "content": {"application/zip": {}}},
            **documented(NOT_FOUND),
        },
    )
    def export_pet(pet_id: PetInPath) -> Response:
        """Return all data of a pet as a file for `sploot-cluster import`.

        The file is sent in chunks while the pet is read, so its length is unknown at the start. If items are deleted or
        the model is switched during the export, the connection ends without the last chunk; request the export again.
        """
        parts = service.export_parts(PetId(pet_id))
        try:
            first = next(parts)
        except UnknownPet:
            raise Refusal(NOT_FOUND, f"pet {pet_id} has no data") from None
        headers = {
            "Content-Disposition": f'attachment; filename="pet-{pet_id}.zip"',
            "Cache-Control": "no-store",
            "Content-Encoding": "identity",  # compressing vectors takes long and saves little
        }
        return StreamingResponse(chain([first], parts), headers=headers, media_type="application/zip")

    _add_deletion_routes(router, service, jobs, traces)
    _add_item_routes(router, service)
    _add_history_routes(router, service)
    _add_review_routes(router, service)
    return router


@contextmanager
def _of_known_pet() -> Iterator[None]:
    """Raise a problem with status 404 if the pet has no items."""
    try:
        yield
    except UnknownPet as unknown:
        raise Refusal(NOT_FOUND, f"{unknown.problem}; {unknown.hint}") from None


def pet_list_router(admission: Admission, service: PetService) -> APIRouter:
    """Return the route ``/pets``, which lists pets."""
    router = APIRouter(prefix=PREFIX, tags=["pets"], route_class=admission.route_class(), dependencies=[BEARER])

    @router.get("/pets", operation_id="list_pets", summary="List pets", responses=documented(*READS))
    def list_pets(
        search: Annotated[
            str,
            Query(
                description="Digits that the id contains, or the beginning of the name, in upper or lower case.",
                max_length=MAX_NAME,
            ),
        ] = "",
        order: Annotated[
            PetOrder,
            Query(
                description="Ascending ids, descending ids, or most items or noise first. The last two are refused for "
                f"more than {MAX_SORTED} pets."
            ),
        ] = PetOrder.ID,
        limit: Annotated[int, Query(description="Maximum number of pets.", ge=1, le=MAX_PETS)] = 100,
        cursor: Annotated[str | None, Query(description=CURSOR_OF_PAGE, pattern=PET_CURSOR)] = None,
        pet_id: Annotated[
            list[IdInAddress] | None,
            Query(
                description="Only these pets, in this order; the other parameters are ignored.", max_length=MAX_NAMED
            ),
        ] = None,
    ) -> PetPage:
        """Return the pets that have data, with their names and the numbers of items, clusters and noise items."""
        if pet_id is not None:
            found = service.summaries([PetId(one) for one in dict.fromkeys(pet_id)])
            return PetPage(found, len(found), None)
        return service.page_of_pets(search=search, order=order, limit=limit, cursor=cursor)

    return router


def _add_deletion_routes(router: APIRouter, service: PetService, jobs: JobQueue, traces: JobTraces | None) -> None:
    @router.delete(
        "",
        operation_id="delete_pet",
        summary="Delete a pet permanently",
        responses=documented(NOT_FOUND, EVENTS_WAIT),
    )
    def delete_pet(pet_id: PetInPath) -> Erased:
        """Delete a pet with its corrections, history, job records and dead letters. Cannot be undone."""
        return _erased(service, traces, pet_id, None, lambda: service.delete_pet(PetId(pet_id)))

    @router.delete(
        "/media/{media_id:path}",
        operation_id="delete_item",
        summary="Delete an item permanently",
        response_model=Erased,
        responses={
            **documented(NOT_FOUND, EVENTS_WAIT, QUEUE_UNAVAILABLE),
            202: {**location_header(), "model": JobAccepted},
        },
    )
    def delete_item(
        pet_id: PetInPath, media_id: str, caller: CallerOf, request: Request, response: Response
    ) -> Erased | Response:
        """Delete an item everywhere. Corrections that name it stay in force for other items. Cannot be undone.

        If the pet's vectors take more than 16 MiB, a worker deletes the item: the response is 202 with a job, whose
        result has the counts.
        """
        media = [MediaId(media_id)]
        if service.is_big(PetId(pet_id)) and service.has_item(PetId(pet_id), media[0]):
            _check_nothing_waits(traces.find(pet_id, [media_id]) if traces is not None else None)
            job = accepted(jobs.delete_items(pet_id, media, requested_by=caller.name), request, response)
            return JSONResponse(job.model_dump(mode="json"), 202, headers={"Location": response.headers["Location"]})
        return _erased(
            service, traces, pet_id, media_id, lambda: service.delete_media(PetId(pet_id), media, by=caller.name)
        )


def _add_item_routes(router: APIRouter, service: PetService) -> None:
    @router.get("/items", operation_id="list_items", summary="List a pet's items", response_model=ItemPage)
    def list_items(
        pet_id: PetInPath,
        limit: Annotated[int, Query(description="Maximum number of items.", ge=1, le=MAX_ITEMS)] = 100,
        cursor: Annotated[str | None, Query(description=CURSOR_OF_PAGE, pattern=ITEM_CURSOR)] = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return items with their clusters, in order of arrival. A page takes the same time for a pet of any size.

        If the pet changes between two requests, their pages show different revisions. Deleting items invalidates the
        pet's cursors.
        """
        page = service.items(PetId(pet_id), limit=limit, cursor=cursor)
        return tagged(page.revision, if_none_match, lambda: page)


def _add_history_routes(router: APIRouter, service: PetService) -> None:
    @router.get("/history", operation_id="get_history", summary="Get a pet's history", response_model=PetHistory)
    def get_history(
        pet_id: PetInPath,
        limit: Annotated[int, Query(description="Maximum number of entries.", ge=1, le=MAX_HISTORY)] = 100,
        cursor: Annotated[str | None, Query(description=CURSOR_OF_PAGE, pattern=_REVISION_CURSOR)] = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return reclusters and corrections, newest first. The ETag is the revision of the newest entry of the page."""
        entries = service.history(PetId(pet_id), limit=limit + 1, before=None if cursor is None else int(cursor))
        page = entries[:limit]
        next_cursor = str(page[-1].revision) if len(entries) > limit else None
        revision = page[0].revision if page else 0
        return tagged(
            revision,
            if_none_match,
            lambda: PetHistory(pet_id=pet_id, entries=page, next_cursor=next_cursor),
        )

    @router.get(
        "/history/diff",
        operation_id="compare_revisions",
        summary="Compare two revisions",
        responses=documented(NOT_FOUND),
    )
    def compare_revisions(
        pet_id: PetInPath,
        from_revision: Annotated[RevisionInAddress, Query(alias="from", description="The earlier revision.")],
        to_revision: Annotated[RevisionInAddress, Query(alias="to", description="The later revision.")],
        limit: Annotated[
            int, Query(description="Maximum number of moved items to list.", ge=1, le=MAX_MOVES)
        ] = MAX_MOVES,
    ) -> PetDiff:
        """Return the items that moved between two revisions, and what became of the cluster ids."""
        try:
            return service.compare(PetId(pet_id), from_revision, to_revision).up_to(limit)
        except UnknownRevision as unknown:
            raise _no_such_revision(unknown) from None

    @router.get(
        "/history/{revision}",
        operation_id="get_revision",
        summary="Get a pet at an earlier revision",
        responses=documented(NOT_FOUND),
    )
    def get_revision(pet_id: PetInPath, revision: Annotated[RevisionInAddress, Path()]) -> PetAt:
        """Return the cluster of every item at a revision."""
        try:
            return PetAt.of(PetId(pet_id), service.at(PetId(pet_id), revision))
        except UnknownRevision as unknown:
            raise _no_such_revision(unknown) from None


def _no_such_revision(unknown: UnknownRevision) -> Refusal:
    return Refusal(NOT_FOUND, str(unknown), errors=[field_problem(unknown)])


def _add_review_routes(router: APIRouter, service: PetService) -> None:
    @router.get(
        "/suggestions",
        operation_id="get_suggestions",
        summary="Get the questions about a pet that are most worth an answer",
        response_model=PetSuggestions,
    )
    def get_suggestions(
        pet_id: PetInPath,
        limit: Annotated[int, Query(description="Maximum number of suggestions.", ge=1, le=MAX_SUGGESTIONS)] = 10,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return questions, each with the corrections that answer it with *yes* or *no*.

        To answer, send that correction to `POST …/clusters/<verb>`, with the ETag in If-Match; for *later*, send
        nothing. An answered question is not asked again while its correction is in force. After three *no* in a row to
        one kind of question, that kind is not asked again until the next recluster.
        """
        asked = service.suggestions(PetId(pet_id), limit=limit)
        return tagged(asked.revision, if_none_match, lambda: asked)

    @router.get(
        "/doubtful",
        operation_id="get_doubtful",
        summary="List the items that are least certain to belong to their cluster",
        response_model=DoubtfulItems,
        responses=documented(NOT_FOUND),
    )
    def get_doubtful(
        pet_id: PetInPath,
        cluster_id: Annotated[
            IdInAddress | None, Query(description="Only items of this cluster, by any id it ever had.")
        ] = None,
        limit: Annotated[int, Query(description="Maximum number of items.", ge=1, le=MAX_DOUBTFUL)] = 100,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return low-confidence items, least certain first. Items that a user placed are certain."""
        try:
            found = service.doubtful(PetId(pet_id), None if cluster_id is None else ClusterId(cluster_id), limit=limit)
        except UnknownCluster as unknown:
            raise Refusal(NOT_FOUND, f"{unknown.problem}; {unknown.hint}") from None
        return tagged(found.revision, if_none_match, lambda: found)


def _erased(
    service: PetService, traces: JobTraces | None, pet_id: int, media_id: str | None, delete: Callable[[], Deleted]
) -> Erased:
    """Delete a pet or an item, and then its job records and dead letters."""
    media = None if media_id is None else [media_id]
    found = traces.find(pet_id, media) if traces is not None else None
    _check_nothing_waits(found)
    try:
        deleted = delete()
    except (UnknownPet, UnknownMedia):
        if found is None or not (found.n_records or found.n_dead_letters):
            what = f"pet {pet_id} has no data" if media_id is None else f"pet {pet_id} has no item {shown(media_id)}"
            raise Refusal(NOT_FOUND, what) from None
        deleted = Deleted(0, 0, service.revision(PetId(pet_id)))
    return Erased.of(PetId(pet_id), deleted, traces.erase(pet_id, media) if traces is not None else Traces(0, 0, 0))


def _check_nothing_waits(found: Traces | None) -> None:
    """Raise a problem with status 409 if waiting jobs would restore or name the data to be deleted."""
    if found is not None and found.n_waiting:
        detail = (
            f"{found.n_waiting} jobs that wait would restore or name it; stop its producer, let them run "
            "(GET …/queues shows them) or cancel them (POST …/queues/<queue>/cancel), and delete again"
        )
        raise Refusal(EVENTS_WAIT, detail)
