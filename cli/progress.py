"""How far a long command is, on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from types import TracebackType
from typing import Final, Self

_REDRAW_SECONDS: Final = 0.2
_LINE_SECONDS: Final = 1.0
_RATE_SECONDS: Final = 5.0
"""A rate is that of so much time: commits come unevenly, and two of them say little."""


class StatusLine:
    """One line that is redrawn in place on a terminal, else printed anew each second.

    Used in a `with` block: behind it nothing is left of a line that was not the last.

    Args:
        enabled: True prints always, False never, None only on a terminal.
    """

    def __init__(self, enabled: bool | None) -> None:
        self._in_place = sys.stderr.isatty()
        self._enabled = self._in_place if enabled is None else enabled
        self._interval = _REDRAW_SECONDS if self._in_place else _LINE_SECONDS
        self._shown = time.monotonic()
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._is_open = False

    def due(self) -> bool:
        """Whether it is time to show something."""
        return self._enabled and time.monotonic() - self._shown >= self._interval

    def show(self, text: str, *, last: bool = False) -> None:
        """Show `text` now; `last` ends the line."""
        if not self._enabled:
            return
        self._shown = time.monotonic()
        if self._in_place:
            shown = text[: _columns() - 1]  # the rest of a longer line would stay on the screen
            sys.stderr.write(f"\r\x1b[K{shown}" + ("\n" if last else ""))
            self._is_open = not last
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Progress(StatusLine):
    """Counts records and bytes, and shows them with their rate."""

    def __init__(self, enabled: bool | None) -> None:
        super().__init__(enabled)
        self.record_count = 0
        self.byte_count = 0
        self._started = time.monotonic()

    def add(self, record_count: int, byte_count: int) -> None:
        """Count and, when it is time, show."""
        self.record_count += record_count
        self.byte_count += byte_count
        if self.due():
            self.show(self._summary())

    def end(self) -> None:
        """Show the final counts."""
        self.show(self._summary(), last=True)

    def _summary(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = self.record_count / seconds
        return f"{self.record_count} records, {self.byte_count / 1e6:.1f} MB, {rate:.0f} rec/s"


class CatchUp:
    """How long it takes until nothing is left to read, from how the lag has changed."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def text(self, records_in: int, lag: int) -> str:
        """Rate and time left, of the last seconds; empty at first."""
        now = time.monotonic()
        while len(self._seen) > 1 and self._seen[1][0] <= now - _RATE_SECONDS:
            self._seen.popleft()
        self._seen.append((now, records_in, lag))
        then, former_in, former_lag = self._seen[0]
        if now <= then:
            return ""
        rate = f"{(records_in - former_in) / (now - then):.0f} rec/s"
        gained = (former_lag - lag) / (now - then)
        return f"{rate}, caught up in {lag / gained:.0f} s" if gained > 0 else rate


def _columns() -> int:
    """The width of the terminal; as good as none where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or sys.maxsize
    except OSError:
        return sys.maxsize
