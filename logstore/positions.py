"""The grammar of positions, durations and sizes, shared by Python and the command line. Pure.

A position names a place in every partition without looking at any of them:

    earliest | beginning | start     the first record that is kept
    latest | end                     the log end: after the last record
    stored                           where the consumer group stands
    N                                offset N
    +N                               N records after the earliest
    -N                               N records before the log end
    @TIME | s@TIME | e@TIME          the first record with timestamp >= TIME

    TIME is 10 digits (seconds), 13 digits (milliseconds), YYYY-MM-DD (midnight UTC), RFC 3339 with
    a zone (2026-11-23T10:00:00Z), or a signed duration relative to now (-15m).

A range is `START:STOP`, either part may be missing; STOP is exclusive. After a time as start the
stop may be a time without its "@": `@-1h:-5m`.

What a position means in one partition (offsets, clamping) is decided by the store, not here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias

from .errors import UsageError

PositionKind: TypeAlias = Literal[
    "earliest", "latest", "stored", "offset", "tail", "timestamp", "after_start"
]

INT64_MAX: Final = 2**63 - 1
_TEXT_LENGTH_MAX: Final = 200

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

_NAMES: Final[dict[str, PositionKind]] = {
    "earliest": "earliest",
    "beginning": "earliest",
    "start": "earliest",
    "latest": "latest",
    "end": "latest",
    "stored": "stored",
}

_UNIT_MS: Final = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_SHORT_DURATION: Final = rf"(?:{_NUMBER}(?:ms|[smhdw]))+"
_ISO_DURATION: Final = (
    rf"P(?=[0-9T])(?:{_NUMBER}W)?(?:{_NUMBER}D)?"
    rf"(?:T(?=[0-9])(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?"
)
_DURATION: Final = re.compile(rf"{_SHORT_DURATION}|{_ISO_DURATION}")
_DURATION_PART: Final = re.compile(rf"({_NUMBER})(ms|[a-zA-Z])")

# The date-time alternative is first and greedy, so that a range is cut after the whole time and
# not at the first of its colons. The zone is optional here to name its absence in the error.
_TIME: Final = re.compile(
    r"(?P<datetime>[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?"
    r"(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})?)"
    r"|(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"|(?P<digits>[0-9]{13}|[0-9]{10})"
    rf"|(?P<relative>[+-](?:{_SHORT_DURATION}|{_ISO_DURATION}))"
    r"|(?P<name>earliest|beginning|start|latest|end|now)"
)
_TIME_PREFIX: Final = re.compile(r"[se]?@")

_SIZE: Final = re.compile(rf"({_NUMBER}) ?(?:([kKMGTP])(i?))?B?")
_SIZE_POWER: Final = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}

_GRAMMAR: Final = (
    "use earliest, latest, stored, N, +N, -N or @TIME, where TIME is 10 or 13 digits, "
    "YYYY-MM-DD, RFC 3339 with a zone, or relative such as -15m"
)


class Position(NamedTuple):
    """A place in a partition, not yet resolved to an offset.

    >>> str(Position("tail", 10)), str(Position("timestamp", 0))
    ('-10', 's@0')
    """

    kind: PositionKind
    value: int = 0
    """Offset, number of records, or UTC milliseconds, as `kind` says; 0 where there is none."""

    def __str__(self) -> str:
        """The position in the grammar of this module; parses back to an equal one."""
        prefix = {"offset": "", "tail": "-", "timestamp": "s@", "after_start": "+"}.get(self.kind)
        return self.kind if prefix is None else f"{prefix}{self.value}"


EARLIEST: Final = Position("earliest")


def parse_position(text: str | int | datetime | Position, now_ms: int) -> Position:
    """Parse one position.

    Args:
        text: The grammar above; an int is an offset (negative: from the log end); an aware
            datetime is a time; a Position is returned as it is.
        now_ms: UTC milliseconds that relative times are counted from.

    Raises:
        UsageError: The text is not in the grammar, or the datetime has no zone.

    >>> parse_position("-10", now_ms=0), parse_position("@-1s", now_ms=5000)
    (Position(kind='tail', value=10), Position(kind='timestamp', value=4000))
    """
    if isinstance(text, Position):
        return text
    if isinstance(text, datetime):
        return Position("timestamp", datetime_to_ms(text))
    if isinstance(text, int) and not isinstance(text, bool):
        _check_int64(abs(text), str(text))
        return Position("offset", text) if text >= 0 else Position("tail", -text)
    if not isinstance(text, str):
        raise UsageError(f"a position cannot be a {type(text).__name__}; {_GRAMMAR}")
    return _parse_text(text, now_ms)


def parse_range(text: str, now_ms: int) -> tuple[Position, Position | None]:
    """Parse `START:STOP`; STOP is exclusive and None when the range is open.

    `START` alone and `START:` are open, `:STOP` and `e@TIME` start at the earliest record.

    Raises:
        UsageError: A part is not in the grammar, or STOP is "stored".

    >>> parse_range("5:10", now_ms=0)
    (Position(kind='offset', value=5), Position(kind='offset', value=10))
    >>> parse_range("@-1h:end", now_ms=3_600_000)
    (Position(kind='timestamp', value=0), Position(kind='latest', value=0))
    """
    _check_length(text, "a range")
    head, colon, tail = _cut(text)
    if head.startswith("e@") and not colon:
        return EARLIEST, parse_position(head, now_ms)
    start = parse_position(head, now_ms) if head else EARLIEST
    if not tail:
        return start, None
    # "@t1:t2" is how rpk writes two times; a plain number of another length stays an offset.
    timelike = _TIME_PREFIX.match(head) and _TIME.fullmatch(tail)
    stop = parse_position(f"@{tail}" if timelike else tail, now_ms)
    if stop.kind == "stored":
        raise UsageError(f"{text!r}: a range can start at 'stored' but not stop there")
    return start, stop


def parse_duration_ms(value: str | int | timedelta) -> int:
    """Return a duration in milliseconds, never negative.

    Args:
        value: `"10s"`, `"1h30m"`, `"1.5h"` (units ms s m h d w), ISO 8601 `"PT1H"`, a timedelta, or
            an int of milliseconds.

    Raises:
        UsageError: Not a duration, without a unit, negative, or not whole milliseconds.

    >>> parse_duration_ms("1h30m"), parse_duration_ms("PT1H"), parse_duration_ms("7d")
    (5400000, 3600000, 604800000)
    """
    if isinstance(value, timedelta):
        duration_ms, rest = divmod(value, _MILLISECOND)
        if rest:
            raise UsageError(f"{value!r} is not a whole number of milliseconds")
    elif isinstance(value, int) and not isinstance(value, bool):
        duration_ms = value
    elif isinstance(value, str):
        duration_ms = _parse_duration_text(value)
    else:
        raise UsageError(f"a duration cannot be a {type(value).__name__}; use '10s' or timedelta")
    if duration_ms < 0:
        raise UsageError(f"a duration cannot be negative: {value!r}")
    return _check_int64(duration_ms, str(value))


def parse_size_bytes(value: str | int) -> int:
    """Return a size in bytes, never negative.

    Args:
        value: `"10MB"` and `"10M"` (decimal), `"1GiB"` (binary), `"512"` or an int of bytes.

    Raises:
        UsageError: Not a size, negative, or not whole bytes.

    >>> parse_size_bytes("10MB"), parse_size_bytes("1GiB"), parse_size_bytes("64 KiB")
    (10000000, 1073741824, 65536)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise UsageError(f"a size cannot be negative: {value}")
        return _check_int64(value, str(value))
    if not isinstance(value, str):
        raise UsageError(f"a size cannot be a {type(value).__name__}; use '10MB' or an int")
    _check_length(value, "a size")
    match = _SIZE.fullmatch(value)
    if match is None:
        raise UsageError(f"{value!r} is not a size; use a number with B, kB, MB, GB, TB or KiB...")
    number, power, binary = match.groups()
    scale = (1024 if binary else 1000) ** (_SIZE_POWER[power] if power else 0)
    return _check_int64(_scaled(number, scale, value, "bytes"), value)


