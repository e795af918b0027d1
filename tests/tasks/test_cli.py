"""The command line on a real Redis: output and exit codes. Most commands run in the test's own process."""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import typer
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit

from broker import RedisStreamsBroker
from deploy.reference import index_of_commands
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import ClusterId, PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.cli import app
from tasks.composition import build_app
from tasks.contracts import CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP, QUEUES, stream_of
from tasks.job_records import JobRecords, TrackJobs
from tasks.queue_ops.entries import facts_of
from tasks.settings import Settings
from tasks.wire import DECODERS
from tests.sploot_cluster.albums import PET, name, picture, take, two_looks
from tests.sploot_cluster.api.front import API, client_of
from tests.system.events import free_port
from tests.tasks.command_line import CommandLine

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def service(redis_client: redis.Redis) -> ClusterService:
    return ClusterService(RedisPetStore(redis_client))


@pytest.fixture
def cli(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(redis_url, monkeypatch, capsys)


def process(*arguments: str, redis_url: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": redis_url, "COLUMNS": "200", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def jobs_running(redis_url: str, client: redis.Redis, service: ClusterService) -> Iterator[None]:
    """Run a worker in this process for corrections and reclusters."""
    broker = RedisStreamsBroker(
        redis_url,
        group=GROUP,
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


def test_help_names_every_command(cli: CommandLine) -> None:
    helped = cli("--help")

    assert helped.code == 0
    commands = {"worker", "scheduler", "serve", "demo", "ingest", "recluster", "merge", "split", "exclude", "dismiss"}
    for command in commands | {"undo", "clusters"} | {"history", "queue", "config"}:
        assert f" {command} " in helped.out


def test_clusters_command_finds_clusters_by_the_beginning_of_a_name(cli: CommandLine, service: ClusterService) -> None:
    two_looks(service)
    service.name(PET, ClusterId(2), "Rex", operation_id="1", by="ada")
    service.lock(PET, [ClusterId(2)], operation_id="2", by="ada")

    found = cli("clusters", str(PET), "--name", "rex")

    assert "6 clusters" in found.out
    assert [row for row in found.out.splitlines() if "(locked)" in row and "Rex" in row]
    assert name(2, 0) not in found.out


# -- reviews ---------------------------------------------------------------------------------------------------------


def test_suggestions_are_printed_with_a_command_for_each_answer(cli: CommandLine, service: ClusterService) -> None:
    two_looks(service)

    shown = cli("suggestions", str(PET), "--limit", "1")
    listed = cli("suggestions", str(PET), "--json").json
    doubtful = cli("doubtful", str(PET), "--cluster", "2")

    assert "Do clusters 1 and 2 show the same subject?" in shown.out
    assert "yes: sploot-cluster merge 42 1 2 --suggestion same_subject" in shown.out
    assert listed["suggestions"][0]["no"]["verb"] == "keep_apart"
    assert (doubtful.code, name(1, 0) in doubtful.out) == (0, True)
    assert cli("merge", "42", "1", "2", "--suggestion", "same_subject").code == 0


# -- ingest ----------------------------------------------------------------------------------------------------------


def test_ingest_sends_valid_lines_and_reports_numbers_of_invalid_lines(
    cli: CommandLine, redis_client: redis.Redis
) -> None:
    good = {"pet_id": 1, "media_id": "a", "model": "clip@1", "embedding": [1.0, 2.0]}
    whole = {
        "schema": "embedding.ingested/1", "event_id": "e", "pet_id": 1, "media_id": "b", "model": "clip@1",
        "dim": 2, "encoding": "json", "embedding": [1.0, 2.0],
    }  # fmt: skip
    lines = [json.dumps(good), "", "{no json", json.dumps(good | {"embedding": [0.0, 0.0]}), json.dumps(whole), "[1]"]

    done = cli("ingest", "-", given="\n".join(lines))

    assert done.code == 1
    assert "2 items sent to streams:embedding.ingested, 3 refused" in done.out
    reports = done.err.splitlines()
    assert [line.partition(":")[0] for line in reports[:3]] == ["entry 2", "entry 3", "entry 5"]
    assert "embedding" in reports[1]
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 2


def test_ingest_sends_an_npz_file(cli: CommandLine, redis_client: redis.Redis, tmp_path: Path) -> None:
    file = tmp_path / "media.npz"
    embedding = np.random.default_rng(1).normal(size=(700, 8)).astype(np.float32)
    np.savez(file, pet_id=7, media_id=[f"m{n}" for n in range(700)], model="clip@1", embedding=embedding)

    done = cli("ingest", str(file))

    assert (done.code, done.out) == (0, "700 items sent to streams:embedding.ingested\n")
    assert "no worker runs" in done.err
    assert "sploot-cluster clusters 7" in done.err
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 700


PAIR = np.array([[1.0, 2.0], [2.0, 1.0]], dtype=np.float32)
LINE = {"pet_id": 7, "media_id": "a", "model": "clip@1", "embedding": [1.0, 2.0]}
FOR_ALL = ["--pet", "7", "--model", "clip@1"]


def write_lines(file: Path) -> None:
    file.write_bytes(gzip.compress(json.dumps(LINE).encode()))


def write_parquet(file: Path) -> None:
    table = {"filename": ["a", b"b".decode()], "vector": PAIR.tolist(), "label": [1, 2]}
    pq.write_table(pa.table(table), file)


# suffix: what writes the file, the options, and the ids that are sent
READABLE: dict[str, tuple[Callable[[Path], Any], list[str], list[str]]] = {
    "vectors.npy": (lambda file: np.save(file, PAIR), FOR_ALL, ["vectors-0", "vectors-1"]),
    "lines.jsonl.gz": (write_lines, [], ["a"]),
    "table.parquet": (write_parquet, [*FOR_ALL, "--id-column", "filename"], ["a", "b"]),
    "bytes.npz": (
        lambda file: np.savez(file, media_id=np.array([b"a", "ä".encode()]), embedding=PAIR), FOR_ALL, ["a", "ä"]
    ),
    "names.npz": (
        lambda file: np.savez(file, ids=np.array(["a", "b"]), embeddings=PAIR, label=[1, 2]),
        [*FOR_ALL, "--id-column", "ids"],
        ["a", "b"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READABLE)
def test_file_of_embeddings_is_ingested(cli: CommandLine, redis_client: Any, tmp_path: Path, name: str) -> None:
    write, options, ids = READABLE[name]
    write(tmp_path / name)

    done = cli("ingest", str(tmp_path / name), *options)

    assert (done.code, done.out.splitlines()[0]) == (0, f"{len(ids)} items sent to streams:embedding.ingested")
    sent = [facts_of(fields) for _, fields in redis_client.xrange(stream_of(EMBEDDING_INGESTED))]
    assert [(event.pet_id, event.media_id) for event in sent] == [(7, media_id) for media_id in ids]


ARRAYS: dict[str, Any] = {"pet_id": 7, "media_id": ["a", "b"], "model": "clip@1", "embedding": PAIR}
UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent.jsonl": (lambda _: None, "No such file"),
    "absent.npy": (lambda _: None, "No such file"),
    "incomplete.npz": (lambda file: np.savez(file, embedding=PAIR), "add --pet ID --id-column NAME --model"),
    "ids.npz": (lambda file: np.savez(file, ids=["a", "b"], embedding=PAIR), "--id-column ids"),
    "objects.npz": (
        lambda file: np.savez(file, **ARRAYS | {"media_id": np.array(["a", 1], dtype=object)}),
        "dtype=str",
    ),
    "text.npz": (lambda file: file.write_text("hello"), "not a .npz file"),
    "empty.npz": (lambda file: file.touch(), "cut off or damaged"),
    "cut.npz": (lambda file: file.write_bytes(zip_of(ARRAYS)[:300]), "cut off or damaged"),
    "cut.jsonl.gz": (lambda file: file.write_bytes(gzip.compress(b"{}" * 100)[:20]), "cut off or damaged"),
    "text.parquet": (lambda file: file.write_text("hello"), "not a Parquet file"),
    "one.npy": (lambda file: np.save(file, PAIR[0]), "of shape (2,)"),
    "constant.npz": (lambda file: np.savez(file, **ARRAYS | {"model": "clip"}), "model"),
    "length.npz": (lambda file: np.savez(file, **ARRAYS | {"media_id": ["a"]}), "media_id has 1 entries"),
}


def zip_of(arrays: Mapping[str, Any]) -> bytes:
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


@pytest.mark.parametrize("name", UNREADABLE)
def test_unusable_file_is_reported_as_a_usage_error(cli: CommandLine, tmp_path: Path, name: str) -> None:
    write, problem = UNREADABLE[name]
    write(tmp_path / name)

    done = cli("ingest", str(tmp_path / name))

    assert done.code == 2
    assert problem in done.err
    assert len(done.err.splitlines()) == 1


def test_ingest_reports_the_first_errors_and_counts_the_others(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    deep = b"[" * 100_000
    file.write_bytes(b"\n".join([b'{"media_id": "\xe4"}', deep, *[b"{}"] * 58]))

    done = cli("ingest", str(file))

    reports = done.err.splitlines()
    assert (done.code, done.out) == (1, "0 items sent to streams:embedding.ingested, 60 refused\n")
    assert len(reports) == 6
    assert "UTF-8" in reports[0]
    assert "JSON" in reports[1]
    assert reports[-1] == "and 55 more entries were refused"


def test_ingest_reports_vectors_of_several_dimensions(cli: CommandLine) -> None:
    lines = [json.dumps(LINE), json.dumps(LINE | {"media_id": "b", "embedding": [1.0, 2.0, 3.0]})]

    done = cli("ingest", "-", given="\n".join(lines))

    assert done.code == 0
    assert "1 of clip@1 with 2 dimensions, 1 of clip@1 with 3 dimensions" in done.err


# -- help ------------------------------------------------------------------------------------------------------------


def all_commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    def below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        for word, one in command.commands.items():
            yield from below((*path, word), one) if hasattr(one, "commands") else [((*path, word), one)]

    yield from below((), typer.main.get_command(app))


def test_help_of_every_command_has_valid_examples() -> None:
    for path, command in all_commands():
        examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
        assert examples, path
        for example in examples:
            words = shlex.split(example)
            assert tuple(words[: len(path) + 1]) == ("sploot-cluster", *path)
            command.make_context(path[-1], words[len(path) + 1 :]).close()


def test_index_of_commands_is_up_to_date() -> None:
    file, text = index_of_commands()

    assert file.read_text(encoding="utf-8") == text, "run `make reference`"


def test_help_imports_no_command() -> None:
    code = "import sys, tasks.cli; sys.argv = ['sploot-cluster', '--help']\n"
    code += "try: tasks.cli.main()\nexcept SystemExit: print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert {"rich", "redis", "numpy", "sploot_cluster.decide"}.isdisjoint(loaded.splitlines()[-1].split())


def test_short_command_imports_neither_engine_nor_asyncio_clients(redis_url: str) -> None:
    code = "import sys, tasks.cli; sys.argv = ['sploot-cluster', 'queue', 'status']\n"
    code += "try: tasks.cli.main()\nexcept SystemExit: print(*(name for name, module in sys.modules.items() if module))"
    environ = {**os.environ, "REDIS_URL": redis_url}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)

    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"redis.client", "broker.broker"} <= loaded
    assert {"numpy", "redis.asyncio.client", "opentelemetry", "gevent", "fastapi"}.isdisjoint(loaded)
    assert len(loaded) < 650


@pytest.mark.parametrize(
    ("words", "meant"), [(["clustrs"], "clusters"), (["queue", "ded"], "dead"), (["clusters", "1", "--jsn"], "--json")]
)
def test_error_for_a_misspelt_word_suggests_the_right_one(cli: CommandLine, words: list[str], meant: str) -> None:
    done = cli(*words)

    assert done.code == 2
    assert meant in done.err


# -- jobs and lists --------------------------------------------------------------------------------------------------


def test_job_is_shown_with_the_reason_why_it_waits(cli: CommandLine) -> None:
    job_id = cli("recluster", "42", "--json").json["job_id"]

    shown, as_json, unknown = cli("job", job_id), cli("job", job_id, "--json"), cli("job", "nothing")

    assert (shown.code, as_json.json["state"], unknown.code) == (0, "queued", 1)
    assert f"job {job_id} queued: no worker takes jobs" in shown.out
    assert "recluster_pet in queue cluster.recluster, pet 42" in shown.out
    assert "is unknown" in unknown.err


def test_pets_are_listed_page_by_page(cli: CommandLine, service: ClusterService) -> None:
    for pet in (42, 7, 8):
        take(service, 0, range(pet % 5), pet=PetId(pet))

    page = cli("pets", "--order", "items", "--limit", "2")
    rest = cli("pets", "--order", "items", "--limit", "2", "--cursor", page.out.split()[-1], "--json").json

    service.name_pet(PetId(7), "Mochi", operation_id="1", by="ada")
    named = cli("pets", "--search", "moch")

    assert [line.split()[:2] for line in page.out.splitlines()[1:3]] == [["8", "3"], ["7", "2"]]
    assert [line.split()[:3] for line in named.out.splitlines()] == [["pet", "name", "items"], ["7", "Mochi", "2"]]
    assert cli("clusters", "7").out.startswith("pet 7 (Mochi) at revision 3: ")
    assert ([pet["pet_id"] for pet in rest["pets"]], rest["next_cursor"]) == ([42], None)


# -- views and corrections -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clusters_and_history_are_printed_as_text_and_json(cli: CommandLine, service: ClusterService) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET, by="ada")

    for_people = cli("clusters", "42")
    for_programs = cli("clusters", "42", "--json")
    by_time = cli("clusters", "42", "--json", "--order", "occurred_at").json
    why = cli("why", "42", "s0-1")
    history = cli("history", "42", "--json")

    assert by_time["clusters"][0]["media_ids"] == ["s0-5", "s0-4", "s0-2", "s0-1", "s0-0", "s0-3"]
    assert by_time["occurred_at"]["s0-1"] == "2026-01-31T11:59:58.999000+00:00"
    assert "occurred at 2026-01-31 11:59:58 UTC" in why.out
    assert "pet 42 at revision 13: 12 items, 2 clusters, 0 noise, model clip@1 with 16 dimensions" in for_people.out
    shown = for_programs.json
    assert [len(cluster["media_ids"]) for cluster in shown["clusters"]] == [6, 6]
    assert (shown["revision"], shown["noise"], shown["aliases"]) == (13, [], {})
    (entry,) = history.json["entries"]
    assert (entry["revision"], entry["kind"], entry["by"]) == (13, "recluster", "ada")
    assert entry["summary"]["n_clusters"] == 2


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("clusters 42", "/clusters"),
        ("tally 42", "/tally"),
        ("why 42 s0-1", "/media/s0-1/why"),
        ("why 42 s2-0", "/media/s2-0/why"),
        ("history 42", "/history"),
        ("history 42 --diff 12 15", "/history/diff?from=12&to=15"),
        ("model status 42", "/model"),
    ],
)
def test_json_output_of_a_command_equals_the_api_response(
    cli: CommandLine, redis_url: str, service: ClusterService, command: str, path: str
) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET, by="ada")
    service.dismiss(PET, [name(0, 1)], operation_id="1", by="ada")
    service.merge(PET, [ClusterId(1), ClusterId(2)], operation_id="2", by="ada")
    service.begin_model(PET, "clip@2", 16, by="eve")
    service.assign(PET, name(2, 0), model="clip@2", vector=picture(2, 0))

    printed = cli(*command.split(), "--json").out
    answered = client_of(build_app(Settings(redis_url=redis_url))).get(f"{API}/pets/42{path}").json()

    # the command line writes UTC as +00:00
    assert json.loads(printed.replace("+00:00", "Z")) == answered


