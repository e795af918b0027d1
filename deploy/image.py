"""Build the image from scratch on a machine without a container engine: ``python -m deploy.image DIRECTORY``.

Debian's buildah builds the unchanged Dockerfile on a debootstrap base, for machines that cannot pull images. The pip
configuration of this machine (registries, certificates, folders of wheels) is mounted during the build and does not
end up in the image. DIRECTORY receives ``rootfs/``, the unpacked image, and ``config.json``, its OCI configuration.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

ROOT: Final = Path(__file__).parent.parent
BASE: Final = "localhost/python-base:bookworm"
NAME: Final = "localhost/sploot-cluster:built"
NEEDED: Final = ("buildah", "debootstrap")


def main(directory: Path) -> int:
    """Build the image into ``directory`` and return the exit code."""
    if missing := [tool for tool in NEEDED if shutil.which(tool) is None]:
        print(f"image: SKIP, {' and '.join(missing)} not found: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 1 if os.environ.get("REQUIRE_ALL_TOOLS") else 0
    if os.geteuid() != 0:
        print("image: SKIP, debootstrap and chroot require root: run as root", file=sys.stderr)
        return 1 if os.environ.get("REQUIRE_ALL_TOOLS") else 0
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    archive = _output_of([str(ROOT / "deploy" / "base_image.sh")]).strip()
    # separate storage, so that other containers on this machine are not affected
    with tempfile.TemporaryDirectory(prefix="sploot-buildah-") as storage:
        buildah = Buildah(Path(storage))
        buildah.import_base(Path(archive))
        with tempfile.TemporaryDirectory(prefix="sploot-pip-") as pip:
            mounts = pip_mounts(_pip_settings(), Path(pip))
            buildah.build(mounts, revision=_revision())
        buildah.unpack(directory)
    return 0


class Buildah:
    """Debian's buildah without a daemon, with plain directories as storage and chroot as isolation."""

    def __init__(self, storage: Path) -> None:
        self._options = ["--root", str(storage / "root"), "--runroot", str(storage / "run"), "--storage-driver", "vfs"]
        self._environ = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def import_base(self, archive: Path) -> None:
        """Create the base image from an archive of a root file system."""
        container = self._run("from", "scratch").strip()
        self._run("add", "-q", container, str(archive), "/")
        self._run("commit", "-q", "--rm", container, BASE)

    def build(self, mounts: Sequence[str], *, revision: str) -> None:
        """Build the Dockerfile on the base."""
        arguments = ["--build-arg", f"PYTHON_IMAGE={BASE}", "--build-arg", f"REVISION={revision}"]
        volumes = [word for mount in mounts for word in ("--volume", mount)]
        self._run("build", "--pull-never", "--layers=false", *arguments, *volumes, "--tag", NAME, str(ROOT))

    def unpack(self, directory: Path) -> None:
        """Copy the files and the configuration of the image to ``directory``."""
        container = self._run("from", "--pull-never", NAME).strip()
        mounted = self._run("mount", container).strip()
        _output_of(["cp", "-a", mounted, str(directory / "rootfs")])
        config = json.loads(self._run("inspect", "--type", "image", NAME))["OCIv1"]
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        self._run("umount", container)

    def _run(self, *arguments: str) -> str:
        return _output_of(["buildah", *self._options, *arguments], environ=self._environ)


def pip_mounts(settings: Mapping[str, str], directory: Path) -> list[str]:
    """Return volumes that give pip inside a build the same package sources as on this machine.

    Args:
        settings: option -> value, as listed by ``pip config list``.
        directory: the configuration for the build is written here.
    """
    configuration = configparser.RawConfigParser()
    configuration["global"] = dict(settings)
    inside = directory / "pip.conf"
    with inside.open("w") as file:
        configuration.write(file)
    mounts = [f"{inside}:/etc/pip.conf:ro"]
    for value in settings.values():
        for word in value.split():
            path = Path(unquote(urlsplit(word).path) if word.startswith("file:") else word)
            if path.is_absolute() and path.exists():
                # mount the parent of an index, because an index such as /opt/pypi/simple refers to ../files
                path = path.parent if word.startswith("file:") else path
                mounts.append(f"{path}:{path}:ro")
    return mounts


def _pip_settings() -> dict[str, str]:
    listed = _output_of([sys.executable, "-m", "pip", "config", "list"])
    settings = re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listed, flags=re.MULTILINE)
    return {option: value.replace("\\n", " ") for option, value in settings}


def _revision() -> str:
    try:
        return _output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
    except (OSError, RuntimeError):
        return "unknown"  # the sources are a copy without git history


def _output_of(command: Sequence[str], *, environ: Mapping[str, str] | None = None) -> str:
    ended = subprocess.run(list(command), env=environ, capture_output=True, text=True, cwd=ROOT, check=False)
    if ended.returncode != 0:
        last_words = "\n".join((ended.stdout + ended.stderr).splitlines()[-30:])
        raise RuntimeError(f"{' '.join(command[:8])} … exited {ended.returncode}:\n{last_words}")
    return ended.stdout


def size_of(rootfs: Path) -> int:
    """Return the size of all files in bytes, counting hard links once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(rootfs):
        for name in names:
            about: Any = Path(folder, name).lstat()
            if (about.st_dev, about.st_ino) not in seen:
                seen.add((about.st_dev, about.st_ino))
                total += about.st_size
    return total


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
