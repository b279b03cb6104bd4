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
from millstream.processor.sources import csv_files, jsonl_files


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

    assert [[2], [3], None] == [next(reading) for _ in range(3)]


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
    put(storage, "app.log.2.gz", b"\x1f\x8b\n")
    reading = follow(outside)
    assert [] == next(reading)
    put(storage, "app.log.bak", b"9\n")
    extend(storage, "app.log", b"1\n")
    assert [[1], None] == [next(reading) for _ in range(2)]


@pytest.mark.parametrize(("gone", "moved"), [("app.log.1", "app.log.2"), ("app.log-20261101",) * 2])
def test_what_was_compressed_before_anything_was_read_is_an_error_until_it_is_uncompressed(
    outside: SimulatedOutside, gone: str, moved: str
) -> None:
    storage = outside.storage
    put(storage, gone, b"0\n")
    put(storage, "app.log.9.gz", b"\x1f\x8b9")
    put(storage, "app.log", b"")
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    position = last_position(source, "app.log")
    storage.remove(gone)
    put(storage, f"{moved}.gz", b"\x1f\x8b0")  # what needs not be read may be compressed
    storage.rename("app.log.9.gz", "app.log.10.gz")
    new = "app.log-20261102" if "-" in gone else gone
    put(storage, f"{new}.gz", b"\x1f\x8b1")
    put(storage, "app.log", b"2\n")
    with pytest.raises(DataError, match=r"before anything was read of it, .* uncompress it there"):
        rows(source, "app.log", position)
    early = {key: value for key, value in position.items() if key != "compressed"}
    assert [2] == rows(source, "app.log", early), "nothing was said of those that were compressed"

    storage.remove(f"{new}.gz")
    put(storage, new, b"1\n")
    assert [1, 2] == rows(source, "app.log", position)


@pytest.mark.parametrize(
    ("first", "second", "others"),
    [
        ("app.log.2", "app.log.1", "app.log.3.gz"),
        ("app.log-20261102", "app.log-20261103", "app.log.gz"),
    ],
)
def test_what_was_compressed_before_it_was_read_is_an_error_until_it_is_uncompressed(
    outside: SimulatedOutside, first: str, second: str, others: str
) -> None:
    storage = outside.storage
    put(storage, "app.log", b"1\n")
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    position = last_position(source, "app.log")
    for name in (f"{first}.gz", f"{second}.gz", others):
        put(storage, name, b"\x1f\x8b\n")
    put(storage, "app.log", b"3\n")
    with pytest.raises(DataError, match=r"or moved away and compressed: then uncompress it there"):
        rows(source, "app.log", position)

    storage.remove(f"{first}.gz")
    put(storage, first, b"1\n")
    with pytest.raises(DataError, match=rf"uncompress it there, and run again .*{second}\.gz"):
        rows(source, "app.log", position)

    storage.remove(f"{second}.gz")
    put(storage, second, b"2\n")
    assert [2, 3] == rows(source, "app.log", position)


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


def test_what_is_behind_a_position_is_counted_over_rotations(outside: SimulatedOutside) -> None:
    storage = outside.storage
    put(storage, "app.log", b"1\n2\n")
    source = jsonl(outside, "app.log", follow=True, rotated=True)

    def behind() -> int | None:
        return source.behind_bytes("app.log", position)

    position: Any = None
    assert 4 == behind()
    reading = source.open("app.log", position)
    position = last(reading)
    assert 0 == behind()
    extend(storage, "app.log", b"3\n4")
    assert 3 == behind()
    rotate(outside)
    assert 3 == behind(), "nothing took its place yet"
    put(storage, "app.log", b"5\n")
    rotate(outside)
    put(storage, "app.log", b"678\n")
    assert 3 + 2 + 4 == behind()
    position = last(reading)
    assert 2 + 4 == behind()
    while (batch := next(reading)) is not None:
        position = batch.position
    assert 0 == behind()
    storage.remove("app.log")
    put(storage, "app.log", b"x\n")
    assert behind() is None, "reading it is an error"


def last(reading: Iterator[Any]) -> Any:
    """The position behind the next rows."""
    return next(reading).position


def test_a_pattern_that_covers_the_rotated_file_too_is_refused(outside: SimulatedOutside) -> None:
    put(outside.storage, "app.log", b"1\n2\n")
    source = jsonl(outside, "app*", follow=True, rotated=True)
    position = last_position(source, "app.log")
    rotate(outside)
    put(outside.storage, "app.log", b"3\n")

    with pytest.raises(UsageError, match=r"moved to app\.log\.1, which the pattern covers too"):
        rows(source, "app.log", position)


