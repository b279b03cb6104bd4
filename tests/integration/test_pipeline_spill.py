"""Pipelines whose state is larger than memory: over real files, restarts and damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import millstream
from millstream import DataError, FencedError, Store, UsageError
from millstream.processor import Context, Pipeline, agg, counting, session, tumbling
from millstream.processor.holding import StatePlace, state_holding
from millstream.processor.spilled_states import SpilledStates
from millstream.processor.topology import Topology


def counts(state: StatePlace = "sqlite") -> Pipeline:
    """Counts by key, and by a process function that keeps state without timers."""
    pipeline = Pipeline("counts", state=state, state_cache_bytes="1MiB")
    keyed = pipeline.source("words", type=str).key_by(str.lower)
    keyed.count().to("counts")

    def number(context: Context[str, int], _: str) -> list[int]:
        context.state += 1
        return [context.state]

    keyed.process(number, state=int).to("numbers")
    return pipeline


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with millstream.open(tmp_path, durability="os") as store:
        store.create_topic("words")
        yield store


def say(store: Store, *words: str) -> list[bytes | None]:
    """Append words, run, and return what the counts are now."""
    store.append_many("words", [word.encode() for word in words])
    start = store.offsets("counts")[0].end if "counts" in {t.name for t in store.topics()} else 0
    counts().run(store, until="end")
    written = [record.value for record in store.read("counts", start)]
    numbers = [record.value for record in store.read("numbers", start)]
    assert written == numbers
    return written


def cache(tmp_path: Path) -> apsw.Connection:
    return apsw.Connection(str(tmp_path / "cache" / "counts.db"))


def test_a_restart_goes_on_from_the_file(store: Store, tmp_path: Path) -> None:
    assert [b"1", b"2", b"1"] == say(store, "a", "a", "b")
    with cache(tmp_path) as database:
        # Nobody but a test writes this: it tells whether the file was read, or the topic.
        lies = "UPDATE state_{} SET value = x'019163' WHERE key = x'a161'"
        assert [(1,), (2,)] == list(database.execute("SELECT number FROM states ORDER BY 1"))
        for number in (1, 2):
            database.execute(lies.format(number))
    assert [b"100", b"2", b"1"] == say(store, "a", "b", "c")


def test_spilled_state_is_read_from_outside(store: Store) -> None:
    say(store, "a", "a", "b")
    (item,) = counts().query(store, "words.count", "a")
    assert [2] == item.value


def test_a_run_that_was_killed_left_a_file_to_go_on_from(store: Store, tmp_path: Path) -> None:
    say(store, "a", "b")
    old = (tmp_path / "cache" / "counts.db").read_bytes()
    say(store, "a", "a", "c")
    # The same file as it was before the last run: what is behind it comes from the topic.
    with (tmp_path / "cache" / "counts.db").open("r+b") as file:
        file.truncate()
        file.write(old)
    assert [b"4", b"2", b"2"] == say(store, "a", "b", "c")


def test_a_run_in_memory_in_between_makes_the_file_anew(store: Store, tmp_path: Path) -> None:
    say(store, "a", "b")
    store.append_many("words", [b"a"])
    counts("memory").run(store, until="end")
    assert not (tmp_path / "cache" / "counts.db").exists()
    assert [b"3"] == say(store, "a")


@pytest.mark.parametrize("damage", ["cut", "zeros", "gone", "foreign", "copied"])
def test_a_file_that_cannot_be_trusted_is_made_anew(
    store: Store, tmp_path: Path, damage: str
) -> None:
    say(store, "a", "a", "b")
    path = tmp_path / "cache" / "counts.db"
    with cache(tmp_path) as database:
        database.execute("UPDATE state_1 SET value = x'019163'")
    database.close()
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:5000])
    elif damage == "zeros":
        path.write_bytes(bytes(len(data)))
    elif damage == "gone":
        path.unlink()
    elif damage == "foreign":
        path.write_bytes(b"no database at all" * 1000)
    else:
        path.rename(path.with_suffix(".old"))
        path.write_bytes(data)
    assert [b"3", b"2"] == say(store, "a", "b")


def test_a_page_that_rots_is_an_error_once(store: Store, tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(2000)]
    say(store, *words)
    path = tmp_path / "cache" / "counts.db"
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    store.append_many("words", [word.encode() for word in words])
    with pytest.raises(DataError, match=r"cache of state is damaged.* run again"):
        counts().run(store, until="end")
    assert [b"3"] == say(store, "w7")[-1:]


def test_what_another_run_has_taken_over_is_not_written(store: Store) -> None:
    older = SpilledStates(store.cache_database("p"), 1 << 20, 1)
    newer = SpilledStates(store.cache_database("p"), 1 << 20, 2)
    with newer, pytest.raises(FencedError, match="newer run"):
        older.write()


def test_verify_and_a_dry_run_spill_as_well(store: Store, tmp_path: Path) -> None:
    say(store, "a", "b", "a")
    assert counts().verify(store).ok
    assert ["counts.db"] == [path.name for path in (tmp_path / "cache").glob("*.db")]


def test_explain_says_what_spills_and_what_does_not(store: Store) -> None:
    def number(_: Context[str, int], word: str) -> list[str]:
        return [word]

    def all_kinds(state: StatePlace) -> Pipeline:
        pipeline = Pipeline("kinds", state=state)
        keyed = pipeline.source("words", type=str).key_by(str.lower)
        counts = keyed.count()
        counts.to("out")
        counts.group_by(lambda _: "all").agg(n=agg.count()).to("out")
        keyed.join_table(counts).map(str).to("out")
        keyed.process(number, state=int).to("out")
        keyed.process(number, state=int, on_timer=number).to("out")
        keyed.window(tumbling("1m")).agg(n=agg.count()).to("out")
        keyed.dedup(within="1m").to("out")
        keyed.window(session("1m")).agg(n=agg.count()).to("out")
        keyed.window(counting(3)).agg(n=agg.count()).to("out")
        keyed.join(keyed, within="1m").to("out")
        keyed.join_asof(keyed).to("out")
        return pipeline

    pipeline = all_kinds("sqlite")
    told = {}
    for line in pipeline.explain().splitlines():
        _, state, rest = line.partition("[state ")
        if state:
            name, _, place = rest.rstrip("]").partition(", ")
            told[name] = place
    assert {
        "words.count": "spills",
        "words.group": "spills",
        "words.join": "spills",
        "words.process": "spills",
        "words.process-2": "spills",
        "words.window": "spills",
        "words.dedup": "spills",
        "words.window-2": "spills",
        "words.window-3": "spills",
        "words.join-2": "spills",
        "words.join-3": "spills",
    } == told
    with store.cache_database("kinds") as database:
        states = SpilledStates(database, 1 << 20)
        Topology(pipeline.plan, states=states)
        held = {str(name) for (name,) in database.query("SELECT DISTINCT operator FROM states")}
    assert {name for name, place in told.items() if place.startswith("spills")} == held
    assert "spills" not in all_kinds("memory").explain()


def test_places_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="'memory' or 'sqlite'"):
        state_holding("disk", "1MiB")
    with pytest.raises(UsageError, match="at least 1 MiB"):
        state_holding("sqlite", "1kB")
