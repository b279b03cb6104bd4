"""W as arrays: where it stood before each row, and after each of its moves. See watermark.py.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from .frames import Ints
from .watermark import Progress

TIME_MAX: Final = 1 << 61
"""Times beyond are left to rows, so that nothing leaves 64 bits."""
HOLD_MAX: Final = 1 << 60
"""What is added to times or taken from W is left to rows beyond this."""
_LEVEL_MAX: Final = 1 << 62


def levels_before(progress: Progress, rows: Any, delay_ms: int) -> Ints:
    """The W that each row is judged against, that before it, less `delay_ms`."""
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows
    levels = clipped([progress.start, *progress.levels])
    moved = np.searchsorted(np.asarray(progress.rows, np.int64), numbers)
    return levels[moved] - delay_ms


def clipped(levels: Sequence[int]) -> Ints:
    """Levels as an array; those beyond all times are cut to what means the same."""
    return np.array([max(-_LEVEL_MAX, min(each, _LEVEL_MAX)) for each in levels], np.int64)
