"""What can be saved of one segment file: whole batches in order, and the holes between them.

Reads every byte. A batch is accepted if its header and body are whole, it is of this partition, and
offset and sequence are above all before it; whatever else is there, is a hole. `Salvage` walks once
and remembers no batch, so that `partition_repair.py`, which decides what becomes of the log, can
walk again to copy what was accepted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .errors import StorageError
from .format import BATCH_HEADER_BYTES, NO_TIMESTAMP, BatchHeader, SegmentHeader
from .segment_walk import BODIES_BYTES, Readable, Window, body_problem, walk
from .storage import File

BLOCK_BYTES: Final = 4096
_UNREADABLE: Final = frozenset({errno.EIO, errno.ENODATA, errno.ESTALE})


class PatientFile:
    """Reads zeros where the device fails, block by block, so that the rest is not lost with it."""

    def __init__(self, file: File) -> None:
        self.path = file.path
        self._file = file

    def read(self, length: int, position: int) -> bytes:
        """As `File.read`."""
        try:
            return self._file.read(length, position)
        except StorageError as error:
            if error.errno not in _UNREADABLE:
                raise
        length = max(0, min(length, self._file.size() - position))
        blocks = []
        for start in range(position, position + length, BLOCK_BYTES):
            size = min(BLOCK_BYTES, position + length - start)
            try:
                blocks.append(self._file.read(size, start))
            except StorageError as error:
                if error.errno not in _UNREADABLE:
                    raise
                blocks.append(bytes(size))
        return b"".join(blocks)


class State(NamedTuple):
    """A place in the log between two batches."""

    position: int
    """Byte position in the segment."""
    next_offset: int
    sequence: int
    """Of the last batch; 0 if there was none."""
    link: int
    """What the next batch, or the next segment, should link to."""
    max_timestamp_ms: int = NO_TIMESTAMP
    durable_offset: int = 0
    """As the last batch said."""
    append_ms: int = 0
    """When the last batch was written."""


NOWHERE: Final = State(0, 0, 0, 0)


class Piece(NamedTuple):
    """An accepted batch with its body, or a hole."""

    state: State
    """Before it."""
    header: BatchHeader | None
    """None: a hole, whose end is where the next piece begins."""
    body: memoryview
    reason: str = ""
    """Of a hole."""
    newer: bool = False
    durable_offset: int = 0
    """Of a hole that has a whole header: what its writer knew to be durable."""


class Hole(NamedTuple):
    """Bytes of a segment from which no batch was accepted."""

    before: State
    end_offset: int
    """First offset behind it that is there; `before.next_offset` if nothing follows."""
    end_position: int
    reason: str


def pieces(
    file: Readable, uid: int, partition_uid: int, start: State, stop: int
) -> Iterator[Piece]:
    """What the segment holds from `start` to byte `stop`, in order. Bodies live until the next.

    Args:
        file: The segment.
        uid: Seeds the hashes of its headers.
        partition_uid: Of the partition; batches of another one are holes.
        start: Where to begin, and what was accepted before.
        stop: Where to end.
    """
    window, state = Window(file, BODIES_BYTES), start
    nothing = memoryview(b"")
    for stretch in walk(window, uid, start.position, stop):
        header = stretch.header
        state = state._replace(position=stretch.position)
        if header is None:
            yield Piece(state, None, nothing, stretch.problem or "damaged", stretch.newer)
            continue
        reason = stretch.problem or _unplaceable(header, state, partition_uid)
        body = nothing
        if reason is None:
            body = window.view(stretch.position + BATCH_HEADER_BYTES, header.body_bytes)
            reason = body_problem(header, body)
        if reason is not None:
            known = header.durable_offset if header.partition_uid == partition_uid else 0
            yield Piece(state, None, nothing, reason, durable_offset=known)
            continue
        yield Piece(state, header, body)
        state = after(state, header)


def after(state: State, header: BatchHeader) -> State:
    """The state behind a batch."""
    return State(
        state.position + header.total_bytes,
        header.next_offset,
        header.sequence,
        header.header_hash,
        max(state.max_timestamp_ms, header.running_max_timestamp_ms),
        max(state.durable_offset, header.durable_offset),
        header.append_timestamp_ms,
    )


def _unplaceable(header: BatchHeader, state: State, partition_uid: int) -> str | None:
    if header.partition_uid != partition_uid:
        return "a batch of another partition"
    if header.base_offset < state.next_offset:
        return "a batch of offsets that are there already"
    # A gap before it takes a sequence of its own.
    room = 1 if header.base_offset == state.next_offset else 2
    if header.sequence < state.sequence + room:
        return "a batch from before the one in front of it"
    return None


@dataclass(slots=True)
class Salvage:
    """What was found in one segment file."""

    base: int
    segment: SegmentHeader
    """Its header; made up from its neighbours where it could not be read."""
    file_bytes: int
    header_problem: str | None = None
    start: State = NOWHERE
    stop: int = 0
    """Where its data end at the latest."""
    end: State = NOWHERE
    """Behind the last accepted batch."""
    first_sequence: int = 0
    batches: int = 0
    records: int = 0
    relinked: bool = False
    """A batch does not link to the one before it although nothing lies between."""
    holes: list[Hole] = field(default_factory=list)
    newer: str | None = None
    """Why it must not be touched: a newer version of Millstream has written here."""
    durable_offset: int = 0
    """Highest durable offset that any header in it knows."""
    transactions: dict[int, set[int]] = field(default_factory=dict)
    """Numbers of transactions in it by owner, as far as they are above those known as decided."""


def examine_segment(
    file: Readable, found: Salvage, start: State, stop: int, decided: dict[int, int]
) -> None:
    """Walk a segment and fill in `found`.

    Args:
        file: The segment.
        found: With `base`, `segment`, `file_bytes`.
        start: State at its first batch.
        stop: Where its data end at the latest.
        decided: Last decided transaction of each owner.
    """
    segment = found.segment
    found.start, found.stop, found.end = start, stop, start
    # A rewritten segment was synced as a whole before it got its name.
    found.durable_offset = segment.rewrite.end_offset if segment.rewrite else 0
    hole: Hole | None = None
    for piece in pieces(file, segment.segment_uid, segment.partition_uid, start, stop):
        header = piece.header
        if header is None:
            found.durable_offset = max(found.durable_offset, piece.durable_offset)
            if piece.newer:
                found.newer = piece.reason
            if hole is None:
                hole = Hole(piece.state, piece.state.next_offset, stop, piece.reason)
            continue
        if hole is not None:
            position = piece.state.position
            found.holes.append(hole._replace(end_offset=header.base_offset, end_position=position))
            hole = None
        elif header.base_offset != piece.state.next_offset:
            state, reason = piece.state, "batches are missing"
            found.holes.append(Hole(state, header.base_offset, state.position, reason))
        elif header.previous_hash != piece.state.link:
            found.relinked = True
        _note(found, header, piece.state, decided)
    if hole is not None:
        found.holes.append(hole)


def _note(found: Salvage, header: BatchHeader, state: State, decided: dict[int, int]) -> None:
    found.end = after(state, header)
    found.first_sequence = found.first_sequence or header.sequence
    found.batches += 1
    found.records += header.record_count
    found.durable_offset = max(found.durable_offset, header.durable_offset)
    if header.transaction_id:
        owner, number = header.transaction_id >> 32, header.transaction_id & 0xFFFF_FFFF
        if number > decided.get(owner, 0):
            found.transactions.setdefault(owner, set()).add(number)
