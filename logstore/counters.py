"""What one open store has done so far: appends, syncs, compactions, retention. Plain numbers.

Counted per batch, per sync and per segment, never per record, by those who do the work; read by
`metrics.py`. Nothing here is kept on disk or shared between processes.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Final, NamedTuple, Protocol

from .clock import Clock

SYNC_BOUNDS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
"""Upper bounds of the buckets of `HandleMetrics.sync_buckets`, seconds; one more takes the rest."""


class HandleMetrics(NamedTuple):
    """What this handle of the store has done since it was opened; other processes count theirs."""

    appended_batches: int
    appended_records: int
    appended_bytes: int
    """As written: headers included, after compression."""
    syncs: int
    """Data syncs of segments that succeeded; one serves all who wait for it."""
    sync_failures: int
    sync_s: float
    """Seconds all of them took together."""
    sync_max_s: float
    sync_buckets: tuple[int, ...]
    """How many took at most each of `SYNC_BOUNDS_S`, and longer; each is counted once."""
    compactions: int
    """Of one partition each, given up ones included."""
    compacted_records: int
    """Removed by them."""
    compacted_bytes: int
    """By which segments became smaller."""
    retained_segments: int
    """Removed by retention."""
    retained_bytes: int


class Syncing(Protocol):
    """What is synced: a `File`."""

    def sync(self) -> None:
        """See `File.sync`."""
        ...


class Counters:
    """Counts what one handle does. Thread-safe."""

    __slots__ = (
        "_batches",
        "_bytes",
        "_clock",
        "_guard",
        "_records",
        "_retention",
        "_rewriting",
        "_sync_buckets",
        "_syncs",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._batches = 0
        self._records = 0
        self._bytes = 0
        self._syncs = (0, 0, 0.0, 0.0)
        self._sync_buckets = [0] * (len(SYNC_BOUNDS_S) + 1)
        self._rewriting = (0, 0, 0)
        self._retention = (0, 0)

    def appended_locked(self, records: int, size_bytes: int) -> None:
        """A batch was written, with the append lock held."""
        self._batches += 1
        self._records += records
        self._bytes += size_bytes

    def sync(self, file: Syncing) -> None:
        """Sync a file, and remember how long it took."""
        began = self._clock.monotonic()
        try:
            file.sync()
        except BaseException:
            with self._guard:
                count, failures, total, longest = self._syncs
                self._syncs = (count, failures + 1, total, longest)
            raise
        seconds = self._clock.monotonic() - began
        with self._guard:
            count, failures, total, longest = self._syncs
            self._syncs = (count + 1, failures, total + seconds, max(longest, seconds))
            self._sync_buckets[bisect_left(SYNC_BOUNDS_S, seconds)] += 1

    def compacted(self, records: int, saved_bytes: int) -> None:
        """A compaction of a partition has ended."""
        with self._guard:
            count, removed, saved = self._rewriting
            self._rewriting = (count + 1, removed + records, saved + saved_bytes)

    def retained(self, segments: int, size_bytes: int) -> None:
        """Retention has removed segments."""
        with self._guard:
            count, total = self._retention
            self._retention = (count + segments, total + size_bytes)

    def read(self) -> HandleMetrics:
        """All of them, now."""
        with self._guard:
            return HandleMetrics(
                self._batches,
                self._records,
                self._bytes,
                *self._syncs,
                tuple(self._sync_buckets),
                *self._rewriting,
                *self._retention,
            )
