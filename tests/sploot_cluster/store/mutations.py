"""Random mutations of exported pets. Each file must be either refused before anything is written, or imported as it is.

Usage: ``python -m tests.sploot_cluster.store.mutations [--n 10000] [--seed 1]``
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, UnreadableExport
from sploot_cluster.pet import past
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store import archives
from sploot_cluster.store.redis import RedisPetStore
from tasks.redis_access.embedded import EmbeddedRedis
from tests.sploot_cluster.albums import DIM, PET, picture
from tests.sploot_cluster.store.test_damage import album

IMPORTED = PetId(7)
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**70, 1.5, float("nan"), float("inf")),
    *("", "x", "\x1b[31m", "\ud800", "é" * 5_000, [], {}, [1], {"a": 1}, "-1", "9" * 400),
    *("2026-01-01", "2026-01-01T00:00:00+00:00", "0001-01-01T00:00:00+14:00"),
]


def judge(service: ClusterService, client: Any, file: bytes, mutated: dict[str, bytes] | None) -> str:
    """Import a file as pet 7, on a server that has no other data; return the outcome.

    Args:
        mutated: the members of the file, or None if the mutation may have made it an invalid zip.

    Raises:
        AssertionError: the file was refused although keys were written, the imported pet differs from the file, or the
            imported pet does not work.
    """
    try:
        service.import_pet(file, pet=IMPORTED)
    except UnreadableExport:
        assert client.keys("*") == []
        return "refused"
    exported = archives.unpack(service.export(IMPORTED))
    if mutated is not None:
        assert has_all_of(contents_of(mutated), contents_of(exported))
    facts = json.loads(exported["pet.json"])
    if facts["model"] and facts["dim"] == DIM:
        service.assign(IMPORTED, MediaId("next"), model=facts["model"], vector=picture(0, 77))
    for number, correction in enumerate(facts["ledger"]):
        with suppress(InvalidInput):  # for example, the correction is already undone
            service.undo(IMPORTED, correction["revision"], operation_id=f"undo-{number}", by="ada")
    service.recluster(IMPORTED)
    service.tally(IMPORTED).view(IMPORTED)
    assert service.totals().unconserved == ()
    service.export(IMPORTED)
    return "imported"


def contents_of(members: dict[str, bytes]) -> dict[str, Any]:
    """Return the contents of an export as values; ignore the order of clusters and of the candidate model's vectors."""
    facts = json.loads(members["pet.json"])
    shadow = facts["shadow"]
    if shadow is not None:
        width, column = 4 * shadow["dim"], members["shadow.f32le"]
        rows = {item: column[at * width : (at + 1) * width] for at, item in enumerate(shadow["media"])}
        facts["shadow"] = {**shadow, "media": rows}
    facts["clusters"] = {card["id"]: card for card in facts["clusters"]}
    left_out = {name: facts.pop(name) for name in ("pet_id", "sha256")}
    columns = {name: _column_of(name, members[name]) for name in left_out["sha256"] if name != "shadow.f32le"}
    return {**facts, "columns": columns}


def _column_of(name: str, content: bytes) -> bytes:
    """Return the bytes of a column; records of overwritten labels are recompressed, so that equal ones stay equal."""
    head, _, revision = name.partition("/")
    return past.dump(past.load(int(revision), content)) if head == "overwritten" else content


def has_all_of(file: Any, exported: Any) -> bool:
    """Return whether a file contains everything that an export of its pet contains; unknown fields are ignored."""
    if isinstance(exported, dict) and isinstance(file, dict):
        return all(name in file and has_all_of(file[name], one) for name, one in exported.items())
    if isinstance(exported, list) and isinstance(file, list):
        return len(exported) == len(file) and all(map(has_all_of, file, exported))
    return bool(file == exported)


