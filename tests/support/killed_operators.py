"""A pipeline with joins, sessions, timers, tables and sinks that is killed while its input grows.

What it reads is made from a seed, so that another run over the same records says what must have
come out. `run` is a role of zygote.py; it says in a file what the process is doing, so that whoever
kills it knows what was interrupted.
"""

from __future__ import annotations

import heapq
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final

from zygote import READY, tell

import millstream
from millstream import Store
from millstream.processor import Context, Pipeline, Timer, agg, epoch, session, to_sqlite
from millstream.processor.connections import Connections
from millstream.processor.holding import StateHolding
from millstream.processor.topology import Topology

PARTITIONS: Final = 2
DISORDER_MS: Final = 40
USERS: Final = 12
EVENTS: Final = 25
"""Of a piece of input."""
SNAPSHOT_RECORDS: Final = 150
SWEEP_RECORDS: Final = 7
"""So few that sweeps come all the time, and take several epochs."""
START, WAIT, STEP, COMMIT, SWEEP, DELIVER = PHASES = (
    b"start",
    b"wait",
    b"step",
    b"commit",
    b"sweep",
    b"deliver",
)
"""What a process may be doing when it is killed; "sweep" is a commit that writes state again."""

Row = dict[str, Any]


# --- the pipeline --------------------------------------------------------------------------------


def pipeline(name: str, path: Path, *, spilled: bool = False) -> Pipeline:
    """Orders joined with payments and users; sessions, counts, and two process functions.

    Args:
        name: Of the pipeline, and of all it writes.
        path: Where its database is.
        spilled: Whether its state has next to no memory.
    """
    made = Pipeline(name)
    if spilled:
        made._builder.holding = StateHolding("sqlite", 2_000)
    database = f"{path}/{name}.db"
    orders = made.source("orders", time="ts", disorder=DISORDER_MS)
    payments = made.source("payments", time="ts", disorder=DISORDER_MS)
    users = made.table("users", time="ts", disorder=DISORDER_MS)

    once = orders.dedup("id", within=300)
    both = once.key_by("id").join(
        payments.key_by("id"), lower=-20, upper=100, how="outer", into=paid
    )
    told = both.key_by("user").join_table(users, how="left", into=with_tier)
    told.to(f"{name}.told").to(to_sqlite(database, "told", name=f"{name}-told"))
    sessions = told.window(session(30), grace=20).agg(
        n=agg.count(), amount=agg.sum("amount"), unpaid=agg.sum("unpaid")
    )
    key = ["key", "window_start"]
    sessions.to(f"{name}.sessions")
    sessions.to(to_sqlite(database, "sessions", name=f"{name}-sessions", mode="upsert", key=key))
    once.key_by("user").count(ttl=150).to(f"{name}.counts")
    watched = once.key_by("user").process(watch, state=list[int], on_timer=watch_timer, ttl=200)
    watched.to(f"{name}.watched")
    reminders = once.key_by("user").process(
        remind, state=list[int], on_timer=remind_timer, ttl=300, wall_clock=True, name="remind"
    )
    reminders.to(f"{name}.reminders")
    reminders.to(to_sqlite(database, "reminders", name=f"{name}-reminders"))
    for number, stream in enumerate((once.late, both.late, sessions.late)):
        stream.to(f"{name}.late{number}")
    return made


def paid(order: Row | None, payment: Row | None) -> Row:
    """An order, a payment, or both."""
    known = order or payment
    assert known is not None
    return {
        "id": known["id"],
        "user": known["user"],
        "amount": known["amount"],
        "unpaid": payment is None,
        "ordered": order is not None,
        "wait": None if order is None or payment is None else payment["ts"] - order["ts"],
    }


def with_tier(row: Row, user: Row | None) -> Row:
    """With what the table of users says."""
    return row | {"tier": None if user is None else user["tier"]}


def watch(context: Context[str, list[int]], order: Row) -> Iterator[Row]:
    """Number the orders of a user, and look at each again 60 ms later. By event time alone."""
    context.state.append(order["id"])
    context.set_timer(context.time_ms + 60, f"{order['id']}")
    if order["id"] % 5 == 0:
        context.cancel_timer(context.time_ms + 60, f"{order['id'] - 1}")
    yield {"id": order["id"], "seen": len(context.state), "dice": context.random.randrange(100)}


def watch_timer(context: Context[str, list[int]], timer: Timer) -> Iterator[Row]:
    """How many orders have come by now; the timer of a tenth comes twice."""
    if timer.name.endswith("0"):
        context.set_timer(timer.at_ms + 25, f"{timer.name} again")
    yield {"id": timer.name, "known": list(context.state), "dice": context.random.randrange(100)}


def remind(context: Context[str, list[int]], order: Row) -> None:
    """Ask to be reminded by both clocks."""
    context.state.append(context.now_ms)
    context.set_timer(context.now_ms + 3, f"{order['id']}", clock="wall")
    context.set_timer(context.time_ms + 45, f"{order['id']}")


def remind_timer(context: Context[str, list[int]], timer: Timer) -> Iterator[Row]:
    """Once for each clock and order; the time in it is that of the wall clock."""
    yield {"id": int(timer.name), "clock": timer.clock, "now": context.now_ms}
    context.state = context.state[-5:]


