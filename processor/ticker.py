"""When to look at the wall clock, and what it says: the only place where it enters a pipeline.

A tick is made where something can come of it: a partition has become idle, something waits for the
clock, or rows have come and an operator tells them the time. A pipeline that waits for its input
makes none, and one that is catching up closes nothing by the clock: the rows it still has to read
would all be late.
"""

from __future__ import annotations

from typing import Final

from millstream import LogReader, Store, TopicPartition

from .ticks import Tick
from .topology import Topology

TICK_MS: Final = 1000
"""The clock is looked at so often: what it closes may be that much late."""


class Ticker:
    """Makes ticks. Not thread-safe.

    Args:
        store: Its clock, and where its topics end.
        topology: Which partitions are idle already, and what waits.
        tick_ms: Least time between two ticks.
    """

    def __init__(self, store: Store, topology: Topology, tick_ms: int) -> None:
        self._store = store
        self._topology = topology
        self._tick_s = tick_ms / 1000
        self._needed = topology.plan.needs_ticks()
        self._tells_time = any(node.needs_ticks for node in topology.plan.stateful())
        self._next = dict.fromkeys((False, True), store.clock.monotonic())
        """When to look again, while rows come and when there are none."""
        self._created_ms = {
            node.topic: store.topic(node.topic).created_ms for node in topology.plan.sources()
        }

    def due(self, reader: LogReader, *, at_end: bool) -> Tick | None:
        """A tick if it is time for one and it would have an effect.

        Args:
            reader: Where the pipeline stands; its next poll gives what comes after the tick.
            at_end: Whether all that is visible has been read.
        """
        if not self._needed or not (at_end or self._tells_time):
            return None
        monotonic = self._store.clock.monotonic()
        if monotonic < self._next[at_end]:
            return None
        self._next[at_end] = monotonic + self._tick_s
        now_ms = max(self._store.clock.now_ms(), self._topology.now_ms)
        if not at_end:
            return Tick(now_ms)
        idle, quiet = self._newly_idle(reader, now_ms)
        if idle or self._topology.waits_until(now_ms):
            return Tick(now_ms, caught_up=True, idle=idle, quiet=quiet)
        return None

    def _newly_idle(self, reader: LogReader, now_ms: int) -> tuple[dict[str, list[int]], list[str]]:
        """Partitions that have got nothing for as long as their source says, and whole topics."""
        idle: dict[str, list[int]] = {}
        quiet: list[str] = []
        positions = reader.positions
        for source in self._topology.sources.values():
            node = source.node
            if node.idle_ms is None:
                continue
            ends = self._store.offsets(node.topic)
            found = []
            for partition, offsets in ends.items():
                since_ms = source.appended_ms.get(partition, self._created_ms[node.topic])
                position = positions[TopicPartition(node.topic, partition)]
                if position >= offsets.end and now_ms - since_ms >= node.idle_ms:
                    found.append(partition)
            fresh = [each for each in found if each not in source.watermark.idle]
            if fresh:
                idle[node.topic] = fresh
                if len(found) == len(ends):
                    quiet.append(node.topic)
        return idle, quiet
