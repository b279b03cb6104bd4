"""A replay held against what sinks outside the store have: files, tables, and sinks of others."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import millstream
from millstream import ConnectorError, Record, Store
from millstream.processor import (
    Deliverer,
    NotComparable,
    Pipeline,
    RefusedRecords,
    Replay,
    Replayed,
    Retry,
    Sink,
    SinkComparison,
    SinkDifference,
    keep_checkpoint,
    to_callable,
    to_csv,
    to_jsonl,
    to_sqlite,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("in")
        yield store


def pipeline(path: Path) -> Pipeline:
    """Rows into files of three kinds, a table, and counts into another."""
    made = Pipeline("p")
    rows = made.source("in")
    rows.to(to_jsonl(f"{path}/lines"))
    rows.to(to_jsonl(f"{path}/days", folders=["k"]))
    rows.to(to_csv(f"{path}/csv", ["k", "n", "note"]))
    rows.to(to_sqlite(f"{path}/app.db", "rows"))
    table = rows.key_by("k").map(lambda row: {"k": row["k"], "n": row["n"]})
    table.to(to_sqlite(f"{path}/app.db", "latest", mode="upsert", key=["k"]))
    return made


def feed(store: Store, path: Path, start: int, stop: int) -> None:
    """Rows, a few of them in each of some deliveries."""
    for first in range(start, stop, 5):
        numbers = range(first, min(first + 5, stop))
        values = [b'{"k":"k%d","n":%d,"note":"a\\nb \\"%d"}' % (n % 3, n, n) for n in numbers]
        store.append_many("in", values)
        pipeline(path).run(store, until="end")


def compared(found: Replay) -> dict[str, SinkComparison]:
    return {each.sink: each for each in found.sinks}


def differing(found: Replay) -> dict[str, SinkDifference]:
    return {each.sink: each.difference for each in found.sinks if each.difference is not None}


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute(sql).rowcount == 1
        database.commit()


def test_files_and_tables_that_nobody_touched_are_what_a_replay_gives(
    store: Store, tmp_path: Path
) -> None:
    feed(store, tmp_path, 0, 20)
    epoch = keep_checkpoint(store, "p")
    feed(store, tmp_path, 20, 30)
    whole, since = pipeline(tmp_path).verify(store), pipeline(tmp_path).verify(store, since=epoch)
    assert whole.ok, whole.differences
    assert since.ok, since.differences
    names = {"lines", "days", "csv", "rows", "latest"}
    assert dict.fromkeys(names, (30, None, None)) == {
        each.sink: (each.records_compared, each.difference, each.skipped) for each in whole.sinks
    }
    assert dict.fromkeys(names, 10) == {each.sink: each.records_compared for each in since.sinks}
    assert [] == whole.skipped


@pytest.mark.parametrize("kept", [False, True])
def test_every_byte_that_is_changed_in_a_file_is_found(
    store: Store, tmp_path: Path, *, kept: bool
) -> None:
    feed(store, tmp_path, 0, 5)
    since = keep_checkpoint(store, "p") if kept else None
    feed(store, tmp_path, 5, 10)
    for directory in ("lines", "days", "csv"):
        path = max((tmp_path / directory).rglob("*0005-*"))
        good = path.read_bytes()
        for position in range(0, len(good), 3):
            path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            found = pipeline(tmp_path).verify(store, since=since)
            assert not found.ok, (directory, position)
            (difference,) = differing(found).values()
            line = good[:position].count(b"\n") + 1
            assert f"{path}, line {line}" == difference.place, position
        path.write_bytes(good)
    assert pipeline(tmp_path).verify(store, since=since).ok


def test_a_difference_in_a_file_says_what_is_there_and_what_a_replay_gives(
    store: Store, tmp_path: Path
) -> None:
    feed(store, tmp_path, 0, 10)
    path = sorted((tmp_path / "lines").iterdir())[1]
    path.write_bytes(path.read_bytes().replace(b'"n":7', b'"n":8'))
    assert {
        "lines": SinkDifference(
            f"{path}, line 3",
            expected=r'{"k":"k1","n":7,"note":"a\nb \"7"}',
            found=r'{"k":"k1","n":8,"note":"a\nb \"7"}',
        )
    } == differing(pipeline(tmp_path).verify(store))


def in_one(files: list[Path]) -> None:
    """The last two once more, as if they were one delivery."""
    last, before = files[-1].name, files[-2].name
    name = before.rpartition("-")[0] + "-" + last.rpartition("-")[2]
    files[-1].with_name(name).write_bytes(files[-2].read_bytes() + files[-1].read_bytes())


DAMAGE: dict[str, Callable[[list[Path]], object]] = {
    "the last is missing": lambda files: files[-1].unlink(),
    "one is missing": lambda files: files[-2].unlink(),
    "empty": lambda files: files[-1].write_bytes(b""),
    "torn": lambda files: files[-1].write_bytes(files[-1].read_bytes()[:-1]),
    "a line less": lambda files: files[-1].write_bytes(b"".join(lines_of(files[-1])[:-1])),
    "a line less in the middle": lambda files: files[-2].write_bytes(
        b"".join(lines_of(files[-2])[:-1])
    ),
    "twice": lambda files: files[-1].write_bytes(files[-1].read_bytes() * 2),
    "an empty line": lambda files: files[-1].write_bytes(files[-1].read_bytes() + b"\n"),
    "another": lambda files: files[-2].write_bytes(files[-1].read_bytes()),
    "both in one, too": in_one,
    "renamed": lambda files: files[-1].rename(f"{files[-1]}.done"),
}


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_are_missing_cut_doubled_or_too_many_are_found(
    store: Store, tmp_path: Path, damage: str, *, kept: bool
) -> None:
    feed(store, tmp_path, 0, 5)
    since = keep_checkpoint(store, "p") if kept else None
    feed(store, tmp_path, 5, 20)
    for directory in ("lines", "csv"):
        files = sorted((tmp_path / directory).iterdir())
        contents = {path: path.read_bytes() for path in files}
        DAMAGE[damage](files)
        found = differing(pipeline(tmp_path).verify(store, since=since))
        assert [directory] == list(found)
        if damage == "both in one, too":
            assert "offsets 10 to 20 once more" == found[directory].found
        for path in (tmp_path / directory).iterdir():
            path.unlink()
        for path, content in contents.items():
            path.write_bytes(content)
    assert pipeline(tmp_path).verify(store, since=since).ok


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("sql", "sink", "difference"),
    [
        ("UPDATE rows SET n = 77 WHERE n = 7", "rows", ("rowid 8, column 'n'", "7", "77")),
        ("UPDATE rows SET n = 7.0 WHERE n = 7", "rows", ("rowid 8, column 'n'", "7", "7.0")),
        ("UPDATE rows SET n = NULL WHERE n = 7", "rows", ("rowid 8, column 'n'", "7", "NULL")),
        ("DELETE FROM rows WHERE n = 9", "rows", ("", "k='k0', n=9, note='a\nb \"9'", None)),
        ("UPDATE latest SET n = 3 WHERE k = 'k1'", "latest", ("k='k1', column 'n'", "7", "3")),
        ("DELETE FROM latest WHERE k = 'k1'", "latest", ("k='k1'", "k='k1', n=7", None)),
        ("UPDATE latest SET k = 'k9' WHERE k = 'k2'", "latest", ("k='k2'", "k='k2', n=8", None)),
        ("INSERT INTO rows SELECT * FROM rows WHERE n = 7", "rows", None),
        ("INSERT INTO latest VALUES ('new', 1)", "latest", None),
    ],
)
def test_rows_that_were_changed_removed_or_added_are_found(
    store: Store,
    tmp_path: Path,
    sql: str,
    sink: str,
    difference: tuple[str, str, str | None] | None,
    *,
    kept: bool,
) -> None:
    feed(store, tmp_path, 0, 5)
    since = keep_checkpoint(store, "p") if kept else None
    feed(store, tmp_path, 5, 10)
    change(tmp_path / "app.db", sql)
    found = differing(pipeline(tmp_path).verify(store, since=since))
    if difference is None:  # what was there before the checkpoint is not known
        assert ([] if kept else [sink]) == list(found)
        return
    place, expected, there = difference
    place = f"{tmp_path}/app.db, table {sink!r}" + (f", {place}" if place else "")
    assert {sink: SinkDifference(place, expected, there)} == found


def test_a_database_that_is_gone_or_older_is_a_difference(store: Store, tmp_path: Path) -> None:
    feed(store, tmp_path, 0, 5)
    older = (tmp_path / "app.db").read_bytes()
    feed(store, tmp_path, 5, 10)
    (tmp_path / "app.db").write_bytes(older)
    found = differing(pipeline(tmp_path).verify(store))
    assert ["rows", "latest"] == list(found)
    assert "offset 5" in str(found["rows"])
    (tmp_path / "app.db").unlink()
    found = differing(pipeline(tmp_path).verify(store))
    assert ["rows", "latest"] == list(found)
    assert "there is no database" in str(found["rows"])


class Failing(Sink):
    """Stands for a sink that cannot be reached."""

    delivery = "idempotent"

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, outbox: str) -> Failing:
        return self

    def position(self) -> None:
        return None

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        raise OSError("not reachable")

    def close(self) -> None:
        pass


def one_sink(sink: Sink, **options: Any) -> Pipeline:
    made = Pipeline("one")
    made.source("in").to(sink, **options)
    return made


def fail(store: Store, name: str, numbers: Sequence[int]) -> None:
    """Some rows, which wait in the outbox."""
    store.append_many("in", [b'{"k":"k%d","n":%d}' % (n % 2, n) for n in numbers])
    with pytest.raises(ConnectorError):
        one_sink(Failing(name), retry=Retry(attempts=1)).run(store, until="end")


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("folders", [[], ["k"]])
def test_a_checkpoint_in_the_middle_of_a_file_is_found_in_it(
    store: Store, tmp_path: Path, folders: list[str], *, gap: bool
) -> None:
    fail(store, "out", [0])  # the delivery that has been begun ends here
    fail(store, "out", [1, 2, 2])
    epoch = keep_checkpoint(store, "one")
    if gap:
        with contextlib.suppress(KeyError), store.transaction() as transaction:
            transaction.append_many("@sink/one/out", [b"1", b"2"])
            raise KeyError
    fail(store, "out", [3, 4, 4])
    made = one_sink(to_jsonl(f"{tmp_path}/out", folders=folders))
    made.run(store, until="end")
    made.run(store, until="end")
    assert 2 == len({path.name for path in (tmp_path / "out").rglob("*.jsonl")})
    (found,) = made.verify(store, since=epoch).sinks
    assert ("out", 3, None, None) == (
        found.sink,
        found.records_compared,
        found.difference,
        found.skipped,
    )
    (path, *_) = sorted((tmp_path / "out").rglob("*0001-*"))
    good = path.read_bytes()
    for number in (1, 2, 3, 4):
        before, line, after = good.rpartition(b'"n":%d' % number)
        if not line:
            continue  # in the other folder
        path.write_bytes(before + b'"n":9' + after)
        assert (number > 2) == bool(differing(made.verify(store, since=epoch))), number
        assert ["out"] == list(differing(made.verify(store)))
    path.write_bytes(good)


@pytest.mark.parametrize("kind", ["lines", "rows"])
def test_what_was_not_delivered_yet_is_compared_in_the_outbox(
    store: Store, tmp_path: Path, kind: str
) -> None:
    sink: Sink = (
        to_jsonl(f"{tmp_path}/out") if kind == "lines" else to_sqlite(f"{tmp_path}/out.db", "out")
    )
    store.append_many("in", [b'{"k":"k","n":1}', b'{"k":"k","n":2}'])
    one_sink(sink).run(store, until="end")
    fail(store, "out", [3, 4, 5])
    (found,) = one_sink(sink).verify(store).sinks
    assert (5, None, None) == (found.records_compared, found.difference, found.skipped)
    store.append("@sink/one/out", b'{"k":"k","n":6}')  # of nobody: behind what was committed
    assert one_sink(sink).verify(store).ok

    changed = Pipeline("one")
    changed.source("in").map(lambda row: row | {"n": row["n"] % 5}).to(sink)
    (found,) = changed.verify(store).sinks
    assert found.difference is not None
    assert found.difference.place == "@sink/one/out, offset 4"
    assert changed.verify(store, start=5).ok


def test_records_that_a_sink_refused_are_not_expected_there(store: Store, tmp_path: Path) -> None:
    made = Pipeline("refused")
    rows = made.source("in")
    rows.to(to_csv(f"{tmp_path}/csv", ["n"]), dead_letters="bad.csv")
    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        database.execute("CREATE TABLE t (n INTEGER UNIQUE CHECK (n < 8))")
    rows.to(to_sqlite(f"{tmp_path}/app.db", "t"), dead_letters="bad.rows")
    for values in ([1, 2, 9], [2, 3, 1], [4]):
        store.append_many("in", [b'{"n":%d}' % n for n in values] + [b'{"m":0}'])
        made.run(store, until="end")
    epoch = keep_checkpoint(store, "refused")
    store.append_many("in", [b'{"n":5}', b'{"n":1}', b'{"n":6}'])
    made.run(store, until="end")
    for since, count in ((None, (10, 6)), (epoch, (3, 2))):
        found = made.verify(store, since=since)
        assert found.ok, found.sinks
        assert count == tuple(each.records_compared for each in found.sinks)
    change(tmp_path / "app.db", "DELETE FROM t WHERE n = 6")
    for since in (None, epoch):
        assert {"t"} == set(differing(made.verify(store, since=since)))


def test_rows_that_tombstones_delete_must_be_gone(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        database.execute("CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY, n REAL, own)")
    made = Pipeline("deletes")
    table = made.table("in")
    table.to(to_sqlite(f"{tmp_path}/app.db", "t", mode="upsert", key=["k"]))
    store.append("in", b'{"k":"a","n":1}', key=b"a")
    store.append("in", b'{"k":"b","n":2}', key=b"b")
    store.append("in", b'{"k":"c","n":3}', key=b"c")
    made.run(store, until="end")
    epoch = keep_checkpoint(store, "deletes")
    store.append("in", None, key=b"a")
    store.append("in", None, key=b"b")
    store.append("in", b'{"k":"b","n":4}', key=b"b")
    made.run(store, until="end")
    change(tmp_path / "app.db", "UPDATE t SET own = 'mine' WHERE k = 'b'")
    assert [("b", 4.0, "mine"), ("c", 3.0, None)] == query(tmp_path, "SELECT * FROM t ORDER BY k")
    for since in (None, epoch):
        found = made.verify(store, since=since)
        assert found.ok, found.sinks
    change(tmp_path / "app.db", "INSERT INTO t VALUES ('a', 1, NULL)")
    for since in (None, epoch):
        assert {"t"} == set(differing(made.verify(store, since=since)))
    change(tmp_path / "app.db", "DELETE FROM t WHERE k = 'a'")
    change(tmp_path / "app.db", "UPDATE t SET k = 'B' WHERE k = 'b'")
    for since in (None, epoch):
        assert {"t"} == set(differing(made.verify(store, since=since)))


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path / "app.db")) as database:
        return database.execute(sql).fetchall()


def test_results_of_later_input_alone_are_compared(store: Store, tmp_path: Path) -> None:
    feed(store, tmp_path, 0, 20)
    change(tmp_path / "app.db", "UPDATE rows SET n = 99 WHERE n = 3")
    (path, *_) = sorted((tmp_path / "lines").iterdir())
    path.write_bytes(path.read_bytes().replace(b'"n":3', b'"n":4'))
    assert {"lines", "rows"} == set(differing(pipeline(tmp_path).verify(store)))
    for start, count in ((4, 16), (15, 5), (20, 0)):
        found = pipeline(tmp_path).verify(store, start=start)
        assert {} == differing(found)
        assert {count} == {each.records_compared for each in found.sinks}
    change(tmp_path / "app.db", "UPDATE rows SET n = 99 WHERE n = 16")
    path = max((tmp_path / "lines").iterdir())
    path.write_bytes(path.read_bytes().replace(b'"n":16', b'"n":17'))
    for start in (4, 15, 16):
        assert {"lines", "rows"} == set(differing(pipeline(tmp_path).verify(store, start=start)))
    assert {} == differing(pipeline(tmp_path).verify(store, start=17))


def while_replayed(store: Store, sink: Sink, happens: Callable[[], object]) -> SinkComparison:
    """What comes of a comparison while something happens."""
    events = iter([happens])

    def once(row: dict[str, Any]) -> dict[str, Any]:
        for event in events:
            event()
        return row

    made = Pipeline("one")
    made.source("in").map(once).to(sink)
    (found,) = made.verify(store).sinks
    return found


def test_a_pipeline_may_go_on_delivering_while_it_is_verified(store: Store, tmp_path: Path) -> None:
    sink = to_sqlite(f"{tmp_path}/app.db", "out", mode="upsert", key=["k"])
    fail(store, "out", [0, 1])
    fail(store, "out", [2])
    with Deliverer(store, "one", sink) as deliverer:
        deliverer.pump()

        def go_on() -> None:
            store.append_many("@sink/one/out", [b'{"k":"k0","n":%d}' % n for n in (4, 6)])
            deliverer.drain()

        found = while_replayed(store, sink, go_on)
        assert [("k0", 6), ("k1", 1)] == query(tmp_path, "SELECT k, n FROM out ORDER BY k")
        assert (None, None, 5) == (found.difference, found.skipped, found.records_compared)
        change(tmp_path / "app.db", "UPDATE out SET n = 5 WHERE k = 'k0'")
        found = while_replayed(store, sink, lambda: None)
        assert found.difference is not None


@pytest.mark.parametrize("kind", ["files", "table"])
def test_of_what_was_trimmed_while_it_is_verified_files_are_compared_up_to_there(
    store: Store, tmp_path: Path, kind: str
) -> None:
    sink: Sink = to_jsonl(f"{tmp_path}/out")
    if kind == "table":
        sink = to_sqlite(f"{tmp_path}/app.db", "out", mode="upsert", key=["k"])
    fail(store, "out", [0])
    fail(store, "out", [1, 2])
    store.append("in", b'{"k":"k0","n":4}')
    found = while_replayed(store, sink, lambda: one_sink(sink).run(store, until="end"))
    assert found.difference is None
    if kind == "files":
        assert (None, 3) == (found.skipped, found.records_compared)
    else:
        assert found.skipped is not None
        assert "from offset 3 to 4 meanwhile, and the outbox was trimmed" in found.skipped


def test_columns_that_records_do_not_set_are_not_known_from_a_checkpoint_on(
    store: Store, tmp_path: Path
) -> None:
    made = one_sink(to_sqlite(f"{tmp_path}/app.db", "out", mode="upsert", key=["k"]))
    store.append("in", b'{"k":"a","n":1,"m":1}')
    made.run(store, until="end")
    epoch = keep_checkpoint(store, "one")
    store.append_many("in", [b'{"k":"a","n":2}', b'{"k":"b","n":3,"m":4}'])
    made.run(store, until="end")
    assert [("a", 2, 1), ("b", 3, 4)] == query(tmp_path, "SELECT * FROM out ORDER BY k")
    assert made.verify(store, since=epoch).ok
    change(tmp_path / "app.db", "UPDATE out SET n = 0 WHERE k = 'a'")
    assert {"out"} == set(differing(made.verify(store, since=epoch)))


class Ledger(Sink):
    """A sink of somebody else's that can be read back."""

    name = "ledger"
    delivery = "transactional"

    def __init__(self) -> None:
        self.entries: list[bytes | None] = []
        self.stands: int | None = None

    def open(self, outbox: str) -> Ledger:
        return self

    def position(self) -> int | None:
        return self.stands

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        bad = {each.offset: "bad" for each in records if each.value == b'{"n":2}'}
        if bad:
            raise RefusedRecords(bad)
        self.entries += [record.value for record in records]
        self.stands = following

    def close(self) -> None:
        pass


