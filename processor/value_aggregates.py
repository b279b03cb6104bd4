"""Aggregates that keep values: first, last, distinct, collect, top_k, and functions. Pure.

None is passed over, as SQL does, by all but `Fold`, whose step sees every value. What is kept goes
into state, so it must be plain (None, bool, int, float, str, bytes, list, and dict) or of a type
that is declared: accumulator_codec.py.
"""

from __future__ import annotations

from bisect import insort_left
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, Final, TypeAlias, get_origin

from millstream import UsageError

from .aggregate import Aggregate, OwnResult
from .detached import detached
from .fields import Field, FieldPair, describe, require_function
from .row_types import returned_type

_ORDER: Final = itemgetter(0)


class First(OwnResult[Any]):
    """The value of the first row, in the order of the log."""

    word = "first"

    def init(self) -> None:
        """Nothing seen."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The one that is there, or else the new one."""
        return value if accumulator is None else accumulator

    def merge(self, left: Any, right: Any) -> Any:
        """That of the earlier session."""
        return right if left is None else left

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Fill what is empty."""
        for slot, value in zip(slots, values, strict=True):
            if accumulators[slot] is None:
                accumulators[slot] = value


class Last(OwnResult[Any]):
    """The value of the last row, in the order of the log."""

    word = "last"

    def init(self) -> None:
        """Nothing seen."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The new one, if there is one."""
        return accumulator if value is None else value

    def merge(self, left: Any, right: Any) -> Any:
        """That of the later session."""
        return left if right is None else right

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Replace what is there."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                accumulators[slot] = value


class _By(Aggregate[Any, "list[Any]", Any]):
    """The value of the row that stands at one end of an order. The accumulator is [order, value].

    A row that lacks one of the two, or whose order is NaN, is passed over.
    """

    def __init__(self, field: Field, by: Field) -> None:
        self.field = FieldPair(by, field)

    def init(self) -> list[Any]:
        """Nothing seen."""
        return []

    def result(self, accumulator: list[Any]) -> Any:
        """The value, or None."""
        return accumulator[1] if accumulator else None

    def add(self, accumulator: list[Any], value: tuple[Any, Any]) -> list[Any]:
        """The row that comes first in the order."""
        self.add_column([accumulator], (0,), (value,))
        return accumulator


class FirstBy(_By):
    """The value of the row whose order is least; of equal ones the first to arrive."""

    word = "first"

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        """The lesser of both; of equal ones that of the earlier session."""
        return right if right and (not left or right[0] < left[0]) else left

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Replace what comes after."""
        for slot, (order, value) in zip(slots, values, strict=True):
            if order is not None and value is not None:
                kept = accumulators[slot]
                if kept:
                    if order < kept[0]:
                        kept[:] = order, value
                elif order == order:  # noqa: PLR0124 - NaN is passed over
                    kept[:] = order, value


class LastBy(_By):
    """The value of the row whose order is greatest; of equal ones the last to arrive."""

    word = "last"

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        """The greater of both; of equal ones that of the later session."""
        return left if left and (not right or right[0] < left[0]) else right

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Replace what comes before."""
        for slot, (order, value) in zip(slots, values, strict=True):
            if order is not None and value is not None:
                kept = accumulators[slot]
                if kept:
                    if order >= kept[0]:
                        kept[:] = order, value
                elif order == order:  # noqa: PLR0124 - NaN is passed over
                    kept[:] = order, value


class Distinct(Aggregate[Any, "dict[Any, None]", int]):
    """Exact number of different values. All of them are kept until the window closes.

    As in any Python dict 1, 1.0 and True are the same value; all NaN are one value, too.
    """

    word = "distinct"

    def __init__(self, field: Field = None) -> None:
        self.field = field

    def init(self) -> dict[Any, None]:
        """The values as keys, in the order they were first seen; None for NaN."""
        return {}

    def add(self, accumulator: dict[Any, None], value: Any) -> dict[Any, None]:
        """One more value."""
        self.add_column([accumulator], (0,), (value,))
        return accumulator

    def merge(self, left: dict[Any, None], right: dict[Any, None]) -> dict[Any, None]:
        """The values of the earlier session, then those of the later one that are new."""
        left.update(right)
        return left

    def result(self, accumulator: dict[Any, None]) -> int:
        """How many."""
        return len(accumulator)

    def result_column(self, accumulators: list[Any]) -> list[Any]:
        """How many, of each."""
        return list(map(len, accumulators))

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Enter each value. NaN, which equals nothing, is entered as None, which no value is."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                if value == value:  # noqa: PLR0124
                    accumulators[slot][value] = None
                else:
                    accumulators[slot][None] = None