@pytest.mark.parametrize("restart", [False, True])
def test_files_that_all_begin_with_the_same_header_are_told_apart(
    outside: SimulatedOutside, restart: bool
) -> None:
    storage = outside.storage
    put(storage, "app.csv", b"n\n")
    source: Any = replace(csv_files("app.csv", follow=True, rotated=True), outside=outside)
    reading = source.open("app.csv", None)
    first = next(reading)
    assert None is next(reading)
    for text in (b"1\n", b"2\n", b"3\n"):
        extend(storage, "app.csv", text)
        rotate(outside, "app.csv")
        put(storage, "app.csv", b"n\n")
    if restart:
        reading = source.open("app.csv", plain(first.position))

    found = [next(reading) for _ in range(3)]
    assert [b'{"n":"1"}', b'{"n":"2"}', b'{"n":"3"}'] == [batch.values[0] for batch in found]
    assert None is next(reading)
    extend(storage, "app.csv", b"4\n")
    assert [b'{"n":"4"}'] == next(reading).values


def test_a_byte_order_mark_before_a_long_line_is_no_place_in_the_file(
    outside: SimulatedOutside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.processor.file_source.CHUNK_BYTES", 8)
    storage = outside.storage
    put(storage, "app.log", b"1\n")
    source = jsonl(outside, "app.log", follow=True, rotated=True)
    position = last_position(source, "app.log")
    for number in (2, 3):
        rotate(outside)
        put(storage, "app.log", b"\xef\xbb\xbf%d\n" % number**30)

    assert [2**30, 3**30] == rows(source, "app.log", position)


class Meanwhile(SimulatedOutside):
    """Somebody else does one step after another, each before a look at the files."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Iterator[object] = iter(())
        self.until_step = 0

    def directory(self, path: str, *, read_only: bool = False) -> Any:
        """The storage, which tells when it is looked at."""
        return LookedAt(super().directory(path, read_only=read_only), self)


class LookedAt:
    """A storage as a source uses it."""

    def __init__(self, storage: Any, outside: Meanwhile) -> None:
        self._storage = storage
        self._outside = outside

    def __getattr__(self, name: str) -> Any:
        self._outside.until_step -= 1
        if self._outside.until_step <= 0:
            next(self._outside.steps, None)
        return getattr(self._storage, name)


def by_count(outside: Meanwhile, values: range) -> Iterator[object]:
    """Rotations step by step, each with a value in the new file."""
    storage = outside.storage
    for value in values:
        for count in range(9, 0, -1):
            if storage.exists(f"app.log.{count}"):
                yield storage.rename(f"app.log.{count}", f"app.log.{count + 1}")
        yield storage.rename("app.log", "app.log.1")
        yield put(storage, "app.log", b"%d\n" % value)


def by_date(outside: Meanwhile, values: range) -> Iterator[object]:
    """The same with dates."""
    for value in values:
        yield outside.storage.rename("app.log", f"app.log-2026110{value}")
        yield put(outside.storage, "app.log", b"%d\n" % value)


@pytest.mark.parametrize("rotations", [by_count, by_date])
@pytest.mark.parametrize("begun", [b"", b"3\n"], ids=["unread", "begun"])
@pytest.mark.parametrize("away", [0, 3])
def test_files_that_are_moved_while_they_are_looked_at_are_all_read(
    rotations: Any, begun: bytes, away: int
) -> None:
    for first in range(1, 20):
        for pace in (1, 3):
            outside = Meanwhile()
            storage = outside.storage
            put(storage, "app.log.1", b"0\n")
            put(storage, "app.log", begun)
            source = jsonl(outside, "app.log", follow=True, rotated=True)
            reading = source.open("app.log", None)
            next(reading)
            extend(storage, "app.log", b"33\n")
            for _ in rotations(outside, range(4, 4 + away)):
                pass
            outside.steps = at_pace(rotations(outside, range(7, 9)), pace)
            outside.until_step = first
            found: list[int] = []
            idle = 0
            while idle < 2:
                batch = next(reading)
                found += [int(value or b"") for value in batch.values] if batch else []
                idle = 0 if batch or outside.until_step > -45 else idle + 1
            assert [33, *range(4, 4 + away), 7, 8] == found, (first, pace)


def at_pace(steps: Iterator[object], pace: int) -> Iterator[object]:
    """The steps, with looks in between at which nothing happens."""
    for step in steps:
        yield from [step, *[None] * (pace - 1)]


@pytest.mark.parametrize("begun", [False, True], ids=["unread", "begun"])
def test_what_is_behind_is_not_told_while_files_are_moved(begun: bool) -> None:
    for first in range(1, 20):
        outside = Meanwhile()
        put(outside.storage, "app.log.1", b"0\n")
        put(outside.storage, "app.log", b"3\n" * begun)
        source = jsonl(outside, "app.log", follow=True, rotated=True)
        position = last(source.open("app.log", None))
        put(outside.storage, "app.log", b"3\n")
        outside.steps = by_count(outside, range(4, 5))
        outside.until_step = first
        assert source.behind_bytes("app.log", position) in {None, 0, 2, 4}
        for _ in outside.steps:
            pass
        assert (2 if begun else 4) == source.behind_bytes("app.log", position)
