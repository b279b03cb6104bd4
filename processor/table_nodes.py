"""The nodes of tables, plain frozen values as in nodes.py; and functions of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .agg import Aggregate
from .fields import Field, describe
from .parts import Parted
from .stream_nodes import ChildNode, StatefulNode
from .windows import duration_text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningNode(StatefulNode):
    """Aggregates per key; one row for every row."""

    kind: ClassVar[str] = "table"

    aggregates: tuple[tuple[str, Aggregate[Any, Any, Any]], ...]
    single: bool
    """Whether the value is the result of the only aggregate, and not a row of named ones."""
    value_type: object
    """Of what a single one holds; None where nobody said."""
    row_type: object
    """What is aggregated, for accumulators that keep some of it; None: unknown."""
    ttl_ms: int | None

    def identity(self, keys: Sequence[str]) -> str:
        """Key, aggregates and time to live."""
        parts = ", ".join(f"{name}={one.describe()}" for name, one in self.aggregates)
        what = self.aggregates[0][1].describe() if self.single else f"agg {parts}"
        return f"key_by {keys[0]}; running {what}{ttl_text(self.ttl_ms)}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordKeyNode(ChildNode):
    """Groups the records of a topic that is read as a table."""

    key: Field
    """Of the value; None for the key of the record, which that of a tombstone is always."""
    key_type: Any

    @property
    def grouping(self) -> str:
        """The record's key, or what of the value."""
        return "the record's key" if self.key is None else describe(self.key)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegroupNode(StatefulNode):
    """Aggregates the rows of a table by something else than its key; one row for each change."""

    kind: ClassVar[str] = "group"

    key: Field
    row_type: object
    """Of the table's rows; None where nobody said."""
    aggregates: tuple[tuple[str, Aggregate[Any, Any, Any]], ...]
    value_type: object

    @property
    def grouping(self) -> str:
        """The field or function."""
        return describe(self.key)

    def identity(self, keys: Sequence[str]) -> str:
        """Key of the table, of the groups, and aggregates."""
        parts = ", ".join(f"{name}={one.describe()}" for name, one in self.aggregates)
        return f"table by {keys[0]}; group_by {describe(self.key)}; agg {parts}"


class OnValues(Parted):
    """A function of a table's values that leaves alone what is deleted."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, value: Any) -> Any:
        """What the function makes of it."""
        return None if value is None else self.function(value)


class Where(Parted):
    """A table's value where a predicate holds, None where it does not: not in the table."""

    def __init__(self, predicate: Callable[[Any], object]) -> None:
        self.function = predicate

    def __call__(self, value: Any) -> Any:
        """The value, or None."""
        return value if value is not None and self.function(value) else None


def ttl_text(ttl_ms: int | None) -> str:
    """A time to live in words, for labels and identities."""
    return "" if ttl_ms is None else f", ttl {duration_text(ttl_ms)}"
