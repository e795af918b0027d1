"""Tests of the rules for all requests and responses, and of time limits on slow connections."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from sploot_cluster.api import admission
from sploot_cluster.api.server import PatientProtocol
from sploot_cluster.errors import RevisionConflict
from sploot_cluster.pet.models import PetId
from tests.sploot_cluster.api.front import API, Front, TrustingService
from tests.support import eventually


@pytest.fixture(scope="module")
def front() -> Front:
    return Front()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/openapi.json", f"{API}/pets/42/clusters", "/nowhere"])
def test_head_request_returns_the_get_response_without_its_body(front: Front, path: str) -> None:
    got, head = front.http.get(path), front.http.head(path)

    assert head.status_code == got.status_code
    assert head.content == b""
    assert {name: head.headers[name] for name in ("content-type", "cache-control")} == {
        name: got.headers[name] for name in ("content-type", "cache-control")
    }


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/pets/42/model", "DELETE, GET, HEAD, POST"),
        ("/clusters/merge", "POST"),
        ("/pets/42", "DELETE"),
        ("/jobs/a", "GET, HEAD"),
    ],
)
def test_response_405_lists_all_methods_of_the_path(front: Front, path: str, allowed: str) -> None:
    answer = front.http.put(API + path)

    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert allowed in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "cached"),
    [("/pets/42/clusters", "private, no-cache"), ("/jobs/a", "no-store"), ("/pets", "no-store")],
)
def test_response_states_whether_caches_may_store_it(front: Front, path: str, cached: str) -> None:
    answer = front.http.get(API + path)

    assert answer.headers["Cache-Control"] == cached
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_large_response_is_compressed_for_clients_that_accept_it(front: Front) -> None:
    packed = front.http.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    plain = front.http.get("/openapi.json", headers={"Accept-Encoding": "identity"})

    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert packed.json() == plain.json()
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 4


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [(f"/{'a' * 9_000}", {}, 414), (f"/healthz?{'a' * 9_000}", {}, 414), ("/healthz", {"X-Note": "a" * 20_000}, 431)],
    ids=["path", "query", "header"],
)
def test_oversized_url_or_header_is_refused(front: Front, path: str, headers: dict[str, str], status: int) -> None:
    answer = front.http.get(path, headers=headers)

    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"


class ReplacedMeanwhile(TrustingService):
    """A service in which a pet is replaced while it is exported."""

    def export_parts(self, pet: PetId) -> Iterator[bytes]:
        yield b"PK"
        raise RevisionConflict(pet=pet, expected=1, current=2)


def test_export_that_cannot_continue_ends_without_its_last_chunk() -> None:
    front = Front(service_type=ReplacedMeanwhile)

    with served(front.app) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /api/v1/internal/pets/42/export HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received = everything_from(connection)

    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n2\r\nPK\r\n")


# -- slow clients ----------------------------------------------------------------------------------------------------


class Impatient(PatientProtocol):
    headers_wait_s = 0.2
    reading_wait_s = 0.2


@contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve the application with short time limits, and yield its port."""
    config = uvicorn.Config(app, port=0, http=Impatient, log_config=None, lifespan="off", timeout_graceful_shutdown=30)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            eventually(lambda: server.started)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(front: Front) -> Iterator[int]:
    with served(front.app) as port:
        yield port


def everything_from(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    return received


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "])
def test_connection_without_complete_headers_is_closed(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)

        assert everything_from(connection) == b""


def test_request_whose_body_does_not_arrive_returns_408(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "BODY_WAIT_S", 0.2)
    head = f"POST {API}/clusters/recluster HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"

    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f'{head}Content-Length: 14\r\n\r\n{{"pet_id"'.encode())
        answer = everything_from(connection)

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too-slow" in answer


def test_connection_is_closed_if_the_client_does_not_read_the_response() -> None:
    ended = threading.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
            await asyncio.sleep(0)
        await gone
        ended.set()

    with served(endless) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

        assert ended.wait(20)


def test_stream_of_events_does_not_delay_the_shutdown() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass

    with served(stream) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
        received = b""
        while b"data: 1" not in received:
            received += connection.recv(1_000)

    # otherwise, the shutdown would have waited 30 s for the stream, longer than `served` waits for the thread
    assert everything_from(connection).count(b"data: ") == 0
    connection.close()


def test_requests_on_one_connection_are_served_one_after_the_other(port: int) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    last = request[:-2] + b"Connection: close\r\n\r\n"

    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request + last)
        answers = everything_from(connection)

    assert answers.count(b"200 OK") == 2
