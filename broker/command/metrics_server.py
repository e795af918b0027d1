"""The command ``metrics``: serves the queues' metrics to Prometheus, or prints them once."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import redis
from dramatiq.errors import BrokerConnectionError

from ..metrics import CONTENT_TYPE, exposition
from .options import DONE, Commands, Desk, opened

# Minimum interval in seconds between lookups of the queue names. Each lookup scans all keys on the server.
LOOK_AGAIN_S: Final = 60.0


def add_to(commands: Commands) -> None:
    parser = commands.add("metrics", serve_metrics, "serve the metrics of the queues to Prometheus, at /metrics")
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help="default: all queues")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9106, help="port to listen on (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="print the metrics and exit")


def serve_metrics(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        names = _Names(desk, given.queues)
        if given.once:
            print(exposition(desk.broker, names.current()), end="")
            return DONE
        with server(lambda: exposition(desk.broker, names.current()), given.host, given.port) as listening:
            host, port = listening.server_address[:2]
            print(f"serving http://{host!s}:{port}/metrics; Ctrl-C stops it", file=sys.stderr, flush=True)
            try:
                listening.serve_forever()
            except KeyboardInterrupt:
                return DONE
    return DONE


class _Names:
    """The names of the queues to expose. If none are given, all queues are looked up, at most once a minute."""

    def __init__(self, desk: Desk, given: list[str]) -> None:
        self._desk = desk
        self._given = given
        self._found: list[str] = []
        self._looked_at = -LOOK_AGAIN_S

    def current(self) -> list[str]:
        if self._given:
            return self._given
        if time.monotonic() - self._looked_at >= LOOK_AGAIN_S:
            self._found, self._looked_at = self._desk.queues(), time.monotonic()
        return self._found


def server(text: Callable[[], str], host: str, port: int) -> ThreadingHTTPServer:
    """Return an HTTP server for ``/metrics``. It responds with 503 while Redis does not answer."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # maximum time in seconds that a client may take to send its request

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            try:
                body = text().encode()
            except (BrokerConnectionError, redis.RedisError) as error:
                self.send_error(503, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing, because Prometheus scrapes every few seconds."""

    return ThreadingHTTPServer((host, port), Handler)