@pytest.mark.slow
def test_correction_with_wait_prints_its_result(
    cli: CommandLine, redis_url: str, redis_client: redis.Redis, service: ClusterService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET)

    with jobs_running(redis_url, redis_client, service):
        merged = cli("merge", "42", "1", "2", "--into", "2", "--by", "ada", "--wait", "20")
        undone = cli("undo", "42", "14", "--wait", "20", "--json")
        split = cli("split", "42", "1", "--media", "s0-1", "--media", "s0-2", "--wait", "20")
        cli("exclude", "42", "2", "--media", "s1-1", "--wait", "20")
        cli("dismiss", "42", "--media", "s1-2", "--wait", "20")
        again = cli("recluster", "42", "--wait", "20")
        restored = cli("restore", "42", "13", "--wait", "20")
        preview = cli("recluster", "42", "--preview", "--json").json
        shown = cli("recluster", "42", "--preview")
        applied = cli("recluster", "42", "--apply", preview["token"], "--by", "ada")
        monkeypatch.setitem(sys.modules, "hdbscan", None)
        lacking = cli("recluster", "42", "--preview", "--backend", "hdbscan_reference")
        stale = cli("recluster", "42", "--apply", "1-abc")
        refused = cli("merge", "42", "1", "99", "--wait", "20")

    assert merged.code == 0, merged.err
    assert "succeeded" in merged.out
    assert "cluster: 2" in merged.out
    assert undone.json["state"] == "succeeded"
    assert "n_moved: 2" in split.out
    assert "kept: constraints kept 5 of 5" in again.out
    assert "n_dismissed: 1" in again.out
    assert "restored: 13" in restored.out
    assert f"sploot-cluster recluster 42 --apply {preview['token']}" in shown.out
    assert "pet 42 is as previewed, at revision" in applied.out
    assert lacking.code == 4
    assert lacking.err.count("\n") == 1
    assert "pip install 'sploot-cluster[reference]'" in lacking.err
    assert (stale.code, "cannot be applied" in stale.err) == (4, True)
    why = cli("why", "42", "s1-2")
    assert "s1-2 is in no cluster, dismissed" in why.out
    assert cli("why", "42", "s1-3", "--json").json["origin"] == "core"
    diff = cli("history", "42", "--diff", "13", "14")
    assert "6 items unchanged, 6 in another cluster" in diff.out
    assert "cluster 1 merged into 2" in diff.out
    assert (refused.code, "pet 42 has no cluster 99" in refused.err) == (2, True)
    assert "sploot-cluster clusters 42 lists them" in refused.err
    assert "GET" not in refused.err
    assert [entry.by for entry in service.history(PET)][-2] == "ada"
    assert service.history(PET)[0].by == "ada"


