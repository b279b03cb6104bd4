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
from datetime import datetime, time, timezone
from typing import Any, Final, get_origin

import msgspec

from millstream import DataError, UsageError

from .large_ints import decode_large, encode_large
from .row_shapes import MadeRow
from .row_types import union_of
from .serde import (
    UNDECODABLE,
    all_plain,
    encode_state,
    foreign_part,
    name_hint,
    restored_key,
    same_plain,
)

_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_HINT: Final = (
    "annotate the function that makes it, or declare it in full: type=, state=list[Order]"
)
_TAGS: Final = "; Structs of several types in one stream are told apart by tags: tag=True"
_SORTED: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_TEXT_TIMES: Final = (msgspec.inspect.DateTimeType, msgspec.inspect.TimeType)
"""As msgpack they would lose their offset from UTC, as text they keep it."""


_PLAIN_KINDS: Final = (
    msgspec.inspect.AnyType,
    msgspec.inspect.NoneType,
    msgspec.inspect.BoolType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.UnionType,
    msgspec.inspect.ListType,
    msgspec.inspect.DictType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.Field,
)
"""What state brings back as it is, without knowing more."""


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
        self._timed = any(isinstance(kind, _TEXT_TIMES) for kind in kinds)
        if self._timed:
            encode, decode = _encode_as_text, self._decode_text
        results = [kind for kind in kinds if _is_result(kind)]
        alone = len(results) == 1 and _is_result(msgspec.inspect.type_info(row_type))
        self._with_keys = (_with_key if alone else _with_keys) if results else None
        if self._with_keys is not None:
            inner, restored = decode, self._with_keys
            decode = lambda packed: restored(inner(packed))  # noqa: E731
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
        return row if self._with_keys is None else self._with_keys(row)

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
            if self._timed:
                _refuse_zones(_with_times(row))
            # Of NaN and of classes without equality, what they show must be the same.
            same = same and type(restored) is type(row)
            same = same and (restored == row or repr(restored) == repr(row))
        # An ArithmeticError: a signalling NaN.
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise UsageError(
                f"{self.what}: {row!r} cannot be kept in state as {_name(self._type)}: {error};"
                f" {_HINT}"
            ) from error
        if not same:
            raise UsageError(
                f"{self.what}: {row!r} cannot be kept in state as {_name(self._type)}: it would"
                f" come back as {restored!r}; {_HINT}"
            )
        return packed

    def _decode_text(self, packed: bytes) -> Any:
        return msgspec.convert(msgspec.msgpack.decode(packed), self._type, builtin_types=(bytes,))


PLAIN: Final = RowCodec(None, "state")
"""For values that the operator itself makes of plain ones."""


def merged_type(types: Iterable[Any]) -> object:
    """The type of rows that are of any of these types; None where rows could not be told apart."""
    merged = union_of(parts := list(types))
    if parts and all(each == parts[0] for each in parts):
        return parts[0]
    try:
        kinds_of(merged, "")
    except UsageError:
        return None
    return merged


def needed_type(found: object) -> object:
    """The type, unless state brings back what is of it without knowing."""
    if found is None:
        return None
    try:
        kinds = kinds_of(found, "")
    except UsageError:
        return None  # what it is shows when there is a value that cannot be kept
    return None if all(isinstance(kind, _PLAIN_KINDS) for kind in kinds) else found


def _is_result(kind: msgspec.inspect.Type) -> bool:
    """Whether it is a result of aggregates, whose key may be anything that groups rows."""
    if not isinstance(kind, msgspec.inspect.StructType):
        return False
    return issubclass(get_origin(kind.cls) or kind.cls, MadeRow)


def _with_key(row: Any) -> Any:
    """A result of aggregates, its key a tuple again where it was one."""
    if isinstance(row.key, list):
        return msgspec.structs.replace(row, key=restored_key(row.key))
    return row


def _with_keys(row: Any) -> Any:
    """The same of all results in a row."""
    if isinstance(row, list | tuple) and type(row) in {list, tuple}:
        return type(row)(map(_with_keys, row))
    if isinstance(row, dict):
        return {key: _with_keys(value) for key, value in row.items()}
    if not isinstance(row, msgspec.Struct):
        return row
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    changed = {name: _with_keys(value) for name, value in fields.items()}
    if isinstance(row, MadeRow):
        changed["key"] = restored_key(fields["key"])
    changed = {name: value for name, value in changed.items() if value is not fields[name]}
    return msgspec.structs.replace(row, **changed) if changed else row


def _encode_as_text(row: object) -> bytes:
    return encode_state(_as_plain(row))


def _as_plain(row: object) -> object:
    return msgspec.to_builtins(row, builtin_types=(bytes,))


def _as_text(row: object) -> object:
    return msgspec.to_builtins(row, builtin_types=(bytes,), order="deterministic")


def _with_times(row: object) -> object:
    """A row as plain values and times."""
    return msgspec.to_builtins(row, builtin_types=(bytes, datetime, time), str_keys=False)


def _refuse_zones(value: Any) -> None:
    """Refuse a time of a zone: as text it keeps its offset, which another day may not have.

    Raises:
        ValueError: There is one.
    """
    kind = type(value)
    if kind is datetime or kind is time:
        zone = value.tzinfo
        if zone is not None and type(zone) is not timezone and value.tzname() != "UTC":
            raise ValueError(
                f"of the zone {zone} only the offset would come back: make the time UTC, and keep"
                " the name of the zone beside it"
            )
    elif kind is dict:
        _refuse_zones([*value, *value.values()])
    elif kind is list:
        for each in value:
            _refuse_zones(each)


def kinds_of(row_type: object, what: str) -> list[msgspec.inspect.Type]:
    """All types that a row may be made of."""
    try:
        waiting: list[object] = [msgspec.inspect.type_info(row_type)]
        msgspec.msgpack.Decoder(row_type)
    except (TypeError, NameError) as error:
        raise UsageError(
            f"{what}: rows of {_name(row_type)} cannot be kept in state: {error}{name_hint(error)}"
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
    """Refuse what msgpack would bring back as something else."""
    try:
        if all_plain(rows):
            return
    except RecursionError:
        pass  # below it is said which
    for row in rows:
        try:
            foreign = foreign_part(row)
        except RecursionError:
            foreign = "values nested without end"
        if foreign is not None:
            tags = _TAGS if isinstance(row, msgspec.Struct) else ""
            raise UsageError(
                f"{what}: {row!r} cannot be kept in state: it has {foreign}, and without a known"
                f" type it must be made of None, bool, int, float, str, bytes, list and dict;"
                f" {_HINT}{tags}"
            )


def _name(row_type: object) -> str:
    return getattr(row_type, "__qualname__", None) or repr(row_type)
