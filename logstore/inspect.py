"""Look at segments as they are: dump one file, verify a whole store. Changes nothing.

`verify` walks every batch of every segment: header hash, chain of hashes, offsets and sequences,
section hashes, and that the columns decode. After damage it looks for the next whole batch and
goes on, so one bad spot does not hide another. What recovery makes of damage is `recovery.py`.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .batch import decode_batch, verify_body
from .engine import Engine
from .errors import (
    CorruptBatchError,
    CorruptSegmentError,
    DataError,
    FormatVersionError,
    StorageError,
)
from .format import (
    ALIGNMENT_BYTES,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC_BYTES,
    CONTROL,
    REWRITTEN_DATA_START,
    BatchHeader,
    SegmentHeader,
    parse_header,
    parse_segment_header,
)
from .log import Log
from .record import Record
from .segment import segment_path
from .storage import File, PosixStorage
from .tail import Slot

PROBE_BYTES = 1 << 20


class BatchDump(NamedTuple):
    """One batch of a segment file, or a stretch of bytes that is none."""

    position: int
    """Byte position in the file."""
    size_bytes: int
    header: BatchHeader | None
    """None: these bytes are not a whole batch."""
    problem: str | None
    """What is wrong, None if the batch is whole."""
    records: list[Record]
    """Its records if they were asked for and can be decoded."""


class SegmentDump(NamedTuple):
    """A segment file taken apart."""

    path: str
    header: SegmentHeader | None
    problem: str | None
    """What is wrong with the segment header; nothing behind it can be read then."""
    batches: Iterator[BatchDump]
    """Lazy; read to its end, which closes the file."""
    file_bytes: int


class VerifyFinding(NamedTuple):
    """One thing that is wrong, and where."""

    topic: str
    partition: int
    path: str | None
    position: int | None
    offset: int | None
    """Next offset expected there, None if unknown."""
    problem: str


@dataclass(slots=True)
class VerifyReport:
    """What `Store.verify` saw. Without findings every record can be read."""

    partitions: int = 0
    segments: int = 0
    batches: int = 0
    records: int = 0
    data_bytes: int = 0
    findings: list[VerifyFinding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def dump_segment(path: str | os.PathLike[str], *, records: bool = False) -> SegmentDump:
    """Take a segment file apart, wherever it lies; it need not belong to a store.

    Args:
        path: The file.
        records: Decode the records too.

    Raises:
        StorageError: It cannot be read.
    """
    directory, name = os.path.split(os.path.abspath(os.fspath(path)))
    storage = PosixStorage(directory, read_only=True)
    file = storage.open(name, "r")
    try:
        size = file.size()
        header = parse_segment_header(file.read(REWRITTEN_DATA_START, 0))
    except (CorruptSegmentError, FormatVersionError) as error:
        file.close()
        return SegmentDump(name, None, error.message, iter(()), size)
    except BaseException:
        file.close()
        raise
    return SegmentDump(name, header, None, _dump_batches(file, header, size, records), size)


def _dump_batches(
    file: File, segment: SegmentHeader, size: int, with_records: bool
) -> Iterator[BatchDump]:
    try:
        for position, header, damage, length in _walk(file, segment, segment.data_start, size):
            records: list[Record] = []
            problem = damage
            if header is not None and problem is None:
                body = file.read(header.body_bytes, position + BATCH_HEADER_BYTES)
                problem = _body_problem(header, body)
                if with_records and problem is None and not header.flags & CONTROL:
                    records = decode_batch("", 0, header, body, verified=True).records()
            yield BatchDump(position, length, header, problem, records)
    finally:
        file.close()


def _body_problem(header: BatchHeader, body: bytes) -> str | None:
    try:
        verify_body(header, body)
        if not header.flags & CONTROL:
            decode_batch("", 0, header, body, verified=True).records()
    except DataError as error:
        return error.message
    return None


def _walk(
    file: File, segment: SegmentHeader, start: int, stop: int
) -> Iterator[tuple[int, BatchHeader | None, str | None, int]]:
    """(position, header or None, problem or None, bytes) of each stretch in [start, stop)."""
    position = start
    while position < stop:
        raw = file.read(BATCH_HEADER_BYTES, position)
        if not any(raw):
            following = _next_batch(file, segment.segment_uid, position, stop)
            if following is None:
                if _all_zero(file, position, stop):
                    return
                following = stop
            yield position, None, "zeros, then other bytes", following - position
            position = following
            continue
        try:
            header = parse_header(raw, 0, segment.segment_uid)
        except (CorruptBatchError, FormatVersionError) as error:
            following = _next_batch(file, segment.segment_uid, position + 1, stop) or stop
            yield position, None, error.message, following - position
            position = following
            continue
        cut = position + header.total_bytes > stop
        yield position, header, "the batch is cut" if cut else None, header.total_bytes
        position += header.total_bytes


def _next_batch(file: File, segment_uid: int, start: int, stop: int) -> int | None:
    """Position of the next whole batch header in [start, stop), None if there is none."""
    position = -(-start // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    while position < stop:
        chunk = file.read(PROBE_BYTES + BATCH_HEADER_BYTES, position)
        at = chunk.find(BATCH_MAGIC_BYTES)
        while 0 <= at < PROBE_BYTES:
            if (position + at) % ALIGNMENT_BYTES == 0:
                try:
                    parse_header(chunk, at, segment_uid)
                except (CorruptBatchError, FormatVersionError):
                    pass  # bytes of a record, or a damaged header: keep looking
                else:
                    return position + at
            at = chunk.find(BATCH_MAGIC_BYTES, at + 1)
        position += PROBE_BYTES
    return None


def _all_zero(file: File, start: int, stop: int) -> bool:
    for position in range(start, stop, PROBE_BYTES):
        chunk = file.read(min(PROBE_BYTES, stop - position), position)
        if chunk.count(0) != len(chunk):
            return False
    return True


def verify(engine: Engine, topic: str | None = None) -> VerifyReport:
    """Check every batch of a topic, or of the whole store with its internal topics."""
    infos = [engine.topic(topic)] if topic is not None else engine.topics()
    report = VerifyReport()
    for info in infos:
        for number in range(info.partitions):
            report.partitions += 1
            try:
                log = engine.log(info.name, number)
            except DataError as error:
                report.findings.append(
                    VerifyFinding(
                        info.name, number, error.path, error.position, error.offset, error.message
                    )
                )
                continue
            _LogVerifier(log, report).run()
    return report


class _LogVerifier:
    """Verifies one partition into a report."""

    def __init__(self, log: Log, report: VerifyReport) -> None:
        self._log = log
        self._report = report
        self._path = ""
        self._expected: int | None = None
        """Next offset, None after damage."""

    def run(self) -> None:
        log = self._log
        end, active = log.slot[Slot.END_POSITION], log.slot[Slot.ACTIVE_BASE]
        bases, next_base = log.files.bases(), 0
        while bases and next_base <= bases[-1]:
            base = bases[bisect_left(bases, next_base)]
            try:
                covered = self._file(base, end if base == active else None)
            except StorageError as error:
                fresh = log.files.listed()
                if error.errno != errno.ENOENT or fresh == bases:
                    raise
                # A compaction has put another in its place, or in that of one before it.
                bases = fresh
                next_base = max([*(each for each in bases if each <= base), 0])
                self._expected = None
                continue
            next_base = max(base + 1, covered)

    def _file(self, base: int, stop: int | None) -> int:
        """Verify one segment up to `stop` or its end; up to where it stands for others too."""
        log = self._log
        self._path = segment_path(log.directory, base)
        self._report.segments += 1
        try:
            file, segment = log.files.open(base)
        except DataError as error:
            self._found(error.message, 0)
            self._expected = None
            return 0
        try:
            if self._expected is not None and self._expected != base:
                self._found(f"records {self._expected} to {base} are missing", 0)
            self._expected = base
            self._segment(file, segment, file.size() if stop is None else stop)
        finally:
            file.close()
        return segment.rewrite.end_offset if segment.rewrite else 0

    def _segment(self, file: File, segment: SegmentHeader, stop: int) -> None:
        report = self._report
        link: int | None = segment.header_hash
        walk = _walk(file, segment, segment.data_start, stop)
        for position, header, damage, size in walk:
            if header is None or damage is not None:
                self._found(damage or "not a batch", position)
                link = self._expected = None
                continue
            body = file.read(header.body_bytes, position + BATCH_HEADER_BYTES)
            problem = _body_problem(header, body) or self._misplaced(header, link)
            if problem is not None:
                self._found(problem, position)
            report.batches += 1
            report.records += header.record_count
            report.data_bytes += size
            self._expected, link = header.next_offset, header.header_hash
        rewrite = segment.rewrite
        if rewrite and (self._expected, link) != (rewrite.end_offset, rewrite.last_hash):
            self._found(f"the segment does not reach its end offset {rewrite.end_offset}", stop)

    def _misplaced(self, header: BatchHeader, link: int | None) -> str | None:
        if header.partition_uid != self._log.partition_uid:
            return "the batch belongs to another partition"
        if self._expected is not None and header.base_offset != self._expected:
            return f"found offset {header.base_offset} where {self._expected} was expected"
        if link is not None and header.previous_hash != link:
            return "the batch does not link to the one before it"
        return None

    def _found(self, problem: str, position: int) -> None:
        log = self._log
        self._report.findings.append(
            VerifyFinding(log.topic, log.partition, self._path, position, self._expected, problem)
        )
