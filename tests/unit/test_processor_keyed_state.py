"""State by key, against a dict, over restarts at any moment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from millstream import DataError, UsageError
from millstream.processor.keyed_state import KeyedState, restore_states
from millstream.processor.row_codec import RowCodec
from millstream.processor.state import StateEntry, StateRecords, decode_entry

KEYS = ["a", "b", 1, ("a", 2), b"\x00"]


def entries(*pieces: StateRecords) -> Iterator[StateEntry]:
    for keys, values in pieces:
        for key, value in zip(keys, values, strict=True):
            yield decode_entry(key, value)


def restored(ttl_ms: int | None, *pieces: StateRecords) -> KeyedState[int]:
    state = KeyedState[int]("op", ttl_ms=ttl_ms)
    state.restore(entries(*pieces))
    return state


puts = st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 9))
pops = st.tuples(st.just("pop"), st.sampled_from(KEYS), st.just(0))
edits = st.tuples(st.just("edit"), st.lists(st.sampled_from(KEYS)), st.integers(0, 9))
other = st.sampled_from([("commit", "", 0), ("begin_sweep", "", 0), ("commit", "", 1)])


class Pair:
    """A state and the dict it must be like, with the log of the state."""

    def __init__(self) -> None:
        self.state = KeyedState[int]("op")
        self.model: dict[object, int] = {}
        self.log: list[StateRecords] = []
        self.swept: list[StateRecords] | None = None
        self.sweep: Iterator[StateRecords] = iter(())

    def put(self, key: object, value: int) -> None:
        self.state.put(key, value)
        self.model[key] = value

    def pop(self, key: object, _: int) -> None:
        assert self.model.pop(key, None) == self.state.pop(key)

    def edit(self, keys: Sequence[object], value: int) -> None:
        cells = self.state.edit(keys)
        for each in keys:
            if value < 3:
                cells.pop(each, None)
                self.model.pop(each, None)
            else:
                self.model[each] = cells[each] = cells.get(each, 0) + value

    def begin_sweep(self, *_: object) -> None:
        self.log.append(self.state.changes())
        self.sweep, self.swept = self.state.sweep(), []

    def commit(self, _: object, pieces: int) -> None:
        records = self.state.changes()
        self.log.append(records)
        if self.swept is not None:
            self.swept += [records, *itertools.islice(self.sweep, pieces)]
        assert self.model == dict(restored(None, *self.log).view(KEYS))

    def finish(self) -> None:
        self.commit(None, 1_000)
        if self.swept is not None:
            assert self.model == dict(restored(None, *self.swept).view(KEYS))


@given(st.lists(puts | pops | edits | other, max_size=40))
def test_what_is_restored_is_what_a_dict_has(steps: Sequence[tuple[str, object, int]]) -> None:
    pair = Pair()
    for step, key, value in steps:
        getattr(pair, step)(key, value)
        assert {key: pair.state.get(key) for key in pair.model} == pair.model
        assert len(pair.model) == len(pair.state)
    pair.finish()


timed = st.tuples(st.sampled_from(KEYS), st.integers(0, 30), st.booleans())


@settings(max_examples=200)
@given(st.lists(timed, max_size=30), st.integers(1, 10), st.lists(st.booleans(), max_size=30))
def test_every_run_forgets_at_the_same_row(
    rows: Sequence[tuple[object, int, bool]], ttl_ms: int, restarts: Sequence[bool]
) -> None:
    state = KeyedState[int]("op", ttl_ms=ttl_ms)
    log: list[StateRecords] = []
    times: dict[object, int] = {}
    level = 0
    for number, (key, time, removed) in enumerate(rows):
        known = key in times and times[key] + ttl_ms > level
        assert known == (state.get(key, level) is not None)
        if not known:
            times.pop(key, None)
            state.pop(key)
        if removed:
            times.pop(key, None)
            state.pop(key)
        else:
            times[key] = max(times.get(key, time), time)
            state.put(key, number, time)
        level = max(level, time - 3)
        if number < len(restarts) and restarts[number]:
            over = sorted(end + ttl_ms for end in times.values() if end + ttl_ms <= level)
            gone = state.expire(level)
            assert over == [times.pop(key) + ttl_ms for key in gone]
            log.append(state.changes())
            state = restored(ttl_ms, *log)
        assert set(times) == {key for key in KEYS if key in state}


def test_a_value_is_over_when_w_reaches_its_newest_time_and_the_ttl() -> None:
    state = KeyedState[str]("op", ttl_ms=10)
    state.put("a", "new", 100)
    state.put("a", "newer, of an older row", 95)
    assert state.get("a", 109) == "newer, of an older row"
    assert state.expire(109) == []
    assert state.get("a", 110) is None
    assert state.expire(110) == ["a"]
    assert len(state) == 0


class CountedWaits(KeyedState[int]):
    """Counts how often a key was told to wait."""

    waits = 0

    def _wait(self, key: object, due: int) -> None:
        self.waits += 1
        super()._wait(key, due)


def test_keys_that_come_and_go_long_before_they_are_over_fill_no_memory() -> None:
    state = KeyedState[int]("op", ttl_ms=1_000_000)
    for time_ms in range(20_000):
        state.put(f"k{time_ms % 3}", 1, time_ms)
        state.pop(f"k{time_ms % 3}")
    assert len(state._due) < 2_000  # in proportion to what is there


def test_forgetting_does_not_look_at_what_stays_and_what_is_taken_back_is_over_in_time() -> None:
    state = CountedWaits("op", ttl_ms=10)
    for key in range(5_000):
        state.put(key, key, key)
    log = list(entries(state.changes()))
    before = state.waits
    for key in range(500):
        state.forget([key])
    assert state.waits == before
    state.forget(range(500, 4_000))
    assert state.waits < before + 3_000
    state.take({path[0]: value for path, value in log[:4_000]})
    assert state.expire(10 + 4_998) == list(range(4_999))
    assert len(state) == 1


def test_an_older_row_after_a_removal_lives_from_its_own_time() -> None:
    state = KeyedState[str]("op", ttl_ms=10)
    state.put("a", "x", 100)
    state.pop("a")
    state.put("a", "y", 50)
    state.put("b", "z", 50)
    assert state.expire(60) == ["a", "b"]
    assert state.expire(1000) == []


def test_what_comes_and_goes_between_two_epochs_leaves_no_record() -> None:
    state = KeyedState[int]("op")
    state.put("a", 1)
    state.pop("a")
    assert state.changes().keys == []
    state.put("a", 1)
    state.changes()
    state.pop("a")
    cells = state.edit(["a"])
    cells["a"] = 2
    del cells["a"]
    assert state.changes().values == [None], "the record written before is about nothing now"


def test_states_of_one_operator_share_its_records() -> None:
    left = KeyedState[int]("op", prefix=("l",))
    right = KeyedState[int]("op", prefix=("r",))
    left.put("a", 1)
    right.put("a", 2)
    again = [KeyedState[int]("op", prefix=(side,)) for side in "lr"]
    restore_states(again, entries(left.changes(), right.changes()))
    assert [1, 2] == [state.get("a") for state in again]


def test_rows_are_packed_by_the_codec() -> None:
    class Seen(msgspec.Struct):
        n: int

    state = KeyedState[Seen]("op", RowCodec(Seen, "state of op"))
    state.put("a", Seen(3))
    again = KeyedState[Seen]("op", RowCodec(Seen, "state of op"))
    again.restore(entries(state.changes()))
    assert again.get("a") == Seen(3)


def test_a_value_that_cannot_be_kept_names_operator_and_value() -> None:
    state = KeyedState[object]("orders.reduce", RowCodec(None, "rows of orders.reduce"))
    state.put("a", {1, 2})
    with pytest.raises(UsageError, match=r"orders\.reduce: \{1, 2\} cannot be kept"):
        state.changes()


@pytest.mark.parametrize(
    "entry",
    [
        StateEntry((1, "a"), [1, 2]),
        StateEntry(("a",), [1]),
        StateEntry(("a",), [1, "soon"]),
        StateEntry(("a",), [1, True]),
        StateEntry(("a",), [1, 2**63]),
        StateEntry(("a",), []),
        StateEntry(("a", "b"), None),
    ],
)
def test_foreign_records_are_a_data_error(entry: StateEntry) -> None:
    with pytest.raises(DataError, match="not the state of 'op'"):
        KeyedState[int]("op", ttl_ms=5).restore([entry])


def test_keys_are_ordered_by_their_bytes() -> None:
    state = KeyedState[int]("op")
    for key in ["b", 10, "a", 9]:
        state.put(key, 0)
    assert state.ordered() == [10, 9, "a", "b"]
