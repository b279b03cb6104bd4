"""The columns of one batch as Arrow arrays, each decoded once, when it is asked for.

Between `record_batch.py`, which knows batches, and `arrow_columns.py`, which knows Arrow. The bytes
are either the whole section B or, where a reader asked for some columns only, their chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from .arrow_columns import directory_schema, read_column
from .column_section import Directory, open_directory
from .errors import UsageError
from .format import Buffer
from .topic_schema import pyarrow

RECORD_COLUMNS: Final = ("_offset", "_partition", "_timestamp_ms", "_key")
"""What a record has beside its value, by the names under which columns can be asked for."""


class Projection(NamedTuple):
    """Of a batch of columns what a reader asked for, verified: some chunks."""

    directory: Directory
    chunks: Mapping[int, Buffer]
    """Stored bytes by number of the column."""


class ArrowColumns:
    """Decodes the columns of a batch. Two threads may decode one at once, with the same answer."""

    __slots__ = ("_arrays", "_chunks", "_directory", "_rows")

    def __init__(self, projection: Projection, rows: int) -> None:
        self._directory, self._chunks = projection
        self._rows = rows
        self._arrays: dict[int, Any] = {}

    @property
    def schema(self) -> Any:
        """The pyarrow.Schema the batch was written with."""
        return directory_schema(self._directory)

    def limits(self) -> dict[str, tuple[int | float, int | float]]:
        """Lowest and highest value of the columns for which they were kept."""
        pairs = zip(self.schema.names, self._directory.entries, strict=True)
        return {name: found for name, entry in pairs if (found := entry.limits()) is not None}

    def column(self, field: Any) -> Any:
        """The column of that name as an array of that type; nulls if it was added later."""
        pa, names = pyarrow(), self.schema.names
        if field.name not in names:
            return pa.nulls(self._rows, field.type)
        number = names.index(field.name)
        array = self._arrays.get(number)
        if array is None:
            if number not in self._chunks:
                raise UsageError(f"column {field.name!r} was not read: name it in columns=")
            array = read_column(self._directory, number, self._chunks[number], self._rows)
            self._arrays[number] = array
        return array if array.type.equals(field.type) else array.cast(field.type)


def section_columns(section: Buffer, directory_hash: int, rows: int) -> ArrowColumns:
    """The columns of a whole, verified section B."""
    view = memoryview(section)
    directory = open_directory(view, directory_hash)
    chunks = {
        number: view[entry.position : entry.position + entry.stored_bytes]
        for number, entry in enumerate(directory.entries)
    }
    return ArrowColumns(Projection(directory, chunks), rows)


def chosen_fields(schema: Any, columns: Sequence[str] | None) -> list[Any]:
    """The fields of `columns` in that order, of values and of records; all of values for None.

    Raises:
        UsageError: There is no such column; the message lists them.
    """
    if columns is None:
        return list(schema)
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise UsageError(f"columns is {columns!r:.60}; give a list of names")
    pa = pyarrow()
    kinds = {
        "_offset": pa.int64(),
        "_partition": pa.int32(),
        "_timestamp_ms": pa.int64(),
        "_key": pa.binary(),
    }
    fields = []
    for name in columns:
        if isinstance(name, str) and name in kinds:
            fields.append(pa.field(name, kinds[name], nullable=name == "_key"))
        elif name in schema.names:
            fields.append(schema.field(name))
        else:
            known = ", ".join((*schema.names, *RECORD_COLUMNS))
            raise UsageError(f"there is no column {name!r}; there are {known}")
    return fields
