"""Threads that append at once: shared batches, errors that stay where they belong, interrupts."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Semaphore, Thread, main_thread

import pytest
from interrupted_process import ProcessStorage
from simulated_stores import log_of, open_quietly

import millstream
from millstream import Store
from millstream.errors import PoisonedError, StorageError, UnavailableError, UsageError
from millstream.group_append import BATCH_BYTES_MAX, GroupAppend
from millstream.record import RecordMetadata
from millstream.storage_protocols import Storage
from millstream.testing import MemoryStorage

TIMEOUT = 20


class HeldStorage(ProcessStorage):
    """Its next sync after `hold` waits for `let_go`; what is interrupted comes after that."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.holding = False
        self.reached = Semaphore(0)
        self.go = Semaphore(0)

    def begin(self, kind: str) -> bool:
        if kind == "sync" and self.holding:
            self.holding = False
            self.reached.release()
            assert self.go.acquire(timeout=TIMEOUT)
            return False
        return super().begin(kind)

    def hold(self) -> None:
        self.holding = True

    def let_go(self) -> None:
        self.go.release()


class Call(Thread):
    """One append on a thread of its own."""

    def __init__(self, store: Store, value: object, timestamp_ms: int | None = None) -> None:
        super().__init__(daemon=True)
        self.outcome: RecordMetadata | BaseException | None = None
        self._store = store
        self._value = value
        self._timestamp_ms = timestamp_ms
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._store.append(
                "t",
                self._value,  # type: ignore[arg-type] # wrong ones too
                timestamp_ms=self._timestamp_ms,
            )
        except BaseException as error:
            self.outcome = error

    def result(self) -> RecordMetadata:
        outcome = self.failure_or_result()
        assert isinstance(outcome, RecordMetadata), repr(outcome)
        return outcome

    def failure_or_result(self) -> RecordMetadata | BaseException:
        self.join(TIMEOUT)
        assert self.outcome is not None, "the append did not return"
        return self.outcome


def group_of(store: Store) -> GroupAppend:
    """The group of partition 0, made by its first append."""
    return store._appender._groups[log_of(store)]


def wait_for_rows(store: Store, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while len(group_of(store)._rounds.open.items) < count:
        assert time.monotonic() < deadline
        time.sleep(0)


def batch_sizes(store: Store) -> list[int]:
    return [batch.record_count for batch in store.read("t").batches()]


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


@pytest.fixture
def storage() -> HeldStorage:
    return HeldStorage(MemoryStorage())


@pytest.fixture
def store(storage: HeldStorage) -> Iterator[Store]:
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"first")
    yield store
    store.close()


@contextmanager
def gathered(store: Store, storage: HeldStorage, *rows: object) -> Iterator[list[Call]]:
    """Calls that gather while the sync of another is held; it ends when the block does."""
    storage.hold()
    other = Call(store, b"other")
    assert storage.reached.acquire(timeout=TIMEOUT)
    calls = []
    for count, row in enumerate(rows, 1):
        calls.append(Call(store, row))
        wait_for_rows(store, count)
    yield calls
    storage.let_go()
    other.result()


def test_threads_that_come_during_a_sync_share_the_next_batch(
    store: Store, storage: HeldStorage
) -> None:
    with gathered(store, storage, b"a", b"b", b"c") as calls:
        pass
    assert [call.result().offset for call in calls] == [2, 3, 4]
    assert values(store) == [b"first", b"other", b"a", b"b", b"c"]
    assert batch_sizes(store) == [1, 1, 3]


def test_each_record_keeps_its_key_headers_and_timestamp(
    store: Store, storage: HeldStorage
) -> None:
    with gathered(store, storage) as calls:
        calls.append(Call(store, b"a", timestamp_ms=77))
        wait_for_rows(store, 1)
        calls.append(Call(store, None))
        wait_for_rows(store, 2)
    given, stamped = (call.result() for call in calls)
    records = list(store.read("t"))[2:]
    assert given.timestamp_ms == 77
    assert [given.timestamp_ms, stamped.timestamp_ms] == [one.timestamp_ms for one in records]
    assert [record.value for record in records] == [b"a", None]


