"""Tests of the feed of events: one reader for all viewers, limits and failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import pytest

from sploot_cluster.api.live import Events, Feed
from sploot_cluster.api.problems import Refusal
from sploot_cluster.jobs import QueueUnavailable

Test = Callable[[], Coroutine[Any, Any, None]]


def numbered() -> Callable[[], Events]:
    """Return a function that returns new events at every call, numbered from 0."""
    numbers = count()
    return lambda: {"n": str(next(numbers)).encode()}


def test_one_read_serves_all_viewers_and_reading_stops_without_viewers() -> None:
    async def watch() -> None:
        feed = Feed(numbered(), every_s=0.02)
        viewers = [feed.watch() for _ in range(20)]

        seen = [[int((await anext(viewer))["n"]) for viewer in viewers] for _ in range(3)]
        for viewer in viewers:
            await viewer.aclose()
        await asyncio.sleep(0)

        # one reader per viewer would read twenty times as often
        assert max(seen[0]) < 20
        assert all(earlier < later for earlier, later in zip(seen[0], seen[2], strict=True))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watch())


def test_later_viewer_gets_the_newest_events_immediately() -> None:
    async def watch() -> None:
        feed = Feed(numbered(), every_s=3_600)
        first, second = feed.watch(), feed.watch()

        assert (await anext(first), await anext(second)) == ({"n": b"0"}, {"n": b"0"})
        await first.aclose()
        await second.aclose()

    asyncio.run(watch())


def test_viewers_beyond_the_limit_are_refused() -> None:
    async def watch() -> None:
        feed = Feed(numbered(), max_viewers=1)
        viewer = feed.watch()
        await anext(viewer)

        with pytest.raises(Refusal, match="1 pages receive events") as refused:
            await anext(feed.watch())
        assert refused.value.headers["Retry-After"]
        await viewer.aclose()
        again = feed.watch()
        await anext(again)
        await again.aclose()

    asyncio.run(watch())


def test_stream_ends_after_its_maximum_duration() -> None:
    async def watch() -> None:
        feed = Feed(numbered(), every_s=0.001, longest_s=0.05)

        assert [events async for events in feed.watch()]

    asyncio.run(watch())


def test_failed_first_read_raises_and_later_failures_are_events() -> None:
    answers: list[Events | Exception] = [QueueUnavailable("down"), {"n": b"1"}, QueueUnavailable("down"), {"n": b"2"}]

    def read() -> Events:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def watch() -> None:
        feed = Feed(read, every_s=0.01)
        with pytest.raises(QueueUnavailable):
            await anext(feed.watch())

        viewer = feed.watch()
        seen = [await anext(viewer) for _ in range(3)]
        await viewer.aclose()

        assert seen == [{"n": b"1"}, {"problem": b'{"detail": "Redis did not answer, or with an error"}'}, {"n": b"2"}]

    asyncio.run(watch())


def test_viewers_are_informed_of_a_slow_read() -> None:
    goes_on = threading.Event()
    answers = numbered()

    def read() -> Events:
        events = answers()
        if events["n"] == b"1":
            goes_on.wait(20)
        return events

    async def watch() -> None:
        viewer = Feed(read, every_s=0.01, late_s=0.01).watch()
        assert await anext(viewer) == {"n": b"0"}

        assert b"not answered yet" in (await anext(viewer))["problem"]
        goes_on.set()
        while "n" not in (events := await anext(viewer)):
            pass
        assert events == {"n": b"1"}
        await viewer.aclose()

    asyncio.run(watch())
