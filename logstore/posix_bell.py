"""A named pipe to wake a waiting process, the operating system's part of `Storage.bell`.

A byte in the pipe means "look at the words". Its content does not matter, nor does a lost or a
second one: who waits also looks by itself now and then.
"""

from __future__ import annotations

import contextlib
import os
import select


class PosixBell:
    """The listening end. See `Bell`."""

    __slots__ = ("_descriptor", "_poll")

    def __init__(self, full_path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(full_path, 0o666)
        # Also open for writing, or the pipe would count as hung up while nobody rings.
        self._descriptor = os.open(full_path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def wait(self, seconds: float) -> None:
        """See `Bell.wait`."""
        if self._poll.poll(max(1, round(seconds * 1000))):
            with contextlib.suppress(BlockingIOError):
                os.read(self._descriptor, 4096)

    def close(self) -> None:
        """See `Bell.close`."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


def ring(full_path: str) -> None:
    """Wake who listens at `full_path`; nobody there, or a full pipe, is fine."""
    try:
        descriptor = os.open(full_path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # its process died, or never came up: nobody to wake
    try:
        os.write(descriptor, b"\0")
    except BlockingIOError:
        pass  # full of unanswered calls: it is awake
    except BrokenPipeError:
        pass  # its process died since it was opened: nobody to wake
    finally:
        os.close(descriptor)
