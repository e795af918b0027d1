"""Tests that an on-call engineer can end incidents in a running demo by following only ``ops/runbook.md``.

Everything is real: the demo's workers and their ``/metrics``, Prometheus with the committed rules, an Alertmanager with
the committed routes, and the command line with the environment that the demo prints. The tests read each next step from
the runbook: the heading that the alert names, the links there, and the blocks under them. Only ``kubectl`` is left out,
as the runbook states for the demo.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ops.servers import Prometheus, get_json
from tests.ops.test_runbook import TEXT, Block, blocks, expected_codes, sections
from tests.ops.tools import ROOT, tool
from tests.support import eventually

pytestmark = [pytest.mark.ops, pytest.mark.timeout(280)]

# In this demo, ten minutes take 30 seconds, and Prometheus scrapes and evaluates once per second.
SPEED = 20
DEMO = """
import pathlib, sys
from tasks.demo import run
run(directory=pathlib.Path(sys.argv[1]), share=0.2, keep=True, speed=int(sys.argv[2]))
"""


OBJECTIVES = ("MediaClusterErrorBudget", "MediaClusterFreshness")
NOTIFICATION = re.compile(r"(?m)^\S+ (PagerDuty: PAGE|Slack (?:#\S+|@\w+): (?!Resolved).*?) \(?(MediaCluster\w+)\)?$")


@dataclass
class Incident:
    """One row of the table of incidents, with times in seconds of this run.

    Attributes:
        speed: the factor by which the run is faster than production.
        log_from: the length of the demo's log at the beginning.
        notified: pairs of channel and alert, in the order of arrival.
    """

    exercise: str
    speed: int
    began: float
    log_from: int
    first_after_s: float | None = None
    ended_after_s: float | None = None
    notified: list[tuple[str, str]] = field(default_factory=list)

    def row(self) -> str:
        pages = [alert for channel, alert in self.notified if channel == "PagerDuty"]
        others = [alert for channel, alert in self.notified if channel == "Slack"]
        return (
            f"| `{self.exercise}` | {len(pages)}: {', '.join(pages)} | {len(others)}: {', '.join(others)} "
            f"| {self.first_after_s or 0:.0f} s | {self.ended_after_s or 0:.0f} s | {self.speed} |"
        )


class OnCall:
    """An engineer with two terminals: the demo in one, a shell in the other."""

    def __init__(self, demo: subprocess.Popen[str], log: Path, home: Path, speed: int) -> None:
        self._demo, self._log, self._home, self._speed = demo, log, home, speed
        self._read_up_to = 0
        self.incidents: list[Incident] = []

    def begin(self, word: str) -> None:
        """Repair the effects of the last incident, and type the command of an exercise, which begins a new one.

        Uploads succeed before it begins, as in production.
        """
        self.type("fix")
        prometheus = Prometheus(self.address("Alerts"))
        eventually(lambda: prometheus.query("min(min_over_time(up[6s])) == 1"), within_s=120, every_s=0.5)
        eventually(lambda: has_ended(self), within_s=90, every_s=0.5)
        self.type("upload")
        seen = "sum(increase(cluster_jobs_total{outcome='success'}[1m])) > 2"
        eventually(lambda: prometheus.query(seen), within_s=120, every_s=0.5)
        self.type(word)
        self.incidents.append(Incident(word, self._speed, time.monotonic(), self._read_up_to))

    def type(self, word: str) -> None:
        """Type a line into the demo's terminal, and discard its earlier output."""
        self._read_up_to = len(self._log.read_text())
        assert self._demo.stdin is not None
        self._demo.stdin.write(f"{word}\n")
        self._demo.stdin.flush()

    @property
    def terminal(self) -> str:
        """The output of the demo since the last input."""
        return self._log.read_text()[self._read_up_to :]

    @property
    def since_begin(self) -> str:
        """The output of the demo since the last exercise began."""
        return self._log.read_text()[self.incidents[-1].log_from :]

    @property
    def exports(self) -> list[str]:
        return re.findall(r"(?m)^  (export .*)$", self._log.read_text())

    def address(self, of: str) -> str:
        found = re.search(rf"{of}: (http://[\d.:]+)", self._log.read_text())
        assert found is not None
        return found[1]

    def alerts(self) -> dict[str, str]:
        """Return the runbook_url of each active alert in Alertmanager, by the alert's name."""
        held = get_json(f"{self.address('Alertmanager')}/api/v2/alerts?active=true&inhibited=true")
        return {alert["labels"]["alertname"]: alert["annotations"]["runbook_url"] for alert in held}

    def follow(self, block: Block, *, codes: Collection[int] = ()) -> str:
        """Run a block of the runbook unchanged in a shell, and return its output.

        Args:
            codes: exit codes that this incident causes, besides those that a command may have.
        """
        printed = ""
        state = self._home / "shell"  # variables are kept between blocks, as in a terminal
        state.touch()
        for line in block.lines:
            if line.startswith("kubectl ") or "$(kubectl " in line:
                continue
            script = "\n".join([*self.exports, "export QUEUE=embedding.ingested", f". {state}", line, "code=$?"])
            done = self._shell(f"{script}\ndeclare -p DEAD_LETTER > {state} 2>/dev/null\nexit $code")
            expected = expected_codes(line) | {*codes}
            assert done.returncode in expected, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
            printed += done.stdout
        return printed

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """Run a command in a shell until the block ends."""
        script = "\n".join([*self.exports, f"exec {command}"])
        with (self._home / "worker.log").open("wb") as output:
            process = subprocess.Popen(["bash", "-c", script], cwd=self._home, stdout=output, stderr=output)
        try:
            yield
            assert process.poll() is None, (self._home / "worker.log").read_text()
        finally:
            process.terminate()
            process.wait(timeout=60)

    def _shell(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script], cwd=self._home, capture_output=True, text=True, errors="replace", timeout=120
        )


