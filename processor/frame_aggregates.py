"""Accumulators of a window in arrays: one number per key instead of one object.

What an aggregate computes is said by its class in numeric_aggregates.py and value_aggregates.py;
here count, sum, mean, min and max of numbers do exactly that on arrays, in row order. A sum is a
left fold, so floats come out to the last bit as they do from rows. Any other aggregate keeps its
own accumulators in a list and is asked a column at a time.

Whatever arrays cannot hold exactly is refused before anything was added: integers that might leave
64 bits, zeros of both signs under `min`, a column that changes its type.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .aggregate import Aggregate
from .errors import failed_index
from .frame_errors import NotInColumnsError
from .frames import Array, Mask, normal, to_list
from .numeric_aggregates import Count, Max, Mean, Min, Sum

Slots: TypeAlias = "npt.NDArray[np.int32]"
Numbers: TypeAlias = "npt.NDArray[Any]"
"""Of int64 or float64."""
Places: TypeAlias = "slice | npt.NDArray[np.int64]"
"""Some rows of a chunk."""

_EXACT_INT: Final = 1 << 53
"""Every int up to it is a float."""
_INT64: Final = 1 << 63
_NUMERIC: Final = (np.dtype(np.int64), np.dtype(np.float64))


class Inputs:
    """What an aggregate adds of some rows.

    Args:
        column: Int64, float64, bool, string or null; None for an aggregate that asks for nothing.
    """

    def __init__(self, column: Array | None) -> None:
        self.column = column
        self.numbers: Numbers | None = None
        """Without meaning where not `valid`; None if they are no numbers."""
        self.valid: Mask | None = None
        """None: all are."""
        if column is None or len(column) == 0:
            return
        if column.null_count:
            self.valid = column.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_int64(column.type) or pa.types.is_float64(column.type):
            filled = column.fill_null(0) if column.null_count else column
            self.numbers = filled.to_numpy(zero_copy_only=False)

    def at(self, places: Places) -> Inputs:
        """Those of some rows."""
        part = Inputs(None)
        if self.column is not None:
            if isinstance(places, slice):
                part.column = self.column[places]
            else:
                part.column = _Later(self.column, places)
        part.numbers = None if self.numbers is None else self.numbers[places]
        part.valid = None if self.valid is None else self.valid[places]
        return part

    @property
    def dtype(self) -> Any:
        """Of the numbers; None where there are none."""
        return None if self.numbers is None else self.numbers.dtype

    @property
    def null_only(self) -> bool:
        """Whether there is nothing but nulls."""
        return self.valid is not None and not self.valid.any()

    def as_list(self) -> list[Any]:
        """Them all as Python objects."""
        column = self.column
        if isinstance(column, _Later):
            column = column.column.take(pa.array(column.places))
        return [] if column is None else to_list(column)

    def with_slots(self, slots: Slots) -> tuple[Slots, Numbers]:
        """The numbers that are valid, and where they belong."""
        assert self.numbers is not None
        if self.valid is None:
            return slots, self.numbers
        return slots[self.valid], self.numbers[self.valid]


class _Later:
    """Some rows of a column, taken when somebody asks."""

    def __init__(self, column: Array, places: npt.NDArray[np.int64]) -> None:
        self.column = column
        self.places = places


class AddError(Exception):
    """An aggregate raised on one of the rows."""

    def __init__(self, index: int, aggregate: int = 0) -> None:
        super().__init__(index, aggregate)
        self.index = index
        """Of the row."""
        self.aggregate = aggregate
        """Which one raised, by its number in the window."""


class Accumulators(ABC):
    """Those of one aggregate, one per slot."""

    @abstractmethod
    def accepts(self, inputs: Inputs) -> bool:
        """Whether `add` will give what rows give."""

    @abstractmethod
    def grow(self, count: int) -> None:
        """Have at least `count` slots, new ones fresh."""

    @abstractmethod
    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Add rows that are accepted, in their order.

        Raises:
            AddError: The aggregate raised; nothing else may be done with the accumulators.
        """

    @abstractmethod
    def results(self, slots: Slots) -> Array:
        """What the aggregate says of some slots.

        Raises:
            NotInColumnsError: It is no column.
        """

    @abstractmethod
    def state(self, slots: Slots) -> Sequence[Any]:
        """The accumulators as the aggregate itself has them."""

    @abstractmethod
    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take the accumulators of the first slots, as the aggregate itself has them.

        Raises:
            NotInColumnsError: They do not fit.
        """

    @abstractmethod
    def reset(self, slots: Slots) -> None:
        """Make slots fresh again."""

    def can_merge(self, slots: Slots, inputs: Inputs) -> bool:
        """Whether slots may be merged with each other while rows are added to them, exactly.

        Args:
            slots: All that take part, each once.
            inputs: The rows, which are accepted.
        """
        del slots, inputs
        return True

    @abstractmethod
    def merge(self, left: Slots, right: Slots) -> None:
        """Add what the slots of `right` have to those of `left`; no slot is there twice.

        Raises:
            AddError: The aggregate raised; nothing else may be done with the accumulators.
        """


def accumulators_for(aggregate: Aggregate[Any, Any, Any], inputs: Inputs) -> Accumulators:
    """Accumulators for an aggregate whose first inputs are these."""
    kind = type(aggregate)
    if kind is Count:
        return Counts()
    if inputs.numbers is not None:
        if kind is Sum:
            return Sums(inputs.dtype)
        if kind is Mean:
            return Means(inputs.dtype)
        if kind in {Min, Max}:
            return Extremes(inputs.dtype, least=kind is Min)
    return Objects(aggregate)


class Counts(Accumulators):
    """Numbers of rows, or of those that have a value."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)

    def accepts(self, inputs: Inputs) -> bool:
        """Always."""
        return True

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._counts = _grown(self._counts, count)

    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Count."""
        add_ones(self._counts, slots if inputs.valid is None else slots[inputs.valid])

    def results(self, slots: Slots) -> Array:
        """The counts."""
        return pa.array(self._counts[slots])

    def state(self, slots: Slots) -> Sequence[int]:
        """The counts."""
        return self._counts[slots].tolist()  # type: ignore[no-any-return]

    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take counts."""
        self._counts = _as_array(accumulators, np.dtype(np.int64), int)

    def reset(self, slots: Slots) -> None:
        """Zero."""
        self._counts[slots] = 0

    def merge(self, left: Slots, right: Slots) -> None:
        """Add counts."""
        self._counts[left] += self._counts[right]


