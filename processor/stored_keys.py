"""Keys as the file of state has them: those that are equal in a dict have equal bytes. Pure.

1, 1.0 and True are one key. Beside its bytes the file notes how such a key was put first, because
that is how state shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Final

from .serde import INT64_MAX, INT64_MIN, decode_state, encode_state, restored_key

PLAIN_TYPES: Final = frozenset({str, bytes, int})
"""Types of keys, or of their parts, that have equal bytes where they are equal."""


def stored_key(key: object) -> bytes:
    """A key as the file has it."""
    if type(key) in PLAIN_TYPES:
        return encode_state(key)
    return encode_state(_plain_key(key))


def stored_keys(keys: Collection[object]) -> list[bytes]:
    """Each key as the file has it."""
    return list(map(encode_state if are_plain(keys) else stored_key, keys))


def encoded_keys(keys: Collection[object]) -> Iterable[tuple[bytes, bytes | None]]:
    """Each key as the file has it, and as it was put where that differs: 1.0 is the key 1.

    >>> dict(encoded_keys([1.0])) == {encode_state(1): encode_state(1.0)}
    True
    """
    if are_plain(keys):
        return zip(map(encode_state, keys), repeat(None), strict=False)
    encoded = [(stored_key(key), encode_state(key)) for key in keys]
    return [(stored, None if shown == stored else shown) for stored, shown in encoded]


def as_held(held: Mapping[Any, object], keys: Iterable[object]) -> list[Any]:
    """Those of the keys that a dict has, as it has them: it may have 1 where 1.0 is asked for.

    >>> as_held({"a": 0, 1: 0}, ["b", 1.0])
    [1]
    """
    found = list(filter(held.__contains__, keys))
    if {str, bytes}.issuperset(map(type, found)):
        return found
    asked = set(found)
    return [key for key in held if key in asked]


def are_plain(keys: Collection[object]) -> bool:
    """Whether equal keys surely have equal bytes, found without looking at each in Python."""
    kinds = set(map(type, keys))
    if kinds == {tuple}:
        kinds = set(map(type, chain.from_iterable(keys)))  # type: ignore[arg-type]  # all are tuples
    return kinds <= PLAIN_TYPES


def _plain_key(key: object) -> object:
    """The one of all equal keys whose bytes stand for it."""
    if isinstance(key, tuple):
        return tuple(map(_plain_key, key))
    if isinstance(key, bool):
        return int(key)
    if isinstance(key, float) and key.is_integer() and INT64_MIN <= key <= INT64_MAX:
        return int(key)
    return key


def shown_key(data: bytes) -> object:
    """A key from its bytes."""
    return restored_key(decode_state(data))


def shown_keys(data: Sequence[bytes]) -> list[object]:
    """Keys from their bytes.

    >>> shown_keys([stored_key("a"), stored_key((1, "b"))])
    ['a', (1, 'b')]
    """
    keys = list(map(decode_state, data))
    return list(map(restored_key, keys)) if list in set(map(type, keys)) else keys
