"""The key file of a sealed segment: hash of a key to the offset of its last record. Derived data.

Entries are sorted in runs, which bounds what building one takes; a lookup reads and verifies a
block or two of each. The layout is in docs/log-format.md, "Key file"; building is `key_index.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Final

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from .errors import CorruptBatchError
from .storage import File

KEY_MAGIC: Final = b"\x93MSK\r\n\x1a\n"
KEY_VERSION: Final = 1
RUNS_MAX: Final = 1 << 16
BLOCK_BYTES: Final = 4096
ENTRY_BYTES: Final = 16
BLOCK_ENTRIES: Final = 255

_HEADER: Final = Struct("<8sIIQQQ24s")
_RESERVED: Final = bytes(24)
_TRAILER: Final = Struct("<II")
_U64: Final = Struct("<Q")
_HASHED_BYTES: Final = BLOCK_BYTES - 8
_ENTRIES_BYTES: Final = BLOCK_ENTRIES * ENTRY_BYTES
_MASK: Final = (1 << 64) - 1


def sorted_run(offsets: Mapping[bytes, int]) -> bytes:
    """The entries of a run for these keys and the offsets of their last records."""
    return b"".join(
        sorted([xxh3_64_digest(key) + offset.to_bytes(8, "big") for key, offset in offsets.items()])
    )


def find_in_run(run: bytes, digest: bytes) -> list[int]:
    """The offsets under the hash of a key in a sorted run. O(log n)."""
    low, high = 0, len(run) // ENTRY_BYTES
    while low < high:
        middle = (low + high) // 2
        if run[middle * ENTRY_BYTES : middle * ENTRY_BYTES + 8] < digest:
            low = middle + 1
        else:
            high = middle
    found = []
    at = low * ENTRY_BYTES
    while run[at : at + 8] == digest:
        found.append(int.from_bytes(run[at + 8 : at + 16], "big"))
        at += ENTRY_BYTES
    return found


def encode_key_file(runs: Sequence[bytes], segment_uid: int, end_position: int) -> Iterator[bytes]:
    """The key file for these sorted runs, in pieces."""
    sizes = [-(-len(run) // _ENTRIES_BYTES) for run in runs]
    entries = sum(map(len, runs)) // ENTRY_BYTES
    header = _HEADER.pack(
        KEY_MAGIC, KEY_VERSION, len(runs), segment_uid, end_position, entries, _RESERVED
    )
    header += b"".join(map(_U64.pack, sizes))
    header += _U64.pack(xxh3_64_intdigest(header, segment_uid))
    yield header + bytes(-len(header) % BLOCK_BYTES)
    number = 0
    for run in runs:
        for start in range(0, len(run), _ENTRIES_BYTES):
            content = run[start : start + _ENTRIES_BYTES]
            block = content.ljust(_ENTRIES_BYTES, b"\0")
            block += _TRAILER.pack(len(content) // ENTRY_BYTES, 0)
            yield block + _U64.pack(xxh3_64_intdigest(block, (segment_uid + number) & _MASK))
            number += 1


class KeyFile:
    """An open key file. Thread-safe.

    Args:
        file: The file; closed by `close`.
        segment_uid: Of the segment it has to belong to.
        end_position: Data end of that segment.

    Raises:
        CorruptBatchError: Not an intact key file of this segment. Build it again.
    """

    def __init__(self, file: File, segment_uid: int, end_position: int) -> None:
        self._file = file
        self._uid = segment_uid
        fixed = file.read(_HEADER.size, 0)
        if len(fixed) < _HEADER.size:
            raise CorruptBatchError(f"key file of {len(fixed)} bytes is cut")
        magic, version, run_count, uid, end, entries, reserved = _HEADER.unpack(fixed)
        expected = (KEY_MAGIC, KEY_VERSION, segment_uid, end_position, _RESERVED)
        if (magic, version, uid, end, reserved) != expected or run_count > RUNS_MAX:
            raise CorruptBatchError("key file is not of this version or segment")
        size = _HEADER.size + 8 * run_count
        header = file.read(size + 8, 0)
        if len(header) < size + 8 or (
            xxh3_64_intdigest(header[:size], segment_uid) != _U64.unpack(header[size:])[0]
        ):
            raise CorruptBatchError("header of the key file fails its checksum")
        self._runs = [size for (size,) in _U64.iter_unpack(header[_HEADER.size : size])]
        self._start = len(header) + -len(header) % BLOCK_BYTES
        blocks = sum(self._runs)
        if file.size() != self._start + blocks * BLOCK_BYTES or entries > blocks * BLOCK_ENTRIES:
            raise CorruptBatchError("key file is cut or overlong")

    def find(self, digest: bytes) -> list[int]:
        """The offsets under the hash of a key.

        Raises:
            CorruptBatchError: A block that was read is damaged.
        """
        found: list[int] = []
        first = 0
        for size in self._runs:
            if size:
                found += self._find_in(digest, first, size)
            first += size
        return found

    def _find_in(self, digest: bytes, first: int, size: int) -> list[int]:
        """Look in the run of `size` blocks from `first` on. Hashes are even, so a guess is near."""
        low, high, step = 0, size, 0
        below = above = False
        probe = int.from_bytes(digest, "big") * size >> 64
        while low < high:  # for the first block that does not end before the hash
            if self._block(first + probe)[-ENTRY_BYTES:-8] < digest:
                low, below = probe + 1, True
            else:
                high, above = probe, True
            if below and above:
                probe = (low + high) // 2
            else:
                probe = min(low + step, high - 1) if below else max(high - 1 - step, low)
            step = 2 * step + 1
        found: list[int] = []
        for number in range(low, size):
            block = self._block(first + number)
            found += find_in_run(block, digest)
            if block[-ENTRY_BYTES:-8] != digest:
                break
        return found

    def _block(self, number: int) -> bytes:
        raw = self._file.read(BLOCK_BYTES, self._start + number * BLOCK_BYTES)
        seed = (self._uid + number) & _MASK
        if len(raw) < BLOCK_BYTES or (
            xxh3_64_intdigest(raw[:_HASHED_BYTES], seed) != _U64.unpack(raw[_HASHED_BYTES:])[0]
        ):
            raise CorruptBatchError(f"block {number} of the key file fails its checksum")
        count, zero = _TRAILER.unpack_from(raw, _ENTRIES_BYTES)
        if not 1 <= count <= BLOCK_ENTRIES or zero:
            raise CorruptBatchError(f"block {number} of the key file holds impossible values")
        return raw[: count * ENTRY_BYTES]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