def test_all_pets_are_written_as_parquet(cli: CommandLine, service: ClusterService, tmp_path: Path) -> None:
    take(service, 0, range(6))
    take(service, 1, range(3), pet=PetId(43))
    directory = tmp_path / "tables"

    written = cli("parquet", str(directory), "--json")
    again = cli("parquet", str(directory))
    half = cli("parquet", str(directory), "--part", "2/2")
    wrong = cli("parquet", str(directory), "--part", "3/2")

    assert (written.json["pets"], written.json["items"]) == (2, 9)
    assert pq.read_table(written.json["files"][0]).num_rows == 9
    assert (again.code, "name an empty directory" in again.err) == (2, True)
    assert (half.code, "3 items of 1 pets written: 1 files" in half.out) == (0, True)
    assert (wrong.code, "'3/2' is not one of a number of parts" in wrong.err) == (2, True)


def test_vectors_of_idle_pets_move_out_and_back(cli: CommandLine, service: ClusterService, tmp_path: Path) -> None:
    take(service, 0, range(6))
    take(service, 1, range(3), pet=PetId(43))
    environ = {"SPLOOT_COLD_STORE": f"file://{tmp_path}/vectors"}
    unset = cli("cold")
    both = cli("cold", "--out", "1", "--back", environ=environ)

    young = cli("cold", "--out", "1", "--json")
    plan = cli("cold", "--out", "0")
    moved = cli("cold", "--out", "0", "--yes", "--json")
    tables = cli("parquet", str(tmp_path / "tables"), "--json")
    captured = cli("capture", "--pet", "42", "-o", str(tmp_path / "42.zip"))
    raw = cli("capture", "--pet", "43", "--raw", "-o", str(tmp_path / "43.zip"))
    seen = cli("cold")
    checked = cli("cold", "--check")
    (lost,) = (tmp_path / "vectors" / "43").rglob("0")
    lost.rename(tmp_path / "lost")
    damaged = cli("cold", "--check", "--json")
    partly = cli("cold", "--back", "--yes")
    (tmp_path / "lost").rename(lost)
    back = cli("cold", "--back", "--yes", "--json")

    assert (unset.code, "SPLOOT_COLD_STORE" in unset.err) == (2, True)
    assert (both.code, "cannot be combined" in both.err) == (2, True)
    assert (young.code, young.json["pets"]) == (4, 0)
    assert (plan.code, "vectors of 2 pets, 0.0 MB, can be moved out of Redis" in plan.out) == (4, True)
    assert moved.json == {"pets": 2, "bytes": 9 * 4 * 16, "moved": 2, "unreadable": []}
    assert tables.json["items"] == 9
    assert (captured.code, raw.code) == (0, 0)
    assert (seen.code, "vectors of 2 pets, 0.0 MB, are in the cold store" in seen.out) == (0, True)
    assert (checked.code, "2 intact" in checked.out) == (0, True)
    assert (damaged.code, damaged.json["unreadable"]) == (1, [43])
    assert (partly.code, "1 moved" in partly.out, "pet 43 cannot be read" in partly.err) == (1, True, True)
    assert back.json["moved"] == 1
    assert cli("cold", "--json").json["pets"] == 0
    for pet, file in (("50", "42.zip"), ("51", "43.zip")):
        assert cli("import", str(tmp_path / file), "--as", pet).code == 0
        assert cli("export", pet, str(tmp_path / "copy.zip")).code == 0


