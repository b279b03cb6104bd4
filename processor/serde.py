"""Values and keys as bytes: what a topic holds, what state holds, and how keys are ordered.

Values in topics are JSON, but for sources of `bytes` and `str`. Keys of outputs are UTF-8 for a
str, the bytes themselves for bytes, and JSON for anything else. State is msgpack, which keeps
int, float, bytes and str apart. Nothing goes through pickle.

A grouping key must come back from state as it was, and JSON must tell it from others, so it is a
str, bytes, bool, 64-bit int, finite float, or a tuple of these, and of no class derived from them.
As in any Python dict 1, 1.0 and True are the same key.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, time
from enum import Enum
from functools import lru_cache
from itertools import chain
from math import isfinite
from operator import itemgetter
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from millstream import DataError, FormatVersionError, UsageError

Json: TypeAlias = Any
"""A decoded JSON value. Its shape is the user's; a declared `type` gives checked types instead."""

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be; nested too deeply among it."""

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

_BRACE: Final = ord("{")

_KEY_TYPES: Final = (str, bytes, bool, int, float, tuple)
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
"""What msgpack brings back as it was."""

_TOGETHER_MIN: Final = 2
"""Fewer values are not decoded in one call."""

_ENCODER: Final = msgspec.json.Encoder()
encode_json: Final = _ENCODER.encode
T = TypeVar("T")


class StoredForm(Generic[T]):
    r"""Values of one type as bytes of the catalog or of a record: a version, then msgpack.

    Args:
        kind: The type.
        version: The first byte, another one whenever older versions could not read the rest.

    >>> form = StoredForm(list[int], b"\x01")
    >>> form.decode(form.encode([1, 2]), "the list")
    [1, 2]
    """

    def __init__(self, kind: type[T], version: bytes) -> None:
        self._version = version
        self._decoder = msgspec.msgpack.Decoder(kind)

    def encode(self, value: T) -> bytes:
        """The bytes of a value."""
        return self._version + msgspec.msgpack.encode(value)

    def decode(self, data: bytes, what: str) -> T:
        """The value of some bytes.

        Args:
            data: From `encode`, or not.
            what: Whose they are, for errors.

        Raises:
            FormatVersionError: Of another version.
            DataError: No such value.
        """
        if data[:1] != self._version:
            raise FormatVersionError(
                f"{what} was written in version {data[:1].hex() or 'none'}, this version reads"
                f" {self._version.hex()}"
            )
        try:
            return self._decoder.decode(data[1:])
        except UNDECODABLE as error:
            raise DataError(f"{what} cannot be read: {error}") from error


encode_state: Final = msgspec.msgpack.Encoder().encode
decode_state: Final = msgspec.msgpack.Decoder().decode


def encode_objects(names: Sequence[str], columns: Sequence[Sequence[object]]) -> list[bytes]:
    """Columns of these names as JSON objects, one for each row.

    >>> encode_objects(["a", "b"], [(1, None), ("x", "y")])
    [b'{"a":1,"b":"x"}', b'{"a":null,"b":"y"}']
    """
    # A text in JSON has no raw newline. Objects of a type of their own take a third of the time
    # of dictionaries.
    return _ENCODER.encode_lines(list(map(_object_type(tuple(names)), *columns))).splitlines()


@lru_cache(maxsize=64)
def _object_type(names: tuple[str, ...]) -> Callable[..., object]:
    """What makes an object of a row's fields that is written with these names."""
    fields = [(f"field{number}", Any) for number in range(len(names))]
    rename = {field: name for (field, _), name in zip(fields, names, strict=True)}
    try:
        return msgspec.defstruct("Row", fields, rename=rename, gc=False)
    except ValueError:  # names with quotes or control characters
        return lambda *row: dict(zip(names, row, strict=True))


def value_decoder(value_type: object) -> Callable[[Any], object]:
    """The function that turns the bytes of a record into a value of the source's type.

    `bytes` are taken as they are, `str` is UTF-8 text, anything else is JSON that must match the
    type (a msgspec Struct, dataclass, TypedDict, dict, list, ...).

    Raises:
        UsageError: msgspec cannot decode the type.
    """
    if value_type is bytes:
        return bytes  # the same object, and a TypeError for a tombstone
    if value_type is str:
        return bytes.decode
    try:
        return msgspec.json.Decoder(value_type).decode
    except (TypeError, NameError) as error:
        raise UsageError(
            f"type={value_type!r} cannot be decoded from JSON: {error}{name_hint(error)}"
        ) from error


def name_hint(error: Exception) -> str:
    """What to do about an annotation that names what is not there."""
    if not isinstance(error, NameError):
        return ""
    return (
        "; annotations in text are looked up at the top of the module of their class: define it"
        " there, and import it when the program runs"
    )