class Sums(Accumulators):
    """Sums of numbers of one type. Until a slot has had one, its sum is the int 0."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._sums = np.zeros(0, dtype)
        self._counts = np.zeros(0, np.int64)
        """Of numbers added."""
        self._bound = 0
        """No sum of ints is greater, and none is less than its negative."""

    def accepts(self, inputs: Inputs) -> bool:
        """Whether the sums stay exact."""
        if inputs.numbers is None:
            return inputs.null_only
        if inputs.dtype != self._dtype:
            return False
        if self._dtype == np.float64:
            return True
        weight = _weight(inputs.numbers)
        if self._bound + weight >= _INT64:
            self._bound = _greatest(self._sums)  # what was added may be gone by now
        return self._bound + weight < _INT64

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._sums = _grown(self._sums, count)
        self._counts = _grown(self._counts, count)

    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Add in row order, one after the other."""
        if inputs.numbers is None:
            return
        slots, numbers = inputs.with_slots(slots)
        np.add.at(self._sums, slots, numbers)
        add_ones(self._counts, slots)
        if self._dtype != np.float64:
            self._bound += _weight(numbers)

    def results(self, slots: Slots) -> Array:
        """The sums."""
        if self._dtype == np.float64 and not self._counts[slots].all():
            raise NotInColumnsError("a sum of nothing is an int")
        return normal(pa.array(self._sums[slots]), "a sum")

    def state(self, slots: Slots) -> Sequence[Any]:
        """The sums, 0 where nothing was added."""
        sums: list[Any] = self._sums[slots].tolist()
        if self._dtype == np.float64:
            counts = self._counts[slots].tolist()
            sums = [total if count else 0 for total, count in zip(sums, counts, strict=True)]
        return sums

    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take sums. A float was added to, an int that is not 0 was, too."""
        self._restore(
            accumulators, [int(type(each) is not int or each != 0) for each in accumulators]
        )

    def _restore(self, sums: Sequence[Any], counts: Sequence[int]) -> None:
        if self._dtype == np.float64:
            sums = [0.0 if type(each) is int and each == 0 else each for each in sums]
            self._sums = _as_array(sums, self._dtype, float)
        else:
            self._sums = _as_array(sums, self._dtype, int)
            self._bound = max(map(abs, sums), default=0)
        self._counts = np.array(counts, np.int64)

    def reset(self, slots: Slots) -> None:
        """Nothing added."""
        self._sums[slots] = 0
        self._counts[slots] = 0

    def can_merge(self, slots: Slots, inputs: Inputs) -> bool:
        """Whether the sum of all of them fits."""
        if self._dtype == np.float64:
            return True
        total: int = sum(map(abs, self._sums[slots].tolist()))
        return total + (0 if inputs.numbers is None else _weight(inputs.numbers)) < _INT64

    def merge(self, left: Slots, right: Slots) -> None:
        """Add sums, the earlier ones plus the later ones."""
        self._sums[left] += self._sums[right]
        self._counts[left] += self._counts[right]
        if self._dtype != np.float64:
            self._bound = max(self._bound, _greatest(self._sums[left]))


class Means(Sums):
    """Sums with the number of what was added."""

    def results(self, slots: Slots) -> Array:
        """The quotients; null where there was nothing."""
        counts, sums = self._counts[slots], self._sums[slots]
        if self._dtype != np.float64 and self._bound > _EXACT_INT:
            # An int that is no float is divided exactly by Python alone.
            pairs = zip(sums.tolist(), counts.tolist(), strict=True)
            return pa.array([total / n if n else None for total, n in pairs], pa.float64())
        empty = counts == 0
        means = sums / np.where(empty, 1, counts)
        return normal(pa.array(means, mask=empty if empty.any() else None), "a mean")

    def state(self, slots: Slots) -> Sequence[Any]:
        """Pairs of count and sum."""
        counts = self._counts[slots].tolist()
        return list(map(list, zip(counts, super().state(slots), strict=True)))

    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take pairs."""
        counts = [count for count, _ in accumulators]
        self._restore([total for _, total in accumulators], counts)


