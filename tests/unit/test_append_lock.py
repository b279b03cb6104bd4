"""The append lock: one holder over threads and processes, and what a dead holder leaves."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import millstream
from millstream.append_lock import LOCK_TIMEOUT_SECONDS, AppendLock, NoLocks
from millstream.errors import LockedError, StoreClosedError
from millstream.storage import PosixStorage
from millstream.tail import Tail
from millstream.testing import MemoryStorage

TIMEOUT = 30


class TickingClock:
    """Time that passes whenever somebody looks, so that nobody waits in vain."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        self.elapsed += 0.01
        return self.elapsed

    def sleep(self, seconds: float) -> None:
        self.elapsed += seconds


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


def make(storage: MemoryStorage) -> tuple[AppendLock, Tail]:
    clock = TickingClock()
    tail = Tail(storage, clock)  # type: ignore[arg-type]  # waits for nothing here
    if not tail.usable:
        tail.reset(1)
    return AppendLock(storage.lock("append.lock"), tail, clock), tail  # type: ignore[arg-type]  # as above


def test_processes_exclude_each_other_and_the_holder_is_named(storage: MemoryStorage) -> None:
    first, tail = make(storage)
    second, _ = make(storage)
    with first:
        tail.set("owner_pid", 4711)
        refused = pytest.raises(LockedError, match=f"process 4711 .* {LOCK_TIMEOUT_SECONDS:g} s")
        with refused as caught, second:
            pass
        assert "append.lock" == caught.value.path
    with second:
        pass


def test_threads_exclude_each_other(storage: MemoryStorage) -> None:
    lock, _ = make(storage)
    inside, total = 0, 0

    def work() -> None:
        nonlocal inside, total
        for _ in range(300):
            with lock:
                inside += 1
                assert 1 == inside
                total += 1
                inside -= 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert 1200 == total


def test_an_interrupted_slot_is_recovered_by_the_next_holder_once(storage: MemoryStorage) -> None:
    lock, tail = make(storage)
    recovered: list[int] = []
    lock.on_interrupted = recovered.append
    tail.set("in_progress", 8)
    for _ in range(2):
        with lock:
            assert 0 == tail.get("in_progress")

    assert [7] == recovered


def test_a_recovery_that_is_interrupted_is_done_by_the_next_holder(storage: MemoryStorage) -> None:
    lock, tail = make(storage)
    recovered: list[int] = []

    def interrupted(slot: int) -> None:
        recovered.append(slot)
        if len(recovered) == 1:
            raise KeyboardInterrupt

    lock.on_interrupted = interrupted
    tail.set("in_progress", 8)
    with pytest.raises(KeyboardInterrupt), lock:
        pass
    with lock:
        assert 0 == tail.get("in_progress")
    assert [7, 7] == recovered


def test_words_that_are_not_ours_say_nothing(storage: MemoryStorage) -> None:
    lock, tail = make(storage)
    lock.on_interrupted = lambda slot: pytest.fail(f"recovered {slot}")
    tail.set("magic", 0)
    tail.set("in_progress", 8)
    with lock:
        pass


def test_an_error_inside_lets_go(storage: MemoryStorage) -> None:
    lock, _ = make(storage)
    other, _ = make(storage)
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with other:
        pass


def test_a_handle_that_never_writes_takes_no_lock(storage: MemoryStorage) -> None:
    locks = NoLocks()
    with make(storage)[0]:
        assert locks.lock("append.lock").try_acquire()
        locks.lock("append.lock").release()


def test_a_lock_file_that_was_removed_is_made_anew_for_everybody(tmp_path: Path) -> None:
    with millstream.open(tmp_path) as first:
        first.create_topic("t")
        first.append("t", b"a")
        (tmp_path / "append.lock").unlink()
        with millstream.open(tmp_path) as second:
            assert 1 == second.append("t", b"b").offset
            assert 2 == first.append("t", b"c").offset
            # They exclude each other: both hold the file of that name.
            with second._engine.append_lock:
                assert not first._engine.append_lock._lock.try_acquire()
            with first._engine.append_lock:
                assert not second._engine.append_lock._lock.try_acquire()


def test_a_lock_taken_again_excludes_others_too(tmp_path: Path) -> None:
    storages = [PosixStorage(tmp_path), PosixStorage(tmp_path)]
    locks = [each.lock("some.lock") for each in storages]
    try:
        assert locks[0].try_again()
        assert not locks[0].try_again()
        assert not locks[1].try_again()
        assert not locks[1].try_acquire()
        locks[0].release()
        assert locks[1].try_again()
    finally:
        for lock in locks:
            lock.close()
    with pytest.raises(StoreClosedError):
        locks[0].try_again()
