"""A pipeline that depends on all there is to depend on, and some life of it, to be replayed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

from millstream import Store
from millstream.processor import Context, Pipeline, Timer, agg, session, tumbling
from millstream.testing import ManualClock

OUTPUTS = ("totals", "visits", "seen", "counts")
KINDS = {"cents": 1}
"""What an impure function looks at."""


def remind(context: Context[str, dict[str, int]], row: dict[str, Any]) -> Iterator[dict[str, int]]:
    context.state["n"] = context.state.get("n", 0) + 1
    context.set_timer(row["t"] + 30)
    yield {"n": context.state["n"], "now": context.now_ms, "die": context.random.randrange(6)}


def reminded(context: Context[str, dict[str, int]], timer: Timer) -> Iterator[dict[str, int]]:
    yield {"timer": timer.at_ms}


def shop(name: str = "shop", state: Literal["memory", "sqlite"] = "memory") -> Pipeline:
    """Windows, sessions, a table, timers and the wall clock; two sources, one of them may idle.

    Under another name it writes to topics that end in it.
    """
    pipeline = Pipeline(name, state=state)
    orders = pipeline.source("orders", time="t", disorder=20, idle=500)
    refunds = pipeline.source("refunds", time="t", disorder=20, idle=500)
    both = orders.merge(refunds).key_by("k")
    rows = both.map(lambda row: row | {"x": row["x"] * KINDS["cents"]})
    suffix = "" if name == "shop" else f".{name}"
    rows.window(tumbling(50)).agg(n=agg.count(), total=agg.sum("x")).to(f"totals{suffix}")
    both.window(session(25), name="visits").agg(n=agg.count()).emit("update").to(f"visits{suffix}")
    process = both.process(remind, state=dict, on_timer=reminded, wall_clock=True)
    process.to(f"seen{suffix}")
    both.count().to(f"counts{suffix}")
    return pipeline


def live(
    store: Store, clock: ManualClock, rounds: int, seed: int, name: str = "shop", **options: Any
) -> None:
    """Some life: records, pauses, restarts, in memory and spilling by turns.

    Without an `on_end` of the caller's the input is sometimes said to have ended.
    """
    chance = random.Random(seed)
    base = chance.randrange(100) + seed * 10_000
    for number in range(rounds):
        for topic in ("orders", "refunds"):
            lines = [
                b'{"k":"k%d","t":%d,"x":%d}'
                % (chance.randrange(3), base + number * 40 + chance.randrange(60), number)
                for _ in range(chance.randrange(6))
            ]
            if lines:
                partition = chance.randrange(2) if topic == "orders" else 0
                store.append_many(topic, lines, partition=partition)
        clock.advance(chance.choice([10, 100, 700, 1500]))
        shop(name, chance.choice(["memory", "sqlite"])).run(
            store,
            until="end",
            batch_records=chance.choice([1, 3, None]),
            epoch_ms=0,
            tick_ms=1,
            **{"on_end": "flush" if chance.random() < 0.1 else "hold", **options},
        )


def written(store: Store) -> int:
    """How many records the outputs have."""
    return sum(len(list(store.read(topic))) for topic in OUTPUTS)
