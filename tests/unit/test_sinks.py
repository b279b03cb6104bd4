"""Sinks by themselves: what they write, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from outside_world import SimulatedOutside, content_of, put

from millstream import DataError, FencedError, Record, RecordError, StorageError, UsageError
from millstream.processor.connectors import SINKS, SOURCES, RefusedRecords, Sink, plugin
from millstream.processor.sinks import to_callable, to_csv, to_jsonl, to_sqlite, to_stdout
from millstream.testing import FaultPlan, MemoryStorage, crash_cases


@pytest.fixture
def outside() -> SimulatedOutside:
    return SimulatedOutside()


def records(*values: Any, keys: Sequence[bytes | None] | None = None) -> list[Record]:
    """Values as the records of an outbox: bytes and None as they are, others as JSON."""
    encoded = [
        value if isinstance(value, bytes | None) else json.dumps(value).encode() for value in values
    ]
    names = keys or [None] * len(values)
    return [
        Record("@sink/p/s", 0, offset, 0, key, value, ())
        for offset, (key, value) in enumerate(zip(names, encoded, strict=True))
    ]


def write(sink: Sink, rows: Sequence[Record], first: int = 0, outbox: str = "box") -> None:
    writer = sink.open(outbox)
    try:
        writer.write(rows, first, first + len(rows))
    finally:
        writer.close()


def refused(sink: Sink, *values: Any) -> dict[int, str]:
    with pytest.raises(RefusedRecords) as caught:
        write(sink, records(*values))
    assert not caught.value.retry
    return caught.value.reasons


# --- files -------------------------------------------------------------------------------------


def files(outside: SimulatedOutside) -> dict[str, bytes]:
    storage = outside.storage
    return {name: content_of(storage, name) for name in storage.list("")}


def test_a_delivery_becomes_a_file_named_after_its_offsets(outside: SimulatedOutside) -> None:
    sink = replace(to_jsonl("out/totals"), outside=outside)
    write(sink, records({"a": 1}, None, "x\n"))
    write(sink, records(4), first=3)
    write(sink, [], first=4)
    (first, content), (second, _) = sorted(files(outside).items())

    assert b'{"a": 1}\nnull\n"x\\n"\n' == content
    assert first.startswith("totals-")
    assert first.endswith(f"-{0:020d}-{3:020d}.jsonl")
    assert second.endswith(f"-{3:020d}-{4:020d}.jsonl")


def tree(storage: Any, folder: str = "") -> dict[str, bytes]:
    """All files below a folder, by path."""
    found = {}
    for name in storage.list(folder):
        path = f"{folder}/{name}" if folder else name
        if name.endswith((".jsonl", ".csv")):
            found[path] = content_of(storage, path)
        else:
            found |= tree(storage, path)
    return found


def test_records_go_into_the_folders_of_their_fields(outside: SimulatedOutside) -> None:
    sink = replace(to_jsonl("out", folders=["day", "n"], name="f"), outside=outside)
    rows = [
        {"day": "a/b", "n": 1, "x": 0},
        {"n": True},
        {"day": "..", "n": 1.5},
        {"day": "a/b", "n": 1, "x": 3},
    ]
    write(sink, records(*rows))
    write(sink, records(*rows))
    found = {path.rpartition("/")[0]: data for path, data in tree(outside.storage).items()}

    assert {
        "day=a%2Fb/n=1": b'{"day": "a/b", "n": 1, "x": 0}\n{"day": "a/b", "n": 1, "x": 3}\n',
        "day=__HIVE_DEFAULT_PARTITION__/n=true": b'{"n": true}\n',
        "day=../n=1.5": b'{"day": "..", "n": 1.5}\n',
    } == found
    assert 3 == len(tree(outside.storage))


def test_what_has_no_fields_is_refused_and_leaves_no_file(outside: SimulatedOutside) -> None:
    sink = replace(to_csv("out", ["a"], folders=["a"]), outside=outside)
    assert [1, 2] == sorted(refused(sink, {"a": 1}, 7, None))
    assert [1] == list(refused(sink, {"a": 1}, {"a": 1, "b": 2}))
    assert {} == tree(outside.storage)


@pytest.mark.parametrize("folders", ["day", ["a", "a"], [""], ["a/b"], ["a=b"]])
def test_folders_that_are_none_are_refused(folders: Any) -> None:
    with pytest.raises(UsageError, match="folders="):
        to_jsonl("out", folders=folders)


def test_a_delivery_done_again_replaces_its_file(outside: SimulatedOutside) -> None:
    sink = replace(to_jsonl("out"), outside=outside)
    write(sink, records(1, 2))
    (name,) = files(outside)
    put(outside.storage, f".{name}.unfinished", b"of a process that died")
    write(sink, records(1, 2))

    assert {name: b"1\n2\n"} == files(outside)


def test_files_of_two_outboxes_do_not_meet(outside: SimulatedOutside) -> None:
    sink = replace(to_jsonl("out"), outside=outside)
    write(sink, records(1), outbox="one")
    write(sink, records(2), outbox="two")

    assert [b"1\n", b"2\n"] == sorted(files(outside).values())


def test_a_line_is_one_json_value(outside: SimulatedOutside) -> None:
    sink = replace(to_jsonl("out"), outside=outside)
    write(sink, records(b'{"a":\n1}'))
    assert [b'{"a":1}\n'] == list(files(outside).values())

    assert [1, 3] == sorted(refused(sink, 1, b"no json", 2, b""))
    assert 1 == len(files(outside))


def test_a_file_appears_complete_or_not_at_all() -> None:
    rows = records(*range(50))
    expected = b"".join(b"%d\n" % number for number in range(50))

    def work(storage: MemoryStorage) -> None:
        write(replace(to_jsonl("out"), outside=SimulatedOutside(storage)), rows)

    kinds = set()
    for case in crash_cases(work, seeds=range(5)):
        found = {
            name: content_of(case.storage, name)
            for name in case.storage.list("")
            if name.endswith(".jsonl")
        }
        assert set(found.values()) <= {expected}, case
        assert found or not case.finished, case
        kinds.add(case.kind)
    assert {"create", "write", "sync", "rename", "sync_directory", ""} <= kinds


def test_a_full_disk_leaves_no_file_and_the_next_attempt_succeeds() -> None:
    storage = MemoryStorage(FaultPlan(fail={"write": 28}))
    sink = replace(to_jsonl("out"), outside=SimulatedOutside(storage))
    with pytest.raises(StorageError, match="the disk is full"):
        write(sink, records(1))
    assert [] == [name for name in storage.list("") if name.endswith(".jsonl")]
    storage.faults.clear()
    write(sink, records(1))

    assert [b"1\n"] == [content_of(storage, name) for name in storage.list("")]


def test_rows_of_csv_have_the_columns_in_order(outside: SimulatedOutside) -> None:
    sink = replace(to_csv("out", ["b", "a"], delimiter=";"), outside=outside)
    write(sink, records({"a": 1, "b": "x;y"}, {"a": None}, {"b": 'q"', "a": [1, {"k": True}]}))

    assert [b'b;a\n"x;y";1\n;\n"q""";"[1,{""k"":true}]"\n'] == list(files(outside).values())


