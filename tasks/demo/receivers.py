"""A server on loopback that stands in for Slack and PagerDuty, and records what Alertmanager sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Notification:
    """One received notification.

    Attributes:
        receiver: ``slack``, ``slack-oncall`` or ``pagerduty``.
        alert: its alertname.
        is_over: whether it reports that the alert has ended.
        body: the request body.
    """

    receiver: str
    alert: str
    is_over: bool
    body: dict[str, Any] = field(compare=False, hash=False)


class Receivers:
    """The received notifications, in the order of arrival.

    Args:
        on_seen: called with each notification, in the thread of its request.
    """

    def __init__(self, on_seen: Callable[[Notification], None] = lambda _: None) -> None:
        self.url = ""
        self.seen: list[Notification] = []
        self._on_seen = on_seen
        # what a resolution omits: the alert, by PagerDuty's key; the receiver, by Slack's alert
        self._names: dict[str, str] = {}

    def take(self, path: str, body: dict[str, Any]) -> None:
        """Record a posted notification."""
        if path.startswith("/slack"):
            (attachment,) = body["attachments"]
            (alert,) = (one["value"] for one in attachment["fields"] if one["title"] == "Alert")
            is_over = attachment["title"].startswith("Resolved")
            if "@oncall" in attachment.get("pretext", ""):
                self._names[alert] = "slack-oncall"
            note = Notification(self._names.get(alert, "slack"), alert, is_over, body)
        else:
            is_over = body["event_action"] == "resolve"
            if not is_over:
                self._names[body["dedup_key"]] = body["payload"]["custom_details"]["alertname"]
            note = Notification("pagerduty", self._names[body["dedup_key"]], is_over, body)
        self.seen.append(note)
        self._on_seen(note)

    def fired(self) -> set[tuple[str, str]]:
        """Return (receiver, alert) for every alert that was reported as firing."""
        return {(one.receiver, one.alert) for one in self.seen if not one.is_over}

    def over(self) -> set[tuple[str, str]]:
        """Return (receiver, alert) for every alert that was reported as firing and then as resolved."""
        last = {(one.receiver, one.alert): one.is_over for one in self.seen}
        return {which for which, is_over in last.items() if is_over} & self.fired()


@contextmanager
def receivers(on_seen: Callable[[Notification], None] = lambda _: None) -> Iterator[Receivers]:
    """Serve the receivers until the block ends; ``on_seen`` as in ``Receivers``."""
    notes = Receivers(on_seen)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            notes.take(self.path, body)
            answer = b"ok" if self.path.startswith("/slack") else b'{"status": "success"}'
            self.send_response(200 if self.path.startswith("/slack") else 202)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  the name that http.server requires

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        notes.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield notes
        finally:
            server.shutdown()
            thread.join()
