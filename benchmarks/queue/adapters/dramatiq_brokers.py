"""Adapters for Dramatiq's brokers: this broker, RedisBroker, and upper bounds.

Variants: ``ours``; ``ours-writing`` and ``ours-writing-batches``, in which each job writes a key, individually or in a
batch; ``redis``; ``bare``, a minimal broker on Streams without guarantees; ``memory``, without Redis; and ``raw``, only
redis-py without a Worker. All others use Dramatiq's Worker with its default middleware.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import dramatiq
import redis
from dramatiq.broker import Broker, Consumer, MessageProxy
from dramatiq.brokers.stub import StubBroker

from benchmarks.queue import jobs
from benchmarks.queue.adapters import N_JOBS, Adapter, NotOffered

QUEUE: Final = "bench"


class DramatiqAdapter(Adapter):
    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self.broker = _broker(variant, url)
        self._noop: dramatiq.Actor[[], None] = self._actor(jobs.noop)
        self._ping: dramatiq.Actor[[int], None] = self._actor(jobs.ping)
        self._hold: dramatiq.Actor[[int], None] = self._actor(jobs.hold)

    def _actor(self, function: Any) -> Any:
        return dramatiq.actor(broker=self.broker, queue_name=QUEUE)(function)

    def send(self, n: int) -> None:
        for _ in range(n):
            self._noop.send()

    def send_batches(self, n: int, size: int) -> None:
        enqueue_many = getattr(self.broker, "enqueue_many", None)
        if enqueue_many is None:
            raise NotOffered
        for start in range(0, n, size):
            enqueue_many([self._noop.message() for _ in range(min(size, n - start))])

    def ping(self, sent_ns: int) -> None:
        self._ping.send(sent_ns)

    def hold(self, number: int) -> None:
        self._hold.send(number)

    def work(self) -> None:
        if self.variant == "memory":
            self.send(int(os.environ[N_JOBS]))
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        worker = dramatiq.Worker(self.broker, worker_threads=self.threads)
        worker.start()
        # wait for short periods, because a signal does not end a wait
        while not ended.wait(0.2):
            pass
        worker.stop(timeout=5_000)
        self.broker.close()


class WritingAdapter(DramatiqAdapter):
    """An adapter whose jobs each write a key, with one round trip per job or per batch."""

    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self._client = redis.Redis.from_url(url)
        self._noop = self._actor(self._write)
        if variant.endswith("-batches"):
            from broker import batch

            batch(self._noop)(self._write_all)

    def _write(self) -> None:
        self._client.incr("written")
        jobs.tally().count()

    def _write_all(self, messages: Sequence[Any]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for message in messages:
            pipeline.incr("written")
            message.done()
        pipeline.execute()
        jobs.tally().count(len(messages))


class BareBroker(Broker):
    """A minimal broker on Streams, without guarantees. It reads many messages at once and acknowledges in batches."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.queues: set[str] = set()
        self.client = redis.Redis.from_url(url)

    def declare_queue(self, queue_name: str) -> None:
        self.queues.add(queue_name)
        self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        return self.queues

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        self.emit_before("enqueue", message, delay)
        self.client.xadd(message.queue_name, {"message": message.encode()})
        self.emit_after("enqueue", message, delay)
        return message

    def enqueue_many(self, messages: Iterable[dramatiq.Message[Any]]) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for message in messages:
            self.emit_before("enqueue", message, None)
            pipeline.xadd(message.queue_name, {"message": message.encode()})
            self.emit_after("enqueue", message, None)
        pipeline.execute()

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 1000) -> Consumer:
        return _BareConsumer(self.client, queue_name, prefetch, timeout)


