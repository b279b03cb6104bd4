"""A pipeline between files and databases outside the store, killed again and again."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import killed_connectors
import pytest
from killed_connectors import DISORDER_MS, LINES, ROWS

import millstream
from millstream import Store
from millstream.processor import list_checkpoints

KILLS = int(os.environ.get("MILLSTREAM_KILLS", "15"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))

pytestmark = pytest.mark.crash


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


def check_replay(store: Store, path: Path, note: str) -> None:
    """What is outside is what a replay gives, and what is changed there is found."""
    pipeline = killed_connectors.pipeline(path)
    epochs = [each.epoch for each in list_checkpoints(store, "killed") if each.kept_ms is not None]
    assert len(epochs) == 10
    for since in (None, *epochs):
        found = pipeline.verify(store, since=since)
        assert found.ok, (note, found.differences, found.sinks)
        skipped = [each.sink for each in found.sinks if each.skipped is not None]
        assert ["call"] == skipped, note
    last = max((path / "out").iterdir())
    last.write_bytes(last.read_bytes().replace(b'"n":', b'"m":', 1))
    with closing(sqlite3.connect(path / "out.db")) as database:
        database.execute("DELETE FROM numbers WHERE rowid = (SELECT max(rowid) FROM numbers)")
        database.execute("UPDATE sums SET total = -1 WHERE window_start = 0")
        database.commit()
    found = pipeline.verify(store)
    differing = {each.sink for each in found.sinks if each.difference is not None}
    assert {"numbers-files", "numbers", "sums"} == differing, note


@pytest.mark.slow
def test_killed_at_random_moments_everything_is_outside_exactly_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, killed_connectors.__file__, str(tmp_path), str(KILLS), str(SEED)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rounds, killed, places = map(int, done.stdout.split())
    assert killed == KILLS
    assert places > KILLS / 5, "the kills did not hit different moments"
    note = f"seed {SEED}"

    expected = {("lines", n) for n in range(rounds * LINES)}
    expected |= {("rows", n) for n in range(rounds * ROWS)}
    numbers = query(tmp_path / "out.db", "SELECT source, n FROM numbers ORDER BY rowid")
    assert sorted(expected) == sorted(numbers), note
    for source in ("lines", "rows"):
        of_source = [n for each, n in numbers if each == source]
        assert of_source == sorted(of_source), note

    files = sorted((tmp_path / "out").iterdir())
    assert [] == [path.name for path in files if path.name.startswith(".")]
    lines = [json.loads(line) for path in files for line in path.read_bytes().splitlines()]
    assert numbers == [(line["source"], line["n"]) for line in lines], note

    called = [json.loads(line) for line in (tmp_path / "called").read_bytes().splitlines()]
    assert numbers == list(dict.fromkeys((row["source"], row["n"]) for row in called)), note

    reached = min(rounds * LINES - 1 - DISORDER_MS, rounds * ROWS - 1)
    sums: dict[tuple[str, int], int] = defaultdict(int)
    for source, n in expected:
        if n // 50 * 50 + 50 <= reached:
            sums[source, n // 50 * 50] += n
    assert sums
    closed = query(tmp_path / "out.db", "SELECT key, window_start, total FROM sums")
    assert dict(sums) == {(key, start): total for key, start, total in closed}, note

    with millstream.open(tmp_path / "store") as store:
        bad = [
            json.loads(record.value.split(b":")[1]) for record in store.read("bad") if record.value
        ]
        assert list(range(rounds)) == bad, note
        check_replay(store, tmp_path, note)
    again = len(called) - len(numbers)
    print(f"{rounds} runs, {killed} killed at {places} places, {again} calls again")  # noqa: T201 - for the table of robustness