def test_a_record_that_is_wrong_fails_alone(store: Store, storage: HeldStorage) -> None:
    with gathered(store, storage, b"a", "text", b"c") as calls:
        pass
    assert calls[0].result().offset == 2
    assert isinstance(calls[1].failure_or_result(), UsageError)
    assert calls[2].result().offset == 3
    assert values(store)[2:] == [b"a", b"c"]


def test_a_round_of_wrong_records_appends_nothing(store: Store, storage: HeldStorage) -> None:
    with gathered(store, storage, "text", 5) as calls:
        pass
    assert all(isinstance(call.failure_or_result(), UsageError) for call in calls)
    assert values(store) == [b"first", b"other"]
    assert store.append("t", b"next").offset == 2


def test_large_records_are_batches_of_their_own(store: Store, storage: HeldStorage) -> None:
    large = b"x" * BATCH_BYTES_MAX
    with gathered(store, storage, large, b"b") as calls:
        pass
    assert [call.result().offset for call in calls] == [2, 3]
    assert batch_sizes(store) == [1, 1, 1, 1]


def test_a_failed_sync_fails_everybody_who_waits_for_it(store: Store, storage: HeldStorage) -> None:
    with gathered(store, storage, b"a", b"b", b"c") as calls:
        storage.interrupt(StorageError("no", errno=errno.EIO, path="t"), kind="sync")
    assert all(isinstance(call.failure_or_result(), PoisonedError) for call in calls)
    with pytest.raises(PoisonedError):
        store.append("t", b"later")
    assert values(store) == [b"first", b"other"]


def test_a_failed_write_fails_everybody_in_the_round_and_nobody_after_it(
    store: Store, storage: HeldStorage
) -> None:
    with gathered(store, storage, b"a", b"b") as calls:
        storage.interrupt(StorageError("no", errno=errno.ENOSPC, path="t"), kind="write")
    for call in calls:
        error = call.failure_or_result()
        assert isinstance(error, StorageError)
        assert error.errno == errno.ENOSPC
    assert store.append("t", b"next").offset == 2


@pytest.mark.parametrize("after", [False, True])
def test_the_sync_of_an_interrupted_thread_is_done_by_the_next(
    store: Store, storage: HeldStorage, after: bool
) -> None:
    with gathered(store, storage, b"a", b"b", b"c") as calls:
        storage.interrupt(KeyboardInterrupt(), kind="sync", after=after)
    assert isinstance(calls[0].failure_or_result(), KeyboardInterrupt)
    assert [call.result().offset for call in calls[1:]] == [3, 4]
    assert values(store)[2:] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("after", [False, True])
def test_records_of_an_interrupted_write_are_in_doubt(
    store: Store, storage: HeldStorage, after: bool
) -> None:
    with gathered(store, storage, b"a", b"b", b"c") as calls:
        storage.interrupt(KeyboardInterrupt(), kind="write", after=after)
    assert isinstance(calls[0].failure_or_result(), KeyboardInterrupt)
    for call in calls[1:]:
        error = call.failure_or_result()
        assert isinstance(error, UnavailableError)
        assert "may be there or not" in str(error)
    written = [b"a", b"b", b"c"] if after else []
    assert store.append("t", b"next").offset == 2 + len(written)
    assert values(store)[2:] == [*written, b"next"]


class Interrupt(BaseException):
    """What the signal handler raises."""


class MainThread:
    """The only thread that handles signals. One of ours raises Interrupt in it, once."""

    def __init__(self) -> None:
        self.interrupted = False

    def handle(self, *_: object) -> None:
        if not self.interrupted:
            self.interrupted = True
            raise Interrupt

    def interrupt(self) -> None:
        ident = main_thread().ident
        assert ident is not None
        deadline = time.monotonic() + TIMEOUT
        # One that comes just before the thread blocks is handled when it wakes, too late.
        while not self.interrupted and time.monotonic() < deadline:
            signal.pthread_kill(ident, signal.SIGUSR1)
            time.sleep(0)


