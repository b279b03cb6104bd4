"""Sources by themselves: what they read, where they say they stand, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from outside_world import (
    SimulatedOutside,
    batches,
    extend,
    last_position,
    plain,
    put,
    rows,
)

import millstream
from millstream import DataError, StorageError, UsageError
from millstream.processor import Pipeline, line_files
from millstream.processor.connectors import SourceRecord
from millstream.processor.file_source import FileSource
from millstream.processor.sources import csv_files, from_iterable, jsonl_files


@pytest.fixture
def outside() -> SimulatedOutside:
    return SimulatedOutside()


# --- iterables ---------------------------------------------------------------------------------


def test_an_iterable_goes_on_behind_what_was_taken() -> None:
    source = from_iterable([1, 2, 3, 4])

    assert [3, 4] == rows(source, position=2)
    assert [] == rows(source, position=4)


def test_a_function_is_called_again_after_a_restart() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)

    source = from_iterable(numbers)

    assert "numbers" == source.name
    assert [0, 1, 2, 3, 4] == rows(source)
    assert [3, 4] == rows(source, position=3)


def test_an_iterable_that_has_become_shorter_is_an_error() -> None:
    with pytest.raises(DataError, match="has only 2 items, of which 3 were taken in"):
        rows(from_iterable([1, 2]), position=3)
    used = iter([1, 2, 3])
    assert [1, 2, 3] == rows(from_iterable(used))
    with pytest.raises(DataError, match="is given as the function that makes it"):
        rows(from_iterable(used), position=3)


def test_none_is_no_item_and_says_that_there_is_nothing_now() -> None:
    source = from_iterable([1, None, None, 2, None, 3])
    found = [batch and (list(batch.values), batch.position) for batch in source.open("0", None)]

    assert [([b"1"], 1), None, None, ([b"2"], 2), None, ([b"3"], 3)] == found
    assert [None, 3] == [batch and batch.position for batch in source.open("0", 2)]


def test_items_of_a_slow_iterable_are_not_kept_back(outside: SimulatedOutside) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            outside.clock.sleep(1)
            yield number

    source = replace(from_iterable(slow), outside=outside)

    assert [1, 1, 1] == [len(batch.values) for batch in batches(source, "0")]


def test_records_of_an_iterable_have_key_time_and_headers(outside: SimulatedOutside) -> None:
    items = [SourceRecord({"n": 1}, b"k", 5, (("h", b"v"),)), 2, SourceRecord(None, b"gone")]
    (batch,) = batches(replace(from_iterable(items), outside=outside), "0")

    assert [b'{"n":1}', b"2", None] == batch.values
    assert [b"k", None, b"gone"] == batch.keys
    assert [5, 1_000_000, 1_000_000] == batch.timestamps_ms
    assert [(("h", b"v"),), (), ()] == batch.headers


def test_text_is_to_a_run_what_it_is_to_a_test_on_lists() -> None:
    words = ["a", 'say "b"', "\u00fc", ""]
    pipeline = Pipeline("p")
    pipeline.source(from_iterable(words, name="words"), type=str).map(len).to("lengths")
    with millstream.open(":memory:") as store:
        pipeline.run(store, until="end")
        run = [json.loads(record.value or b"") for record in store.read("lengths")]
    assert pipeline.test({"words": words})["lengths"] == run == [1, 7, 1, 0]


@pytest.mark.parametrize("one", ["abc", b"abc", {"a": 1}, 7], ids=repr)
def test_one_item_where_many_are_meant_is_refused(one: Any) -> None:
    with pytest.raises(UsageError, match=f"not one {type(one).__name__}: put it into a list"):
        from_iterable(one)


def test_an_item_that_is_no_json_is_rejected_by_its_number() -> None:
    (batch,) = batches(from_iterable([1, object, 3]), "0")

    assert [b"1", b"3"] == batch.values
    assert [2] == [each.line for each in batch.rejected]


# --- files of lines ----------------------------------------------------------------------------


def jsonl(outside: SimulatedOutside, pattern: str, **options: Any) -> FileSource:
    return replace(jsonl_files(pattern, **options), outside=outside)


def test_files_are_read_in_the_order_of_their_names(outside: SimulatedOutside) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "10/x.jsonl"):
        put(outside.storage, name, b"1\n")

    assert ["a.jsonl", "b.jsonl"] == jsonl(outside, "*.jsonl").partitions()
    assert ["10/x.jsonl"] == jsonl(outside, "*/*.jsonl").partitions()
    assert ["a.jsonl"] == jsonl(outside, "in/[a]*.jsonl").partitions()
    assert [] == jsonl(outside, "*.none").partitions()


def test_a_file_that_was_named_and_is_missing_is_an_error(outside: SimulatedOutside) -> None:
    with pytest.raises(StorageError, match="it does not exist"):
        jsonl(outside, "a.jsonl").partitions()
    assert [] == jsonl(outside, "a.jsonl", follow=True).partitions()


def test_a_directory_that_is_missing_is_an_error_unless_followed(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"the files of source '.*': it does not exist \(file .*"
    ):
        jsonl_files(f"{tmp_path}/in/*.jsonl").partitions()
    assert [] == jsonl_files(f"{tmp_path}/in/*.jsonl", follow=True).partitions()


@pytest.mark.parametrize("pattern", ["", "/", "in/", "**/*.jsonl", "."])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="is not a pattern for files"):
        jsonl_files(pattern)


def test_lines_are_numbered_as_an_editor_does(outside: SimulatedOutside) -> None:
    put(outside.storage, "a", b"\xef\xbb\xbf1\n\n2\r\n\r\n3")
    (batch,) = batches(jsonl(outside, "a"), "a")

    assert ([b"1", b"2", b"3"], [1, 3, 5]) == (list(batch.values), list(batch.lines or ()))
    assert "a" == batch.path


def test_a_position_in_the_middle_goes_on_with_the_right_line(
    outside: SimulatedOutside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.processor.file_source.CHUNK_BYTES", 64)
    content = b"".join(b"%d\n" % number for number in range(1000))
    put(outside.storage, "a", content)
    source = jsonl(outside, "a")
    found = batches(source, "a")

    assert len(found) > 50
    for number in (0, 1, 30, len(found) - 1):
        first = next(
            iter(batches(source, "a", plain(found[number - 1].position) if number else None))
        )
        assert (list(found[number].values), found[number].lines) == (
            list(first.values),
            first.lines,
        )


def test_a_followed_file_gives_whole_lines_only(outside: SimulatedOutside) -> None:
    put(outside.storage, "a", b"1\n2")
    source = jsonl(outside, "a", follow=True)
    reading = source.open("a", None)

    assert [b"1"] == list(next(reading).values)  # type: ignore[union-attr]
    assert None is next(reading)
    extend(outside.storage, "a", b"2\n3")
    assert [b"22"] == list(next(reading).values)  # type: ignore[union-attr]
    assert None is next(reading)


def test_a_last_line_without_newline_is_taken_once(outside: SimulatedOutside) -> None:
    put(outside.storage, "a", b"1\n2")
    source = jsonl(outside, "a")
    position = last_position(source, "a")
    assert [1, 2] == rows(source)

    assert [] == rows(source, position=position)
    extend(outside.storage, "a", b"\n3\n")
    (batch,) = batches(source, "a", position)
    assert ([b"3"], [3]) == (list(batch.values), list(batch.lines or ()))


def test_a_last_line_that_was_continued_after_it_was_taken_is_an_error(
    outside: SimulatedOutside,
) -> None:
    put(outside.storage, "a", b"1\n2")
    source = jsonl(outside, "a")
    position = last_position(source, "a")
    extend(outside.storage, "a", b"2\n")

    with pytest.raises(DataError, match="has been continued since") as caught:
        rows(source, position=position)
    assert ("a", 3) == (caught.value.path, caught.value.position)


@pytest.mark.parametrize(
    "content",
    [b"", b"1\n", b"1\n9\n3\n4\n", b"9\n2\n3\n", b"1\n2\n9\n4\n5\n"],
    ids=["emptied", "cut", "changed in the middle", "at the start", "at the end"],
)
@pytest.mark.parametrize("follow", [False, True])
def test_a_file_that_is_no_longer_what_was_read_is_an_error(
    outside: SimulatedOutside, content: bytes, follow: bool
) -> None:
    put(outside.storage, "a", b"1\n2\n3\n")
    source = jsonl(outside, "a", follow=follow)
    position = last_position(source, "a")
    put(outside.storage, "a", content)

    with pytest.raises(DataError, match="it was cut, rewritten or replaced") as caught:
        rows(source, position=position)
    assert ("a", 6) == (caught.value.path, caught.value.position)


def test_a_line_that_is_too_long_is_an_error(
    outside: SimulatedOutside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.processor.file_source.CHUNK_BYTES", 16)
    monkeypatch.setattr("millstream.processor.file_source.ROW_BYTES_MAX", 100)
    put(outside.storage, "a", b"1\n" + b"2" * 70 + b"\n")
    assert 2 == len(rows(jsonl(outside, "a")))
    put(outside.storage, "a", b"1\n" + b"2" * 2000 + b"\n")

    with pytest.raises(DataError, match="a row is longer than 100 bytes") as caught:
        rows(jsonl(outside, "a"))
    assert ("a", 2) == (caught.value.path, caught.value.position)


def test_a_file_that_is_gone_while_followed_is_waited_for(outside: SimulatedOutside) -> None:
    put(outside.storage, "a", b"1\n")
    reading = jsonl(outside, "a", follow=True).open("a", None)
    next(reading)
    outside.storage.remove("a")

    assert None is next(reading)


# --- CSV ---------------------------------------------------------------------------------------


def csvs(outside: SimulatedOutside, content: bytes, **options: Any) -> FileSource:
    put(outside.storage, "a.csv", content)
    return replace(csv_files("*.csv", **options), outside=outside)


def test_rows_are_objects_with_the_names_of_the_header(outside: SimulatedOutside) -> None:
    source = csvs(outside, b'\xef\xbb\xbfa,b\r\n1,"x, ""y""\r\nz"\r\n\r\n2,\r\n')
    (batch,) = batches(source, "a.csv")

    assert [{"a": "1", "b": 'x, "y"\r\nz'}, {"a": "2", "b": ""}] == rows(source)
    assert [2, 5] == batch.lines


def test_types_are_taken_strictly_and_empty_fields_are_null(outside: SimulatedOutside) -> None:
    types = {"i": int, "f": float, "b": bool, "u": str.upper}
    source = csvs(
        outside,
        b"i,f,b,u,s\n-1,2.5e3,TRUE,x,1\n,,,,\n1_0,1,1,x,\n1,nan,1,x,\n1,1,yes,x,\n"
        b"1, 5,1,x,\n1,\xd9\xa5,1,x,\n",
        types=types,
    )
    (batch,) = batches(source, "a.csv")

    assert [
        {"i": -1, "f": 2500.0, "b": True, "u": "X", "s": "1"},
        {"i": None, "f": None, "b": None, "u": "", "s": ""},
    ] == rows(source)
    assert [
        (4, b"1_0,1,1,x,", "column 'i': '1_0' is not an integer"),
        (5, b"1,nan,1,x,", "column 'f': 'nan' is not a finite number"),
        (6, b"1,1,yes,x,", "column 'b': 'yes' is neither true nor false"),
        (7, b"1, 5,1,x,", "column 'f': ' 5' is not a finite number"),
        (8, b"1,\xd9\xa5,1,x,", "column 'f': '\u0665' is not a finite number"),
    ] == [(each.line, each.value, each.reason) for each in batch.rejected]


def test_rows_that_do_not_fit_are_rejected_where_they_are(outside: SimulatedOutside) -> None:
    source = csvs(outside, b'a,b\n1\n1,2,3\n"x"y,2\n"p\nq",2\n\xff,2\n3,4\n"open,5\n6,7\n')
    (batch,) = batches(source, "a.csv")

    assert [{"a": "p\nq", "b": "2"}, {"a": "3", "b": "4"}] == rows(source)
    assert [
        (2, b"1", "1 fields where there are 2 columns"),
        (3, b"1,2,3", "3 fields where there are 2 columns"),
        (4, b'"x"y,2', "',' expected after '\"'"),
        (7, b"\xff,2", "not UTF-8"),
        (9, b'"open,5\n6,7', "unexpected end of data"),
    ] == [(each.line, each.value, each.reason) for each in batch.rejected]


def test_files_without_a_header_and_with_another_delimiter(outside: SimulatedOutside) -> None:
    source = csvs(outside, b"1;2\n3;4\n", columns=["a", "b"], delimiter=";", types={"b": int})

    assert [{"a": "1", "b": 2}, {"a": "3", "b": 4}] == rows(source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,a\n1,2\n", "columns are there twice: ['a']"),
        (b"x,y\n1,2\n", "there are no columns ['a']; there are ['x', 'y']"),
        (b"\xff,a\n1,2\n", "it is not UTF-8"),
        (b'"a\n1,2\n', "unexpected end of data"),
    ],
)
def test_a_header_that_does_not_fit_is_an_error(
    outside: SimulatedOutside, content: bytes, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        rows(csvs(outside, content, types={"a": int}))
    assert message in caught.value.message
    assert "a.csv" == caught.value.path


def test_options_of_csv_are_checked_when_they_are_given() -> None:
    with pytest.raises(UsageError, match="delimiter=';;'"):
        csv_files("*.csv", delimiter=";;")
    with pytest.raises(UsageError, match=r"there are no columns \['z'\]"):
        csv_files("*.csv", columns=["a"], types={"z": int})
    with pytest.raises(UsageError, match="add follow=True"):
        csv_files("*.csv", rotated=True)


def test_a_header_that_is_still_being_written_is_waited_for(outside: SimulatedOutside) -> None:
    put(outside.storage, "a.csv", b"a,b")
    source = replace(csv_files("*.csv", follow=True), outside=outside)
    reading = source.open("a.csv", None)
    assert None is next(reading)
    extend(outside.storage, "a.csv", b'\n1,"2')
    first = next(reading)
    assert first is not None
    assert [] == list(first.values)
    assert None is next(reading)
    extend(outside.storage, "a.csv", b'\n3"\n')

    again = source.open("a.csv", plain(first.position))  # in another process
    for each in (reading, again):
        batch = next(each)
        assert batch is not None
        assert ([b'{"a":"1","b":"2\\n3"}'], [2]) == (batch.values, batch.lines)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@given(
    st.lists(st.tuples(texts, texts, texts), max_size=20),
    st.sampled_from([",", ";", "\t"]),
    # Ending rows by a newline alone, the csv module leaves returns without quotes.
    st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
    st.integers(8, 200),
)
def test_any_csv_is_read_as_the_csv_module_does_at_any_cut(
    table: list[tuple[str, str, str]], delimiter: str, ends: tuple[str, int], chunk_bytes: int
) -> None:
    buffer = io.StringIO(newline="")
    line_end, quoting = ends
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows([("a", "b", "c"), *table])
    outside = SimulatedOutside()
    put(outside.storage, "x.csv", buffer.getvalue().encode())
    source = replace(csv_files("*.csv", delimiter=delimiter), outside=outside)
    buffer.seek(0)
    expected = list(csv.reader(buffer, delimiter=delimiter))[1:]
    assert list(map(list, table)) == expected

    found, position = [], None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("millstream.processor.file_source.CHUNK_BYTES", chunk_bytes)
        # Each batch by a process of its own.
        while batch := next(iter(source.open("x.csv", position)), None):
            assert not batch.rejected
            found += [list(json.loads(value).values()) for value in batch.values]
            position = plain(batch.position)

    assert expected == found


def test_a_position_that_is_none_is_an_error(outside: SimulatedOutside) -> None:
    put(outside.storage, "a", b"1\n")
    with pytest.raises(DataError, match="not a position in a file"):
        rows(jsonl(outside, "a"), position={"read_bytes": "x"})
    assert line_files.START == line_files.to_position(None)
