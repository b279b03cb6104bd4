"""The kinds of nodes a plan is made of, to be read as `nodes.MapNode`, `nodes.WindowNode`.

A node says what an operator does and where its rows come from, in plain frozen values: parameters,
functions and types. It runs nothing. `plan.py` keeps the nodes of a pipeline, `node_operators.py`
maps each kind to the operator that runs it. A new operator is a node in stream_nodes.py,
table_nodes.py or join_nodes.py, a method in a stream module, and a class registered there.
docs/concepts/elsewhere.md tells what each kind has, and how to run a plan on something else.
"""

from __future__ import annotations

from .join_nodes import AsofJoinNode, Direction, How, IntervalJoinNode, JoinNode, TableJoinNode
from .stream_nodes import (
    FINAL,
    LATE,
    AggregatingNode,
    BranchNode,
    ChildNode,
    CountNode,
    DeadLettersNode,
    DedupNode,
    Emission,
    FilterNode,
    FlatMapNode,
    KeyByNode,
    MapBatchNode,
    MapNode,
    MergeNode,
    MissingTime,
    Node,
    OnError,
    PeekNode,
    PortNode,
    ProcessNode,
    SessionNode,
    SinkNode,
    SourceClock,
    SourceNode,
    StatefulNode,
    WindowNode,
)
from .table_nodes import RecordKeyNode, RegroupNode, RunningNode

__all__ = [
    "FINAL",
    "LATE",
    "AggregatingNode",
    "AsofJoinNode",
    "BranchNode",
    "ChildNode",
    "CountNode",
    "DeadLettersNode",
    "DedupNode",
    "Direction",
    "Emission",
    "FilterNode",
    "FlatMapNode",
    "How",
    "IntervalJoinNode",
    "JoinNode",
    "KeyByNode",
    "MapBatchNode",
    "MapNode",
    "MergeNode",
    "MissingTime",
    "Node",
    "OnError",
    "PeekNode",
    "PortNode",
    "ProcessNode",
    "RecordKeyNode",
    "RegroupNode",
    "RunningNode",
    "SessionNode",
    "SinkNode",
    "SourceClock",
    "SourceNode",
    "StatefulNode",
    "TableJoinNode",
    "WindowNode",
]
