"""Rows as state keeps them, and back: the one way rows of any type enter and leave state.

A row whose type is known (a msgspec Struct, dataclass, NamedTuple, Decimal, ...) becomes msgpack
and comes back as what it was; None does so whatever the type. A row of an unknown type must be
plain: None, bool, int, float, str, bytes, and lists and dicts of these. What would
come back as something else is refused, because a restart would change results; so what is packed
here needs no other proof.

What state records look like is said in state.py; which types rows have, in row_types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from millstream import DataError, UsageError

from .large_ints import decode_large, encode_large
from .row_shapes import Aggregated
from .serde import UNDECODABLE, encode_state, restored_key, same_plain
from .windows import Windowed

_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_HINT: Final = "annotate the function that makes the rows, or give type="
_SORTED: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_TEXT_TIMES: Final = (msgspec.inspect.DateTimeType, msgspec.inspect.TimeType)
"""As msgpack they would lose their offset from UTC, as text they keep it."""


def is_plain_type(row_type: object) -> bool:
    """Whether rows of this type are taken as plain values: it is unknown, or a plain one itself."""
    return any(row_type is each for each in (None, Any, object, dict, list, *_SCALARS))


class RowCodec:
    """Turns rows of one type into what state can keep, and back. Pure.

    Args:
        row_type: What the rows are; None where nobody said.
        what: Names the rows in messages: `left rows of orders.join`.

    Raises:
        UsageError: msgspec cannot bring rows of this type back.

    >>> codec = RowCodec(tuple[int, str], "pairs")
    >>> bytes(codec.pack([(1, "a")])[0]).hex(), codec.unpack([1, "a"])
    ('9201a161', (1, 'a'))
    """

    def __init__(self, row_type: object, what: str) -> None:
        self.what = what
        self._type: Any = None if is_plain_type(row_type) else row_type
        self.plain = self._type is None
        """Whether rows are kept as they are."""
        if self.plain:
            return
        kinds = kinds_of(self._type, what)
        encode: Callable[[Any], bytes] = encode_state
        decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(self._type).decode
        if any(isinstance(kind, _TEXT_TIMES) for kind in kinds):
            encode, decode = _encode_as_text, self._decode_text
        self._has_key = isinstance(row_type, type) and issubclass(row_type, Aggregated | Windowed)
        if self._has_key:
            inner = decode
            decode = lambda packed: _with_key(inner(packed))  # noqa: E731
        self._encode = encode
        self._decode = decode
        self._open = any(isinstance(kind, msgspec.inspect.AnyType) for kind in kinds)
        """Whether parts of a row may be anything, times among them."""

    def pack(self, rows: Sequence[object]) -> list[Any]:
        """What state keeps of each row, ready for the encoder of state.

        Raises:
            UsageError: A row would not come back as it is.
        """
        if self._type is None:
            _require_plain(rows, self.what)
            return list(rows)
        return list(map(self._pack_one, rows))

    def unpack(self, packed: object) -> Any:
        """The row that was packed, from what the decoder of state gives for it.

        Raises:
            DataError: It is not a row of this type.
        """
        if self._type is None or packed is None:
            return packed
        try:
            return self._convert(packed)
        except (TypeError, *UNDECODABLE, ValueError) as error:
            raise DataError(f"{self.what}: not a row of {_name(self._type)}: {error}") from error

    def _convert(self, packed: object) -> Any:
        row = msgspec.convert(packed, self._type, builtin_types=(bytes,))
        return _with_key(row) if self._has_key else row

    def _pack_one(self, row: object) -> Any:
        if row is None:
            return None
        packed: Any
        try:
            try:
                encoded = self._encode(row)
                packed, restored = msgspec.Raw(encoded), self._decode(encoded)
                # 1 equals 1.0, but is written otherwise. A set may have changed its order.
                same = self._encode(restored) == encoded or _SORTED(restored) == _SORTED(row)
                same = same and (not self._open or _as_text(restored) == _as_text(row))
            except OverflowError:
                # An int beyond 64 bits, which the encoder of state can write of plain values.
                packed = _as_plain(row)
                restored = self._convert(decode_large(encode_large(packed)))
                same = same_plain(packed, _as_plain(restored)) or same_plain(
                    _as_text(restored), _as_text(row)
                )
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"{self.what}: {row!r} cannot be kept in state as {_name(self._type)}: {error};"
                f" {_HINT}"
            ) from error
        if (
            not same
            or type(restored) is not type(row)
            # Of NaN and of classes without equality, what they show must be the same.
            or (restored != row and repr(restored) != repr(row))
        ):
            raise UsageError(
                f"{self.what}: {row!r} cannot be kept in state as {_name(self._type)}: it would"
                f" come back as {restored!r}; {_HINT}"
            )
        return packed

    def _decode_text(self, packed: bytes) -> Any:
        return msgspec.convert(msgspec.msgpack.decode(packed), self._type, builtin_types=(bytes,))


PLAIN: Final = RowCodec(None, "state")
"""For values that the operator itself makes of plain ones."""


def _with_key(row: Any) -> Any:
    """A result of aggregates, its key a tuple again where it was one."""
    if isinstance(row.key, list):
        return msgspec.structs.replace(row, key=restored_key(row.key))
    return row


def _encode_as_text(row: object) -> bytes:
    return encode_state(_as_plain(row))


def _as_plain(row: object) -> object:
    return msgspec.to_builtins(row, builtin_types=(bytes,))


def _as_text(row: object) -> object:
    return msgspec.to_builtins(row, builtin_types=(bytes,), order="deterministic")


def kinds_of(row_type: object, what: str) -> list[msgspec.inspect.Type]:
    """All types that a row may be made of."""
    try:
        waiting: list[object] = [msgspec.inspect.type_info(row_type)]
        msgspec.msgpack.Decoder(row_type)
    except (TypeError, NameError) as error:
        raise UsageError(
            f"{what}: rows of {_name(row_type)} cannot be kept in state: {error}"
        ) from error
    kinds: dict[int, msgspec.inspect.Type] = {}
    while waiting:
        each = waiting.pop()
        if isinstance(each, tuple):
            waiting += each
        elif isinstance(each, msgspec.inspect.Field):
            waiting.append(each.type)
        elif isinstance(each, msgspec.inspect.Type) and id(each) not in kinds:
            if isinstance(each, msgspec.inspect.CustomType) and each.cls is object:
                each = msgspec.inspect.AnyType()
            if isinstance(each, msgspec.inspect.CustomType):
                raise UsageError(
                    f"{what}: rows of {_name(row_type)} cannot be kept in state: nothing is known"
                    f" of {_name(each.cls)}; use a msgspec Struct, a dataclass or plain values"
                )
            kinds[id(each)] = each
            waiting += [getattr(each, name) for name in each.__struct_fields__]
    return list(kinds.values())


def _require_plain(rows: Sequence[Any], what: str) -> None:
    """Refuse what msgpack would bring back as something else: mostly a pass in C over columns."""
    types = set(map(type, rows))
    if types == {dict} and set(map(type, chain.from_iterable(rows))) <= {str}:
        types = set(map(type, chain.from_iterable(map(dict.values, rows))))
    elif types == {list}:
        types = set(map(type, chain.from_iterable(rows)))
    if types <= _SCALARS:
        return
    for row in rows:
        try:
            foreign = _foreign(row)
        except RecursionError:
            foreign = "values nested without end"
        if foreign is not None:
            raise UsageError(
                f"{what}: {row!r} cannot be kept in state: it has {foreign}, and without a known"
                f" type it must be made of None, bool, int, float, str, bytes, list and dict;"
                f" {_HINT}"
            )


def _foreign(value: object) -> str | None:
    """What in a value is not plain, in words."""
    kind = type(value)
    parts: Iterable[object]
    if kind in _SCALARS:
        return None
    if isinstance(value, list) and kind is list:
        parts = value
    elif isinstance(value, dict) and kind is dict:
        # Most keys and values are scalars: they are looked at in C.
        if not _SCALARS.issuperset(map(type, value)):
            for key in value:
                if not _is_plain_key(key):
                    return f"the dict key {key!r}"
        parts = value.values()
    else:
        return f"a {_name(kind)}"
    if _SCALARS.issuperset(map(type, parts)):
        return None
    return next(filter(None, map(_foreign, parts)), None)


def _is_plain_key(key: object) -> bool:
    """Whether msgpack brings back a key of a dict as it is: an array there becomes a tuple."""
    kind = type(key)
    return kind in _SCALARS or (
        isinstance(key, tuple) and kind is tuple and all(map(_is_plain_key, key))
    )


def _name(row_type: object) -> str:
    return getattr(row_type, "__qualname__", None) or repr(row_type)
