"""Incidents to practise on: the demo breaks something while uploads continue, alerts fire, and the user fixes it.

The user types an exercise in the demo's terminal and works in a second one, with only ``ops/runbook.md``. The fault
stays until the runbook's steps remove it, or until the user gives up by typing ``fix``.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import dramatiq
import numpy as np
import redis
from dramatiq.errors import BrokerError
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.console import Console

from broker import RedisStreamsBroker
from sploot_cluster.jobs import QueueUnavailable
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, EMBEDDING_INGESTED, GROUP, NAMESPACE, stream_of
from tasks.demo.monitoring import Monitoring, NoMonitoring
from tasks.demo.receivers import Notification, receivers
from tasks.demo.sample import DIGITS_MODEL, Album
from tasks.demo.stack import STOP_WITHIN_S, Pod, Stack, answers, stop
from tasks.demo.story import flat_event
from tasks.observe.backlog import BacklogSampler
from tasks.queue_ops import Operations
from tasks.redis_access.embedded import EmbeddedRedis

SPEED: Final = 10  # ten minutes in the rules take one minute: long enough to read, short enough to wait for
UPLOAD_EVERY_S: Final = 1.0
N_POISONED: Final = 20
N_BROKEN_MERGES: Final = 2
TAKE_WITHIN_MS: Final = 15_000
# A slow Redis does not answer for PAUSE_MS, answers for a moment, and so on.
PAUSE_MS: Final = 5_000
ANSWER_FOR_S: Final = 0.3
# Memory that Redis is given by the exercise "full", as a share of what it uses. What it uses changes by some percent
# from one second to the next.
FULL_AT: Final = 0.8

_CHANNELS: Final = {"slack": "Slack #sploot-media-alerts", "slack-oncall": "Slack @oncall", "pagerduty": "PagerDuty"}


class NotBegun(Exception):
    """Raised when an exercise cannot start now. The message states the reason and what to type."""


class Practice:
    """A context manager that offers exercises on a running stack, with alerting and receivers of notifications.

    Attributes:
        seen: the receivers, with the notifications that were sent.
        monitoring: the servers that show alerts.
        n_sent: number of events sent, including failed attempts.

    Raises:
        NoMonitoring: see ``Monitoring``.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        albums: Sequence[Album],
        redis_url: str,
        lease_ms: int,
        directory: Path,
        console: Console,
        own_redis: EmbeddedRedis | None = None,
        speed: int = SPEED,
    ) -> None:
        """Args: ``own_redis`` is the server at ``redis_url``, if it is the demo's own."""
        self._stack, self._console, self._lease_ms = stack, console, lease_ms
        self._redis_url, self._own_redis = redis_url, own_redis
        self._album = next(album for album in albums if album.model == DIGITS_MODEL)
        with contextlib.ExitStack() as opening:
            self.seen = opening.enter_context(receivers(self._tell))
            self.monitoring = Monitoring(
                directory, receivers_url=self.seen.url, speed=speed, server=stack.http, redis_url=redis_url
            )
            self._client: Any = opening.enter_context(redis.Redis.from_url(redis_url))
            self._tasks = opening.enter_context(ClusterTasks(client=self._client))
            broker = opening.enter_context(closing(self._broker()))
            self._sampler = BacklogSampler(broker, self._client)
            self._open = opening.pop_all()
        self._broken = contextlib.ExitStack()
        self._is_uploading, self._is_ending = threading.Event(), threading.Event()
        self._run = f"{time.time():.0f}"
        self.n_sent = 0
        self._uploads = threading.Thread(target=self._upload, name="uploads", daemon=True)

    @property
    def exercises(self) -> Mapping[str, tuple[str, Callable[[], None]]]:
        """The commands that the user can type: name -> description, and the function that runs it."""
        return {
            "upload": ("uploads begin, and nothing is broken", lambda: None),
            "pause": ("a colleague pauses the queue of uploads and goes home", self._pause),
            "crash": ("all workers end, and none comes back", self._crash),
            "poison": ("a producer's new release sends invalid events", self._poison),
            "hold": ("a live worker takes a job and hangs", self._hold),
            "freeze": ("all worker processes hang, and their pods answer scrapes", self._freeze),
            "surprise": ("one of these at random, without its name", self._surprise),
            "refuse": ("Redis requires a replica that is missing, and refuses writes", self._refuse),
            "full": ("the memory of Redis is full", self._fill),
            "slow": ("a colleague's script makes Redis slow", self._slow_down),
            "dead": ("Redis ends and does not come back; fix starts it", self._kill_redis),
            "loop": ("workers are killed again and again, as if out of memory; fix ends it", self._kill_in_a_loop),
            "scheduler": ("the scheduler ends and does not come back", self._stop_scheduler),
            "server": ("the HTTP server ends and does not come back", self._stop_server),
            "corrections": ("a client's new release sends merges that can never work", self._send_broken_merges),
            "fix": ("give up: repair everything and stop the uploads", self.fix),
        }

    def begin(self, name: str) -> None:
        """Run the exercise that the user typed. Uploads run from then on, until ``fix``.

        Raises:
            KeyError: there is no such exercise.
            NotBegun: the exercise cannot start now.
        """
        _, act = self.exercises[name]
        if name != "fix":
            self._is_uploading.set()
        try:
            act()
        except (BrokerError, redis.RedisError, QueueUnavailable) as error:
            raise NotBegun(f"Redis rejected the command: {error}; retry once it is back") from error

    def fix(self) -> None:
        """Stop the uploads and undo all exercises, including parts that the user has already fixed."""
        self._is_uploading.clear()
        self._broken.close()

    def __enter__(self) -> Self:
        self.monitoring.watch(self._stack.metrics)
        try:
            self._open.enter_context(self.monitoring)
        except NoMonitoring:
            self._open.close()
            raise
        self._uploads.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending.set()
        self._uploads.join()
        self.fix()
        self._open.close()

    # -- exercises -----------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        with closing(self._operations()) as operations:
            operations.act(
                operations.plan_pause(EMBEDDING_INGESTED), by="a colleague", via="practice", note="only for a minute"
            )
        self._broken.callback(self._resume)

    def _resume(self) -> None:
        with closing(self._operations()) as operations:
            operations.act(operations.plan_resume(EMBEDDING_INGESTED), by="practice", via="practice", note="given up")

    def _crash(self) -> None:
        self._broken.callback(self._start_workers)
        # as in Kubernetes, one target remains, and it does not answer
        self.monitoring.watch(self._stack.metrics[:1])
        stop(self._stack.workers, STOP_WITHIN_S)

    def _start_workers(self) -> None:
        for pod in self._stack.workers:
            pod.start()
        self.monitoring.watch(self._stack.metrics)

    def _poison(self) -> None:
        vector = self._album.vectors[0].copy()
        vector[3] = np.nan
        for _ in range(N_POISONED):
            event = flat_event(self._album, self._new_name(), vector.tobytes())
            self._client.xadd(stream_of(EMBEDDING_INGESTED), event)

    def _hold(self) -> None:
        """Take a job with a consumer of this process that stays alive and never finishes it."""
        with contextlib.ExitStack() as holding:
            broker = RedisStreamsBroker(
                client=self._client, namespace=NAMESPACE, group=GROUP, lease_ms=self._lease_ms, middleware=[]
            )
            holding.callback(broker.close)
            broker.declare_queue(EMBEDDING_INGESTED)
            consumer = broker.consume(EMBEDDING_INGESTED, timeout=TAKE_WITHIN_MS)
            holding.callback(consumer.close)
            # uploads are sent once a second, so the consumer soon receives one
            if next(consumer) is None:
                raise NotBegun("no upload was delivered, because something else is broken; type fix first")
            self._broken.push(holding.pop_all())

    def _freeze(self) -> None:
        """Stop every worker process with SIGSTOP; the processes that serve their metrics keep running."""
        with closing(self._broker()) as broker:
            consumers = broker.stats(EMBEDDING_INGESTED).consumers
        # consumer names are host:pid:…; leave out the consumer that "hold" made in this process
        pids = {int(one.name.split(":")[1]) for one in consumers if one.is_alive} - {os.getpid()}
        if not pids:
            raise NotBegun("no worker runs; type fix first")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self._broken.callback(_thaw, pid)

    def _refuse(self) -> None:
        self._client.config_set("min-replicas-to-write", 1)
        self._broken.callback(self._client.config_set, "min-replicas-to-write", 0)

    def _fill(self) -> None:
        """Give Redis less memory than it uses, as after months of growth."""
        limit = self._client.config_get("maxmemory")["maxmemory"]
        used = self._client.info("memory")["used_memory"]
        self._broken.callback(self._client.config_set, "maxmemory", limit)
        self._client.config_set("maxmemory", int(FULL_AT * used))

    def _slow_down(self) -> None:
        """Pause all clients again and again, from one connection, until it is closed."""
        client: Any = redis.Redis.from_url(
            self._redis_url, single_connection_client=True, client_name="nightly-report", retry=Retry(NoBackoff(), 0)
        )
        is_over = threading.Event()

        def pause() -> None:
            with contextlib.suppress(redis.RedisError):  # the user has killed the connection
                while not is_over.is_set():
                    client.client_pause(PAUSE_MS)
                    is_over.wait(PAUSE_MS / 1_000 + ANSWER_FOR_S)
            client.close()

        self._run_until_fixed(pause, is_over)

    def _kill_redis(self) -> None:
        if self._own_redis is None:
            raise NotBegun("the Redis at REDIS_URL is not the demo's own")
        self._broken.callback(self._own_redis.start)
        self._own_redis.kill()

    def _kill_in_a_loop(self) -> None:
        """Kill each worker as soon as it answers. The stack starts it again, as Kubernetes would."""
        is_over = threading.Event()

        def kill() -> None:
            while not is_over.wait(ANSWER_FOR_S):
                for pod, metrics in zip(self._stack.workers, self._stack.metrics, strict=True):
                    if answers(metrics):
                        pod.kill()

        self._run_until_fixed(kill, is_over)

    def _stop_scheduler(self) -> None:
        self._stop(self._stack.scheduler)

    def _stop_server(self) -> None:
        self._stop(self._stack.server)

    def _stop(self, pod: Pod) -> None:
        self._broken.callback(pod.start)
        stop([pod], STOP_WITHIN_S)

    def _send_broken_merges(self) -> None:
        with closing(self._broker()) as broker:
            broker.declare_queue(CLUSTER_FEEDBACK)
            for _ in range(N_BROKEN_MERGES):
                merge: dramatiq.Message[Any] = dramatiq.Message(
                    queue_name=CLUSTER_FEEDBACK,
                    actor_name="merge_clusters",
                    args=(),
                    kwargs={"pet_id": "the first one", "cluster_ids": [1, 2]},
                    options={},
                )
                broker.enqueue(merge)

    def _run_until_fixed(self, loop: Callable[[], None], is_over: threading.Event) -> None:
        thread = threading.Thread(target=loop, name="exercise", daemon=True)
        self._broken.callback(thread.join)
        self._broken.callback(is_over.set)
        thread.start()

    def _surprise(self) -> None:
        random.choice([self._pause, self._crash, self._poison, self._hold, self._freeze])()  # noqa: S311  no secret

    # -- uploads -------------------------------------------------------------------------------------------------

    def _upload(self) -> None:
        while not self._is_ending.wait(UPLOAD_EVERY_S):
            if self._is_uploading.is_set():
                with contextlib.suppress(QueueUnavailable):  # a real producer would retry
                    self._send()
                # The sped-up rules need more frequent samples than a worker takes, which is one every ten seconds.
                with contextlib.suppress(BrokerError, redis.RedisError):
                    self._sampler.sample_pending()
                    self._sampler.sample_lag()

    def _send(self) -> None:
        row = self.n_sent % len(self._album.media_ids)
        vector = self._album.vectors[row]
        name = self._new_name()
        self._tasks.ingest(pet_id=self._album.pet_id, media_id=name, model=self._album.model, embedding=vector)

    def _new_name(self) -> str:
        self.n_sent += 1
        return f"practice-{self._run}-{self.n_sent}.png"

    def _operations(self) -> Operations:
        return Operations(self._broker(), self._client)

    def _broker(self) -> RedisStreamsBroker:
        return RedisStreamsBroker(client=self._client, namespace=NAMESPACE, group=GROUP, middleware=[])

    # -- notifications -------------------------------------------------------------------------------------------

    def _tell(self, note: Notification) -> None:
        """Print a notification as the on-call engineer would read it."""
        self._console.print(f"{time.strftime('%H:%M:%S')} {_text_of(note)}", markup=False, soft_wrap=True)


def _thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _text_of(note: Notification) -> str:
    channel = _CHANNELS[note.receiver]
    if note.receiver == "pagerduty":
        return f"{channel}: {'resolved' if note.is_over else 'PAGE'} {note.alert}"
    (attachment,) = note.body["attachments"]
    title = f"{channel}: {attachment['title']} ({note.alert})"
    if note.is_over:
        return title
    heading = attachment["title_link"].rpartition("/")[2]
    return f"{title}\n         {attachment['text'].strip()}\n         runbook: ops/{heading}"
