"""A stand-in for the part of Grafana's HTTP API that the scripts use: folders, versioned dashboards, annotations."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "glsa_0123456789abcdef"


@dataclass
class Grafana:
    """The content of the stand-in, and the requests that it received."""

    url: str = ""
    folders: dict[str, str] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)  # uids of the dashboards that it refuses

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        self.asked.append(f"{method} {urlsplit(path).path}")
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        match method, urlsplit(path).path.split("/")[2:]:
            case "GET", ["folders", uid]:
                found = self.folders.get(uid)
                return (200, {"uid": uid, "title": found}) if found else (404, {"message": "folder not found"})
            case "POST", ["folders"]:
                self.folders[body["uid"]] = body["title"]
                return 200, body
            case "GET", ["dashboards", "uid", uid]:
                held = self.dashboards.get(uid)
                return (200, held) if held else (404, {"message": "Dashboard not found"})
            case "POST", ["dashboards", "db"]:
                return self._save(body)
            case "GET", ["annotations"]:
                return 200, self._marked(parse_qs(urlsplit(path).query))
            case "POST", ["annotations"]:
                self.annotations.append(body)
                return 200, {"message": "Annotation added", "id": len(self.annotations)}
            case _:
                return 404, {"message": "Not found"}

    def _save(self, body: dict[str, Any]) -> tuple[int, Any]:
        board = body["dashboard"]
        uid = board["uid"]
        if uid in self.refuses or len(uid) > 40:
            return 400, {"message": "uid too long, max 40 characters"}
        if board.get("id") is not None:
            return 404, {"message": "Dashboard not found"}
        if body["folderUid"] not in self.folders:
            return 400, {"message": "folder not found"}
        held = self.dashboards.get(uid)
        if held and not body["overwrite"]:
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        version = held["dashboard"]["version"] + 1 if held else 1
        kept = {**board, "id": 17, "version": version}
        self.dashboards[uid] = {"dashboard": kept, "meta": {"folderUid": body["folderUid"], "message": body["message"]}}
        return 200, {"uid": uid, "version": version, "url": f"/d/{uid}/slug", "status": "success"}

    def _marked(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        begin, end = int(query["from"][0]), int(query["to"][0])
        return [
            mark
            for mark in self.annotations
            if begin <= mark["time"] <= end and set(query["tags"]) <= set(mark["tags"])
        ]


@contextmanager
def grafana() -> Iterator[Grafana]:
    held = Grafana()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            token = self.headers.get("Authorization", "")
            status, answer = held.answer(self.command, self.path, token, body)
            body_sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body_sent)))
            self.end_headers()
            self.wfile.write(body_sent)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  the name is http.server's

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        held.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield held
        finally:
            server.shutdown()
            thread.join()
