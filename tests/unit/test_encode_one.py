"""A batch of one record made the short way is the one `encode_batch` makes, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from millstream import batch as batch_module
from millstream.batch import (
    BatchPlacement,
    EncodedBatch,
    buffers,
    encode_batch,
    encode_one,
    seal,
)
from millstream.errors import UsageError
from millstream.format import CODEC_LZ4, CODEC_NONE, CODEC_ZSTD, INT64_MAX, NO_TIMESTAMP
from millstream.record import Headers

PLACEMENT = BatchPlacement(99, 7, 1000, 123, 5, 900, 4, 0, NO_TIMESTAMP)


def written(encoded: EncodedBatch) -> bytes:
    return b"".join(buffers(encoded, seal(encoded, PLACEMENT)[0]))


def encode_as_column(
    value: bytes | None,
    key: bytes | None,
    timestamp_ms: int | None,
    headers: Headers,
    codec: int,
) -> EncodedBatch:
    return encode_batch(
        (value,),
        (key,),
        None if timestamp_ms is None else (timestamp_ms,),
        (headers,),
        codec=codec,
    )


@given(
    value=st.none() | st.binary(max_size=300),
    key=st.none() | st.binary(max_size=40),
    timestamp_ms=st.none() | st.integers(NO_TIMESTAMP + 1, INT64_MAX),
    headers=st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=9)), max_size=2),
    codec=st.sampled_from([CODEC_NONE, CODEC_LZ4, CODEC_ZSTD]),
)
def test_one_record_is_encoded_as_in_a_column(
    value: bytes | None,
    key: bytes | None,
    timestamp_ms: int | None,
    headers: list[tuple[str, bytes | None]],
    codec: int,
) -> None:
    expected = encode_as_column(value, key, timestamp_ms, headers, codec)
    encoded = encode_one(value, key, timestamp_ms, headers, codec=codec)
    assert written(expected) == written(encoded)


@pytest.mark.parametrize("codec", [CODEC_LZ4, CODEC_ZSTD])
def test_one_record_that_shrinks_is_compressed(codec: int) -> None:
    encoded = encode_one(b"a" * 10_000, b"k", codec=codec)
    assert codec == encoded.codec
    assert written(encode_as_column(b"a" * 10_000, b"k", None, (), codec)) == written(encoded)


def test_buffers_other_than_bytes_are_taken() -> None:
    assert written(encode_one(b"ab", b"k")) == written(
        encode_one(memoryview(b"ab"), bytearray(b"k"))  # type: ignore[arg-type] # as encode_batch
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("text", None, None), r"values\[0\]"),
        ((b"v", "text", None), r"keys\[0\]"),
        ((b"v", None, 1.5), r"timestamps_ms\[0\]"),
        ((b"v", None, NO_TIMESTAMP), r"timestamps_ms\[0\]"),
        ((b"v", None, INT64_MAX + 1), r"timestamps_ms\[0\]"),
    ],
)
def test_wrong_part_is_named(
    arguments: tuple[bytes | None, bytes | None, int | None], names: str
) -> None:
    with pytest.raises(UsageError, match=names):
        encode_one(*arguments)


def test_record_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "BATCH_RAW_BYTES_MAX", 64)
    encode_one(b"v" * 24, b"k" * 24)
    with pytest.raises(UsageError, match="exceed 64 bytes"):
        encode_one(b"v" * 48, b"k" * 24)
    with pytest.raises(UsageError, match="exceed"):
        encode_one(b"v" * 65)
