"""Values as SQLite gives them, and what a column is known to hold. Pure.

STRICT tables hold what their columns say, so the functions here tell it to the type checker, and
find a damaged page that passes for a row. What the columns mean is in `schema.py`.
"""

from __future__ import annotations

from typing import TypeAlias

from .errors import DataError

SQLValue: TypeAlias = str | int | float | bytes | None
Row: TypeAlias = tuple[SQLValue, ...]


def _unexpected(value: SQLValue) -> DataError:
    """For a damaged page that passes for a row: a catalog of an early version has no checksums."""
    return DataError(
        f"the catalog holds {value!r:.60} where something else is expected. Run: millstream repair"
    )


def as_int(value: SQLValue) -> int:
    """`value`, which is an integer."""
    if not isinstance(value, int):
        raise _unexpected(value)
    return value


def as_number(value: SQLValue, stop: int = 1 << 62) -> int:
    """`value`, which is an integer from 0 to below `stop`; by default with room to add to it."""
    if not isinstance(value, int) or not 0 <= value < stop:
        raise _unexpected(value)
    return value


def as_count(value: SQLValue, most: int) -> int:
    """`value`, which is an integer from 1 to `most`."""
    if (count := as_number(value, most + 1)) == 0:
        raise _unexpected(value)
    return count


def as_text(value: SQLValue) -> str:
    """`value`, which is a text."""
    if not isinstance(value, str):
        raise _unexpected(value)
    return value


def as_bytes(value: SQLValue) -> bytes:
    """`value`, which is a blob."""
    if not isinstance(value, bytes):
        raise _unexpected(value)
    return value
