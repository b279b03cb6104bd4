"""Tables: the latest value of every key, as updates of which the last of a key counts.

What a keyed stream makes of its rows without windows is a table, and a topic can be read as one.
Nothing runs here: every call adds a node to the plan. The streams that updates are again are those
of stream.py, which is built upon this module and named here for type checkers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Never,
    NoReturn,
    Self,
    TypeVar,
    Unpack,
    overload,
)

from millstream import UsageError

from .aggregate import AnyAggregate
from .connectors import Sink
from .fields import Field, label, require_named
from .row_shapes import Aggregated
from .row_types import returned_type
from .rows import DeadLetters, Rows
from .sink_declaration import SinkOptions
from .table_declaration import (
    counting_node,
    folding_node,
    on_values,
    reducing_node,
    regrouping_node,
    running_node,
    where,
)
from .window_declaration import AGGREGATES_BY_NAME

if TYPE_CHECKING:
    from .stream import KeyedStream

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")
A = TypeVar("A")
J = TypeVar("J")
R = TypeVar("R")


class TableMethods(Rows[T], Generic[K, T]):
    """What a keyed stream can do to become a table."""

    __slots__ = ()

    def _keyed(self, node: int) -> KeyedStream[K, Any]:
        """The keyed stream behind another node."""
        raise NotImplementedError

    def count(
        self, *, ttl: str | int | timedelta | None = None, name: str | None = None
    ) -> Table[K, int]:
        """How many rows each key has had, updated with every row.

        Args:
            ttl: A key is forgotten when event time (W, or its next row) is so much later than its
                newest row, and begins anew; None keeps all keys for ever.
            name: Of the state; by default `<source topic>.count`.
        """
        node = counting_node(self._builder, self._node, ttl, name)
        return self._table(self._builder.add(node, int), node.ttl_ms)

    def reduce(
        self,
        function: Callable[[T, T], T],
        *,
        ttl: str | int | timedelta | None = None,
        name: str | None = None,
    ) -> Table[K, T]:
        """The rows of each key made into one, updated with every row. Rows of None are passed over.

        Args:
            function: Takes the value so far, which it may change, and a row, which it must not
                change; returns the new value. A key's first row is its first value.
            ttl: See `count`.
            name: Of the state; by default `<source topic>.reduce`.
        """
        node = reducing_node(self._builder, self._node, function, ttl, name)
        return self._table(self._builder.add(node, node.value_type), node.ttl_ms)

    def fold(
        self,
        init: Callable[[], A],
        step: Callable[[A, T], A],
        *,
        ttl: str | int | timedelta | None = None,
        name: str | None = None,
    ) -> Table[K, A]:
        """A value of each key that every row changes.

        Args:
            init: Makes the value of a key before its first row: `list`, `lambda: 0`.
            step: Takes the value and a row, returns the value; may change the given one. A value
                of None deletes the key: its next row begins anew.
            ttl: See `count`.
            name: Of the state; by default `<source topic>.fold`.
        """
        node = folding_node(self._builder, self._node, init, step, (ttl, name))
        return self._table(self._builder.add(node, node.value_type), node.ttl_ms)

    def agg(
        self,
        *unnamed: Never,
        ttl: str | int | timedelta | None = None,
        name: str | None = None,
        **aggregates: AnyAggregate[T, R],
    ) -> Table[K, Aggregated[K, R]]:
        """Named aggregates of each key, updated with every row.

        Args:
            unnamed: Nothing: what has no name is refused.
            ttl: See `count`.
            name: Of the state; by default `<source topic>.agg`.
            aggregates: `n=agg.count(), total=agg.sum("amount")`; see `millstream.processor.agg`.

        Raises:
            UsageError: No aggregate, a reserved name, or a field the rows' type lacks.
        """
        require_named(unnamed, AGGREGATES_BY_NAME)
        node = running_node(self._builder, self._node, aggregates, ttl, name)
        return self._table(self._builder.add(node, node.value_type), node.ttl_ms)

    def _table(self, node: int, ttl_ms: int | None) -> Table[K, Any]:
        return Table(self._keyed(node), ttl_ms)


class Table(Generic[K, V]):
    """The latest value of every key: a stream of updates, of which the last of a key counts.

    >>> from millstream.processor import Pipeline
    >>> pipeline = Pipeline("words")
    >>> words = pipeline.source("lines", type=str).flat_map(str.split)
    >>> _ = words.key_by(str.lower).count().to("counts")
    >>> output = pipeline.test({"lines": [b"To be or", b"not to be"]})
    >>> [(record.key, record.value) for record in output.records("counts")[-2:]]
    [(b'to', b'2'), (b'be', b'2')]
    """

    __slots__ = ("_ttl_ms", "_updates", "_versioned")

    def __init__(
        self,
        updates: KeyedStream[K, Any],
        ttl_ms: int | None = None,
        *,
        versioned: bool = False,
    ) -> None:
        self._updates = updates
        self._ttl_ms = ttl_ms
        self._versioned = versioned

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._updates._label}>"

    def to(self, target: str | Sink, **options: Unpack[SinkOptions]) -> Self:
        """Write every update to a topic that can be compacted by key, or read as a table.

        Or to a sink outside the store that keeps the newest row of each key; see `Stream.to`.

        The key of a record is the table's key. The value is JSON; a record without a value (a
        tombstone) deletes its key.
        """
        self._updates.to(target, **options)
        return self

    @overload
    def updates(self) -> KeyedStream[K, V]: ...
    @overload
    def updates(self, *, deletions: Literal[True]) -> KeyedStream[K, V | None]: ...
    def updates(self, *, deletions: bool = False) -> KeyedStream[K, Any]:
        """The updates as rows like any others, in the order of the input rows that caused them.

        Args:
            deletions: Whether a key that is deleted is a row, too, whose value is None.
        """
        return self._updates if deletions else self._updates.filter(_is_there, name="values")

    def map(self, function: Callable[[V], W], *, name: str | None = None) -> Table[K, W]:
        """A table with `function` of every value. Where that is None, the key is not in it."""
        made = returned_type(function)
        return self._mapped(on_values(function), made, name or label("map", function))

    def filter(self, predicate: Callable[[V], object], *, name: str | None = None) -> Table[K, V]:
        """A table of the keys for whose values `predicate` is true."""
        same = self._updates._type
        return self._mapped(where(predicate), same, name or label("filter", predicate))

    def _mapped(self, function: Callable[[Any], Any], made: object, name: str) -> Table[K, Any]:
        node = self._updates._add_map(function, name, "stop", made)
        return Table(self._updates._keyed(node), self._ttl_ms, versioned=self._versioned)

    @overload
    def group_by(self, key: str, *, name: str | None = None) -> GroupedTable[Any, V]: ...
    @overload
    def group_by(self, key: Callable[[V], J], *, name: str | None = None) -> GroupedTable[J, V]: ...
    def group_by(self, key: Field, *, name: str | None = None) -> GroupedTable[Any, V]:
        """Group the rows of the table by a field or a function of the value.

        The aggregates follow the table: what is replaced or deleted in it is taken back.

        Args:
            key: See `Stream.key_by`. Of a row without one the run stops.
            name: Of the state; by default `<source topic>.group`.

        Raises:
            UsageError: The table forgets keys silently (`ttl=`): they could not be taken back.
        """
        if self._ttl_ms is not None:
            raise UsageError(
                "group_by() of a table with a time to live: what it forgets could not be taken back"
            )
        return GroupedTable(self._updates, key, name)

    def window(self, *_: object, **__: object) -> NoReturn:
        """Refused: a window that has closed cannot take back what the table replaces or deletes.

        Raises:
            UsageError: Always. It says what to do.
        """
        raise UsageError(
            "a table has no windows: rows that it replaces or deletes would have to be taken back"
            " from windows that have closed. Use .updates().window(...) for the updates as rows, or"
            " .group_by(...).agg(...) for aggregates that follow the table"
        )


def _is_there(value: object) -> bool:
    return value is not None


class GroupedTable(Generic[J, V]):
    """The rows of a table grouped by something else than its key, waiting for aggregates."""

    __slots__ = ("_key", "_name", "_updates")

    def __init__(self, updates: KeyedStream[Any, V], key: Field, name: str | None) -> None:
        self._updates = updates
        self._key = key
        self._name = name

    def __repr__(self) -> str:
        return f"<GroupedTable {self._updates._label}, {label('group_by', self._key)}>"

    def agg(self, *unnamed: Never, **aggregates: AnyAggregate[V, R]) -> Table[J, Aggregated[J, R]]:
        """Named aggregates of the rows that each group has now. A group without rows is deleted.

        Args:
            unnamed: Nothing: what has no name is refused.
            aggregates: Such as can take a value back: `agg.count()`, and `agg.sum` and `agg.mean`
                of ints. At a float the run stops, because a difference of floats is not exact.

        Raises:
            UsageError: An aggregate cannot take a value back; see also `KeyedStream.agg`.
        """
        require_named(unnamed, AGGREGATES_BY_NAME)
        rows = self._updates
        node = regrouping_node(rows._builder, rows._node, self._key, aggregates, self._name)
        return Table(rows._keyed(rows._builder.add(node, node.value_type)))


class SourceTable(Table[K, V]):
    """A table read from a topic."""

    __slots__ = ()

    @property
    def dead_letters(self) -> DeadLetters:
        """The records that cannot be decoded, timed or keyed. Without a sink they are errors."""
        return DeadLetters(self._updates._builder, self._updates._source)
