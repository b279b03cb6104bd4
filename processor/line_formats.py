"""What the lines of a text file mean: JSON, one value a line, or the rows of CSV. Pure.

A format looks at bytes from the start of a row on and says which whole rows they hold, how many
bytes and lines those take, and what is no row at all. Where the bytes come from and what becomes of
a bad row is not decided here.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final, Protocol, TypeAlias

from millstream import DataError, UsageError

from .connectors import Rejected
from .serde import Json, encode_json, encode_objects

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

Conversion: TypeAlias = Callable[[str], Any]
"""Makes the value of a CSV field; int, float, bool and str are taken strictly."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The whole rows at the beginning of some bytes."""

    values: Sequence[bytes]
    lines: Sequence[int]
    """The line each begins on, counted from the first line of the bytes, which is 0."""
    rejected: Sequence[Rejected]
    """With lines counted in the same way."""
    used_bytes: int
    line_count: int


class RowReader(Protocol):
    """Reads the rows of one file, from its start or from the middle of it."""

    def begin(self, data: bytes, *, final: bool) -> tuple[int, int] | None:
        """Look at the start of the file; the bytes and lines before the first row.

        None: it takes more bytes to know. `final` says that there are none.

        Raises:
            DataError: This is not such a file.
        """
        ...

    def rows(self, data: bytes, *, final: bool) -> Rows:
        """The whole rows of `data`, which begins with a row. `final`: the last one ends with it."""
        ...


class RowFormat(Protocol):
    """A kind of file."""

    def reader(self) -> RowReader:
        """A reader for one file."""
        ...


@dataclass(frozen=True, slots=True)
class JsonLines:
    """One JSON value a line. Empty lines are skipped."""

    def reader(self) -> JsonLineReader:
        """See `RowFormat`."""
        return JsonLineReader()


class JsonLineReader:
    """Cuts lines. Whether they are JSON is found out with their type, where they are taken in."""

    def begin(self, data: bytes, *, final: bool) -> tuple[int, int] | None:
        """See `RowReader`: after a byte order mark."""
        return (len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0), 0

    def rows(self, data: bytes, *, final: bool) -> Rows:
        """See `RowReader`."""
        used = len(data) if final else data.rfind(b"\n") + 1
        lines = split_lines(data[:used])
        values: Sequence[bytes] = lines
        numbers: Sequence[int] = range(len(lines))
        if not all(lines):
            values, numbers = list(filter(None, lines)), list(compress(numbers, lines))
        return Rows(values, numbers, (), used, len(lines))


def split_lines(data: bytes) -> list[bytes]:
    r"""The lines of `data`. A newline ends one, with or without a return before it.

    >>> split_lines(b"a\r\nb")
    [b'a', b'b']
    """
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if b"\r" in data:
        return [line[:-1] if line.endswith(b"\r") else line for line in lines]
    return lines


