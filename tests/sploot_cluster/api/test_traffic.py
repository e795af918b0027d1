"""Tests that every request is reported by operation and status, never by path."""

from __future__ import annotations

import pytest

from sploot_cluster.api.traffic import OTHER, Answered, operations_of
from sploot_cluster.jobs import QueueUnavailable
from tests.sploot_cluster.api.front import API, Front, client_of

MERGE = {"pet_id": 42, "cluster_ids": [1, 2]}


@pytest.fixture(scope="module")
def front() -> tuple[Front, list[Answered]]:
    answered: list[Answered] = []
    return Front(on_answer=answered.append), answered


def test_requests_are_reported_by_operation_and_status(front: tuple[Front, list[Answered]]) -> None:
    served, answered = front
    answered.clear()

    def fail(error: Exception) -> None:
        def raise_it() -> None:
            raise error

        served.queue.before = raise_it

    served.http.get("/healthz")
    served.http.head("/healthz")
    served.http.get(f"{API}/pets/77/clusters")
    served.http.get(f"{API}/pets/78/clusters")
    served.http.get("/console/exact.js")
    served.http.get("/nowhere/77")
    served.http.post(f"{API}/clusters/merge", json=MERGE)
    served.http.post(f"{API}/clusters/merge", json={})
    fail(QueueUnavailable("Redis is away"))
    served.http.post(f"{API}/clusters/merge", json=MERGE)
    fail(RuntimeError("a mistake of ours"))
    served.http.post(f"{API}/clusters/merge", json=MERGE)
    client_of(served.app, peer="192.0.2.1").get(f"{API}/pets/77/clusters")

    assert [(one.operation, one.status) for one in answered] == [
        ("get_health", 200),
        ("get_health", 200),
        ("get_clusters", 200),
        ("get_clusters", 200),
        ("get_console_file", 200),
        (OTHER, 404),
        ("merge_clusters", 202),
        ("merge_clusters", 422),
        ("merge_clusters", 503),
        ("merge_clusters", 500),
        (OTHER, 403),
    ]
    assert all(one.duration_s >= 0 for one in answered)


def test_reported_operations_are_those_of_the_api_and_other(front: tuple[Front, list[Answered]]) -> None:
    served, _ = front
    documented = {
        operation["operationId"] for path in served.app.openapi()["paths"].values() for operation in path.values()
    }

    assert documented <= set(operations_of(served.app))
    assert OTHER in operations_of(served.app)
    assert len(operations_of(served.app)) < 100
