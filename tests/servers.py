"""python -m tests.servers DIRECTORY [PYTEST ARGUMENT …]: run the tests on server releases that are not installed here.

Debian's archive has releases of Redis and Valkey other than the installed one. apt fetches them with their libraries
into DIRECTORY, from this machine's own Debian mirror and verified with its keys; nothing is installed. Each release
gets a folder with ``redis-server``, ``redis-sentinel`` and ``redis-cli``, which run with the loader and libraries they
were built with; ``PATH=DIRECTORY/redis-8.0.6:$PATH`` makes any command use them.
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
# Tests that use a server: those of the broker and of the store's scripts.
STORE: Final = ("test_store", "test_two_workers", "test_concurrency")
TESTS: Final = ("tests/broker", "tests/faults", *(f"tests/sploot_cluster/{name}.py" for name in STORE))


@dataclass(frozen=True, slots=True)
class Release:
    """A server to fetch: its Debian suites, of which the last takes precedence, and its package.

    The version that a suite contains changes over time; the comments below name those that were found.
    """

    suites: tuple[str, ...]
    name: str


RELEASES: Final = (
    Release(("sid",), "redict"),  # a fork of Redis 7.2
    Release(("bookworm", "bookworm-backports"), "valkey"),  # Valkey 8.0
    Release(("trixie",), "valkey"),  # Valkey 8.1
    Release(("sid",), "valkey"),  # Valkey 9.1
    Release(("trixie",), "redis"),  # Redis 8.0
    Release(("sid", "experimental"), "redis"),  # Redis 8.6
)


class Unavailable(Exception):
    """Raised when apt cannot fetch a release. The message is the end of its output."""


def main() -> int:
    directory, *chosen = sys.argv[1:] or ["build/servers"]
    folders, verdicts = [], {}
    for release in RELEASES:
        try:
            folders.append(fetched(release, Path(directory).resolve()))
        except Unavailable as error:
            verdicts[f"{release.name} of {release.suites[-1]}"] = f"unavailable: {error}"
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
    """Return the folder of the release's executables; fetch it unless it exists."""
    root = directory / f"{release.name}-of-{release.suites[-1]}"
    apt = Apt(root / "apt", release.suites)
    if not (root / "usr" / "bin" / f"{release.name}-server").exists():
        for package in apt.packages(f"{release.name}-server"):
            subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    return executables(release.name, root, directory)


def executables(name: str, root: Path, directory: Path) -> Path:
    """Create a folder, named after the version, with scripts that run the unpacked programs. Return the folder."""
    loader = next(root.glob("**/ld-linux*"))
    libraries = sorted({str(found.parent) for found in root.glob("**/lib/**/*.so*") if "/share/" not in str(found)})

    def script(program: str) -> str:
        # server, sentinel and checks are one program; it acts according to the name by which it is called
        file = root / "usr" / "bin" / f"{name}-{'cli' if program == 'cli' else 'check-rdb'}"
        how = f"--argv0 {name}-{program} --library-path {':'.join(libraries)}"
        return f'#!/bin/sh\nexec {loader} {how} {file} "$@"\n'

    printed = subprocess.run(
        ["sh", "-c", script("server"), "sh", "--version"], capture_output=True, text=True, check=True
    )
    version = re.search(r"v=([\d.]+)", printed.stdout)
    assert version is not None, printed.stdout
    folder = directory / f"{name}-{version[1]}"
    folder.mkdir(exist_ok=True)
    for program in ("server", "sentinel", "cli"):
        executable = folder / f"redis-{program}"
        executable.write_text(script(program))
        executable.chmod(0o755)
    return folder


class Apt:
    """An isolated apt setup with its own package lists and download cache, in which no package is installed."""

    def __init__(self, directory: Path, suites: tuple[str, ...]) -> None:
        self._directory = directory
        self._suites = suites

    def packages(self, name: str) -> Iterator[Path]:
        """Return the files of a package and its dependencies.

        Raises:
            Unavailable: the suite or its package does not exist.
        """
        for folder in ("lists/partial", "cache/archives/partial", "sources"):
            (self._directory / folder).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "sources" / "these.sources").write_text(self._sources())
        self._run("update")
        self._run("install", "--yes", "--download-only", "--target-release", self._suites[-1], name)
        return (self._directory / "cache" / "archives").glob("*.deb")

    def _sources(self) -> str:
        """Return the machine's first Debian source, with its suites replaced by ours."""
        if not APT_SOURCES.exists():
            raise Unavailable(f"{APT_SOURCES} does not exist; set BROKER_TEST_SERVER=/path/to/server to use your own")
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
            raise Unavailable(ran.stderr.strip()[-300:])


if __name__ == "__main__":
    sys.exit(main())
