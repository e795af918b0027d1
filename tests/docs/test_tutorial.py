"""Run the code blocks of the tutorial in order, against real processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.redis_access.embedded import EmbeddedRedis
from tests.examples.test_examples import running
from tests.support import eventually, lacking
from tests.system.events import free_port

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)  # fifteen commands run one after the other
def test_tutorial_blocks_run_in_order(tmp_path: Path) -> None:
    if shutil.which("redis-cli") is None:
        lacking("redis-cli", "install Debian's redis-tools")
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
    printed: list[str] = []
    with EmbeddedRedis(options={"appendonly": "no"}) as server:
        environ = {"REDIS_URL": server.url, "WORKER_METRICS_PORT": str(free_port()), "COLUMNS": "200"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

        def run(language: str, block: str) -> str:
            command = [sys.executable, "-c", block] if language == "python" else ["bash", "-euc", block]
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env={**os.environ, **environ, "PATH": path},
                check=False,
                capture_output=True,
                text=True,
                timeout=100,
            )
            is_plan = "Nothing was done" in done.stderr
            assert done.returncode == (4 if is_plan else 0), f"{block}\n{done.stdout}{done.stderr}"
            return done.stdout

        with running("sploot-cluster", "worker", "--processes", "1", log=tmp_path / "worker.log", **environ):
            for language, block in blocks:
                if "dead list" in block:
                    eventually(lambda b=block: "undecodable" in run("bash", b), within_s=60, every_s=0.5)  # type: ignore[misc]
                if "recluster" in block and not printed:
                    eventually(
                        lambda: "40 items" in run("bash", "sploot-cluster clusters 42"), within_s=60, every_s=0.5
                    )
                if "REVISION=7" in block:
                    (revision,) = re.findall(r"^(\d+) +split", printed[-1], flags=re.MULTILINE)
                    block = block.replace("REVISION=7", f"REVISION={revision}")
                if language == "bash" and "ingest photos" not in block:
                    printed.append(run(language, block))
                else:
                    run(language, block)

    recluster, split, again, undone, _, dead, plan, purged = printed
    assert "2 clusters" in recluster
    assert "is in cluster 3" in split
    assert "split" in again
    assert "2 clusters" in undone
    assert "has 2 values, but dim" in dead
    assert "1 dead letter" in plan
    assert "Done" in purged
