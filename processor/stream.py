"""The fluent, typed way to declare a plan. Streams are values; nothing runs here.

`Stream[T]` has rows of T with an event time; `KeyedStream[K, T]` is grouped by K;
`WindowedStream` waits for its aggregates; `WindowResults` are the rows of closed windows.
Every call adds a node to the plan of the pipeline and returns the stream behind it.

Functions given here take one value, depend on it alone and have no side effects: a step may be
repeated after a crash.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final, Generic, Literal, NamedTuple, Self, TypeVar, overload

from millstream import UsageError, check_topic_name, parse_duration_ms

from .agg import Aggregate
from .fields import Field, label, require_field, require_function, require_readable
from .plan import (
    ChildNode,
    DeadLettersNode,
    FilterNode,
    FlatMapNode,
    KeyByNode,
    LateNode,
    MapNode,
    PlanBuilder,
    SinkNode,
    SourceNode,
    WindowNode,
)
from .serde import Key
from .windows import FixedWindows, Windowed, duration_text

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
J = TypeVar("J")
R = TypeVar("R")

_RESERVED: Final = frozenset({"key", "start", "end", "window_start", "window_end"})
_COLUMN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


class _Windowing(NamedTuple):
    windows: FixedWindows
    grace_ms: int
    name: str | None


class Stream(Generic[T]):
    """Rows of type T, each with an event time."""

    __slots__ = ("_builder", "_node")

    def __init__(self, builder: PlanBuilder, node: int) -> None:
        self._builder = builder
        self._node = node

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._builder.nodes[self._node].label}>"

    def map(self, function: Callable[[T], U], *, name: str | None = None) -> Stream[U]:
        """`function` of every value. Event time stays; a result of None is a row like any other.

        Args:
            function: Takes a value, returns one.
            name: What messages call it; by default its source line.
        """
        return Stream(self._builder, self._add_map(function, name))

    def filter(self, predicate: Callable[[T], object], *, name: str | None = None) -> Self:
        """The rows for which `predicate` is true. The others still move event time."""
        require_function(predicate, "filter()")
        node = FilterNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("filter", predicate),
            predicate=predicate,
        )
        return type(self)(self._builder, self._builder.add(node))

    def flat_map(
        self, function: Callable[[T], Iterable[U]], *, name: str | None = None
    ) -> Stream[U]:
        """Every value of the iterable that `function` returns, in order; may be none."""
        return Stream(self._builder, self._add_flat_map(function, name))

    @overload
    def key_by(self, key: str, *, name: str | None = None) -> KeyedStream[Key, T]: ...
    @overload
    def key_by(
        self, key: Callable[[T], K | None], *, name: str | None = None
    ) -> KeyedStream[K, T]: ...
    def key_by(self, key: Field, *, name: str | None = None) -> KeyedStream[Any, T]:
        """Group the rows by a field or a function of the value.

        A key is str, bytes, bool, int, float or a tuple of these. A row whose key is missing,
        None or of another type goes to the source's dead letters, or stops the pipeline when
        those go nowhere.
        """
        require_readable(key, "key_by()")
        if isinstance(key, str):
            require_field(self._declared_type(), key, "key_by")
        node = KeyByNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("key_by", key),
            key=key,
        )
        return KeyedStream(self._builder, self._builder.add(node))

    def to(self, topic: str) -> Self:
        """Write the rows to `topic`, which is created with one partition when it is missing.

        The value is JSON (bytes as they are, None as a tombstone), the timestamp the event time
        and the key the grouping key, or the input record's key when the stream is not keyed.
        """
        check_topic_name(topic)
        node = SinkNode(
            id=self._builder.next_id, parent=self._node, label=f"to {topic}", topic=topic
        )
        self._builder.add(node)
        return self

    def _add_map(self, function: Callable[[Any], object], name: str | None) -> int:
        require_function(function, "map()")
        return self._builder.add(
            MapNode(
                id=self._builder.next_id,
                parent=self._node,
                label=name or label("map", function),
                function=function,
            )
        )

    def _add_flat_map(self, function: Callable[[Any], object], name: str | None) -> int:
        require_function(function, "flat_map()")
        return self._builder.add(
            FlatMapNode(
                id=self._builder.next_id,
                parent=self._node,
                label=name or label("flat_map", function),
                function=function,
            )
        )

    def _declared_type(self) -> object:
        """The type of the rows where it is known: below a source, behind filters alone."""
        node = self._builder.nodes[self._node]
        while isinstance(node, FilterNode | KeyByNode | LateNode):
            node = self._builder.nodes[node.parent]
        if isinstance(node, WindowNode):
            return None
        return node.type if isinstance(node, SourceNode) else None


class SourceStream(Stream[T]):
    """The rows of a source."""

    __slots__ = ()

    @property
    def dead_letters(self) -> DeadLetters:
        """The records that cannot be decoded, timed or keyed. Without a sink they are errors."""
        node = self._builder.nodes[self._node]
        while isinstance(node, ChildNode):
            node = self._builder.nodes[node.parent]
        return DeadLetters(self._builder, node.id)


class DeadLetters:
    """The bad records of a source, unchanged, with a header `error` that says why."""

    __slots__ = ("_builder", "_source")

    def __init__(self, builder: PlanBuilder, source: int) -> None:
        self._builder = builder
        self._source = source

    def to(self, topic: str) -> None:
        """Write them to `topic` instead of stopping at the first."""
        check_topic_name(topic)
        builder = self._builder
        port = builder.add(
            DeadLettersNode(id=builder.next_id, parent=self._source, label="dead letters")
        )
        builder.add(SinkNode(id=builder.next_id, parent=port, label=f"to {topic}", topic=topic))


class KeyedStream(Stream[T], Generic[K, T]):
    """Rows of type T grouped by a key of type K."""

    __slots__ = ()

    def map(self, function: Callable[[T], U], *, name: str | None = None) -> KeyedStream[K, U]:
        """`function` of every value; event time and key stay."""
        return KeyedStream(self._builder, self._add_map(function, name))

    def flat_map(
        self, function: Callable[[T], Iterable[U]], *, name: str | None = None
    ) -> KeyedStream[K, U]:
        """Every value of the iterable that `function` returns; event time and key stay."""
        return KeyedStream(self._builder, self._add_flat_map(function, name))

    def window(
        self,
        windows: FixedWindows,
        *,
        grace: str | int | timedelta = 0,
        name: str | None = None,
    ) -> WindowedStream[K, T]:
        """Cut each key's rows into windows of event time.

        Args:
            windows: `tumbling("1m")`, `hopping("10m", "1m")`.
            grace: A window that ends at e closes when event time reaches e + grace. Rows that
                come later are late.
            name: Of the state; by default `<source topic>.window`. Give one to keep the state
                when window operators are reordered.
        """
        if not isinstance(windows, FixedWindows):
            raise UsageError(f"window() takes tumbling(...) or hopping(...), not {windows!r}")
        grace_ms = parse_duration_ms(grace)
        return WindowedStream(self._builder, self._node, _Windowing(windows, grace_ms, name))


class WindowedStream(Generic[K, T]):
    """A keyed stream cut into windows, waiting for `agg`."""

    __slots__ = ("_builder", "_node", "_windowing")

    def __init__(self, builder: PlanBuilder, node: int, windowing: _Windowing) -> None:
        self._builder = builder
        self._node = node
        self._windowing = windowing

    # The accumulator's type is the aggregate's own business: hence the Any.
    def agg(self, **aggregates: Aggregate[T, Any, R]) -> WindowResults[K, T, R]:
        """Compute named aggregates of every key and window, emitted once, when it closes.

        Args:
            aggregates: `n=agg.count(), total=agg.sum("amount")`; see `millstream.processor.agg`.

        Raises:
            UsageError: No aggregate, a reserved name, or a field the source's type lacks.
        """
        if not aggregates:
            raise UsageError("agg() needs at least one aggregate, such as n=agg.count()")
        declared = Stream[T](self._builder, self._node)._declared_type()  # noqa: SLF001 - same module
        for column, aggregate in aggregates.items():
            if not _COLUMN.fullmatch(column) or column in _RESERVED or keyword.iskeyword(column):
                raise UsageError(f"an aggregate cannot be called {column!r}")
            if not isinstance(aggregate, Aggregate):
                raise UsageError(
                    f"{column} must be an aggregate such as agg.count() or agg.sum('amount'),"
                    f" not {aggregate!r}"
                )
            if aggregate.field is not None:
                require_readable(aggregate.field, f"agg {column}")
            if isinstance(aggregate.field, str):
                require_field(declared, aggregate.field, f"agg {column}")
        windows, grace_ms, name = self._windowing
        parts = ", ".join(f"{name}={one.describe()}" for name, one in aggregates.items())
        node = WindowNode(
            id=self._builder.next_id,
            parent=self._node,
            label=f"window {windows}, grace {duration_text(grace_ms)}, agg {parts}",
            name=self._builder.state_name(self._node, name),
            windows=windows,
            grace_ms=grace_ms,
            aggregates=tuple(aggregates.items()),
        )
        return WindowResults(self._builder, self._builder.add(node))


class WindowResults(KeyedStream[K, Windowed[K, R]], Generic[K, T, R]):
    """One row per closed window and key, in order of (end, start, bytes of the key).

    Its event time is the last millisecond of the window.
    """

    __slots__ = ()

    def emit(self, mode: Literal["final"]) -> Self:
        """When results are written: "final", once, as the window closes (the default)."""
        if mode != "final":
            raise UsageError(f"emit({mode!r}): only 'final' exists so far")
        return self

    @property
    def late(self) -> Stream[T]:
        """The rows that came after all of their windows had closed, each once."""
        builder = self._builder
        window = builder.nodes[self._node]
        while isinstance(window, FilterNode):
            window = builder.nodes[window.parent]
        for node in builder.nodes:
            if isinstance(node, LateNode) and node.parent == window.id:
                return Stream(builder, node.id)
        port = LateNode(id=builder.next_id, parent=window.id, label="late rows")
        return Stream(builder, builder.add(port))
