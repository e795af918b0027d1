"""The actions over HTTP: the same plans as on the command line, for operators only."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.api import Role, Token, Tokens, create_app
from sploot_cluster.store.memory import MemoryPetStore
from tasks.client import ClusterTasks
from tasks.composition import build_app
from tasks.contracts import QUEUES as TASK_QUEUES
from tasks.settings import Settings
from tests.sploot_cluster.api.front import API, Part, client_of
from tests.sploot_cluster.api.test_envelope import served
from tests.support import eventually
from tests.tasks.queue_ops.desk import STUCK, Desk

TOKENS = Tokens(tuple(Token(role, role, f"{role}-secret-0123456789") for role in Role))
QUEUES = f"{API}/queues"


class Caller:
    """The API on a real Redis, called with the token of one role. Its tests share the application."""

    def __init__(self) -> None:
        self.jobs, self.operations = Part(), Part()
        self.operations.now = SimpleNamespace(names=TASK_QUEUES)  # read when the application is built
        app = create_app(
            service=ClusterService(MemoryPetStore()), jobs=self.jobs, operations=self.operations, tokens=TOKENS
        )
        self.http = client_of(app)

    def get(self, path: str, role: str = "operator") -> Any:
        return self.http.get(f"{QUEUES}{path}", headers=self._headers(role))

    def post(self, path: str, body: Any, role: str = "operator") -> Any:
        return self.http.post(f"{QUEUES}{path}", json=body, headers=self._headers(role))

    def _headers(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {role}-secret-0123456789"}


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


@pytest.fixture(scope="module")
def caller() -> Caller:
    return Caller()


@pytest.fixture
def api(caller: Caller, desk: Desk, redis_client: redis.Redis) -> Caller:
    caller.jobs.now, caller.operations.now = ClusterTasks(client=redis_client), desk.operations
    return caller


PLANNING: list[tuple[str, dict[str, Any]]] = [
    ("/embedding/rescue", {"consumer": STUCK}),
    ("/embedding.ingested/rescue", {"idle_s": 0}),
    ("/embedding/retire-consumer", {"consumer": STUCK}),
    ("/embedding/pause", {}),
    ("/embedding/cancel", {"pet_id": 7}),
    ("/embedding/resume", {}),
    ("/embedding/requeue", {"matching": {}}),
    ("/embedding/purge", {"matching": {"reason": "failed"}}),
]


@pytest.mark.parametrize(("path", "body"), PLANNING)
def test_action_is_planned_applied_and_audited(api: Caller, desk: Desk, path: str, body: dict[str, Any]) -> None:
    desk.add(1, 2)
    desk.deliver()
    desk.bury(3)
    holders, dead_letters = desk.holders(), desk.dead_letter_ids()

    planned = api.post(path, body)
    assert (desk.holders(), desk.dead_letter_ids()) == (holders, dead_letters)
    applied = api.post(f"/plans/{planned.json()['plan_id']}/apply", {"note": "INC-7"})

    assert (planned.status_code, applied.status_code) == (200, 202), planned.json() | applied.json()
    assert planned.json()["commands"]
    assert applied.json()["is_complete"] is True
    (record,) = api.get("/audit").json()["records"]
    assert (record["by"], record["via"], record["note"]) == ("operator", "http", "INC-7")


@pytest.mark.parametrize("role", ["viewer", "producer"])
def test_only_operators_may_act(api: Caller, role: str) -> None:
    actions = [*PLANNING, ("/plans/p-1/apply", {})]

    assert [api.post(path, body, role).status_code for path, body in actions] == [403] * len(actions)


def test_all_roles_see_queues_and_operators_see_dead_letters(api: Caller, desk: Desk) -> None:
    (dead_letter,) = desk.bury(1, pet_id=42)
    desk.bury(2, pet_id=7)

    queues = api.get("", "viewer")
    listed = api.get("/embedding/dead?pet_id=42")
    shown = api.get(f"/embedding/dead/{dead_letter}")

    assert {queue["queue"]: queue["dead"] for queue in queues.json()["queues"]}["embedding.ingested"] == 2
    assert [one["dead_letter_id"] for one in listed.json()["dead_letters"]] == [dead_letter]
    assert shown.json()["fields"]["embedding"] == "<64 bytes>"
    assert api.get("/embedding/dead", "viewer").status_code == 403
    assert api.get("/embedding/dead/7-7").status_code == 404
    assert api.get("/embedding/dead/nonsense").status_code == 404


def events_of(answer: Any) -> dict[str, Any]:
    """Return the data of each event of a response, by name."""
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = [event.split("\n") for event in answer.text.strip().split("\n\n")]
    return {name.removeprefix("event: "): json.loads(data.removeprefix("data: ")) for name, data in lines}


def test_events_contain_only_data_that_the_caller_may_read(api: Caller, desk: Desk) -> None:
    desk.bury(1)

    seen = {role: events_of(api.get("/events", role)) for role in ("operator", "viewer")}

    assert list(seen["operator"]) == ["queues", "workers", "periodic", "audit", "read"]
    assert list(seen["viewer"]) == ["queues", "workers", "periodic", "read"]
    for name, path in (("queues", ""), ("workers", "/workers"), ("periodic", "/periodic")):
        assert seen["viewer"][name].keys() == api.get(path, "viewer").json().keys()
    assert api.get("/events", "uploader").status_code == 403
    assert api.http.get(f"{QUEUES}/events").status_code == 401


@pytest.mark.slow
def test_stream_pushes_changes_and_ends_with_the_server(redis_url: str, desk: Desk) -> None:
    # leaving the block waits for the stream's end
    with served(build_app(Settings(redis_url=redis_url))) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = f"GET {QUEUES}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
        connection.sendall(head.encode())
        received = b""
        while b"event: read" not in received:
            received += connection.recv(65_536)
        desk.operations.act(desk.operations.plan_pause("embedding"), by="test", via="test")
        while b'"is_paused":true' not in received:
            received += connection.recv(65_536)

    connection.close()
    assert b"x-accel-buffering: no" in received.lower()
    assert received.index(b'"is_paused":false') < received.index(b'"is_paused":true')


def test_plan_is_applied_with_a_canary(api: Caller, desk: Desk) -> None:
    desk.bury(1, 2)
    pause = api.post("/embedding/pause", {}).json()["plan_id"]
    plan_id = api.post("/embedding/requeue", {"matching": {}}).json()["plan_id"]

    refused = api.post(f"/plans/{pause}/canary", {})
    invalid = api.post(f"/plans/{plan_id}/canary", {"per_s": 0})
    begun = api.post(f"/plans/{plan_id}/canary", {"note": "INC-7", "per_s": 5})
    stopped = api.post(f"/canaries/{plan_id}/stop", {})

    assert (refused.status_code, invalid.status_code) == (422, 422)
    assert (begun.status_code, stopped.status_code) == (202, 202)
    assert (begun.json()["state"], begun.json()["n_planned"], begun.json()["per_s"]) == ("running", 2, 5)
    eventually(lambda: api.get("/canaries").json()["canaries"][0]["state"] == "stopped")
    # a plan that a canary cannot apply is kept
    assert api.post(f"/plans/{pause}/apply", {}).status_code == 202
    assert api.post(f"/plans/{plan_id}/canary", {}).status_code == 404
    assert api.post("/canaries/p-0/stop", {}).status_code == 404
    assert api.get("/canaries", "viewer").status_code == 403


def test_plan_can_be_applied_only_once(api: Caller, desk: Desk) -> None:
    desk.bury(1)
    plan_id = api.post("/embedding/requeue", {"matching": {}}).json()["plan_id"]

    first = api.post(f"/plans/{plan_id}/apply", {})
    again = api.post(f"/plans/{plan_id}/apply", {})

    assert (first.status_code, again.status_code) == (202, 404)
    assert "make a new plan" in again.json()["detail"]


def refusal_of(answer: Any) -> tuple[int, list[str]]:
    """Return the status of a refusal and the fields that it names."""
    return answer.status_code, [error["field"] for error in answer.json()["errors"]]


def test_error_for_an_invalid_plan_request_names_the_field(api: Caller) -> None:
    for path, body, field in (
        ("/cluster/pause", {}, "queue"),
        ("/embedding/rescue", {}, "entry_ids"),
        ("/embedding/rescue", {"entry_ids": ["1-1"]}, "entry_ids"),
        ("/embedding/requeue", {}, "dead_letter_ids"),
        ("/embedding/requeue", {"dead_letter_ids": ["1-1"], "matching": {}}, "dead_letter_ids"),
        ("/embedding/requeue", {"matching": {"pet": 1}}, "pet"),
        ("/embedding/pause", {"force": True}, "force"),
    ):
        status, fields = refusal_of(api.post(path, body))

        assert status == 422, path
        assert field in {name.rpartition(".")[2] for name in fields}, (path, body)


def test_unknown_consumer_is_not_found(api: Caller) -> None:
    refusal = api.post("/embedding/retire-consumer", {"consumer": "nobody"})

    assert refusal_of(refusal) == (404, ["consumer"])


def test_out_of_range_query_parameter_is_named(api: Caller) -> None:
    for field, values in {
        "since_s": ("7e10", "inf", "nan", "-1", "soon"),
        "limit": ("0", "1" + "0" * 5000),
        "pet_id": ("0", "042", "9223372036854775808"),
    }.items():
        for value in values:
            assert refusal_of(api.get(f"/embedding/dead?{field}={value}")) == (422, [field]), value


def test_out_of_range_number_in_a_plan_is_named(api: Caller) -> None:
    for path, body, field in (
        ("/embedding/rescue", '{"idle_s": 1e16}', "idle_s"),
        ("/embedding/rescue", '{"idle_s": 1e400}', "idle_s"),
        ("/embedding/rescue", '{"idle_s": NaN}', "idle_s"),
        ("/embedding/rescue", '{"idle_s": "60"}', "idle_s"),
        ("/embedding/requeue", '{"matching": {"since_s": 7e10}}', "since_s"),
        ("/embedding/purge", '{"matching": {"pet_id": "042"}}', "pet_id"),
        ("/embedding/purge", '{"matching": {"pet_id": 1, "pet_id": 2}}', "pet_id"),
    ):
        refused = api.http.post(
            f"{QUEUES}{path}",
            content=body,
            headers={"Authorization": "Bearer operator-secret-0123456789", "Content-Type": "application/json"},
        )

        assert refusal_of(refused) == (422, [field]), body


def test_api_lists_jobs_dead_letter_groups_search_results_and_history(api: Caller, desk: Desk) -> None:
    desk.add(1, 2, pet_id=2**53 + 1)
    desk.bury(3)

    waiting = api.get("/embedding.ingested/jobs?state=waiting&limit=1", "viewer")
    groups = api.get("/embedding.ingested/dead/groups?since_s=60")
    found = api.get("/search?text=no")

    assert [job["pet_id"] for job in waiting.json()["jobs"]] == [2**53 + 1]
    assert waiting.json()["next_cursor"] == waiting.json()["jobs"][0]["entry_id"]
    assert [group["n"] for group in groups.json()["groups"]] == [1]
    assert len(found.json()["dead_letters"]) == 1
    assert api.get("/search?text=no", "viewer").status_code == 403
    history = api.get("/history", "viewer").json()
    assert {len(history["times"]), *(len(queue["done"]) for queue in history["queues"])} == {288}


@pytest.mark.parametrize("cursor", ["0-0", "1", "9" * 20 + "-0", "x"])
def test_invalid_cursor_is_named(api: Caller, cursor: str) -> None:
    for path in ("/audit", "/embedding.ingested/dead"):
        answer = api.get(f"{path}?cursor={cursor}")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "cursor")


def test_openapi_document_lists_the_queues(api: Caller) -> None:
    document = api.http.get("/openapi.json").json()

    (queue,) = (
        parameter
        for parameter in document["paths"][f"{QUEUES}/{{queue}}/dead"]["get"]["parameters"]
        if parameter["name"] == "queue"
    )
    assert queue["schema"]["enum"] == list(TASK_QUEUES)


def test_dead_letters_can_be_listed_by_any_age_up_to_a_century(api: Caller) -> None:
    for since_s in ("0", "3600", "3153600000"):
        assert api.get(f"/embedding/dead?since_s={since_s}").status_code == 200


@pytest.mark.parametrize("spelling", [int, str])
def test_purge_distinguishes_pet_ids_beyond_double_precision(
    api: Caller, desk: Desk, spelling: Callable[[int], object]
) -> None:
    pet = 2**53 + 1
    (mine,), (other,) = desk.bury(1, pet_id=pet), desk.bury(2, pet_id=pet - 1)

    listed = api.get(f"/embedding/dead?pet_id={pet}").json()["dead_letters"]
    plan = api.post("/embedding/purge", {"matching": {"pet_id": spelling(pet)}}).json()
    api.post(f"/plans/{plan['plan_id']}/apply", {})

    assert ([one["dead_letter_id"] for one in listed], desk.dead_letter_ids()) == ([mine], [other])


def test_serve_command_exposes_the_queue_routes(redis_url: str) -> None:
    app = build_app(Settings(redis_url=redis_url))

    assert client_of(app).get(QUEUES).status_code == 200
