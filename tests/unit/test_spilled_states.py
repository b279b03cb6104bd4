"""States that spill, together: when memory is looked through for what may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream import CacheDatabase, SystemClock
from millstream.processor.spilled_state import SpilledState
from millstream.processor.spilled_states import SpilledStates

if TYPE_CHECKING:
    import pytest


def test_memory_is_looked_through_only_where_something_may_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where most must stay, what goes is not worth looking at all there is."""
    turns = list[str]()
    monkeypatch.setattr(SpilledState, "turn", lambda state: turns.append(state.name))
    with SpilledStates(CacheDatabase("", clock=SystemClock()), 20_000) as states:
        state = states.make("numbers")
        for key in map(str, range(100)):
            state.put(key, 1)
        states.trim()
        assert turns == []
        states.changing()
        state.changes()
        states.trim()
        assert turns == []
        states.committed({})
        states.trim()
        assert turns == ["numbers"]


def test_keys_that_have_come_are_not_counted_among_those_that_are_not_there() -> None:
    with SpilledStates(CacheDatabase("", clock=SystemClock()), 20_000) as states:
        one, two = states.make("edited"), states.make("put")
        assert isinstance(one, SpilledState)
        assert isinstance(two, SpilledState)
        one.edit(["a", "b"], 0)
        for key in "ab":
            assert two.get(key) is None
            two.put(key, 0)
        two.get("c")
        assert (one.young_bytes, two.young_bytes) == (2 * one._entry_bytes, 3 * two._entry_bytes)
