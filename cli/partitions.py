"""Lists of partitions as they are typed. Pure."""

from __future__ import annotations

from millstream import UsageError


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
        if len(part) > 9 or not all(end.isascii() and end.isdecimal() for end in ends):
            raise UsageError(f"{text!r} is not a list of partitions such as 0,2 or 0-3")
        numbers.update(range(int(first), int(ends[-1]) + 1))
    return sorted(numbers)
