"""Readers for files of embedded items: numpy arrays, JSON lines and Parquet.

Every reader yields one record per item with the fields of an event. A file that cannot be read as a whole raises
``InvalidInput``; an entry that cannot become a record is a :class:`BadEntry`.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import FIELDS, EmbeddingIngested
from tasks.cli.screen import err

# Names that other programs give to arrays and columns of ids. An error suggests them; they are never assumed.
_IDS: Final = frozenset({"id", "ids", "item_id", "item_ids", "media_ids", "name", "names", "filename", "filenames"})

_ARRAYS: Final = frozenset({".npz", ".npy"})


@dataclass(frozen=True, slots=True)
class Given:
    """Values from the command line that apply to all items of a file.

    Attributes:
        pet: the pet of all items, in place of a field of the file.
        model: the model of all items, in place of a field of the file.
        id_column: the name of the field that contains the ids, if it is not ``media_id``.
    """

    pet: int | None = None
    model: str | None = None
    id_column: str | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        return {name: value for name, value in (("pet_id", self.pet), ("model", self.model)) if value is not None}


@dataclass(frozen=True, slots=True)
class Items:
    """The items of a file.

    Attributes:
        n: number of items, or None if it is known only at the end.
        notes: assumptions about the file, to be printed.
    """

    records: Iterator[Mapping[str, Any]]
    n: int | None = None
    notes: list[str] = field(default_factory=list)


class BadEntry(dict[str, Any]):
    """An entry that cannot be a record, with the reason."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__()
        self.problem, self.hint = problem, hint


def items_of(file: Path, given: Given) -> Items:
    """Return the items of a file, whose suffix determines its format.

    Raises:
        InvalidInput: the file cannot be read, lacks a field, or has an invalid value that applies to all items.
    """
    if file.suffix in _ARRAYS:
        return _from_arrays(file, given)
    if file.suffix == ".parquet":
        return _from_parquet(file, given)
    return Items(_from_lines(file, given))


def event_of(record: Mapping[str, Any]) -> EmbeddingIngested:
    """Return the event of a record; unknown fields are ignored, as in every form of an event."""
    if isinstance(record, BadEntry):
        raise InvalidInput("line", record.problem, record.hint)
    return EmbeddingIngested.of(**{name: record[name] for name in FIELDS if name in record})


def progress_of(items: Items) -> Iterator[Mapping[str, Any]]:
    """Yield the records, and show a progress bar if standard error is a terminal."""
    if not err.is_terminal:
        yield from items.records
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("items", total=items.n)
        for number, record in enumerate(items.records, start=1):
            progress.update(task, completed=number)
            yield record


# -- JSON lines --------------------------------------------------------------------------------------------------------


def _from_lines(file: Path, given: Given) -> Iterator[Mapping[str, Any]]:
    with ExitStack() as stack:
        try:
            for line in filter(bytes.strip, _lines_of(file, stack)):
                yield _record(line, given)
        except OSError as error:
            raise _unreadable(file, error.strerror or str(error)) from error
        except (EOFError, zlib.error) as error:
            raise _unreadable(file, "its gzip data is cut off or damaged") from error


