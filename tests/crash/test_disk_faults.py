"""Scenarios 36 to 46: the disk fails, fills up, or forgets. docs/robustness.md has the list.

36 to 38 (power failures that keep nothing, everything, or anything) are in test_power_loss.py.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from restarts import crash_everywhere, fill_the_disk_everywhere, restart
from simulated_stores import abandon, log_of, open_quietly
from workload import Workload, fresh_model

import millstream
from millstream import PoisonedError, StorageError, Store
from millstream.testing import FaultPlan, Keep, MemoryStorage

if TYPE_CHECKING:
    from log_model import Model
    from matrix import Cell

THREADS = 8
TIMEOUT = 30


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage, cell: Cell) -> Iterator[Store]:
    """A store of the matrix: in its last segment one record, in the two before it, one each."""
    store = open_quietly(storage)
    store.create_topic("t", compression=cell.codec)
    for number in range(cell.sealed):
        store.append("t", SEALED[number])
        store.roll("t", 0)
    store.append("t", b"first")
    yield store
    abandon(store)


SEALED = (b"of a sealed segment", b"of another")


@pytest.fixture
def before(cell: Cell) -> list[bytes | None]:
    """What is there before the fault."""
    return [*SEALED[: cell.sealed], b"first"]


def restarted(
    storage: MemoryStorage, cell: Cell, keep: Keep, expected: list[bytes | None]
) -> MemoryStorage:
    """Restart as often as the cell says, writing each time; what is left by the last crash."""
    for number in range(cell.restarts):
        storage = storage.crash(keep=keep if number == 0 else "none")
        again = open_quietly(storage)
        assert expected == values(again)
        assert len(expected) == again.append("t", b"restarted").offset
        expected.append(b"restarted")
        abandon(again)
    return storage.crash(keep="none")


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


# --- 39, 46: a sync fails ----------------------------------------------------------------------


def test_scenario_39_a_sync_fails_once(
    store: Store, storage: MemoryStorage, cell: Cell, before: list[bytes | None]
) -> None:
    storage.faults.fail_next("sync", errno.EIO)
    with pytest.raises(PoisonedError, match="open it again"):
        store.append("t", b"unknown")

    for durability in ("sync", "interval", "os"):
        with pytest.raises(PoisonedError):
            store.append("t", b"refused", durability=durability)
    assert before == values(store)
    with pytest.raises(PoisonedError):
        store.sync()

    store.close()
    with open_quietly(storage) as again:
        assert [*before, b"unknown"] == values(again)
        again.append("t", b"next")
        abandon(again)
    restarted(storage, cell, "none", [*before, b"unknown", b"next"])


def test_scenario_39_the_power_fails_after_the_sync(
    store: Store, storage: MemoryStorage, cell: Cell, before: list[bytes | None]
) -> None:
    storage.faults.fail_next("sync", errno.EIO)
    with pytest.raises(PoisonedError):
        store.append("t", b"lost")

    restarted(storage, cell, "none", before)


def test_scenario_39_other_handles_of_the_store_are_refused_too(
    store: Store, storage: MemoryStorage
) -> None:
    other = open_quietly(storage)
    log_of(other)
    storage.faults.fail_next("sync", errno.EIO)
    with pytest.raises(PoisonedError):
        store.append("t", b"unknown")
    with pytest.raises(PoisonedError):
        other.append("t", b"refused")
    other.create_topic("u")
    assert 0 == other.append("u", b"not affected").offset
    other.close()


@pytest.mark.cells(count=3)
def test_scenario_46_every_waiter_of_a_failed_sync_fails_once(
    store: Store, storage: MemoryStorage, cell: Cell
) -> None:
    start = threading.Barrier(THREADS)
    outcomes: list[str] = []

    def work(number: int) -> None:
        start.wait(TIMEOUT)
        for call in range(100_000):
            if number == 0 and call == 10:
                storage.faults.fail_next("sync", errno.EIO)
            try:
                if number % 2:
                    store.append("t", b"%d" % number)
                else:
                    store.append_many("t", [b"%d" % number])
            except PoisonedError:
                outcomes.append("poisoned")
                return
            outcomes.append("acknowledged")

    threads = [
        threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()

    acknowledged = outcomes.count("acknowledged")
    assert THREADS == outcomes.count("poisoned")
    assert cell.segments + acknowledged == len(values(store))
    for _ in range(cell.restarts):
        storage = storage.crash(keep="none")
        with open_quietly(storage) as again:
            assert cell.segments + acknowledged <= len(values(again))


# --- 40, 41, 45: other operations fail ---------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("sync_directory", errno.EIO),
        ("rename", errno.EXDEV),
        ("rename", errno.EIO),
        ("create", errno.EMFILE),
    ],
)
@pytest.mark.parametrize("fresh", [True, False], ids=["a new partition", "a roll"])
def test_scenario_40_44_45_a_segment_cannot_be_made(
    store: Store, storage: MemoryStorage, cell: Cell, kind: str, number: int, fresh: bool
) -> None:
    store.create_topic("u")
    if kind == "sync_directory":
        storage.faults.fail_next(kind, number)
    else:
        storage.faults.fail[kind] = number
    with pytest.raises(StorageError) as caught:
        store.append("u", b"a") if fresh else store.roll("t", 0)
    assert number == caught.value.errno
    assert caught.value.path is not None

    storage.faults.clear()
    store.append("u", b"a")
    store.append("t", b"b")
    store.roll("t", 0)
    store.append("t", b"c")
    abandon(store)
    expected: list[bytes | None] = [*SEALED[: cell.sealed], b"first", b"b", b"c"]
    with open_quietly(restarted(storage, cell, "none", expected)) as again:
        assert expected == values(again)
        assert [b"a"] == [record.value for record in again.read("u")]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_scenario_41_any_read_fails(
    store: Store, storage: MemoryStorage, before: list[bytes | None], number: int
) -> None:
    """A segment that cannot be read is an error; an index changes speed, never answers."""
    store.roll("t", 0)
    store.append("t", b"second")
    expected, changes = [*before, b"second"], len(storage.trace)
    outcomes: list[tuple[int | None, str] | None] = []
    for nth in itertools.count():
        storage.faults = FaultPlan(fail={("read", nth): number})
        storage.machine._counts.clear()
        try:
            assert expected == values(store)
        except StorageError as error:
            outcomes.append((error.errno, str(error.path)[-7:]))
        else:
            outcomes.append(None)
        if storage.machine._counts["read"] <= nth:
            break

    assert {(number, "segment"), None} == set(outcomes)
    assert outcomes.count((number, "segment")) >= len(expected), "each segment is read"
    storage.faults.clear()
    assert expected == values(store)
    assert changes == len(storage.trace), "nothing was changed"


def test_scenario_41_an_index_cannot_be_read(
    store: Store, storage: MemoryStorage, before: list[bytes | None]
) -> None:
    """An index changes speed, never answers: where it cannot be read, the segment is."""
    store.roll("t", 0)
    store.append("t", b"second")
    store.close()
    paths = []
    for nth in itertools.count():
        again = storage.crash(keep="all")
        with open_quietly(again) as opened:
            again.faults = FaultPlan(fail={("read", nth): errno.EIO})
            again.machine._counts.clear()
            try:
                assert 0 == opened.offset_at("t", 0, "@1970-01-01T00:00:00.001Z")
                assert [*before, b"second"] == values(opened)
            except StorageError as error:
                paths.append(str(error.path).rsplit(".", 1)[-1])
            done = again.machine._counts["read"] <= nth
            again.faults.clear()
        storage = again
        if done:
            break

    assert {"segment"} == set(paths)


# --- 42, 43: full disks and short writes -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
def test_scenario_42_the_disk_is_full_at_each_write_and_then_has_space(cell: Cell) -> None:
    workload = Workload(seed=5, compression=cell.codec, segment_bytes=cell.segment_bytes)

    assert fill_the_disk_everywhere(workload, restarts=cell.restarts) > 80


def test_scenario_42_an_append_that_did_not_fit_leaves_nothing(
    store: Store, storage: MemoryStorage, cell: Cell, before: list[bytes | None]
) -> None:
    storage.faults.fail["write"] = errno.ENOSPC
    storage.faults.partial_writes = True
    with pytest.raises(StorageError, match="disk is full"):
        store.append("t", b"too much" * 1000)
    assert before == values(store)

    storage.faults.clear()
    assert cell.segments == store.append("t", b"small").offset
    abandon(store)
    restarted(storage, cell, "all", [*before, b"small"])


def test_scenario_42_a_full_disk_can_be_read_and_opened(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t")
        store.append("t", b"first")
    storage.faults.fail["write"] = errno.ENOSPC
    with open_quietly(storage) as store:
        assert [b"first"] == values(store)
        with pytest.raises(StorageError):
            store.append("t", b"more")
        storage.faults.clear()
        store.append("t", b"more")
        assert [b"first", b"more"] == values(store)


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
def test_scenario_43_writes_come_in_pieces_and_the_power_fails_between_them(cell: Cell) -> None:
    workload = ShortWrites(
        seed=8, steps=8, compression=cell.codec, segment_bytes=cell.segment_bytes
    )

    assert crash_everywhere(workload, seeds=(1,), restarts=cell.restarts) > 200


class ShortWrites(Workload):
    """A workload whose writes reach the disk in several pieces."""

    def run(self, storage: MemoryStorage, model: Model) -> None:
        storage.faults.short_writes = True
        super().run(storage, model)


def test_scenario_43_writes_come_in_pieces(storage: MemoryStorage, cell: Cell) -> None:
    workload = ShortWrites(seed=3, compression=cell.codec, segment_bytes=cell.segment_bytes)
    model = fresh_model()
    workload.run(storage, model)

    restart(storage.crash(keep="none"), workload, model, "none", restarts=cell.restarts)


# --- 44: no descriptors left -------------------------------------------------------------------

WITHOUT_DESCRIPTORS = """
import errno, os, sys
import millstream