def datetime_to_ms(value: datetime) -> int:
    """UTC milliseconds of an aware datetime, rounded down.

    Raises:
        UsageError: The datetime has no zone, so it names no instant.
    """
    if not isinstance(value, datetime):
        raise UsageError(f"{value!r:.60} is not a datetime")
    if value.utcoffset() is None:
        raise UsageError(f"{value!r} has no time zone; add tzinfo=UTC or another zone")
    return (value - _EPOCH) // _MILLISECOND


def _parse_text(text: str, now_ms: int) -> Position:
    _check_length(text, "a position")
    if prefix := _TIME_PREFIX.match(text):
        return _parse_time(text, text[prefix.end() :], now_ms)
    kind = _NAMES.get(text)
    if kind is not None:
        return Position(kind)
    match = re.fullmatch(r"([+-]?)([0-9]+)", text)
    if match is None:
        raise UsageError(f"{text!r} is not a position; {_GRAMMAR}")
    sign, digits = match.groups()
    value = _check_int64(int(digits), text)
    if sign == "-":
        return Position("tail", value)
    return Position("after_start" if sign == "+" else "offset", value)


def _cut(text: str) -> tuple[str, str, str]:
    """Split a range into start, colon and stop, stepping over colons inside a time."""
    prefix = _TIME_PREFIX.match(text)
    time = _TIME.match(text, prefix.end()) if prefix else None
    if time is None:
        return text.partition(":")
    head, rest = text[: time.end()], text[time.end() :]
    if rest and rest[0] != ":":
        raise UsageError(f"{text!r} is not a range; after {head!r} comes ':' or nothing")
    return head, rest[:1], rest[1:]


