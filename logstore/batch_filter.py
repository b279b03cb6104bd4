"""Which batches of columns a condition can be left out for, by what is known without their rows.

A condition is a `pyarrow.compute.Expression` over the columns of a topic. What headers and
directories say of a batch, lowest and highest values and nulls, becomes an expression too, and
Arrow says whether both can be true of a row. It may say yes for a batch without such rows, so the
rows that are read are always filtered as well: `keep`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any, Final, TypeAlias

from .arrow_batch import RECORD_COLUMNS, chosen_fields
from .arrow_columns import compute, directory_schema
from .batch_facts import BatchFacts
from .column_section import ColumnEntry, Directory
from .errors import CorruptBatchError, UsageError
from .format import BatchHeader
from .topic_schema import pyarrow

Limit: TypeAlias = int | float | bytes
_SPLIT_MAX: Final = 3
"""Columns with nulls of which rows with and without a value are judged apart."""


class BatchFilter:
    """A condition over the rows of a topic. Immutable and thread-safe.

    Args:
        where: A pyarrow.compute.Expression.
        declared: The pyarrow.Schema of the topic.

    Attributes:
        names: The columns it is about.

    Raises:
        UsageError: It is none, there is no such column, or types do not go together.
    """

    def __init__(self, where: Any, declared: Any) -> None:
        pa = pyarrow()
        if not isinstance(where, compute().Expression):
            raise UsageError(
                f"where is a {type(where).__name__}; give a pyarrow.compute expression, as in"
                ' pyarrow.compute.field("price") > 10'
            )
        fields = chosen_fields(declared, [*declared.names, *RECORD_COLUMNS])
        self._where = where
        # Arrow takes "not below" for "at or above" when it judges a batch, which NaN is neither.
        self._about_nan = re.search(r"\bnan\b", str(where)) is not None
        self._schema = pa.schema(fields)
        empty = self._schema.empty_table()
        try:
            empty.filter(where)
        except (pa.ArrowException, TypeError) as error:
            known = ", ".join(self._schema.names)
            reason = str(error).splitlines()[0]
            raise UsageError(f"where={where}: {reason}; there are {known}") from None
        self.names = tuple(name for name in self._schema.names if _uses(where, empty, name))

    def may_hold(self, batch: BatchFacts) -> bool:
        """Whether a row of the batch may fulfil the condition.

        Raises:
            CorruptBatchError: What the directory says makes no sense.
        """
        if batch.directory is None or self._about_nan:
            return True
        known = [*self._of_records(batch), *self._of_columns(batch.header, batch.directory)]
        if not known:
            return True
        splits = 0
        alternatives: list[list[Any]] = []
        for each in known:
            if len(each) == 1 or splits < _SPLIT_MAX:
                splits += len(each) > 1
                alternatives.append(each)
        facts = []
        for chosen in product(*alternatives):
            fact = chosen[0]
            for more in chosen[1:]:
                fact &= more
            facts.append(fact)
        return self._possible(facts)

    def keep(self, batch: Any) -> Any:
        """The rows of a pyarrow.RecordBatch with these columns that fulfil the condition.

        Raises:
            UsageError: It has no value for a row: a number is too large, a text is no number.
        """
        try:
            return batch.filter(self._where)
        except pyarrow().ArrowInvalid as error:
            raise UsageError(
                f"where={self._where} has no value for a row: {error}; compare with a"
                " pyarrow.scalar of the type of the column, or cast it"
            ) from None

    def _of_records(self, batch: BatchFacts) -> Iterator[list[Any]]:
        ranges = {
            "_offset": batch.offsets,
            "_partition": (batch.partition, batch.partition),
            "_timestamp_ms": batch.timestamps_ms,
        }
        for name, (low, high) in ranges.items():
            if name in self.names:
                kind = self._schema.field(name).type
                yield [self._between(name, low, high, kind)]

    def _of_columns(self, header: BatchHeader, directory: Directory) -> Iterator[list[Any]]:
        """Of each column what may hold of a row: that the value is in a range, that it is null."""
        # How many records are rows, the header does not say where some are tombstones.
        rows = -1 if header.has_tombstones else header.record_count
        field = compute().field
        schema = directory_schema(directory)
        for name in self.names:
            if name in RECORD_COLUMNS:
                continue
            if name not in schema.names:  # added later
                yield [field(name).is_null()]
                continue
            number = schema.names.index(name)
            entry: ColumnEntry = directory.entries[number]
            if entry.null_count == rows:
                yield [field(name).is_null()]
            elif (limits := directory.limits(number)) is not None:
                low, high = limits
                found = [self._between(name, low, high, schema.field(number).type)]
                yield [*found, field(name).is_null()] if entry.null_count else found

    def _between(self, name: str, low: Limit, high: Limit, kind: Any) -> Any:
        pa, field = pyarrow(), compute().field(name)
        wanted = self._schema.field(name).type
        try:
            lowest, highest = (pa.scalar(each, kind).cast(wanted) for each in (low, high))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise CorruptBatchError(f"bounds of column {name!r} are none: {error}") from None
        return (field >= lowest) & (field <= highest)

    def _possible(self, facts: list[Any]) -> bool:
        """Whether the condition can hold of a row of which one of `facts` does.

        Arrow decides that when it chooses the files of a dataset; no file is looked at.
        """
        from pyarrow import dataset, fs  # noqa: PLC0415 - an extra

        format_, files = dataset.IpcFileFormat(), fs.LocalFileSystem()
        fragments = [format_.make_fragment("-", files, partition_expression=one) for one in facts]
        whole = dataset.FileSystemDataset(fragments, self._schema, format_, files)
        try:
            return any(True for _ in whole.get_fragments(filter=self._where))
        except pyarrow().ArrowInvalid:
            return True  # no value of a bound under the condition; perhaps of the rows there is one


def _uses(where: Any, empty: Any, name: str) -> bool:
    """Whether a condition is about a column; it cannot be asked, so it is tried without."""
    try:
        empty.drop_columns([name]).filter(where)
    except pyarrow().ArrowInvalid:
        return True
    return False
