"""The sections of one batch as columns, each decoded at most once, when it is asked for. Pure.

What readers see of it, and slices, are `record_batch.py`. The bytes were verified before
(batch.verify_body); the buffers inside are still checked against each other, because a hash says
that bytes are what was written, not that they make sense.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, Final

from .arrow_batch import ArrowColumns, Projection, section_columns
from .arrow_columns import bad_record, from_json, has_sayable_times, to_json
from .columns import (
    decode_binary,
    decode_bitmap,
    decode_headers,
    decode_integers,
    decode_joined,
    decode_offsets,
    decode_selected,
    padded,
    require_end,
)
from .compression import decompress
from .errors import CorruptBatchError, RecordError, UsageError
from .format import (
    COLUMNS,
    HAS_HEADERS,
    HAS_KEYS,
    NULL_KEYS,
    NULL_VALUES,
    OFFSET_DELTAS,
    TOMBSTONES,
    UNIFORM_TIMESTAMP,
    BatchHeader,
    Buffer,
)
from .record import Headers
from .topic_schema import pyarrow, stored_schema

_SECTION_A: Final = 0
_SECTION_B: Final = 1
_SECTION_C: Final = 2
_INVERTED: Final = bytes.maketrans(b"\x00\x01", b"\x01\x00")


class BatchColumns:
    """The decoded columns of one whole batch, shared by all slices of it.

    Two threads may decode the same column at once; both get the same answer.
    """

    __slots__ = (
        "_arrow",
        "_body",
        "_headers",
        "_joined",
        "_joined_known",
        "_keys",
        "_lead",
        "_present",
        "_projection",
        "_values",
        "header",
        "parsed",
        "schema",
    )

    def __init__(
        self,
        header: BatchHeader,
        body: Buffer,
        schema: str | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.header = header
        self.schema = schema
        self._projection = projection
        self._arrow: ArrowColumns | None = None
        self.parsed: Any = None
        # Slices of a view copy nothing; only the entries of a column become bytes of their own.
        self._body = memoryview(body)
        self._lead: tuple[list[int], Sequence[int], int, Buffer] | None = None
        self._keys: list[bytes | None] | None = None
        self._values: list[bytes | None] | None = None
        self._joined: tuple[bytes, Sequence[int]] | None = None
        self._joined_known = False
        self._headers: list[Headers] | None = None
        self._present: bytes | None = None

    def _section(self, number: int) -> Buffer:
        if self._projection is not None and number != _SECTION_A:
            raise UsageError("only some columns were read: read without columns= for records")
        sections = self.header.sections
        start = sum(section.stored_bytes for section in sections[:number])
        stored_bytes, raw_bytes, _ = sections[number]
        stored = self._body[start : start + stored_bytes]
        if stored_bytes == raw_bytes or (number == _SECTION_B and self.header.flags & COLUMNS):
            return stored
        return decompress(self.header.codec, stored, raw_bytes)

    def _leading(self) -> tuple[list[int], Sequence[int], int, Buffer]:
        """Timestamps, offsets, where the keys start in section A, and section A."""
        if self._lead is not None:
            return self._lead
        header = self.header
        count = header.record_count
        section = self._section(_SECTION_A)
        position = 0
        if header.flags & UNIFORM_TIMESTAMP:
            timestamps = [header.min_timestamp_ms] * count
        else:
            timestamps = decode_integers("q", section, position, count)
            position += 8 * count
        base = header.base_offset
        offsets: Sequence[int] = range(base, base + count)
        if header.flags & OFFSET_DELTAS:
            deltas = decode_integers("I", section, position, count)
            position += padded(4 * count)
            if sorted(set(deltas)) != deltas or deltas[-1] > header.last_offset_delta:
                raise CorruptBatchError("offset deltas do not rise within the batch")
            offsets = [base + delta for delta in deltas]
        if not header.flags & (HAS_KEYS | TOMBSTONES):
            require_end(section, position)
        self._lead = (timestamps, offsets, position, section)
        return self._lead

    @property
    def timestamps_ms(self) -> list[int]:
        """Timestamp of each record."""
        return self._leading()[0]

    @property
    def offsets(self) -> Sequence[int]:
        """Offset of each record."""
        header = self.header
        if not header.flags & OFFSET_DELTAS:
            return range(header.base_offset, header.base_offset + header.record_count)
        return self._leading()[1]

    @property
    def keys(self) -> list[bytes | None]:
        """Key of each record."""
        if self._keys is None:
            header = self.header
            if header.flags & HAS_KEYS:
                _, _, position, section = self._leading()
                nullable = bool(header.flags & NULL_KEYS)
                keys, end = decode_binary(section, position, header.record_count, nullable=nullable)
                self._require_end(section, end)
                self._keys = keys
            else:
                self._keys = [None] * header.record_count
        return self._keys

    def _require_end(self, section: Buffer, end: int) -> None:
        """That section A ends behind the keys, or which values are there comes next."""
        bitmap_bytes = self.header.record_count + 7 >> 3
        require_end(section, end + padded(bitmap_bytes) * bool(self.header.flags & TOMBSTONES))

    @property
    def present(self) -> bytes | None:
        """A byte per record: 1 where there is a value. None: everywhere."""
        if self._present is None and self.header.has_tombstones:
            self._present = self._read_present()
        return self._present

    def _read_present(self) -> bytes:
        header = self.header
        count = header.record_count
        if header.flags & TOMBSTONES:
            _, _, start, section = self._leading()
            position = len(section) - padded(count + 7 >> 3)
            if position < start or (position > start and not header.flags & HAS_KEYS):
                raise CorruptBatchError("validity bitmap is not where section A ends")
            return decode_bitmap(section, position, count)
        section = self._section(_SECTION_B)
        offsets, start = decode_offsets(section, 0, count)
        return decode_bitmap(section, start + padded(offsets[-1]), count)

    @property
    def rows(self) -> int:
        """How many records have a value."""
        present = self.present
        return self.header.record_count if present is None else present.count(1)

    @property
    def values(self) -> list[bytes | None]:
        """Value of each record; columns become JSON."""
        if self._values is None:
            header = self.header
            if header.record_count == 0:
                self._values = []
                return self._values
            section = self._section(_SECTION_B)
            if header.flags & COLUMNS:
                arrow = self.arrow
                # As the topic is declared now: rows, columns and SQL say the same of old batches.
                schema = arrow.schema if self.schema is None else stored_schema(self.schema)
                fields = list(schema)
                columns = [arrow.column(field) for field in fields]
                try:
                    self._values = self._spread(to_json(columns, fields))
                except OverflowError:
                    raise self._unsayable(columns) from None
                return self._values
            nullable = bool(header.flags & NULL_VALUES)
            values, end = decode_binary(section, 0, header.record_count, nullable=nullable)
            require_end(section, end)
            self._values = values
        return self._values

    def _unsayable(self, columns: Sequence[Any]) -> RecordError:
        """The error for times that older versions took from Arrow data, and JSON cannot say."""
        present = self.present
        there = self.offsets if present is None else compress(self.offsets, present)
        offset = next(
            offset
            for row, offset in enumerate(there)
            if not all(has_sayable_times(column.slice(row, 1)) for column in columns)
        )
        return RecordError(
            "a date or timestamp is outside of the years 1 to 9999, which has no form in JSON:"
            " read the columns with arrow()",
            offset=offset,
        )

    def _spread(self, texts: list[bytes]) -> list[bytes | None]:
        """The values that are there, and None for the others."""
        present = self.present
        if present is None:
            return [*texts]
        following = iter(texts)
        return [next(following) if there else None for there in present]

    @property
    def joined_values(self) -> tuple[bytes, Sequence[int]] | None:
        """See `RecordBatch.joined_values`."""
        if not self._joined_known:
            header = self.header
            if header.record_count and not header.flags & (COLUMNS | NULL_VALUES):
                self._joined = decode_joined(self._section(_SECTION_B), header.record_count)
            # Also that there are none: a batch may be handed out a record at a time.
            self._joined_known = True
        return self._joined

    @property
    def arrow(self) -> ArrowColumns:
        """Of a batch of columns."""
        if self._arrow is None:
            rows = self.rows
            if self._projection is not None:
                self._arrow = ArrowColumns(self._projection, rows)
            else:
                section, directory_hash = self._section(_SECTION_B), self.header.sections[1].hash
                self._arrow = section_columns(section, directory_hash, rows)
        return self._arrow

    def column(self, field: Any) -> Any:
        """One column of the values that are there as a pyarrow.Array."""
        if self.header.flags & COLUMNS:
            return self.arrow.column(field)
        if self.parsed is None:
            self.parsed = self._parse()
        return self.parsed.column(field.name)

    @property
    def objects(self) -> tuple[Buffer, int] | None:
        """Section B and its count where values are JSON that Arrow may parse; else None."""
        header = self.header
        if self.parsed is not None or self._values is not None or not header.record_count:
            return None
        strict = self.schema is None or header.flags & (COLUMNS | NULL_VALUES)
        return None if strict else (self._section(_SECTION_B), header.record_count)

    def _parse(self) -> Any:
        """The JSON values as a pyarrow.RecordBatch of the schema of the topic."""
        from .json_columns import parse_together  # noqa: PLC0415 - an extra

        parse_together([self])
        if self.parsed is not None:
            return self.parsed
        assert self.schema is not None
        offsets = [
            offset
            for offset, value in zip(self.offsets, self.values, strict=True)
            if value is not None
        ]
        values = [value for value in self.values if value is not None]
        return from_json(values, self.schema, lambda row, why: bad_record(offsets[row], why))

    def record_column(self, name: str, partition: int) -> Any:
        """One column of what records with a value have beside it."""
        column = self._record_column(name, partition)
        present = self.present
        return column if present is None else column.filter(pyarrow().array(map(bool, present)))

    def _record_column(self, name: str, partition: int) -> Any:
        pa, header = pyarrow(), self.header
        if name == "_partition":
            return pa.repeat(pa.scalar(partition, pa.int32()), header.record_count)
        if name == "_key":
            return pa.array(self.keys, pa.binary())
        if name == "_timestamp_ms":
            if header.flags & UNIFORM_TIMESTAMP:
                return pa.repeat(
                    pa.scalar(header.min_timestamp_ms, pa.int64()), header.record_count
                )
            section = self._leading()[3]
            buffer = pa.py_buffer(bytes(section[: 8 * header.record_count]))
            return pa.Array.from_buffers(pa.int64(), header.record_count, [None, buffer])
        import numpy  # noqa: PLC0415 - an extra

        offsets = self.offsets
        if isinstance(offsets, range):
            return pa.array(numpy.arange(offsets.start, offsets.stop))
        return pa.array(offsets, pa.int64())

    def tombstones(self) -> bytes:
        """A byte per record: 1 for a tombstone."""
        present = self.present
        if present is None:
            return bytes(self.header.record_count)
        return present.translate(_INVERTED)

    def stored_values(self) -> Buffer:
        """Section B as it is stored."""
        a_bytes, b_bytes = (section.stored_bytes for section in self.header.sections[:2])
        return self._body[a_bytes : a_bytes + b_bytes]

    def values_at(self, indexes: Sequence[int]) -> list[Buffer | None]:
        """Some values, without decoding the others."""
        if self.header.flags & COLUMNS:
            return [self.values[index] for index in indexes]
        nullable = bool(self.header.flags & NULL_VALUES)
        section = self._section(_SECTION_B)
        return decode_selected(section, self.header.record_count, indexes, nullable=nullable)

    @property
    def headers(self) -> list[Headers]:
        """Headers of each record."""
        if self._headers is None:
            header = self.header
            if header.flags & HAS_HEADERS:
                self._headers = decode_headers(self._section(_SECTION_C), header.record_count)
            else:
                self._headers = [()] * header.record_count
        return self._headers
