"""Ctrl-C and SIGTERM: the first asks to finish, the second ends the process at once.

After the first, commands stop fetching, finish the batch, commit and exit. The second needs no
clean-up because the store survives `kill -9`.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Final, Self

EXIT_SIGINT: Final = 130
EXIT_SIGTERM: Final = 143

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopSignals(threading.Event):
    """An event set by the first SIGINT or SIGTERM while the `with` block runs.

    A plain Event cannot be set from a signal handler: the handler runs in the main thread, which
    may hold the event's lock. This one is a flag and a pipe, so that `select` can wait for it too.
    The interpreter itself writes to the pipe as soon as a signal arrives: the handler runs later,
    and a signal that came right before `select` would not interrupt it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flag = False
        self._received: int | None = None
        self._previous: dict[int, object] = {}
        self._previous_wakeup = -1
        self._read_end, self._write_end = os.pipe()
        for descriptor in (self._read_end, self._write_end):
            os.set_blocking(descriptor, False)
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)

    def __enter__(self) -> Self:
        self._previous_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave us
        self._previous.clear()
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._read_end)
        os.close(self._write_end)
        self._read_end = self._write_end = -1

    @property
    def exit_code(self) -> int:
        """130 after SIGINT; 0 otherwise, because a drained SIGTERM is a clean end."""
        return EXIT_SIGINT if self._received == signal.SIGINT else 0

    def fileno(self) -> int:
        """Readable once the event is set, for `select`."""
        return self._read_end

    def is_set(self) -> bool:
        """Whether a signal came, or `set` was called."""
        return self._flag

    def set(self) -> None:
        """Ask to finish. Safe in a signal handler and in any thread."""
        self._flag = True
        if self._write_end >= 0:
            try:
                os.write(self._write_end, b"x")
            except BlockingIOError:
                return  # 64 KiB of signals are pending: whoever waits is awake

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until set, at most `timeout` seconds; return whether it is set."""
        if not self._flag and self._read_end >= 0:
            select.select([self._read_end], [], [], timeout)
        return self._flag  # the handler, if that is why, has run before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._flag:
            os._exit(EXIT_SIGTERM if number == signal.SIGTERM else EXIT_SIGINT)
        self._received = number
        self.set()
