"""Groups that spill: what the file is given of them, and what it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pipeline_runs import Run

from millstream import FencedError
from millstream.processor import Context, Pipeline, Row, Timer
from millstream.processor.spill_tables import GroupColumns
from millstream.processor.spilled_groups import SpilledGroups
from millstream.processor.stored_keys import stored_key
from millstream.processor.testkit import as_batches


def count(context: Context[str, int], _row: dict[str, Any]) -> None:
    context.state += 1
    context.set_timer(context.time_ms + 1_000)


def tell(context: Context[str, int], _timer: Timer) -> Iterator[int]:
    yield context.state


def timers(cache_bytes: int) -> Run:
    pipeline = Pipeline("p", state="sqlite")
    source = pipeline.source("in", time="t").key_by("k")
    source.process(count, state=int, on_timer=tell).to("out")
    return Run(pipeline, cache_bytes=cache_bytes)


def step(run: Run, keys: str, time: int) -> None:
    """Some rows of one time, committed."""
    rows = [Row({"k": key, "t": time}, timestamp_ms=time) for key in keys]
    for batches in as_batches({"in": rows}, None):
        run.topology.process(batches)
    run.commit()


def spilled(run: Run) -> SpilledGroups:
    (operator,) = run.topology.stateful.values()
    assert isinstance(operator, SpilledGroups)
    return operator


def rows_of(run: Run) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in spilled(run).table.after((b"", b""), 100)]


def test_the_file_gets_nothing_of_groups_that_memory_has_room_for() -> None:
    """With 1,000 bytes for what changed, each of these commits was written."""
    run = timers(8_000)
    for time in range(50):
        step(run, "ab", 100 * time)

    assert rows_of(run) == []
    assert spilled(run).held_count == 2


def test_a_group_that_only_came_back_is_not_written_again() -> None:
    run = timers(500)
    for time, key in enumerate("abcd"):
        step(run, key, time)
    group = spilled(run)
    written = list[bytes]()
    replace = group.table.replace

    def note(keys: Sequence[bytes], rows: Sequence[GroupColumns]) -> None:
        written.extend(key for key, *_ in rows)
        replace(keys, rows)

    group.table.replace = note  # type: ignore[method-assign]
    for key in "ab":
        group._bring([key])
        group.turn()
        group.turn()

    assert rows_of(run)
    assert not {stored_key("a"), stored_key("b")} & set(written)
    step(run, "a", 5)
    group.turn()
    group.turn()
    assert stored_key("a") in written


def test_a_run_that_was_taken_over_writes_no_groups() -> None:
    """What leaves its memory would be taken for the state of the newer run."""
    run = timers(8_000)
    step(run, "a", 0)
    spilled(run).turn()
    spilled(run)._room._database.query("UPDATE owner SET epoch = epoch + 1")

    with pytest.raises(FencedError, match="newer run"):
        spilled(run).turn()
    assert rows_of(run) == []
