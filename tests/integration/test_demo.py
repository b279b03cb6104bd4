"""The demo does what it says, and its numbers are those of a plain loop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

import millstream
from millstream.cli import demo, demo_pipeline
from millstream.cli.demo import flight_lines
from millstream.cli.demo_pipeline import hourly_delays

HOUR_MS = 3_600_000
DISORDER_MS = 4 * HOUR_MS


def plain_loop(lines: list[bytes]) -> tuple[list[dict[str, Any]], int]:
    """Closed windows in the order of closing and the number of late rows, without Millstream."""
    newest = None
    windows: dict[int, dict[str, list[int]]] = {}
    results, late = [], 0
    for line in lines:
        flight = msgspec.json.decode(line)
        at = int(datetime.fromisoformat(flight["scheduled"]).timestamp()) * 1000
        end = at - at % HOUR_MS + HOUR_MS
        if flight["delay"] is not None:
            if newest is not None and end <= newest - DISORDER_MS:
                late += 1
            else:
                windows.setdefault(end, {}).setdefault(flight["origin"], []).append(flight["delay"])
        newest = at if newest is None else max(newest, at)
        for closing in sorted(end for end in windows if end <= newest - DISORDER_MS):
            results += [
                {
                    "key": key,
                    "window_start": closing - HOUR_MS,
                    "window_end": closing,
                    "departures": len(delays),
                    "mean_delay": sum(delays) / len(delays),
                    "max_delay": max(delays),
                }
                for key, delays in sorted(windows.pop(closing).items())
            ]
    return results, late


@pytest.mark.parametrize("batch_records", [None, 100, 7])
def test_hourly_delays_equal_a_plain_loop(batch_records: int | None) -> None:
    lines = flight_lines()
    expected, late = plain_loop(lines)
    with millstream.open(":memory:") as store:
        store.create_topic("flights")
        store.append_many("flights", lines)
        hourly_delays().run(store, until="end", batch_records=batch_records)
        results = [msgspec.json.decode(record.value or b"") for record in store.read("hourly")]
        late_records = sum(1 for _ in store.read("hourly.late"))

    assert expected == results
    assert late == late_records == 21


@pytest.mark.slow
@pytest.mark.crash
def test_demo_kills_its_pipeline_and_finds_identical_results(tmp_path: Path) -> None:
    store = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "millstream", "demo", "--dir", str(store)],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert "12,208 flights" in done.stdout
    assert 2 == len(re.findall("kill -9 number", done.stdout))
    assert "Identical, record by record" in done.stdout
    assert store.is_dir()
    suggested = done.stdout.rpartition("Try next")[2].splitlines()[1:]
    assert 4 == len(suggested)
    for line in suggested[::2]:
        # Nobody has put the command on the path of this shell.
        found = subprocess.check_output(
            line, shell=True, cwd=tmp_path, env={**os.environ, "PATH": os.defpath}, text=True
        )
        assert "hourly" in found or "EWR" in found


def test_demo_refuses_a_directory_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [sys.executable, "-m", "millstream", "demo", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 2 == done.returncode
    assert "not empty" in done.stderr
    assert ["mine"] == [path.name for path in tmp_path.iterdir()]


INTERRUPTER = """
import os, signal
open("pid", "w").write(str(os.getpid()))
signal.alarm(20)
os.kill(os.getppid(), signal.SIGINT)
signal.pause()
"""


def test_an_interrupted_demo_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went on, and printed a traceback when its directory was gone."""
    (tmp_path / "interrupter.py").write_text(INTERRUPTER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_pipeline, "__name__", "interrupter")
    with pytest.raises(KeyboardInterrupt):
        demo._run_child(tmp_path, "any", kill_after=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
