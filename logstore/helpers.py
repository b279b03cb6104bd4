"""Threads that work beside the one that asks, wait for the disk above all.

A disk that is asked to flush several files at once takes little longer than for one.
They start when they are first needed and stay, because starting one takes as long as a fast sync.
What has to be synced, and what a failure means, is for `engine.py` and `group_commit.py`.

Locks and queues of C alone stand between the threads. The executors of Python wait in code of
Python that takes locks: a Ctrl-C in it may leave one held, and closing then waits for ever (see
docs/decisions/0037).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Generic, Self, TypeVar

HELPERS_MAX: Final = 16
"""With more to do at once, the rest waits its turn."""


T = TypeVar("T")


class Helped(Generic[T]):
    """What a helper does, and how that ended."""

    __slots__ = ("_ended", "_error", "_found", "_task")

    def __init__(self, task: Callable[[], T]) -> None:
        self._task = task
        self._ended = threading.Lock()
        self._ended.acquire()
        self._error: BaseException | None = None
        self._found: T

    def run(self) -> None:
        """Do it; called once."""
        try:
            self._found = self._task()
        except BaseException as error:  # for the one who waits
            self._error = error
        self._ended.release()

    def wait(self) -> T:
        """What it returns when it is done, or raise its error; called once."""
        self._ended.acquire()
        if self._error is not None:
            raise self._error
        return self._found


class Helpers:
    """Does tasks on threads of its own. Thread-safe; a task may not wait for another one."""

    def __init__(self, threads_max: int = HELPERS_MAX) -> None:
        self._threads_max = threads_max
        self._guard = threading.Lock()
        self._tasks: SimpleQueue[Helped[Any] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        """Tasks that were begun or wait."""
        self._closed = False

    def begin(self, task: Callable[[], T]) -> Helped[T]:
        """Have it done. Once closed, or where no thread can be had, before this returns."""
        helped = Helped(task)
        with self._guard:
            if not self._closed and self._busy >= len(self._threads) < self._threads_max:
                self._add_thread()
            if self._threads:
                self._busy += 1
                self._tasks.put(helped)
                return helped
        helped.run()
        return helped

    def _add_thread(self) -> None:
        name = f"millstream-helper-{len(self._threads)}"
        thread = threading.Thread(target=self._help, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # There may be no room for one, and at its exit the interpreter starts none. A Ctrl-C in
            # the wait for the start can become such an error, too: of a lock that was not held.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            return
        self._threads.append(thread)

    def _help(self) -> None:
        while (helped := self._tasks.get()) is not None:
            helped.run()
            with self._guard:
                self._busy -= 1
        # For the next one, however many there are: one whose start was interrupted is on no list.
        self._tasks.put(None)

    def close(self) -> None:
        """Return when everything begun is done. Idempotent."""
        with self._guard:
            self._closed = True
            threads, self._threads = self._threads, []
            self._tasks.put(None)
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
