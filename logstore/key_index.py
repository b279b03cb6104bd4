"""Where the last record of a key may be: the keys of one partition's segments, kept by hash.

A sealed segment has its key file (`key_file.py`), made at the first lookup. Of the segment that is
written to, 16 bytes per record are kept in memory, and every lookup first takes in what has been
appended since. What is found here are candidates: whoever asks reads the record and compares keys.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from xxhash import xxh3_64_digest

from .batch_scan import scan_keys
from .errors import CorruptBatchError, StorageError
from .format import OFFSET_MAX, BatchHeader, Buffer, SegmentHeader
from .key_file import KeyFile, encode_key_file, find_in_run, sorted_run
from .log import Log
from .record_batch import open_columns
from .segment import TEMPORARY_SUFFIX, keys_path, read_segment_header
from .storage import File, Storage
from .tail import Slot
from .transaction_states import TransactionStates

RUN_ENTRIES: Final = 1 << 17
RUN_KEY_BYTES: Final = 16 << 20
"""Keys in memory before they become a sorted run of hashes."""
OPEN_FILES_MAX: Final = 16
LIVE_MAX: Final = 4
"""Segments kept in memory; more, where no key files can be written, are walked again each time."""


class SegmentKeys:
    """The keys of one segment in memory, as far as it has been walked. Not thread-safe."""

    def __init__(self, header: SegmentHeader) -> None:
        self.header = header
        self.position = header.data_start
        """Everything before has been taken in."""
        self._runs: list[bytes] = []
        self._last: dict[bytes, int] = {}
        self._key_bytes = 0
        self._undecided: list[tuple[int, int]] = []
        """(position, bytes) of batches whose transaction was open."""

    def take_in(self, file: File, stop: int, end_offset: int, states: TransactionStates) -> None:
        """Walk up to position `stop` or offset `end_offset`; look again at open transactions."""
        undecided, self._undecided = self._undecided, []
        for position, size in undecided:
            self._walk(file, position, position + size, end_offset, states)
        self.position = self._walk(file, self.position, stop, end_offset, states)

    def _walk(
        self, file: File, start: int, stop: int, end_offset: int, states: TransactionStates
    ) -> int:
        position = start
        for header, section in scan_keys(file, start, stop, self.header.segment_uid):
            if header.next_offset > end_offset:
                break
            state = states.state(header.transaction_id) if header.transaction_id else "committed"
            if state == "open":
                self._undecided.append((position, header.total_bytes))
            elif state == "committed" and header.record_count:
                self._add(header, section)
            position += header.total_bytes
        return position

    def _add(self, header: BatchHeader, section: Buffer) -> None:
        batch = open_columns("", 0, header, section)
        known, last = len(self._last), self._last
        for key, offset in zip(batch.keys, batch.offsets, strict=True):
            if key is not None and last.get(key, -1) < offset:
                last[key] = offset
        self._key_bytes += header.sections[0].raw_bytes if len(last) > known else 0
        if len(last) >= RUN_ENTRIES or self._key_bytes >= RUN_KEY_BYTES:
            self._end_run()

    def _end_run(self) -> None:
        if self._last:
            self._runs.append(sorted_run(self._last))
            self._last, self._key_bytes = {}, 0

    def find(self, key: bytes, digest: bytes) -> list[int]:
        """The offsets where the last record of `key` may be, one per run."""
        found = [offset for run in self._runs for offset in find_in_run(run, digest)]
        offset = self._last.get(key)
        return found if offset is None else [*found, offset]

    def undecided(self, file: File, key: bytes, above: int) -> int:
        """The open transaction of the last batch with `key` behind offset `above`; 0: none."""
        found = 0
        for position, size in self._undecided:
            for header, section in scan_keys(
                file, position, position + size, self.header.segment_uid
            ):
                if header.last_offset > above:
                    batch = open_columns("", 0, header, section)
                    pairs = zip(batch.keys, batch.offsets, strict=True)
                    if any(each == key and offset > above for each, offset in pairs):
                        found = header.transaction_id
        return found

    def encode(self) -> Iterator[bytes] | None:
        """The key file of the whole segment; None while a transaction in it is open."""
        if self._undecided:
            return None
        self._end_run()
        return encode_key_file(self._runs, self.header.segment_uid, self.position)


class KeyIndex:
    """The keys of one partition. Thread-safe.

    Args:
        storage: Where the partition is.
        log: The partition.
        states: Says which transactions are decided.
        write: Whether key files may be written.
    """

    def __init__(
        self, storage: Storage, log: Log, states: TransactionStates, *, write: bool
    ) -> None:
        self._storage = storage
        self._may_write = write
        self._log = log
        self._states = states
        self._guard = threading.Lock()
        self._live: OrderedDict[int, SegmentKeys] = OrderedDict()
        """In memory, by base offset: the active segment, and others without a key file."""
        self._files: OrderedDict[int, tuple[int, KeyFile]] = OrderedDict()
        """By base offset: the uid of the segment, and its key file."""

    def candidates(self, key: bytes, end: int) -> Iterator[tuple[int, list[int]]]:
        """Where the last record of `key` below offset `end` may be, newest segments first.

        Yields (base offset of the segment, falling offsets). If they begin at `end` or behind it,
        they may hide an earlier one of the same segment.

        Raises:
            StorageError: A segment was removed or replaced meanwhile: ask again.
            DataError: Damage.
        """
        digest = xxh3_64_digest(key)
        bases = self._log.files.bases()
        for number in range(bisect_right(bases, end - 1) - 1, -1, -1):
            with self._guard:
                found = self._look(bases, number, end, (key, digest))
            if found:
                yield bases[number], sorted(set(found), reverse=True)

    def undecided(self, key: bytes, above: int) -> int:
        """An open transaction that has written `key` behind offset `above`; 0: there is none.

        Called with the append lock held, after `candidates` up to the log end. Errors as there.
        """
        digest, end = xxh3_64_digest(key), self._log.slot[Slot.LOG_END]
        bases = self._log.files.bases()
        for number in range(len(bases) - 1, max(-1, bisect_right(bases, above) - 2), -1):
            with self._guard:
                self._look(bases, number, end, (key, digest))
                keys = self._live.get(bases[number])
                if keys is None:
                    continue  # it has a key file, so all is decided in it
                file, _ = self._log.files.open(bases[number])
                try:
                    found = keys.undecided(file, key, above)
                finally:
                    file.close()
            if found:
                return found
        return 0

    def _look(
        self, bases: list[int], number: int, end: int, wanted: tuple[bytes, bytes]
    ) -> list[int]:
        base, slot = bases[number], self._log.slot
        # In this order: what is still active after that has that end.
        position = slot[Slot.END_POSITION]
        active = slot[Slot.ACTIVE_BASE] == base
        file, header = self._log.files.open(base)
        try:
            if not active:
                position = self._data_end(bases, number, header)
                found = self._look_in_file(header, position, wanted[1])
                if found is not None:
                    return found
            keys = self._live.get(base)
            if keys is None or keys.header.segment_uid != header.segment_uid:
                keys = self._live[base] = SegmentKeys(header)
            self._live.move_to_end(base)
            keys.take_in(file, position, end if active else OFFSET_MAX + 1, self._states)
            found = keys.find(*wanted)
            if not active and self._write(keys):
                del self._live[base]
            elif len(self._live) > LIVE_MAX:
                self._live.popitem(last=False)
            return found
        finally:
            file.close()

    def _data_end(self, bases: list[int], number: int, header: SegmentHeader) -> int:
        if header.rewrite:
            return header.rewrite.data_bytes
        if number + 1 == len(bases):
            # Sealed since they were listed.
            bases = self._log.files.listed()
            number = bases.index(header.base_offset)
        directory = self._log.directory
        return read_segment_header(self._storage, directory, bases[number + 1]).previous_bytes

    def _look_in_file(
        self, header: SegmentHeader, position: int, digest: bytes
    ) -> list[int] | None:
        """What the key file says; None if there is no intact one."""
        base = header.base_offset
        known = self._files.get(base)
        try:
            if known is None or known[0] != header.segment_uid:
                self._forget(base)
                path = keys_path(self._log.directory, base)
                if not self._storage.exists(path):
                    return None
                file = self._storage.open(path, "r")
                try:
                    opened = KeyFile(file, header.segment_uid, position)
                except BaseException:
                    file.close()
                    raise
                known = self._files[base] = header.segment_uid, opened
                if len(self._files) > OPEN_FILES_MAX:
                    self._files.popitem(last=False)[1][1].close()
            self._files.move_to_end(base)
            return known[1].find(digest)
        except (CorruptBatchError, StorageError):
            self._forget(base)
            return None  # built again: it is derived data

    def _forget(self, base: int) -> None:
        known = self._files.pop(base, None)
        if known is not None:
            known[1].close()

    def _write(self, keys: SegmentKeys) -> bool:
        """Write the key file of a segment that was walked to its end, unsynced like an index."""
        content = keys.encode() if self._may_write else None
        if content is None:
            return False
        path = keys_path(self._log.directory, keys.header.base_offset)
        temporary = path + TEMPORARY_SUFFIX
        try:
            self._storage.remove(temporary)
            file = self._storage.open(temporary, "x")
            try:
                position = 0
                for piece in content:
                    file.write([piece], position)
                    position += len(piece)
            finally:
                file.close()
            self._storage.rename(temporary, path)
        except StorageError:
            self._storage.remove(temporary)  # a full disk: it stays in memory
            return False
        return True

    def close(self) -> None:
        """Close the key files."""
        with self._guard:
            for base in list(self._files):
                self._forget(base)
            self._live.clear()
