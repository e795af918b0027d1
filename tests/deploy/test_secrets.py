"""Tests that commands and processes never print a secret, even when they fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import eventually

pytestmark = pytest.mark.deploy

# Secrets that cannot occur in the output by chance.
SECRETS = {
    "REDIS_URL": "hunter2-of-redis",
    "SPLOOT_API_TOKENS": "hunter2-of-the-api",
    "SENTRY_DSN": "hunter2-of-sentry",
}
COMMANDS = ("config show", "config show --json", "queue status", "doctor", "clusters 7", "merge 7 1 2")


class Slammer:
    """A server that takes the place of Redis, accepts connections and closes each of them at once."""

    def __init__(self) -> None:
        self.n_taken = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._slam, daemon=True)
        self._thread.start()

    def _slam(self) -> None:
        with suppress(OSError):
            while True:
                self._listening.accept()[0].close()
                self.n_taken += 1

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture
def slammer() -> Iterator[Slammer]:
    slammer = Slammer()
    yield slammer
    slammer.close()


def environ_with_secrets(tmp_path: Path, port: int, *, by_file: bool) -> dict[str, str]:
    values = {
        "REDIS_URL": f"redis://worker:{SECRETS['REDIS_URL']}@127.0.0.1:{port}/0",
        "SPLOOT_API_TOKENS": f"auth:producer:{SECRETS['SPLOOT_API_TOKENS']}",
        "SENTRY_DSN": f"http://{SECRETS['SENTRY_DSN']}@127.0.0.1:9/1",
    }
    given = {**os.environ, "WORKER_METRICS_PORT": "0", "SPLOOT_HTTP_PORT": "0", "SPLOOT_LOG_LEVEL": "DEBUG"}
    for variable, value in values.items():
        if by_file:
            path = tmp_path / variable
            path.write_text(value)
            given[f"{variable}_FILE"] = str(path)
        else:
            given[variable] = value
    return given


def shows_no_secret(output: str) -> None:
    assert [secret for secret in SECRETS.values() if secret in output] == []


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_command_output_contains_no_secret(command: str, by_file: bool, tmp_path: Path, slammer: Slammer) -> None:
    environ = environ_with_secrets(tmp_path, slammer.port, by_file=by_file)

    asked = subprocess.run(
        [sys.executable, "-m", "tasks.cli", *command.split()], env=environ, capture_output=True, text=True, timeout=90
    )

    assert asked.stdout or asked.stderr
    shows_no_secret(asked.stdout + asked.stderr)


@pytest.mark.parametrize("command", ["worker --processes 1 --threads 1", "scheduler", "serve"])
def test_process_log_contains_no_secret_when_redis_is_unreachable(
    command: str, tmp_path: Path, slammer: Slammer
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        words = [sys.executable, "-m", "tasks.cli", *command.split()]
        environ = environ_with_secrets(tmp_path, slammer.port, by_file=False)
        process = subprocess.Popen(words, env=environ, stdout=output, stderr=output)
        try:
            # wait until it has failed to reach Redis more than once, or has started without it
            eventually(
                lambda: process.poll() is not None or slammer.n_taken > 1 or "running" in log.read_text(), within_s=90
            )
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)

    shows_no_secret(log.read_text())


def test_error_for_an_invalid_secret_does_not_show_its_value() -> None:
    for variable, value in {"REDIS_URL": "hunter2-and-no-url", "SPLOOT_API_TOKENS": "hunter2-alone"}.items():
        asked = subprocess.run(
            [sys.executable, "-m", "tasks.cli", "serve"],
            env={**os.environ, "SPLOOT_HTTP_PORT": "0", variable: value},
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert asked.returncode == 2
        assert variable in asked.stderr
        assert "hunter2" not in asked.stdout + asked.stderr
