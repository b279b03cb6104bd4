"""Rows between operators as Arrow columns that become Python objects only when somebody asks.

A frame stands for a list of values: Structs of plain fields, or dicts. It gives their fields as
columns of int64, float64, bool, string or times in UTC, nulls for None, and it gives the values
themselves, both made when they are first asked for. A `FrameChunk` is to a frame what a `Chunk` is
to a list.

What is not such a column is refused with `NotInColumnsError`, among it NaN and infinity: JSON has
neither, so the rows do not mean what the columns say. Nothing is computed here; what operators do
with frames is in frame_operators.py and frame_windowing.py.

This module needs the extra `arrow`, so it is imported only where the column lane is used.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Any, Final, NamedTuple, TypeAlias, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .columns import Chunk, Rows
from .frame_errors import NotInColumnsError

Ints: TypeAlias = "npt.NDArray[np.int64]"
Mask: TypeAlias = "npt.NDArray[np.bool_]"
Array: TypeAlias = Any
"""A pyarrow.Array; pyarrow has no types of its own."""

_TYPES: Final[Mapping[object, Any]] = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    datetime: pa.timestamp("us", "UTC"),
}
"""What a field of a Struct may be declared as, with its column."""


class PlainField(NamedTuple):
    """A field of a Struct that is a column."""

    type: Any
    nullable: bool
    absent_is_null: bool
    """Whether it is None where JSON does not have it."""


def plain_fields(kind: type) -> dict[str, PlainField] | None:
    """Fields of a Struct by name; None where it is not made of those alone.

    Whoever constructs or decodes one gets fields of exactly these types: a default of another type
    would be taken as it is, and is refused here.
    """
    if not issubclass(kind, msgspec.Struct) or hasattr(kind, "__post_init__"):
        return None
    fields = {}
    for field in msgspec.structs.fields(kind):
        parts = get_args(field.type) or (field.type,)
        plain = [part for part in parts if part is not NoneType]
        if len(plain) != 1 or plain[0] not in _TYPES or not _is_union_of(field.type, parts):
            return None
        if field.default_factory is not msgspec.NODEFAULT:
            return None
        if field.default is not msgspec.NODEFAULT and type(field.default) not in parts:
            return None
        absent_is_null = field.default is None
        fields[field.name] = PlainField(_TYPES[plain[0]], NoneType in parts, absent_is_null)
    return fields


def _is_union_of(declared: object, parts: Sequence[object]) -> bool:
    """Whether it is one type, or a union; `list[int]` has arguments, too."""
    return (len(parts) == 1 and declared is parts[0]) or NoneType in parts


def normal(array: Array, name: str) -> Array:
    """A column as the lane knows them.

    Raises:
        NotInColumnsError: It is of another type, or has values that JSON does not.
    """
    kind, t = array.type, pa.types
    if t.is_int64(kind) or t.is_string(kind) or t.is_boolean(kind) or t.is_null(kind):
        return array
    if t.is_timestamp(kind) and kind.tz == "UTC":
        try:
            return array if kind.unit == "us" else array.cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid as error:
            raise NotInColumnsError(f"{name}: {error}") from None
    if t.is_floating(kind):
        array = array if t.is_float64(kind) else array.cast(pa.float64())
        if not all_finite(array):
            raise NotInColumnsError(f"{name} has NaN or infinity")
        return array
    if t.is_large_string(kind) or t.is_integer(kind):
        try:
            return array.cast(pa.string() if t.is_large_string(kind) else pa.int64())
        except pa.ArrowInvalid as error:
            raise NotInColumnsError(f"{name}: {error}") from None
    raise NotInColumnsError(f"{name} is {kind}")


def plain_column(values: Sequence[Any]) -> Array:
    """Values of one type and None as a column.

    Raises:
        NotInColumnsError: They are none.
    """
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    only = kinds.pop()
    kind = _TYPES.get(only)
    if kind is None or kinds or only is datetime:
        raise NotInColumnsError("values of several types")
    try:
        return normal(pa.array(values, kind), "a value")
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise NotInColumnsError(str(error)) from None


def all_finite(array: Array) -> bool:
    """Whether no value of a column of floats is NaN or infinite."""
    numbers = array.fill_null(0.0) if array.null_count else array
    # The sum is finite only if all are; where it is not, it may have overflowed.
    column = numbers.to_numpy(zero_copy_only=False)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(column.sum()) or np.isfinite(column).all())


def to_list(array: Array) -> list[Any]:
    """The values of a column as Python objects."""
    if pa.types.is_timestamp(array.type):
        # The zone must be that of a decoded value, not one that just equals it.
        naive = array.cast(pa.timestamp("us")).to_pylist()
        return [None if each is None else each.replace(tzinfo=UTC) for each in naive]
    if array.null_count or pa.types.is_string(array.type) or pa.types.is_null(array.type):
        return array.to_pylist()  # type: ignore[no-any-return]
    return array.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]


class Frame(ABC):
    """Values as columns. They do not change."""

    __slots__ = ()

    kind: type
    """Of every value: a Struct, or dict."""
    names: tuple[str, ...]
    """Fields of every value, in their order."""
    row_count: int
    types: tuple[Any, ...] | None
    """Of the columns, where they are known without reading them."""

    @abstractmethod
    def column(self, name: str) -> Array:
        """A field of all values: int64, float64, bool, string, timestamp[us, UTC] or null.

        Raises:
            NotInColumnsError: It is none of those, or there is no such field.
        """

    def member(self, name: str, field: str) -> Array:
        """A field of the objects that a field holds; see `column`.

        Raises:
            NotInColumnsError: It holds none that can be columns.
        """
        raise NotInColumnsError(f"no column {name}.{field}")

    def require(self, names: Iterable[str]) -> None:
        """Make sure of columns that are asked for later, where nobody can go on with rows.

        Raises:
            NotInColumnsError: One is none.
        """
        for name in names:
            self.column(name)

    @property
    @abstractmethod
    def values(self) -> list[Any]:
        """The values themselves."""

    @abstractmethod
    def pick(self, mask: Mask) -> Frame:
        """Those whose flag is true."""

    @abstractmethod
    def take(self, places: Ints) -> Frame:
        """Those at some places, in that order."""

    @abstractmethod
    def cut(self, start: int, stop: int) -> Frame:
        """Those from `start` on, before `stop`."""


class ColumnFrame(Frame):
    """Columns that are there, or can be read; the values are made of them.

    Args:
        row_count: Number of values.
        names: Fields in their order.
        kind: Dict, or a Struct that is made by a call with all of `names` in this order.
        load: Gives the column of a name, normal. It never refuses: that has been seen to.
        types: Types of the columns, where they are known without reading them.
    """

    __slots__ = ("_columns", "_load", "_values", "kind", "names", "row_count", "types")

    def __init__(
        self,
        row_count: int,
        names: Sequence[str],
        kind: type,
        load: Callable[[str], Array],
        types: tuple[Any, ...] | None = None,
    ) -> None:
        self.types = types
        self.row_count = row_count
        self.names = tuple(names)
        self.kind = kind
        self._load = load
        self._columns: dict[str, Array] = {}
        self._values: list[Any] | None = None

    def column(self, name: str) -> Array:
        """A field of all values; see `Frame.column`."""
        found = self._columns.get(name)
        if found is None:
            if name not in self.names:
                raise NotInColumnsError(f"no field {name}")
            found = self._columns[name] = self._load(name)
        return found

    def require(self, names: Iterable[str]) -> None:
        """Nothing to do: all of them are there, or can be read."""

    @property
    def values(self) -> list[Any]:
        """The values, made of all columns."""
        if self._values is None:
            columns = [to_list(self.column(name)) for name in self.names]
            if self.kind is dict:
                names = self.names
                self._values = [
                    dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
                ]
            else:
                self._values = list(map(self.kind, *columns))
        return self._values

    def pick(self, mask: Mask) -> ColumnFrame:
        """Those whose flag is true."""
        flags = pa.array(mask)
        count = int(np.count_nonzero(mask))
        return self._derived(count, lambda array: array.filter(flags))

    def take(self, places: Ints) -> ColumnFrame:
        """Those at some places, in that order."""
        chosen = pa.array(places)
        return self._derived(len(places), lambda array: array.take(chosen))

    def cut(self, start: int, stop: int) -> ColumnFrame:
        """Those from `start` on, before `stop`."""
        return self._derived(stop - start, lambda array: array.slice(start, stop - start))

    def _derived(self, row_count: int, take: Callable[[Array], Array]) -> ColumnFrame:
        return ColumnFrame(row_count, self.names, self.kind, lambda name: take(self.column(name)))


class ValueFrame(Frame):
    """Structs of plain fields that are there already; their columns are made of them.

    Args:
        values: All of type `kind`.
        kind: A Struct for which `plain_fields` has an answer.
    """

    __slots__ = ("_columns", "_values", "kind", "names", "row_count", "types")

    def __init__(self, values: list[Any], kind: type) -> None:
        self.types = None
        self._values = values
        self._columns: dict[str, Array] = {}
        self.kind = kind
        self.names = kind.__struct_fields__  # type: ignore[attr-defined]  # a Struct
        self.row_count = len(values)

    def column(self, name: str) -> Array:
        """A field of all values; see `Frame.column`."""
        found = self._columns.get(name)
        if found is None:
            declared = _struct_fields(self.kind).get(name)
            if declared is None or pa.types.is_timestamp(declared.type):
                # A time that was decoded keeps its zone, a column would not.
                raise NotInColumnsError(f"no column {name}")
            try:
                found = pa.array(list(map(attrgetter(name), self._values)), declared.type)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
                raise NotInColumnsError(f"{name}: {error}") from None
            found = self._columns[name] = normal(found, name)
        return found

    @property
    def values(self) -> list[Any]:
        """The values."""
        return self._values

    def pick(self, mask: Mask) -> ValueFrame:
        """Those whose flag is true."""
        picked = ValueFrame(list(_compress(self._values, mask)), self.kind)
        flags = pa.array(mask)
        picked._columns = {name: each.filter(flags) for name, each in self._columns.items()}
        return picked

    def take(self, places: Ints) -> ValueFrame:
        """Those at some places, in that order."""
        taken = ValueFrame(list(map(self._values.__getitem__, places.tolist())), self.kind)
        chosen = pa.array(places)
        taken._columns = {name: each.take(chosen) for name, each in self._columns.items()}
        return taken

    def cut(self, start: int, stop: int) -> ValueFrame:
        """Those from `start` on, before `stop`."""
        part = ValueFrame(self._values[start:stop], self.kind)
        size = stop - start
        part._columns = {name: each.slice(start, size) for name, each in self._columns.items()}
        return part


@cache
def _struct_fields(kind: type) -> dict[str, PlainField]:
    return plain_fields(kind) or {}


def _compress(values: list[Any], mask: Mask) -> list[Any]:
    return list(map(values.__getitem__, np.flatnonzero(mask).tolist()))


@dataclasses.dataclass(slots=True)
class FrameChunk:
    """Rows as columns; see `Chunk`, which says what each means."""

    rows: Any
    """A range or an array of int64; see `Chunk`."""
    times: Ints
    frame: Frame
    keys: Array | None = None
    """Grouping keys, a column without nulls."""
    _chunk: Chunk | None = None

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return self.frame.row_count

    def as_chunk(self) -> Chunk:
        """The same rows as lists."""
        if self._chunk is None:
            self._chunk = self.with_values(self.frame.values, self.frame.kind)
        return self._chunk

    def with_values(self, values: Sequence[object], kind: type | None) -> Chunk:
        """The rows as lists, with other values; see `Chunk.with_values`."""
        rows = self.rows if isinstance(self.rows, range) else self.rows.tolist()
        keys = None if self.keys is None else to_list(self.keys)
        return Chunk(rows, self.times.tolist(), values, keys, kind)

    def key_types(self) -> set[type]:
        """The type of the keys."""
        return set() if self.keys is None else set(map(type, to_list(self.keys.slice(0, 1))))

    def pick(self, mask: Mask) -> FrameChunk:
        """The rows whose flag is true."""
        if mask.all():
            return self
        return FrameChunk(
            self._row_numbers()[mask],
            self.times[mask],
            self.frame.pick(mask),
            None if self.keys is None else self.keys.filter(pa.array(mask)),
        )

    def take(self, places: Ints) -> FrameChunk:
        """The rows at some places, in that order."""
        return FrameChunk(
            self._row_numbers()[places],
            self.times[places],
            self.frame.take(places),
            None if self.keys is None else self.keys.take(pa.array(places)),
        )

    def cut(self, start: int, stop: int) -> FrameChunk:
        """Rows [start, stop) of the chunk."""
        if start == 0 and stop == self.row_count:
            return self
        return FrameChunk(
            self.rows[start:stop],
            self.times[start:stop],
            self.frame.cut(start, stop),
            None if self.keys is None else self.keys.slice(start, stop - start),
        )

    def followed_by(self, others: Sequence[Rows]) -> FrameChunk | None:
        """All rows, if the others are columns of the same names and types."""
        frames = [each for each in others if isinstance(each, FrameChunk)]
        return join_frames([self, *frames]) if len(frames) == len(others) else None

    def _row_numbers(self) -> Ints:
        rows = self.rows
        return np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows


def join_frames(chunks: Sequence[FrameChunk]) -> FrameChunk | None:
    """All rows of chunks that follow each other; None if their columns differ in type.

    Args:
        chunks: At least one, all keyed or none.
    """
    first = chunks[0]
    if len(chunks) == 1:
        return first
    frames = [chunk.frame for chunk in chunks]
    if {(frame.kind, frame.names) for frame in frames} != {(first.frame.kind, first.frame.names)}:
        return None
    load = _Concatenated(frames)
    types = frames[0].types
    try:
        if types is None or any(frame.types != types for frame in frames):
            for name in first.frame.names:
                load(name)
        keys = None
        if first.keys is not None:
            keys = concatenated([chunk.keys for chunk in chunks], "the key")
    except NotInColumnsError:
        return None
    return FrameChunk(
        np.concatenate([chunk._row_numbers() for chunk in chunks]),  # noqa: SLF001 - its own kind
        np.concatenate([chunk.times for chunk in chunks]),
        ColumnFrame(
            sum(frame.row_count for frame in frames),
            first.frame.names,
            first.frame.kind,
            load,
            types,
        ),
        keys,
    )


class _Concatenated:
    """Gives columns of frames behind each other."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._columns: dict[str, Array] = {}

    def __call__(self, name: str) -> Array:
        found = self._columns.get(name)
        if found is None:
            parts = [frame.column(name) for frame in self._frames]
            found = self._columns[name] = concatenated(parts, name)
        return found


def concatenated(arrays: Sequence[Array], name: str) -> Array:
    """Columns behind each other; one of nulls fits to any.

    Raises:
        NotInColumnsError: They are of several types.
    """
    kinds = {array.type for array in arrays if not pa.types.is_null(array.type)}
    if len(kinds) > 1:
        raise NotInColumnsError(f"{name} is of several types")
    if kinds:
        (kind,) = kinds
        arrays = [pc.cast(array, kind) for array in arrays]
    return pa.concat_arrays(arrays)
