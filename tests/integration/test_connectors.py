"""Pipelines from sources outside the store to sinks outside it."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import millstream
from millstream import (
    ConnectorError,
    LockedError,
    OffsetOutOfRangeError,
    Record,
    RecordError,
    Store,
    UnknownTopicError,
    UsageError,
)
from millstream.processor import (
    Metrics,
    Pipeline,
    Retry,
    SourceRecord,
    agg,
    csv_files,
    from_iterable,
    jsonl_files,
    sink_lag,
    sqlite_rows,
    to_callable,
    to_csv,
    to_jsonl,
    to_sqlite,
    to_stdout,
    tumbling,
)
from millstream.testing import ManualClock


class Order(msgspec.Struct):
    user: str
    n: int
    ts: int


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with millstream.open(tmp_path / "store", durability="os") as store:
        yield store


def write_lines(path: Path, rows: list[Any], mode: str = "a") -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open(mode) as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def orders(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"user": f"u{number % 3}", "n": number, "ts": number * 100}
        for number in range(start, start + count)
    ]


def table(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


def lines(directory: Path) -> list[Any]:
    content = "".join(path.read_text() for path in sorted(directory.iterdir()))
    return [json.loads(line) for line in content.splitlines()]


def totals(tmp_path: Path, *, name: str = "totals") -> Pipeline:
    """From files into a database, by way of windows."""
    pipeline = Pipeline(name)
    rows = pipeline.source(jsonl_files(f"{tmp_path}/in/*.jsonl", name="in"), type=Order, time="ts")
    windows = rows.key_by("user").window(tumbling(1000)).agg(n=agg.count(), total=agg.sum("n"))
    windows.to(
        to_sqlite(f"{tmp_path}/app.db", "totals", mode="upsert", key=["key", "window_start"])
    )
    windows.to(to_jsonl(f"{tmp_path}/out", name="files"))
    return pipeline


def expected(count: int) -> list[tuple[str, int, int, int, int]]:
    found: dict[tuple[int, str], list[int]] = {}
    for order in orders(count):
        found.setdefault((order["ts"] // 1000, order["user"]), []).append(order["n"])
    return [
        (user, window * 1000, window * 1000 + 1000, len(numbers), sum(numbers))
        for (window, user), numbers in sorted(found.items())
    ]


def test_files_go_through_windows_into_a_database_and_files(store: Store, tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "1.jsonl", orders(50))
    metrics = totals(tmp_path).run(store, until="end")
    assert ({"in": 50}, {"totals": 0, "files": 0}) == (metrics.taken_in, metrics.sink_lag)
    write_lines(tmp_path / "in" / "1.jsonl", orders(30, 50))
    write_lines(tmp_path / "in" / "2.jsonl", orders(20, 80))
    totals(tmp_path).run(store, until="end", on_end="flush")

    assert expected(100) == table(
        tmp_path / "app.db", "SELECT * FROM totals ORDER BY window_start, key"
    )
    assert expected(100) == [tuple(line.values()) for line in lines(tmp_path / "out")]
    assert 0 == sink_lag(store, "totals", "totals")
    assert store.topics() == []
    assert totals(tmp_path).verify(store).ok


def test_what_cannot_be_decoded_stops_before_it_is_in_the_log(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "in" / "1.jsonl"
    write_lines(path, [*orders(3), '{"user": "u1"}\n'])
    pipeline = totals(tmp_path)
    with pytest.raises(
        RecordError, match=r"missing required field `n` \(file .*1\.jsonl, line 4\)"
    ):
        pipeline.run(store, until="end")
    write_lines(path, orders(4), "w")  # mended

    pipeline.run(store, until="end", on_end="flush")
    assert expected(4) == table(tmp_path / "app.db", "SELECT * FROM totals ORDER BY 2, 1")


def test_dead_letters_of_a_source_say_file_and_line(store: Store, tmp_path: Path) -> None:
    csv = tmp_path / "in.csv"
    csv.write_text("user,n,ts\na,1,5\nb,x,6\nc\nd,4,-\ne,5,9\n")
    pipeline = Pipeline("p")
    source = csv_files(str(csv), types={"n": int, "ts": int}, name="csv")
    rows = pipeline.source(source, type=Order, time="ts")
    rows.map(lambda order: order.n).to("numbers")
    rows.dead_letters.to("bad")
    metrics = pipeline.run(store, until="end")
    dead = list(store.read("bad"))

    assert [b"1", b"5"] == [record.value for record in store.read("numbers")]
    assert [b"b,x,6", b"c", b"d,4,-"] == [record.value for record in dead]
    assert [b"3", b"4", b"5"] == [dict(record.headers)["line"] for record in dead]
    assert (
        f"source csv: column 'n': 'x' is not an integer (file {csv}, line 3)".encode()
        == dict(dead[0].headers)["error"]
    )
    assert 3 == metrics.dead_letters
    assert pipeline.verify(store).ok


def test_rows_of_a_database_are_a_table_that_csv_gets(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        database.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, user, city)")
        database.execute("INSERT INTO users (user, city) VALUES ('u0', 'Bern'), ('u1', 'Uri')")
        database.commit()
    pipeline = Pipeline("cities")
    users = pipeline.table(sqlite_rows(f"{tmp_path}/app.db", "users"), key="user")
    users.to(to_csv(f"{tmp_path}/out", ["user", "city", "id"]))
    pipeline.run(store, until="end")

    (path,) = (tmp_path / "out").iterdir()
    assert path.read_text() == "user,city,id\nu0,Bern,1\nu1,Uri,2\n"


def test_event_time_of_an_iterable_may_be_that_of_its_records(store: Store) -> None:
    pipeline = Pipeline("p")
    items = [SourceRecord("a", timestamp_ms=number) for number in (1, 2, 15)]
    rows = pipeline.source(from_iterable(items, name="in"), type=str)
    rows.key_by(str).window(tumbling(10)).agg(n=agg.count()).to("out")
    pipeline.run(store, until="end", on_end="flush")

    assert [2, 1] == [json.loads(record.value or b"")["n"] for record in store.read("out")]


def test_a_followed_file_is_processed_while_it_grows(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.jsonl"
    stop, seen, written = threading.Event(), [], threading.Semaphore(0)
    pipeline = Pipeline("p")
    rows = pipeline.source(jsonl_files(str(path), follow=True, name="in"), type=int)

    def see(record: Record) -> None:
        seen.append(int(record.value or b""))
        written.release()
        if len(seen) == 5:
            stop.set()

    rows.to(to_callable(see, name="seen"))
    run = threading.Thread(target=lambda: pipeline.run(store, stop=stop, epoch_ms=0))
    run.start()
    try:
        for number in range(5):
            write_lines(path, [number])
            assert written.acquire(timeout=20)
    finally:
        stop.set()
        run.join()

    assert [0, 1, 2, 3, 4] == seen


def test_a_slow_source_keeps_nothing_back(store: Store) -> None:
    """While the second item is waited for, the first has been delivered."""
    seen: list[int] = []

    def slow() -> Iterator[Any]:
        yield 1
        yield None
        assert [1] == seen
        yield 2

    pipeline = Pipeline("p")
    rows = pipeline.source(from_iterable(slow), type=int)
    rows.to(to_callable(lambda record: seen.append(int(record.value or b"")), name="seen"))
    stop = threading.Event()

    def progress(metrics: Metrics) -> None:
        if metrics.records_in == 2:
            stop.set()

    pipeline.run(store, epoch_ms=60_000, stop=stop, on_progress=progress)

    assert [1, 2] == seen


def test_a_sink_that_fails_stops_the_run_and_loses_nothing(store: Store) -> None:
    pipeline = Pipeline("p")
    calls: list[bytes | None] = []
    broken = [True]

    def function(record: Record) -> None:
        if broken and record.value == b"3":
            raise OSError("down")
        calls.append(record.value)

    rows = pipeline.source(from_iterable([1, 2, 3, 4], name="in"), type=int)
    rows.to(to_callable(function), retry=Retry(attempts=2, pause_ms=1))
    rows.to("out")
    with pytest.raises(ConnectorError, match=r"sink 'function' .* failed 2 times.*OSError: down"):
        pipeline.run(store, until="end")
    assert 4 == len(list(store.read("out")))
    broken.clear()
    calls.clear()
    pipeline.run(store, until="end")

    assert [b"1", b"2", b"3", b"4"] == calls
    assert 4 == len(list(store.read("out")))


class CreepingClock(ManualClock):
    """A millisecond goes by whenever somebody asks for the time."""

    def monotonic(self) -> float:
        self.advance(1)
        return super().monotonic()


@pytest.mark.parametrize("pause_ms", range(1, 13))
def test_a_pause_that_ends_while_it_is_asked_for_does_not_end_the_delivery(
    pause_ms: int, tmp_path: Path
) -> None:
    def function(record: Record) -> None:
        raise OSError("down")

    pipeline = Pipeline("p")
    rows = pipeline.source(from_iterable([1], name="in"), type=int)
    rows.to(to_callable(function), retry=Retry(attempts=3, pause_ms=pause_ms))
    with (
        millstream.open(tmp_path / "store", durability="os", clock=CreepingClock()) as store,
        pytest.raises(ConnectorError, match="failed 3 times"),
    ):
        pipeline.run(store, until="end")


def test_refused_records_become_dead_letters(store: Store, tmp_path: Path) -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source(from_iterable([{"a": 1}, {"b": 1}, {"a": 2}], name="in"))
    rows.to(to_sqlite(f"{tmp_path}/app.db", "t"), dead_letters="refused")
    pipeline.run(store, until="end")

    assert [(1,), (2,)] == table(tmp_path / "app.db", "SELECT * FROM t")
    (dead,) = store.read("refused")
    assert {
        "error": b"table 't' has no columns ['b']; it has ['a']",
        "sink": b"t",
    } == dict(dead.headers)


def test_a_run_ends_when_the_last_refused_record_is_a_dead_letter(store: Store) -> None:
    seen: list[bytes | None] = []

    def refuse(record: Record) -> None:
        if record.value in {b"1", b"2"}:
            raise ValueError("no")
        seen.append(record.value)

    pipeline = Pipeline("p")
    rows = pipeline.source(from_iterable([1, 2, 3], name="in"), type=int)
    rows.to(to_callable(refuse), dead_letters="dead", retry=Retry(attempts=2, pause_ms=0))
    metrics = pipeline.run(store, until="end")

    assert ({"refuse": 0}, [b"3"]) == (metrics.sink_lag, seen)
    assert [b"1", b"2"] == [record.value for record in store.read("dead")]


def test_several_streams_share_a_sink(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source(from_iterable([1, 2, 3], name="in"), type=int)
    sink = to_stdout()
    rows.filter(lambda n: n != 2).to(sink)
    rows.filter(lambda n: n > 1).map(lambda n: -n).to(sink)
    pipeline.run(store, until="end")

    assert "1\n-2\n3\n-3\n" == capsys.readouterr().out


def test_a_database_that_was_taken_away_is_noticed(store: Store, tmp_path: Path) -> None:
    items: list[Any] = [{"a": 1}]
    pipeline = Pipeline("p")
    pipeline.source(from_iterable(items, name="in")).to(to_sqlite(f"{tmp_path}/app.db", "t"))
    pipeline.run(store, until="end")
    (tmp_path / "app.db").unlink()
    items.append({"a": 2})

    with pytest.raises(OffsetOutOfRangeError, match=r"sink 't' .* stands at offset 0"):
        pipeline.run(store, until="end")


def test_nothing_is_made_if_a_source_is_missing(store: Store, tmp_path: Path) -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("missing").merge(pipeline.source(from_iterable([], name="in")))
    rows.to(to_sqlite(f"{tmp_path}/app.db", "t"))

    with pytest.raises(UnknownTopicError):
        pipeline.run(store, until="end")
    assert not (tmp_path / "app.db").exists()


def test_a_source_is_free_again_after_a_run_that_failed(store: Store) -> None:
    pipeline = Pipeline("p")
    pipeline.source(from_iterable([1, "x"], name="in"), type=int).to("out")
    for _ in range(2):
        with pytest.raises(RecordError, match="item 2"):
            pipeline.run(store, until="end")
    with store.own("source/p/in"), pytest.raises(LockedError):
        pipeline.run(store, until="end")


# --- declaring and testing ---------------------------------------------------------------------


def test_lists_stand_for_sources_and_sinks_by_name(tmp_path: Path) -> None:
    pipeline = totals(tmp_path)
    output = pipeline.test({"in": orders(20)})

    assert (
        [
            dict(zip(("key", "window_start", "window_end", "n", "total"), row, strict=True))
            for row in expected(20)
        ]
        == output["totals"]
        == output["files"]
    )
    assert "totals" == output.records("totals")[0].topic
    with pytest.raises(UsageError, match=r"it reads \['in'\]"):
        pipeline.test({"out": []})


def test_a_driver_opens_nothing_outside(tmp_path: Path) -> None:
    with totals(tmp_path).driver() as driver:
        driver.send_all("in", orders(20))
        driver.crash()
        driver.restore()
        driver.end()
        rows = driver.rows("totals")

    assert [tuple(row.values()) for row in rows] == expected(20)
    assert [] == list(tmp_path.iterdir())


def test_the_plan_shows_sources_and_sinks_by_name(tmp_path: Path) -> None:
    pipeline = totals(tmp_path)

    assert "source in: Order, time 'ts'" in pipeline.explain()
    assert "[state in.window]" in pipeline.explain()
    assert "to totals, transactional" in pipeline.explain()
    assert "to files, idempotent" in pipeline.explain()


def test_names_are_taken_once() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source(from_iterable([], name="in"))
    pipeline.source("other")
    with pytest.raises(UsageError, match="reads 'in' already"):
        pipeline.source(from_iterable([], name="in"))
    with pytest.raises(UsageError, match="reads a topic 'other'"):
        pipeline.source(from_iterable([], name="other"))
    with pytest.raises(UsageError, match="reads a topic 'in'"):
        pipeline.source("in")
    sink = to_stdout(name="out")
    rows.to(sink).to(sink)
    with pytest.raises(UsageError, match="something else called 'out'"):
        rows.to("out")
    with pytest.raises(UsageError, match="something else called 'out'"):
        rows.to(to_stdout(name="out"))
    with pytest.raises(UsageError, match="with other options than before"):
        rows.to(sink, dead_letters="bad")


def test_what_is_neither_topic_nor_source_nor_sink_is_refused() -> None:
    pipeline = Pipeline("p")
    with pytest.raises(UsageError, match="is neither a topic nor a source"):
        pipeline.source(7)  # type: ignore[call-overload]
    rows = pipeline.source("in")
    with pytest.raises(UsageError, match="is neither a topic nor a sink"):
        rows.to(7)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="are for sinks outside the store"):
        rows.to("out", dead_letters="bad")
    with pytest.raises(UsageError, match="unknown options"):
        rows.to(to_stdout(), retries=3)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="is not a topic name"):
        rows.to(to_stdout(), dead_letters="@x")
    with pytest.raises(UsageError, match="delivery='exactly_once'"):
        rows.to(type("S", (), {"name": "s", "open": print, "delivery": "exactly_once"})())
