"""Scenarios 48 to 56: several processes share a store, and some of them end badly.

Also what several processes may expect of each other: order, gapless offsets, exact content.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from interrupted_process import Killed, ProcessFile, ProcessStorage
from simulated_stores import kill, open_quietly
from store_children import finish, hear, say, spawn

import millstream
from millstream import (
    FencedError,
    LockedError,
    OffsetOutOfRangeError,
    Record,
    Store,
    TopicPartition,
)
from millstream.storage_protocols import Buffer, File, OpenMode
from millstream.testing import ManualClock, MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

TIMEOUT = 30
T0 = TopicPartition("t", 0)
SIMULATION = frozenset(
    f"millstream.{name}"
    for name in ("memory", "memory_words", "simulated_disk", "simulated_machine", "faults")
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a topic of one partition and one record."""
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t", segment_bytes=16384)
        store.append("t", b"first")
    return path


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


class HastyClock(millstream.SystemClock):
    """Time as it is, but waiting is counted a hundredfold."""

    def monotonic(self) -> float:
        return super().monotonic() * 100


# --- 48, 49, 54: the dead leave nothing, the living are named ----------------------------------


@pytest.mark.crash
def test_scenario_48_the_transaction_of_a_killed_owner_is_aborted_by_who_meets_it(
    path: Path,
) -> None:
    with millstream.open(path) as store:
        with spawn("leave_a_transaction_open", path) as child:
            assert b"r" == hear(child)
            store.append("t", b"after")
            assert [b"first"] == values(store), "its owner lives"
            child.kill()
            child.wait(TIMEOUT)
            with store.reader({T0: 1}) as reader:
                while not (found := reader.poll()):
                    assert reader.wait(TIMEOUT)
        assert [b"after"] == [value for batch in found for value in batch.values]
        assert len(list((path / "locks").iterdir())) <= 1


@pytest.mark.crash
def test_scenario_49_a_stopped_process_that_holds_the_append_lock_is_named(path: Path) -> None:
    with (
        spawn("hold_the_append_lock", path) as child,
        millstream.open(path, clock=HastyClock()) as store,
    ):
        store.read("t")
        assert b"r" == hear(child)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(LockedError, match=f"process {child.pid} has held") as caught:
            store.append("t", b"refused")
        assert "append.lock" == caught.value.path
        assert [b"first"] == values(store)
        child.send_signal(signal.SIGCONT)
        finish(child)
        store.append("t", b"accepted")
        assert [b"first", b"continued", b"accepted"] == values(store)


@pytest.mark.crash
def test_scenario_49_the_owner_of_a_name_is_named(path: Path) -> None:
    with spawn("own", path, "pipeline") as child, millstream.open(path) as store:
        assert b"r" == hear(child)
        with pytest.raises(LockedError, match=f"run by process {child.pid}"):
            store.own("pipeline")
        child.kill()
        child.wait(TIMEOUT)
        store.own("pipeline").close()


def test_scenario_50_an_owner_that_was_replaced_must_not_write(path: Path) -> None:
    """It was stopped, its lock was lost to another, and now it goes on."""
    with millstream.open(path) as store, millstream.open(path) as successor:
        stopped = store.own("pipeline")
        transaction = millstream.Transaction(store._engine, stopped)
        transaction.append("t", b"zombie")
        stopped.close()
        with successor.own("pipeline") as current:
            with successor.transaction(owner=current) as other:
                other.append("t", b"current")
            with pytest.raises(FencedError, match="took over"):
                transaction.commit()
        assert [b"first", b"current"] == values(store) == values(successor)


@pytest.mark.crash
def test_scenario_54_a_killed_follower_leaves_nothing(path: Path) -> None:
    with millstream.open(path) as store:
        before = sorted((path / "locks").glob("*"))
        with spawn("follow", path) as follower:
            assert b"r\nfirst\n" == hear(follower, 8)
            follower.kill()
            follower.wait(TIMEOUT)
        store.append("t", b"x" * 20_000)
        store.roll("t", 0)
        store.trim("t", {0: 2})
        assert (2, 2) == store.offsets("t")[0]
        assert before == sorted((path / "locks").glob("*"))
        with spawn("follow", path) as follower:
            assert b"r\n" == hear(follower, 2)
            store.append("t", b"next")
            assert b"next\n" == hear(follower, 5)


# --- 51: forks ---------------------------------------------------------------------------------


@pytest.mark.crash
def test_scenario_51_the_child_of_a_fork_refuses_and_the_parent_goes_on(path: Path) -> None:
    with spawn("fork", path) as child:
        assert b"9 of 9 refused\n" == finish(child)
    with millstream.open(path) as store:
        expected = [b"first", b"before", b"a store of its own", b"after", b"produced"]
        assert expected == values(store)
        assert store.verify().ok


