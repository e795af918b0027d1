"""From a firing alert to its end, as whoever is on call goes: the kept demo, and nothing but ``ops/runbook.md``.

Everything is real: the demo's workers, what their own ``/metrics`` say, Prometheus with the committed rules, an
Alertmanager with the committed routes, and the command line, with the environment that the demo prints. Where the
runbook leads is read from the runbook: the heading that the alert names, the links there, the blocks under them.
Only ``kubectl`` is left out, as the runbook says for the demo.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.servers import Prometheus, get_json
from tests.ops.test_runbook import TEXT, Block, blocks, expected_codes, sections
from tests.ops.tools import ROOT, tool
from tests.support import eventually

pytestmark = [pytest.mark.ops, pytest.mark.timeout(280)]

# Ten minutes are 30 seconds; one scrape and one evaluation a second.
DEMO = """
import pathlib, sys
from tasks.demo import run
run(directory=pathlib.Path(sys.argv[1]), share=0.2, keep=True, speed=20)
"""


class OnCall:
    """A person with two terminals: the demo in one, a shell in the other."""

    def __init__(self, demo: subprocess.Popen[str], log: Path, home: Path) -> None:
        self._demo, self._log, self._home = demo, log, home
        self._read_up_to = 0

    def type(self, word: str) -> None:
        """Type into the demo's terminal; what it printed before is not looked at again."""
        self._read_up_to = len(self._log.read_text())
        assert self._demo.stdin is not None
        self._demo.stdin.write(f"{word}\n")
        self._demo.stdin.flush()

    @property
    def terminal(self) -> str:
        """What the demo printed since something was typed."""
        return self._log.read_text()[self._read_up_to :]

    @property
    def exports(self) -> list[str]:
        return re.findall(r"(?m)^  (export .*)$", self._log.read_text())

    def address(self, of: str) -> str:
        found = re.search(rf"{of}: (http://[\d.:]+)", self._log.read_text())
        assert found is not None
        return found[1]

    def alerts(self) -> dict[str, str]:
        """What Alertmanager holds now: the name of each alert and its runbook_url."""
        held = get_json(f"{self.address('Alertmanager')}/api/v2/alerts?active=true&inhibited=true")
        return {alert["labels"]["alertname"]: alert["annotations"]["runbook_url"] for alert in held}

    def follow(self, block: Block) -> str:
        """Run a block of the runbook in a shell, as it stands; what it printed."""
        printed = ""
        state = self._home / "shell"  # variables outlive a block, as in a terminal
        state.touch()
        for line in block.lines:
            if line.startswith("kubectl ") or "$(kubectl " in line:
                continue
            script = "\n".join([*self.exports, "export QUEUE=embedding.ingested", f". {state}", line, "code=$?"])
            done = self._shell(f"{script}\ndeclare -p LETTER > {state} 2>/dev/null\nexit $code")
            assert done.returncode in expected_codes(line), f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
            printed += done.stdout
        return printed

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """A command in a shell that stays, until Ctrl-C."""
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
    for program in ("prometheus", "prometheus-alertmanager", "jq"):
        tool(program)
    home = tmp_path_factory.mktemp("practice")
    log = home / "terminal"
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"} | {"COLUMNS": "80"}
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-c", DEMO, str(home / "out")],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        person = OnCall(demo, log, home)
        eventually(lambda: "Practise an incident" in log.read_text() or demo.poll() is not None, within_s=200)
        assert demo.poll() is None, log.read_text()
        yield person
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=90)
    assert "Ending: workers drain." in log.read_text()


def heading_of(runbook_url: str) -> str:
    """The heading that an alert's link opens."""
    (heading,) = [name for name in sections() if name.lower() == runbook_url.partition("#")[2]]
    return heading


def under(heading: str, *words: str) -> list[Block]:
    """The blocks under a heading in which one of the words stands; all of them without words."""
    found = [one for one in blocks() if one.heading == heading and (not words or any(w in one.text for w in words))]
    assert found, f"the runbook has no such block under {heading}"
    return found


def leads_to(text: str, heading: str) -> str:
    """The heading, after a look whether the text links to it."""
    anchor = re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower()
    assert f"](#{anchor})" in text, f"no link to {heading} in: {text}"
    return heading


