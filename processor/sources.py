"""The sources that come with Millstream: iterables, files of JSON or CSV, tables of SQLite.

Each function makes a value that `Pipeline.source` takes; nothing is opened before the pipeline
runs. What a source is in general says connectors.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice
from typing import Any, Final, Literal, TypeAlias

from millstream import DataError, UsageError

from .connectors import (
    OUTSIDE,
    Outside,
    Position,
    Rejected,
    Source,
    SourceBatch,
    SourceRecord,
    check_connector_name,
    name_from,
)
from .errors import REJECTED, convert, reason
from .file_source import FileSource
from .line_files import Pattern
from .line_formats import Conversion, CsvRows, JsonLines, RowFormat
from .serde import encode_value
from .sqlite_source import ROWID, SqliteSource

ITEMS_MAX: Final = 4096
BATCH_S: Final = 0.05
"""A batch of an iterable ends here, so that items of a slow one are not kept back for long."""


_More: TypeAlias = Literal["now", "later", "never"]


@dataclass(frozen=True)
class IterableSource(Source):
    """Items in the order they come; the position is their number."""

    name: str
    items: Iterable[object] | Callable[[], Iterable[object]]
    outside: Outside = field(default=OUTSIDE, repr=False, compare=False)
    text: bool = False
    """Whether a str becomes its UTF-8, as for a pipeline that reads text, and not JSON."""

    def partitions(self) -> Sequence[str]:
        """See `Source`: one."""
        return ["0"]

    def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
        """See `Source`.

        Raises:
            DataError: It gives fewer items than have been taken in before.
        """
        items = self.items() if callable(self.items) else self.items
        iterator = iter(items)
        taken = 0
        while taken < (position or 0):
            # `None` is no item, so it is not counted.
            skipped = list(islice(iterator, min(position - taken, ITEMS_MAX)))
            if not skipped:
                raise DataError(
                    f"source {self.name!r}: the iterable has only {taken} items, of which"
                    f" {position} were taken in before; one that can be used only once, such as a"
                    " generator, is given as the function that makes it"
                )
            taken += len(skipped) - skipped.count(None)
        while True:
            gathered, more = self._gather(iterator)
            if gathered:
                taken += len(gathered)
                yield self._batch(gathered, taken)
            if more == "never":
                return
            if more == "later":
                yield None

    def _gather(self, iterator: Iterator[object]) -> tuple[list[object], _More]:
        """Items until there are enough, time is up, there are none now, or the end."""
        gathered: list[object] = []
        clock = self.outside.clock
        until = clock.monotonic() + BATCH_S
        for item in iterator:
            if item is None:
                return gathered, "later"
            gathered.append(item)
            if len(gathered) >= ITEMS_MAX or clock.monotonic() >= until:
                return gathered, "now"
        return gathered, "never"

    def _batch(self, items: Sequence[object], position: int) -> SourceBatch:
        rejected: list[Rejected] = []

        def reject(index: int, error: Exception) -> None:
            number = position - len(items) + index + 1
            rejected.append(Rejected(repr(values[index]).encode(), reason(error), number))

        records = [each for each in items if isinstance(each, SourceRecord)]
        values = [each.value if isinstance(each, SourceRecord) else each for each in items]
        encode = _encode_text if self.text else encode_value
        encoded: list[Any] = convert(values, encode, reject)
        good = [each is not REJECTED for each in encoded]
        numbers = list(compress(range(position - len(items) + 1, position + 1), good))
        if not records:
            good_values = list(compress(encoded, good))
            return SourceBatch(good_values, position, rejected=rejected, lines=numbers)
        now_ms = self.outside.clock.now_ms()
        rows = [each if isinstance(each, SourceRecord) else SourceRecord(each) for each in items]
        kept = list(compress(rows, good))
        return SourceBatch(
            list(compress(encoded, good)),
            position,
            [row.key for row in kept],
            [now_ms if row.timestamp_ms is None else row.timestamp_ms for row in kept],
            [row.headers for row in kept],
            rejected,
            lines=numbers,
        )


def _encode_text(value: object) -> bytes | None:
    return value.encode() if isinstance(value, str) else encode_value(value)


def from_iterable(
    items: Iterable[object] | Callable[[], Iterable[object]],
    *,
    name: str | None = None,
) -> IterableSource:
    """The items of an iterable, or of what a function gives: a generator function for example.

    After a restart as many items as were taken in before are skipped, so it must give the same
    ones again.

    Args:
        items: Bytes are taken as they are, and so is text where a pipeline reads it as `type=str`;
            a `SourceRecord` has key and timestamp too, anything else becomes JSON. None is no item:
            it says that there is nothing now, and hands over what has gathered. An item that takes
            long to come keeps the pipeline waiting.
        name: Identity in the pipeline; that of the function if it has one, else "items".

    Raises:
        UsageError: These are no items: one str, bytes or dict, or what cannot be iterated over.

    >>> source = from_iterable([{"n": 1}, {"n": 2}])
    >>> [list(batch.values) for batch in source.open("0", 1)]
    [[b'{"n":2}']]
    """
    many = callable(items) or isinstance(items, Iterable)
    if not many or isinstance(items, str | bytes | dict):
        raise UsageError(
            f"from_iterable() takes many items, or a function that gives them, not one"
            f" {type(items).__name__}: put it into a list"
        )
    if name is None:
        name = name_from(getattr(items, "__name__", "") if callable(items) else "", "items")
    return IterableSource(check_connector_name(name, "source"), items)


def jsonl_files(
    pattern: str,
    *,
    name: str | None = None,
    follow: bool = False,
    rotated: bool = False,
) -> FileSource:
    """Files of JSON values, one a line, file after file in the order of their names.

    A run goes on where the last one stopped: with lines and files that were added since. A file
    that no longer begins with what was read of it is an error.

    Args:
        pattern: Such as "in/2026-*/*.jsonl"; "*", "?" and "[a-z]" stand for parts of a name.
        name: Identity in the pipeline; made from the pattern if not given.
        follow: Wait for more lines and files. Only whole lines are taken; without `follow` the
            last line of a file may lack its newline.
        rotated: With `follow`: when a file was moved to another name in its directory and a new
            one has begun in its place, finish the old one and go on with the new. The pattern is
            for the live file alone, "app.log", not for those moved away.

    Raises:
        UsageError: Not a pattern; `rotated` without `follow`.

    >>> jsonl_files("in/*.jsonl", follow=True).name
    'in.jsonl'
    """
    return _files(pattern, JsonLines(), name, follow=follow, rotated=rotated)


def csv_files(  # noqa: PLR0913 - what a CSV file leaves open
    pattern: str,
    *,
    columns: Sequence[str] | None = None,
    types: Mapping[str, Conversion] | None = None,
    delimiter: str = ",",
    name: str | None = None,
    follow: bool = False,
    rotated: bool = False,
) -> FileSource:
    """Files of CSV, each row a JSON object. Text is UTF-8; otherwise as `jsonl_files`.

    Args:
        pattern: See `jsonl_files`.
        columns: Their names where the files have no header; None takes the first row for them.
        types: What the fields of a column are: `int`, `float` and `bool` are taken strictly, an
            empty field is null; any other function gets the text. Columns without a type are text.
            Blanks belong to a field: `lambda text: float(text)` takes " 5" as Python does.
        delimiter: One character.
        name: See `jsonl_files`.
        follow: See `jsonl_files`.
        rotated: See `jsonl_files`.

    Raises:
        UsageError: Not a pattern, types of unknown columns, a bad delimiter.

    >>> csv_files("in/*.csv", types={"amount": float}).format.types
    {'amount': <class 'float'>}
    """
    form = CsvRows(None if columns is None else tuple(columns), types or {}, delimiter)
    return _files(pattern, form, name, follow=follow, rotated=rotated)


def _files(
    pattern: str,
    form: RowFormat,
    name: str | None,
    *,
    follow: bool,
    rotated: bool,
) -> FileSource:
    parsed = Pattern.parse(pattern)
    if rotated and not follow:
        raise UsageError("rotated=True is for files that are followed: add follow=True")
    given = name_from(pattern, "files") if name is None else name
    return FileSource(check_connector_name(given, "source"), parsed, form, follow, rotated)


def sqlite_rows(
    path: str,
    table: str,
    *,
    by: str = ROWID,
    columns: Sequence[str] | None = None,
    name: str | None = None,
    follow: bool = False,
) -> SqliteSource:
    """The rows of a SQLite table as JSON objects, and those added since.

    A value is what SQLite stores: a BOOLEAN column holds the ints 0 and 1, and a time or a Decimal
    is text. A declared type has an `int` there; `datetime` and `Decimal` are read from text.

    Args:
        path: The database; it is only read.
        table: Table or view.
        by: What grows with every row added: "rowid", or a column that is UNIQUE and NOT NULL.
            SQLite uses the rowid of a deleted last row again, unless the column is AUTOINCREMENT.
        columns: These only; None takes all.
        name: Identity in the pipeline; the table's name if not given.
        follow: Wait for more rows.

    >>> sqlite_rows("app.db", "orders", by="id").name
    'orders'
    """
    if columns is not None and not columns:
        raise UsageError("columns=[]: name some, or leave it out for all of them")
    given = name_from(table, "table") if name is None else name
    chosen = None if columns is None else tuple(columns)
    return SqliteSource(check_connector_name(given, "source"), path, table, by, chosen, follow)
