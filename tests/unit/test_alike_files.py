"""Rotated files that say the same: each is read once, and none again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from outside_world import SimulatedOutside, extend, plain, put

from millstream.processor.file_source import FileSource
from millstream.processor.sources import jsonl_files


@pytest.fixture
def outside() -> SimulatedOutside:
    return SimulatedOutside()


def source_of(outside: SimulatedOutside) -> FileSource:
    return replace(jsonl_files("app.log", follow=True, rotated=True), outside=outside)


def by_count(outside: SimulatedOutside) -> None:
    storage = outside.storage
    for count in range(60, 0, -1):
        if storage.exists(f"app.log.{count}"):
            storage.rename(f"app.log.{count}", f"app.log.{count + 1}")
    storage.rename("app.log", "app.log.1")


def by_date(outside: SimulatedOutside) -> None:
    count = len(outside.storage.list(""))
    outside.storage.rename("app.log", f"app.log-202611{count:02}")


rotations = pytest.mark.parametrize("rotate", [by_count, by_date])


def taken(outside: SimulatedOutside, position: Any, most: int = 60) -> tuple[list[int], Any]:
    """What is read from a position on, up to where there is nothing now, and the position then."""
    found: list[int] = []
    reading = source_of(outside).open("app.log", position)
    for batch in (next(reading) for _ in range(most)):
        if batch is None:
            return found, position
        found += [int(value or b"") for value in batch.values]
        position = plain(batch.position)
    raise AssertionError(f"no end: {found[:20]}")


@rotations
@pytest.mark.parametrize("away", [1, 2, 12])
def test_each_of_several_is_read_once(
    outside: SimulatedOutside, rotate: Callable[[SimulatedOutside], None], away: int
) -> None:
    put(outside.storage, "app.log", b"1\n")
    found, position = taken(outside, None)
    for _ in range(3):
        for _ in range(away):
            rotate(outside)
            put(outside.storage, "app.log", b"1\n")
        more, position = taken(outside, position)
        found += more
    extend(outside.storage, "app.log", b"2\n")
    more, position = taken(outside, position)

    assert [1] * (3 * away + 1) + [2] == found + more
    assert ([], position) == taken(outside, position)


@rotations
def test_a_file_that_begins_as_the_next_is_finished_before(
    outside: SimulatedOutside, rotate: Callable[[SimulatedOutside], None]
) -> None:
    put(outside.storage, "app.log", b"1\n")
    position = taken(outside, None)[1]
    extend(outside.storage, "app.log", b"2\n")
    for content in (b"1\n3\n", b"1\n4\n"):
        rotate(outside)
        put(outside.storage, "app.log", content)

    assert [2, 1, 3, 1, 4] == taken(outside, position)[0]


@rotations
def test_one_that_reads_on_while_others_are_written_reads_each_once(
    outside: SimulatedOutside, rotate: Callable[[SimulatedOutside], None]
) -> None:
    put(outside.storage, "app.log", b"1\n")
    reading: Iterator[Any] = source_of(outside).open("app.log", None)
    found = len(next(reading).values)
    for _ in range(4):
        rotate(outside)
        put(outside.storage, "app.log", b"1\n")
        while (batch := next(reading)) is not None:
            found += len(batch.values)

    assert 5 == found


@rotations
@pytest.mark.parametrize("early", [False, True])
def test_none_is_read_again_where_older_ones_were_removed_or_nothing_is_known_of_them(
    outside: SimulatedOutside, rotate: Callable[[SimulatedOutside], None], early: bool
) -> None:
    put(outside.storage, "app.log", b"1\n")
    found, position = taken(outside, None)
    for _ in range(3):
        rotate(outside)
        put(outside.storage, "app.log", b"1\n")
    more, position = taken(outside, position)
    assert [1] * 4 == found + more
    if early:  # before positions said how many older files are alike
        position = msgspec.structs.asdict(msgspec.convert(position, Early))
    else:
        oldest = max(outside.storage.list("")) if rotate is by_count else "app.log-20261101"
        outside.storage.remove(oldest)
    rotate(outside)
    put(outside.storage, "app.log", b"2\n")

    assert [2] == taken(outside, position)[0]


class Early(msgspec.Struct):
    """A position as early versions kept it."""

    read_bytes: int
    lines: int
    head: bytes
    tail: bytes
    unfinished: bool
