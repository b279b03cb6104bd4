"""Printing: nothing is lost where Python does not buffer, and a reader that goes is told."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from millstream.processor import Pipeline
from millstream.processor.connectors import OUTSIDE


class Reluctant(io.RawIOBase):
    """Takes seven bytes at a time, as a pipe may take a part."""

    def __init__(self) -> None:
        self.taken = b""
        self.gone = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        if self.gone:
            raise BrokenPipeError
        self.taken += bytes(data[:7])
        return min(7, len(data)) if len(self.taken) < 100 else None


def test_all_is_printed_where_python_does_not_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Reluctant()
    with io.TextIOWrapper(raw, encoding="utf-8", write_through=True) as stdout:  # type: ignore[type-var]
        monkeypatch.setattr(sys, "stdout", stdout)
        OUTSIDE.print_lines(["a long line", "another one"])
        assert raw.taken == b"a long line\nanother one\n"
        pipeline = Pipeline("seen")
        pipeline.source("in", type=str).print("saw")
        pipeline.test({"in": ["a row"]})
        assert raw.taken.endswith(b"\nsaw 'a row'\n")
        raw.gone = True
        # As the command line expects it, which then ends without a word.
        with pytest.raises(BrokenPipeError, match="nobody reads"):
            pipeline.test({"in": ["a row"]})
        raw.gone = False
        with pytest.raises(BlockingIOError, match="takes nothing now"):
            OUTSIDE.print_lines(["x" * 100])
