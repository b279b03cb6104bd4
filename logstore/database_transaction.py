"""A transaction of one SQLite connection, as a block that no interrupt leaves open for long.

What the statements are is in `database.py`, what may go wrong with them in `database_errors.py`. A
KeyboardInterrupt may come between any two calls, also before `__exit__` has begun. So, as in
`append_lock.py`, whose transaction is open is found out and not remembered: one left open is rolled
back when the interrupt has been dealt with, and before that by the next transaction of the same
thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class Turns:
    """One transaction at a time over all threads.

    Args:
        lock: Held from before a transaction begins until after it has ended.
        begin: Begins one, durable or not.
        commit: Commits one, durable or not.
        roll_back: Undoes one, if one is open; raises nothing.
    """

    def __init__(
        self,
        lock: threading.RLock,
        begin: Callable[[bool], None],
        commit: Callable[[bool], None],
        roll_back: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._begin = begin
        self._commit = commit
        self._roll_back = roll_back
        self._current: object = None
        """Stands for the transaction whose turn it is; not itself, so that it can be garbage."""

    def take(self, turn: object, durable: bool) -> None:
        """Wait for the turn, and begin."""
        try:
            self._lock.acquire()
            if self._current is not None:
                self.give_back(self._current)
            self._current = turn
            self._begin(durable)
        except BaseException:
            self.give_back(turn)
            raise

    @property
    def begun(self) -> bool:
        """Whether a turn is not over: in a thread that has the lock, one of an interrupted use."""
        return self._current is not None

    def commit(self, turn: object, durable: bool) -> None:
        """Commit, if nothing has taken the turn meanwhile."""
        assert self._current is turn, "transactions do not nest"
        self._commit(durable)

    def has(self, turn: object) -> bool:
        """Whether a turn is not over."""
        return self._current is turn

    def give_back(self, turn: object) -> None:
        """Undo what is not committed and release the lock, as far as this thread has it."""
        if self._current is turn:
            self._roll_back()
            self._current = None
        try:  # noqa: SIM105 - `suppress` takes longer than all the rest
            self._lock.release()
        except RuntimeError:
            pass  # interrupted before it was taken

    def end_interrupted(self) -> None:
        """Roll back what an interrupt has left open in this thread."""
        with self._lock:
            if self._current is not None:
                self.give_back(self._current)


class DatabaseTransaction:
    """Context manager: commits at the end of the block, rolls back if it raises. Not reentrant."""

    __slots__ = ("_durable", "_turn", "_turns")

    def __init__(self, turns: Turns, *, durable: bool) -> None:
        self._durable = durable
        self._turns = turns
        self._turn = object()

    def __enter__(self) -> None:
        self._turns.take(self._turn, self._durable)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._turns.commit(self._turn, self._durable)
        finally:
            self._turns.give_back(self._turn)

    def __del__(self) -> None:
        if hasattr(self, "_turn") and self._turns.has(self._turn):
            self._turns.give_back(self._turn)
