"""The fluent, typed way to declare a plan. Streams are values; nothing runs here.

`Stream[T]` has rows of T with an event time; `KeyedStream[K, T]` is grouped by K;
`WindowedStream` waits for its aggregates; `WindowResults` are the rows of closed windows.
Every call adds a node to the plan of the pipeline and returns the stream behind it.

Functions given here take one value, depend on it alone and have no side effects: a step may be
repeated after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Never,
    NoReturn,
    Self,
    TypeVar,
    overload,
)

from millstream import UsageError, parse_duration_ms

from . import agg
from .aggregate import AnyAggregate
from .expressions import Expression
from .field_types import require_key_type
from .fields import Field, label, require_fields, require_named, require_readable
from .joins import JoinMethods
from .nodes import (
    AggregatingNode,
    KeyByNode,
    OnError,
)
from .plan import PlanBuilder
from .process import Context, Timer
from .process_declaration import process_node, process_type
from .row_shapes import Windowed
from .rows import DeadLetters, Rows
from .selection import selection
from .tables import TableMethods
from .window_declaration import (
    AGGREGATES_BY_NAME,
    Windowing,
    Windows,
    aggregating_node,
    emitting,
    windowing,
)

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
R = TypeVar("R")
S = TypeVar("S")
A = TypeVar("A")

_AFTER_KEY_BY: Final = frozenset(
    {"agg", "count", "fold", "join", "join_asof", "join_table", "process", "reduce", "window"}
)


class Stream(Rows[T]):
    """Rows of type T, each with an event time."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            hint = f": call key_by() before {name}()" if name in _AFTER_KEY_BY else ""
            raise _no_attribute(self, name, hint)

    def map(
        self, function: Callable[[T], U], *, name: str | None = None, on_error: OnError = "stop"
    ) -> Stream[U]:
        """`function` of every value. Event time stays; a result of None is a row like any other.

        Args:
            function: Takes a value, returns one; must not change it, because others read it, too.
            name: What messages call it; by default its source line.
            on_error: "dead_letter" sends a record it raises on to the source's dead letters;
                "stop" (the default) ends the run with an error that names the record.
        """
        return Stream(self._builder, self._add_map(function, name, on_error))

    def select(self, *names: str, **fields: Expression) -> Stream[dict[str, Any]]:
        """Rows of these fields alone, as dicts. Event time stays.

        Args:
            names: Fields that stay as they are.
            fields: Expressions, by the names of their results.

        Raises:
            UsageError: No field, one given twice, or one that is no expression.

        >>> from millstream.processor import Pipeline, col
        >>> pipeline = Pipeline("prices")
        >>> orders = pipeline.source("orders")
        >>> _ = orders.select("user", total=col("price") * col("count")).to("totals")
        >>> pipeline.test({"orders": [{"user": "u1", "price": 3, "count": 2}]})["totals"]
        [{'user': 'u1', 'total': 6}]
        """
        return Stream(self._builder, self._add_selection(selection(names, fields, keep=False)))

    def with_columns(self, *unnamed: Never, **fields: Expression) -> Stream[dict[str, Any]]:
        """Rows with all their fields and these, as dicts. Event time stays.

        Args:
            unnamed: Nothing: what has no name is refused.
            fields: Expressions, by the names of their results; a field of that name is replaced.

        Raises:
            UsageError: No field, or one that is no expression.
        """
        chosen = selection(unnamed, fields, keep=True)
        return Stream(self._builder, self._add_selection(chosen))

    @overload
    def map_batch(
        self, function: Callable[[list[T]], Sequence[U]], *, name: str | None = None
    ) -> Stream[U]: ...
    @overload
    def map_batch(
        self, function: Callable[[Any], object], *, columns: Literal[True], name: str | None = None
    ) -> Stream[dict[str, Any]]: ...
    def map_batch(
        self, function: Callable[[Any], Any], *, columns: bool = False, name: str | None = None
    ) -> Stream[Any]:
        """`function` of lists of values, one result for each: for code that works on many at once.

        How rows are cut into lists depends on speed and must not matter: each result may depend
        on its own value alone.

        Args:
            function: Returns as many values as it gets.
            columns: The function takes the fields of the rows as a pyarrow.RecordBatch, and returns
                Arrow data with a row for each: a Table, a RecordBatch, a frame of Polars. Rows
                behind it are dicts; where they are columns already, they stay so. Needs the extra
                `arrow`.
            name: What messages and `explain()` call it.

        >>> import pyarrow.compute as pc
        >>> from millstream.processor import Pipeline
        >>> pipeline = Pipeline("lengths")
        >>> words = pipeline.source("words", type=dict)
        >>> lengths = words.map_batch(
        ...     lambda rows: rows.append_column("n", pc.utf8_length(rows["word"])), columns=True
        ... )
        >>> _ = lengths.to("lengths")
        >>> pipeline.test({"words": [{"word": "a"}, {"word": "bcd"}]})["lengths"]
        [{'word': 'a', 'n': 1}, {'word': 'bcd', 'n': 3}]
        """
        return Stream(self._builder, self._add_map_batch(function, name, columns=columns))

    def flat_map(
        self,
        function: Callable[[T], Iterable[U]],
        *,
        name: str | None = None,
        on_error: OnError = "stop",
    ) -> Stream[U]:
        """Every value of the iterable that `function` returns, in order; may be none.

        A str, bytes or dict is one value, not many: return it in a list.
        """
        return Stream(self._builder, self._add_flat_map(function, name, on_error))

    def branch(self, *unnamed: Never, **predicates: Callable[[T], object]) -> dict[str, Stream[T]]:
        """Split the stream: each row goes to the first predicate that holds, or to "rest".

        >>> from millstream.processor import Pipeline
        >>> pipeline = Pipeline("sizes")
        >>> parts = pipeline.source("words", type=str).branch(long=lambda word: len(word) > 3)
        >>> _ = parts["long"].to("long"), parts["rest"].to("short")
        >>> pipeline.test({"words": ["a", "lengthy"]})
        {'long': ['lengthy'], 'short': ['a']}
        """
        node = self._add_branch(predicates, unnamed)
        return {port: Stream(self._builder, self._port(node, port)) for port in node.ports}

    def merge(self, *others: Stream[U]) -> Stream[T | U]:
        """The rows of several streams as one, in the order in which the store got their records.

        W is the least of the sources': one that lags holds it back.
        """
        return Stream(self._builder, self._add_merge(others, keyed=False))

    def dedup(
        self,
        on: str | Callable[[T], object] | None = None,
        *,
        within: str | int | timedelta,
        name: str | None = None,
    ) -> DedupStream[T]:
        """Let the first of rows that say the same pass, and the next one `within` later.

        The first is the one the log got first. Rows whose event time is less than `within` from
        that of one that has passed, before or after it, are its duplicates. Rows that are `within`
        or more behind W are late. State is freed when W is twice that past it.

        Args:
            on: A field or function of the value; by default the value, if that is no dict and no
                object with fields. What a stream can be grouped by (see `key_by`); a row without
                it is a dead letter.
            within: A duration in event time.
            name: Of the state; by default `<source topic>.dedup`.

        >>> from millstream.processor import Pipeline
        >>> pipeline = Pipeline("once")
        >>> events = pipeline.source("events", time="ts", disorder="1m")
        >>> _ = events.dedup("id", within="10s").map(lambda event: event["ts"]).to("out")
        >>> times = [0, 9_999, 10_000, 5]
        >>> pipeline.test({"events": [{"id": 1, "ts": ts} for ts in times]})["out"]
        [0, 10000]
        """
        return DedupStream(self._builder, self._add_dedup(on, within, name, keyed=False))

    @overload
    def key_by(self, key: str, *, name: str | None = None) -> KeyedStream[Any, T]: ...
    @overload
    def key_by(
        self, key: Callable[[T], K | None], *, name: str | None = None
    ) -> KeyedStream[K, T]: ...
    def key_by(self, key: Field, *others: Never, name: str | None = None) -> KeyedStream[Any, T]:
        """Group the rows by a field or a function of the value.

        A key is str, bytes, bool, int, float or a tuple of these; an enum of these is its value.
        A row whose key is missing,
        None or of another type goes to the source's dead letters, or stops the pipeline when
        those go nowhere.
        """
        if others:
            raise UsageError(
                f"key_by() takes one field or function, and got {(key, *others)!r}: a function can"
                " return several fields as a tuple"
            )
        require_readable(key, "key_by()")
        require_fields(self._type, key, "key_by")
        require_key_type(self._type, key, "key_by")
        node = KeyByNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("key_by", key),
            key=key,
        )
        return KeyedStream(self._builder, self._builder.add(node, self._type))


