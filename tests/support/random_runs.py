"""Run a random plan and its model over the same input, and compare what they write.

What runs the models knows W, ends of the input and the order of operators, and takes one input row
at a time through all of them. The pipeline gets the rows in steps cut at random, with crashes
before and after a commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import msgspec
from operator_models import NEVER, Row, Value, key_bytes
from pipeline_runs import Run
from random_plans import RandomPlan

from millstream import Record
from millstream.processor.testkit import in_batches

Said = tuple[int, bytes | None, Any]
"""Time, key and value of a record that was written."""


class Arrival(NamedTuple):
    """An input record."""

    topic: str
    partition: int
    time: int
    key: str | None
    value: Value | None


class Watermarks:
    """W of sources, and of those that share operators."""

    def __init__(self, disorders: Sequence[int]) -> None:
        self.disorders = disorders
        self.tops: list[dict[int, int]] = [{} for _ in disorders]
        self.levels = [NEVER for _ in disorders]
        self.shared: dict[tuple[int, ...], int] = {}

    def see(self, source: int, partition: int, time: int) -> None:
        tops = self.tops[source]
        tops[partition] = max(tops.get(partition, NEVER), time)
        self.raise_to(source, min(tops.values()) - self.disorders[source])

    def raise_to(self, source: int, level: int) -> None:
        self.levels[source] = max(self.levels[source], level)

    def level(self, sources: tuple[int, ...]) -> int:
        """W where these meet; it never falls."""
        now = max(self.shared.get(sources, NEVER), min(self.levels[each] for each in sources))
        self.shared[sources] = now
        return now


class ModelRun:
    """What a plan's models make of input rows."""

    def __init__(self, plan: RandomPlan) -> None:
        self.plan = plan
        self.watermarks = Watermarks(plan.disorders)
        self.before = {node.sources: NEVER for node in plan.nodes}
        self.out: dict[str, list[Said]] = {topic: [] for _, topic in plan.sinks}

    def take(self, arrival: Arrival) -> None:
        """Take one input row through everything."""
        source = self.plan.topics[arrival.topic]
        if arrival.value is None or arrival.value["t"] is not None:  # or else it is rejected
            self.watermarks.see(source, arrival.partition, arrival.time)
        self._step({source: [Row(arrival.time, arrival.key, arrival.value)]}, arrival.key)

    def flush(self) -> None:
        """Let W rise just as far as what waits needs, again and again."""
        while True:
            wanted: dict[int, int] = {}
            for node in self.plan.nodes:
                level = node.model.required() if node.model else None
                for source in node.sources if level is not None else ():
                    wanted[source] = max(wanted.get(source, NEVER), level + node.held_ms)  # type: ignore[operator]
            if not wanted:
                return
            for source, level in wanted.items():
                self.watermarks.raise_to(source, level)
            self._step({}, None)

    def _step(self, rows: dict[int, list[Row]], key: str | None) -> None:
        now = {sources: self.watermarks.level(sources) for sources in self.before}
        chunks: list[list[Row]] = []
        for number, node in enumerate(self.plan.nodes):
            if not node.inputs:
                chunks.append(rows.get(number, []))
                continue
            before, after = (levels[node.sources] - node.held_ms for levels in (self.before, now))
            chunks.append(node.run([chunks[each] for each in node.inputs], before, after))
        self.before = now
        for node_id, topic in self.plan.sinks:
            for row in chunks[node_id]:
                # Late rows keep their keys, though nothing can be done by them.
                by = key if row.key is None else row.key
                self.out[topic].append((row.time, None if by is None else key_bytes(by), row.value))


def arrivals(plan: RandomPlan, count: int) -> list[Arrival]:
    """Input for a plan: disorder, equal times, a partition that lags."""
    random = plan.random
    step, spread = random.choice((0, 1, 4)), random.choice((1, 10, 40))
    made = []
    for number in range(count):
        topic = random.choice(list(plan.topics))
        time = number * step + random.randrange(spread)
        key = random.choice("abc")
        value = {"t": time, "k": key, "x": random.randrange(30), "ids": [number]}
        if topic in plan.failing and random.random() < 0.1:
            value["t"] = None
        if topic == "table":
            deleted = random.random() < 0.2
            partition = ord(key) % 2
            made.append(Arrival(topic, partition, time, key, None if deleted else value))
        else:
            made.append(Arrival(topic, random.randrange(2), time, None, value))
    return made


def run_pipeline(
    plan: RandomPlan, rows: list[list[Arrival]], random: Random
) -> dict[str, list[Said]]:
    """What the pipeline writes; each list of rows is followed by an end of the input."""
    run, offsets = Run(plan.pipeline), dict.fromkeys(plan.topics, 0)
    longest = random.choice((1, 3, 10, 1000))
    for part in rows:
        start = 0
        while start < len(part):
            stop = start + random.randrange(1, longest + 1)
            records = []
            for topic, partition, time, key, value in part[start:stop]:
                data = None if value is None else msgspec.json.encode(value)
                encoded = None if key is None else key.encode()
                record = Record(topic, partition, offsets[topic], time, encoded, data, ())
                offsets[topic] += 1
                records.append((record, None))
            start = stop
            (batches,) = in_batches(records, None)
            if random.random() < 0.1:
                run.topology.process(batches)
                run.crash()
            run.topology.process(batches)
            run.commit(sweep=random.random() < 0.2)
            if random.random() < 0.2:
                run.crash()
        run.topology.flush()
        run.commit()
    return {
        topic: [
            (each.timestamp_ms, each.key, msgspec.json.decode(each.value) if each.value else None)
            for each in records
        ]
        for topic, records in run.out.items()
    }


def check(seed: int, count: int | None = None) -> int:
    """Hold the plan of a seed against its model; how many aggregates of windows were, too.

    Args:
        seed: Of all choices.
        count: Of input rows; by default that is drawn, too.

    Raises:
        AssertionError: Something else was written.
    """
    random = Random(seed)
    plan = RandomPlan(random)
    rows = arrivals(plan, count or random.randrange(60))
    cut = random.choice((0, len(rows) // 2))
    parts = [rows[:cut], rows[cut:]]
    model = ModelRun(plan)
    for part in parts:
        for row in part:
            model.take(row)
        model.flush()
    found = run_pipeline(plan, parts, random)
    assert model.out == found, f"seed {seed}\n{plan.pipeline.explain()}"
    return plan.checked_aggregates
