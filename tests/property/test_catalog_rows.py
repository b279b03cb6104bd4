"""Scenario 82, the catalog: any value in any row, as no version would have written it.

Pages have checksums, so no accident gets here; a bug or a foreign hand might. What is done with the
store afterwards works, or is refused with a typed error, and takes no space that a row made up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import apsw
import pytest

import millstream
from millstream import MillstreamError, Store, TopicPartition
from millstream.clock import SystemClock
from millstream.database import Database

CASES = int(os.environ.get("MILLSTREAM_FUZZ_EXAMPLES", "15"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))
STORE_BYTES_MAX = 64 << 20
NUMBERS = (-(1 << 63), -1, 0, 1, 7, 4097, 1 << 31, 1 << 40, (1 << 62) + 1, (1 << 63) - 1)
TEXTS = ("", "x", "../../x", "a/b", "\0", "null", "[1]", '{"a":1}', "[" * 5000, "x" * 5000, "none")
BLOBS = (b"", b"\0", b"\xff" * 16, b"x" * 5000, b"\x01\x91\x91")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with something in every table, as if some processes had been killed."""
    path = tmp_path_factory.mktemp("whole") / "store"
    store = millstream.open(path)
    store.create_topic("t", partitions=2, retention="7d")
    store.create_topic("keyed", compact=True)
    store.create_topic("jobs")
    for number in range(6):
        store.append("t", b"%d" % number, partition=number % 2)
        store.append("keyed", b"%d" % number, key=b"k%d" % (number % 2))
        store.append("jobs", b"%d" % number)
    store.roll("t", 0)
    store.compact("keyed")
    for number in range(3):
        with store.transaction() as transaction:
            transaction.append("t", b"in a transaction", partition=0)
            transaction.commit_offsets("g", {TopicPartition("t", 0): number})
            transaction.put_checkpoint("c", b"%d" % number)
            if number == 1:
                transaction.abort()
    with store.producer(name="p") as producer:
        producer.send("t", b"named", partition=0)
    with store.consumer("t", group="members", start="earliest", follow=False) as consumer:
        consumer.poll(timeout=0)
        consumer.commit()
    with store.queue("jobs") as queue:
        first, second = queue.get_many(2, timeout=0)
        queue.ack(first)
        queue.nack(second, delay=60)
    store.close()
    with catalog(path) as database, database.transaction("those who died"):
        for row in (
            "group_members SELECT min(name), 'm', 'l', 'h', 1, 'c', '[\"t\"]', 5 FROM groups",
            "queue_workers SELECT 9, min(id), 'locks/w', 'host', 1, 'c' FROM queues",
            "owner_databases SELECT min(id), 'app.db', 'u', 'm', 'locks/p' FROM owners",
        ):
            database.query(f"INSERT INTO {row}")
    return path


@contextlib.contextmanager
def catalog(path: Path) -> Iterator[Database]:
    database = Database(str(path / "catalog.db"), clock=SystemClock())
    try:
        yield database
    finally:
        database.close()


def columns(path: Path) -> list[tuple[str, str, str]]:
    """(table, column, type) of all tables with rows."""
    found = []
    with catalog(path) as database:
        tables = database.query("SELECT name FROM sqlite_schema WHERE type = 'table'")
        for (table,) in tables:
            if str(table).startswith("sqlite_") or not database.query(f"SELECT 1 FROM {table}"):
                continue
            for _, name, kind, *_ in database.query(f"PRAGMA table_info({table})"):
                found.append((str(table), str(name), str(kind)))
    return found


def change(path: Path, random: Random, table: str, column: str, kind: str) -> object:
    """Put some value into some or all rows of a column; the value, or None if SQLite refused."""
    choices = {"INTEGER": NUMBERS, "TEXT": TEXTS, "BLOB": BLOBS}[kind]
    value = random.choice((*choices, None))
    where = random.choice(("", f" WHERE {column} = (SELECT {column} FROM {table} LIMIT 1)"))
    with catalog(path) as database:
        database.query("PRAGMA foreign_keys = OFF")
        try:
            with database.transaction("a mad writer"):
                database.query(f"UPDATE {table} SET {column} = ?{where}", (value,))
        except (apsw.ConstraintError, MillstreamError):
            return None
    return value


def read(store: Store) -> None:
    for name in ("t", "keyed", "jobs"):
        for _ in store.read(name):
            pass


def look(store: Store) -> None:
    for info in store.topics(internal=True):
        store.offsets(info.name)
        store.segments(info.name, 0)
    store.checkpoint("c")
    for name in store.groups():
        store.group(name)
        store.group_lag(name)


def append(store: Store) -> None:
    store.append_many("t", [b"more"] * 3, partition=0)
    store.append_many("keyed", [b"more"] * 3, [b"k0"] * 3)
    store.roll("t", 0)


def decide(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.append("t", b"more", partition=0)
        transaction.put_checkpoint("c", b"more")


def send(store: Store) -> None:
    with store.producer(name="p") as producer:
        producer.send("t", b"more", partition=0)


def consume(store: Store) -> None:
    with store.consumer("t", group="members", start="earliest", follow=False) as consumer:
        consumer.poll(timeout=0)
        consumer.commit()
        consumer.lag()


def work(store: Store) -> None:
    with store.queue("jobs") as queue:
        queue.ack(*queue.get_many(2, timeout=0))


def keep(store: Store) -> None:
    store.apply_retention()
    store.compact("keyed")
    store.latest("keyed", b"k0")
    store.trim("t", {0: 1})


def check(store: Store) -> None:
    store.verify(deep=True)


OPERATIONS: tuple[Callable[[Store], None], ...] = (
    look,
    read,
    append,
    decide,
    send,
    consume,
    work,
    keep,
    check,
)


def use(path: Path, *, read_only: bool) -> None:
    """Do all that users do; each may be refused."""
    try:
        store = millstream.open(path, read_only=read_only)
    except MillstreamError:
        return
    try:
        for operation in OPERATIONS:
            with contextlib.suppress(MillstreamError):
                operation(store)
    finally:
        with contextlib.suppress(MillstreamError):
            store.close()


@pytest.mark.slow
@pytest.mark.crash
def test_scenario_82_any_value_in_any_row_of_the_catalog(whole: Path, tmp_path: Path) -> None:
    random = Random(SEED)
    cells = columns(whole)
    assert len({table for table, _, _ in cells}) == 18
    path = tmp_path / "store"
    for number in range(CASES):
        table, column, kind = random.choice(cells)
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        value = change(path, random, table, column, kind)
        try:
            use(path, read_only=number % 4 == 0)
            used = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
            assert used < STORE_BYTES_MAX
        except BaseException as error:
            error.add_note(f"case {number}: {table}.{column} = {value!r:.80}")
            raise
