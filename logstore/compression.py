"""Compress and decompress sections. Pure: bytes in, bytes out, bounds checked first.

Codec numbers are in format.py. lz4 writes the bare block (the sizes are in the batch header), zstd
one frame with its content size. Compressing is worth it only when it saves an eighth or so; what
does not is stored raw, so readers pay nothing for data that does not shrink.

Thread-safe: contexts of zstd are costly to make and serve one caller at a time, so they are kept in
a list used as a stack. `list.pop` and `list.append` are atomic.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, overload

import lz4.block

from .errors import CorruptBatchError, FormatVersionError, UnavailableError, UsageError
from .format import CODEC_LZ4, CODEC_NONE, CODEC_ZSTD, SECTION_RAW_BYTES_MAX, Buffer

if TYPE_CHECKING:
    from types import ModuleType

    from zstandard import ZstdCompressor, ZstdDecompressor

SAVING_MIN_PERCENT: Final = 12
"""Below this the reader's time is worth more than the bytes."""
RAW_BYTES_MIN: Final = 64
"""Shorter sections are never compressed: the batch is padded to 64 bytes anyway."""
ZSTD_LEVEL: Final = 1
"""Level 1 already halves what lz4 leaves of JSON; more costs writers more than it saves."""

_zstd_compressors: list[ZstdCompressor] = []
_zstd_decompressors: list[ZstdDecompressor] = []


@cache
def _zstandard() -> ModuleType:
    import zstandard  # noqa: PLC0415 - 10 ms of import that most stores never need

    return zstandard


@overload
def compress(codec: int, raw: bytes) -> bytes: ...
@overload
def compress(codec: int, raw: Buffer) -> Buffer: ...
def compress(codec: int, raw: Buffer) -> Buffer:
    """`raw` compressed, or `raw` itself when that saves less than 12 percent.

    Raises:
        UsageError: No such codec.
        UnavailableError: The codec's library is not installed.
    """
    if codec == CODEC_NONE or len(raw) < RAW_BYTES_MIN:
        return raw
    if codec == CODEC_LZ4:
        stored: bytes = lz4.block.compress(raw, store_size=False)
    elif codec == CODEC_ZSTD:
        stored = _zstd_compress(raw)
    else:
        raise UsageError(f"unknown codec {codec}")
    return stored if pays(len(stored), len(raw)) else raw


def pays(stored_bytes: int, raw_bytes: int) -> bool:
    """Whether compressing saved enough to be kept."""
    return stored_bytes * 100 <= raw_bytes * (100 - SAVING_MIN_PERCENT)


def decompress(codec: int, stored: Buffer, raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes that `stored` was made from. Allocates no more than that.

    The caller has verified the hash of `stored`; this still trusts no length inside it.

    Raises:
        CorruptBatchError: `stored` does not decode to exactly `raw_bytes` bytes.
        FormatVersionError: The codec is unknown or its library is not installed.
    """
    if raw_bytes > SECTION_RAW_BYTES_MAX:
        raise CorruptBatchError(f"section of {raw_bytes} bytes is over the limit")
    if codec == CODEC_LZ4:
        raw = _lz4_decompress(stored, raw_bytes)
    elif codec == CODEC_ZSTD:
        raw = _zstd_decompress(stored, raw_bytes)
    else:
        raise FormatVersionError(f"batch codec {codec} is unknown")
    if len(raw) != raw_bytes:
        raise CorruptBatchError(f"section decodes to {len(raw)} bytes, declared {raw_bytes}")
    return raw


def _lz4_decompress(stored: Buffer, raw_bytes: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(stored, uncompressed_size=raw_bytes)
    except lz4.block.LZ4BlockError as error:
        raise CorruptBatchError(f"lz4 section does not decode: {error}") from error
    return raw


def _zstd_compress(raw: Buffer) -> bytes:
    try:
        compressor = _zstd_compressors.pop()
    except IndexError:
        try:
            compressor = _zstandard().ZstdCompressor(level=ZSTD_LEVEL)
        except ImportError as error:
            raise UnavailableError("zstd needs the package zstandard; install it") from error
    try:
        return compressor.compress(raw)
    finally:
        _zstd_compressors.append(compressor)


def _zstd_decompress(stored: Buffer, raw_bytes: int) -> bytes:
    try:
        zstandard = _zstandard()
    except ImportError as error:
        raise FormatVersionError("batch needs zstd: install the package zstandard") from error
    try:
        decompressor: ZstdDecompressor = _zstd_decompressors.pop()
    except IndexError:
        decompressor = zstandard.ZstdDecompressor()
    try:
        # The library allocates what the frame claims and ignores max_output_size when the frame
        # has a content size, so the claim is checked first.
        claimed = zstandard.frame_content_size(stored)
        if claimed != raw_bytes:
            raise CorruptBatchError(f"zstd frame claims {claimed} bytes, declared {raw_bytes}")
        return decompressor.decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptBatchError(f"zstd section does not decode: {error}") from error
    finally:
        _zstd_decompressors.append(decompressor)
