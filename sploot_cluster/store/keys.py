"""The schema of a pet in Redis.

All keys of a pet share the hash tag ``{pet:<id>}``, so that one script can read or write all of them, even on a Redis
Cluster. Row i is the same item in ``media``, ``vectors``, ``labels``, ``origins``, ``arrived`` and ``occurred_at``;
rows are appended and never move. A deletion writes the pet again, under another ``born``.

    key                     type    holds
    {pet:<id>}:meta         hash    format           1; a reader refuses a pet with a different one
                                    born             random name from the first commit; a recreated pet has a new one
                                    commit           random name of the last commit: detects a commit sent twice
                                    revision         number of commits
                                    model, dim       of every vector; written by the first arrival
                                    n_media          number of rows
                                    next_cluster     the next cluster id to assign
                                    n_at_recluster   number of items at the last recluster
                                    noise_arrivals   number of arrivals since then that became noise
                                    relabelled_at    revision that last rewrote labels of existing rows; or 0
                                    past_from        the oldest revision that can be computed; 0 for all
                                    recarded_at      revision that last wrote clusters or aliases; or 0
                                    ingested         number of ingested items (tally.py)
                                    n_clustered, n_noise, n_dismissed   numbers of items with a row; set by each commit
                                    n_overflowed     number of arrivals that found the quarantine full
                                    n_clusters, n_aliases, n_corrections, n_history, n_overwritten, n_quarantined
                                                     number of elements of the key of that name; corrections: ledger
                                    n_shadow         number of fields of shadow:vectors; absent without shadow
                                    name             the name of the pet, as in its ledger; absent without one
                                    cold             where the vectors are, if they are not in Redis (cold/moves.py)
                                    idle             a revision, and since when the pet has it, for moves to the cold
                                                     store; absent without a cold store
                                    claim, claim_until_ms   name of the claimant, and end of its claim (server's clock)
    {pet:<id>}:media        list    row -> media id, UTF-8
    {pet:<id>}:rows         hash    media id -> row, to look up one item
    {pet:<id>}:vectors      list    row -> float32 little-endian, dim values, unit norm; missing while the pet is cold
    {pet:<id>}:labels       string  int32 little-endian per row, -1 = noise
    {pet:<id>}:origins      string  uint8 per row, models.Origin
    {pet:<id>}:clusters     hash    cluster id -> {"threshold", "since", "split_from", "medoid"}, JSON
    {pet:<id>}:aliases      hash    retired id -> the id that it resolves to
    {pet:<id>}:ledger       list    corrections, oldest first, JSON (ledger_json.py)
    {pet:<id>}:history      stream  id <revision>-0; fields kind, by, at_ms, summary (JSON); the newest 10,000 or so
    {pet:<id>}:arrived      string  uint32 little-endian per row, the revision at which it arrived
    {pet:<id>}:occurred_at  string  int64 little-endian per row, the time that its producer stated (times.py)
    {pet:<id>}:overwritten  stream  id <revision>-0; field was: labels, origins and aliases that this revision
                                    overwrote (past.py); the newest 256
    {pet:<id>}:tree         hash    born, n, body: the spanning tree of the first n rows (kept_tree.py), for pets of
                                    256 items or more. If missing or outdated, a recluster takes longer
    {pet:<id>}:quarantine   hash    media id -> {"model", "dim", "at", "occurred_at_ms"}, JSON: items whose model or dim
                                    is not the pet's; at most 10,000, plus all items that only shadow:vectors has
    {pet:<id>}:shadow       hash    model, dim, by, begun_at, was_own: the space of a candidate model (shadow.py)
    {pet:<id>}:shadow:vectors  hash  media id -> float32 little-endian, unit norm, of that model
    {pet:<id>}:preview      string  a preview of a recluster (previews.py); expires after 15 minutes
    sploot:pets             set     ids of pets that have data, decimal
    sploot:pets:sorted      zset    the same ids with leading zeros, in their order, score 0: about 130 bytes each
    sploot:pets:names       zset    case-folded name + zero byte + id of each pet with a name, score 0: about 100 bytes

    <key>:new:<random>              the value that a key of a large pet gets next, while it is written step by step;
                                    expires after 15 minutes, if the process that writes it dies

No other key expires: they are the data of a pet and are deleted with it.

An item takes 4 * dim + 17 bytes in columns and, measured on Redis 7.0 with ids of 36 characters, 38 bytes in ``media``
and 90 in ``rows``: 2.2 kB at 512 dimensions. Redis stores lists in nodes of up to 8 kB, in which vectors of 512
dimensions take 17 % more than their size, and doubles the memory of a string that grows (docs/capacity.md, ADR 18).
A recluster that moves half of 50,000 items adds 13 kB to ``overwritten``. A shadow takes 4 * dim + 130 bytes per item,
approximately.

``cold/moves.py`` documents ``sploot:cold:pets``, which exists only with a cold store.

``meta`` determines the lengths of all other keys. Every script that reads or writes a pet first checks them (whole.lua,
O(1)) and refuses a pet with a missing or truncated key: ``UnreadablePet``. ``tree`` and ``preview`` can be computed
again, and are not checked.

``sploot:pets`` is in another slot, so the commit script cannot write it. A pet is added before its first commit: a
crash between the two leaves an id without data, but never an unlisted pet. Every commit adds the pet again in the same
round trip, so that arrivals rebuild a lost set. On a Cluster, where that takes another round trip, only every 16th
commit does. A process that creates or deletes a pet, or finds it unlisted, then checks that it is listed correctly,
because two processes may do so at the same time. ``sploot:pets:sorted`` is written with it; a reader that finds another
number of pets in it repairs it (pet_list.py). ``sploot:pets:names`` is written in the same manner, by commits that
change a name and when a pet is found unlisted (name_index.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from sploot_cluster.pet.models import PetId

PETS: Final = "sploot:pets"
NAMES: Final = "sploot:pets:names"
SORTED_PETS: Final = "sploot:pets:sorted"

FORMAT: Final = 1


class PetKeys(NamedTuple):
    """The keys of one pet, in the order in which scripts take them."""

    meta: str
    media: str
    rows: str
    vectors: str
    labels: str
    origins: str
    clusters: str
    aliases: str
    ledger: str
    history: str
    arrived: str
    overwritten: str
    quarantine: str
    preview: str
    shadow: str
    shadow_vectors: str
    tree: str
    occurred_at: str

    @staticmethod
    def of(pet: PetId) -> PetKeys:
        return _keys_of(pet)


# An arrival needs the keys of its pet twice, once to load it and once to commit. 64 pets take 100 kB.
@lru_cache(maxsize=64)
def _keys_of(pet: PetId) -> PetKeys:
    tag = f"{{pet:{pet}}}:"
    return PetKeys._make([tag + name for name in _NAMES])


_NAMES: Final = tuple("shadow:vectors" if name == "shadow_vectors" else name for name in PetKeys._fields)