class DedupStream(Stream[T]):
    """The rows that are the first of their kind."""

    __slots__ = ()

    @property
    def late(self) -> Stream[T]:
        """The rows that came so late that it was not known any more what had passed."""
        return Stream(self._builder, self._late())


class SourceStream(Stream[T]):
    """The rows of a source."""

    __slots__ = ()

    @property
    def dead_letters(self) -> DeadLetters:
        """The records that cannot be decoded, timed or keyed. Without a sink they are errors."""
        return DeadLetters(self._builder, self._source)


class KeyedStream(JoinMethods[K, T], TableMethods[K, T], Stream[T]):
    """Rows of type T grouped by a key of type K."""

    __slots__ = ()

    def _keyed(self, node: int) -> KeyedStream[K, Any]:
        return KeyedStream(self._builder, node)

    def _joined(self, node: int) -> JoinResults[K, Any, Any]:
        return JoinResults(self._builder, node)

    def map(
        self, function: Callable[[T], U], *, name: str | None = None, on_error: OnError = "stop"
    ) -> KeyedStream[K, U]:
        """`function` of every value; event time and key stay. See `Stream.map`."""
        return KeyedStream(self._builder, self._add_map(function, name, on_error))

    def select(self, *names: str, **fields: Expression) -> KeyedStream[K, dict[str, Any]]:
        """Rows of these fields alone; event time and key stay. See `Stream.select`."""
        node = self._add_selection(selection(names, fields, keep=False))
        return KeyedStream(self._builder, node)

    def with_columns(self, *unnamed: Never, **fields: Expression) -> KeyedStream[K, dict[str, Any]]:
        """Rows with all their fields and these; event time and key stay. See `Stream`."""
        node = self._add_selection(selection(unnamed, fields, keep=True))
        return KeyedStream(self._builder, node)

    @overload
    def map_batch(
        self, function: Callable[[list[T]], Sequence[U]], *, name: str | None = None
    ) -> KeyedStream[K, U]: ...
    @overload
    def map_batch(
        self, function: Callable[[Any], object], *, columns: Literal[True], name: str | None = None
    ) -> KeyedStream[K, dict[str, Any]]: ...
    def map_batch(
        self, function: Callable[[Any], Any], *, columns: bool = False, name: str | None = None
    ) -> KeyedStream[K, Any]:
        """`function` of lists of values; event time and key stay. See `Stream.map_batch`."""
        return KeyedStream(self._builder, self._add_map_batch(function, name, columns=columns))

    def flat_map(
        self,
        function: Callable[[T], Iterable[U]],
        *,
        name: str | None = None,
        on_error: OnError = "stop",
    ) -> KeyedStream[K, U]:
        """Every value of the iterable that `function` returns; event time and key stay."""
        return KeyedStream(self._builder, self._add_flat_map(function, name, on_error))

    def branch(  # type: ignore[override]  # a dict is invariant; nobody puts streams in
        self, *unnamed: Never, **predicates: Callable[[T], object]
    ) -> dict[str, KeyedStream[K, T]]:
        """Split the stream; keys stay. See `Stream.branch`."""
        node = self._add_branch(predicates, unnamed)
        return {port: KeyedStream(self._builder, self._port(node, port)) for port in node.ports}

    def merge(self, *others: Stream[U]) -> KeyedStream[K, T | U]:
        """The rows of several keyed streams as one; keys stay. See `Stream.merge`.

        Raises:
            UsageError: One of them is not keyed: then call `key_by` on what is merged.
        """
        for other in others:
            if not isinstance(other, KeyedStream):
                raise UsageError(f"a keyed stream merges with keyed streams, not with {other!r}")
        return KeyedStream(self._builder, self._add_merge(others, keyed=True))

    def dedup(
        self, on: Field = None, *, within: str | int | timedelta, name: str | None = None
    ) -> KeyedDedupStream[K, T]:
        """The same among the rows of each key; keys stay. See `Stream.dedup`."""
        node = self._add_dedup(on, within, name, keyed=True)
        return KeyedDedupStream(self._builder, node)

    def window(
        self,
        windows: Windows,
        *,
        grace: str | int | timedelta = 0,
        corrections: str | int | timedelta | None = None,
        name: str | None = None,
    ) -> WindowedStream[K, T]:
        """Cut each key's rows into windows.

        Args:
            windows: `tumbling("1m")`, `hopping("10m", "1m")`, `daily(tz="Europe/Berlin")`,
                `session("30m")`, or `counting(100)`.
            grace: A window that ends at e closes when event time reaches e + grace. Rows that
                come later are late.
            corrections: Rows that come up to so much later still are added to the window, and each
                gives another result. The results have a `status`: "update", and "final" for the
                last, which comes when W reaches e + grace + corrections.
            name: Of the state; by default `<source topic>.window`. Give one to keep the state
                when window operators are reordered.

        >>> from millstream.processor import Pipeline, agg, tumbling
        >>> pipeline = Pipeline("totals")
        >>> orders = pipeline.source("orders", time="at").key_by("user")
        >>> totals = orders.window(tumbling("1m"), grace="5s").agg(total=agg.sum("amount"))
        >>> _ = totals.to("totals"), totals.late.to("late")
        >>> pipeline.test({"orders": [{"user": "ann", "at": 5, "amount": 2}]})["totals"]
        [{'key': 'ann', 'window_start': 0, 'window_end': 60000, 'total': 2}]
        """
        chosen = windowing(windows, grace, corrections, name)
        return WindowedStream(self._builder, self._node, chosen)

    @overload
    def process(
        self,
        function: Callable[[Context[K, S], T], Iterable[U] | None],
        *,
        state: type[S],
        on_timer: Callable[[Context[K, S], Timer], Iterable[U] | None] | None = None,
        ttl: str | int | timedelta | None = None,
        wall_clock: bool = False,
        name: str | None = None,
    ) -> KeyedStream[K, U]: ...
    @overload
    def process(
        self,
        function: Callable[[Context[K, None], T], Iterable[U] | None],
        *,
        on_timer: Callable[[Context[K, None], Timer], Iterable[U] | None] | None = None,
        wall_clock: bool = False,
        name: str | None = None,
    ) -> KeyedStream[K, U]: ...
    def process(
        self,
        function: Callable[[Context[K, Any], T], Iterable[U] | None],
        *,
        state: type[Any] | None = None,
        on_timer: Callable[[Context[K, Any], Timer], Iterable[U] | None] | None = None,
        ttl: str | int | timedelta | None = None,
        wall_clock: bool = False,
        name: str | None = None,
    ) -> KeyedStream[K, U]:
        """Call `function(context, value)` for every row: the way out where no operator fits.

        The rows it yields, or returns in a list, have the key and the event time of the row. It
        must depend on what it is given alone. One call sees one key; rows of a key come in the
        order in which the store got them.

        Args:
            function: See `Context` for what it can do: state, timers, W.
            state: Made without arguments for a new key: a msgspec Struct or dataclass with
                defaults, dict, list, int, ...
            on_timer: `on_timer(context, timer)` for each timer that is due; its rows get the
                timer's time.
            ttl: State of a key is forgotten when W is so far past the newest row that touched it,
                or its next row comes so much later. A timer sees what there was when it was due.
            wall_clock: Let it see `context.now_ms` and set timers of the wall clock. Both come
                from journaled ticks, so that a replay sees the same.
            name: Of the state; by default `<source topic>.process`.

        >>> from millstream.processor import Context, Pipeline
        >>> def number(context: Context[str, list[str]], word: str) -> list[str]:
        ...     context.state.append(word)
        ...     return [f"{word} {len(context.state)}"]
        >>> pipeline = Pipeline("numbers")
        >>> words = pipeline.source("words", type=str).key_by(lambda word: word[0])
        >>> _ = words.process(number, state=list).to("numbered")
        >>> pipeline.test({"words": ["ant", "bee", "ape"]})["numbered"]
        ['ant 1', 'bee 1', 'ape 2']
        """
        node = process_node(
            self._builder,
            self._node,
            (function, on_timer),
            state,
            None if ttl is None else parse_duration_ms(ttl),
            wall_clock=wall_clock,
            name=name,
        )
        made = process_type(function, on_timer)
        return KeyedStream(self._builder, self._builder.add(node, made))