def test_interrupted_recluster_of_all_pets_prints_how_to_continue(cli: CommandLine, service: ClusterService) -> None:
    for pet in (41, 42):
        take(service, 0, range(2), pet=PetId(pet))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.cli.bulk.time.sleep", interrupt)  # nothing runs the jobs, so the command waits
        done = cli("recluster", "--all")

    assert (done.code, "repeat the command with --after 42" in done.err) == (130, True)


def test_all_pets_are_reclustered_through_the_queue(
    cli: CommandLine, redis_url: str, redis_client: redis.Redis, service: ClusterService
) -> None:
    for pet in range(41, 45):
        take(service, 0, range(6), pet=PetId(pet))

    with jobs_running(redis_url, redis_client, service):
        all_of_them = cli("recluster", "--all", "--by", "ada")
        half = cli("recluster", "--all", "--part", "1/2", "--json")
        rest = cli("recluster", "--all", "--after", "43", "--json")
        both = cli("recluster", "42", "--all")
        waiting = cli("recluster", "--all", "--preview")

    assert (all_of_them.code, all_of_them.out) == (0, "4 of 4 pets reclustered\n")
    assert (half.json["pets"], rest.json["pets"], half.json["failed"]) == (2, 1, [])
    reclusters = [sum(entry.kind == "recluster" for entry in service.history(PetId(pet))) for pet in range(41, 45)]
    assert reclusters == [2, 1, 2, 2]
    assert (both.code, "give one pet, or --all" in both.err) == (2, True)
    assert (waiting.code, "cannot be combined" in waiting.err) == (2, True)


