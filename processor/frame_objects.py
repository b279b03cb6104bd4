"""Accumulators that are objects, as aggregates have them: of distinct, top_k, collect, and others.

Of the rows of a step most change nothing of what such an aggregate keeps: a value that its key has
had, a number that is not among the greatest. Which rows of a step could is found with array
operations, by the rows of the step alone; these are made objects and added in their order, by the
aggregate itself. So what it keeps is what rows would have left there, in the same order.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import compress
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .aggregate import Aggregate
from .errors import failed_index
from .frame_accumulators import Accumulators, AddError, Followed, Inputs, Slots, as_array
from .frame_errors import NotInColumnsError
from .frame_keys import run_heads, sorted_by_key
from .frame_turns import Turns
from .frames import Array, Ints, Mask, concatenated, plain_column
from .numeric_aggregates import Max, Min
from .quantile_aggregate import Quantile
from .value_aggregates import Collect, Distinct, First, FirstBy, Last, LastBy, TopK, TopKBy

Pick: TypeAlias = Callable[[Any, Slots, Array], Ints]
"""Given an aggregate, the slots of rows and what they are compared by, which has no nulls: the
places, in ascending order, of the rows that might change an accumulator."""

_FEW: Final = 64
"""So many rows are added faster than looked through."""
_CODES_MAX: Final = 1 << 62

_ZERO: Final = pa.scalar(0.0, pa.float64())
"""With its type, for which Arrow would look on the disk each time."""


class Objects(Accumulators):
    """The accumulators of any aggregate, as it has them; it is asked about each row.

    Args:
        aggregate: Whose.
        pick: Finds the rows to ask it about; None for all.
    """

    def __init__(self, aggregate: Aggregate[Any, Any, Any], pick: Pick | None = None) -> None:
        self._aggregate = aggregate
        self._pick = pick
        self._held: list[Any] = []

    def accepts(self, inputs: Inputs) -> bool:
        """Always."""
        return True

    def grow(self, count: int) -> None:
        """See `Accumulators.grow`."""
        self._held += [self._aggregate.init() for _ in range(count - len(self._held))]

    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Let the aggregate add them, or those of them that count."""
        if self._pick is None or len(slots) <= _FEW:
            self._add_all(slots, inputs)
            return
        try:
            self._add_some(slots, inputs, self._pick)
        except Exception as error:
            # Those left out would raise as well: of all of them, the first is to blame.
            self._add_all(slots, inputs)
            raise AddError(0) from error

    def _add_all(self, slots: Slots, inputs: Inputs) -> None:
        values: Sequence[Any] = inputs.as_list()
        remaining = iter(values)
        try:
            self._aggregate.add_column(self._held, slots.tolist(), remaining)
        except Exception as error:
            raise AddError(failed_index(values, remaining)) from error

    def _add_some(self, slots: Slots, inputs: Inputs, pick: Pick) -> None:
        """Add the rows that count."""
        there = None if inputs.valid is None else np.flatnonzero(inputs.valid)
        column, order = inputs.columns()
        compared: Array = column if order is None else order
        if there is not None:
            slots, compared = slots[there], compared.take(pa.array(there))
        if not len(slots):
            return
        places = pick(self._aggregate, slots, compared)
        values = inputs.as_list(places if there is None else there[places])
        self._aggregate.add_column(self._held, slots[places].tolist(), values)

    def results(self, slots: Slots) -> Array:
        """What the aggregate says, if that is a column."""
        try:
            results = self._aggregate.result_column(list(self.state(slots)))
        except Exception as error:  # rows find out which it is, and raise again
            raise NotInColumnsError("a result that raises") from error
        return plain_column(results)

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

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """What the aggregate says after each row, of copies: it may change what it is given."""
        slots = turns.in_row_order(turns.spread(turns.slots)).tolist()
        held = {slot: deepcopy(self._held[slot]) for slot in turns.slots.tolist()}
        add, result = self._aggregate.add, self._aggregate.result
        results: list[Any] = []
        try:
            for slot, value in zip(slots, inputs.as_list(), strict=True):
                held[slot] = after = add(held[slot], value)
                results.append(result(after))
        except Exception as error:  # rows find out which it is, and raise again
            raise NotInColumnsError("an aggregate that raises") from error

        def apply() -> None:
            for slot, after in held.items():
                self._held[slot] = after

        return Followed(plain_column(results), apply)


