"""The doctor finds problems, and the commands in its hints fix them."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import RedisStreamsBroker
from broker.stats import LAST_ID
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import PetId
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.cold.moves import ColdPets
from sploot_cluster.store.cold.vectors import open_vectors
from sploot_cluster.store.keys import NAMES
from sploot_cluster.store.redis import RedisPetStore
from tasks.cli import main
from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.doctor import Finding, Installation, diagnose, known_variables
from tasks.observe.backlog import BACKLOG, BacklogSampler
from tasks.observe.media_totals import MEDIA
from tasks.queue_limit import MAX_QUEUE_LENGTH
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tests.sploot_cluster.albums import DIM, take
from tests.support import eventually, redis_6_2
from tests.system.events import free_port
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk

STREAM = stream_of(EMBEDDING_INGESTED)


class Ward:
    """An installation with one problem at a time."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client: Any = client
        self.url = url
        self.desk = Desk(client)
        self.settings: dict[str, Any] = {"metrics_port": free_port(), "http_port": free_port()}

    def diagnose(self, environ: Mapping[str, str] | None = None, **more: Any) -> list[Finding]:
        settings = Settings(redis_url=self.url, **self.settings)
        broker = RedisStreamsBroker(client=self.client, group=GROUP, middleware=[], lease_ms=2_000)
        return diagnose(Installation(settings, environ or {}, self.client, broker, **more))

    def wrong(self, environ: Mapping[str, str] | None = None, **more: Any) -> list[Finding]:
        return [finding for finding in self.diagnose(environ, **more) if finding.level == "wrong"]

    def hint(self, finding: Finding) -> None:
        """Run the command in a finding's hint."""
        words = shlex.split(finding.hint.replace('"$REDIS_URL"', self.url))
        if words[0] == "redis-cli":
            self.client.execute_command(*words[3:])
        else:
            assert words[0] == "sploot-cluster", finding.hint
            environ = {"REDIS_URL": self.url, "PATH": "/usr/bin"}
            done = subprocess.run(
                [sys.executable, "-m", "tasks.cli", *words[1:]], env=environ, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr + done.stdout


def command_of(finding: Finding) -> list[str]:
    """Return the Redis command at the end of a hint."""
    words = shlex.split(finding.hint[finding.hint.index("redis-cli") :])
    return words[3:]


@pytest.fixture
def ward(redis_client: redis.Redis, redis_url: str) -> Iterator[Ward]:
    redis_client.config_set("appendonly", "yes")
    ward = Ward(redis_client, redis_url)
    yield ward
    for name, value in (("appendonly", "no"), ("maxmemory-policy", "noeviction"), ("maxmemory", "0")):
        redis_client.config_set(name, value)


def test_new_installation_has_no_finding_of_level_wrong(ward: Ward) -> None:
    found = ward.diagnose()

    assert [finding for finding in found if finding.level in ("wrong", "unknown")] == []
    assert {"version", "commands", "eviction", "persistence", "clock", "models"} <= {finding.check for finding in found}
    # an operator should know that no worker has run yet
    assert {f.check for f in found if f.level == "warning"} >= {"scheduler", f"group of {EMBEDDING_INGESTED}"}


# -- problems with a command that fixes them ---------------------------------------------------------------------------


def given_eviction(ward: Ward) -> None:
    ward.client.config_set("maxmemory-policy", "allkeys-lru")


def given_no_persistence(ward: Ward) -> None:
    ward.client.config_set("appendonly", "no")


def given_no_group(ward: Ward) -> None:
    ward.desk.add(1)


def given_a_strange_group(ward: Ward) -> None:
    ward.client.xgroup_create(STREAM, GROUP, mkstream=True)
    ward.client.xgroup_create(STREAM, "somebody-else", mkstream=True)


def given_orphans(ward: Ward) -> None:
    entry_id, _ = ward.desk.add(1, 2)
    ward.desk.deliver()
    ward.client.xack(STREAM, GROUP, entry_id)
    ward.client.zadd(KEYS.consumers, {STUCK: ward.client.time()[0] * 1000 + 60_000})


def given_ghosts(ward: Ward) -> None:
    entry_id, _ = ward.desk.add(1, 2)
    ward.desk.deliver()
    ward.client.xdel(STREAM, entry_id)
    ward.client.zadd(KEYS.consumers, {STUCK: ward.client.time()[0] * 1000 + 60_000})


def given_a_dead_consumer(ward: Ward) -> None:
    ward.desk.add(1, 2)
    ward.desk.deliver()
    ward.client.zadd(KEYS.consumers, {"alive": ward.client.time()[0] * 1000 + 60_000})


def given_a_name_that_is_not_indexed(ward: Ward) -> None:
    service = ClusterService(RedisPetStore(ward.client))
    take(service, 0, range(3), pet=PetId(7))
    service.name_pet(PetId(7), "Mochi", operation_id="1", by="ada")
    ward.client.delete(NAMES)


@pytest.mark.parametrize(
    ("given", "check", "seen"),
    [
        (given_a_name_that_is_not_indexed, "pets", "does not find pet 7; 1 pet of"),
        (given_eviction, "eviction", "allkeys-lru"),
        (given_no_persistence, "persistence", "no append-only file"),
        (given_no_group, f"group of {EMBEDDING_INGESTED}", "and jobs wait"),
        (given_a_strange_group, f"group of {EMBEDDING_INGESTED}", "somebody-else"),
        (given_orphans, EMBEDDING_INGESTED, "1 orphan:"),
        (given_ghosts, EMBEDDING_INGESTED, "1 ghost:"),
        (given_a_dead_consumer, EMBEDDING_INGESTED, f"{STUCK} is dead and still holds 2"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_command_in_a_finding_fixes_the_problem(ward: Ward, given: Any, check: str, seen: str) -> None:
    given(ward)

    found = next(finding for finding in ward.wrong() if finding.check == check and seen in finding.seen)
    ward.hint(found)

    assert not any(finding.check == check and seen in finding.seen for finding in ward.wrong())


def test_ids_ahead_of_the_clock_are_reported_and_fixed(ward: Ward) -> None:
    ward.client.xgroup_create(STREAM, GROUP, mkstream=True)
    for entry_id, seen in (
        (f"{ward.client.time()[0] * 1_000_000}-0", "is ahead of the clock by"),
        (LAST_ID, "has used its last possible id"),
    ):
        ward.client.xadd(STREAM, {"a": "b"}, id=entry_id)

        found = next(finding for finding in ward.wrong() if seen in finding.seen)
        assert ward.client.execute_command(*command_of(found)) == b"not empty"
        assert ward.client.xlen(STREAM) == 1
        ward.client.xdel(STREAM, entry_id)

    assert ward.client.execute_command(*command_of(found)) == 1
    assert not any(seen in finding.seen for finding in ward.wrong())


@pytest.mark.parametrize("how", ["MAXLEN 0", "MINID 18446744073709551615"])
def test_jobs_trimmed_by_a_producer_are_counted(ward: Ward, how: str) -> None:
    ward.desk.add(*range(1, 6))
    ward.desk.deliver()
    sampler = BacklogSampler(ward.desk.broker, ward.client)
    sampler.sample_pending()

    ward.client.execute_command("XADD", STREAM, *how.split(), "*", "a", "b")

    n_gone = 6 - ward.client.xlen(STREAM)
    for _ in range(2):  # the doctor reports it both before and after the next sample
        (found,) = [finding for finding in ward.wrong() if "unprocessed" in finding.seen]
        assert found.seen.startswith(f"{n_gone} entries left {STREAM}")
        sampler.sample_pending()
    assert ward.client.hget(BACKLOG, f"{EMBEDDING_INGESTED}:vanished") == str(n_gone).encode()


# -- problems that an operator must fix --------------------------------------------------------------------------------


def test_missing_worker_pause_and_dead_letters_are_reported_with_hints(ward: Ward) -> None:
    ward.client.xgroup_create(STREAM, GROUP, mkstream=True)
    ward.desk.add(1)
    ward.client.set(KEYS.paused, "1")
    ward.desk.bury(2)

    found = {finding.seen: finding for finding in ward.diagnose() if finding.check == EMBEDDING_INGESTED}

    assert found["no worker takes its jobs, and 1 wait"].hint == "sploot-cluster worker"
    assert found["the queue is paused"].hint == f"sploot-cluster queue resume {EMBEDDING_INGESTED} --yes"
    assert "dead list" in found["1 dead letter to review, each deleted after 7 days"].hint


@pytest.mark.parametrize(("n_held", "level"), [(7, "ok"), (8, "warning"), (10, "wrong")])
def test_queue_near_its_limit_is_reported(ward: Ward, n_held: int, level: str) -> None:
    ward.settings["max_queue_length"] = 10
    ward.client.set(MAX_QUEUE_LENGTH, 10)
    ward.desk.add(*range(n_held))
    ward.desk.deliver(count=3)

    found = [f for f in ward.diagnose() if f.check == EMBEDDING_INGESTED and "of at most 10 jobs" in f.seen]

    assert [finding.level for finding in found] == ([level] if level != "ok" else [])
    assert all("SPLOOT_MAX_QUEUE_LENGTH" in finding.hint for finding in found)


def test_queue_limit_that_differs_from_the_stored_one_is_a_warning(ward: Ward) -> None:
    ward.client.set(MAX_QUEUE_LENGTH, 10)

    found = {finding.check: finding for finding in ward.diagnose()}["queue limit"]

    assert found.level == "warning"
    assert "10 jobs" in found.seen
    assert "SPLOOT_MAX_QUEUE_LENGTH is 0" in found.seen


@pytest.mark.parametrize(
    ("setting", "bound", "variable"),
    [
        ("max_dead_letters", 5, "SPLOOT_MAX_DEAD_LETTERS"),
        ("max_dead_letters_mb", 1, "SPLOOT_MAX_DEAD_LETTERS_MB"),
    ],
)
def test_doctor_reports_dead_letters_near_their_limit_as_wrong(
    ward: Ward, setting: str, bound: int, variable: str
) -> None:
    ward.settings[setting] = bound
    ward.desk.bury(1, 2, 3, 4)
    if setting == "max_dead_letters_mb":
        ward.client.xadd(KEYS.dead, {"reason": "failed", "entry:message": b"x" * 900_000})

    (found,) = [f for f in ward.wrong() if f.check == EMBEDDING_INGESTED and "dead letters" in f.seen]

    assert re.search(rf"beyond about {bound}( MB)? the oldest are deleted", found.seen)
    assert f"raise {variable}:" in found.hint


def test_unique_keys_of_jobs_removed_by_hand_are_a_warning(ward: Ward) -> None:
    ward.desk.broker.enqueue(ward.desk.message(1, unique_key="k"))
    ward.client.xtrim(STREAM, maxlen=0)

    found = [f for f in ward.diagnose() if f.check == EMBEDDING_INGESTED and "unique key" in f.seen]

    assert [finding.level for finding in found] == ["warning"]


def test_nearly_full_server_is_reported_before_it_refuses_writes(ward: Ward) -> None:
    # so large that changes of client buffers do not matter; made by the server, because sending it would fill a buffer
    ward.client.setrange("ballast", 16_000_000, b"x")
    used = ward.client.info("memory")["used_memory"]
    ward.client.config_set("maxmemory", int(used * 1.02))

    (found,) = [finding for finding in ward.wrong() if finding.check == "memory"]

    assert "in use" in found.seen
    assert "purge" in found.hint


def test_missing_memory_limit_is_a_warning_with_the_command_that_sets_it(ward: Ward) -> None:
    def memory() -> Finding:
        (found,) = [finding for finding in ward.diagnose() if finding.check == "memory"]
        return found

    assert memory().level == "warning"
    ward.hint(memory())

    assert memory().level == "ok"
    total, limit = (ward.client.info("memory")[name] for name in ("total_system_memory", "maxmemory"))
    assert 0.69 * total < limit <= 0.7 * total


@pytest.mark.parametrize(("off_s", "level"), [(0.0, "ok"), (5.0, "warning"), (-3_600.0, "wrong")])
def test_clock_skew_is_reported(ward: Ward, off_s: float, level: str) -> None:
    import time

    found = {finding.check: finding for finding in ward.diagnose(clock=lambda: time.time() + off_s)}

    assert found["clock"].level == level
    if off_s:
        assert f"{'behind' if off_s > 0 else 'ahead of'} this machine" in found["clock"].seen


@pytest.mark.slow
def test_doctor_reports_a_metrics_port_of_another_program_as_wrong(ward: Ward) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ward.settings["metrics_port"] = taken.getsockname()[1]
        taken.close()
        assert "metrics port" not in {finding.check for finding in ward.wrong()}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ward.settings["metrics_port"] = taken.getsockname()[1]
        (found,) = [finding for finding in ward.wrong() if finding.check == "metrics port"]

    assert "WORKER_METRICS_PORT" in found.hint


def test_too_many_native_threads_are_reported(ward: Ward) -> None:
    found = [finding for finding in ward.wrong({"OMP_NUM_THREADS": "64"}) if finding.check == "threads"]

    assert found[0].hint == "unset OMP_NUM_THREADS"
    assert [finding for finding in ward.wrong({"OMP_NUM_THREADS": "1"}) if finding.check == "threads"] == []


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SPLOOT_LEASE", "SPLOOT_LEASE_MS"),
        ("SPLOOT_API_TOKEN", "SPLOOT_API_TOKENS"),
        ("WORKER_METRIC_PORT", "WORKER_METRICS_PORT"),
        ("REDIS_URI", "REDIS_URL"),
        ("SPLOTT_LEASE_MS", "SPLOOT_LEASE_MS"),
    ],
)
def test_unknown_setting_is_reported_with_a_suggestion(ward: Ward, variable: str, meant: str) -> None:
    (found,) = [finding for finding in ward.wrong({variable: "1"}) if finding.check == "settings"]

    assert variable in found.seen
    assert f"did you mean {meant}?" in found.hint


def test_known_settings_and_kubernetes_variables_are_accepted(ward: Ward) -> None:
    environ = dict.fromkeys(known_variables(), "1") | {
        "SPLOOT_CLUSTER_SERVICE_HOST": "10.0.0.1",
        "SPLOOT_CLUSTER_PORT": "tcp://10.0.0.1:8080",
        "SPLOOT_CLUSTER_PORT_8080_TCP_ADDR": "10.0.0.1",
        "SPLOOT_CLUSTER_SERVICE_PORT_HTTP": "8080",
        "PATH": "/usr/bin",
        "HOME": "/",
    }

    assert [finding for finding in ward.wrong(environ) if finding.check == "settings"] == []


def test_mixed_models_are_reported(ward: Ward) -> None:
    for pet, (model, dim) in enumerate([("clip@1", 512), ("clip@1", 512), ("dino@2", 768)], start=1):
        ward.client.sadd("sploot:pets", pet)
        ward.client.hset(f"{{pet:{pet}}}:meta", mapping={"model": model, "dim": dim})

    mixed = {finding.check: finding for finding in ward.diagnose()}["models"]
    ward.settings["clustering"] = ClusterSettings(models={"clip@1": 512})
    stuck = {finding.check: finding for finding in ward.diagnose()}["models"]
    ward.settings["clustering"] = ClusterSettings(models={"clip@1": 512, "dino@2": 768})
    named = {finding.check: finding for finding in ward.diagnose()}["models"]

    assert (mixed.level, stuck.level, named.level) == ("warning", "wrong", "ok")
    assert "clip@1 with 512 dimensions (2 pets), dino@2 with 768 dimensions (1 pet)" in mixed.seen
    assert "e.g. pet 3" in stuck.seen
    assert "add dino@2=768 to SPLOOT_MODELS" in stuck.hint


def test_damaged_pets_are_reported_with_the_problem(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def pets() -> list[Finding]:
        return [finding for finding in ward.diagnose() if finding.check == "pets"]

    none = pets()
    service = ClusterService(RedisPetStore(ward.client))
    for pet in range(1, 5):
        take(service, 0, range(3), pet=PetId(pet))
    whole = pets()
    ward.client.delete("{pet:2}:vectors")
    ward.client.hincrby("{pet:4}:meta", "ingested", 1)
    broken = pets()
    monkeypatch.setattr("tasks.doctor.SAMPLE_OF_PETS", 2)
    monkeypatch.setattr("tasks.doctor.MOST_BROKEN_LISTED", 1)
    seen: set[str] = set()

    def look() -> bool:
        seen.update(finding.seen for finding in pets())
        return len(seen) >= 4

    eventually(look, within_s=30)

    assert [(finding.level, finding.seen) for finding in none + whole] == [
        ("ok", "no pets yet"),
        ("ok", "all 4 pets are intact"),
    ]
    assert [(finding.level, finding.seen) for finding in broken] == [
        ("wrong", "pet 2 cannot be read: {pet:2}:vectors: expected 3 items, found 0 items"),
        ("wrong", "the counts of pet 4 do not add up"),
    ]
    assert "runbook" in broken[0].hint
    assert broken[1].hint == "sploot-cluster tally 4"
    assert seen >= {
        "2 of 4 pets are intact; the next run checks others",
        "1 pet more cannot be read or have counts that do not add up",
        broken[0].seen,
        broken[1].seen,
    }


def test_pets_that_are_missing_from_the_list_are_reported(ward: Ward) -> None:
    def pets(client: redis.Redis) -> list[tuple[str, str, str]]:
        found = Ward(client, ward.url).diagnose()
        return [(one.level, one.seen, one.hint) for one in found if one.check == "pets"]

    service = ClusterService(RedisPetStore(ward.client))
    for pet in (2, 7, 11):
        take(service, 0, range(1), pet=PetId(pet))
    whole = pets(ward.client)
    ward.client.srem("sploot:pets", 7)
    one = pets(ward.client)
    ward.client.delete("sploot:pets")
    all_lost = pets(ward.client)
    ward.client.execute_command("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-scan")
    try:
        with redis.Redis.from_url(ward.url, username="narrow", password="secret") as narrow:
            unseen = pets(narrow)
    finally:
        ward.client.execute_command("ACL", "DELUSER", "narrow")

    hint = "sploot-cluster repair --list --yes"
    text = "has data and is not in sploot:pets, so totals, alerts and lists leave it out"
    assert whole == [("ok", "all 3 pets are intact", "")]
    assert one == [("wrong", f"pet 7 {text}", hint)]
    assert all_lost == [("wrong", f"pet 2 {text}; so do 2 pets more", hint)]
    assert unseen == [("ok", "no pets yet", "")]


def test_pet_that_is_nearly_full_is_reported(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sploot_cluster.store.redis.MAX_VECTOR_BYTES", 10 * 4 * DIM)
    service = ClusterService(RedisPetStore(ward.client))
    found: list[tuple[str, str]] = []
    for numbers in (range(7), range(7, 8), range(8, 10)):
        take(service, 0, numbers)
        found += [(n.level, n.seen.partition(";")[0]) for n in ward.diagnose() if n.check == "pets" and n.level != "ok"]

    assert found == [
        ("warning", "pet 42 is 80% full"),
        ("wrong", "pet 42 is 100% full"),
    ]


@pytest.mark.parametrize(
    ("place", "n_cold", "level", "seen"),
    [
        ("", 0, None, ""),
        ("", 3, "wrong", "the vectors of 3 pets are in a cold store, and SPLOOT_COLD_STORE is not set"),
        ("vectors", 1, "ok", "answers; it has the vectors of 1 pet"),
        ("file/vectors", 1, "wrong", "file/vectors: "),
    ],
)
def test_cold_store_that_cannot_be_used_is_reported(
    ward: Ward, tmp_path: Path, place: str, n_cold: int, level: str | None, seen: str
) -> None:
    (tmp_path / "file").write_text("not a directory")
    ward.client.hset(MEDIA, "cold", n_cold)
    ward.settings["cold_store"] = f"file://{tmp_path}/{place}" if place else ""

    found = [finding for finding in ward.diagnose() if finding.check == "cold"]

    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(seen in finding.seen for finding in found)


def test_missing_object_of_a_cold_pet_is_reported(ward: Ward, tmp_path: Path) -> None:
    ward.settings["cold_store"] = f"file://{tmp_path}/vectors"
    cold = ColdPets(ward.client, open_vectors(ward.settings["cold_store"]))
    take(ClusterService(RedisPetStore(ward.client, cold=cold)), 0, range(3), pet=PetId(43))
    assert cold.move_out(PetId(43))
    whole = [finding.level for finding in ward.diagnose() if finding.check == "cold"]
    (lost,) = (tmp_path / "vectors" / "43").rglob("0")
    lost.unlink()

    (found,) = (finding for finding in ward.diagnose() if finding.check == "cold")

    assert whole == ["ok"]
    assert (found.level, lost.relative_to(tmp_path / "vectors").as_posix() in found.seen) == ("wrong", True)


def test_redis_user_without_permission_gets_a_hint(ward: Ward) -> None:
    ward.client.execute_command("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-info", "-config")
    try:
        narrow = redis.Redis.from_url(ward.url, username="narrow", password="secret")
        found = {finding.check: finding for finding in Ward(narrow, ward.url).diagnose()}
        assert found["memory"].level == "unknown"
        assert "operator" in found["memory"].hint
        assert found["clock"].level == "ok"
    finally:
        ward.client.execute_command("ACL", "DELUSER", "narrow")


def test_redis_6_2_has_no_finding_of_level_wrong(tmp_path: Path) -> None:
    if (executable := redis_6_2()) is None:
        pytest.skip("no Redis 6.2 for this Python and machine")
    with (
        EmbeddedRedis(directory=tmp_path, unix_socket=True, executable=executable) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        found = {finding.check: finding for finding in Ward(client, server.url).diagnose()}

    assert (found["version"].level, found["version"].seen) == ("ok", "Redis 6.2.14")
    assert found["commands"].level == "ok"


# -- the command -------------------------------------------------------------------------------------------------------


def run_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["sploot-cluster", "doctor", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().out


def test_doctor_command_exits_1_if_something_is_wrong(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", ward.url)
    monkeypatch.setenv("WORKER_METRICS_PORT", str(free_port()))
    monkeypatch.setenv("SPLOOT_HTTP_PORT", str(free_port()))

    good, told_good = run_doctor(monkeypatch, capsys)
    given_eviction(ward)
    bad, told_bad = run_doctor(monkeypatch, capsys)
    _, as_json = run_doctor(monkeypatch, capsys, "--json")

    assert good == 0, told_good
    assert bad == 1
    assert "WRONG" in told_bad
    assert "maxmemory-policy noeviction" in " ".join(told_bad.split())
    assert {finding["check"]: finding["level"] for finding in json.loads(as_json)}["eviction"] == "wrong"


def test_doctor_command_exits_3_without_redis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setenv("SPLOOT_LEASE", "1")

    code, text = run_doctor(monkeypatch, capsys)

    assert code == 3
    assert "did you mean SPLOOT_LEASE_MS?" in " ".join(text.split())
    assert "no answer" in " ".join(text.split())
