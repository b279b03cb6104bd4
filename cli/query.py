"""`millstream query`: look into topics and state by SQL. What SQL can see says millstream.sql."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from itertools import islice
from math import isfinite
from typing import Any, Final

import click
import msgspec

from millstream import sql
from millstream.processor import state_tables

from .command import Command, examples
from .output import Cell, Mode, Row, print_rows
from .settings import settings

_TABLE_ROWS: Final = 10_000
"""A table is as wide as its widest cell, and has to be held for that."""
_EXACT_DIGITS: Final = 15
"""Decimals up to here are the same as floats."""


@click.command(
    cls=Command,
    short_help="Ask topics and state by SQL.",
    epilog=examples(
        'millstream query "select key, count(*) from orders group by 1"',
        "millstream query \"select value->>'$.user', max(timestamp) from orders group by 1\"",
        "millstream query 'from state.\"revenue.orders.window\"' --output jsonl",
        'millstream query "describe orders"',
        "millstream query - < report.sql",
    ),
)
@click.argument("text", metavar="SQL")
@click.option(
    "--memory",
    default=sql.MEMORY,
    show_default=True,
    metavar="SIZE",
    help="What the query may use; one that needs more fails.",
)
def query(text: str, memory: str) -> None:
    """Print the result of SQL, one statement in the SQL of DuckDB; - reads it from stdin.

    Every topic is a table of its name. One with a schema has its fields as columns, and _offset,
    _partition, _timestamp_ms and _key. Others have partition, "offset", timestamp (UTC), key,
    value and headers.
    Keys and values are text, and BLOBs in bytes."TOPIC". The state of pipelines is in
    state."PIPELINE.OPERATOR" with the columns path and value. Local files can be joined.

    Nothing is changed, and others may write meanwhile: a query sees a topic as it is when it comes
    to it. With --output jsonl, csv and tsv rows are printed as they come; tables end after 10,000.

    Needs the extra `sql`: pip install 'millstream[sql]'.
    """
    current = settings()
    mode = current.mode
    if text == "-":
        text = sys.stdin.read()
    with (
        current.open(read_only=True) as store,
        sql.query(store, text, memory=memory, tables=state_tables) as found,
    ):
        columns = _distinct(found.columns)
        cell = partial(_cell, nested=mode in {"json", "jsonl"})
        rows = (dict(zip(columns, map(cell, row), strict=True)) for row in found.rows())
        if mode == "table":
            print_rows("rows", list(islice(rows, _TABLE_ROWS)), columns, mode)
            if next(rows, None) is not None:
                current.say(f"there are more than {_TABLE_ROWS} rows: --output csv prints all")
        elif mode == "json":
            print_rows("rows", list(rows), columns, mode)
        else:
            _print_as_they_come(rows, columns, mode)


def _print_as_they_come(rows: Iterator[Row], columns: list[str], mode: Mode) -> None:
    """The heading, even of nothing, and then block by block."""
    print_rows("rows", list(islice(rows, sql.BATCH_ROWS)), columns, mode)
    while block := list(islice(rows, sql.BATCH_ROWS)):
        print_rows("rows", block, columns, mode, heading=False)


def _distinct(names: list[str]) -> list[str]:
    """The names, numbered where SQL gave one to several columns.

    >>> _distinct(["key", "n", "key"])
    ['key', 'n', 'key_2']
    """
    found: list[str] = []
    for name in names:
        number, free = 1, name
        while free in found:
            number += 1
            free = f"{name}_{number}"
        found.append(free)
    return found


def _cell(value: Any, *, nested: bool) -> Cell:
    """What SQL found as what can be printed; bytes as text, with what is none escaped.

    Lists and structs stay what they are where they can be `nested`, in JSON, which has no NaN and
    no infinity: these are null there, as in rows. Else lists and structs become JSON.
    """
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, Decimal):
        if value == value.to_integral_value():
            return int(value)
        return float(value) if len(value.as_tuple().digits) <= _EXACT_DIGITS else str(value)
    if isinstance(value, float):
        return None if nested and not isfinite(value) else value
    value = _readable(value)
    if isinstance(value, list | dict):
        plain = msgspec.to_builtins(value)
        return plain if nested else msgspec.json.encode(plain).decode()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _readable(value: Any) -> Any:
    """Intervals as text, also those inside; a number that is none as None inside."""
    if isinstance(value, tuple) and hasattr(value, "nanoseconds"):  # of Arrow, not imported here
        return _interval(value.months, value.days, value.nanoseconds)  # type: ignore[attr-defined] # see above
    if isinstance(value, list | tuple):
        return list(map(_readable, value))
    if isinstance(value, dict):
        return {name: _readable(each) for name, each in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """As DuckDB writes it, and reads it.

    >>> _interval(14, 1, 1_500_000_000), _interval(-1, 0, -60_000_000_000), _interval(0, 0, 0)
    ('1 year 2 months 1 day 00:00:01.5', '-1 month -00:01:00', '00:00:00')
    """
    years = abs(months) // 12 * (1 if months > 0 else -1)
    counts = ((years, "year"), (months - 12 * years, "month"), (days, "day"))
    parts = [f"{n} {unit}{'' if abs(n) == 1 else 's'}" for n, unit in counts if n]
    if nanoseconds or not parts:
        seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
        fraction = f".{rest:09}".rstrip("0") if rest else ""
        sign = "-" if nanoseconds < 0 else ""
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        parts.append(f"{sign}{clock}{fraction}")
    return " ".join(parts)
