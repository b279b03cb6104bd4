"""Columns of bytes and their raw buffers, in the layout of Arrow's Binary type. Pure.

    column := offsets i32 * (n + 1), pad 8 | bytes, pad 8 | validity ceil(n / 8), pad 8

The validity bitmap (least significant bit first, 1 = valid) is there only when the batch says so.
A null takes no bytes. The buffers come straight from disk when read, so each length is checked
before it is used; what does not fit is a CorruptBatchError. Per-record work happens inside C loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate, chain, repeat
from operator import is_not
from struct import Struct, calcsize, error as StructError, pack, unpack  # noqa: N812 - it is a class
from typing import Final

from .errors import CorruptBatchError, UsageError, not_bytes
from .format import SECTION_RAW_BYTES_MAX, Buffer
from .gathered import JoinedBytes
from .record import Headers

_PAD: Final = tuple(bytes(-length % 8) for length in range(8))
"""`_PAD[length & 7]` fills up to a multiple of 8."""
_BIT_TO_DIGIT: Final = bytes.maketrans(b"\x00\x01", b"01")
_DIGIT_TO_BIT: Final = bytes.maketrans(b"01", b"\x00\x01")
_CHUNK: Final = 64
"""Entries one struct unpacks at once: the cost per entry is flat from here on."""
_VIEW_BYTES_MIN: Final = 2048
_EVEN_COUNT_MIN: Final = 32
_EVEN_COUNT_MAX: Final = 1 << 16
"""Columns shorter than this are not worth the test for even lengths; longer ones take the general
way too, which bounds the table behind `_is_even`."""


_KEPT_COUNT_MAX: Final = 4096
"""Offsets of so many entries, 16 KiB, are kept to be used again."""


def padded(length: int) -> int:
    """`length` rounded up to a multiple of 8."""
    return (length + 7) & -8


def encode_binary(
    values: Sequence[Buffer | None], what: str, prefix: bytes = b"", *, bitmap: bool = False
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
    present: Sequence[Buffer | None] = values
    try:
        try:
            if isinstance(values, JoinedBytes):
                offsets, present = b"".join([bytes(4), *values.ends]), values.pieces
            else:
                offsets = _offsets(list(map(len, values)))  # type: ignore[arg-type] # None: TypeError
            if bitmap:
                validity = encode_bitmap(b"\x01" * len(values))
        except TypeError:
            validity = encode_bitmap(bytes(map(is_not, values, repeat(None))))
            present = [b"" if value is None else value for value in values]
            offsets = _offsets(list(map(len, present)))  # type: ignore[arg-type] # no None left
        total = int.from_bytes(offsets[-4:], "little")
        if total > SECTION_RAW_BYTES_MAX:
            # Refused before the bytes are copied; what does not fit an int32 is a StructError.
            raise UsageError(f"{what} of one batch exceed {SECTION_RAW_BYTES_MAX} bytes")
        padding = (_PAD[total & 7], validity, _PAD[len(validity) & 7])
        section = b"".join([prefix, offsets, _PAD[len(offsets) & 7], *present, *padding])  # type: ignore[list-item] # no None left
    except (TypeError, BufferError):
        raise _wrong_type(values, what) from None
    except StructError:
        raise UsageError(f"{what} of one batch exceed {SECTION_RAW_BYTES_MAX} bytes") from None
    # A buffer of wide items is longer in bytes than len() says. (Rounded as by padded(); the calls
    # would be a tenth of the cost of a batch of one record.)
    expected = len(prefix) + (len(offsets) + 7 & -8) + (total + 7 & -8) + (len(validity) + 7 & -8)
    if len(section) != expected:
        raise _wrong_type(values, what)
    return section, bool(validity)


def _offsets(lengths: list[int]) -> bytes:
    """The offsets column of entries of these lengths; StructError if they exceed an int32."""
    count = len(lengths)
    if _EVEN_COUNT_MIN <= count <= _EVEN_COUNT_MAX:
        width = lengths[0]
        if lengths.count(width) == count and width * count <= SECTION_RAW_BYTES_MAX:
            return (
                _even_offsets(count, width)
                if count <= _KEPT_COUNT_MAX
                else _made_even_offsets(count, width)
            )
    return pack(f"<{count + 1}i", *accumulate(lengths, initial=0))


def _made_even_offsets(count: int, width: int) -> bytes:
    """0, width, 2 width, ... count * width. See `_is_even`: half the cost of the general way."""
    return (_steps(count) * width).to_bytes(4 * (count + 1), "little")


_even_offsets: Final = lru_cache(maxsize=32)(_made_even_offsets)
"""Programs append batches of the same size over and over; computing 1,000 of these took 27 us."""


def _wrong_type(values: Sequence[object], what: str) -> UsageError:
    """Name the first entry that is neither None nor plain bytes."""
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            view = memoryview(value)  # type: ignore[arg-type] # TypeError is an answer
            good = view.c_contiguous and view.nbytes == len(view)
        except (TypeError, ValueError):
            good = False
        if not good:
            return not_bytes(f"{what}[{index}]", value)
    return UsageError(f"{what} must be a sequence of bytes or None")


def decode_binary(
    section: Buffer, position: int, count: int, *, nullable: bool
) -> tuple[list[bytes | None], int]:
    """The `count` entries of the column at `position` of `section`, and where it ends.

    Raises:
        CorruptBatchError: The buffers do not fit the section or each other.
    """
    offsets, start = decode_offsets(section, position, count)
    total = offsets[-1]
    end = start + padded(total)
    if end > len(section):
        raise CorruptBatchError("column runs past its section")
    values: list[bytes | None]
    width = offsets[1] if count else 0
    even = _EVEN_COUNT_MIN <= count <= _EVEN_COUNT_MAX and 0 < width * count == total
    if even and _is_even(section[position:start], count, width):
        values = _split_evenly(section[start : start + total], width)
    else:
        values = _split(bytes(section[start : start + total]), rising(offsets))
    if not nullable:
        return values, end
    valid = decode_bitmap(section, end, count)
    values = [value if bit else None for value, bit in zip(values, valid, strict=True)]
    return values, end + padded(count + 7 >> 3)


def decode_joined(section: Buffer, count: int) -> tuple[bytes, Sequence[int]] | None:
    """The entries of the column that fills `section`, none of them null, put together.

    Returns:
        The bytes, and the `count + 1` places where entries begin and the last one ends, strictly
        rising; None where an entry is empty, or there are very many.

    Raises:
        CorruptBatchError: The buffers do not fit the section or each other.
    """
    offsets, start = decode_offsets(section, 0, count)
    total = offsets[-1]
    if start + padded(total) != len(section):
        raise CorruptBatchError(f"section of {len(section)} bytes does not end with its column")
    if count > _EVEN_COUNT_MAX or not _all_rise(section[: 4 * (count + 1)], count):
        rising(offsets)
        return None
    return bytes(section[start : start + total]), offsets


def _all_rise(offsets: Buffer, count: int) -> bool:
    """Whether each of `count + 1` offsets, the first of them 0, is greater than the one before.

    All steps are taken at once, as one subtraction of numbers with an offset to every 32 bits, in
    half of the time of a comparison each. With 2**31 - 1 added, the uppermost bit of every 32 says
    whether the step there is 1 or more; then none has borrowed from the next.
    """
    tops, rest = _lanes(count)
    following = int.from_bytes(offsets[4:], "little")
    if following & tops:
        return False  # negative
    return (following - int.from_bytes(offsets[:-4], "little") + rest) & tops == tops


@lru_cache(maxsize=8)
def _lanes(count: int) -> tuple[int, int]:
    """2**31 and 2**31 - 1, `count` times, every 32 bits."""
    tops = int.from_bytes(b"\0\0\0\x80" * count, "little")
    return tops, tops - (tops >> 31)


def decode_selected(
    section: Buffer, count: int, indexes: Sequence[int], *, nullable: bool
) -> list[Buffer | None]:
    """The entries at `indexes` of the column that fills `section`; the others are not touched.

    Raises:
        CorruptBatchError: The buffers do not fit the section or each other.
    """
    offsets, start = decode_offsets(section, 0, count)
    bounds = rising(offsets)
    end = start + padded(bounds[-1])
    if end + (padded(count + 7 >> 3) if nullable else 0) != len(section):
        raise CorruptBatchError(f"section of {len(section)} bytes does not end with its column")
    data: Buffer = memoryview(section)[start:end]
    if len(data) < count * _VIEW_BYTES_MIN:
        # A view costs more than a copy of a few bytes, and garbage collections look at each.
        data = bytes(data)
    entries: list[Buffer | None] = [data[bounds[i] : bounds[i + 1]] for i in indexes]
    if nullable:
        valid = decode_bitmap(section, end, count)
        entries = [entry if valid[i] else None for i, entry in zip(indexes, entries, strict=True)]
    return entries


def decode_integers(typecode: str, section: Buffer, position: int, count: int) -> list[int]:
    """The `count` little-endian integers of a struct typecode at `position` of `section`."""
    end = position + calcsize(f"<{count}{typecode}")
    if end > len(section):
        raise CorruptBatchError("column runs past its section")
    return list(unpack(f"<{count}{typecode}", section[position:end]))


def require_end(section: Buffer, position: int) -> None:
    """Refuse a section that goes on behind its last column."""
    if position != len(section):
        raise CorruptBatchError(f"section of {len(section)} bytes ends at {position}")


def decode_headers(section: Buffer, count: int) -> list[Headers]:
    """The headers of `count` records, which fill `section`.

    Raises:
        CorruptBatchError: The buffers do not fit the section or each other, or a name is no text.
    """
    offsets, position = decode_offsets(section, 0, count)
    bounds = rising(offsets)
    total = bounds[-1]
    names, position = decode_binary(section, position, total, nullable=False)
    values, end = decode_binary(section, position, total, nullable=True)
    require_end(section, end)
    try:
        texts = [str(name, "utf-8") for name in names if name is not None]
    except UnicodeDecodeError as error:
        raise CorruptBatchError("header name is not UTF-8") from error
    pairs = list(zip(texts, values, strict=True))
    return list(map(tuple, map(pairs.__getitem__, map(slice, bounds, bounds[1:]))))


def decode_offsets(section: Buffer, position: int, count: int) -> tuple[tuple[int, ...], int]:
    """The `count + 1` offsets at `position`, and where they end.

    They start at 0 and the last is not negative; `rising` checks those between.
    """
    end = position + 4 * (count + 1)
    if end > len(section):
        raise CorruptBatchError("column offsets run past their section")
    offsets = unpack(f"<{count + 1}i", section[position:end])
    if offsets[0] != 0 or offsets[-1] < 0:
        raise CorruptBatchError("column offsets do not start at zero")
    return offsets, position + padded(4 * (count + 1))


def rising(offsets: tuple[int, ...]) -> list[int]:
    """`offsets` as a list, after checking that they never fall."""
    result = list(offsets)
    # Sorting a sorted list is one pass of comparisons in C, faster than any loop written here.
    result.sort()
    if tuple(result) != offsets:
        raise CorruptBatchError("column offsets fall")
    return result


def _split(data: bytes, bounds: list[int]) -> list[bytes | None]:
    """`data` cut at `bounds`."""
    # A comprehension over slices is the fastest way known: map(slice, ...) costs twice as much.
    start = 0
    return [data[start : (start := stop)] for stop in bounds[1:]]


def _split_evenly(data: Buffer, width: int) -> list[bytes | None]:
    """`data` cut every `width` bytes; a third of the cost of cutting at given places."""
    chunks = len(data) // (width * _CHUNK) * (width * _CHUNK)
    many = _unpacker(width, _CHUNK)(data[:chunks])
    rest = _unpacker(width, 1)(data[chunks:])
    return [*chain.from_iterable(many), *chain.from_iterable(rest)]


@lru_cache(maxsize=128)
def _unpacker(width: int, count: int) -> Callable[[Buffer], Iterator[tuple[bytes, ...]]]:
    return Struct(f"{width}s" * count).iter_unpack


@cache
def _ramp() -> bytes:
    return pack(f"<{_EVEN_COUNT_MAX + 1}i", *range(_EVEN_COUNT_MAX + 1))


def _is_even(offsets: Buffer, count: int, width: int) -> bool:
    """Whether `offsets` are 0, width, 2 width, ... and then zeros.

    The column 0, 1, 2, ... read as one number and multiplied by the width is that column: no entry
    carries into the next, because the last fits an int32. A tenth of the cost of a loop in C.
    """
    return int.from_bytes(offsets, "little") == _steps(count) * width


def _steps(count: int) -> int:
    """The offsets 0, 1, ... count of entries of one byte, read as one number."""
    return int.from_bytes(_ramp()[: 4 * (count + 1)], "little")


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
