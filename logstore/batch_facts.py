"""What headers and directories say of the rows of a batch, for whoever can leave batches out by it.

Values are said as the rows have them, which are JSON: a time is text, NaN and infinity are null.
Nothing is decoded here but bounds; what follows from them for a condition is for its owner.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from math import inf, isfinite
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .arrow_columns import directory_schema
from .column_section import Directory, Limits
from .format import BatchHeader
from .topic_schema import pyarrow, stored_schema

ROWS_MIN: Final = 256
"""Readers look at no facts of smaller batches: to decide costs as much as reading them."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS: Final = len("2013-01-31T00:00:00")
_PER_SECOND: Final = {"s": 1, "ms": 1000, "us": 1_000_000}

Kind: TypeAlias = Literal["nothing", "bool", "number", "text", "other"]


class FieldFacts(NamedTuple):
    """What a field may be in the rows of a batch.

    >>> FieldFacts("number", 3, 7, nulls=True)  # null, or a number from 3 to 7
    FieldFacts(kind='number', low=3, high=7, nulls=True, times_ms=None)
    """

    kind: Kind
    """What it is where it is not null; "nothing": it is null everywhere."""
    low: float | str | None = None
    """No number or text is below it; None: not known."""
    high: float | str | None = None
    """No number or text is above it; None: not known."""
    nulls: bool = False
    """Whether it may be null."""
    times_ms: tuple[int, int] | None = None
    """Of text that is an RFC 3339 time with a zone everywhere: UTC ms, no time is outside."""


NOTHING: Final = FieldFacts("nothing", nulls=True)


class BatchFacts:
    """Of one batch, before its rows are read. Immutable.

    Args:
        topic: Of the batch.
        partition: Of the batch.
        header: Checked.
        schema: The declared one in its stored form, if there is one.
        directory: Of a batch of columns, checked.
    """

    __slots__ = ("_schema", "directory", "header", "partition", "topic")

    def __init__(
        self,
        topic: str,
        partition: int,
        header: BatchHeader,
        schema: str | None,
        directory: Directory | None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.header = header
        self.directory = directory
        self._schema = schema

    @property
    def offsets(self) -> tuple[int, int]:
        """No record has one outside of these."""
        base = self.header.base_offset
        return base, base + self.header.last_offset_delta

    @property
    def timestamps_ms(self) -> tuple[int, int]:
        """No record has one outside of these."""
        return self.header.min_timestamp_ms, self.header.max_timestamp_ms

    @property
    def names(self) -> tuple[str, ...] | None:
        """The fields that each value has; None: values are no columns, and may be anything."""
        if self._schema is None or self.directory is None:
            return None
        return tuple(stored_schema(self._schema).names)

    def field(self, name: str) -> FieldFacts:
        """What is known of a field, of a batch of columns.

        Raises:
            CorruptBatchError: What the directory says makes no sense.
        """
        directory = self.directory
        assert self._schema is not None
        assert directory is not None
        declared = stored_schema(self._schema)
        if name not in declared.names:
            return NOTHING
        stored = directory_schema(directory)
        if name not in stored.names:  # added later
            return NOTHING
        number = stored.names.index(name)
        entry = directory.entries[number]
        # How many records are rows, the header does not say where some are tombstones.
        if entry.null_count == self.header.record_count and not self.header.has_tombstones:
            return NOTHING
        facts = _facts(
            declared.field(name).type, stored.field(number).type, directory.limits(number)
        )
        nulls = facts.nulls or entry.null_count > 0 or self.header.has_tombstones
        return facts._replace(nulls=nulls)


MayHold: TypeAlias = Callable[[BatchFacts], bool]
"""Whether a record of a batch may be wanted: False leaves the batch out, and is to be sure."""


def _facts(  # noqa: PLR0911 - a case for each kind of type
    declared: Any, stored: Any, limits: Limits | None
) -> FieldFacts:
    t = pyarrow().types
    if t.is_boolean(declared):
        return FieldFacts("bool")
    if t.is_integer(declared):
        return _number(limits)
    if t.is_floating(declared):
        found = _number(limits)
        # Where there is a NaN there are no bounds. It is null in a row, as infinity is.
        known = limits is not None and all(map(isfinite, _numbers(limits)))
        return found if known else FieldFacts("number", nulls=True)
    if t.is_string(declared) or t.is_large_string(declared):
        return _text(limits)
    if t.is_timestamp(declared):
        return _time(stored, limits)
    if t.is_date32(declared):
        return _day(limits)
    return FieldFacts("other")


def _numbers(limits: Limits) -> tuple[float, float]:
    low, high = limits
    return (-inf, inf) if isinstance(low, bytes) or isinstance(high, bytes) else (low, high)


def _number(limits: Limits | None) -> FieldFacts:
    return FieldFacts("number") if limits is None else FieldFacts("number", *_numbers(limits))


def _text(limits: Limits | None) -> FieldFacts:
    if limits is None or not isinstance(limits[0], bytes) or not isinstance(limits[1], bytes):
        return FieldFacts("text")
    try:
        return FieldFacts("text", limits[0].decode(), limits[1].decode())
    except UnicodeDecodeError:
        return FieldFacts("text")


def _time(stored: Any, limits: Limits | None) -> FieldFacts:
    """Texts of times are in their order but for fractions: `12:00:00.5Z` is before `12:00:00Z`."""
    if limits is None:
        return FieldFacts("other")
    low, high = limits
    per_second = _PER_SECOND[stored.unit]
    try:
        first, last = (
            (_EPOCH + timedelta(seconds=int(limit) // per_second)).isoformat()[:_SECONDS]
            for limit in (low, high)
        )
    except OverflowError:
        return FieldFacts("other")
    times = (int(low) * 1000 // per_second, -(-int(high) * 1000 // per_second))
    zone = stored.tz is not None
    return FieldFacts("text", first, last + "Z", times_ms=times if zone else None)


def _day(limits: Limits | None) -> FieldFacts:
    if limits is None:
        return FieldFacts("text")
    try:
        low, high = (
            (date(1970, 1, 1) + timedelta(days=int(limit))).isoformat() for limit in limits
        )
    except OverflowError:
        return FieldFacts("other")
    return FieldFacts("text", low, high)