class Collect(OwnResult["list[Any]"]):
    """The first `limit` values, in the order of the log.

    Args:
        field: What to read.
        limit: The longest list; later values are passed over.
    """

    word = "collect"

    def __init__(self, field: Field, *, limit: int) -> None:
        require_positive(limit, "agg.collect(): limit")
        self.field = field
        self.limit = limit

    def init(self) -> list[Any]:
        """An empty list."""
        return []

    def add(self, accumulator: list[Any], value: Any) -> list[Any]:
        """One more value."""
        if value is not None and len(accumulator) < self.limit:
            accumulator.append(value)
        return accumulator

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        """The values of the earlier session, then those of the later one."""
        return (left + right)[: self.limit]

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Append what there is room for."""
        limit = self.limit
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                values_so_far = accumulators[slot]
                if len(values_so_far) < limit:
                    values_so_far.append(value)

    def parameters(self) -> list[str]:
        """The limit."""
        return [f"limit={self.limit}"]


class TopK(Aggregate[Any, "list[Any]", "list[Any]"]):
    """The k greatest values, greatest first; of equal ones the first to arrive stands first.

    NaN is passed over.

    Args:
        k: How many.
        field: What to read.
    """

    word = "top_k"

    def __init__(self, k: int, field: Field) -> None:
        require_positive(k, "agg.top_k(): k")
        self.field = field
        self.k = k

    def init(self) -> list[Any]:
        """An empty list; what is in it is sorted, least first, and equal ones latest first."""
        return []

    def add(self, accumulator: list[Any], value: Any) -> list[Any]:
        """The k greatest with one more."""
        self.add_column([accumulator], (0,), (value,))
        return accumulator

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        """The k greatest of both; of equal ones those of the earlier session count as first."""
        return sorted(right + left)[-self.k :]

    def result(self, accumulator: list[Any]) -> list[Any]:
        """Greatest first."""
        return accumulator[::-1]

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """One comparison for a value that is not among the k greatest."""
        k = self.k
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                top = accumulators[slot]
                if len(top) < k:
                    if value == value:  # noqa: PLR0124 - NaN is passed over
                        insort_left(top, value)
                elif value > top[0]:
                    insort_left(top, value)
                    del top[0]

    def parameters(self) -> list[str]:
        """How many."""
        return [f"k={self.k}"]


class TopKBy(Aggregate[Any, "list[list[Any]]", "list[Any]"]):
    """The values of the k rows whose order is greatest, greatest first.

    Of equal ones the first to arrive stands first. A row that lacks one of the two, or whose
    order is NaN, is passed over.

    Args:
        k: How many.
        field: What to keep.
        by: What to order by.
    """

    word = "top_k"

    def __init__(self, k: int, field: Field, by: Field) -> None:
        require_positive(k, "agg.top_k(): k")
        self.field = FieldPair(by, field)
        self.k = k

    def init(self) -> list[list[Any]]:
        """An empty list of [order, value], sorted, least first, and equal ones latest first."""
        return []

    def add(self, accumulator: list[list[Any]], value: tuple[Any, Any]) -> list[list[Any]]:
        """The k greatest with one more."""
        self.add_column([accumulator], (0,), (value,))
        return accumulator

    def merge(self, left: list[list[Any]], right: list[list[Any]]) -> list[list[Any]]:
        """The k greatest of both; of equal ones those of the earlier session count as first."""
        return sorted(right + left, key=_ORDER)[-self.k :]

    def result(self, accumulator: list[list[Any]]) -> list[Any]:
        """The values without what they are ordered by, greatest first."""
        return [value for _, value in reversed(accumulator)]

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """One comparison for a row that is not among the k greatest."""
        k = self.k
        for slot, (order, value) in zip(slots, values, strict=True):
            if order is not None and value is not None:
                top = accumulators[slot]
                if len(top) < k:
                    if order == order:  # noqa: PLR0124 - NaN is passed over
                        insort_left(top, [order, value], key=_ORDER)
                elif order > top[0][0]:
                    insort_left(top, [order, value], key=_ORDER)
                    del top[0]

    def parameters(self) -> list[str]:
        """How many."""
        return [f"k={self.k}"]


Step: TypeAlias = Callable[[Any, Any], Any]
"""What there is so far and a value, made into what there is then."""


class Reduce(OwnResult[Any]):
    """All values put together by one function of two, in row order.

    Args:
        function: Takes what there is so far, which it may change, and the next value, which it
            must not change. Must be associative, so that it can merge two sessions as well, and
            never return None, which means "nothing yet".
        field: What to read.
    """

    word = "reduce"

    def __init__(self, function: Callable[[Any, Any], Any], field: Field = None) -> None:
        require_function(function, "agg.reduce()")
        self.field = field
        self.function = function

    def with_step(self, change: Callable[[Step], Step]) -> Reduce:
        """The same with another function."""
        return Reduce(change(self.function), self.field)

    def init(self) -> None:
        """Nothing seen."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The function of both; the first value as it is."""
        if value is None:
            return accumulator
        reduced = value if accumulator is None else self.function(accumulator, value)
        if reduced is None:
            raise TypeError("the function of agg.reduce() returned None")
        # What other windows see as well is not for the function to change next time.
        return detached(reduced) if reduced is value else reduced

    def merge(self, left: Any, right: Any) -> Any:
        """The function of the earlier and the later session."""
        return self.add(left, right)

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """One call of the function per row."""
        function = self.function
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                so_far = accumulators[slot]
                reduced = value if so_far is None else function(so_far, value)
                if reduced is None:
                    raise TypeError("the function of agg.reduce() returned None")
                accumulators[slot] = detached(reduced) if reduced is value else reduced

    def parameters(self) -> list[str]:
        """The function."""
        return [describe(self.function)]