@pytest.fixture(scope="module")
def on_call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCall]:
    with demo(tmp_path_factory.mktemp("practice"), SPEED) as person:
        yield person


@contextmanager
def demo(home: Path, speed: int) -> Iterator[OnCall]:
    """Keep a demo running until the block ends; then write its table of incidents for ``make incidents``."""
    for program in ("prometheus", "prometheus-alertmanager", "jq"):
        tool(program)
    log = home / "terminal"
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"} | {"COLUMNS": "80"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", DEMO, str(home / "out"), str(speed)],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        person = OnCall(process, log, home, speed)
        eventually(lambda: "Practise an incident" in log.read_text() or process.poll() is not None, within_s=600)
        assert process.poll() is None, log.read_text()
        yield person
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
        if table := os.environ.get("INCIDENTS_TABLE"):
            with Path(table).open("a") as rows:
                rows.writelines(f"{one.row()}\n" for one in person.incidents)
    assert "Stopping: workers drain." in log.read_text()


def heading_of(runbook_url: str) -> str:
    """Return the runbook heading to which an alert's link leads."""
    (heading,) = [name for name in sections() if name.lower() == runbook_url.partition("#")[2]]
    return heading


def under(heading: str, *words: str) -> list[Block]:
    """Return the command blocks under a heading that contain one of the words, or all blocks if no words are given."""
    found = [one for one in blocks() if one.heading == heading and (not words or any(w in one.text for w in words))]
    assert found, f"the runbook has no such block under {heading}"
    return found


def leads_to(text: str, heading: str) -> str:
    """Check that the text links to the heading, and return the heading."""
    anchor = re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower()
    assert f"](#{anchor})" in text, f"no link to {heading} in: {text}"
    return heading


def opened(on_call: OnCall, alert: str, *, within_s: float = 120) -> str:
    """Wait until the alert notifies, and return the heading to which its link leads."""
    eventually(lambda: alert in on_call.alerts(), within_s=within_s, every_s=0.5)
    eventually(lambda: f"({alert})" in on_call.terminal, within_s=60)
    incident = on_call.incidents[-1]
    incident.first_after_s = incident.first_after_s or time.monotonic() - incident.began
    return heading_of(on_call.alerts()[alert])