class ComparedLedger(Ledger):
    def compare(self, outbox: str, replayed: Replayed) -> SinkDifference | None:
        if replayed.start:
            raise NotComparable("the ledger is one page")
        given = [record.value for record in replayed.records(self.stands)]
        if given == self.entries:
            return None
        return SinkDifference("the ledger", str(given), str(self.entries))


def test_sinks_of_others_are_compared_if_they_can_be_read_back(store: Store) -> None:
    ledger, blind = ComparedLedger(), Ledger()
    blind.name = "blind"
    made = Pipeline("p")
    rows = made.source("in")
    for sink in (ledger, blind):
        rows.to(sink, dead_letters=f"bad.{sink.name}")
    rows.to(to_callable(lambda _: None, name="function"))
    store.append_many("in", [b'{"n":1}', b'{"n":2}', b'{"n":3}'])
    made.run(store, until="end")
    found = compared(made.verify(store))
    assert (2, None, None) == (
        found["ledger"].records_compared,
        found["ledger"].difference,
        found["ledger"].skipped,
    )
    for name in ("blind", "function"):
        assert found[name].difference is None
        assert found[name].skipped == "what it was given cannot be read back"
    ledger.entries[1] = b"4"
    assert {"ledger"} == set(differing(made.verify(store)))
    epoch = keep_checkpoint(store, "p")
    found = compared(made.verify(store, since=epoch))
    assert "the ledger is one page" == found["ledger"].skipped