class KeyedDedupStream(KeyedStream[K, T], DedupStream[T]):
    """The rows that are the first of their kind among those of their key."""

    __slots__ = ()

    @property
    def late(self) -> KeyedStream[K, T]:
        """The rows that came so late that it was not known any more what had passed."""
        return KeyedStream(self._builder, self._late())


class JoinResults(KeyedStream[K, R], Generic[K, R, T]):
    """The results of a join, by the key of both sides."""

    __slots__ = ()

    @property
    def late(self) -> KeyedStream[K, T]:
        """The rows of either side that came after W had passed all they could have matched."""
        return KeyedStream(self._builder, self._late())


class WindowedStream(Generic[K, T]):
    """A keyed stream cut into windows, waiting for `agg`."""

    __slots__ = ("_builder", "_chosen", "_node")

    def __init__(self, builder: PlanBuilder, node: int, chosen: Windowing) -> None:
        self._builder = builder
        self._node = node
        self._chosen = chosen

    def __repr__(self) -> str:
        return f"<WindowedStream {self._builder.nodes[self._node].label}, {self._chosen.windows}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            hint = f": call agg() before {name}()" if hasattr(WindowResults, name) else ""
            raise _no_attribute(self, name, hint)

    def count(self) -> WindowResults[K, T, int]:
        """How many rows each key and window has: `agg(count=agg.count())`."""
        return self.agg(count=agg.count())

    def reduce(self, function: Callable[[T, T], T]) -> WindowResults[K, T, T]:
        """The rows of each key and window made into one: `agg(value=agg.reduce(function))`."""
        return self.agg(value=agg.reduce(function))

    def fold(
        self,
        init: Callable[[], A],
        step: Callable[[A, T], A],
        *,
        merge: Callable[[A, A], A] | None = None,
    ) -> WindowResults[K, T, A]:
        """A value that every row changes: `agg(value=agg.fold(init, step, merge=merge))`."""
        return self.agg(value=agg.fold(init, step, merge=merge))

    def agg(self, *unnamed: Never, **aggregates: AnyAggregate[T, R]) -> WindowResults[K, T, R]:
        """Compute named aggregates of every key and window; `emit` says when they are results.

        Args:
            unnamed: Nothing: what has no name is refused.
            aggregates: `n=agg.count(), total=agg.sum("amount")`; see `millstream.processor.agg`.

        Raises:
            UsageError: No aggregate, a reserved name, a field the source's type lacks, or an
                aggregate that sessions cannot merge.
        """
        require_named(unnamed, AGGREGATES_BY_NAME)
        node = aggregating_node(self._builder, self._node, self._chosen, aggregates)
        return WindowResults(self._builder, self._builder.add(node, node.result_type))


