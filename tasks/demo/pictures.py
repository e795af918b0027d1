"""The pictures of the demo's items, served on loopback for the console.

The vector of a digit is its scan: 64 values, 8 × 8 pixels. Items of the synthetic pet have no picture, so their vectors
are drawn as coloured fields, and items of one group look alike.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from sploot_cluster.pet.vectors import FloatVector
from tasks.demo.sample import DIGITS_MODEL, Album

SIDE: Final = 8  # a scan has 8 × 8 pixels
EDGE: Final = 144  # width and height of a picture in pixels, whatever width the request names

Pixels = npt.NDArray[np.uint8]

_PAPER: Final = np.array([250, 247, 240])
_INK: Final = np.array([44, 58, 92])


class Pictures:
    """A context manager that serves pictures while its block runs.

    Attributes:
        url_template: the value for ``SPLOOT_MEDIA_URL_TEMPLATE``.
    """

    def __init__(self, albums: Iterable[Album]) -> None:
        drawn = {
            (str(album.pet_id), item): (album.model, vector)
            for album in albums
            for item, vector in zip(album.media_ids, album.vectors, strict=True)
        }

        @lru_cache(maxsize=2_000)
        def picture(pet: str, item: str) -> bytes | None:
            found = drawn.get((pet, item))
            return None if found is None else png(draw(*found))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pet, _, item = urlsplit(self.path).path.lstrip("/").partition("/")
                body = picture(pet, unquote(item))
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Cache-Control", "max-age=3600")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name in its base class
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="pictures", daemon=True)
        self.url_template = f"http://127.0.0.1:{self._server.server_port}/{{pet_id}}/{{media_id}}?w={{width}}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def draw(model: str, vector: FloatVector) -> Pixels:
    """Return the picture of an item, (EDGE, EDGE, 3)."""
    n = SIDE * SIDE
    if model == DIGITS_MODEL:
        ink = _enlarged(np.clip(vector[:n].reshape(SIDE, SIDE) / max(float(vector.max()), 1e-9), 0, 1))[..., None]
        picture: Pixels = (_PAPER * (1 - ink) + _INK * ink).astype(np.uint8)
        return picture
    channels = [_enlarged(vector[at * n : (at + 1) * n].reshape(SIDE, SIDE)) for at in range(3)]
    field = np.stack(channels, axis=-1) * len(vector) ** 0.5
    colours: Pixels = (128 + 100 * np.tanh(field)).astype(np.uint8)
    return colours


def _enlarged(small: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return an image of SIDE × SIDE values at EDGE × EDGE, interpolated, with a margin."""
    framed = np.pad(small.astype(np.float64), 1, mode="edge" if small.min() < 0 else "constant")
    here, wanted = np.arange(SIDE + 2), np.linspace(0, SIDE + 1, EDGE)
    wide = np.array([np.interp(wanted, here, row) for row in framed])
    return np.array([np.interp(wanted, here, column) for column in wide.T]).T


def png(pixels: Pixels) -> bytes:
    """Return an image as PNG (RFC 2083), 8 bits per channel, without filters."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in np.ascontiguousarray(pixels))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + image + chunk(b"IEND", b"")
