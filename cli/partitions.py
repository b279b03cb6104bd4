"""Partitions as they are typed: lists of them, and whether there are such. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from millstream import UsageError

_DIGITS_MAX: Final = 4
_NAMED_MAX: Final = 5


def parse_partitions(text: str) -> list[int]:
    """Partition numbers from a list such as "0,2" or "0-3", sorted.

    Raises:
        UsageError: Not such a list.

    >>> parse_partitions("0,2-4")
    [0, 2, 3, 4]
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first]
        # The length bound comes first: "0-999999999" must not become a list.
        whole = all(len(end) <= _DIGITS_MAX and end.isascii() and end.isdecimal() for end in ends)
        if not whole or int(first) > int(ends[-1]):
            raise UsageError(f"{text!r} is not a list of partitions such as 0,2 or 0-3")
        numbers.update(range(int(first), int(ends[-1]) + 1))
    return sorted(numbers)


def require_partitions(topic: str, count: int, wanted: Iterable[int]) -> None:
    """Refuse numbers that a topic of `count` partitions does not have.

    Raises:
        UsageError: It names them.

    >>> require_partitions("t", 2, [0, 1])
    """
    if missing := sorted(number for number in wanted if number >= count):
        has = "1 partition, number 0" if count == 1 else f"{count} partitions, 0 to {count - 1}"
        listed = ", ".join(map(str, missing[:_NAMED_MAX]))
        if len(missing) > _NAMED_MAX:
            listed += f", and {len(missing) - _NAMED_MAX} more"
        raise UsageError(f"topic {topic!r} has {has}; there is no {listed}")
