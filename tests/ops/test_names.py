"""Tests that every metric in a panel or rule is exported by a real worker or server, and every exported one is used."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ops.dashboard import rows
from ops.rules import rules
from tasks.composition import build_app
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tests.ops.servers import free_port
from tests.ops.tools import tool
from tests.sploot_cluster.api.front import client_of
from tests.support import eventually
from tests.tasks.observe.test_exposition import get, pod

pytestmark = pytest.mark.ops

_NAME = re.compile(r"\b(?:cluster|media_cluster|redis)_\w+|\bmedia_cluster:[\w:]+")
_SUFFIX = re.compile(r"_(bucket|count|sum)$")

# exported metrics that no panel or alert uses -> the reason
UNUSED: dict[str, str] = {}


def used_names() -> set[str]:
    queries = [promql for _, panels in rows() for panel in panels for promql in panel.queries.values()]
    queries += [rule["expr"] for rule in rules()]
    without_labels = [re.sub(r'"[^"]*"|\{[^}]*\}|by \([^)]*\)', "", promql) for promql in queries]
    return {name for promql in without_labels for name in _NAME.findall(promql)}


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def exported(port: int) -> set[str]:
    status, text = get(port, "/metrics")
    return names_in(text if status == 200 else "")


def names_in(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


@contextmanager
def redis_exporter(url: str) -> Iterator[int]:
    port = free_port()
    command = [tool("prometheus-redis-exporter"), f"-redis.addr={url}", f"-web.listen-address=127.0.0.1:{port}"]
    command += ["-include-system-metrics"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_worker_and_server_export_exactly_the_used_metrics(tmp_path: Path) -> None:
    port = free_port()
    with EmbeddedRedis(options={"appendonly": "no"}) as server, pod(server.url, tmp_path, port, processes=1):
        eventually(lambda: "cluster_worker_threads" in exported(port), within_s=60)
        found = exported(port)
        with client_of(build_app(Settings(redis_url=server.url))) as http:
            found |= names_in(http.get("/metrics").text)

    ours = {name for name in used_names() if not name.startswith("redis_")} - recorded()
    assert ours - found == set()
    used = {_SUFFIX.sub("", name) for name in ours}
    assert {_SUFFIX.sub("", name) for name in found} - used - set(UNUSED) == set()


def test_redis_exporter_exports_the_used_metrics() -> None:
    limited = {"appendonly": "no", "maxmemory": "100mb"}
    with EmbeddedRedis(options=limited) as server, redis_exporter(server.url) as port:
        eventually(lambda: "redis_memory_used_bytes" in exported(port), within_s=60)
        by_exporter = exported(port)

    assert {name for name in used_names() if name.startswith("redis_")} - by_exporter == set()


def test_every_used_recorded_name_is_recorded() -> None:
    assert {name for name in used_names() if ":" in name} - recorded() == set()