with millstream.open(sys.argv[1], durability="os") as store:
    store.create_topic("t")
    store.create_topic("u")
    store.append("t", b"first")
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
    refused = 0
    for attempt in (
        lambda: store.append("u", b"never"),
        lambda: store.roll("t", 0),
        lambda: list(store.read("t")),
    ):
        try:
            attempt()
        except millstream.StorageError as error:
            assert error.errno == errno.EMFILE, error
            refused += 1
    assert refused == 3, refused
    store.append("t", b"second")
    for descriptor in taken:
        os.close(descriptor)
    store.append("u", b"first")
    store.roll("t", 0)
    store.append("t", b"third")
    assert [record.value for record in store.read("t")] == [b"first", b"second", b"third"]
"""


@pytest.mark.crash
def test_scenario_44_no_descriptors_are_left(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_DESCRIPTORS, tmp_path / "store"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    with millstream.open(tmp_path / "store") as store:
        assert [b"first", b"second", b"third"] == values(store)
        assert store.verify(deep=True).ok


def test_the_disk_is_really_full(tmp_path: Path) -> None:
    """A limit on the size of files cuts a write in the middle, as a full disk does."""
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("t")
        store.append("t", b"first")
        path = tmp_path / "store" / "topics" / "t" / "0" / f"{0:020d}.segment"
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with contextlib.ExitStack() as stack:
            limit = os.path.getsize(path) + 1000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
            with pytest.raises(StorageError) as caught:
                store.append("t", b"x" * 5000)
        assert errno.EFBIG == caught.value.errno
        assert 1 == store.append("t", b"second").offset
        assert [b"first", b"second"] == values(store)
        assert store.verify(deep=True).ok


def test_a_catalog_that_may_not_grow_says_why(tmp_path: Path) -> None:
    """SQLite calls a limit on the size of files a disk I/O error."""
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with contextlib.ExitStack() as stack:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
            with pytest.raises(StorageError, match=r"file size limit .* is reached") as caught:
                store.create_topic("u", partitions=1000)
        assert errno.EFBIG == caught.value.errno
        assert str(caught.value.path).endswith("catalog.db")
        store.create_topic("after")
        assert store.verify(deep=True).ok
