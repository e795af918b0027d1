"""A process keeps only a limited part of large entries in memory, and loses no entry."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, cast
from unittest import mock

import dramatiq
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from broker import UndecodableEntry
from broker.net import bounded_read
from broker.net.bounded_read import HEAD, MOST_PARTS, BoundedReader, Bounds, CutFields
from tests.broker.scene import KEYS, QUEUE, Scene, message, received
from tests.support import eventually


def encoded(value: Any) -> bytes:
    """Return a value in Redis's wire format."""
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(encoded, value))
    return b"$%d\r\n%s\r\n" % (len(value), value)


class Received:
    """A socket that returns one piece of data per call, and is then closed by the server."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = deque(pieces)

    def recv(self, n: int) -> bytes:
        piece = self._pieces.popleft() if self._pieces else b""
        if len(piece) > n:
            self._pieces.appendleft(piece[n:])
        return piece[:n]


class Reader(Protocol):
    """A function that creates a reader for a connection that receives the given pieces of data."""

    def __call__(self, bounds: Bounds, *pieces: bytes) -> BoundedReader: ...


@pytest.fixture(params=[True, False], ids=["hiredis", "no hiredis"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Reader:
    assert bounded_read.HAS_HIREDIS
    monkeypatch.setattr(bounded_read, "HAS_HIREDIS", request.param)
    return lambda bounds, *pieces: BoundedReader(cast(socket.socket, Received(*pieces)), bounds)


def entries(*fields: list[bytes]) -> list[Any]:
    return [[b"streams:q", [[b"%d-0" % number, list(parts)] for number, parts in enumerate(fields, start=1)]]]


@pytest.mark.parametrize("payload", [b"", b"x" * 1_000, b"\r\n$5\r\n*1\r\n" * 9_000], ids=len)
def test_reply_within_the_bounds_is_returned_whole(reader: Reader, payload: bytes) -> None:
    answer = entries([b"message", payload], [b"a", b"1", payload, b"2"])

    got = reader(Bounds(1 << 20, 1 << 20), encoded(answer)).read()

    assert got == answer
    assert not any(isinstance(fields, CutFields) for _, fields in got[0][1])


def test_empty_reply_is_returned_as_none(reader: Reader) -> None:
    assert reader(Bounds(10, 10), b"*-1\r\n").read() is None


def test_removed_entry_is_returned_without_fields(reader: Reader) -> None:
    answer = b"*1\r\n*2\r\n$1\r\nq\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*-1\r\n"

    assert reader(Bounds(1_000, 1_000), answer).read() == [[b"q", [[b"1-0", None]]]]


def test_replies_that_arrive_in_pieces_are_returned_one_by_one(reader: Reader) -> None:
    small, large, last = entries([b"a", b"1"]), entries([b"b", b"2" * 500]), entries([b"c", b"3"])
    data = b"".join(map(encoded, (small, large, last)))
    connection = reader(Bounds(600, 1_000), *(data[at : at + 7] for at in range(0, len(data), 7)))

    assert [connection.read() for _ in range(3)] == [small, large, last]


def test_long_string_is_cut_and_the_other_strings_stay_whole(reader: Reader) -> None:
    large = b"y" * 300_000
    sent = encoded(entries([b"a", b"1"], [b"large", large], [b"b", b"2"]))

    first, cut, last = (fields for _, fields in reader(Bounds(100_000, 1 << 20), sent).read()[0][1])

    assert (first, last) == ([b"a", b"1"], [b"b", b"2"])
    assert cut == [b"large", large[:HEAD]]
    assert isinstance(cut, CutFields)
    assert cut.n_bytes == 300_005


def test_total_size_of_strings_stays_within_the_budget(reader: Reader) -> None:
    parts = [b"m", b"z" * 10_000]
    answer = reader(Bounds(20_000, 100_000), encoded(entries(*[parts] * 50))).read()

    fields = [fields for _, fields in answer[0][1]]
    assert len(fields) == 50
    assert sum(len(part) for one in fields for part in one) <= 100_000
    assert [entry_id for entry_id, _ in answer[0][1]] == [b"%d-0" % number for number in range(1, 51)]
    assert fields[0] == parts
    assert all(isinstance(one, CutFields) and one.n_bytes == 10_001 for one in fields[10:])


def test_entry_with_too_many_fields_keeps_only_the_first_ones(reader: Reader) -> None:
    sent = encoded(entries([b"n"] * 20_000, [b"a", b"1"]))

    many, last = (fields for _, fields in reader(Bounds(1 << 20, 1 << 20), sent).read()[0][1])

    assert (len(many), many.n_bytes, last) == (MOST_PARTS, 20_000, [b"a", b"1"])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"-NOGROUP No such key\r\n", redis.ResponseError),
        (b"-MOVED 7 127.0.0.1:1\r\n", redis.exceptions.MovedError),
        (b"-ASK 7 127.0.0.1:1\r\n", redis.exceptions.AskError),
        (b"!boom\r\n", redis.InvalidResponse),
    ],
)
def test_error_reply_is_raised(reader: Reader, answer: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        reader(Bounds(1_000, 1_000), answer).read()


def test_reply_after_an_error_is_read(reader: Reader) -> None:
    after = entries([b"a", b"1"])
    connection = reader(Bounds(1_000, 1_000), b"-NOGROUP it is gone\r\n", encoded(after))

    with pytest.raises(redis.ResponseError, match="NOGROUP"):
        connection.read()
    assert connection.read() == after


def test_reading_from_a_closed_connection_raises(reader: Reader) -> None:
    with pytest.raises(redis.ConnectionError):
        reader(Bounds(1_000, 1_000), b"*2\r\n$3\r\nab").read()


@given(
    sizes=st.lists(st.lists(st.integers(0, 60), max_size=6), max_size=8),
    longest=st.integers(1, 100),
    budget=st.integers(1, 500),
)
def test_bounds_hold_with_and_without_hiredis(sizes: list[list[int]], longest: int, budget: int) -> None:
    sent = encoded(entries(*([b"x" * size for size in of_entry] for of_entry in sizes)))
    got = []
    for has_hiredis in (True, False):
        with mock.patch.object(bounded_read, "HAS_HIREDIS", has_hiredis):
            got.append(BoundedReader(cast(socket.socket, Received(sent)), Bounds(longest, budget)).read()[0][1])

    for with_hiredis, without in zip(*got, strict=True):
        assert with_hiredis == without
        assert type(with_hiredis[1]) is type(without[1])
    assert sum(len(part) for _, fields in got[0] for part in fields) <= budget


# -- on a queue --------------------------------------------------------------------------------------------------------

LIMIT = 20_000


def decode(entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
    if b"label" not in fields:
        raise UndecodableEntry("label", "is missing", "send it")
    return message(fields[b"label"].decode())


def bounded(scene: Scene, name: str = "a", **settings: Any) -> Any:
    return scene.consumer(name, decoders={QUEUE: decode}, max_message_bytes=LIMIT, **settings)


def test_too_large_entry_becomes_a_dead_letter_with_all_fields(scene: Scene) -> None:
    large = b"x" * (10 * LIMIT)
    for fields in ({"label": "first"}, {"label": "large", "data": large}, {"label": "last"}):
        scene.client.xadd(KEYS.stream, fields)

    got = received(bounded(scene), 2)

    assert [delivery.args[0] for delivery in got] == ["first", "last"]
    eventually(lambda: scene.client.xlen(KEYS.dead) == 1)
    ((_, dead_letter),) = scene.client.xrange(KEYS.dead)
    assert dead_letter[b"reason"] == b"oversize"
    assert b"more than the" in dead_letter[b"error"]
    assert dead_letter[b"entry:data"] == large


def test_entries_beyond_the_budget_are_read_one_by_one(scene: Scene) -> None:
    labels = [f"m{number}" for number in range(12)]
    for label in labels:
        scene.client.xadd(KEYS.stream, {"label": label, "data": b"x" * 15_000})
    consumer = bounded(scene, prefetch=12, max_read_bytes=40_000)

    got = received(consumer, 12)

    assert sorted(delivery.args[0] for delivery in got) == sorted(labels)
    assert all(len(delivery.args) == 1 and delivery.deliveries <= 2 for delivery in got)
    assert scene.client.xlen(KEYS.dead) == 0


def test_large_entries_of_a_dead_process_become_dead_letters(scene: Scene) -> None:
    first = bounded(scene, "first")
    scene.client.xadd(KEYS.stream, {"label": "small"})
    received(first, 1)
    dead = scene.brokers["first"].consumer_name
    scene.die("first")
    ((entry_id, _),) = scene.client.xrange(KEYS.stream)
    # the reply that delivered this entry to the same process was lost
    large = scene.client.xadd(KEYS.stream, {"label": "large", "data": b"x" * (10 * LIMIT)})
    scene.client.xgroup_setid(KEYS.stream, "workers", entry_id)
    scene.client.xreadgroup("workers", dead, {KEYS.stream: ">"}, count=1)
    scene.age(dead, idle_ms=60_000)

    (taken,) = received(bounded(scene, "second"), 1)

    assert taken.args == ("small",)
    eventually(lambda: scene.client.xlen(KEYS.dead) == 1)
    ((_, dead_letter),) = scene.client.xrange(KEYS.dead)
    assert (dead_letter[b"reason"], dead_letter[b"entry_id"]) == (b"oversize", large)


READER = """
import resource, sys
from broker import RedisStreamsBroker, UndecodableEntry
def decode(entry_id, fields):
    raise UndecodableEntry("a", "is not read", "leave it")
