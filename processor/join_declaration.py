"""What joins are declared with: checked, and made into the nodes of operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypedDict

from millstream import UsageError, parse_duration_ms

from .fields import require_function
from .join_keys import require_equal_keys
from .join_nodes import AsofJoinNode, Direction, How, IntervalJoinNode, JoinNode, TableJoinNode
from .plan import PlanBuilder
from .row_codec import RowCodec
from .row_shapes import Joined, joined_type
from .row_types import returned_type
from .windows import duration_ms

_HOWS: Final = ("inner", "left", "right", "outer")
_DIRECTIONS: Final = ("backward", "forward", "nearest")

Into: TypeAlias = Callable[[Any, Any], Any] | None


class Bounds(TypedDict, total=False):
    """Which times belong together; see `KeyedStream.join`. Text may be negative here: "-5m"."""

    within: str | int | timedelta
    lower: str | int | timedelta
    upper: str | int | timedelta


@dataclass(frozen=True, slots=True)
class Joining:
    """What every join is declared with."""

    builder: PlanBuilder
    left: int
    right: int
    how: How
    into: Into
    name: str | None
    what: str
    """The call, for messages."""

    def add(self, node: JoinNode) -> int:
        """Add the node; its rows are pairs, or what `into` makes of them."""
        if self.into is not None:
            made = returned_type(self.into)
        else:
            left, right = node.left_type, node.right_type
            made = joined_type(
                _optional(left) if self.how in {"right", "outer"} else left,
                _optional(right) if self.how in {"left", "outer"} else right,
            )
        return self.builder.add(node, made)

    def common(self, *hows: str) -> dict[str, Any]:
        """The fields of any join's node.

        Raises:
            UsageError: Another `how`, no function, rows that state could never keep, or keys of
                types that are never equal.
        """
        if self.how not in hows:
            raise UsageError(f"how={self.how!r}: use {' or '.join(map(repr, hows))}")
        if self.into is not None:
            require_function(self.into, "into=")
        parents = (self.left, self.right)
        require_equal_keys(self.builder, *parents, self.what)
        types = [self.builder.type_of(each) for each in parents]
        for side, row_type in zip(("left", "right"), types, strict=True):
            RowCodec(row_type, f"join: {side} rows")
        return {
            "id": self.builder.next_id,
            "parents": parents,
            "name": self.builder.state_name(parents, JoinNode.kind, self.name),
            "how": self.how,
            "into": self.into or Joined,
            "left_type": types[0],
            "right_type": types[1],
        }


def interval_join(joining: Joining, bounds: Bounds) -> int:
    """Add the node of `join()`.

    Raises:
        UsageError: No bounds, crossed bounds, or an option that does not exist.
    """
    lower_ms, upper_ms = _interval(bounds)
    node = IntervalJoinNode(
        label="", lower_ms=lower_ms, upper_ms=upper_ms, **joining.common(*_HOWS)
    )
    return joining.add(_labelled(node))


def _interval(bounds: Bounds) -> tuple[int, int]:
    unknown = set(bounds) - set(Bounds.__annotations__)
    if unknown:
        raise UsageError(f"join(): unknown options {sorted(unknown)}")
    if "within" in bounds:
        if len(bounds) > 1:
            raise UsageError("join(): give within=, or lower= and upper=")
        within_ms = parse_duration_ms(bounds["within"])
        return -within_ms, within_ms
    if "lower" not in bounds or "upper" not in bounds:
        raise UsageError('join(): give within="5m", or lower="-5m" and upper="10m"')
    lower_ms, upper_ms = _signed_ms(bounds["lower"]), _signed_ms(bounds["upper"])
    if lower_ms > upper_ms:
        raise UsageError(
            f"join(): lower={bounds['lower']!r} is above upper={bounds['upper']!r}:"
            " nothing could ever match"
        )
    return lower_ms, upper_ms


def asof_join(joining: Joining, direction: Direction, within: str | int | timedelta | None) -> int:
    """Add the node of `join_asof()`.

    Raises:
        UsageError: An unknown direction, or one that needs `within`.
    """
    if direction not in _DIRECTIONS:
        names = ", ".join(map(repr, _DIRECTIONS))
        raise UsageError(f"direction={direction!r}: use one of {names}")
    within_ms = None if within is None else parse_duration_ms(within)
    if within_ms is None and direction != "backward":
        raise UsageError(
            f"join_asof(direction={direction!r}) needs within=: without it a row would have to"
            " wait for ever"
        )
    node = AsofJoinNode(
        label="", direction=direction, within_ms=within_ms, **joining.common("inner", "left")
    )
    return joining.add(_labelled(node))


def table_join(joining: Joining, ttl_ms: int | None, *, versioned: bool) -> int:
    """Add the node of `join_table()`.

    Raises:
        UsageError: See `KeyedStream.join_table`.
    """
    if versioned:
        # What is over ttl after its newest update is not found from then on.
        within_ms = None if ttl_ms is None else ttl_ms - 1
        return asof_join(joining, "backward", within_ms)
    node = TableJoinNode(label="", ttl_ms=ttl_ms, **joining.common("inner", "left"))
    return joining.add(_labelled(node))


def _labelled(node: JoinNode) -> JoinNode:
    """The node, called what it does."""
    return replace(node, label=f"{node.rule}, {node.how}")


def _optional(row_type: Any) -> Any:
    return None if row_type is None else row_type | None


def _signed_ms(duration: str | int | timedelta) -> int:
    if isinstance(duration, str) and duration.startswith("-"):
        return -parse_duration_ms(duration[1:])
    return duration_ms(duration)