def test_what_is_no_row_of_the_csv_is_refused(outside: SimulatedOutside) -> None:
    sink = replace(to_csv("out", ["a"]), outside=outside)
    reasons = refused(sink, {"a": 1}, {"a": 1, "z": 2}, [1], None, b"?", {})

    assert "there are no columns ['z']; there are ['a']" == reasons[1]
    assert {1, 2, 3, 4} == set(reasons)
    assert {} == files(outside)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(texts, texts), max_size=10))
def test_any_text_comes_back_from_csv(table: list[tuple[str, str]]) -> None:
    outside = SimulatedOutside()
    rows = [{"a": a, "b": b} for a, b in table]
    write(replace(to_csv("out", ["a", "b"]), outside=outside), records(*rows, {"a": "end"}))
    (content,) = files(outside).values()
    reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)

    assert [*rows, {"a": "end", "b": ""}] == list(reader)


def test_a_row_with_nothing_in_it_is_a_row(outside: SimulatedOutside) -> None:
    write(replace(to_csv("out", ["a"]), outside=outside), records({}, {"a": ""}))
    (content,) = files(outside).values()

    assert [["a"], [""], [""]] == list(csv.reader(io.StringIO(content.decode())))


# --- tables ------------------------------------------------------------------------------------


def table(outside: SimulatedOutside, **options: Any) -> Sink:
    return replace(to_sqlite("app.db", "t", **options), outside=outside)


