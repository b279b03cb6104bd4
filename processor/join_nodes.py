"""The nodes of joins: plain frozen values, like those of nodes.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from .stream_nodes import StatefulNode
from .table_nodes import ttl_text
from .windows import duration_text

How: TypeAlias = Literal["inner", "left", "right", "outer"]
"""Of which side rows without a match are results, too: neither, left, right, both."""

Direction: TypeAlias = Literal["backward", "forward", "nearest"]
"""Where an as-of join looks from the time of a row."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JoinNode(StatefulNode):
    """Rows of two keyed inputs, left and right, that belong together."""

    kind: ClassVar[str] = "join"

    how: How
    into: Callable[[Any, Any], object]
    """Makes the result of two rows; None stands for a missing one."""
    left_type: object
    right_type: object

    @property
    def rule(self) -> str:
        """Which rows belong together, in words."""
        raise NotImplementedError

    def identity(self, keys: Sequence[str]) -> str:
        """Both keys, and the rule."""
        left, right = keys
        return f"key_by {left}; {self.rule} of rows by {right}, {self.how}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntervalJoinNode(JoinNode):
    """A right row belongs to a left one when its time is in [left + lower, left + upper]."""

    lower_ms: int
    upper_ms: int

    @property
    def delay_ms(self) -> int:
        """A row without a match is said when W has passed its last possible one."""
        return max(self.upper_ms, -self.lower_ms, 0)

    @property
    def rule(self) -> str:
        """The interval in words."""
        return f"join within [{_signed(self.lower_ms)}, {_signed(self.upper_ms)}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AsofJoinNode(JoinNode):
    """To a left row belongs the right one that is nearest in time, in one direction."""

    direction: Direction
    within_ms: int | None
    """The greatest distance, inclusive; None for any."""

    @property
    def delay_ms(self) -> int:
        """A left row is said when no right row can come any more that would be nearer."""
        return 0 if self.direction == "backward" else self.within_ms or 0

    @property
    def rule(self) -> str:
        """Direction and distance in words."""
        within = "" if self.within_ms is None else f" within {duration_text(self.within_ms)}"
        return f"as-of join {self.direction}{within}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableJoinNode(JoinNode):
    """To a left row belongs what the table holds for its key when it comes."""

    ttl_ms: int | None

    @property
    def timed_inputs(self) -> tuple[int, ...]:
        """The left one alone: a table that gets no rows must not hold back the stream."""
        return self.parents[:1]

    @property
    def rule(self) -> str:
        """The lookup in words."""
        return f"table join{ttl_text(self.ttl_ms)}"


def _signed(value_ms: int) -> str:
    return f"-{duration_text(-value_ms)}" if value_ms < 0 else duration_text(value_ms)
