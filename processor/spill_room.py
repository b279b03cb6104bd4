"""How much memory states that spill may take together, and how much an entry of one takes. Pure.

Nothing is measured: the size of an entry is guessed from the msgpack of those that were encoded.
"""

from __future__ import annotations

from typing import Final, Protocol

_ENTRY_BYTES: Final = 300
"""What a key costs in memory beside its own bytes and those of its value, about."""

_OBJECT_FACTOR: Final = 4
"""How much larger Python objects are than their msgpack, about."""

RESTORE_BYTES: Final = 2 << 20
"""Records of a restart that are written to the file together."""


class Room(Protocol):
    """What the states of a pipeline share."""

    @property
    def full(self) -> bool:
        """Whether no more should change before a commit."""
        ...

    def write(self) -> None:
        """Give the file what `changes` and `take` have given."""
        ...


class EntrySizes:
    """What the entries of a state take, by those that were seen. Not thread-safe."""

    def __init__(self) -> None:
        self._count = 1
        self._packed_bytes = 100

    def note(self, count: int, packed_bytes: int) -> None:
        """So many entries are that large in msgpack."""
        self._count += count
        self._packed_bytes += packed_bytes

    @property
    def held_bytes(self) -> int:
        """What one costs in memory, about."""
        return _ENTRY_BYTES + _OBJECT_FACTOR * self._packed_bytes // self._count

    def fitting(self, packed_bytes: int) -> int:
        """How many there are in so much msgpack, about."""
        return packed_bytes * self._count // self._packed_bytes
