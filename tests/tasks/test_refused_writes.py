"""A Redis that answers but refuses writes: reports to callers, operators and probes, and what still works."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from starlette.testclient import TestClient

from sploot_cluster import ClusterService
from sploot_cluster.refusals import REFUSALS, refusal_of
from sploot_cluster.store.redis import RedisPetStore
from tasks.cli import main
from tasks.client import ClusterTasks, QueueUnavailable
from tasks.composition import build_app, build_broker, build_erasure, build_operations
from tasks.contracts import EMBEDDING_INGESTED
from tasks.doctor import Finding, diagnose, installation_of
from tasks.observe.exposition import expose, why_not_ready
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tests.corrections import EXAMPLES, as_body
from tests.refusing import REFUSING
from tests.sploot_cluster.albums import PET, name, take
from tests.sploot_cluster.api.front import API, client_of
from tests.support import eventually
from tests.tasks.queue_ops.desk import KEYS, Desk

MEDIA: Final = name(0, 0)
HINTS: Final = {refusal.code: refusal for refusal in REFUSALS}
STATES: Final = pytest.mark.parametrize("code", REFUSING)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server for this module only, because a refusal stays visible in INFO afterwards."""
    directory = tmp_path_factory.mktemp("refusing", numbered=True)
    with EmbeddedRedis(directory=directory, unix_socket=True) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client of a server that still accepts writes and has a pet, two jobs and a dead letter."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        service = ClusterService(RedisPetStore(client))
        take(service, 0, range(4))
        desk = Desk(client)
        desk.add(1)
        desk.bury(2)
        desk.deliver()
        desk.add(3)
        yield client


@pytest.fixture
def refuse(server: EmbeddedRedis, client: redis.Redis) -> Callable[[str], Any]:
    """Return a function that makes the server refuse writes within a block."""
    return lambda code: REFUSING[code](server, client)


# -- the thin client -------------------------------------------------------------------------------------------------

MEDIUM: Final[dict[str, Any]] = {"pet_id": 1, "media_id": "new", "model": "clip@1", "embedding": [1.0, 0.0]}
CALLS: Final[dict[str, Callable[[ClusterTasks], object]]] = {
    "recluster": lambda tasks: tasks.recluster(1),
    "preview": lambda tasks: tasks.preview(1),
    **{verb: partial(ClusterTasks.correct, request=request) for verb, request in EXAMPLES.items()},
    "ingest": lambda tasks: tasks.ingest(**MEDIUM),
    "ingest_many": lambda tasks: tasks.ingest_many([MEDIUM]),
    "request_recluster": lambda tasks: tasks.request_recluster(1, reason="r", delay_ms=1),
}


@STATES
def test_error_of_a_refused_client_call_names_cause_and_hint(
    server: EmbeddedRedis, refuse: Callable[[str], Any], code: str
) -> None:
    with refuse(code), ClusterTasks(server.url) as tasks:
        for called, call in CALLS.items():
            with pytest.raises(QueueUnavailable) as raised:
                call(tasks)

            refusal = raised.value.refusal
            assert refusal is not None, called
            assert refusal.code == code
            assert refusal.problem in str(raised.value)
            assert refusal.hint in str(raised.value)
        assert tasks.job("unknown") is None or code == "MISCONF"


@STATES
def test_client_call_after_the_refusal_is_enqueued(
    server: EmbeddedRedis, refuse: Callable[[str], Any], client: redis.Redis, code: str
) -> None:
    with ClusterTasks(server.url) as tasks:
        with refuse(code), pytest.raises(QueueUnavailable):
            tasks.recluster(PET)

        assert not tasks.recluster(PET).coalesced, "the refused call left a job behind"


# -- HTTP ------------------------------------------------------------------------------------------------------------

BODIES: Final[dict[str, Any]] = {
    "recluster": {"pet_id": PET},
    **{request.actor_name: as_body(request) for request in EXAMPLES.values()},
    # the only correction that fits the pet; the others are refused without a write
    "dismiss_media": {"pet_id": PET, "media_ids": [MEDIA]},
    "ingest_embeddings": {"pet_id": PET, "media_id": "new", "model": "clip@1", "embedding": [1.0, 0.0]},
    "begin_model": {"model": "other@1", "dim": 3},
    "plan_rescue": {"idle_s": 0},
    "plan_retire_consumer": {"consumer": "stuck-worker"},
    "plan_pause": {},
    "plan_resume": {},
    "plan_requeue": {},
    "plan_cancel": {"pet_id": 42},
    "plan_purge": {},
    "apply_plan": {"plan_id": "p-00000000"},
    "start_canary": {},
    "stop_canary": {},
}
# Routes that enqueue or write, whatever the state of the pet.
WORK: Final = frozenset({"recluster", "dismiss_media", "ingest_embeddings"})
IN_PATH: Final = {
    "pet_id": str(PET),
    "cluster_id": "1",
    "media_id": MEDIA,
    "revision": "1",
    "job_id": "none",
    "queue": EMBEDDING_INGESTED,
    "dead_letter_id": "1-1",
    "token": "1-abc",
    "plan_id": "p-00000000",
}


