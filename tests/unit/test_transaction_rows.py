"""Transactions with rows in a database of the user's: what may be done, and what goes wrong."""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_stores import kill, open_quietly

import millstream
from millstream import (
    DataError,
    LockedError,
    RecordError,
    StorageError,
    Store,
    TopicPartition,
    UndecidedError,
    UsageError,
    UserDatabase,
)
from millstream.owner_catalog import OwnerCatalog
from millstream.sql_values import SQLValue
from millstream.testing import MemoryStorage
from millstream.transaction_states import transaction_id

T0 = TopicPartition("t", 0)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    with open_quietly(storage) as store:
        store.create_topic("t")
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "my.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY)")
    return path


def numbers(path: Path) -> list[SQLValue]:
    # Not with sqlite3: two SQLite libraries in one process do not see each other's locks.
    with UserDatabase(path, read_only=True) as database:
        return [number for (number,) in database.query("SELECT number FROM rows")]


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


def write(store: Store, path: Path, number: int) -> None:
    with store.transaction(database=path) as transaction:
        transaction.append("t", b"%d" % number)
        transaction.execute("INSERT INTO rows VALUES (?)", (number,))


def test_rows_records_and_offsets_are_seen_together(store: Store, path: Path) -> None:
    with store.transaction(database=path) as transaction:
        transaction.append("t", b"1")
        transaction.execute_many("INSERT INTO rows VALUES (?)", [(1,), (2,)])
        transaction.commit_offsets("g", {T0: 0})
        assert [(2,)] == transaction.execute("SELECT count(*) FROM rows")
        assert ([], []) == (numbers(path), values(store))

    assert ([1, 2], [b"1"]) == (numbers(path), values(store))
    assert 0 == store.group("g").offsets[T0]


def test_of_an_aborted_transaction_nothing_stays(store: Store, path: Path) -> None:
    aborted = pytest.raises(ZeroDivisionError)
    with aborted, store.transaction(database=path) as transaction:
        transaction.append("t", b"1")
        transaction.execute("INSERT INTO rows VALUES (1)")
        raise ZeroDivisionError
    write(store, path, 2)

    assert ([2], [b"2"]) == (numbers(path), values(store))


def test_a_transaction_without_rows_is_like_any_other(store: Store, path: Path) -> None:
    with store.transaction(database=path) as transaction:
        transaction.append("t", b"1")

    assert [b"1"] == values(store)


def test_a_database_that_is_missing_is_made(store: Store, tmp_path: Path) -> None:
    with store.transaction(database=tmp_path / "new.db") as transaction:
        transaction.execute("CREATE TABLE rows (number)")
    write(store, tmp_path / "new.db", 1)

    assert [1] == numbers(tmp_path / "new.db")


@pytest.mark.parametrize(
    "sql", ["COMMIT", "ROLLBACK", "BEGIN", "ATTACH ':memory:' AS other", "SELECT 1; COMMIT"]
)
def test_a_statement_that_ends_the_transaction_is_refused(
    store: Store, path: Path, sql: str
) -> None:
    with store.transaction(database=path) as transaction:
        transaction.append("t", b"1")
        transaction.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(UsageError, match="inside a transaction"):
            transaction.execute(sql)

    assert ([1], [b"1"]) == (numbers(path), values(store))


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM millstream_transactions",
        "UPDATE Millstream_Transactions SET number = number + 1",
        "INSERT OR REPLACE INTO millstream_transactions VALUES ('database', 0, x'00')",
        "DROP TABLE millstream_transactions",
        "ALTER TABLE millstream_transactions RENAME TO mine",
        "CREATE TRIGGER mine AFTER INSERT ON millstream_transactions BEGIN SELECT 1; END",
        "INSERT INTO rows VALUES (7)",
    ],
)
def test_decisions_are_not_for_statements_to_change(store: Store, path: Path, sql: str) -> None:
    """Nor for their triggers: without its row a commit would be taken for aborted."""
    write(store, path, 1)
    with UserDatabase(path) as database:
        database.query(
            "CREATE TRIGGER forgets AFTER INSERT ON rows WHEN new.number = 7"
            " BEGIN DELETE FROM millstream_transactions; END"
        )
    with store.transaction(database=path) as transaction:
        with pytest.raises(UsageError, match="change no decisions"):
            transaction.execute(sql)
        transaction.append("t", b"2")
        assert [(2,)] == transaction.execute("SELECT count(*) FROM millstream_transactions")
        assert 3 == len(transaction.execute("PRAGMA table_info(millstream_transactions)"))

    assert [b"1", b"2"] == values(store)


def test_a_row_that_is_refused_undoes_nothing_else(store: Store, path: Path) -> None:
    with store.transaction(database=path) as transaction:
        transaction.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(RecordError):
            transaction.execute("INSERT INTO rows VALUES (1)")
        transaction.append("t", b"1")

    assert ([1], [b"1"]) == (numbers(path), values(store))


