"""The feed that pushes the state of the queues to open pages as server-sent events.

While there are viewers, one task of the process reads Redis for all of them. No events are stored for a slow viewer, so
it gets fewer events but never old ones. A stream ends after ten minutes, so that the token of its caller is checked
again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sploot_cluster.api.problems import TOO_MANY_REQUESTS, Refusal
from sploot_cluster.jobs import QueueUnavailable

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "text/event-stream"

EVERY_S: Final = 2.0
LONGEST_S: Final = 600.0
# If a read takes longer than this, viewers are informed, because pages close a stream that is silent for seven
# seconds.
LATE_S: Final = 3.0

# Maximum number of streams in a process. Each takes a connection and about 50 kB.
MAX_VIEWERS: Final = 200
RETRY_AFTER_S: Final = 60

# Event name -> the data of the event, as JSON.
Events = Mapping[str, bytes]


class Feed:
    """A feed that reads events while it has viewers, and sends every event to all viewers. Belongs to one event loop.

    Args:
        read: returns all events; called in a thread. It may raise ``QueueUnavailable``.
        every_s: pause between two reads.
        max_viewers: maximum number of simultaneous viewers.
        longest_s: maximum duration of each stream.
        late_s: duration of a read after which viewers are informed that it is late.
    """

    def __init__(
        self,
        read: Callable[[], Events],
        *,
        every_s: float = EVERY_S,
        max_viewers: int = MAX_VIEWERS,
        longest_s: float = LONGEST_S,
        late_s: float = LATE_S,
    ) -> None:
        self._read = read
        self._every_s, self._max_viewers, self._longest_s = every_s, max_viewers, longest_s
        self._late_s = late_s
        self._n_viewers = 0
        self._reader: asyncio.Task[None] | None = None
        self._latest: Events | Exception | None = None
        self._next: asyncio.Future[None] | None = None

    async def once(self) -> Events:
        """Read the events for one caller."""
        return await run_in_threadpool(self._read)

    async def watch(self) -> AsyncGenerator[Events]:
        """Yield the newest events, and then new ones after each read, until the generator is closed.

        If a later read fails, the event ``problem`` states why.

        Raises:
            Refusal: the feed has the maximum number of viewers already.
            Exception: the first read failed.
        """
        if self._n_viewers >= self._max_viewers:
            detail = f"{self._n_viewers} pages receive events from this server already; load the data every few seconds"
            raise Refusal(TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(RETRY_AFTER_S)})
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._longest_s
        self._n_viewers += 1
        try:
            if self._reader is None:
                self._next = loop.create_future()
                self._reader = loop.create_task(self._read_on())
            if self._latest is None:
                await self._news(self._longest_s)
            if isinstance(self._latest, Exception):
                raise self._latest
            is_late = False
            while self._latest is not None and loop.time() < ends_at:
                if is_late:
                    yield _problem("Redis has not answered yet")
                elif isinstance(self._latest, Exception):
                    yield _problem(_cause_of(self._latest))
                else:
                    yield self._latest
                is_late = not await self._news(self._every_s + self._late_s)
        finally:
            self._n_viewers -= 1
            if not self._n_viewers and self._reader is not None:
                self._reader.cancel()
                self._reader = self._latest = None

    async def _news(self, within_s: float) -> bool:
        """Wait for the next read, and return whether it finished in time."""
        assert self._next is not None
        # unlike wait_for, this does not cancel the future on a timeout; other viewers wait for it too
        done, _ = await asyncio.wait([self._next], timeout=within_s)
        return bool(done)

    async def _read_on(self) -> None:
        while True:
            try:
                events: Events | Exception = await self.once()
            except Exception as error:
                events = error
                if not isinstance(error, QueueUnavailable):
                    logger.exception("could not read events")
            assert self._next is not None
            done, self._next = self._next, asyncio.get_running_loop().create_future()
            self._latest = events
            done.set_result(None)
            await asyncio.sleep(self._every_s)


class EventStream(StreamingResponse):
    """A response that sends events as they occur, until the feed or the connection ends.

    Args:
        first: the first events.
        more: the events after these; the generator is closed with the response.
        names: names of the events that the caller may see, in addition to ``problem``.
    """

    media_type = MEDIA_TYPE

    def __init__(self, first: Events, more: AsyncGenerator[Events], names: Collection[str]) -> None:
        self._first, self._more, self._names = first, more, names
        # this header stops nginx from buffering the response
        super().__init__(self._encoded(), headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._more.aclose()

    async def _encoded(self) -> AsyncGenerator[bytes]:
        yield encoded(self._first, self._names)
        async for events in self._more:
            yield encoded(events, self._names)


def encoded(events: Events, names: Collection[str]) -> bytes:
    """Return the events with these names, and ``problem``, encoded as server-sent events."""
    lines = b"event: %s\ndata: %s\n\n"
    return b"".join(lines % (name.encode(), data) for name, data in events.items() if name in {*names, "problem"})


def _problem(detail: str) -> Events:
    return {"problem": json.dumps({"detail": detail}).encode()}


def _cause_of(error: Exception) -> str:
    if not isinstance(error, QueueUnavailable):
        return "the server failed unexpectedly; see its log"
    return (
        "Redis did not answer, or with an error"
        if error.refusal is None
        else f"{error.refusal.problem}; {error.refusal.hint}"
    )
