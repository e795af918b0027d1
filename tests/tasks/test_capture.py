"""Captures of a pet, and replays that reproduce its labels."""

from __future__ import annotations

import base64
import json
import stat
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import redis

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.errors import ClusterError, InvalidInput
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.redis import RedisPetStore
from tasks.capture import (
    Capture,
    capture_dead_letter,
    capture_pet,
    read_capture,
    replay,
    settings_of,
    write_capture,
)
from tasks.cli import main
from tasks.client import ClusterTasks
from tasks.contracts import EMBEDDING_INGESTED
from tests.tasks.queue_ops.desk import STUCK, Desk

PET = PetId(42)
DIM = 16


class Album:
    """A pet on a real Redis with random changes."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.store = RedisPetStore(client)
        self.service = ClusterService(self.store)
        self.broker = RedisStreamsBroker(client=client, middleware=[])
        looks = np.random.default_rng(5).normal(size=(4, DIM))
        self._looks = looks / np.linalg.norm(looks, axis=1)[:, None]

    def take(self, number: int, *, model: str = "test@1") -> None:
        rng = np.random.default_rng(number)
        vector = self._looks[number % 4] + 0.15 * rng.normal(size=DIM)
        self.service.assign(PET, MediaId(f"m{number}"), model=model, vector=vector)

    def captured(self, file: Path, *, redact: bool = False) -> Capture:
        lines = capture_pet(
            PET, store=self.store, broker=self.broker, client=self.client, settings=ClusterSettings(), redact=redact
        )
        write_capture(lines, file)
        return read_capture(file)

    def correct_somehow(self, rng: Random, n: int) -> None:
        """Make a random correction; skip it if it is not possible."""
        state = self.store.load(PET)
        clusters = sorted(state.clusters)
        operation: dict[str, Any] = {"operation_id": f"op-{n}", "by": "ada"}
        media = [state.media[row] for row in rng.sample(range(state.n_media), k=min(3, state.n_media))]
        try:
            match rng.choice(["merge", "split", "exclude", "dismiss", "undo", "restore"]):
                case "merge":
                    self.service.merge(PET, rng.sample(clusters, k=2), **operation)
                case "split":
                    cluster, members = self._some_members(rng, state)
                    self.service.split(PET, cluster, members, **operation)
                case "exclude":
                    cluster, members = self._some_members(rng, state)
                    self.service.exclude(PET, cluster, members, **operation)
                case "dismiss":
                    self.service.dismiss(PET, media, **operation)
                case "undo":
                    self.service.undo(PET, rng.choice(state.ledger).revision, **operation)
                case "restore":
                    self.service.restore(PET, rng.randrange(1, state.revision), **operation)
        except (ClusterError, ValueError, IndexError):
            pass  # there is nothing to correct

    @staticmethod
    def _some_members(rng: Random, state: Any) -> tuple[ClusterId, list[MediaId]]:
        cluster = rng.choice(sorted(state.clusters))
        members = [state.media[row] for row in np.flatnonzero(state.labels == cluster).tolist()]
        return cluster, rng.sample(members, k=max(1, len(members) // 3))


@pytest.fixture
def album(redis_client: redis.Redis) -> Album:
    return Album(redis_client)


@pytest.mark.parametrize("seed", range(3))
def test_replay_reproduces_the_labels_after_any_changes(album: Album, tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    print(f"seed {seed}")
    for number in range(45):
        album.take(number)
        if number > 12 and rng.random() < 0.15:
            album.service.recluster(PET, by="ada")
        if number > 15 and rng.random() < 0.35:
            album.correct_somehow(rng, number)

    capture = album.captured(tmp_path / "pet.jsonl")
    once, again = replay(capture, settings_of(capture, {})), replay(capture, settings_of(capture, {}))

    assert once.differences == ()
    assert once.moved == ()
    assert once.is_same
    assert once == again
    assert {line["done"] for line in capture.story if "done" in line} >= {"recluster"}


def test_replay_reports_deleted_items_and_replays_the_rest(album: Album, tmp_path: Path) -> None:
    for number in range(24):
        album.take(number)
    album.service.recluster(PET, by="ada")  # 25
    album.service.dismiss(PET, [MediaId("m3"), MediaId("m8")], operation_id="1", by="ada")  # 26
    album.service.dismiss(PET, [MediaId("m9")], operation_id="2", by="ada")  # 27
    album.service.delete_media(PET, [MediaId("m3"), MediaId("m4")], by="eve")  # 28
    album.service.undo(PET, 27, operation_id="3", by="ada")  # 29
    album.service.restore(PET, 26, operation_id="4", by="ada")  # 30
    album.take(30)

    capture = album.captured(tmp_path / "pet.jsonl")
    done = replay(capture, settings_of(capture, {}))

    assert done.differences == (
        "revisions 4 to 5 cannot be replayed: the items that arrived there were deleted since",
        "revision 26: 1 of the 2 items that it names cannot be replayed: they were deleted since",
        "revision 28: the deletion of 2 items cannot be replayed: no data of them is left",
    )
    assert done.n_media == 23
    then = {line["item"]: line["label"] for line in capture.media}
    elsewhere = {item for item, _, _ in done.moved}
    assert then["m8"] == -1, "dismissed, and so it is again"
    assert elsewhere.isdisjoint({"m8", "m9"})


def test_replay_reports_a_switch_and_replays_the_rest(album: Album, tmp_path: Path) -> None:
    for number in range(24):
        album.take(number)
    album.service.recluster(PET, by="ada")
    album.service.begin_model(PET, "test@2", DIM, by="eve")
    for number in range(27):  # three that the first model does not have
        album.take(number, model="test@2")
    album.service.switch_model(PET, album.service.preview_switch(PET).token, by="eve")  # 26
    album.service.dismiss(PET, [MediaId("m9")], operation_id="1", by="ada")  # 27
    album.service.undo(PET, 27, operation_id="2", by="ada")
    album.service.recluster(PET, by="ada")

    capture = album.captured(tmp_path / "pet.jsonl")
    done = replay(capture, settings_of(capture, {}))

    assert done.differences == (
        "revision 26: the switch from test@1 to test@2 cannot be replayed: "
        "vectors of test@1 are not captured; everything is replayed with those of test@2",
    )
    assert done.n_media == 27
    assert done.is_same


@pytest.mark.parametrize("seed", range(3))
def test_replay_never_fails_after_deletions_or_switches(album: Album, tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    print(f"seed {seed}")
    model = "test@1"
    for number in range(45):
        album.take(number, model=model)
        if number > 12 and rng.random() < 0.5:
            album.correct_somehow(rng, number)
        if number > 12 and rng.random() < 0.15:
            album.service.recluster(PET, by="ada")
        if number > 12 and rng.random() < 0.1:
            album.service.delete_media(PET, rng.sample(list(album.store.load(PET).media), 2), by="eve")
        if number == 30:
            model = "test@2"
            album.service.begin_model(PET, model, DIM, by="eve")
            for item in album.store.load(PET).media:
                album.take(int(item.removeprefix("m")), model=model)
            album.service.switch_model(PET, album.service.preview_switch(PET).token, by="eve")

    capture = album.captured(tmp_path / "pet.jsonl")
    once, again = replay(capture, settings_of(capture, {})), replay(capture, settings_of(capture, {}))

    assert once == again
    assert once.n_media == len(capture.media)
    deleted = [line["revision"] for line in capture.story if line.get("done") in ("delete", "switch")]
    assert [any(text.startswith(f"revision {at}: the ") for text in once.differences) for at in deleted] == [
        True for _ in deleted
    ]


def test_capture_with_an_unknown_kind_of_change_is_refused(album: Album, tmp_path: Path) -> None:
    album.take(1)
    album.service.dismiss(PET, [MediaId("m1")], operation_id="1", by="ada")
    file = tmp_path / "pet.jsonl"
    album.captured(file)
    file.write_text(file.read_text().replace('"done":"dismiss"', '"done":"praise"'))

    with pytest.raises(InvalidInput, match="a change of unknown kind 'praise'"):
        read_capture(file)


def test_replay_with_other_settings_lists_moved_items(album: Album, tmp_path: Path) -> None:
    for number in range(40):
        album.take(number)
    album.service.recluster(PET)
    capture = album.captured(tmp_path / "pet.jsonl")

    same = replay(capture, settings_of(capture, {}))
    otherwise = replay(capture, settings_of(capture, {"noise_floor": "0", "noise_ratio": "0", "arrival_slack": "0.1"}))

    assert same.is_same
    assert settings_of(capture, {"noise_floor": "0"}).noise_floor == 0
    assert otherwise.n_media == same.n_media == 40
    assert otherwise.is_same == (otherwise.moved == ())
    with pytest.raises(InvalidInput, match="not a setting"):
        settings_of(capture, {"eps": "0.3"})
    with pytest.raises(InvalidInput, match="noise_ratio"):
        settings_of(capture, {"noise_ratio": "7"})


def test_replay_lists_items_with_other_labels(album: Album, tmp_path: Path) -> None:
    for number in range(20):
        album.take(number)
    file = tmp_path / "pet.jsonl"
    album.captured(file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["label"] += 1
    lines[0]["labels"] = "another"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    done = replay(read_capture(file), ClusterSettings())

    assert not done.is_same
    assert [item for item, _, _ in done.moved] == [lines[3]["item"]]


def test_capture_contains_jobs_and_dead_letters_unchanged(album: Album, tmp_path: Path) -> None:
    desk = Desk(album.client)
    desk.add(1, pet_id=42)
    desk.deliver(STUCK)
    desk.add(2, pet_id=42)
    desk.add(3, pet_id=7)
    desk.bury(4, pet_id=42)
    desk.bury(5, pet_id=7)
    ClusterTasks(client=album.client).request_recluster(42, reason="it grew", delay_ms=60_000)

    capture = album.captured(tmp_path / "pet.jsonl")

    assert sorted((job["job"], job["fields"].get(b"media_id")) for job in capture.jobs) == [
        ("delayed", None),
        ("in flight", b"media-1"),
        ("waiting", b"media-2"),
    ]
    assert [dead_letter["fields"][b"media_id"] for dead_letter in capture.dead_letters] == [b"media-4"]


def test_redacted_capture_has_no_embeddings_and_no_replay(album: Album, tmp_path: Path) -> None:
    desk = Desk(album.client)
    desk.add(1, pet_id=42)
    desk.bury(2, pet_id=42)
    for number in range(5):
        album.take(number)
    vectors = album.store.load(PET).vectors

    capture = album.captured(tmp_path / "pet.jsonl", redact=True)

    text = (tmp_path / "pet.jsonl").read_text()
    assert capture.is_redacted
    assert [item for item in capture.media if "embedding" in item] == []
    assert base64.b64encode(vectors[0].tobytes()).decode()[:30] not in text
    assert {dead_letter["fields"][b"embedding"] for dead_letter in capture.dead_letters} == {b"<64 bytes>"}
    with pytest.raises(InvalidInput, match="no embeddings"):
        replay(capture, ClusterSettings())


def test_replay_checks_dead_letters_again(album: Album, tmp_path: Path) -> None:
    desk = Desk(album.client)
    (fixed,) = desk.bury(1, pet_id=42, error="OSError: the disk was full")
    dead_letters = album.broker.dead_letters(EMBEDDING_INGESTED)
    good = dead_letters.get(fixed)
    assert good is not None
    spoilt = {f"entry:{name.decode()}": value for name, value in good.fields.items()} | {"entry:dim": b"17"}
    desk.client.xadd("{streams:embedding.ingested}:dead", {"reason": "undecodable", "error": "x", **spoilt})

    verdicts: list[str] = []
    for n, dead_letter in enumerate(dead_letters.list()):
        file = tmp_path / f"dead_letter-{n}.jsonl"
        write_capture(capture_dead_letter(dead_letter, settings=ClusterSettings()), file)
        verdicts += replay(read_capture(file), ClusterSettings()).verdicts

    assert "refused again: embedding" in verdicts[0]
    assert verdicts[1] == f"dead letter {fixed}: would be accepted now; it failed with OSError: the disk was full"


def test_capture_of_an_empty_pet_is_refused(album: Album, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no items, no jobs"):
        album.captured(tmp_path / "pet.jsonl")

    assert not (tmp_path / "pet.jsonl").exists()


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"capture": 99}', '{"item": "m"}'])
def test_file_that_is_not_a_capture_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(text)

    with pytest.raises(InvalidInput, match="FILE"):
        read_capture(file)


@pytest.mark.slow
def test_capture_and_replay_commands_work(
    album: Album, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    for number in range(30):
        album.take(number)
    album.service.recluster(PET)
    (dead_letter,) = Desk(album.client).bury(1, pet_id=42)
    file, other = tmp_path / "pet.jsonl", tmp_path / "dead_letter.jsonl"

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sploot-cluster", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    assert run("capture", "--pet", "42", "-o", str(file))[0] == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("capture", "--pet", "42", "-o", str(file)) == (2, run("capture", "--pet", "42", "-o", str(file))[1])
    assert run("capture", "-o", str(other))[0] == 2
    assert run("capture", "--dead-letter", "embedding", dead_letter, "-o", str(other))[0] == 0
    album.client.flushall()
    code, text = run("replay", str(file))
    assert (code, "the same as captured" in text) == (0, True)
    assert json.loads(run("replay", str(file), "--json")[1])["is_same"] is True
    assert "would be accepted now" in run("replay", str(other))[1]
    assert run("replay", str(file), "--set", "noise_floor=0")[0] == 0
    assert run("replay", str(file), "--set", "nothing")[0] == 2
    spoilt = file.read_text().replace('"label":1', '"label":7')
    (tmp_path / "spoilt.jsonl").write_text(spoilt.replace('"labels":"', '"labels":"x'))
    assert run("replay", str(tmp_path / "spoilt.jsonl"))[0] == 1