def rows(outside: SimulatedOutside, sql: str = "SELECT * FROM t") -> list[tuple[Any, ...]]:
    return outside.simulated.query(sql)


def test_rows_and_position_are_one_commit(outside: SimulatedOutside) -> None:
    sink = table(outside)
    writer = sink.open("box")
    assert None is writer.position()
    writer.write(records({"a": 1}, {"a": "x"}), 0, 2)
    assert 2 == writer.position()
    writer.write([], 2, 5)
    writer.close()

    assert [(1,), ("x",)] == rows(outside)
    assert [("box", 5)] == rows(outside, "SELECT * FROM millstream_positions")
    assert 5 == sink.open("box").position()
    assert None is sink.open("another").position()


def test_a_table_that_is_missing_keeps_every_value_as_it_is(outside: SimulatedOutside) -> None:
    values = [1, 2**63 - 1, 0.1, 1e300, "5", True, None, [1], {"k": 1}]
    write(table(outside), records({"a": values[0], "b": 0}, *({"a": v} for v in values[1:])))

    expected = [1, 2**63 - 1, 0.1, 1e300, "5", 1, None, "[1]", '{"k":1}']
    assert expected == [a for a, _ in rows(outside)]
    assert [type(value) for value in expected] == [type(a) for a, _ in rows(outside)]


def test_a_table_that_is_there_keeps_its_types_and_defaults(outside: SimulatedOutside) -> None:
    rows(outside, "CREATE TABLE t (id INTEGER PRIMARY KEY, x REAL, y TEXT DEFAULT 'd')")
    write(table(outside), records({"x": 1}, {"x": 2.5, "y": None}, {}))

    assert [(1, 1.0, "d"), (2, 2.5, None), (3, None, "d")] == rows(outside)


def test_the_same_delivery_again_changes_nothing(outside: SimulatedOutside) -> None:
    sink = table(outside)
    write(sink, records({"a": 1}))
    write(sink, records({"a": 1}))
    with pytest.raises(FencedError, match="box has been delivered up to 1, not 0"):
        write(sink, records({"a": 1}, {"a": 2}))

    assert [(1,)] == rows(outside)


def test_upsert_changes_the_row_of_a_key_in_order(outside: SimulatedOutside) -> None:
    sink = table(outside, mode="upsert", key=["k", "w"])
    write(
        sink,
        records(
            {"k": "a", "w": 1, "n": 1},
            {"k": "b", "w": 1, "n": 2},
            {"k": "a", "w": 1, "n": 3},
            {"k": "b", "w": 1},
            None,
            {"k": "c", "w": 1, "n": 9},
            keys=[None, None, None, None, b'["a",1]', None],
        ),
    )

    assert [("b", 1, 2), ("c", 1, 9)] == rows(outside)


@pytest.mark.parametrize("declared", ["k TEXT PRIMARY KEY", "k INTEGER PRIMARY KEY", "k UNIQUE"])
@pytest.mark.parametrize("kind", [int, str])
def test_a_tombstone_deletes_the_row_of_its_key(
    outside: SimulatedOutside, declared: str, kind: Any
) -> None:
    rows(outside, f"CREATE TABLE t ({declared}, n)")
    sink = table(outside, mode="upsert", key=["k"])
    write(sink, records({"k": kind(7), "n": 1}, {"k": kind(8), "n": 2}))
    write(sink, [*records(None, keys=[b"7"])], first=2)

    assert [(2,)] == rows(outside, "SELECT n FROM t")


def test_rows_of_a_key_alone_are_kept(outside: SimulatedOutside) -> None:
    write(table(outside, mode="upsert", key=["k"]), records({"k": 1}, {"k": 1}, {"k": 2}))

    assert [(1,), (2,)] == rows(outside)


def test_all_that_are_no_rows_are_refused_at_once(outside: SimulatedOutside) -> None:
    rows(outside, "CREATE TABLE t (a INTEGER CHECK (a < 10), b UNIQUE)")
    reasons = refused(table(outside), {"a": 1}, {"z": 1}, [1], None, {"a": 2**63})

    assert {
        1: "table 't' has no columns ['z']; it has ['a', 'b']",
        3: "a tombstone is no row",
        4: f"{2**63} does not fit into the 64 bits of an integer",
    }.items() <= reasons.items()
    assert {1, 2, 3, 4} == set(reasons)
    reasons = refused(table(outside), {"a": 1, "b": 1}, {"a": 10}, {"b": 2}, {"b": 1}, {"a": 99})
    assert {1, 3, 4} == set(reasons)
    assert "CHECK constraint failed" in reasons[1]
    assert ([], []) == (rows(outside), rows(outside, "SELECT * FROM millstream_positions"))