class WindowResults(KeyedStream[K, Windowed[K, R]], Generic[K, T, R]):
    """One row per closed window and key, in order of (end, start, bytes of the key).

    Its event time is the last millisecond of the window.
    """

    __slots__ = ()

    def emit(
        self,
        mode: Literal["final", "update"],
        *,
        every: int | str | timedelta | None = None,
    ) -> Self:
        """When results are written. Call it right after `agg`.

        Args:
            mode: "final" (the default): once, as the window closes. "update": also before that;
                results then have a `status`, "update" or "final". Of a session whose start has
                moved, because an older row or another session joined it, what was said before is
                "retracted" first.
            every: With "update": after so many rows of a key and window (1 by default), or, with a
                duration, when W passes a multiple of it, for what has changed since.

        Raises:
            UsageError: The results are read already, or the windows do not emit so.
        """
        node = self._builder.nodes[self._node]
        if not isinstance(node, AggregatingNode) or any(self._builder.plan().children(node.id)):
            raise UsageError("call emit() right after agg(), before the results are used")
        changed = emitting(node, mode, every)
        self._builder.replace(changed, changed.result_type)
        return self

    @property
    def late(self) -> Stream[T]:
        """The rows that came after all of their windows had closed, each once."""
        return Stream(self._builder, self._late())


def _no_attribute(stream: object, name: str, hint: str) -> AttributeError:
    """What Python says of a missing attribute, and where it would be."""
    message = f"{type(stream).__name__!r} object has no attribute {name!r}{hint}"
    return AttributeError(message, name=name, obj=stream)
