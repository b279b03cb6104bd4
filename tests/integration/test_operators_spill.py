"""Operators whose state is larger than memory: over real files, with a limit, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

import millstream
from millstream.processor import Context, Pipeline, Timer, agg, counting, session, tumbling
from millstream.processor.holding import StatePlace

KEYS = 20_000
TEXT = "x" * 2_000
"""What is kept of each key: 40 MB of text in all."""

WINDOW_MS = KEYS // 10
ROOM_BYTES = 40 << 20
"""What a run may take beside what it takes with nothing in its state."""

LAST: Any = agg.fold(str, lambda _, text: text, "text", result=len, merge=lambda _, text: text)


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


KINDS = {
    "windows": Kind(windows),
    "sessions": Kind(sessions),
    "counts": Kind(counts, again=True),
    "once": Kind(once),
    "pairs": Kind(pairs, again=True),
    "nearest": Kind(nearest, again=True, disorder=0),
    "reminders": Kind(reminders, again=True),
    "updates": Kind(updates),
}

kinds = pytest.mark.parametrize("kind", KINDS)


def lengths(kind: str, state: StatePlace) -> Pipeline:
    """How long the text of each key is."""
    pipeline = Pipeline("lengths", state=state, state_cache_bytes="4MiB")
    rows = pipeline.source("rows", type=dict, time="t", disorder=KINDS[kind].disorder)
    KINDS[kind].build(rows).to("out")
    return pipeline


def fill(home: Path, kind: str, keys: int) -> None:
    with millstream.open(home, durability="os") as store:
        store.create_topic("rows")
        for again in range(1 + KINDS[kind].again):
            for start in range(0, keys, 1_000):
                store.append_many(
                    "rows", [row(key, again, keys) for key in range(start, start + 1_000)]
                )


def row(key: int, again: int, keys: int) -> bytes:
    text = "" if again else f"{key} {TEXT}"
    return msgspec.json.encode({"k": f"key {key}", "text": text, "t": again * keys + key})


CHILD = """
import os, resource, signal, sys, threading
import millstream
sys.path.insert(0, {folder!r})
from test_operators_spill import ROOM_BYTES, lengths

commits = 0

def kill(metrics):
    global commits
    commits += 1
    if commits == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)

threading.stack_size(1 << 20)  # what a thread sets aside is address space, too
pipeline = lengths({kind!r}, {state!r})
with millstream.open({home!r}, durability="os") as store:
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    if {limited}:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipeline.run(store, until="end", on_end={on_end!r}, batch_records=500, on_progress=kill)
    print("done")
"""


def child(
    home: Path,
    kind: str,
    state: str,
    *,
    kill_at: int = 0,
    limited: bool = False,
    on_end: str = "hold",
) -> subprocess.CompletedProcess[str]:
    code = CHILD.format(
        folder=str(Path(__file__).parent),
        home=str(home),
        kind=kind,
        state=state,
        kill_at=kill_at,
        limited=limited,
        on_end=on_end,
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )


def results(home: Path) -> list[bytes | None]:
    with millstream.open(home, read_only=True) as store:
        return [record.value for record in store.read("out")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
@kinds
def test_state_may_be_larger_than_memory(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, kind, KEYS)
    # Without room the interpreter or a library in C ends, one way or another.
    refused = child(tmp_path, kind, "memory", limited=True)
    assert ("", True) == (refused.stdout, refused.returncode != 0)
    done = child(tmp_path, kind, "sqlite", limited=True)
    assert ("done", "") == (done.stdout.strip(), done.stderr)
    # A restart reads all of the state, and ends what waits for time.
    ended = child(tmp_path, kind, "sqlite", limited=True, on_end="flush")
    assert ("done", "") == (ended.stdout.strip(), ended.stderr)
    written = [msgspec.json.decode(value or b"") for value in results(tmp_path)]
    expected = [[f"key {key}", len(f"{key} {TEXT}")] for key in range(KEYS)]
    assert expected == sorted(written, key=lambda row: int(row[0][4:]))


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.skipif(sys.platform != "linux", reason="the child looks at /proc")
@kinds
def test_operators_that_spill_go_on_after_kill_9(tmp_path: Path, kind: str) -> None:
    for name, state in [("killed", "sqlite"), ("whole", "memory")]:
        home = tmp_path / name
        fill(home, kind, 6_000)
        if state == "sqlite":
            for kill_at in (1, 2, 1):
                assert -signal.SIGKILL == child(home, kind, state, kill_at=kill_at).returncode
        done = child(home, kind, state, on_end="flush")
        assert ("done", "") == (done.stdout.strip(), done.stderr)
    assert 6_000 == len(results(tmp_path / "whole"))
    assert results(tmp_path / "whole") == results(tmp_path / "killed")