def has_ended(on_call: OnCall) -> bool:
    """Return whether no alert fires, apart from alerts on an objective, whose windows last hours or days."""
    return [alert for alert in on_call.alerts() if not alert.startswith(OBJECTIVES)] == []


def ends(on_call: OnCall, last_word: str, *, within_s: float = 90) -> None:
    """Wait until no alert fires, apart from alerts on an objective, and the terminal shows ``last_word``."""
    eventually(lambda: has_ended(on_call), within_s=within_s, every_s=0.5)
    eventually(lambda: last_word in on_call.terminal, within_s=90)
    incident = on_call.incidents[-1]
    incident.ended_after_s = time.monotonic() - incident.began
    incident.notified = [(words.partition(" ")[0].rstrip(":"), alert)
                         for words, alert in NOTIFICATION.findall(on_call.since_begin)]  # fmt: skip


def test_healthy_demo_sends_no_notification(on_call: OnCall) -> None:
    prometheus = Prometheus(on_call.address("Alerts"))
    eventually(lambda: prometheus.query("min(count_over_time(up[5m])) > 10"), within_s=60, every_s=0.5)

    assert on_call.alerts() == {}
    assert prometheus.alerts() == []
    assert on_call.terminal.count("Slack #") == 0


def test_runbook_finds_and_resumes_a_paused_queue(on_call: OnCall) -> None:
    on_call.begin("pause")
    on_call.type("hold")
    # the demo reports an exercise that cannot begin while another one is active
    eventually(lambda: "hold: no upload was delivered" in on_call.terminal, within_s=60)

    heading = opened(on_call, "MediaClusterStalled")
    (first,) = under(heading)
    output = on_call.follow(first)
    assert "embedding.ingested: the queue is paused" in output
    (row,) = [line for line in TEXT.splitlines() if line.startswith("| `the queue is paused`")]
    action = leads_to(row, "Redis backlog action")
    (resume,) = under(action, "queue resume")
    output = on_call.follow(resume)

    assert "a colleague" in output, "the audit does not show who paused the queue"
    ends(on_call, "PagerDuty: resolved MediaClusterStalled")


def test_runbook_replaces_crashed_workers_with_a_manual_one(on_call: OnCall) -> None:
    on_call.begin("crash")

    heading = opened(on_call, "MediaClusterNoWorkers")
    (first,) = under(heading)
    output = on_call.follow(first)
    assert "no worker takes its jobs" in output
    assert "`sploot-cluster worker`" in sections()[heading]
    with on_call.running("sploot-cluster worker"):
        ends(on_call, "PagerDuty: resolved MediaClusterNoWorkers")


def test_runbook_takes_a_hung_job_from_a_live_worker(on_call: OnCall) -> None:
    on_call.begin("hold")

    heading = opened(on_call, "MediaClusterStreamLagHigh")
    output = on_call.follow(*under(heading))
    assert "practice-" in output
    further = leads_to(sections()[heading], opened(on_call, "MediaClusterStreamLagCritical"))
    on_call.follow(*under(further))

    resolved = "Resolved [no environment]: A worker has held a job for a very long time (MediaClusterStreamLagCritical)"
    ends(on_call, resolved)


# This test comes last, because error-budget alerts stay active long after their cause has ended.
def test_runbook_captures_and_purges_poison_events(on_call: OnCall) -> None:
    on_call.begin("poison")

    heading = opened(on_call, "MediaClusterFailuresSpiking")
    playbook = leads_to(sections()[heading], "1. Clustering failures spike")
    (groups,) = under(playbook, "dead show")
    output = on_call.follow(groups)
    assert "embedding" in output
    assert "send finite numbers" in output
    for block in under(playbook, "dead purge"):
        output = on_call.follow(block)

    assert "Done" in output
    ends(on_call, "PagerDuty: resolved MediaClusterFailuresSpiking")
