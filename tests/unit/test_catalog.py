import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import apsw
import pytest

from millstream.catalog import Catalog, GroupOffset, LogCheckpoint, OwnerState
from millstream.clock import SystemClock
from millstream.config import TopicConfig
from millstream.database import Database
from millstream.errors import (
    DataError,
    FencedError,
    FormatVersionError,
    LockedError,
    StorageError,
    StoreClosedError,
    TopicExistsError,
    UnknownTopicError,
    UsageError,
)
from millstream.owner_catalog import OwnerCatalog, OwnerRow
from millstream.sql_values import Row
from millstream.testing import MemoryStorage

U64 = 2**64 - 1
CLOCK = SystemClock()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "catalog.db")


@pytest.fixture
def catalog(path: str) -> Iterator[Catalog]:
    catalog = Catalog(path, clock=CLOCK)
    yield catalog
    catalog.close()


def committed(catalog: Catalog, group: str) -> list[Row]:
    return catalog.database.query(
        "SELECT topic_id, partition, committed_offset FROM group_partitions"
        " WHERE group_name = ? ORDER BY 1, 2",
        (group,),
    )


def test_a_store_keeps_its_uid_and_generation_over_reopening(path: str) -> None:
    first = Catalog(path, clock=CLOCK)
    uid = first.store_uid
    assert first.generation == 0
    assert first.next_generation() == 1
    first.close()

    second = Catalog(path, clock=CLOCK)

    assert second.store_uid == uid
    assert len(uid) == 16
    assert second.generation == 1
    second.close()


