"""The accumulators in arrays that there are: of count, sum, mean, and others of numbers.

What an aggregate computes is said by its class in numeric_aggregates.py and value_aggregates.py;
here count, and sum, mean, min, max, first, last and variance of numbers do exactly that on arrays,
in row order. A sum is a left fold, so floats come out to the last bit as they do from rows. The
accumulators of any other aggregate are objects (frame_objects.py).

Whatever arrays cannot hold exactly is refused before anything was added: integers that might leave
64 bits, zeros of both signs under `min`, a column that changes its type.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .aggregate import Aggregate
from .frame_accumulators import Accumulators, Followed, Inputs, Numbers, Slots, as_array, grown
from .frame_errors import NotInColumnsError
from .frame_keys import run_heads
from .frame_objects import objects_of
from .frame_turns import Turns
from .frames import Array, Ints, Mask, normal
from .numeric_aggregates import Count, Max, Mean, Min, StandardDeviation, Sum, Variance
from .value_aggregates import First, Last

_EXACT_INT: Final = 1 << 53
"""Every int up to it is a float."""
_INT64: Final = 1 << 63
_ROUND_MIN: Final = 64
"""Fewer slots than this are not worth a round of array operations."""


def accumulators_for(aggregate: Aggregate[Any, Any, Any], inputs: Inputs) -> Accumulators:
    """Accumulators for an aggregate whose first inputs are these."""
    if type(aggregate) is Count:
        return Counts()
    make = None if inputs.numbers is None else _OF_NUMBERS.get(type(aggregate))
    return objects_of(aggregate) if make is None else make(aggregate, inputs.dtype)


class Counts(Accumulators):
    """Numbers of rows, or of those that have a value."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)

    def accepts(self, inputs: Inputs) -> bool:
        """Always."""
        return True

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._counts = grown(self._counts, count)

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
        self._counts = as_array(accumulators, np.dtype(np.int64), int)

    def reset(self, slots: Slots) -> None:
        """Zero."""
        self._counts[slots] = 0

    def merge(self, left: Slots, right: Slots) -> None:
        """Add counts."""
        self._counts[left] += self._counts[right]

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """The count after each row."""
        counts = turns.counted(_sorted_flags(turns, inputs), self._counts[turns.slots])

        def apply() -> None:
            self._counts[turns.slots] = turns.ends(counts)

        return Followed(pa.array(turns.in_row_order(counts)), apply)


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
        self._sums = grown(self._sums, count)
        self._counts = grown(self._counts, count)

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
            self._sums = as_array(sums, self._dtype, float)
        else:
            self._sums = as_array(sums, self._dtype, int)
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

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """The sum after each row."""
        counts, sums, apply = self._follow(turns, inputs)
        if self._dtype == np.float64 and not counts.all():
            raise NotInColumnsError("a sum of nothing is an int")
        return Followed(normal(pa.array(turns.in_row_order(sums)), "a sum"), apply)

    def _follow(self, turns: Turns, inputs: Inputs) -> tuple[Ints, Numbers, Callable[[], None]]:
        """Counts and sums after each row, sorted."""
        slots = turns.slots
        counts = turns.counted(_sorted_flags(turns, inputs), self._counts[slots])
        if inputs.numbers is None:
            sums = turns.spread(self._sums[slots])
        elif self._dtype == np.float64:
            # Nulls are 0.0 here. No sum is -0.0, so that changes none.
            numbers = turns.sorted(inputs.filled(0.0))
            sums = turns.folded(np.add, numbers, self._sums[slots])
        else:
            sums = turns.added(turns.sorted(inputs.filled(0)), self._sums[slots])

        def apply() -> None:
            self._counts[slots], self._sums[slots] = turns.ends(counts), turns.ends(sums)
            if self._dtype != np.float64 and inputs.numbers is not None:
                self._bound += _weight(inputs.numbers)

        return counts, sums, apply


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

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """The mean after each row."""
        counts, sums, apply = self._follow(turns, inputs)
        if self._dtype != np.float64 and _greatest(sums) > _EXACT_INT:
            raise NotInColumnsError("an int that is no float")
        empty = counts == 0
        means = turns.in_row_order(sums / np.where(empty, 1, counts))
        mask = turns.in_row_order(empty) if empty.any() else None
        return Followed(normal(pa.array(means, mask=mask), "a mean"), apply)

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
        self._found = grown(self._found, count, self._worst)
        self._seen = grown(self._seen, count)

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
        self._found = as_array(filled, self._dtype, kind)
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

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """The extreme after each row."""
        slots = turns.slots
        before = self._seen[slots].astype(np.int64)
        seen = turns.counted(_sorted_flags(turns, inputs), before) > 0
        found = turns.spread(self._found[slots])
        if inputs.numbers is not None:
            better = np.minimum if self._least else np.maximum
            numbers = turns.sorted(inputs.filled(self._worst))
            found = turns.folded(better, numbers, self._found[slots])
        return _followed(self._found, self._seen, turns, found, seen)


