"""Millstream's processor: event-time windows over the log, exactly once.

Declare a `Pipeline`, test it on lists, run it over a store. Read next: stream.py (the API),
plan.py (what it makes), topology.py and windowing.py (what runs), docs/guarantees.md.
It uses the public names of `millstream` alone.
"""

from . import agg
from .agg import Aggregate
from .calendar_windows import CalendarWindows, daily
from .count_windows import CountWindows, counting
from .driver import Driver
from .expressions import Expression, col, lit, parse_expression, when
from .fork import fork
from .pipeline import Pipeline
from .plan import Plan
from .process import Context, Timer
from .replay import Difference, Replay, dry_run
from .row_shapes import Aggregated, Joined
from .runtime import Metrics
from .sessions import SessionWindows, session
from .state_view import (
    PipelineInfo,
    StateInfo,
    StateItem,
    list_pipelines,
    list_state,
    read_state,
)
from .stream import (
    DedupStream,
    KeyedDedupStream,
    KeyedStream,
    SourceStream,
    Stream,
    WindowedStream,
    WindowResults,
)
from .tables import GroupedTable, SourceTable, Table
from .testkit import Row, TestOutput
from .topology import OperatorMetrics
from .windows import FixedWindows, Windowed, hopping, tumbling

__all__ = [
    "Aggregate",
    "Aggregated",
    "CalendarWindows",
    "Context",
    "CountWindows",
    "DedupStream",
    "Difference",
    "Driver",
    "Expression",
    "FixedWindows",
    "GroupedTable",
    "Joined",
    "KeyedDedupStream",
    "KeyedStream",
    "Metrics",
    "OperatorMetrics",
    "Pipeline",
    "PipelineInfo",
    "Plan",
    "Replay",
    "Row",
    "SessionWindows",
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
    "counting",
    "daily",
    "dry_run",
    "fork",
    "hopping",
    "list_pipelines",
    "list_state",
    "lit",
    "parse_expression",
    "read_state",
    "session",
    "tumbling",
    "when",
]
