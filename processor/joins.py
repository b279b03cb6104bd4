"""Joins: what a keyed stream can be put together with. Nothing runs here.

Every call adds a node to the plan and returns its results as a keyed stream. The streams are those
of stream.py, which is built upon this module and named here for type checkers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Unpack, overload

from millstream import UsageError

from .join_declaration import Bounds, Into, Joining, asof_join, interval_join, table_join
from .join_nodes import Direction, How
from .row_shapes import Joined
from .rows import Rows
from .tables import Table

if TYPE_CHECKING:
    from .stream import JoinResults, KeyedStream

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
R = TypeVar("R")
V = TypeVar("V")


class JoinMethods(Rows[T], Generic[K, T]):
    """The joins of a keyed stream."""

    __slots__ = ()

    def _joined(self, node: int) -> JoinResults[K, Any, Any]:
        """The results of a join."""
        raise NotImplementedError

    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        how: Literal["inner"] = "inner",
        into: None = None,
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, Joined[T, U], T | U]: ...
    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        how: Literal["left"],
        into: None = None,
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, Joined[T, U | None], T | U]: ...
    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        how: Literal["right"],
        into: None = None,
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, Joined[T | None, U], T | U]: ...
    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        how: Literal["outer"],
        into: None = None,
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, Joined[T | None, U | None], T | U]: ...
    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        into: Callable[[T, U], R],
        how: Literal["inner"] = "inner",
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, R, T | U]: ...
    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        into: Callable[[T, U | None], R],
        how: Literal["left"],
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, R, T | U]: ...
    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        into: Callable[[T | None, U], R],
        how: Literal["right"],
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, R, T | U]: ...
    @overload
    def join(
        self,
        other: KeyedStream[K, U],
        *,
        into: Callable[[T | None, U | None], R],
        how: Literal["outer"],
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, R, T | U]: ...
    def join(
        self,
        other: KeyedStream[K, Any],
        *,
        how: How = "inner",
        into: Into = None,
        name: str | None = None,
        **bounds: Unpack[Bounds],
    ) -> JoinResults[K, Any, Any]:
        """Join rows of the same key whose event times are near enough: an interval join.

        A row of `other` belongs to one of this stream when its time is in [time + lower,
        time + upper], both ends included; `within="5m"` is five minutes either way. A pair comes
        when the later of both comes; its time is the greater one. A stream may be joined with
        itself: then each row also meets itself, if the interval has 0 in it.

        Args:
            other: The right side, grouped by the same key.
            how: "inner", or "left", "right", "outer" for rows of that side (of both) that find no
                match, too: each comes once, when W has passed its last possible match.
            into: `into(left, right)` makes the result; by default it is a `Joined`, which is
                written as `{"left": ..., "right": ...}`. A side without a match is None.
            name: Of the state; by default `<source topic>.join`.
            **bounds: `within`, or `lower` and `upper`; in text they may be negative, "-5m".

        Raises:
            UsageError: Not keyed, of another pipeline, keys of types that are never equal, or
                bounds that match nothing.

        >>> from millstream.processor import Pipeline
        >>> pipeline = Pipeline("paid")
        >>> orders = pipeline.source("orders", time="ts").key_by("id")
        >>> payments = pipeline.source("payments", time="ts").key_by("id")
        >>> paid = orders.join(payments, lower=0, upper="1h", into=lambda o, p: p["ts"] - o["ts"])
        >>> _ = paid.to("delays")
        >>> inputs = {"orders": [{"id": 1, "ts": 5}], "payments": [{"id": 1, "ts": 9}]}
        >>> pipeline.test(inputs)["delays"]
        [4]
        """
        self._require_keyed(other, "join()")
        joining = Joining(self._builder, self._node, other._node, how, into, name, "join()")
        return self._joined(interval_join(joining, bounds))

    @overload
    def join_table(
        self,
        table: Table[K, V],
        *,
        how: Literal["inner"] = "inner",
        into: None = None,
        name: str | None = None,
    ) -> JoinResults[K, Joined[T, V], T | V]: ...
    @overload
    def join_table(
        self,
        table: Table[K, V],
        *,
        how: Literal["left"],
        into: None = None,
        name: str | None = None,
    ) -> JoinResults[K, Joined[T, V | None], T | V]: ...
    @overload
    def join_table(
        self,
        table: Table[K, V],
        *,
        into: Callable[[T, V], R],
        how: Literal["inner"] = "inner",
        name: str | None = None,
    ) -> JoinResults[K, R, T | V]: ...
    @overload
    def join_table(
        self,
        table: Table[K, V],
        *,
        into: Callable[[T, V | None], R],
        how: Literal["left"],
        name: str | None = None,
    ) -> JoinResults[K, R, T | V]: ...
    def join_table(
        self,
        table: Table[K, Any],
        *,
        how: Literal["inner", "left"] = "inner",
        into: Into = None,
        name: str | None = None,
    ) -> JoinResults[K, Any, Any]:
        """Look up each row's key in a table.

        A row meets what the table holds when it comes, in the order in which the store got the
        records; of one input row the table's update is first. No row is late and none waits, and
        the event time of the table holds nothing back. Of a table declared `versioned=True` a row
        meets the value as of its own event time: it waits until W of both has passed that, and rows
        of either side may be late.

        Args:
            table: With the same keys.
            how: "inner", or "left" for rows whose key is not in the table, too.
            into: `into(row, value)` makes the result; by default it is a `Joined`.
            name: Of the state; by default `<source topic>.join`.

        Raises:
            UsageError: Not a table, one of another pipeline, or keys of types that are never equal.
        """
        if not isinstance(table, Table):
            raise UsageError(f"join_table() takes a table, not {table!r}")
        updates = table._updates
        self._require_same_pipeline(updates, "join_table()")
        sides = self._node, updates._node
        joining = Joining(self._builder, *sides, how, into, name, "join_table()")
        return self._joined(table_join(joining, table._ttl_ms, versioned=table._versioned))

    @overload
    def join_asof(
        self,
        other: KeyedStream[K, U],
        *,
        direction: Direction = "backward",
        within: str | int | timedelta | None = None,
        how: Literal["inner"] = "inner",
        into: None = None,
        name: str | None = None,
    ) -> JoinResults[K, Joined[T, U], T | U]: ...
    @overload
    def join_asof(
        self,
        other: KeyedStream[K, U],
        *,
        direction: Direction = "backward",
        within: str | int | timedelta | None = None,
        how: Literal["left"],
        into: None = None,
        name: str | None = None,
    ) -> JoinResults[K, Joined[T, U | None], T | U]: ...
    @overload
    def join_asof(
        self,
        other: KeyedStream[K, U],
        *,
        direction: Direction = "backward",
        within: str | int | timedelta | None = None,
        how: Literal["inner"] = "inner",
        into: Callable[[T, U], R],
        name: str | None = None,
    ) -> JoinResults[K, R, T | U]: ...
    @overload
    def join_asof(
        self,
        other: KeyedStream[K, U],
        *,
        direction: Direction = "backward",
        within: str | int | timedelta | None = None,
        how: Literal["left"],
        into: Callable[[T, U | None], R],
        name: str | None = None,
    ) -> JoinResults[K, R, T | U]: ...
    def join_asof(
        self,
        other: KeyedStream[K, Any],
        *,
        direction: Direction = "backward",
        within: str | int | timedelta | None = None,
        how: Literal["inner", "left"] = "inner",
        into: Into = None,
        name: str | None = None,
    ) -> JoinResults[K, Any, Any]:
        """Join each row with the one of `other` that is nearest in event time.

        A row waits until W shows that no nearer one can come, so that it does not matter which
        side came first. Its result has its own time.

        Args:
            other: The right side, grouped by the same key.
            direction: "backward": the last row at or before the time; of several at one time the
                last to come. "forward": the first at or after it; of several the first to come.
                "nearest": the nearer of both, the earlier one when they are equally far.
            within: The greatest distance, inclusive. Only "backward" works without.
            how: "inner", or "left" for rows without a match, too.
            into: `into(left, right)` makes the result; by default it is a `Joined`.
            name: Of the state; by default `<source topic>.join`.

        Raises:
            UsageError: Not keyed, of another pipeline, keys of types that are never equal, or a
                direction that needs `within`.
        """
        self._require_keyed(other, "join_asof()")
        joining = Joining(self._builder, self._node, other._node, how, into, name, "join_asof()")
        return self._joined(asof_join(joining, direction, within))

    def _require_keyed(self, other: object, what: str) -> None:
        self._require_same_pipeline(other, what)
        if not isinstance(other, JoinMethods):
            raise UsageError(f"{what} takes a keyed stream, not {other!r}: call key_by() on it")
