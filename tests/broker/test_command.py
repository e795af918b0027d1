"""The command line: its output, its actions, and its exit codes."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import dramatiq
import pytest
import redis
from dramatiq.errors import ConnectionFailed
from dramatiq.middleware import Retries

import broker as broker_package
from broker import RedisStreamsBroker, exposition
from broker.command import main
from broker.command.metrics_server import server
from broker.metrics import TOTALS
from tests.broker.scene import GROUP, KEYS, QUEUE, message

Run = Callable[..., int]


@pytest.fixture
def broker(redis_url: str, redis_client: redis.Redis) -> Iterator[RedisStreamsBroker]:
    """A broker on an empty server."""
    with closing(RedisStreamsBroker(redis_url, middleware=[Retries(max_retries=0)], lease_ms=2_000)) as broker:
        broker.declare_queue(QUEUE)
        yield broker
        # a broker that is closed while it holds messages leaves its keeper process to this process
        broker.flush(QUEUE)


@pytest.fixture
def run(redis_url: str) -> Run:
    return lambda *arguments: main([*arguments, "--url", redis_url])


def bury(broker: RedisStreamsBroker, *labels: str) -> None:
    """Enqueue messages with these labels and turn them into dead letters."""

    @dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")
    def work(label: str) -> None:
        raise ValueError(f"bad {label}")

    broker.enqueue_many([message(label) for label in labels])
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    broker.join(QUEUE, timeout=20_000)
    worker.stop()


def hold(broker: RedisStreamsBroker, *labels: str) -> Any:
    """Deliver messages to a consumer of this process, which stays alive."""
    broker.enqueue_many([message(label) for label in labels])
    consumer = broker.consume(QUEUE, prefetch=len(labels), timeout=5_000)
    for _ in labels:
        assert next(consumer) is not None
    return consumer


def listed(run: Run, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_status_finds_the_queues_and_names_the_reason_for_waiting(
    broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str], redis_client: redis.Redis
) -> None:
    broker.enqueue(message("a"))
    broker.enqueue(message("later"), delay=60_000)
    redis_client.xadd("streams:foreign", {"form": "flat"})
    redis_client.xadd("other:stream", {"not": "ours"})
    broker.pause(QUEUE)

    assert run("status") == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:5] for line in lines[1:]] == [["foreign", "1", "0", "0", "0"], [QUEUE, "1", "0", "1", "0"]]
    assert [line[-1] for line in lines[1:]] == ["alive", "paused"]
    queues = listed(run, capsys, "status", QUEUE)
    assert [(one["stats"]["waiting"], one["counters"]["enqueued"]) for one in queues] == [(1, 2)]


def test_status_names_the_group_of_the_workers_if_it_differs(
    broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(hold(broker, "held")):
        assert run("status", "--group", "other") == 0

    assert f"the workers use another group: --group {GROUP}" in capsys.readouterr().out


def test_lists_show_messages_as_calls_and_reasons_for_unreadable_entries(
    broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str], redis_client: redis.Redis
) -> None:
    with closing(hold(broker, "held")):
        broker.enqueue(message("\x1b[31mred"))
        redis_client.xadd(f"streams:{QUEUE}", {"form": "flat"})

        (held,) = listed(run, capsys, "pending", QUEUE)
        first, second = listed(run, capsys, "peek", QUEUE)
        assert run("peek", QUEUE, "--limit", "1") == 0

    assert (held["args"], held["holder"], held["deliveries"]) == (["held"], broker.consumer_name, 1)
    assert (first["args"], first["actor"]) == (["\x1b[31mred"], "work")
    assert second["problem"].startswith("message: is missing")
    shown = capsys.readouterr().out
    assert 'work("\\u001b[31mred")' in shown
    assert "flat" not in shown


def test_dead_letter_commands_list_show_requeue_and_purge(
    broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    bury(broker, "a", "b", "c")
    ids = {one["error"]: one["id"] for one in listed(run, capsys, "dead", "list", "--reason", "failed")}
    shown = listed(run, capsys, "dead", "show", QUEUE, ids["ValueError: bad b"])

    assert run("requeue", QUEUE, "--error", "bad a") == 4
    assert len(broker.dead_letters(QUEUE)) == 3
    assert run("requeue", QUEUE, "--error", "bad a", "--yes") == 0
    assert run("purge", QUEUE, ids["ValueError: bad b"], "--yes") == 0
    assert run("dead", "show", QUEUE, ids["ValueError: bad c"]) == 0

    assert shown["hint"] is None
    assert "raise ValueError" in shown["traceback"]
    assert [one.args for one in waiting(broker)] == [("a",)]
    assert [one.error for one in broker.dead_letters(QUEUE).list()] == ["ValueError: bad c"]
    printed = capsys.readouterr().out
    assert "Plan: put 1 dead letter of q back at the end of the queue." in printed
    assert 'work("c")' in printed


def waiting(broker: RedisStreamsBroker) -> list[dramatiq.Message[Any]]:
    inspector = broker.inspector(QUEUE)
    return [inspector.decode(entry_id, fields) for entry_id, fields in inspector.waiting()]


def test_rescue_skips_messages_of_live_workers_unless_forced(
    broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str], redis_client: Any
) -> None:
    # no process consumes this queue through the broker, because its janitor would requeue the orphan
    broker.enqueue_many([message("held"), message("lost")])
    redis_client.xgroup_create(KEYS.stream, GROUP, "0")
    redis_client.xreadgroup(GROUP, "live", {KEYS.stream: ">"})
    redis_client.zadd(KEYS.consumers, {"live": int(time.time() * 1_000) + 60_000})
    held, lost = (entry.id for entry in broker.inspector(QUEUE).pending())
    redis_client.xack(KEYS.stream, GROUP, lost)

    codes = [
        run("rescue", QUEUE, "--unowned", "--yes"),
        run("rescue", QUEUE, "--consumer", "live", "--yes"),
        run("rescue", QUEUE, held, "--even-if-alive"),
        run("rescue", QUEUE, held, "--even-if-alive", "--yes"),
    ]

    assert codes == [0, 0, 4, 0]
    assert "1 held by live workers left out" in capsys.readouterr().out
    assert broker.counters(QUEUE)["rescued"] == 2


def test_find_shows_where_messages_are_and_cancel_removes_those_that_wait(
    broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    bury(broker, "cat dead")
    with closing(hold(broker, "cat held")):
        for label, options in (("cat waits", {}), ("dog", {}), ("Zoë's cat", {"delay": 60_000})):
            broker.enqueue(message(label), **options)
        first = broker.enqueue(message("cat at work", ordering_key="k"))
        broker.enqueue(message("cat in line", ordering_key="k"))

        cats = {one["args"][0]: one["state"] for one in listed(run, capsys, "find", "--text", "cat")}
        (zoe,) = listed(run, capsys, "find", QUEUE, "--text", "Zoë", "--actor", "work")
        (by_id,) = listed(run, capsys, "find", "--message-id", first.message_id)
        assert run("find", "--actor", "other") == 0
        assert run("cancel", QUEUE, "--text", "cat") == 4
        assert run("cancel", QUEUE, "--text", "cat", "--yes") == 0
        printed = capsys.readouterr().out
        left = listed(run, capsys, "find", "--actor", "work", "--limit", "9")

    assert cats == {
        "cat dead": "dead: failed",
        "cat held": "in-flight",
        "cat waits": "waiting",
        "cat at work": "waiting",
        "cat in line": "in-line",
        "Zoë's cat": "delayed",
    }
    assert "Done: 4 cancelled; workers interrupt or skip 1 received ones.\n" in printed
    assert (zoe["state"], by_id["args"]) == ("delayed", ["cat at work"])
    assert [(one["args"][0], one["state"]) for one in left] == [
        ("cat held", "in-flight"),
        ("dog", "waiting"),
        ("cat dead", "dead: failed"),
    ]


def test_cancel_by_message_id_runs_the_message_coalesced_onto_it(broker: RedisStreamsBroker, run: Run) -> None:
    first = broker.enqueue(message("first", unique_key="k"))
    broker.enqueue(message("second", unique_key="k"))

    assert run("cancel", QUEUE, "--message-id", first.message_id, "--yes") == 0

    assert [one.args for one in waiting(broker)] == [("second",)]


def test_keys_command_shows_the_line_and_pass_over_runs_the_next_message(
    broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    first = broker.enqueue(message("first", ordering_key="k"))
    broker.enqueue(message("second", ordering_key="k"))
    broker.enqueue(message("limited", concurrency_key="tenant", max_concurrent=3, rate="9/s"))

    keys = {one["key"]: one for one in listed(run, capsys, "keys", QUEUE)}
    codes = [run("pass-over", QUEUE, first.message_id), run("pass-over", QUEUE, first.message_id, "--yes")]
    assert run("keys", QUEUE) == 0

    assert keys["tenant"]["limit"] == "3 at once, 9/s"
    assert (keys["k"]["kind"], keys["k"]["in_line"], keys["k"]["at_work"][0]["args"]) == ("ordering", 1, ["first"])
    assert codes == [4, 0]
    assert [one.reason for one in broker.dead_letters(QUEUE).list()] == ["passed-over"]
    assert 'work("second")' in capsys.readouterr().out


def test_pause_and_resume_need_yes(broker: RedisStreamsBroker, run: Run) -> None:
    broker.enqueue(message("a"))
    tried = (("pause", QUEUE), ("pause", QUEUE, "--yes"), ("resume", QUEUE), ("resume", QUEUE, "--yes"))

    paused = [(run(*arguments), broker.stats(QUEUE).paused) for arguments in tried]

    assert paused == [(4, False), (0, True), (4, True), (0, False)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("peek", "qq"), "there is no queue 'qq' in the namespace 'streams'; did you mean q?"),
        (("status", "q", "--namespace", "a b"), "namespace: expected a word"),
        (("dead", "show", "q", "1-1"), "1-1 is not a dead letter of q"),
        (("requeue", "q"), "give ids, filters or --all"),
        (("requeue", "q", "1-1", "--yes"), "1-1 is not a dead letter of q"),
        (("rescue", "q", "1-1", "--yes"), "no worker holds 1-1"),
        (("pass-over", "q", "no-such-id", "--yes"), "no-such-id holds no key of q"),
        (("find",), "give --message-id, --actor or --text"),
        (("status", "--app", "no.such.module"), "No module named 'no'"),
        (("status", "--app", "json"), "expected a RedisStreamsBroker"),
    ],
)
def test_usage_errors_exit_with_2_and_a_hint(
    arguments: tuple[str, ...], text: str, broker: RedisStreamsBroker, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.enqueue(message("a"))

    assert run(*arguments) == 2

    assert text in capsys.readouterr().err


def test_unreachable_server_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert [main([*command, "--url", "redis://127.0.0.1:1"]) for command in (["status"], ["peek", "q"])] == [3, 3]
    assert capsys.readouterr().err.count("no answer from Redis") == 2


def test_shards_command_divides_a_queue_that_a_program_declares(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    program = tmp_path / "divided_jobs.py"
    program.write_text(
        "from broker import RedisStreamsBroker\n"
        f"broker = RedisStreamsBroker({redis_url!r}, middleware=[], sharded={{'q': len}})\n"
        "broker.declare_queue('q')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    assert main(["shards", "q", "4", "--app", "divided_jobs:broker"]) == 4
    assert main(["shards", "q", "4", "--app", "divided_jobs:broker", "--yes"]) == 0
    assert main(["status", "--app", "divided_jobs:broker"]) == 0
    assert re.search(r"^q\.s3 .* shard 3", capsys.readouterr().out, flags=re.MULTILINE)
    assert main(["shards", "q", "3", "--app", "divided_jobs:broker", "--yes"]) == 2
    assert "power of two" in capsys.readouterr().err


def test_app_option_selects_the_broker_of_a_program(
    redis_url: str,
    redis_client: redis.Redis,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "shop_jobs.py").write_text(
        "from broker import RedisStreamsBroker\n"
        f"theirs = RedisStreamsBroker({redis_url!r}, namespace='shop', group='shop')\n"
        "theirs.declare_queue('orders')\n"
    )
    monkeypatch.chdir(tmp_path)
    redis_client.xadd("shop:orders", {"form": "flat"})

    assert main(["status", "--app", "shop_jobs:theirs"]) == 0

    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["orders", "1"]


def test_metrics_show_zero_counts_but_no_sample_for_unknown_ages(broker: RedisStreamsBroker) -> None:
    broker.enqueue(message("a"))
    broker.enqueue(message("later"), delay=90_000)

    text = exposition(broker, [QUEUE, 'odd"queue'])

    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['dramatiq_streams_waiting_messages{queue="q"}'] == "1"
    assert samples['dramatiq_streams_enqueued_total{queue="q"}'] == "2"
    assert samples['dramatiq_streams_acked_total{queue="odd\\"queue"}'] == "0"
    assert 60 < float(samples['dramatiq_streams_next_due_seconds{queue="q"}']) <= 90
    assert 'dramatiq_streams_oldest_message_age_seconds{queue="odd\\"queue"}' not in samples
    assert text.count("# TYPE") == len({line.partition("{")[0] for line in text.splitlines() if line[0] != "#"} | {
        "dramatiq_streams_oldest_pending_idle_seconds"})  # fmt: skip


def test_every_counter_of_the_scripts_has_a_help_text() -> None:
    scripts = [path.read_text() for path in (Path(broker_package.__file__).with_name("lua")).glob("*.lua")]
    counted = {name for script in scripts for name in re.findall(r"'HINCRBY', [^,]+, '(\w+)'", script)}

    assert counted == TOTALS.keys()


def test_metrics_server_answers_503_while_redis_is_down() -> None:
    answers = iter(["metric 1\n"])

    def text() -> str:
        try:
            return next(answers)
        except StopIteration:
            raise ConnectionFailed("no answer") from None

    with server(text, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{listening.server_address[1]}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
            found = response.read(), response.headers["Content-Type"]
        statuses = []
        for path in ("/metrics", "/other"):
            with pytest.raises(HTTPError) as refused:
                urllib.request.urlopen(f"{url}{path}", timeout=10)
            statuses.append(refused.value.code)
            refused.value.close()
        listening.shutdown()
        thread.join()

    assert found == (b"metric 1\n", "text/plain; version=0.0.4; charset=utf-8")
    assert statuses == [503, 404]
