"""What goes to stdout: records as raw bytes, lists as table, JSON, CSV or TSV.

Stdout carries data and nothing else. A reader that goes away (`| head`) is not an error: it shows
as BrokenPipeError, which `main.run` turns into a silent exit.
"""

from __future__ import annotations

import csv
import io
import json
import os
import select
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Final, Literal, TypeAlias

import click

Mode: TypeAlias = Literal["table", "json", "jsonl", "csv", "tsv"]
Cell: TypeAlias = str | int | float | bool | None
Row: TypeAlias = Mapping[str, Cell]

SCHEMA: Final = 1
"""Version of the JSON shapes printed; raised when a field changes its meaning or goes away."""

_STDOUT: Final = 1


class RecordOutput:
    """Unbuffered stdout: what `write` returned from has left this process."""

    def __init__(self, descriptor: int = _STDOUT) -> None:
        self._descriptor = descriptor
        self.bytes_written = 0

    def write(self, pieces: Iterable[bytes]) -> None:
        """Write all pieces.

        Raises:
            BrokenPipeError: The reader is gone.
            click.ClickException: The output cannot be written, for example to a full disk.
        """
        rest = memoryview(b"".join(pieces))
        self.bytes_written += len(rest)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Somebody made the shared terminal or pipe non-blocking; wait until it drains.
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                raise click.ClickException(f"cannot write the output: {error.strerror}") from None

    def check_reader(self) -> None:
        """Raise BrokenPipeError if the pipe's reader has gone away while we had nothing to say."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        for _, event in poll.poll(0):
            if event & select.POLLERR:
                raise BrokenPipeError


def choose_mode(requested: str, stream: IO[str]) -> Mode:
    """The output mode for lists: `auto` is a table on a terminal, TSV in a pipe."""
    if requested == "auto":
        return "table" if stream.isatty() else "tsv"
    if requested not in {"table", "json", "jsonl", "csv", "tsv"}:
        raise ValueError(requested)
    return requested  # type: ignore[return-value]  # narrowed by the test above


def print_rows(
    name: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    mode: Mode,
    *,
    heading: bool = True,
) -> None:
    """Print a list of rows.

    Args:
        name: Key of the list in JSON: `{"schema":1,"<name>":[...]}`.
        rows: Values by column; a missing one is null.
        columns: Their names and order, snake_case; tables show them upper-case.
        mode: See `choose_mode`.
        heading: Whether CSV and TSV begin with the names; not where rows follow others.
    """
    out = sys.stdout
    if mode == "json":
        print_document({name: [_pick(row, columns) for row in rows]}, mode)
    elif mode == "jsonl":
        for row in rows:
            out.write(json.dumps(_pick(row, columns), ensure_ascii=False) + "\n")
    elif mode == "table":
        _print_table(rows, columns)
    else:
        text = _delimited(rows, columns, mode)
        out.write(text if heading else text.partition("\n")[2])
    out.flush()


def print_document(document: Mapping[str, object], mode: Mode) -> None:
    """Print a JSON object: indented, or on one line for `jsonl`."""
    indent = 2 if mode == "json" else None
    text = json.dumps({"schema": SCHEMA, **document}, indent=indent, ensure_ascii=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_object(fields: Row, mode: Mode) -> None:
    """Print one thing: as JSON object, or as two columns of name and value."""
    if mode in {"json", "jsonl"}:
        print_document(fields, mode)
        return
    rows = [{"name": name, "value": value} for name, value in fields.items()]
    print_rows("fields", rows, ["name", "value"], mode)


def _pick(row: Row, columns: Sequence[str]) -> dict[str, Cell]:
    return {column: row.get(column) for column in columns}


def _delimited(rows: Sequence[Row], columns: Sequence[str], mode: Mode) -> str:
    buffer = io.StringIO()
    if mode == "csv":
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(row.get(column)) for column in columns] for row in rows)
    else:
        buffer.write("\t".join(columns) + "\n")
        for row in rows:
            cells = (_escape_tsv(_text(row.get(column))) for column in columns)
            buffer.write("\t".join(cells) + "\n")
    return buffer.getvalue()


def _escape_tsv(text: str) -> str:
    # TSV has no quotes: a tab or newline inside a cell would shift every later column.
    if text.isprintable() and "\\" not in text:
        return text
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return str(cell)


def _print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Align columns: numbers to the right, titles in bold on a terminal.

    Lines are never folded to the width of the terminal: a folded cell cannot be copied.
    """
    titles = [column.upper().replace("_", "-") for column in columns]
    cells = [[_table_text(row.get(column)) for column in columns] for row in rows]
    right = [
        bool(rows) and all(isinstance(row.get(column), int | float | None) for row in rows)
        for column in columns
    ]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    bold = sys.stdout.isatty() and wants_color()
    for index, line in enumerate([titles, *cells]):
        padded = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ]
        text = "  ".join(padded).rstrip()
        sys.stdout.write(f"\x1b[1m{text}\x1b[0m\n" if bold and index == 0 else text + "\n")


def _table_text(cell: Cell) -> str:
    text = "-" if cell is None else _text(cell)
    # Control characters in names would otherwise reach the terminal.
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def wants_color() -> bool:
    """Whether colour is welcome: NO_COLOR unset or empty, and the terminal is not dumb."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