def _parse_time(text: str, time: str, now_ms: int) -> Position:
    match = _TIME.fullmatch(time)
    if match is None:
        raise UsageError(f"{text!r} has no valid time; {_GRAMMAR}")
    if name := match["name"]:
        return Position("timestamp", now_ms) if name == "now" else Position(_NAMES[name])
    if relative := match["relative"]:
        duration_ms = parse_duration_ms(relative[1:])
        return Position("timestamp", now_ms + (duration_ms if relative[0] == "+" else -duration_ms))
    if digits := match["digits"]:
        return Position("timestamp", int(digits) * (1000 if len(digits) == 10 else 1))
    try:
        instant = datetime.fromisoformat(time.upper())
    except ValueError as error:
        raise UsageError(f"{text!r} has no valid time: {error}") from None
    if match["date"]:
        instant = instant.replace(tzinfo=UTC)
    if instant.tzinfo is None:
        raise UsageError(f"{text!r} has no time zone; write {text}Z for UTC")
    return Position("timestamp", datetime_to_ms(instant))


def _parse_duration_text(text: str) -> int:
    _check_length(text, "a duration")
    if text == "0":
        return 0
    if text.isascii() and text.isdigit():
        raise UsageError(f"{text!r} has no unit; write {text}s or {text}ms")
    if not text or _DURATION.fullmatch(text) is None:
        raise UsageError(f"{text!r} is not a duration; use '10s', '1h30m', '7d' or 'PT1H'")
    total_ms = 0
    date, _, clock = text.partition("T") if text.startswith("P") else ("", "", text)
    for part in (date, clock):
        for number, unit in _DURATION_PART.findall(part):
            total_ms += _scaled(number, _UNIT_MS[unit.lower()], text, "milliseconds")
    return total_ms


def _scaled(number: str, scale: int, text: str, unit: str) -> int:
    """`number * scale` in exact integer arithmetic (the fractions module costs 5 ms to import)."""
    whole, _, decimals = number.partition(".")
    divisor: int = 10 ** len(decimals)
    value, rest = divmod(int(whole + decimals) * scale, divisor)
    if rest:
        raise UsageError(f"{text!r} is not a whole number of {unit}")
    return value


def _check_int64(value: int, text: str) -> int:
    if value > INT64_MAX:
        raise UsageError(f"{text} is larger than a 64-bit number")
    return value


def _check_length(text: str, what: str) -> None:
    if not isinstance(text, str):
        raise UsageError(f"{what} is a str, not {text!r:.60}")
    # Parsing is linear but int() of a huge string is not; nothing real is longer than this.
    if len(text) > _TEXT_LENGTH_MAX:
        raise UsageError(f"{what} cannot be {len(text)} characters long")
