"""python -m tests.servers DIRECTORY [PYTEST ARGUMENT …]: the tests on released servers that this machine does not have.

Debian's archive holds other releases of Redis and Valkey than the one that is installed. apt fetches them, with what
they are linked to, into DIRECTORY: from wherever this machine's own apt gets Debian, signed by the key that it trusts.
Nothing is installed. They run through the loader and the libraries they were built with, as ``redis-server``,
``redis-sentinel`` and ``redis-cli`` of a folder each; ``PATH=DIRECTORY/redis-8.0.6:$PATH`` makes any command use them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.broker.conftest import GIVEN_SERVER

APT_SOURCES: Final = Path("/etc/apt/sources.list.d/debian.sources")
# What speaks to a server: the broker, and the store's scripts.
STORE: Final = ("test_store", "test_two_workers", "test_concurrency")
TESTS: Final = ("tests/broker", "tests/faults", *(f"tests/sploot_cluster/{name}.py" for name in STORE))


@dataclass(frozen=True, slots=True)
class Release:
    """Where a server is found; the last of the suites wins. Suites move on, and the version with them."""

    suites: tuple[str, ...]
    name: str


RELEASES: Final = (
    Release(("sid",), "redict"),  # a fork of Redis 7.2
    Release(("bookworm", "bookworm-backports"), "valkey"),  # 8.0
    Release(("trixie",), "valkey"),  # 8.1
    Release(("sid",), "valkey"),  # 9.1
    Release(("trixie",), "redis"),  # 8.0
    Release(("sid", "experimental"), "redis"),  # 8.6
)


class NotToBeHad(Exception):
    """Raised when apt cannot fetch a release; the text holds its last words."""


def main() -> int:
    directory, *chosen = sys.argv[1:] or ["build/servers"]
    folders, verdicts = [], {}
    for release in RELEASES:
        try:
            folders.append(fetched(release, Path(directory).resolve()))
        except NotToBeHad as error:
            verdicts[f"{release.name} of {release.suites[-1]}"] = f"could not be had: {error}"
    for folder in folders:
        print(f"== {folder.name}", flush=True)
        verdicts[folder.name] = "passed" if passes(folder, chosen or TESTS) else "FAILED"
    print(*(f"{name:<28} {verdict}" for name, verdict in verdicts.items()), sep="\n")
    return 0 if folders and set(verdicts.values()) == {"passed"} else 1


def passes(folder: Path, arguments: Sequence[str]) -> bool:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    environment.pop(GIVEN_SERVER, None)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", *arguments]
    return subprocess.run(command, env=environment).returncode == 0


def fetched(release: Release, directory: Path) -> Path:
    """The folder of its executables, fetched unless it is there."""
    root = directory / f"{release.name}-of-{release.suites[-1]}"
    apt = Apt(root / "apt", release.suites)
    if not (root / "usr" / "bin" / f"{release.name}-server").exists():
        for package in apt.packages(f"{release.name}-server"):
            subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    return executables(release.name, root, directory)


def executables(name: str, root: Path, directory: Path) -> Path:
    """Scripts that run what was unpacked under ``root``, in a folder that is called after its version."""
    loader = next(root.glob("**/ld-linux*"))
    libraries = sorted({str(found.parent) for found in root.glob("**/lib/**/*.so*") if "/share/" not in str(found)})

    def script(program: str) -> str:
        # server, sentinel and checks are one program, which looks at the name by which it was called
        file = root / "usr" / "bin" / f"{name}-{'cli' if program == 'cli' else 'check-rdb'}"
        how = f"--argv0 {name}-{program} --library-path {':'.join(libraries)}"
        return f'#!/bin/sh\nexec {loader} {how} {file} "$@"\n'

    told = subprocess.run(["sh", "-c", script("server"), "sh", "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"v=([\d.]+)", told.stdout)
    assert version is not None, told.stdout
    folder = directory / f"{name}-{version[1]}"
    folder.mkdir(exist_ok=True)
    for program in ("server", "sentinel", "cli"):
        executable = folder / f"redis-{program}"
        executable.write_text(script(program))
        executable.chmod(0o755)
    return folder


class Apt:
    """apt with lists, packages and an idea of what is installed (nothing) of its own."""

    def __init__(self, directory: Path, suites: tuple[str, ...]) -> None:
        self._directory = directory
        self._suites = suites

    def packages(self, name: str) -> Iterator[Path]:
        """The files of a package and of all it needs.

        Raises:
            NotToBeHad: the suite, or the package in it, is not there.
        """
        for folder in ("lists/partial", "cache/archives/partial", "sources"):
            (self._directory / folder).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "sources" / "these.sources").write_text(self._sources())
        self._run("update")
        self._run("install", "--yes", "--download-only", "--target-release", self._suites[-1], name)
        return (self._directory / "cache" / "archives").glob("*.deb")

    def _sources(self) -> str:
        """The machine's first Debian source, with other suites."""
        if not APT_SOURCES.exists():
            raise NotToBeHad(f"{APT_SOURCES} is not there; BROKER_TEST_SERVER=/path/to/server takes what you have")
        first = APT_SOURCES.read_text().split("\n\n")[0]
        return re.sub(r"(?m)^Suites:.*$", f"Suites: {' '.join(self._suites)}", first)

    def _run(self, *words: str) -> None:
        own = self._directory
        settings = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": own / "sources",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": own / "lists",
            "Dir::State::status": own / "status",
            "Dir::Cache": own / "cache",
            "APT::Install-Recommends": "false",
        }
        options = [word for name, value in settings.items() for word in ("--option", f"{name}={value}")]
        ran = subprocess.run(["apt-get", "--quiet", "--quiet", *options, *words], capture_output=True, text=True)
        if ran.returncode:
            raise NotToBeHad(ran.stderr.strip()[-300:])


if __name__ == "__main__":
    sys.exit(main())
