"""One JSON object a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_TALK = """
import logging, warnings
from tasks.logs import configure_logging
configure_logging("INFO")
configure_logging("INFO")
logger = logging.getLogger("sploot-cluster.queue")
logger.info("job done", extra={"pet_id": 42, "message_id": "mäh\\nline two"})
logger.debug("not told")
try:
    raise ValueError("no luck")
except ValueError:
    logger.exception("job failed")
logging.getLogger("faiss.loader").info("chatter")
warnings.warn("careful")
"""


def test_every_line_is_one_object_with_the_facts_in_fields() -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", _TALK], env=environ, capture_output=True, text=True, check=True)

    lines = [json.loads(line) for line in done.stderr.splitlines()]

    assert done.stdout == ""
    assert [line["message"].split("\n")[0] for line in lines[:2]] == ["job done", "job failed"]
    assert len(lines) == 3
    first, failed, warning = lines
    assert first["pet_id"] == 42
    assert first["message_id"] == "mäh\nline two"
    assert (first["level"], first["logger"], first["service"]) == ("INFO", "sploot-cluster.queue", "sploot-cluster")
    assert first["timestamp"].endswith("+00:00")
    assert "ValueError: no luck" in failed["exc_info"]
    assert "careful" in warning["message"]
