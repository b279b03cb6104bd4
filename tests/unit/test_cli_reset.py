"""What `groups reset` is asked for: one target, topics with partitions, files of offsets."""

from __future__ import annotations

import click
import pytest

from millstream import Position, TopicPartition, UsageError
from millstream.cli.partitions import parse_partitions, require_partitions
from millstream.cli.reset import Target, parse_offsets, parse_target, parse_topics

NOW_MS = 1_763_892_000_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"to_earliest": True}, Target(Position("earliest"))),
        ({"to_latest": True, "to_earliest": False}, Target(Position("latest"))),
        ({"to_current": True}, Target(Position("stored"))),
        ({"to_offset": 7}, Target(Position("offset", 7))),
        ({"to_offset": 0}, Target(Position("offset", 0))),
        ({"shift_by": -3}, Target(shift_by=-3)),
        ({"shift_by": 0}, Target(shift_by=0)),
        ({"to_datetime": "2025-11-23T10:00:00Z"}, Target(Position("timestamp", NOW_MS))),
        ({"to_datetime": "@1763892000"}, Target(Position("timestamp", NOW_MS))),
        ({"by_duration": "PT1H"}, Target(Position("timestamp", NOW_MS - 3_600_000))),
        ({"by_duration": "15m"}, Target(Position("timestamp", NOW_MS - 900_000))),
        ({"from_file": ["t,0,5\n"]}, Target(offsets={TopicPartition("t", 0): 5})),
    ],
    ids=str,
)
def test_one_switch_is_the_target(options: dict[str, object], expected: Target) -> None:
    assert parse_target(options, NOW_MS) == expected


@pytest.mark.parametrize(
    "options",
    [{}, {"to_earliest": True, "to_latest": True}, {"to_offset": 0, "shift_by": 0}],
    ids=str,
)
def test_none_or_two_switches_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(click.UsageError, match="exactly one"):
        parse_target(options, NOW_MS)


def test_times_are_checked() -> None:
    for options in ({"to_datetime": "2025-11-23T10:00:00"}, {"by_duration": "5"}):
        with pytest.raises(UsageError):
            parse_target(options, NOW_MS)


def test_topics_may_name_partitions() -> None:
    assert parse_topics([]) == {}
    assert parse_topics(["a", "b:0,2-3"]) == {"a": None, "b": [0, 2, 3]}
    for texts in (["a", "a:1"], ["a:"], ["a:x"]):
        with pytest.raises(UsageError):
            parse_topics(texts)


def test_files_of_offsets_name_their_bad_lines() -> None:
    assert parse_offsets(["a,0,1", "", '"b",12,99']) == {
        TopicPartition("a", 0): 1,
        TopicPartition("b", 12): 99,
    }
    for line in ("a,0", "a,0,x", "a,-1,0", "a,0,1,2", "a,0,\u0664", "ok,0,2"):
        with pytest.raises(UsageError, match="line 2"):
            parse_offsets(["ok,0,1", line])


@pytest.mark.parametrize(
    "text", ["", ",", "a", "1-", "-1", "1-2-3", "2-0", "0-99999", "0-9999999999", "\u0661"]
)
def test_what_is_no_list_of_partitions_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_partitions(text)
    assert parse_partitions("3,0-1,1") == [0, 1, 3]


def test_not_all_partitions_that_are_missing_are_named() -> None:
    with pytest.raises(UsageError, match=r"there is no 1, 2, 3, 4, 5, and 994 more$"):
        require_partitions("t", 1, parse_partitions("0-999"))
