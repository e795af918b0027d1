"""`sploot-cluster queue …`: plans without --yes, exit codes, and JSON output."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest
import redis

from sploot_cluster.answer_fields import public
from tasks.cli.screen import err, out
from tasks.contracts import EMBEDDING_INGESTED, EXPORT_PENDING_JOBS
from tasks.observe.history import KeepHistory
from tasks.observe.periodic_runs import recording_run
from tests.support import eventually
from tests.system.events import flat_event, free_port
from tests.tasks.command_line import CommandLine, Ran
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk, worker_that_refuses

Cli = Callable[..., Ran]


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


@pytest.fixture
def cli(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A function that runs ``sploot-cluster queue …`` in this process."""
    command_line = CommandLine(redis_url, monkeypatch, capsys)
    for screen in (out, err):
        monkeypatch.setattr(screen, "width", 40)
    return partial(command_line, "queue")


ACTIONS = [
    ["rescue", "embedding", "--consumer", STUCK],
    ["rescue", "embedding", "--idle", "0s"],
    ["retire-consumer", "embedding", STUCK],
    ["pause", "embedding"],
    ["resume", "embedding"],
    ["cancel", "embedding", "--pet", "7"],
    ["cancel", "embedding", "--actor", "cluster_embedding"],
    ["dead", "requeue", "embedding", "--all"],
    ["dead", "requeue", "embedding", "--all", "--canary"],
    ["dead", "purge", "embedding", "--reason", "failed"],
    ["shards", "set", "4"],
]


def test_workers_and_periodic_jobs_are_listed(cli: Cli, desk: Desk, redis_client: redis.Redis) -> None:
    desk.add(1, pet_id=42)
    desk.deliver()
    with recording_run(redis_client, EXPORT_PENDING_JOBS):
        pass

    workers, periodic = cli("workers"), cli("periodic")
    as_json = cli("workers", "--json")

    assert (workers.code, periodic.code) == (0, 0)
    assert STUCK in workers.out
    assert "cluster_embedding" in workers.out
    assert re.search(rf"{EXPORT_PENDING_JOBS}.*succeeded", periodic.out)
    assert json.loads(as_json.out)[0]["jobs"][0]["job"]["pet_id"] == 42


@pytest.mark.parametrize("action", ACTIONS, ids=" ".join)
def test_action_without_yes_changes_nothing(cli: Cli, desk: Desk, action: list[str]) -> None:
    desk.add(1, 2)
    desk.deliver()
    desk.bury(3)
    before = desk.holders(), desk.entry_ids(), desk.dead_letter_ids(), desk.client.exists(KEYS.paused)

    refused = cli(*action)

    assert refused.code == 4
    assert re.search(r"^Plan p-[0-9a-f]{8}: .+\.$", refused.out, flags=re.MULTILINE)
    assert re.search(r"^  (XCLAIM|XADD|XDEL|SET|DEL) ", refused.out, flags=re.MULTILINE), "no Redis commands"
    assert "queue apply p-" in refused.err
    assert (desk.holders(), desk.entry_ids(), desk.dead_letter_ids(), desk.client.exists(KEYS.paused)) == before
    assert cli("audit", "--json").json == []


@pytest.mark.parametrize("action", ACTIONS, ids=" ".join)
def test_action_with_yes_is_applied_and_audited(
    cli: Cli, desk: Desk, redis_client: redis.Redis, action: list[str]
) -> None:
    desk.bury(3)
    if "--canary" in action:
        with worker_that_refuses(redis_client):
            done = cli(*action, "--yes", "--by", "ada", "--note", "INC-7", "--json")
    else:
        desk.add(1, 2)
        desk.deliver()
        done = cli(*action, "--yes", "--by", "ada", "--note", "INC-7", "--json")

    assert done.code == 0, done.err
    assert done.json["is_complete"] is True
    (record,) = cli("audit", "--json").json
    assert (record["by"], record["via"], record["note"], record["state"]) == ("ada", "command line", "INC-7", "done")
    assert record["plan_id"] == done.json["plan_id"]


def test_saved_plan_is_applied_to_exactly_its_ids(cli: Cli, desk: Desk) -> None:
    first, second = desk.bury(1, 2)
    shown = cli("dead", "requeue", "embedding", "--all", "--json")
    (late,) = desk.bury(3)

    applied = cli("apply", shown.json["plan_id"], "--yes")
    again = cli("apply", shown.json["plan_id"], "--yes")

    assert [entry["id"] for entry in shown.json["entries"]] == [first, second]
    assert applied.code == 0
    assert "2 of 2 put back to work" in applied.out
    assert desk.dead_letter_ids() == [late]
    assert again.code == 1
    assert "make a new plan" in again.err


def test_failed_canary_fails_the_command(cli: Cli, desk: Desk, redis_client: redis.Redis) -> None:
    desk.bury(1, 2, 3)

    with worker_that_refuses(redis_client, "media-1"):
        done = cli("dead", "requeue", "embedding", "--all", "--canary", "--yes")

    assert done.code == 1
    assert "NOT DONE: the first one failed again" in done.out
    assert "2 were not touched" in done.out
    assert len(desk.dead_letter_ids()) == 3