def mutations(members: dict[str, bytes], seed: object) -> Iterator[tuple[bytes, dict[str, bytes] | None]]:
    """Yield random mutations without end: the file, and its members if it is certainly a zip."""
    rng = random.Random(f"{seed}")
    whole = archives.pack(members)
    while True:
        if rng.random() < 0.2:
            flipped = bytearray(whole)
            for _ in range(rng.choice((1, 3, 20))):
                flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            yield bytes(flipped), None
            continue
        changed = dict(members)
        facts = json.loads(changed["pet.json"])
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.65:
                _change_a_fact(rng, facts)
            else:
                name = rng.choice(sorted(name for name in changed if name != "pet.json"))
                changed[name] = _changed_column(rng, changed[name])
                if isinstance(facts.get("sha256"), dict):
                    facts["sha256"][name] = sha256(changed[name]).hexdigest()
        changed["pet.json"] = json.dumps(facts).encode()
        yield archives.pack(changed), changed


def _change_a_fact(rng: random.Random, facts: dict[str, Any]) -> None:
    head = rng.choice(sorted(facts.keys() - {"sha256", "format", "redacted", "pet_id"}))
    path = rng.choice([path for path in _paths({head: facts[head]}) if path])
    parent: Any = facts
    for step in path[:-1]:
        parent = parent[step]
    last = path[-1]
    match rng.choice(("set", "set", "delete", "double", "shuffle", "nudge")):
        case "delete":
            del parent[last]
        case "double" if isinstance(parent, list):
            parent.insert(last, parent[last])
        case "double":
            parent[str(rng.choice(VALUES))] = parent[last]
        case "shuffle" if isinstance(parent, list):
            rng.shuffle(parent)
        case "nudge" if type(parent[last]) in (int, float):
            parent[last] += rng.choice((-1, 1, 100, -100))
        case _:
            parent[last] = rng.choice(VALUES)


def _changed_column(rng: random.Random, column: bytes) -> bytes:
    match rng.choice(("flip", "flip", "cut", "add", "empty")):
        case "flip" if column:
            at = rng.randrange(len(column))
            return column[:at] + bytes([rng.randrange(256)]) + column[at + 1 :]
        case "cut":
            return column[: -rng.choice((1, 4, 8, 64))]
        case "add":
            return column + bytes(rng.choice((1, 4, 8, 64)))
    return b""


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _paths(one, (*path, key))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from _paths(one, (*path, at))


def run(client: redis.Redis, members: dict[str, bytes], n: int, seed: object) -> Counter[str]:
    """Judge n mutations; return the number of each outcome."""
    service = ClusterService(RedisPetStore(client))
    outcomes: Counter[str] = Counter()
    for number, (file, mutated) in zip(range(n), mutations(members, seed), strict=False):
        client.flushall()
        try:
            outcomes[judge(service, client, file, mutated)] += 1
        except Exception as error:
            if mutated is not None:
                error.add_note(str(json.loads(mutated["pet.json"]))[:20_000])
            error.add_note(f"mutation {number} of seed {seed}")
            raise
        service.delete_pet(IMPORTED) if client.exists(f"{{pet:{IMPORTED}}}:meta") else None
    return outcomes


def exported(client: redis.Redis) -> dict[str, bytes]:
    """Return the members of the export of a pet with data of every kind, which are the same in every run."""
    client.flushall()
    members = archives.unpack(album(client).export(PET))
    facts = json.loads(members["pet.json"])
    for at, dated in enumerate([*facts["history"], *facts["ledger"], *facts["quarantine"].values()]):
        dated["at"] = f"2026-11-30T12:00:{at:02}+00:00"
    facts["shadow"]["begun_at"] = "2026-11-30T12:00:00+00:00"
    return {**members, "pet.json": json.dumps(facts).encode()}


def main() -> int:
    arguments = argparse.ArgumentParser(description="Import random mutations of an exported pet.")
    arguments.add_argument("--n", type=int, default=10_000)
    arguments.add_argument("--seed", default=str(random.randrange(2**32)))
    chosen = arguments.parse_args()
    print(f"seed {chosen.seed}")
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis(directory=Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        print(dict(run(client, exported(client), chosen.n, chosen.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
