"""Tests of the responses of every route, and of the problems reported for invalid requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from sploot_cluster.api import ReadinessCheck, ReadinessReport, Tokens
from sploot_cluster.errors import InvalidInput, ModelMismatch, StoreUnavailable, UnreadablePet
from sploot_cluster.jobs import DeadLetterRef, JobRef, QueueUnavailable, Traces
from sploot_cluster.pet.listing import MAX_SORTED, PetOrder, page_of
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from sploot_cluster.store.memory import MemoryPetStore
from tests.corrections import EXAMPLES, as_body
from tests.sploot_cluster.albums import MODEL, PET, take, two_looks
from tests.sploot_cluster.api.front import API, Front, TrustingService, client_of, job_status

GOOD: dict[str, dict[str, Any]] = {
    "/clusters/recluster": {"pet_id": 42},
    **{f"/clusters/{verb}": as_body(request) for verb, request in EXAMPLES.items()},
    "/embeddings": {"pet_id": 42, "media_id": "a", "model": "clip@1", "embedding": [0.5, 1]},
}
NOTED: dict[str, tuple[str, dict[str, Any]]] = {
    "/clusters/recluster": ("recluster", {"pet_id": 42, "by": "loopback", "reason": ""}),
    **{
        f"/clusters/{verb}": (verb, {name: getattr(request, name) for name in as_body(request)} | {"by": "loopback"})
        for verb, request in EXAMPLES.items()
    },
    "/embeddings": ("ingest", {"pet_id": 42, "media_id": "a", "vector": [0.5, 1.0]}),
}


@pytest.fixture(scope="module")
def lasting_front() -> Iterator[Front]:
    """A front that tests share because their requests change no pet."""
    front = Front()
    with front.http:
        yield front


@pytest.fixture
def front() -> Iterator[Front]:
    front = Front()
    with front.http:
        yield front


def fields_of(problem: dict[str, Any]) -> list[str]:
    return [error["field"] for error in problem["errors"]]


# -- enqueueing work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOOD)
def test_request_is_enqueued_and_returns_its_position_in_the_queue(front: Front, path: str) -> None:
    answer = front.http.post(API + path, json=GOOD[path])

    assert answer.status_code == 202
    assert answer.json().items() >= {"job_id": "job 1", "coalesced": False, "position": 1}.items()
    assert answer.headers["Location"] == f"{API}/jobs/job%201"
    assert front.queue.asked == [NOTED[path]]


def test_item_of_a_pet_outside_the_rollout_is_withheld(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front.queue, "ingest_event", lambda _: JobRef("event 1", "some.queue", withheld=True))

    one = front.http.post(f"{API}/embeddings", json=GOOD["/embeddings"])
    many = front.http.post(f"{API}/embeddings", json=[GOOD["/embeddings"]])

    assert one.status_code == 202
    assert one.json()["withheld"] is True
    assert "Location" not in one.headers
    assert many.json()["items"][0]["job"]["withheld"] is True


@pytest.mark.parametrize(
    ("path", "change", "field"),
    [
        ("/clusters/recluster", {"pet_id": "042"}, "pet_id"),
        ("/clusters/recluster", {"pet_id": True}, "pet_id"),
        ("/clusters/recluster", {"pet_id": 4.0}, "pet_id"),
        ("/clusters/recluster", {"pet_id": 0}, "pet_id"),
        ("/clusters/recluster", {"pet_id": 2**63}, "pet_id"),
        ("/clusters/recluster", {"pet_id": None}, "pet_id"),
        ("/clusters/recluster", {"pet": 42}, "pet"),
        ("/clusters/merge", {"cluster_ids": [3]}, "cluster_ids"),
        ("/clusters/merge", {"cluster_ids": [3, 3]}, "cluster_ids"),
        ("/clusters/merge", {"cluster_ids": [3, "x"]}, "cluster_ids[1]"),
        ("/clusters/merge", {"cluster_ids": list(range(1, 1_002))}, "cluster_ids"),
        ("/clusters/merge", {"into": 9}, "into"),
        ("/clusters/split", {"media_ids": []}, "media_ids"),
        ("/clusters/split", {"media_ids": ["a", ""]}, "media_ids[1]"),
        ("/clusters/split", {"media_ids": "ab"}, "media_ids"),
        ("/clusters/exclude", {"media_ids": []}, "media_ids"),
        ("/clusters/exclude", {"cluster_id": 0}, "cluster_id"),
        ("/clusters/dismiss", {"media_ids": ["a", 7]}, "media_ids[1]"),
        ("/clusters/undo", {"revision": -1}, "revision"),
        ("/embeddings", {"embedding": [0.0, 0.0]}, "embedding"),
        ("/embeddings", {"embedding": [1.0, None]}, "embedding"),
        ("/embeddings", {"embedding": [1.0]}, "dim"),
        ("/embeddings", {"embedding": "no base64", "encoding": "base64-f32le"}, "embedding"),
        ("/embeddings", {"embedding": {"x": 1}}, "embedding"),
        ("/embeddings", {"encoding": "utf-7", "embedding": "AAAA"}, "encoding"),
        ("/embeddings", {"model": "clip"}, "model"),
        ("/embeddings", {"occurred_at": "yesterday"}, "occurred_at"),
    ],
)
def test_error_for_an_invalid_field_names_it_with_a_hint(
    front: Front, path: str, change: dict[str, Any], field: str
) -> None:
    answer = front.http.post(API + path, json=GOOD[path] | change)

    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert field in fields_of(problem), problem
    assert all(error["problem"] and error["hint"] for error in problem["errors"])
    assert (problem["status"], problem["type"]) == (422, "urn:sploot:problem:invalid-input")
    assert front.queue.asked == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_number_is_refused(front: Front, value: str) -> None:
    body = json.dumps(GOOD["/embeddings"]).replace("0.5", value)

    answer = front.http.post(API + "/embeddings", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code in (400, 422)
    assert front.queue.asked == []


def test_error_for_a_missing_field_names_it(front: Front) -> None:
    problem = front.http.post(API + "/clusters/split", json={"pet_id": 42}).json()

    assert fields_of(problem) == ["cluster_id", "media_ids"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{no json", {"Content-Type": "application/json"}, 400),
        (b"", {"Content-Type": "application/json"}, 422),
        (b"[]", {"Content-Type": "application/json"}, 422),
        (b'"\\ud800"', {"Content-Type": "application/json"}, 422),
        (b"\xff\xfe", {"Content-Type": "application/json"}, 400),
        (b'{"pet_id": 42}', {"Content-Type": "text/plain"}, 415),
        (b'{"pet_id": 42}', {}, 415),
        (b'{"pet_id": 42}', {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        (b'{"pet_id": 42, "reason": "' + b"x" * 1_100_000 + b'"}', {"Content-Type": "application/json"}, 413),
    ],
    ids=["broken", "empty", "list", "unpaired surrogate", "bytes", "text", "no content type", "gzip", "long"],
)
def test_unreadable_body_is_refused(front: Front, content: bytes, headers: dict[str, str], status: int) -> None:
    answer = front.http.post(API + "/clusters/recluster", content=content, headers=headers)

    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert front.queue.asked == []


@given(
    st.sampled_from(sorted(GOOD)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
        max_leaves=12,
    ),
    st.sampled_from(["pet_id", "cluster_ids", "media_ids", "cluster_id", "revision", "embedding", "model", "new"]),
)
def test_arbitrary_json_never_causes_a_server_error(lasting_front: Front, path: str, value: Any, field: str) -> None:
    for body in (value, GOOD[path] | {field: value}):
        answer = lasting_front.http.post(
            API + path, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )

        assert answer.status_code in (202, 207, 400, 413, 422), answer.text
        if answer.status_code >= 400:
            assert answer.headers["Content-Type"] == "application/problem+json"


def test_all_invalid_fields_of_an_embedding_are_listed_without_its_values(front: Front) -> None:
    entry = GOOD["/embeddings"] | {"pet_id": "042", "embedding": [0.123456, "x"], "occurred_at": "now", "model": None}

    answer = front.http.post(API + "/embeddings", json=entry)

    assert sorted(fields_of(answer.json())) == ["embedding", "model", "occurred_at", "pet_id"]
    assert "0.123456" not in answer.text


def test_unknown_field_of_an_embedding_is_ignored(front: Front) -> None:
    answer = front.http.post(API + "/embeddings", json=GOOD["/embeddings"] | {"colour": "red", "cls": 1})
    misspelt = front.http.post(API + "/embeddings", json={**GOOD["/embeddings"], "media_id": None, "mediaid": "a"})

    assert answer.status_code == 202
    assert fields_of(misspelt.json()) == ["media_id"]


def test_traceparent_of_an_embedding_is_passed_on(front: Front) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    front.http.post(API + "/embeddings", json=GOOD["/embeddings"] | {"traceparent": trace})

    assert front.queue.events[0].traceparent == trace


def test_embeddings_in_a_list_are_accepted_or_refused_one_by_one(front: Front) -> None:
    good = GOOD["/embeddings"]
    entries = [good, good | {"embedding": [0, 0]}, good | {"media_id": "b"}, 7]

    partly = front.http.post(API + "/embeddings", json=entries)
    all_of_them = front.http.post(API + "/embeddings", json=[good])
    none = front.http.post(API + "/embeddings", json=[7])

    assert partly.status_code == 207
    outcome = partly.json()
    assert (outcome["accepted"], outcome["refused"]) == (2, 2)
    assert [item["job"] is not None for item in outcome["items"]] == [True, False, True, False]
    assert outcome["items"][1]["errors"][0]["field"] == "[1].embedding"
    assert outcome["items"][3]["errors"][0]["field"] == "[3]"
    assert all_of_them.status_code == 202
    assert (none.status_code, fields_of(none.json())) == (422, ["[0]"])
    assert len(front.queue.asked) == 3


def test_empty_or_too_long_list_is_refused() -> None:
    front = Front(max_batch=3)

    for entries in ([], [GOOD["/embeddings"]] * 4):
        assert front.http.post(API + "/embeddings", json=entries).status_code == 422
    assert front.queue.asked == []


def test_unavailable_queue_returns_503_with_retry_after(front: Front) -> None:
    def be_away() -> None:
        raise QueueUnavailable("no answer; nothing was enqueued")

    front.queue.before = be_away

    asked = front.http.post(API + "/clusters/recluster", json={"pet_id": 42})
    looked = front.http.get(API + "/jobs/7d1c")

    for answer in (asked, looked):
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:sploot:problem:queue-unavailable"
        assert int(answer.headers["Retry-After"]) > 0
    assert "not known whether the job was enqueued" in asked.json()["detail"]
    assert "enqueued" not in looked.json()["detail"]


def test_internal_error_shows_no_internals(front: Front) -> None:
    def fail() -> None:
        raise RuntimeError("secret detail")

    front.queue.before = fail

    answer = front.http.post(API + "/clusters/recluster", json={"pet_id": 42})

    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:sploot:problem:internal"
    assert "secret detail" not in answer.text


# -- reads -----------------------------------------------------------------------------------------------------------


def test_pet_is_returned_with_its_revision_as_etag(front: Front) -> None:
    for subject in range(2):
        take(front.service, subject, range(6))
    front.service.recluster(PET, by="ada")

    answer = front.http.get(f"{API}/pets/42/clusters")
    again = front.http.get(f"{API}/pets/42/clusters", headers={"If-None-Match": answer.headers["ETag"]})
    later = front.http.get(f"{API}/pets/42/clusters", headers={"If-None-Match": '"12", W/"11"'})

    assert (answer.status_code, answer.headers["ETag"]) == (200, '"13"')
    pet = answer.json()
    assert (pet["pet_id"], pet["revision"], pet["n_media"], pet["n_noise"]) == (42, 13, 12, 0)
    assert [(cluster["cluster_id"], cluster["size"]) for cluster in pet["clusters"]] == [(1, 6), (2, 6)]
    assert pet["clusters"][0]["origins"] == {"core": 6}
    assert (again.status_code, again.content) == (304, b"")
    assert later.status_code == 200


def test_items_are_returned_with_their_times_in_the_requested_order(front: Front) -> None:
    take(front.service, 0, range(6))
    front.service.recluster(PET, by="ada")

    by_arrival = front.http.get(f"{API}/pets/42/clusters").json()
    by_time = front.http.get(f"{API}/pets/42/clusters", params={"order": "occurred_at"}).json()
    why = [front.http.get(f"{API}/pets/42/media/s0-{number}/why").json()["occurred_at"] for number in range(2)]
    refused = front.http.get(f"{API}/pets/42/clusters", params={"order": "size"})

    assert by_arrival["clusters"][0]["media_ids"] == [f"s0-{number}" for number in range(6)]
    assert by_time["clusters"][0]["media_ids"] == ["s0-5", "s0-4", "s0-2", "s0-1", "s0-0", "s0-3"]
    assert by_arrival["occurred_at"] == by_time["occurred_at"]
    assert by_time["occurred_at"].keys() == {"s0-1", "s0-2", "s0-4", "s0-5"}
    assert why == [None, by_time["occurred_at"]["s0-1"]] == [None, "2026-01-31T11:59:58.999000Z"]
    assert (refused.status_code, fields_of(refused.json())) == (422, ["order"])


def test_pet_without_data_is_returned_empty(front: Front) -> None:
    answer = front.http.get(f"{API}/pets/7/clusters")

    assert (answer.status_code, answer.headers["ETag"]) == (200, '"0"')
    assert answer.json()["clusters"] == []


def test_history_is_returned_newest_first(front: Front) -> None:
    for subject in range(2):
        take(front.service, subject, range(6))
    front.service.recluster(PET, by="ada")
    front.service.merge(PET, list(front.store.load(PET).clusters), operation_id="1", by="bob")

    answer = front.http.get(f"{API}/pets/42/history")
    newest = front.http.get(f"{API}/pets/42/history?limit=1").json()

    assert [(entry["kind"], entry["by"]) for entry in answer.json()["entries"]] == [
        ("merge", "bob"),
        ("recluster", "ada"),
    ]
    assert answer.headers["ETag"] == '"14"'
    assert [entry["revision"] for entry in newest["entries"]] == [14]
    rest = front.http.get(f"{API}/pets/42/history?limit=1&cursor={newest['next_cursor']}").json()
    assert [entry["kind"] for entry in rest["entries"]] == ["recluster"]
    assert (rest["next_cursor"], answer.json()["next_cursor"]) == (None, None)


LARGE_PET = 2**53 + 1


@pytest.mark.parametrize(
    ("query", "pets"),
    [
        ("", [5, 42, LARGE_PET]),
        ("order=newest", [LARGE_PET, 42, 5]),
        ("order=noise", [LARGE_PET, 5, 42]),
        ("order=items", [42, LARGE_PET, 5]),
        ("search=2", [42, LARGE_PET]),
        ("search=2&order=noise", [LARGE_PET, 42]),
        ("search=77777", []),
    ],
)
def test_pets_are_listed_page_by_page(front: Front, query: str, pets: list[int]) -> None:
    for pet, n in ((42, 6), (5, 1), (LARGE_PET, 2)):
        take(front.service, 0, range(n), pet=PetId(pet))
    front.service.recluster(PET)

    seen, cursor = [], ""
    for _ in range(4):
        page = front.http.get(f"{API}/pets?{query}&limit=1{cursor}").json()
        seen += [pet["pet_id"] for pet in page["pets"]]
        assert page["n_matching"] == len(pets)
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert seen == pets


def test_list_of_pets_includes_their_counts(front: Front) -> None:
    take(front.service, 0, range(6))
    front.service.recluster(PET)

    (pet,) = front.http.get(f"{API}/pets").json()["pets"]

    assert pet == {
        "pet_id": 42, "name": None, "revision": 7, "model": MODEL, "n_media": 6, "n_clusters": 1, "n_noise": 0
    }  # fmt: skip


def test_named_pets_are_listed_in_the_order_of_the_request(front: Front) -> None:
    for pet in (5, 42, LARGE_PET):
        take(front.service, 0, range(1), pet=PetId(pet))

    page = front.http.get(f"{API}/pets", params={"pet_id": [LARGE_PET, 7, 5, LARGE_PET]}).json()

    assert [pet["pet_id"] for pet in page["pets"]] == [LARGE_PET, 5]
    assert (page["n_matching"], page["next_cursor"]) == (2, None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("cursor=x", "cursor"),
        ("pet_id=0", "pet_id[0]"),
        ("pet_id=1&" * 101, "pet_id"),
        ("limit=0", "limit"),
        ("order=name", "order"),
        (f"search={101 * 'x'}", "search"),
    ],
)
def test_error_for_an_invalid_list_parameter_names_it(front: Front, query: str, field: str) -> None:
    answer = front.http.get(f"{API}/pets?{query}")

    assert (answer.status_code, fields_of(answer.json())) == (422, [field])


class ManyPets(MemoryPetStore):
    """A store that lists more pets than the API can sort, each named *Rex*."""

    def pets(self) -> Sequence[PetId]:
        return [PetId(number) for number in range(1, MAX_SORTED + 2)]

    def find_by_name(self, beginning: str, *, limit: int) -> Sequence[PetId]:
        return self.pets()[:limit] if beginning == "rex" else []


def test_too_many_pets_are_not_sorted_by_their_noise() -> None:
    with pytest.raises(InvalidInput, match="narrow the search"):
        page_of(ManyPets(), order=PetOrder.NOISE)
    with pytest.raises(InvalidInput, match="more of the name"):
        page_of(ManyPets(), search="rex")
    assert page_of(ManyPets(), search="1999", order=PetOrder.NOISE).n_matching == 12


@pytest.mark.parametrize("pet", ["0", "-1", "cat", "4_2", " 42", "٤٢", "9223372036854775808", "1e3"])
def test_url_with_an_invalid_pet_id_is_refused(front: Front, pet: str) -> None:
    answer = front.http.get(f"{API}/pets/{pet}/clusters")

    assert answer.status_code == 422
    assert fields_of(answer.json()) == ["pet_id"]


def test_job_is_returned_with_the_reason_why_it_waits(front: Front) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    front.queue.jobs["a b"] = job_status("a b", "queued", "12 jobs wait", pet_id=42, enqueued_at=now)

    found = front.http.get(f"{API}/jobs/a%20b")
    missing = front.http.get(f"{API}/jobs/nobody")

    job = found.json()
    assert (job["state"], job["reason"], job["pet_id"]) == ("queued", "12 jobs wait", 42)
    assert job["enqueued_at"] == "2026-01-31T12:00:00Z"
    assert (missing.status_code, missing.json()["type"]) == (404, "urn:sploot:problem:not-found")


def test_unavailable_store_and_damaged_pet_are_different_problems(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, status, slug in (
        (StoreUnavailable(doing="load pet 42", problem="away"), 503, "store-unavailable"),
        (UnreadablePet(pet=42, problem="torn"), 500, "unreadable-pet"),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(front.store, "view", fail)
        answer = front.http.get(f"{API}/pets/42/clusters")
        assert (answer.status_code, answer.json()["type"]) == (status, f"urn:sploot:problem:{slug}")


# -- health, and the OpenAPI document --------------------------------------------------------------------------------


def test_health_readiness_and_metrics_are_served() -> None:
    checks = [ReadinessCheck("redis", "does not answer", "start it")]
    ready, away = (
        Front(ready=lambda: ReadinessReport([ReadinessCheck("redis")]), metrics=lambda: (b"up 1\n", "text/plain")),
        Front(ready=lambda: ReadinessReport(checks)),
    )

    assert ready.http.get("/healthz").status_code == away.http.get("/healthz").status_code == 200
    assert ready.http.get("/readyz").json() == {"status": "ready", "checks": ["redis"]}
    not_ready = away.http.get("/readyz")
    assert not_ready.status_code == 503
    assert not_ready.json()["errors"] == [{"field": "redis", "problem": "does not answer", "hint": "start it"}]
    assert (ready.http.get("/metrics").text, away.http.get("/metrics").status_code) == ("up 1\n", 404)


def test_unknown_route_and_wrong_method_return_problem_json(front: Front) -> None:
    missing, wrong = front.http.get("/nowhere"), front.http.get(f"{API}/clusters/merge")

    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert {missing.headers["Content-Type"], wrong.headers["Content-Type"]} == {"application/problem+json"}


def test_openapi_document_has_no_nullable_parameters(front: Front) -> None:
    document = front.http.get("/openapi.json").json()

    operations = [operation for path in document["paths"].values() for operation in path.values()]
    parameters = [parameter for operation in operations for parameter in operation.get("parameters", ())]
    (pattern,) = {one["schema"]["pattern"] for one in parameters if one["name"] == "if-match"}

    assert [one["name"] for one in parameters if "null" in str(one["schema"])] == []
    assert re.search(pattern, 'W/"17", "18"')
    assert not re.search(pattern, "null")


def test_openapi_document_lists_routes_and_their_responses(front: Front) -> None:
    document = front.http.get("/openapi.json").json()

    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    gets = {path for path, methods in document["paths"].items() if "get" in methods}
    assert {API + path for path in GOOD} <= posts
    assert {f"{API}/pets/{{pet_id}}/clusters", f"{API}/pets/{{pet_id}}/history", f"{API}/jobs/{{job_id}}"} <= gets
    for path in GOOD:
        answers = document["paths"][API + path]["post"]["responses"]
        assert {"202", "401", "403", "413", "415", "422", "503"} <= answers.keys()
    assert "Problem" in document["components"]["schemas"]


def test_openapi_descriptions_contain_no_attributes_section_of_a_docstring(front: Front) -> None:
    schemas = front.http.get("/openapi.json").json()["components"]["schemas"]

    assert [name for name, schema in schemas.items() if "Attributes:" in schema.get("description", "")] == []


def test_application_can_be_mounted_in_another_one(front: Front) -> None:
    outer = FastAPI()
    outer.mount("/media", front.app)
    http = client_of(outer)

    answer = http.post("/media" + API + "/clusters/recluster", json={"pet_id": 42})

    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/media{API}/jobs/job%201"
    assert http.get("/media/healthz").status_code == 200


# -- conditional corrections -----------------------------------------------------------------------------------------

CORRECTIONS = [path for path in GOOD if path.startswith("/clusters/") and path != "/clusters/recluster"]


@pytest.fixture
def two_subjects(front: Front) -> str:
    """Create two clusters of pet 42, and return the ETag of the pet."""
    for subject in range(2):
        take(front.service, subject, range(6))
    front.service.recluster(PET)
    return str(front.http.get(f"{API}/pets/42/clusters").headers["ETag"])


@pytest.mark.parametrize("path", CORRECTIONS)
def test_correction_with_the_current_etag_is_enqueued_with_its_revision(
    front: Front, two_subjects: str, path: str
) -> None:
    answer = front.http.post(API + path, json=GOOD[path], headers={"If-Match": two_subjects})

    assert answer.status_code == 202
    what, facts = NOTED[path]
    assert front.queue.asked == [(what, facts | {"expected_revision": int(two_subjects.strip('"'))})]


@pytest.mark.parametrize("path", CORRECTIONS)
def test_correction_with_a_stale_etag_returns_412_with_the_changes(front: Front, two_subjects: str, path: str) -> None:
    take(front.service, 0, range(20, 22))
    front.service.merge(PET, [ClusterId(1), ClusterId(2)], operation_id="1", by="bob")

    answer = front.http.post(API + path, json=GOOD[path], headers={"If-Match": two_subjects})

    assert (answer.status_code, answer.headers["ETag"]) == (412, '"16"')
    problem = answer.json()
    assert (problem["type"], problem["current_revision"], problem["n_arrivals"]) == (
        "urn:sploot:problem:stale-page",
        16,
        2,
    )
    assert [(change["kind"], change["by"]) for change in problem["changes"]] == [("merge", "bob")]
    assert problem["detail"].startswith(
        "pet 42 is at revision 16, but you saw 13; since then: merge by bob, 2 arrivals"
    )
    assert front.queue.asked == []


@pytest.mark.parametrize("path", CORRECTIONS)
def test_correction_with_a_stale_etag_is_enqueued_if_items_only_arrived(
    front: Front, two_subjects: str, path: str
) -> None:
    take(front.service, 0, range(20, 22))

    answer = front.http.post(API + path, json=GOOD[path], headers={"If-Match": two_subjects})

    assert (answer.status_code, answer.headers["Arrivals-Since"]) == (202, "2")
    what, facts = NOTED[path]
    # enqueued with the revision that the caller saw, so that a later move is detected when the correction runs
    assert front.queue.asked == [(what, facts | {"expected_revision": 13})]


def test_arrivals_since_is_reported_only_for_requests_with_if_match(front: Front, two_subjects: str) -> None:
    body = GOOD["/clusters/undo"]
    looked = front.http.post(f"{API}/clusters/undo", json=body, headers={"If-Match": two_subjects})
    careless = front.http.post(f"{API}/clusters/undo", json=body)

    assert looked.headers["Arrivals-Since"] == "0"
    assert "Arrivals-Since" not in careless.headers


def _split(front: Front) -> None:
    front.service.split(PET, ClusterId(1), [MediaId("s0-0")], operation_id="1", by="bob")


def _dismiss(front: Front) -> None:
    front.service.dismiss(PET, [MediaId("s0-0")], operation_id="1", by="bob")


def _recluster(front: Front) -> None:
    take(front.service, 2, range(6))
    front.service.recluster(PET, by="machine")


def _delete(front: Front) -> None:
    front.service.delete_media(PET, [MediaId("s0-0")], by="bob")


@pytest.mark.parametrize("move", [_split, _dismiss, _recluster, _delete])
@pytest.mark.parametrize("n_arrivals", [0, 3])
def test_correction_is_refused_if_items_moved_since_its_etag(
    front: Front, two_subjects: str, move: Callable[[Front], None], n_arrivals: int
) -> None:
    move(front)
    take(front.service, 0, range(20, 20 + n_arrivals))

    answer = front.http.post(f"{API}/clusters/merge", json=GOOD["/clusters/merge"], headers={"If-Match": two_subjects})

    assert (answer.status_code, answer.json()["type"]) == (412, "urn:sploot:problem:stale-page")
    assert front.queue.asked == []


def test_correction_with_the_new_etag_succeeds_after_a_conflict(front: Front, two_subjects: str) -> None:
    _split(front)
    body = GOOD["/clusters/merge"]
    refused = front.http.post(f"{API}/clusters/merge", json=body, headers={"If-Match": two_subjects})
    take(front.service, 0, range(20, 21))

    answer = front.http.post(f"{API}/clusters/merge", json=body, headers={"If-Match": refused.headers["ETag"]})

    assert (refused.status_code, answer.status_code, answer.headers["Arrivals-Since"]) == (412, 202, "1")


def test_etag_of_a_future_revision_is_refused(front: Front, two_subjects: str) -> None:
    answer = front.http.post(f"{API}/clusters/merge", json=GOOD["/clusters/merge"], headers={"If-Match": '"14"'})

    assert (two_subjects, answer.status_code) == ('"13"', 412)


def test_arrival_creates_a_new_etag(front: Front, two_subjects: str) -> None:
    take(front.service, 0, range(20, 21))

    answer = front.http.get(f"{API}/pets/42/clusters", headers={"If-None-Match": two_subjects})

    assert (answer.status_code, answer.headers["ETag"]) == (200, '"14"')


@pytest.mark.parametrize(
    ("if_match", "status"), [("*", 202), ('"1", "13"', 202), ('W/"13"', 412), ('"013"', 412), ('"x"', 412), ("13", 422)]
)
def test_if_match_is_parsed_as_in_rfc_9110(front: Front, two_subjects: str, if_match: str, status: int) -> None:
    answer = front.http.post(API + "/clusters/undo", json=GOOD["/clusters/undo"], headers={"If-Match": if_match})

    assert (two_subjects, answer.status_code) == ('"13"', status)


def test_repeated_request_gets_the_first_response_despite_a_stale_etag(front: Front, two_subjects: str) -> None:
    headers = {"If-Match": two_subjects, "Idempotency-Key": "one click"}
    first = front.http.post(API + "/clusters/dismiss", json=GOOD["/clusters/dismiss"], headers=headers)
    take(front.service, 0, range(20, 21))

    second = front.http.post(API + "/clusters/dismiss", json=GOOD["/clusters/dismiss"], headers=headers)

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert len(front.queue.asked) == 1


# -- earlier revisions -----------------------------------------------------------------------------------------------


def test_differences_between_two_revisions_are_returned(front: Front, two_subjects: str) -> None:
    front.service.merge(PET, [ClusterId(1), ClusterId(2)], into=ClusterId(1), operation_id="1", by="bob")
    front.service.dismiss(PET, [MediaId("s0-0")], operation_id="2", by="bob")
    take(front.service, 0, range(20, 21))

    answer = front.http.get(f"{API}/pets/42/history/diff", params={"from": 13, "to": 16, "limit": 2})

    assert answer.status_code == 200
    diff = answer.json()
    assert (diff["from_revision"], diff["to_revision"], diff["merged"], diff["ended_ids"]) == (13, 16, {"2": 1}, [2])
    assert (diff["n_same"], diff["n_moved"], diff["n_new_noise"], diff["n_arrived"]) == (5, 6, 1, 1)
    assert diff["moved"] == [
        {"media_id": "s0-0", "from": 1, "to": None},
        {"media_id": "s1-0", "from": 2, "to": 1},
    ]
    assert diff["is_truncated"]


def test_pet_is_returned_at_an_earlier_revision(front: Front, two_subjects: str) -> None:
    front.service.dismiss(PET, [MediaId("s0-0")], operation_id="2", by="bob")

    then = front.http.get(f"{API}/pets/42/history/13").json()
    now = front.http.get(f"{API}/pets/42/history/14").json()

    assert {cluster: len(media) for cluster, media in then["clusters"].items()} == {"1": 6, "2": 6}
    assert (now["dismissed"], now["noise"], then["dismissed"]) == (["s0-0"], [], [])


@pytest.mark.parametrize("path", ["history/99", "history/diff?from=1&to=99"])
def test_error_for_an_unknown_revision_names_the_field(front: Front, two_subjects: str, path: str) -> None:
    answer = front.http.get(f"{API}/pets/42/{path}")

    assert (answer.status_code, fields_of(answer.json())) == (404, ["revision"])


# -- explanations, and cluster ids -----------------------------------------------------------------------------------


def test_cluster_of_an_item_is_explained(front: Front, two_subjects: str) -> None:
    front.service.exclude(PET, ClusterId(1), [MediaId("s0-0")], operation_id="1", by="bob")

    answer = front.http.get(f"{API}/pets/42/media/s0-0/why")

    assert (answer.status_code, answer.headers["ETag"]) == (200, '"14"')
    why = answer.json()
    assert (why["cluster_id"], why["origin"], why["second"]["is_forbidden"]) == (None, "noise", True)
    assert [near["cluster_id"] for near in why["nearest"]] == [1] * 5
    assert [(one["revision"], one["kind"], one["by"]) for one in why["corrections"]] == [(14, "exclude", "bob")]
    again = front.http.get(f"{API}/pets/42/media/s0-0/why", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_item_id_may_contain_slashes(front: Front) -> None:
    front.service.assign(PET, MediaId("2026/why/why"), model="clip@1", vector=[1.0, 0.0])

    answer = front.http.get(f"{API}/pets/42/media/2026/why/why/why")

    assert (answer.status_code, answer.json()["media_id"]) == (200, "2026/why/why")


def test_unknown_item_returns_404(front: Front, two_subjects: str) -> None:
    answer = front.http.get(f"{API}/pets/42/media/nobody/why")

    assert (answer.status_code, answer.json()["detail"]) == (404, "pet 42 has no item nobody")


def test_cluster_is_found_by_each_of_its_former_ids(front: Front, two_subjects: str) -> None:
    front.service.merge(PET, [ClusterId(1), ClusterId(2)], into=ClusterId(1), operation_id="1", by="bob")

    answer = front.http.get(f"{API}/pets/42/clusters/2")
    unknown = front.http.get(f"{API}/pets/42/clusters/9")

    assert answer.status_code == 200
    found = answer.json()
    assert (found["asked_id"], found["cluster"]["cluster_id"], found["cluster"]["merged_from"]) == (2, 1, [2])
    assert unknown.status_code == 404


# -- preview and apply -----------------------------------------------------------------------------------------------


def computed(front: Front) -> None:
    """Make the next preview succeed, as a worker would."""
    token = front.service.preview(PET).token
    front.queue.jobs["job 1"] = job_status("job 1", "succeeded", "done", result={"token": token})


def test_preview_returns_its_diff_and_token(front: Front, two_subjects: str) -> None:
    take(front.service, 2, range(8))
    computed(front)

    answer = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "preview": True})

    assert answer.status_code == 200
    preview = answer.json()
    assert (preview["pet_id"], preview["revision"], preview["result"]["n_clusters"]) == (42, 21, 3)
    assert (preview["diff"]["n_from_noise"], preview["diff"]["to_revision"]) == (8, None)
    assert front.queue.asked == [("preview", {"pet_id": 42, "by": "loopback"})]
    assert front.store.view(PET).revision == 21


def test_preview_lists_moved_items_up_to_the_limit(
    front: Front, two_subjects: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sploot_cluster.api.routes.clusters.MAX_MOVES", 5)
    take(front.service, 2, range(8))
    computed(front)

    diff = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "preview": True}).json()["diff"]

    assert (len(diff["moved"]), diff["n_from_noise"], diff["is_truncated"]) == (5, 8, True)


def test_applying_a_preview_returns_its_result(front: Front, two_subjects: str) -> None:
    take(front.service, 2, range(8))
    computed(front)
    preview = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "preview": True}).json()

    answer = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "apply": preview["token"]})

    assert (answer.status_code, answer.json()["result"]) == (200, preview["result"])
    assert front.store.view(PET).revision == 22
    assert front.service.history(PET)[0].by == "loopback"


def test_stale_preview_returns_412(front: Front, two_subjects: str) -> None:
    computed(front)
    preview = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "preview": True}).json()
    take(front.service, 0, range(20, 21))

    answer = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "apply": preview["token"]})

    assert (answer.status_code, answer.json()["type"]) == (412, "urn:sploot:problem:stale-preview")
    assert front.store.view(PET).revision == 14


def test_slow_preview_returns_its_job() -> None:
    front = Front(preview_wait_s=0.0)

    answer = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "preview": True})

    assert (answer.status_code, answer.headers["Location"]) == (202, f"{API}/jobs/job%201")


def test_failed_preview_returns_the_reason(front: Front) -> None:
    front.queue.jobs["job 1"] = job_status("job 1", "dead", "pet 42 has no media")

    answer = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, "preview": True})

    assert (answer.status_code, answer.json()["type"]) == (500, "urn:sploot:problem:preview-failed")
    assert "pet 42 has no media" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"preview": True, "apply": "25-0"}, "apply"),
        ({"backend": "hdbscan_reference"}, "backend"),
        ({"preview": True, "backend": "hdbscan_gpu"}, "backend"),
    ],
)
def test_preview_with_conflicting_fields_is_refused(front: Front, body: dict[str, object], field: str) -> None:
    answer = front.http.post(f"{API}/clusters/recluster", json={"pet_id": 42, **body})

    assert (answer.status_code, fields_of(answer.json())) == (422, [field])


def test_refused_preview_returns_the_reason(front: Front) -> None:
    front.queue.jobs["job 1"] = job_status("job 1", "refused", "hdbscan_reference needs the package hdbscan")
    body = {"pet_id": 42, "preview": True, "backend": "hdbscan_reference"}

    answer = front.http.post(f"{API}/clusters/recluster", json=body)

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:sploot:problem:preview-refused")
    assert "needs the package hdbscan" in answer.json()["detail"]
    assert front.queue.asked == [("preview", {"pet_id": 42, "by": "loopback", "backend": "hdbscan_reference"})]


# -- tally of items --------------------------------------------------------------------------------------------------


def test_every_ingested_item_is_counted_once_in_the_tally(front: Front, two_subjects: str) -> None:
    front.service.dismiss(PET, [MediaId("s0-0")], operation_id="1", by="bob")
    with pytest.raises(ModelMismatch):
        front.service.assign(PET, MediaId("odd"), model="clip@2", vector=[1.0] * 16)

    tally = front.http.get(f"{API}/pets/42/tally").json()

    assert {name: tally[name] for name in ("ingested", "clustered", "noise", "quarantined", "dismissed")} == {
        "ingested": 13,
        "clustered": 11,
        "noise": 0,
        "quarantined": 1,
        "dismissed": 1,
    }
    assert tally["is_conserved"]
    assert [(one["media_id"], one["model"], one["dim"]) for one in tally["quarantine"]] == [("odd", "clip@2", 16)]


# -- deleting and exporting ------------------------------------------------------------------------------------------


class Travelled:
    """A ``JobTraces`` that finds a record, two dead letters, an unreadable one and waiting events of pet 42."""

    def __init__(self, n_waiting: int = 0) -> None:
        self.n_waiting, self.erased = n_waiting, list[tuple[int, list[str] | None]]()

    def find(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
        if pet_id != 42:
            return Traces(0, 0, 0)
        dead_letters = DeadLetterRef("embedding.ingested", "1-0"), DeadLetterRef("cluster.feedback", "2-0")
        return Traces(1, 2, self.n_waiting, ("j1",), dead_letters, (DeadLetterRef("embedding.ingested", "3-0"),))

    def erase(self, pet_id: int, media_ids: Collection[str] | None = None) -> Traces:
        self.erased.append((pet_id, None if media_ids is None else list(media_ids)))
        return self.find(pet_id)


def test_item_is_deleted_permanently() -> None:
    travelled = Travelled()
    front = Front(traces=travelled)
    take(front.service, 0, range(4))

    answer = front.http.delete(f"{API}/pets/42/media/s0-1")

    assert answer.status_code == 200
    assert answer.json() == {
        "pet_id": 42,
        "n_media": 1,
        "n_corrections": 0,
        "n_records": 1,
        "n_dead_letters": 2,
        "records": ["j1"],
        "dead_letters": [
            {"queue": "embedding.ingested", "dead_letter_id": "1-0"},
            {"queue": "cluster.feedback", "dead_letter_id": "2-0"},
        ],
        "unreadable": [{"queue": "embedding.ingested", "dead_letter_id": "3-0"}],
        "revision": 5,
    }
    assert travelled.erased == [(42, ["s0-1"])]
    assert "s0-1" not in front.store.load(PET).rows


class ServiceOfBigPets(TrustingService):
    def is_big(self, pet: PetId) -> bool:
        return True


def test_item_of_a_big_pet_is_deleted_by_a_job() -> None:
    front = Front(service_type=ServiceOfBigPets, traces=Travelled())
    take(front.service, 0, range(4))

    answer = front.http.delete(f"{API}/pets/42/media/s0-1")
    unknown = front.http.delete(f"{API}/pets/43/media/s0-1")

    assert (answer.status_code, answer.json()["job_id"]) == (202, "job 1")
    assert answer.headers["Location"] == f"{API}/jobs/job%201"
    assert [what for what, _ in front.queue.asked] == ["delete_items"]
    assert front.queue.asked[0][1]["media_ids"] == ["s0-1"]
    assert front.store.view(PET).n_media == 4
    assert unknown.status_code == 404


def test_deletion_from_a_big_pet_is_refused_while_events_are_waiting() -> None:
    front = Front(service_type=ServiceOfBigPets, traces=Travelled(n_waiting=3))
    take(front.service, 0, range(4))

    answer = front.http.delete(f"{API}/pets/42/media/s0-1")

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:sploot:problem:events-wait")
    assert front.queue.asked == []


def test_pet_is_deleted_permanently(front: Front, two_subjects: str) -> None:
    answer = front.http.delete(f"{API}/pets/42")
    again = front.http.delete(f"{API}/pets/42")

    assert (answer.status_code, answer.json()["n_media"], answer.json()["revision"]) == (200, 12, 0)
    assert (again.status_code, front.service.pets()) == (404, [])


def test_deletion_is_refused_while_events_are_waiting() -> None:
    travelled = Travelled(n_waiting=3)
    front = Front(traces=travelled)
    take(front.service, 0, range(4))

    answer = front.http.delete(f"{API}/pets/42")

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:sploot:problem:events-wait")
    assert travelled.erased == []
    assert front.store.view(PET).n_media == 4


def test_dead_letters_of_an_unknown_pet_are_deleted() -> None:
    front = Front(traces=Travelled())

    answer = front.http.delete(f"{API}/pets/42")
    nothing = front.http.delete(f"{API}/pets/43")

    assert (answer.status_code, answer.json()["n_dead_letters"]) == (200, 2)
    assert nothing.status_code == 404


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("DELETE", "/media/a"), ("GET", "/export")])
def test_only_operators_may_delete_and_export(method: str, path: str) -> None:
    tokens = Tokens.parse("auth:producer:0123456789abcdef,ann:viewer:fedcba9876543210")
    front = Front(tokens=tokens)

    for secret in ("0123456789abcdef", "fedcba9876543210"):
        answer = front.http.request(method, f"{API}/pets/42{path}", headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == 403


def test_pet_is_exported_as_one_file(front: Front, two_subjects: str) -> None:
    answer = front.http.get(f"{API}/pets/42/export")
    nothing = front.http.get(f"{API}/pets/43/export")

    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/zip")
    assert answer.content == front.service.export(PET)
    assert nothing.status_code == 404


def test_repeated_preview_is_computed_again_despite_its_idempotency_key(front: Front, two_subjects: str) -> None:
    computed(front)
    headers = {"Idempotency-Key": "one look"}
    body = {"pet_id": 42, "preview": True}

    first = front.http.post(f"{API}/clusters/recluster", json=body, headers=headers)
    front.queue.jobs["job 2"] = front.queue.jobs["job 1"]
    second = front.http.post(f"{API}/clusters/recluster", json=body, headers=headers)

    assert (first.status_code, second.status_code) == (200, 200)
    assert "Idempotency-Replayed" not in second.headers


# -- candidate model -------------------------------------------------------------------------------------------------


def test_candidate_model_can_be_started_once_and_ended(front: Front, two_subjects: str) -> None:
    begun = front.http.post(f"{API}/pets/42/model", json={"model": "clip@2", "dim": 3})
    front.service.assign(PET, MediaId("s0-0"), model="clip@2", vector=[1.0, 0.0, 0.0])
    model = front.http.get(f"{API}/pets/42/model").json()
    twice = front.http.post(f"{API}/pets/42/model", json={"model": "clip@3", "dim": 3})
    ended = front.http.delete(f"{API}/pets/42/model")
    again = front.http.delete(f"{API}/pets/42/model")

    assert (begun.status_code, begun.json()["by"]) == (201, "loopback")
    assert (model["model"], model["candidate"]["model"], model["candidate"]["n_vectors"]) == ("clip@1", "clip@2", 1)
    assert (twice.status_code, fields_of(twice.json())) == (422, ["model"])
    assert front.http.post(f"{API}/pets/7/model", json={"model": "clip@3", "dim": 3}).status_code == 404
    assert (ended.status_code, again.status_code) == (204, 404)


def test_clusters_are_found_by_the_beginning_of_a_name(front: Front, two_subjects: str) -> None:
    front.service.name(PET, ClusterId(1), "Rex", operation_id="1", by="bob")
    front.service.name(PET, ClusterId(2), "Rexona", operation_id="2", by="bob")
    front.service.merge(PET, [ClusterId(1), ClusterId(2)], into=ClusterId(1), operation_id="3", by="bob")

    found = [
        front.http.get(f"{API}/pets/42/clusters", params={"name": name}).json() for name in ("rE", "rexo", "ex", "")
    ]

    assert [[one["cluster_id"] for one in view["clusters"]] for view in found] == [[1], [1], [], [1]]
    assert found[0]["n_media"] == found[3]["n_media"]
    too_long = front.http.get(f"{API}/pets/42/clusters", params={"name": "x" * 101})
    assert (too_long.status_code, fields_of(too_long.json())) == (422, ["name"])


# -- reviews ---------------------------------------------------------------------------------------------------------


def test_suggestion_includes_the_corrections_for_yes_and_no(front: Front) -> None:
    two_looks(front.service)

    answer = front.http.get(f"{API}/pets/42/suggestions", params={"limit": 1})

    assert (answer.status_code, answer.headers["ETag"]) == (200, f'"{answer.json()["revision"]}"')
    (asked,) = answer.json()["suggestions"]
    assert (asked["kind"], asked["cluster_ids"]) == ("same_subject", [1, 2])
    for reply, verb in ((asked["yes"], "merge"), (asked["no"], "keep_apart")):
        assert reply["verb"] == verb
        sent = front.http.post(
            f"{API}/clusters/{verb}", json=reply["body"], headers={"If-Match": answer.headers["ETag"]}
        )
        assert sent.status_code == 202
    fields = {"cluster_ids": (1, 2), "suggestion": "same_subject"}
    assert [facts.items() >= fields.items() for _, facts in front.queue.asked] == [True, True]


def test_doubtful_items_of_a_cluster_are_listed(front: Front) -> None:
    two_looks(front.service)

    of_pet = front.http.get(f"{API}/pets/42/doubtful", params={"limit": 3})
    of_cluster = front.http.get(f"{API}/pets/42/doubtful", params={"cluster_id": 2})
    unknown = front.http.get(f"{API}/pets/42/doubtful", params={"cluster_id": 99})

    assert len(of_pet.json()["items"]) == 3
    assert {item["cluster_id"] for item in of_cluster.json()["items"]} == {2}
    assert (unknown.status_code, "no cluster 99" in unknown.json()["detail"]) == (404, True)


def test_correction_that_does_not_answer_the_suggestion_is_refused(front: Front) -> None:
    body = {"pet_id": 42, "cluster_ids": [1, 2], "suggestion": "stranger"}

    answer = front.http.post(f"{API}/clusters/merge", json=body)

    assert (answer.status_code, fields_of(answer.json())) == (422, ["suggestion"])
