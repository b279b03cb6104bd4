"""Records from a file descriptor: cut at a delimiter, in blocks, as soon as they arrive.

A typed line leaves at once; bulk input is gathered into blocks of a few MiB, because every block
becomes one batch and one sync. No parsing and no store here.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time
from collections.abc import Iterator
from typing import Final

from millstream import UsageError

from .signals import StopSignals

BLOCK_BYTES: Final = 4 * 1024 * 1024
RECORD_BYTES_MAX: Final = 128 * 1024 * 1024
"""The largest batch body. Without a bound a missing delimiter would fill the memory."""

_READ_BYTES: Final = 1024 * 1024
_GATHER_SECONDS: Final = 0.02
"""How long a block may wait to become full; well under what a human notices."""
_QUIET_SECONDS: Final = 0.002
"""A pause of this length ends a block: whoever writes has nothing more right now."""


class DelimitedInput:
    """Whole records from one descriptor.

    Args:
        descriptor: Open for reading; stays the caller's.
        delimiter: One or more bytes that end a record; the last record may lack it.
        stop: When set, reading ends; a record without its delimiter is then not whole.
    """

    def __init__(self, descriptor: int, delimiter: bytes, stop: StopSignals) -> None:
        if not delimiter:
            raise UsageError("the delimiter is empty")
        self._descriptor = descriptor
        self._delimiter = delimiter
        self._stop = stop
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self.bytes_discarded = 0
        """Length of the record that a signal cut off."""
        _enlarge_pipe(descriptor)

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield lists of whole records, never empty, in order.

        Raises:
            UsageError: A record is longer than a batch can be.
        """
        pending = bytearray()
        while data := self._gather():
            searched = max(0, len(pending) - len(self._delimiter) + 1)
            pending += data
            # Splitting what has no new delimiter would make long records quadratic.
            if pending.find(self._delimiter, searched) >= 0:
                *records, rest = bytes(pending).split(self._delimiter)
                pending = bytearray(rest)
                yield records
            if len(pending) > RECORD_BYTES_MAX:
                raise UsageError(f"no delimiter within {RECORD_BYTES_MAX >> 20} MiB of input")
        if self._stop.is_set():
            self.bytes_discarded = len(pending)
        elif pending:
            yield [bytes(pending)]

    def _gather(self) -> bytes:
        """The next bytes; b"" at the end of the input or when stopped."""
        if self._stop.is_set():
            return b""
        if self._is_file:
            return os.read(self._descriptor, BLOCK_BYTES)
        self._wait(None)
        if self._stop.is_set():
            return b""
        data = os.read(self._descriptor, _READ_BYTES)
        parts, length = [data], len(data)
        deadline = time.monotonic() + _GATHER_SECONDS
        while data and length < BLOCK_BYTES and time.monotonic() < deadline:
            if not self._wait(_QUIET_SECONDS):
                break
            data = os.read(self._descriptor, _READ_BYTES)
            parts.append(data)
            length += len(data)
        return b"".join(parts)

    def _wait(self, timeout: float | None) -> bool:
        """Whether there is input to read, or its end, and no signal."""
        stop = self._stop.fileno()
        ready, _, _ = select.select([self._descriptor, stop], [], [], timeout)
        return self._descriptor in ready and stop not in ready


def _enlarge_pipe(descriptor: int) -> None:
    """Ask for a 1 MiB pipe buffer (Linux), so that its writer goes on while we sync."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _READ_BYTES)
        except OSError:
            return  # not a pipe, or above the limit: only slower
