"""The demo's pods: one process each, restarted until they are stopped."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tasks.demo.stack import Pod
from tasks.redis_access.embedded import ends_with_parent
from tests.support import eventually

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod("sleeper", [*SLEEP, str(tmp_path)], environ={}, log=tmp_path / "log")
    yield pod
    pod.ask_to_stop()
    pod.wait(timeout_s=10)


def running(pod_directory: Path) -> list[psutil.Process]:
    """Return the processes of the pod, identified by the directory in their command."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(pod_directory) in (one.info["cmdline"] or [])]


def test_pod_started_twice_runs_once(pod: Pod, tmp_path: Path) -> None:
    pod.start()
    pod.start()

    assert len(running(tmp_path)) == 1


def test_pod_restarts_after_a_crash_but_not_after_a_stop(pod: Pod, tmp_path: Path) -> None:
    pod.start()
    (first,) = running(tmp_path)
    first.kill()
    eventually(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    pod.keep_up()
    (second,) = running(tmp_path)
    pod.ask_to_stop()
    pod.wait(timeout_s=10)
    pod.keep_up()

    assert second.pid != first.pid
    assert pod.restarts == 1
    assert running(tmp_path) == []

    pod.start()
    assert len(running(tmp_path)) == 1


def test_pod_stopped_during_a_restart_ends(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.start()
    (first,) = running(tmp_path)
    first.kill()
    eventually(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    begins, may_go_on = threading.Event(), threading.Event()

    def spawn_late() -> Callable[[], None] | None:
        begins.set()
        may_go_on.wait(30)
        return ends_with_parent()

    monkeypatch.setattr("tasks.demo.stack.ends_with_parent", spawn_late)
    supervisor, stopper = (threading.Thread(target=act) for act in (pod.keep_up, pod.ask_to_stop))
    supervisor.start()
    begins.wait(30)
    stopper.start()
    stopper.join(0.3)  # by now it waits for the restart, or has found nothing to stop
    may_go_on.set()
    for thread in (supervisor, stopper):
        thread.join()
    pod.wait(timeout_s=10)

    assert running(tmp_path) == []
