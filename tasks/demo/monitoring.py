"""The demo's own Prometheus and Alertmanager, with the rules and routes of ``ops/``, but faster.

A window of ten minutes takes one minute here, and all holds and timers are shortened in the same way; levels,
expressions and routes are those of production. ``tasks.demo.receivers`` stands in for Slack and PagerDuty.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tasks.demo.stack import Pod, Pods, Ports, answers, until

# Folder next to the packages in the repository; the wheel does not contain it.
OPS: Final = Path(__file__).parents[2] / "ops"
PACKAGES: Final = ("prometheus", "prometheus-alertmanager")
# Measures Redis's memory. Without it, alerts notice a full Redis only when Redis refuses writes.
EXPORTER: Final = "prometheus-redis-exporter"
READY_WITHIN_S: Final = 60.0
STOP_WITHIN_S: Final = 20.0
# Number of scrapes of each target before the rules are loaded. Without this wait, the sped-up rules would report,
# within seconds of the start, that no pod answers: Prometheus has not found its targets by then.
SCRAPES_BEFORE_RULES: Final = 5

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TIMERS: Final = r"(?m)^(\s+(?:for|keep_firing_for|group_wait|group_interval|resolve_timeout): )(\d+[smhd])$"
# Minimum group wait: two evaluations, so that a critical alert fires before a warning that it inhibits is sent.
_LEAST_GROUP_WAIT_MS: Final = 2_500


class NoMonitoring(Exception):
    """Raised when alerting is not possible here. The message states what is missing and how to get it."""


def faster(text: str, speed: int) -> str:
    """Return rules or routes with every window, hold and timer divided by ``speed``, otherwise unchanged."""

    def divided(duration: str, *, least_ms: int = 1) -> str:
        return f"{max(least_ms, int(duration[:-1]) * _SECONDS[duration[-1]] * 1_000 // speed)}ms"

    def timer(found: re.Match[str]) -> str:
        least_ms = _LEAST_GROUP_WAIT_MS if "group_wait" in found[1] else 1
        return found[1] + divided(found[2], least_ms=least_ms)

    text = re.sub(r"(?<=[\[:])(\d+[smhd])(?=[\]:])", lambda found: divided(found[1]), text)
    text = re.sub(r"(?<= offset )(\d+[smhd])\b", lambda found: divided(found[1]), text)
    return re.sub(_TIMERS, timer, text)


def write_rules(directory: Path, speed: int) -> list[Path]:
    """Write the committed rules, sped up, into the directory, and return their paths.

    The rules about alerting itself are left out, because the demo has no Redis exporter and no service that expects the
    watchdog alert.
    """
    written = []
    for path in sorted({*(OPS / "alerts").glob("*.yaml")} - {OPS / "alerts" / "alerting.yaml"}):
        target = directory / path.name
        target.write_text(faster(path.read_text(), speed))
        written.append(target)
    return written


def write_routes(directory: Path, receivers_url: str, speed: int) -> Path:
    """Write Alertmanager's committed configuration, sped up, with the demo's stand-ins for Slack and PagerDuty."""
    secrets = directory / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "SLACK_WEBHOOK_URL").write_text(f"{receivers_url}/slack\n")
    (secrets / "PAGERDUTY_ROUTING_KEY").write_text("0123456789abcdef0123456789abcdef\n")
    text = faster((OPS / "config" / "alertmanager.yaml").read_text(), speed)
    text = text.replace("/etc/alertmanager/secrets", str(secrets))
    text = text.replace("global:\n", f"global:\n  pagerduty_url: {receivers_url}/pagerduty\n", 1)
    written = directory / "alertmanager.yaml"
    written.write_text(text)
    return written


class Monitoring:
    """Prometheus and Alertmanager as supervised processes that start and end with the block.

    Attributes:
        prometheus, alertmanager: their base URLs.

    Raises:
        NoMonitoring: one of the programs or ``ops/`` is missing, or a server did not become ready.
    """

    def __init__(
        self, directory: Path, *, receivers_url: str, speed: int, server: str = "", redis_url: str = ""
    ) -> None:
        """Args: ``server`` is the base URL of the HTTP server to scrape, and ``redis_url`` the Redis to measure."""
        if not OPS.is_dir():
            raise NoMonitoring(
                "the alert rules are only in the repository, not in the package; run the demo from a checkout"
            )
        programs = [shutil.which(name) for name in PACKAGES]
        if missing := [name for name, found in zip(PACKAGES, programs, strict=True) if found is None]:
            names = " ".join(missing)
            raise NoMonitoring(f"{' and '.join(missing)} not installed, so no alert can fire; apt-get install {names}")
        directory.mkdir(parents=True, exist_ok=True)
        self._ports = Ports(9090, 9093, 9121)
        prometheus, alertmanager, exporter = (f"127.0.0.1:{port}" for port in self._ports.numbers)
        self.prometheus, self.alertmanager = f"http://{prometheus}", f"http://{alertmanager}"
        self._targets = directory / "targets.json"
        self._n_targets = 0
        self._others = [("sploot-cluster-server", server.removeprefix("http://"))] if server else []
        self._rules, self._speed = directory / "rules", speed
        self._rules.mkdir(exist_ok=True)
        interval = f"{max(1, 20 // speed)}s"
        config = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(self._rules / "*.yaml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
            "scrape_configs": [
                {
                    "job_name": "sploot-cluster",
                    "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": interval}],
                }
            ],
        }
        # JSON is valid YAML
        (directory / "prometheus.json").write_text(json.dumps(config, indent=2))
        routes = write_routes(directory, receivers_url, speed)
        storage = {"prometheus": "--storage.tsdb.path", "prometheus-alertmanager": "--storage.path"}
        options = {
            "prometheus": [
                f"--config.file={directory / 'prometheus.json'}",
                f"--web.listen-address={prometheus}",
                "--web.enable-lifecycle",
            ],
            "prometheus-alertmanager": [
                f"--config.file={routes}",
                f"--web.listen-address={alertmanager}",
                "--cluster.listen-address=",
            ],
        }
        pods = [
            Pod(
                name,
                [str(program), *options[name], f"{storage[name]}={directory / f'{name}.data'}", "--log.level=warn"],
                environ={},
                log=directory / f"{name}.log",
            )
            for name, program in zip(PACKAGES, programs, strict=True)
        ]
        if redis_url and (program := shutil.which(EXPORTER)):
            command = [program, f"--redis.addr={redis_url}", f"--web.listen-address={exporter}"]
            command.append("--include-system-metrics")
            pods.append(Pod(EXPORTER, command, environ={}, log=directory / f"{EXPORTER}.log"))
            self._others.append(("redis", exporter))
        self._logs = [str(pod.log) for pod in pods]
        self._pods = Pods(pods, stop_within_s=STOP_WITHIN_S)

    def watch(self, metrics: Sequence[str]) -> None:
        """Scrape these /metrics URLs of workers from now on; pods that are gone are no longer targets."""
        targets = [("sploot-cluster", address.removeprefix("http://").removesuffix("/metrics")) for address in metrics]
        targets += self._others
        # written atomically, so that Prometheus never reads half a file
        partial = self._targets.with_suffix(".partial")
        partial.write_text(json.dumps([{"targets": [target], "labels": {"job": job}} for job, target in targets]))
        partial.replace(self._targets)
        self._n_targets = len(targets)

    def __enter__(self) -> Self:
        self._pods.__enter__()
        for _ in until(READY_WITHIN_S):
            if answers(f"{self.alertmanager}/-/ready") and self._has_scraped():
                self._load_rules()
                return self
        self.__exit__(None, None, None)
        logs = ", ".join(self._logs)
        raise NoMonitoring(f"Prometheus or Alertmanager is not ready after {READY_WITHIN_S:.0f} s; see {logs}")

    def _load_rules(self) -> None:
        write_rules(self._rules, self._speed)
        with urllib.request.urlopen(f"{self.prometheus}/-/reload", data=b"", timeout=30):  # noqa: S310 - our own server
            pass

    def _has_scraped(self) -> bool:
        """Return whether Prometheus has scraped each target often enough to judge it."""
        query = urllib.parse.urlencode({"query": f"count(sum_over_time(up[1h]) >= {SCRAPES_BEFORE_RULES})"})
        try:
            url = f"{self.prometheus}/api/v1/query?{query}"
            with urllib.request.urlopen(url, timeout=2.0) as answer:  # noqa: S310 - our own server
                found = json.load(answer)["data"]["result"]
        except OSError:
            return False
        return [series["value"][1] for series in found] == [str(self._n_targets)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pods.__exit__(kind, error, trace)
        self._ports.close()
