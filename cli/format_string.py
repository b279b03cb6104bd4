"""Format strings for records, compiled once to a closure. Pure.

kcat's tokens, with rpk's modifiers in braces:

    %s %v   value                %S %V   its length in bytes (-1: null)
    %k      key                  %K      its length in bytes (-1: null)
    %t      topic                %p      partition               %o      offset
    %T %d   timestamp, UTC ms    %d{strftime[%F %T]}             %d{rfc3339}
    %h      headers, name=value with commas between              %H      how many
    %h{...} once per header, inside %k is its name and %v its value
    %R      value length as 4 bytes, big-endian                  %%      a percent sign

    %s %v %k %t take {hex} and {base64}; the numbers take {hex}, {big8} {big16} {big32} {big64} and
    {little8} ... {little64}: fixed-width binary, two's complement.

    \\n \\r \\t \\0 \\\\ \\xNN are what they are in C.

A null prints as nothing, or as the text given for nulls.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import repeat
from typing import Final, NamedTuple, TypeAlias

from millstream import Headers, Record, UsageError

Records: TypeAlias = Sequence[Record]

Formatter: TypeAlias = Callable[[Records], Iterator[bytes]]
"""Turns records into one bytes object each."""

Column: TypeAlias = Callable[[Records], Iterable[object]]

_ESCAPES: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TOKENS: Final = "%svSVkKtpoTdhHR"


class _Token(NamedTuple):
    """One piece of a parsed format: `name` is "" for literal bytes."""

    name: str
    modifier: str | None
    literal: bytes
    position: int


def compile_format(text: str, *, null: bytes = b"") -> Formatter:
    r"""Compile a format string.

    Args:
        text: See the module's text.
        null: Printed for a null key, value or header value.

    Raises:
        UsageError: Unknown token, modifier or escape; the message says where.

    >>> from millstream import Record
    >>> list(compile_format(r"%o %k=%s\n")([Record("t", 0, 7, 0, b"k", b"v", ())]))
    [b'7 k=v\n']
    """
    template = bytearray()
    columns: list[Column] = []
    for token in _parse(text):
        if not token.name:
            template += token.literal.replace(b"%", b"%%")
            continue
        conversion, column = _column(token, null)
        template += conversion
        columns.append(column)
    render = bytes(template).__mod__
    if not columns:
        constant = render(())
        return lambda records: repeat(constant, len(records))
    # One pass in C: zip pulls a row from every column, % renders it.
    return lambda records: map(render, zip(*[column(records) for column in columns], strict=True))


def unescape(text: str) -> bytes:
    r"""The bytes of a text with \n, \t, \xNN and the like, for delimiters.

    Raises:
        UsageError: An unknown or unfinished escape.

    >>> unescape(r"\x00"), unescape(":")
    (b'\x00', b':')
    """
    literal = bytearray()
    position = 0
    while position < len(text):
        if text[position] == "\\":
            piece, position = _escape(text, position)
            literal += piece
        else:
            literal += text[position].encode("utf-8", "surrogateescape")
            position += 1
    return bytes(literal)


def _parse(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        start = position
        if text[position] == "\\":
            piece, position = _escape(text, position)
            yield _Token("", None, piece, start)
        elif text[position] == "%":
            token, position = _token(text, position)
            yield token
        else:
            while position < len(text) and text[position] not in "\\%":
                position += 1
            # Arguments that are not UTF-8 arrive as surrogates and leave as the same bytes.
            yield _Token("", None, text[start:position].encode("utf-8", "surrogateescape"), start)


def _escape(text: str, position: int) -> tuple[bytes, int]:
    name = text[position + 1 : position + 2]
    if name in _ESCAPES and name:
        return _ESCAPES[name], position + 2
    if name == "x":
        digits = text[position + 2 : position + 4]
        if len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            return bytes.fromhex(digits), position + 4
    raise UsageError(
        f"{text!r} has an unknown escape at character {position + 1}; "
        r"use \n \r \t \0 \\ or \xNN with two hex digits"
    )


def _token(text: str, position: int) -> tuple[_Token, int]:
    name = text[position + 1 : position + 2]
    if name and name in "{}":  # rpk's way to write a literal brace
        return _Token("", None, name.encode(), position), position + 2
    if not name or name not in _TOKENS:
        raise UsageError(
            f"{text!r} has an unknown token %{name} at character {position + 1}; "
            "use %s %v %S %k %K %t %p %o %T %d %h %H %R or %%"
        )
    if name == "%":
        return _Token("", None, b"%", position), position + 2
    after = position + 2
    if text[after : after + 1] != "{":
        return _Token(name, None, b"", position), after
    end = _closing_brace(text, after)
    return _Token(name, text[after + 1 : end], b"", position), end + 1


def _closing_brace(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        before = text[:position]
        # "%}" is a literal brace, but in "%%}" the first percent sign is what is escaped.
        escaped = (len(before) - len(before.rstrip("%"))) % 2 == 1
        if text[position] == "{" and not escaped:
            depth += 1
        elif text[position] == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return position
    raise UsageError(f"{text!r}: the brace at character {opening + 1} is never closed")


def _column(token: _Token, null: bytes) -> tuple[bytes, Column]:
    """The printf conversion of a token and the function that extracts its column."""
    name, modifier = token.name, token.modifier
    if name in "svk":
        return b"%b", _bytes_column(_SOURCES[name], modifier, null)
    if name == "t":
        encode = _bytes_modifier(modifier)
        return b"%b", lambda records: [encode(record.topic.encode()) for record in records]
    if name == "h":
        return b"%b", _headers_column(modifier, null)
    if name == "d" and modifier is not None and not _is_number_modifier(modifier):
        render_time = _time_modifier(modifier)
        return b"%b", lambda records: [render_time(record.timestamp_ms) for record in records]
    if name == "R":
        if modifier is not None:
            raise UsageError("%R takes no braces; use %S{...}")
        modifier = "big32"
    numbers = _NUMBERS[name]
    if modifier in {None, "ascii"}:
        return b"%d", numbers
    render = _number_modifier(modifier or "")
    return b"%b", lambda records: map(render, numbers(records))


def _bytes_column(
    source: Callable[[Records], list[bytes | None]], modifier: str | None, null: bytes
) -> Column:
    encode = None if modifier in {None, "text"} else _bytes_modifier(modifier)
    if encode is None:
        return lambda records: [null if data is None else data for data in source(records)]
    return lambda records: [null if data is None else encode(data) for data in source(records)]


def _bytes_modifier(modifier: str | None) -> Callable[[bytes], bytes]:
    if modifier in {None, "text"}:
        return bytes
    if modifier == "hex":
        return lambda data: data.hex().encode()
    if modifier == "base64":
        return b64encode
    raise UsageError(f"unknown modifier {{{modifier}}}; use {{hex}}, {{base64}} or {{text}}")


def _headers_column(modifier: str | None, null: bytes) -> Column:
    if modifier is None:
        return lambda records: [
            b",".join(
                b"%b=%b" % (name.encode(), null if value is None else value)
                for name, value in record.headers
            )
            for record in records
        ]
    inner = list(_parse(modifier))
    for token in inner:
        if token.name and token.name not in "kvs":
            raise UsageError(f"%h{{...}} knows %k and %v inside its braces, not %{token.name}")
    encoders = [_bytes_modifier(token.modifier) for token in inner]

    def render(headers: Headers) -> bytes:
        out: list[bytes] = []
        for name, value in headers:
            for token, encode in zip(inner, encoders, strict=True):
                if not token.name:
                    out.append(token.literal)
                elif token.name == "k":
                    out.append(encode(name.encode()))
                else:
                    out.append(null if value is None else encode(value))
        return b"".join(out)

    return lambda records: [render(record.headers) for record in records]


def rfc3339(timestamp_ms: int) -> str:
    """UTC milliseconds as RFC 3339 text; the bare number where no calendar year fits.

    >>> rfc3339(1_763_892_000_123)
    '2025-11-23T10:00:00.123Z'
    """
    try:
        moment = _EPOCH + timedelta(milliseconds=timestamp_ms)
    except OverflowError:
        return str(timestamp_ms)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _time_modifier(modifier: str) -> Callable[[int], bytes]:
    if modifier in {"rfc3339", "iso"}:
        return lambda timestamp_ms: rfc3339(timestamp_ms).encode()
    if modifier.startswith("strftime[") and modifier.endswith("]"):
        layout = modifier[len("strftime[") : -1]
        return partial(_strftime, layout)
    raise UsageError(f"unknown modifier {{{modifier}}}; use {{strftime[%F %T]}} or {{rfc3339}}")


def _strftime(layout: str, timestamp_ms: int) -> bytes:
    try:
        moment = _EPOCH + timedelta(milliseconds=timestamp_ms)
    except OverflowError:
        return b"%d" % timestamp_ms
    return moment.strftime(layout).encode("utf-8", "surrogateescape")


def _is_number_modifier(modifier: str) -> bool:
    return modifier in {"ascii", "hex"} or modifier.startswith(("big", "little"))


def _number_modifier(modifier: str) -> Callable[[int], bytes]:
    if modifier == "hex":
        return lambda number: b"%016x" % (number & 0xFFFF_FFFF_FFFF_FFFF)
    for order in ("big", "little"):
        bits = modifier.removeprefix(order)
        if bits != modifier and bits in {"8", "16", "32", "64"}:
            mask = (1 << int(bits)) - 1
            width = int(bits) // 8
            if order == "big":
                return lambda number: (number & mask).to_bytes(width, "big")
            return lambda number: (number & mask).to_bytes(width, "little")
    raise UsageError(
        f"unknown modifier {{{modifier}}}; use {{ascii}}, {{hex}}, "
        "{big8|16|32|64} or {little8|16|32|64}"
    )


def _lengths(column: Sequence[bytes | None]) -> list[int]:
    return [-1 if data is None else len(data) for data in column]


def _values(records: Records) -> list[bytes | None]:
    return [record.value for record in records]


def _keys(records: Records) -> list[bytes | None]:
    return [record.key for record in records]


_SOURCES: Final[dict[str, Callable[[Records], list[bytes | None]]]] = {
    "s": _values,
    "v": _values,
    "k": _keys,
}

_NUMBERS: Final[dict[str, Callable[[Records], list[int]]]] = {
    "S": lambda records: _lengths(_values(records)),
    "V": lambda records: _lengths(_values(records)),
    "R": lambda records: _lengths(_values(records)),
    "K": lambda records: _lengths(_keys(records)),
    "H": lambda records: [len(record.headers) for record in records],
    "p": lambda records: [record.partition for record in records],
    "o": lambda records: [record.offset for record in records],
    "T": lambda records: [record.timestamp_ms for record in records],
    "d": lambda records: [record.timestamp_ms for record in records],
}