class DistinctValues(Objects):
    """Those of `distinct`, which can also be followed."""

    def __init__(self, aggregate: Distinct) -> None:
        super().__init__(aggregate, _new)

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """How many there are after each row."""
        column, held = inputs.columns()[0], self._held
        if column is not None and pa.types.is_timestamp(column.type):
            raise NotInColumnsError("times, which state cannot keep")
        slots = turns.in_row_order(turns.spread(turns.slots))
        places, _, values = _values_once(slots, inputs)
        pairs = list(zip(slots[places].tolist(), values, strict=True))
        new = [value not in held[slot] for slot, value in pairs]
        flags = np.zeros(len(slots), np.bool_)
        flags[places] = new
        before = np.array([len(held[slot]) for slot in turns.slots.tolist()], np.int64)
        counts = turns.counted(turns.sorted(flags), before)

        def apply() -> None:
            for slot, value in compress(pairs, new):
                held[slot][value] = None

        return Followed(pa.array(turns.in_row_order(counts)), apply)


class Kept(Objects):
    """Those of the first or last value, by arrival or by another field, which can be followed."""

    def __init__(self, aggregate: Aggregate[Any, Any, Any], pick: Pick) -> None:
        super().__init__(aggregate, pick)
        self._first = isinstance(aggregate, First | FirstBy)
        self._is_pair = isinstance(aggregate, FirstBy | LastBy)

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """The value that is kept after each row."""
        column, order = inputs.columns()
        assert column is not None
        held = [self._held[slot] for slot in turns.slots.tolist()]
        values = [each[1] if each else None for each in held] if self._is_pair else held
        there = np.array([each is not None for each in values], np.bool_)
        flags = np.ones(len(column), np.bool_) if inputs.valid is None else inputs.valid
        flags = turns.sorted(flags)
        if self._is_pair:
            places = turns.newest(self._better(turns, flags, order, held))
        elif self._first:
            places = np.where(turns.spread(there), -1, turns.first(flags))
        else:
            places = turns.newest(flags)
        if pa.types.is_timestamp(column.type):
            raise NotInColumnsError("times, which state cannot keep")
        known = concatenated([column, plain_column(values)], "what is kept")
        rows = turns.sorted(np.arange(len(column)))
        before = np.where(there, len(column) + np.arange(len(there)), -1)
        found = np.where(places >= 0, rows[places], turns.spread(before))
        chosen = turns.in_row_order(found)
        last = turns.ends(np.where(places >= 0, rows[places], -1))

        def apply() -> None:
            changed = last >= 0
            added = inputs.as_list(last[changed])
            kept = map(list, added) if self._is_pair else added
            for slot, value in zip(turns.slots[changed].tolist(), kept, strict=True):
                self._held[slot] = value

        return Followed(known.take(pa.array(chosen, mask=chosen < 0)), apply)

    def _better(self, turns: Turns, flags: Mask, order: Array, held: Sequence[Any]) -> Any:
        """Which rows, sorted, are kept by their order, at least until the next one is.

        Raises:
            NotInColumnsError: The order is no number, or the kept ones are of another type.
        """
        if not (pa.types.is_int64(order.type) or pa.types.is_float64(order.type)):
            raise NotInColumnsError("an order that is no number")
        kind = int if pa.types.is_int64(order.type) else float
        limits = np.iinfo(np.int64)
        worst: Any = limits.max if self._first else limits.min
        if kind is float:
            worst = np.inf if self._first else -np.inf
        numbers = order.fill_null(0).to_numpy(zero_copy_only=False)
        before = as_array([each[0] if each else kind(worst) for each in held], numbers.dtype, kind)
        numbers = np.where(flags, turns.sorted(numbers), worst)
        best = turns.folded(np.minimum if self._first else np.maximum, numbers, before)
        if not self._first:
            return flags & (numbers == best)
        less = np.empty(len(flags), np.bool_)
        less[1:] = numbers[1:] < best[:-1]
        less[turns.heads] = numbers[turns.heads] < before
        none = turns.spread(np.array([not each for each in held], np.bool_))
        first = turns.first(flags) == np.arange(len(flags))
        return flags & (less | (none & first))