def objects_decoder(
    value_type: object,
) -> Callable[[bytes, Sequence[int]], list[object] | None] | None:
    """The function that decodes many values in one call, for types that are always JSON objects.

    It takes values put together and where each begins, strictly rising, the end last. It returns
    what `value_decoder` makes of each, or None where they have to be taken one by one: one is bad,
    or objects lie inside of objects. None for other types.

    >>> decode = objects_decoder(dict)
    >>> decode(b'{"a":1}{"a":2}', [0, 7, 14]), decode(b'{"a":1}{"a":2}', [0, 14])
    ([{'a': 1}, {'a': 2}], None)
    """
    if not _is_object_type(value_type):
        return None
    decode_lines = msgspec.json.Decoder(value_type).decode_lines

    def decode(data: bytes, bounds: Sequence[int]) -> list[object] | None:
        # The parser takes one object after the other and does not care where a value ends. But it
        # must begin each with a brace. As many objects as braces, and as many braces as values that
        # begin with one: so each value is one object, and blanks behind it.
        count = len(bounds) - 1
        start, end = bounds[0], bounds[-1]
        if count < _TOGETHER_MIN:
            return None
        piece = data[start:end]
        # To take the braces out, from one to the next, is twice as fast as count(), byte by byte.
        if len(piece) - len(piece.replace(b"{", b"")) != count:
            return None
        if itemgetter(*bounds[:-1])(data).count(_BRACE) != count:
            return None
        try:
            values = decode_lines(piece)
        except Exception:
            return None  # the pass over single values finds out which it is, and raises again
        return values if len(values) == count else None

    return decode


def _is_object_type(value_type: object) -> bool:
    """Whether every value of the type is an object in JSON."""
    return value_type is dict or (
        isinstance(value_type, type) and issubclass(value_type, msgspec.Struct)
    )


def key_decoder(key_type: Any) -> Callable[[bytes | None], object]:
    """The function that turns the key of a record into a grouping key, as `encode_key` made it.

    `str` is UTF-8 text, `bytes` are taken as they are, anything else is JSON of that type. None,
    where a record has no key, stays None.

    Raises:
        UsageError: Nothing that rows can be grouped by.
    """
    decode: Callable[[bytes], object]
    if key_type is bytes:
        decode = bytes
    elif key_type is str:
        decode = bytes.decode
    elif key_type in {int, float, bool} or typing.get_origin(key_type) is tuple:
        decode = msgspec.json.Decoder(key_type).decode
    else:
        raise UsageError(
            f"key_type={key_type!r}: use str, bytes, int, float, bool or a tuple[...] of them"
        )
    return lambda key: None if key is None else decode(key)


def encode_value(value: object) -> bytes | None:
    """A value as a topic holds it: bytes as they are, None as a tombstone, else JSON.

    >>> encode_value({"a": 1}), encode_value(b"raw"), encode_value(None)
    (b'{"a":1}', b'raw', None)
    """
    if value is None:
        return None
    return value if isinstance(value, bytes) else encode_json(value)


def json_values(values: Sequence[object]) -> list[bytes] | None:
    """Each value as JSON, encoded in one call; None when they have to be taken one by one.

    >>> json_values([{"a": 1}, 2])
    [b'{"a":1}', b'2']
    """
    try:
        lines = _ENCODER.encode_lines(values).split(b"\n")
    except Exception:
        return None  # the pass over single values finds out which it is, and raises again
    lines.pop()  # what is behind the last newline: nothing
    # Only msgspec.Raw can hold a raw newline.
    return lines if len(lines) == len(values) else None


def encode_key(key: object) -> bytes:
    """A grouping key as the key of a record.

    >>> encode_key("u1"), encode_key(b"u1"), encode_key(7), encode_key(("a", 1))
    (b'u1', b'u1', b'7', b'["a",1]')
    """
    if isinstance(key, str):
        return key.encode()
    return key if isinstance(key, bytes) else encode_json(key)


def encode_keys(keys: Sequence[object]) -> list[bytes]:
    """All keys, as `encode_key` does it."""
    try:
        return list(map(str.encode, keys))  # type: ignore[arg-type]  # most are
    except TypeError:
        return list(map(encode_key, keys))


def joined_keys(keys: Sequence[object], *, plain: bool = False) -> bytes | None:
    """All keys as `encode_key` does it, put together, if each is as long as its bytes: ASCII text.

    With `plain` they are known to be that.

    >>> joined_keys(["u1", "u2"]), joined_keys(["u1", 7]), joined_keys([chr(228)])
    (b'u1u2', None, None)
    """
    joined = _joined_text(keys)
    return joined.encode() if joined is not None and (plain or joined.isascii()) else None


def _joined_text(keys: Sequence[object]) -> str | None:
    """All keys put together; None if one is no text. To try takes a quarter of a look at each."""
    try:
        return "".join(keys)  # type: ignore[arg-type]  # TypeError: not all are str
    except TypeError:
        return None


def ordered_keys(keys: Sequence[object]) -> list[object]:
    """The keys in the order of their bytes.

    Keys of different types may have the same bytes ("1" and 1); their type then decides.
    """
    if set(map(type, keys)) == {str}:
        # The order of code points is the order of their UTF-8.
        return sorted(keys)  # type: ignore[type-var]  # all are str
    return sorted(keys, key=_order)


