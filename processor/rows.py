"""What all streams have: a node of a plan, and the ways to add another behind it.

The methods here return a stream of the same kind, or the id of a new node from which stream.py
makes one. Nothing runs here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Generic, Self, TypeVar, Unpack

from millstream import UsageError, missing_extra, parse_duration_ms

from .connectors import Sink
from .field_types import require_key_type
from .fields import (
    Field,
    label,
    require_fields,
    require_function,
    require_identity,
    require_named,
    require_readable,
)
from .lanes import missing_for_columns
from .nodes import (
    LATE,
    BranchNode,
    DeadLettersNode,
    DedupNode,
    FilterNode,
    FlatMapNode,
    MapBatchNode,
    MapNode,
    MergeNode,
    Node,
    OnError,
    PeekNode,
    PortNode,
)
from .plan import PlanBuilder
from .printing import print_text
from .row_codec import merged_type
from .row_types import element_type, returned_type
from .selection import Selection
from .sink_declaration import SinkOptions, sink_node
from .windows import duration_text

T = TypeVar("T")


class Rows(Generic[T]):
    """Rows of type T behind a node."""

    __slots__ = ("_builder", "_node")

    def __init__(self, builder: PlanBuilder, node: int) -> None:
        self._builder = builder
        self._node = node

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._label}>"

    def peek(self, function: Callable[[T], object], *, name: str | None = None) -> Self:
        """Show every value to `function`, for logging or counting. A crash shows some again.

        Runs and tests do; `verify` and dry runs show nothing.
        """
        require_function(function, "peek()")
        node = PeekNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("peek", function),
            function=function,
        )
        return self._same(self._builder.add(node, self._type))

    def print(self, prefix: str = "") -> Self:
        """Print every value to standard output while the pipeline runs, for looking at it."""
        return self.peek(partial(_print, prefix), name=f"print {prefix}".strip())

    def filter(
        self,
        predicate: Callable[[T], object],
        *,
        name: str | None = None,
        on_error: OnError = "stop",
    ) -> Self:
        """The rows for which `predicate` is true. The others still move event time."""
        require_function(predicate, "filter()")
        require_fields(self._type, predicate, "filter")
        node = FilterNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("filter", predicate),
            predicate=predicate,
            on_error=_on_error(on_error),
        )
        return self._same(self._builder.add(node, self._type))

    def to(self, target: str | Sink, **options: Unpack[SinkOptions]) -> Self:
        """Write the rows to a topic, or to a sink outside the store.

        The value is JSON (bytes as they are, None as a tombstone), the timestamp the event time
        and the key the grouping key, or the input record's key when the stream is not keyed.

        Args:
            target: A topic, created with one partition when it is missing; or a sink, such as
                `to_sqlite("app.db", "totals")`, to which whole epochs are delivered in order.
            **options: For sinks.

                dead_letters: Topic for records that the sink refuses. Without it they are errors.

                retry: How often, and after which pauses, a delivery is tried; see `Retry`.

        Raises:
            UsageError: Neither a topic nor a sink; the name is taken by another sink.
        """
        self._builder.add(sink_node(self._builder, self._node, target, options))
        return self

    @property
    def _label(self) -> str:
        """What their node is called."""
        return self._builder.nodes[self._node].label

    @property
    def _type(self) -> object:
        """The type of the rows, or None where it is not known."""
        return self._builder.type_of(self._node)

    def _same(self, node: int) -> Self:
        """A stream of the same kind at another node."""
        return type(self)(self._builder, node)

    def _add_dedup(
        self, on: Field, within: str | int | timedelta, name: str | None, *, keyed: bool
    ) -> int:
        """The node that lets the first of rows that say the same pass."""
        if on is None:
            require_identity(self._type, "dedup")
        else:
            require_readable(on, "dedup()")
            require_fields(self._type, on, "dedup")
            require_key_type(self._type, on, "dedup")
        within_ms = parse_duration_ms(within)
        if within_ms < 1:
            raise UsageError(f"dedup(within={within!r}): at least 1 ms")
        node = DedupNode(
            id=self._builder.next_id,
            parents=(self._node,),
            label=f"{label('dedup', on)} within {duration_text(within_ms)}",
            name=self._builder.state_name((self._node,), DedupNode.kind, name),
            on=on,
            within_ms=within_ms,
            keyed=keyed,
        )
        return self._builder.add(node, self._type)

    def _late(self) -> int:
        """The node of the late rows of the operator that these rows are the results of."""
        node = self._builder.nodes[self._node]
        while isinstance(node, FilterNode | PeekNode):
            node = self._builder.nodes[node.parent]
        return self._port(node, LATE)

    @property
    def _source(self) -> int:
        """The first source above."""
        node = self._builder.nodes[self._node]
        while node.inputs:
            node = self._builder.nodes[node.inputs[0]]
        return node.id

    def _add_map(
        self,
        function: Callable[[Any], object],
        name: str | None,
        on_error: str,
        made: object = None,
    ) -> int:
        require_function(function, "map()")
        require_fields(self._type, function, "map")
        node = MapNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("map", function),
            function=function,
            on_error=_on_error(on_error),
        )
        return self._builder.add(node, made or returned_type(function))

    def _add_selection(self, chosen: Selection) -> int:
        require_fields(self._type, chosen, chosen.describe().split()[0])
        made = chosen.result_type(self._type)
        return self._add_map(chosen, chosen.describe(), "stop", made)

    def _add_map_batch(
        self, function: Callable[[Any], Any], name: str | None, *, columns: bool
    ) -> int:
        require_function(function, "map_batch()")
        if columns and (package := missing_for_columns()):
            raise missing_extra("map_batch(columns=True)", package, "arrow")
        node = MapBatchNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("map_batch", function),
            function=function,
            columns=columns,
        )
        return self._builder.add(node, dict if columns else element_type(returned_type(function)))

    def _add_flat_map(
        self, function: Callable[[Any], object], name: str | None, on_error: str
    ) -> int:
        require_function(function, "flat_map()")
        node = FlatMapNode(
            id=self._builder.next_id,
            parent=self._node,
            label=name or label("flat_map", function),
            function=function,
            on_error=_on_error(on_error),
        )
        return self._builder.add(node, element_type(returned_type(function)))

    def _add_branch(
        self, predicates: Mapping[str, Callable[[Any], object]], unnamed: Sequence[object]
    ) -> BranchNode:
        require_named(unnamed, "branch() takes predicates by name, such as branch(big=...)")
        if not predicates or "rest" in predicates:
            raise UsageError(
                'branch() takes named predicates, such as branch(big=...); "rest" names what none'
                " of them takes"
            )
        for port, predicate in predicates.items():
            require_function(predicate, f"branch() {port}")
            require_fields(self._type, predicate, f"branch {port}")
        node = BranchNode(
            id=self._builder.next_id,
            parent=self._node,
            label=f"branch {', '.join(predicates)}",
            predicates=tuple(predicates.values()),
            ports=(*predicates, "rest"),
        )
        self._builder.add(node, self._type)
        return node

    def _port(self, node: Node, port: str) -> int:
        """The node of another output of `node`, made once."""
        for known in self._builder.nodes:
            if isinstance(known, PortNode) and (known.parent, known.port) == (node.id, port):
                return known.id
        named = PortNode(id=self._builder.next_id, parent=node.id, label=f"{port} rows", port=port)
        # What is late, or goes another way, is as it came.
        return self._builder.add(named, merged_type(map(self._builder.type_of, node.inputs)))

    def _add_merge(self, others: Sequence[Rows[Any]], *, keyed: bool) -> int:
        if not others:
            raise UsageError("merge() takes at least one other stream")
        for other in others:
            self._require_same_pipeline(other, "merge()")
        node = MergeNode(
            id=self._builder.next_id,
            parents=(self._node, *(other._node for other in others)),
            label="merge",
            keyed=keyed,
        )
        parts = [self._type, *(other._type for other in others)]
        return self._builder.add(node, merged_type(parts))

    def _require_same_pipeline(self, other: object, what: str) -> None:
        """Refuse what is no stream, or one of another pipeline."""
        if not isinstance(other, Rows):
            raise UsageError(f"{what} takes a stream, not {other!r}")
        if other._builder is not self._builder:
            raise UsageError(
                f"{what}: {other!r} belongs to pipeline {other._builder.name!r},"
                f" not to {self._builder.name!r}"
            )


class DeadLetters:
    """The bad records of a source, unchanged, with headers that say why, and where they are.

    `error`, and as those of queues: `dead-letter-topic`, `dead-letter-partition` and
    `dead-letter-offset`. They stand behind those of the record, in this order.
    """

    __slots__ = ("_builder", "_source")

    def __init__(self, builder: PlanBuilder, source: int) -> None:
        self._builder = builder
        self._source = source

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._builder.nodes[self._source].label}>"

    def to(self, target: str | Sink, **options: Unpack[SinkOptions]) -> None:
        """Write them to a topic or sink instead of stopping at the first; see `Stream.to`."""
        builder = self._builder
        port = builder.add(
            DeadLettersNode(id=builder.next_id, parent=self._source, label="dead letters")
        )
        builder.add(sink_node(builder, port, target, options))


def _print(prefix: str, value: object) -> None:
    print_text(f"{prefix} {value!r}\n" if prefix else f"{value!r}\n", flush=False)


def _on_error(mode: str) -> OnError:
    if mode not in {"stop", "dead_letter"}:
        raise UsageError(f"on_error={mode!r}: use 'stop' or 'dead_letter'")
    return "stop" if mode == "stop" else "dead_letter"
