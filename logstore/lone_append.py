"""An append of one record that shares nothing with others, in one straight line.

The same bytes, words and order of steps as `encode_one`, `Engine.append` and
`Engine.acknowledge`, which remain the general way; but what waits for no sync is shown in the same
hold of the append lock. Here most calls between them are left out, because a processor that has
just waited for a disk runs Python at a fraction of its speed, and because where no disk is waited
for they are most of the time (figures in docs/decisions). Only the ordinary case is handled. Where
anything is out of the ordinary (headers, compression, a roll, a recovery, a synced file that has to
grow, a sync that failed), nothing is done, and the caller goes the general way.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

from xxhash import xxh3_64_intdigest

from .batch import COLUMN_PAD, NO_SECTION, ONE_ENTRY, PADDING
from .config import Durability
from .engine import Engine
from .errors import StorageError
from .format import (
    ALIGNMENT_BYTES,
    APPEND_TIME,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    BATCH_VERSION,
    CODEC_NONE,
    HAS_KEYS,
    INT64_MAX,
    NO_TIMESTAMP,
    OFFSET_MAX,
    UNIFORM_TIMESTAMP,
)
from .log import Log
from .record import Headers
from .tail import GENERATION_WORD, IN_PROGRESS_WORD, SEQUENCE_WORD, TOPICS_VERSION_WORD
from .zero_fill import runs_low

Row: TypeAlias = tuple[bytes | None, bytes | None, int | None, Headers]
"""value, key, timestamp in UTC ms or None for the time of the append, headers."""

ORDINARY_BYTES_MAX: Final = 32 * 1024
"""Of a key or value. With larger ones the disk takes much longer than Python."""
_ALIGNMENT_MASK: Final = ALIGNMENT_BYTES - 1

_FIELDS: Final = Struct("<QQQQIIqqq24xQQQ8xqIIQIIQ8xQ8x")
"""BATCH_FIELDS where what is always the same is one number, or left out where it is zero."""
_LEAD: Final = BATCH_MAGIC | BATCH_VERSION << 32 | CODEC_NONE << 40 | BATCH_HEADER_BYTES << 48
_ONE_RECORD: Final = 1 << 32
"""last_offset_delta 0, record_count 1."""
_NO_SECTION_HASH: Final = NO_SECTION[2]


class LoneAppend:
    """Appends to one partition. Thread-safe; others may append the general way."""

    __slots__ = ("_engine", "_lock", "_log", "_now_ms", "_shared")

    def __init__(self, engine: Engine, log: Log) -> None:
        self._engine = engine
        self._lock = engine.append_lock
        self._log = log
        self._now_ms = engine.clock.now_ms
        self._shared = engine.tail.shared

    def append(self, row: Row, mode: Durability = "sync") -> tuple[int, int] | None:
        """Offset and timestamp of the record, which is visible now, and durable as asked.

        None if something is out of the ordinary; then nothing was done.

        Raises:
            StorageError, PoisonedError: As `Engine.append` and `Engine.acknowledge`.
        """
        value, key, timestamp_ms, headers = row
        if type(value) is not bytes or len(value) > ORDINARY_BYTES_MAX or headers:
            return None
        flags = UNIFORM_TIMESTAMP
        if timestamp_ms is None:
            flags |= APPEND_TIME
        elif type(timestamp_ms) is not int or not NO_TIMESTAMP < timestamp_ms <= INT64_MAX:
            return None
        section_a = b""
        if key is not None:
            if type(key) is not bytes or len(key) > ORDINARY_BYTES_MAX:
                return None
            flags |= HAS_KEYS
            length = len(key)
            section_a = ONE_ENTRY.pack(0, length) + key + COLUMN_PAD[length & 7]
        length = len(value)
        section_b = ONE_ENTRY.pack(0, length) + value + COLUMN_PAD[length & 7]
        return self._append(flags, timestamp_ms, (section_a, section_b), mode)

    def _append(
        self, flags: int, timestamp_ms: int | None, sections: tuple[bytes, bytes], mode: Durability
    ) -> tuple[int, int] | None:
        a, b = sections
        hashes = xxh3_64_intdigest(a), xxh3_64_intdigest(b)
        lock, log, synced, shown = self._lock, self._log, mode == "sync", False
        try:
            with lock:
                written = self._write_locked(flags, timestamp_ms, sections, hashes, synced=synced)
                if written is not None and not synced:
                    shown = log.slot.show()
        except BaseException:
            lock.let_go()  # if it was interrupted on the way out
            raise
        if written is None:
            return None
        if synced:
            log.wait_durable(written[0] + 1)
            self._engine.acknowledged(log)
        elif shown:
            self._engine.shown(log, mode)
        else:  # behind a commit that is being synced
            self._engine.acknowledge(((log, written[0] + 1),), mode)
        return written

    def _write_locked(
        self,
        flags: int,
        timestamp_ms: int | None,
        sections: tuple[bytes, bytes],
        hashes: tuple[int, int],
        *,
        synced: bool,
    ) -> tuple[int, int] | None:
        log, words = self._log, self._shared.view
        slot, active, config = log.slot, log.active, log.config
        before, now_ms = slot.read(), self._now_ms()
        position, zero_filled = before.end_position, before.zero_filled
        a, b = sections
        a_bytes, b_bytes = len(a), len(b)
        padding = -(a_bytes + b_bytes) & _ALIGNMENT_MASK
        body_bytes = a_bytes + b_bytes + padding
        end_position = position + BATCH_HEADER_BYTES + body_bytes
        if (
            active is None
            or before.poisoned
            or log.deleted
            or before.generation != words[GENERATION_WORD]
            or words[TOPICS_VERSION_WORD] != self._engine.topics_version
            or active.header.segment_uid != before.active_uid
            or before.log_end > OFFSET_MAX
            or (synced and end_position > zero_filled)
            or end_position > config.segment_bytes
            or now_ms - active.header.created_ms >= config.segment_ms
            or config.compression != "none"
            or (config.compact and not flags & HAS_KEYS)
        ):
            return None
        if timestamp_ms is None:
            timestamp_ms = now_ms
        base_offset = before.log_end
        newest = before.max_timestamp
        sequence = words[SEQUENCE_WORD] + 1
        header = _FIELDS.pack(
            *(_LEAD, log.partition_uid, base_offset, _ONE_RECORD, body_bytes, flags),
            *(timestamp_ms, timestamp_ms, now_ms),
            *(before.previous_hash, before.durable_offset, sequence, newest),
            *(a_bytes, a_bytes, hashes[0], b_bytes, b_bytes, hashes[1], _NO_SECTION_HASH),
        )
        header_hash = xxh3_64_intdigest(header, before.active_uid)
        parts = (header, header_hash.to_bytes(8, "little"), a, b, PADDING[padding])
        words[IN_PROGRESS_WORD] = log.slot_number + 1
        try:
            active.file.write(parts, position)
        except StorageError:
            log.undo_locked(active.file, position)
            words[IN_PROGRESS_WORD] = 0
            raise
        newest = max(newest, timestamp_ms)
        slot.appended(before, end_position, (header_hash, newest), base_offset + 1, sequence)
        # After the log end: a reader that sees this sequence sees the batch.
        words[SEQUENCE_WORD] = sequence
        words[IN_PROGRESS_WORD] = 0
        log.files.indexes.appended(before.active_base, base_offset, position, end_position, newest)
        log.counters.appended_locked(1, end_position - position)
        log.dirty = True
        log.zeros_run_low = runs_low(zero_filled, end_position, end_position - position)
        return base_offset, timestamp_ms