class Fold(Aggregate[Any, Any, Any]):
    """An aggregate made of functions.

    Args:
        init: Makes the accumulator of a window without rows: `list`, `lambda: {"n": 0}`.
        step: Takes accumulator and value, returns the accumulator; may change the given one, but
            neither the value nor what it has put of it into the accumulator. Sees None as well.
        field: What to read.
        merge: Takes the accumulators of the earlier and the later session; needed by session
            windows only.
        result: Takes the accumulator, returns what the window says; the accumulator by default.
    """

    word = "fold"

    def __init__(
        self,
        init: Callable[[], Any],
        step: Callable[[Any, Any], Any],
        field: Field = None,
        *,
        merge: Callable[[Any, Any], Any] | None = None,
        result: Callable[[Any], Any] | None = None,
    ) -> None:
        require_function(init, "agg.fold(): init")
        require_function(step, "agg.fold(): step")
        for optional, name in ((merge, "merge"), (result, "result")):
            if optional is not None:
                require_function(optional, f"agg.fold(): {name}")
        self.field = field
        self._init, self._step, self._merge, self._result = init, step, merge, result

    def with_step(self, change: Callable[[Step], Step]) -> Fold:
        """The same with another step."""
        step = change(self._step)
        return Fold(self._init, step, self.field, merge=self._merge, result=self._result)

    @property
    def accumulator_type(self) -> object:
        """What the functions say they make; None if they do not."""
        made, stepped = returned_type(self._init), returned_type(self._step)
        # `list` says less than the `list[Order]` of the step.
        return stepped if made in {None, get_origin(stepped)} else made

    @property
    def result_type(self) -> object:
        """What its result is; None if it does not say."""
        if self._result is not None:
            return returned_type(self._result)
        made: Any = self.accumulator_type
        return None if made is None else made | None

    @property
    def mergeable(self) -> bool:
        """Whether it was given `merge`."""
        return self._merge is not None

    def init(self) -> Any:
        """What the given function makes."""
        return self._init()

    def add(self, accumulator: Any, value: Any) -> Any:
        """One step."""
        stepped = self._step(accumulator, value)
        return detached(stepped) if stepped is value else stepped

    def merge(self, left: Any, right: Any) -> Any:
        """What the given function makes of both."""
        if self._merge is None:
            raise UsageError("agg.fold() without merge= cannot merge two sessions")
        return self._merge(left, right)

    def result(self, accumulator: Any) -> Any:
        """The accumulator, or what the given function makes of it."""
        return accumulator if self._result is None else self._result(accumulator)

    def result_column(self, accumulators: list[Any]) -> list[Any]:
        """The same of each."""
        return accumulators if self._result is None else super().result_column(accumulators)

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """One call of the step per row."""
        step = self._step
        for slot, value in zip(slots, values, strict=True):
            stepped = step(accumulators[slot], value)
            accumulators[slot] = detached(stepped) if stepped is value else stepped

    def parameters(self) -> list[str]:
        """The functions."""
        given = {"merge": self._merge, "result": self._result}
        return [
            describe(self._init),
            describe(self._step),
            *(f"{name}={describe(one)}" for name, one in given.items() if one is not None),
        ]


def require_positive(value: int, what: str) -> None:
    """Refuse what is no number of things, while it is declared.

    Raises:
        UsageError: Not an int, or less than 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{what} must be an int of at least 1, not {value!r}")
