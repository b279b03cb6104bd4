"""What `millstream groups reset` was asked for: switches, topics and files, parsed. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import click

from millstream import Position, TopicPartition, UsageError, parse_position

from .partitions import parse_partitions

Topics: TypeAlias = dict[str, list[int] | None]
"""Partitions by topic; None stands for all of it."""

_SWITCHES: Final = (
    "to_earliest",
    "to_latest",
    "to_current",
    "to_offset",
    "shift_by",
    "to_datetime",
    "by_duration",
    "from_file",
)


class Target(NamedTuple):
    """Where a reset goes: exactly one field is set."""

    position: Position | None = None
    shift_by: int | None = None
    offsets: Mapping[TopicPartition, int] | None = None


def parse_target(options: Mapping[str, object], now_ms: int) -> Target:
    """The one switch that says where to go.

    Args:
        options: Values by switch, such as `to_offset`; None and False are not given.
        now_ms: UTC milliseconds that durations are counted back from.

    Raises:
        click.UsageError: None is given, or several are.
        UsageError: A time, duration or file does not parse.

    >>> parse_target({"by_duration": "PT1H"}, now_ms=3_600_000).position
    Position(kind='timestamp', value=0)
    """
    # By identity: an offset of 0 is given, though it equals False.
    given = [
        name for name in _SWITCHES if options.get(name) is not None and options[name] is not False
    ]
    if len(given) != 1:
        switches = ", ".join("--" + name.replace("_", "-") for name in _SWITCHES)
        raise click.UsageError(f"give exactly one of {switches}")
    value = options[given[0]]
    match given[0], value:
        case "shift_by", int():
            return Target(shift_by=value)
        case "to_offset", int():
            return Target(Position("offset", value))
        case "to_datetime", str():
            return Target(parse_position(value if value.startswith("@") else f"@{value}", now_ms))
        case "by_duration", str():
            return Target(parse_position(f"@-{value}", now_ms))
        case "from_file", Iterable():
            return Target(offsets=parse_offsets(value))
        case name, _:
            return Target(_POSITIONS[name])


_POSITIONS: Final = {
    "to_earliest": Position("earliest"),
    "to_latest": Position("latest"),
    "to_current": Position("stored"),
}


def parse_topics(texts: Sequence[str]) -> Topics:
    """Topics with their partitions from TOPIC or TOPIC:0,1.

    Raises:
        UsageError: A list of partitions does not parse, or a topic is given twice.

    >>> parse_topics(["a", "b:0,2"])
    {'a': None, 'b': [0, 2]}
    """
    topics: Topics = {}
    for text in texts:
        topic, colon, partitions = text.partition(":")
        if topic in topics:
            raise UsageError(f"topic {topic!r} is given twice")
        topics[topic] = parse_partitions(partitions) if colon else None
    return topics


def parse_offsets(lines: Iterable[str]) -> dict[TopicPartition, int]:
    """Offsets from CSV lines of topic, partition, offset, as `--export` prints them.

    Raises:
        UsageError: A line is not that, or a partition is given twice; the message names the line.

    >>> parse_offsets(["orders,0,17"])
    {TopicPartition(topic='orders', partition=0): 17}
    """
    offsets: dict[TopicPartition, int] = {}
    for number, cells in enumerate(csv.reader(lines), 1):
        if not cells:
            continue
        numbers = cells[1:]
        if len(cells) != 3 or not all(cell.isascii() and cell.isdecimal() for cell in numbers):
            raise UsageError(f"line {number} is not topic,partition,offset: {','.join(cells)!r}")
        partition = TopicPartition(cells[0], int(cells[1]))
        if partition in offsets:
            raise UsageError(f"line {number} gives {','.join(cells[:2])} a second time")
        offsets[partition] = int(cells[2])
    return offsets
