"""Scenario 108: the catalog alone is of an earlier moment than the log. docs/robustness.md has it.

A copy of the directory without `catalog.db-wal` is one, or what a disk kept that only said that it
had synced. Whatever it forgot: nothing that was aborted is ever seen, and of what was committed
nothing is passed over in silence but the one last decision of an owner.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import apsw
import pytest

import millstream
from millstream import DataError, NamedProducer, Store, TopicPartition, repair
from millstream.database_file import CHECKED_VFS

if TYPE_CHECKING:
    from matrix import Cell

T0 = TopicPartition("t", 0)


def copy_without_wal(store: Path, copy: Path) -> None:
    """What `cp` makes of a store in use if it leaves the log of the catalog out."""
    shutil.copytree(store, copy, ignore=shutil.ignore_patterns("catalog.db-*"))


def move_into_the_file(store: Path) -> None:
    """Have SQLite bring what is in the `-wal` to catalog.db, as it does now and then."""
    with closing(apsw.Connection(str(store / "catalog.db"), vfs=CHECKED_VFS)) as connection:
        ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert not busy


def transact(store: Store, value: bytes, partition: int = 0, *, commit: bool = True) -> None:
    with store.transaction() as transaction:
        transaction.append("t", value, partition=partition)
        if not commit:
            transaction.abort()


def values(store: Store, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in store.read("t", partition=partition)]


def prepared(store: Store, cell: Cell) -> None:
    store.create_topic("t", partitions=2, compression=cell.codec)
    for number in range(cell.segments):
        if number:
            store.roll("t", 0)
        transact(store, b"before %d" % number)


def segments(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*.segment")}


@pytest.mark.parametrize("kept", [True, False])
def test_scenario_108_commits_are_lost_that_were_in_the_wal_alone(
    tmp_path: Path, cell: Cell, kept: bool
) -> None:
    """The same process goes on with an owner of which decisions are lost."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    with millstream.open(path) as store:
        prepared(store, cell)
        move_into_the_file(path)
        for number in range(3):
            transact(store, b"aborted %d" % number, commit=False)
        for number in range(2):
            transact(store, b"committed %d" % number)
        copy_without_wal(path, copy)
    before = segments(copy)

    for _ in range(cell.restarts):
        with millstream.open(copy) as store:
            for use in (
                lambda: values(store),
                lambda: store.append("t", b"plain", partition=0),
                lambda: transact(store, b"again"),
            ):
                with pytest.raises(DataError, match="older than the log") as caught:
                    use()
                assert ("t", 0) == (caught.value.topic, caught.value.partition)
            transact(store, b"elsewhere", partition=1)
        assert (
            before["topics/t/0/" + "0" * 20 + ".segment"]
            == segments(copy)["topics/t/0/" + "0" * 20 + ".segment"]
        )

    done = repair(copy, show_undecided=kept)
    assert ([], 5) == (done.refused, done.undecided)
    early = [b"before %d" % number for number in range(cell.segments)]
    shown = [*(b"aborted %d" % n for n in range(3)), b"committed 0", b"committed 1"]
    with millstream.open(copy) as store:
        transact(store, b"after")
        transact(store, b"aborted again", commit=False)
        assert [*early, *(shown if kept else []), b"after"] == values(store)
        assert [b"elsewhere"] * cell.restarts == values(store, 1)
        assert store.verify(deep=True).ok
    with millstream.open(path) as store:
        assert [*early, b"committed 0", b"committed 1"] == values(store)


def test_scenario_108_a_name_that_is_acquired_again_gets_numbers_that_nobody_had(
    tmp_path: Path, cell: Cell
) -> None:
    """Also where nothing can be noticed, because one decision alone is lost."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    with millstream.open(path) as store:
        prepared(store, cell)
        with store.own("p") as owner:
            move_into_the_file(path)
            with store.transaction(owner=owner) as transaction:
                transaction.append("t", b"aborted", partition=0)
                transaction.abort()
            copy_without_wal(path, copy)

    for number in range(cell.restarts):
        with millstream.open(copy) as store, store.own("p") as owner:
            for part in range(3):
                with store.transaction(owner=owner) as transaction:
                    transaction.append("t", b"new %d" % part, partition=1)
            assert [b"before %d" % n for n in range(cell.segments)] == values(store)
            assert 3 * (number + 1) == len(values(store, 1))
            assert store.verify(deep=True).ok


def test_scenario_108_two_decisions_are_lost_in_two_partitions(tmp_path: Path, cell: Cell) -> None:
    """Either one of them looks as if it were open; to abort one must not let the other pass."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    with millstream.open(path) as store:
        prepared(store, cell)
        with store.own("p") as owner:
            move_into_the_file(path)
            for partition in (0, 1):
                with store.transaction(owner=owner) as transaction:
                    transaction.append("t", b"committed", partition=partition)
            copy_without_wal(path, copy)

    for _ in range(cell.restarts):
        with millstream.open(copy) as store:
            # One is the next of its owner, and looks as if it had never been decided.
            assert [b"before %d" % n for n in range(cell.segments)] == values(store)
            with pytest.raises(DataError, match="older than the log") as caught:
                values(store, 1)
            assert ("t", 1) == (caught.value.topic, caught.value.partition)
            with store.own("p") as owner, store.transaction(owner=owner) as transaction:
                transaction.append("t", b"new", partition=0)
                transaction.abort()


