"""A client of the HTTP API for the labeller and the operator that the demo plays, on loopback, without a token."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from typing import Any

PREFIX = "/api/v1/internal"


class Api:
    """A client of the internal API at the base URL ``address``. HTTP errors raise ``urllib.error.HTTPError``."""

    def __init__(self, address: str) -> None:
        self._address = address

    def recluster(self, pet_id: int) -> str:
        return self._enqueue("clusters/recluster", {"pet_id": pet_id})

    def merge(self, pet_id: int, cluster_ids: Sequence[int], *, into: int) -> str:
        return self._enqueue("clusters/merge", {"pet_id": pet_id, "cluster_ids": list(cluster_ids), "into": into})

    def name_pet(self, pet_id: int, name: str) -> str:
        return self._enqueue("clusters/name_pet", {"pet_id": pet_id, "name": name})

    def split(self, pet_id: int, cluster_id: int, media_ids: Sequence[str]) -> str:
        body = {"pet_id": pet_id, "cluster_id": cluster_id, "media_ids": list(media_ids)}
        return self._enqueue("clusters/split", body)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the status of a job."""
        return self._get(f"/jobs/{job_id}")

    def clusters(self, pet_id: int) -> dict[int, list[str]]:
        """Return the pet's clusters: cluster id -> item ids."""
        return {cluster["cluster_id"]: cluster["media_ids"] for cluster in self._pet(pet_id)["clusters"]}

    def memberships(self, pet_id: int) -> dict[str, int]:
        """Return the cluster id of each item of the pet, or -1 for noise."""
        where = {item: cluster for cluster, media in self.clusters(pet_id).items() for item in media}
        return where | dict.fromkeys(self._pet(pet_id)["noise"], -1)

    def n_listed(self, pet_id: int) -> int:
        """Return the number of memberships that the API lists; an item that is listed twice counts twice."""
        pet = self._pet(pet_id)
        return sum(len(cluster["media_ids"]) for cluster in pet["clusters"]) + len(pet["noise"])

    def get_text(self, address: str) -> str:
        """Return the body of the response from any URL, such as a worker's /metrics."""
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - an address of this stack
            text: str = answer.read().decode()
        return text

    def _pet(self, pet_id: int) -> dict[str, Any]:
        return self._get(f"/pets/{pet_id}/clusters")

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get_text(self._address + PREFIX + path))
        return found

    def _enqueue(self, path: str, body: dict[str, object]) -> str:
        request = urllib.request.Request(  # noqa: S310
            f"{self._address}{PREFIX}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            job_id: str = json.load(answer)["job_id"]
        return job_id
