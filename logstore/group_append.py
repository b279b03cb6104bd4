"""Threads that append single records at once share one batch, one write and one sync.

How they gather is `rounds.py`. A record that comes alone, or waits for no sync, is appended by
itself (`lone_append.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .batch import EncodedBatch, encode_batch, encode_one
from .config import Durability
from .engine import Engine
from .errors import UnavailableError, UsageError
from .format import CODEC_BY_NAME
from .log import Log
from .lone_append import LoneAppend, Row
from .rounds import Round, Rounds

BATCH_BYTES_MAX: Final = 1 << 20
"""Values of one batch; in a round with more of them, each record is a batch of its own."""


class _Round(Round[Row]):
    """Records that are appended together, and what became of them."""

    __slots__ = ("end", "now_ms", "offsets")

    def __init__(self) -> None:
        super().__init__()
        self.offsets: Sequence[int | UsageError] = ()
        self.end = -1
        """One past the last offset; -1 until it is written."""
        self.now_ms = 0

    def outcome(self, number: int) -> tuple[int, int]:
        """Offset and timestamp of a row; raises what it alone failed with."""
        offset = self.offsets[number]
        if isinstance(offset, UsageError):
            raise offset
        timestamp_ms = self.items[number][2]
        return offset, self.now_ms if timestamp_ms is None else timestamp_ms


class GroupAppend:
    """Single appends to one partition. Thread-safe."""

    def __init__(self, engine: Engine, log: Log) -> None:
        self._engine = engine
        self._log = log
        self._lone = LoneAppend(engine, log)
        self._rounds: Rounds[Row, _Round] = Rounds(engine.clock, _Round, self._serve)

    def append(self, row: Row, mode: Durability) -> tuple[int, int]:
        """Append one record, durable as asked; its offset and timestamp.

        Raises:
            UsageError: This record is not valid; others of the round are not affected.
            StorageError, PoisonedError: The round failed, for everybody in it.
            UnavailableError: The thread that wrote the round was interrupted.
        """
        if mode != "sync":
            return self._append_alone(row, mode)  # there is nothing to share
        rounds = self._rounds
        if rounds.alone:
            with rounds.turn:
                written = self._append_alone(row, mode)
                rounds.left()
                return written
        entry, number = rounds.join(row)
        return entry.outcome(number)

    def _append_alone(self, row: Row, mode: Durability) -> tuple[int, int]:
        written = self._lone.append(row, mode)
        if written is None:
            engine, log = self._engine, self._log
            (offset,), now_ms = engine.append(((log, self._encode_one(row)),))
            engine.acknowledge(((log, offset + 1),), mode)
            written = offset, now_ms if row[2] is None else row[2]
        return written

    def _serve(self, entry: _Round) -> None:
        """Append and sync all rows of a round. What was written before an interrupt is synced."""
        if entry.end < 0:
            self._write(entry)
        self._engine.acknowledge(((self._log, entry.end),), "sync")

    def _write(self, entry: _Round) -> None:
        rows, log = entry.items, self._log
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
            (base,), now_ms = self._engine.append(((log, joined),))
            entry.now_ms = now_ms if stamp_ms is None else stamp_ms
            entry.offsets = range(base, base + len(rows))
            entry.end = base + len(rows)
            return
        each = [self._try_encode_one(row) for row in rows]
        batches = [(log, encoded) for encoded in each if isinstance(encoded, EncodedBatch)]
        entry.begun = True
        found, entry.now_ms = self._engine.append(batches)
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
