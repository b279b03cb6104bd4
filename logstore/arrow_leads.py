"""Keys and timestamps of a batch out of Arrow arrays: section A without a Python object per row.

The bytes are those that `batch.py` and `columns.py` make of sequences; the layout is that of Arrow,
so the buffers are taken over. Offsets of a slice start anew at 0 and a null takes no bytes.
"""

from __future__ import annotations

from typing import Any

from .arrow_columns import compute
from .columns import padded
from .format import HAS_KEYS, NULL_KEYS, UNIFORM_TIMESTAMP


def encode_times(stamps: Any) -> tuple[int, tuple[int, int], bytes]:
    """Flags, extremes and column of an int64 array of UTC milliseconds, not empty, no nulls.

    The column is b"" when all are the same.
    """
    found = compute().min_max(stamps)
    low, high = found["min"].as_py(), found["max"].as_py()
    if low == high:
        return UNIFORM_TIMESTAMP, (low, high), b""
    return 0, (low, high), stamps.to_numpy(zero_copy_only=False).astype("<i8").tobytes()


def encode_keys(keys: Any) -> tuple[int, bytes]:
    """Flags and column of a binary array that is not empty; no column when all are null."""
    import numpy as np  # noqa: PLC0415 - an extra

    nulls = keys.null_count
    if nulls == len(keys):
        return 0, b""
    validity = b""
    if nulls:
        valid = keys.is_valid().to_numpy(zero_copy_only=False)
        validity = np.packbits(valid, bitorder="little").tobytes()
        keys = keys.fill_null(b"")
    _, places, data = keys.buffers()
    first = 4 * keys.offset
    offsets = np.frombuffer(places, "<i4", len(keys) + 1, first)
    start, end = int(offsets[0]), int(offsets[-1])
    content = memoryview(data)[start:end] if end > start else b""
    parts = ((offsets - offsets[0]).tobytes(), content, validity)
    column = b"".join(
        part for each in parts for part in (each, bytes(padded(len(each)) - len(each)))
    )
    return (HAS_KEYS | NULL_KEYS if nulls else HAS_KEYS), column
