"""Ranges of offsets that a queue has handed out, and what becomes of them. Pure.

How they are kept is `queue_catalog.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Final, NamedTuple

NOBODY: Final = 0
"""Worker of a range that waits to be claimed."""


class Range(NamedTuple):
    """The offsets [start, stop) of a partition, delivered so many times."""

    partition: int
    start: int
    stop: int
    deliveries: int


class Lease(NamedTuple):
    """A range as a worker has it, to be told from all others ever handed out in the store."""

    queue_id: int
    worker_id: int
    range: Range


class Fate(NamedTuple):
    """What becomes of a range that is not done."""

    worker_id: int
    due_ms: int
    """End of the lease, by the monotonic clock; for NOBODY the UTC time it waits for."""
    deliveries: int


class Settlement(NamedTuple):
    """A leased range, as it was handed out, and what becomes of it; None: it is done."""

    range: Range
    fate: Fate | None


_RANGE: Final = itemgetter(0)


def coalesced(settlements: Iterable[Settlement]) -> list[Settlement]:
    """The same settlements with neighbours of one fate and as many deliveries joined. Pure.

    >>> coalesced([Settlement(Range(0, 6, 7, 1), None), Settlement(Range(0, 5, 6, 1), None)])
    [Settlement(range=Range(partition=0, start=5, stop=7, deliveries=1), fate=None)]
    """
    joined: list[Settlement] = []
    ordered = sorted(settlements, key=_RANGE)
    run: Range | None = None
    stop, fate = 0, None
    for offsets, wanted in ordered:
        partition, start, end, deliveries = offsets
        if run is not None:
            if (start, partition, deliveries) == (stop, run.partition, run.deliveries) and (
                wanted == fate
            ):
                stop = end
                continue
            joined.append(Settlement(run._replace(stop=stop), fate))
        run, stop, fate = offsets, end, wanted
    if run is not None:
        joined.append(Settlement(run._replace(stop=stop), fate))
    return joined