def test_refused_rows_of_an_upsert(outside: SimulatedOutside) -> None:
    sink = table(outside, mode="upsert", key=["k"])
    reasons = refused(sink, {"n": 1}, {"k": 1, "n": 1}, {"k": None, "n": 1}, {"n": 2}, None)

    assert {0, 2, 3, 4} == set(reasons)
    assert "there are no fields ['k'], which are the key" == reasons[0] == reasons[3]
    assert "a tombstone without a key" == reasons[4]


def test_a_table_without_such_a_key_is_refused(outside: SimulatedOutside) -> None:
    rows(outside, "CREATE TABLE t (k, n UNIQUE)")

    with pytest.raises(UsageError, match=r"no unique key \['k'\]; it has \[\['n'\]\]"):
        table(outside, mode="upsert", key=["k"]).open("box")
    table(outside, mode="upsert", key=["n"]).open("box").close()


def test_a_table_altered_in_between_is_looked_at_again(outside: SimulatedOutside) -> None:
    writer = table(outside).open("box")
    writer.write(records({"a": 1}), 0, 1)
    with pytest.raises(RefusedRecords):
        writer.write(records({"a": 1, "b": 2}), 1, 2)
    rows(outside, "ALTER TABLE t ADD COLUMN b")
    writer.write(records({"a": 1, "b": 2}), 1, 2)
    writer.close()

    assert [(1, None), (1, 2)] == rows(outside)


def test_names_are_quoted(outside: SimulatedOutside) -> None:
    sink = replace(
        to_sqlite("app.db", 'a "t"; --', mode="upsert", key=["k'"], name="t"), outside=outside
    )
    write(sink, records({"k'": 1, 'b"': 2, "select": 3}))

    assert [(1, 2, 3)] == rows(outside, 'SELECT * FROM "a ""t""; --"')


def test_a_position_that_is_none_is_damage(outside: SimulatedOutside) -> None:
    write(table(outside), records({"a": 1}))
    rows(outside, "UPDATE millstream_positions SET next_offset = 'x'")

    with pytest.raises(DataError, match="millstream_positions has 'x' for box"):
        table(outside).open("box").position()


