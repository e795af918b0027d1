"""Readers for files of embedded items: .npz arrays and JSON lines."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from tasks.cli.screen import err


def records_of(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the records of a file. A line that is not a JSON object becomes an empty record that holds the problem."""
    if file.suffix == ".npz":
        yield from _npz_records(file)
        return
    with ExitStack() as stack:
        if str(file) == "-":
            lines: Iterable[str] = sys.stdin
        else:
            try:
                lines = stack.enter_context(file.open(encoding="utf-8"))
            except OSError as error:
                raise InvalidInput(
                    "FILE", f"{file} cannot be read: {error.strerror}", "name a readable file"
                ) from error
        for line in filter(str.strip, lines):
            try:
                record = json.loads(line)
            except ValueError as error:
                record = _NotAnObject(f"is not JSON: {error}")
            yield record if isinstance(record, dict) else _NotAnObject("is not a JSON object")


class _NotAnObject(dict[str, Any]):
    """The record of a line that cannot be an event, with the reason."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem


def _npz_records(file: Path) -> Iterator[Mapping[str, Any]]:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "FILE", f"{file} is not a readable .npz file: {error}", "write it with numpy.savez"
        ) from error
    missing = {"pet_id", "media_id", "model", "embedding"} - columns.keys()
    if missing:
        raise InvalidInput("FILE", f"{file} lacks {', '.join(sorted(missing))}", "add the arrays")
    n = len(columns["embedding"])
    for name, column in columns.items():
        if column.ndim and len(column) != n:
            raise InvalidInput(
                "FILE",
                f"{name} has {len(column)} entries, embedding {n}",
                "give one value per embedding, or a single value for all",
            )
    for row in range(n):
        record: dict[str, Any] = {name: column[row] if column.ndim else column[()] for name, column in columns.items()}
        yield record | {name: str(record[name]) for name in ("media_id", "model")}


def event_of(record: Mapping[str, Any]) -> EmbeddingIngested:
    if isinstance(record, _NotAnObject):
        raise InvalidInput("line", record.problem, "write one JSON object per line")
    return EmbeddingIngested.of(**record)


def progress_of(records: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    with Progress(
        TextColumn("items"), BarColumn(), MofNCompleteColumn(), console=err, disable=not err.is_terminal
    ) as progress:
        task = progress.add_task("items", total=None)
        for number in itertools.count(1):
            record = next(records, None)
            if record is None:
                return
            progress.update(task, completed=number)
            yield record
