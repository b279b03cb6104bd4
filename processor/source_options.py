"""What a source may be told about time beside its rows: checked, and put into its node."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple, TypedDict

from millstream import UsageError, check_topic_name, parse_duration_ms

from .connectors import Source, check_connector_name
from .fields import Field, describe, require_field, require_readable
from .ingest import source_topic
from .nodes import MissingTime, SourceClock, SourceNode
from .plan import PlanBuilder
from .serde import value_decoder
from .sources import IterableSource
from .windows import duration_text


class SourceOptions(TypedDict, total=False):
    """See `Pipeline.source`."""

    missing_time: MissingTime
    max_ahead: str | int | timedelta | None
    idle: str | int | timedelta | None
    clock: SourceClock


class Reading(NamedTuple):
    """What of a topic's records is read, and how."""

    topic: str | Source
    type: Any
    time: Field
    disorder: str | int | timedelta
    tombstones: bool = False


def source_node(builder: PlanBuilder, reading: Reading, options: SourceOptions) -> SourceNode:
    """The node of a source.

    Raises:
        UsageError: Not a topic name, or one that is read already; the type cannot be decoded, or
            it lacks the field; an unknown option, or a value it does not have.
    """
    _, value_type, time, disorder, tombstones = reading
    source = None if isinstance(reading.topic, str) else reading.topic
    if isinstance(source, IterableSource) and value_type is str:
        # A str is such a text already: as JSON it would come back with quotes around it.
        source = replace(source, text=True)
    topic, name = _topic_and_name(builder, reading)
    _check(builder, reading, topic, name)
    disorder_ms = parse_duration_ms(disorder)
    unknown = set(options) - set(SourceOptions.__annotations__)
    if unknown:
        known = sorted(SourceOptions.__annotations__)
        raise UsageError(f"source {name}: unknown options {sorted(unknown)}; there are {known}")
    missing_time, clock = options.get("missing_time", "dead_letter"), options.get("clock", "event")
    if missing_time not in {"dead_letter", "append_time"}:
        raise UsageError(f"missing_time={missing_time!r}: use 'dead_letter' or 'append_time'")
    if clock not in {"event", "wall"}:
        raise UsageError(f"clock={clock!r}: use 'event' or 'wall'")
    max_ahead_ms, idle_ms = _ms(options.get("max_ahead")), _ms(options.get("idle"))
    shown = "record timestamp" if time is None else describe(time)
    kind = getattr(value_type, "__name__", repr(value_type))
    label = f"source {name}: {kind}, time {shown}, disorder {duration_text(disorder_ms)}"
    if missing_time == "append_time":
        label += ", or time of append"
    if max_ahead_ms is not None:
        label += f", at most {duration_text(max_ahead_ms)} ahead"
    if idle_ms is not None:
        label += f", idle after {duration_text(idle_ms)}"
    if clock == "wall":
        label += ", by the wall clock"
    return SourceNode(
        id=builder.next_id,
        label=label,
        topic=topic,
        type=value_type,
        time=time,
        disorder_ms=disorder_ms,
        missing_time=missing_time,
        max_ahead_ms=max_ahead_ms,
        idle_ms=idle_ms,
        clock=clock,
        tombstones=tombstones,
        source=source,
    )


def _topic_and_name(builder: PlanBuilder, reading: Reading) -> tuple[str, str]:
    """The topic that is read, and what users call it."""
    if isinstance(reading.topic, str):
        return check_topic_name(reading.topic), reading.topic
    name = getattr(reading.topic, "name", None)
    if not callable(getattr(reading.topic, "open", None)) or name is None:
        raise UsageError(f"{reading.topic!r} is neither a topic nor a source")
    check_connector_name(name, "source")
    return source_topic(builder.name, name), name


def _check(builder: PlanBuilder, reading: Reading, topic: str, name: str) -> None:
    time = reading.time
    names = builder.plan().input_names()
    if topic in names.values():
        raise UsageError(f"{builder.name!r} reads {name!r} already: use that stream again")
    if name in names:
        raise UsageError(f"{builder.name!r} reads a topic {name!r}: give the source another name")
    value_decoder(reading.type)
    if time is not None:
        require_readable(time, f"source {name}: time")
    if isinstance(time, str):
        require_field(reading.type, time, f"source {name}")


def _ms(duration: str | int | timedelta | None) -> int | None:
    return None if duration is None else parse_duration_ms(duration)
