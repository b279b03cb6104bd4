"""Time, behind one seam. Only this module asks the operating system what time it is.

`now_ms` labels records and files and may jump; `monotonic` measures waiting and never goes back.
A test injects `millstream.testing.ManualClock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What the store needs to know about time. Implementations are thread-safe."""

    def now_ms(self) -> int:
        """Wall clock: UTC milliseconds since 1970. May jump in both directions."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back. For timeouts and leases only."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        ...

    def wait(self, wait: Callable[[float], object], seconds: float) -> None:
        """Let `wait(seconds)` return: after `seconds`, or early if what it waits for happens."""
        ...


class SystemClock:
    """The operating system's clocks."""

    def now_ms(self) -> int:
        """UTC milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)

    def wait(self, wait: Callable[[float], object], seconds: float) -> None:
        """Block the calling thread in `wait`."""
        wait(seconds)
