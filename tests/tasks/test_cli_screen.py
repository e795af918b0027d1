"""Producers' text reaches the terminal only as text, whichever command prints it."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import redis

from sploot_cluster.printable import UNPRINTABLE
from tasks.cli import main
from tasks.cli.screen import err, out, print_block, print_json, print_table, show_uncaught, shown, table_of
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk

# Title, colours, cursor movement, bidi, line separators, a lone surrogate, and text like rich's markup.
HOSTILE = "\x1b]0;pwned\x07\x1b[31mRED\r\nFORGED LINE\x9b31m\u202e\u2028\u200b\ud800\U000e0041[bold red]x[/]"
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def is_clean(text: str) -> bool:
    return not any(unicodedata.category(character) in HIDDEN for character in text.replace("\n", ""))


def test_shown_escapes_control_characters() -> None:
    printed = shown(HOSTILE)

    assert is_clean(printed)
    assert "\n" not in printed
    assert printed.startswith(
        "\\x1b]0;pwned\\x07\\x1b[31mRED\\r\\nFORGED LINE\\x9b31m\\u202e\\u2028\\u200b\\ud800\\U000e0041["
    )
    assert shown("Bärli 😀 写真 a\u00a0b") == "Bärli 😀 写真 a\u00a0b"


def test_every_print_function_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    out.print(HOSTILE)
    err.print(HOSTILE)
    print_block(f"first\n{HOSTILE}")
    table = table_of("column", HOSTILE)
    table.add_row(HOSTILE, HOSTILE)
    print_table(table)
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        show_uncaught(type(error), error, error.__traceback__)

    printed = capsys.readouterr()
    assert is_clean(printed.out)
    assert is_clean(printed.err)
    assert not any(line.startswith("FORGED LINE") for line in (printed.out + printed.err).splitlines())
    assert "[bold red]x[/]" in printed.out


def test_json_output_escapes_control_characters_and_preserves_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({HOSTILE: [HOSTILE, "Bärli 😀"]})

    printed = capsys.readouterr().out
    assert is_clean(printed)
    assert "Bärli 😀" in printed
    assert json.loads(printed) == {HOSTILE: [HOSTILE, "Bärli 😀"]}


Run = Callable[..., str]


@pytest.fixture
def cli(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command in this process and returns its output."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sploot-cluster", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main()
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def hostile_message(**fields: Any) -> bytes:
    given: dict[str, Any] = {
        "queue_name": EMBEDDING_INGESTED,
        "actor_name": CLUSTER_EMBEDDING,
        "args": (),
        "kwargs": {"pet_id": 7, "media_id": HOSTILE, HOSTILE: HOSTILE},
        "options": {HOSTILE: HOSTILE},
    }
    return dramatiq.Message(**given | fields).encode()


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    """Queues with hostile text in waiting, held, delayed and dead entries, and as names of a consumer and a group."""
    desk = Desk(redis_client)
    raw = HOSTILE.encode("utf-8", "surrogatepass")
    entries: list[dict[bytes, bytes]] = [
        {b"message": hostile_message()},
        {b"message": hostile_message(actor_name=HOSTILE, message_id=HOSTILE)},
        {b"pet_id": b"7", b"media_id": raw, b"event_id": raw, raw: raw},
        {b"message": raw},
    ]
    for entry in entries:
        desk.client.xadd(KEYS.stream, entry)
    desk.deliver(HOSTILE.encode("utf-8", "replace").decode())
    desk.client.xgroup_create(KEYS.stream, raw, id="0")
    for entry in entries:
        desk.client.xadd(KEYS.stream, entry)
        facts = {b"reason": raw, b"error": raw, b"actor": raw, b"field": raw, b"hint": raw, b"traceback": raw}
        facts |= {b"message_id": raw, b"entry_id": b"1-1", b"deliveries": b"1"}
        desk.client.xadd(KEYS.dead, facts | {b"entry:" + name: value for name, value in entry.items()})
    desk.client.hset(KEYS.delayed_messages, "a", hostile_message())
    desk.client.zadd(KEYS.delayed, {"a": 10**15})
    return desk


@pytest.mark.parametrize(
    "command",
    [
        "queue status",
        "queue pending embedding",
        "queue peek embedding",
        "queue find --pet 7",
        "queue dead list embedding",
        "queue dead list --groups",
        "queue dead show embedding {dead_letter}",
        "queue dead requeue embedding {dead_letter}",
        "queue dead purge embedding --all",
        "queue rescue embedding --idle 0s --note {hostile}",
        "queue retire-consumer embedding {hostile}",
        "queue pause embedding --by {hostile} --note {hostile} --yes",
        "queue dead show embedding {hostile}",
        "queue peek {hostile}",
        "doctor",
        "job {hostile}",
        "why 7 {hostile}",
        "merge 7 1 2 --by {hostile}",
        "split 7 1 --media {hostile}",
        "capture --dead-letter embedding {dead_letter} -o {file}",
        "delete 7 --media {hostile}",
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_command_prints_hostile_text_as_escapes(desk: Desk, cli: Run, tmp_path: Any, command: str, form: str) -> None:
    dead_letter = desk.dead_letter_ids()[2]
    # users can type or paste only UTF-8
    given = {
        "dead_letter": dead_letter,
        "hostile": HOSTILE.replace("\ud800", ""),
        "file": str(tmp_path / "dead_letter.zip"),
    }
    words = [word.format(**given) for word in command.split()]

    printed = cli(*words, *(["--json"] if form == "json" else []))

    assert is_clean(printed)
    assert not any(line.strip().startswith("FORGED") for line in printed.splitlines())


@pytest.mark.parametrize("form", ["text", "json"])
def test_ascii_terminal_shows_other_characters_as_escapes(
    desk: Desk, redis_url: str, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    desk.bury(1, error="ValueError: Bärli…")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(
        sys, "argv", ["sploot-cluster", "queue", "dead", "list", "embedding", *(["--json"] if form == "json" else [])]
    )

    with pytest.raises(SystemExit) as ended:
        main()

    terminal.seek(0)
    printed = terminal.read()
    assert not ended.value.code
    if form == "json":
        assert "ValueError: Bärli…" in [one["error"] for one in json.loads(printed)]
    else:
        assert "ValueError: B\\xe4rli\\u2026" in printed


def test_audit_prints_hostile_notes_as_escapes(desk: Desk, cli: Run) -> None:
    cli("queue", "pause", "embedding", "--by", "me", "--note", "a\x1b[31mb", "--yes")

    printed = cli("queue", "audit")

    assert is_clean(printed)
    assert "a\\x1b[31mb" in printed
    assert STUCK not in printed


def test_every_format_character_is_escaped() -> None:
    joiners = {0x200C, 0x200D}
    formats = {n for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) == "Cf"}

    refused = {n for n in formats - joiners if UNPRINTABLE.search(f"a{chr(n)}b")}

    assert refused == formats - joiners