class Extremes(Accumulators):
    """The least or the greatest numbers."""

    def __init__(self, dtype: Any, *, least: bool) -> None:
        self._dtype = dtype
        self._least = least
        limits = np.iinfo(np.int64) if dtype == np.int64 else None
        worst: Any = (limits.max if least else limits.min) if limits else np.inf
        self._worst = worst if limits or least else -worst
        self._found = np.zeros(0, dtype)
        self._seen = np.zeros(0, np.bool_)

    def accepts(self, inputs: Inputs) -> bool:
        """Whether equal numbers are the same: 0.0 and -0.0 are not."""
        if inputs.numbers is None:
            return inputs.null_only
        if inputs.dtype != self._dtype:
            return False
        if self._dtype == np.int64:
            return True
        zeros = inputs.numbers == 0
        return not (zeros.any() and np.signbit(inputs.numbers[zeros]).any())

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._found = _grown(self._found, count, self._worst)
        self._seen = _grown(self._seen, count)

    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Replace what is worse."""
        if inputs.numbers is None:
            return
        slots, numbers = inputs.with_slots(slots)
        better = np.minimum if self._least else np.maximum
        better.at(self._found, slots, numbers)
        self._seen[slots] = True

    def results(self, slots: Slots) -> Array:
        """What was found; null where there was nothing."""
        seen = self._seen[slots]
        found = pa.array(self._found[slots], mask=None if seen.all() else ~seen)
        return normal(found, "an extreme")

    def state(self, slots: Slots) -> Sequence[Any]:
        """What was found, or None."""
        pairs = zip(self._found[slots].tolist(), self._seen[slots].tolist(), strict=True)
        return [found if seen else None for found, seen in pairs]

    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take what was found."""
        kind = int if self._dtype == np.int64 else float
        filled = [kind(self._worst) if each is None else each for each in accumulators]
        self._seen = np.array([each is not None for each in accumulators], np.bool_)
        self._found = _as_array(filled, self._dtype, kind)
        if np.signbit(self._found[self._found == 0]).any():
            raise NotInColumnsError("zeros of both signs")

    def reset(self, slots: Slots) -> None:
        """Nothing seen."""
        self._found[slots] = self._worst
        self._seen[slots] = False

    def merge(self, left: Slots, right: Slots) -> None:
        """Replace what is worse."""
        better = np.minimum if self._least else np.maximum
        self._found[left] = better(self._found[left], self._found[right])
        self._seen[left] |= self._seen[right]


