"""One daemon thread per open store for work nobody waits for: zero fill, interval sync, sealing.

A task that fails is logged and not repeated; what it was to achieve is either only speed or is
reported to the next caller by the partition itself (a failed sync poisons it). Whatever a task
raises, those after it run: an error that is none of ours is logged with its traceback.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable

from .clock import Clock
from .errors import MillstreamError
from .faults import SimulatedCrash

_logger = logging.getLogger("millstream")


class Background:
    """Runs submitted tasks one after another. Thread-safe; the thread starts with the first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Taken by itself, never through the condition: `Condition.__enter__` is Python code, and an
        # interrupt on its way out would leave the lock held for ever.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._due: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, key: Hashable, task: Callable[[], None], *, delay_seconds: float = 0) -> None:
        """Run `task` once after the delay; a task waiting under the same key is kept instead."""
        if key in self._due or self._closed:
            return
        with self._lock:
            if self._thread is None and not self._start():
                return
            self._due.setdefault(key, (self._clock.monotonic() + delay_seconds, task))
            self._work.notify()

    def _start(self) -> bool:
        """Start the thread; False where none can be had. The next task tries again."""
        thread = threading.Thread(target=self._run, name="millstream-background", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no room for one, or the interpreter is about to exit
            _logger.warning("background task not run: %s", error)
            return False
        self._thread = thread
        return True

    def close(self) -> None:
        """Drop what has not started and wait for what is running."""
        with self._lock:
            self._closed = True
            self._due.clear()
            self._work.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except SimulatedCrash:
                return  # a machine without power, in a test: nothing runs on it any more
            except MillstreamError as error:
                _logger.warning("background task failed: %s", error)
            except Exception:
                _logger.exception("background task failed; please report this")

    def _next(self) -> Callable[[], None] | None:
        """Wait for the task that is due first; None when closed."""
        with self._lock:
            while not self._closed:
                if not self._due:
                    self._work.wait()
                    continue
                key = min(self._due, key=lambda candidate: self._due[candidate][0])
                pause = self._due[key][0] - self._clock.monotonic()
                if pause <= 0:
                    return self._due.pop(key)[1]
                self._work.wait(pause)
        return None
