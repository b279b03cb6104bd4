"""Cutting input into records, and being told to stop."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from millstream import UsageError
from millstream.cli import input as input_module
from millstream.cli.input import DelimitedInput
from millstream.cli.signals import StopSignals


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    with StopSignals() as signals:
        yield signals


def from_file(data: bytes, delimiter: bytes) -> list[bytes]:
    with StopSignals() as stop, tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        blocks = DelimitedInput(file.fileno(), delimiter, stop).blocks()
        return [record for block in blocks for record in block]


@pytest.mark.parametrize(
    ("data", "delimiter", "expected"),
    [
        (b"", b"\n", []),
        (b"\n", b"\n", [b""]),
        (b"a\nb\n", b"\n", [b"a", b"b"]),
        (b"a\nb", b"\n", [b"a", b"b"]),
        (b"a\n\nb\n", b"\n", [b"a", b"", b"b"]),
        (b"a\r\n", b"\n", [b"a\r"]),
        (b"a::b:::c", b"::", [b"a", b"b", b":c"]),
        (b"a\0b\0", b"\0", [b"a", b"b"]),
    ],
)
def test_records_end_at_the_delimiter(data: bytes, delimiter: bytes, expected: list[bytes]) -> None:
    assert from_file(data, delimiter) == expected


@given(st.lists(st.binary(max_size=6), max_size=8), st.sampled_from([b"\n", b"ab", b"aa"]))
def test_how_the_input_is_cut_changes_nothing(pieces: list[bytes], delimiter: bytes) -> None:
    whole = b"".join(pieces)
    expected = whole.split(delimiter)
    if not expected[-1]:
        expected.pop()
    with StopSignals() as stop, tempfile.TemporaryFile() as file:
        source = DelimitedInput(file.fileno(), delimiter, stop)
        arriving = iter([*filter(None, pieces), b""])
        source._gather = lambda: next(arriving)  # type: ignore[method-assign]  # each piece a read
        assert [record for block in source.blocks() for record in block] == expected


def test_a_line_in_a_pipe_is_a_block_at_once(stop: StopSignals) -> None:
    read_end, write_end = os.pipe()
    blocks = DelimitedInput(read_end, b"\n", stop).blocks()
    for line in (b"one", b"two"):
        os.write(write_end, line + b"\nrest ")
        block = next(blocks)
        assert block[-1].endswith(line)
    os.close(write_end)
    assert next(blocks) == [b"rest "]
    assert list(blocks) == []
    os.close(read_end)


def test_stop_ends_a_wait_and_counts_what_was_cut_off(stop: StopSignals) -> None:
    read_end, write_end = os.pipe()
    source = DelimitedInput(read_end, b"\n", stop)
    blocks = source.blocks()
    os.write(write_end, b"whole\nhalf")
    assert next(blocks) == [b"whole"]
    stopper = threading.Thread(target=stop.set)
    stopper.start()
    assert list(blocks) == []
    stopper.join()
    assert source.bytes_discarded == 4
    os.close(read_end)
    os.close(write_end)


def test_a_missing_delimiter_does_not_fill_the_memory(
    stop: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_module, "RECORD_BYTES_MAX", 10)
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 11)
        file.seek(0)
        with pytest.raises(UsageError, match="no delimiter"):
            list(DelimitedInput(file.fileno(), b"\n", stop).blocks())
        with pytest.raises(UsageError, match="delimiter is empty"):
            DelimitedInput(file.fileno(), b"", stop)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_sets_the_event_and_the_exit_code(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.is_set()
        assert not stop.wait(0)
        assert stop.exit_code == 0
        signal.raise_signal(number)
        assert stop.wait(None)
        assert stop.is_set()
        assert stop.exit_code == code
    assert signal.getsignal(number) is before
