"""Give back the space of segments that were replaced, beside other work.

The last handle on a large file whose name is gone decides when its space is given back, which takes
a file system tens of milliseconds. Who removes files under the append lock, or wants to go on,
keeps a handle on each and lets a thread close them. What is removed when is decided in
`compactor.py`; a process that dies gives back all of it.
"""

from __future__ import annotations

import threading
from typing import Final

from .storage import File

HELD_MAX: Final = 16
"""Handles held at a time; of many segments each is small, and closing it short."""


class Freeing:
    """Closes files in a thread. Used by one thread."""

    def __init__(self) -> None:
        self._held: list[File] = []
        self._thread: threading.Thread | None = None

    def hold(self, file: File) -> None:
        """Keep a file open until `release`, or close it now if many are held."""
        if len(self._held) < HELD_MAX:
            self._held.append(file)
        else:
            file.close()

    def release(self) -> None:
        """Close what is held, beside whatever the caller does next."""
        if self._held:
            self.wait()
            held, self._held = self._held, []
            self._thread = threading.Thread(
                target=_close, args=(held,), name="millstream-freeing", daemon=True
            )
            self._thread.start()

    def wait(self) -> None:
        """Return when what was released is closed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _close(files: list[File]) -> None:
    for file in files:
        file.close()
