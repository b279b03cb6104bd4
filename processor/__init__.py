"""Millstream's processor: event-time windows over the log, exactly once.

Declare a `Pipeline`, test it on lists, run it over a store. Read next: stream.py (the API),
plan.py (what it makes), topology.py and windowing.py (what runs), docs/guarantees.md.
It uses the public names of `millstream` alone.
"""

from . import agg, nodes
from .agg import Aggregate
from .aggregate import AnyAggregate
from .calendar_windows import CalendarWindows, daily
from .changed_plan import ChangedPlanError, MigrationStep
from .connectors import (
    CheckingSink,
    ComparableSink,
    DeliveryKind,
    MeasuredSource,
    NotComparable,
    RefusedRecords,
    Rejected,
    Replayed,
    Retry,
    Sink,
    SinkDifference,
    SinkWriter,
    Source,
    SourceBatch,
    SourceRecord,
    plugin,
)
from .count_windows import CountWindows, counting
from .deliver import Deliverer, sink_lag, sink_position
from .driver import Driver
from .expressions import Expression, col, lit, parse_expression, when
from .fork import fork
from .fork_diff import ForkComparison, ForkDifference, compare_fork
from .ingest import Ingestor
from .kept import forget_checkpoints, keep_checkpoint
from .migrate import Migration
from .pipeline import Pipeline
from .plan import Plan
from .process import Context, Timer
from .replay import Replay, dry_run
from .replay_comparison import Difference
from .row_shapes import Aggregated, Joined, Windowed
from .runtime import Metrics
from .sessions import SessionWindows, session
from .sink_replay import SinkComparison
from .sinks import to_callable, to_csv, to_jsonl, to_sqlite, to_stdout
from .sources import csv_files, from_iterable, jsonl_files, sqlite_rows
from .stages import OperatorMetrics
from .state_tables import state_tables
from .state_view import (
    PipelineInfo,
    StateInfo,
    StateItem,
    list_checkpoints,
    list_pipelines,
    list_state,
    read_state,
)
from .stream import (
    DedupStream,
    JoinResults,
    KeyedDedupStream,
    KeyedStream,
    SourceStream,
    Stream,
    WindowedStream,
    WindowResults,
)
from .tables import GroupedTable, SourceTable, Table
from .testkit import Row, TestOutput
from .windows import FixedWindows, hopping, tumbling

__all__ = [
    "Aggregate",
    "Aggregated",
    "AnyAggregate",
    "CalendarWindows",
    "ChangedPlanError",
    "CheckingSink",
    "ComparableSink",
    "Context",
    "CountWindows",
    "DedupStream",
    "Deliverer",
    "DeliveryKind",
    "Difference",
    "Driver",
    "Expression",
    "FixedWindows",
    "ForkComparison",
    "ForkDifference",
    "GroupedTable",
    "Ingestor",
    "JoinResults",
    "Joined",
    "KeyedDedupStream",
    "KeyedStream",
    "MeasuredSource",
    "Metrics",
    "Migration",
    "MigrationStep",
    "NotComparable",
    "OperatorMetrics",
    "Pipeline",
    "PipelineInfo",
    "Plan",
    "RefusedRecords",
    "Rejected",
    "Replay",
    "Replayed",
    "Retry",
    "Row",
    "SessionWindows",
    "Sink",
    "SinkComparison",
    "SinkDifference",
    "SinkWriter",
    "Source",
    "SourceBatch",
    "SourceRecord",
    "SourceStream",
    "SourceTable",
    "StateInfo",
    "StateItem",
    "Stream",
    "Table",
    "TestOutput",
    "Timer",
    "WindowResults",
    "Windowed",
    "WindowedStream",
    "agg",
    "col",
    "compare_fork",
    "counting",
    "csv_files",
    "daily",
    "dry_run",
    "forget_checkpoints",
    "fork",
    "from_iterable",
    "hopping",
    "jsonl_files",
    "keep_checkpoint",
    "list_checkpoints",
    "list_pipelines",
    "list_state",
    "lit",
    "nodes",
    "parse_expression",
    "plugin",
    "read_state",
    "session",
    "sink_lag",
    "sink_position",
    "sqlite_rows",
    "state_tables",
    "to_callable",
    "to_csv",
    "to_jsonl",
    "to_sqlite",
    "to_stdout",
    "tumbling",
    "when",
]
