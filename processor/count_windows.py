"""Windows of a number of rows: which rows of a key belong together, by order of arrival. Pure.

The first `size` rows of a key, in the order of the log, are its first window, the next `size` its
second. Event time has no part in it: no row is late, nothing closes by W, and a window that is not
full stays open, also at the end of bounded input. What a result says of time is the least and
the greatest time of its rows: its window is [least, greatest + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from millstream import UsageError


@dataclass(frozen=True, slots=True)
class CountWindows:
    """Windows of `size` rows of a key.

    >>> str(CountWindows(100))
    'every 100 rows'
    """

    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise UsageError(f"a count window needs a size of at least 1 row, not {self.size!r}")

    def __str__(self) -> str:
        return f"every {self.size} rows"


def counting(size: int) -> CountWindows:
    """Windows of `size` rows of a key, in the order of the log; a remainder waits for more.

    >>> counting(2)
    CountWindows(size=2)
    """
    return CountWindows(size)
