"""Which operator runs which kind of node: on rows or on columns, and with its state where.

A kind of node is in one of the tables here, or has no operator: a source, a sink, another output of
an operator. What runs on columns needs the extra `arrow`, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .asof_join import AsofJoinOperator
from .count_windowing import CountOperator
from .interval_join import IntervalJoinOperator
from .join_nodes import AsofJoinNode, IntervalJoinNode, TableJoinNode
from .keyed_state import States
from .nodes import (
    BranchNode,
    CountNode,
    DedupNode,
    FilterNode,
    FlatMapNode,
    KeyByNode,
    MapBatchNode,
    MapNode,
    MergeNode,
    Node,
    PeekNode,
    ProcessNode,
    SessionNode,
    WindowNode,
)
from .operators import (
    BranchOperator,
    FilterOperator,
    FlatMapOperator,
    KeyByOperator,
    MapBatchOperator,
    MapOperator,
    MergeOperator,
    Operator,
    PeekOperator,
    RecordKeyOperator,
)
from .process_operator import process_operator
from .regrouping import RegroupOperator
from .running_count import running_operator
from .session_windowing import SessionOperator
from .source import Rejects
from .spilled_dedup import dedup_operator
from .spilled_groups import spilled
from .spilled_windowing import window_operator
from .stateful import StatefulOperator
from .table_join import TableJoinOperator
from .table_nodes import RecordKeyNode, RegroupNode, RunningNode


class Place(NamedTuple):
    """What an operator has to know of where its node stands."""

    delay_ms: int
    """How far behind the W of its sources its rows may lie."""
    rejects: Rejects | None
    """Takes rows that cannot be processed; None where they are not input records."""
    states: States
    """Makes keyed states."""
    on_columns: bool
    """Whether it takes rows as columns."""


def stateless_operator(node: Node, place: Place) -> Operator | None:
    """What runs a node that keeps nothing; None if it is of another kind."""
    make = _STATELESS.get(type(node))
    if make is None:
        return None
    operator = make(node, place.rejects)
    if not place.on_columns:
        return operator
    from .frame_operators import on_columns  # noqa: PLC0415 - an extra

    return on_columns(node, operator)


def stateful_operator(node: Node, place: Place) -> StatefulOperator | None:
    """What runs a node that keeps something; None if it is of another kind."""
    kind, delay_ms, states = type(node), place.delay_ms, place.states
    if place.on_columns:
        return _state_on_columns(node, place)
    if isinstance(node, DedupNode):
        return dedup_operator(node, delay_ms, place.rejects, states)
    if kind in _GROUPED:
        return spilled(_GROUPED[kind](node, delay_ms), states)
    if kind in _KEYED:
        return spilled(_KEYED[kind](node, delay_ms, states), states)
    return None


def _map_batch(node: MapBatchNode) -> Operator:
    if not node.columns:
        return MapBatchOperator(node)
    from .frame_map import ColumnMapOperator  # noqa: PLC0415 - an extra

    return ColumnMapOperator(node)


_STATELESS: Final[Mapping[type[Node], Callable[[Any, Rejects | None], Operator]]] = {
    MapNode: MapOperator,
    MapBatchNode: lambda node, _: _map_batch(node),
    PeekNode: lambda node, _: PeekOperator(node),
    FilterNode: FilterOperator,
    FlatMapNode: FlatMapOperator,
    KeyByNode: KeyByOperator,
    BranchNode: lambda node, _: BranchOperator(node),
    MergeNode: lambda node, _: MergeOperator(keyed=node.keyed),
    RecordKeyNode: RecordKeyOperator,
}

# Their state is their own, in groups; where it is when it spills is for `spilled`.
_GROUPED: Final[Mapping[type[Node], Callable[[Any, int], StatefulOperator]]] = {
    SessionNode: SessionOperator,
    CountNode: CountOperator,
    IntervalJoinNode: IntervalJoinOperator,
    AsofJoinNode: AsofJoinOperator,
}

# They have states made for them, which may spill by themselves.
_KEYED: Final[Mapping[type[Node], Callable[[Any, int, States], StatefulOperator]]] = {
    ProcessNode: process_operator,
    RunningNode: running_operator,
    RegroupNode: RegroupOperator,
    TableJoinNode: TableJoinOperator,
    WindowNode: window_operator,
}


def _state_on_columns(node: Node, place: Place) -> StatefulOperator:
    from .frame_asof_join import FrameAsofJoinOperator  # noqa: PLC0415 - an extra
    from .frame_count_windowing import FrameCountOperator  # noqa: PLC0415 - an extra
    from .frame_dedup import FrameDedupOperator  # noqa: PLC0415 - an extra
    from .frame_running import FrameRunningOperator  # noqa: PLC0415 - an extra
    from .frame_session_windowing import FrameSessionOperator  # noqa: PLC0415 - an extra
    from .frame_table_join import FrameTableJoinOperator  # noqa: PLC0415 - an extra
    from .frame_windowing import FrameWindowOperator  # noqa: PLC0415 - an extra

    if isinstance(node, DedupNode):
        return FrameDedupOperator(node, place.delay_ms, place.rejects)
    if isinstance(node, TableJoinNode):
        return FrameTableJoinOperator(node, place.delay_ms, place.states)
    kinds: Mapping[type[Node], Callable[[Any, int], StatefulOperator]] = {
        CountNode: FrameCountOperator,
        SessionNode: FrameSessionOperator,
        RunningNode: FrameRunningOperator,
        AsofJoinNode: FrameAsofJoinOperator,
        WindowNode: FrameWindowOperator,
    }
    return kinds[type(node)](node, place.delay_ms)
