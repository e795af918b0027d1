"""Tests of admission: tokens, roles, loopback callers and idempotency keys."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sploot_cluster.api import IdempotencyStore, MemoryIdempotencyStore, RedisIdempotencyStore, Role, Tokens, check_bind
from sploot_cluster.api.public import groups_of
from sploot_cluster.api.rates import Rates
from sploot_cluster.api.tokens import MAY_CALL
from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.errors import InvalidInput
from tests.sploot_cluster.api.front import API, Front, client_of

SECRETS = {str(role): f"{role}-0123456789abcdef" for role in Role}
TOKENS = Tokens.parse(",".join(f"{role}-1:{role}:{secret}" for role, secret in SECRETS.items()))
RECLUSTER = f"{API}/clusters/recluster"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# -- without tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "status"), [("1.0", 403), ("1.1", 202)])
def test_local_proxy_without_headers_is_recognised_by_http_1_0(version: str, status: int) -> None:
    front = Front()

    async def behind_a_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        await front.app({**scope, "http_version": version}, receive, send)

    answer = client_of(behind_a_proxy).post(RECLUSTER, json={"pet_id": 42})

    assert answer.status_code == status


@pytest.mark.parametrize(
    ("peer", "host", "headers", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8080", {}, 202),
        ("::1", "localhost:8080", {}, 202),
        ("127.0.0.1", "127.0.0.1:8080", {"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"}, 202),
        ("10.0.0.7", "127.0.0.1:8080", {}, 403),
        ("127.0.0.1", "evil.example:8080", {}, 403),
        ("127.0.0.1", "127.0.0.1:8080", {"Origin": "https://evil.example"}, 403),
        ("127.0.0.1", "127.0.0.1:8080", {"Sec-Fetch-Site": "cross-site"}, 403),
        *(
            ("127.0.0.1", "127.0.0.1:8080", {name: "127.0.0.1"}, 403)
            for name in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Via", "Forwarded", "X-Real-IP")
        ),
    ],
    ids=["here", "IPv6", "own page", "elsewhere", "DNS rebinding", "other page", "other site", *map(str, range(6))],
)
def test_without_tokens_only_local_programs_are_admitted(
    peer: str, host: str, headers: dict[str, str], status: int
) -> None:
    front = Front()

    answer = client_of(front.app, peer=peer, host=host).post(RECLUSTER, json={"pet_id": 42}, headers=headers)

    assert answer.status_code == status
    assert len(front.queue.asked) == (status == 202)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_bind_beyond_loopback_without_tokens_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_bind(host, Tokens())

    assert refused.value.field == "host"
    check_bind(host, TOKENS)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_bind_without_tokens_is_allowed(host: str) -> None:
    check_bind(host, None)


# -- with tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "writes", "reads"),
    [
        ("uploader", 403, 403),
        ("viewer", 403, 200),
        ("labeller", 202, 200),
        ("producer", 202, 200),
        ("operator", 202, 200),
    ],
)
def test_token_permits_only_the_operations_of_its_role(role: str, writes: int, reads: int) -> None:
    front = Front(tokens=TOKENS)
    http = client_of(front.app, peer="10.0.0.7", host="cluster.internal")

    written = http.post(RECLUSTER, json={"pet_id": 42}, headers=bearer(SECRETS[role]))
    read = http.get(f"{API}/pets/42/clusters", headers=bearer(SECRETS[role]))

    assert (written.status_code, read.status_code) == (writes, reads)
    assert [facts["by"] for _, facts in front.queue.asked] == ([f"{role}-1"] if writes == 202 else [])


READ_ONLY = {
    "get_map",
    "get_clusters", "get_cluster", "get_why", "get_suggestions", "get_doubtful", "get_tally", "get_history",
    "list_items", "get_revision", "compare_revisions",
    "get_model", "get_job", "get_queues", "list_pets", "list_jobs", "get_queue_history", "whoami", "list_pet_jobs",
    "get_preview", "watch_queues", "list_workers", "list_periodic_jobs",
}  # fmt: skip
CORRECTIONS = {"recluster", *(request.actor_name for request in VERBS.values())}


@pytest.mark.parametrize(
    ("role", "may_call"),
    [
        (Role.UPLOADER, {"ingest_embeddings", "whoami"}),
        (Role.VIEWER, READ_ONLY),
        (Role.LABELLER, READ_ONLY | CORRECTIONS),
        (Role.PRODUCER, READ_ONLY | CORRECTIONS | {"ingest_embeddings"}),
        (Role.OPERATOR, set(MAY_CALL)),
    ],
)
def test_role_may_call_only_its_operations(role: Role, may_call: set[str]) -> None:
    assert {operation for operation, roles in MAY_CALL.items() if role in roles} == may_call


def test_whoami_returns_the_callers_name_role_and_operations() -> None:
    http = client_of(Front(tokens=TOKENS).app, peer="10.0.0.7", host="cluster.internal")

    uploader = http.get(f"{API}/whoami", headers=bearer(SECRETS["uploader"])).json()
    on_loopback = client_of(Front().app).get(f"{API}/whoami").json()

    expected = {"name": "uploader-1", "role": "uploader", "has_token": True}
    assert uploader == {**expected, "may_call": ["ingest_embeddings", "whoami"]}
    assert on_loopback == {"name": "loopback", "role": "operator", "has_token": False, "may_call": sorted(MAY_CALL)}


def test_uploader_may_only_ingest_items() -> None:
    front = Front(tokens=TOKENS)
    http = client_of(front.app, peer="10.0.0.7", host="cluster.internal")
    headers = bearer(SECRETS["uploader"])
    item = {"pet_id": 42, "media_id": "m", "model": "clip@1", "embedding": [1.0, 0.5]}

    assert http.post(f"{API}/embeddings", json=item, headers=headers).status_code == 202

    schema = front.app.openapi()
    tried = 0
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if operation["operationId"] in MAY_CALL.keys() - {"ingest_embeddings", "whoami"}:
                given = re.sub(r"{[^}]*}", "1", path)
                answer = http.request(method, given, json={} if method == "post" else None, headers=headers)
                assert answer.status_code == 403, (method, path)
                assert "uploader-1 has role uploader" in answer.json()["detail"]
                tried += 1
    assert tried > 20


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong-0123456789abcdef"), {"Authorization": f"Basic {SECRETS['operator']}"}, bearer("")]
)
def test_request_without_a_valid_token_returns_401_with_the_scheme(headers: dict[str, str]) -> None:
    http = client_of(Front(tokens=TOKENS).app)

    for answer in (
        http.post(RECLUSTER, json={"pet_id": 42}, headers=headers),
        http.get(f"{API}/jobs/a", headers=headers),
    ):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert "0123456789" not in answer.text


PUBLIC = ["/healthz", "/readyz", "/metrics", "/openapi.json", "/", "/console/main.js"]


def statuses(http: TestClient, headers: dict[str, str] | None = None) -> list[int]:
    return [http.get(path, headers=headers or {}).status_code for path in PUBLIC]


@pytest.mark.parametrize(
    ("public", "expected"),
    [
        ("health", [200, 200, 401, 401, 401, 401]),
        ("none", [401] * 6),
        ("health, metrics, openapi, console", [200] * 6),
        ("console", [401, 401, 401, 401, 200, 200]),
    ],
)
def test_remote_callers_without_a_token_reach_only_public_routes(public: str, expected: list[int]) -> None:
    front = Front(tokens=TOKENS, public=groups_of(public), metrics=lambda: (b"up 1", "text/plain"))
    elsewhere = client_of(front.app, peer="10.0.0.7", host="cluster.internal")

    assert statuses(elsewhere) == expected
    assert statuses(elsewhere, bearer(SECRETS["uploader"])) == [200] * 6
    assert statuses(client_of(front.app)) == [200] * 6
    assert statuses(client_of(front.app), {"X-Forwarded-For": "10.0.0.7"}) == expected


def test_unknown_group_of_public_routes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="dashboards is not a group"):
        groups_of("health,dashboards")


def test_changes_are_logged_with_their_caller(caplog: pytest.LogCaptureFixture) -> None:
    http = client_of(Front(tokens=TOKENS).app)
    caplog.set_level(logging.INFO)

    http.post(RECLUSTER, json={"pet_id": 42}, headers=bearer(SECRETS["labeller"]))
    http.post(RECLUSTER, json={"pet_id": 0}, headers=bearer(SECRETS["labeller"]))
    http.delete(f"{API}/pets/42", headers=bearer(SECRETS["operator"]))
    http.get(f"{API}/pets/42/clusters", headers=bearer(SECRETS["operator"]))

    lines = [vars(record) for record in caplog.records if record.getMessage() == "change requested"]
    assert [(line["caller"], line["operation"], line["status"]) for line in lines] == [
        ("labeller-1", "recluster", 202),
        ("labeller-1", "recluster", 422),
        ("operator-1", "delete_pet", 404),
    ]


# -- rates -----------------------------------------------------------------------------------------------------------


def test_caller_above_its_rate_waits_until_its_next_request_is_allowed() -> None:
    now = [0.0]
    rates = Rates(2, clock=lambda: now[0])

    assert [rates.wait_s("a") for _ in range(10)] == [0.0] * 10
    assert rates.wait_s("a") == pytest.approx(0.5)
    assert rates.wait_s("b") == 0.0
    now[0] += 0.5
    assert rates.wait_s("a") == 0.0
    assert rates.wait_s("a") == pytest.approx(0.5)


def test_request_above_the_rate_of_its_caller_returns_429() -> None:
    http = client_of(Front(tokens=TOKENS, max_rate_per_s=0.001).app)

    answers = [http.get(f"{API}/jobs/a", headers=bearer(SECRETS["viewer"])) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [404, 429]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert http.get(f"{API}/jobs/a", headers=bearer(SECRETS["operator"])).status_code == 404


@pytest.mark.parametrize(
    "text",
    ["secret-0123456789abcdef", "a:king:0123456789abcdef", "a:viewer:short", "machine:viewer:0123456789abcdef",
     "a:viewer:0123456789abcdef,a:operator:fedcba9876543210", "a:viewer:0123456789abcdef,b:viewer:0123456789abcdef"],
)  # fmt: skip
def test_invalid_tokens_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Tokens.parse(text)

    assert "0123456789abcdef" not in str(refused.value)


# -- Idempotency-Key -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "redis"])
def idempotency(request: pytest.FixtureRequest) -> IdempotencyStore:
    if request.param == "memory":
        return MemoryIdempotencyStore()
    client: redis.Redis = request.getfixturevalue("redis_client")
    return RedisIdempotencyStore(client)


@pytest.fixture
def front(idempotency: IdempotencyStore) -> Iterator[Front]:
    front = Front(idempotency=idempotency)
    with front.http:
        yield front


def test_repeated_request_gets_the_first_response(front: Front) -> None:
    first, again = (front.http.post(RECLUSTER, json={"pet_id": 42}, headers={"Idempotency-Key": "k"}) for _ in range(2))

    assert (again.status_code, again.json(), again.headers["Location"]) == (
        202,
        first.json(),
        first.headers["Location"],
    )
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len(front.queue.asked) == 1


def test_key_reused_with_another_body_is_refused_on_the_same_route_only(front: Front) -> None:
    def send(path: str, body: dict[str, int]) -> int:
        answer = front.http.post(API + path, json=body, headers={"Idempotency-Key": "k"})
        return int(answer.status_code)

    assert send("/clusters/recluster", {"pet_id": 42}) == 202
    assert send("/clusters/recluster", {"pet_id": 43}) == 422
    assert send("/clusters/undo", {"pet_id": 42, "revision": 1}) == 202
    assert len(front.queue.asked) == 2


def test_failed_request_can_be_retried_with_the_same_key(front: Front) -> None:
    fails = [True]

    def fail_once() -> None:
        if fails.pop():
            fails.append(False)
            raise RuntimeError("no luck")
        fails.append(False)

    front.queue.before = fail_once

    answers = [
        front.http.post(RECLUSTER, json={"pet_id": 42}, headers={"Idempotency-Key": "k"}).status_code for _ in range(2)
    ]

    assert answers == [500, 202]


def test_repeat_of_a_request_in_progress_returns_409(front: Front) -> None:
    started, release = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        release.wait(20)

    front.queue.before = wait

    def send() -> int:
        answer = front.http.post(RECLUSTER, json={"pet_id": 42}, headers={"Idempotency-Key": "k"})
        return int(answer.status_code)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(send)
        assert started.wait(20)
        second = send()
        release.set()

        assert (first.result(20), second) == (202, 409)
    assert len(front.queue.asked) == 1


@pytest.mark.parametrize("key", ["", "x" * 300, "a\tb"])
def test_invalid_idempotency_key_is_refused(front: Front, key: str) -> None:
    answer = front.http.post(RECLUSTER, json={"pet_id": 42}, headers={"Idempotency-Key": key})

    assert answer.status_code == 422
    assert front.queue.asked == []


def test_stored_response_expires_after_a_day_and_its_key_is_hashed(front: Front, redis_client: redis.Redis) -> None:
    http = Front(idempotency=RedisIdempotencyStore(redis_client)).http
    http.post(RECLUSTER, json={"pet_id": 42}, headers={"Idempotency-Key": "secret-key"})

    keys = list(redis_client.scan_iter("*idempotency*"))
    assert keys
    assert all(b"secret-key" not in key for key in keys)
    assert all(0 < redis_client.ttl(key) <= 86_400 for key in keys)