class Quantiles(Objects):
    """Those of quantiles: the buckets of values are found together, and counted by slot."""

    def __init__(self, aggregate: Quantile) -> None:
        super().__init__(aggregate, _new)
        self._mapping = aggregate.mapping

    def _add_some(self, slots: Slots, inputs: Inputs, pick: Pick) -> None:
        del pick
        there = np.arange(len(slots)) if inputs.valid is None else np.flatnonzero(inputs.valid)
        if not len(there):
            return
        column: Array = inputs.at(there).columns()[0]
        if pa.types.is_string(column.type) or pa.types.is_timestamp(column.type):
            raise TypeError("no numbers")
        slots = slots[there]
        signs, buckets = self._places(_comparable(column).astype(np.float64))
        least = int(buckets.min())
        codes = (slots.astype(np.int64) * 3 + signs) * (int(buckets.max()) - least + 1)
        places, counts = _first_of_each(codes + (buckets - least))
        columns = (slots[places], signs[places], buckets[places], counts)
        for slot, sign, bucket, count in zip(*(each.tolist() for each in columns), strict=True):
            held = self._held[slot][sign]
            held[bucket] = held.get(bucket, 0) + count

    def _places(self, values: npt.NDArray[np.float64]) -> tuple[Ints, Ints]:
        """Where `Quantile` counts values: in which of its dicts, and in which bucket there.

        The operations are those of the mapping's `key`, one by one, so the last bit is the same.
        """
        mapping, least = self._mapping, self._mapping.min_possible
        signs = np.where(values > least, 0, np.where(values < -least, 1, 2))
        mantissas, exponents = np.frexp(np.abs(values))
        part = 2 * mantissas - 1
        logarithms = ((mapping.A * part + mapping.B) * part + mapping.C) * part + (exponents - 1)
        keys = np.ceil(logarithms * mapping._multiplier)  # noqa: SLF001 - see above
        return signs, np.where(signs == 2, 0, keys).astype(np.int64)


def _values_once(slots: Slots, inputs: Inputs) -> tuple[Ints, Ints, list[Any]]:
    """Of each slot its different values: the rows where they come first, how often, and they."""
    there = np.arange(len(slots)) if inputs.valid is None else np.flatnonzero(inputs.valid)
    if not len(there):
        return there, there, []
    given = inputs.at(there)
    places, counts = _first_of_each(_codes(slots[there], given.columns()[0]))
    return there[places], counts, given.as_list(places)


def objects_of(aggregate: Aggregate[Any, Any, Any]) -> Objects:
    """Accumulators of an aggregate for which no arrays will do."""
    if type(aggregate) is Quantile:
        return Quantiles(aggregate)
    if type(aggregate) is Distinct:
        return DistinctValues(aggregate)
    pick = _PICKS.get(type(aggregate))
    if pick is not None and isinstance(aggregate, First | Last | FirstBy | LastBy):
        return Kept(aggregate, pick)
    return Objects(aggregate, pick)


# --- which rows count ----------------------------------------------------------------------------


def _new(_: Any, slots: Slots, values: Array) -> Ints:
    """Of each slot the first of equal values."""
    return _first_of_each(_codes(slots, values))[0]


def _first(_: Any, slots: Slots, __: Array) -> Ints:
    order, groups = sorted_by_key(slots)
    return np.sort(order[run_heads(groups)])


def _last(_: Any, slots: Slots, __: Array) -> Ints:
    order, groups = sorted_by_key(slots)
    return np.sort(order[_tails(groups)])


def _least(_: Any, slots: Slots, values: Array) -> Ints:
    return _extreme(slots, values, np.minimum, run_heads)


