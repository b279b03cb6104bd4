"""How many records are appended in one batch: a reader decodes a batch as a whole. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

BATCH_BYTES_MAX: Final = 1 << 20
BATCH_RECORDS_MAX: Final = 1 << 16


def fits(record_count: int, size_bytes: int) -> bool:
    """Whether so many records, with values of that size together, go into one batch."""
    return record_count <= BATCH_RECORDS_MAX and size_bytes <= BATCH_BYTES_MAX


def values_bytes(values: Sequence[bytes | None]) -> int:
    """The size of all values together."""
    return sum(map(len, filter(None, values)))


def cuts(values: Sequence[bytes | None]) -> Iterator[tuple[int, int]]:
    """Ranges of at most BATCH_BYTES_MAX and BATCH_RECORDS_MAX; one record may be larger."""
    if fits(len(values), values_bytes(values)):
        # Mostly so, and found without a list of sizes.
        if values:
            yield 0, len(values)
        return
    sizes = list(accumulate(len(value or b"") for value in values))
    start = 0
    while start < len(values):
        before = sizes[start - 1] if start else 0
        stop = bisect_left(sizes, before + BATCH_BYTES_MAX, start) + 1
        stop = min(stop, start + BATCH_RECORDS_MAX, len(values))
        yield start, stop
        start = stop