@pytest.fixture
def http(server: EmbeddedRedis, client: redis.Redis) -> Iterator[TestClient]:
    with client_of(build_app(Settings(redis_url=server.url))) as http:
        yield http


def routes(http: TestClient) -> list[tuple[str, str, str]]:
    """Return (operation, method, path) of every route in the OpenAPI document."""
    paths = http.get("/openapi.json").json()["paths"]
    return [(one["operationId"], method, path) for path, methods in paths.items() for method, one in methods.items()]


def ask(http: TestClient, operation: str, method: str, path: str, **headers: str) -> Any:
    body: dict[str, Any] = {"json": BODIES[operation]} if method == "post" else {}
    return http.request(method.upper(), path.format(**IN_PATH), headers=headers, **body)


@STATES
@pytest.mark.parametrize("with_key", [False, True], ids=["without key", "with key"])
def test_route_returns_503_that_names_redis_while_writes_are_refused(
    http: TestClient, refuse: Callable[[str], Any], code: str, with_key: bool
) -> None:
    refused = set()
    with refuse(code):
        for number, (operation, method, path) in enumerate(routes(http)):
            headers = {"Idempotency-Key": f"{code}-{number}"} if with_key else {}
            answer = ask(http, operation, method, path, **headers)

            assert answer.status_code < 500 or answer.status_code == 503, (operation, answer.text)
            if answer.status_code == 503:
                refused.add(operation)
                problem = answer.json()
                assert answer.headers["content-type"] == "application/problem+json"
                assert [error["field"] for error in problem["errors"]] == ["redis"], operation
                assert problem["errors"][0]["problem"] == HINTS[code].problem
                assert problem["errors"][0]["hint"] == HINTS[code].hint
                assert HINTS[code].problem in problem["detail"]
                assert answer.headers["retry-after"] == "5"
    assert refused >= WORK | {"get_readiness"}


def test_full_redis_lets_operators_purge_pause_resume_and_delete(
    http: TestClient, refuse: Callable[[str], Any], client: redis.Redis
) -> None:
    with refuse("OOM"):
        for number, action in enumerate(("purge", "pause", "resume", "pause")):
            key = {"Idempotency-Key": f"{action}-{number}"}
            wanted: dict[str, Any] = {"matching": {}} if action == "purge" else {}
            plan = http.post(f"{API}/queues/{EMBEDDING_INGESTED}/{action}", json=wanted, headers=key)
            assert plan.status_code == 200, plan.text
            body = {"note": "full"}
            done = http.post(f"{API}/queues/plans/{plan.json()['plan_id']}/apply", json=body, headers=key)
            assert done.status_code == 202, done.text
            again = http.post(f"{API}/queues/plans/{plan.json()['plan_id']}/apply", json=body, headers=key)
            assert again.json() == done.json(), "the key was not kept"

        assert client.xlen(KEYS.dead) == 0
        assert client.exists(KEYS.paused) == 1
        deleted = http.delete(f"{API}/pets/{PET}")
        assert deleted.status_code == 200, deleted.text
        assert client.keys(f"{{pet:{PET}}}:*") == []


def test_server_is_ready_once_redis_accepts_writes_again(http: TestClient, refuse: Callable[[str], Any]) -> None:
    assert http.get("/readyz").status_code == 200
    with refuse("NOREPLICAS"):
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 200


# -- the pods, and what Prometheus sees ------------------------------------------------------------------------------


@STATES
def test_readiness_and_metrics_report_that_redis_refuses_writes(
    client: redis.Redis, refuse: Callable[[str], Any], code: str
) -> None:
    metrics = expose(client, Settings(), with_jobs=False)
    assert why_not_ready(client, [EMBEDDING_INGESTED]) is None
    assert b"media_cluster_redis_writable 1.0" in metrics("")[0]

    with refuse(code):
        assert why_not_ready(client, [EMBEDDING_INGESTED]) == f"{HINTS[code].problem}; {HINTS[code].hint}"
        assert b"media_cluster_redis_writable 0.0" in metrics("")[0]

    eventually(lambda: b"media_cluster_redis_writable 1.0" in metrics("")[0])


