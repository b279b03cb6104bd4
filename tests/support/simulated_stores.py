"""Stores on a simulated machine: opened without threads of their own, ended by a crash or a kill.

A crash (`MemoryStorage.crash`) ends the machine and takes what was not synced; `abandon` then lets
the dead handles go. `kill` ends one process of several: its locks are free, everything it wrote is
there, and nobody has said goodbye.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import millstream
from millstream import Store
from millstream.clock import Clock
from millstream.config import Durability
from millstream.log import Log
from millstream.storage_protocols import Storage
from millstream.tail import Slot
from millstream.testing import ManualClock, SimulatedCrash

START_MS = 1_700_000_000_000


def open_quietly(
    storage: Storage,
    clock: Clock | None = None,
    *,
    durability: Durability = "sync",
    read_only: bool = False,
) -> Store:
    """Open a store that starts no background thread, so that every run does the same.

    Where threads of several handles contend for locks, give it a `SystemClock`: on a `ManualClock`
    the ten seconds a lock is waited for pass at once.
    """
    store = millstream.open(
        storage=storage,
        clock=clock or ManualClock(START_MS),
        durability=durability,
        read_only=read_only,
    )
    store._engine.background.close()
    return store


def log_of(store: Store, topic: str = "t", partition: int = 0) -> Log:
    return store._engine.log(topic, partition)


def abandon(store: Store) -> None:
    """Let go of the handles of a machine that lost power."""
    engine = store._engine
    engine.background.close()
    engine.catalog.close()
    engine.closed = True


@contextlib.contextmanager
def until_power_fails(store: Store) -> Iterator[Store]:
    """Close the store at the end of the block, or abandon it where the power fails."""
    try:
        yield store
        store.close()
    except SimulatedCrash:
        abandon(store)
        raise


def kill(store: Store) -> None:
    """End the process of this store, as `kill -9` would."""
    engine = store._engine
    abandon(store)
    engine.append_lock._lock.release()
    engine._open_lock.release()
    if engine.liveness._lock is not None:
        engine.liveness._lock.release()


def make_visible(store: Store, topic: str, partition: int) -> None:
    """Sync what a process wrote that died before it could: then it is acknowledged by others."""
    log = log_of(store, topic, partition)
    with store._engine.append_lock:
        pass  # whoever takes the lock recovers what was interrupted
    log.wait_durable(log.slot[Slot.LOG_END])