def test_pending_and_peek_commands_print_no_embeddings(cli: Cli, desk: Desk) -> None:
    (entry_id,) = desk.add(1)
    desk.deliver()
    desk.add(2)

    pending = cli("pending", "embedding", "--json").json
    peeked = cli("peek", "embedding", "--json").json

    assert [(row["entry_id"], row["holder"], row["deliveries"], row["pet_id"]) for row in pending] == [
        (entry_id, STUCK, 1, 7)
    ]
    assert [row["media_id"] for row in peeked] == ["media-2"]
    assert peeked[0]["fields"]["embedding"] == "<64 bytes>"
    assert "media-1" in cli("pending", "streams:embedding.ingested").out
    assert "media-2" in cli("peek", "embedding.ingested").out


def test_unfinished_jobs_of_each_kind_are_listed_as_by_http(cli: Cli, desk: Desk) -> None:
    desk.add(1, 2, pet_id=42)
    desk.deliver()
    desk.add(3, pet_id=43)
    retried = desk.message(4, retries=2, traceback="Traceback\nOSError: no answer")
    desk.broker.enqueue(retried, delay=60_000)

    waiting, running = (cli("jobs", "embedding", "--state", state, "--json").json for state in ("waiting", "running"))
    delayed, of_all = cli("jobs", "--state", "delayed"), cli("jobs", "--state", "delayed", "--json").json
    first = cli("jobs", "embedding", "--state", "running", "--limit", "1", "--json").json
    second = cli("jobs", "embedding", "--state", "running", "--cursor", first["next_cursor"], "--json").json

    by_http = desk.operations.jobs(EMBEDDING_INGESTED, "delayed", limit=50)
    assert [job["pet_id"] for job in waiting["jobs"]] == [43]
    assert [(job["media_id"], job["worker"]) for job in running["jobs"]] == [("media-1", STUCK), ("media-2", STUCK)]
    assert of_all == {
        "jobs": json.loads(json.dumps([public(job) for job in by_http.records], default=datetime.isoformat)),
        "next_cursor": None,
    }
    assert of_all["jobs"][0]["job_id"] == retried.message_id
    assert retried.message_id in delayed.out
    assert [job["media_id"] for page in (first, second) for job in page["jobs"]] == ["media-1", "media-2"]
    assert cli("jobs", "--cursor", "1-0").code == 2


