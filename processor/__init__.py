"""Millstream's processor: event-time windows over the log, exactly once.

Declare a `Pipeline`, test it on lists, run it over a store. Read next: stream.py (the API),
plan.py (what it makes), topology.py and windowing.py (what runs), docs/guarantees.md.
It uses the public names of `millstream` alone.
"""

from . import agg
from .agg import Aggregate
from .calendar_windows import CalendarWindows, daily
from .count_windows import CountWindows, counting
from .expressions import Expression, col, lit, parse_expression, when
from .pipeline import Pipeline
from .plan import Plan
from .process import Context, Timer
from .row_shapes import Aggregated, Joined
from .runtime import Metrics
from .sessions import SessionWindows, session
from .stream import KeyedStream, SourceStream, Stream, WindowedStream, WindowResults
from .tables import GroupedTable, SourceTable, Table
from .testkit import Row, TestOutput
from .windows import FixedWindows, Windowed, hopping, tumbling

__all__ = [
    "Aggregate",
    "Aggregated",
    "CalendarWindows",
    "Context",
    "CountWindows",
    "Expression",
    "FixedWindows",
    "GroupedTable",
    "Joined",
    "KeyedStream",
    "Metrics",
    "Pipeline",
    "Plan",
    "Row",
    "SessionWindows",
    "SourceStream",
    "SourceTable",
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
    "hopping",
    "lit",
    "parse_expression",
    "session",
    "tumbling",
    "when",
]
