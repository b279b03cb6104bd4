"""Columns of other types than a schema wants: taken only where no value becomes another.

Arrow's safe casts refuse most of what would be lost, but not all: 2 becomes true, noon a day, 1e300
infinity; a field of a struct that nobody wants is left out, a zone or the unit of a time forgotten.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from .arrow_columns import compute
from .topic_schema import pyarrow

_NO_ZONE: Final = (
    "times without a zone; say which it is: assume_timezone of pyarrow.compute,"
    " dt.replace_time_zone of Polars, tz_localize of pandas"
)


def cast_exactly(column: Any, kind: Any) -> Any:
    """A pyarrow.ChunkedArray as one of another type.

    Raises:
        ValueError: Why it cannot be, in a line; an ArrowException, too.
    """
    column = _without_codes(column)
    if not column.type.equals(kind):
        fault = why_not(column.type, kind)
        if fault is not None:
            raise ValueError(fault)
        given, column = column, column.cast(_loosened(kind), safe=True)
        if _is_changed(given, column):
            raise ValueError("values would become others")
    if _has_required(kind) and _lacks_required(column, kind):
        raise ValueError("it has nulls inside, where the schema has none")
    if not column.type.equals(kind):
        column = pyarrow().chunked_array([_retyped(each, kind) for each in column.chunks], kind)
    return column


def first_infinite(rows: Any) -> int | None:
    """The first row of a pyarrow.RecordBatch made of JSON that has an infinity as a float32.

    JSON has none, so the number was beyond what a float32 can be.
    """
    for number, column in enumerate(rows.columns):
        if _has_float32(column.type) and _is_infinite(column):
            parts = (rows.column(number).slice(index, 1) for index in range(rows.num_rows))
            return next(index for index, part in enumerate(parts) if _is_infinite(part))
    return None


@lru_cache(maxsize=256)
def _has_float32(kind: Any) -> bool:
    t = pyarrow().types
    if _is_list(kind):
        return _has_float32(kind.value_type)
    if t.is_struct(kind):
        return any(_has_float32(field.type) for field in kind)
    return bool(t.is_float32(kind))


def _is_infinite(column: Any) -> bool:
    """Whether a float32 in a column is infinite."""
    functions, kind = compute(), column.type
    if not _has_float32(kind):
        return False
    if _is_list(kind):
        return _is_infinite(functions.list_flatten(column))
    if pyarrow().types.is_struct(kind):
        return any(_is_infinite(functions.struct_field(column, field.name)) for field in kind)
    return bool(functions.any(functions.is_inf(column)).as_py())


def _without_codes(column: Any) -> Any:
    """The values that dictionaries and runs stand for."""
    pa = pyarrow()
    if pa.types.is_run_end_encoded(column.type):
        return pa.chunked_array(
            map(compute().run_end_decode, column.chunks), column.type.value_type
        )
    if not pa.types.is_dictionary(column.type):
        return column
    values = column.type.value_type
    # Arrow has no way from these to the values; categories of Polars are such.
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    if values in views:
        values = views[values]
        column = column.cast(pa.dictionary(column.type.index_type, values))
    return column.cast(values)


def why_not(given: Any, kind: Any) -> str | None:
    """Why values of a type can never be taken for another; None: it depends on them."""
    t = pyarrow().types
    if t.is_dictionary(given):
        return why_not(given.value_type, kind)
    if t.is_list_view(given) or t.is_large_list_view(given):
        return "a view of lists; make it lists"
    if _is_list(given) and _is_list(kind):
        return why_not(given.value_type, kind.value_type)
    if t.is_struct(given) and t.is_struct(kind):
        return _why_not_struct(given, kind)
    return _why_not_time(given, kind) if t.is_temporal(given) else None


def _why_not_time(given: Any, kind: Any) -> str | None:
    t = pyarrow().types
    if t.is_integer(kind) or t.is_floating(kind):
        return "its unit would be lost; convert it by the one that is meant"
    if t.is_timestamp(kind):
        zone = given.tz if t.is_timestamp(given) else None
        if kind.tz is not None and zone is None:
            return _NO_ZONE
        if kind.tz is None and zone is not None:
            return "its zone would be lost; cast it to times without one"
    return None


def _why_not_struct(given: Any, kind: Any) -> str | None:
    fields = {field.name: field.type for field in kind}
    for field in given:
        if field.name not in fields:
            return f"no such field: {field.name!r}"
        fault = why_not(field.type, fields[field.name])
        if fault is not None:
            return f"field {field.name!r}: {fault}"
    return None


def _is_list(kind: Any) -> bool:
    t = pyarrow().types
    return bool(t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind))


def _is_changed(before: Any, after: Any) -> bool:
    """Whether a cast that Arrow takes for safe has made another value of one."""
    t, functions, given, kind = pyarrow().types, compute(), before.type, after.type
    if given.equals(kind):
        return False
    if _is_list(given) and _is_list(kind):
        return _is_changed(functions.list_flatten(before), functions.list_flatten(after))
    if t.is_struct(given) and t.is_struct(kind):
        return any(
            _is_changed(functions.struct_field(before, name), functions.struct_field(after, name))
            for name in (field.name for field in given)
        )
    number = t.is_integer(given) or t.is_floating(given)
    if (number and t.is_boolean(kind)) or (t.is_timestamp(given) and t.is_date32(kind)):
        return not functions.all(functions.equal(before, after.cast(given))).as_py()
    if t.is_floating(given) and t.is_float32(kind):  # rounding is what was asked for
        beyond = functions.and_(functions.is_finite(before), functions.is_inf(after))
        return bool(functions.any(beyond).as_py())
    return False


@lru_cache(maxsize=256)
def _has_required(kind: Any) -> bool:
    """Whether something inside of values of a type may not be null."""
    t = pyarrow().types
    if _is_list(kind):
        return not kind.value_field.nullable or _has_required(kind.value_type)
    return t.is_struct(kind) and any(
        not field.nullable or _has_required(field.type) for field in kind
    )


@lru_cache(maxsize=256)
def _loosened(kind: Any) -> Any:
    """A type with the same values, all of which may be null inside.

    Arrow casts no null struct to one with a field that may not be null.
    """
    pa = pyarrow()
    if pa.types.is_struct(kind):
        return pa.struct([_loosened_field(field) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_loosened_field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_loosened_field(kind.value_field))
    return kind


def _loosened_field(field: Any) -> Any:
    return field.with_type(_loosened(field.type)).with_nullable(True)


def _retyped(array: Any, kind: Any) -> Any:
    """An array of a loosened type as one of the type itself, with the same buffers."""
    pa = pyarrow()
    if array.type.equals(kind):
        return array
    if pa.types.is_struct(kind):
        inside = [_retyped(array.field(n), field.type) for n, field in enumerate(kind)]
        return pa.StructArray.from_arrays(inside, fields=list(kind), mask=array.is_null())
    buffers, inside = array.buffers()[:2], [_retyped(array.values, kind.value_type)]
    return pa.Array.from_buffers(kind, len(array), buffers, offset=array.offset, children=inside)


def _lacks_required(column: Any, kind: Any) -> bool:
    """Whether something inside is null that may not be; Arrow does not look."""
    functions = compute()
    if _is_list(kind):
        inside = functions.list_flatten(column)  # without those of null lists
        missing = inside.null_count if not kind.value_field.nullable else 0
        return bool(missing) or (
            _has_required(kind.value_type) and _lacks_required(inside, kind.value_type)
        )
    for field in kind:
        inside = functions.struct_field(column, field.name)  # null where its struct is
        if not field.nullable and inside.null_count > column.null_count:
            return True
        if _has_required(field.type) and _lacks_required(inside, field.type):
            return True
    return False
