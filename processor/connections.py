"""What a running pipeline has outside the store: its sources, taken in, and its sinks, delivered.

A run asks it between its own steps; nothing happens by itself. How a source is taken in says
ingest.py, how a sink is delivered deliver.py.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final, Self

from millstream import Store

from .deliver import Deliverer
from .ingest import Check, Ingestor
from .nodes import SourceNode
from .plan import Plan
from .serde import value_decoder

_REST: Final = 9
"""After asking in vain, or how much there is, rest this many times as long as it took: thousands of
files that are followed must not keep a processor busy."""


class Connections:
    """The sources and sinks of one run. Not thread-safe; a context manager.

    Args:
        store: What the pipeline runs over.
        plan: Says what there is.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store = store
        """What the pipeline runs over."""
        self.blocking = False
        """Whether taking in may be long in coming back."""
        self._plan = plan
        self._taken_s = store.clock.monotonic()
        self._rest_until_s = self._taken_s
        self._measure_s = self._taken_s
        """When to measure again how far behind sources are."""
        self._lag_bytes: dict[str, int] = {}
        self._opened = contextlib.ExitStack()
        self._ingestors: dict[str, Ingestor] = {}
        self._deliverers: dict[str, Deliverer] = {}

    def open_sources(self) -> None:
        """Open all sources, where they stand.

        Raises:
            MillstreamError: One of them cannot be opened.
        """
        plan = self._plan
        for node in plan.sources():
            if node.source is not None:
                ingestor = Ingestor(
                    self.store,
                    plan.name,
                    node.source,
                    keep_rejected=plan.keeps_dead_letters(node),
                    check=_check(node),
                )
                self._ingestors[node.input_name] = self._opened.enter_context(ingestor)
                self.blocking |= getattr(node.source, "blocking", True)

    def open_sinks(self) -> None:
        """Open all sinks, where they stand.

        Raises:
            MillstreamError: One of them cannot be opened.
        """
        plan = self._plan
        for node in plan.sinks():
            if node.sink is not None and node.output_name not in self._deliverers:
                deliverer = Deliverer(
                    self.store,
                    plan.name,
                    node.sink,
                    dead_letters=node.dead_letters,
                    retry=node.retry,
                )
                self._deliverers[node.output_name] = self._opened.enter_context(deliverer)

    def take_in(self) -> bool:
        """Take in a bounded part of what the sources have; whether that was anything."""
        started_s = self.store.clock.monotonic()
        if started_s < self._rest_until_s:
            return False
        taken = [each.pump() for each in self._ingestors.values() if not each.exhausted]
        self._taken_s = self.store.clock.monotonic()
        if not any(taken):
            self._rest_until_s = self._taken_s + _REST * (self._taken_s - started_s)
        return any(taken)

    @property
    def since_taken_s(self) -> float:
        """Seconds since the sources were last asked; 0 if none of them will have more."""
        if all(each.exhausted for each in self._ingestors.values()):
            return 0.0
        return self.store.clock.monotonic() - self._taken_s

    def deliver(self) -> bool:
        """Make a delivery to every sink that has one to come; whether there was any."""
        delivered = [each.pump() for each in self._deliverers.values()]
        return any(delivered)

    def drain(self, stop: threading.Event) -> None:
        """Deliver everything, waiting for what has to be tried again, until `stop` is set."""
        clock = self.store.clock
        while not stop.is_set():
            if self.deliver():
                continue
            # A pause may be over by now: that it was not when a sink was asked is what counts.
            pauses = [each.pause_s for each in self._deliverers.values() if each.retries]
            if not pauses:
                return
            clock.wait(stop.wait, min(pauses))

    @property
    def taken(self) -> dict[str, int]:
        """Records taken in from each source by this run."""
        return {name: each.records for name, each in self._ingestors.items()}

    def source_lag_bytes(self, *, now: bool) -> dict[str, int]:
        """Bytes still to be taken in from each source that can say it.

        Args:
            now: Whether as of now, or of a moment ago: to look at thousands of files takes time.
        """
        started_s = self.store.clock.monotonic()
        if now or started_s >= self._measure_s:
            found = {name: each.behind_bytes for name, each in self._ingestors.items()}
            self._lag_bytes = {name: count for name, count in found.items() if count is not None}
            ended_s = self.store.clock.monotonic()
            self._measure_s = ended_s + _REST * (ended_s - started_s)
        return self._lag_bytes

    @property
    def sink_lag(self) -> dict[str, int]:
        """Offsets each sink has still to get."""
        return {name: each.lag for name, each in self._deliverers.items()}

    def close(self) -> None:
        """Let go of all of them. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(source: SourceNode) -> Check | None:
    """What refuses values of the source before they are in the log, where they can be mended."""
    if source.type is bytes:
        return None
    decode = value_decoder(source.type)
    if not source.tombstones:
        return decode
    return lambda value: None if value is None else decode(value)
