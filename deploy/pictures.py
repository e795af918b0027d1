"""Draw the pictures of the README: ``make pictures`` writes docs/pictures/{console,dashboard}.png.

Headless Chromium takes a screenshot of the console with a sample pet; Redis and the server run on loopback for this
purpose only. ``tests.ops.picture`` draws the dashboard from a real Prometheus. Both pictures are cropped, scaled and
reduced to a small palette.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis
import uvicorn
from PIL import Image

from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.service import ClusterService, NewItem
from sploot_cluster.store.redis import RedisPetStore
from tasks.composition import build_app
from tasks.demo.pictures import Pictures
from tasks.demo.sample import DIGITS_MODEL, Album, albums
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings

ROOT: Final = Path(__file__).parents[1]
PICTURES: Final = ROOT / "docs" / "pictures"
LARGEST: Final = 200_000  # maximum size of a picture in bytes
WIDTH: Final = 1_100  # in pixels; GitHub shows this width without scaling
COLOURS: Final = 192
SHARE, ALBUM = 0.6, "Ziggy"  # the share of the sample's items to use, and an album with varied items
BATCH: Final = 32
SCREEN: Final = (1_280, 1_000)
FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    f"--window-size={SCREEN[0]},{SCREEN[1]}", "--virtual-time-budget=15000", "--force-prefers-reduced-motion",
)  # fmt: skip
START_WITHIN_S: Final = 30.0
SHOT_WITHIN_S: Final = 120


class NoPicture(Exception):
    """Raised when a picture could not be drawn; the message states the reason and the fix."""


def photograph_console(target: Path) -> None:
    """Write a screenshot of the console's page for a pet that has corrections.

    Raises:
        NoPicture: Chromium is missing, or wrote nothing.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise NoPicture("expected chromium on the PATH, found none; apt-get install chromium")
    with sample_console() as sample, tempfile.TemporaryDirectory() as profile:
        flags = [*FLAGS, f"--user-data-dir={profile}", f"--screenshot={target}"]
        done = subprocess.run(
            [chromium, *flags, f"{sample.address}/#/pet/{sample.pet}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=SHOT_WITHIN_S,
        )
    if not target.exists():
        raise NoPicture(f"expected a screenshot, chromium ended with {done.returncode}: {done.stderr[-500:]}")


@dataclass(frozen=True, slots=True)
class SampleConsole:
    """A console with the pets of the demo; one of them, ``pet``, has corrections."""

    address: str
    pet: PetId
    pets: tuple[PetId, ...]
    redis_url: str


@contextmanager
def sample_console() -> Iterator[SampleConsole]:
    """Serve the console with named sample pets that have pictures; one of the pets also has corrections."""
    with EmbeddedRedis(options={"appendonly": "no"}) as server, redis.Redis.from_url(server.url) as client:
        sample = [album for album in albums(share=SHARE) if album.model == DIGITS_MODEL]
        service = ClusterService(RedisPetStore(client))
        for album in sample:
            _fill(service, album)
        pet = next(PetId(album.pet_id) for album in sample if album.name == ALBUM)
        _correct(service, pet)
        service.recluster(pet)
        with Pictures(sample) as pictures:
            settings = Settings(redis_url=server.url, media_url_template=pictures.url_template)
            with served(settings) as address:
                yield SampleConsole(address, pet, tuple(PetId(album.pet_id) for album in sample), server.url)


def shrink(source: Path, target: Path, *, height: int) -> None:
    """Write the upper ``height`` pixels of a picture, scaled to ``WIDTH``, in few colours.

    Raises:
        NoPicture: the result is larger than ``LARGEST`` bytes.
    """
    with Image.open(source) as whole:
        part = whole.convert("RGB").crop((0, 0, whole.width, min(height, whole.height)))
    scaled = part.resize((WIDTH, round(part.height * WIDTH / part.width)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    scaled.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    if (size := target.stat().st_size) > LARGEST:
        raise NoPicture(f"expected {target.name} of at most {LARGEST} bytes, got {size}; crop it, or use fewer colours")


def _fill(service: ClusterService, album: Album) -> None:
    """Ingest one album of the demo, and name its pet."""
    pet = PetId(album.pet_id)
    items = [
        NewItem(pet, MediaId(media_id), album.model, vector)
        for media_id, vector in zip(album.media_ids, album.vectors, strict=True)
    ]
    for start in range(0, len(items), BATCH):
        service.assign_many(items[start : start + BATCH])
    service.recluster(pet)
    service.name_pet(pet, album.name, operation_id="picture-0", by="ada")


def _correct(service: ClusterService, pet: PetId) -> None:
    largest, second = service.clusters(pet).clusters[:2]
    service.split(pet, largest.cluster_id, largest.media_ids[:3], operation_id="picture-1", by="ada")
    service.dismiss(pet, second.media_ids[:1], operation_id="picture-2", by="ada")


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """Serve the API and the console on a free loopback port, and yield the base URL."""
    server = uvicorn.Server(uvicorn.Config(build_app(settings), host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + START_WITHIN_S
        while not server.started:
            if time.monotonic() > deadline:
                raise NoPicture(f"expected the server to start within {START_WITHIN_S:.0f} s; it did not")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def main() -> int:
    """Write both pictures and return 0, or 1 if one could not be drawn."""
    with tempfile.TemporaryDirectory(prefix="sploot-pictures-") as directory:
        console, dashboard = Path(directory) / "console.png", Path(directory) / "dashboard.png"
        try:
            photograph_console(console)
            shrink(console, PICTURES / "console.png", height=SCREEN[1])
            subprocess.run([sys.executable, "-m", "tests.ops.picture", str(dashboard)], cwd=ROOT, check=True)
            shrink(dashboard, PICTURES / "dashboard.png", height=1_102)
        except (NoPicture, subprocess.SubprocessError) as problem:
            print(problem, file=sys.stderr)
            return 1
    print(f"drawn: console.png and dashboard.png in {PICTURES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