# --- 52, 53: what readers see meanwhile --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
@pytest.mark.parametrize("read_only", [False, True])
def test_scenario_52_a_reader_during_appends_rolls_and_retention(
    path: Path, read_only: bool, cell: Cell
) -> None:
    """It meets each record once and in order, or is told that retention was faster."""
    count = 7 * 600
    name = "w" * 30  # long enough to be worth compressing
    with millstream.open(path) as store:
        store.configure_topic("t", compression=cell.codec, segment_bytes=cell.segment_bytes)
    writing = ("append", path, name, count, "os", 7)
    with spawn(*writing) as writer, millstream.open(path, read_only=read_only) as store:
        assert b"r" == hear(writer)
        trimmer = millstream.open(path)
        say(writer)
        reader = store.reader({T0: 0})
        next_offset = trimmed = 0
        while next_offset < count + 1:
            try:
                batches = reader.poll(max_bytes=1 << 14)
            except OffsetOutOfRangeError:
                next_offset = store.offsets("t")[0].start
                reader.seek(T0, next_offset)
                continue
            for record in (record for batch in batches for record in batch.records()):
                assert next_offset == record.offset
                written = f"{name} {next_offset - 1}".encode() if next_offset else b"first"
                assert written == record.value
                next_offset += 1
            if next_offset > trimmed + 300:
                trimmed = next_offset
                trimmer.trim("t", {0: trimmer.offsets("t")[0].end - 50})
            if not batches:
                reader.wait(1)
        reader.close()
        finish(writer)
        assert trimmer.offsets("t")[0].start > 0
        trimmer.close()
    for _ in range(cell.restarts):
        with millstream.open(path) as store:
            left = range(store.offsets("t")[0].start - 1, count)
            assert [f"{name} {number}".encode() for number in left] == values(store)
            assert store.verify(deep=True).ok


class HalfWritten(ProcessStorage):
    """Pauses in the middle of a write, or dies there, if asked to."""

    pause = dies = False

    def __init__(self, storage: MemoryStorage) -> None:
        super().__init__(storage)
        self.paused = threading.Event()
        self.go_on = threading.Event()

    def open(self, path: str, mode: OpenMode) -> File:
        file = super().open(path, mode)
        assert isinstance(file, ProcessFile)
        return HalfFile(self, file)


class HalfFile(ProcessFile):
    """Writes in two halves."""

    def __init__(self, storage: HalfWritten, file: ProcessFile) -> None:
        super().__init__(storage, file._file)
        self._half = storage

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        content = b"".join(buffers)
        if not self._half.pause and not self._half.dies:
            super().write([content], position)
            return
        half = len(content) * 2 // 3
        super().write([content[:half]], position)
        if self._half.dies:
            raise Killed
        self._half.paused.set()
        assert self._half.go_on.wait(TIMEOUT)
        super().write([content[half:]], position + half)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_scenario_53_a_batch_that_is_half_written_is_not_seen(zeros: bool, read_only: bool) -> None:
    storage = MemoryStorage()
    slow = HalfWritten(storage)
    with open_quietly(slow) as writer:
        writer.create_topic("t")
        writer.append("t", b"first")
        if zeros:
            writer._engine.log("t", 0).zero_fill()
        view = storage.read_only_view() if read_only else storage
        with (
            open_quietly(view, read_only=read_only) as other,
            other.reader({T0: 0}) as reader,
        ):
            assert [b"first"] == [value for batch in reader.poll() for value in batch.values]
            slow.pause = True
            thread = threading.Thread(target=writer.append, args=("t", b"x" * 1000), daemon=True)
            thread.start()
            assert slow.paused.wait(TIMEOUT)
            for _ in range(3):
                assert [] == reader.poll()
                assert [b"first"] == values(other)
            slow.go_on.set()
            thread.join(TIMEOUT)
            assert [b"x" * 1000] == [value for batch in reader.poll() for value in batch.values]
        slow.pause = False


@pytest.mark.parametrize("read_only", [False, True])
def test_scenario_52_a_torn_write_is_cut_under_a_reader(read_only: bool) -> None:
    storage = MemoryStorage()
    process = HalfWritten(storage)
    writer = open_quietly(process)
    writer.create_topic("t")
    writer.append("t", b"first")
    view = storage.read_only_view() if read_only else storage
    with open_quietly(view, read_only=read_only) as other, other.reader({T0: 0}) as reader:
        assert [b"first"] == [value for batch in reader.poll() for value in batch.values]
        process.dies = True
        with pytest.raises(Killed):
            writer.append("t", b"x" * 1000)
        kill(writer)
        assert [] == reader.poll()
        with open_quietly(storage) as successor:
            successor.append("t", b"next")
            assert [b"next"] == [value for batch in reader.poll() for value in batch.values]
            assert [b"first", b"next"] == values(other)
    assert storage.list("topics/t/0/quarantine")


