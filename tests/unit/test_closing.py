"""Closing a store while its threads are busy: they get StoreClosedError and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from interrupted_calls import ends

import millstream
from millstream import Store
from millstream.config import Durability
from millstream.errors import StoreClosedError
from millstream.posix_bell import PosixBell
from millstream.record import TopicPartition
from millstream.storage import PosixStorage
from millstream.storage_protocols import Storage
from millstream.testing import ManualClock, MemoryStorage

THREADS_DEADLINE_SECONDS = 20
ROUNDS = 15


def append(store: Store, started: Callable[[], None]) -> None:
    while True:
        store.append("t", b"value", partition=0)
        started()


def append_weakly(store: Store, started: Callable[[], None]) -> None:
    while True:
        store.append_many("t", [b"value"] * 10, partition=1, durability="os")
        started()


def commit(store: Store, started: Callable[[], None]) -> None:
    while True:
        with store.transaction() as transaction:
            transaction.append("t", b"value", partition=0)
        started()


def follow(store: Store, started: Callable[[], None]) -> None:
    started()
    for _ in store.read("t", stop=None):
        pass


def wait(store: Store, started: Callable[[], None]) -> None:
    with store.reader({TopicPartition("t", 2): 0}) as reader:
        started()
        while True:
            reader.wait(None)
            reader.poll()


def look(store: Store, started: Callable[[], None]) -> None:
    while True:
        store.offsets("t")
        store.segments("t", 0)
        store.offset_at("t", 0, "@2020-01-01")
        store.roll("t", 0)
        started()


@pytest.mark.parametrize("kind", ["posix", "memory"])
def test_busy_threads_of_a_store_that_is_closed_are_told_so(kind: str, tmp_path: Path) -> None:
    storage: Storage = PosixStorage(tmp_path / "s") if kind == "posix" else MemoryStorage()
    with millstream.open(storage=storage) as survivor:
        survivor.create_topic("t", partitions=3)
        for _ in range(ROUNDS):
            for error in _close_under_load(millstream.open(storage=storage)):
                assert isinstance(error, StoreClosedError), repr(error)
            for partition in range(3):
                survivor.append("t", b"goes on", partition=partition)
    with millstream.open(storage=storage) as again:
        assert again.verify("t").ok


def _close_under_load(store: Store) -> list[BaseException]:
    errors: list[BaseException] = []
    works = [append, append, append_weakly, commit, follow, wait, look]
    ready = threading.Barrier(len(works) + 1)

    def run(work: Callable[[Store, Callable[[], None]], None]) -> None:
        waiting = True

        def started() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                ready.wait(THREADS_DEADLINE_SECONDS)

        try:
            work(store, started)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    ready.wait(THREADS_DEADLINE_SECONDS)
    store.close()
    for thread in threads:
        thread.join(THREADS_DEADLINE_SECONDS)
        assert not thread.is_alive(), "a thread hangs in a closed store"
    assert len(works) == len(errors)
    return errors


@pytest.mark.crash
def test_the_child_of_a_fork_can_close_what_busy_threads_of_the_parent_hold(tmp_path: Path) -> None:
    with millstream.open(tmp_path / "s") as store:
        store.create_topic("t", partitions=3)
        busy = threading.Event()
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                store.append("t", b"value", partition=0)
                busy.set()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        busy.wait(THREADS_DEADLINE_SECONDS)
        statuses = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                _close_as_child(store)
            statuses.append(os.waitpid(child, 0)[1])
        stopped.set()
        for thread in threads:
            thread.join()
        store.append("t", b"goes on", partition=0)

    assert [0] * 10 == statuses


def _close_as_child(store: Store) -> NoReturn:
    signal.alarm(THREADS_DEADLINE_SECONDS)  # ends a child that hangs
    try:
        with contextlib.suppress(StoreClosedError):
            store.append("t", b"never")
            os._exit(1)
        store.close()
    except BaseException:
        os._exit(2)
    os._exit(0)


@pytest.mark.parametrize("durability", ["os", "sync"])
def test_an_interrupt_while_the_lock_is_let_go_leaves_it_to_others(
    durability: Durability, tmp_path: Path
) -> None:
    """Ctrl-C may come when `with` calls `__exit__`, before its first instruction."""
    storage = PosixStorage(tmp_path / "s")
    with millstream.open(storage=storage) as store, millstream.open(storage=storage) as other:
        store.create_topic("t", partitions=3)
        store.append("t", b"first", partition=0)

        def interrupt(frame: FrameType, event: str, argument: object) -> None:
            code = frame.f_code
            if code.co_name == "__exit__" and code.co_filename.endswith("append_lock.py"):
                sys.settrace(None)
                raise KeyboardInterrupt

        sys.settrace(interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.append_many("t", [b"second"], partition=0, durability=durability)

        assert other.append("t", b"third", partition=0).offset == 2


class InterruptedLock:
    """Ctrl-C where a thread waits for a lock that others have: it does not get it."""

    def __init__(self, lock: Any, at: int) -> None:
        self._lock = lock
        self._left = at

    def __enter__(self) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("at", [1, 2])
def test_after_an_interrupt_of_a_wait_the_next_one_listens(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody waits for the one that was interrupted."""
    store = millstream.open(tmp_path / "s", clock=ManualClock())
    tail, listened = store._engine.tail, []
    monkeypatch.setattr(PosixBell, "wait", lambda _bell, _seconds: listened.append(True))
    with monkeypatch.context() as patch:
        patch.setattr(tail._wakeup, "_lock", InterruptedLock(tail._wakeup._lock, at))
        with pytest.raises(KeyboardInterrupt):
            tail.wait(tail.get("wake_version"), 0.01)
    listened.clear()
    tail.wait(tail.get("wake_version"), 0.01)
    assert listened == [True]
    assert ends(store.close)


def test_a_signal_handler_closes_the_store_whose_bell_it_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = millstream.open(tmp_path / "s")
    monkeypatch.setattr(PosixBell, "wait", lambda _bell, _seconds: store.close())

    def wait() -> None:
        with pytest.raises(StoreClosedError):
            store._engine.wait(store._engine.tail.get("wake_version"), 60)

    assert ends(wait)