def _lines_of(file: Path, stack: ExitStack) -> Iterable[bytes]:
    if str(file) == "-":
        binary = getattr(sys.stdin, "buffer", None)
        return binary if binary is not None else (line.encode() for line in sys.stdin)
    return stack.enter_context(gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb"))


def _record(line: bytes, given: Given) -> Mapping[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return BadEntry("is not UTF-8 text", "save the file in UTF-8")
    except ValueError as error:
        return BadEntry(f"is not JSON: {error}", "write one JSON object per line")
    except RecursionError:
        return BadEntry("is not a JSON object: it is nested too deeply", "write one JSON object per line")
    if not isinstance(record, dict):
        return BadEntry("is not a JSON object", "write one JSON object per line")
    if given.id_column is not None and given.id_column in record:
        record["media_id"] = record[given.id_column]
    return {**record, **given.fields}


# -- numpy -------------------------------------------------------------------------------------------------------------


def _from_arrays(file: Path, given: Given) -> Items:
    import numpy as np

    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _from_matrix(file, loaded, given)
            columns = {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    except ValueError as error:
        raise _not_arrays(file, error) from error
    except (EOFError, BadZipFile, zlib.error, KeyError) as error:
        raise _unreadable(file, "it is empty, cut off or damaged") from error
    return _from_columns(file, columns, given)


def _not_arrays(file: Path, error: ValueError) -> InvalidInput:
    if "Object arrays" in str(error):
        problem = f"{file} holds Python objects, which could run code when they are read"
        return InvalidInput("FILE", problem, "save ids as text: numpy.array(ids, dtype=str)")
    return _unreadable(file, f"it is not a {file.suffix} file")


def _from_matrix(file: Path, matrix: Any, given: Given) -> Items:
    if matrix.ndim != 2:
        problem = f"{file} holds an array of shape {matrix.shape}"
        raise InvalidInput("FILE", problem, "save the embeddings as an array of shape (items, dimensions)")
    if given.id_column is not None:
        problem = "a .npy file holds embeddings only"
        raise InvalidInput("--id-column", problem, "save ids and embeddings as one .npz file")
    name = file.stem
    columns = {"embedding": matrix, "media_id": [f"{name}-{row}" for row in range(len(matrix))]}
    items = _from_columns(file, columns, given)
    items.notes.append(f"ids are {name}-0, {name}-1, …: the file holds embeddings only")
    return items


def _from_columns(file: Path, columns: Mapping[str, Any], given: Given) -> Items:
    """Return the items of arrays with one value per item, or a single value for all items."""
    import numpy as np

    arrays = {name: np.asarray(column) for name, column in columns.items()}
    notes: list[str] = []
    embedding = _embeddings(file, arrays, notes)
    known = _with_ids(file, arrays, given)
    n = len(embedding)
    values: dict[str, Any] = dict(given.fields)
    for name in FIELDS.keys() & known.keys() - values.keys() - {"embedding"}:
        column = known[name]
        if column.ndim and len(column) != n:
            raise InvalidInput(
                "FILE",
                f"{name} has {len(column)} entries, embedding {n}",
                "give one value per embedding, or a single value for all",
            )
        values[name] = column if column.ndim else _plain(column[()])
    missing = [name for name in ("pet_id", "media_id", "model") if name not in values]
    if missing:
        raise _lacking(file, missing, sorted(columns))
    for_all = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    _check_constants(for_all)
    each = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def records() -> Iterator[Mapping[str, Any]]:
        for row in range(n):
            yield for_all | {name: _plain(column[row]) for name, column in each.items()} | {"embedding": embedding[row]}

    return Items(records(), n, notes)


def _embeddings(file: Path, arrays: Mapping[str, Any], notes: list[str]) -> Any:
    if "embedding" in arrays and arrays["embedding"].ndim == 2:
        return arrays["embedding"]
    tables = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"]
    if len(tables) != 1:
        problem = f"{file} has no array embedding of shape (items, dimensions); it has {_listed(sorted(arrays))}"
        raise InvalidInput("FILE", problem, "name the embeddings embedding")
    notes.append(f"embeddings are in {tables[0]}")
    return arrays[tables[0]]


def _with_ids(file: Path, columns: Mapping[str, Any], given: Given) -> Mapping[str, Any]:
    if given.id_column is None:
        return columns
    if given.id_column not in columns:
        close = get_close_matches(given.id_column, columns, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {_listed(sorted(columns))}"
        raise InvalidInput("--id-column", f"{file} has no {given.id_column}", hint)
    return {**columns, "media_id": columns[given.id_column]}


def _lacking(file: Path, missing: list[str], found: list[str]) -> InvalidInput:
    ids = [name for name in found if name in _IDS]
    options = {"pet_id": "--pet ID", "model": "--model NAME@VERSION"}
    options["media_id"] = f"--id-column {ids[0]}" if ids else "--id-column NAME"
    hint = f"add {' '.join(options[name] for name in missing)}, or add them to the file"
    return InvalidInput("FILE", f"{file} lacks {_listed(missing)}; it has {_listed(found)}", hint)


def _check_constants(values: Mapping[str, Any]) -> None:
    """Raise ``InvalidInput`` if a value that applies to all items is invalid."""
    for problem in EmbeddingIngested.problems({"embedding": [1.0, 0.0], "media_id": "x", "pet_id": 1, **values}):
        if problem.field in values:
            raise problem


def _plain(value: Any) -> Any:
    """Return an array value in the form that an event takes; bytes are decoded, because they may be text."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "ndim", 0) == 0 else value


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _from_parquet(file: Path, given: Given) -> Items:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InvalidInput("FILE", "Parquet needs pyarrow", "pip install 'sploot-cluster[parquet]'") from None
    try:
        parquet = pq.ParquetFile(file)
    except OSError as error:
        raise _unreadable(file, getattr(error, "strerror", None) or "it is not a Parquet file") from error
    except pa.ArrowInvalid as error:
        raise _unreadable(file, "it is not a Parquet file") from error
    schema = parquet.schema_arrow
    found = list(schema.names)
    vectors = [name for name in found if _is_vector(schema.field(name).type)]
    if "embedding" not in vectors and len(vectors) != 1:
        raise InvalidInput("FILE", f"{file} has no column embedding; it has {_listed(found)}", "add it, as list<float>")
    embedding = "embedding" if "embedding" in vectors else vectors[0]
    known = _with_ids(file, {name: name for name in found}, given)
    columns = {name: known[name] for name in FIELDS.keys() & known.keys() - given.fields.keys() - {"embedding"}}
    if "media_id" not in columns and "item_id" in found:
        columns["media_id"] = "item_id"  # `sploot-cluster parquet` writes this name
    missing = [name for name in ("pet_id", "media_id", "model") if name not in columns and name not in given.fields]
    if missing:
        raise _lacking(file, missing, found)
    _check_constants(given.fields)

    def records() -> Iterator[Mapping[str, Any]]:
        for batch in parquet.iter_batches(columns=[*{*columns.values(), embedding}]):
            for row in batch.to_pylist():
                values = {name: _parquet_value(row[column]) for name, column in columns.items()}
                yield {**given.fields, **values, "embedding": row[embedding]}

    notes = [] if embedding == "embedding" else [f"embeddings are in {embedding}"]
    return Items(records(), parquet.metadata.num_rows, notes)


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_fixed_size_list(kind) or types.is_large_list(kind)
    return bool(is_list and types.is_floating(kind.value_type))


def _parquet_value(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else _plain(value)


# -- shared ------------------------------------------------------------------------------------------------------------


def _unreadable(file: Path, problem: str) -> InvalidInput:
    hint = "name a readable .npz, .npy, .jsonl, .jsonl.gz or .parquet file, or - for JSON lines from standard input"
    return InvalidInput("FILE", f"{file} cannot be read: {problem}", hint)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
