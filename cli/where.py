"""`consume --where`: which records an expression holds for. Reads no store and prints nothing.

The fields of an expression are those of the value, when that is a JSON object. What else a record
has stands beside them under names that begin with an underscore:

    _key         text, or null              _topic, _partition, _offset
    _timestamp   UTC milliseconds           _headers    an object of texts
    _value       the decoded JSON value     _text       the value as text

Values are decoded only when the expression asks for something in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, Final, NamedTuple

import msgspec

from millstream import BatchFacts, FieldFacts, Record, RecordError, UsageError

_decode: Final = msgspec.json.Decoder().decode


class Selection(NamedTuple):
    """What is left of some records."""

    records: list[Record]
    """Those the expression holds for, in order, before the first it cannot be computed for."""
    error: RecordError | None
    """Why there are no more of them; names that record."""


class Where:
    """Selects records by an expression.

    Args:
        text: The expression.

    Raises:
        UsageError: It is none; the message shows where.
    """

    def __init__(self, text: str) -> None:
        # Here, because the processor is several times the rest of this command.
        from millstream.processor import parse_expression  # noqa: PLC0415

        try:
            # Joined with true, so that anything but true, false and null is an error.
            self._condition = parse_expression(text) & True
        except UsageError as error:
            raise UsageError(f"--where: {error}") from error
        names = self._condition.columns()
        self._beside = {name: _RECORD_FIELDS[name] for name in names if name in _RECORD_FIELDS}
        self._has_values = len(self._beside) < len(names)
        self.unseen = set(names) - set(self._beside)
        """Fields that no value has had so far: misspelt, perhaps."""

    def may_hold(self, batch: BatchFacts) -> bool:
        """Whether it may hold for a record of a batch, or be an error, by what is known of them."""
        if self._has_values and batch.names is None:
            return True  # values are decoded before anything is asked, and may be no JSON
        if self._condition.may_be_true(lambda name: _facts(batch, name)):
            return True
        self.unseen.difference_update(batch.names or ())
        return False

    def select(self, records: Sequence[Record]) -> Selection:
        """The records it holds for, before the first it cannot be computed for."""
        try:
            rows = list(map(self._row, records))
            holds = self._condition.evaluate(rows)
        except Exception:
            # Some record is to blame, and those before it are still wanted: this finds it, and
            # says what it raised.
            return self._select_one_by_one(records)
        if self.unseen:
            self.unseen = {name for name in self.unseen if not any(name in row for row in rows)}
        return Selection(list(compress(records, holds)), None)

    def _select_one_by_one(self, records: Sequence[Record]) -> Selection:
        selected: list[Record] = []
        for record in records:
            try:
                row = self._row(record)
                self.unseen -= row.keys()
                if self._condition(row):
                    selected.append(record)
            except Exception as error:
                return Selection(selected, _error(record, error))
        return Selection(selected, None)

    def _row(self, record: Record) -> dict[str, Any]:
        """The fields of a record's value, and those beside it that are asked for."""
        value = None if record.value is None or not self._has_values else _decode(record.value)
        fields = value if isinstance(value, dict) else {}
        for name, read in self._beside.items():
            fields[name] = read(record)
        return fields


def _facts(batch: BatchFacts, name: str) -> FieldFacts:
    """What is known of a field of an expression in the records of a batch."""
    if name not in _RECORD_FIELDS:
        return batch.field(name)
    known = {
        "_offset": FieldFacts("number", *batch.offsets),
        "_timestamp": FieldFacts("number", *batch.timestamps_ms),
        "_partition": FieldFacts("number", batch.partition, batch.partition),
        "_topic": FieldFacts("text", batch.topic, batch.topic),
        "_key": FieldFacts("text", nulls=True),
        "_text": FieldFacts("text", nulls=True),
    }
    return known.get(name, FieldFacts("other", nulls=True))


def _error(record: Record, error: Exception) -> RecordError:
    problem = f"{type(error).__name__}: {error}"
    if isinstance(error, msgspec.DecodeError | UnicodeDecodeError | RecursionError):
        problem = f"the value is no JSON: {error}; _text, _key and the like can be asked for"
    named = RecordError(
        f"--where: {problem}",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
    )
    named.__cause__ = error
    return named


def _text(data: bytes | None) -> str | None:
    """Bytes as text; those that are no UTF-8 become characters that no text has."""
    return None if data is None else data.decode("utf-8", "surrogateescape")


_RECORD_FIELDS: Final[dict[str, Callable[[Record], Any]]] = {
    "_key": lambda record: _text(record.key),
    "_topic": lambda record: record.topic,
    "_partition": lambda record: record.partition,
    "_offset": lambda record: record.offset,
    "_timestamp": lambda record: record.timestamp_ms,
    "_headers": lambda record: {name: _text(value) for name, value in record.headers},
    "_value": lambda record: None if record.value is None else _decode(record.value),
    "_text": lambda record: _text(record.value),
}