class Objects(Accumulators):
    """The accumulators of any aggregate, as it has them."""

    def __init__(self, aggregate: Aggregate[Any, Any, Any]) -> None:
        self._aggregate = aggregate
        self._held: list[Any] = []

    def accepts(self, inputs: Inputs) -> bool:
        """Always."""
        return True

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._held += [self._aggregate.init() for _ in range(count - len(self._held))]

    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Let the aggregate add them."""
        values: Sequence[Any] = inputs.as_list()
        remaining = iter(values)
        try:
            self._aggregate.add_column(self._held, slots.tolist(), remaining)
        except Exception as error:
            raise AddError(failed_index(values, remaining)) from error

    def results(self, slots: Slots) -> Array:
        """What the aggregate says, if that is a column."""
        try:
            results = self._aggregate.result_column(list(self.state(slots)))
        except Exception as error:  # rows find out which it is, and raise again
            raise NotInColumnsError("a result that raises") from error
        kinds = set(map(type, results)) - {type(None)}
        if not kinds <= {int} and not kinds <= {float} and not kinds <= {str}:
            raise NotInColumnsError("results of several types")
        try:
            return normal(pa.array(results), "a result")
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise NotInColumnsError(str(error)) from None

    def state(self, slots: Slots) -> Sequence[Any]:
        """The accumulators."""
        return list(map(self._held.__getitem__, slots.tolist()))

    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take accumulators."""
        self._held = list(accumulators)

    def reset(self, slots: Slots) -> None:
        """Others, which nobody else has."""
        for slot in slots.tolist():
            self._held[slot] = self._aggregate.init()

    def merge(self, left: Slots, right: Slots) -> None:
        """Let the aggregate merge them."""
        held, merge = self._held, self._aggregate.merge
        for number, (slot, later) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            try:
                held[slot] = merge(held[slot], held[later])
            except Exception as error:
                raise AddError(number) from error


def add_ones(counts: npt.NDArray[np.int64], slots: Slots) -> None:
    """Add 1 at each slot, as often as it is there."""
    if 4 * len(slots) < len(counts):
        np.add.at(counts, slots, 1)
    else:
        counts += np.bincount(slots, minlength=len(counts))


def _weight(numbers: Numbers) -> int:
    """At least the sum of the absolute values of ints."""
    return len(numbers) * _greatest(numbers)


def _greatest(numbers: Numbers) -> int:
    """The greatest absolute value of ints."""
    return max(abs(int(numbers.min())), abs(int(numbers.max()))) if len(numbers) else 0


def _grown(array: Numbers, count: int, fresh: Any = 0) -> Numbers:
    """The array with at least `count` entries, twice as many as it had where it is too short."""
    if count <= len(array):
        return array
    more = np.full(max(count - len(array), len(array)), fresh, array.dtype)
    return np.concatenate([array, more])


def _as_array(values: Sequence[Any], dtype: Any, kind: type) -> Numbers:
    """Numbers as an array, if they all are of that type.

    Raises:
        NotInColumnsError: They are not, or too great.
    """
    if not set(map(type, values)) <= {kind}:
        raise NotInColumnsError("numbers of several types")
    try:
        return np.array(values, dtype)
    except OverflowError:
        raise NotInColumnsError("ints beyond 64 bits") from None