class _BareConsumer(Consumer):
    def __init__(self, client: redis.Redis, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        self._client, self._queue, self._prefetch, self._timeout_ms = client, queue_name, prefetch, timeout_ms
        try:
            client.xgroup_create(queue_name, "group", "0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._buffer: deque[MessageProxy] = deque()
        self._held = 0
        self._done: deque[bytes] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._acknowledge, daemon=True).start()

    def __next__(self) -> MessageProxy | None:
        if self._buffer:
            return self._buffer.popleft()
        with self._changed:
            if not self._changed.wait_for(lambda: self._held < self._prefetch, self._timeout_ms / 1000):
                return None
            self._changed.wait_for(lambda: self._held <= self._prefetch // 2, 0.001)
            room = self._prefetch - self._held
        answer: Any = self._client.xreadgroup(
            "group", str(os.getpid()), {self._queue: ">"}, count=room, block=self._timeout_ms
        )
        for entry_id, fields in answer[0][1] if answer else ():
            proxy = MessageProxy(dramatiq.Message.decode(fields[b"message"]))
            proxy.entry_id = entry_id  # type: ignore[attr-defined]  # MessageProxy accepts any attribute
            self._buffer.append(proxy)
        with self._changed:
            self._held += len(self._buffer)
        return self._buffer.popleft() if self._buffer else None

    def ack(self, message: MessageProxy) -> None:
        with self._changed:
            self._held -= 1
            self._done.append(message.entry_id)
            self._changed.notify_all()

    nack = ack

    def _acknowledge(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._done))
                ids = [self._done.popleft() for _ in range(len(self._done))]
            pipeline = self._client.pipeline(transaction=False)
            pipeline.xack(self._queue, "group", *ids)
            pipeline.xdel(self._queue, *ids)
            pipeline.execute()


class RawLoops(Adapter):
    """An adapter without a Worker: one thread sends only the commands that any broker on Streams must send."""

    COUNT: Final = 100

    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self._client = redis.Redis.from_url(url)
        self._payload = dramatiq.Message(QUEUE, "noop", (), {}, {}).encode()

    def send(self, n: int) -> None:
        for _ in range(n):
            self._client.xadd(QUEUE, {"message": self._payload})

    def send_batches(self, n: int, size: int) -> None:
        for start in range(0, n, size):
            pipeline = self._client.pipeline(transaction=False)
            for _ in range(min(size, n - start)):
                pipeline.xadd(QUEUE, {"message": self._payload})
            pipeline.execute()

    def ping(self, sent_ns: int) -> None:
        self._client.xadd(QUEUE, {"ping": sent_ns})

    def hold(self, number: int) -> None:
        raise NotOffered

    def work(self) -> None:
        try:
            self._client.xgroup_create(QUEUE, "group", "0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        while True:
            answer: Any = self._client.xreadgroup(
                "group", str(os.getpid()), {QUEUE: ">"}, count=self.COUNT, block=1_000
            )
            if not answer:
                continue
            entries = answer[0][1]
            for _, fields in entries:
                if b"ping" in fields:
                    jobs.ping(int(fields[b"ping"]))
            pipeline = self._client.pipeline(transaction=False)
            pipeline.xack(QUEUE, "group", *(entry_id for entry_id, _ in entries))
            pipeline.xdel(QUEUE, *(entry_id for entry_id, _ in entries))
            pipeline.execute()
            jobs.tally().count(len(entries))


def _broker(variant: str, url: str) -> Broker:
    match variant.partition("-")[0]:
        case "ours":
            from broker import RedisStreamsBroker

            return RedisStreamsBroker(url)
        case "redis":
            from dramatiq.brokers.redis import RedisBroker

            return RedisBroker(url=url)
        case "bare":
            return BareBroker(url)
        case "memory":
            return StubBroker()
    raise ValueError(f"unknown broker {variant!r}; expected ours, redis, bare or memory")


def adapter(variant: str, url: str, threads: int) -> Adapter:
    if variant == "raw":
        return RawLoops(variant, url, threads)
    return (WritingAdapter if "-writing" in variant else DramatiqAdapter)(variant, url, threads)