def test_pet_is_exported_deleted_and_imported(
    cli: CommandLine, redis_client: redis.Redis, service: ClusterService, tmp_path: Path
) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET)
    file = tmp_path / "pet.zip"

    exported = cli("export", "42", str(file))
    planned = cli("delete", "42")
    one = cli("delete", "42", "--media", "s0-1", "--yes", "--json")
    there = cli("import", str(file))
    whole = cli("delete", "42", "--yes")
    nothing = cli("delete", "42", "--yes")
    left = redis_client.keys("*42*")
    imported = cli("import", str(file))
    tally = cli("tally", "42")

    assert (exported.code, file.exists()) == (0, True)
    assert (planned.code, "would delete permanently: pet 42 with 12 items" in planned.out) == (4, True)
    assert one.json["n_media"] == 1
    assert (there.code, "pet 42 already exists" in there.err) == (4, True)
    assert "deleted: 11 items" in whole.out
    assert (nothing.code, left) == (1, [])
    assert "pet 42 imported at revision 13: 12 items, 2 clusters" in imported.out
    assert "pet 42: ingested 12 = clustered 12 + noise 0 + quarantined 0 + dismissed 0" in tally.out


def test_deletion_of_an_item_lists_its_dead_letters(
    redis_client: redis.Redis, cli: CommandLine, service: ClusterService
) -> None:
    take(service, 0, range(3))
    dead_letters = {}
    for item in (name(0, 1), f"{name(0, 1)}0"):
        entry: dict[Any, Any] = {"entry:pet_id": str(PET), "entry:media_id": item, "reason": "failed", "error": "x"}
        entry |= {"died_at": "2026-11-24T03:00:00+00:00", "entry_id": "1-0", "deliveries": 1}
        stored = redis_client.xadd(f"{{{stream_of(EMBEDDING_INGESTED)}}}:dead", entry)
        assert isinstance(stored, bytes)
        dead_letters[item] = stored.decode()

    planned = cli("delete", str(PET), "--media", name(0, 1), "--by", "eve")
    done = cli("delete", str(PET), "--media", name(0, 1), "--by", "eve", "--yes")

    for ran in (planned, done):
        assert f"dead letter {dead_letters[name(0, 1)]} of embedding.ingested" in ran.out
        assert dead_letters[f"{name(0, 1)}0"] not in ran.out
    assert redis_client.xlen(f"{{{stream_of(EMBEDDING_INGESTED)}}}:dead") == 1


