"""Build and check all distributions: ``python -m deploy.distributions DIRECTORY``.

DIRECTORY receives a source distribution and a wheel of sploot-cluster, of its thin client and of the broker. The wheel
of sploot-cluster is built from the files of its source distribution. twine, check-wheel-contents and pyroma check them.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from deploy import broker_distribution, client_distribution
from deploy.wheels import build_sdist, build_wheel

ROOT: Final = Path(__file__).parent.parent
# Distribution -> a warning of check-wheel-contents to ignore. W009: the main wheel intentionally has three top-level
# packages.
IGNORED: Final = {"sploot_cluster": "W009"}
# The domain of the stand-in for the authors' e-mail address. RFC 2606 reserves .example, so it can never be a real one.
STAND_IN: Final = "@sploot-cluster.example"


def build(directory: Path) -> list[tuple[Path, Path]]:
    """Build into ``directory`` and return a source distribution and a wheel of each project.

    Raises:
        subprocess.CalledProcessError: setuptools could not build one; its output contains the reason.
    """
    directory.mkdir(parents=True, exist_ok=True)
    built = []
    with tempfile.TemporaryDirectory(prefix="distributions-") as temporary:
        sdist = build_sdist(ROOT, directory)
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        source = Path(temporary, sdist.name.removesuffix(".tar.gz"))
        built.append((sdist, build_wheel(source, directory, package="sploot_cluster")))
        for of in (client_distribution, broker_distribution):
            source = Path(temporary, of.PACKAGE)
            source.mkdir()
            of.write_sources(source)
            built.append((build_sdist(source, directory), build_wheel(source, directory, package=of.PACKAGE)))
    return built


def problems(sdist: Path, wheel: Path) -> list[str]:
    """Run the three checkers; return the output of each that found problems."""
    tools = Path(sys.executable).parent
    package = wheel.name.partition("-")[0]
    ignored = ["--ignore", IGNORED[package]] if package in IGNORED else []
    commands: tuple[list[str | Path], ...] = (
        [tools / "twine", "check", "--strict", sdist, wheel],
        [tools / "check-wheel-contents", *ignored, wheel],
        [tools / "pyroma", "--min=10", "--file", sdist],
    )
    found = []
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            found.append(f"{Path(command[0]).name}: {done.stdout}{done.stderr}")
    return found


def main(directory: Path) -> int:
    """Build and check; return 1 if a checker found problems."""
    try:
        built = build(directory)
    except subprocess.CalledProcessError as error:
        print(f"{error.stdout}{error.stderr}", file=sys.stderr)
        return 1
    objections = [problem for sdist, wheel in built for problem in problems(sdist, wheel)]
    print(*(path for pair in built for path in pair), *objections, sep="\n")
    if STAND_IN in (ROOT / "setup.cfg").read_text():
        print(f"not ready to publish: replace the authors' address {STAND_IN} in setup.cfg and deploy/*/pyproject.toml")
    return 1 if objections else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
