"""Ints beyond 64 bits in the msgpack of state: sums of ints stay exact however large they become.

msgpack has no form for them, so each is an extension, as docs/log-format.md says. What has none
of them is written without this module, and stays readable for versions that do not know it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from millstream import DataError

from .serde import encode_state, restored_key

_LEAST: Final = -(2**63)
_GREATEST: Final = 2**64 - 1
"""The ints that msgpack has a form for."""

_INT: Final = 1
"""Code of an int: two's complement, big-endian."""
_DICT: Final = 2
"""Code of a dict that has them in its keys: msgpack [[key, value], ...]."""


def encode_large(value: object) -> bytes:
    """Plain data as msgpack, with extensions for what that has no form for.

    Raises:
        TypeError: It is not plain; ValueError, OverflowError and RecursionError likewise.

    >>> encode_large([1, 2**64]).hex(), decode_large(encode_large([1, 2**64]))
    ('9201c70901010000000000000000', [1, 18446744073709551616])
    """
    return encode_state(_extended(value))


def _extended(value: Any) -> Any:
    kind = type(value)
    if kind is int and not _LEAST <= value <= _GREATEST:
        size = value.bit_length() // 8 + 1
        return msgspec.msgpack.Ext(_INT, value.to_bytes(size, "big", signed=True))
    if kind in {list, tuple}:
        return list(map(_extended, value))
    if kind is dict:
        pairs = [(_extended(key), _extended(each)) for key, each in value.items()]
        # Keys must be hashable. Those that are tuples have become lists.
        if any(isinstance(key, msgspec.msgpack.Ext | list) for key, _ in pairs):
            return msgspec.msgpack.Ext(_DICT, encode_state(pairs))
        return dict(pairs)
    return value


def _from_extension(code: int, data: memoryview) -> Any:
    if code == _INT:
        return int.from_bytes(data, "big", signed=True)
    if code == _DICT:
        return {restored_key(key): each for key, each in _PAIRS.decode(data)}
    raise DataError(f"extension {code} of msgpack is unknown")


decode_large: Final = msgspec.msgpack.Decoder(ext_hook=_from_extension).decode
_PAIRS: Final = msgspec.msgpack.Decoder(list[tuple[Any, Any]], ext_hook=_from_extension)