def opened(on_call: OnCall, alert: str) -> str:
    """Wait until the alert fires, and open the runbook at it: its heading."""
    eventually(lambda: alert in on_call.alerts(), within_s=120, every_s=0.5)
    eventually(lambda: f"({alert})" in on_call.terminal, within_s=30)
    return heading_of(on_call.alerts()[alert])


def has_ended(on_call: OnCall, *but: str) -> bool:
    """Whether nothing fires any more, but for alerts whose names begin so."""
    return [alert for alert in on_call.alerts() if not alert.startswith(but or ("-",))] == []


def ends(on_call: OnCall, last_word: str, *but: str) -> None:
    """Wait until nothing fires any more, but for alerts whose names begin so, and the terminal has said this."""
    eventually(lambda: has_ended(on_call, *but), within_s=90, every_s=0.5)
    eventually(lambda: last_word in on_call.terminal, within_s=90)


def test_a_demo_that_is_well_tells_nobody(on_call: OnCall) -> None:
    prometheus = Prometheus(on_call.address("Alerts"))
    eventually(lambda: prometheus.query("min(count_over_time(up[5m])) > 10"), within_s=60, every_s=0.5)

    assert on_call.alerts() == {}
    assert prometheus.alerts() == []
    assert on_call.terminal.count("Slack #") == 0


def test_a_queue_that_somebody_paused_is_found_and_resumed(on_call: OnCall) -> None:
    on_call.type("pause")
    on_call.type("hold")
    # what cannot begin while another thing is broken says so, rather than that nobody is ever told
    eventually(lambda: "hold: no upload is delivered" in on_call.terminal, within_s=60)

    heading = opened(on_call, "MediaClusterStalled")
    (first,) = under(heading)
    told = on_call.follow(first)
    assert "embedding.ingested: the queue is paused" in told
    (row,) = [line for line in TEXT.splitlines() if line.startswith("| `the queue is paused`")]
    action = leads_to(row, "Redis backlog action")
    (resume,) = under(action, "queue resume")
    told = on_call.follow(resume)

    assert "a colleague" in told, "the audit does not say who paused it"
    ends(on_call, "PagerDuty: resolved MediaClusterStalled")


def test_workers_that_are_all_gone_are_replaced_by_one_that_is_started_by_hand(on_call: OnCall) -> None:
    on_call.type("fix")
    on_call.type("crash")

    heading = opened(on_call, "MediaClusterNoWorkers")
    (first,) = under(heading)
    told = on_call.follow(first)
    assert "no worker takes its jobs" in told
    assert "`sploot-cluster worker`" in sections()[heading]
    with on_call.running("sploot-cluster worker"):
        ends(on_call, "PagerDuty: resolved MediaClusterNoWorkers")


def test_a_job_that_hangs_with_a_worker_that_lives_is_taken_from_it(on_call: OnCall) -> None:
    on_call.type("fix")
    on_call.type("hold")

    heading = opened(on_call, "MediaClusterStreamLagHigh")
    told = on_call.follow(*under(heading))
    assert "practice-" in told
    further = leads_to(sections()[heading], opened(on_call, "MediaClusterStreamLagCritical"))
    on_call.follow(*under(further))

    ends(on_call, "Resolved: A job has been held for very long (MediaClusterStreamLagCritical)")


# The last one: what burns the budget of a month is told for long after it has ended.
def test_events_that_can_never_work_are_looked_at_captured_and_purged(on_call: OnCall) -> None:
    on_call.type("fix")
    on_call.type("poison")

    heading = opened(on_call, "MediaClusterFailuresSpiking")
    playbook = leads_to(sections()[heading], "1. Clustering failures spike")
    (groups,) = under(playbook, "dead show")
    told = on_call.follow(groups)
    assert "embedding" in told
    assert "send finite numbers" in told
    for block in under(playbook, "dead purge"):
        told = on_call.follow(block)

    assert "Done" in told
    ends(on_call, "PagerDuty: resolved MediaClusterFailuresSpiking", "MediaClusterErrorBudget")
