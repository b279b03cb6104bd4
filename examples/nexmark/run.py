"""Run queries over events on disk: `python examples/nexmark/run.py q5 q7 200000`.

Prints for each how many events per second it read, decoded and processed, with epochs committed
and results on disk: all events, whether the query looks at them or not. One process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

import generator
import msgspec
import queries
import rows_of_bids

import millstream
from millstream import Store
from millstream.processor import Pipeline

SEED = 1
TOPICS: dict[str, type] = {
    "person": generator.Person,
    "auction": generator.Auction,
    "bid": generator.Bid,
}
QUERIES: dict[str, Callable[..., Pipeline]] = {
    name: made
    for module in (queries, rows_of_bids)
    for name, made in vars(module).items()
    if name.startswith("q") and name[1:].isdigit()
}


class Priced(msgspec.Struct):
    """What q1 and q2 write."""

    auction: int
    price: float
    bidder: int | None = None
    ts: int | None = None


class Counted(msgspec.Struct):
    """What q11 and q12 write."""

    key: int
    window_start: int
    window_end: int
    n: int


class Dated(generator.Bid, frozen=True):
    """What q10 writes."""

    date: str
    hour: int
    minute: int


class Dear(msgspec.Struct):
    """What q14 writes."""

    auction: int
    price: float
    part: str
    ts: int
    c: int


class Found(msgspec.Struct):
    """What q13 and q20 write."""

    bidder: int
    ts: int
    auction: int | None = None
    price: int | None = None
    value: str | None = None
    item: str | None = None


class Last(generator.Bid, frozen=True, kw_only=True):
    """What q18 writes."""

    key: str


def _daily(key: type, *fields: str, **more: type) -> type:
    """What a query of days writes: a key, counts of bids, and statistics."""
    names = ["n", "rank1", "rank2", "rank3"]
    names += [name for of in fields for name in (of, *(f"{of}_rank{n}" for n in (1, 2, 3)))]
    return msgspec.defstruct(
        "Daily", [("key", key), *((name, int) for name in names), *more.items()]
    )


STORED = {
    "q0": generator.Bid,
    "q1": Priced,
    "q2": Priced,
    "q10": Dated,
    "q11": Counted,
    "q12": Counted,
    "q13": Found,
    "q14": Dear,
    "q15": _daily(int, "bidders", "auctions"),
    "q16": _daily(str, "bidders", "auctions"),
    "q17": _daily(str, least=int, most=int, mean=float, total=int),
    "q18": Last,
    "q20": Found,
}
"""Results that are stored as columns, too."""


def fill(store: Store, count: int) -> None:
    """Append the first `count` events as columns, and the side table of q13."""
    for topic, kind in (TOPICS | STORED).items():
        store.create_topic(topic, schema=kind)
    store.create_topic("side")
    numbers = range(10_000)
    store.append_many("side", [b"side %d" % n for n in numbers], [b"%d" % n for n in numbers])
    events = generator.events(SEED, count)
    while some := list(islice(events, 10_000)):
        for topic in TOPICS:
            rows = [each for each in some if generator.topic_of(each) == topic]
            times = [each.ts for each in rows]
            store.append_many(topic, list(map(msgspec.json.encode, rows)), None, times)


def main(names: list[str], count: int) -> None:
    """Make the events once and run each query over them."""
    with tempfile.TemporaryDirectory() as folder, millstream.open(folder) as store:
        fill(store, count)
        for name in names or sorted(QUERIES, key=lambda query: int(query[1:])):
            started = time.perf_counter()
            QUERIES[name]().run(store, until="end")
            seconds = time.perf_counter() - started
            results = sum(batch.record_count for batch in store.read(name).batches())
            print(f"{name:4} {count / seconds:12,.0f} events/s {results:10,} results")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(
        [word for word in words if word in QUERIES],
        next((int(word) for word in words if word.isdigit()), 100_000),
    )
