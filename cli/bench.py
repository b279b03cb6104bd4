"""`millstream bench`: how fast a store is on this directory, beside the bare limit of the disk.

Ours and the limit take turns in short slices, because other programs load the machine; what counts
is the ratio of each pair. For numbers over time and against peers see `benchmarks/` in the
repository.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import click

import millstream
from millstream import Store

from .command import Command, examples
from .output import Cell, Row, print_document, print_rows
from .settings import settings
from .signals import StopSignals

_ROUNDS: Final = 5
_GROUP_RECORDS: Final = 1000
_SIZE_BYTES_MAX: Final = 128_000
"""So many of them fit into one batch."""
_SLICE_BYTES_MAX: Final = 32 << 20
"""No slice writes more, however fast the disk is."""
_READ_RECORDS_MAX: Final = 200_000
_READ_BYTES: Final = 1 << 20
_SLICES: Final = _ROUNDS * 4
_COLUMNS: Final = (
    "workload",
    "records_per_s",
    "limit_records_per_s",
    "ratio",
    "p50_ms",
    "p99_ms",
    "limit_p50_ms",
    "limit_p99_ms",
)

Step = Callable[[], int]
"""Does a little work and returns how many records that was."""


class Slice(NamedTuple):
    """What was done without a pause."""

    records: int
    seconds: float
    latencies_s: list[float]

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.records / max(self.seconds, 1e-9)


class _Stopped(Exception):  # noqa: N818 - no error: somebody pressed Ctrl-C
    """A signal came."""


@click.command(
    cls=Command,
    short_help="Measure appends and reads here, beside what the disk can do.",
    epilog=examples(
        "millstream bench                        about four seconds",
        "millstream bench --seconds 20 --size 1kB --json",
    ),
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=600),
    default=4.0,
    show_default=True,
    help="About how long to write.",
)
@click.option("--size", metavar="SIZE", default="100", show_default=True, help="Of a value.")
def bench(seconds: float, size: str) -> int:
    """Measure durable appends of one record and of 1000, and reading them back.

    The limit is the same bytes by bare write and fdatasync into a growing file, and read back and
    cut by plain Python; RATIO is ours over the limit, the median of five pairs. A store of its own
    is made in --dir, or beside where that would be, and removed at the end.
    """
    if math.isnan(seconds):
        raise click.UsageError("--seconds is a number")
    current = settings()
    size_bytes = millstream.parse_size_bytes(size)
    if not 1 <= size_bytes <= _SIZE_BYTES_MAX:
        raise click.UsageError(f"--size is from 1 B to {_SIZE_BYTES_MAX // 1000} kB")
    with StopSignals() as stop, _place(current.directory) as folder:
        current.say(f"measuring in {folder}")
        try:
            rows = _measure(folder, size_bytes, seconds / _SLICES, stop)
        except _Stopped:
            return stop.exit_code
    if current.mode in {"json", "jsonl"}:
        document = {
            "size_bytes": size_bytes,
            "directory": os.path.abspath(os.path.dirname(folder)),
            "millstream": millstream.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "processors": os.cpu_count(),
            "results": rows,
        }
        print_document(document, current.mode)
    else:
        print_rows("results", rows, _COLUMNS, current.mode)
    return 0


@contextmanager
def _place(directory: str) -> Iterator[str]:
    """A new folder on the disk of the store, gone afterwards."""
    parent = os.path.abspath(directory)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    try:
        folder = tempfile.mkdtemp(prefix="millstream-bench-", dir=parent)
    except OSError as error:
        raise click.ClickException(f"cannot write in {parent}: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _measure(folder: str, size_bytes: int, slice_s: float, stop: StopSignals) -> list[Row]:
    value = os.urandom(size_bytes)
    group = [os.urandom(size_bytes) for _ in range(_GROUP_RECORDS)]
    joined = b"".join(group)
    with (
        millstream.open(os.path.join(folder, "store")) as store,
        _bare(os.path.join(folder, "one")) as one,
        _bare(os.path.join(folder, "many")) as many,
    ):
        for topic in ("one", "many"):
            store.create_topic(topic)

        def timed(step: Step, step_bytes: int) -> Slice:
            done = _run(step, slice_s, max(_SLICE_BYTES_MAX // step_bytes, 1), stop)
            if stop.is_set():
                raise _Stopped
            return done

        def pairs(ours: Step, limit: Step, step_bytes: int) -> list[tuple[Slice, Slice]]:
            for step in (ours, limit):
                step()  # files and code are cold the first time
            measured = []
            for _ in range(_ROUNDS):
                bare = timed(limit, step_bytes)
                measured.append((timed(ours, step_bytes), bare))
            return measured

        rows = [
            _row("append one", pairs(lambda: _append(store, value), one(value, 1), size_bytes)),
            _row(
                f"append {_GROUP_RECORDS}",
                pairs(
                    lambda: _append_many(store, group), many(joined, _GROUP_RECORDS), len(joined)
                ),
            ),
        ]
        path = os.path.join(folder, "many")
        reads = [
            (_read(store, _READ_RECORDS_MAX), _read_bare(path, size_bytes, _READ_RECORDS_MAX))
            for _ in range(_ROUNDS)
            if not stop.is_set()
        ]
        if stop.is_set():
            raise _Stopped
        return [*rows, _row("read back", reads)]


def _append(store: Store, value: bytes) -> int:
    store.append("one", value)
    return 1


def _append_many(store: Store, values: list[bytes]) -> int:
    store.append_many("many", values)
    return len(values)


@contextmanager
def _bare(path: str) -> Iterator[Callable[[bytes, int], Step]]:
    """A growing file; gives steps that write to it and sync."""
    sync = getattr(os, "fdatasync", os.fsync)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def step(data: bytes, records: int) -> Step:
        def write() -> int:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            sync(descriptor)
            return records

        return write

    try:
        yield step
    finally:
        os.close(descriptor)


def _run(step: Step, seconds: float, steps_max: int, stop: StopSignals) -> Slice:
    latencies: list[float] = []
    records = 0
    began = last = time.perf_counter()
    while last - began < seconds and len(latencies) < steps_max and not stop.is_set():
        records += step()
        now = time.perf_counter()
        latencies.append(now - last)
        last = now
    return Slice(records, last - began, latencies)


def _read(store: Store, records_max: int) -> Slice:
    """Values as bytes, of what the second workload wrote."""
    began, records = time.perf_counter(), 0
    for batch in store.read("many", start=f"-{records_max}").batches():
        records += len(batch.values)
    return Slice(records, time.perf_counter() - began, [])


def _read_bare(path: str, size_bytes: int, records_max: int) -> Slice:
    block_bytes = max(_READ_BYTES // size_bytes, 1) * size_bytes
    with open(path, "rb", buffering=0) as file:
        file.seek(max(0, os.path.getsize(path) - records_max * size_bytes))
        began, records = time.perf_counter(), 0
        while data := file.read(block_bytes):
            values = [data[at : at + size_bytes] for at in range(0, len(data), size_bytes)]
            records += len(values)
        return Slice(records, time.perf_counter() - began, [])


def _row(workload: str, pairs: list[tuple[Slice, Slice]]) -> Row:
    ours, bare = ([pair[side] for pair in pairs] for side in (0, 1))
    row: dict[str, Cell] = {
        "workload": workload,
        "records_per_s": round(statistics.median(each.rate for each in ours)),
        "limit_records_per_s": round(statistics.median(each.rate for each in bare)),
        "ratio": round(statistics.median(a.rate / b.rate for a, b in pairs), 2),
    }
    for prefix, side in (("", ours), ("limit_", bare)):
        times = sorted(second for each in side for second in each.latencies_s)
        for percent in (50, 99):
            at = min(len(times) * percent // 100, len(times) - 1)
            row[f"{prefix}p{percent}_ms"] = round(times[at] * 1000, 3) if times else None
    return row