def test_a_constraint_checked_at_the_commit_is_an_error(outside: SimulatedOutside) -> None:
    rows(outside, "CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    rows(outside, "CREATE TABLE t (a REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")

    with pytest.raises(RecordError, match="FOREIGN KEY constraint failed"):
        write(table(outside), records({"a": 1}))
    assert [] == rows(outside)


@pytest.mark.parametrize(
    "options",
    [{"mode": "merge"}, {"mode": "upsert"}, {"key": ["a"]}, {"mode": "upsert", "key": "a"}],
)
def test_options_of_a_table_are_checked(options: Any) -> None:
    with pytest.raises(UsageError, match="mode="):
        to_sqlite("app.db", "t", **options)


# --- functions and stdout ----------------------------------------------------------------------


def test_a_function_is_called_again_for_the_record_it_failed_on() -> None:
    seen: list[int] = []
    failures = [2, 2]

    def function(record: Record) -> None:
        seen.append(record.offset)
        if failures and record.offset == failures[-1]:
            failures.pop()
            raise ValueError("busy")

    writer = to_callable(function).open("box")
    rows = records(0, 1, 2, 3)
    for _ in range(2):
        with pytest.raises(RefusedRecords, match="offset 2: ValueError: busy") as caught:
            writer.write(rows, 0, 4)
        assert caught.value.retry
    writer.write(rows, 0, 4)

    assert [0, 1, 2, 2, 2, 3] == seen


def test_a_function_may_take_all_records_of_a_delivery() -> None:
    seen: list[list[Any]] = []
    sink = to_callable(seen.append, batches=True)
    write(sink, records(1, 2))
    write(sink, [], first=2)

    assert [[b"1", b"2"]] == [[record.value for record in batch] for batch in seen]


def test_values_are_printed_line_by_line(outside: SimulatedOutside) -> None:
    write(replace(to_stdout(), outside=outside), records({"a": 1}, None, b"\xff"))

    assert ['{"a": 1}', "null", "\ufffd"] == outside.printed


def test_stdout_is_flushed(capsys: pytest.CaptureFixture[str]) -> None:
    write(to_stdout(), records("x"))

    assert '"x"\n' == capsys.readouterr().out


# --- names -------------------------------------------------------------------------------------


def test_sinks_have_names() -> None:
    def notify(record: Record) -> None:
        """Nobody."""

    assert ["notify", "lambda", "totals", "out", "t", "stdout"] == [
        sink.name
        for sink in (
            to_callable(notify),
            to_callable(lambda record: record),
            to_jsonl("out/totals/"),
            to_csv("out", ["a"]),
            to_sqlite("x.db", "t"),
            to_stdout(),
        )
    ]
    with pytest.raises(UsageError, match="is not the name of a sink"):
        to_jsonl("out", name="a/b")


@pytest.mark.parametrize("options", [{"columns": []}, {"columns": ["a", "a"]}])
def test_columns_of_csv_are_checked(options: Any) -> None:
    with pytest.raises(UsageError, match="name each once"):
        to_csv("out", **options)
    with pytest.raises(UsageError, match="give one character"):
        to_csv("out", ["a"], delimiter='"')


def test_packages_offer_sources_and_sinks_by_name() -> None:
    assert "in.jsonl" == plugin(SOURCES, "jsonl")("in/*.jsonl").name
    assert "stdout" == plugin(SINKS, "stdout")().name
    with pytest.raises(UsageError, match=r"offers 'kafka' as millstream\.sinks"):
        plugin(SINKS, "kafka")
    with pytest.raises(UsageError, match=r"packages offer 'millstream\.sources'"):
        plugin("millstream.sink", "stdout")


PACKAGE = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "squares"
version = "1"

[tool.setuptools]
py-modules = ["squares"]

[project.entry-points."millstream.sources"]
squares = "squares:Squares"

[project.entry-points."millstream.sinks"]
kept = "squares:Kept"
"""

MODULE = """
from millstream.processor import Sink, Source, SourceBatch

class Squares(Source):
    name = "squares"
    def __init__(self, count):
        self.count = count
    def partitions(self):
        return ["all"]
    def open(self, partition, position):
        for number in range(position or 0, self.count):
            yield SourceBatch([b"%d" % number**2], position=number + 1)

class Kept(Sink):
    name, delivery = "kept", "at_least_once"
    values = []
    def open(self, outbox):
        return self
    def position(self):
        return None
    def write(self, records, first, following):
        self.values += [record.value for record in records]
    def close(self):
        pass
"""


def test_a_package_that_is_installed_offers_its_own(tmp_path: Path) -> None:
    """Built and installed without a network, as anybody's package is."""
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    (project / "pyproject.toml").write_text(PACKAGE)
    (project / "squares.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    options = ["--no-build-isolation", "--target", str(site), str(project)]
    subprocess.run([*pip, *options], check=True, capture_output=True)
    program = """
import millstream
from millstream.processor import Pipeline, plugin

kept = plugin("millstream.sinks", "kept")()
pipeline = Pipeline("p")
pipeline.source(plugin("millstream.sources", "squares")(4), type=int).to(kept)
with millstream.open(":memory:") as store:
    pipeline.run(store, until="end")
print(kept.values, end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "[b'0', b'1', b'4', b'9']" == done.stdout, done.stderr


def test_a_directory_that_cannot_be_had_is_called_the_one_of_the_sink(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match="sink 'out' cannot have its directory") as caught:
        to_jsonl(f"{tmp_path}/out").open("outbox")
    assert f"{tmp_path}/out" == caught.value.path


def test_rows_that_come_while_a_table_is_compared_are_taken_along(tmp_path: Path) -> None:
    sink = to_sqlite(f"{tmp_path}/app.db", "out")
    rows = [Record("", 0, n, 0, None, b'{"n":%d}' % n, ()) for n in range(2)]
    writer = sink.open("box")
    writer.write(rows[:1], 0, 1)

    class Moving:
        start, passed, position = 0, 0, 1

        def records(self, position: int | None = None, *, begin: int = 0) -> Iterator[Record]:
            if position == 1:
                writer.write(rows[1:], 1, 2)
            return iter(rows[begin:position])

    assert sink.compare("box", Moving()) is None
    assert 2 == writer.position()
    writer.close()