def test_writable_metric_has_no_sample_if_redis_is_unreachable(tmp_path: Path) -> None:
    client = redis.Redis.from_url(f"unix://{tmp_path}/nothing.sock", retry=None)

    assert b"media_cluster_redis_writable 0" not in expose(client, Settings(), with_jobs=False)("")[0]


def test_probe_leaves_only_keys_that_expire(client: redis.Redis) -> None:
    before = set(client.keys("*"))
    why_not_ready(client)

    left = set(client.keys("*")) - before
    assert left
    assert all(0 < client.pttl(key) <= 60_000 for key in left)


# -- the command line ------------------------------------------------------------------------------------------------

COMMANDS: Final = {
    "recluster": [str(PET)],
    "recluster --preview": [str(PET)],
    # the only correction that fits the pet; the others are refused without a write
    "dismiss": [str(PET), "--media", MEDIA],
    "model begin": [str(PET), "other@1", "3"],
    "queue rescue": ["embedding", "--idle", "0s", "--yes"],
    "queue dead requeue": ["embedding", "--all", "--yes"],
    "import": ["{exported}"],
    "ingest": ["{lines}"],
    # these only read; most of them work while writes are refused
    "clusters": [str(PET)],
    "tally": [str(PET)],
    "history": [str(PET)],
    "why": [str(PET), MEDIA],
    "model status": [str(PET)],
    "delete": [str(PET), "--media", MEDIA, "--yes"],
    "queue status": [],
    "queue pending": ["embedding"],
    "queue peek": ["embedding"],
    "queue find": ["--pet", str(PET)],
    "queue audit": [],
    "queue dead list": ["embedding"],
    "queue dead purge": ["embedding", "--all", "--yes"],
    "queue cancel": ["embedding", "--pet", str(PET), "--yes"],
    "queue pause": ["embedding", "--yes"],
    "queue resume": ["embedding", "--yes"],
    "queue rescue (plan)": ["embedding", "--idle", "0s"],
}
WRITING: Final = frozenset(list(COMMANDS)[: list(COMMANDS).index("clusters")])


