"""A sink of files: a new one for every delivery, complete and synced before its name appears.

A file is named after the offsets it holds. A delivery that is done again after a crash has the same
records, so it replaces the file by its equal. Nothing here reads a file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

import msgspec
import xxhash

from millstream import Record, Storage

from .connectors import OUTSIDE, DeliveryKind, Outside, RefusedRecords, Sink
from .serde import UNDECODABLE, Json, encode_json

T = TypeVar("T")

_check_json: Final = msgspec.json.Decoder(msgspec.Raw).decode
_to_object: Final = msgspec.json.Decoder(dict[str, Json]).decode


_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"
"""The folder of records without a value."""

_PRINTABLE: Final = frozenset({str, int, float, type(None)})


class _Parts(list[str]):
    """What csv writes to."""

    write = list.append


class FileFormat(Protocol):
    """What a file of records looks like."""

    @property
    def suffix(self) -> str:
        """Of the file name, without the dot."""
        ...

    def content(self, records: Sequence[Record]) -> bytes:
        """The file.

        Raises:
            RefusedRecords: Some do not fit.
        """
        ...


@dataclass(frozen=True, slots=True)
class JsonLinesFile:
    """The values, one a line. A tombstone is `null`."""

    suffix: str = "jsonl"

    def content(self, records: Sequence[Record]) -> bytes:
        """See `FileFormat`."""
        return b"".join(all_of(records, _json_line))


def _json_line(record: Record) -> bytes:
    value = record.value
    if value is None:
        return b"null\n"
    _check_json(value)
    if b"\n" in value:
        # Between tokens, for a text in JSON has no raw newline.
        value = encode_json(msgspec.json.decode(value))
    return value + b"\n"


@dataclass(frozen=True, slots=True)
class CsvFile:
    """The values, which are JSON objects, as rows below a header."""

    columns: tuple[str, ...]
    delimiter: str = ","
    suffix: str = "csv"

    def content(self, records: Sequence[Record]) -> bytes:
        """See `FileFormat`. Missing and null fields are empty."""
        return (self._plain(records) or self._any(records)).encode()

    def _plain(self, records: Sequence[Record]) -> str:
        """The file where all fields are simple, in one pass over all; empty if some are not."""
        objects = objects_of(records)
        names = self.columns
        if objects is None or not set(chain.from_iterable(objects)) <= set(names):
            return ""
        if not set(map(type, chain.from_iterable(map(dict.values, objects)))) <= _PRINTABLE:
            return ""
        parts = _Parts()
        writer = csv.writer(parts, delimiter=self.delimiter, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([list(map(fields.get, names)) for fields in objects])
        text = "".join(parts)
        # csv leaves returns without quotes where they do not end lines.
        return text if "\r" not in text else ""

    def _any(self, records: Sequence[Record]) -> str:
        """The file, record by record."""
        lines = [self._line(self.columns), *all_of(records, self._row)]
        return "".join(lines)

    def _line(self, fields: Sequence[str]) -> str:
        special = f'{self.delimiter}"\r\n'
        parts = [
            '"' + field.replace('"', '""') + '"' if any(map(field.__contains__, special)) else field
            for field in fields
        ]
        # A line without anything would be no row.
        return (self.delimiter.join(parts) or '""') + "\n"

    def _row(self, record: Record) -> str:
        fields = object_of(record)
        unknown = sorted(set(fields) - set(self.columns))
        if unknown:
            raise ValueError(f"there are no columns {unknown}; there are {list(self.columns)}")
        return self._line([_csv_field(fields.get(name)) for name in self.columns])


def objects_of(records: Sequence[Record]) -> list[dict[str, Json]] | None:
    """The fields of all values, in one pass; None if one is no JSON object."""
    try:
        return list(map(_to_object, [record.value for record in records]))  # type: ignore[arg-type]  # a null raises
    except (*UNDECODABLE, TypeError):
        return None


def object_of(record: Record) -> dict[str, Json]:
    """The fields of a record's value.

    Raises:
        ValueError: It is no JSON object.
    """
    if record.value is None:
        raise ValueError("a tombstone is no row")
    try:
        return _to_object(record.value)
    except UNDECODABLE as error:
        raise ValueError(f"the value is no JSON object: {error}") from error


def _csv_field(value: Json) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        value.encode()  # what is no text is refused with its record
        return value
    if isinstance(value, float):
        return repr(value)  # as csv does it
    return encode_json(value).decode()


def _folder_text(value: Json) -> str:
    """A value in the name of a folder, as Hive, Spark, DuckDB and Polars read it back."""
    text = _csv_field(value)
    return quote(text, safe=" ") if text else _NO_VALUE


def all_of(records: Sequence[Record], function: Callable[[Record], T]) -> list[T]:
    """`function` of every record.

    Raises:
        RefusedRecords: It raised for some: all of them, with the reasons.
    """
    results: list[T] = []
    refused: dict[int, str] = {}
    for record in records:
        try:
            results.append(function(record))
        except (ValueError, *UNDECODABLE) as error:
            refused[record.offset] = str(error)
    if refused:
        raise RefusedRecords(refused)
    return results


@dataclass(frozen=True)
class FileSink(Sink):
    """Files in a directory."""

    name: str
    directory: str
    format: FileFormat
    folders: tuple[str, ...] = ()
    """Fields by which records are put into folders of their own, the outermost first."""
    outside: Outside = OUTSIDE
    delivery: DeliveryKind = "idempotent"

    def open(self, outbox: str) -> FileWriter:
        """See `Sink`. Creates the directory.

        Raises:
            StorageError: It cannot be created or written.
        """
        storage = self.outside.directory(self.directory)
        # Outboxes of different stores number their records alike.
        mark = xxhash.xxh3_64_hexdigest(outbox.encode())[:8]
        return FileWriter(storage, f"{self.name}-{mark}", self.format, self.folders)


class FileWriter:
    """Writes the files of one sink; see `SinkWriter`."""

    def __init__(
        self, storage: Storage, stem: str, form: FileFormat, folders: tuple[str, ...] = ()
    ) -> None:
        self._storage = storage
        self._stem = stem
        self._format = form
        self._folders = folders

    def position(self) -> None:
        """See `SinkWriter`: the store keeps it."""

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        """See `SinkWriter`: one file for each folder, or none if there are no records."""
        name = f"{self._stem}-{first:020d}-{following:020d}.{self._format.suffix}"
        # All of them are made before the first is written: what is refused leaves nothing behind.
        contents = {
            folder: self._format.content(some) for folder, some in self._sorted(records).items()
        }
        for folder, content in contents.items():
            self._write_file(folder, name, content)

    def _sorted(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """The records by folder, in their order.

        Raises:
            RefusedRecords: Some are no JSON objects.
        """
        if not self._folders:
            return {"": list(records)} if records else {}
        found: dict[str, list[Record]] = {}
        for record, fields in zip(records, all_of(records, object_of), strict=True):
            parts = [f"{name}={_folder_text(fields.get(name))}" for name in self._folders]
            found.setdefault("/".join(parts), []).append(record)
        return found

    def _write_file(self, folder: str, name: str, content: bytes) -> None:
        storage = self._storage
        if folder:
            storage.make_directory(folder)
            folder += "/"
        unfinished = f"{folder}.{name}.unfinished"
        storage.remove(unfinished)  # of a process that died
        file = storage.open(unfinished, "x")
        try:
            file.write([content], 0)
            file.sync()
        finally:
            file.close()
        storage.rename(unfinished, f"{folder}{name}")
        storage.sync_directory(folder.rstrip("/"))

    def close(self) -> None:
        """See `SinkWriter`."""
        self._storage.close()
