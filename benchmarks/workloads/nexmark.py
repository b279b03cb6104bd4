"""The queries of Nexmark over events on disk, epochs committed, results durable. One process.

There is no limit beside them: the targets are times per event, and the figures that others have
published are of other machines. Events of all three topics are counted, whether a query reads them
or not, as others count them. The queries and the events are those of `examples/nexmark`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import millstream
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "nexmark"))
nexmark = importlib.import_module("run")

MOST_NS = {
    "q0": 2_000,
    "q1": 2_000,
    "q2": 2_000,
    "q5": 2_500,
    "q7": 5_000,
    "q8": 2_500,
    "q11": 10_000,
    "q12": 2_000,
}


def contestant(query: str) -> Callable[[Context], Sample]:
    """One query, in a store of its own."""

    def measured(context: Context) -> Sample:
        with millstream.open(Path(context.directory, "store"), durability="os") as store:
            nexmark.fill(store, context.records)
        with millstream.open(Path(context.directory, "store")) as store:
            with Stopwatch() as watch:
                metrics = nexmark.QUERIES[query]().run(store, until="end")
            assert metrics.records_out == store.offsets(query)[0].end
        sample = watch.sample(context.records)
        return {**sample, "ns_per_event": 1e9 / sample["rate"]}

    return measured


WORKLOAD = Workload(
    name="nexmark",
    title="persons, auctions and bids, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={query: contestant(query) for query in nexmark.QUERIES},
    targets=tuple(Target(query, "ns_per_event", most) for query, most in MOST_NS.items()),
    records=200_000,
)