def test_two_openers_of_a_new_catalog_agree_on_one_store(path: str) -> None:
    uids: list[bytes] = []

    def open_and_read() -> None:
        catalog = Catalog(path, clock=CLOCK)
        uids.append(catalog.store_uid)
        catalog.close()

    threads = [threading.Thread(target=open_and_read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(uids) == 4
    assert len(set(uids)) == 1


def test_a_memory_uri_works_like_a_file() -> None:
    uri = "file:/millstream-test-catalog?vfs=memdb"
    first = Catalog(uri, clock=CLOCK)
    second = Catalog(uri, clock=CLOCK)

    first.create_topic("a", 1, TopicConfig(), 5)

    assert [topic.name for topic in second.topics()] == ["a"]
    first.close()
    second.close()


def test_a_topic_comes_back_as_it_was_created(catalog: Catalog) -> None:
    config = TopicConfig(retention_ms=7, compression="zstd")

    created = catalog.create_topic("orders", 3, config, created_ms=123)

    assert catalog.topic("orders") == created
    assert (created.name, created.partitions, created.config, created.created_ms) == (
        "orders",
        3,
        config,
        123,
    )
    assert catalog.topic("other") is None


def test_a_topic_name_is_taken_once(catalog: Catalog) -> None:
    catalog.create_topic("orders", 1, TopicConfig(), 0)

    with pytest.raises(TopicExistsError, match="orders"):
        catalog.create_topic("orders", 1, TopicConfig(), 0)

    assert catalog.slots() == 1


def test_slots_and_topic_ids_are_never_reused(catalog: Catalog) -> None:
    first = catalog.create_topic("a", 2, TopicConfig(), 0)
    catalog.create_topic("b", 3, TopicConfig(), 0)
    uid = catalog.partition(first.id, 0).uid
    catalog.delete_topic("a")

    again = catalog.create_topic("a", 2, TopicConfig(), 0)

    assert again.id > first.id
    assert [catalog.partition(again.id, n).slot for n in range(2)] == [5, 6]
    assert catalog.slots() == 7
    assert catalog.partition_of_slot(6) == (again, 1)
    assert catalog.partition_of_slot(0) is None
    assert catalog.partition(again.id, 0).uid not in {0, uid}


def test_a_deleted_topic_takes_partitions_and_group_offsets_along(catalog: Catalog) -> None:
    topic = catalog.create_topic("a", 1, TopicConfig(), 0)
    with catalog.database.transaction("test"):
        catalog.write_group_offsets([GroupOffset("g", topic.id, 0, 4)])

    catalog.delete_topic("a")

    assert committed(catalog, "g") == []
    with pytest.raises(UnknownTopicError):
        catalog.partition(topic.id, 0)
    with pytest.raises(UnknownTopicError):
        catalog.delete_topic("a")


def test_a_configuration_is_replaced(catalog: Catalog) -> None:
    catalog.create_topic("a", 1, TopicConfig(), 0)

    changed = catalog.set_topic_config("a", TopicConfig(retention_bytes=10))

    assert changed == catalog.topic("a")
    assert changed.config.retention_bytes == 10
    with pytest.raises(UnknownTopicError):
        catalog.set_topic_config("nope", TopicConfig())


@pytest.mark.parametrize("value", [1, 2**63, U64])
def test_a_checkpoint_keeps_64_bit_values(catalog: Catalog, value: int) -> None:
    topic = catalog.create_topic("a", 1, TopicConfig(), 0)
    assert catalog.partition(topic.id, 0).checkpoint is None
    saved = LogCheckpoint(0, value, 4096, 2**62, value, -(2**63), 2**63 - 1)

    catalog.save_checkpoint(topic.id, 0, saved)

    assert catalog.partition(topic.id, 0).checkpoint == saved


def test_a_start_offset_never_falls(catalog: Catalog) -> None:
    topic = catalog.create_topic("a", 1, TopicConfig(), 0)

    catalog.set_start_offset(topic.id, 0, 10)
    catalog.set_start_offset(topic.id, 0, 5)

    assert catalog.partition(topic.id, 0).start_offset == 10


def test_a_committed_transaction_brings_its_offsets_and_checkpoints(catalog: Catalog) -> None:
    topic = catalog.create_topic("a", 1, TopicConfig(), 0)
    owner = OwnerCatalog(catalog).acquire("p", "locks/1.lock", pid=42)
    assert owner == OwnerRow(owner.id, epoch=1, decided=0)

    catalog.decide(
        owner.id, 1, 1, True, [GroupOffset("g", topic.id, 0, 9)], {"pipeline/p": b"\x00state"}
    )

    state = catalog.owner(owner.id)
    assert state is not None
    assert (state.decided, state.aborted, state.epoch) == (1, frozenset(), 1)
    assert (state.lock_path, state.pid) == ("locks/1.lock", 42)
    assert catalog.owner_named("p") == state
    assert committed(catalog, "g") == [(topic.id, 0, 9)]
    assert catalog.checkpoint("pipeline/p") == b"\x00state"


def test_an_aborted_transaction_leaves_no_offsets(catalog: Catalog) -> None:
    topic = catalog.create_topic("a", 1, TopicConfig(), 0)
    owner = OwnerCatalog(catalog).acquire("p", "locks/1.lock")

    catalog.decide(owner.id, 1, 1, False, [GroupOffset("g", topic.id, 0, 9)], {"c": b"x"})
    catalog.decide(owner.id, 1, 2, True)
    catalog.decide(owner.id, 1, 3, False)

    state = catalog.owner(owner.id)
    assert state is not None
    assert (state.decided, state.aborted) == (3, frozenset({1, 3}))
    assert committed(catalog, "g") == []
    assert catalog.checkpoint("c") is None


def test_taking_over_an_owner_fences_it_and_aborts_its_open_transaction(catalog: Catalog) -> None:
    first = OwnerCatalog(catalog).acquire("p", "locks/1.lock")
    catalog.decide(first.id, first.epoch, 1, True)

    second = OwnerCatalog(catalog).acquire("p", "locks/2.lock")

    assert second == OwnerRow(second.id, epoch=2, decided=0)
    assert second.id != first.id
    with pytest.raises(FencedError, match="'p'"):
        catalog.decide(first.id, first.epoch, 2, True, [], {"c": b"zombie"})
    assert catalog.checkpoint("c") is None
    catalog.decide(second.id, second.epoch, 1, True)
    states = catalog.owner(first.id), catalog.owner(second.id)
    assert states == (
        OwnerState(first.id, 2, frozenset({2}), "", 2, 0),
        OwnerState(second.id, 1, frozenset(), "locks/2.lock", 2, 0),
    )
    assert catalog.owner_named("p") == states[1]
    possible = [catalog.last_possible_transaction(owner.id) for owner in (first, second)]
    assert possible == [2, 2]


@pytest.mark.parametrize("number", [0, 2, 5])
def test_transactions_are_decided_in_order(catalog: Catalog, number: int) -> None:
    owner = OwnerCatalog(catalog).acquire("p", "locks/1.lock")

    with pytest.raises(FencedError):
        catalog.decide(owner.id, owner.epoch, number, True)


def test_the_transaction_of_a_dead_owner_is_aborted_once(catalog: Catalog) -> None:
    owner = OwnerCatalog(catalog).acquire("p", "locks/1.lock")
    catalog.decide(owner.id, owner.epoch, 1, True)

    assert not OwnerCatalog(catalog).abort_dead(owner.id, 1)
    assert OwnerCatalog(catalog).abort_dead(owner.id, 2)
    assert not OwnerCatalog(catalog).abort_dead(owner.id, 2)

    with pytest.raises(FencedError):
        catalog.decide(owner.id, owner.epoch, 3, True)
    state = catalog.owner(owner.id)
    assert state is not None
    assert (state.decided, state.aborted) == (2, frozenset({2}))
    assert catalog.owner(owner.id + 1) is None


def test_a_commit_naming_a_deleted_topic_changes_nothing(catalog: Catalog) -> None:
    topic = catalog.create_topic("a", 1, TopicConfig(), 0)
    owner = OwnerCatalog(catalog).acquire("p", "locks/1.lock")

    with pytest.raises(UnknownTopicError):
        catalog.decide(
            owner.id,
            1,
            1,
            True,
            [GroupOffset("g", topic.id, 0, 1), GroupOffset("g", topic.id + 1, 0, 1)],
        )

    state = catalog.owner(owner.id)
    assert state is not None
    assert state.decided == 0
    assert committed(catalog, "g") == []


def test_a_failure_before_the_commit_changes_nothing(path: str) -> None:
    class Crash(BaseException):
        pass

    def crash(step: str) -> None:
        if armed:
            raise Crash(step)

    armed = False
    catalog = Catalog(path, clock=CLOCK, on_commit=crash)
    armed = True

    with pytest.raises(Crash):
        catalog.create_topic("a", 1, TopicConfig(), 0)

    armed = False
    assert catalog.topics() == []
    catalog.create_topic("a", 1, TopicConfig(), 0)
    assert catalog.slots() == 1
    catalog.close()


def test_a_locked_catalog_is_a_typed_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.database_file.BUSY_TIMEOUT_SECONDS", 0.05)
    catalog = Catalog(path, clock=CLOCK)
    other = apsw.Connection(path)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(LockedError, match="locked"):
        catalog.next_generation()

    other.execute("ROLLBACK")
    assert catalog.next_generation() == 1
    other.close()
    catalog.close()


def test_opening_read_only_needs_a_store(path: str) -> None:
    with pytest.raises(UsageError, match="no store"):
        Catalog(path, clock=CLOCK, read_only=True)

    assert not Path(path).exists()


def test_a_read_only_catalog_reads_but_does_not_write(path: str, catalog: Catalog) -> None:
    catalog.create_topic("a", 1, TopicConfig(), 0)

    reader = Catalog(path, clock=CLOCK, read_only=True)

    assert [topic.name for topic in reader.topics()] == ["a"]
    with pytest.raises(UsageError, match="read-only"):
        reader.next_generation()
    catalog.create_topic("b", 1, TopicConfig(), 0)
    assert [topic.name for topic in reader.topics()] == ["a", "b"]
    reader.close()


READ_ALL = """
import os, sys
from millstream.catalog import Catalog
from millstream.clock import SystemClock
from millstream.errors import StorageError
if os.getuid() == 0:
    os.setuid(65534)
try:
    catalog = Catalog(sys.argv[1], clock=SystemClock(), read_only=True)
except StorageError as error:
    print("StorageError", error.path == sys.argv[1])
else:
    print(*[topic.name for topic in catalog.topics()])
    catalog.close()
"""


@pytest.fixture
def open_path() -> Iterator[str]:
    """As `path`, in a directory which other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as directory:
        yield f"{directory}/catalog.db"
        Path(directory).chmod(0o755)


def read_unprivileged(path: str) -> str:
    """What a process prints that cannot write the directory, under another user if we are root."""
    Path(path).chmod(0o444)
    Path(path).parent.chmod(0o555)
    return subprocess.run(
        [sys.executable, "-c", READ_ALL, path],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=20,
    ).stdout.strip()


def test_a_closed_store_is_read_where_nothing_can_be_written(open_path: str) -> None:
    catalog = Catalog(open_path, clock=CLOCK)
    catalog.create_topic("a", 1, TopicConfig(), 0)
    catalog.close()

    assert read_unprivileged(open_path) == "a"


def test_a_crashed_store_is_not_read_without_its_last_commits(open_path: str) -> None:
    catalog = Catalog(open_path, clock=CLOCK)
    catalog.create_topic("a", 1, TopicConfig(), 0)
    files = {name: Path(open_path + name).read_bytes() for name in ("", "-wal")}
    catalog.close()
    for name, content in files.items():
        Path(open_path + name).write_bytes(content)

    assert read_unprivileged(open_path) == "StorageError True"


def test_a_newer_schema_is_refused(path: str, catalog: Catalog) -> None:
    catalog.database.query("PRAGMA user_version = 3")

    with pytest.raises(FormatVersionError, match="version 3"):
        Catalog(path, clock=CLOCK)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\x00" + bytes(5000)])
def test_a_file_that_is_no_catalog_is_refused_and_kept(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)

    with pytest.raises(DataError) as caught:
        Catalog(path, clock=CLOCK)

    assert caught.value.path == path
    assert Path(path).read_bytes() == content


def test_somebody_elses_database_is_refused(path: str) -> None:
    other = apsw.Connection(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()

    with pytest.raises(DataError, match="not a catalog"):
        Catalog(path, clock=CLOCK)


@pytest.mark.parametrize("count", [0, -1, 1 << 40])
def test_a_topic_with_an_impossible_number_of_partitions_is_damage(path: str, count: int) -> None:
    catalog = Catalog(path, clock=CLOCK)
    catalog.create_topic("t", 1, TopicConfig(), 0)
    catalog.database.query("UPDATE topics SET partitions = ?", (count,))

    with pytest.raises(DataError) as caught:
        catalog.topic("t")

    assert ("t", path) == (caught.value.topic, caught.value.path)
    catalog.close()


def test_a_missing_directory_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be opened \(.*\): check the path, who owns"):
        Catalog(str(tmp_path / "nowhere" / "catalog.db"), clock=CLOCK)


def test_a_closed_catalog_says_so(path: str) -> None:
    catalog = Catalog(path, clock=CLOCK)
    catalog.close()
    catalog.close()

    with pytest.raises(StoreClosedError):
        catalog.topics()
    with pytest.raises(StoreClosedError):
        catalog.next_generation()


@pytest.mark.parametrize(("keep", "expected"), [("none", 4), ("all", 6)])
def test_a_transaction_that_is_not_synced_may_be_lost_with_the_machine(
    keep: Literal["none", "all"], expected: int
) -> None:
    storage = MemoryStorage()
    database = Database(storage.catalog_filename(), clock=CLOCK, on_commit=storage.sync_point)
    database.query("CREATE TABLE t (x)")
    # What comes before one that is synced is as durable as that one.
    for number, durable in enumerate((True, False, False, True, False, False)):
        with database.transaction("test", durable=durable):
            database.query("INSERT INTO t VALUES (?)", (number,))
        assert database.unsynced is not durable
        assert [(2 if durable else 1,)] == database.query("PRAGMA synchronous")
    database.close()

    after = storage.crash(keep=keep)
    left = Database(after.catalog_filename(), clock=CLOCK)

    assert [(expected,)] == left.query("SELECT count(*) FROM t")
    left.close()


def test_a_change_is_a_transaction_that_is_not_synced(path: str) -> None:
    announced: list[str] = []
    database = Database(path, clock=CLOCK, on_commit=announced.append)
    database.query("CREATE TABLE t (x)")
    with database.transaction("test"):
        database.query("INSERT INTO t VALUES (1)")

    assert 1 == database.change("UPDATE t SET x = 2 WHERE x = ?", (1,))
    assert 0 == database.change("UPDATE t SET x = 3 WHERE x = ?", (1,))

    assert ["catalog.commit", "catalog.unsynced", "catalog.unsynced"] == announced
    assert database.unsynced
    other = Database(path, clock=CLOCK)
    assert [(2,)] == other.query("SELECT x FROM t")
    other.close()
    database.close()


def test_a_change_undoes_what_an_interrupt_has_left_open(path: str) -> None:
    database = Database(path, clock=CLOCK)
    database.query("CREATE TABLE t (x)")
    left = database.transaction("test")
    left.__enter__()
    database.query("INSERT INTO t VALUES (1)")

    database.change("INSERT INTO t VALUES (?)", (2,))

    assert [(2,)] == database.query("SELECT x FROM t")
    assert not database.in_transaction
    database.close()


def test_what_was_not_synced_is_synced_at_the_next_request(path: str, catalog: Catalog) -> None:
    catalog.sync()
    assert not catalog.database.unsynced
    with catalog.database.transaction("test", durable=False):
        catalog.database.query("UPDATE store SET slots = slots")
    assert catalog.database.unsynced

    catalog.sync()

    assert not catalog.database.unsynced
