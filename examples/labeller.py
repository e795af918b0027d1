"""A labeller's script: list the clusters of a pet, merge the two largest, wait for the job, and undo it.

    python examples/labeller.py http://127.0.0.1:8080 42

It needs only the standard library. A server beyond loopback requires a token: set ``SPLOOT_TOKEN``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def main(server: str, pet_id: int) -> None:
    pet = call(server, f"/pets/{pet_id}/clusters")
    for cluster in pet["clusters"]:
        print(f"cluster {cluster['cluster_id']}: {len(cluster['media_ids'])} items")
    two = [cluster["cluster_id"] for cluster in pet["clusters"][:2]]
    if len(two) < 2:
        sys.exit(f"pet {pet_id} has fewer than two clusters; choose another pet")

    merged = wait_for(server, call(server, "/clusters/merge", {"pet_id": pet_id, "cluster_ids": two}))
    print(f"merged {two} at revision {merged['revision']}")

    undone = wait_for(server, call(server, "/clusters/undo", {"pet_id": pet_id, "revision": merged["revision"]}))
    print(f"undone at revision {undone['revision']}")


def wait_for(server: str, job: dict[str, Any]) -> dict[str, Any]:
    """Wait until the job has ended, and return its result."""
    while True:
        status = call(server, f"/jobs/{job['job_id']}")
        if status["state"] == "succeeded":
            result: dict[str, Any] = status["result"]
            return result
        if status["state"] in ("dead", "cancelled", "refused"):
            sys.exit(f"job {job['job_id']} failed: {status['reason']}")
        time.sleep(0.2)


def call(server: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("SPLOOT_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(f"{server}/api/v1/internal{path}", data, headers)) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found
    except HTTPError as refused:
        sys.exit(f"{path}: {refused.read().decode()}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
