"""The thread in which a handle for asyncio does what may block.

A lock and a queue of C alone stand between it and the event loop, as in helpers.py: the second
Ctrl-C under `asyncio.run` comes anywhere, and may leave a lock of an executor held (see
docs/decisions/0037). What was given to it is done, also when nobody waits for it any more:
a `close` that is cancelled closes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from .errors import StoreClosedError

T = TypeVar("T")


class AsyncWorker:
    """Does calls one after another, in a thread of its own. Used from one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._serving = threading.Lock()
        self._started = False
        self._closed = False

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have it called; cancelling the future only leaves its result to nobody.

        Raises:
            StoreClosedError: After `close`.
        """
        if self._closed:
            raise StoreClosedError(f"the {self._name} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._start()
        self._calls.put(lambda: _call(function, loop, future))
        return future

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    def close(self) -> None:
        """Let the thread end when it has done what it was given. Idempotent; does not wait."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)

    def __del__(self) -> None:
        # The thread does not hold the worker: one that nobody closed ends with its handle.
        self._calls.put(None)

    def _start(self) -> None:
        if not self._started:
            name = f"millstream-async-{self._name}"
            both = (self._calls, self._serving)
            thread = threading.Thread(target=_serve, args=both, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # what may become of a Ctrl-C, as in helpers.py
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                raise
            self._started = True


def _serve(calls: SimpleQueue[Callable[[], None] | None], serving: threading.Lock) -> None:
    # A start that was interrupted is done again: then there are two threads, and one serves.
    with serving:
        while (call := calls.get()) is not None:
            call()
            del call  # what it holds goes before the next one comes
        calls.put(None)


def _call(
    function: Callable[[], T], loop: asyncio.AbstractEventLoop, future: asyncio.Future[T]
) -> None:
    """In the thread: call, and tell the loop."""
    settle: Callable[[], None]
    try:
        result = function()
    except BaseException as error:  # for the one who waits
        caught = error

        def settle() -> None:
            if not future.done():
                future.set_exception(caught)
    else:

        def settle() -> None:
            if not future.done():
                future.set_result(result)

    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(settle)
