"""The state of an operator as records of a log: what changed, and everything.

A state topic holds, for each operator, records of

    key    msgpack [part, ...]              a path: what the operator files its state under
    value  version byte, msgpack [...]      what the path holds from here on; see `encode_content`
           null                             gone, with everything whose path begins so

The last record of a path wins. Each operator says what its paths are: fixed windows use
[window_end, key], so that the end of a window costs one record, [window_end], and not one per key.
(A window is filed under its end because that always fits into 64 bits; its start may not.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from millstream import DataError, FormatVersionError, UsageError

from .large_ints import decode_large, encode_large
from .serde import (
    UNDECODABLE,
    all_plain,
    decode_state,
    encode_state,
    foreign_part,
    restored_key,
    same_plain,
)

STATE_VERSION: Final = b"\x01"
_LARGE_VERSION: Final = b"\x02"
"""Of values with ints beyond 64 bits; see large_ints.py."""

_PLAIN: Final = (
    "it must be made of None, bool, int, float, str, bytes, list, and dict, or of a type that the"
    " source or the annotation of a function declares"
)

_FIRST: Final[Callable[[bytes], bytes]] = itemgetter(slice(0, 1))
_REST: Final[Callable[[bytes], bytes]] = itemgetter(slice(1, None))
_PATH: Final = msgspec.msgpack.Decoder(tuple[Any, ...])
_LIST: Final = msgspec.msgpack.Decoder(list[Any])

_PIECE_RECORDS: Final = 5_000
"""Entries looked at together, where they come one by one."""


class StateRecords(NamedTuple):
    """Records for a state topic."""

    keys: list[bytes]
    values: list[bytes | None]

    def extend(self, other: StateRecords) -> None:
        """Append the records of `other`."""
        self.keys.extend(other.keys)
        self.values.extend(other.values)


class StateEntry(NamedTuple):
    """One record of a state topic, decoded."""

    path: tuple[Any, ...]
    """At least one part; lists in it are tuples again."""
    value: list[Any] | None
    """None: the path, and all that begin with it, are gone."""


class StatePiece(NamedTuple):
    """Many records of a state topic, decoded, as columns; see `StateEntry`."""

    paths: list[tuple[Any, ...]]
    values: list[list[Any] | None]


@runtime_checkable
class StateEntries(Iterable[StateEntry], Protocol):
    """Entries that can be had in pieces as well, which takes less time for each."""

    def pieces(self) -> Iterator[StatePiece]:
        """The same entries, instead of one by one."""
        ...


def pieces_of(entries: Iterable[StateEntry]) -> Iterator[StatePiece]:
    """The same entries, many at a time."""
    if isinstance(entries, StateEntries):
        yield from entries.pieces()
        return
    each = iter(entries)
    while piece := list(islice(each, _PIECE_RECORDS)):
        yield StatePiece([path for path, _ in piece], [value for _, value in piece])


def encode_entries(
    name: str,
    paths: Sequence[tuple[object, ...]],
    values: Sequence[tuple[Any, ...]],
    *,
    proven: bool = False,
) -> StateRecords:
    """Records that say what each path holds.

    Args:
        name: Of the operator, for messages.
        paths: One per value; its last part is named in messages.
        values: Tuples of what state can keep.
        proven: Whether the values are known to come back as they are (`RowCodec` sees to that).

    Raises:
        UsageError: A value would not come back from state as it is.
    """
    encoded = _encode_values(name, map(itemgetter(-1), paths), values, proven=proven)
    return StateRecords(list(map(encode_state, paths)), encoded)


def encode_filed(
    name: str,
    above: tuple[object, ...],
    keys: Sequence[object],
    values: Sequence[tuple[Any, ...]],
    *,
    proven: bool = False,
) -> StateRecords:
    """The same for the paths `(*above, key)` of many keys, in two thirds of the time.

    Args:
        name: Of the operator, for messages.
        above: What the paths begin with, at most 14 parts.
        keys: Their last parts, one per value.
        values: Tuples of what state can keep.
        proven: See `encode_entries`.

    Raises:
        UsageError: A value would not come back from state as it is.

    >>> encode_filed("n", (60,), ["a"], [(1,)]) == encode_entries("n", [(60, "a")], [(1,)])
    True
    """
    encoded = _encode_values(name, keys, values, proven=proven)
    head = encode_state((*above, None))[:-1]  # without the null, which is a byte
    return StateRecords([head + key for key in map(encode_state, keys)], encoded)


def _encode_values(
    name: str, parts: Iterable[object], values: Sequence[tuple[Any, ...]], *, proven: bool
) -> list[bytes | None]:
    """The values of records; `parts` names each in messages."""
    # Values are appended one by one: which raises is known by how many there are.
    encoded: list[bytes] = []
    try:
        try:
            encoded += map(encode_state, values)
        except OverflowError:
            encoded, large = [], True
            encoded += map(encode_content, values)
        else:
            large = False
    except (TypeError, OverflowError, ValueError) as error:
        part = next(islice(parts, len(encoded), None))
        raise UsageError(
            f"the state of {name!r} cannot be kept: for key {part!r}: {error}; {_PLAIN}"
        ) from error
    if not proven and not all_plain(list(chain.from_iterable(values))):
        decode = decode_content if large else decode_state
        for part, before, data in zip(parts, values, encoded, strict=True):
            if any(map(foreign_part, before)):
                _refuse_changed(name, part, before, decode(data))
    return encoded if large else [STATE_VERSION + value for value in encoded]  # type: ignore[return-value]


def _refuse_changed(name: str, part: object, before: Sequence[Any], after: Sequence[Any]) -> None:
    """Refuse what is not the same after a round trip, in type and content.

    What equals it may still be something else: a dict is no Counter, and has no default.
    """
    if not all(map(same_plain, before, after)):
        raise UsageError(
            f"the state of {name!r} cannot be kept: for key {part!r} {before!r} would"
            f" come back as {tuple(after)!r}; {_PLAIN}"
        )


def encode_removed(paths: Iterable[tuple[object, ...]]) -> StateRecords:
    """Records that remove paths, and all that begin with them."""
    keys = list(map(encode_state, paths))
    return StateRecords(keys, [None] * len(keys))


def decode_entry(key: bytes | None, value: bytes | None) -> StateEntry:
    """One record of a state topic.

    Raises:
        FormatVersionError: Written by a newer version.
        DataError: Not a state record.
    """
    parts = _decoded_list(key or b"")
    if not parts:
        raise DataError("not a state record: its path is empty")
    path = tuple(map(restored_key, parts))
    return StateEntry(path, None if value is None else decode_content(value))


def decode_piece(keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> StatePiece:
    """Records of a state topic, as `decode_entry` does it, but all of them in few calls.

    Raises:
        FormatVersionError: One was written by a newer version.
        DataError: One is not a state record.
    """
    known = [value for value in values if value is not None]
    if None in keys or len(known) < len(values):
        entries = list(map(decode_entry, keys, values))
        return StatePiece([entry.path for entry in entries], [entry.value for entry in entries])
    contents = decode_contents(known)
    paths = decode_paths(keys)  # type: ignore[arg-type]  # none is None
    return StatePiece(paths, contents)  # type: ignore[arg-type]


def decode_paths(keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
    """The paths of records, from their keys.

    Raises:
        DataError: One is not the key of a state record.
    """
    try:
        paths = list(map(_PATH.decode, keys))
    except UNDECODABLE as error:
        raise DataError(f"not a state record: {error}") from error
    if not all(paths):
        raise DataError("not a state record: its path is empty")
    if list in set(map(type, chain.from_iterable(paths))):
        paths = [tuple(map(restored_key, path)) for path in paths]
    return paths


def encode_content(content: Sequence[Any]) -> bytes:
    """The value of the record of a path, from what it holds.

    Raises:
        TypeError: It is not made of what state can keep; OverflowError and ValueError likewise.

    >>> encode_content([1]).hex(), encode_content([2**64]).hex()[:4]
    ('019101', '0291')
    """
    try:
        return STATE_VERSION + encode_state(content)
    except OverflowError:
        return _LARGE_VERSION + encode_large(content)


def decode_content(value: bytes) -> list[Any]:
    """What a path holds, from the value of its record.

    Raises:
        FormatVersionError: Written by a newer version.
        DataError: Not the value of a state record.
    """
    version = value[:1]
    if version == STATE_VERSION:
        return _decoded_list(value[1:])
    if version != _LARGE_VERSION:
        raise FormatVersionError(
            f"state was written in version {version.hex() or 'none'}, this version reads"
            f" {STATE_VERSION.hex()} and {_LARGE_VERSION.hex()}"
        )
    try:
        content = decode_large(value[1:])
    except (DataError, *UNDECODABLE, TypeError) as error:
        raise DataError(f"not a state record: {error}") from error
    if not isinstance(content, list):
        raise DataError(f"not a state record: {content!r}")
    return content


def decode_contents(values: Sequence[bytes]) -> list[list[Any]]:
    """What paths hold, as `decode_content` does it, but all of them in few calls.

    >>> decode_contents([encode_content([1]), encode_content(["a", 2])])
    [[1], ['a', 2]]
    """
    if set(map(_FIRST, values)) != {STATE_VERSION}:
        return list(map(decode_content, values))
    try:
        return list(map(_LIST.decode, map(_REST, values)))
    except UNDECODABLE as error:
        raise DataError(f"not a state record: {error}") from error


def _decoded_list(data: bytes) -> list[Any]:
    try:
        return _LIST.decode(data)
    except UNDECODABLE as error:
        raise DataError(f"not a state record: {error}") from error
