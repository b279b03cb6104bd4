"""How far a long command is, on stderr."""

from __future__ import annotations

import sys
import time
from typing import Final

_REDRAW_SECONDS: Final = 0.2
_LINE_SECONDS: Final = 1.0


class StatusLine:
    """One line that is redrawn in place on a terminal, else printed anew each second.

    Args:
        enabled: True prints always, False never, None only on a terminal.
    """

    def __init__(self, enabled: bool | None) -> None:
        self._in_place = sys.stderr.isatty()
        self._enabled = self._in_place if enabled is None else enabled
        self._interval = _REDRAW_SECONDS if self._in_place else _LINE_SECONDS
        self._shown = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to show something."""
        return self._enabled and time.monotonic() - self._shown >= self._interval

    def show(self, text: str, *, last: bool = False) -> None:
        """Show `text` now; `last` ends the line."""
        if not self._enabled:
            return
        self._shown = time.monotonic()
        if self._in_place:
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Progress:
    """Counts records and bytes, and shows them with their rate; see `StatusLine`."""

    def __init__(self, enabled: bool | None) -> None:
        self.record_count = 0
        self.byte_count = 0
        self._line = StatusLine(enabled)
        self._started = time.monotonic()

    def add(self, record_count: int, byte_count: int) -> None:
        """Count and, when it is time, show."""
        self.record_count += record_count
        self.byte_count += byte_count
        if self._line.due():
            self._line.show(self._summary())

    def end(self) -> None:
        """Show the final counts."""
        self._line.show(self._summary(), last=True)

    def _summary(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = self.record_count / seconds
        return f"{self.record_count} records, {self.byte_count / 1e6:.1f} MB, {rate:.0f} rec/s"
