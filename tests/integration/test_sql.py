"""SQL over topics and state, also while another process writes."""

from __future__ import annotations

import builtins
import csv
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import polars
import pyarrow
import pytest

import millstream
from millstream import MissingExtraError, RecordError, UsageError, sql
from millstream.cli.main import main
from millstream.helpers import Helped
from millstream.processor import Pipeline, agg, state_tables


def rows(store: millstream.Store, text: str) -> list[tuple[object, ...]]:
    with sql.query(store, text, tables=state_tables) as found:
        return list(found.rows())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[millstream.Store]:
    store = millstream.open(tmp_path / "store", durability="os")
    store.create_topic("t", partitions=2)
    for partition in (0, 1):
        values = [b'{"n":%d}' % n for n in range(1000)]
        keys = [b"k%d" % (n % 3) for n in range(1000)]
        store.append_many("t", values, keys, list(range(1000)), partition)
    with store:
        yield store


def test_columns_are_those_of_the_records(store: millstream.Store) -> None:
    store.append("t", None, key=b"\xc3\xa9", timestamp_ms=-1, partition=0, headers=[("h", b"\xff")])
    (row,) = rows(
        store, "select * exclude (timestamp), epoch_ms(timestamp) from t where value is null"
    )
    assert row == (0, 1000, "\xe9", None, [{"name": "h", "value": b"\xff"}], -1)


def test_conditions_need_not_be_about_what_is_selected(store: millstream.Store) -> None:
    text = "select sum((value->>'$.n')::int)::int from t where key = 'k1' and partition = 1"
    assert rows(store, text) == [(sum(range(1, 1000, 3)),)]


def test_a_topic_joins_itself(store: millstream.Store) -> None:
    text = (
        'select count(*) from t a join t b on a."offset" = b.offset and a.partition < b.partition'
    )
    assert rows(store, text) == [(1000,)]


def test_single_appends_and_slices_are_gathered_in_order(store: millstream.Store) -> None:
    store.create_topic("one")
    for n in range(200):
        store.append("one", b"%d" % n)
    assert rows(store, "select value::int from one t order by t.offset") == [
        (n,) for n in range(200)
    ]


def test_what_is_not_text_is_named_and_there_as_bytes(store: millstream.Store) -> None:
    store.append("t", b"\xff", partition=1)
    with pytest.raises(RecordError) as caught:
        rows(store, "select max(value) from t")
    assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("t", 1, 1000)
    assert rows(store, "select count(*) from t") == [(2001,)]
    assert rows(store, "select max(value) from bytes.t") == [(b"\xff",)]


def test_tables_that_are_shown_are_topics(store: millstream.Store) -> None:
    store.create_topic("in.parts")
    assert rows(store, "show tables") == [("in.parts",), ("t",)]
    assert rows(store, 'select count(*) from bytes."in.parts"') == [(0,)]
    assert rows(store, 'select key from bytes.t where "offset" = 1 limit 1') == [(b"k1",)]


def test_nothing_but_results_is_written_however_long_a_query_takes(store: millstream.Store) -> None:
    """DuckDB would write how far it is to stdout, from some time on."""
    assert rows(store, "select current_setting('enable_progress_bar')") == [(False,)]


def test_names_that_differ_by_case_are_refused(store: millstream.Store) -> None:
    store.create_topic("T")
    with pytest.raises(UsageError, match="case"):
        rows(store, "select value from t")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("select 1 from nope", 'nope does not exist! The topics are "odd-name", order, t$'),
        ("select offset from t", "t.offset"),
        ("select 1; select 2", "one statement"),
        ("select (value->>'$.n')::int + 'x'::int from t", "x"),
        ("", "no statement"),
        ("selct 1", r"\^$"),
        ("select at from t", 't.at or "at"'),
        ("select * from odd-name", 'Write the topic as "odd-name"$'),
        ("select * from order", 'Write the topic as "order"$'),
        ("select sum(n) from t", r"field of JSON: value->>'\$\.n'$"),
        ("select value.n from t", r"field of JSON: value->>'\$\.n'$"),
        ("select * from t where key = ?", "write the values themselves"),
        ("select timestamp 'infinity'", "cast it to text"),
        ("insert into t (value) values ('x')", "for looking, and INSERT"),
        ("create table x as select 1", "for looking, and CREATE"),
        ("set threads = 1", "for looking, and SET"),
    ],
)
def test_a_wrong_query_says_why(store: millstream.Store, text: str, why: str) -> None:
    for name in ("odd-name", "order"):
        store.create_topic(name)
    with pytest.raises(UsageError, match=why):
        rows(store, text)