broker = RedisStreamsBroker(sys.argv[1], middleware=[], decoders={"q": decode}, keeper_process=False)
broker.declare_queue("q")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
consumer = broker.consume("q", prefetch=8, timeout=500)
while broker.counters("q")["dead"] < int(sys.argv[2]):
    next(consumer)
consumer.close()
broker.close()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_process_memory_stays_bounded_for_entries_of_many_megabytes(stage: Scene) -> None:
    for _ in range(6):
        stage.client.xadd(KEYS.stream, {"a": "1", "data": b"x" * (32 << 20)})

    done = subprocess.run(
        [sys.executable, "-c", READER, f"{stage.url}?socket_timeout=60", "6"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30  # in MB; together, the six entries have 192


def test_error_for_an_entry_with_too_many_fields_names_the_limit(scene: Scene) -> None:
    scene.client.xadd(KEYS.stream, {f"f{number}": "x" for number in range(3_000)})
    scene.client.xadd(KEYS.stream, {"label": "good"})

    (good,) = received(bounded(scene, max_read_bytes=1 << 20), 1)

    assert good.args == ("good",)
    dead_letters = scene.brokers["a"].dead_letters(QUEUE)
    (dead_letter,) = eventually(dead_letters.list)
    assert (dead_letter.reason, dead_letter.field) == ("oversize", "entry")
    assert f"has more than {MOST_PARTS // 2} fields" in dead_letter.error
