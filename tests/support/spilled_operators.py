"""Pipelines that keep a long text of each key, one for each kind of operator that spills.

`ROLES` are processes for zygote.py that run them: with little room, or until a commit kills them.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from zygote import READY, tell

import millstream
from millstream.processor import Context, Pipeline, Timer, agg, counting, session, tumbling
from millstream.processor.holding import StatePlace

KEYS: Final = 10_000
TEXT: Final = "x" * 4_000
"""What is kept of each key: 40 MB of text in all."""
BATCH_RECORDS: Final = 125
DONE: Final = (1, 0, 0, 0)
KILLED: Final = (2, 0, 0, 0)
WINDOW_MS: Final = KEYS // 10

LAST: Any = agg.fold(str, lambda _, text: text, "text", result=len, merge=lambda _, text: text)


def running(rows: Any) -> Any:
    """Each row has its result at once."""
    return rows.key_by("k").agg(long=LAST).map(lambda row: [row.key, row.long])


def windows(rows: Any) -> Any:
    """Ten windows are open together, and the flush closes all of them at once."""
    results = rows.key_by("k").window(tumbling(WINDOW_MS)).agg(long=LAST)
    return results.map(lambda row: [row.key, row.long])


def sessions(rows: Any) -> Any:
    """None ends before the flush."""
    results = rows.key_by("k").window(session(2 * KEYS)).agg(long=LAST)
    return results.map(lambda row: [row.key, row.long])


def counts(rows: Any) -> Any:
    """The second row of each key fills its window."""
    both = agg.fold(str, lambda held, text: held + text, "text", result=len)
    results = rows.key_by("k").window(counting(2)).agg(long=both)
    return results.map(lambda row: [row.key, row.long])


def once(rows: Any) -> Any:
    """The texts are what is remembered."""
    return rows.dedup("text", within=2 * KEYS).map(lambda row: [row["k"], len(row["text"])])


def pairs(rows: Any) -> Any:
    """Rows with a text wait for the ones without."""
    left, right = rows.filter(lambda row: row["text"]), rows.filter(lambda row: not row["text"])
    joined = left.key_by("k").join(right.key_by("k"), within=2 * KEYS)
    return joined.map(lambda pair: [pair.left["k"], len(pair.left["text"])])


def nearest(rows: Any) -> Any:
    """Rows without a text look up the one with it, of which each waits to be asked."""
    left, right = rows.filter(lambda row: not row["text"]), rows.filter(lambda row: row["text"])
    joined = left.key_by("k").join_asof(right.key_by("k"))
    return joined.map(lambda pair: [pair.left["k"], len(pair.right["text"])])


def remember(context: Context[str, str], row: dict[str, Any]) -> None:
    """W is a second row behind."""
    if row["text"]:
        context.state = row["text"]
        context.set_timer(row["t"])


def remind(context: Context[str, str], _: Timer) -> list[list[object]]:
    return [[context.key, len(context.state)]]


def reminders(rows: Any) -> Any:
    return rows.key_by("k").process(remember, state=str, on_timer=remind)


def updates(rows: Any) -> Any:
    """Windows that say something before they close; only what is final is looked at."""
    results = rows.key_by("k").window(tumbling(WINDOW_MS)).agg(long=LAST)
    final = results.emit("update", every=5).filter(lambda row: row.status == "final")
    return final.map(lambda row: [row.key, row.long])


class Kind(NamedTuple):
    """One of the pipelines."""

    build: Callable[[Any], Any]
    again: bool = False
    """Whether each key has a second row, without a text."""
    disorder: int = KEYS


KINDS: Final = {
    "running": Kind(running),
    "windows": Kind(windows),
    "sessions": Kind(sessions),
    "counts": Kind(counts, again=True),
    "once": Kind(once),
    "pairs": Kind(pairs, again=True),
    "nearest": Kind(nearest, again=True, disorder=0),
    "reminders": Kind(reminders, again=True),
    "updates": Kind(updates),
}


def lengths(kind: str, state: StatePlace) -> Pipeline:
    """How long the text of each key is."""
    pipeline = Pipeline("lengths", state=state, state_cache_bytes="4MiB")
    rows = pipeline.source("rows", type=dict, time="t", disorder=KINDS[kind].disorder)
    KINDS[kind].build(rows).to("out")
    return pipeline


def fill(home: Path, kind: str, keys: int) -> None:
    """Make a store with the rows."""
    with millstream.open(home, durability="os") as store:
        store.create_topic("rows")
        for again in range(1 + KINDS[kind].again):
            for start in range(0, keys, 250):
                store.append_many(
                    "rows", [_row(key, again, keys) for key in range(start, start + 250)]
                )


def _row(key: int, again: int, keys: int) -> bytes:
    text = "" if again else f"{key} {TEXT}"
    return msgspec.json.encode({"k": f"key {key}", "text": text, "t": again * keys + key})


# --- the process ---------------------------------------------------------------------------------


def _run(
    make: Callable[[], Pipeline], pipe: int, path: str, room_bytes: int, kill_at: int, flush: bool
) -> None:
    """Report `DONE` after a run to the end, or `KILLED` at the commit that kills it.

    Args:
        make: Makes what is run.
        pipe: Of the zygote.
        path: Of the store.
        room_bytes: What it may take beside what it takes with nothing in its state; 0 for all.
        kill_at: The commit, counted from one; 0 for none.
        flush: Whether the end of the input ends what is open.
    """
    commits = 0

    def kill(_: object) -> None:
        nonlocal commits
        commits += 1
        if commits == kill_at:
            tell(pipe, *KILLED)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.stack_size(1 << 20)  # what a thread sets aside is address space, too
    with millstream.open(path, durability="os") as store:
        tell(pipe, *READY)
        if room_bytes:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + room_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        make().run(
            store,
            until="end",
            on_end="flush" if flush else "hold",
            batch_records=BATCH_RECORDS,
            epoch_ms=0 if kill_at else 100,  # a commit for each batch, however fast it is
            on_progress=kill,
        )
    tell(pipe, *DONE)


STATES: Final[Sequence[StatePlace]] = ("memory", "sqlite")
ROLES: Final = {
    f"{kind} {state}": partial(_run, partial(lengths, kind, state))
    for kind in KINDS
    for state in STATES
}
