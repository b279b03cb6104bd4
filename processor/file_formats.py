"""What the files of a sink look like: JSON values one a line, and CSV; their rows are told apart.

Pure: from records to bytes, and from bytes to rows. Where the files are is file_sink.py's business.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from millstream import Record

from .connectors import RefusedRecords
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

    @property
    def header_rows(self) -> int:
        """How many rows come before the first record."""
        ...

    def rows(self, content: bytes) -> list[bytes]:
        """The rows of a file, which may be damaged: together they are all of it."""
        ...


@dataclass(frozen=True, slots=True)
class JsonLinesFile:
    """The values, one a line. A tombstone is `null`."""

    suffix: str = "jsonl"
    header_rows: int = 0

    def content(self, records: Sequence[Record]) -> bytes:
        """See `FileFormat`."""
        return b"".join(all_of(records, _json_line))

    def rows(self, content: bytes) -> list[bytes]:
        """See `FileFormat`."""
        return _lines(content)


def _lines(content: bytes) -> list[bytes]:
    """Lines with their ends; the last one may have none."""
    *whole, rest = content.split(b"\n")
    return [line + b"\n" for line in whole] + [rest] * bool(rest)


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
    header_rows: int = 1

    def content(self, records: Sequence[Record]) -> bytes:
        """See `FileFormat`. Missing and null fields are empty."""
        return (self._plain(records) or self._any(records)).encode()

    def rows(self, content: bytes) -> list[bytes]:
        """See `FileFormat`. Where quotes are open, the end of a line ends no row."""
        rows: list[bytes] = []
        begun = b""
        for line in _lines(content):
            begun += line
            if begun.count(b'"') % 2 == 0:
                rows.append(begun)
                begun = b""
        return rows + [begun] * bool(begun)

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


def _folder_text(value: Json) -> str:
    """A value in the name of a folder, as Hive, Spark, DuckDB and Polars read it back."""
    text = _csv_field(value)
    return quote(text, safe=" ") if text else _NO_VALUE


def by_folder(records: Sequence[Record], folders: Sequence[str]) -> dict[str, list[Record]]:
    """The records by the folder they belong into, in their order.

    Args:
        records: What goes into the files of one delivery.
        folders: Fields by whose values they are put into folders; none: all in one file.

    Raises:
        RefusedRecords: Some are no JSON objects.
    """
    if not folders:
        return {"": list(records)} if records else {}
    found: dict[str, list[Record]] = {}
    for record, fields in zip(records, all_of(records, object_of), strict=True):
        parts = [f"{name}={_folder_text(fields.get(name))}" for name in folders]
        found.setdefault("/".join(parts), []).append(record)
    return found