class Ends(Accumulators):
    """The numbers that came first, or last."""

    def __init__(self, dtype: Any, *, first: bool) -> None:
        self._dtype = dtype
        self._first = first
        self._found = np.zeros(0, dtype)
        self._seen = np.zeros(0, np.bool_)

    def accepts(self, inputs: Inputs) -> bool:
        """Whether they are of the type of the others."""
        return inputs.null_only if inputs.numbers is None else inputs.dtype == self._dtype

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._found = grown(self._found, count)
        self._seen = grown(self._seen, count)

    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Keep what was there, or the newest; of one slot the one that is written last stays."""
        if inputs.numbers is None:
            return
        slots, numbers = inputs.with_slots(slots)
        if self._first:
            new = np.flatnonzero(~self._seen[slots])[::-1]
            slots, numbers = slots[new], numbers[new]
        self._found[slots] = numbers
        self._seen[slots] = True

    def results(self, slots: Slots) -> Array:
        """What was found; null where there was nothing."""
        seen = self._seen[slots]
        return pa.array(self._found[slots], mask=None if seen.all() else ~seen)

    def state(self, slots: Slots) -> Sequence[Any]:
        """What was found, or None."""
        pairs = zip(self._found[slots].tolist(), self._seen[slots].tolist(), strict=True)
        return [found if seen else None for found, seen in pairs]

    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take what was found."""
        kind = int if self._dtype == np.int64 else float
        filled = [kind(0) if each is None else each for each in accumulators]
        self._seen = np.array([each is not None for each in accumulators], np.bool_)
        self._found = as_array(filled, self._dtype, kind)
        if not np.isfinite(self._found).all():
            raise NotInColumnsError("NaN or infinity")

    def reset(self, slots: Slots) -> None:
        """Nothing seen."""
        self._seen[slots] = False

    def merge(self, left: Slots, right: Slots) -> None:
        """Take what the later one has, where that is wanted."""
        take = self._seen[right]
        if self._first:
            take &= ~self._seen[left]
        self._found[left[take]] = self._found[right[take]]
        self._seen[left] |= self._seen[right]

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """What is first or last after each row."""
        slots = turns.slots
        found, seen = turns.spread(self._found[slots]), turns.spread(self._seen[slots])
        if inputs.numbers is not None:
            valid = np.ones(len(found), np.bool_) if inputs.valid is None else inputs.valid
            flags, numbers = turns.sorted(valid), turns.sorted(inputs.numbers)
            places = turns.first(flags) if self._first else turns.newest(flags)
            taken = (places >= 0) & ~seen if self._first else places >= 0
            found = np.where(taken, numbers[places], found)
            seen = seen | (places >= 0)
        return _followed(self._found, self._seen, turns, found, seen)


