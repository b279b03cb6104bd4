"""The thread that writes commits while the run loop goes on.

A lock and a queue of C alone stand between the two. The executors of Python wait in code of Python
that takes locks: a Ctrl-C in it may leave one held, and the run would wait for its end for ever.
What is written, and what an error means, is for epoch.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """A call, and how it ended."""

    __slots__ = ("_call", "_ended", "_error", "_found", "done")

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._ended = threading.Lock()
        self._ended.acquire()
        self._error: BaseException | None = None
        self._found: T
        self.done = False

    def run(self) -> None:
        """Do it; called once."""
        # What it holds, the whole of an epoch, goes before anybody hears that it is done.
        call = self._call
        del self._call
        try:
            self._found = call()
        except BaseException as error:  # for the one who asks
            self._error = error
        del call
        self.done = True
        self._ended.release()

    def error(self) -> BaseException | None:
        """What it raised; None if it came to its end. For one thread."""
        while not self.done:
            self._ended.acquire()
        return self._error

    def result(self) -> T:
        """What it returned, or raise what it raised. For one thread, which may ask again."""
        if (error := self.error()) is not None:
            raise error
        return self._found


class CommitThread:
    """Does calls one after another. For one thread; a context manager that waits at its end."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Begun[Any] | None] = SimpleQueue()
        self._serving = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, call: Callable[[], T]) -> Begun[T]:
        """Have it done; the thread starts with the first one."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="millstream-commit", daemon=True)
            thread.start()
            self._thread = thread
        begun = Begun(call)
        self._calls.put(begun)
        return begun

    def _work(self) -> None:
        # A start that was interrupted is done again: then there are two threads, and one serves.
        with self._serving:
            while (begun := self._calls.get()) is not None:
                begun.run()
        self._calls.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join()
