"""Two topics in one order, and what a join makes of them over cuts and crashes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from pipeline_runs import Run

from millstream import Record
from millstream.processor import KeyedStream, Pipeline
from millstream.processor.testkit import in_batches

Arrival = tuple[str, int, object]
"""Topic, time, key."""


def left_and_right(
    pipeline: Pipeline, disorder: int = 0
) -> tuple[KeyedStream[Any, Any], KeyedStream[Any, Any]]:
    left = pipeline.source("l", time="t", disorder=disorder).key_by("k")
    return left, pipeline.source("r", time="t", disorder=disorder).key_by("k")


def records(arrivals: Sequence[Arrival]) -> list[tuple[Record, None]]:
    places = {"l": 0, "r": 0}
    made = []
    for number, (topic, time, key) in enumerate(arrivals):
        value = msgspec.json.encode({"k": key, "t": time, "n": number})
        made.append((Record(topic, 0, places[topic], time, None, value, ()), None))
        places[topic] += 1
    return made


def joined(
    pipeline: Pipeline, arrivals: Sequence[Arrival], *, flush: bool = True
) -> list[tuple[int, object, object]]:
    """(time, left, right) of each result, rows by their numbers; the same for any cut."""
    found = []
    for size in (None, 1, 2, 3):
        run = Run(pipeline)
        for batches in in_batches(records(arrivals), size):
            run.topology.process(batches)
            run.commit()
            if size is not None:
                run.crash()
        if flush:
            run.topology.flush()
        run.commit()
        found.append(
            [
                (record.timestamp_ms, *map(number_of, msgspec.json.decode(record.value or b"")))
                for record in run.out["out"]
            ]
        )
    assert all(each == found[0] for each in found[1:])
    return found[0]


def number_of(row: dict[str, Any] | None) -> object:
    return None if row is None else row["n"]


def as_list(left: object, right: object) -> list[object]:
    return [left, right]
