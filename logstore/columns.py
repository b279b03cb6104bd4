"""Columns of bytes and their raw buffers, in the layout of Arrow's Binary type. Pure.

    column := offsets i32 * (n + 1), pad 8 | bytes, pad 8 | validity ceil(n / 8), pad 8

The validity bitmap (least significant bit first, 1 = valid) is there only when the batch says so.
A null takes no bytes. The buffers come straight from disk when read, so each length is checked
before it is used; what does not fit is a CorruptBatchError. Per-record work happens inside C loops.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from operator import is_not
from struct import Struct
from typing import Final

from .errors import CorruptBatchError, UsageError
from .format import SECTION_RAW_BYTES_MAX, Buffer

_PAD: Final = tuple(bytes(-length % 8) for length in range(8))
"""`_PAD[length & 7]` fills up to a multiple of 8."""
_BIT_TO_DIGIT: Final = bytes.maketrans(b"\x00\x01", b"01")
_DIGIT_TO_BIT: Final = bytes.maketrans(b"01", b"\x00\x01")


def padded(length: int) -> int:
    """`length` rounded up to a multiple of 8."""
    return (length + 7) & -8


def encode_binary(
    values: Sequence[bytes | None], what: str, prefix: bytes = b"", *, bitmap: bool = False
) -> tuple[bytes, bool]:
    """The buffers of a column behind `prefix`, and whether they end with a validity bitmap.

    Args:
        values: Bytes-like objects or None.
        what: Name of the column, for messages.
        prefix: Bytes to put before (a multiple of 8), so that they cost no second copy.
        bitmap: Write the bitmap even when nothing is null.

    Raises:
        UsageError: An entry is of the wrong type, or the column is too large for one batch.
    """
    validity = b""
    present: Sequence[bytes | None] = values
    try:
        offsets = array("i", accumulate(map(len, values), initial=0))  # type: ignore[arg-type] # None is the TypeError below
        if bitmap:
            validity = encode_bitmap(b"\x01" * len(values))
    except TypeError:
        validity = encode_bitmap(bytes(map(is_not, values, repeat(None))))
        present = [b"" if value is None else value for value in values]
        try:
            offsets = array("i", accumulate(map(len, present), initial=0))  # type: ignore[arg-type] # no None left
        except TypeError:
            raise _wrong_type(values, what) from None
    except OverflowError:
        raise UsageError(f"{what} of one batch exceed {SECTION_RAW_BYTES_MAX} bytes") from None
    head = 4 * len(offsets)
    total = offsets[-1]
    try:
        section = b"".join(
            chain(  # type: ignore[arg-type] # no None left
                (prefix, offsets, _PAD[head & 7]),
                present,
                (_PAD[total & 7], validity, _PAD[len(validity) & 7]),
            )
        )
    except (TypeError, BufferError):
        raise _wrong_type(values, what) from None
    # A buffer of wide items is longer in bytes than len() says.
    if len(section) != len(prefix) + padded(head) + padded(total) + padded(len(validity)):
        raise _wrong_type(values, what)
    return section, bool(validity)


def _wrong_type(values: Sequence[object], what: str) -> UsageError:
    """Name the first entry that is neither None nor plain bytes."""
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            good = memoryview(value).nbytes == len(value)  # type: ignore[arg-type] # that is the question
        except (TypeError, ValueError):
            good = False
        if not good:
            return UsageError(f"{what}[{index}] must be bytes or None, not {type(value).__name__}")
    return UsageError(f"{what} must be a sequence of bytes or None")


def decode_binary(
    section: bytes, position: int, count: int, *, nullable: bool
) -> tuple[list[bytes | None], int]:
    """The `count` entries of the column at `position` of `section`, and where it ends.

    Raises:
        CorruptBatchError: The buffers do not fit the section or each other.
    """
    offsets = decode_offsets(section, position, count)
    start = position + padded(4 * (count + 1))
    total = offsets[-1]
    end = start + padded(total)
    if end > len(section):
        raise CorruptBatchError("column runs past its section")
    values = _split(section[start : start + total], offsets, count)
    if not nullable:
        return values, end
    valid = decode_bitmap(section, end, count)
    values = [value if bit else None for value, bit in zip(values, valid, strict=True)]
    return values, end + padded(len(valid) + 7 >> 3)


def decode_offsets(section: Buffer, position: int, count: int) -> array[int]:
    """`count + 1` offsets that start at 0 and end at no less; order is checked when splitting."""
    end = position + 4 * (count + 1)
    if end > len(section):
        raise CorruptBatchError("column offsets run past their section")
    offsets = array("i")
    offsets.frombytes(section[position:end])
    if offsets[0] != 0 or offsets[-1] < 0:
        raise CorruptBatchError("column offsets do not start at zero")
    return offsets


def rising(offsets: array[int]) -> list[int]:
    """`offsets` as a list, after checking that they never fall."""
    result = offsets.tolist()
    # Sorting a sorted list is one pass of comparisons in C, faster than any loop written here.
    if sorted(result) != result:
        raise CorruptBatchError("column offsets fall")
    return result


def _split(data: bytes, offsets: array[int], count: int) -> list[bytes | None]:
    total = len(data)
    if count == 0:
        return []
    width = offsets[1]
    if width > 0 and width * count == total and offsets == array("i", range(0, total + 1, width)):
        return list(chain.from_iterable(Struct(f"{width}s").iter_unpack(data)))
    bounds = rising(offsets)
    return list(map(data.__getitem__, map(slice, bounds, bounds[1:])))


def encode_bitmap(valid: bytes) -> bytes:
    """Pack one byte (0 or 1) per entry into bits, least significant first."""
    if not valid:
        return b""
    digits = valid.translate(_BIT_TO_DIGIT)[::-1]
    return int(digits, 2).to_bytes(len(valid) + 7 >> 3, "little")


def decode_bitmap(section: Buffer, position: int, count: int) -> bytes:
    """One byte (0 or 1) per entry of the bitmap of `count` bits at `position`."""
    length = count + 7 >> 3
    if position + padded(length) > len(section):
        raise CorruptBatchError("validity bitmap runs past its section")
    number = int.from_bytes(section[position : position + length], "little")
    digits = f"{number:0{length * 8}b}"[::-1][:count]
    return digits.encode("ascii").translate(_DIGIT_TO_BIT)