def test_scenario_43_signals_interrupt_any_call(path: Path) -> None:
    caught = 0

    def note(*_: object) -> None:
        nonlocal caught
        caught += 1

    former = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with millstream.open(path) as store:
            written = 0
            while caught < 50:
                store.append("t", b"%d" % written)
                written += 1
            found = values(store)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert [b"first", *(b"%d" % number for number in range(written))] == found


# --- 55, 56: interrupts and exits --------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["write", "sync", "create", "rename", "sync_directory"])
@pytest.mark.parametrize("call", ["append", "append_many", "os", "roll", "transaction"])
@pytest.mark.cells(count=3)
def test_scenario_55_an_interrupt_between_write_and_acknowledgement(
    call: str, kind: str, after: bool, cell: Cell
) -> None:
    storage = MemoryStorage()
    process = ProcessStorage(storage)
    with open_quietly(process) as store, open_quietly(storage) as other:
        store.create_topic("t", compression=cell.codec, segment_bytes=cell.segment_bytes)
        store.append("t", b"first" * 600)
        for _ in range(cell.sealed):
            store.roll("t", 0)
            store.append("t", b"first" * 600)
        process.interrupt(KeyboardInterrupt(), kind=kind, after=after)
        try:
            interruptible(store, call)
            process.interrupt(KeyboardInterrupt())  # it does nothing of that kind
        except KeyboardInterrupt:
            pass
        written = len(list(other.read("t", isolation="uncommitted")))
        for number, each in enumerate((store, other, store)):
            each.append("t", b"%d" % number)
        found = values(store)
        assert found == values(other)
        first = cell.segments
        assert [b"first" * 600] * first + [b"0", b"1", b"2"] == found[:first] + found[-3:]
        assert found[first:-3] in ([], [b"interrupted" * 100])
        assert len(found) >= written + 3 or call == "transaction"
        assert store.verify().ok
    for _ in range(cell.restarts):
        storage = storage.crash(keep="none")
        with open_quietly(storage) as store:
            assert found == values(store)
            assert store.verify(deep=True).ok


def interruptible(store: Store, call: str) -> None:
    value = b"interrupted" * 100
    if call == "append":
        store.append("t", value)
    elif call == "append_many":
        store.append_many("t", [value])
    elif call == "os":
        store.append("t", value, durability="os")
    elif call == "roll":
        store.roll("t", 0)
    else:
        with store.transaction() as transaction:
            transaction.append("t", value)


@pytest.mark.parametrize("call", ["append", "append_many", "os", "roll", "transaction"])
def test_scenario_55_an_interrupt_at_each_call(call: str) -> None:
    """Python looks for signals where a function begins, and after those of C: at each place."""
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t", segment_bytes=4096)
        done = False
        for number in count():
            done = not interrupted_at(number, lambda: interruptible(store, call))
            beside = threading.Thread(target=store.append, args=("t", b"beside"), daemon=True)
            beside.start()
            beside.join(TIMEOUT)
            assert not beside.is_alive(), f"interrupted after call {number}, something is held"
            if done:
                break
        assert number > 50
        assert number + 1 == values(store).count(b"beside")
        assert store.verify().ok
        closer = threading.Thread(target=store.close, daemon=True)
        closer.start()
        closer.join(TIMEOUT)
        assert not closer.is_alive()


