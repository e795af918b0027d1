"""Tests that the campaign's checker detects every violation, because a check that cannot fail proves nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import redis

from tests.faults import QUEUES, checker
from tests.faults.checker import Snapshot, Verdict, judge, lost_at_this_moment, snapshot
from tests.faults.ledger import Entries, Fate


def payload(uid: str) -> str:
    return json.dumps({"args": [uid, "quick"], "kwargs": {}})


def ledger(
    kinds: Mapping[str, str], *, runs: Mapping[str, int] | None = None, fates: Mapping[str, Fate] | None = None
) -> Entries:
    return Entries(kinds, fates if fates is not None else dict.fromkeys(kinds, "confirmed"), runs or {})


def holding(
    *, stream: tuple[str, ...] = (), delayed: tuple[str, ...] = (), dead: Mapping[str, list[str]] | None = None
) -> Snapshot:
    return Snapshot(Counter(stream), 0, Counter(delayed), dead or {})


def test_message_in_no_place_counts_as_lost() -> None:
    verdict = judge(ledger({"a": "quick", "b": "quick"}, runs={"a": 1}), holding())

    assert verdict.lost == ("b",)
    assert not verdict.is_good


def test_message_in_two_places_counts_as_doubled() -> None:
    kinds = {"a": "quick", "b": "fails", "c": "quick"}
    verdict = judge(
        ledger(kinds, runs={"a": 1}), holding(stream=("a", "c", "c"), dead={"b": ["failed"]}, delayed=("b",))
    )

    assert {one.partition(":")[0] for one in verdict.doubled} == {"a", "b", "c"}


def test_message_that_ran_although_it_was_refused_is_reported() -> None:
    verdict = judge(ledger({"a": "quick"}, runs={"a": 1}, fates={"a": "refused"}), holding())

    assert verdict.conjured == ("a",)


def test_message_that_was_never_sent_is_reported() -> None:
    assert judge(ledger({}, runs={"x": 1}), holding()).conjured == ("x",)


def test_message_with_uncertain_enqueue_may_arrive_or_not() -> None:
    fates: dict[str, Fate] = {"a": "uncertain", "b": "uncertain"}

    verdict = judge(ledger({"a": "quick", "b": "quick"}, runs={"a": 1}, fates=fates), holding())

    assert verdict.is_good
    assert verdict.endings == {"done": 1, "never arrived": 1}


def test_message_with_an_unexpected_outcome_counts_as_misplaced() -> None:
    kinds = {"a": "quick", "b": "fails", "c": "kills", "d": "long"}
    dead = {"a": ["delivery-limit"], "c": ["failed"], "d": ["delivery-limit"]}

    verdict = judge(ledger(kinds, runs={"b": 1}), holding(dead=dead))

    assert {one.partition(":")[0] for one in verdict.misplaced} == {"a", "b", "c"}


def test_pipeline_whose_second_stage_is_missing_counts_as_lost() -> None:
    verdict = judge(ledger({"a": "pipeline", "b": "pipeline"}, runs={"a": 1, "b": 1, "b/2": 1}), holding())

    assert verdict.lost == ("a/2",)


def test_message_finished_after_a_later_one_of_its_key_counts_as_overtaken() -> None:
    kinds = dict.fromkeys(("p-1", "p-2", "p-3", "p-9", "p-10"), "ordered")
    lines = {"key": ["p-1", "p-3", "p-1", "p-2", "p-3"], "other": ["p-9", "p-10"]}

    verdict = judge(Entries(kinds, dict.fromkeys(kinds, "confirmed"), dict.fromkeys(kinds, 1), lines), holding())

    assert verdict.overtaken == ("p-2: by p-3",)
    assert not verdict.is_good


def test_order_is_not_checked_for_unconfirmed_messages() -> None:
    fates: dict[str, Fate] = {"p-1": "uncertain", "p-2": "confirmed"}

    verdict = judge(
        Entries(dict.fromkeys(fates, "ordered"), fates, dict.fromkeys(fates, 1), {"key": ["p-2", "p-1"]}), holding()
    )

    assert verdict.is_good


def test_repeated_runs_are_counted_and_allowed() -> None:
    assert judge(ledger({"a": "quick"}, runs={"a": 3}), holding()) == Verdict(
        endings={"done": 1}, fates={"confirmed": 1}, reruns=2
    )


def test_message_that_is_missing_for_a_moment_counts_as_lost() -> None:
    kinds = dict.fromkeys("abcde", "quick")
    before = ledger(kinds, fates=dict.fromkeys("abcd", "confirmed"))
    after = ledger(kinds, runs={"c": 1})

    assert lost_at_this_moment(before, holding(stream=("a",), delayed=("b",)), after) == ("d",)


def test_snapshot_includes_every_place(redis_client: redis.Redis) -> None:
    client: Any = redis_client
    for uid in ("waiting", "pending"):
        client.xadd(checker.STREAM, {"message": payload(uid)})
    client.xgroup_create(checker.STREAM, checker.GROUP, "0")
    client.xreadgroup(checker.GROUP, "somebody", {checker.STREAM: ">"}, count=2)
    client.xadd(checker.STREAM, {"message": b"\xff"})
    client.zadd(checker.DELAYED, {"name": 1, "half": 2})
    client.hset(checker.DELAYED_MESSAGES, mapping={"name": payload("later"), "other half": payload("later")})
    client.xadd(checker.DEAD, {"reason": "failed", "entry:message": payload("dead")})
    client.zadd(checker.LINE, {"key\0001": 0, "half a place": 0})
    client.hset(checker.IN_LINE, "key\0001", f"0 {payload('third')}")
    client.zadd(checker.AT_WORK, {"key\0" + "1-1": 0})
    client.set(checker.LOCKS.replace("*", "key"), "message")

    seen = snapshot(client)

    assert seen.stream == Counter(["waiting", "pending", "not a message: b'\\xff'"])
    assert (seen.pending, seen.delayed, seen.dead) == (2, Counter(["later"]), {"dead": ["failed"]})
    assert (seen.in_line, seen.keys_at_work, seen.locks) == (Counter(["third"]), 1, 1)
    assert sorted(seen.halves) == ["half", "half a place", "other half"]


def test_snapshot_of_an_empty_server_is_empty(redis_client: redis.Redis) -> None:
    assert snapshot(redis_client).n_held == 0


def test_snapshot_includes_every_queue(redis_client: redis.Redis) -> None:
    client: Any = redis_client
    for queue in QUEUES:
        client.xadd(checker.stream_of(queue), {"message": payload(queue)})
        client.xadd(checker.key_of(queue, "dead"), {"reason": "failed", "entry:message": payload(f"dead of {queue}")})

    seen = snapshot(client)

    assert seen.stream == Counter(QUEUES)
    assert seen.dead.keys() == {f"dead of {queue}" for queue in QUEUES}
