"""Export of all pets to Parquet files, one row per item, for DuckDB, Spark, Ray, pandas and other tools.

Needs pyarrow: ``pip install 'sploot-cluster[parquet]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sploot_cluster.decide.presentation import presentation_of
from sploot_cluster.errors import InvalidInput, UnreadablePet
from sploot_cluster.pet.models import NOISE, Origin, PetId, PetState
from sploot_cluster.pet.times import UNKNOWN

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sploot_cluster.store.port import PetStore

# Maximum size of the vectors of a row group, which is collected in memory. A single pet with more is one group.
GROUP_BYTES: Final = 64 * 1024**2
# Size of a file after which the next pet goes to a new file.
FILE_BYTES: Final = 1024**3

COMPRESSION: Final = "zstd"


@dataclass(slots=True)
class Written:
    """The files that an export wrote, and the pets that it could not read.

    Attributes:
        files: the files, in order.
        unreadable: the pets that are missing from the files because their keys are inconsistent.
    """

    n_pets: int = 0
    n_items: int = 0
    files: list[Path] = field(default_factory=list)
    unreadable: list[PetId] = field(default_factory=list)


def write_pets(
    store: PetStore,
    directory: Path,
    *,
    part: int = 1,
    parts: int = 1,
    group_bytes: int = GROUP_BYTES,
    file_bytes: int = FILE_BYTES,
    after_each: Callable[[Written], None] = lambda _: None,
) -> Written:
    """Write the items of all pets.

    Each pet is written at one revision; different pets are read at different times. Pets that are deleted during the
    export are left out. A file gets its name only when it is complete, so an interrupted export leaves complete files
    and one ``*.partial``. The columns:

        pet_id int64, item_id string, model string
        embedding list<float32>     of unit norm, as the pet's clusters are computed from it
        cluster_id int32            null: in no cluster
        cluster_name string         null: the cluster has no name
        is_hidden bool              whether users hid the cluster
        origin string               noise, core, arrived, absorbed, corrected or dismissed
        occurred_at timestamp[ms, UTC]  null: the producer stated none
        revision int64              of the pet

    Args:
        directory: a directory for the files ``pets-<part>-<number>.parquet``; created if it does not exist.
        part, parts: divide the pets into ``parts`` equal parts and write only number ``part``, counted from 1, so that
            several machines can share the work.
        group_bytes: maximum size of the vectors that are held in memory, in addition to the vectors of one pet.
        file_bytes: maximum size of the vectors in a file, in addition to the vectors of one pet.
        after_each: called after each pet with the result so far.

    Raises:
        InvalidInput: the directory cannot be used or has files of this part, ``part`` is not one of the parts, or
            pyarrow is not installed.
        StoreUnavailable: the store does not answer.
    """
    if not 1 <= part <= parts:
        raise InvalidInput("part", f"{part} of {parts} does not exist", f"send a number from 1 to {parts}")
    with _Files(directory, part, group_bytes, file_bytes) as files:
        written = Written(files=files.complete)
        for pet in list(store.pets())[part - 1 :: parts]:
            try:
                state = store.load(pet)
            except UnreadablePet:
                written.unreadable.append(pet)
            else:
                if state.n_media:
                    files.add(state)
                    written.n_pets += 1
                    written.n_items += state.n_media
            after_each(written)
        files.close()
    return written


class _Files:
    """A writer that puts pets into one file after another."""

    def __init__(self, directory: Path, part: int, group_bytes: int, file_bytes: int) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            problem = "Parquet files need pyarrow, which is not installed"
            raise InvalidInput("directory", problem, "pip install 'sploot-cluster[parquet]'") from None
        self._pa, self._pq = pa, pq
        self.complete: list[Path] = []
        self._directory, self._part = directory, part
        self._group_bytes, self._file_bytes = group_bytes, file_bytes
        self._schema = pa.schema(
            [
                ("pet_id", pa.int64()),
                ("item_id", pa.string()),
                ("model", pa.string()),
                ("embedding", pa.list_(pa.float32())),
                ("cluster_id", pa.int32()),
                ("cluster_name", pa.string()),
                ("is_hidden", pa.bool_()),
                ("origin", pa.string()),
                ("occurred_at", pa.timestamp("ms", tz="UTC")),
                ("revision", pa.int64()),
            ]
        )
        self._waiting: list[pa.RecordBatch] = []
        self._bytes_waiting = self._bytes_in_file = 0
        self._writer: pq.ParquetWriter | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            existing = sorted(directory.glob(f"pets-{part:04}-*.parquet"))
        except OSError as error:
            raise InvalidInput("directory", f"{directory}: {error.strerror}", "name a writable directory") from error
        if existing:
            raise InvalidInput("directory", f"{existing[0]} exists already", "name an empty directory")

    def add(self, state: PetState) -> None:
        self._waiting.append(self._batch_of(state))
        self._bytes_waiting += state.vectors.nbytes
        if self._bytes_waiting >= self._group_bytes:
            self._write()
        if self._bytes_in_file >= self._file_bytes:
            self._complete()

    def close(self) -> None:
        """Write the remaining rows. If there was no pet, write one file with the columns and no rows."""
        if self._waiting or not self.complete:
            self._write()
        if self._writer is not None:
            self._complete()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        if self._writer is None:
            self._writer = self._pq.ParquetWriter(
                self._partial,
                self._schema,
                compression=COMPRESSION,
                use_dictionary=["model", "cluster_name", "origin"],
                # floats compress better if bytes of equal significance are stored together
                use_byte_stream_split=["embedding.list.element"],
            )
        self._writer.write_table(self._pa.Table.from_batches(self._waiting, self._schema))
        self._bytes_in_file += self._bytes_waiting
        self._waiting, self._bytes_waiting = [], 0

    def _complete(self) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        self._bytes_in_file = 0
        target = self._directory / f"pets-{self._part:04}-{len(self.complete) + 1:05}.parquet"
        self._partial.rename(target)
        self.complete.append(target)

    @property
    def _partial(self) -> Path:
        return self._directory / f"pets-{self._part:04}.partial"

    def _batch_of(self, state: PetState) -> pa.RecordBatch:
        pa, n = self._pa, state.n_media
        shown = presentation_of(state)
        names = {cluster: names[0] for cluster, names in shown.names.items()}
        labels = state.labels.tolist()
        columns: Sequence[Any] = (
            pa.array([state.pet] * n, pa.int64()),
            pa.array(list(state.media), pa.string()),
            pa.array([state.model] * n, pa.string()),
            pa.ListArray.from_arrays(
                pa.array(range(0, (n + 1) * state.vectors.shape[1], state.vectors.shape[1]), pa.int32()),
                pa.array(state.vectors.reshape(-1), pa.float32()),
            ),
            pa.array([None if label == NOISE else label for label in labels], pa.int32()),
            pa.array([names.get(label) for label in labels], pa.string()),
            pa.array([label in shown.hidden for label in labels], pa.bool_()),
            pa.array([Origin(origin).word for origin in state.origins.tolist()], pa.string()),
            pa.array(
                [None if at == UNKNOWN else at for at in state.occurred_at_ms.tolist()], pa.timestamp("ms", tz="UTC")
            ),
            pa.array([state.revision] * n, pa.int64()),
        )
        return pa.RecordBatch.from_arrays(list(columns), schema=self._schema)