# --- what it reads -------------------------------------------------------------------------------


class Feed:
    """Orders, payments and users from a seed, a piece at a time."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._now_ms = 0
        self._coming: list[tuple[int, int, str, str, Row]] = []
        """What has been sent and arrives later: (when, number, topic, key, value)."""
        self._number = 0
        self._sent = 0

    def append_piece(self, store: Store) -> None:
        """Append some, as several producers would: runs of records of one partition."""
        runs: dict[tuple[str, int], list[tuple[str, Row | None]]] = defaultdict(list)
        for _ in range(EVENTS):
            topic, key, value = self._next()
            runs[topic, self._partition(topic, key)].append((key, value))
        for (topic, partition), records in runs.items():
            store.append_many(
                topic,
                [None if value is None else json.dumps(value).encode() for _, value in records],
                keys=[key.encode() for key, _ in records],
                timestamps_ms=[self._now_ms] * len(records),
                partition=partition,
            )

    def _partition(self, topic: str, key: str) -> int:
        """All of a user in one partition; orders and payments as it comes."""
        return sum(key.encode()) % PARTITIONS if topic == "users" else self._random.randrange(2)

    def _next(self) -> tuple[str, str, Row | None]:
        random = self._random
        if self._coming and self._coming[0][0] <= self._now_ms:
            _, _, topic, key, value = heapq.heappop(self._coming)
            return topic, key, value
        self._now_ms += random.randrange(1, 9)
        user = f"u{random.randrange(USERS)}"
        if random.random() < 0.15:
            value = {"tier": random.randrange(4), "ts": self._late(0.0)}
            return "users", user, None if random.random() < 0.2 else value
        self._number += 1
        # Some are so late that nobody waits for them.
        order = {"id": self._number, "user": user, "amount": random.randrange(100)}
        order["ts"] = self._late(0.03)
        if random.random() < 0.1:
            self._send(random.randrange(150), "orders", order)
        if random.random() < 0.8:
            payment = order | {"ts": order["ts"] + random.randrange(-30, 120)}
            self._send(random.randrange(130), "payments", payment)
        return "orders", user, order

    def _late(self, chance: float) -> int:
        return self._now_ms - self._random.randrange(600 if self._random.random() < chance else 35)

    def _send(self, after_ms: int, topic: str, value: Row) -> None:
        self._sent += 1
        arrival = (self._now_ms + after_ms, self._sent, topic, value["user"], value)
        heapq.heappush(self._coming, arrival)


# --- the process ---------------------------------------------------------------------------------


def run(pipe: int, path: str, spilled: int, commits: int = 0, delay_us: int = 0) -> None:
    """Run "shaken"; report once that it has started, then every commit that is begun.

    Args:
        pipe: For reports.
        path: Of the directory.
        spilled: Whether its state has next to no memory.
        commits: The process is ended by the operating system in this one; 0: it runs for ever.
        delay_us: How long after its begin. The kernel counts, so that a machine that is busy does
            not put off the end until the commit is over.
    """
    tell(pipe, *READY)
    sweep_often()
    _say_phases(Path(path) / "phase", pipe, commits, delay_us / 1e6)
    with millstream.open(Path(path) / "store") as store:
        shaken = pipeline("shaken", Path(path), spilled=bool(spilled))
        shaken.run(store, batch_records=20, epoch_ms=0, tick_ms=1)


def sweep_often() -> None:
    """Let this process sweep all the time."""
    epoch.SNAPSHOT_RECORDS_MIN = SNAPSHOT_RECORDS  # type: ignore[misc] # see the module
    for name, module in sys.modules.items():
        if name.startswith("millstream.processor.") and hasattr(module, "SWEEP_RECORDS"):
            module.SWEEP_RECORDS = SWEEP_RECORDS


def _say_phases(file: Path, pipe: int, commits: int, delay_s: float) -> None:
    """Write down what is being done, whenever that changes, and end in a commit."""
    descriptor, commit = os.open(file, os.O_WRONLY), epoch.Epochs.commit
    started: list[bool] = []
    begun = count(1)

    def saying(function: Callable[..., Any], phase: Callable[[Any], bytes]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            if not started:
                started.append(True)
                tell(pipe, 0)
            os.pwrite(descriptor, phase(self).ljust(8), 0)
            if function is commit:
                tell(pipe, 0)
                if next(begun) == commits:
                    # Nobody handles SIGALRM, which ends a process like SIGKILL.
                    signal.setitimer(signal.ITIMER_REAL, delay_s)
            try:
                return function(self, *arguments)
            finally:
                os.pwrite(descriptor, WAIT.ljust(8), 0)

        return call

    def commit_phase(epochs: Any) -> bytes:
        return SWEEP if epochs._sweeps else COMMIT

    for owner, name, phase in (
        (Topology, "process", lambda _: STEP),
        (epoch.Epochs, "commit", commit_phase),
        (epoch.Epochs, "finish", commit_phase),  # waits for the thread that writes it
        (Connections, "deliver", lambda _: DELIVER),
    ):
        setattr(owner, name, saying(getattr(owner, name), phase))


ROLES: Final = {"run": run}
