"""Tests that every Redis user may run the commands that it needs and no others, on a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from starlette.testclient import TestClient

from deploy.redis_users import TEMPLATE, USERS, PasswordUnusable, render
from sploot_cluster import ClusterService
from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.jobs import QueueFull, QueueUnavailable
from sploot_cluster.store.cold.moves import COLD_PETS, IDENTITY, UNUSED_MS, ColdPets
from sploot_cluster.store.cold.rounds import ROUND, ColdRounds
from sploot_cluster.store.cold.vectors import open_vectors
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.store.repairs import PetRepairs
from sploot_cluster.store.salvage import salvage
from tasks.client import ClusterTasks
from tasks.composition import build_app, build_broker, build_operations
from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.queue_limit import MAX_QUEUE_LENGTH
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tests.deploy.servers import PASSWORDS, acl_file, client_of, processes_environ
from tests.sploot_cluster.albums import PET, take
from tests.sploot_cluster.api.front import API
from tests.support import redis_6_2
from tests.system.events import flat_event

ROOT = Path(__file__).parent.parent.parent
STREAM = stream_of(EMBEDDING_INGESTED)
FEEDBACK = "streams:cluster.feedback"
DEAD = f"{{{STREAM}}}:dead"
DELAYED = f"{{{STREAM}}}:delayed"
PAUSED, CONSUMERS, COUNTERS = (f"{{{STREAM}}}:{name}" for name in ("paused", "consumers", "counters"))
ID_AHEAD = f"{2**43}-0"  # an entry id in the year 2248
BY_SCRIPT = "return redis.call(unpack(ARGV))"
KEDA_COUNTS = (
    "local kind = redis.call('type', KEYS[1]).ok "
    "if kind == 'zset' then return redis.call('zcard', KEYS[1]) end return redis.call('llen', KEYS[1])"
)

# The command with which /readyz, /metrics and the doctor check that Redis accepts writes.
PROBE = f"SET sploot:probe:{{{STREAM}}} 1 PX 60000"

# The raw commands in the specification's runbook, with the names that it uses.
RUNBOOK = (
    f"XPENDING {STREAM} {GROUP}",
    f"XINFO CONSUMERS {STREAM} {GROUP}",
    f"XCLAIM {STREAM} {GROUP} rescue-consumer 0 1-0",
    f"XACK {STREAM} {GROUP} 1-0",
    f"XGROUP DELCONSUMER {STREAM} {GROUP} gone",
)

ALLOWED = {
    "producer": (
        "PING",
        f"XADD {STREAM} * schema embedding.ingested/1",
        # allowed because Redis ACLs cannot restrict the arguments of XADD; SECURITY.md lists them; doctor and alerts
        # detect them
        f"XADD {STREAM} MAXLEN 1000000 * a b",
        f"XADD {STREAM} MINID 1-0 * a b",
        f"XADD {STREAM} {ID_AHEAD} a b",
        f"XADD {STREAM} * message m",
    ),
    "client": (
        "PING",
        f"XADD {STREAM} * message m",
        f"XLEN {STREAM}",
        f"XINFO GROUPS {STREAM}",
        f"ZADD {DELAYED} 1 m",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} XLEN {STREAM}",
        f"XLEN {DEAD}",
        f"EXISTS {PAUSED}",
        f"ZRANGE {CONSUMERS} 0 -1",
        f"SET {{{STREAM}}}:unique:recluster:1 m PX 1000",
        f"HINCRBY {COUNTERS} enqueued 1",
        "HSET sploot:{jobs}:record:1 state queued",
        "HGETALL sploot:{jobs}:record:1",
        "DEL sploot:{jobs}:record:1",
        "ZADD sploot:{jobs}:pet:1 1 m",
        "GET sploot:max-queue-length",
    ),
    "worker": (
        "PING",
        f"XREADGROUP GROUP {GROUP} me COUNT 1 STREAMS {STREAM} >",
        f"XACK {STREAM} {GROUP} 1-0",
        f"XDEL {STREAM} 1-0",
        f"XADD {DEAD} * reason r",
        f"MEMORY USAGE {DEAD} SAMPLES 0",
        "HSET {pet:1}:meta revision 1",
        "SADD sploot:pets 1",
        "HSET sploot:backlog a 1",
        PROBE,
        f"XGROUP DELCONSUMER {STREAM} {GROUP} gone",
    ),
    "scheduler": (f"XADD {STREAM} * message m", f"ZADD {DELAYED} 1 m", "SET sploot:scheduler me"),
    "server": (
        "PING",
        "HGETALL {pet:1}:meta",
        "DEL {pet:1}:preview",
        "SET sploot:idempotency:1 a",
        PROBE,
        f"XADD {STREAM} * message m",
        f"XREVRANGE {DEAD} + - COUNT 10",
        *RUNBOOK,
    ),
    "exporter": ("PING", "INFO", f"XLEN {STREAM}", f"XINFO STREAM {STREAM}", f"XINFO GROUPS {STREAM}", "SLOWLOG LEN"),
    "operator": (
        *RUNBOOK,
        "INFO",
        f"XRANGE {STREAM} - + COUNT 1",
        f"XREVRANGE {DEAD} + - COUNT 10",
        f"XLEN {DEAD}",
        f"SET {{{STREAM}}}:paused 1",
        f"DEL {{{STREAM}}}:paused",
        "HGETALL {pet:1}:meta",
        f"EVAL {BY_SCRIPT!r} 1 {{pet:1}}:meta HGETALL {{pet:1}}:meta",
        "XADD sploot:audit * who me",
        PROBE,
    ),
    "keda": ("PING", f"XLEN {STREAM}", f"ZCARD {DELAYED}", f"TYPE {DELAYED}"),
}

# Commands that no user may run.
NOBODY = (
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "SCAN 0",
    "CONFIG GET requirepass",
    "CONFIG SET maxmemory 1",
    "ACL LIST",
    "ACL SETUSER evil on",
    "BGREWRITEAOF",
    "SHUTDOWN NOSAVE",
    "MONITOR",
    "SCRIPT FLUSH",
    "REPLICAOF NO ONE",
    "SAVE",
    "CLIENT KILL TYPE normal",
    f"XGROUP DESTROY {STREAM} {GROUP}",
    f"XGROUP SETID {STREAM} {GROUP} 0",
    "GET somebody-elses-key",
)

DENIED = {
    "producer": (
        f"XADD {FEEDBACK} * message m",
        f"XADD {STREAM}s * message m",
        f"XADD {FEEDBACK} MAXLEN 0 * message m",
        f"XADD {DEAD} * reason r",
        f"XADD {{{STREAM}}}:timer * a b",
        f"XLEN {STREAM}",
        f"XINFO STREAM {STREAM}",
        f"XRANGE {STREAM} - +",
        f"XREADGROUP GROUP {GROUP} me STREAMS {STREAM} >",
        f"DEL {STREAM}",
        f"XTRIM {STREAM} MAXLEN 0",
        f"XDEL {STREAM} 1-0",
        f"XSETID {STREAM} 1-0",
        f"SET {PAUSED} 1",
        "HGETALL sploot:{jobs}:record:1",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} XADD {STREAM} * a b",
        "HGETALL {pet:1}:meta",
    ),
    "client": (
        "HGETALL {pet:1}:meta",
        f"DEL {STREAM}",
        f"DEL {FEEDBACK}",
        f"DEL {DEAD}",
        f"XRANGE {DEAD} - +",
        f"XREVRANGE {DEAD} + -",
        f"XADD {DEAD} * reason r",
        f"DEL {PAUSED}",
        f"SET {PAUSED} 1",
        f"DEL {CONSUMERS}",
        f"ZADD {CONSUMERS} 0 victim",
        f"DEL {COUNTERS}",
        f"HDEL {COUNTERS} acked",
        f"HSET {COUNTERS} acked 0",
        f"DEL {DELAYED}",
        f"DEL {{{STREAM}}}:timer",
        f"SET {STREAM} 1",
        f"XSETID {STREAM} 9-0",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} DEL {STREAM}",
        f"EVAL {BY_SCRIPT!r} 1 {DEAD} XRANGE {DEAD} - +",
        f"EVAL {BY_SCRIPT!r} 1 {PAUSED} SET {PAUSED} 1",
        f"EVAL {BY_SCRIPT!r} 1 {CONSUMERS} ZADD {CONSUMERS} 0 victim",
        f"XREADGROUP GROUP {GROUP} me STREAMS {STREAM} >",
        f"XACK {STREAM} {GROUP} 1-0",
        f"XDEL {STREAM} 1-0",
        f"XTRIM {STREAM} MAXLEN 0",
        f"XGROUP DELCONSUMER {STREAM} {GROUP} me",
        "HGETALL sploot:backlog",
        "ZRANGE sploot:{jobs}:pet:1 0 -1",
        "DEL sploot:{jobs}:pet:1",
        "SET sploot:max-queue-length 0",
        f"ZADD {{{STREAM}}}:ordered:line 0 m",
        f"ZADD {{{STREAM}}}:ordered:at-work 0 m",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} XACK {STREAM} {GROUP} 1-0",
    ),
    "worker": (
        "INFO",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} XGROUP DESTROY {STREAM} {GROUP}",
        f"EVAL {BY_SCRIPT!r} 0 FLUSHALL",
        "SET other:key 1",
        f"RENAME {STREAM} {FEEDBACK}",
        "DUMP {pet:1}:meta",
    ),
    "scheduler": ("HGETALL {pet:1}:meta", f"XACK {STREAM} {GROUP} 1-0", f"XDEL {STREAM} 1-0", f"XRANGE {STREAM} - +"),
    "server": (
        f"XREADGROUP GROUP {GROUP} me STREAMS {STREAM} >",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} XGROUP DESTROY {STREAM} {GROUP}",
        f"EVAL {BY_SCRIPT!r} 0 FLUSHALL",
        "SET other:key 1",
    ),
    "exporter": (
        f"XRANGE {STREAM} - +",
        f"XADD {STREAM} * a b",
        f"DEL {STREAM}",
        "HGETALL {pet:1}:meta",
        "HLEN {pet:1}:meta",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} XLEN {STREAM}",
    ),
    "operator": (
        "HSET {pet:1}:meta revision 9",
        "DEL {pet:1}:vectors",
        f"EVAL {BY_SCRIPT!r} 1 {{pet:1}}:meta DEL {{pet:1}}:meta",
        f"XREADGROUP GROUP {GROUP} me STREAMS {STREAM} >",
    ),
    "keda": (
        f"XRANGE {STREAM} - +",
        f"XADD {STREAM} * a b",
        f"DEL {STREAM}",
        f"EVAL {BY_SCRIPT!r} 1 {STREAM} XADD {STREAM} * a b",
        f"ZADD {DELAYED} 1 a",
        "HGETALL {pet:1}:meta",
        "INFO",
    ),
}

PROBES_ALLOWED = [(user, command) for user, commands in ALLOWED.items() for command in commands]
PROBES_DENIED = [(user, command) for user, commands in DENIED.items() for command in (*commands, *NOBODY)]


def words(command: str) -> list[str]:
    """Split a probe into the words to send. A script in a probe is quoted."""
    before, quote, rest = command.partition("'")
    script, _, after = rest.partition("'")
    return [*before.split(), *([script] if quote else []), *after.split()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    directory = Path(tmp_path_factory.mktemp("acl"))
    options = {"appendonly": "no", "aclfile": str(acl_file(directory))}
    with EmbeddedRedis(directory=directory, options=options) as server:
        with client_of(server, "tester") as tester:
            tester.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
            tester.xadd(STREAM, {"a": "b"}, id="1-0")
            tester.hset("{pet:1}:meta", "revision", 1)
            tester.zadd(DELAYED, {"m": 1})
        yield server


@pytest.fixture(scope="module")
def users(server: EmbeddedRedis) -> Iterator[dict[str, redis.Redis]]:
    clients = {
        user: redis.Redis(port=server.port, username=user, password=PASSWORDS[user], protocol=2) for user in USERS
    }
    yield clients
    for client in clients.values():
        client.close()


def test_at_least_sixty_probes_cover_every_redis_user() -> None:
    assert len(PROBES_ALLOWED) + len(PROBES_DENIED) >= 60
    assert set(ALLOWED) == set(DENIED) == set(USERS)


@pytest.mark.parametrize(("user", "command"), PROBES_ALLOWED)
def test_redis_user_may_run_the_commands_that_it_needs(users: dict[str, redis.Redis], user: str, command: str) -> None:
    try:
        users[user].execute_command(*words(command))
    except redis.exceptions.NoPermissionError as refused:
        pytest.fail(f"{user} may not {command}: {refused}")
    except redis.ResponseError as error:
        if "The user executing the script can't" in str(error):
            raise
        # any other error concerns the arguments, so the user was allowed to run the command


@pytest.mark.parametrize(("user", "command"), PROBES_DENIED)
def test_redis_user_may_run_no_other_commands(users: dict[str, redis.Redis], user: str, command: str) -> None:
    with pytest.raises(redis.ResponseError) as refused:
        users[user].execute_command(*words(command))

    # the type of an error from inside a script is only in its message
    is_denied = isinstance(refused.value, redis.exceptions.NoPermissionError)
    assert is_denied or "The user executing the script can't" in str(refused.value)


def test_login_without_a_user_name_or_with_a_wrong_password_is_refused(server: EmbeddedRedis) -> None:
    for user, password in ((None, None), ("worker", "wrong"), ("nobody", "x"), ("default", "")):
        client = redis.Redis(port=server.port, username=user, password=password, retry=Retry(NoBackoff(), 0))
        with client, pytest.raises((redis.AuthenticationError, redis.ResponseError)):
            client.ping()


def test_kedas_list_scaler_counts_delayed_jobs(users: dict[str, redis.Redis]) -> None:
    assert users["keda"].eval(KEDA_COUNTS, 1, DELAYED) == 1


def test_error_for_a_too_short_password_names_the_user() -> None:
    with pytest.raises(PasswordUnusable, match="user keda"):
        render({**PASSWORDS, "keda": "short"})


def commands_of_scripts(*patterns: str) -> set[str]:
    """Return the commands that our scripts call, as they are written in ACLs."""
    texts = [path.read_text() for pattern in patterns for path in ROOT.glob(pattern)]
    called = [
        re.findall(r"""redis\.p?call\(\s*['"](\w+)['"](?:,\s*['"]([A-Z]+)['"])?""", text, flags=re.DOTALL)
        for text in texts
    ]
    families = ("XGROUP", "XINFO", "MEMORY")
    return {
        f"{name}|{more}".lower() if name.upper() in families else name.lower()
        for found in called
        for name, more in found
    }


def granted_to(user: str) -> set[str]:
    (line,) = [line for line in TEMPLATE.read_text().splitlines() if line.startswith(f"user {user} ")]
    return {word.strip("()").removeprefix("+") for word in line.split() if word.startswith("+")}


def test_worker_may_run_every_command_that_our_scripts_call() -> None:
    called = commands_of_scripts(
        "broker/lua/*.lua", "sploot_cluster/**/*.lua", "tasks/**/*.py", "sploot_cluster/api/**/*.py"
    )

    assert len(called) > 30
    assert called - granted_to("worker") == set()


def test_server_may_run_every_command_that_scripts_for_pets_call() -> None:
    called = commands_of_scripts(
        "sploot_cluster/**/*.lua", "sploot_cluster/api/**/*.py", "tasks/queue_ops/*.lua", "broker/lua/*.lua"
    )

    assert called - granted_to("server") == set()


def test_client_may_run_every_command_for_enqueueing_and_job_status() -> None:
    called = commands_of_scripts("broker/lua/enqueue*.lua", "broker/lua/stats.lua", "tasks/job_records.py")

    assert called - granted_to("client") == set()


def test_client_user_may_enqueue_jobs_and_read_their_status(users: dict[str, redis.Redis]) -> None:
    """Call every method of the client. The selectors (in brackets) of its user's ACL line must allow all commands."""
    with ClusterTasks(client=users["client"]) as tasks:
        tasks.request_recluster(8, reason="it grew", delay_ms=60_000)
        jobs = [
            tasks.ingest(pet_id=7, media_id="m", model="clip@1", embedding=[1.0, 0.0]),
            *tasks.ingest_many([{"pet_id": 7, "media_id": "n", "model": "clip@1", "embedding": [1.0, 0.0]}]),
            tasks.recluster(7),
            tasks.recluster(7),
            tasks.preview(7),
            tasks.merge(7, [1, 2]),
            tasks.split(7, 1, ["m"]),
            tasks.undo(7, 1),
        ]

        assert [job.coalesced for job in jobs] == [False, False, False, True, *[False] * 4]
        told = tasks.job(jobs[0].job_id)
        assert told is not None
        assert told.state == "queued"


def test_only_operator_users_may_cancel_jobs(users: dict[str, redis.Redis]) -> None:
    with ClusterTasks(client=users["client"]) as tasks:
        job = tasks.merge(9, [1, 2])
        with pytest.raises(QueueUnavailable, match="user"):
            tasks.cancel(job.job_id)
    for user in ("server", "operator"):
        with ClusterTasks(client=users["client"]) as tasks:
            waiting, delayed = tasks.merge(9, [1, 2]), tasks.recluster(9)
            tasks.recluster(9)
        with ClusterTasks(client=users[user]) as tasks:
            assert [tasks.cancel(one.job_id) for one in (waiting, delayed)] == ["cancelled", "cancelled"]


def delete_over_http(redis_url: str) -> None:
    secret = "secret-of-an-operator"
    with TestClient(build_app(Settings(redis_url=redis_url, api_tokens=f"ops:operator:{secret}"))) as http:
        answer = http.delete(f"{API}/pets/{PET}", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 200, answer.text


def delete_on_the_command_line(redis_url: str) -> None:
    command = [sys.executable, "-m", "tasks.cli", "delete", str(PET), "--by", "ann", "--yes"]
    environ = processes_environ(redis_url)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("delete", [delete_over_http, delete_on_the_command_line])
def test_permissions_of_the_server_suffice_to_delete_a_pet_with_its_traces(
    server: EmbeddedRedis, users: dict[str, redis.Redis], delete: Callable[[str], None]
) -> None:
    take(ClusterService(RedisPetStore(users["worker"])), 0, range(4))
    with ClusterTasks(client=users["client"]) as tasks:
        job = tasks.undo(PET, 1)
    with client_of(server, "tester") as tester:
        tester.delete(FEEDBACK, DEAD)  # remove the job from the queue but leave its record
        tester.xadd(DEAD, {"reason": "failed", "error": "OSError: disk full", "entry:pet_id": str(PET)})
        left = (f"{{pet:{PET}}}:meta", f"sploot:{{jobs}}:record:{job.job_id}", f"sploot:{{jobs}}:pet:{PET}")
        assert tester.exists(*left) == len(left)

        delete(f"redis://server:{PASSWORDS['server']}@127.0.0.1:{server.port}/0")

        assert tester.exists(*left) == 0
        assert tester.xlen(DEAD) == 0


def test_operator_may_plan_a_repair_and_the_server_may_apply_it(
    server: EmbeddedRedis, users: dict[str, redis.Redis]
) -> None:
    take(ClusterService(RedisPetStore(users["worker"])), 0, range(4))
    with client_of(server, "tester") as tester:
        tester.delete(f"{{pet:{PET}}}:rows")

    raw = PetRepairs(users["operator"]).read(PET)
    repaired = salvage(raw, by="ann", at=datetime.now(UTC)).pet
    with pytest.raises(StoreUnavailable, match="lacks a permission"):
        PetRepairs(users["operator"]).rewrite(raw, repaired)
    PetRepairs(users["server"]).rewrite(raw, repaired)

    assert PetRepairs(users["operator"]).damage(PET) is None
    with client_of(server, "tester") as tester:
        tester.delete(*PetKeys.of(PET))


def test_users_have_the_permissions_that_cold_pets_need(
    server: EmbeddedRedis, users: dict[str, redis.Redis], tmp_path: Path
) -> None:
    vectors = open_vectors(f"file://{tmp_path}/vectors")
    cold, later = ColdPets(users["worker"], vectors), ColdPets(users["worker"], vectors, later_ms=2 * UNUSED_MS)
    store = RedisPetStore(users["worker"], cold=cold)
    service = ClusterService(store)
    take(service, 0, range(4))

    assert ColdRounds(users["worker"], cold, service.pets_page, idle_days=0).run().n_moved >= 1
    take(ClusterService(store), 0, range(4, 5))
    assert later.tidy(limit=10) >= 1
    assert ColdPets(users["server"], vectors).move_out(PET)
    of_operator = ColdPets(users["operator"], vectors)
    of_operator.probe()
    assert of_operator.cold_among([PET]) == [PET]
    assert [of_operator.lost(pet) for pet in of_operator.some(1)] == [()]
    assert len(RedisPetStore(users["operator"], cold=of_operator).load(PET).vectors) == 5
    assert RedisPetStore(users["server"], cold=ColdPets(users["server"], vectors)).delete(PET)
    with client_of(server, "tester") as tester:
        tester.delete(COLD_PETS, IDENTITY, ROUND)


def test_client_user_may_check_the_queue_limit(server: EmbeddedRedis, users: dict[str, redis.Redis]) -> None:
    with client_of(server, "tester") as tester:
        n_held = tester.xlen(FEEDBACK)
        tester.set(MAX_QUEUE_LENGTH, n_held + 1)
        try:
            with ClusterTasks(client=users["client"]) as tasks:
                tasks.merge(7, [1, 2])
                with pytest.raises(QueueFull):
                    tasks.merge(7, [1, 2])
        finally:
            tester.delete(MAX_QUEUE_LENGTH)


def test_users_have_the_permissions_that_shards_need(server: EmbeddedRedis, users: dict[str, redis.Redis]) -> None:
    ran: list[int] = []
    event = {"media_id": "1.jpg", "model": "m@1", "embedding": [1.0, 0.5]}
    operations = build_operations(Settings(), users["operator"])
    broker = build_broker(Settings(), users["worker"], middleware=[])

    @dramatiq.actor(broker=broker, queue_name=EMBEDDING_INGESTED, actor_name="cluster_embedding")
    def run(pet_id: int, **_: object) -> None:
        ran.append(pet_id)

    with client_of(server, "tester") as tester:
        tester.delete(STREAM, f"{{{STREAM}}}:paused")
        assert operations.act(operations.plan_shards("embedding", 4), by="ann", via="test").is_complete
        with ClusterTasks(client=users["client"]) as tasks:
            tasks.ingest_many([{"pet_id": pet_id, **event} for pet_id in range(1, 9)])
        producer: Any = users["producer"]
        producer.xadd(f"{STREAM}.s3", flat_event(pet_id=9, number=1))
        producer.xadd(STREAM, flat_event(pet_id=1, number=2))  # belongs to another shard, and is moved
        worker = dramatiq.Worker(broker, queues={EMBEDDING_INGESTED}, worker_timeout=50, worker_threads=1)
        worker.start()
        try:
            broker.join(EMBEDDING_INGESTED, timeout=30_000)
            moved = broker.counters(EMBEDDING_INGESTED)["moved"]
        finally:
            worker.stop()
            broker.close()
            operations.close()
            tester.delete(f"{{{STREAM}}}:shards")

    assert (sorted(ran), moved) == ([1, *range(1, 10)], 1)


def test_redis_6_2_accepts_the_users_that_are_rendered_for_it(tmp_path: Path) -> None:
    if (executable := redis_6_2()) is None:
        pytest.skip("no Redis 6.2 for this Python and machine")
    options = {"appendonly": "no", "aclfile": str(acl_file(tmp_path, for_redis_6=True))}

    with EmbeddedRedis(directory=tmp_path, executable=executable, options=options) as server:
        with client_of(server, "worker") as worker, client_of(server, "producer") as producer:
            assert producer.xadd(STREAM, {"a": "b"})
            assert worker.xlen(STREAM) == 1
            with pytest.raises(redis.exceptions.NoPermissionError):
                producer.xlen(STREAM)
        with client_of(server, "client") as client, ClusterTasks(client=client) as tasks:
            assert not tasks.recluster(7).coalesced
            assert tasks.recluster(7).coalesced
        with client_of(server, "operator") as operator, pytest.raises(redis.exceptions.NoPermissionError):
            operator.flushall()


def test_rendered_users_contain_no_password() -> None:
    rendered = render(PASSWORDS)

    assert len(rendered.splitlines()) == len(USERS) + 1
    assert not any(password in rendered for password in PASSWORDS.values())
    assert "{producer}" in TEMPLATE.read_text()