def test_history_lists_hours_in_which_a_queue_was_active(cli: Cli, redis_client: redis.Redis) -> None:
    now = 3_600 * (int(time.time()) // 3_600) - 60
    history = KeepHistory(redis_client, clock=lambda: now)
    for _ in range(3):
        history.count(EMBEDDING_INGESTED, is_success=True, duration_s=0.02)
    history.count(EMBEDDING_INGESTED, is_success=False, duration_s=4.0)
    history.flush()

    shown, of_other = cli("history", "embedding"), cli("history", "feedback")
    as_json = cli("history", "--json").json

    hour = datetime.fromtimestamp(now, UTC)
    assert re.search(rf"{hour:%Y-%m-%d %H}:00 +embedding.ingested +3 +0\.1 +1 +0 ", shown.out)
    assert "embedding.ingested" not in of_other.out
    assert as_json["step_s"] == 300
    assert sum(next(one for one in as_json["queues"] if one["queue"] == EMBEDDING_INGESTED)["done"]) == 3
    assert cli("history", "--every", "7m").code == 2


def test_jobs_of_a_pet_are_found(cli: Cli, desk: Desk) -> None:
    desk.add(1, 2, pet_id=42)
    desk.add(3, pet_id=7)

    found = cli("find", "--pet", "42", "--json").json

    assert [(job["media_id"], job["state"]) for job in found] == [("media-1", "waiting"), ("media-2", "waiting")]
    assert [job["media_id"] for job in cli("find", "--pet", "42", "--media", "media-2", "--json").json] == ["media-2"]
    assert "2 found in" in cli("find", "--pet", "42").out


def test_dead_letters_are_listed_grouped_and_shown(cli: Cli, desk: Desk) -> None:
    desk.bury(1, 2, error="InvalidInput: embedding holds [a NaN]", pet_id=42)
    (other,) = desk.bury(3, error="OSError: no", pet_id=7)

    listed = cli("dead", "list", "--pet", "42", "--json").json
    groups = cli("dead", "list", "--groups", "--json").json
    shown = cli("dead", "show", "embedding", other, "--json").json

    assert [row["pet_id"] for row in listed] == [42, 42]
    assert [(group["n"], group["error"]) for group in groups] == [(2, "InvalidInput"), (1, "OSError")]
    assert shown["error"] == "OSError: no"
    assert shown["fields"]["embedding"] == "<64 bytes>"
    assert "[a" in cli("dead", "list").out, "rich interpreted the text as markup"
    assert "OSError: no" in cli("dead", "show", "embedding", other).out


def test_status_gives_the_reason_why_jobs_wait(cli: Cli, desk: Desk) -> None:
    desk.add(1)
    desk.deliver()

    status = {queue["queue"]: queue for queue in cli("status", "--json").json}["embedding.ingested"]

    assert status["reason"] == "no worker takes its jobs; start one: sploot-cluster worker"
    assert (status["in_flight"], status["undelivered"]) == (1, 0)
    assert [(one["name"], one["pending"], one["is_alive"]) for one in status["consumers"]] == [(STUCK, 1, False)]
    text = cli("status").out
    assert STUCK in text
    assert f"embedding.ingested: {status['reason']}\n" in text


def test_status_counts_unique_keys_of_jobs_removed_by_hand(cli: Cli, desk: Desk) -> None:
    desk.broker.enqueue(desk.message(1, unique_key="k"))
    desk.client.xtrim(KEYS.stream, maxlen=0)

    status = {queue["queue"]: queue["stale_locks"] for queue in cli("status", "--json").json}

    assert {queue for queue, n in status.items() if n} == {"embedding.ingested"}
    assert "embedding.ingested: 1 unique key is held by a job that was removed by hand" in cli("status").out


def test_ids_are_not_wrapped_in_a_narrow_terminal(cli: Cli, desk: Desk) -> None:
    (entry_id,) = desk.add(1)
    desk.deliver("a-consumer-with-a-long-name-as-they-have:17:df8372f6.124956")
    (dead_letter_id,) = desk.bury(2)

    pending, dead_letters = cli("pending", "embedding").out, cli("dead", "list").out

    assert {entry_id, "a-consumer-with-a-long-name-as-they-have:17:df8372f6.124956"} <= set(pending.split())
    assert dead_letter_id in dead_letters.split()


def test_empty_plan_reports_nothing_to_do(cli: Cli, desk: Desk) -> None:
    done = cli("dead", "purge", "embedding", "--reason", "failed")

    assert done.code == 0
    assert "Nothing to do." in done.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rescue", "cluster", "--unowned"], "queue"),
        (["rescue", "embedding"], "entry_ids"),
        (["pending", "embedding", "--idle", "soon"], "--idle"),
        (["pending", "embedding", "--idle", "99999999999999d"], "--idle"),
        (["rescue", "embedding", "--idle", "36601d"], "--idle"),
        (["dead", "list", "--since", "99999999d"], "--since"),
        (["dead", "requeue", "embedding", "--since", "9" * 400 + "s"], "--since"),
        (["dead", "purge", "embedding", "--since", "36601d"], "--since"),
        (["dead", "requeue", "embedding"], "ID"),
        (["dead", "requeue", "embedding", "--all", "--reason", "failed"], "ID"),
        (["dead", "purge", "embedding", "1-1"], "1-1"),
        (["dead", "show", "embedding", "no-id"], "no-id"),
        (["retire-consumer", "embedding", "nobody"], "nobody"),
        (["find"], "--pet"),
        (["find", "--pet", "9223372036854775808"], "--pet"),
        (["dead", "list", "--pet", "9223372036854775808"], "--pet"),
        (["audit", "--limit", "99999999999999999999"], "--limit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_queue_argument_exits_2(cli: Cli, arguments: list[str], named: str) -> None:
    refused = cli(*arguments)

    assert refused.code == 2
    assert named in refused.err


@pytest.mark.parametrize(
    "arguments", [["pending", "embedding"], ["find", "--pet", "1"], ["pause", "embedding", "--yes"]]
)
def test_queue_command_without_redis_exits_3(cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")

    assert cli(*arguments).code == 3


def test_rescued_job_runs(cli: Cli, desk: Desk, redis_client: redis.Redis) -> None:
    desk.add(1, 2)
    desk.deliver()

    cli("retire-consumer", "embedding", STUCK, "--yes")

    with worker_that_refuses(redis_client) as ran:
        eventually(lambda: sorted(ran) == ["media-1", "media-2"])


@pytest.mark.parametrize("odd_id", ["1794203586547828000-0", f"{2**64 - 1}-{2**64 - 1}"])
def test_entry_id_ahead_of_the_clock_is_shown_without_a_time(desk: Desk, cli: Cli, odd_id: str) -> None:
    desk.client.xadd(KEYS.stream, flat_event(pet_id=42, number=1), id=odd_id)

    peeked, found, status = cli("peek", "embedding"), cli("find", "--pet", "42"), cli("status", "--json")

    assert (peeked.code, found.code, status.code) == (0, 0, 0)
    for shown in (peeked, found):
        (line,) = [line for line in shown.out.splitlines() if odd_id in line]
        assert re.search(rf"{odd_id}\s+-\s", line)
    (queue,) = [queue for queue in status.json if queue["queue"] == "embedding.ingested"]
    assert queue["oldest_age_s"] is None


def test_shards_are_set_and_shown(cli: Cli, desk: Desk) -> None:
    desk.add(1)

    assert cli("shards", "set", "2", "--yes").code == 0
    shown = cli("shards", "show", "--json").json

    assert [(row["shard"], row["stream"], row["undelivered"]) for row in shown] == [
        (0, "streams:embedding.ingested", 1),
        (1, "streams:embedding.ingested.s1", 0),
    ]
    assert cli("shards", "set", "3", "--yes").code == 2
