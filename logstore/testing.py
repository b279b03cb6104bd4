"""Crash-test your own code: a storage that can lose power, planned faults, a clock you turn.

Run your work once on a `MemoryStorage` and count the operations in its `trace`. Then run it again
for each of them, crash there, open a store on what is left, and check what you promise. That loop
is `crash_cases`:

>>> def work(storage: MemoryStorage) -> None:
...     file = storage.open("ledger", "x")
...     storage.sync_directory("")
...     file.write([b"paid"], 0)
...     file.sync()
>>> for case in crash_cases(work):
...     after = case.storage
...     content = after.open("ledger", "r").read(9, 0) if after.exists("ledger") else b""
...     assert content == b"paid" or not case.finished, case

`FaultPlan` lets single operations fail instead (a full disk, a failing sync), `ManualClock` lets
time pass without waiting. Nothing here is needed in production.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .errors import UsageError
from .faults import FaultPlan, SimulatedCrash
from .memory import MemoryStorage
from .simulated_disk import Keep

__all__ = [
    "CrashCase",
    "FaultPlan",
    "Keep",
    "ManualClock",
    "MemoryStorage",
    "SimulatedCrash",
    "crash_cases",
]


class ManualClock:
    """A clock that stands still until it is told to go on. Thread-safe.

    >>> clock = ManualClock(1_000)
    >>> clock.sleep(0.5)
    >>> clock.now_ms()
    1500
    """

    def __init__(self, now_ms: int = 0) -> None:
        self._lock = threading.Lock()
        self._now_ms = now_ms
        self._elapsed_ms = 0

    def __repr__(self) -> str:
        return f"<ManualClock {self._now_ms} ms>"

    def now_ms(self) -> int:
        """Wall clock in UTC milliseconds."""
        return self._now_ms

    def monotonic(self) -> float:
        """Seconds this clock was advanced or slept."""
        return self._elapsed_ms / 1000

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds`, without waiting; by a millisecond at least if that is not 0."""
        # At least, or a loop that sleeps until a deadline would never get there.
        self.advance(max(round(seconds * 1000), 1 if seconds > 0 else 0))

    def wait(self, wait: Callable[[float], object], seconds: float) -> None:
        """Look at what `wait` waits for, without waiting; then advance by `seconds`."""
        wait(0)
        self.sleep(seconds)

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass on both clocks.

        Raises:
            UsageError: `ms` is negative; use `jump` to set the wall clock back.
        """
        if ms < 0:
            raise UsageError("time does not go back: use jump() to set the wall clock")
        with self._lock:
            self._now_ms += ms
            self._elapsed_ms += ms

    def jump(self, ms: int) -> None:
        """Set the wall clock forward or, if negative, back. No time passes."""
        with self._lock:
            self._now_ms += ms


@dataclass(frozen=True, slots=True)
class CrashCase:
    """One crash of `crash_cases`: where it happened and what it left."""

    index: int
    """Number of the operation before which the machine lost power."""
    kind: str
    """Kind of that operation; empty if all had been done."""
    path: str
    """File of that operation."""
    keep: Keep
    """What was kept of all that was not synced."""
    seed: int
    """Seed of the outcome."""
    storage: MemoryStorage
    """What the next start of the machine finds."""

    @property
    def finished(self) -> bool:
        """True if the work had returned before the crash."""
        return not self.kind

    def __str__(self) -> str:
        where = f"{self.kind} {self.path}".strip() or "the end"
        return f"crash at operation {self.index} ({where}), keep={self.keep!r}, seed={self.seed}"


def crash_cases(
    work: Callable[[MemoryStorage], object],
    *,
    start: Callable[[], MemoryStorage] = MemoryStorage,
    seeds: Sequence[int] = (0,),
    every: int = 1,
) -> Iterator[CrashCase]:
    """Crash `work` before each of its operations and after the last, in every manner.

    Args:
        work: What to test. Called once per crash point, on a fresh storage; must do the same each
            time. It may remember outside what was acknowledged to it, if it starts anew each time.
        start: Makes the storage to work on, if the work is not to begin with an empty one.
        seeds: Seeds of the random outcomes; "none" and "all" are always tried.
        every: Crash only before each n-th operation.

    Yields:
        Each outcome. All outcomes of one crash point follow each other.
    """
    index = 0
    finished = False
    while not finished:
        storage = start()
        storage.faults = FaultPlan(crash_at=len(storage.trace) + index)
        kind = path = ""
        with contextlib.suppress(SimulatedCrash):
            work(storage)
        finished = not storage.is_dead
        if not finished:
            kind, path = storage.trace[-1]
        outcomes: list[tuple[Keep, int]] = [("none", 0), ("all", 0)]
        outcomes += [("random", seed) for seed in seeds]
        for keep, seed in outcomes:
            yield CrashCase(index, kind, path, keep, seed, storage.crash(seed, keep))
        index += every