def test_tally_command_names_a_damaged_pet_that_can_be_deleted(
    redis_client: redis.Redis, cli: CommandLine, service: ClusterService
) -> None:
    take(service, 0, range(3))
    redis_client.delete(f"{{pet:{PET}}}:meta")

    tally = cli("tally")
    planned = cli("delete", str(PET), "--by", "eve")
    done = cli("delete", str(PET), "--by", "eve", "--yes")

    assert tally.code == 1
    assert f"pet {PET} cannot be read: {{pet:{PET}}}:meta: expected a hash next to" in tally.out
    assert f"pet {PET} with all its remaining data ({{pet:{PET}}}:meta" in planned.out
    assert (done.code, redis_client.keys("*")) == (0, [])


def test_items_only_in_the_candidate_model_are_counted(cli: CommandLine, service: ClusterService) -> None:
    take(service, 0, range(3))
    service.begin_model(PET, "clip@2", 16, by="eve")
    for number in range(1, 5):
        service.assign(PET, name(0, number), model="clip@2", vector=picture(0, number))

    status = cli("model", "status", str(PET))
    status_json = cli("model", "status", str(PET), "--json").json
    why = cli("why", str(PET), name(0, 4))
    planned = cli("model", "end", str(PET))

    assert "1 of the 3 items have no vector in it yet" in status.out
    assert "2 items exist only in the candidate" in status.out
    assert (status_json["candidate"]["n_vectors"], status_json["candidate"]["n_only_here"]) == (4, 2)
    assert "quarantined: its vector is of 'clip@2' (16 dimensions)" in why.out
    assert "would delete 4 vectors of clip@2; 2 items have no other vector and stay quarantined" in planned.out