def names_of_callers(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


def interrupted_at(number: int, call: Callable[[], None]) -> bool:
    """Run `call` and interrupt it at the place of that number; False if there are fewer.

    A place is where a function begins or one of C has ended, but no finalizer: what is raised there
    is lost. What the simulated machine does inside stands for a system call, which ends first.
    """
    places = iter(range(number))

    def simulated(frame: FrameType | None) -> bool:
        return frame is not None and frame.f_globals["__name__"] in SIMULATION

    def interrupt(frame: FrameType, event: str, _function: object) -> None:
        if event == "return":
            is_place = simulated(frame) and not simulated(frame.f_back)
        else:
            is_place = event in {"call", "c_return"} and not simulated(frame)
            is_place = is_place and "__del__" not in names_of_callers(frame)
        if is_place and next(places, None) is None:
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.slow
@pytest.mark.crash
def test_scenario_55_interrupts_at_any_instruction(path: Path) -> None:
    with spawn("interrupt_yourself", path, 500) as child:
        acknowledged = finish(child).split(b"\n")
    with millstream.open(path) as store:
        found = values(store)
        assert set(acknowledged) <= set(found)
        assert len(set(found)) == len(found)
        assert [value for value in acknowledged if b"beside" in value] == [
            value for value in found if value and b"beside" in value
        ]
        assert store.verify().ok


@pytest.mark.crash
@pytest.mark.parametrize(
    ("how", "code"), [("end", 0), ("error", 3), ("_exit", 0), ("abort", -signal.SIGABRT)]
)
def test_scenario_56_an_interpreter_exits_without_a_close(path: Path, how: str, code: int) -> None:
    with spawn("exit_without_close", path, how) as child:
        assert b"r" == hear(child)
        _, errors = child.communicate(timeout=TIMEOUT)
        assert code == child.returncode, errors.decode()
    with millstream.open(path) as store:
        found = values(store)
        assert [b"first", b"durable", b"written"] == found[:3]
        assert found[3:] in ([], [b"perhaps"])
        store.append("t", b"next")
        assert store.verify().ok


# --- several processes at once -----------------------------------------------------------------

WRITERS = 3


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A store with a topic of four partitions."""
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t", partitions=4, segment_bytes=16384)
    return path


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize(("durability", "count", "batch"), [("os", 3000, 1), ("sync", 1500, 5)])
def test_writers_and_followers_of_one_topic_agree(
    shared: Path, durability: str, count: int, batch: int
) -> None:
    """Every record once, each writer's in its order, offsets gapless, one order for everybody."""
    total = WRITERS * count
    with ExitStack() as stack:
        stores = [stack.enter_context(millstream.open(shared)) for _ in range(2)]
        writers = [
            stack.enter_context(spawn("append", shared, f"w{name}", count, durability, batch))
            for name in range(WRITERS)
        ]
        assert [b"r"] * WRITERS == [hear(writer) for writer in writers]
        for writer in writers:
            say(writer)
        first = follow_all(stores[0], total)
        second = follow_all(stores[1], total)
        for writer in writers:
            finish(writer)
        third = [place_and_value(record) for record in stores[0].read("t")]
        sequences = [each.sequence for each in stores[0].read("t").batches()]

    assert first == second == third
    assert sequences == sorted(sequences)
    for partition in range(4):
        offsets = [offset for number, offset, _ in first if number == partition]
        assert list(range(len(offsets))) == offsets
    for name in range(WRITERS):
        prefix = b"w%d " % name
        mine = [value for _, _, value in first if value and value.startswith(prefix)]
        assert [prefix + b"%d" % number for number in range(count)] == mine


def follow_all(store: Store, count: int) -> list[tuple[int, int, bytes | None]]:
    """The first `count` records, as a follower gets them."""
    return [place_and_value(record) for record in islice(store.read("t", stop=None), count)]


def place_and_value(record: Record) -> tuple[int, int, bytes | None]:
    return record.partition, record.offset, record.value


@pytest.mark.slow
def test_the_merged_order_is_that_of_the_appends_while_threads_append(shared: Path) -> None:
    """Syncs end in any order; a merged reader waits for the one whose turn it is."""
    threads, calls = 6, 120
    with millstream.open(shared) as store:
        readers = [store.reader({TopicPartition("t", n): 0 for n in range(4)}) for _ in range(2)]

        def work(number: int) -> None:
            for call in range(calls):
                values = [b"%d %d" % (number, call)] * (1 + number % 3)
                store.append_many("t", values, partition=(number + call) % 4)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        orders = [list(sequences(reader, threads * calls)) for reader in readers]
        for worker in workers:
            worker.join(TIMEOUT)
        for reader in readers:
            assert [] == reader.poll()
            assert reader.at_end()
            reader.close()

    assert orders[0] == sorted(set(orders[0]))
    assert orders[0] == orders[1]
    assert threads * calls == len(orders[0])


def sequences(reader: millstream.LogReader, count: int) -> Iterator[int]:
    """The append order of the first batches, in the order in which they are read."""
    while count > 0:
        for batch in reader.poll():
            yield batch.sequence
            count -= 1
        reader.wait(0.1)


def test_an_open_transaction_holds_back_what_was_appended_after_it() -> None:
    clock = ManualClock(1)
    with open_quietly(MemoryStorage(), clock) as store:
        store.create_topic("t", partitions=2)
        partitions = {TopicPartition("t", number): 0 for number in range(2)}
        store.append("t", b"before", partition=1)
        with store.reader(partitions) as reader:
            with store.transaction() as transaction:
                transaction.append("t", b"open", partition=0)
                store.append("t", b"after", partition=1)
                assert [b"before"] == [value for each in reader.poll() for value in each.values]
                for _ in range(3):
                    clock.advance(1000)
                    assert [] == reader.poll()
                assert reader.at_end(), "nobody knows when it will be decided"
            found = [value for each in reader.poll() for value in each.values]
            assert [b"open", b"after"] == found
            assert reader.at_end()
