"""The command line, on real processes and a real Redis: what it prints, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import numpy as np
import pytest
import redis
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, QUEUES, stream_of
from tasks.job_records import JobRecords, TrackJobs
from tasks.wire import DECODERS
from tests.sploot_cluster.albums import PET, name, picture, take
from tests.support import eventually
from tests.system.events import free_port

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def service(redis_client: redis.Redis) -> ClusterService:
    return ClusterService(RedisPetStore(redis_client))


def cli(
    *arguments: str, redis_url: str, given: str = "", environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REDIS_URL": redis_url, "COLUMNS": "200", **(environ or {})}
    return subprocess.run(
        [sys.executable, "-m", "tasks.cli", *arguments],
        cwd=ROOT,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def jobs_running(redis_url: str, client: redis.Redis, service: ClusterService) -> Iterator[None]:
    """A worker of this process for corrections and reclusters."""
    broker = RedisStreamsBroker(
        redis_url,
        middleware=[TimeLimit(), Retries(), CurrentMessage(), TrackJobs(JobRecords(client))],
        decoders=DECODERS,
        lease_ms=2_000,
    )
    declare_actors(broker, service)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        yield
    finally:
        worker.stop()
        broker.close()


def test_help_names_every_command(redis_url: str) -> None:
    helped = cli("--help", redis_url=redis_url)

    assert helped.returncode == 0
    commands = {"worker", "scheduler", "serve", "demo", "ingest", "recluster", "merge", "split", "exclude", "dismiss"}
    for command in commands | {"undo", "clusters"} | {"history", "queue", "config"}:
        assert f" {command} " in helped.stdout


# -- ingest ----------------------------------------------------------------------------------------------------------


def test_ingest_sends_valid_lines_and_numbers_invalid_ones(redis_url: str, redis_client: redis.Redis) -> None:
    good = {"pet_id": 1, "media_id": "a", "model": "clip@1", "embedding": [1.0, 2.0]}
    whole = {
        "schema": "embedding.ingested/1", "event_id": "e", "pet_id": 1, "media_id": "b", "model": "clip@1",
        "dim": 2, "encoding": "json", "embedding": [1.0, 2.0],
    }  # fmt: skip
    lines = [json.dumps(good), "", "{no json", json.dumps(good | {"embedding": [0.0, 0.0]}), json.dumps(whole), "[1]"]

    done = cli("ingest", "-", redis_url=redis_url, given="\n".join(lines))

    assert done.returncode == 1
    assert "2 media sent to streams:embedding.ingested, 3 refused" in done.stdout
    told = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == ["entry 2", "entry 3", "entry 5"]
    assert "embedding" in told[1]
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 2


def test_ingest_sends_an_npz_file(redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    file = tmp_path / "media.npz"
    embedding = np.random.default_rng(1).normal(size=(700, 8)).astype(np.float32)
    np.savez(file, pet_id=7, media_id=[f"m{n}" for n in range(700)], model="clip@1", embedding=embedding)

    done = cli("ingest", str(file), redis_url=redis_url)

    assert (done.returncode, done.stdout) == (0, "700 media sent to streams:embedding.ingested\n")
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 700


def test_unusable_file_is_a_usage_error(redis_url: str, tmp_path: Path) -> None:
    incomplete = tmp_path / "incomplete.npz"
    np.savez(incomplete, embedding=np.ones((2, 2)))

    for file, problem in ((tmp_path / "absent.jsonl", "No such file"), (incomplete, "lacks media_id, model, pet_id")):
        done = cli("ingest", str(file), redis_url=redis_url)
        assert done.returncode == 2
        assert problem in done.stderr
        assert "Traceback" not in done.stderr


# -- looking and correcting ------------------------------------------------------------------------------------------


def test_clusters_and_history_are_printed_as_text_and_json(redis_url: str, service: ClusterService) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET, by="ada")

    for_people = cli("clusters", "42", redis_url=redis_url)
    for_programs = cli("clusters", "42", "--json", redis_url=redis_url)
    history = cli("history", "42", "--json", redis_url=redis_url)

    assert "pet 42 at revision 13: 12 media, 2 clusters, 0 noise, model clip@1 of 16 values" in for_people.stdout
    shown = json.loads(for_programs.stdout)
    assert [len(cluster["media_ids"]) for cluster in shown["clusters"]] == [6, 6]
    assert (shown["revision"], shown["noise"], shown["aliases"]) == (13, [], {})
    (entry,) = json.loads(history.stdout)
    assert (entry["revision"], entry["kind"], entry["by"]) == (13, "recluster", "ada")
    assert entry["summary"]["n_clusters"] == 2


def test_correction_with_wait_prints_its_result(
    redis_url: str, redis_client: redis.Redis, service: ClusterService
) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET)

    with jobs_running(redis_url, redis_client, service):
        merged = cli("merge", "42", "1", "2", "--into", "2", "--by", "ada", "--wait", "20", redis_url=redis_url)
        undone = cli("undo", "42", "14", "--wait", "20", "--json", redis_url=redis_url)
        split = cli("split", "42", "1", "--media", "s0-1", "--media", "s0-2", "--wait", "20", redis_url=redis_url)
        cli("exclude", "42", "2", "--media", "s1-1", "--wait", "20", redis_url=redis_url)
        cli("dismiss", "42", "--media", "s1-2", "--wait", "20", redis_url=redis_url)
        again = cli("recluster", "42", "--wait", "20", redis_url=redis_url)
        restored = cli("restore", "42", "13", "--wait", "20", redis_url=redis_url)
        preview = json.loads(cli("recluster", "42", "--preview", "--json", redis_url=redis_url).stdout)
        shown = cli("recluster", "42", "--preview", redis_url=redis_url)
        applied = cli("recluster", "42", "--apply", preview["token"], "--by", "ada", redis_url=redis_url)
        stale = cli("recluster", "42", "--apply", "1-abc", redis_url=redis_url)
        refused = cli("merge", "42", "1", "99", "--wait", "20", redis_url=redis_url)

    assert merged.returncode == 0, merged.stderr
    assert "succeeded" in merged.stdout
    assert "cluster: 2" in merged.stdout
    assert json.loads(undone.stdout)["state"] == "succeeded"
    assert "n_moved: 2" in split.stdout
    assert "kept: constraints kept 5 of 5" in again.stdout
    assert "n_dismissed: 1" in again.stdout
    assert "restored: 13" in restored.stdout
    assert f"sploot-cluster recluster 42 --apply {preview['token']}" in shown.stdout
    assert "pet 42 is as previewed, at revision" in applied.stdout
    assert (stale.returncode, "cannot be applied" in stale.stderr) == (4, True)
    why = cli("why", "42", "s1-2", redis_url=redis_url)
    assert "s1-2 is in no cluster, dismissed" in why.stdout
    assert json.loads(cli("why", "42", "s1-3", "--json", redis_url=redis_url).stdout)["origin"] == "core"
    diff = cli("history", "42", "--diff", "13", "14", redis_url=redis_url)
    assert "6 media where they were, 6 in another cluster" in diff.stdout
    assert "cluster 1 went into 2" in diff.stdout
    assert refused.returncode == 1
    assert "pet 42 has no cluster 99" in refused.stdout
    assert [entry.by for entry in service.history(PET)][-2] == "ada"
    assert service.history(PET)[0].by == "ada"


def test_pet_is_exported_deleted_and_imported(
    redis_url: str, redis_client: redis.Redis, service: ClusterService, tmp_path: Path
) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET)
    file = tmp_path / "pet.zip"

    exported = cli("export", "42", str(file), redis_url=redis_url)
    planned = cli("delete", "42", redis_url=redis_url)
    one = cli("delete", "42", "--media", "s0-1", "--yes", "--json", redis_url=redis_url)
    there = cli("import", str(file), redis_url=redis_url)
    whole = cli("delete", "42", "--yes", redis_url=redis_url)
    nothing = cli("delete", "42", "--yes", redis_url=redis_url)
    left = redis_client.keys("*42*")
    imported = cli("import", str(file), redis_url=redis_url)
    tally = cli("tally", "42", redis_url=redis_url)

    assert (exported.returncode, file.exists()) == (0, True)
    assert (planned.returncode, "would delete for good: pet 42 with 12 media" in planned.stdout) == (4, True)
    assert json.loads(one.stdout)["n_media"] == 1
    assert (there.returncode, "pet 42 holds something already" in there.stderr) == (4, True)
    assert "deleted: 11 media" in whole.stdout
    assert (nothing.returncode, left) == (1, [])
    assert "pet 42 is here, at revision 13: 12 media, 2 clusters" in imported.stdout
    assert "pet 42: ingested 12 = clustered 12 + noise 0 + quarantined 0 + dismissed 0" in tally.stdout


def test_deletion_of_an_item_lists_its_dead_letters(
    redis_client: redis.Redis, redis_url: str, service: ClusterService
) -> None:
    take(service, 0, range(3))
    dead_letters = {}
    for item in (name(0, 1), f"{name(0, 1)}0"):
        entry: dict[Any, Any] = {"entry:pet_id": str(PET), "entry:media_id": item, "reason": "failed", "error": "x"}
        entry |= {"died_at": "2026-11-24T03:00:00+00:00", "entry_id": "1-0", "deliveries": 1}
        stored = redis_client.xadd(f"{{{stream_of(EMBEDDING_INGESTED)}}}:dead", entry)
        assert isinstance(stored, bytes)
        dead_letters[item] = stored.decode()

    planned = cli("delete", str(PET), "--media", name(0, 1), "--by", "eve", redis_url=redis_url)
    done = cli("delete", str(PET), "--media", name(0, 1), "--by", "eve", "--yes", redis_url=redis_url)

    for told in (planned, done):
        assert f"dead letter {dead_letters[name(0, 1)]} of embedding.ingested" in told.stdout
        assert dead_letters[f"{name(0, 1)}0"] not in told.stdout
    assert redis_client.xlen(f"{{{stream_of(EMBEDDING_INGESTED)}}}:dead") == 1


def test_damaged_pet_is_named_by_tally_and_can_be_deleted(
    redis_client: redis.Redis, redis_url: str, service: ClusterService
) -> None:
    take(service, 0, range(3))
    redis_client.delete(f"{{pet:{PET}}}:meta")

    told = cli("tally", redis_url=redis_url)
    planned = cli("delete", str(PET), "--by", "eve", redis_url=redis_url)
    done = cli("delete", str(PET), "--by", "eve", "--yes", redis_url=redis_url)

    assert told.returncode == 1
    assert f"pet {PET} cannot be read: {{pet:{PET}}}:meta: expected a hash next to" in told.stdout
    assert f"pet {PET} with all that is left of it ({{pet:{PET}}}:meta" in planned.stdout
    assert (done.returncode, redis_client.keys("*")) == (0, [])


def test_items_only_in_the_candidate_model_are_counted(redis_url: str, service: ClusterService) -> None:
    take(service, 0, range(3))
    service.begin_model(PET, "clip@2", 16, by="eve")
    for number in range(1, 5):
        service.assign(PET, name(0, number), model="clip@2", vector=picture(0, number))

    status = cli("model", "status", str(PET), redis_url=redis_url)
    status_json = json.loads(cli("model", "status", str(PET), "--json", redis_url=redis_url).stdout)
    why = cli("why", str(PET), name(0, 4), redis_url=redis_url)
    planned = cli("model", "end", str(PET), redis_url=redis_url)

    assert "1 of the 3 have no vector in it yet" in status.stdout
    assert "2 items are in it alone" in status.stdout
    assert (status_json["candidate"]["n_vectors"], status_json["candidate"]["n_only_here"]) == (4, 2)
    assert "it is quarantined: its vector is of 'clip@2' with 16 values" in why.stdout
    assert "would forget 4 vectors of clip@2; 2 items have no other vector, and stay quarantined" in planned.stdout


def test_pet_is_switched_to_another_model(redis_url: str, service: ClusterService) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET)
    begun = cli("model", "begin", "42", "clip@2", "16", redis_url=redis_url)
    for subject in range(2):
        for number in range(6):
            service.assign(PET, name(subject, number), model="clip@2", vector=picture(subject, number))

    status = cli("model", "status", "42", redis_url=redis_url)
    preview = json.loads(cli("model", "preview", "42", "--json", redis_url=redis_url).stdout)
    stale = cli("model", "switch", "42", "--apply", "13-abc", redis_url=redis_url)
    switched = cli("model", "switch", "42", "--apply", preview["token"], redis_url=redis_url)
    planned = cli("model", "end", "42", redis_url=redis_url)
    ended = cli("model", "end", "42", "--yes", redis_url=redis_url)

    assert begun.returncode == 0, begun.stderr
    assert "beside it 12 media in clip@2 of 16 values" in status.stdout
    assert (stale.returncode, "cannot be applied" in stale.stderr) == (4, True)
    assert "pet 42 is switched, at revision 14: 0 media moved" in switched.stdout
    assert (planned.returncode, ended.stdout) == (4, "forgotten: 12 vectors of clip@1\n")
    assert service.clusters(PET).model == "clip@2"


def test_deletion_is_refused_while_events_wait(redis_url: str, service: ClusterService) -> None:
    take(service, 0, range(3))
    line = json.dumps({"pet_id": 42, "media_id": "late", "model": "clip@1", "embedding": [1.0] * 16})
    cli("ingest", "-", redis_url=redis_url, given=line)

    refused = cli("delete", "42", "--yes", redis_url=redis_url)

    assert (refused.returncode, "1 jobs about it wait" in refused.stderr) == (4, True)
    assert service.clusters(PET).n_media == 3


def test_job_without_a_worker_is_only_enqueued(redis_url: str, redis_client: redis.Redis) -> None:
    first = cli("recluster", "42", redis_url=redis_url)
    second = cli("recluster", "42", "--json", redis_url=redis_url)
    late = cli("undo", "42", "3", "--wait", "0.1", redis_url=redis_url)

    assert "enqueued in queue cluster.recluster, position 1" in first.stdout
    assert json.loads(second.stdout)["coalesced"] is True
    assert late.returncode == 1
    assert "no worker takes jobs of queue cluster.feedback" in late.stdout
    assert redis_client.xlen(stream_of(CLUSTER_RECLUSTER)) == redis_client.xlen(stream_of(CLUSTER_FEEDBACK)) == 1


# -- operations ------------------------------------------------------------------------------------------------------


def test_queue_status_is_printed_as_text_and_json(redis_url: str, redis_client: redis.Redis) -> None:
    cli("recluster", "42", redis_url=redis_url)

    for_people = cli("queue", "status", redis_url=redis_url)
    for_programs = json.loads(cli("queue", "status", "--json", redis_url=redis_url).stdout)

    assert [queue["queue"] for queue in for_programs] == list(QUEUES)
    assert {queue["queue"]: queue["undelivered"] for queue in for_programs}[CLUSTER_RECLUSTER] == 1
    assert "start one: sploot-cluster worker" in for_people.stdout


def test_config_show_lists_settings_and_masks_secrets(redis_url: str) -> None:
    secrets = {"REDIS_URL": "redis://:hunter22@localhost/0", "SPLOOT_API_TOKENS": "auth:producer:correct-horse-battery"}

    shown = cli("config", "show", redis_url=redis_url, environ=secrets)

    assert shown.returncode == 0
    assert "SPLOOT_CLUSTERING_GROWTH_RATIO" in shown.stdout
    assert "redis://:***@localhost/0" in shown.stdout
    assert not {"hunter22", "correct-horse-battery"} & set(shown.stdout.replace(":", " ").split())


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["merge", "42", "1"], {}, "cluster_ids"),
        (["recluster", "0"], {}, "pet_id"),
        (["recluster"], {}, "PET"),
        (["history", "42", "--limit", "99999999999999999999"], {}, "--limit"),
        (["dance"], {}, "dance"),
        (["queue", "status"], {"SPLOOT_LEASE_MS": "soon"}, "SPLOOT_LEASE_MS"),
        (["worker", "--queue", "nothing"], {}, "--queue"),
        (["serve"], {"SPLOOT_API_TOKENS": "auth"}, "SPLOOT_API_TOKENS"),
    ],
)
def test_usage_error_exits_2_and_names_the_argument(
    redis_url: str, arguments: list[str], environ: dict[str, str], named: str
) -> None:
    done = cli(*arguments, redis_url=redis_url, environ=environ)

    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["queue", "status"], ["clusters", "42"], ["recluster", "42"]])
def test_unreachable_redis_exits_3(arguments: list[str]) -> None:
    done = cli(*arguments, redis_url=f"redis://:hunter22@127.0.0.1:{free_port()}/0")

    assert done.returncode == 3
    assert "no answer from Redis at redis://:***@127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter22" not in done.stderr


def test_serve_beyond_loopback_without_tokens_exits_4(redis_url: str) -> None:
    done = cli("serve", "--host", "0.0.0.0", "--port", "0", redis_url=redis_url)

    assert done.returncode == 4
    assert "SPLOOT_API_TOKENS" in done.stderr


def test_http_request_of_the_runbook_works(redis_url: str, redis_client: redis.Redis) -> None:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "tasks.cli", "serve", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": redis_url},
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: _get(port, "/readyz") == 200, within_s=60)
        # what HTTPie sends for: http POST …/recluster pet_id:=42
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/v1/internal/clusters/recluster",
            data=b'{"pet_id": 42}',
            headers={"Content-Type": "application/json", "Accept": "application/json, */*;q=0.5"},
        )
        with urllib.request.urlopen(request) as answer:
            status, location, body = answer.status, answer.headers["Location"], json.load(answer)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{location}") as answer:
            job = json.load(answer)
        metrics = _get(port, "/metrics")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)

    assert status == 202
    assert body["position"] == 1
    assert (job["job_id"], job["state"]) == (body["job_id"], "queued")
    assert metrics == 200
    assert server.returncode in (0, -signal.SIGTERM)  # uvicorn ends in order, and then by the signal itself
    assert redis_client.xlen(stream_of(CLUSTER_RECLUSTER)) == 1


def test_missing_typer_is_reported_in_one_sentence() -> None:
    hidden = "import sys; sys.modules['typer'] = None; import tasks.cli"

    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr == (
        "sploot-cluster: the command line needs typer; pip install 'sploot-cluster[worker]' or '[server]'\n"
    )


def _get(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