@dataclass(frozen=True, slots=True)
class CsvRows:
    """Rows of CSV as JSON objects, named by the header line or by `columns`.

    Quoted fields may hold delimiters, quotes (doubled) and line ends. Text is UTF-8.
    """

    columns: tuple[str, ...] | None
    """None: the first row names them."""
    types: Mapping[str, Conversion] = field(default_factory=dict)
    delimiter: str = ","

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise UsageError(
                f"delimiter={self.delimiter!r}: give one character, such as ',' or ';'"
            )
        if self.columns is not None:
            self.check_columns(self.columns)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Refuse names that are there twice, and types of columns that are not.

        Raises:
            UsageError: The message names the columns.
        """
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise UsageError(f"columns are there twice: {twice}")
        unknown = sorted(set(self.types) - set(columns))
        if unknown:
            raise UsageError(f"there are no columns {unknown}; there are {list(columns)}")

    def reader(self) -> CsvReader:
        """See `RowFormat`."""
        return CsvReader(self)


class CsvReader:
    """Parses the rows of one file."""

    def __init__(self, form: CsvRows) -> None:
        self._form = form
        self._columns: Sequence[str] = form.columns or ()
        self._conversions: list[tuple[int, Conversion]] = []
        self._name_columns(self._columns)

    def _name_columns(self, columns: Sequence[str]) -> None:
        types = self._form.types
        self._columns = columns
        self._conversions = [
            (number, _STRICT.get(types[name], types[name]))
            for number, name in enumerate(columns)
            if types.get(name, str) is not str
        ]

    def begin(self, data: bytes, *, final: bool) -> tuple[int, int] | None:
        """See `RowReader`: after a byte order mark and the header."""
        skipped = len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0
        if self._form.columns is not None or (final and len(data) == skipped):
            return skipped, 0
        for parsed in self._parse(data[skipped:], final=final):
            if isinstance(parsed.row, str):
                raise DataError(f"cannot read the header: {parsed.row}")
            try:
                "".join(parsed.row).encode()
                self._form.check_columns(parsed.row)
            except UnicodeEncodeError:
                raise DataError("cannot read the header: it is not UTF-8") from None
            except UsageError as error:
                raise DataError(f"the header does not fit: {error.message}") from error
            self._name_columns(parsed.row)
            return skipped + parsed.end, parsed.next_line
        return None

    def rows(self, data: bytes, *, final: bool) -> Rows:
        """See `RowReader`."""
        plain = self._plain_rows(data[: len(data) if final else data.rfind(b"\n") + 1])
        if plain is not None:
            return plain
        values: list[bytes] = []
        lines: list[int] = []
        rejected: list[Rejected] = []
        line = end = 0
        for parsed in self._parse(data, final=final):
            if parsed.row:
                value = parsed.row if isinstance(parsed.row, str) else self._value(parsed.row)
                if isinstance(value, str):
                    found = data[end : parsed.end].rstrip(b"\r\n")
                    rejected.append(Rejected(found, value, line))
                else:
                    values.append(value)
                    lines.append(line)
            end, line = parsed.end, parsed.next_line
        return Rows(values, lines, rejected, end, line)

    def _plain_rows(self, data: bytes) -> Rows | None:
        """The rows where each line is a good one, column by column; None if one may be special."""
        if b'"' in data or b"\r" in data or b"\0" in data or not data:
            return None
        try:
            lines = data.decode().split("\n")
            if not lines[-1]:
                lines.pop()
            rows = list(csv.reader(lines, delimiter=self._form.delimiter))
            columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        except (UnicodeDecodeError, csv.Error, ValueError):
            return None
        if len(columns) != len(self._columns):
            return None
        try:
            for number, convert in self._conversions:
                columns[number] = _converted(columns[number], convert)
            values = encode_objects(self._columns, columns)
        except Exception:
            # A function of the user's raised, or its result is no JSON. Row by row it is found
            # where, and that row alone is rejected.
            return None
        return Rows(values, range(len(values)), (), len(data), len(values))

    def _value(self, row: list[str]) -> bytes | str:
        """A row as JSON, or why it is none."""
        columns = self._columns
        if len(row) != len(columns):
            return f"{len(row)} fields where there are {len(columns)} columns"
        fields: list[Json] = [*row]
        for number, convert in self._conversions:
            try:
                fields[number] = convert(row[number])
            except Exception as error:
                return f"column {columns[number]!r}: {error}"
        try:
            return encode_json(dict(zip(columns, fields, strict=True)))
        except UnicodeEncodeError:
            return "not UTF-8"
        except TypeError as error:
            return f"cannot be written as JSON: {error}"

    def _parse(self, data: bytes, *, final: bool) -> Iterator[_ParsedRow]:
        used = len(data) if final else data.rfind(b"\n") + 1
        lines = data[:used].split(b"\n")
        ends = [line + b"\n" for line in lines[:-1]]
        if lines[-1]:
            ends.append(lines[-1])
        # What is no UTF-8 stays recognisable, and is refused with its row.
        reader = csv.reader(map(_decoded, ends), delimiter=self._form.delimiter, strict=True)
        taken = position = 0
        while taken < len(ends):
            row: list[str] | str
            try:
                row = next(reader)
            except csv.Error as error:
                row = str(error)
                if reader.line_num == len(ends) and "unexpected end" in row and not final:
                    return  # the row goes on behind these bytes
            position += sum(map(len, ends[taken : reader.line_num]))
            taken = reader.line_num
            yield _ParsedRow(row, position, taken)


@dataclass(frozen=True, slots=True)
class _ParsedRow:
    row: list[str] | str
    """Its fields, or why it is no row."""
    end: int
    """Where the next one begins."""
    next_line: int


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _integer(text: str) -> int | None:
    if not text:
        return None
    if not text.lstrip("+-").isdecimal() or not text.isascii():
        raise ValueError(f"{text!r} is not an integer")
    return int(text)


def _number(text: str) -> float | None:
    if not text:
        return None
    # Python's own takes blanks around a number, underscores, and the digits of all scripts.
    plain = text.isascii() and "_" not in text and text == text.strip()
    number = float(text) if plain else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False, "": None}


def _truth(text: str) -> bool | None:
    if text.lower() not in _TRUTH:
        raise ValueError(f"{text!r} is neither true nor false")
    return _TRUTH[text.lower()]


def _converted(column: Sequence[str], convert: Conversion) -> list[Any]:
    """A column, faster than value by value where it holds plain numbers.

    Raises:
        Exception: Some value is none, or the column should be looked at value by value.
    """
    if convert is _integer and not "".join(column).strip("0123456789+-"):
        return list(map(int, column))
    if convert is _number and not "".join(column).strip("0123456789+-.eE"):
        numbers = list(map(float, column))
        if all(map(math.isfinite, numbers)):
            return numbers
    return list(map(convert, column))


_STRICT: Final[Mapping[Conversion, Conversion]] = {int: _integer, float: _number, bool: _truth}
"""Empty fields become null. Python's own int() takes "1_0" and " 1", its float() takes "nan"."""
