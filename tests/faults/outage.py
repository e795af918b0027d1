"""A TCP proxy between clients and Redis that fails on demand.

It refuses connections, hangs, or cuts one connection at a chosen moment: before a command reaches the server, or after
the server has run the command but before the reply arrives. The command is selected by its name or the name of a
script.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Self

import broker as broker_package
from broker.scripts import Script

Where = Literal["before", "after"]

READ = "XREADGROUP"


def marks() -> dict[str, bytes]:
    """Return script or command name -> bytes that identify it in the data that clients send.

    A script is called by its digest, or sent as text if the server does not know it. The first line of each text is
    unique, so it identifies the script.
    """
    found: dict[str, bytes] = {READ: b"XREADGROUP"}
    for path in sorted(Path(broker_package.__file__).with_name("lua").glob("*.lua")):
        found[path.stem] = path.read_bytes().splitlines()[0]
    return found


class Outage:
    """A proxy on a loopback port. Methods may be called from any thread, and ``start`` and ``stop`` repeatedly.

    Attributes:
        port: the port it listens on.
        cuts: number of connections that were cut, by (name, where).
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._digests = {script.sha.encode(): name for name, script in _scripts().items()}
        self._texts = {mark: name for name, mark in marks().items()}
        self._pattern = re.compile(b"|".join(re.escape(mark) for mark in [*self._digests, *self._texts]))
        self._aims: dict[str, list[Where]] = {}
        self._lock = threading.Lock()
        self.cuts: Counter[tuple[str, Where]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop.run_forever, name="outage", daemon=True)
            self._thread.start()
            self._call(self._listen())
            self._call(self._set_flowing(True))
        return self

    def stop(self) -> None:
        if self._thread is not None:
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def aim(self, name: str, where: Where, *, times: int = 1) -> None:
        """Cut the next ``times`` connections that send this script or command, before or after the server runs it."""
        assert name in self._texts.values(), f"unknown script or command {name!r}"
        with self._lock:
            self._aims.setdefault(name, []).extend([where] * times)

    def forget_aims(self) -> None:
        with self._lock:
            self._aims.clear()

    def cut_all(self) -> None:
        """Cut every connection, even during a command."""
        self._call(self._cut_all())

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Cut every connection and refuse new ones during the block."""
        self._call(self._unlisten())
        try:
            yield
        finally:
            self._call(self._listen())

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Accept and keep connections, but pass no data in either direction during the block."""
        self._call(self._set_flowing(False))
        try:
            yield
        finally:
            self._call(self._set_flowing(True))

    def forget(self) -> None:
        """Pass no more data on the open connections, but do not close them, as a firewall treats idle connections."""
        self._forgotten.update(self._writers)

    @property
    def n_open(self) -> int:
        """The number of open connections, without forgotten ones."""
        return len(self._writers - self._forgotten)

    @property
    def n_forgotten(self) -> int:
        """The number of forgotten connections that the clients have not closed."""
        return len(self._forgotten)

    def _call(self, coroutine: object) -> None:
        assert asyncio.iscoroutine(coroutine)
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> None:
        if self._server is None:
            # the same port as before, so that clients can reconnect
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut_all()

    async def _cut_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _set_flowing(self, does: bool) -> None:
        if does:
            self._flows.set()
        else:
            self._flows.clear()

    async def _close(self) -> None:
        await self._unlisten()
        self._flows.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            await self._flows.wait()
            if isinstance(self._target, str):
                answers, upstream = await asyncio.open_unix_connection(self._target)
            else:
                answers, upstream = await asyncio.open_connection(*self._target)
            conversation = _Conversation()
            both = [
                asyncio.ensure_future(self._send_up(reader, upstream, conversation, writer)),
                asyncio.ensure_future(self._send_down(answers, writer, conversation)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in both:
                    one.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            pass  # the server is down, so the client loses its connection too
        except asyncio.CancelledError:
            pass  # the proxy is stopping
        finally:
            self._writers.discard(writer)
            self._forgotten.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()
            if upstream is not None:
                upstream.transport.abort()

    async def _send_up(
        self,
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        conversation: _Conversation,
        writer: asyncio.StreamWriter,
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                if writer in self._forgotten:
                    continue
                for name, where in self._hits(data):
                    if where == "before":
                        self.cuts[name, where] += 1
                        return
                    conversation.cut_on_answer = name
                upstream.write(data)
                await upstream.drain()

    async def _send_down(
        self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, conversation: _Conversation
    ) -> None:
        with suppress(ConnectionError):
            while data := await answers.read(1 << 16):
                await self._flows.wait()
                if conversation.cut_on_answer is not None:
                    self.cuts[conversation.cut_on_answer, "after"] += 1
                    return
                writer.write(data)
                await writer.drain()

    def _hits(self, data: bytes) -> list[tuple[str, Where]]:
        if not self._aims:
            return []
        hits: list[tuple[str, Where]] = []
        for found in self._pattern.findall(data):
            name = self._digests.get(found) or self._texts[found]
            with self._lock:
                aims = self._aims.get(name)
                if aims:
                    hits.append((name, aims.pop(0)))
                    if not aims:
                        del self._aims[name]
        return hits


class _Conversation:
    """A connection, and whether to cut it at its next reply."""

    def __init__(self) -> None:
        self.cut_on_answer: str | None = None


def _scripts() -> dict[str, Script]:
    from broker import scripts

    return {one.name: one for one in vars(scripts).values() if isinstance(one, Script)}
