"""Codecs: what goes in comes out, what does not shrink stays raw, and no length is believed."""

from __future__ import annotations

import random
import sys

import lz4.block
import pytest
import zstandard

from millstream import compression
from millstream.compression import compress, decompress
from millstream.errors import CorruptBatchError, FormatVersionError, UnavailableError, UsageError
from millstream.format import CODEC_LZ4, CODEC_NONE, CODEC_ZSTD, SECTION_RAW_BYTES_MAX

TEXT = b'{"user": "u1", "amount": 10}\n' * 200
NOISE = random.Random(7).randbytes(5000)
both = pytest.mark.parametrize("codec", [CODEC_LZ4, CODEC_ZSTD])


@both
def test_text_shrinks_and_comes_back(codec: int) -> None:
    stored = compress(codec, TEXT)

    assert len(stored) < len(TEXT) / 4
    assert decompress(codec, stored, len(TEXT)) == TEXT
    assert decompress(codec, memoryview(stored), len(TEXT)) == TEXT


@both
def test_noise_is_stored_raw(codec: int) -> None:
    assert compress(codec, NOISE) is NOISE


@both
def test_less_than_twelve_percent_saved_is_not_worth_it(codec: int) -> None:
    hardly = NOISE + bytes(500)
    clearly = NOISE + bytes(1000)

    assert compress(codec, hardly) is hardly
    assert len(compress(codec, clearly)) <= 0.88 * len(clearly)


@both
def test_short_sections_are_stored_raw(codec: int) -> None:
    short = bytes(63)

    assert compress(codec, short) is short


def test_codec_none_compresses_nothing() -> None:
    assert compress(CODEC_NONE, TEXT) is TEXT


def test_unknown_codecs_are_refused_in_both_directions() -> None:
    with pytest.raises(UsageError, match="codec 9"):
        compress(9, TEXT)
    with pytest.raises(FormatVersionError, match="codec 9"):
        decompress(9, TEXT, 5)
    with pytest.raises(FormatVersionError, match="codec 0"):
        decompress(CODEC_NONE, TEXT, 5)


@both
@pytest.mark.parametrize("declared", [0, 1, len(TEXT) - 1, len(TEXT) + 1, 10 * len(TEXT)])
def test_declared_size_must_be_the_decoded_size(codec: int, declared: int) -> None:
    with pytest.raises(CorruptBatchError):
        decompress(codec, compress(codec, TEXT), declared)


@both
def test_garbage_is_a_corrupt_batch(codec: int) -> None:
    stored = compress(codec, TEXT)
    for broken in (b"", NOISE[:100], stored[:-5], stored[1:], bytes(64)):
        with pytest.raises(CorruptBatchError):
            decompress(codec, broken, len(TEXT))


@both
def test_bomb_does_not_unfold_beyond_the_declared_size(codec: int) -> None:
    bomb = bytes(64 << 20)
    stored = (
        lz4.block.compress(bomb, store_size=False)
        if codec == CODEC_LZ4
        else zstandard.ZstdCompressor().compress(bomb)
    )

    with pytest.raises(CorruptBatchError):
        decompress(codec, stored, 1000)


def test_size_over_the_limit_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(CorruptBatchError, match="limit"):
        decompress(CODEC_LZ4, b"", SECTION_RAW_BYTES_MAX + 1)


def test_zstd_frame_without_content_size_or_with_bytes_behind_it_is_refused() -> None:
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    sized = zstandard.ZstdCompressor().compress(TEXT)

    for stored in (unsized, sized + b"x", sized + sized):
        with pytest.raises(CorruptBatchError):
            decompress(CODEC_ZSTD, stored, len(TEXT))


def test_zstd_contexts_are_reused() -> None:
    compress(CODEC_ZSTD, TEXT)
    decompress(CODEC_ZSTD, compress(CODEC_ZSTD, TEXT), len(TEXT))
    before = (len(compression._zstd_compressors), len(compression._zstd_decompressors))

    decompress(CODEC_ZSTD, compress(CODEC_ZSTD, TEXT), len(TEXT))

    assert (len(compression._zstd_compressors), len(compression._zstd_decompressors)) == before


def test_missing_zstandard_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = compress(CODEC_ZSTD, TEXT)
    compression._zstandard.cache_clear()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(compression, "_zstd_compressors", [])

    with pytest.raises(FormatVersionError, match="install the package zstandard"):
        decompress(CODEC_ZSTD, stored, len(TEXT))
    with pytest.raises(UnavailableError, match="zstandard"):
        compress(CODEC_ZSTD, TEXT)

    compression._zstandard.cache_clear()
