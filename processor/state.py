"""The state of an operator as records of a log: what changed, and everything.

A state topic holds, for each operator, records of

    key    msgpack [window_end, key]        the accumulators of one key
           msgpack [window_end]             the whole window
    value  version byte, msgpack            what the key holds from here on
           null                             gone

The last record of a key wins, and a null for a window removes all of its keys: a window closes as
a whole, so its end costs one record and not one per key. Keys are put under the window's end and
not its start because the end always fits into 64 bits. (A window's start may lie before int64.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from millstream import DataError, FormatVersionError, UsageError

from .serde import decode_state, encode_state, restored_key, same_plain

STATE_VERSION: Final = b"\x01"

_LIST: Final = msgspec.msgpack.Decoder(list[Any])


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

    window_end: int
    key: object
    """None when the record is about the whole window."""
    accumulators: list[Any] | None


def encode_entries(
    name: str, window_end: int, keys: Sequence[object], accumulators: Sequence[tuple[Any, ...]]
) -> StateRecords:
    """Records that say what each key of a window holds.

    Raises:
        UsageError: An accumulator would not come back from state as it is.
    """
    try:
        values = list(map(encode_state, accumulators))
    except (TypeError, OverflowError, ValueError) as error:
        raise UsageError(
            f"the state of {name!r} cannot be kept: {error}; accumulators must be made of None,"
            " bool, int (64 bits), float, str, bytes, list, and dict with str keys"
        ) from error
    restored = list(map(tuple, map(decode_state, values)))
    if restored != accumulators:
        _refuse_changed(name, keys, accumulators, restored)
    return StateRecords(
        [encode_state((window_end, key)) for key in keys],
        [STATE_VERSION + value for value in values],
    )


def _refuse_changed(
    name: str,
    keys: Sequence[object],
    accumulators: Sequence[tuple[Any, ...]],
    restored: Sequence[tuple[Any, ...]],
) -> None:
    """Say which accumulator is not the same after a round trip; NaN alone is no change."""
    for key, before, after in zip(keys, accumulators, restored, strict=True):
        if not all(map(same_plain, before, after)):
            raise UsageError(
                f"the state of {name!r} cannot be kept: for key {key!r} {before!r} would come"
                f" back as {after!r}; accumulators must be made of None, bool, int, float, str,"
                " bytes, list, and dict with str keys"
            )


def encode_closed(window_ends: Iterable[int]) -> StateRecords:
    """Records that remove whole windows."""
    keys = [encode_state((end,)) for end in window_ends]
    return StateRecords(keys, [None] * len(keys))


def decode_entry(key: bytes | None, value: bytes | None) -> StateEntry:
    """One record of a state topic.

    Raises:
        FormatVersionError: Written by a newer version.
        DataError: Not a state record.
    """
    parts = _decoded_list(key or b"")
    if not 1 <= len(parts) <= 2 or type(parts[0]) is not int:
        raise DataError("not a state record: its key is not [window_end, key]")
    name = restored_key(parts[1]) if len(parts) == 2 else None
    if value is None:
        return StateEntry(parts[0], name, None)
    if value[:1] != STATE_VERSION:
        raise FormatVersionError(
            f"state was written in version {value[:1].hex() or 'none'}, this version reads"
            f" {STATE_VERSION.hex()}"
        )
    if name is None:
        raise DataError("not a state record: a value for a whole window")
    return StateEntry(parts[0], name, _decoded_list(value[1:]))


def _decoded_list(data: bytes) -> list[Any]:
    try:
        return _LIST.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not a state record: {error}") from error
