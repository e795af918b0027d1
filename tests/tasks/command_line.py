"""The command line, run in the test's own process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tasks.cli import main
from tasks.cli.screen import err, out


@dataclass(frozen=True)
class Ran:
    """A command that has ended, with its exit code and output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class CommandLine:
    """A runner of ``sploot-cluster`` commands in this process; not of those that run until they are stopped."""

    def __init__(self, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("REDIS_URL", redis_url)
        # so that the hook that ``main`` sets is removed after the test
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        for screen in (out, err):
            monkeypatch.setattr(screen, "width", 200)

    def __call__(self, *arguments: str, given: str = "", environ: Mapping[str, str] | None = None) -> Ran:
        """Run one command with this standard input and these environment variables."""
        self._monkeypatch.setattr(sys, "argv", ["sploot-cluster", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        for variable, value in (environ or {}).items():
            self._monkeypatch.setenv(variable, value)
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self._capsys.readouterr()
        return Ran(int(ended.value.code or 0), printed.out, printed.err)
