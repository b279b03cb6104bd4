"""Threads that append single records at once share one batch, one write and one sync.

A thread that comes alone appends at once. Those that come while it syncs gather in a round, which
one of them, its host, begins when that sync is over. Big rounds beat many: a thread just served
mostly comes straight back, so the host waits for as many as there were, at most as long as a round
takes. The last one to come serves the round, which saves waking the host first.

The others wait at the round's door, a lock passed on from one to the next. Whoever has it and finds
the round not served is its host. So a thread that is interrupted (Ctrl-C) leaves nobody behind: it
passes the door on, and the next one takes over. Figures are in docs/decisions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, TypeAlias

from .batch import EncodedBatch, encode_batch, encode_one
from .engine import Engine
from .errors import UnavailableError, UsageError
from .format import CODEC_BY_NAME
from .log import Log
from .lone_append import LoneAppend
from .record import Headers

Row: TypeAlias = tuple[bytes | None, bytes | None, int | None, Headers]
"""value, key, timestamp in UTC ms or None for the time of the append, headers."""

BATCH_BYTES_MAX: Final = 1 << 20
"""Values of one batch; in a round with more of them, each record is a batch of its own."""
_SKIPPED_ROUNDS_MAX: Final = 256
_NOBODY: Final = -1
"""Awaited by a round that has waited in vain."""


class _Round:
    """Records that are appended together, and what became of them."""

    __slots__ = (
        "awaited",
        "begun",
        "claimed",
        "done",
        "door",
        "end",
        "error",
        "finished",
        "now_ms",
        "offsets",
        "rows",
    )

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.door = threading.Lock()
        self.awaited = 0
        """The host waits for that many rows; whoever brings the last of them serves the round."""
        self.claimed = False
        """Somebody other than the host serves it, and releases `finished` after that."""
        self.finished = threading.Lock()
        self.finished.acquire()
        self.begun = False
        self.offsets: Sequence[int | UsageError] = ()
        self.end = -1
        """One past the last offset; -1 until it is written."""
        self.now_ms = 0
        self.done = False
        self.error: Exception | None = None
        """What all of them failed with."""

    def wait(self, seconds: float) -> None:
        """Wait until who claimed it is done."""
        self.finished.acquire(timeout=seconds)

    def outcome(self, number: int) -> tuple[int, int]:
        """Offset and timestamp of a row; raises what it failed with."""
        if self.error is not None:
            raise self.error
        offset = self.offsets[number]
        if isinstance(offset, UsageError):
            raise offset
        timestamp_ms = self.rows[number][2]
        return offset, self.now_ms if timestamp_ms is None else timestamp_ms


class GroupAppend:
    """Durable single appends to one partition. Thread-safe."""

    def __init__(self, engine: Engine, log: Log) -> None:
        self._engine = engine
        self._log = log
        self._lone = LoneAppend(engine, log)
        self._turn = threading.Lock()
        """Held by the one who writes and syncs."""
        self._guard = threading.Lock()
        """Guards `_open`, its rows and who serves it."""
        self._open = _Round()
        self._expected = 1
        """How many threads were here when the last sync ended."""
        self._round_seconds = 0.0
        self._skip = 0
        self._skip_next = 1
        """So many rounds begin at once after one waited in vain; doubled each time."""

    def append(self, row: Row) -> tuple[int, int]:
        """Append one record durably; its offset and timestamp.

        Raises:
            UsageError: This record is not valid; others of the round are not affected.
            StorageError, PoisonedError: The round failed, for everybody in it.
            UnavailableError: The thread that wrote the round was interrupted.
        """
        if self._expected == 1 and not self._turn.locked():
            with self._turn:
                return self._append_alone(row)
        claimed = False
        try:
            with self._guard:
                entry = self._open
                number = len(entry.rows)
                entry.rows.append(row)
                if number + 1 == entry.awaited:
                    self._open = _Round()
                    claimed = entry.claimed = True
            if claimed:
                self._skip_next = 1
                with self._turn:
                    self._serve(entry)
            else:
                with entry.door:
                    while not entry.done:
                        self._host(entry)
        except BaseException:
            # Rows of interrupted threads go with this round or never, not with a later call.
            self._close(entry)
            raise
        finally:
            if claimed:
                entry.claimed = False
                entry.finished.release()
        return entry.outcome(number)

    def _append_alone(self, row: Row) -> tuple[int, int]:
        written = self._lone.append(row)
        if written is None:
            engine, log = self._engine, self._log
            (offset,), now_ms = engine.append_at(((log, self._encode_one(row)),))
            engine.acknowledge(((log, offset + 1),), "sync")
            written = offset, now_ms if row[2] is None else row[2]
        self._expected = 1 + len(self._open.rows)
        return written

    # --- whose turn it is ----------------------------------------------------------------------

    def _host(self, entry: _Round) -> None:
        """Serve the round, or wait until somebody has. Its door is held."""
        if entry.claimed:
            entry.finished.acquire()
            return
        with self._turn:
            if self._begin(entry):
                self._serve(entry)
                return
        # Without the turn, because the last one to come takes it.
        self._engine.clock.wait(entry.wait, self._round_seconds)
        with self._guard:
            if not entry.claimed and not entry.done:
                entry.awaited = _NOBODY
                self._skip = self._skip_next
                self._skip_next = min(2 * self._skip_next, _SKIPPED_ROUNDS_MAX)

    def _begin(self, entry: _Round) -> bool:
        """Close the round to others, unless it is worth waiting for them."""
        with self._guard:
            if self._open is entry:
                if len(entry.rows) < self._expected and entry.awaited != _NOBODY:
                    if not self._skip:
                        entry.awaited = self._expected
                        return False
                    self._skip -= 1
                self._open = _Round()
        return True

    def _close(self, entry: _Round) -> None:
        with self._guard:
            if self._open is entry:
                self._open = _Round()

    # --- serving -------------------------------------------------------------------------------

    def _serve(self, entry: _Round) -> None:
        """Append and sync all rows of a closed round. The turn is held."""
        clock, log = self._engine.clock, self._log
        started = clock.monotonic()
        try:
            if entry.end < 0:
                self._write(entry)
            self._engine.acknowledge(((log, entry.end),), "sync")
        except Exception as error:  # everybody in the round raises it
            entry.error = error
        entry.done = True
        self._expected = len(entry.rows) + len(self._open.rows)
        self._round_seconds = clock.monotonic() - started

    def _write(self, entry: _Round) -> None:
        rows, log = entry.rows, self._log
        if entry.begun:
            raise UnavailableError(
                "the thread that wrote this record was interrupted: it may be there or not",
                topic=log.topic,
                partition=log.partition,
            )
        stamp_ms = self._engine.clock.now_ms() if any(row[2] is not None for row in rows) else None
        joined = self._join(rows, stamp_ms)
        if joined is not None:
            entry.begun = True
            (base,), now_ms = self._engine.append_at(((log, joined),))
            entry.now_ms = now_ms if stamp_ms is None else stamp_ms
            entry.offsets = range(base, base + len(rows))
            entry.end = base + len(rows)
            return
        each = [self._try_encode_one(row) for row in rows]
        batches = [(log, encoded) for encoded in each if isinstance(encoded, EncodedBatch)]
        entry.begun = True
        found, entry.now_ms = self._engine.append_at(batches)
        offsets = iter(found)
        entry.offsets = [
            encoded if isinstance(encoded, UsageError) else next(offsets) for encoded in each
        ]
        entry.end = found[-1] + 1 if found else 0

    def _join(self, rows: Sequence[Row], stamp_ms: int | None) -> EncodedBatch | None:
        """All rows as one batch; None if one of them is wrong, or they are too large for that."""
        values, keys, stamps, headers = zip(*rows, strict=True)
        if stamp_ms is not None:
            stamps = tuple(stamp_ms if stamp is None else stamp for stamp in stamps)
        try:
            if sum(map(len, filter(None, values))) > BATCH_BYTES_MAX:
                return None
            return encode_batch(
                values,
                keys,
                None if stamp_ms is None else stamps,
                headers if any(headers) else None,
                codec=CODEC_BY_NAME[self._log.config.compression],
            )
        except (TypeError, ValueError):  # UsageError is a ValueError
            return None

    def _try_encode_one(self, row: Row) -> EncodedBatch | UsageError:
        try:
            return self._encode_one(row)
        except UsageError as error:
            return error

    def _encode_one(self, row: Row) -> EncodedBatch:
        value, key, timestamp_ms, headers = row
        codec = CODEC_BY_NAME[self._log.config.compression]
        return encode_one(value, key, timestamp_ms, headers, codec=codec)