@pytest.mark.slow
@STATES
def test_command_prints_one_line_and_exits_3_while_writes_are_refused(
    server: EmbeddedRedis,
    client: redis.Redis,
    refuse: Callable[[str], Any],
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)

    def run(verb: str, *arguments: str) -> tuple[int, str]:
        words = verb.partition(" (")[0].split()
        monkeypatch.setattr(sys, "argv", ["sploot-cluster", *words, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    exported, lines = tmp_path / "pet.zip", tmp_path / "media.jsonl"
    assert run("export", str(PET), str(exported))[0] == 0
    lines.write_text(json.dumps(MEDIUM) + "\n")
    # an import needs a pet id without data
    client.delete(*client.keys(f"{{pet:{PET}}}:*"))
    take(ClusterService(RedisPetStore(client)), 0, range(4))
    files = {"exported": str(exported), "lines": str(lines)}
    with refuse(code):
        for verb, arguments in COMMANDS.items():
            extra = ["--as", str(PET + 1)] if verb == "import" else []
            ended, err = run(verb, *(one.format(**files) for one in arguments), *extra)

            assert ended in ((3,) if verb in WRITING else (0, 3, 4)), (verb, ended, err)
            if ended == 3:
                assert err.count("\n") == 1, err
                assert HINTS[code].problem in err
                assert HINTS[code].hint in err


# -- the doctor ------------------------------------------------------------------------------------------------------


def examined(server: EmbeddedRedis, client: redis.Redis) -> list[Finding]:
    settings = Settings(redis_url=server.url, metrics_port=0, http_port=0)
    return diagnose(installation_of(settings, client, build_broker(settings, client, middleware=[])))


@STATES
def test_doctor_names_the_refusal_instead_of_missing_workers(
    server: EmbeddedRedis, client: redis.Redis, refuse: Callable[[str], Any], code: str
) -> None:
    with refuse(code):
        found = examined(server, client)

    (redis_itself,) = [finding for finding in found if finding.check == "redis"]
    (writes,) = [finding for finding in found if finding.check == "writes"]
    assert redis_itself.level == "ok"
    assert writes.level == "wrong"
    assert HINTS[code].problem in writes.seen
    assert writes.hint == HINTS[code].hint
    assert [finding for finding in found if finding.hint in ("sploot-cluster worker", "sploot-cluster scheduler")] == []
    assert {"eviction", "memory", "persistence", "clock"} <= {finding.check for finding in found}


def test_doctor_checks_the_disk_even_if_redis_refuses_ping(
    server: EmbeddedRedis, client: redis.Redis, refuse: Callable[[str], Any]
) -> None:
    with refuse("MISCONF"):
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.ping()
        found = examined(server, client)

    assert [finding.level for finding in found if finding.check == "snapshot"] == ["wrong"]


def test_doctor_reports_accepted_writes_as_ok(server: EmbeddedRedis, client: redis.Redis) -> None:
    assert [finding.level for finding in examined(server, client) if finding.check == "writes"] == ["ok"]


# -- actions, and the table of refusals ------------------------------------------------------------------------------


@STATES
def test_erasure_and_operations_translate_the_refusal(
    server: EmbeddedRedis, client: redis.Redis, refuse: Callable[[str], Any], code: str
) -> None:
    settings = Settings(redis_url=server.url)
    erasure, operations = build_erasure(settings, client), build_operations(settings, client)
    plan = operations.plan_rescue("embedding", idle_s=0)
    with refuse(code):
        with pytest.raises(QueueUnavailable) as acted:
            operations.act(plan, by="me", via="test")
        erase = pytest.raises(QueueUnavailable) if code != "OOM" else nullcontext()
        with erase as erased:
            erasure.erase(PET)  # a deletion frees memory, so a full server allows it

    for raised in filter(None, (acted, erased)):
        assert raised.value.refusal is not None
        assert raised.value.refusal.code == code
    erasure.close()
    operations.close()


def test_readiness_reports_a_redis_cluster_without_slots(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(directory=tmp_path, unix_socket=True, options={"cluster-enabled": "yes"}) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        unready = why_not_ready(client)

    assert unready is not None
    assert unready.startswith(HINTS["CLUSTERDOWN"].problem)


def test_error_names_a_replica_that_serves_no_reads(server: EmbeddedRedis, client: redis.Redis) -> None:
    client.config_set("replica-serve-stale-data", "no")
    try:
        with REFUSING["READONLY"](server, client), ClusterTasks(server.url) as tasks:
            with pytest.raises(QueueUnavailable) as raised:
                tasks.job("any")
            assert why_not_ready(client) is not None
    finally:
        client.config_set("replica-serve-stale-data", "yes")

    assert raised.value.refusal is not None
    assert raised.value.refusal.code == "MASTERDOWN"


def test_redis_user_without_permission_is_a_settings_error(server: EmbeddedRedis, client: Any) -> None:
    client.execute_command("ACL", "SETUSER", "reader", "on", ">reader-secret", "~*", "+ping", "+hello", "+get")
    try:
        with (
            redis.Redis.from_url(server.url, username="reader", password="reader-secret") as reader,
            ClusterTasks(client=reader) as tasks,
            pytest.raises(QueueUnavailable) as raised,
        ):
            tasks.recluster(PET)
    finally:
        client.execute_command("ACL", "DELUSER", "reader")

    assert raised.value.refusal is not None
    assert raised.value.refusal.code == "NOPERM"
    assert not raised.value.refusal.is_outage


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "LOADING"),
        (redis.exceptions.TryAgainError("Multiple keys request during rehashing of slot"), "TRYAGAIN"),
        (redis.ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL"), "BUSY"),
        (redis.ConnectionError("max number of clients reached"), "MAXCLIENTS"),
        (redis.AuthenticationError("invalid username-password pair or user is disabled."), "NOAUTH"),
        (redis.ResponseError("Error running script: @user_script:4: -OOM command not allowed when used"), "OOM"),
        (redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "MISCONF"),
        (redis.ResponseError("BUSYGROUP Consumer Group name already exists"), None),
        (redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), None),
        (redis.ConnectionError("Connection refused"), None),
        (ValueError("OOM command not allowed"), None),
    ],
)
def test_redis_error_maps_to_its_refusal(error: Exception, code: str | None) -> None:
    refusal = refusal_of(error)

    assert (refusal.code if refusal else None) == code
    outer = RuntimeError("while something was done")
    outer.__cause__ = error
    assert refusal_of(outer) == refusal
