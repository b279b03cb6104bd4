"""Bounds of texts and bytes, cut short so that a directory of columns stays small. Pure.

A lower bound may be lower than every value and an upper one higher, so cutting is safe as long as
the end of the upper one is rounded up. Both are compared byte by byte, as Arrow compares; in UTF-8
that is the order of characters. The rules are in docs/log-format.md, "Column batches".
"""

from __future__ import annotations

from typing import Final

BOUND_BYTES_MAX: Final = 64
"""Values up to this length are their own bounds."""
_CUT_BYTES: Final = 60
"""Longer ones are cut to this, which leaves room for a last character that grows."""
_LAST_CHARACTER: Final = 0x10FFFF
_BEFORE_SURROGATES: Final = 0xD7FF
_BEHIND_SURROGATES: Final = 0xE000


def lower_bound(value: bytes, *, text: bool) -> bytes:
    """A bound that is `value` or below it.

    >>> lower_bound(b"a" * 100, text=True) == b"a" * 60
    True
    """
    if len(value) <= BOUND_BYTES_MAX:
        return value
    cut = _CUT_BYTES
    while text and cut and value[cut] & 0xC0 == 0x80:  # inside of a character
        cut -= 1
    return value[:cut]


def upper_bound(value: bytes, *, text: bool) -> bytes | None:
    r"""A bound that is `value` or above it and every value that begins alike; None: there is none.

    Raises:
        UnicodeDecodeError: It is to be a text, is long, and is no UTF-8.

    >>> upper_bound(b"a" * 100, text=True) == b"a" * 59 + b"b"
    True
    >>> upper_bound(b"\xff" * 100, text=False) is None
    True
    """
    if len(value) <= BOUND_BYTES_MAX:
        return value
    prefix = lower_bound(value, text=text)
    return _raised_text(prefix.decode()) if text else _raised(prefix)


def _raised(prefix: bytes) -> bytes | None:
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def _raised_text(prefix: str) -> bytes | None:
    kept = prefix.rstrip(chr(_LAST_CHARACTER))
    if not kept:
        return None
    last = ord(kept[-1])
    above = _BEHIND_SURROGATES if last == _BEFORE_SURROGATES else last + 1
    return (kept[:-1] + chr(above)).encode()