def test_what_the_database_has_rolled_back_is_not_committed(store: Store, path: Path) -> None:
    refused = pytest.raises(UsageError, match="rolled the transaction back")
    with refused, store.transaction(database=path) as transaction:
        transaction.append("t", b"1")
        transaction.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(RecordError):
            transaction.execute("INSERT OR ROLLBACK INTO rows VALUES (1)")
    write(store, path, 2)

    assert ([2], [b"2"]) == (numbers(path), values(store))


def test_a_constraint_that_is_checked_at_the_end_aborts(store: Store, path: Path) -> None:
    refused = pytest.raises(RecordError)
    with refused, store.transaction(database=path) as transaction:
        transaction.append("t", b"1")
        transaction.execute(
            "CREATE TABLE child (n REFERENCES rows (number) DEFERRABLE INITIALLY DEFERRED)"
        )
        transaction.execute("INSERT INTO child VALUES (7)")
    write(store, path, 2)

    assert ([2], [b"2"]) == (numbers(path), values(store))


def test_wrong_uses_are_refused(store: Store, path: Path, tmp_path: Path) -> None:
    for wrong in (":memory:", "", "file:a.db"):
        with pytest.raises(UsageError, match="in a file"), store.transaction(database=wrong):
            pass
    with store.transaction() as plain, pytest.raises(UsageError, match="has no database"):
        plain.execute("SELECT 1")
    with millstream.open(tmp_path / "store") as other:
        catalog = tmp_path / "store" / "catalog.db"
        with (
            pytest.raises(UsageError, match="Millstream's own"),
            other.transaction(database=catalog),
        ):
            pass


def test_a_database_is_locked_from_the_first_statement_on(store: Store, path: Path) -> None:
    with UserDatabase(path) as other, store.transaction(database=path) as transaction:
        other.query("PRAGMA busy_timeout = 0")
        transaction.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(LockedError), other.transaction("write"):
            other.query("INSERT INTO rows VALUES (2)")

    assert [1] == numbers(path)


def test_an_owner_with_a_name_writes_rows_too(store: Store, path: Path) -> None:
    with store.own("import") as owner:
        for number in range(3):
            database = path if number != 1 else None
            with store.transaction(owner=owner, database=database) as transaction:
                transaction.append("t", b"%d" % number)
                if database:
                    transaction.execute("INSERT INTO rows VALUES (?)", (number,))

    assert ([0, 2], [b"0", b"1", b"2"]) == (numbers(path), values(store))


def test_a_closed_store_leaves_nothing_to_be_decided(storage: MemoryStorage, path: Path) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t")
        write(store, path, 1)
    path.unlink()

    with open_quietly(storage) as again:
        assert [] == again._engine.catalog.database.query("SELECT * FROM owner_databases")
        assert [b"1"] == values(again)


# --- between the two commits -------------------------------------------------------------------


class Stop(BaseException):
    """A process that dies, as far as the transaction can tell."""


def die_between(storage: MemoryStorage, path: Path, number: int = 1, owner: str = "") -> Store:
    """A process that has committed its rows and not its records; the one that lives on."""
    dying = open_quietly(storage)
    dying.create_topic("t", exist_ok=True)
    database = dying._engine.catalog.database
    with contextlib.suppress(Stop):
        ownership = dying.own(owner) if owner else None
        with dying.transaction(database=path, owner=ownership) as transaction:
            transaction.append("t", b"%d" % number)
            transaction.execute("INSERT INTO rows VALUES (?)", (number,))
            transaction.put_checkpoint("c", b"%d" % number)

            def stop(kind: str) -> None:
                if kind == "catalog.commit":
                    raise Stop

            database._on_commit = stop
    if ownership is not None:
        ownership.close()
    kill(dying)
    return open_quietly(storage)


def test_whoever_reads_next_follows_the_database(storage: MemoryStorage, path: Path) -> None:
    with die_between(storage, path) as store:
        assert ([1], [b"1"], b"1") == (numbers(path), values(store), store.checkpoint("c"))


def test_whoever_owns_the_name_next_follows_the_database(
    storage: MemoryStorage, path: Path
) -> None:
    with die_between(storage, path, owner="p") as store, store.own("p") as owner:
        assert b"1" == store._engine.catalog.checkpoint("c")
        with store.transaction(owner=owner, database=path) as transaction:
            transaction.append("t", b"2")
        assert [b"1", b"2"] == values(store)


