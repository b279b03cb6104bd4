"""What `window()`, `agg()` and `emit()` declare: checked, and made into the node of an operator."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, NamedTuple, TypeAlias

from millstream import UsageError, parse_duration_ms

from .agg import Aggregate
from .aggregate import AnyAggregate, require_mergeable
from .calendar_windows import CalendarWindows
from .count_windows import CountWindows
from .fields import require_fields, require_readable
from .nodes import FINAL, AggregatingNode, CountNode, Emission, SessionNode, WindowNode
from .plan import PlanBuilder
from .sessions import SessionWindows
from .windows import FixedWindows

Windows: TypeAlias = FixedWindows | CalendarWindows | SessionWindows | CountWindows
"""What a keyed stream may be cut into."""

_RESERVED: Final = frozenset({"key", "start", "end", "window_start", "window_end", "status"})
_COLUMN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


class Windowing(NamedTuple):
    """What `window()` was told."""

    windows: Windows
    grace_ms: int
    emission: Emission
    name: str | None


def windowing(
    windows: Windows,
    grace: str | int | timedelta,
    corrections: str | int | timedelta | None,
    name: str | None,
) -> Windowing:
    """Check what `window()` was told.

    Raises:
        UsageError: No windows, or an option they do not have.
    """
    if not isinstance(windows, Windows):
        raise UsageError(
            "window() takes tumbling(...), hopping(...), session(...), daily(...) or counting(...),"
            f" not {windows!r}"
        )
    grace_ms = parse_duration_ms(grace)
    emission = FINAL
    if isinstance(windows, CountWindows) and (grace_ms or corrections is not None):
        raise UsageError("windows by count have no grace and no corrections: no row is late")
    if corrections is not None:
        if isinstance(windows, SessionWindows):
            raise UsageError('sessions have no corrections: use grace, or .emit("update")')
        emission = Emission(corrections_ms=parse_duration_ms(corrections))
    return Windowing(windows, grace_ms, emission, name)


AGGREGATES_BY_NAME: Final = "agg() takes aggregates by name, such as n=agg.count()"


def aggregating_node(
    builder: PlanBuilder,
    parent: int,
    chosen: Windowing,
    aggregates: Mapping[str, AnyAggregate[Any, Any]],
) -> AggregatingNode:
    """The node of a window operator.

    Raises:
        UsageError: No aggregate, a reserved name, a field the row type lacks, or an aggregate
            that sessions cannot merge.
    """
    row_type = builder.type_of(parent)
    checked = checked_aggregates(aggregates, row_type)
    windows, grace_ms, emission, name = chosen
    common: dict[str, Any] = {
        "id": builder.next_id,
        "parents": (parent,),
        "label": "",
        "name": builder.state_name((parent,), AggregatingNode.kind, name),
        "aggregates": tuple(checked.items()),
        "row_type": row_type,
        "emission": emission,
    }
    node: AggregatingNode
    if isinstance(windows, SessionWindows):
        for column, aggregate in checked.items():
            require_mergeable(aggregate, f"agg {column}")
        node = SessionNode(windows=windows, grace_ms=grace_ms, **common)
    elif isinstance(windows, CountWindows):
        node = CountNode(windows=windows, **common)
    else:
        node = WindowNode(windows=windows, grace_ms=grace_ms, **common)
    return labelled(node)


def labelled(node: AggregatingNode) -> AggregatingNode:
    """The node, called what it does."""
    parts = ", ".join(f"{name}={one.describe()}" for name, one in node.aggregates)
    return replace(node, label=f"window {node.windows_text}{node.emission}, agg {parts}")


def checked_aggregates(
    aggregates: Mapping[str, AnyAggregate[Any, Any]], row_type: object
) -> dict[str, Aggregate[Any, Any, Any]]:
    """The aggregates; those that cannot work on rows of a type are refused.

    Raises:
        UsageError: A reserved name, no aggregate, or a field the type lacks.
    """
    if not aggregates:
        raise UsageError("agg() needs at least one aggregate, such as n=agg.count()")
    checked = {}
    for column, aggregate in aggregates.items():
        if not _COLUMN.fullmatch(column) or column in _RESERVED or keyword.iskeyword(column):
            raise UsageError(f"an aggregate cannot be called {column!r}")
        if not isinstance(aggregate, Aggregate):
            raise UsageError(
                f"{column} must be an aggregate such as agg.count() or agg.sum('amount'),"
                f" not {aggregate!r}"
            )
        if aggregate.field is not None:
            require_readable(aggregate.field, f"agg {column}")
        require_fields(row_type, aggregate.field, f"agg {column}")
        checked[column] = aggregate
    return checked


def emitting(
    node: AggregatingNode, mode: str, every: int | str | timedelta | None
) -> AggregatingNode:
    """The node with another emission.

    Raises:
        UsageError: An unknown mode, or one that does not go with the windows.
    """
    if mode == "final" and every is None:
        return labelled(replace(node, emission=FINAL))
    if mode != "update":
        raise UsageError(
            f"emit({mode!r}): use 'final', or 'update' with every=<rows or event time>"
        )
    if isinstance(node, CountNode):
        raise UsageError("windows by count emit once, when they are full")
    if node.emission.corrections_ms:
        raise UsageError("corrections say already when a window emits: leave one of them out")
    if every is None or isinstance(every, int):
        rows = 1 if every is None else every
        if isinstance(rows, bool) or rows < 1:
            raise UsageError(f"every={every!r}: give a number of rows from 1 on, or '10s'")
        return labelled(replace(node, emission=Emission(every_rows=rows)))
    every_ms = parse_duration_ms(every)
    if every_ms < 1:
        raise UsageError(f"every={every!r}: at least 1 ms")
    return labelled(replace(node, emission=Emission(every_ms=every_ms)))
