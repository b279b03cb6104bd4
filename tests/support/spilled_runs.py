"""A pipeline in memory and one that spills, taken through the same steps, sweeps and crashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline_runs import Run, as_batches

from millstream.processor import Pipeline, Row
from millstream.processor.holding import StatePlace
from millstream.processor.state import decode_entry


def hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key


def folded(records: Sequence[tuple[bytes, bytes | None]]) -> dict[Any, Any]:
    """What state records say, as a restart reads them."""
    known: dict[Any, Any] = {}
    for key, value in records:
        path, content = decode_entry(key, value)
        if content is None:
            known = {each: kept for each, kept in known.items() if each[: len(path)] != path}
        else:
            known[path] = content
    return known


def compare(
    pipeline: Callable[[StatePlace], Pipeline],
    inputs: Mapping[str, Sequence[Row]],
    batch_records: int,
    marks: list[str],
    *,
    ordered: bool = True,
) -> None:
    """Run both, with the same steps, commits, sweeps and crashes: results, state and its size.

    Args:
        pipeline: With one operator that has state.
        inputs: Rows by topic.
        batch_records: Rows of a step.
        marks: What follows each step, in turn: "" is a commit, "step" none, "sweep" and "crash".
        ordered: Whether state records come in one order, too.
    """
    # With room for nothing each step writes; with some, what stays and what leaves differ.
    room = 500 if batch_records % 2 else 5_000
    memory, spilled = (Run(pipeline(state), cache_bytes=room) for state in ("memory", "sqlite"))
    name = next(iter(memory.topology.stateful.values())).name
    for run in (memory, spilled):
        (operator,) = run.topology.stateful.values()
        assert (run is spilled) == hasattr(operator, "turn"), "it spills where it should"
    for number, batches in enumerate(as_batches(inputs, batch_records)):
        mark = marks[number % len(marks)]
        for run in (memory, spilled):
            run.topology.process(batches)
            if mark != "step":
                run.commit(sweep=mark == "sweep")
        left, right = memory.state.get(name, []), spilled.state.get(name, [])
        assert folded(left) == folded(right)
        if "crash" not in marks:
            # A restart finds keys in another order, and what was given twice shows nothing new.
            assert len(left) == len(right)
            assert "sweep" in marks or not ordered or left == right
        lives = [next(iter(run.topology.stateful.values())).live_count for run in (memory, spilled)]
        assert mark == "step" or lives[0] == lives[1]
        if mark == "crash":
            memory.crash()
            spilled.crash()
    for run in (memory, spilled):
        run.topology.flush()
        run.commit()
    assert memory.out == spilled.out
    assert folded(memory.state.get(name, [])) == folded(spilled.state.get(name, []))
