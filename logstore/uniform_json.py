"""JSON objects that are all written like the first one, as Arrow columns, by NumPy. Pure.

A program that writes objects of a schema writes them alike: the same fields in the same order, the
same spaces. Then all of an object but its values is text that is known, and where a value ends is
known from the commas: two to three times as fast as a parser. Only objects of plain texts, numbers
and flags are taken, and of these none that needs a second look: no escapes, no commas in texts, no
nulls, no exponents. For all others it gives nothing, and json_columns.py goes on. What it gives is
what the strict way gives, but for zeros with a sign and floats that are too great.

This module needs the extra `arrow`.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bytes: TypeAlias = "npt.NDArray[np.uint8]"
Places: TypeAlias = "npt.NDArray[np.int32]"

_FIELD: Final = re.compile(
    rb'( *[{,] *"([^"\\,]*)" *: *)(?:"([^"\\,]*)"|true|false|-?[0-9][0-9.]*)'
)
_END: Final = re.compile(rb" *\}")
_COMMA, _QUOTE, _ESCAPE, _SPACE, _MINUS, _ZERO = b',"\\ -0'
_EXPONENTS: Final = tuple(b"eE")


class _Pattern(NamedTuple):
    """What all objects have in common."""

    names: tuple[str, ...]
    """Of the fields, in the order in which they are written."""
    literals: tuple[bytes, ...]
    """What is before each value, the quote of a text included, and what is after the last."""


def parse_uniform(data: Bytes, offsets: Places, schema: Any) -> list[Any] | None:
    """The values of a batch as columns in the order of the schema; None if they are not uniform.

    Args:
        data: All values behind each other, at least one.
        offsets: Where each begins, and where the last ends; rising.
        schema: Of float64, integers but uint64, booleans and strings alone.
    """
    pattern = _pattern(data[: offsets[1]].tobytes(), schema)  # of nothing there is none
    if pattern is None or not _is_plain(data, len(offsets) - 1, pattern):
        return None
    places = _places(data, offsets, pattern)
    if places is None:
        return None
    columns = {}
    try:
        for number, name in enumerate(pattern.names):
            column = _column(data, places, number, schema.field(name).type)
            if column is None:
                return None
            columns[name] = column
    except pa.ArrowInvalid:
        return None
    return [columns[name] for name in schema.names]


def _pattern(first: bytes, schema: Any) -> _Pattern | None:
    """How the first object is written, if it has each field of the schema once."""
    names: list[str] = []
    literals: list[bytes] = []
    begin = position = 0
    while found := _FIELD.match(first, position):
        begin, literal = found.end(), first[begin : found.end(1)]
        position = begin
        if found[3] is not None:
            literal += b'"'
            begin -= 1  # the other quote belongs to what follows
        if literal.count(b",") != bool(names):
            return None  # the first field follows a brace, the others a comma
        try:
            names.append(found[2].decode())
        except UnicodeDecodeError:
            return None
        literals.append(literal)
    if len(names) != len(schema) or set(names) != set(schema.names):
        return None
    texts = [pa.types.is_string(schema.field(name).type) for name in names]
    if texts != [literal.endswith(b'"') for literal in literals]:
        return None
    if not _END.fullmatch(first, position):
        return None
    return _Pattern(tuple(names), (*literals, first[begin:]))


def _is_plain(data: Bytes, count: int, pattern: _Pattern) -> bool:
    """Whether no text can hold a quote, an escape or what JSON wants escaped."""
    quotes = count * sum(literal.count(b'"') for literal in pattern.literals)
    return (
        int(data.min()) >= _SPACE
        and not (data == _ESCAPE).any()
        and np.count_nonzero(data == _QUOTE) == quotes
    )


def _places(data: Bytes, offsets: Places, pattern: _Pattern) -> Places | None:
    """Begin and end of each value of each object; None unless all else is as in the first one."""
    count, fields = len(offsets) - 1, len(pattern.names)
    found = np.flatnonzero(data == _COMMA)
    if len(found) != count * (fields - 1):
        return None
    commas = found.astype(np.int32).reshape(count, fields - 1)
    starts = [offsets[:-1]]
    for number, literal in enumerate(pattern.literals[1:-1]):
        starts.append(commas[:, number] - np.int32(literal.index(b",")))
    starts.append(offsets[1:] - np.int32(len(pattern.literals[-1])))
    places = np.empty((count, 2 * fields), np.int32)
    for number in range(fields):
        places[:, 2 * number] = starts[number] + np.int32(len(pattern.literals[number]))
        places[:, 2 * number + 1] = starts[number + 1]
    # If they rise, the commas are those of their objects, and there is room for all literals.
    rising = places.reshape(-1)
    if (rising[1:] < rising[:-1]).any():
        return None
    pairs = zip(starts, pattern.literals, strict=True)
    return places if all(_holds(data, start, literal) for start, literal in pairs) else None


def _holds(data: Bytes, start: Places, literal: bytes) -> bool:
    """Whether a text is at all places, at which there is room for it."""
    size = len(literal)
    found = np.ndarray((len(data) - size + 1,), f"V{size}", data, strides=(1,))[start]
    wanted = np.frombuffer(literal, np.uint8)
    return bool((found.view(np.uint8).reshape(-1, size) == wanted).all())


def _column(data: Bytes, places: Places, number: int, kind: Any) -> Any | None:
    """A field of all objects; None if one of them may be no such value.

    Raises:
        pa.ArrowInvalid: One of them is none.
    """
    # Every second entry is a value, the others are what is between two.
    buffers = [None, pa.py_buffer(places), pa.py_buffer(data)]
    entries = pa.Array.from_buffers(pa.binary(), places.size - 1, buffers)
    texts = entries.take(pa.array(np.arange(2 * number, places.size, places.shape[1])))
    if pa.types.is_string(kind):
        return texts.cast(kind)
    if pa.types.is_boolean(kind):
        true = pc.equal(texts, b"true")
        return true if pc.all(pc.or_(true, pc.equal(texts, b"false"))).as_py() else None
    start, end = places[:, 2 * number], places[:, 2 * number + 1]
    whole = not pa.types.is_float64(kind)
    if not _is_written_as_json(data, start, end, whole=whole):
        return None
    if not whole and _has_exponent(texts):
        return None
    return texts.cast(pa.string()).cast(kind)


def _is_written_as_json(data: Bytes, start: Places, end: Places, *, whole: bool) -> bool:
    """Whether numbers that Arrow can read are numbers in JSON, too, if they have no exponents.

    Arrow would take 01, 1. and .5, and 0x1 as a whole number; infinity begins with a letter.
    """
    lead = start + (data[start] == _MINUS)
    digits = data[lead]
    if not (_are_digits(digits) & _are_digits(data[end - 1])).all():
        return False
    after = (lead + 1)[digits == _ZERO]
    if whole:
        return bool((after == end[digits == _ZERO]).all())
    return not _are_digits(data[after]).any()


def _are_digits(data: Bytes) -> npt.NDArray[np.bool_]:
    return data - np.uint8(_ZERO) <= 9


def _has_exponent(texts: Any) -> bool:
    """Whether there is an E: in 1.e5 no digit follows the point."""
    content = np.frombuffer(texts.buffers()[2], np.uint8)
    return any((content == each).any() for each in _EXPONENTS)
