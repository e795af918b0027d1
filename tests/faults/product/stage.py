"""The processes of the product behind a proxy that injects faults: two workers, the scheduler and the HTTP server."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.faults.stage import LEASE_MS, Pod, Stage
from tests.system.events import free_port

SWITCHING = "test@2"
OWN = "test@1"


class ProductStage(Stage):
    """A stage with the commands of sploot-cluster as its pods."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.http_port = free_port()

    @property
    def redis_url(self) -> str:
        """The URL of Redis behind the proxy, with short timeouts so that a hanging server is noticed."""
        return f"{self.outage.url}?socket_timeout=1.5&socket_connect_timeout=1.5"

    def _start_pods(self) -> None:
        shared = {
            "REDIS_URL": self.redis_url,
            "SPLOOT_LEASE_MS": str(LEASE_MS),
            "SPLOOT_HTTP_PORT": str(self.http_port),
            "SPLOOT_HTTP_RATE": "0",
        }
        sploot = [sys.executable, "-m", "tasks.cli"]
        worker = [*sploot, "worker", "--processes", "1", "--threads", "4"]
        for name, command in (
            ("worker-0", worker),
            ("worker-1", worker),
            ("scheduler", [*sploot, "scheduler"]),
            ("server", [*sploot, "serve"]),
        ):
            environment = {**shared, "WORKER_METRICS_PORT": str(free_port())}
            self.pods.append(Pod(self.directory / f"{name}.log", environment, command).start())
