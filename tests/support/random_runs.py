"""Run a random plan and its model over the same input, and compare what they write.

What runs the models knows W, ends of the input and the order of operators, and takes one input row
at a time through all of them. The pipeline gets the rows in steps cut at random, with crashes
before and after a commit, and what it sees of the clock as it is read from a journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set as AbstractSet
from random import Random
from typing import Any, NamedTuple

import msgspec
from operator_models import NEVER, Row, Value, key_bytes
from pipeline_runs import Run
from random_plans import RandomPlan

from millstream import Record
from millstream.processor.columns import InputBatch
from millstream.processor.testkit import in_batches
from millstream.processor.ticks import JournalEntry, Tick, decode_journal, encode_entry

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
    """W of sources, and of those that share operators.

    Args:
        disorders: Of the sources.
        wall: Which of them go by the wall clock, too.
    """

    def __init__(self, disorders: Sequence[int], wall: AbstractSet[int]) -> None:
        self.disorders = disorders
        self.wall = wall
        self.tops: list[dict[int, int]] = [{} for _ in disorders]
        self.idle: list[set[int]] = [set() for _ in disorders]
        self.quiet = set[int]()
        """Sources that hold nothing back where they meet others."""
        self.levels = [NEVER for _ in disorders]
        self.shared: dict[tuple[int, ...], int] = {}

    def see(self, source: int, partition: int, time: int | None) -> None:
        """A record of a source; without a time if it was rejected."""
        if time is not None:
            self.idle[source].discard(partition)
            self.quiet.discard(source)
            tops = self.tops[source]
            tops[partition] = max(tops.get(partition, NEVER), time)
            self._raise(source)

    def tick(self, tick: Tick, sources: Mapping[str, int]) -> None:
        """A look at the clock."""
        for topic, source in sources.items():
            self.idle[source].update(tick.idle.get(topic, ()))
            self._raise(source)
            if source in self.wall and tick.caught_up:
                self.raise_to(source, tick.now_ms - self.disorders[source])
            if topic in tick.quiet:
                self.quiet.add(source)

    def _raise(self, source: int) -> None:
        """W of a source is the least of its partitions that are not idle."""
        tops = self.tops[source]
        active = [top for each, top in tops.items() if each not in self.idle[source]]
        if active:
            self.raise_to(source, min(active) - self.disorders[source])

    def raise_to(self, source: int, level: int) -> None:
        self.levels[source] = max(self.levels[source], level)

    def level(self, sources: tuple[int, ...], *, at_end: bool) -> int:
        """W where these meet; it never falls. The end of the input concerns quiet ones as well."""
        if len(sources) == 1:
            return self.levels[sources[0]]
        asked = [each for each in sources if at_end or each in self.wall or each not in self.quiet]
        now = min((self.levels[each] for each in asked), default=NEVER)
        self.shared[sources] = max(self.shared.get(sources, NEVER), now)
        return self.shared[sources]


class ModelRun:
    """What a plan's models make of input rows."""

    def __init__(self, plan: RandomPlan) -> None:
        self.plan = plan
        self.watermarks = Watermarks(plan.disorders, plan.wall)
        self.now = 0
        self.before = {node.sources: NEVER for node in plan.nodes}
        self.out: dict[str, list[Said]] = {topic: [] for _, topic in plan.sinks}

    def take(self, arrival: Arrival) -> None:
        """Take one input row through everything."""
        source = self.plan.topics[arrival.topic]
        rejected = arrival.value is not None and arrival.value["t"] is None
        self.watermarks.see(source, arrival.partition, None if rejected else arrival.time)
        self._step({source: [Row(arrival.time, arrival.key, arrival.value)]}, arrival.key)

    def tick(self, tick: Tick) -> None:
        """Look at the clock, which never goes back."""
        self.now = max(self.now, tick.now_ms)
        self.watermarks.tick(msgspec.structs.replace(tick, now_ms=self.now), self.plan.topics)
        self._step({}, None, ticked=True)

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
            self._step({}, None, at_end=True)

    def _step(
        self,
        rows: dict[int, list[Row]],
        key: str | None,
        *,
        ticked: bool = False,
        at_end: bool = False,
    ) -> None:
        level = self.watermarks.level
        now = {sources: level(sources, at_end=at_end) for sources in self.before}
        chunks: list[list[Row]] = []
        for number, node in enumerate(self.plan.nodes):
            if not node.inputs:
                chunks.append(rows.get(number, []))
                continue
            if node.model is not None:
                node.model.now, node.model.ticked = self.now, ticked
            before, after = (levels[node.sources] - node.held_ms for levels in (self.before, now))
            chunks.append(node.run([chunks[each] for each in node.inputs], before, after))
        self.before = now
        for node_id, topic in self.plan.sinks:
            for row in chunks[node_id]:
                # Late rows keep their keys, though nothing can be done by them.
                by = key if row.key is None else row.key
                self.out[topic].append((row.time, None if by is None else key_bytes(by), row.value))


