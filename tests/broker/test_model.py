"""Whatever happens to a queue, in any order, every message is in exactly one place until it is done.

The model only knows whether a message lives, is a dead letter, or is gone (done, purged or cancelled). One transaction
of raw commands reads from the server where the messages are. The suite always runs the same few short examples, and
``make test-model`` runs hundreds of long, random ones.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import hypothesis
import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from broker import Delivery, RedisStreamsBroker
from broker.consumer import StreamsConsumer
from tests.broker.scene import GROUP, KEYS, QUEUE, Scene, fail, label_of, message
from tests.support import eventually

WHICH = st.integers(0, 99)
# The options of all messages with a key, by key. The rate's period is longer than a run.
LIMITS: dict[str | None, dict[str, Any]] = {
    "k": {"ordering_key": "k"},
    "l": {"ordering_key": "l"},
    "c": {"concurrency_key": "c", "max_concurrent": 2},
    "r": {"rate_key": "r", "rate": "4/day"},
    "p": {"priority": 5},
    "q": {"priority": -5},
}


class Queue(RuleBasedStateMachine):
    """A queue with two processes at a time. If one dies, a new process replaces it."""

    client: redis.Redis
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.scene = Scene(self.client, self.url)
        self.n_processes = 0
        self.n_messages = 0
        self.living: set[str] = set()
        self.dead: set[str] = set()
        self.gone: set[str] = set()
        self.key_of: dict[str, str] = {}
        self.id_of: dict[str, str] = {}
        self.unique: set[str] = set()
        # message -> the newest message coalesced onto it
        self.coalesced: dict[str, str] = {}
        # messages that were cancelled while a process was holding them
        self.marked: set[str] = set()
        self.consumers: dict[str, StreamsConsumer] = {}
        self.held: dict[str, list[Delivery]] = {}

    @initialize()
    def at_work(self) -> None:
        """Start with messages of every kind in two processes, because many random runs would never receive one."""
        self.begin()
        self.begin()
        self.enqueue(0, 4, None, None, None)
        self.enqueue(0, 3, None, None, "k")
        self.enqueue(0, 4, None, None, "c")
        self.enqueue(0, 3, None, None, "r")
        self.enqueue(0, 4, None, None, "p")
        self.enqueue(0, 1, None, "u", None)
        self.enqueue(0, 2, 3_600_000, None, None)
        self.receive(0, 3)
        self.receive(1, 3)

    def begin(self) -> None:
        name = f"process-{self.n_processes}"
        self.n_processes += 1
        self.consumers[name] = self.scene.consumer(name, prefetch=5, timeout=10)
        self.held[name] = []

    # Janitors run at any time and change the candidates. So a choice is a random number modulo the number of
    # candidates.

    def a_process(self, which: int) -> tuple[str, RedisStreamsBroker, StreamsConsumer]:
        name = sorted(self.consumers)[which % len(self.consumers)]
        return name, self.scene.brokers[name], self.consumers[name]

    def owns(self, name: str, delivery: Delivery) -> bool:
        """Return whether the entry is still pending with exactly this delivery."""
        found: Any = self.scene.client.xpending_range(
            KEYS.stream,
            GROUP,
            delivery.entry_id,
            delivery.entry_id,
            1,
            consumername=self.scene.brokers[name].consumer_name,
        )
        return bool(found) and found[0]["times_delivered"] == delivery.deliveries

    @rule(
        which=WHICH,
        n=st.integers(1, 4),
        delay=st.sampled_from([None, None, 3_600_000]),
        unique=st.sampled_from([None, None, None, "u"]),
        key=st.sampled_from([None, None, "k", "l", "c", "r", "p", "q"]),
    )
    def enqueue(self, which: int, n: int, delay: int | None, unique: str | None, key: str | None) -> None:
        _, broker, _ = self.a_process(which)
        for _ in range(n):
            label = f"m{self.n_messages}"
            self.n_messages += 1
            options = {**LIMITS.get(key, {}), **({"unique_key": unique} if unique else {})}
            is_locked = unique is not None and bool(self.client.exists(KEYS.unique(unique)))
            sent = message(label, **options)

            answered = broker.enqueue(sent, delay=delay)

            assert (answered.message_id != sent.message_id) is is_locked
            self.id_of[label] = sent.message_id
            if key is not None:
                self.key_of[label] = key
            if unique is not None:
                self.unique.add(label)
            if is_locked:
                self.coalesced[self.label_with(answered.message_id)] = label
            else:
                self.living.add(label)

    @rule(which=WHICH, n=st.integers(1, 5))
    def receive(self, which: int, n: int) -> None:
        name, _, consumer = self.a_process(which)
        for _ in range(n):
            delivery = next(consumer)
            if delivery is None:
                return
            assert isinstance(delivery, Delivery)
            # another process may have finished the message while it was in the consumer's buffer
            assert delivery.args[0] in self.living or not self.is_there(delivery)
            assert delivery.entry_id not in {one.entry_id for one in self.held[name]}, "no process gets what it has"
            self.scene.outcomes(name).may_run(delivery)
            self.held[name].append(delivery)

    @rule(which=WHICH, how=st.sampled_from(["succeed", "succeed", "reject", "retry", "retry later", "give back"]))
    def settle(self, which: int, how: str) -> None:
        every = [(name, delivery) for name in sorted(self.held) for delivery in self.held[name]]
        if not every:
            return
        name, delivery = every[which % len(every)]
        self.held[name].remove(delivery)
        consumer, label, does_own = self.consumers[name], delivery.args[0], self.owns(name, delivery)
        match how:
            case "succeed":
                was_there = self.is_there(delivery)
                consumer.ack(delivery)
                eventually(lambda: not self.is_there(delivery))
                if was_there:  # success is accepted from any process
                    self.living.remove(label)
                    self.gone.add(label)
                    self.coalesced.pop(label, None)
            case "reject":
                delivery.stuff_exception(ValueError("rejected"))
                consumer.nack(delivery)
                if does_own:
                    self.living.remove(label)
                    self.dead.add(label)
                    self.coalesced.pop(label, None)
            case "retry" | "retry later":
                fail(self.scene.brokers[name], delivery, delay=0 if how == "retry" else 3_600_000)
                consumer.ack(delivery)
                if does_own:
                    replacement = self.coalesced.pop(label, None)
                    if label in self.marked:
                        self.be_cancelled(label, replacement)
            case "give back":
                consumer.requeue([delivery])

    @rule(which=WHICH, how=st.sampled_from(["succeed", "reject", "retry", "give back"]))
    def be_robbed_and_settle(self, which: int, how: str) -> None:
        """Claim a message that a process holds, then let the process settle it. Only success is still accepted."""
        held = [delivery for name in sorted(self.held) for delivery in self.held[name]]
        if held:
            robbed = held[which % len(held)]
            self.scene.client.xclaim(KEYS.stream, GROUP, "rescue-consumer", 0, [robbed.entry_id], idle=60_000)
            self.settle(which, how)

    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        if self.n_processes < 6:
            name, _, _ = self.a_process(which)
            del self.consumers[name], self.held[name]
            self.scene.die(name)
            self.begin()

    @rule(
        which=WHICH,
        command=st.sampled_from(
            ["XACK", "XCLAIM", "XGROUP DELCONSUMER", "XGROUP SETID", "XGROUP DESTROY", "SWEEP", "TIME"]
        ),
    )
    def inspector(self, which: int, command: str) -> None:
        """Run an action of an operator or a janitor, or advance the clock."""
        pending: Any = self.scene.client.xpending_range(KEYS.stream, GROUP, "-", "+", 100)
        one = pending[which % len(pending)] if pending else None
        match command:
            case "XGROUP DESTROY":
                self.scene.client.xgroup_destroy(KEYS.stream, GROUP)
                self.scene.beat(self.a_process(which)[0])
            case "XGROUP SETID":
                self.scene.client.xgroup_setid(KEYS.stream, GROUP, "$" if which % 2 else "0")
            case "TIME":
                self.time_passes()
            case "SWEEP":
                self.scene.sweep(self.a_process(which)[0])
            case "XGROUP DELCONSUMER" if one:
                self.scene.client.xgroup_delconsumer(KEYS.stream, GROUP, one["consumer"])
            case "XACK" if one:
                self.scene.client.xack(KEYS.stream, GROUP, one["message_id"])
            case "XCLAIM" if one:
                self.scene.client.xclaim(KEYS.stream, GROUP, "rescue-consumer", 0, [one["message_id"]], idle=60_000)

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        label = f"m{which % self.n_messages}"
        _, broker, _ = self.a_process(which)

        outcome = broker.cancel(self.id_of[label], QUEUE)

        assert (outcome == "not-found") is (label not in self.living), outcome
        if outcome == "requested":
            self.marked.add(label)
        elif outcome == "cancelled":
            self.be_cancelled(label, self.coalesced.pop(label, None))

    def be_cancelled(self, label: str, replacement: str | None) -> None:
        self.living.remove(label)
        self.gone.add(label)
        if replacement is None:
            return
        holder: Any = self.client.get(KEYS.unique("u"))
        holding = None if holder is None else self.label_with(holder.decode())
        if holding in (None, replacement):
            self.living.add(replacement)
        else:  # another message has taken the key
            assert holding is not None
            self.coalesced.setdefault(holding, replacement)

    def label_with(self, message_id: str) -> str:
        return next(label for label, one in self.id_of.items() if one == message_id)

    @rule(which=WHICH, what=st.sampled_from(["requeue", "requeue", "purge", "pause"]))
    def operate(self, which: int, what: str) -> None:
        _, broker, _ = self.a_process(which)
        if what == "pause":
            broker.pause(QUEUE)
            broker.resume(QUEUE)
        elif self.dead:
            label = sorted(self.dead)[which % len(self.dead)]
            dead_letters = broker.dead_letters(QUEUE)
            (dead_letter_id,) = [one.id for one in dead_letters.list() if label_of(one.fields) == label]
            is_held = what == "requeue" and label in self.unique and self.client.exists(KEYS.unique("u"))
            assert (dead_letters.purge if what == "purge" else dead_letters.requeue)([dead_letter_id]) == (not is_held)
            if not is_held:
                self.dead.remove(label)
                self.marked.discard(label)
                (self.gone if what == "purge" else self.living).add(label)

    def time_passes(self) -> None:
        """Make all delayed messages fall due."""
        for name in self.scene.client.zrange(KEYS.delayed, 0, -1):
            self.scene.client.zadd(KEYS.delayed, {name: 1}, xx=True)

    @invariant()
    def every_message_is_in_exactly_one_place(self) -> None:
        places = self.places()
        for label in self.living:
            assert places[label] in (["stream"], ["delayed"], ["line"]), f"{label} lives, and is in {places[label]}"
        for label in self.dead:
            assert places[label] == ["dead"], f"{label} is a dead letter, and is in {places[label]}"
        for label in self.gone:
            assert places[label] == [], f"{label} is done or purged, and is in {places[label]}"

    @invariant()
    def one_of_an_ordering_key_is_at_work(self) -> None:
        at_work = Counter(
            self.key_of[label]
            for label, where in self.places().items()
            if self.key_of.get(label) in ("k", "l") and where in (["stream"], ["delayed"])
        )
        assert all(n == 1 for n in at_work.values()), at_work

    @invariant()
    def no_more_messages_of_a_concurrency_key_can_run_than_its_limit(self) -> None:
        where = [where for label, where in self.places().items() if self.key_of.get(label) == "c"]
        assert where.count(["stream"]) <= 2, where

    def places(self) -> dict[str, list[str]]:
        pipe = self.client.pipeline(transaction=True)
        pipe.xrange(KEYS.stream)
        pipe.hvals(KEYS.delayed_messages)
        pipe.hvals(KEYS.messages_in_line)
        pipe.xrange(KEYS.dead)
        stream, delayed, in_line, dead = pipe.execute()
        found: dict[str, list[str]] = {f"m{number}": [] for number in range(self.n_messages)}
        for _, fields in stream:
            found[label_of(fields)].append("stream")
        for payload in delayed:
            found[label_of({b"message": payload})].append("delayed")
        for payload in in_line:
            found[json.loads(payload[payload.index(b"{") :])["args"][0]].append("line")
        for _, fields in dead:
            found[label_of({b"message": fields[b"entry:message"]})].append("dead")
        return found

    def is_there(self, delivery: Delivery) -> bool:
        return bool(self.scene.client.xrange(KEYS.stream, delivery.entry_id, delivery.entry_id))

    def teardown(self) -> None:
        try:
            if self.consumers:
                self.run_dry()
        finally:
            self.scene.close()

    def run_dry(self) -> None:
        """Check that one working process finishes all messages, whatever has happened."""
        for name in list(self.consumers):
            del self.consumers[name], self.held[name]
            self.scene.die(name)
        self.client.delete(KEYS.paused)
        self.begin()
        ((name, consumer),) = self.consumers.items()

        def work() -> bool:
            self.time_passes()
            self.scene.sweep(name)
            while (delivery := next(consumer)) is not None:
                consumer.ack(delivery)
                self.living.discard(delivery.args[0])
                self.gone.add(delivery.args[0])
            return not self.living

        eventually(work, within_s=30)
        eventually(lambda: not self.client.xlen(KEYS.stream))
        self.every_message_is_in_exactly_one_place()
        self.scene.sweep(name)
        left = [self.client.zrange(key, 0, -1) for key in (KEYS.at_work, KEYS.line)]
        assert left == [[], []], "every turn has ended"


@pytest.mark.slow
def test_every_message_is_always_in_exactly_one_place(redis_client: redis.Redis, redis_url: str) -> None:
    class OnThisServer(Queue):
        client, url = redis_client, redis_url

    many = int(os.environ.get("BROKER_MODEL_EXAMPLES", "0"))
    settings = hypothesis.settings(
        max_examples=many or 12,
        derandomize=not many,
        stateful_step_count=60 if many else 25,
        # the actions wait for a server, and Hypothesis would report that they are too slow
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(OnThisServer, settings=settings)