def key_order(keys: Sequence[object]) -> list[int]:
    """The places of the keys in the order of `ordered_keys`.

    >>> key_order(["b", "a"]), key_order(["b", b"c", "a"])
    ([1, 0], [2, 0, 1])
    """
    if set(map(type, keys)) == {str}:
        return sorted(range(len(keys)), key=keys.__getitem__)  # type: ignore[arg-type]  # all are str
    return sorted(range(len(keys)), key=lambda place: _order(keys[place]))


def _order(key: object) -> tuple[bytes, str]:
    return encode_key(key), type(key).__name__


def plain_key(key: object) -> object:
    """A key as state brings it back: an enum of texts or numbers is its value from the start.

    >>> class Size(str, Enum):
    ...     SMALL = "s"
    >>> plain_key(Size.SMALL), plain_key((Size.SMALL, 1))
    ('s', ('s', 1))
    """
    if type(key) is tuple:
        return tuple(map(plain_key, key))
    return key.value if isinstance(key, Enum) and isinstance(key, str | int | float) else key


def key_problem(key: object) -> str | None:
    """Why `key` cannot group rows, or None when it can."""
    kind = type(key)
    problem: str | None = None
    if kind not in _KEY_TYPES:
        problem = _type_problem(key)
    elif isinstance(key, str):
        try:
            key.encode()
        except UnicodeEncodeError as error:
            problem = f"the key {key!r} is not valid Unicode: {error.reason}"
    elif isinstance(key, tuple):
        problem = next(filter(None, map(key_problem, key)), None)
    elif isinstance(key, float):
        if not isfinite(key):
            # NaN equals nothing, so it would never group; JSON writes null for all of them.
            problem = "the key is NaN" if key != key else f"the key is {key}"  # noqa: PLR0124
    elif isinstance(key, int) and not INT64_MIN <= key <= INT64_MAX:
        problem = f"the key {key} does not fit into 64 bits"
    return problem


def _type_problem(key: object) -> str:
    """Why a value of such a type is no key. State brings back what it is derived from."""
    name = type(key).__name__
    base = next((each.__name__ for each in _KEY_TYPES if isinstance(key, each)), None)
    if base is None:
        return f"a key cannot be a {name}; use str, bytes, int, float, bool or a tuple of them"
    return f"a key cannot be a {name}, which a restart would bring back as {base}; use {base}(...)"


def all_plain_keys(keys: Sequence[object]) -> bool:
    """Whether all keys are surely good, found without looking at each in Python."""
    joined = _joined_text(keys)
    # An enum of texts joins as its texts do.
    return joined is not None and joined.isascii() and list(map(type, keys)).count(str) == len(keys)


def restored_key(key: object) -> object:
    """A key as it was before msgpack made its tuples into lists."""
    return tuple(map(restored_key, key)) if isinstance(key, list) else key


def same_plain(left: object, right: object) -> bool:
    """Whether two values are equal in type and content; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_plain, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(
            same_plain(value, right[name]) for name, value in left.items()
        )
    if isinstance(left, datetime | time):
        return left == right and _same_zone(left, right)  # type: ignore[arg-type]  # of one type
    return left == right or (left != left and right != right)  # noqa: PLR0124 - NaN


def _same_zone(left: datetime | time, right: datetime | time) -> bool:
    """Whether both are as far from UTC now, and after a day was added."""
    if left.utcoffset() != right.utcoffset():
        return False
    return type(left.tzinfo) is type(right.tzinfo) or left.tzname() == "UTC"


def all_plain(values: Sequence[object]) -> bool:
    """Whether msgpack surely brings all back as they are: one pass in C for each level."""
    types = set(map(type, values)) - _SCALARS
    if not types:
        return True
    if not types <= {list, dict}:
        return False
    inner = list(chain.from_iterable([each for each in values if type(each) is list]))
    if dict in types:
        dicts = [each for each in values if type(each) is dict]
        if not set(map(type, chain.from_iterable(dicts))) <= _SCALARS:
            return False
        inner += chain.from_iterable(map(dict.values, dicts))
    return all_plain(inner)


def foreign_part(value: object) -> str | None:
    """What in a value is not plain, in words: msgpack would bring it back as something else.

    >>> foreign_part([1, {"a": None}]), foreign_part({"a": (1, 2)})
    (None, 'a tuple')
    """
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
        return f"a {kind.__qualname__}"
    if _SCALARS.issuperset(map(type, parts)):
        return None
    return next(filter(None, map(foreign_part, parts)), None)


def _is_plain_key(key: object) -> bool:
    """Whether msgpack brings back a key of a dict as it is: an array there becomes a tuple."""
    kind = type(key)
    return kind in _SCALARS or (
        isinstance(key, tuple) and kind is tuple and all(map(_is_plain_key, key))
    )