class Variances(Accumulators):
    """Counts, means and squared distances, by the recurrence of `Variance`.

    Each row needs what the one before it in its slot has left, so the rows of a step are added in
    rounds: of each slot the first, then of each the second. Slots of many more rows than others
    would make rounds of few, so these are added one by one.

    Args:
        aggregate: What says how they are merged, and what they amount to.
    """

    def __init__(self, aggregate: Variance) -> None:
        self._aggregate = aggregate
        self._counts = np.zeros(0, np.int64)
        self._means = np.zeros(0, np.float64)
        self._squares = np.zeros(0, np.float64)

    def accepts(self, inputs: Inputs) -> bool:
        """Whether they are numbers."""
        return inputs.numbers is not None or inputs.null_only

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._counts = grown(self._counts, count)
        self._means = grown(self._means, count)
        self._squares = grown(self._squares, count)

    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Add in row order, one after the other in each slot."""
        if inputs.numbers is None:
            return
        slots, numbers = inputs.with_slots(slots)
        order = np.argsort(slots, kind="stable")
        slots, numbers = slots[order], numbers[order].astype(np.float64)
        heads = run_heads(slots)
        sizes = np.diff(np.append(heads, len(slots)))
        rounds = 0
        while len(heads) > _ROUND_MIN:
            self._add_once(slots[heads], numbers[heads + rounds])
            rounds += 1
            more = sizes > rounds
            heads, sizes = heads[more], sizes[more]
        for head, size in zip(heads.tolist(), sizes.tolist(), strict=True):
            self._add_each(int(slots[head]), numbers[head + rounds : head + size].tolist())

    def _add_once(self, slots: Slots, numbers: Numbers) -> None:
        """Add one number to each of some slots."""
        distances = numbers - self._means[slots]
        self._counts[slots] += 1
        means = self._means[slots] + distances / self._counts[slots]
        self._means[slots] = means
        self._squares[slots] += distances * (numbers - means)

    def _add_each(self, slot: int, numbers: list[float]) -> None:
        """Add numbers to one slot."""
        held = self._of(np.array([slot]))[0]
        self._aggregate.add_column([held], repeat(0, len(numbers)), numbers)
        self._counts[slot], self._means[slot], self._squares[slot] = held

    def _columns(self) -> tuple[Numbers, Numbers, Numbers]:
        return self._counts, self._means, self._squares

    def _of(self, slots: Slots) -> list[list[float]]:
        columns = (column[slots].tolist() for column in self._columns())
        return list(map(list, zip(*columns, strict=True)))

    def results(self, slots: Slots) -> Array:
        """What they amount to; null where there are too few."""
        results = self._aggregate.result_column(self._of(slots))
        return normal(pa.array(results, pa.float64()), "a variance")

    def state(self, slots: Slots) -> Sequence[Any]:
        """Count, mean and squares."""
        return self._of(slots)

    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take counts, means and squares."""
        columns = list(zip(*accumulators, strict=True)) or [(), (), ()]
        self._counts = as_array(columns[0], np.dtype(np.int64), int)
        self._means = as_array(columns[1], np.dtype(np.float64), float)
        self._squares = as_array(columns[2], np.dtype(np.float64), float)

    def reset(self, slots: Slots) -> None:
        """Nothing added."""
        for column in self._columns():
            column[slots] = 0

    def merge(self, left: Slots, right: Slots) -> None:
        """Let the aggregate merge them: they are few."""
        pairs = zip(left.tolist(), self._of(left), self._of(right), strict=True)
        for slot, mine, other in pairs:
            held = self._aggregate.merge(mine, other)
            self._counts[slot], self._means[slot], self._squares[slot] = held

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """What they amount to after each row."""
        slots = turns.slots
        then = Variances(self._aggregate)  # with a slot for each row, sorted
        then._counts, then._means, then._squares = (
            turns.spread(column[slots]) for column in self._columns()
        )
        if inputs.numbers is not None:
            then._add_in_turn(turns, inputs)

        def apply() -> None:
            for column, after in zip(self._columns(), then._columns(), strict=True):
                column[slots] = turns.ends(after)

        every = turns.in_row_order(np.arange(len(then._counts), dtype=np.int32))
        return Followed(then.results(every), apply)

    def _add_in_turn(self, turns: Turns, inputs: Inputs) -> None:
        """Let each slot be the one before it, if that is a row of the same, with a number more."""
        assert inputs.numbers is not None
        numbers = turns.sorted(inputs.numbers).astype(np.float64)
        flags = _sorted_flags(turns, inputs)
        valid = np.ones(len(numbers), np.bool_) if flags is None else flags
        at, tails, back = turns.heads, turns.tails, 0
        while len(at) > _ROUND_MIN:
            for column in self._columns():
                column[at] = column[at - back]
            there = at[valid[at]].astype(np.int32)
            self._add_once(there, numbers[there])
            more = at < tails
            at, tails, back = at[more] + 1, tails[more], 1
        for head, tail in zip(at.tolist(), tails.tolist(), strict=True):
            (held,) = self._of(np.array([head - back], np.int32))
            part, rows = slice(head, tail + 1), []
            for number, there in zip(numbers[part].tolist(), valid[part].tolist(), strict=True):
                if there:
                    self._aggregate.add(held, number)
                rows.append(tuple(held))
            for column, after in zip(self._columns(), zip(*rows, strict=True), strict=True):
                column[part] = after


_OF_NUMBERS: Final[Mapping[type, Callable[[Any, Any], Accumulators]]] = {
    Sum: lambda _, dtype: Sums(dtype),
    Mean: lambda _, dtype: Means(dtype),
    Min: lambda _, dtype: Extremes(dtype, least=True),
    Max: lambda _, dtype: Extremes(dtype, least=False),
    First: lambda _, dtype: Ends(dtype, first=True),
    Last: lambda _, dtype: Ends(dtype, first=False),
    Variance: lambda aggregate, _: Variances(aggregate),
    StandardDeviation: lambda aggregate, _: Variances(aggregate),
}
"""By the class of the aggregate itself: one derived from it may compute something else."""


def _sorted_flags(turns: Turns, inputs: Inputs) -> Mask | None:
    """Which rows have a value, sorted; None: all."""
    return None if inputs.valid is None else turns.sorted(inputs.valid)


def _followed(
    found: Numbers, seen: Mask, turns: Turns, found_then: Numbers, seen_then: Mask
) -> Followed:
    """What was found after each row, null where nothing was seen; both to be kept."""

    def apply() -> None:
        found[turns.slots], seen[turns.slots] = turns.ends(found_then), turns.ends(seen_then)

    mask = None if seen_then.all() else ~turns.in_row_order(seen_then)
    return Followed(normal(pa.array(turns.in_row_order(found_then), mask=mask), "a value"), apply)


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
