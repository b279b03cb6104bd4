"""Files that are followed while others rotate them: every line once, or an error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from outside_world import SimulatedOutside, extend, last_position, plain, put, rows

from millstream import DataError, UsageError
from millstream.processor import line_files
from millstream.processor.file_source import FileSource
from millstream.processor.sources import jsonl_files


@pytest.fixture
def outside() -> SimulatedOutside:
    return SimulatedOutside()


def jsonl(outside: SimulatedOutside, pattern: str, **options: Any) -> FileSource:
    return replace(jsonl_files(pattern, **options), outside=outside)


def rotate(outside: SimulatedOutside, name: str = "app.log") -> None:
    """As logrotate does: app.log.1 becomes app.log.2, and app.log becomes app.log.1."""
    storage = outside.storage
    counts = [int(each.rpartition(".")[2]) for each in storage.list("") if each != name]
    for count in sorted(counts, reverse=True):
        storage.rename(f"{name}.{count}", f"{name}.{count + 1}")
    storage.rename(name, f"{name}.1")


def follow(outside: SimulatedOutside, position: Any = None) -> Iterator[list[int] | None]:
    """What a process that runs gets of app.log, each time it asks."""
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    for batch in source.open("app.log", position):
        yield None if batch is None else [int(value or b"") for value in batch.values]


def test_a_rotated_file_is_finished_before_the_new_one_begins(outside: SimulatedOutside) -> None:
    storage = outside.storage
    put(storage, "app.log", b"1\n2\n")
    reading = follow(outside)
    assert [1, 2] == next(reading)
    extend(storage, "app.log", b"3\n4")
    rotate(outside)
    assert [3] == next(reading)
    assert None is next(reading)
    put(storage, "app.log", b"")
    assert None is next(reading)
    extend(storage, "app.log.1", b"4\n5")  # by a writer that has not opened the new one yet
    assert [44] == next(reading)
    extend(storage, "app.log", b"6")
    assert [5] == next(reading)
    assert None is next(reading)
    extend(storage, "app.log", b"\n7\n")
    assert [6, 7] == next(reading)
    assert None is next(reading)


def test_a_process_that_was_away_for_several_rotations_misses_none(
    outside: SimulatedOutside,
) -> None:
    storage = outside.storage
    put(storage, "app.log", b"10\n")
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    position = last_position(source, "app.log")
    extend(storage, "app.log", b"11\n")
    for number in (2, 3, 4):
        rotate(outside)
        put(storage, "app.log", b"" if number == 3 else b"%d0\n%d1" % (number, number))
    reading = follow(outside, position)

    assert [[11], [20, 21], [40], None] == [next(reading) for _ in range(4)]
    assert [11, 20, 21, 40] == rows(source, "app.log", position)


def test_a_rotation_between_two_looks_is_noticed(
    outside: SimulatedOutside, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outside.storage, "app.log", b"1\n")
    reading = follow(outside)
    assert [1] == next(reading)
    rotate(outside)
    put(outside.storage, "app.log", b"2\n")
    turns = [None, rotate]

    def newer(*arguments: Any) -> list[str]:
        found = line_files.newer_files(*arguments)
        if turns and (turn := turns.pop(0)):
            turn(outside)
            put(outside.storage, "app.log", b"3\n")
        return found

    monkeypatch.setattr("millstream.processor.file_source.newer_files", newer)

    assert [None, [2], [3], None] == [next(reading) for _ in range(4)]


def test_files_with_dates_follow_each_other_by_date(outside: SimulatedOutside) -> None:
    storage = outside.storage
    put(storage, "app.log", b"1\n")
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    position = last_position(source, "app.log")
    storage.rename("app.log", "app.log-20261123")
    put(storage, "app.log-20261122", b"0\n")
    put(storage, "app.log-20261124", b"2\n")
    put(storage, "app.log.1", b"9\n")
    put(storage, "app.log", b"3\n")

    assert [2, 3] == rows(source, "app.log", position)


def test_a_file_of_another_name_that_begins_alike_is_not_taken_for_it(
    outside: SimulatedOutside,
) -> None:
    storage = outside.storage
    put(storage, "app.log", b"1\n")
    put(storage, "aaa.log", b"1\n2\n")
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    position = last_position(source, "app.log")
    extend(storage, "app.log", b"3\n")
    storage.rename("app.log", "app.log.1")
    put(storage, "app.log", b"4\n")

    assert [3, 4] == rows(source, "app.log", position)


def test_a_rotated_file_that_cannot_be_found_is_an_error(outside: SimulatedOutside) -> None:
    put(outside.storage, "app.log", b"1\n2\n")
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    position = last_position(source, "app.log")
    put(outside.storage, "app.log", b"3\n")

    with pytest.raises(DataError, match="it was cut, rewritten or replaced"):
        rows(source, "app.log", position)


@pytest.mark.parametrize("begun", [b"", b"1", b"1,2"], ids=["empty", "a byte", "a part"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_is_rotated_before_a_whole_line_was_read_is_read_first(
    outside: SimulatedOutside, begun: bytes, restart: bool
) -> None:
    storage = outside.storage
    put(storage, "app.log.1", b"7\n8\n")  # what was there before is not to be followed
    put(storage, "app.log.2", b"9\n")
    put(storage, "app.log", begun)
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    reading = source.open("app.log", None)
    first = next(reading)
    assert first is not None
    assert [] == first.values
    assert None is next(reading)
    if restart:
        reading = source.open("app.log", plain(first.position))

    extend(storage, "app.log", b"1\n2")
    rotate(outside)
    put(storage, "app.log", b"3\n4\n")
    rotate(outside)
    put(storage, "app.log", b"")
    old = [begun + b"1", b"2"]
    assert [old, [b"3", b"4"]] == [list(batch.values) for batch in islice(reading, 2) if batch]
    assert None is next(reading)
    extend(storage, "app.log", b"5\n")
    batch = next(reading)
    assert batch is not None
    assert [b"5"] == batch.values


def test_a_file_that_is_rotated_unread_is_waited_for_until_it_is_done(
    outside: SimulatedOutside,
) -> None:
    storage = outside.storage
    put(storage, "app.log", b"1")
    reading = follow(outside)
    assert [] == next(reading)
    rotate(outside)
    assert None is next(reading)
    extend(storage, "app.log.1", b"1\n2")  # by a writer that has not opened a new one yet
    assert [11] == next(reading)
    put(storage, "app.log", b"3\n")
    assert [[2], [3], None] == [next(reading) for _ in range(3)]


def test_what_was_compressed_is_not_taken_for_lines(outside: SimulatedOutside) -> None:
    storage = outside.storage
    put(storage, "app.log", b"")
    reading = follow(outside)
    assert [] == next(reading)
    put(storage, "app.log.2.gz", b"\x1f\x8b\n")
    put(storage, "app.log.bak", b"9\n")
    extend(storage, "app.log", b"1\n")
    assert [[1], None] == [next(reading) for _ in range(2)]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("before", [b"", b"1\n"])
def test_a_part_of_a_line_that_is_gone_is_an_error(
    outside: SimulatedOutside, before: bytes, rotated: bool
) -> None:
    put(outside.storage, "app.log", before + b"22")
    reading = jsonl(outside, "app.log", follow=True, rotated=rotated).open("app.log", None)
    while next(reading) is not None:
        pass
    put(outside.storage, "app.log", before + b"3\n")

    with pytest.raises(DataError, match="it was cut, rewritten or replaced"):
        next(reading)


def test_a_file_that_begins_as_the_one_before_is_told_by_the_line_that_was_not_whole(
    outside: SimulatedOutside,
) -> None:
    put(outside.storage, "app.log", b"1\n2")
    reading = follow(outside)
    assert [[1], None] == [next(reading) for _ in range(2)]
    extend(outside.storage, "app.log", b"2\n")
    rotate(outside)
    put(outside.storage, "app.log", b"1\n3\n")

    assert [[22], [1, 3], None] == [next(reading) for _ in range(3)]


def test_a_pattern_that_covers_the_rotated_file_too_is_refused(outside: SimulatedOutside) -> None:
    put(outside.storage, "app.log", b"1\n2\n")
    source = jsonl(outside, "app*", follow=True, rotated=True)
    position = last_position(source, "app.log")
    rotate(outside)
    put(outside.storage, "app.log", b"3\n")

    with pytest.raises(UsageError, match=r"moved to app\.log\.1, which the pattern covers too"):
        rows(source, "app.log", position)
