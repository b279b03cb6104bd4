"""Windows that are larger than memory together: over real files, with a limit, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import millstream
from millstream.processor import Pipeline, agg, tumbling
from millstream.processor.holding import StatePlace

KEYS = 40_000
TEXT = "x" * 1_000
"""What is kept of each key: 40 MB of text in all."""

WINDOW_MS = 4_000
ROOM_BYTES = 40 << 20
"""What a run may take beside what it takes with nothing in its state."""


def lengths(state: StatePlace) -> Pipeline:
    """How long the last text of each key is in each window; ten of them are open together."""
    pipeline = Pipeline("lengths", state=state, state_cache_bytes="4MiB")
    rows = pipeline.source("rows", type=dict, time="t", disorder=KEYS)
    last = agg.fold(str, lambda _, text: text, "text", result=len)
    windows = rows.key_by("k").window(tumbling(WINDOW_MS))
    windows.agg(n=agg.count(), long=last).map(lambda row: [row.key, row.n, row.long]).to("out")
    return pipeline


def fill(home: Path, keys: int) -> None:
    with millstream.open(home, durability="os") as store:
        store.create_topic("rows")
        for start in range(0, keys, 1_000):
            store.append_many(
                "rows",
                [
                    msgspec.json.encode({"k": f"key {key}", "text": f"{key} {TEXT}", "t": key})
                    for key in range(start, start + 1_000)
                ],
            )


CHILD = """
import os, resource, signal, sys, threading
import millstream
sys.path.insert(0, {folder!r})
from test_windows_spill import ROOM_BYTES, lengths

commits = 0

def kill(metrics):
    global commits
    commits += 1
    if commits == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)

threading.stack_size(1 << 20)  # what a thread sets aside is address space, too
pipeline = lengths({state!r})
with millstream.open({home!r}, durability="os") as store:
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    if {limited}:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipeline.run(store, until="end", on_end={on_end!r}, batch_records=2_000, on_progress=kill)
    print("done")
"""


def child(
    home: Path, state: str, *, kill_at: int = 0, limited: bool = False, on_end: str = "hold"
) -> subprocess.CompletedProcess[str]:
    code = CHILD.format(
        folder=str(Path(__file__).parent),
        home=str(home),
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
def test_open_windows_may_be_larger_than_memory(tmp_path: Path) -> None:
    fill(tmp_path, KEYS)
    # Without room the interpreter or a library in C ends, one way or another.
    refused = child(tmp_path, "memory", limited=True)
    assert ("", True) == (refused.stdout, refused.returncode != 0)
    done = child(tmp_path, "sqlite", limited=True)
    assert ("done", "") == (done.stdout.strip(), done.stderr)
    # A restart reads all of the state, and closes all windows at once.
    ended = child(tmp_path, "sqlite", limited=True, on_end="flush")
    assert ("done", "") == (ended.stdout.strip(), ended.stderr)
    written = [msgspec.json.decode(value or b"") for value in results(tmp_path)]
    expected = [[f"key {key}", 1, len(f"{key} {TEXT}")] for key in range(KEYS)]
    assert expected == sorted(written, key=lambda row: int(row[0][4:]))


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.skipif(sys.platform != "linux", reason="the child looks at /proc")
def test_windows_that_spill_go_on_after_kill_9(tmp_path: Path) -> None:
    for name, state in [("killed", "sqlite"), ("whole", "memory")]:
        fill(tmp_path / name, 6_000)
        if state == "sqlite":
            for kill_at in (1, 2, 1):
                assert -signal.SIGKILL == child(tmp_path / name, state, kill_at=kill_at).returncode
        done = child(tmp_path / name, state, on_end="flush")
        assert ("done", "") == (done.stdout.strip(), done.stderr)
    assert 6_000 == len(results(tmp_path / "whole"))
    assert results(tmp_path / "whole") == results(tmp_path / "killed")
