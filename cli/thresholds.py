"""Thresholds as monitors give them, [WARN:]CRIT, and what a value means beside one. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

from millstream import UsageError, parse_duration_ms, parse_size_bytes

Status: TypeAlias = Literal["OK", "WARNING", "CRITICAL", "UNKNOWN"]

EXIT_CODES: Final[dict[Status, int]] = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}
_BADNESS: Final[tuple[Status, ...]] = ("OK", "UNKNOWN", "WARNING", "CRITICAL")


class Limit(NamedTuple):
    """Two bounds; None: there is none."""

    warning: float | None
    critical: float
    unit: str = ""
    """As in performance data: s, B, %, or nothing for a count."""

    def above(self, value: float) -> Status:
        """What a value means that must not be too large.

        >>> Limit(5, 10).above(4), Limit(5, 10).above(6), Limit(5, 10).above(11)
        ('OK', 'WARNING', 'CRITICAL')
        """
        if value > self.critical:
            return "CRITICAL"
        return "WARNING" if self.warning is not None and value > self.warning else "OK"

    def below(self, value: float) -> Status:
        """The same of one that must not be too small."""
        if value < self.critical:
            return "CRITICAL"
        return "WARNING" if self.warning is not None and value < self.warning else "OK"


def worst(statuses: list[Status]) -> Status:
    """The one that a monitor has to hear of.

    >>> worst(["OK", "WARNING", "UNKNOWN"])
    'WARNING'
    """
    return max(statuses, key=_BADNESS.index, default="OK")


def parse_duration_limit(text: str) -> Limit:
    """Durations, in seconds.

    >>> parse_duration_limit("30s:5m")
    Limit(warning=30.0, critical=300.0, unit='s')
    """
    return _limit(text, _seconds, "s")


def parse_lag_limit(text: str) -> Limit:
    """A number of records, or how old the oldest unread one may be.

    >>> parse_lag_limit("1000"), parse_lag_limit("1m")
    (Limit(warning=None, critical=1000.0, unit=''), Limit(warning=None, critical=60.0, unit='s'))
    """
    if all(part.isascii() and part.isdecimal() and len(part) < 19 for part in text.split(":")):
        return _limit(text, float, "")
    return parse_duration_limit(text)


def parse_free_limit(text: str, total_bytes: int) -> Limit:
    """Room, as sizes or percentages of `total_bytes`.

    >>> parse_free_limit("10%:1kB", 20_000)
    Limit(warning=2000.0, critical=1000.0, unit='B')
    >>> parse_free_limit("20%:1kB", 1000)  # there is no room to warn before
    Limit(warning=None, critical=1000.0, unit='B')
    """
    return _limit(text, lambda part: _bytes(part, total_bytes), "B", below=True)


def _seconds(text: str) -> float:
    return parse_duration_ms(text) / 1000


def _bytes(text: str, total_bytes: int) -> float:
    if not text.endswith("%"):
        return float(parse_size_bytes(text))
    number = text.removesuffix("%")
    if not (number.isascii() and number.isdecimal() and len(number) < 4 and int(number) <= 100):
        raise UsageError(f"{text!r} is no percentage from 0% to 100%")
    return total_bytes * int(number) / 100


def _limit(text: str, parse: Callable[[str], float], unit: str, *, below: bool = False) -> Limit:
    warning, colon, critical = text.rpartition(":")
    if (colon and not warning) or ":" in warning:
        raise UsageError(f"{text!r} is not [WARN:]CRIT")
    limit = Limit(parse(warning) if colon else None, parse(critical), unit)
    first, last = (critical, warning) if below else (warning, critical)
    if limit.warning is not None and (limit.warning - limit.critical) * (-1 if below else 1) > 0:
        if warning.endswith("%") is not critical.endswith("%"):
            return limit._replace(warning=None)  # which is less depends on the file system
        raise UsageError(f"{text!r} would never warn: {first} is to be less than {last}")
    return limit


def parse_named(text: str, parse: Callable[[str], Limit]) -> tuple[str, Limit]:
    """A limit for something that has a name: NAME=[WARN:]CRIT.

    >>> parse_named("billing=5:10", parse_lag_limit)[0]
    'billing'
    """
    name, equals, limit = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not NAME=[WARN:]CRIT")
    return name, parse(limit)
