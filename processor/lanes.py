"""Which lane the operators of a plan run in: on columns, or on rows, and why on rows. Static.

An operator can work on columns when all it is given are field names and expressions; a Python
function needs rows. What is said here is about the plan alone. At run time the column lane gives
single batches to the rows where columns might not mean the same (frame_errors.py).

Nothing here imports pyarrow; what does is asked for by `FrameLane`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from millstream import Store

from .accumulator_codec import keeps_typed
from .agg import Aggregate
from .expressions import Expression
from .fields import Field, FieldPair
from .frame_reasons import why_not
from .join_nodes import AsofJoinNode, TableJoinNode
from .nodes import (
    AggregatingNode,
    CountNode,
    DedupNode,
    FilterNode,
    KeyByNode,
    MapBatchNode,
    MapNode,
    MergeNode,
    Node,
    PortNode,
    SessionNode,
    SinkNode,
    SourceNode,
    WindowNode,
)
from .numeric_aggregates import Count, Max, Mean, Min, StandardDeviation, Sum, Variance
from .quantile_aggregate import Quantile
from .row_shapes import Joined
from .selection import Selection
from .table_nodes import OnValues, RunningNode, Where
from .value_aggregates import Collect, Distinct, First, FirstBy, Last, LastBy, TopK, TopKBy

if TYPE_CHECKING:
    from .plan import Plan


_FOLLOWED: Final = frozenset(
    {
        *(Count, Sum, Mean, Min, Max, Variance, StandardDeviation),
        *(First, Last, FirstBy, LastBy, Distinct, Quantile),
    },
)
"""Aggregates that columns can say the results of after every row."""

_SPILLING: Final = CountNode | DedupNode | WindowNode | SessionNode | AsofJoinNode | RunningNode
"""Operators whose state, where it may be on disk, is that of rows."""

_LISTS: Final = frozenset({Collect, TopK, TopKBy})
"""Aggregates whose results are lists, which are no columns of the lane."""


@cache
def columns_installed() -> bool:
    """Whether the extra `arrow` is there."""
    return missing_for_columns() is None


def missing_for_columns() -> str | None:
    """A package of the extra `arrow` that is not installed; pyarrow does without the other."""
    return next((name for name in ("pyarrow", "numpy") if find_spec(name) is None), None)


def reason_for_rows(plan: Plan, node: Node) -> str | None:
    """Why an operator needs rows, in words; None if it can work on columns."""
    ask = _REASONS.get(type(node))
    if ask is None:
        return "an operator of rows"
    if plan.holding.spills and isinstance(node, _SPILLING):
        return "its state may be on disk"
    return ask(plan, node)


class ColumnTopics(NamedTuple):
    """The topics of a plan whose rows can be columns."""

    parsed: frozenset[str] = frozenset()
    """Input topics that store JSON with a schema."""
    read: frozenset[str] = frozenset()
    """Input topics that store columns."""
    written: Mapping[str, Any] = MappingProxyType({})
    """The pyarrow.Schema of each output topic that stores columns."""


NO_COLUMNS: Final = ColumnTopics()


def column_topics(store: Store, plan: Plan) -> ColumnTopics:
    """What a store says of the topics of a plan, as far as they are there."""
    if not columns_installed():
        return NO_COLUMNS
    there = {topic.name: topic for topic in store.topics()}
    read = [there[name] for name in plan.input_topics() if name in there]
    written = [there[name] for name in plan.output_topics() if name in there]
    return ColumnTopics(
        frozenset(
            topic.name for topic in read if topic.config.schema and not topic.config.columnar
        ),
        frozenset(topic.name for topic in read if topic.config.columnar),
        {topic.name: topic.schema for topic in written if topic.config.columnar},
    )


def runs_on_columns(plan: Plan, topics: ColumnTopics) -> frozenset[int]:
    """The operators to which columns come, and sources from which they do, by id.

    Rows of a topic of columns are always taken as such: Structs are made of them faster than of
    JSON. Of JSON it is the other way round, so that is parsed into columns only for who works on
    them.
    """
    lane: set[int] = set()
    able = {node.id for node in plan.nodes if reason_for_rows(plan, node) is None}
    for node in plan.nodes:
        if node.id not in able or isinstance(node, SinkNode | PortNode):
            continue
        if isinstance(node, SourceNode):
            wanted = any(
                each.topic in topics.written if isinstance(each, SinkNode) else each.id in able
                for each in plan.children(node.id)
            )
            if node.topic in topics.read or (node.topic in topics.parsed and wanted):
                lane.add(node.id)
        elif _gets_columns(plan, node, lane):
            lane.add(node.id)
    return frozenset(lane)


def lane_notes(store: Store, plan: Plan) -> dict[int, str]:
    """In which lane each operator runs over a store, and why on rows, in words, by id."""
    if not columns_installed():
        return {node.id: "rows: the extra arrow is not installed" for node in plan.nodes}
    topics = column_topics(store, plan)
    lane = runs_on_columns(plan, topics)
    notes = {}
    for node in plan.nodes:
        reason = None
        if isinstance(node, SourceNode):
            reason = _why_source(plan, node, topics, lane)
        elif isinstance(node, SinkNode):
            reason = _why_sink(plan, node, topics, lane)
        elif _comes_from(plan, node.id) not in lane:
            reason = reason_for_rows(plan, node)
            if reason is None and not _gets_columns(plan, node, lane):
                reason = "it gets rows"
        notes[node.id] = "columns" if reason is None else f"rows: {reason}"
    return notes


def _why_source(
    plan: Plan, node: SourceNode, topics: ColumnTopics, lane: Collection[int]
) -> str | None:
    if node.topic not in topics.read | topics.parsed:
        return "the topic has no schema"
    if node.id in lane:
        return None
    return reason_for_rows(plan, node) or "what reads it works on rows"


def _why_sink(
    plan: Plan, node: SinkNode, topics: ColumnTopics, lane: Collection[int]
) -> str | None:
    if node.topic not in topics.written:
        return "the topic stores no columns"
    if not _gets_columns(plan, node, lane):
        return "it gets rows"
    together = [each for each in plan.sinks() if each.topic == node.topic]
    return "several streams are written to the topic" if len(together) > 1 else None


def _comes_from(plan: Plan, node_id: int) -> int:
    """The operator whose rows a node has: a port has those of the node it belongs to."""
    node = plan.nodes[node_id]
    return node.parent if isinstance(node, PortNode) else node_id


def _gets_columns(plan: Plan, node: Node, lane: Collection[int]) -> bool:
    """Whether what a node works on comes as columns."""
    # What rows are looked up in is little beside them, and stays rows.
    inputs = node.inputs[:1] if isinstance(node, AsofJoinNode | TableJoinNode) else node.inputs
    above = [plan.nodes[_comes_from(plan, each)] for each in inputs]
    return all(each.id in lane and not _gives_rows(each) for each in above)


def _gives_rows(node: Node) -> bool:
    """Whether the results of a node that takes columns are none."""
    if isinstance(node, RunningNode):
        return node.single  # as those of count(): nothing names them
    if isinstance(node, CountNode | SessionNode | WindowNode):
        return any(type(aggregate) in _LISTS for _, aggregate in node.aggregates)
    return False


def _gives_pairs(plan: Plan, node: Node) -> bool:
    """Whether the rows of a node are pairs of a join that gives them as columns."""
    while isinstance(node, FilterNode | KeyByNode | PortNode | DedupNode):
        (above,) = node.inputs
        node = plan.nodes[above]
    return isinstance(node, AsofJoinNode | TableJoinNode) and node.into is Joined


def _of_source(_plan: Plan, node: SourceNode) -> str | None:
    if node.source is not None:
        return "it comes from outside the store"
    if _unreadable(node.time):
        return "the event time is read by a Python function"
    if node.type in {dict, Any}:
        return None
    if not isinstance(node.type, type) or not issubclass(node.type, msgspec.Struct):
        return "its type is no Struct"
    return None


def _of_map(plan: Plan, node: MapNode) -> str | None:
    if isinstance(node.function, OnValues | Where):
        # What is deleted goes through as well, as None.
        return _of_field(node.function.function, plan, node) or "the values of a table are rows"
    if not isinstance(node.function, Selection):
        return "a Python function"
    return _first(_of_field(field, plan, node) for field in node.function.fields.values())


def _of_map_batch(_plan: Plan, node: MapBatchNode) -> str | None:
    return None if node.columns else "a Python function"


def _of_filter(plan: Plan, node: FilterNode) -> str | None:
    return _of_field(node.predicate, plan, node)


def _of_key(plan: Plan, node: KeyByNode) -> str | None:
    return _of_field(node.key, plan, node)


def _of_count(plan: Plan, node: CountNode) -> str | None:
    return _first(_of_aggregate(aggregate, plan, node) for _, aggregate in node.aggregates)


def _of_asof_join(_plan: Plan, node: AsofJoinNode) -> str | None:
    return None if node.into is Joined else "into is a Python function"


def _of_table_join(_plan: Plan, node: TableJoinNode) -> str | None:
    if node.into is not Joined:
        return "into is a Python function"
    return None if node.ttl_ms is None else "a table with a time to live"


def _of_dedup(plan: Plan, node: DedupNode) -> str | None:
    return (
        "a row of columns is no identity: name a field"
        if node.on is None
        else _of_field(node.on, plan, node)
    )


def _of_windows(plan: Plan, node: WindowNode | SessionNode) -> str | None:
    if node.emission.updating:
        return "updates before the final result"
    return _first(_of_aggregate(aggregate, plan, node) for _, aggregate in node.aggregates)


def _of_running(plan: Plan, node: RunningNode) -> str | None:
    if node.ttl_ms is not None:
        return "a table with a time to live"
    for _, aggregate in node.aggregates:
        reason = _of_aggregate(aggregate, plan, node)
        if reason is None and type(aggregate) in _LISTS:
            reason = f"{aggregate.word}() of every row: lists are no columns"
        elif reason is None and type(aggregate) not in _FOLLOWED:
            reason = f"{aggregate.describe()} of every row: an aggregate of your own"
        if reason is not None:
            return reason
    return None


def _of_merge(plan: Plan, node: MergeNode) -> str | None:
    shapes = {_shape(plan, each) for each in node.parents} - {None}
    return "its streams have rows of several types" if len(shapes) > 1 else None


def _shape(plan: Plan, node_id: int) -> object:
    """What rows are made of, as far as the plan says: a Struct, or the fields of dicts."""
    node = plan.nodes[_comes_from(plan, node_id)]
    if isinstance(node, SourceNode):
        return None if node.type in {dict, Any} else node.type
    if isinstance(node, MapNode) and isinstance(node.function, Selection):
        return None if node.function.keep else tuple(node.function.fields)
    if isinstance(node, FilterNode | KeyByNode | DedupNode):
        return _shape(plan, node.inputs[0])
    return None


def _of_aggregate(
    aggregate: Aggregate[Any, Any, Any], plan: Plan, node: AggregatingNode | RunningNode
) -> str | None:
    if keeps_typed(aggregate, node.row_type):
        return f"{aggregate.describe()} keeps values of a type of its own"
    if aggregate.field is None:
        return None if type(aggregate) is Count else f"{aggregate.describe()} takes whole rows"
    if isinstance(aggregate.field, FieldPair):
        pair = (aggregate.field.first, aggregate.field.second)
        return _first(_of_field(field, plan, node) for field in pair)
    return _of_field(aggregate.field, plan, node)


def _of_field(field: Field, plan: Plan | None = None, node: Node | None = None) -> str | None:
    """Why a field cannot be read as a column of the rows that a node gets."""
    if isinstance(field, Expression):
        above = [] if plan is None or node is None else [plan.nodes[each] for each in node.inputs]
        pairs = plan is not None and bool(above) and all(_gives_pairs(plan, each) for each in above)
        return why_not(field.tree, pairs=pairs)
    return None if isinstance(field, str) else "a Python function"


def _unreadable(field: Field) -> bool:
    return field is not None and _of_field(field) is not None


def _first(reasons: Iterable[str | None]) -> str | None:
    return next(filter(None, reasons), None)


_REASONS: dict[type[Node], Callable[[Plan, Any], str | None]] = {
    SourceNode: _of_source,
    MapNode: _of_map,
    MapBatchNode: _of_map_batch,
    FilterNode: _of_filter,
    KeyByNode: _of_key,
    DedupNode: _of_dedup,
    WindowNode: _of_windows,
    SessionNode: _of_windows,
    CountNode: _of_count,
    TableJoinNode: _of_table_join,
    AsofJoinNode: _of_asof_join,
    RunningNode: _of_running,
    MergeNode: _of_merge,
    PortNode: lambda _plan, _node: None,
    SinkNode: lambda _plan, _node: None,
}
