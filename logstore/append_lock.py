"""The store-wide append lock: one writer at a time, over all threads and processes.

Held for the write only; encoding comes before it and syncing after. The word `in_progress` names
the slot being written. A process that dies in between leaves it set, and whoever takes the lock
next first recovers that partition: the interrupted batch is adopted if it is whole, cut if not,
before any later batch gets a higher sequence.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

from .clock import Clock
from .errors import LockedError
from .storage import Lock
from .tail import Tail

LOCK_TIMEOUT_SECONDS: Final = 10.0
"""An append holds the lock for some 20 us; nobody healthy holds it for seconds."""
_SPINS: Final = 20
_PAUSE_SECONDS: Final = 0.0001


class NoLocks:
    """Locks for a handle that never writes: always free, never shared with anybody."""

    path = ""

    def lock(self, path: str) -> NoLocks:
        """Stands in for `Storage.lock`."""
        return self

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Always taken."""
        return True

    def acquire(self) -> None:
        """Always taken."""

    def release(self) -> None:
        """Nothing to let go."""

    def close(self) -> None:
        """Nothing is open."""


class AppendLock:
    """Context manager. Reentrant within a thread, because retention rolls and rolls append.

    Raises:
        LockedError: another process held it for 10 s; the message names its pid.
    """

    def __init__(self, lock: Lock, tail: Tail, clock: Clock) -> None:
        self._lock = lock
        self._tail = tail
        self._clock = clock
        self._thread_lock = threading.RLock()
        self._depth = 0
        self._pid = os.getpid()
        self.on_interrupted: Callable[[int], None] = lambda _slot: None
        """Called with the slot number an earlier holder died on, while the lock is held."""

    def __enter__(self) -> None:
        self._thread_lock.acquire()
        if self._depth == 0:
            try:
                self._acquire()
            except BaseException:
                self._thread_lock.release()
                raise
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._lock.release()
        self._thread_lock.release()

    def _acquire(self) -> None:
        if not self._lock.try_acquire():
            self._wait()
        tail = self._tail
        tail.set("owner_pid", self._pid)
        if (interrupted := tail.get("in_progress")) and tail.usable:
            self._depth += 1  # recovery takes the lock again
            try:
                self.on_interrupted(interrupted - 1)
                tail.set("in_progress", 0)
            except BaseException:
                self._lock.release()
                raise
            finally:
                self._depth -= 1

    def _wait(self) -> None:
        deadline = self._clock.monotonic() + LOCK_TIMEOUT_SECONDS
        tries = 0
        while not self._lock.try_acquire():
            if self._clock.monotonic() > deadline:
                pid = self._tail.get("owner_pid")
                raise LockedError(
                    f"process {pid} has held the append lock for {LOCK_TIMEOUT_SECONDS:g} s;"
                    " it may be stopped. Continue or end it",
                    path="append.lock",
                )
            tries += 1
            self._clock.sleep(0 if tries < _SPINS else _PAUSE_SECONDS)

    def close(self) -> None:
        """Close the lock file."""
        self._lock.close()
