"""The matrix that damage and crashes run over: codec, number of segments, number of restarts.

A test that takes the argument `cell`, itself or through a fixture, runs once for each of `CELLS`;
one that takes `any_cell` also for `COLUMNS`, where values are rows that are stored as columns. The
mark `cells` says less: `cells(segments=3)` where one segment has nothing to lose, `cells(count=3)`
where each costs seconds. Of those some are drawn, each codec, both numbers of segments and both
of restarts among them; MILLSTREAM_SEED draws others, MILLSTREAM_CELLS=all runs all of them.

`docs/robustness.md` says which scenarios run over it (`tools/write_robustness_tests.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from millstream.config import Compression

CODECS: tuple[Compression, ...] = ("none", "lz4", "zstd")
SEGMENTS = (1, 3)
RESTARTS = (1, 2)
ALL = "all"


@dataclass(frozen=True)
class Cell:
    """How a log is stored, and how often the machine restarts on it."""

    codec: Compression
    segments: int
    restarts: int
    columns: bool = False

    @property
    def sealed(self) -> int:
        """How many segments lie before the active one."""
        return self.segments - 1

    @property
    def segment_bytes(self) -> int:
        """A size of segments that makes one of a workload, or several."""
        return 4096 if self.segments > 1 else 1 << 26

    def __str__(self) -> str:
        return f"{self.codec}-{self.segments}-{self.restarts}{'-columns' if self.columns else ''}"


CELLS = tuple(
    Cell(codec, segments, restarts)
    for codec in CODECS
    for segments in SEGMENTS
    for restarts in RESTARTS
)
COLUMNS = (Cell("none", 1, 2, columns=True), Cell("lz4", 3, 1, columns=True))


def drawn(cells: Sequence[Cell], count: int, seed: str) -> list[Cell]:
    """So many of `cells`, the same for the same seed, with every value of each axis if they fit.

    >>> three = drawn(CELLS, 3, "seed")
    >>> sorted(cell.codec for cell in three), {cell.segments for cell in three}
    (['lz4', 'none', 'zstd'], {1, 3})
    """
    random = Random(seed)
    values = {value for cell in cells for value in axes(cell)}
    left = list(cells)
    found: list[Cell] = []
    while left and len(found) < count:
        missing = values - {value for cell in found for value in axes(cell)}
        random.shuffle(left)
        left.sort(key=lambda cell: -len(missing & axes(cell)))
        found.append(left.pop(0))
    return sorted(found, key=cells.index)


def axes(cell: Cell) -> set[tuple[str, object]]:
    """The value of each axis."""
    return {("codec", cell.codec), ("segments", cell.segments), ("restarts", cell.restarts)}


def chosen(
    test: str, *, columns: bool = False, count: int | None = None, segments: int | None = None
) -> list[Cell]:
    """The cells a test runs over.

    Args:
        test: Its name, which the drawing depends on, too.
        columns: Add those of columns.
        count: Draw so many; None: take all.
        segments: Only those of so many segments.
    """
    cells = [*CELLS, *(COLUMNS if columns else ())]
    if segments is not None:
        cells = [cell for cell in cells if cell.segments == segments]
    if count is None or os.environ.get("MILLSTREAM_CELLS") == ALL:
        return cells
    return drawn(cells, count, f"{os.environ.get('MILLSTREAM_SEED', '0')}/{test}")