def test_while_the_database_is_gone_nothing_is_decided(
    storage: MemoryStorage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = path.with_name("away.db")
    store = die_between_and_move(storage, path, away)
    try:
        with caplog.at_level(logging.WARNING, "millstream"):
            store.append("t", b"after")
            assert [] == values(store)
        assert "put it back" in caplog.text
        with pytest.raises(UndecidedError, match="put it back") as error:
            store._engine.decisions.settle(only_owner(store), 1)
        assert str(path) == error.value.path
        with UserDatabase(path) as other, other.transaction("be another one"):
            other.query("CREATE TABLE rows (number)")
        with pytest.raises(UndecidedError, match="another one"):
            store._engine.decisions.settle(only_owner(store), 1)
        path.unlink()

        away.rename(path)
        store._engine.clock.sleep(1)
        assert [b"1", b"after"] == values(store)
    finally:
        store.close()


def only_owner(store: Store) -> int:
    """The owner whose transaction a database decides."""
    (asked,) = OwnerCatalog(store._engine.catalog).databases()
    return asked.owner_id


def die_between_and_move(storage: MemoryStorage, path: Path, away: Path) -> Store:
    keeper = open_quietly(storage)  # so that nobody decides at once
    keeper.create_topic("t")
    database = path
    dying = open_quietly(storage)
    with contextlib.suppress(Stop), dying.transaction(database=database) as transaction:
        transaction.append("t", b"1")
        transaction.execute("INSERT INTO rows VALUES (1)")

        def stop(kind: str) -> None:
            if kind == "catalog.commit":
                raise Stop

        dying._engine.catalog.database._on_commit = stop
    kill(dying)
    path.rename(away)
    return keeper


def test_what_hangs_on_a_lost_database_is_given_up_by_hand(
    storage: MemoryStorage, path: Path
) -> None:
    with die_between_and_move(storage, path, path.with_name("lost.db")) as store:
        store.append("t", b"after")
        assert [] == values(store)
        assert 0 == store.abandon_database(path.with_name("other.db"))
        assert 1 == store.abandon_database(path)
        assert [b"after"] == values(store)
        assert 0 == store.abandon_database(path)


def test_a_damaged_decision_is_no_decision(storage: MemoryStorage, path: Path) -> None:
    away = path.with_name("away.db")
    with die_between_and_move(storage, path, away) as store:
        away.rename(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE millstream_transactions SET data = x'00' WHERE number > 0")
        owner_id = only_owner(store)
        with pytest.raises(DataError, match="checksum"):
            store._engine.decisions.settle(owner_id, 1)
        assert "open" == store._engine.transactions.state(transaction_id(owner_id, 1))


def test_a_locked_database_is_asked_again_later(storage: MemoryStorage, path: Path) -> None:
    away = path.with_name("away.db")
    with die_between_and_move(storage, path, away) as store:
        away.rename(path)
        with UserDatabase(path) as other, other.transaction("write"):
            with pytest.raises(LockedError):
                store._engine.decisions.settle(only_owner(store), 1)
            assert [] == values(store)
        store._engine.clock.sleep(1)
        assert [b"1"] == values(store)


def test_a_catalog_that_fails_once_is_asked_again(
    store: Store, storage: MemoryStorage, path: Path
) -> None:
    with store.transaction(database=path) as transaction:
        transaction.append("t", b"1")
        transaction.execute("INSERT INTO rows VALUES (1)")
        storage.faults.fail_next("catalog.commit", errno.EIO)

    assert ("committed", [1], [b"1"]) == (transaction.state, numbers(path), values(store))


def test_a_catalog_on_a_full_disk_leaves_it_to_the_next_transaction(
    store: Store, storage: MemoryStorage, path: Path
) -> None:
    full = pytest.raises(StorageError)
    with full, store.transaction(database=path) as transaction:
        transaction.append("t", b"1")
        transaction.execute("INSERT INTO rows VALUES (1)")
        transaction.commit_offsets("g", {T0: 0})
        storage.faults.fail["catalog.commit"] = errno.ENOSPC
    assert ("unknown", [1]) == (transaction.state, numbers(path))
    with pytest.raises(StorageError), store.transaction() as another:
        another.append("t", b"never")
    storage.faults.clear()
    with store.transaction() as following:
        following.append("t", b"2")

    assert ([1], [b"1", b"2"]) == (numbers(path), values(store))
    assert 0 == store.group("g").offsets[T0]


def test_an_offset_committed_since_stays(storage: MemoryStorage, path: Path) -> None:
    keeper = open_quietly(storage)
    keeper.create_topic("t")
    keeper.append_many("t", [b"x"] * 5)
    dying = open_quietly(storage)
    with contextlib.suppress(Stop), dying.transaction(database=path) as transaction:
        transaction.commit_offsets("g", {T0: 2})
        transaction.execute("INSERT INTO rows VALUES (1)")

        def stop(kind: str) -> None:
            if kind == "catalog.commit":
                raise Stop

        dying._engine.catalog.database._on_commit = stop
    kill(dying)
    with keeper.transaction() as transaction:
        transaction.commit_offsets("g", {T0: 4})

    assert 1 == keeper._engine.catalog.database.query("SELECT count(*) FROM owner_databases")[0][0]
    assert keeper.checkpoint("nothing") is None
    assert [] == keeper._engine.catalog.database.query("SELECT * FROM owner_databases")
    assert 4 == keeper.group("g").offsets[T0]
    keeper.close()