def test_pet_is_switched_to_another_model(cli: CommandLine, service: ClusterService) -> None:
    for subject in range(2):
        take(service, subject, range(6))
    service.recluster(PET)
    begun = cli("model", "begin", "42", "clip@2", "16")
    for subject in range(2):
        for number in range(6):
            service.assign(PET, name(subject, number), model="clip@2", vector=picture(subject, number))

    status = cli("model", "status", "42")
    preview = cli("model", "preview", "42", "--json").json
    stale = cli("model", "switch", "42", "--apply", "13-abc")
    switched = cli("model", "switch", "42", "--apply", preview["token"])
    planned = cli("model", "end", "42")
    ended = cli("model", "end", "42", "--yes")

    assert begun.code == 0, begun.err
    assert "candidate: 12 items in clip@2 with 16 dimensions" in status.out
    assert (stale.code, "cannot be applied" in stale.err) == (4, True)
    assert "pet 42 switched, at revision 14: 0 items moved" in switched.out
    assert (planned.code, ended.out) == (4, "deleted: 12 vectors of clip@1\n")
    assert service.clusters(PET).model == "clip@2"


def test_deletion_is_refused_while_events_wait(cli: CommandLine, service: ClusterService) -> None:
    take(service, 0, range(3))
    line = json.dumps({"pet_id": 42, "media_id": "late", "model": "clip@1", "embedding": [1.0] * 16})
    cli("ingest", "-", given=line)

    refused = cli("delete", "42", "--yes")

    assert (refused.code, "1 waiting jobs would bring it back" in refused.err) == (4, True)
    assert service.clusters(PET).n_media == 3


