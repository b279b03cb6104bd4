"""Bring a store of a test into the form of a cell of the matrix (`matrix.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from simulated_stores import open_quietly

from millstream import Store
from millstream.clock import Clock
from millstream.storage_protocols import Storage

if TYPE_CHECKING:
    from matrix import Cell

TOPIC = "t"


def shape(store: Store, cell: Cell) -> None:
    """Compress the topic as the cell says, and let it roll by itself or not."""
    store.configure_topic(TOPIC, compression=cell.codec, segment_bytes=cell.segment_bytes)


def seal(store: Store, cell: Cell) -> None:
    """What follows lies in another segment, if the cell has several."""
    if cell.sealed:
        store.roll(TOPIC, 0)


def restarted(
    store: Store, storage: Storage, cell: Cell, clock: Clock | None = None
) -> Iterator[Store]:
    """The store as it is, and after each of its restarts."""
    yield store
    store.close()
    for _ in range(cell.restarts):
        with open_quietly(storage, clock) as again:
            yield again
