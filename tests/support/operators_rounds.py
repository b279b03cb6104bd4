"""Kill the pipeline of killed_operators.py again and again, and hold it against a quiet run."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import killed_operators
import msgspec
from kill_rounds import fast_directory
from killed_operators import PARTITIONS, START, Feed, pipeline
from zygote import TIMEOUT, Zygote

import millstream
from millstream import Store, diagnose
from millstream.processor import Pipeline

COMMITS_MAX = 10
"""A process that is not killed while it starts begins so many commits at most: lives are counted,
because how much is done in a time depends on what else the machine does."""
MOMENT_S = 0.03
"""The longest time from the begin of its last commit to its end."""
EARLY = 0.3
"""Share of those that are killed while they start."""
EXACT = ("told", "sessions", "counts", "watched", "late0", "late1", "late2")
"""Topics that depend on nothing but the input."""
TABLES = ("told", "sessions", "reminders")
MACHINE = {"file system", "free space", "clock", "sync"}
"""What a diagnosis says of the machine, not of the store."""
NAMES = ("shaken", "quiet")


@dataclass
class Kills:
    """What the processes were doing, and how far they were, when they were killed."""

    phases: Counter[bytes] = field(default_factory=Counter)
    places: set[int] = field(default_factory=set)
    records: int = 0
    """Put out in the end."""


def kill_operators(seed: int, kills: int, *, spilled: bool) -> Kills:
    """That many kills, then everything is compared with a run that nobody kills, all in memory.

    Raises:
        AssertionError: Something differs, or is left.
    """
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        path, feed = Path(directory), Feed(seed)
        with millstream.open(path / "store") as store:
            for topic in ("orders", "payments", "users"):
                store.create_topic(topic, partitions=PARTITIONS)
            done = _kill_again_and_again(store, feed, path, Random(seed), kills, spilled)
            for name, spills in zip(NAMES, (spilled, False), strict=True):
                _run_to_the_end(store, name, pipeline(name, path, spilled=spills))
            for topic in EXACT:
                quiet = _content(store, f"quiet.{topic}")
                assert quiet == _content(store, f"shaken.{topic}"), topic
                done.records += len(quiet)
            for name in NAMES:
                _check(store, name, path)
            for name in ("told", "sessions"):
                assert _table(path / "quiet.db", name) == _table(path / "shaken.db", name), name
            assert store.verify(deep=True).ok
        _check_nothing_is_left(path)
    return done


def _kill_again_and_again(
    store: Store, feed: Feed, path: Path, random: Random, kills: int, spilled: bool
) -> Kills:
    """Input comes before a process starts and while it runs."""
    done, phase, start_s = Kills(), path / "phase", 0.3
    with Zygote(killed_operators.__name__) as zygote:
        while done.phases.total() < kills:
            phase.write_bytes(START.ljust(8))
            for _ in range(random.randrange(3)):
                feed.append_piece(store)
            share = random.random()
            early, commits = random.random() < EARLY, random.randint(1, COMMITS_MAX)
            # Most commits are short, and what comes after one is a wait for input.
            delay_us = 1 + int(share**3 * MOMENT_S * 1e6)
            plan = (0, 0) if early else (commits, delay_us)
            with zygote.spawn("run", path, int(spilled), *plan) as child:
                started = time.monotonic()
                if early:
                    time.sleep(share * start_s)
                else:
                    assert len(child.hear()) == 1
                    start_s = time.monotonic() - started
                    for _ in range(commits):
                        feed.append_piece(store)
                        assert len(child.hear()) == 1
                    child.hear(1 << 40)  # until it ends
                child.kill()
            done.phases[phase.read_bytes().strip()] += 1
            if "shaken" in store.groups():
                done.places.add(sum(each.committed or 0 for each in store.group_lag("shaken")))
    return done


def _run_to_the_end(store: Store, name: str, made: Pipeline) -> None:
    """Until everything is read, the wall clock has reminded of all, and all windows are closed."""
    run = made.run
    run(store, until="end", tick_ms=1)
    missing = _seen(store, name)
    deadline = time.monotonic() + TIMEOUT
    while missing:
        assert time.monotonic() < deadline, f"{name} never reminded of {missing}"
        run(store, until="end", tick_ms=1)
        reminders = _rows(store, f"{name}.reminders")
        missing = missing - {row["id"] for row in reminders if row["clock"] == "wall"}
    run(store, until="end", on_end="flush")


def _seen(store: Store, name: str) -> set[int]:
    """The orders that were not late, and so have timers."""
    return {row["id"] for row in _rows(store, f"{name}.watched") if "seen" in row}


def _content(store: Store, topic: str) -> list[tuple[Any, ...]]:
    return [(each.timestamp_ms, each.key, each.value, each.headers) for each in store.read(topic)]


def _rows(store: Store, topic: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(record.value or b"") for record in store.read(topic)]


def _table(path: Path, name: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT rowid, * FROM {name} ORDER BY rowid").fetchall()


def _as_table(records: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(number, *row.values()) for number, row in enumerate(records, 1)]


def _check(store: Store, name: str, path: Path) -> None:
    """What holds of one run alone: tables are what topics say, and a replay says the same."""
    database = path / f"{name}.db"
    assert _as_table(_rows(store, f"{name}.told")) == _table(database, "told")
    sessions = {(row["key"], row["window_start"]): row for row in _rows(store, f"{name}.sessions")}
    assert _as_table(list(sessions.values())) == _table(database, "sessions")
    reminders = _rows(store, f"{name}.reminders")
    assert _as_table(reminders) == _table(database, "reminders")
    times = Counter((row["clock"], row["id"]) for row in reminders)
    seen = _seen(store, name)
    assert times == Counter((clock, order) for clock in ("event", "wall") for order in seen)
    found = pipeline(name, path).verify(store)
    assert found.ok, found.differences
    # Outboxes have been trimmed behind what was delivered, topics are compared whole.
    compared = [*(f"{name}.{topic}" for topic in EXACT), f"{name}.reminders"]
    assert not {place.topic for place in found.skipped} & set(compared)
    assert found.records_compared >= sum(len(_content(store, topic)) for topic in compared)


def _check_nothing_is_left(path: Path) -> None:
    """Nobody has to clean up: neither in the store, nor in the user's databases."""
    found = [each for each in diagnose(path / "store") if each.level in {"warning", "error"}]
    assert [] == [each for each in found if each.check not in MACHINE]
    assert {each.name for each in path.iterdir()} == {"store", "phase", "shaken.db", "quiet.db"}
    locks = {
        bytes.fromhex(each.stem.removeprefix("owner-")).decode()
        for each in (path / "store" / "locks").iterdir()
    }
    owners = ["pipeline/{0}", *(f"sink/{{0}}/{{0}}-{name}" for name in TABLES)]
    assert locks == {each.format(name) for name in NAMES for each in owners}
    for name in NAMES:
        with closing(sqlite3.connect(path / f"{name}.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            tables = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            assert {each for (each,) in tables} == {*TABLES, "millstream_positions"}
