"""Millstream's processor: event-time windows over the log, exactly once.

Declare a `Pipeline`, test it on lists, run it over a store. Read next: stream.py (the API),
plan.py (what it makes), topology.py and windowing.py (what runs), docs/guarantees.md.
It uses the public names of `millstream` alone.
"""

from . import agg
from .agg import Aggregate
from .pipeline import Pipeline
from .plan import Plan
from .runtime import Metrics
from .stream import KeyedStream, SourceStream, Stream, WindowedStream, WindowResults
from .testkit import Row, TestOutput
from .windows import FixedWindows, Windowed, hopping, tumbling

__all__ = [
    "Aggregate",
    "FixedWindows",
    "KeyedStream",
    "Metrics",
    "Pipeline",
    "Plan",
    "Row",
    "SourceStream",
    "Stream",
    "TestOutput",
    "WindowResults",
    "Windowed",
    "WindowedStream",
    "agg",
    "hopping",
    "tumbling",
]