@pytest.fixture
def main() -> Iterator[MainThread]:
    main = MainThread()
    before = signal.signal(signal.SIGUSR1, main.handle)
    yield main
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("place", [0, 1])
def test_a_thread_interrupted_while_it_waits_leaves_nobody_behind(
    store: Store, storage: HeldStorage, main: MainThread, place: int
) -> None:
    """Place 0: the one who was to begin the round."""
    with gathered(store, storage, *[b"a"][:place]) as calls:

        def follow() -> None:
            wait_for_rows(store, place + 1)
            calls.append(Call(store, b"c"))
            wait_for_rows(store, place + 2)
            main.interrupt()

        Thread(target=follow, daemon=True).start()
        with pytest.raises(Interrupt):
            store.append("t", b"b")
    for call in calls:
        call.result()
    # The interrupted row is in its round; it never comes with a later one.
    expected = [b"a", b"b", b"c"][1 - place :]
    assert values(store)[2:] == expected
    assert store.append("t", b"next").offset == 2 + len(expected)


def test_a_row_abandoned_alone_is_not_appended_later(
    store: Store, storage: HeldStorage, main: MainThread
) -> None:
    with gathered(store, storage):

        def strike() -> None:
            wait_for_rows(store, 1)
            main.interrupt()

        Thread(target=strike, daemon=True).start()
        with pytest.raises(Interrupt):
            store.append("t", b"abandoned")
    store.append("t", b"next")
    assert values(store) == [b"first", b"other", b"next"]


# --- waiting for those who come back -------------------------------------------------------------


@pytest.fixture
def timed_store(storage: HeldStorage) -> Iterator[Store]:
    """With a clock that lets time pass."""
    store = millstream.open(storage=storage)
    store._engine.background.close()  # its syncs are not to be interrupted
    store.create_topic("t")
    store.append("t", b"first")
    yield store
    store.close()


def expect(store: Store, threads: int, seconds: float) -> None:
    """As if so many threads had been there in the last round, which took so long."""
    group = group_of(store)
    group._rounds.expected, group._rounds.round_seconds = threads, seconds


def test_the_last_one_expected_serves_the_round(timed_store: Store) -> None:
    expect(timed_store, 3, TIMEOUT)
    calls = [Call(timed_store, b"x") for _ in range(3)]
    assert sorted(call.result().offset for call in calls) == [1, 2, 3]
    assert batch_sizes(timed_store) == [1, 3]


def test_who_waits_in_vain_appends_alone_and_does_not_wait_again(timed_store: Store) -> None:
    expect(timed_store, 3, 0.001)
    assert timed_store.append("t", b"x").offset == 1
    expect(timed_store, 3, TIMEOUT)
    assert timed_store.append("t", b"x").offset == 2
    assert group_of(timed_store)._rounds.expected == 1


@pytest.mark.parametrize("after", [False, True])
def test_the_host_goes_on_when_the_last_one_is_interrupted(
    timed_store: Store, storage: HeldStorage, after: bool
) -> None:
    expect(timed_store, 2, TIMEOUT)
    host = Call(timed_store, b"a")
    wait_for_rows(timed_store, 1)
    storage.interrupt(KeyboardInterrupt(), kind="sync", after=after)
    last = Call(timed_store, b"b")
    outcomes = [host.failure_or_result(), last.failure_or_result()]
    assert [KeyboardInterrupt] == [type(one) for one in outcomes if isinstance(one, BaseException)]
    assert values(timed_store) == [b"first", b"a", b"b"]


def test_many_threads_lose_and_double_nothing(tmp_path: Path) -> None:
    threads, each = 8, 150
    with millstream.open(tmp_path / "s") as store:
        store.create_topic("t")
        written: dict[int, bytes] = {}

        def append(thread: int) -> None:
            for number in range(each):
                value = b"%d-%d" % (thread, number)
                written[store.append("t", value, key=b"k").offset] = value

        workers = [Thread(target=append, args=(number,), daemon=True) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(TIMEOUT)
            assert not worker.is_alive()
        assert [written[offset] for offset in range(threads * each)] == values(store)
        assert len(batch_sizes(store)) < threads * each / 2