def _greatest(_: Any, slots: Slots, values: Array) -> Ints:
    return _extreme(slots, values, np.maximum, run_heads)


def _last_greatest(_: Any, slots: Slots, values: Array) -> Ints:
    return _extreme(slots, values, np.maximum, _tails)


def _extreme(slots: Slots, values: Array, better: Any, one_of: Callable[[Ints], Ints]) -> Ints:
    """Of each slot the best value; of equal ones the first or the last."""
    order, groups = sorted_by_key(slots)
    numbers, heads = _comparable(values)[order], run_heads(groups)
    best = better.reduceat(numbers, heads)
    places = np.flatnonzero(numbers == np.repeat(best, _sizes(heads, groups)))
    return np.sort(order[places[one_of(groups[places])]])


def _collected(aggregate: Collect, slots: Slots, _: Array) -> Ints:
    """The first rows of each slot, as many as may be collected."""
    order, groups = sorted_by_key(slots)
    heads = run_heads(groups)
    place = np.arange(len(groups)) - np.repeat(heads, _sizes(heads, groups))
    return np.sort(order[place < aggregate.limit])


def _top(aggregate: TopK | TopKBy, slots: Slots, values: Array) -> Ints:
    """Of slots with many rows those that are no less than the k-th greatest of them."""
    k = aggregate.k
    order, groups = sorted_by_key(slots)
    numbers, heads = _comparable(values)[order], run_heads(groups)
    sizes = _sizes(heads, groups)
    chosen = np.ones(len(groups), np.bool_)
    for group in np.flatnonzero(sizes > max(4 * k, _FEW)).tolist():
        part = slice(heads[group], heads[group] + sizes[group])
        least = np.partition(numbers[part], sizes[group] - k)[sizes[group] - k]
        chosen[part] = numbers[part] >= least
    return np.sort(order[chosen])


def _codes(slots: Slots, values: Array) -> Ints:
    """A number for each row that says slot and value."""
    if pa.types.is_float64(values.type):
        values = pc.add(values, _ZERO)  # -0.0 is 0.0
    encoded = pc.dictionary_encode(values)
    codes: Ints = slots.astype(np.int64) * len(encoded.dictionary) + encoded.indices.to_numpy()
    return codes


def _first_of_each(codes: Ints) -> tuple[Ints, Ints]:
    """Places of the first of equal codes, in ascending order, and how many are equal to each."""
    if int(codes.max()) >= _CODES_MAX >> len(codes).bit_length():
        _, codes = np.unique(codes, return_inverse=True)  # too large to be sorted with their places
    order, groups = sorted_by_key(codes)
    heads = run_heads(groups)
    firsts = order[heads]
    ascending = np.argsort(firsts)
    return firsts[ascending], _sizes(heads, groups)[ascending]


def _comparable(values: Array) -> npt.NDArray[Any]:
    """Numbers in the order of the values, equal ones for equal values."""
    t, kind = pa.types, values.type
    if t.is_timestamp(kind):
        values = values.view(pa.int64())
    elif t.is_string(kind):
        encoded = pc.dictionary_encode(values)
        rank = np.empty(len(encoded.dictionary), np.int64)
        rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
        ranks: Ints = rank[encoded.indices.to_numpy()]
        return ranks
    numbers: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers.astype(np.int8) if t.is_boolean(kind) else numbers


def _tails(groups: Ints) -> Ints:
    """Where their last ones are."""
    return np.flatnonzero(np.concatenate([groups[1:] != groups[:-1], [True]]))


def _sizes(heads: Ints, groups: Ints) -> Ints:
    return np.diff(np.append(heads, len(groups)))


_PICKS: Final[Mapping[type, Pick]] = {
    First: _first,
    Last: _last,
    FirstBy: _least,
    LastBy: _last_greatest,
    Min: _least,
    Max: _greatest,
    Collect: _collected,
    TopK: _top,
    TopKBy: _top,
}
"""By the class of the aggregate itself: one derived from it may look at other rows."""
