"""Section B of a batch whose values are columns: a directory, and one chunk per column. Pure.

The twin of "Column batches" in docs/log-format.md. Whoever wants some columns reads the directory
and their chunks, and checks no more than that. What is inside a chunk, an Arrow message, is for
`arrow_columns.py`; nothing here needs pyarrow, so every check and copy of the log goes without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from xxhash import xxh3_64, xxh3_64_intdigest

from .column_bounds import BOUND_BYTES_MAX
from .compression import compress, decompress
from .errors import CorruptBatchError, UsageError
from .format import BOUNDS, CODEC_NONE, CODEC_ZSTD, SECTION_RAW_BYTES_MAX, Buffer

CHUNK_ALIGNMENT_BYTES: Final = 64
COLUMNS_MAX: Final = 4096
DIRECTORY_HEADER: Final = Struct("<IIII16x")
ENTRY: Final = Struct("<IIIIQ8s8sBBBxI16x")
NO_BOUNDS: Final = 0
INT_BOUNDS: Final = 1
FLOAT_BOUNDS: Final = 2
UNSIGNED_BOUNDS: Final = 3
BYTES_BOUNDS: Final = 4
PLAIN: Final = 0
DICTIONARY: Final = 1
_INT: Final = Struct("<q")
_FLOAT: Final = Struct("<d")
_UNSIGNED: Final = Struct("<Q")
_LENGTH: Final = Struct("<I4x")
_NUMBERS: Final = {INT_BOUNDS: _INT, FLOAT_BOUNDS: _FLOAT, UNSIGNED_BOUNDS: _UNSIGNED}
_INT_MAX: Final = (1 << 63) - 1

Limits: TypeAlias = tuple[int, int] | tuple[float, float] | tuple[bytes, bytes]
"""Lowest and highest value; of texts and bytes bounds that may be no values."""


class ColumnEntry(NamedTuple):
    """What the directory says of one column."""

    position: int
    """Of its chunk, from the start of the section; a multiple of 64."""
    stored_bytes: int
    raw_bytes: int
    """Equal to `stored_bytes`: not compressed."""
    null_count: int
    hash: int
    """xxh3_64 of the stored bytes."""
    minimum: bytes
    maximum: bytes
    bounds: int
    """How minimum and maximum are to be read."""
    encoding: int
    codec: int
    dictionary_bytes: int
    """With DICTIONARY: bytes of the first of the two messages of the chunk; else 0."""

    def limits(self) -> tuple[int | float, int | float] | None:
        """Lowest and highest number that is not null; None if they were not kept."""
        kind = _NUMBERS.get(self.bounds)
        if kind is None:
            return None
        return kind.unpack(self.minimum)[0], kind.unpack(self.maximum)[0]

    @property
    def bound_bytes(self) -> tuple[int, int]:
        """Lengths of the bounds that are kept behind the entries."""
        if self.bounds != BYTES_BOUNDS:
            return 0, 0
        return _LENGTH.unpack(self.minimum)[0], _LENGTH.unpack(self.maximum)[0]


class Directory(NamedTuple):
    """The checked directory of a section."""

    size_bytes: int
    schema: bytes
    """An Arrow schema message: names and types of the columns in order."""
    entries: tuple[ColumnEntry, ...]
    texts: Mapping[int, tuple[bytes, bytes]]
    """Bounds of columns of texts and bytes, by their number."""

    def limits(self, number: int) -> Limits | None:
        """No value of the column lies outside of these; None if they were not kept."""
        return self.texts.get(number) or self.entries[number].limits()


class Chunk(NamedTuple):
    """One column on its way to the disk."""

    parts: Sequence[Buffer]
    """Its raw bytes in order, of one byte an item. They are not joined where none is compressed."""
    null_count: int
    limits: Limits | None = None
    """Bounds of bytes have at most BOUND_BYTES_MAX."""
    dictionary_bytes: int = 0


Squeeze: TypeAlias = Callable[[int, Sequence[Buffer]], Sequence[Buffer]]


class PackedChunk(NamedTuple):
    """A chunk as it is stored."""

    chunk: Chunk
    parts: Sequence[Buffer]
    stored_bytes: int
    raw_bytes: int
    hash: int
    codec: int
    """CODEC_NONE where compression did not pay."""


class ColumnSection(NamedTuple):
    """A section ready to be written."""

    parts: tuple[Buffer, ...]
    """Its bytes in order. They are not joined: a vectored write takes them as they are."""
    stored_bytes: int
    raw_bytes: int
    hash: int
    """Of the directory alone."""
    flags: int
    """What the header of the batch has to say of it: BOUNDS, or 0."""

    @property
    def stored(self) -> bytes:
        """A copy of its bytes in one piece."""
        return b"".join(self.parts)


def _squeezed(codec: int, parts: Sequence[Buffer]) -> Sequence[Buffer]:
    return (compress(codec, parts[0] if len(parts) == 1 else b"".join(parts)),)


def pack(chunk: Chunk, codec: int, squeeze: Squeeze = _squeezed) -> PackedChunk:
    """Compress and hash a chunk. Thread-safe; most of it runs without the interpreter lock.

    Args:
        chunk: To be stored.
        codec: By which, if that pays.
        squeeze: Compresses what is put together of buffers, or gives them back if it does not pay.

    Raises:
        UsageError: It takes more bytes than one batch can hold.
    """
    raw_bytes = sum(map(len, chunk.parts))
    if raw_bytes > SECTION_RAW_BYTES_MAX:
        raise UsageError(f"columns of one batch exceed {SECTION_RAW_BYTES_MAX} bytes")
    parts = chunk.parts
    if codec != CODEC_NONE:
        parts = squeeze(codec, parts)
    stored_bytes = sum(map(len, parts))
    digest = xxh3_64()
    for part in parts:
        digest.update(part)
    used = codec if stored_bytes < raw_bytes else CODEC_NONE
    return PackedChunk(chunk, parts, stored_bytes, raw_bytes, digest.intdigest(), used)


def encode_section(schema: bytes, chunks: Sequence[PackedChunk]) -> ColumnSection:
    """Put the directory before chunks.

    Raises:
        UsageError: More columns or bytes than one batch can hold.
    """
    if not 1 <= len(chunks) <= COLUMNS_MAX:
        raise UsageError(f"a topic has 1 to {COLUMNS_MAX} columns, not {len(chunks)}")
    if sum(chunk.raw_bytes for chunk in chunks) + len(schema) > SECTION_RAW_BYTES_MAX:
        raise UsageError(f"columns of one batch exceed {SECTION_RAW_BYTES_MAX} bytes")
    described = [_bounds(chunk.chunk.limits) for chunk in chunks]
    bounds = b"".join(each.content for each in described)
    size_bytes = _directory_bytes(len(schema), len(chunks), len(bounds))
    position, raw_bytes = _aligned(size_bytes), _aligned(size_bytes)
    entries: list[bytes] = []
    parts: list[Buffer] = [bytes(position - size_bytes)]
    for number, chunk in enumerate(chunks):
        entries.append(_entry(position, chunk, described[number]))
        after = position + chunk.stored_bytes
        padding = 0 if number + 1 == len(chunks) else _aligned(after) - after
        parts += (*chunk.parts, bytes(padding))
        position = after + padding
        raw_bytes += chunk.raw_bytes + padding
    lead = DIRECTORY_HEADER.pack(size_bytes, len(chunks), len(schema), len(bounds))
    directory = b"".join((lead, _padded(schema), *entries, _padded(bounds)))
    tail = bytes(-position % 8)
    return ColumnSection(
        tuple(part for part in (directory, *parts, tail) if len(part)),
        position + len(tail),
        raw_bytes + len(tail),
        xxh3_64_intdigest(directory),
        BOUNDS if any(each.kind >= UNSIGNED_BOUNDS for each in described) else 0,
    )


class _Bounds(NamedTuple):
    """Bounds of a column as an entry has them."""

    kind: int
    minimum: bytes
    maximum: bytes
    content: bytes = b""
    """What goes behind the entries."""


def _bounds(limits: Limits | None) -> _Bounds:
    if limits is None:
        return _Bounds(NO_BOUNDS, bytes(8), bytes(8))
    low, high = limits
    if isinstance(low, bytes):
        assert isinstance(high, bytes)
        lengths = (_LENGTH.pack(len(low)), _LENGTH.pack(len(high)))
        return _Bounds(BYTES_BOUNDS, *lengths, low + high)
    kind = FLOAT_BOUNDS if isinstance(low, float) else INT_BOUNDS
    if isinstance(high, int) and high > _INT_MAX:
        kind = UNSIGNED_BOUNDS
    return _Bounds(kind, _NUMBERS[kind].pack(low), _NUMBERS[kind].pack(high))


def _entry(position: int, packed: PackedChunk, bounds: _Bounds) -> bytes:
    chunk = packed.chunk
    return ENTRY.pack(
        position,
        packed.stored_bytes,
        packed.raw_bytes,
        chunk.null_count,
        packed.hash,
        bounds.minimum,
        bounds.maximum,
        bounds.kind,
        DICTIONARY if chunk.dictionary_bytes else PLAIN,
        packed.codec,
        chunk.dictionary_bytes,
    )


def recompress(section: Buffer, directory_hash: int, codec: int) -> ColumnSection:
    """The same columns under another codec."""
    directory = open_directory(section, directory_hash)
    chunks = [
        Chunk(
            (open_chunk(entry, section[entry.position : entry.position + entry.stored_bytes]),),
            entry.null_count,
            directory.limits(number),
            entry.dictionary_bytes,
        )
        for number, entry in enumerate(directory.entries)
    ]
    return encode_section(directory.schema, [pack(chunk, codec) for chunk in chunks])


def directory_bytes(section: Buffer) -> int:
    """How long the directory says it is; nothing is checked but the limit.

    Raises:
        CorruptBatchError: Cut short, or an impossible length.
    """
    if len(section) < DIRECTORY_HEADER.size:
        raise CorruptBatchError("directory of columns is cut")
    size_bytes, count, schema_bytes, bounds_bytes = DIRECTORY_HEADER.unpack_from(section)
    lead = DIRECTORY_HEADER.pack(size_bytes, count, schema_bytes, bounds_bytes)
    wrong = section[: DIRECTORY_HEADER.size] != lead or not 1 <= count <= COLUMNS_MAX
    if wrong or size_bytes != _directory_bytes(schema_bytes, count, bounds_bytes):
        raise CorruptBatchError("directory of columns holds impossible values")
    if size_bytes > SECTION_RAW_BYTES_MAX:
        raise CorruptBatchError(f"directory of {size_bytes} bytes is over the limit")
    return int(size_bytes)


def open_directory(
    section: Buffer, directory_hash: int, *, section_bytes: int | None = None
) -> Directory:
    """Check and decode the directory at the start of `section`.

    Args:
        section: The section, or at least its directory.
        directory_hash: What the batch header says.
        section_bytes: Size of the whole section, if `section` is only a part.

    Raises:
        CorruptBatchError: Cut, damaged, or chunks outside of the section or in each other.
    """
    size_bytes = directory_bytes(section)
    if size_bytes > len(section):
        raise CorruptBatchError("directory of columns is cut")
    directory = bytes(section[:size_bytes])
    if xxh3_64_intdigest(directory) != directory_hash:
        raise CorruptBatchError("directory of columns fails its checksum")
    _, count, schema_bytes, bounds_bytes = DIRECTORY_HEADER.unpack_from(directory)
    start = DIRECTORY_HEADER.size
    schema = directory[start : start + schema_bytes]
    start += len(_padded(schema))
    described = directory[start : start + ENTRY.size * count]
    entries = tuple(ColumnEntry._make(fields) for fields in ENTRY.iter_unpack(described))
    if b"".join(ENTRY.pack(*entry) for entry in entries) != described:
        raise CorruptBatchError("reserved bytes of a directory of columns are not zero")
    texts = _texts(entries, directory[start + len(described) :], bounds_bytes)
    limit = len(section) if section_bytes is None else section_bytes
    end, total = size_bytes, 0
    for entry in entries:
        total += entry.raw_bytes
        if entry.position != _aligned(end) or (fault := _entry_fault(entry)):
            fault = fault if entry.position == _aligned(end) else "a chunk out of its place"
            raise CorruptBatchError(f"directory of columns holds impossible values: {fault}")
        end = entry.position + entry.stored_bytes
    if end + -end % 8 != limit or total > SECTION_RAW_BYTES_MAX:
        raise CorruptBatchError("columns and the size of their section disagree")
    return Directory(size_bytes, schema, entries, texts)


def _texts(
    entries: Sequence[ColumnEntry], content: bytes, bounds_bytes: int
) -> dict[int, tuple[bytes, bytes]]:
    """The bounds behind the entries, by number of the column."""
    texts: dict[int, tuple[bytes, bytes]] = {}
    start = 0
    for number, entry in enumerate(entries):
        if entry.bounds != BYTES_BOUNDS:
            continue
        low_bytes, high_bytes = entry.bound_bytes
        middle, end = start + low_bytes, start + low_bytes + high_bytes
        low, high = content[start:middle], content[middle:end]
        lengths = (_LENGTH.pack(low_bytes), _LENGTH.pack(high_bytes))
        fault = lengths != (entry.minimum, entry.maximum) or low > high
        if fault or max(low_bytes, high_bytes) > BOUND_BYTES_MAX:
            raise CorruptBatchError("directory of columns holds impossible bounds")
        texts[number] = (low, high)
        start = end
    if start != bounds_bytes or any(content[start:]):
        raise CorruptBatchError("directory of columns holds impossible bounds")
    return texts


def _entry_fault(entry: ColumnEntry) -> str | None:
    compressed = entry.stored_bytes < entry.raw_bytes
    if entry.stored_bytes > entry.raw_bytes or entry.codec > CODEC_ZSTD:
        return "sizes or codec of a chunk"
    if compressed != bool(entry.codec):
        return "a codec without compression"
    if entry.bounds > BYTES_BOUNDS or entry.encoding > DICTIONARY:
        return "an unknown encoding"
    if bool(entry.dictionary_bytes) != (entry.encoding == DICTIONARY):
        return "a dictionary without its encoding"
    if entry.dictionary_bytes > entry.raw_bytes:
        return "a dictionary larger than its chunk"
    return None


def check_chunk(entry: ColumnEntry, stored: Buffer) -> None:
    """Check the stored bytes of a chunk against its hash.

    Raises:
        CorruptBatchError: They are cut or damaged.
    """
    if len(stored) != entry.stored_bytes or xxh3_64_intdigest(stored) != entry.hash:
        raise CorruptBatchError("a column of the batch is cut or fails its checksum")


def open_chunk(entry: ColumnEntry, stored: Buffer) -> Buffer:
    """The raw bytes of a chunk whose stored bytes were checked.

    Raises:
        CorruptBatchError: They do not decompress to what the directory says.
    """
    if entry.codec == CODEC_NONE:
        return stored
    return decompress(entry.codec, stored, entry.raw_bytes)


def check_section(section: Buffer, directory_hash: int) -> None:
    """Check all of a section: directory, every chunk, and that the padding is zero.

    Raises:
        CorruptBatchError: Anything is not what was written.
    """
    view = memoryview(section)
    directory = open_directory(view, directory_hash)
    end = directory.size_bytes
    for entry in directory.entries:
        if any(view[end : entry.position]):
            raise CorruptBatchError("padding of the columns is not zero")
        end = entry.position + entry.stored_bytes
        check_chunk(entry, view[entry.position : end])
    if any(view[end:]):
        raise CorruptBatchError("padding of the columns is not zero")


def _directory_bytes(schema_bytes: int, count: int, bounds_bytes: int) -> int:
    lead = DIRECTORY_HEADER.size + (schema_bytes + 7 & -8)
    return lead + ENTRY.size * count + (bounds_bytes + 7 & -8)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)


def _aligned(position: int) -> int:
    return position + -position % CHUNK_ALIGNMENT_BYTES
