"""Captures of a pet, and replays that reproduce its labels."""

from __future__ import annotations

import base64
import json
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import redis

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections import CHANGE_KINDS
from sploot_cluster.errors import ClusterError, InvalidInput
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, PetId
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store import archives, export_file
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.store.repairs import PetRepairs
from sploot_cluster.store.salvage import salvage
from tasks.capture.file import Capture, capture_dead_letter, capture_pet, pet_in, read_capture, write_capture
from tasks.capture.replay import replay, settings_of
from tasks.cli import main
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, GROUP
from tests.system.events import flat_event
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk

PET = PetId(42)
DIM = 16


class Album:
    """A pet on a real Redis with random changes."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.store = RedisPetStore(client)
        self.service = ClusterService(self.store)
        self.broker = RedisStreamsBroker(client=client, group=GROUP, middleware=[])
        looks = np.random.default_rng(5).normal(size=(4, DIM))
        self._looks = looks / np.linalg.norm(looks, axis=1)[:, None]

    def take(self, number: int, *, model: str = "test@1") -> None:
        rng = np.random.default_rng(number)
        vector = self._looks[number % 4] + 0.15 * rng.normal(size=DIM)
        self.service.assign(PET, MediaId(f"m{number}"), model=model, vector=vector)

    def edit(self, number: int) -> None:
        """Replace the vector of an item with another one of the same subject."""
        vector = self._looks[number % 4] + 0.15 * np.random.default_rng(1_000 + number).normal(size=DIM)
        item = MediaId(f"m{number}")
        self.service.assign(PET, item, model="test@1", vector=vector, is_replacement=True)

    def captured(self, *, redact: bool = False) -> bytes:
        return capture_pet(
            PET, store=self.store, broker=self.broker, client=self.client, settings=ClusterSettings(), redact=redact
        )

    def capture(self, file: Path) -> Capture:
        """Write a capture to the file, and return the capture that is read from it."""
        write_capture(self.captured(), file)
        return read_capture(file)

    def repair(self) -> None:
        """Delete a key and repair the pet."""
        self.client.delete(PetKeys.of(PET).rows)
        repairs = PetRepairs(self.client)
        raw = repairs.read(PET)
        repairs.rewrite(raw, salvage(raw, by="eve", at=datetime.now(UTC)).pet)

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
            pass  # this correction is not possible now

    def members(self, cluster: ClusterId) -> list[MediaId]:
        state = self.store.load(PET)
        return [state.media[row] for row in np.flatnonzero(state.labels == cluster).tolist()]

    def move_one_item(self) -> MediaId:
        """Move an item of the stored pet to another cluster without a change in its history; return the item."""
        pet = self.store.dump(PET)
        labels = pet.state.labels.copy()
        one, other, *_ = sorted(pet.state.clusters)
        row = int(np.flatnonzero(labels == one)[0])
        labels[row] = other
        self.store.replace(pet, replace(pet, state=replace(pet.state, labels=labels)))
        return pet.state.media[row]

    @staticmethod
    def _some_members(rng: Random, state: Any) -> tuple[ClusterId, list[MediaId]]:
        cluster = rng.choice(sorted(state.clusters))
        members = [state.media[row] for row in np.flatnonzero(state.labels == cluster).tolist()]
        return cluster, rng.sample(members, k=max(1, len(members) // 3))


def kinds_of(capture: Capture) -> Counter[str]:
    """Return how many changes of each kind a captured pet has in its history."""
    assert capture.pet is not None
    return Counter(entry.kind for entry in capture.pet.history)


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

    capture = album.capture(tmp_path / "pet.zip")
    once, again = replay(capture, settings_of(capture, {})), replay(capture, settings_of(capture, {}))

    assert once.differences == ()
    assert once.moved == ()
    assert once.is_same
    assert once == again
    assert kinds_of(capture)["recluster"]


def test_replay_reports_deleted_items_and_replays_the_rest(album: Album, tmp_path: Path) -> None:
    for number in range(24):
        album.take(number)
    album.service.recluster(PET, by="ada")  # makes revision 25
    album.service.dismiss(PET, [MediaId("m3"), MediaId("m8")], operation_id="1", by="ada")  # makes revision 26
    album.service.dismiss(PET, [MediaId("m9")], operation_id="2", by="ada")  # makes revision 27
    album.service.delete_media(PET, [MediaId("m3"), MediaId("m4")], by="eve")  # makes revision 28
    album.service.undo(PET, 27, operation_id="3", by="ada")  # makes revision 29
    album.service.restore(PET, 26, operation_id="4", by="ada")  # makes revision 30
    album.take(30)

    capture = album.capture(tmp_path / "pet.zip")
    done = replay(capture, settings_of(capture, {}))

    assert done.differences == (
        "revisions 4 to 5 cannot be replayed: the items that arrived there were deleted since",
        "revision 26: 1 of the 2 items that it names cannot be replayed: they were deleted since",
        "revision 28: the deletion of 2 items cannot be replayed: no data of them is left",
    )
    assert done.n_media == 23
    assert capture.pet is not None
    then = capture.pet.state
    assert then.labels[then.rows[MediaId("m8")]] == NOISE, "dismissed, and so it is again"
    assert {item for item, _, _ in done.moved}.isdisjoint({"m8", "m9"})


def test_replay_reports_a_switch_and_replays_the_rest(album: Album, tmp_path: Path) -> None:
    for number in range(24):
        album.take(number)
    album.service.recluster(PET, by="ada")
    album.service.begin_model(PET, "test@2", DIM, by="eve")
    for number in range(27):  # the first model has no vectors of the last three
        album.take(number, model="test@2")
    album.service.switch_model(PET, album.service.preview_switch(PET).token, by="eve")  # makes revision 26
    album.service.dismiss(PET, [MediaId("m9")], operation_id="1", by="ada")  # makes revision 27
    album.service.undo(PET, 27, operation_id="2", by="ada")
    album.service.recluster(PET, by="ada")

    capture = album.capture(tmp_path / "pet.zip")
    done = replay(capture, settings_of(capture, {}))

    assert done.differences == (
        "revision 26: the switch from test@1 to test@2 cannot be replayed: "
        "everything is replayed with the vectors of the present model",
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

    capture = album.capture(tmp_path / "pet.zip")
    once, again = replay(capture, settings_of(capture, {})), replay(capture, settings_of(capture, {}))

    assert once == again
    assert capture.pet is not None
    assert once.n_media == capture.pet.state.n_media
    lost = [entry.revision for entry in capture.pet.history if entry.kind in ("delete", "switch")]
    assert lost
    for revision in lost:
        assert any(text.startswith(f"revision {revision}: the ") for text in once.differences)


def test_replay_repeats_every_kind_of_change(album: Album, tmp_path: Path) -> None:
    service = album.service
    for number in range(40):
        album.take(number)
    service.recluster(PET, by="ada")  # makes revision 41
    first, second, *_ = sorted(album.store.load(PET).clusters)
    service.split(PET, second, album.members(second)[:3], operation_id="1", by="ada")  # makes revision 42
    service.merge(PET, [first, second], operation_id="2", by="ada")  # makes revision 43
    service.exclude(PET, first, album.members(first)[:1], operation_id="3", by="ada")  # makes revision 44
    service.dismiss(PET, [MediaId("m9")], operation_id="4", by="ada")  # makes revision 45
    service.undo(PET, 45, operation_id="5", by="ada")  # makes revision 46
    service.restore(PET, 41, operation_id="6", by="ada")  # makes revision 47
    service.place(PET, [MediaId("m5")], operation_id="7", by="ada")  # makes revision 48
    service.name(PET, first, "Rex", operation_id="8", by="ada")  # makes revision 49
    service.keep_apart(PET, sorted(album.store.load(PET).clusters)[:2], operation_id="9", by="ada")  # makes revision 50
    service.hide(PET, [first], operation_id="10", by="ada")  # makes revision 51
    service.show(PET, [first], operation_id="11", by="ada")  # makes revision 52
    item = album.members(first)[0]
    service.cover(PET, first, item, operation_id="12", by="ada")  # makes revision 53
    service.lock(PET, [first], operation_id="13", by="ada")  # makes revision 54
    service.unlock(PET, [first], operation_id="14", by="ada")  # makes revision 55
    service.name_pet(PET, "Mochi", operation_id="15", by="ada")  # makes revision 56
    album.edit(5)  # makes revision 57
    service.begin_model(PET, "test@2", DIM, by="eve")
    for number in range(40):
        album.take(number, model="test@2")
    service.switch_model(PET, service.preview_switch(PET).token, by="eve")  # makes revision 58
    service.delete_media(PET, [MediaId("m39")], by="eve")  # makes revision 59
    album.repair()  # makes revision 60

    capture = album.capture(tmp_path / "pet.zip")
    done = replay(capture, settings_of(capture, {}))

    assert set(kinds_of(capture)) == set(CHANGE_KINDS) - {"arrival"}
    assert [text.partition(" cannot be replayed")[0] for text in done.differences] == [
        "revision 40",
        "revision 57: the replacement of a vector",
        "revision 58: the switch from test@1 to test@2",
        "revision 59: the deletion of 1 items",
        "revision 60: the repair of damaged keys",
    ]
    assert done.n_media == 39


def test_replay_of_a_truncated_history_reports_its_first_revision(
    album: Album, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        album.take(number)
    for _ in range(3):
        album.service.recluster(PET)  # makes revisions 4 to 6
    pet = album.store.dump(PET)
    album.service.delete_pet(PET)
    album.store.replace(None, replace(pet, history=pet.history[1:]))
    monkeypatch.setattr("tasks.capture.replay.HISTORY_KEPT", 2)
    capture = album.capture(tmp_path / "pet.zip")

    done = replay(capture, settings_of(capture, {}))

    assert done.differences == ("revision 4 cannot be replayed: the history does not reach back that far",)


def test_replay_with_other_settings_lists_moved_items(album: Album, tmp_path: Path) -> None:
    for number in range(40):
        album.take(number)
    album.service.recluster(PET)
    capture = album.capture(tmp_path / "pet.zip")

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


def test_replay_lists_items_with_different_labels(album: Album, tmp_path: Path) -> None:
    for number in range(30):
        album.take(number)
    album.service.recluster(PET)
    item = album.move_one_item()

    done = replay(album.capture(tmp_path / "pet.zip"), ClusterSettings())

    assert not done.is_same
    assert [moved for moved, _, _ in done.moved] == [item]


# -- what a capture contains -------------------------------------------------------------------------------------------


def test_pet_in_a_capture_equals_its_export_file(album: Album) -> None:
    for number in range(20):
        album.take(number)
    album.service.recluster(PET)
    album.correct_somehow(Random(1), 1)
    captured = album.captured()

    exported = album.service.export(PET)

    assert archives.unpack(captured)["pet.zip"] == exported
    assert pet_in(captured) == pet_in(exported) == exported


def test_pet_in_a_capture_can_be_imported(album: Album) -> None:
    for number in range(20):
        album.take(number)
    exported, captured = album.service.export(PET), album.captured()
    album.service.delete_pet(PET)

    album.service.import_pet(pet_in(captured))

    assert album.service.export(PET) == exported


def test_capture_contains_jobs_and_dead_letters_unchanged(album: Album, tmp_path: Path) -> None:
    desk = Desk(album.client)
    desk.add(1, pet_id=42)
    desk.deliver(STUCK)
    desk.add(2, pet_id=42)
    desk.add(3, pet_id=7)
    desk.bury(4, pet_id=42)
    desk.bury(5, pet_id=7)
    odd = flat_event(pet_id=42, number=6) | {b"\xff name": b"\x00\xff"}
    desk.client.xadd(KEYS.stream, odd)
    ClusterTasks(client=album.client).request_recluster(42, reason="it grew", delay_ms=60_000)

    capture = album.capture(tmp_path / "pet.zip")

    assert capture.pet is None
    assert sorted((job.state, job.fields.get(b"media_id")) for job in capture.jobs) == [
        ("delayed", None),
        ("in flight", b"media-1"),
        ("waiting", b"media-2"),
        ("waiting", b"media-6"),
    ]
    assert [job.fields[b"\xff name"] for job in capture.jobs if b"\xff name" in job.fields] == [b"\x00\xff"]
    (dead_letter,) = capture.dead_letters
    (stored, _) = album.broker.dead_letters(EMBEDDING_INGESTED).list()[::-1]
    assert (dead_letter.fields, dead_letter.died_at) == (stored.fields, stored.died_at)


def test_capture_of_an_empty_pet_is_refused(album: Album) -> None:
    with pytest.raises(InvalidInput, match="no items, no jobs"):
        album.captured()


def test_replay_checks_dead_letters_again(album: Album, tmp_path: Path) -> None:
    desk = Desk(album.client)
    (fixed,) = desk.bury(1, pet_id=42, error="OSError: the disk was full")
    dead_letters = album.broker.dead_letters(EMBEDDING_INGESTED)
    good = dead_letters.get(fixed)
    assert good is not None
    spoilt = {f"entry:{name.decode()}": value for name, value in good.fields.items()} | {"entry:dim": b"17"}
    desk.client.xadd("{streams:embedding.ingested}:dead", {"reason": "undecodable", "error": "x", **spoilt})
    desk.client.xadd(
        "{streams:embedding.ingested}:dead",
        {"reason": "oversize", "error": "too large", "entry:message": b"[1]" * 500_000},
    )

    verdicts: list[str] = []
    for n, dead_letter in enumerate(dead_letters.list()):
        file = tmp_path / f"dead_letter-{n}.zip"
        write_capture(capture_dead_letter(dead_letter, settings=ClusterSettings()), file)
        capture = read_capture(file)
        assert capture.pet is None
        verdicts += replay(capture, ClusterSettings()).verdicts

    assert "too large (only the head of its 1500" in verdicts[0]
    assert "refused again: embedding" in verdicts[1]
    assert verdicts[2] == f"dead letter {fixed}: would be accepted now; it failed with OSError: the disk was full"


# -- redaction ---------------------------------------------------------------------------------------------------------


def forms_of(vector: Any) -> dict[str, dict[bytes, bytes]]:
    """Return entries of pet 42 that hold a vector in every form and field in which a producer may send it."""
    raw = vector.astype("<f4").tobytes()
    text, numbers = base64.b64encode(raw).decode(), [float(value) for value in vector]
    event = flat_event(pet_id=42, number=1)

    def message(**kwargs: Any) -> dict[bytes, bytes]:
        kwargs = {"pet_id": 42, "media_id": "beach", **kwargs}
        whole = {"queue_name": EMBEDDING_INGESTED, "actor_name": CLUSTER_EMBEDDING, "args": [], "kwargs": kwargs}
        return {b"message": json.dumps(whole | {"options": {}, "message_id": "1", "message_timestamp": 1}).encode()}

    flat = {str(name).encode(): str(value).encode() for name, value in event.items() if name != "embedding"}
    return {
        "flat": flat | {b"embedding": raw},
        "another field": flat | {b"vector": raw},
        "as text in another field": flat | {b"vector": text.encode()},
        "with line breaks": flat | {b"vector": base64.encodebytes(raw)},
        "fields shifted by one": {b"pet_id": b"42", raw: b"embedding"},
        "in a name and its value": {b"pet_id": b"42", raw: raw},
        "in the id": flat | {b"media_id": json.dumps(numbers, separators=(",", ":")).encode()},
        "message": message(embedding=text),
        "message with numbers": message(embedding=numbers),
        "few numbers": message(embedding=numbers[:4]),
        "words": message(vec=" ".join(text[at : at + 40] for at in range(0, len(text), 40))),
        "another argument": message(vec=numbers),
        "one argument each": message(vec={str(at): value for at, value in enumerate(numbers)}),
        "nested": message(vec=[[value] for value in numbers]),
        "numbers as text": message(vec=[str(value) for value in numbers]),
        "text of numbers": message(vec=" ".join(map(str, numbers))),
        "cut message": {b"message": message(embedding=text)[b"message"][:-40]},
    }


def traces_of(vector: Any) -> list[bytes]:
    """Return byte strings such that any file that holds part of the vector, in any form, contains at least one."""
    raw = vector.astype("<f4").tobytes()
    words = [raw[at : at + 9] for at in range(len(raw) - 9)]
    encoded = [base64.b64encode(raw)[at : at + 12] for at in range(0, len(raw) - 12, 4)]
    return [*words, *encoded, *(str(float(value)).encode()[:12] for value in vector)]


def everything_in(file: bytes) -> bytes:
    """Return all content of a file, with nested archives unpacked and base64 decoded."""
    members = archives.unpack(file)
    return b"\n".join(everything_in(part) if name.endswith(".zip") else part for name, part in members.items())


def test_redacted_capture_contains_no_embedding_in_any_form(album: Album) -> None:
    vector = np.random.default_rng(3).normal(size=48).astype(np.float32)
    raw = vector.tobytes()
    album.service.assign(PET, MediaId("beach"), model="test@1", vector=vector)
    album.service.begin_model(PET, "test@2", 48, by="eve")
    album.service.assign(PET, MediaId("beach"), model="test@2", vector=vector[::-1].copy())
    stored, shadow = album.store.dump(PET).state.vectors[0], album.store.dump(PET).shadow
    assert shadow is not None
    client: Any = album.client
    for entry in forms_of(vector).values():
        client.xadd(KEYS.stream, entry)
        numbers = json.dumps(vector.tolist(), separators=(",", ":"))
        facts = {b"reason": "failed", b"error": f"{vector!r} {vector.tolist()}", b"traceback": f"{raw!r} {numbers}"}
        client.xadd(KEYS.dead, facts | {b"entry:" + name: value for name, value in entry.items()})
    traces = [*traces_of(vector), *traces_of(stored), *traces_of(shadow.vectors[MediaId("beach")])]

    whole, redacted = everything_in(album.captured()), everything_in(album.captured(redact=True))

    assert [trace for trace in traces if trace in redacted] == []
    assert rb"\u" not in redacted, "nothing is left of bytes that are not text"
    assert sum(trace in whole for trace in traces) > len(traces) / 3, "the traces find an embedding that is there"
    assert [word for word in (b"media-1", b"test@2", b"beach", b"<192 bytes>") if word not in redacted] == []


def test_redacted_capture_is_neither_replayed_nor_imported(album: Album, tmp_path: Path) -> None:
    for number in range(5):
        album.take(number)
    captured = album.captured(redact=True)
    write_capture(captured, tmp_path / "pet.zip")

    with pytest.raises(InvalidInput, match="no embeddings, so it can only be inspected; capture again without"):
        read_capture(tmp_path / "pet.zip")
    with pytest.raises(InvalidInput, match="its vectors were left out, so it can only be inspected"):
        album.service.import_pet(pet_in(captured), pet=PetId(7))


# -- damaged files -----------------------------------------------------------------------------------------------------


def packed_with(captured: bytes, **members: bytes) -> bytes:
    """Return the capture with these members replaced; members are named without their suffix."""
    kept = archives.unpack(captured)
    return archives.pack({name: members.get(name.partition(".")[0], content) for name, content in kept.items()})


def with_json(captured: bytes, member: str, change: Callable[[Any], object]) -> bytes:
    """Return the capture with a change in the JSON of one member; for ``pet``, in the ``pet.json`` of the export."""
    members = archives.unpack(captured)
    if member == "pet":
        columns = archives.unpack(members["pet.zip"])
        facts = json.loads(columns["pet.json"])
        change(facts)
        return packed_with(captured, pet=archives.pack(columns | {"pet.json": json.dumps(facts).encode()}))
    whole = json.loads(next(content for name, content in members.items() if name.partition(".")[0] == member))
    change(whole)
    return packed_with(captured, **{member: json.dumps(whole).encode()})


@pytest.fixture
def captured(album: Album) -> bytes:
    """A capture of a pet with corrections, a job and a dead letter."""
    for number in range(24):
        album.take(number)
    album.service.recluster(PET, by="ada")
    cluster = max(album.store.load(PET).clusters)
    album.service.split(PET, cluster, album.members(cluster)[:3], operation_id="1", by="ada")
    album.service.merge(PET, sorted(album.store.load(PET).clusters), operation_id="2", by="ada")
    desk = Desk(album.client)
    desk.add(1, pet_id=42)
    desk.bury(2, pet_id=42)
    return album.captured()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "BadZipFile"),
        (b"no zip", "BadZipFile"),
        (archives.pack({}), "it has no settings.json"),
        (archives.pack({"settings.json": b"no json"}), "Expecting value"),
        (archives.pack({"settings.json": b"[" * 100_000}), "recursion"),
        (archives.pack({"settings.json": b"[]"}), "settings.json: expected an object, got a list"),
        (archives.pack({"settings.json": b'{"capture": 99}'}), "expected format 1, got 99"),
    ],
)
def test_file_that_is_not_a_capture_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "odd.zip"
    file.write_bytes(content)

    with pytest.raises(InvalidInput, match=problem) as refused:
        read_capture(file)

    assert (refused.value.field, bool(refused.value.hint)) == ("FILE", True)


@pytest.mark.parametrize(
    ("member", "change", "problem"),
    [
        ("settings", lambda about: about.update(labels="another"), "the labels of its pet are not those of settings"),
        ("settings", lambda about: about.update(redacted="no"), "settings.json.redacted: expected true or false"),
        (
            "settings",
            lambda about: about["settings"].update(noise_floor="many"),
            "NOISE_FLOOR: 'many' is not a whole",
        ),
        ("settings", lambda about: about["settings"].update(models=[1]), "MODELS: .* is not name@version=dimension"),
        ("jobs", lambda job: job.pop("queue"), "jobs.jsonl, line 1 has no queue"),
        ("jobs", lambda job: job.update(queue="odd"), "line 1.queue: expected one of .*, got 'odd'"),
        ("jobs", lambda job: job["fields"].update(dim=3), r"line 1.fields\['dim'\]: expected text, got 3"),
        ("jobs", lambda job: job["fields"].update(dim="\xe4"), "ASCII"),
        ("dead_letters", lambda dead: dead.update(died_at="2026-11-30"), "has no offset from UTC"),
        ("dead_letters", lambda dead: dead.update(error=None), "line 1.error: expected text, got None"),
        (
            "pet",
            lambda facts: facts["history"][0].update(kind="praise"),
            "history.0..kind: expected one of .* 'praise'",
        ),
        ("pet", lambda facts: facts["ledger"][0].update(source="x"), "a correction cannot be read"),
        ("pet", lambda facts: facts["ledger"][0].update(revision=-1), "ledger.0..revision: expected a whole number"),
        ("pet", lambda facts: facts["ledger"][0].update(moved=7), "a correction cannot be read"),
        ("pet", lambda facts: facts.update(revision="14"), "pet.json.revision: expected a whole number"),
        ("pet", lambda facts: facts.update(model=None), "it has items but no model"),
        ("pet", lambda facts: facts["media"].append(1), "pet.json.media.24.: expected text, got 1"),
        ("pet", lambda facts: facts.pop("sha256"), "pet.json has no sha256"),
    ],
)
def test_capture_with_wrong_content_is_refused(
    captured: bytes, tmp_path: Path, member: str, change: Callable[[Any], object], problem: str
) -> None:
    file = tmp_path / "odd.zip"
    file.write_bytes(with_json(captured, member, change))

    with pytest.raises(InvalidInput, match=problem) as refused:
        read_capture(file)

    assert (refused.value.field, bool(refused.value.hint)) == ("FILE", True)


def test_capture_with_flipped_bytes_is_refused_or_has_the_same_content(captured: bytes, tmp_path: Path) -> None:
    file, rng, n_refused = tmp_path / "odd.zip", Random(7), 0
    file.write_bytes(captured)
    unchanged = read_capture(file)
    assert unchanged.pet is not None

    for _ in range(300):
        damaged = bytearray(captured)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            read = read_capture(file)
        except InvalidInput:
            n_refused += 1
            continue
        assert read.pet is not None
        assert export_file.dump(read.pet) == export_file.dump(unchanged.pet)
        assert (read.jobs, read.dead_letters) == (unchanged.jobs, unchanged.dead_letters)

    assert n_refused > 200


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every position in a JSON value, as the container and the key or index in it."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_in(value[key])


@pytest.mark.parametrize("member", ["settings", "jobs", "dead_letters", "pet"])
def test_capture_with_a_value_of_a_wrong_type_is_refused_or_replayed(
    captured: bytes, tmp_path: Path, member: str
) -> None:
    file, rng, n_refused = tmp_path / "odd.zip", Random(11), 0

    def spoil(whole: Any) -> None:
        holder, key = rng.choice(list(places_in(whole)))
        holder[key] = rng.choice([None, "x", -1, 2**62, 1.5, True, [], {}, ["x"], float("nan")])

    for _ in range(60):
        file.write_bytes(with_json(captured, member, spoil))
        try:
            capture = read_capture(file)
        except InvalidInput:
            n_refused += 1
        else:
            replay(capture, settings_of(capture, {}))

    assert n_refused > 10


@pytest.mark.slow
def test_capture_and_replay_commands_work(
    album: Album, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    for number in range(30):
        album.take(number)
    album.service.recluster(PET)
    (dead_letter,) = Desk(album.client).bury(1, pet_id=42)
    file, other = tmp_path / "pet.zip", tmp_path / "dead_letter.zip"

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
    assert run("import", str(file))[0] == 0
    assert album.service.clusters(PET).n_media == 30
    assert run("import", str(file))[0] == 4
    code, text = run("import", str(other))
    assert (code, "the capture has no pet" in text) == (2, True)
    album.move_one_item()
    assert run("capture", "--pet", "42", "-o", str(tmp_path / "moved.zip"))[0] == 0
    assert run("replay", str(tmp_path / "moved.zip"))[0] == 1
    assert run("replay", str(tmp_path / "moved.zip"), "--set", "noise_floor=14")[0] == 0