def test_scenario_108_an_owner_is_lost_and_another_comes(tmp_path: Path, cell: Cell) -> None:
    """Its number is nobody's: the catalog does not know it, and gives it to nobody."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    with millstream.open(path) as store:
        store.create_topic("t", partitions=2, compression=cell.codec)
        move_into_the_file(path)
        with store.own("first") as owner, store.transaction(owner=owner) as transaction:
            transaction.append("t", b"aborted", partition=0)
            transaction.abort()
        copy_without_wal(path, copy)

    for number in range(cell.restarts):
        with millstream.open(copy) as store:
            with store.own("second") as owner, store.transaction(owner=owner) as transaction:
                transaction.append("t", b"%d" % number, partition=1)
            with pytest.raises(DataError, match="does not know that owner"):
                values(store)
            assert [b"%d" % n for n in range(number + 1)] == values(store, 1)


def test_scenario_108_a_reader_meets_what_was_not_found_when_the_log_was_recovered(
    tmp_path: Path, cell: Cell
) -> None:
    """The checkpoint of the log is newer than the decisions: of a catalog put together by hand."""
    path = tmp_path / "store"
    with millstream.open(path) as store:
        prepared(store, cell)
        for number in range(3):
            transact(store, b"%d" % number, commit=number > 1)
    with closing(apsw.Connection(str(path / "catalog.db"), vfs=CHECKED_VFS)) as connection:
        connection.execute("DELETE FROM aborted; UPDATE owners SET decided = 1")

    for _ in range(cell.restarts):
        with millstream.open(path) as store:
            found: list[bytes | None] = []
            with pytest.raises(DataError, match="older than the log"):
                found.extend(record.value for record in store.read("t", partition=0))
            assert all(value == b"before 0" for value in found)
    with millstream.open(path, read_only=True) as store:
        assert not store.verify().ok


def send(producer: NamedProducer, first: int, last: int, *, partition: int = 0) -> list[bool]:
    """Which of the numbered records were there already."""
    futures = [
        producer.send("t", b"%d" % number, sequence=number, partition=partition)
        for number in range(first, last)
    ]
    return [future.result().duplicate for future in futures]


def test_scenario_108_epochs_of_a_producer_are_lost(
    tmp_path: Path, cell: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    """What it has sent is in the log; it goes on above the epochs it had."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    with millstream.open(path) as store:
        prepared(store, cell)
        store.producer(name="import").close()
        move_into_the_file(path)
        for number in range(4):
            with store.producer(name="import") as producer:
                send(producer, number, number + 1)
        copy_without_wal(path, copy)

    for number in range(cell.restarts):
        with millstream.open(copy) as store, store.producer(name="import") as producer:
            assert [True] * (4 + number) + [False] == send(producer, 0, 5 + number)
            assert 5 < producer.epoch
    assert 1 == caplog.text.count("older than the log")
    sent = [b"%d" % number for number in range(4 + cell.restarts)]
    with millstream.open(copy) as store:
        assert sent == values(store)[cell.segments :]


@pytest.mark.parametrize("other_first", [True, False])
def test_scenario_108_the_name_of_a_producer_is_lost(
    tmp_path: Path, cell: Cell, other_first: bool
) -> None:
    """The name finds its records again, though others have gone on in the partition."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    with millstream.open(path) as store:
        prepared(store, cell)
        store.producer(name="other").close()
        move_into_the_file(path)
        with store.producer(name="import") as producer:
            send(producer, 0, 4)
        copy_without_wal(path, copy)

    for _ in range(cell.restarts):
        with millstream.open(copy) as store:
            if other_first:
                with store.producer(name="other") as other:
                    send(other, 0, 2)
            with store.producer(name="import") as producer:
                assert 3 == producer.last_sequence("t")
                assert [True] * 4 == send(producer, 0, 4)
    with millstream.open(copy) as store, store.producer(name="import") as producer:
        assert [False] == send(producer, 4, 5)
        assert 5 + 2 * other_first == len(values(store)) - cell.segments


class Lives:
    """Random transactions of two partitions, and what was committed in each."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.committed: tuple[list[bytes | None], list[bytes | None]] = [], []

    def live(self, store: Store, name: str, steps: int) -> None:
        random = self._random
        for number in range(steps):
            commit = random.random() < 0.6
            value = f"{name} {number}".encode()
            parts = random.sample((0, 1), random.choice((1, 1, 2)))
            with contextlib.suppress(DataError), store.transaction() as transaction:
                for part in parts:
                    transaction.append("t", value, partition=part)
                if not commit:
                    transaction.abort()
            if transaction.state == "committed":
                for part in parts:
                    self.committed[part].append(value)


@pytest.mark.parametrize("seed", range(6))
def test_scenario_108_any_moment_of_the_catalog_with_the_log_of_a_later_one(
    tmp_path: Path, seed: int
) -> None:
    """Random lives: what is read afterwards is a part of what was committed, or an error."""
    random = Random(f"{os.environ.get('MILLSTREAM_SEED', '0')}/{seed}")
    path, copy = tmp_path / "store", tmp_path / "copy"
    before, after = Lives(random), Lives(random)
    with millstream.open(path) as store:
        store.create_topic("t", partitions=2, segment_bytes=4096)
        before.live(store, "early", random.randrange(8))
        move_into_the_file(path)
        before.live(store, "lost", random.randrange(8))
        copy_without_wal(path, copy)

    for life in range(3):
        with millstream.open(copy) as store:
            after.live(store, f"late {life}", 5)
            for part, (old, new) in enumerate(zip(before.committed, after.committed, strict=True)):
                try:
                    read = values(store, part)
                except DataError:
                    assert [] == new
                    continue
                kept = len(read) - len(new)
                assert [*old[:kept], *new] == read
                assert len(old) - kept <= 1, "only the last decision of an owner looks open"
