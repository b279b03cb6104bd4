"""What users' functions do in random pipelines: written once, for the engine and for the models."""

from __future__ import annotations

from typing import Any

from operator_models import Value, changed


def fails(value: Value) -> bool:
    """Whether a row is a dead letter: it has no event time, or `passes` raises."""
    return value["t"] is None or value["x"] % 7 == 3


def passes(value: Value) -> Value:
    if value["x"] % 7 == 3:
        raise ValueError("x is bad")
    return value


def times_three(value: Value) -> Value:
    return changed(value, x=(value["x"] * 3 + 1) % 1000)


def several(value: Value) -> list[Value]:
    return [changed(value, x=value["x"] + number) for number in range(value["x"] % 3)]


def counted(count: int) -> Value:
    return {"t": 0, "k": "", "x": count, "ids": []}


def both(left: Value, right: Value) -> Value:
    x = (left["x"] * 3 + right["x"]) % 1000
    return changed(right, x=x, ids=[*left["ids"], *right["ids"]])


def gather(held: Any, value: Any) -> Any:
    """Changes what it is given in place; deletes the key when the sum is right."""
    held["x"] += value["x"]
    held["ids"].append(value["ids"][-1] if value["ids"] else -1)
    return None if held["x"] % 4 == 3 else held


def gathered(_: Any, values: list[Value]) -> Value | None:
    """What `gather` makes of values."""
    ids = [value["ids"][-1] if value["ids"] else -1 for value in values]
    total = sum(value["x"] for value in values)
    return None if total % 4 == 3 else {"t": 0, "k": "", "x": total, "ids": ids}