def test_a_sink_that_fails_to_compare_is_an_error_that_names_it(store: Store) -> None:
    class Broken(Ledger):
        def compare(self, outbox: str, replayed: Replayed) -> SinkDifference | None:
            raise OSError("no paper")

    made = one_sink(Broken())
    store.append("in", b'{"n":1}')
    made.run(store, until="end")
    with pytest.raises(ConnectorError, match="sink 'ledger' of pipeline 'one' cannot be compared"):
        made.verify(store)


def test_where_dead_letters_are_gone_a_sink_is_not_compared(store: Store, tmp_path: Path) -> None:
    made = one_sink(to_csv(f"{tmp_path}/csv", ["n"]), dead_letters="bad")
    store.append_many("in", [b'{"n":1}', b'{"m":2}'])
    made.run(store, until="end")
    assert made.verify(store).sinks[0].skipped is None
    store.trim("bad", {0: 1})
    (found,) = made.verify(store).sinks
    assert found.skipped is not None
    assert "topic 'bad', up to offset 1" in found.skipped


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE VIRTUAL TABLE out USING fts5 (k, n)",
        "CREATE VIEW out AS SELECT 1 AS k, 2 AS n",
    ],
)
def test_what_is_no_plain_table_is_not_compared(store: Store, tmp_path: Path, sql: str) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        database.execute(sql)
        if "VIEW" in sql:
            database.execute("CREATE TRIGGER t INSTEAD OF INSERT ON out BEGIN SELECT 1; END")
        database.commit()
    made = one_sink(to_sqlite(f"{tmp_path}/app.db", "out"))
    store.append("in", b'{"k":1,"n":2}')
    made.run(store, until="end")
    (found,) = made.verify(store).sinks
    assert found.skipped == f"{tmp_path}/app.db, table 'out' is no plain table"


def test_a_sink_that_has_got_nothing_has_nothing_to_compare(store: Store, tmp_path: Path) -> None:
    made = Pipeline("one")
    made.source("in").filter(lambda row: row["n"] > 1).to(to_sqlite(f"{tmp_path}/app.db", "out"))
    store.append("in", b'{"n":1}')
    made.run(store, until="end")
    (found,) = made.verify(store).sinks
    assert (0, None, None) == (found.records_compared, found.difference, found.skipped)

    changed = Pipeline("one")
    changed.source("in").to(to_sqlite(f"{tmp_path}/app.db", "out"))
    assert {"out"} == set(differing(changed.verify(store)))
