"""The sinks that come with Millstream: tables of SQLite, files of JSON or CSV, stdout, functions.

Each function makes a value that `Stream.to` takes; nothing is opened before the pipeline runs. What
a sink is in general says connectors.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from millstream import Record, UsageError

from .connectors import (
    OUTSIDE,
    DeliveryKind,
    Outside,
    RefusedRecords,
    Sink,
    check_connector_name,
    name_from,
)
from .errors import reason
from .file_formats import CsvFile, FileFormat, JsonLinesFile
from .file_sink import FileSink
from .sqlite_sink import SqliteSink, TableMode


@dataclass(frozen=True)
class CallableSink(Sink):
    """Calls a function for every record, or for the records of every delivery."""

    name: str
    function: Callable[[Any], object]
    batches: bool
    delivery: DeliveryKind = "at_least_once"

    def open(self, outbox: str) -> CallableWriter:
        """See `Sink`."""
        return CallableWriter(self.function, batches=self.batches)


class CallableWriter:
    """Calls the function of a sink; see `SinkWriter`."""

    def __init__(self, function: Callable[[Any], object], *, batches: bool) -> None:
        self._function = function
        self._batches = batches
        self._done = 0
        """One behind the last record the function has returned for."""

    def position(self) -> None:
        """See `SinkWriter`: the store keeps it."""

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        """See `SinkWriter`. Tried again, it goes on with the record that failed.

        Raises:
            RefusedRecords: The function raised on one of the records.
        """
        if self._batches:
            if records:
                self._function(list(records))
            return
        for record in records:
            if record.offset < self._done:
                continue
            try:
                self._function(record)
            except Exception as error:
                raise RefusedRecords({record.offset: reason(error)}, retry=True) from error
            self._done = record.offset + 1

    def close(self) -> None:
        """See `SinkWriter`."""


@dataclass(frozen=True)
class StdoutSink(Sink):
    """Prints the values."""

    name: str
    outside: Outside = field(default=OUTSIDE, repr=False, compare=False)
    delivery: DeliveryKind = "at_least_once"

    def open(self, outbox: str) -> CallableWriter:
        """See `Sink`."""
        return CallableWriter(self._print, batches=True)

    def _print(self, records: Sequence[Record]) -> None:
        self.outside.print_lines(
            "null" if record.value is None else record.value.decode(errors="replace")
            for record in records
        )


@overload
def to_callable(
    function: Callable[[Record], object],
    *,
    batches: Literal[False] = False,
    name: str | None = None,
) -> CallableSink: ...
@overload
def to_callable(
    function: Callable[[list[Record]], object], *, batches: Literal[True], name: str | None = None
) -> CallableSink: ...
def to_callable(
    function: Callable[[Record], object] | Callable[[list[Record]], object],
    *,
    batches: bool = False,
    name: str | None = None,
) -> CallableSink:
    """Call a function with every `Record`: at least once, so after a crash some come again.

    A record is the same one again if its topic and offset are. If the function raises, it is
    called again after a pause, and in the end the run stops, or the record becomes a dead letter.

    Args:
        function: What it returns is ignored.
        batches: Call it with a list of records instead. If it raises, all of them come again, and
            none becomes a dead letter unless it raises `RefusedRecords`.
        name: Identity in the pipeline; the function's name if it has one, else "function".

    >>> to_callable(print).name
    'print'
    """
    given = name_from(getattr(function, "__name__", ""), "function") if name is None else name
    return CallableSink(check_connector_name(given, "sink"), function, batches)


def to_stdout(*, name: str = "stdout") -> StdoutSink:
    """Print every value as a line: at least once, so after a crash some are printed again.

    Args:
        name: Identity in the pipeline.

    >>> to_stdout().delivery
    'at_least_once'
    """
    return StdoutSink(check_connector_name(name, "sink"))


def to_jsonl(directory: str, *, folders: Sequence[str] = (), name: str | None = None) -> FileSink:
    """Write files of JSON values, one a line, into a directory.

    Each file holds the outputs of whole epochs. It appears complete and synced, and once: a
    delivery repeated after a crash replaces it by its equal. Its name,
    `<name>-<outbox>-<first offset>-<following offset>.jsonl`, sorts in the order of the records.
    Files may be moved away at any time.

    Args:
        directory: Created if it is missing.
        folders: Fields by whose values the records of a delivery are put into files of their own,
            in folders such as `date=2024-05-01/hour=7`, which DuckDB and Polars read as columns.
            The fields stay in the rows, which must be JSON objects. Of few values, please: each
            delivery makes a file in each.
        name: Identity in the pipeline and beginning of the file names; that of the directory if
            not given.

    >>> to_jsonl("out/totals").name
    'totals'
    """
    return _files(directory, JsonLinesFile(), name, folders)


def to_csv(
    directory: str,
    columns: Sequence[str],
    *,
    delimiter: str = ",",
    folders: Sequence[str] = (),
    name: str | None = None,
) -> FileSink:
    """Write files of CSV into a directory, each with a header; otherwise as `to_jsonl`.

    Values must be JSON objects without other fields than `columns`; a missing or null one is empty,
    and what is no text or number is written as JSON.

    Args:
        directory: Created if it is missing.
        columns: Names of the fields, in order.
        delimiter: One character.
        folders: See `to_jsonl`.
        name: See `to_jsonl`.

    Raises:
        UsageError: No columns, or one twice; a delimiter that is none.

    >>> to_csv("out", ["user", "total"]).format.columns
    ('user', 'total')
    """
    if not columns or len(set(columns)) != len(columns):
        raise UsageError(f"columns={list(columns)}: name each once")
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UsageError(f"delimiter={delimiter!r}: give one character, such as ',' or ';'")
    return _files(directory, CsvFile(tuple(columns), delimiter), name, folders)


def _files(directory: str, form: FileFormat, name: str | None, folders: Sequence[str]) -> FileSink:
    if isinstance(folders, str) or len(set(folders)) != len(folders) or not all(folders):
        raise UsageError(f"folders={folders!r}: give a list of fields, each once")
    if any(set(field) & set("/=\0") for field in folders):
        raise UsageError(f"folders={list(folders)}: a field with / or = cannot name a folder")
    last = directory.rstrip("/").rpartition("/")[2]
    given = name_from(last, "files") if name is None else name
    return FileSink(check_connector_name(given, "sink"), directory, form, tuple(folders))


def to_sqlite(
    path: str,
    table: str,
    *,
    mode: TableMode = "append",
    key: Sequence[str] = (),
    name: str | None = None,
) -> SqliteSink:
    """Write rows into a table of a SQLite database, exactly once.

    The rows of an epoch appear together. How far the outbox has been delivered is kept beside them,
    in the table `millstream_positions`. Values must be JSON objects whose fields are columns of the
    table; fields that are missing keep their value or default, lists and objects are written as
    JSON. A table that is missing is created for the fields of the first record.

    Args:
        path: The database, created if it is missing.
        table: The table.
        mode: "append" adds a row for every record. "upsert" adds or changes the row of its key,
            and a tombstone deletes it.
        key: With "upsert": the columns of a primary key or unique index.
        name: Identity in the pipeline; the table's name if not given.

    Raises:
        UsageError: An unknown mode, "upsert" without key, "append" with one.

    >>> to_sqlite("app.db", "totals", mode="upsert", key=["user"]).delivery
    'transactional'
    """
    if mode not in {"append", "upsert"}:
        raise UsageError(f"mode={mode!r}: use 'append' or 'upsert'")
    if isinstance(key, str) or bool(key) != (mode == "upsert"):
        raise UsageError(f"mode={mode!r} with key={key!r}: 'upsert' needs a list of columns as key")
    given = name_from(table, "table") if name is None else name
    return SqliteSink(check_connector_name(given, "sink"), path, table, mode, tuple(key))
