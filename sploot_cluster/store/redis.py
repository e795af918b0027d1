"""The store of pets in Redis: one round trip to load changes, and one to commit. ``keys.py`` documents the schema.

A load is a consistent snapshot, because one script reads it. A commit is atomic, because one script first checks the
state that it was decided on and then writes everything. If a reply is lost, the client may send a commit twice: every
commit has a random name, by which the script recognises it.

This module translates errors from redis-py to ``StoreUnavailable``. It requires Redis 6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib.resources import files
from itertools import chain
from secrets import token_hex
from sys import intern
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import redis

from sploot_cluster.decide.presentation import pet_name_of, presentation_of
from sploot_cluster.errors import (
    ClusterError,
    NotConserved,
    PetClaimed,
    PetIsCold,
    PetTooLarge,
    RevisionConflict,
    StoreUnavailable,
    UnknownPet,
    UnreadablePet,
)
from sploot_cluster.pet import previews
from sploot_cluster.pet.items import ItemRows
from sploot_cluster.pet.models import (
    NOISE,
    Change,
    ClusterId,
    Correction,
    HistoryEntry,
    KeptTree,
    MediaId,
    PetId,
    PetState,
    PetSummary,
    PetView,
)
from sploot_cluster.pet.past import KEPT, Past, overwritten_by
from sploot_cluster.pet.past import dump as dump_overwritten
from sploot_cluster.pet.past import load as load_overwritten
from sploot_cluster.pet.previews import Preview
from sploot_cluster.pet.rows import PetRows, check, empty_state, follow
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import MAX_QUARANTINED, PetTally, Quarantined, Tally, Totals, counts_after
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, LabelVector, OriginVector, TimeVector
from sploot_cluster.pet.views import view_of
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.refusals import REDIS_ERRORS, refusal_of
from sploot_cluster.store import ledger_json as ledger
from sploot_cluster.store.cold.moves import ColdPets, Place
from sploot_cluster.store.keys import FORMAT, PETS, PetKeys
from sploot_cluster.store.name_index import NameIndex
from sploot_cluster.store.pet_list import PetList
from sploot_cluster.store.port import CLAIM_MS, MAX_VECTOR_BYTES, Removal
from sploot_cluster.store.removal import STEP_BYTES, RedisRemoval
from sploot_cluster.store.short_calls import Call, ShortCalls
from sploot_cluster.store.values import (
    MOST_ARGUMENTS,
    MOST_BYTES,
    Command,
    as_json,
    commands_of,
    dump_card,
    dump_quarantined,
    dump_shadow,
    flat,
    load_card,
    load_entry,
    load_quarantined,
    load_shadow,
    pairs_of,
    revision_of,
)

T = TypeVar("T", bound=np.generic)
R = TypeVar("R")

# Maximum size of the vectors, and maximum number of items, that one command reads; it occupies the server's only thread
# for about a millisecond. One page holds all vectors of a pet with 1,000 items of 512 dimensions.
PAGE_BYTES: Final = 2 * 1024 * 1024
PAGE_ROWS: Final = 4_000
# Maximum number of rows, and size of their vectors, that load.lua returns itself. More rows are read in further round
# trips, because a script makes an additional copy of all that it reads.
ROWS_FROM_SCRIPT: Final = 1_000
BYTES_FROM_SCRIPT: Final = 64 * 1024

# Maximum number of attempts to read a dump while the pet keeps changing. Further attempts read only new rows.
DUMP_ATTEMPTS: Final = 50

# Lifetime of the copy into which a large pet is written before it replaces the old keys. If the process dies, the copy
# expires after this time.
STAGED_MS: Final = 15 * 60 * 1000

# Number of attempts to commit arrivals to a cold pet, each after its vectors were put back in Redis. A second one is
# needed only if the vectors are moved out again immediately.
COMMITS_OF_COLD: Final = 3

# The reply of load.lua if the known state is the newest.
IS_NEWEST: Final = 1

# load.lua returns this in place of the rows if they must be read in pages, with the vectors from the cold store.
ARE_COLD: Final = 2

# On a Cluster, adding a pet to the set of pets takes another round trip, so only every n-th commit does it.
LISTED_EVERY: Final = 16

# Number of pets whose counts are read in one round trip, which occupies the server's only thread for about a
# millisecond.
TALLIES_PER_TRIP: Final = 500

# Number of fields of a hash, and of entries of a stream, that one command reads: less than a millisecond each.
FIELDS_PER_PAGE: Final = 500
ENTRIES_PER_PAGE: Final = 500
# Number of records of overwritten labels that one command reads; each can take 100 kB.
RECORDS_PER_PAGE: Final = 16

# Number of commands in the round trip that reads a page of vectors for an export, about a megabyte.
STEPS_PER_TRIP: Final = 8

# The fields of meta that a list of pets shows.
_SUMMARY: Final = ("name", "model", "revision", "n_media", "n_clusters", "n_noise")


class RedisPetStore:
    """A :class:`~sploot_cluster.store.port.PetStore` on a Redis server, Sentinel or Cluster."""

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        *,
        max_vector_bytes: int | None = None,
        cold: ColdPets | None = None,
    ) -> None:
        """Create a store on ``client``, which must return bytes, because vectors are not text.

        Args:
            max_vector_bytes: size limit of the vectors of one pet; None: ``MAX_VECTOR_BYTES``.
            cold: reads the vectors of cold pets; with None, cold pets cannot be read or changed.

        Raises:
            ValueError: the client has ``decode_responses=True``.
        """
        if client.get_encoder().decode_responses:
            raise ValueError("expected a client that returns bytes; create it with decode_responses=False")
        self._client = client
        self._names = NameIndex(client)
        self._listed = PetList(client)
        self._cold = cold or ColdPets(client, None)
        self._max_vector_bytes = MAX_VECTOR_BYTES if max_vector_bytes is None else max_vector_bytes
        scripts = files(__package__)

        def script(name: str) -> str:
            return scripts.joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")

        def checked(name: str) -> str:
            return script("whole") + script(name)

        # every arrival calls these two scripts
        calls = ShortCalls(client)
        self._load = calls.script(checked("load"))
        self._commit = calls.script(checked("commit"))
        self._items = client.register_script(checked("items"))
        self._check = client.register_script(checked("check"))
        self._keep = client.register_script(script("keep"))
        self._keep_preview = client.register_script(script("keep_preview"))
        self._quarantine = client.register_script(checked("quarantine"))
        self._begin_shadow = client.register_script(checked("begin_shadow"))
        self._add_to_shadow = client.register_script(checked("add_to_shadow"))
        self._end_shadow = client.register_script(checked("end_shadow"))
        self._replace = client.register_script(checked("replace"))
        self._copy_rows = client.register_script(script("copy_rows"))
        self._release = client.register_script(script("release"))

    @property
    def max_vector_bytes(self) -> int:
        return self._max_vector_bytes

    def load(self, pet: PetId, *, known: PetState | None = None) -> PetState:
        return self._read(pet, known or empty_state(pet), with_vectors=True)

    def load_many(
        self, known: Sequence[PetState], *, unchecked: Collection[PetId] = ()
    ) -> Sequence[PetState | ClusterError]:
        calls = [
            _load_call(state.pet, state, with_vectors=True, is_checked=state.pet not in unchecked) for state in known
        ]
        with translated(f"load {len(known)} pets"):
            answers, _ = self._load.many(calls)
        return [
            _or_error(partial(self._loaded, state.pet, state, answer, with_vectors=True, may_be_cold=False))
            for state, answer in zip(known, answers, strict=True)
        ]

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        check(state, change)
        self._check_room(state, change)
        pet, new_born = state.pet, ""
        with translated(f"commit a change of pet {pet}", pet):
            if not state.revision:
                new_born = token_hex(16)
            names = _names_of(state, change)
            (keys, args), new_commit = _commit_call(
                state, change, new_born=new_born, claimant=claimant, name=names[1] or ""
            )
            if not state.revision:
                self._listed.add(pet)
            if names[1] and names[0] != names[1]:
                self._names.add(pet, names[1])
            for _ in range(COMMITS_OF_COLD):
                answer, n_listed = self._commit.and_then(
                    "SADD", PETS, pet, if_short=state.revision % LISTED_EVERY > 0, keys=keys, args=args
                )
                if not _is_cold(answer):
                    break
                self._cold.bring_back(pet, known=(Place.of(answer[2]), state.vectors))
            if n_listed:
                self._list(pet)  # if SADD added nothing, the pet was already listed
            if names[0] != names[1]:
                self._names.settle(pet, former=names)
        return _committed(state, change, new_commit, answer)

    def commit_many(self, changes: Sequence[tuple[PetState, Change]]) -> Sequence[PetState | ClusterError]:
        for state, change in changes:
            check(state, change)
        done: list[PetState | ClusterError | None] = [
            None
            if self._commit.is_short and state.revision and change.correction is None and self._has_room(state, change)
            else _or_error(partial(self.commit, state, change))
            for state, change in changes
        ]
        together = [one for one, by_itself in zip(changes, done, strict=True) if by_itself is None]
        committed = iter(self._commit_together(together) if together else ())
        return [next(committed) if by_itself is None else by_itself for by_itself in done]

    def _has_room(self, state: PetState, change: Change) -> bool:
        n, dim = state.n_media + len(change.arrivals), change.dim or state.dim or 0
        return not change.arrivals or 4 * n * dim <= self._max_vector_bytes

    def _check_room(self, state: PetState, change: Change) -> None:
        # the script need not check this again, because the commit succeeds only on this state
        if not self._has_room(state, change):
            raise PetTooLarge(pet=state.pet, n_media=state.n_media)

    def _commit_together(self, changes: Sequence[tuple[PetState, Change]]) -> list[PetState | ClusterError]:
        """Write changes of pets that have data, in one round trip."""
        calls = [_commit_call(state, change) for state, change in changes]
        pets = [state.pet for state, _ in changes]
        with translated(f"commit changes of {len(changes)} pets"):
            answers, n_listed = self._commit.many([call for call, _ in calls], ("SADD", PETS, *pets))
            if n_listed:
                for pet in pets:
                    self._list(pet)  # some of these pets were not listed
        return [
            _or_error(partial(_committed, state, change, new_commit, answer))
            for (state, change), (_, new_commit), answer in zip(changes, calls, answers, strict=True)
        ]

    def release(self, pet: PetId, claimant: str) -> None:
        with translated(f"release pet {pet}", pet):
            self._release(keys=[PetKeys.of(pet).meta], args=[claimant])

    def keep_tree(self, pet: PetId, tree: KeptTree) -> None:
        keys = PetKeys.of(pet)
        with translated(f"keep the tree of pet {pet}", pet):
            self._keep(keys=[keys.meta, keys.tree], args=[tree.born, tree.n, tree.body])

    def kept_tree(self, pet: PetId) -> KeptTree | None:
        with translated(f"read the tree of pet {pet}", pet):
            born, n, body = cast("list[bytes | None]", self._client.hmget(PetKeys.of(pet).tree, ["born", "n", "body"]))
        return None if born is None or n is None or body is None else KeptTree(born.decode(), int(n), body)

    def keep_preview(self, preview: Preview) -> bool:
        keys = PetKeys.of(preview.pet)
        _, commit = _names(preview.state_version)
        for_ms = previews.KEPT_FOR // timedelta(milliseconds=1)
        with translated(f"keep a preview of pet {preview.pet}"):
            return bool(
                self._keep_preview(keys=[keys.meta, keys.preview], args=[commit, previews.dump(preview), for_ms])
            )

    def kept_preview(self, pet: PetId) -> Preview | None:
        with translated(f"read the preview of pet {pet}", pet):
            stored = cast("bytes | None", self._client.get(PetKeys.of(pet).preview))
        return None if stored is None else previews.load(stored, pet=pet)

    def view(self, pet: PetId) -> PetView:
        state = self._read(pet, empty_state(pet), with_vectors=False)
        return view_of(state, presentation_of(state))

    def items(self, pet: PetId, *, start: int, limit: int) -> ItemRows:
        with translated(f"list items of pet {pet}", pet):
            answer = _whole(pet, self._items(keys=PetKeys.of(pet), args=[start, limit]))
        if not answer:
            return ItemRows("", 0, 0, (), (), (), ())
        born, revision, n_media, media, labels, origins, times = answer
        with _readable(pet):
            return ItemRows(
                born.decode(),
                int(revision),
                int(n_media),
                [MediaId(item.decode()) for item in media],
                np.frombuffer(labels, dtype="<i4").tolist(),
                np.frombuffer(origins, dtype=np.uint8).tolist(),
                np.frombuffer(times, dtype="<i8").tolist(),
            )

    def revision(self, pet: PetId) -> int:
        with translated(f"read the revision of pet {pet}", pet):
            stored = cast("bytes | None", self._client.hget(PetKeys.of(pet).meta, "revision"))
            if stored is None:
                _whole(pet, self._check(keys=PetKeys.of(pet)))
        with _readable(pet):
            return int(stored or 0)

    def moved_at(self, pet: PetId) -> int:
        with translated(f"read when media of pet {pet} were last moved", pet):
            return int(cast("bytes | None", self._client.hget(PetKeys.of(pet).meta, "relabelled_at")) or 0)

    def history(self, pet: PetId, *, limit: int = 100, before: int | None = None) -> Sequence[HistoryEntry]:
        newest = "+" if before is None else f"({before}-0"
        with translated(f"read the history of pet {pet}", pet):
            _whole(pet, self._check(keys=PetKeys.of(pet)))
            entries = self._client.xrevrange(PetKeys.of(pet).history, max=newest, count=limit)
        with _readable(pet):
            return [load_entry(id_, fields) for id_, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)]

    def quarantine(self, state: PetState, media: MediaId, why: Quarantined) -> bool:
        pet, (born, _) = state.pet, _names(state.version)
        with translated(f"quarantine an item of pet {pet}", pet):
            answer = self._quarantine(keys=PetKeys.of(pet), args=[born, media, dump_quarantined(why), MAX_QUARANTINED])
        return bool(_whole(pet, answer))

    def tally(self, pet: PetId) -> PetTally:
        keys = PetKeys.of(pet)
        with translated(f"count the media of pet {pet}", pet):
            tally = _tally(_whole(pet, self._check(keys=keys)))
            stored = cast("dict[bytes, bytes]", self._client.hgetall(keys.quarantine))
        with _readable(pet):
            quarantine = {MediaId(item.decode()): load_quarantined(facts) for item, facts in stored.items()}
        return PetTally(tally, quarantine)

    def totals(self, pets: Sequence[PetId] | None = None) -> Totals:
        tally, unconserved, damaged, fullest, cold = Tally(), [], [], (0, PetId(0)), [0, 0]
        n_bytes = 0
        pets = self.pets() if pets is None else pets
        for start in range(0, len(pets), TALLIES_PER_TRIP):
            batch = pets[start : start + TALLIES_PER_TRIP]
            with translated("count the media of all pets"):
                answers = self._check_all(batch)
            for pet, answer in zip(batch, answers, strict=True):
                try:
                    with translated(f"count the media of pet {pet}", pet):
                        if isinstance(answer, redis.ResponseError):
                            raise answer
                    of_pet = _tally(_whole(pet, answer))
                    of_vectors = _n_vector_bytes(answer)
                    fullest, n_bytes = max(fullest, (of_vectors, pet)), n_bytes + of_vectors
                    if answer and answer[8] is not None:
                        cold = [cold[0] + 1, cold[1] + of_vectors]
                except UnreadablePet as problem:
                    damaged.append(problem)
                    continue
                tally += of_pet
                if not of_pet.is_conserved:
                    unconserved.append(pet)
        unreadable = (problem.pet for problem in damaged)
        return Totals(
            tally,
            len(pets),
            tuple(sorted([*unconserved, *map(PetId, unreadable)])),
            tuple(damaged),
            fullest=fullest[1] or None,
            fullness=fullest[0] / self.max_vector_bytes,
            vector_bytes=n_bytes,
            n_cold=cold[0],
            cold_bytes=cold[1],
        )

    def has(self, pet: PetId, media: MediaId) -> bool:
        keys = PetKeys.of(pet)
        with translated(f"look for an item of pet {pet}", pet):
            _whole(pet, self._check(keys=keys))
            return any(self._client.hexists(key, media) for key in (keys.rows, keys.quarantine))

    def vector_bytes(self, pet: PetId) -> int:
        with translated(f"read the size of pet {pet}", pet):
            return _n_vector_bytes(_whole(pet, self._check(keys=PetKeys.of(pet))))

    def _check_all(self, pets: Sequence[PetId]) -> list[Any]:
        """Return, for each pet, the reply of check.lua or Redis's error, in one round trip to each server."""
        pipe = self._client.pipeline(transaction=False)
        for keys in map(PetKeys.of, pets):
            if isinstance(self._client, redis.RedisCluster):
                # cluster pipelines support neither EVALSHA nor the method eval
                pipe.execute_command("EVAL", self._check.script, len(keys), *keys)
            else:
                self._check(keys=keys, client=pipe)
        return cast("list[Any]", pipe.execute(raise_on_error=False))

    def past(self, pet: PetId) -> Past:
        keys = PetKeys.of(pet)
        while True:
            state = self._read(pet, empty_state(pet), with_vectors=False)
            with translated(f"read the past of pet {pet}", pet):
                arrived = cast("bytes | None", self._client.get(keys.arrived)) or b""
                entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", self._client.xrevrange(keys.overwritten))
                born, since = cast("list[bytes | None]", self._client.hmget(keys.meta, "born", "past_from"))
            if (born or b"").decode() == _names(state.version)[0]:
                break  # the columns match; otherwise, items were deleted between the two reads
        column = _arrived(arrived, state.n_media)
        with _readable(pet):
            overwritten = [load_overwritten(revision_of(id_), fields[b"was"]) for id_, fields in entries]
        # leave out the records of commits made after the state was read
        records = [one for one in overwritten if one.revision <= state.revision]
        return Past(state, column, records, since=int(since or 0))

    def dump(self, pet: PetId) -> PetDump:
        return self._dump(pet, with_vectors=True)

    def outline(self, pet: PetId) -> PetDump:
        return self._dump(pet, with_vectors=False)

    def vector_pages(self, outline: PetDump) -> Iterator[bytes]:
        state = outline.state
        keys, n, n_bytes = PetKeys.of(state.pet), state.n_media, 4 * (state.dim or 1)
        step = max(1, min(PAGE_ROWS, STEP_BYTES // n_bytes))
        per_trip = step * STEPS_PER_TRIP
        for start in range(0, n, per_trip):
            end = min(start + per_trip, n)
            with translated(f"read the vectors of pet {state.pet}", state.pet):
                pipe = self._client.pipeline(transaction=False)
                for first in range(start, end, step):
                    pipe.lrange(keys.vectors, first, min(first + step, end) - 1)
                pipe.hmget(keys.meta, "born", "cold")
                *pages, (born, cold) = cast("list[Any]", pipe.execute())
            if born is None or born.decode() != state.born:
                raise RevisionConflict(pet=state.pet, expected=state.revision, current=self.revision(state.pet))
            page = b"".join(chain.from_iterable(pages))
            if cold is not None and len(page) != (end - start) * n_bytes:
                # this works even if the vectors are put back meanwhile, because their objects remain for a while
                yield from self._cold.pages(state.pet, Place.of(cold), start=start, end=n, n_bytes=n_bytes)
                return
            if len(page) != (end - start) * n_bytes:
                raise UnreadablePet(pet=state.pet, problem=f"a vector does not have {state.dim} dimensions")
            yield page

    def shadow_pages(self, outline: PetDump) -> Iterator[tuple[Sequence[MediaId], bytes]]:
        state, shadow = outline.state, outline.shadow
        if shadow is None:
            return
        keys, begun_at = PetKeys.of(state.pet), shadow.begun_at.isoformat().encode()
        step = max(1, min(FIELDS_PER_PAGE, STEP_BYTES // (4 * shadow.dim)))
        per_trip, items = step * STEPS_PER_TRIP, sorted({*state.media, *outline.quarantine})
        for start in range(0, len(items), per_trip):
            some = items[start : start + per_trip]
            with translated(f"read the shadow of pet {state.pet}", state.pet):
                pipe = self._client.pipeline(transaction=False)
                for first in range(0, len(some), step):
                    pipe.hmget(keys.shadow_vectors, some[first : first + step])
                pipe.hmget(keys.shadow, "begun_at", "model")
                *pages, (still_begun_at, model) = cast("list[Any]", pipe.execute())
            if still_begun_at != begun_at or model != shadow.model.encode():
                raise RevisionConflict(pet=state.pet, expected=state.revision, current=self.revision(state.pet))
            found = [one for one in zip(some, chain.from_iterable(pages), strict=True) if one[1] is not None]
            yield [item for item, _ in found], b"".join(vector for _, vector in found)

    def _dump(self, pet: PetId, *, with_vectors: bool) -> PetDump:
        state = empty_state(pet)
        for _ in range(DUMP_ATTEMPTS):
            state = self._read(pet, state if with_vectors else empty_state(pet), with_vectors=with_vectors)
            if not state.revision:
                raise UnknownPet(pet=pet)
            with _readable(pet):
                if (dump := self._dump_of(state, with_vectors=with_vectors)) is not None:
                    return dump
        raise RevisionConflict(pet=pet, expected=state.revision, current=self.revision(pet))

    def _dump_of(self, state: PetState, *, with_vectors: bool) -> PetDump | None:
        """Return all data of a pet whose newest state is ``state``, or None if the pet has changed since."""
        keys = PetKeys.of(state.pet)
        with translated(f"read all of pet {state.pet}", state.pet):
            quarantine = dict(self._fields(keys.quarantine))
            shadow = cast("dict[bytes, bytes]", self._client.hgetall(keys.shadow))
            shadow_vectors = dict(self._fields(keys.shadow_vectors)) if shadow and with_vectors else {}
            history = [*self._entries(keys.history)]
            overwritten = [*self._entries(keys.overwritten, per_page=RECORDS_PER_PAGE)]
            arrived = cast("bytes | None", self._client.get(keys.arrived)) or b""
            # read last, to detect whether the pet has changed: a commit changes its version. The quarantine and the
            # shadow change without a commit too, but then they only grow, which changes their counts
            meta = cast("dict[bytes, bytes]", self._client.hgetall(keys.meta))
        n_shadow = len(shadow_vectors) if with_vectors else int(meta.get(b"n_shadow", 0))
        counts = len(quarantine), len(history), len(overwritten), n_shadow
        names = (b"n_quarantined", b"n_history", b"n_overwritten", b"n_shadow")
        expected = tuple(int(meta.get(name, 0)) for name in names)
        if _version(meta) != state.version or counts != expected:
            with translated(f"check pet {state.pet}", state.pet):
                _whole(state.pet, self._check(keys=keys))
            return None
        return PetDump(
            state,
            _arrived(arrived, state.n_media),
            tuple(load_overwritten(revision_of(id_), fields[b"was"]) for id_, fields in overwritten),
            past_from=int(meta[b"past_from"]),
            history=tuple(load_entry(id_, fields) for id_, fields in history),
            quarantine={MediaId(item.decode()): load_quarantined(why) for item, why in quarantine.items()},
            ingested=int(meta[b"ingested"]),
            overflowed=int(meta[b"n_overflowed"]),
            shadow=load_shadow(shadow, shadow_vectors, n_vectors=n_shadow),
        )

    def _fields(self, key: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield the fields and values of a hash in pages; a field that exists throughout is yielded at least once."""
        cursor = 0
        while True:
            cursor, page = cast(
                "tuple[int, dict[bytes, bytes]]", self._client.hscan(key, cursor, count=FIELDS_PER_PAGE)
            )
            yield from page.items()
            if not cursor:
                return

    def _entries(self, key: str, *, per_page: int = ENTRIES_PER_PAGE) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
        """Yield the entries of a stream, page by page, oldest first."""
        after = "-"
        while page := cast(
            "list[tuple[bytes, dict[bytes, bytes]]]", self._client.xrange(key, min=after, count=per_page)
        ):
            yield from page
            if len(page) < per_page:
                return
            after = f"({page[-1][0].decode()}"

    def replace(self, before: PetDump | None, after: PetDump, *, claimant: str | None = None) -> PetState:
        pet, born, commit = after.state.pet, token_hex(16), token_hex(16)
        keys, state = PetKeys.of(pet), empty_state(pet) if before is None else before.state
        args: list[Any] = [*_names(state.version), commit, claimant or "", CLAIM_MS, *_side_state(before), ""]
        with translated(f"replace pet {pet}", pet):
            self._cold.will_replace(pet)
            if before is None:
                self._listed.add(pet)
            with self._staged(keys, commands_of(keys, after, born=born, commit=commit)) as (staged, commands):
                answer = self._replace(keys=[*keys, *staged], args=[*args, *flat(keys, commands)])
            if self._client.sadd(PETS, pet):
                self._list(pet)
            names = pet_name_of(state.ledger), pet_name_of(after.state.ledger)
            if any(names):
                self._names.settle(pet, former=names)
        _check_replaced(state, answer)
        return replace(after.state, pet=pet, version=f"{born}.{commit}")

    @contextmanager
    def removing(self, pet: PetId, media: Collection[MediaId]) -> Iterator[Removal]:
        removal = RedisRemoval(
            self._client,
            pet,
            media,
            outline=partial(self.outline, pet),
            copy_rows=self._copy_rows,
            bring_back=partial(self._cold.bring_back, pet),
            replace=self._put_in_place,
        )
        try:
            with translated(f"delete items of pet {pet}", pet):
                yield removal
        finally:
            removal.discard()

    def _put_in_place(self, before: PetDump, after: PetDump, removal: RedisRemoval, claimant: str | None) -> None:
        """Write the keys that the removal does not copy, and replace the pet with its copy."""
        keys, state, born, commit = PetKeys.of(before.state.pet), before.state, token_hex(16), token_hex(16)
        others, media = removal.others, removal.media
        self._client.unlink(*others.values())  # keys of an attempt that lost a race
        commands = commands_of(keys, after, born=born, commit=commit)
        self._write(others, _steps(command for command in commands if command[1] in others))
        answer = self._replace(
            keys=[*keys, *removal.staged],
            args=[*_names(state.version), commit, claimant or "", CLAIM_MS, *_side_state(before), len(media), *media],
        )
        if self._client.sadd(PETS, state.pet):
            self._list(state.pet)
        _check_replaced(state, answer)

    @contextmanager
    def _staged(self, keys: PetKeys, commands: Iterator[Command]) -> Iterator[tuple[Sequence[str], Sequence[Command]]]:
        """Write a large pet into temporary keys, step by step, so that no single command takes long.

        Yields:
            the temporary keys, and no commands; or, for a pet that one script call can write, no keys and the commands
            that write it. Temporary keys that remain at the end of the block are deleted.
        """
        first = next(_steps(commands), [])
        rest = next(commands, None)
        if rest is None:
            yield (), first
            return
        name = token_hex(8)
        staged = PetKeys(*(f"{key}:new:{name}" for key in keys))
        try:
            self._write(dict(zip(keys, staged, strict=True)), chain([first], _steps(chain([rest], commands))))
            yield staged, ()
        finally:
            with suppress(*REDIS_ERRORS):  # they expire
                self._client.unlink(*staged)

    def _write(self, place: Mapping[str, str], steps: Iterable[list[Command]]) -> None:
        """Run the commands that write a pet on temporary keys, which expire; ``place`` maps the pet's keys to these."""
        expiring: set[str] = set()
        for step in steps:
            pipe = self._client.pipeline(transaction=False)
            for command, key, arguments in step:
                pipe.execute_command(command, place[key], *arguments)
                if key not in expiring:
                    pipe.pexpire(place[key], STAGED_MS)
                    expiring.add(key)
            pipe.execute()

    def delete(self, pet: PetId) -> bool:
        keys = PetKeys.of(pet)
        with translated(f"delete pet {pet}", pet):
            (name,) = self._names.names_of([pet])
            place = self._cold.will_delete(pet)
            n_deleted = self._client.unlink(*keys)  # UNLINK, because Redis then frees large values in another thread
            self._list(pet)
            self._cold.forget(pet, place)
            if name:
                self._names.settle(pet, former=[name])
        return n_deleted > 0

    def _list(self, pet: PetId) -> None:
        """Add the pet to the set of pets if it has data, and remove it otherwise.

        Call this after creating or deleting a pet. A pet that was not listed may be missing from the index of names,
        too. The set is in another slot, so no script can read the pet and write the set atomically. Instead, a loop
        repeats this until the pet was neither created nor deleted since the last write.
        """
        keys, existed = PetKeys.of(pet), None
        # all keys: a pet without meta is damaged, and must not leave the set before it is repaired or deleted
        while (exists := bool(self._client.exists(*keys))) != existed:
            if exists:
                self._listed.add(pet)
                self._names.settle(pet)
            else:
                self._listed.remove(pet)
            existed = exists

    def shadow(self, pet: PetId) -> Shadow | None:
        keys = PetKeys.of(pet)
        with translated(f"read the shadow of pet {pet}", pet):
            facts = cast("dict[bytes, bytes]", self._client.hgetall(keys.shadow))
            n_vectors = self._client.hlen(keys.shadow_vectors) if facts else 0
            if not facts:
                _whole(pet, self._check(keys=keys))
        with _readable(pet):
            shadow = load_shadow(facts, {})
        return None if shadow is None else replace(shadow, n_vectors=n_vectors)

    def only_in_shadow(self, pet: PetId) -> Sequence[MediaId]:
        keys = PetKeys.of(pet)
        with translated(f"list what only the shadow of pet {pet} has", pet):
            _whole(pet, self._check(keys=keys))
            own = set(cast("list[bytes]", self._client.lrange(keys.media, 0, -1)))
            in_shadow = cast("list[bytes]", self._client.hkeys(keys.shadow_vectors))
        return sorted(MediaId(item.decode()) for item in in_shadow if item not in own)

    def begin_shadow(self, state: PetState, shadow: Shadow) -> bool:
        pet, (born, _) = state.pet, _names(state.version)
        with translated(f"open a shadow of pet {pet}", pet):
            answer = self._begin_shadow(keys=PetKeys.of(pet), args=[born, *dump_shadow(shadow)])
        return bool(_whole(pet, answer))

    def add_to_shadow(self, state: PetState, media: MediaId, vector: FloatVector, why: Quarantined) -> bool:
        pet, (born, _) = state.pet, _names(state.version)
        content = vector.astype("<f4", copy=False).tobytes()
        with translated(f"put an item into the shadow of pet {pet}", pet):
            answer = self._add_to_shadow(
                keys=PetKeys.of(pet), args=[born, why.model, media, content, dump_quarantined(why)]
            )
        return bool(_whole(pet, answer))

    def end_shadow(self, pet: PetId) -> bool:
        with translated(f"close the shadow of pet {pet}", pet):
            answer = self._end_shadow(keys=PetKeys.of(pet))
        return bool(_whole(pet, answer))

    def summaries(self, pets: Sequence[PetId]) -> Sequence[PetSummary]:
        found: list[PetSummary] = []
        for start in range(0, len(pets), TALLIES_PER_TRIP):
            batch = pets[start : start + TALLIES_PER_TRIP]
            pipe = self._client.pipeline(transaction=False)
            for pet in batch:
                pipe.hmget(PetKeys.of(pet).meta, *_SUMMARY)
            with translated("list the pets"):
                answers = cast("list[list[bytes | None]]", pipe.execute())
            for pet, (name, model, *numbers) in zip(batch, answers, strict=True):
                revision, n_media, n_clusters, n_noise = (int(number or 0) for number in numbers)
                if revision:
                    given, own = (None if text is None else text.decode(errors="replace") for text in (name, model))
                    found.append(PetSummary(pet, given, revision, own, n_media, n_clusters, n_noise))
        return found

    def find_by_name(self, beginning: str, *, limit: int) -> Sequence[PetId]:
        with translated("find pets by name"):
            return self._names.find(beginning, limit=limit)

    def not_found_by_name(self, pets: Sequence[PetId]) -> Sequence[PetId]:
        """Return the pets that a search for their name does not find, because the index of names is damaged."""
        with translated("look for the names of pets"):
            return list(self._names.missing(pets))

    def pets_page(self, cursor: int) -> tuple[int, Sequence[PetId]]:
        with translated("list the pets"):
            return self._listed.scan(cursor)

    def pets_in_order(self, last: PetId | None, *, rising: bool, limit: int) -> tuple[int, Sequence[PetId]]:
        with translated("list the pets"):
            return self._listed.in_order(last, rising=rising, limit=limit)

    def pets(self) -> Sequence[PetId]:
        with translated("list the pets"):
            return sorted(self._listed.all())

    def _read(self, pet: PetId, known: PetState, *, with_vectors: bool) -> PetState:
        keys, args = _load_call(pet, known, with_vectors=with_vectors)
        with translated(f"load pet {pet}", pet):
            answer = self._load(keys=keys, args=args)
        return self._loaded(pet, known, answer, with_vectors=with_vectors)

    def _loaded(
        self, pet: PetId, known: PetState, answer: Any, *, with_vectors: bool, may_be_cold: bool = True
    ) -> PetState:
        """Return the state from the reply of load.lua; read the rows that it did not return.

        Raises:
            PetIsCold: the vectors are in the cold store, and ``may_be_cold`` is false.
        """
        doing = f"load pet {pet}"
        while True:
            with translated(doing, pet):
                if isinstance(answer, redis.ResponseError):
                    raise answer
            if answer == IS_NEWEST:
                return known
            if not _whole(pet, answer):
                return empty_state(pet)
            loaded = _Loaded(*answer)
            is_cold = loaded.are_rows_here == ARE_COLD
            if is_cold and not may_be_cold:
                raise PetIsCold(pet=pet)
            with translated(doing, pet), _readable(pet):
                meta = {name.decode(): value.decode() for name, value in pairs_of(loaded.meta)}
                if loaded.are_rows_here and not is_cold:
                    return _state(pet, known, loaded, meta, _rows_here(loaded, meta, with_vectors=with_vectors))
                rows = self._pages(pet, loaded.from_row, meta, with_vectors=with_vectors and not is_cold)
                if rows is not None and is_cold:
                    rows = rows._replace(vectors=self._cold_rows(pet, loaded.from_row, meta))
                if rows is not None:
                    return _state(pet, known, loaded, meta, rows)
                # another process has replaced the pet since, e.g. to delete an item, or moved its vectors
                keys, args = _load_call(pet, known, with_vectors=with_vectors)
                answer = self._load(keys=keys, args=args)

    def _pages(self, pet: PetId, from_row: int, meta: Mapping[str, str], *, with_vectors: bool) -> _NewRows | None:
        """Return the rows from ``from_row`` on, read in pages.

        Returns None if the pet was replaced or recreated since, or its vectors were moved out of Redis.
        """
        keys, n, dim = PetKeys.of(pet), int(meta["n_media"]), int(meta["dim"])
        media: list[MediaId] = []
        times = np.empty(n - from_row, dtype=np.int64)
        step = max(1, min(PAGE_ROWS, PAGE_BYTES // (4 * dim))) if with_vectors else PAGE_ROWS
        vectors = np.empty((n - from_row if with_vectors and step < n - from_row else 0, dim), dtype=np.float32)
        for start in range(from_row, n, step):
            end = min(start + step, n)
            pipe = self._client.pipeline(transaction=False)
            pipe.lrange(keys.media, start, end - 1)
            pipe.getrange(keys.occurred_at, 8 * start, 8 * end - 1)
            if with_vectors:
                pipe.lrange(keys.vectors, start, end - 1)
            # read after the rows, because rows do not change while ``born`` stays the same
            pipe.hmget(keys.meta, "born", "cold")
            ids, stated, *stored, (born, cold) = pipe.execute()
            if born is None or born.decode() != meta["born"] or (cold is not None and stored == [[]]):
                return None
            place = slice(start - from_row, end - from_row)
            media += _media_of(ids)
            times[place] = np.frombuffer(stated, dtype="<i8")
            if with_vectors:
                page = _matrix(stored[0], dim)
                if len(page) == n - from_row:
                    vectors = page
                else:
                    vectors[place] = page
        return _NewRows(media, vectors, times)

    def _cold_rows(self, pet: PetId, from_row: int, meta: Mapping[str, str]) -> FloatMatrix:
        """Return the vectors of a cold pet from row ``from_row`` on."""
        n, dim, place = int(meta["n_media"]), int(meta["dim"]), Place.of(meta["cold"].encode())
        vectors, at = np.empty((n - from_row, dim), dtype=np.float32), 0
        for page in self._cold.pages(pet, place, start=from_row, end=n, n_bytes=4 * dim):
            rows = np.frombuffer(page, dtype="<f4").reshape(-1, dim)
            vectors[at : at + len(rows)] = rows
            at += len(rows)
        return vectors


def _load_call(pet: PetId, known: PetState, *, with_vectors: bool, is_checked: bool = True) -> Call:
    """Return the keys and arguments of load.lua."""
    last = known.media[-1] if known.n_media else ""
    counts = (known.revision, known.n_media, len(known.ledger))
    most = (ROWS_FROM_SCRIPT, BYTES_FROM_SCRIPT if with_vectors else 0)
    return PetKeys.of(pet), [*_names(known.version), *counts, last, *most, int(not is_checked)]


def _commit_call(
    state: PetState, change: Change, *, new_born: str = "", claimant: str | None = None, name: str = ""
) -> tuple[Call, str]:
    """Return the keys and arguments of commit.lua, and the name of the new commit.

    Args:
        name: the pet's name after the change, empty if it has none or the change has no correction.
    """
    new_commit = token_hex(16)
    args = [*_names(state.version), state.revision, new_born, new_commit, claimant or "", CLAIM_MS]
    return (PetKeys.of(state.pet), [*args, *_written(state, change, name)]), new_commit


def _committed(state: PetState, change: Change, new_commit: str, answer: Any) -> PetState:
    """Return the state after a commit, or raise the error that the reply of commit.lua stands for."""
    pet = state.pet
    if isinstance(answer, redis.ResponseError):
        with translated(f"commit a change of pet {pet}", pet):
            raise answer
    if _is_cold(answer):
        raise PetIsCold(pet=pet)
    match _whole(pet, answer):
        case [b"OK", _, born]:
            return follow(state, change, version=f"{born.decode()}.{new_commit}")
        case [b"CLAIMED", revision, for_ms]:
            raise PetClaimed(pet=pet, revision=revision, for_ms=for_ms)
        case [b"UNCONSERVED", _, ingested, quarantined]:
            clustered, noise, dismissed = counts_after(state, change)
            raise NotConserved(pet=pet, problem=str(Tally(ingested, clustered, noise, quarantined, dismissed)))
        case [_, revision]:
            raise RevisionConflict(pet=pet, expected=state.revision, current=revision)
    raise AssertionError(f"commit.lua answered {answer!r}")


def _is_cold(answer: Any) -> bool:
    """Return whether commit.lua wrote nothing because the vectors of the pet are in the cold store."""
    return isinstance(answer, list) and answer[0] == b"COLD"


def _or_error(result: Callable[[], R]) -> R | ClusterError:
    """Return the result of the call, or the ``ClusterError`` that it raises."""
    try:
        return result()
    except ClusterError as refused:
        return refused


def _check_replaced(state: PetState, answer: Any) -> None:
    """Raise the error that the reply of replace.lua stands for, if any; ``state`` is the one to replace."""
    if _whole(state.pet, answer)[0] != b"OK":
        raise RevisionConflict(pet=state.pet, expected=state.revision, current=answer[1])


def _version(meta: Mapping[bytes, bytes]) -> str:
    return f"{meta.get(b'born', b'').decode()}.{meta.get(b'commit', b'').decode()}"


def _names(version: str) -> tuple[str, str]:
    """Return the two parts of ``version``: the names of the pet's first commit and of its last."""
    born, _, commit = version.partition(".")
    return born, commit


def _written(state: PetState, change: Change, name: str) -> list[Any]:
    """Return the part of the ARGV of commit.lua that contains the change."""
    arrivals, relabelling = change.arrivals, change.relabelling
    was = overwritten_by(state, change)
    labels = b"".join([int(arrival.label).to_bytes(4, "little", signed=True) for arrival in arrivals])
    origins = bytes([arrival.origin for arrival in arrivals])
    moves = was is not None and len(was.rows) > 0
    if relabelling is not None and moves:
        labels = relabelling.labels.astype("<i4").tobytes() + labels
        origins = relabelling.origins.astype(np.uint8).tobytes() + origins
    arrived = (state.revision + 1).to_bytes(4, "little") * len(arrivals)
    occurred_at = b"".join([arrival.occurred_at_ms.to_bytes(8, "little", signed=True) for arrival in arrivals])
    correction = "" if change.correction is None else ledger.dumps(change.correction)
    # only a change with a kind has an entry in the history
    entry = ("", "", "") if change.kind == "arrival" else (change.kind, change.by, as_json(change.summary))
    media = [arrival.media for arrival in arrivals]
    vectors = [arrival.vector.astype("<f4", copy=False).tobytes() for arrival in arrivals]
    return [
        *(FORMAT, change.model or "", change.dim or ""),
        *(change.next_cluster, change.n_at_recluster, change.noise_arrivals),
        *(int(moves), labels, origins),
        *(arrived, occurred_at, b"" if was is None else dump_overwritten(was), KEPT),
        *counts_after(state, change),
        *(correction, name),
        *entry,
        *(len(media), *media, len(vectors), *vectors),
        *_written_cards(change),
    ]


def _written_cards(change: Change) -> list[Any]:
    """Return the lists of cards and aliases, each after its length."""
    if not (change.clusters or change.aliases):
        return [0, 0, 0, 0]
    cards = [item for id_, card in change.clusters.items() if card is not None for item in (id_, dump_card(card))]
    no_cards = [id_ for id_, card in change.clusters.items() if card is None]
    aliases = [item for id_, into in change.aliases.items() if into is not None for item in (id_, into)]
    no_aliases = [id_ for id_, into in change.aliases.items() if into is None]
    return [part for items in (cards, no_cards, aliases, no_aliases) for part in (len(items), *items)]


def _names_of(state: PetState, change: Change) -> tuple[str | None, str | None]:
    """Return the names of the pet before and after a change."""
    if change.correction is None:  # always the case for arrivals, which must not spend time on names
        return None, None
    return pet_name_of(state.ledger), pet_name_of((*state.ledger, change.correction))


def _arrived(stored: bytes, n: int) -> npt.NDArray[np.uint32]:
    """Return the (n,) revisions at which the first n rows arrived; ``stored`` may include rows that arrived later."""
    return np.frombuffer(stored, dtype="<u4", count=n).astype(np.uint32)


def _steps(commands: Iterator[Command]) -> Iterator[list[Command]]:
    """Yield the commands in groups, each small enough to be sent in one call."""
    step: list[Command] = []
    n_arguments = n_bytes = 0
    for command in commands:
        step.append(command)
        n_arguments += len(command[2])
        n_bytes += sum(len(argument) for argument in command[2] if isinstance(argument, bytes))
        if n_arguments >= MOST_ARGUMENTS or n_bytes >= MOST_BYTES:
            yield step
            step, n_arguments, n_bytes = [], 0, 0
    if step:
        yield step


def _tally(counts: Sequence[bytes]) -> Tally:
    """Return the tally from the reply of check.lua."""
    return Tally(*map(int, counts[:6]))


def _n_vector_bytes(counts: Sequence[bytes | None]) -> int:
    """Return the size of a pet's vectors from the reply of check.lua."""
    n_media, dim = counts[6:8] or (None, None)
    return 4 * int(n_media or 0) * int(dim or 0)


def _side_state(before: PetDump | None) -> tuple[str, int, int]:
    """Return the values that replace.lua compares, in addition to the name of the commit.

    These are the time at which the shadow was opened, its number of vectors, and the size of the quarantine.
    """
    if before is None:
        return "", 0, 0
    shadow = before.shadow
    begun_at, n_vectors = ("", 0) if shadow is None else (shadow.begun_at.isoformat(), shadow.n_vectors)
    return begun_at, n_vectors, len(before.quarantine)


class _Loaded(NamedTuple):
    """The reply of load.lua; the header of the script documents the items."""

    meta: list[bytes]
    from_row: int
    are_rows_here: int
    media: list[bytes]
    vectors: list[bytes]
    occurred_at: bytes
    labels_from: int
    labels: bytes
    origins: bytes
    clusters: list[bytes] | None
    aliases: list[bytes] | None
    from_correction: int
    ledger: list[bytes]


class _NewRows(NamedTuple):
    """New rows of a pet: ids, vectors of shape (n, dim), or (0, dim) if they were not read, and times."""

    media: list[MediaId]
    vectors: FloatMatrix
    occurred_at_ms: TimeVector


def _rows_here(loaded: _Loaded, meta: Mapping[str, str], *, with_vectors: bool) -> _NewRows:
    """Return the rows that the reply of load.lua contains."""
    times = np.frombuffer(loaded.occurred_at, dtype="<i8").astype(np.int64, copy=False)
    vectors = np.empty((0, 0), dtype=np.float32)
    if with_vectors and "dim" in meta:
        vectors = _matrix(loaded.vectors, int(meta["dim"]))
    return _NewRows(_media_of(loaded.media), vectors, times)


def _media_of(stored: Sequence[bytes]) -> list[MediaId]:
    return [MediaId(intern(item.decode())) for item in stored]  # corrections with these ids share the strings


def _matrix(rows: Sequence[bytes], dim: int) -> FloatMatrix:
    """Return vectors as one matrix.

    Raises:
        ValueError: one of them has another dimension.
    """
    if rows and {*map(len, rows)} != {4 * dim}:
        raise ValueError(f"a vector does not have {dim} dimensions")
    content = rows[0] if len(rows) == 1 else b"".join(rows)
    vectors: FloatMatrix = np.frombuffer(content, dtype="<f4").astype(np.float32, copy=False).reshape(len(rows), dim)
    return vectors


def _state(pet: PetId, known: PetState, loaded: _Loaded, meta: Mapping[str, str], new: _NewRows) -> PetState:
    """Return the loaded state. If ``known`` is an ancestor, the two share memory.

    Raises:
        ValueError, KeyError: the columns are inconsistent.
    """
    version = f"{meta['born']}.{meta['commit']}"
    media = new.media
    dim = int(meta["dim"]) if "dim" in meta else None
    if loaded.from_row:
        rows = PetRows.behind(known).extended(loaded.from_row, media, new.vectors, new.occurred_at_ms)
    else:
        rows = PetRows(media, new.vectors, new.occurred_at_ms)
    n = loaded.from_row + len(media)
    labels: LabelVector = _column(known.labels[: loaded.labels_from], np.frombuffer(loaded.labels, dtype="<i4"))
    origins: OriginVector = _column(known.origins[: loaded.labels_from], np.frombuffer(loaded.origins, dtype=np.uint8))
    clusters, aliases = known.clusters, known.aliases
    if loaded.clusters is not None and loaded.aliases is not None:
        clusters = {
            ClusterId(int(id_)): load_card(ClusterId(int(id_)), card) for id_, card in pairs_of(loaded.clusters)
        }
        aliases = {ClusterId(int(id_)): ClusterId(int(into)) for id_, into in pairs_of(loaded.aliases)}
    if not loaded.from_row and (unknown := set(np.unique(labels).tolist()) - {NOISE} - clusters.keys()):
        raise ValueError(f"labels name cluster {min(unknown)}, which has no card")
    return PetState(
        pet=pet,
        revision=int(meta["revision"]),
        version=version,
        model=meta.get("model"),
        dim=dim,
        media=rows.media(n),
        rows=rows.index(n),
        vectors=rows.vectors(n),
        occurred_at_ms=rows.occurred_at_ms(n),
        labels=labels,
        origins=origins,
        clusters=clusters,
        aliases=aliases,
        ledger=_ledger(pet, known, loaded),
        next_cluster=ClusterId(int(meta["next_cluster"])),
        n_at_recluster=int(meta["n_at_recluster"]),
        noise_arrivals=int(meta["noise_arrivals"]),
        relabelled_at=int(meta["relabelled_at"]),
    )


def _ledger(pet: PetId, known: PetState, loaded: _Loaded) -> tuple[Correction, ...]:
    """Return the ledger: the same object as in ``known`` if it is unchanged."""
    if not loaded.ledger and loaded.from_correction == len(known.ledger):
        return known.ledger
    return (*known.ledger[: loaded.from_correction], *(ledger.loads(text, pet=pet) for text in loaded.ledger))


def _column(known: npt.NDArray[T], new: npt.NDArray[Any]) -> npt.NDArray[T]:
    column = np.concatenate([known, new.astype(known.dtype, copy=False)])
    column.flags.writeable = False
    return column


def _whole(pet: PetId, answer: Any) -> Any:
    """Return the reply of a script.

    Raises:
        UnreadablePet: the script reported that the pet is damaged (whole.lua).
    """
    match answer:
        case [b"DAMAGED", key, expected, found]:
            raise UnreadablePet.of_key(
                pet=pet, key=key.decode(), expected=expected.decode(), found=found.decode(errors="replace")
            )
    return answer


@contextmanager
def _readable(pet: PetId) -> Iterator[None]:
    """Translate decoding errors to ``UnreadablePet``."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise UnreadablePet(pet=pet, problem=f"{type(exc).__name__}: {exc}") from exc


@contextmanager
def translated(doing: str, pet: PetId | None = None) -> Iterator[None]:
    """Translate errors from Redis and redis-py to ``StoreUnavailable``; ``doing`` names the operation that failed.

    Args:
        pet: the pet whose keys are read or written. If one of them has another type, ``UnreadablePet`` is raised.
    """
    try:
        yield
    except REDIS_ERRORS as exc:
        if pet is not None and "WRONGTYPE" in str(exc):
            raise UnreadablePet(pet=pet, problem="one of its keys has another type than expected") from exc
        raise StoreUnavailable(doing=doing, problem=f"{type(exc).__name__}: {exc}", refusal=refusal_of(exc)) from exc
