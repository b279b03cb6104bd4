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
from .errors import LockedError, StoreClosedError
from .storage import Lock
from .tail import IN_PROGRESS_WORD, LOCK_FILE_WORD, OWNER_PID_WORD, Tail

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

    def try_again(self) -> bool:
        """Always taken."""
        return True

    def acquire(self) -> None:
        """Always taken."""

    def release(self) -> None:
        """Nothing to let go."""

    def close(self) -> None:
        """Nothing is open."""


class AppendLock:
    """Context manager, for one thread at a time; not reentrant.

    A KeyboardInterrupt may come between any two calls, also before `__exit__` has begun. So what a
    thread holds is found out, not remembered: `let_go` may be called at any time, and a thread that
    still holds the lock from an interrupted use takes it over. Others would wait for it meanwhile:
    use it as `with lock.let_go_at_interrupt, lock:`, or, as it takes less time, call `let_go` when
    anything was raised.

    Raises:
        LockedError: it was held for 10 s by another process, whose pid the message names, or by
            another thread.
        StoreClosedError: the store is closed.
    """

    def __init__(self, lock: Lock, tail: Tail, clock: Clock) -> None:
        self._lock = lock
        self._tail = tail
        self._words = tail.shared
        self._clock = clock
        self._thread_lock = threading.RLock()
        self._holder = 0
        """Thread that holds it, 0 if none."""
        self._pid = os.getpid()
        self._file_version = 0
        """The word `lock_file_version` when the lock file was last seen to be there."""
        self.let_go_at_interrupt = _LetGo(self)
        self.on_interrupted: Callable[[int], None] = lambda _slot: None
        """Called with the slot number an earlier holder died on, while the lock is held."""

    def __enter__(self) -> None:
        thread = threading.get_ident()
        if self._holder == thread:
            self.let_go()
        try:
            # Two calls, because the one with a timeout takes longer.
            if not self._thread_lock.acquire(blocking=False) and not self._thread_lock.acquire(
                timeout=LOCK_TIMEOUT_SECONDS
            ):
                self._refuse_thread()
            if self._holder:
                self._lock.release()  # left by a thread that was interrupted while it let go
            self._holder = thread
            words = self._words.view
            try:
                version = words[LOCK_FILE_WORD]
            except IndexError:  # the words are unmapped
                raise StoreClosedError("the store is closed: open it again") from None
            # Somebody may have removed the lock file; that matters once another one makes it anew.
            if version == self._file_version:
                taken = self._lock.try_again()
            else:
                taken = self._lock.try_acquire()
            if not taken:
                self._wait()
            self._file_version = version
            words[OWNER_PID_WORD] = self._pid
            if words[IN_PROGRESS_WORD] and self._tail.usable:
                self.on_interrupted(words[IN_PROGRESS_WORD] - 1)
                self._tail.set("in_progress", 0)
        except BaseException:
            self.let_go()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._lock.release()
            self._holder = 0
            self._thread_lock.release()
        except BaseException:
            self.let_go()  # a second interruption right after is not to be expected
            raise

    def let_go(self) -> None:
        """Release what this thread holds, be it both locks, one or none."""
        if self._holder == threading.get_ident():
            self._lock.release()
            self._holder = 0
        try:  # noqa: SIM105 - `suppress` takes longer than all the rest
            self._thread_lock.release()
        except RuntimeError:
            pass  # not held by this thread

    def _refuse_thread(self) -> None:
        raise LockedError(
            f"another thread has held the append lock for {LOCK_TIMEOUT_SECONDS:g} s",
            path="append.lock",
        )

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

    def close(self, first: Callable[[], None] = lambda: None) -> None:
        """Call `first` and close the lock file, while no thread of this process holds it.

        Whoever waits for it is refused.
        """
        with self._thread_lock:
            try:
                first()
            finally:
                self._lock.close()

    def abandon(self) -> None:
        """Close the lock file in the child of a fork, where nobody holds it."""
        self._lock.close()


class _LetGo:
    """Around a use of the lock, for what is raised when that is being left."""

    def __init__(self, lock: AppendLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._lock.let_go()
