"""Tests that corrections are checked before they are enqueued, and that waiting requests do not block others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from tests.sploot_cluster.albums import PET, take
from tests.sploot_cluster.api.front import API, Front, job_status

CORRECT = f"{API}/clusters"
RECLUSTER = f"{CORRECT}/recluster"


@pytest.fixture(scope="module")
def merged() -> Front:
    """A front with a pet that has clusters 1 and 3; 2 was merged into 1 at revision 20, and a split of 1 was undone."""
    front = Front(service_type=ClusterService)
    for subject in range(3):
        take(front.service, subject, range(6))
    front.service.recluster(PET)
    front.service.merge(PET, [ClusterId(1), ClusterId(2)], into=ClusterId(1), operation_id="1", by="ada")
    front.service.split(PET, ClusterId(3), [MediaId("s2-0")], operation_id="2", by="ada")
    front.service.undo(PET, 21, operation_id="3", by="ada")
    return front


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("merge", {"cluster_ids": [1, 77]}, "cluster_ids"),
        ("merge", {"cluster_ids": [1, 2]}, "cluster_ids"),
        ("split", {"cluster_id": 1, "media_ids": ["typo"]}, "media_ids"),
        ("exclude", {"cluster_id": 3, "media_ids": ["s0-0"]}, "media_ids"),
        ("dismiss", {"media_ids": ["s0-0", "typo"]}, "media_ids"),
        ("place", {"media_ids": ["s0-0"], "into": 77}, "into"),
        ("cover", {"cluster_id": 1, "media_id": "s2-0"}, "media_id"),
        ("lock", {"cluster_ids": [77]}, "cluster_ids"),
        ("name", {"cluster_id": 77, "name": "Rex"}, "cluster_id"),
        ("undo", {"revision": 5}, "revision"),
        ("restore", {"revision": 99}, "revision"),
    ],
)
def test_correction_that_does_not_fit_the_pet_is_refused(
    merged: Front, verb: str, body: dict[str, Any], field: str
) -> None:
    answer = merged.http.post(f"{CORRECT}/{verb}", json={"pet_id": 42, **body})

    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])
    assert merged.queue.asked == []


def test_undo_of_an_undone_correction_and_unknown_pet_are_refused(merged: Front) -> None:
    undone = merged.http.post(f"{CORRECT}/undo", json={"pet_id": 42, "revision": 21})
    unknown = merged.http.post(f"{CORRECT}/merge", json={"pet_id": 7, "cluster_ids": [1, 2]})

    assert (undone.status_code, undone.json()["type"]) == (409, "urn:sploot:problem:already-undone")
    assert (unknown.status_code, unknown.json()["detail"]) == (
        404,
        "pet 7 has no items; send the id of a pet that has items",
    )
    assert merged.queue.asked == []


def test_correction_that_would_change_nothing_is_refused() -> None:
    front = Front(service_type=ClusterService)
    take(front.service, 0, range(6))
    front.service.recluster(PET)
    of_cluster = {"cluster_id": 1}
    corrections: list[tuple[str, dict[str, Any], str]] = [
        ("name", {**of_cluster, "name": "Rex"}, "name"),
        ("cover", {**of_cluster, "media_id": "s0-1"}, "media_id"),
        ("hide", {"cluster_ids": [1]}, "cluster_ids"),
        ("show", {"cluster_ids": [1]}, "cluster_ids"),
        ("lock", {"cluster_ids": [1]}, "cluster_ids"),
        ("unlock", {"cluster_ids": [1]}, "cluster_ids"),
        ("place", {"media_ids": ["s0-2"], "into": 1}, "media_ids"),
        ("dismiss", {"media_ids": ["s0-0"]}, "media_ids"),
    ]

    for verb, body, field in corrections:
        body = {"pet_id": 42, **body}
        first = front.http.post(f"{CORRECT}/{verb}", json=body)
        front.service.correct(VERBS[verb].from_kwargs(body), operation_id=verb)
        again = front.http.post(f"{CORRECT}/{verb}", json=body)

        problem = again.json()
        assert (first.status_code, again.status_code) == (202, 409), verb
        assert (problem["type"], problem["errors"][0]["field"]) == ("urn:sploot:problem:already-made", field)


def test_correction_that_fits_is_enqueued() -> None:
    front = Front(service_type=ClusterService)
    take(front.service, 0, range(6))
    front.service.recluster(PET)

    answer = front.http.post(f"{CORRECT}/split", json={"pet_id": 42, "cluster_id": 1, "media_ids": ["s0-0"]})

    assert answer.status_code == 202


def test_unfinished_jobs_of_a_pet_are_listed_with_its_revisions() -> None:
    front = Front()
    take(front.service, 0, range(2))
    for job_id, state, pet in (("a", "queued", 42), ("b", "refused", 42), ("c", "running", 43)):
        front.queue.jobs[job_id] = job_status(job_id, state, "", pet_id=pet)  # type: ignore[arg-type]

    work = front.http.get(f"{API}/pets/42/jobs").json()

    assert ([job["job_id"] for job in work["jobs"]], work["revision"], work["moved_at"]) == (["a"], 2, 0)


def test_preview_can_run_asynchronously_and_be_read_by_its_token() -> None:
    front = Front(preview_wait_s=600)
    take(front.service, 0, range(8))

    answer = front.http.post(RECLUSTER, json={"pet_id": 42, "preview": True}, headers={"Prefer": "respond-async"})
    token = front.service.preview(PetId(42)).token
    preview = front.http.get(f"{API}/pets/42/previews/{token}")
    stale = front.http.get(f"{API}/pets/42/previews/other")

    assert (answer.status_code, answer.headers["Location"]) == (202, f"{API}/jobs/job%201")
    assert (preview.status_code, preview.json()["token"]) == (200, token)
    assert (stale.status_code, stale.json()["type"]) == (412, "urn:sploot:problem:stale-preview")


def test_health_check_responds_while_all_threads_wait_for_the_queue() -> None:
    front = Front(metrics=lambda: (b"up 1\n", "text/plain"))
    may_end, n_waiting = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        n_waiting.release()
        may_end.wait(30)

    front.queue.before = wait
    with front.http as http, ThreadPoolExecutor(45) as callers:
        for _ in range(45):
            callers.submit(http.post, RECLUSTER, json={"pet_id": 42})
        for _ in range(40):
            assert n_waiting.acquire(timeout=30)

        answers = {path: http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics", "/")}
        may_end.set()

    assert answers == dict.fromkeys(answers, 200)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_console_may_load_pictures_from_their_server_only() -> None:
    front = Front(media_url_template="https://media.example:8443/{pet_id}/{media_id}?w={width}")

    page = front.http.get("/")

    assert 'data-media="https://media.example:8443/{pet_id}/{media_id}?w={width}"' in page.text
    assert "img-src 'self' https://media.example:8443;" in page.headers["Content-Security-Policy"]
    assert "img-src 'self';" in Front().http.get("/").headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "template",
    ["media.example/{media_id}", "https://media.example/{pet_id}", "https://m.example/; script-src *{media_id}"],
)
def test_invalid_picture_url_is_refused(template: str) -> None:
    with pytest.raises(InvalidInput, match=r"SPLOOT_MEDIA_URL_TEMPLATE.*set e\.g\."):
        Front(media_url_template=template)
