"""Records as JSON lines and back, bit for bit. Pure.

    {"topic":"t","partition":0,"offset":7,"timestamp":1763892000000,"key":"k","value":"v",
     "headers":[["name","value"]]}

Bytes that are not UTF-8 are {"$base64":true,"encoded":"..."}, null is null, the timestamp is UTC
milliseconds. Reading takes what writing gives, and what kcat and rpk write: `payload` for
`value`, `ts` for `timestamp`, headers as a flat list, as an object or as {"key":, "value":}, and
`id` for the header `record-id`.
`value` is required, so that a misspelt field is not taken for a tombstone; other fields are
ignored. Topic and offset are where a record was, not where it goes.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from millstream import Headers, Record


def is_written(line: bytes) -> bool:
    """Whether a line looks as these are written here.

    >>> is_written(b'{"topic":"t","partition":0,"offset":7}'), is_written(b'{"topic":"t"}')
    (True, False)
    """
    return line.startswith(b'{"topic":"') and b'","partition":' in line and b',"offset":' in line


class Base64(Struct, rename={"marker": "$base64"}):
    """Bytes that are not UTF-8."""

    marker: bool
    encoded: str


Text: TypeAlias = str | Base64 | None


class _Output(Struct):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Text
    value: Text
    headers: list[tuple[str, Text]]


_Timestamp: TypeAlias = Annotated[int, Meta(gt=-(2**63), le=2**63 - 1)]


class _Input(Struct):
    value: Text | UnsetType = UNSET
    payload: Text | UnsetType = UNSET
    key: Text = None
    timestamp: _Timestamp | None = None
    timestamp_ms: _Timestamp | None = None
    ts: _Timestamp | None = None
    partition: int | None = None
    headers: list[object] | dict[str, object] | None = None
    id: Text | int = None


class Parsed(NamedTuple):
    """Columns read from JSON lines; `error` says why reading stopped, None at the end."""

    values: list[bytes | None]
    keys: list[bytes | None]
    timestamps_ms: list[int | None]
    partitions: list[int | None]
    headers: list[Headers]
    error: LineError | None


class LineError(NamedTuple):
    """A line that is not a record."""

    line: int
    """Number of the line, from 1."""
    reason: str
    path: str | None = None
    """File it is in; None for standard input."""

    def __str__(self) -> str:
        place = f"line {self.line}" if self.path is None else f"{self.path}, line {self.line}"
        return f"{place}: {self.reason}"


class _RecordJsonError(ValueError):
    """JSON, but not a record."""


RECORD_ID: Final = "record-id"
"""The header that is the id of a record."""

_fields: Final = attrgetter(
    "topic", "partition", "offset", "timestamp_ms", "key", "value", "headers"
)
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Input).decode


def encode_records(records: Sequence[Record]) -> Iterator[bytes]:
    """One JSON line, with its newline, per record.

    >>> next(encode_records([Record("t", 0, 7, 5, None, b"a", ())]))
    b'{"topic":"t","partition":0,"offset":7,"timestamp":5,"key":null,"value":"a","headers":[]}\\n'
    """
    outputs = [
        _Output(topic, partition, offset, ts, to_text(key), to_text(value), _header_texts(headers))
        for topic, partition, offset, ts, key, value, headers in map(_fields, records)
    ]
    return map(b"%b\n".__mod__, map(_encode, outputs))


def to_text(data: bytes | None) -> Text:
    """A JSON value that keeps every byte of `data`."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Base64(True, b64encode(data).decode())


def _header_texts(headers: Headers) -> list[tuple[str, Text]]:
    return [(name, to_text(value)) for name, value in headers] if headers else []


def parse_lines(lines: Sequence[bytes], first_line: int) -> Parsed:
    """Parse JSON lines up to the first one that is not a record.

    Args:
        lines: One JSON object each; blank lines are skipped.
        first_line: Number of the first of them, for the error.

    Returns:
        The columns of all records before the first bad line, and that line's error.
    """
    parsed = Parsed([], [], [], [], [], None)
    for number, line in enumerate(lines, first_line):
        if not line.strip():
            continue
        try:
            _append(parsed, _decode(line))
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            return parsed._replace(error=LineError(number, _reason(error)))
    return parsed


def _append(parsed: Parsed, record: _Input) -> None:
    value = record.value if record.value is not UNSET else record.payload
    if isinstance(value, UnsetType):
        raise _RecordJsonError('no "value"; write null for a tombstone')
    # Everything that can fail comes before the first column grows.
    data, key = _to_bytes(value), _to_bytes(record.key)
    headers = parse_headers(record.headers) if record.headers else ()
    if record.id is not None:
        name = str(record.id) if isinstance(record.id, int) else record.id
        headers = (*headers, (RECORD_ID, _to_bytes(name)))
    timestamp_ms = record.timestamp
    if timestamp_ms is None:
        timestamp_ms = record.timestamp_ms if record.timestamp_ms is not None else record.ts
    parsed.values.append(data)
    parsed.keys.append(key)
    parsed.timestamps_ms.append(timestamp_ms)
    parsed.partitions.append(record.partition)
    parsed.headers.append(headers)


def _to_bytes(text: Text) -> bytes | None:
    if type(text) is str:
        return text.encode()
    if isinstance(text, Base64):
        if not text.marker:
            raise _RecordJsonError('"$base64" must be true')
        return b64decode(text.encoded, validate=True)
    return None


def parse_headers(headers: list[object] | dict[str, object]) -> Headers:
    """Headers of a record from any of the forms they are written in; ValueError if of none."""
    if isinstance(headers, dict):
        return tuple((name, _header_bytes(value)) for name, value in headers.items())
    if all(item is None or isinstance(item, str) for item in headers):
        if len(headers) % 2:
            raise _RecordJsonError("a flat list of headers has a name without a value")
        flat = list(pairwise(headers))[::2]
        return tuple((_header_name(name), _header_bytes(value)) for name, value in flat)
    pairs: list[tuple[str, bytes | None]] = []
    for item in headers:
        if isinstance(item, list) and len(item) == 2:
            name, value = item
        elif isinstance(item, dict) and "key" in item:
            name, value = item["key"], item.get("value")
        else:
            raise _RecordJsonError("a header is not a [name, value] pair")
        pairs.append((_header_name(name), _header_bytes(value)))
    return tuple(pairs)


def _header_name(name: object) -> str:
    if not isinstance(name, str):
        raise _RecordJsonError("a header name is not a string")
    return name


def _header_bytes(value: object) -> bytes | None:
    try:
        return _to_bytes(msgspec.convert(value, Text))
    except msgspec.ValidationError:
        raise _RecordJsonError("a header value is not a string, null or $base64") from None


def _reason(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError | _RecordJsonError):
        return str(error)
    if isinstance(error, RecursionError):
        return "not JSON: nested too deeply"
    return f"not JSON: {error}"