def arrivals(plan: RandomPlan, count: int) -> list[Arrival | Tick]:
    """Input for a plan: disorder, equal times, a partition that lags; and looks at the clock."""
    random = plan.random
    step, spread = random.choice((0, 1, 4)), random.choice((1, 10, 40))
    often = random.choice((0, 0.05, 0.3)) if plan.pipeline.plan.needs_ticks() else 0
    made: list[Arrival | Tick] = []
    for number in range(count):
        if random.random() < often:
            made.append(_tick(plan, plan.base + (number * step + random.randrange(60)) * plan.unit))
        topic = random.choice(list(plan.topics))
        time = plan.base + (number * step + random.randrange(spread)) * plan.unit
        time += random.choice((-1, 0, 0, 1)) * (plan.unit > 1)
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


def _tick(plan: RandomPlan, now_ms: int) -> Tick:
    """What the run loop may see: some partitions idle, or all of a topic."""
    random = plan.random
    idle: dict[str, list[int]] = {}
    quiet = []
    for topic in plan.topics:
        chosen = [each for each in range(2) if random.random() < 0.3]
        if chosen:
            idle[topic] = chosen
        if len(chosen) == 2:
            quiet.append(topic)
    tick = Tick(now_ms, random.random() < 0.8, idle, quiet)
    return decode_journal(encode_entry(JournalEntry([], tick))).tick  # as it is read again


def run_pipeline(
    plan: RandomPlan, rows: list[list[Arrival | Tick]], random: Random
) -> dict[str, list[Said]]:
    """What the pipeline writes; each list of rows is followed by an end of the input."""
    run, offsets = Run(plan.pipeline), dict.fromkeys(plan.topics, 0)
    longest = random.choice((1, 3, 10, 1000))

    def go(step: Tick | list[InputBatch]) -> None:
        if isinstance(step, Tick):
            run.topology.tick(step)
        else:
            run.topology.process(step)

    for part in rows:
        begun: list[Tick | list[InputBatch]] = []
        for step in _steps(part, offsets, random, longest):
            begun.append(step)
            go(step)
            if random.random() < 0.1:
                run.crash()
                for each in begun:
                    go(each)
            if isinstance(step, Tick) and random.random() < 0.5:
                continue  # it is committed with what follows
            run.commit(sweep=random.random() < 0.2)
            begun.clear()
            if random.random() < 0.2:
                # State may be held elsewhere in the next run.
                run.spills = random.random() < 0.5
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


def _steps(
    part: list[Arrival | Tick], offsets: dict[str, int], random: Random, longest: int
) -> Iterator[Tick | list[InputBatch]]:
    """Rows cut at random into steps, and ticks between them."""
    start = 0
    while start < len(part):
        first = part[start]
        if isinstance(first, Tick):
            start += 1
            yield first
            continue
        records: list[tuple[Record, int | None]] = []
        for arrival in part[start : start + random.randrange(1, longest + 1)]:
            if isinstance(arrival, Tick):
                break
            topic, partition, time, key, value = arrival
            data = None if value is None else msgspec.json.encode(value)
            encoded = None if key is None else key.encode()
            record = Record(topic, partition, offsets[topic], time, encoded, data, ())
            offsets[topic] += 1
            records.append((record, None))
        start += len(records)
        (batches,) = in_batches(records, None)
        yield batches


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
        for each in part:
            if isinstance(each, Tick):
                model.tick(each)
            else:
                model.take(each)
        model.flush()
    found = run_pipeline(plan, parts, random)
    assert model.out == found, f"seed {seed}\n{plan.pipeline.explain()}"
    return plan.checked_aggregates
