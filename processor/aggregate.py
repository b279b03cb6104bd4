"""What an aggregate is: the base of the built-in ones and of your own. Pure.

An aggregate is `init() -> accumulator`, `add(accumulator, value) -> accumulator` and
`result(accumulator)`. Rows are added one by one in the order of the log, so a sum of floats is the
same whatever the batches were. The accumulator is kept in state as msgpack: it must be made of
None, bool, int, float, str, bytes, list, and dict whose keys are plain as well.

Two more methods are optional. `merge` puts two accumulators together: session windows need it when
a row joins two sessions. `remove` takes a value back, exactly: retractions need it. Who asks for
one that is missing learns so while the pipeline is declared, by `require_mergeable` and
`require_invertible`, and never from a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

from millstream import UsageError

from .fields import Field, describe
from .parts import Parted

T_contra = TypeVar("T_contra", contravariant=True)
A = TypeVar("A")
R_co = TypeVar("R_co", covariant=True)


class AnyAggregate(ABC, Generic[T_contra, R_co]):
    """An aggregate of values of type T with result R, whatever it keeps meanwhile.

    What takes aggregates asks for this one: an accumulator that may be of any type would make
    results that have its type of any type, too, to a type checker. Derive from `Aggregate`.
    """


class Aggregate(Parted, AnyAggregate[T_contra, R_co], Generic[T_contra, A, R_co]):
    """An aggregate of values of type T, with accumulator A and result R.

    Methods must depend on their arguments alone. Those that return an accumulator may change and
    return one they were given; the caller uses the returned one only. A value is not theirs: other
    windows add it as well. So it must not be changed, nor what an accumulator holds of it.

    >>> class Longest(Aggregate[str, str, str]):
    ...     def init(self) -> str:
    ...         return ""
    ...
    ...     def add(self, accumulator: str, value: str) -> str:
    ...         return value if len(value) > len(accumulator) else accumulator
    ...
    ...     def merge(self, left: str, right: str) -> str:  # optional: for session windows
    ...         return self.add(left, right)
    ...
    ...     def result(self, accumulator: str) -> str:
    ...         return accumulator
    """

    field: Field = None
    """What of a row is added; None for the row's value."""
    word: ClassVar[str] = ""
    """What `describe` calls it; by default the name of the class."""

    @abstractmethod
    def init(self) -> A:
        """The accumulator of a window without rows."""

    @abstractmethod
    def add(self, accumulator: A, value: T_contra) -> A:
        """The accumulator with one more row. May change and return the one it is given."""

    @abstractmethod
    def result(self, accumulator: A) -> R_co:
        """What the window says when it closes. Must leave the accumulator as it is."""

    def merge(self, left: A, right: A) -> A:
        """The accumulator of all rows of two sessions that became one.

        Args:
            left: Of the session that is earlier in event time.
            right: Of the later one. Both may be changed, and either returned.
        """
        raise UsageError(f"{self.describe()} cannot merge two accumulators: it has no merge()")

    def remove(self, accumulator: A, value: T_contra) -> A:
        """The accumulator as if `value`, which was added before, had not been. Exact or an error.

        Raises:
            TypeError: It cannot be undone exactly: a float is in the sum.
        """
        raise UsageError(f"{self.describe()} cannot take a value back: it has no remove()")

    @property
    def mergeable(self) -> bool:
        """Whether `merge` works: session windows ask this while the pipeline is declared."""
        return type(self).merge is not Aggregate.merge

    @property
    def invertible(self) -> bool:
        """Whether `remove` works, at least for some values (ints)."""
        return type(self).remove is not Aggregate.remove

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Add many values, in order.

        Built-in aggregates replace this loop by one without calls.

        Args:
            accumulators: Of all keys of a window.
            slots: For each value the index of its key's accumulator.
            values: What to add.
        """
        add = self.add
        for slot, value in zip(slots, values, strict=True):
            accumulators[slot] = add(accumulators[slot], value)

    def result_column(self, accumulators: list[Any]) -> list[Any]:
        """The result of each accumulator. Where the accumulator is the result, a plain return."""
        # No map(), which takes a StopIteration for the end of its input.
        return [self.result(accumulator) for accumulator in accumulators]

    def __repr__(self) -> str:
        return f"<Aggregate {self.describe()}>"

    def describe(self) -> str:
        """What it computes, in words that stay the same; part of the plan's identity."""
        name = self.word or type(self).__qualname__.rsplit("<locals>.", 1)[-1]
        parameters = self.parameters()
        if self.field is not None:
            parameters = [describe(self.field), *parameters]
        return f"{name}({', '.join(parameters)})"

    def parameters(self) -> list[str]:
        """What beside the field tells it from another of its kind, for `describe`: `["k=3"]`."""
        return []


class OwnResult(Aggregate[Any, A, A]):
    """An aggregate whose accumulator is its result."""

    def __init__(self, field: Field = None) -> None:
        self.field = field

    def result(self, accumulator: A) -> A:
        """The accumulator."""
        return accumulator

    def result_column(self, accumulators: list[Any]) -> list[Any]:
        """The accumulators."""
        return accumulators


def require_mergeable(aggregate: Aggregate[Any, Any, Any], what: str) -> None:
    """Refuse an aggregate that cannot merge where sessions may have to, while it is declared.

    Raises:
        UsageError: It has no `merge`.
    """
    if not aggregate.mergeable:
        raise UsageError(
            f"{what}: {aggregate.describe()} has no merge(), and a session window must merge two"
            " sessions when a row joins them; give it one (agg.fold takes merge=)"
        )


def require_invertible(aggregate: Aggregate[Any, Any, Any], what: str) -> None:
    """Refuse an aggregate that cannot take a value back where values may be retracted.

    Raises:
        UsageError: It has no `remove`.
    """
    if not aggregate.invertible:
        raise UsageError(
            f"{what}: {aggregate.describe()} has no remove(), and a table may take back or"
            " replace a row that was added; count, and sums of ints, have one"
        )
