"""Writing to standard output: all of a text, or an error, for `print()` and `to_stdout`."""

from __future__ import annotations

import errno
import sys
from typing import Any

from millstream import UsageError


class NobodyReadsError(UsageError, BrokenPipeError):
    """A closed pipe: trying again would not open it."""


def print_text(text: str, *, flush: bool) -> None:
    """Write a text to standard output, all of it.

    Args:
        text: With its line ends.
        flush: Keep none of it back.

    Raises:
        NobodyReadsError: The reader is gone.
        BlockingIOError: Somebody made it non-blocking, and it takes nothing now.
    """
    stream = sys.stdout
    try:
        if getattr(stream, "write_through", False):
            # Where Python does not buffer (PYTHONUNBUFFERED), a text stream drops what the pipe
            # does not take at once, because a reader has gone or a signal came.
            stream.flush()
            _write_all(stream.buffer, text.encode(stream.encoding, stream.errors or "strict"))
        else:
            stream.write(text)
        if flush:
            stream.flush()
    except BrokenPipeError as error:
        raise NobodyReadsError("nobody reads what is printed any more") from error


def _write_all(stream: Any, data: bytes) -> None:
    """Write to a binary stream, buffered or not."""
    rest = memoryview(data)
    while rest:
        written = stream.write(rest)
        if written is None:
            raise BlockingIOError(errno.EAGAIN, "standard output takes nothing now")
        rest = rest[written:]
