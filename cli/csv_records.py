"""Records as rows of CSV, and back: every byte of keys, values and headers survives. Pure.

    partition,offset,timestamp,key,value,headers,marks
    0,17,1700000000000,u1,some text,,
    0,18,1700000000001,,/wA=,,key=null value=base64

The column `marks` says what a cell cannot: that it is null, or bytes that are not UTF-8. Headers
are JSON as in `envelope.py`. When reading only `value` has to be there; without `marks` an empty
key is null and an empty value is empty. Columns of other names are ignored.
"""

from __future__ import annotations

import csv
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from millstream import Headers, Record

from .chunks import Chunk
from .envelope import LineError, parse_headers, to_text
from .input import BLOCK_BYTES, RECORD_BYTES_MAX

COLUMNS: Final = ("partition", "offset", "timestamp", "key", "value", "headers", "marks")
_LINE_END: Final = "\r\n"
_INT64_MAX: Final = 2**63 - 1


def header_line() -> bytes:
    """The names of the columns."""
    return (",".join(COLUMNS) + "\n").encode()


def encode_rows(records: Sequence[Record]) -> Iterator[bytes]:
    """The rows of some records, as one piece."""
    lines = _Lines()
    # With this end, cells that hold either of its characters are quoted.
    writer = csv.writer(lines, lineterminator=_LINE_END)
    for record in records:
        marks: list[str] = []
        writer.writerow(
            (
                record.partition,
                record.offset,
                record.timestamp_ms,
                _cell("key", record.key, marks),
                _cell("value", record.value, marks),
                _headers_cell(record.headers),
                " ".join(marks),
            )
        )
    yield "".join(lines.lines).encode()


class _Lines:
    """Takes the lines of a CSV writer."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(f"{line.removesuffix(_LINE_END)}\n")


def _cell(name: str, data: bytes | None, marks: list[str]) -> str:
    if data is None:
        marks.append(f"{name}=null")
        return ""
    try:
        return data.decode()
    except UnicodeDecodeError:
        marks.append(f"{name}=base64")
        return b64encode(data).decode()


def _headers_cell(headers: Headers) -> str:
    if not headers:
        return ""
    return msgspec.json.encode([(name, to_text(value)) for name, value in headers]).decode()


class _CellError(ValueError):
    """A cell that is not what its column holds."""


def parse_rows(lines: Iterable[str], now_ms: int) -> Iterator[Chunk]:
    """Chunks of the records in the text of a CSV file; the last one may end with an error.

    Args:
        lines: With their ends, as they are in the file.
        now_ms: The time of records without one.
    """
    csv.field_size_limit(2 * RECORD_BYTES_MAX)
    reader = csv.reader(lines, strict=True)
    rows, error = _Rows(now_ms), None
    names: list[str] | None = None
    line, size = 1, 0
    try:
        for cells in reader:
            if names is None:
                names = _column_names(cells)
            elif cells:
                rows.add(_named(names, cells))
                size += sum(map(len, cells))
            line = reader.line_num + 1
            if size > BLOCK_BYTES:
                yield rows.chunk(None)
                rows, size = _Rows(now_ms), 0
    except UnicodeDecodeError as bad:
        error = LineError(reader.line_num + 1, f"not UTF-8: {bad.reason}")
    except (csv.Error, ValueError, RecursionError) as bad:
        error = LineError(line, str(bad))
    yield rows.chunk(error)


def _column_names(cells: list[str]) -> list[str]:
    if "value" not in cells:
        raise _CellError('the first line names no column "value"')
    for name in cells:
        if name in COLUMNS and cells.count(name) > 1:
            raise _CellError(f"the first line names the column {name!r} twice")
    return cells


def _named(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(names):
        raise _CellError(f"{len(cells)} cells, but there are {len(names)} columns")
    return dict(zip(names, cells, strict=True))


class _Rows:
    """The columns that are being filled."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._values: list[bytes | None] = []
        self._keys: list[bytes | None] = []
        self._timestamps_ms: list[int] = []
        self._partitions: list[int | None] = []
        self._headers: list[Headers] = []

    def add(self, row: dict[str, str]) -> None:
        """Take one row over, whole or not at all."""
        marks = _marks(row.get("marks", ""))
        key_text = row.get("key", "")
        key = _bytes("key", key_text, marks)
        if not key_text and "marks" not in row:
            key = None
        value = _bytes("value", row["value"], marks)
        timestamp_ms = _integer("timestamp", row.get("timestamp", ""))
        partition = _integer("partition", row.get("partition", ""))
        headers = _headers(row.get("headers", ""))
        self._values.append(value)
        self._keys.append(key)
        self._timestamps_ms.append(self._now_ms if timestamp_ms is None else timestamp_ms)
        self._partitions.append(partition)
        self._headers.append(headers)

    def chunk(self, error: LineError | None) -> Chunk:
        """Everything so far."""
        return Chunk(
            self._values,
            self._keys,
            self._timestamps_ms,
            self._partitions,
            self._headers if any(self._headers) else None,
            error,
        )


def _marks(text: str) -> dict[str, str]:
    marks = dict(mark.partition("=")[::2] for mark in text.split())
    for name, mark in marks.items():
        if name not in {"key", "value"} or mark not in {"null", "base64"}:
            raise _CellError(f'"{name}={mark}" is no mark: key or value, =null or =base64')
    return marks


def _bytes(name: str, text: str, marks: dict[str, str]) -> bytes | None:
    mark = marks.get(name)
    if mark is None:
        return text.encode()
    if mark == "base64":
        try:
            return b64decode(text, validate=True)
        except ValueError:
            raise _CellError(f"{name} is not base64") from None
    if text:
        raise _CellError(f"{name} is marked as null, but is not empty")
    return None


def _integer(name: str, text: str) -> int | None:
    if not text:
        return None
    digits = text.removeprefix("-")
    if len(digits) > 19 or not (digits.isascii() and digits.isdecimal()):
        raise _CellError(f"{name} is {text[:30]!r}: not a whole number")
    value = int(text)
    if abs(value) > _INT64_MAX:
        raise _CellError(f"{name} is {text}: does not fit into 64 bits")
    return value


def _headers(text: str) -> Headers:
    if not text:
        return ()
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _CellError(f"headers are not JSON: {error}") from None
    if not isinstance(found, list | dict):
        raise _CellError("headers are not a list of [name, value]")
    return parse_headers(found)
