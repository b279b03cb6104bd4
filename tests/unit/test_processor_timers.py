"""What waits for time, of many keys: what each call costs, and that a model agrees."""

from __future__ import annotations

from random import Random

import pytest

from millstream.processor import Pipeline
from millstream.processor.asof_join import AsofJoinOperator
from millstream.processor.join_nodes import AsofJoinNode
from millstream.processor.key_groups import Wake
from millstream.processor.process import Timer
from millstream.processor.state import StateEntry, decode_content, decode_paths
from millstream.processor.timers import Due, Timers


class Counted(str):
    """A key that counts how often it is looked at."""

    __slots__ = ()
    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return str.__eq__(self, other)


def test_keys_that_leave_cost_what_they_have_and_not_what_the_others_have() -> None:
    timers = Timers("p")
    for number in range(1_000):
        timers.set(Timer(number), Counted(f"k{number}"), by_row=True)
    timers.forget({Counted("k0")})  # finds out which timers each key has
    leaving = {Counted("k7")}
    Counted.looks = 0
    assert {"k7": Wake(7, 7)} == timers.wakes(leaving)
    timers.forget(leaving)
    assert Counted.looks < 100
    assert len(timers) == 998
    assert timers.last_by_row_ms() == 999


def test_the_latest_timer_of_a_row_is_known_without_a_look_at_all() -> None:
    timers = Timers("p")
    for number in range(1_000):
        timers.set(Timer(number), Counted(f"k{number}"), by_row=True)
    Counted.looks = 0
    assert timers.last_by_row_ms() == 999
    assert timers.pop_due("event", 10) is not None
    assert timers.last_by_row_ms() == 999
    assert Counted.looks < 100


def test_a_timer_that_every_row_moves_on_leaves_nothing_behind() -> None:
    timers = Timers("p")
    for number in range(10_000):
        timers.cancel(Timer(number + 1_000_000), "k")
        timers.set(Timer(number + 1_000_001), "k", by_row=True)
    assert len(timers) == 1
    assert len(timers._queues["event"]) < 2_000


def test_left_rows_that_leave_cost_what_their_keys_have() -> None:
    pipeline = Pipeline("p")
    left, right = (pipeline.source(name, time="t").key_by("k") for name in ("left", "right"))
    left.join_asof(right).to("out")
    (node,) = pipeline.plan.stateful()
    assert isinstance(node, AsofJoinNode)
    operator = AsofJoinOperator(node, 0)
    operator.take(
        [
            StateEntry(("waiting", time + 1, Counted(f"k{time}"), time), [time, {}])
            for time in range(1_000)
        ]
    )
    operator.forget([Counted("k0")])  # finds out what each key waits for
    leaving = [Counted("k7")]
    Counted.looks = 0
    assert [Wake(8, 8)] == list(operator.wakes(leaving))
    operator.forget(leaving)
    assert operator.live_count == 998
    assert Counted.looks < 100


class Model:
    """What should wait: looked through at every question."""

    def __init__(self) -> None:
        self.waiting: dict[Due, bool | None] = {}

    def due(self, clock: str, until_ms: int) -> Due | None:
        found = [
            (timer.at_ms, str(key), timer.name, (timer, key))
            for (timer, key), by_row in self.waiting.items()
            if by_row is not None and timer.clock == clock and timer.at_ms <= until_ms
        ]
        return min(found)[-1] if found else None

    def last(self) -> int | None:
        of_rows = [due[0] for due, by_row in self.waiting.items() if by_row]
        return max((each.at_ms for each in of_rows if each.clock == "event"), default=None)

    def wake(self, key: object) -> Wake | None:
        mine = [(each[0], row) for each, row in self.waiting.items() if each[1] == key]
        if not mine:
            return None
        event = [timer.at_ms for timer, _ in mine if timer.clock == "event"]
        by_rows = [timer.at_ms for timer, row in mine if row and timer.clock == "event"]
        wall = [timer.at_ms for timer, _ in mine if timer.clock == "wall"]
        return Wake(min(event, default=None), max(by_rows, default=None), min(wall, default=None))


class Both:
    """Timers and their model, of which the same is asked; keys leave and come back in between."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.timers, self.model = Timers("p"), Model()
        self.state: dict[Due, StateEntry] = {}
        self.away: set[str] = set()

    def set(self, timer: Timer, key: str) -> None:
        by_row = self.random.random() < 0.5
        self.timers.set(timer, key, by_row=by_row)
        self.model.waiting.setdefault((timer, key), by_row)

    def postpone(self, timer: Timer, key: str) -> None:
        self.timers.postpone(timer, key)
        self.model.waiting.setdefault((timer, key), None)

    def cancel(self, timer: Timer, key: str) -> None:
        self.timers.cancel(timer, key)
        self.model.waiting.pop((timer, key), None)

    def release(self, timer: Timer, _: str) -> None:
        self.bring(*self.away)
        self.timers.release(timer.clock)
        for due, by_row in self.model.waiting.items():
            if by_row is None and due[0].clock == timer.clock:
                self.model.waiting[due] = False

    def pop(self, timer: Timer, _: str) -> None:
        self.bring(*self.away)
        due = self.model.due(timer.clock, timer.at_ms)
        assert due == self.timers.pop_due(timer.clock, timer.at_ms)
        if due is not None:
            del self.model.waiting[due]

    def leave(self, _: Timer, key: str) -> None:
        records = self.timers.changes()
        for path, value in zip(decode_paths(records.keys), records.values, strict=True):
            _, clock, at_ms, name, _ = path
            due = Timer(at_ms, name, clock), path[-1]
            self.state.pop(due, None)
            if value is not None:
                self.state[due] = StateEntry(path, decode_content(value))
        wake = self.model.wake(key)
        assert ({} if wake is None else {key: wake}) == self.timers.wakes({key})
        if key not in self.timers.changed():
            self.timers.forget({key})
            self.away.add(key)

    def bring(self, *keys: str) -> None:
        for key in self.away.intersection(keys):
            self.timers.take([entry for due, entry in self.state.items() if due[1] == key])
            self.away.discard(key)

    def compare(self) -> None:
        here = {due: row for due, row in self.model.waiting.items() if due[1] not in self.away}
        assert here == self.timers._waiting
        assert self.away or self.model.last() == self.timers.last_by_row_ms()


@pytest.mark.parametrize("seed", range(20))
def test_they_wait_as_a_model_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.processor.timers._PASSED_OVER", 3)
    both = Both(seed)
    random = both.random
    does = [both.set, both.set, both.postpone, both.cancel, both.release, both.pop, both.leave]
    for _ in range(300):
        clock = random.choice(["event", "wall"])
        timer = Timer(random.randrange(-5, 30), random.choice("xy"), clock)
        key = random.choice("abcd")
        both.bring(key)
        random.choice(does)(timer, key)
        both.compare()
