"""Where a pipeline's state is held while it runs: in memory, or in a file with a bounded cache.

It is a matter of speed and memory alone: results, state topics and checkpoints are the same, and
it may be changed from one run to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from millstream import UsageError, parse_size_bytes

StatePlace: TypeAlias = Literal["memory", "sqlite"]

CACHE_BYTES: Final = 64 << 20
CACHE_BYTES_MIN: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StateHolding:
    """Where state is held."""

    place: StatePlace = "memory"
    cache_bytes: int = CACHE_BYTES
    """About how much memory keyed state may take, where it spills."""

    @property
    def spills(self) -> bool:
        """Whether keyed state may be larger than memory."""
        return self.place == "sqlite"


HELD_IN_MEMORY: Final = StateHolding()


def state_holding(place: str, cache_bytes: int | str) -> StateHolding:
    """What `Pipeline(state=..., state_cache_bytes=...)` says.

    Raises:
        UsageError: Another place, or less than 1 MiB.

    >>> state_holding("sqlite", "16MiB").cache_bytes
    16777216
    """
    if place not in {"memory", "sqlite"}:
        raise UsageError(f"state={place!r}: use 'memory' or 'sqlite'")
    size_bytes = parse_size_bytes(cache_bytes)
    if size_bytes < CACHE_BYTES_MIN:
        raise UsageError(f"state_cache_bytes must be at least 1 MiB, not {cache_bytes!r}")
    return StateHolding("sqlite" if place == "sqlite" else "memory", size_bytes)