def test_job_without_a_worker_is_only_enqueued(cli: CommandLine, redis_client: redis.Redis) -> None:
    first = cli("recluster", "42")
    second = cli("recluster", "42", "--json")
    late = cli("recluster", "42", "--wait", "0.1")

    assert "enqueued in queue cluster.recluster, position 1" in first.out
    assert second.json["coalesced"] is True
    assert late.code == 1
    assert "no worker takes jobs of queue cluster.recluster" in late.out
    assert redis_client.xlen(stream_of(CLUSTER_RECLUSTER)) == 1


# -- operations ------------------------------------------------------------------------------------------------------


def test_queue_status_is_printed_as_text_and_json(cli: CommandLine, redis_client: redis.Redis) -> None:
    cli("recluster", "42")

    for_people = cli("queue", "status")
    for_programs = cli("queue", "status", "--json").json

    assert [queue["queue"] for queue in for_programs] == list(QUEUES)
    assert {queue["queue"]: queue["undelivered"] for queue in for_programs}[CLUSTER_RECLUSTER] == 1
    assert "start one: sploot-cluster worker" in for_people.out


def test_config_show_lists_settings_and_masks_secrets(cli: CommandLine) -> None:
    secrets = {"REDIS_URL": "redis://:hunter22@localhost/0", "SPLOOT_API_TOKENS": "auth:producer:correct-horse-battery"}

    shown = cli("config", "show", environ=secrets)

    assert shown.code == 0
    assert "SPLOOT_CLUSTERING_GROWTH_RATIO" in shown.out
    assert "redis://:***@localhost/0" in shown.out
    assert not {"hunter22", "correct-horse-battery"} & set(shown.out.replace(":", " ").split())


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["merge", "42", "1"], {}, "cluster_ids"),
        (["recluster", "0"], {}, "pet_id"),
        (["recluster"], {}, "PET"),
        (["history", "42", "--limit", "99999999999999999999"], {}, "--limit"),
        (["dance"], {}, "dance"),
        (["queue", "status"], {"SPLOOT_LEASE_MS": "soon"}, "SPLOOT_LEASE_MS"),
    ],
)
def test_usage_error_exits_2_and_names_the_argument(
    cli: CommandLine, arguments: list[str], environ: dict[str, str], named: str
) -> None:
    done = cli(*arguments, environ=environ)

    assert done.code == 2
    assert named in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [["queue", "status"], ["clusters", "42"], ["recluster", "42"]])
def test_unreachable_redis_exits_3(cli: CommandLine, arguments: list[str]) -> None:
    done = cli(*arguments, environ={"REDIS_URL": f"redis://:hunter22@127.0.0.1:{free_port()}/0"})

    assert done.code == 3
    assert "no answer from Redis at redis://:***@127.0.0.1" in done.err
    assert "Traceback" not in done.err
    assert "hunter22" not in done.err


@pytest.mark.slow
def test_serve_beyond_loopback_without_tokens_exits_4(redis_url: str) -> None:
    done = process("serve", "--host", "0.0.0.0", "--port", "0", redis_url=redis_url)

    assert done.returncode == 4
    assert "SPLOOT_API_TOKENS" in done.stderr


def test_http_request_from_the_runbook_works(redis_url: str, redis_client: redis.Redis) -> None:
    http = client_of(build_app(Settings(redis_url=redis_url)))

    # as HTTPie sends it: http POST …/recluster pet_id:=42
    headers = {"Content-Type": "application/json", "Accept": "application/json, */*;q=0.5"}
    accepted = http.post(f"{API}/clusters/recluster", content=b'{"pet_id": 42}', headers=headers)
    job = http.get(accepted.headers["Location"]).json()

    assert accepted.status_code == 202
    assert accepted.json()["position"] == 1
    assert (job["job_id"], job["state"]) == (accepted.json()["job_id"], "queued")
    assert http.get("/metrics").status_code == 200
    assert redis_client.xlen(stream_of(CLUSTER_RECLUSTER)) == 1


def test_missing_typer_is_reported_in_one_sentence() -> None:
    hidden = "import sys; sys.modules['typer'] = None; import tasks.cli"

    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr == (
        "sploot-cluster: the command line needs typer; pip install 'sploot-cluster[worker]' or '[server]'\n"
    )
