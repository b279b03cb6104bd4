"""A database of the user's: read and written beside the store, and left as it was found."""

from __future__ import annotations

import errno
import gc
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from store_children import finish, spawn

import millstream
from millstream import DataError, StorageError, StoreClosedError, UsageError, UserDatabase


@pytest.fixture
def database(tmp_path: Path) -> UserDatabase:
    database = UserDatabase(tmp_path / "app.db")
    with database.transaction("make a table"):
        database.query("CREATE TABLE t (a INTEGER PRIMARY KEY, b REAL NOT NULL, c, UNIQUE (b, c))")
    return database


def test_rows_of_all_types_come_back(database: UserDatabase) -> None:
    rows = [(1, 0.5, "x"), (2, 1.0, b"\x00"), (3, 2.0, None)]
    with database.transaction("write"):
        database.execute_many("INSERT INTO t VALUES (?, ?, ?)", rows)

    assert rows == database.query("SELECT * FROM t ORDER BY a")
    database.close()


def test_columns_and_keys_are_told_as_declared(database: UserDatabase) -> None:
    columns = database.columns("t")

    assert [("a", "INTEGER", False, 1), ("b", "REAL", True, 0), ("c", "", False, 0)] == [
        (column.name, column.type, column.required, column.key_position) for column in columns
    ]
    assert [("a",), ("b", "c")] == database.unique_keys("t")
    assert ([], []) == (database.columns("missing"), database.unique_keys("missing"))
    database.close()


def test_an_index_of_some_rows_or_of_an_expression_makes_no_row_unique(
    database: UserDatabase,
) -> None:
    with database.transaction("add indexes"):
        database.query("CREATE UNIQUE INDEX some ON t (c) WHERE c IS NOT NULL")
        database.query("CREATE UNIQUE INDEX expression ON t (abs(b))")

    assert [("a",), ("b", "c")] == database.unique_keys("t")
    database.close()


def test_a_transaction_that_raises_leaves_nothing(database: UserDatabase) -> None:
    with pytest.raises(DataError, match=r"refuses the row.*UNIQUE"), database.transaction("write"):
        database.execute_many("INSERT INTO t VALUES (?, ?, ?)", [(1, 1.0, 1), (1, 2.0, 2)])

    assert [] == database.query("SELECT * FROM t")
    database.close()


def test_a_savepoint_that_raises_leaves_the_rest_of_the_transaction(
    database: UserDatabase,
) -> None:
    with database.transaction("write"):
        database.query("INSERT INTO t VALUES (1, 1.0, 1)")
        with pytest.raises(DataError), database.savepoint():
            database.execute_many("INSERT INTO t VALUES (?, ?, ?)", [(2, 2.0, 2), (2, 3.0, 3)])
        database.query("INSERT INTO t VALUES (3, 3.0, 3)")

    assert [(1,), (3,)] == database.query("SELECT a FROM t ORDER BY a")
    database.close()


def test_a_wrong_statement_is_the_callers_mistake_and_no_damage(database: UserDatabase) -> None:
    with pytest.raises(UsageError, match="no such column: missing") as caught:
        database.query("SELECT missing FROM t")

    assert caught.value.path == database.filename
    database.close()


@pytest.mark.parametrize("sql", [None, b"SELECT ?", "SELECT ? -- \0", "SELECT ?, '\ud800'"])
def test_what_is_no_statement_is_the_callers_mistake_too(database: UserDatabase, sql: Any) -> None:
    for call in (database.query, lambda sql, row: database.execute_many(sql, [row])):
        with pytest.raises(UsageError, match="a str without NUL"):
            call(sql, (1,))
    database.close()


@pytest.mark.parametrize("row", [(object(),), (1 << 70,), ("\ud800",), 5])
def test_what_is_no_value_of_sqlite_is_the_callers_mistake_too(
    database: UserDatabase, row: Any
) -> None:
    for call in (database.query, lambda sql, row: database.execute_many(sql, [row])):
        with pytest.raises(UsageError, match="values are"):
            call("SELECT ?", row)
    database.close()


def test_a_file_that_is_no_database_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    path.write_bytes(b"no database" * 1000)

    with pytest.raises(DataError, match="the database is damaged"):
        UserDatabase(path).query("SELECT 1 FROM sqlite_schema")


def test_what_is_missing_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no database here"):
        UserDatabase(tmp_path / "missing.db", read_only=True)
    with pytest.raises(StorageError, match="the database cannot be opened") as caught:
        UserDatabase(tmp_path / "missing" / "app.db")

    assert errno.ENOENT == caught.value.errno


def test_a_closed_one_and_a_read_only_one_say_so(database: UserDatabase) -> None:
    with (
        UserDatabase(database.filename, read_only=True) as view,
        pytest.raises(UsageError, match="the database is open read-only: cannot write"),
        view.transaction("write"),
    ):
        pass
    database.close()
    with pytest.raises(StoreClosedError, match="the database is closed"):
        database.query("SELECT 1")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_the_journal_stays_as_it_was(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as users:
        users.execute(f"PRAGMA journal_mode = {mode}")
        users.execute("CREATE TABLE t (a)")
    with UserDatabase(path) as database, database.transaction("write"):
        database.query("INSERT INTO t VALUES (1)")
    with closing(sqlite3.connect(path)) as users:
        assert [(mode,)] == users.execute("PRAGMA journal_mode").fetchall()
        assert [(1,)] == users.execute("SELECT * FROM t").fetchall()


def test_a_store_has_an_identity_that_its_copies_share(tmp_path: Path) -> None:
    with millstream.open(tmp_path / "a") as store, millstream.open(tmp_path / "b") as other:
        uid = store.uid
        assert uid != other.uid
    with millstream.open(tmp_path / "a") as store:
        assert uid == store.uid
        assert 16 == len(bytes.fromhex(uid))


def test_nothing_of_python_runs_when_a_database_is_dropped() -> None:
    """A Ctrl-C that came there would be lost."""
    called: list[str] = []
    gc.collect()  # so that what is collected below is of this test alone
    gc.disable()
    callbacks = gc.callbacks[:]  # of Hypothesis, say
    gc.callbacks.clear()
    try:
        database = UserDatabase(":memory:")
        sys.setprofile(lambda frame, event, _: called.append(f"{event} {frame.f_code.co_name}"))
        del database
        gc.collect(0)
    finally:
        sys.setprofile(None)
        gc.callbacks[:] = callbacks
        gc.enable()
    assert [] == [each for each in called if each.startswith("call ")]


@pytest.mark.crash
def test_a_child_that_leaves_the_blocks_of_its_parent_ends_nothing_in_them(tmp_path: Path) -> None:
    """Above all it removes no journal of a database, which the parent needs after a crash."""
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t")
        store.append("t", b"first")
    with spawn("leave_in_child", path) as child:
        assert b"7 1 [(1,)]\n" == finish(child)
    with millstream.open(path) as store:
        assert [b"first", b"with a row"] == [record.value for record in store.read("t")]
        assert [1] == [queue.depth for queue in store.queues("t")]
