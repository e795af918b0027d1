"""Run the built image as Kubernetes would, without a container engine.

The command is process 1 of its own namespace, with user 10001, a read-only root, a /tmp in memory and the network of
this machine. Environment and entry point come from the configuration of the image.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Bind-mounts the rootfs read-only, with what a runtime adds: /proc, a few devices, /tmp.
_INSIDE = """
set -eu
mount --make-rprivate /
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount -t tmpfs -o mode=755 tmpfs {root}/dev
for device in null zero random urandom; do touch {root}/dev/$device; mount --bind /dev/$device {root}/dev/$device; done
mkdir -m 1777 {root}/dev/shm
mount -t tmpfs -o mode=1777,size=64m tmpfs {root}/tmp
mount -o remount,bind,ro {root}
exec chroot --userspec=10001:10001 {root} /usr/bin/env -i {environ} {command}
"""


class Image:
    """The output of ``python -m deploy.image``."""

    def __init__(self, directory: Path) -> None:
        self.rootfs = directory / "rootfs"
        self.about: Mapping[str, Any] = json.loads((directory / "config.json").read_text())
        self.config: Mapping[str, Any] = self.about["config"]

    @property
    def site_packages(self) -> Path:
        (found,) = self.rootfs.glob("opt/sploot/lib/python3.*/site-packages")
        return found

    @contextmanager
    def running(self, *arguments: str, environ: Mapping[str, str], log: Path) -> Iterator[Container]:
        """Run a container with these arguments to the entry point."""
        with log.open("wb") as output:
            process = subprocess.Popen(self._command(arguments, environ), stdout=output, stderr=output)
        container = Container(process, log)
        try:
            yield container
        finally:
            if process.poll() is None:
                container.send(signal.SIGKILL)
            process.wait(timeout=30)

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a container with these arguments to its end, and return its output."""
        command = self._command(arguments, environ or {})
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def run_python(self, code: str) -> str:
        """Run code with the image's Python and return its output."""
        command = self._command(["-c", code], {}, entry_point=["/opt/sploot/bin/python"])
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def _command(
        self, arguments: Sequence[str], environ: Mapping[str, str], *, entry_point: Sequence[str] | None = None
    ) -> list[str]:
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in environ.items())]
        script = _INSIDE.format(
            root=shlex.quote(str(self.rootfs.resolve())),
            environ=shlex.join(variables),
            command=shlex.join([*(entry_point or self.config["Entrypoint"]), *arguments]),
        )
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]


class Container:
    """A running command; ``send`` sends signals to its process 1."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def send(self, signal_number: signal.Signals) -> None:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal_number)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code."""
        return self._process.wait(timeout=timeout_s)

    @property
    def is_up(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        return self._log.read_text(errors="replace")