@pytest.mark.parametrize(
    "text", ["pivot t on key using count(*) group by partition", "explain select 1", "from t"]
)
def test_what_only_looks_is_no_change(store: millstream.Store, text: str) -> None:
    assert rows(store, text)


def test_times_are_utc_wherever_the_machine_is(
    store: millstream.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB takes a time without a zone for one of the zone of the machine.

    A record of now was not `timestamp > now() - interval 1 hour` in Tokyo.
    """
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        text = "select count(*) from t where timestamp = '1970-01-01 00:00:00.005+00'::timestamptz"
        assert rows(store, text) == [(2,)]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_memory_is_bounded(store: millstream.Store) -> None:
    text = "select list(a.value || b.value) from t a, t b"
    with pytest.raises(UsageError, match="--memory"):
        list(sql.query(store, text, memory="20MB").rows())


def test_results_go_to_who_takes_arrow(store: millstream.Store) -> None:
    with sql.query(store, "select key, count(*) as n from t group by 1 order by 1") as found:
        frame = polars.DataFrame(found)
    assert frame.rows() == [("k0", 668), ("k1", 666), ("k2", 666)]


def test_a_schema_gives_columns(store: millstream.Store) -> None:
    fields = pyarrow.schema([("user", pyarrow.string()), ("amount", pyarrow.int64())])
    for name, values in (("c", "columns"), ("j", "json")):
        store.create_topic(name, schema=fields, values=values)
        store.append_many(name, [b'{"user":"u%d","amount":%d}' % (n % 2, n) for n in range(10)])
        text = f"select sum(amount)::int, max(_offset) from {name} where \"user\" = 'u1'"
        assert rows(store, text) == [(25, 9)]
        assert rows(store, f"describe {name}")[1][:2] == ("amount", "BIGINT")
        assert rows(store, f"select count(value) from bytes.{name}") == [(10,)]


def test_state_is_a_table(store: millstream.Store) -> None:
    pipeline = Pipeline("p")
    pipeline.source("t", type=dict).key_by("n").agg(n=agg.count()).to("out")
    pipeline.run(store, until="end")
    (name,) = [table.name for table in state_tables(store)]
    assert rows(store, f'select count(*) from state."{name}"') == [(1000,)]


WRITER = """
import sys, millstream
with millstream.open(sys.argv[1], durability="os") as store:
    for n in range(20000):
        store.append_many("t", [b'{"n":1}'] * 10, partition=0)
        if n == 0:
            print("up", flush=True)
"""


INTERRUPTED = """
import sys
from millstream.arrow_tables import ArrowTable
from millstream.cli.main import main
scanner = ArrowTable.scanner
def begun(*arguments, **options):
    print("up", flush=True)  # DuckDB has come to the topic
    return scanner(*arguments, **options)
ArrowTable.scanner = begun
text = "select count(*) from t, range(100000000000) r where partition % 7 = r.range % 3"
sys.exit(main(["query", text, "--dir", sys.argv[1]]))
"""


def test_another_process_may_write(store: millstream.Store, tmp_path: Path) -> None:
    store.close()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with millstream.open(tmp_path / "store", read_only=True) as seen:
            counts = [
                rows(seen, "select count(*), count(distinct (partition, t.offset)) from t")[0]
                for _ in range(3)
            ]
            pair = rows(seen, "select (select count(value) from t), (select count(key) from t)")
    finally:
        child.kill()
        child.communicate()
    assert all(every == distinct for every, distinct in counts)
    assert counts == sorted(counts)
    assert counts[0][0] >= 2010
    assert pair[0][0] > 2000
    assert pair[0][1] == 2000


def test_the_command_prints_like_others(
    store: millstream.Store,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = ["--dir", str(tmp_path / "store"), "--output", "csv"]
    assert main(["query", "select key, key, sum(partition), 1.5 from t group by 1", *place]) == 0
    found = list(csv.reader(io.StringIO(capfd.readouterr().out)))
    assert found[0][:2] == ["key", "key_2"]
    assert sorted(found[1:]) == [
        ["k0", "k0", "334", "1.5"],
        ["k1", "k1", "333", "1.5"],
        ["k2", "k2", "333", "1.5"],
    ]
    assert main(["query", "select a.key from t a, range(100)", *place]) == 0
    assert capfd.readouterr().out.count("\n") == 200_001
    assert main(["query", "select 1 from nope", *place]) == 2
    capfd.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"select 1 as one;\n")))
    assert main(["query", "-", *place]) == 0
    assert capfd.readouterr().out == "one\n1\n"
    assert main(["query", "select [1, 2] as x, {'a': '1'::blob} as y", *place]) == 0
    assert capfd.readouterr().out == 'x,y\n"[1,2]","{""a"":""MQ==""}"\n'
    place[-1] = "jsonl"
    assert main(["query", "select [1, 2] as x, {'a': '1'::blob} as y", *place]) == 0
    assert capfd.readouterr().out == '{"x": [1, 2], "y": {"a": "MQ=="}}\n'


def test_a_query_ends_when_it_is_interrupted(store: millstream.Store, tmp_path: Path) -> None:
    """Also one that works in DuckDB for hours before it has a first row."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "store")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 130, error


def test_an_interrupt_at_any_step_of_asking_ends_the_query(
    store: millstream.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two instructions of ours, up to the one that waits for DuckDB."""
    asks, steps, at, waits = sql.Query._interruptible, 0, 0, False

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal steps, waits
        if frame.f_globals["__name__"] not in {"millstream.sql", "millstream.helpers", "threading"}:
            return None
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        waits = frame.f_code is Helped.wait.__code__
        if steps == at or waits:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    def traced(query: sql.Query, call: Any) -> Any:
        sys.settrace(trace)
        return asks(query, call)

    text = "select count(*) from t, range(100000000000) r where partition % 7 = r.range % 3"
    monkeypatch.setattr(sql.Query, "_interruptible", traced)
    while not waits:
        steps, at = 0, at + 1
        with pytest.raises(KeyboardInterrupt):
            sql.query(store, text)
    assert at > 10
    monkeypatch.undo()
    assert rows(store, "select count(*) from t") == [(2000,)]


def test_many_topics_are_not_all_named() -> None:
    with millstream.open() as store:
        for number in range(25):
            store.create_topic(f"t-{number:02}")
        with pytest.raises(UsageError, match=r'"t-00", .*"t-19" and 5 more$'):
            rows(store, "select 1 from nope")


@pytest.mark.parametrize("package", ["duckdb", "numpy"])
def test_without_the_extra_the_error_says_what_to_install(
    store: millstream.Store, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: object, **named: object) -> object:
        if name == package:
            raise ImportError(name=name)
        return real(name, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        MissingExtraError, match=rf"package {package}: pip install 'millstream\[sql\]'"
    ):
        sql.query(store, "select 1")


def test_a_column_that_is_a_word_of_sql_is_told_how_to_write_it(store: millstream.Store) -> None:
    store.create_topic("timed", schema=pyarrow.schema([("at", pyarrow.int64())]))
    store.append_columns("timed", {"at": [7]})
    with pytest.raises(UsageError, match=r'AT is a word of SQL: write the column as t\.at or "at"'):
        sql.query(store, "select max(at) from timed")
    assert [(7,)] == list(sql.query(store, "select max(t.at) from timed t").rows())


@pytest.mark.parametrize(
    "text",
    [
        "select user from t",
        "select upper(user) as u from t",
        "select count(*) from t group by user",
        "select key from t where user = 'ann'",
    ],
)
def test_user_is_no_field_of_json_by_itself(store: millstream.Store, text: str) -> None:
    """To DuckDB it is a function: each row had the value "duckdb"."""
    with pytest.raises(UsageError, match=r"^user is a word of SQL: .*t\.user .*value->>'\$\.user'"):
        rows(store, text)


def test_user_is_a_column_where_there_is_one(store: millstream.Store) -> None:
    store.create_topic("users", schema=pyarrow.schema([("user", pyarrow.string())]))
    store.append_columns("users", {"user": ["ann"]})
    assert [("ann", "ann")] == rows(store, "select user, u.user from users u where user > ''")
    assert [(1,)] == rows(store, "with t as (select 1 as user) select user from t")


@pytest.mark.parametrize(
    "text", ["describe declared", 'DESC\tmain."Declared" ; ', 'describe main . "declared"']
)
def test_describe_says_which_columns_may_be_null(store: millstream.Store, text: str) -> None:
    fields = [pyarrow.field("n", pyarrow.int64(), nullable=False), ("text", pyarrow.string())]
    store.create_topic("declared", schema=pyarrow.schema(fields))
    found = {row[0]: row[1:3] for row in rows(store, text)}
    assert {
        "n": ("BIGINT", "NO"),
        "text": ("VARCHAR", "YES"),
        "_offset": ("BIGINT", "NO"),
        "_partition": ("INTEGER", "NO"),
        "_timestamp_ms": ("BIGINT", "NO"),
        "_key": ("BLOB", "YES"),
    } == found


def test_describe_of_what_has_no_schema_is_as_exact(store: millstream.Store) -> None:
    for table in ("t", "bytes.t"):
        found = {row[0]: row[2] for row in rows(store, f"describe {table}")}
        assert {"key", "value"} == {name for name, may in found.items() if may == "YES"}
    assert [("x", "INTEGER", "YES")] == [row[:3] for row in rows(store, "describe select 1 as x")]


def test_intervals_are_printed_as_sql_reads_them(
    store: millstream.Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They were lists of months, days and nanoseconds."""
    text = """
        select i, i::varchar as text, [i] as list, {'i': i} as struct
        from (select (a || ' months')::interval + (b || ' days')::interval + c::interval as i
              from (values (0), (1), (-1), (14), (-26)) as m(a), (values (0), (1), (-3)) as d(b),
                   (values ('0s'), ('1.5s'), ('-0.25s'), ('100:01:02'), ('-1 microsecond')) as s(c))
    """
    place = ["--dir", str(tmp_path / "store"), "--output"]
    assert main(["query", text, *place, "jsonl"]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert 5 * 3 * 5 == len(found)
    for row in found:
        assert row["text"] == row["i"] == row["struct"]["i"]
        assert [row["i"]] == row["list"]
    assert main(["query", "select interval 14 months as i, [i] as list", *place, "csv"]) == 0
    assert 'i,list\n1 year 2 months,"[""1 year 2 months""]"\n' == capfd.readouterr().out


def test_json_has_no_numbers_that_are_none(
    store: millstream.Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`NaN` is no JSON, and most readers refuse it."""
    text = "select 'nan'::double as x, ['inf'::float, 1.5] as list, {'x': '-inf'::double} as s"
    place = ["--dir", str(tmp_path / "store"), "--output"]
    assert main(["query", text, *place, "jsonl"]) == 0
    assert '{"x": null, "list": [null, 1.5], "s": {"x": null}}\n' == capfd.readouterr().out
    assert main(["query", text, *place, "csv"]) == 0
    assert 'x,list,s\nnan,"[null,1.5]","{""x"":null}"\n' == capfd.readouterr().out
