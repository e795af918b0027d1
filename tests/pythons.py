"""Run the quick tests on every other supported Python: ``python -m tests.pythons [VERSION …] [-- pytest's options]``.

The interpreter is ``pythonX.Y`` from PATH or pyenv, or else Debian's Python in a chroot that is created once. uv
installs the packages into a separate folder, only from wheels. A missing interpreter is a failure if
``REQUIRE_ALL_TOOLS`` is set. Needs the extra ``[deploy]`` and, for Debian's Python, the root user and debootstrap.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
VERSIONS: Final = ("3.12", "3.13", "3.14")
SUITES: Final = {"3.14": "sid"}  # version -> the Debian suite in which it is the default
EXTRAS: Final = ("worker", "server", "embedded", "parquet", "reference", "all")
TOOLS: Final = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "httpx2", "psutil", "jsonschema", "pyyaml")
MODULES: Final = "tasks.worker, tasks.cli.index, sploot_cluster.api, sploot_cluster.density, broker.command"
QUICK: Final = ("-n", "2", "-q", "--newest", "-m", "not slow", "tests/broker", "tests/sploot_cluster")


def interpreter(version: str) -> Path | None:
    """Return a working interpreter of this version, or None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = shutil.which(f"python{version}")
    candidates = [*([Path(on_path)] if on_path else []), *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
    for candidate in candidates:
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def declared(extras: Sequence[str]) -> list[str]:
    """Return the requirements of sploot-cluster and these extras, from setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    sections = [setup["options.extras_require"][extra] for extra in extras] + [setup["options"]["install_requires"]]
    wanted = [line.strip() for section in sections for line in section.splitlines()]
    return [line for line in wanted if line and not line.startswith(("#", "sploot-cluster"))]


def install(version: str, packages: Path) -> None:
    """Install the requirements for a version into the folder ``packages``."""
    needed = packages.with_suffix(".in")
    needed.parent.mkdir(parents=True, exist_ok=True)
    needed.write_text("\n".join([*declared(EXTRAS), *TOOLS]) + "\n")
    uv = Path(sys.executable).with_name("uv")
    shutil.rmtree(packages, ignore_errors=True)
    options = ["--quiet", "--only-binary", ":all:", "--python-version", version]
    options += ["--python-platform", "x86_64-manylinux_2_28"]
    subprocess.run([uv, "pip", "install", "--target", packages, *options, "-r", needed], check=True)


def run(version: str, options: list[str]) -> int:
    """Run the tests on a version and return the exit code."""
    python = interpreter(version)
    directory = Path(tempfile.gettempdir()) / f"sploot-python-{version}"
    if python is not None:
        packages = directory / "packages"
        install(version, packages)
        environ = {**os.environ, "PYTHONPATH": f"{packages}:{ROOT}", "PYTHONDONTWRITEBYTECODE": ""}
        within: list[str | Path] = [python]
        return _test(within, ROOT, environ, options)
    if version in SUITES and os.geteuid() == 0 and shutil.which("debootstrap"):
        root = _debian(SUITES[version], directory)
        install(version, root / "packages")
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "PYTHONPATH": "/packages:/src",
            "LANG": "C.UTF-8",
        }
        mounts = f"mount --bind /proc {root}/proc && mount --bind /dev {root}/dev && cd {root}/src && "
        enter = f'{mounts}exec chroot {root} sh -c \'cd /src && exec "$@"\' sh "$@"'
        return _test(["/usr/bin/unshare", "--mount", "sh", "-c", enter, "sh", "python3"], ROOT, environ, options)
    print(f"Python {version}: no interpreter was found; install python{version} or debootstrap", file=sys.stderr)
    return 1 if os.environ.get("REQUIRE_ALL_TOOLS") else 0


def _test(within: list[str | Path], directory: Path, environ: dict[str, str], options: list[str]) -> int:
    report = "import platform, sys; print('Python', platform.python_version(), flush=True)"
    for arguments in (["-c", f"{report}; import {MODULES}"], ["-m", "pytest", *(options or QUICK)]):
        done = subprocess.run([*within, *arguments], cwd=directory, env=environ, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


def _debian(suite: str, directory: Path) -> Path:
    """Return a root directory with Debian's Python of a suite, and this checkout in ``/src``."""
    archive = subprocess.run(
        [ROOT / "deploy" / "base_image.sh", suite], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    root = directory / "root"
    if not (root / "usr").exists():
        root.mkdir(parents=True)
        with tarfile.open(archive) as packed:
            packed.extractall(root, filter="fully_trusted")  # our own archive, which has device files
    shutil.rmtree(root / "src", ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (root / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / "src" / name)
    return root


def main(arguments: list[str]) -> int:
    """Run the tests on each version and return the first exit code that is not 0."""
    versions = [one for one in arguments if re.fullmatch(r"3\.\d+", one)] or list(VERSIONS)
    options = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    codes = [run(version, options) for version in versions]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
