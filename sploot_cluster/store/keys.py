"""Where a pet lies in Redis: the schema, field by field.

All keys of a pet share the hash tag ``{pet:<id>}``, so that one script reads or writes them together, on a Redis
Cluster too. Row i is the same item in ``media``, ``vectors``, ``labels`` and ``origins``; rows are appended and
never move.

    key                     type    holds
    {pet:<id>}:meta         hash    format           1; a reader that knows another number refuses the pet
                                    born             random name given at the first commit: a pet begun anew has another
                                    commit           random name of the last commit: tells a lost reply from a lost race
                                    revision         counts commits, from 1
                                    model, dim       of every vector; written by the first arrival
                                    n_media          rows
                                    next_cluster     the next cluster id to give out
                                    n_at_recluster   media the last recluster saw
                                    noise_arrivals   arrivals since then that found no cluster
                                    relabelled_at    revision that last rewrote labels of rows that existed; or 0
                                    past_from        the oldest revision that can be told; 0 while all can
                                    recarded_at      revision that last wrote clusters or aliases; or 0
                                    ingested         media that came, one by one (tally.py)
                                    n_clustered, n_noise, n_dismissed   where those with a row are; counted per commit
                                    n_overflowed     arrivals that found the quarantine full
                                    n_clusters, n_aliases, n_corrections, n_history, n_overwritten, n_quarantined
                                                     how many are in the key of that name; corrections in ledger
                                    n_shadow         how many are in shadow:vectors; absent while no shadow is open
                                    claim, claim_until_ms   who has the right of way, and until when (server's clock)
    {pet:<id>}:media        list    row -> media id, UTF-8
    {pet:<id>}:rows         hash    media id -> row, for whoever looks for one item
    {pet:<id>}:vectors      string  float32 little-endian, dim per row, unit norm
    {pet:<id>}:labels       string  int32 little-endian per row, -1 = noise
    {pet:<id>}:origins    string  uint8 per row, models.Standing
    {pet:<id>}:clusters     hash    cluster id -> {"threshold", "since", "split_from"}, JSON
    {pet:<id>}:aliases      hash    merged id -> the id it became
    {pet:<id>}:ledger       list    corrections, oldest first, JSON (see ledger.py)
    {pet:<id>}:history      stream  id <revision>-0; fields kind, by, at_ms, summary (JSON); the newest 10,000 or so
    {pet:<id>}:arrived      string  uint32 little-endian per row, the revision at which it came
    {pet:<id>}:overwritten  stream  id <revision>-0; field was: labels, origins and aliases that it overwrote
                                    (past.py); 256
    {pet:<id>}:tree         hash    born, n, body: the spanning tree of the first n rows (kept_tree.py), of pets from
                                    256 media on. It may be missing or behind: then a recluster takes longer
    {pet:<id>}:quarantine   hash    media id -> {"model", "dim", "at"}, JSON: its vector is of another space; 10,000,
                                    and besides them all that only shadow:vectors has
    {pet:<id>}:shadow       hash    model, dim, by, begun_at, was_own: a second space, open beside the pet's own
                                    (shadow.py)
    {pet:<id>}:shadow:vectors  hash  media id -> float32 little-endian, unit norm, of that model
    {pet:<id>}:preview      string  a recluster that waits to be applied (previews.py); ends after 15 minutes
    sploot:pets             set     ids of pets that hold something, decimal

None of the others has a time limit: they are the truth about a pet and end with it.

An item takes 4 * dim + 9 bytes of columns and, measured on 7.0 with ids of 36 characters, 38 bytes in ``media`` and
90 in ``rows``: 2.2 kB at 512 dimensions. Redis reserves room when it appends, as much again until a string has 1 MB,
and pets from 256 media on keep their tree: an item of a pet of 500 takes 3.8 kB (docs/capacity.md).
``vectors`` reach the 512 MB of one value at 262,144 media. A recluster that moves half of 50,000 media leaves 13 kB in
``overwritten``. A shadow takes the same again, 4 * dim and about 130 bytes an item.

The lengths of all keys follow from ``meta``. Every script that reads or writes a pet compares them first (whole.lua,
O(1)), and refuses a pet of which a key is missing or cut: ``UnreadablePet``. ``tree`` and ``preview`` can be computed
again, and are not compared.

``sploot:pets`` lies in another slot and cannot be written by the script that commits. It is written before a pet's
first commit: a crash between the two leaves an id that holds nothing, and never a pet that nobody finds. A commit adds
the pet again in its own round trip, so that a list that was lost comes back with the arrivals; on a Cluster, where that
takes a round trip more, one commit of 16 does. A process that begins or deletes a pet, or finds it unlisted, looks
afterwards whether it stands there as it should: two may do so at once.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

from sploot_cluster.pet.models import PetId

PETS: Final = "sploot:pets"

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

    @classmethod
    def of(cls, pet: PetId) -> Self:
        tag = f"{{pet:{pet}}}:"
        return cls._make([tag + name for name in _NAMES])


_NAMES: Final = tuple(name.replace("_", ":") for name in PetKeys._fields)
