"""Pipelines over a store: exactly once, whatever happens between two epochs.

The expected records always come from the same pipeline run over lists in one step.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

import millstream
from millstream import (
    DataError,
    LockedError,
    Record,
    RecordError,
    Store,
    TopicPartition,
    UnknownTopicError,
    UsageError,
    partition_of,
)
from millstream.processor import FixedWindows, Metrics, Pipeline, agg, tumbling
from millstream.processor.state_log import read_checkpoint

Written = dict[int, list[tuple[int, bytes | None, bytes | None]]]
"""(timestamp, key, value) of the records of each partition."""


def totals(name: str = "totals", windows: FixedWindows | None = None) -> Pipeline:
    pipeline = Pipeline(name)
    orders = pipeline.source("orders", time="t", disorder=40)
    orders.dead_letters.to("orders.dead")
    results = (
        orders.filter(lambda order: order["x"] > -9)
        .key_by("k")
        .window(windows or tumbling(100), grace=20)
        .agg(n=agg.count(), total=agg.sum("x"), mean=agg.mean("x"))
    )
    results.to("out")
    results.late.to("out")
    daily = results.key_by(lambda _: "all").window(tumbling(300)).agg(n=agg.sum("n"))
    daily.to("out")
    return pipeline


def orders(count: int, seed: int = 1) -> list[bytes]:
    """Events that advance, out of order, some late and some no JSON."""
    chance = random.Random(seed)
    lines = []
    for number in range(count):
        time = number * 5 - chance.choice([0, 0, 10, 40, 60, 200])
        line = f'{{"k":"k{chance.randrange(4)}","t":{time},"x":{chance.uniform(-10, 10):.3f}}}'
        lines.append(line.encode() if chance.random() > 0.03 else b"{broken")
    return lines


def fill(store: Store, lines: Sequence[bytes], partitions: int = 1) -> None:
    store.create_topic("orders", partitions=partitions, exist_ok=True)
    for start in range(0, len(lines), 25):
        part = lines[start : start + 25]
        store.append_many(
            "orders", part, [b"input key"] * len(part), partition=start // 25 % partitions
        )


def written(records: Sequence[Record]) -> Written:
    partitions: Written = {}
    for record in records:
        entry = (record.timestamp_ms, record.key, record.value)
        partitions.setdefault(record.partition, []).append(entry)
    return partitions


def outputs(store: Store, topic: str = "out") -> Written:
    return written(list(store.read(topic)))


def expected(store: Store, topic: str = "out", on_end: str = "hold") -> Written:
    rows = list(store.read("orders"))
    result = totals().test({"orders": rows}, on_end=on_end)  # type: ignore[arg-type]  # a literal
    return written(result.records(topic))


def state_topics(store: Store) -> list[str]:
    return [topic.name for topic in store.topics(internal=True) if topic.name.startswith("@")]


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as opened:
        yield opened


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("batch_records", [1, 7, 1000, 100_000, None])
def test_outputs_do_not_depend_on_the_micro_batch(
    store: Store, batch_records: int | None, partitions: int
) -> None:
    fill(store, orders(400), partitions)
    totals().run(store, until="end", batch_records=batch_records, epoch_ms=3)
    assert outputs(store) == expected(store)
    assert outputs(store, "orders.dead") == expected(store, "orders.dead")
    assert len(outputs(store)[0]) > 50


@pytest.mark.parametrize("partitions", range(1, 9))
def test_e60_a_fresh_run_gives_the_recorded_bytes_with_any_number_of_partitions(
    store: Store, partitions: int
) -> None:
    chance, lines = random.Random(partitions), orders(300, partitions)
    store.create_topic("out", partitions=partitions)
    for start in range(0, len(lines), 50):
        fill(store, lines[start : start + 50], partitions)
        size = chance.choice([1, 3, 20, None])
        totals().run(store, until="end", batch_records=size, epoch_ms=chance.choice([0, 3]))
    recorded = outputs(store), outputs(store, "orders.dead")
    assert partitions == 1 or len(recorded[0]) > 1
    assert sum(map(len, recorded[0].values())) > 30
    assert totals().verify(store).ok
    dead = store.offsets("orders.dead")[0].end
    store.delete_topic("out")
    store.create_topic("out", partitions=partitions)
    totals("fresh").run(store, until="end")
    assert recorded[0] == outputs(store)
    assert recorded[1] == written(list(store.read("orders.dead", dead)))


@pytest.mark.parametrize("torn_bytes", [1, 24, 2000, 4119])
def test_e62_a_commit_torn_in_the_log_of_the_catalog_never_was(
    tmp_path: Path, torn_bytes: int
) -> None:
    """The machine dies while SQLite writes the last commit of the pipeline, after its outputs."""
    with millstream.open(tmp_path / "store") as store:
        fill(store, orders(200))
        totals().run(store, until="end", batch_records=7, epoch_ms=0)
        right = expected(store)
        shutil.copytree(tmp_path / "store", tmp_path / "torn")
    with (tmp_path / "torn" / "catalog.db-wal").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - torn_bytes)
    with millstream.open(tmp_path / "torn") as store:
        committed = read_checkpoint(store, "totals").next_offsets()
        assert {TopicPartition("orders", 0): 200} != committed, "the last commit is gone"
        totals().run(store, until="end")
        assert right == outputs(store)
        assert totals().verify(store).ok


def test_e62_a_run_whose_state_was_deleted_is_refused(store: Store) -> None:
    fill(store, orders(50))
    totals().run(store, until="end")
    store.delete_topic("@state/totals/orders.window")
    with pytest.raises(DataError, match="was deleted with its topic: restore the store"):
        totals().run(store, until="end")


def test_e62_the_directory_of_state_from_an_older_copy_is_refused(tmp_path: Path) -> None:
    root, older = tmp_path / "store", tmp_path / "older"
    lines = orders(120)
    for part, copies in ((lines[:60], True), (lines[60:], False)):
        with millstream.open(root) as store:
            fill(store, part)
            totals().run(store, until="end")
        if copies:
            shutil.copytree(root / "state", older)
    shutil.rmtree(root / "state")
    shutil.copytree(older, root / "state")
    with millstream.open(root) as store:
        with pytest.raises(
            DataError, match=r"bytes but .* were durable .*@state/totals/"
        ) as caught:
            totals().run(store, until="end")
        assert caught.value.path is not None
        assert outputs(store) == expected(store), "what is visible stays so"


@pytest.mark.parametrize("step", [1, 10, 60])
def test_runs_go_on_where_the_last_one_stopped(store: Store, step: int) -> None:
    lines = orders(240)
    fill(store, lines[:step], 2)
    for start in range(step, len(lines), step):
        metrics = totals().run(store, until="end", epoch_ms=0)
        assert metrics.records_in == step
        fill(store, lines[start : start + step], 2)
    totals().run(store, until="end")
    assert outputs(store) == expected(store)


def test_a_run_without_input_commits_nothing(store: Store) -> None:
    fill(store, orders(50))
    totals().run(store, until="end")
    before = store.checkpoint("pipeline/totals")
    metrics = totals().run(store, until="end")
    assert metrics.epochs == 0
    assert metrics.records_in == 0
    assert metrics.lag == 0
    assert store.checkpoint("pipeline/totals") == before


def test_e18_windows_that_were_held_go_on_and_are_emitted_once(store: Store) -> None:
    lines = orders(150)
    for part, on_end in ((lines[:70], "hold"), (lines[70:71], "hold"), (lines[71:], "flush")):
        fill(store, part)
        totals().run(store, until="end", on_end=on_end)  # type: ignore[arg-type]  # a literal
        assert outputs(store) == expected(store, on_end=on_end)


def test_e18_flushed_windows_are_not_emitted_again(store: Store) -> None:
    lines = orders(100)
    fill(store, lines)
    totals().run(store, until="end", on_end="flush")
    flushed = outputs(store)
    assert flushed == expected(store, on_end="flush")
    fill(store, [lines[-1], b'{"k":"k0","t":2000,"x":1}', b'{"k":"k0","t":9000,"x":1}'])
    totals().run(store, until="end", on_end="flush")
    after = outputs(store)[0]
    assert after[: len(flushed[0])] == flushed[0]
    new = [value for _, _, value in after[len(flushed[0]) :]]
    assert new[0] == lines[-1], "a row of a flushed window is late"
    assert [value for value in new if b'"window_start":2000' in (value or b"")] != []
    results = [msgspec.json.decode(value or b"") for _, _, value in after]
    windows = [
        (one["key"], one["window_start"], one["window_end"]) for one in results if "key" in one
    ]
    assert len(windows) == len(set(windows)), "no window is told twice"


def test_only_one_process_runs_a_pipeline(store: Store) -> None:
    fill(store, orders(10))
    with (
        store.own("pipeline/totals"),
        pytest.raises(LockedError, match=r"pipeline/totals' is run by process \d+, this one: end"),
    ):
        totals().run(store, until="end")
    totals().run(store, until="end")


def test_e63_a_changed_plan_with_live_state_is_refused_and_shown(store: Store) -> None:
    fill(store, orders(50))
    totals().run(store, until="end")
    with pytest.raises(UsageError) as caught:
        totals(windows=tumbling(200)).run(store, until="end")
    message = str(caught.value)
    assert "pipeline 'totals' has state of another plan" in message
    assert "- source orders; key_by 'k'; window tumbling 100ms, grace 20ms; agg " in message
    assert "+ source orders; key_by 'k'; window tumbling 200ms, grace 20ms; agg " in message
    totals("other", tumbling(200)).run(store, until="end")


def test_a_plan_may_change_when_no_state_is_alive(store: Store) -> None:
    fill(store, orders(50))
    totals().run(store, until="end", on_end="flush")
    fill(store, [b'{"k":"k0","t":9000,"x":1}', b'{"k":"k0","t":9900,"x":1}'])
    totals(windows=tumbling(200)).run(store, until="end")
    values = [value or b"" for _, _, value in outputs(store)[0]]
    assert any(b'"window_start":9000,"window_end":9200' in value for value in values)


def test_operators_without_state_may_change_at_any_time(store: Store) -> None:
    lines = orders(200)
    fill(store, lines[:100])
    totals().run(store, until="end")
    changed = Pipeline("totals")
    source = changed.source("orders", time="t", disorder=40)
    source.dead_letters.to("orders.dead")
    kept = source.filter(lambda order: order["x"] > -9).map(lambda order: order)
    results = (
        kept.key_by("k")
        .window(tumbling(100), grace=20)
        .agg(n=agg.count(), total=agg.sum("x"), mean=agg.mean("x"))
    )
    results.to("out")
    results.late.to("out")
    daily = results.key_by(lambda _: "all").window(tumbling(300)).agg(n=agg.sum("n"))
    daily.to("out")
    fill(store, lines[100:])
    changed.run(store, until="end")
    assert outputs(store) == expected(store)


def test_an_error_makes_nothing_of_its_epoch_visible(store: Store) -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("orders", time="t")
    source.map(lambda order: 1 / order["x"]).to("out")
    fill(store, [b'{"t":1,"x":1}', b'{"t":2,"x":2}'])
    pipeline.run(store, until="end")
    fill(store, [b'{"t":3,"x":4}', b'{"t":4,"x":0}'])
    for _ in range(2):
        with pytest.raises(RecordError, match="ZeroDivisionError") as caught:
            pipeline.run(store, until="end")
        assert caught.value.offset == 3
        assert [value for _, _, value in outputs(store)[0]] == [b"1.0", b"0.5"]


def test_offsets_are_committed_under_the_name_of_the_pipeline(store: Store) -> None:
    fill(store, orders(75), 2)
    totals().run(store, until="end")
    assert store.group("totals").offsets == {
        TopicPartition("orders", 0): 50,
        TopicPartition("orders", 1): 25,
    }


def test_output_partitions_follow_the_keys(store: Store) -> None:
    store.create_topic("out", partitions=3)
    fill(store, orders(400), 2)
    totals().run(store, until="end", batch_records=11, epoch_ms=0)
    one_partition = expected(store)[0]
    by_key: Written = {}
    for entry in one_partition:
        by_key.setdefault(partition_of(entry[1] or b"", 3), []).append(entry)
    assert outputs(store) == by_key
    assert len(by_key) > 1


def test_unkeyed_outputs_keep_the_partition_of_their_input(store: Store) -> None:
    pipeline = Pipeline("p")
    pipeline.source("orders", type=bytes).to("copy")
    store.create_topic("copy", partitions=2)
    store.create_topic("orders", partitions=4)
    for number in range(12):
        store.append("orders", b"%d" % number, partition=number % 4)
    pipeline.run(store, until="end", batch_records=5, epoch_ms=0)
    assert {
        partition: [int(value or b"") for _, _, value in entries]
        for partition, entries in outputs(store, "copy").items()
    } == {0: [0, 2, 4, 6, 8, 10], 1: [1, 3, 5, 7, 9, 11]}


def test_a_missing_source_topic_is_an_error(store: Store) -> None:
    with pytest.raises(UnknownTopicError, match="orders"):
        totals().run(store, until="end")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": "now"}, "use 'end'"),
        ({"on_end": "drop"}, "use 'hold' or 'flush'"),
        ({"batch_records": 0}, "at least 1"),
        ({"epoch_ms": -1}, "negative"),
        ({"util": "end"}, r"unknown options \['util'\]"),
    ],
)
def test_wrong_options_are_refused(store: Store, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        totals().run(store, **options)  # type: ignore[typeddict-item]  # the point


def test_state_is_compacted_into_snapshots_and_restored(store: Store) -> None:
    pipeline = Pipeline("many")
    keyed = pipeline.source("orders", time="t").key_by("k")
    results = keyed.window(tumbling(1_000_000)).agg(n=agg.count())
    results.to("out")
    store.create_topic("orders")
    keys, rounds = 2_500, 8
    for _ in range(rounds):
        lines = [b'{"k":%d,"t":1}' % key for key in range(keys)]
        store.append_many("orders", lines)
    pipeline.run(store, until="end", batch_records=keys, epoch_ms=0)
    assert state_topics(store) == ["@state/many/orders.window"]
    (state,) = state_topics(store)
    start, end = store.offsets(state)[0]
    assert start > 0, "what came before the snapshot is gone"
    assert end - start <= 10_000 + keys
    assert len(store.segments(state, 0)) <= 2

    store.append("orders", b'{"k":0,"t":2000000}')
    pipeline.run(store, until="end")
    counts = [value for _, _, value in outputs(store)[0]]
    assert len(counts) == keys
    assert all(value is not None and value.endswith(b'"n":%d}' % rounds) for value in counts)


def test_windows_that_open_and_close_within_an_epoch_never_touch_the_state(store: Store) -> None:
    fill(store, orders(400))
    totals().run(store, until="end", epoch_ms=60_000)
    open_keys = 12
    for state in state_topics(store):
        assert store.offsets(state)[0].end <= open_keys


def test_a_run_follows_its_input_until_it_is_stopped(store: Store) -> None:
    lines = orders(100)
    fill(store, lines[:1])
    stop = threading.Event()
    progress: list[Metrics] = []
    reached = threading.Event()

    def watch(metrics: Metrics) -> None:
        progress.append(metrics)
        if metrics.records_in == len(lines):
            reached.set()

    def work() -> None:
        totals().run(store, stop=stop, on_progress=watch, epoch_ms=5)

    runner = threading.Thread(target=work)
    runner.start()
    for line in lines[1:]:
        store.append("orders", line, key=b"input key")
    assert reached.wait(10)
    stop.set()
    runner.join(10)
    assert not runner.is_alive()
    assert outputs(store) == expected(store)
    last = progress[-1]
    assert last.records_in == 100
    assert last.lag == 0
    assert last.records_out == len(outputs(store)[0]) + len(outputs(store, "orders.dead")[0])
    assert last.late > 0
    assert last.dead_letters == len(outputs(store, "orders.dead")[0])
    assert last.watermark_ms is not None
    assert [metrics.epochs for metrics in progress] == list(range(1, len(progress) + 1))


def test_a_stop_before_the_start_reads_nothing(store: Store) -> None:
    fill(store, orders(10))
    stop = threading.Event()
    stop.set()
    assert totals().run(store, stop=stop).records_in == 0


def test_a_pipeline_reads_what_another_writes(tmp_path: Path) -> None:
    with millstream.open(tmp_path / "store") as store:
        fill(store, orders(300), 2)
        totals().run(store, until="end", epoch_ms=0, batch_records=50)
        second = Pipeline("second")
        results = second.source("out").filter(lambda row: "total" in row)
        results.key_by("key").window(tumbling(500)).agg(n=agg.sum("n")).to("final")
        second.run(store, until="end", on_end="flush")
        again = second.test({"out": list(store.read("out"))})
        assert outputs(store, "final") == written(again.records("final"))
        assert list(outputs(store, "final")) == [0]


def test_a_sweep_over_many_epochs_and_restarts_keeps_the_state_short_and_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millstream.processor.epoch.SNAPSHOT_RECORDS_MIN", 30)
    monkeypatch.setattr("millstream.processor.epoch.SWEEP_RECORDS", 2)
    monkeypatch.setattr("millstream.processor.windowing.SWEEP_RECORDS", 2)
    lines = [b'{"k":"k%d","t":%d,"x":1}' % (n * 7 % 11, n // 40) for n in range(600)]
    pipeline = totals("sweeps", tumbling(10))
    topic = "@state/sweeps/orders.window"
    starts = set()
    with millstream.open(":memory:") as store:
        store.create_topic("orders")
        for start in range(0, 600, 60):
            fill(store, lines[start : start + 60])
            pipeline.run(store, until="end", batch_records=3, epoch_ms=0)
            starts.add(store.offsets(topic)[0].start)
        held = [record.value for record in store.read("out")]
        pipeline.run(store, until="end", on_end="flush")
        flushed = [record.value for record in store.read("out")]
    assert len(starts) > 3
    output = totals("sweeps", tumbling(10)).test({"orders": lines}, on_end="hold")
    assert [record.value for record in output.records("out")] == held
    output = totals("sweeps", tumbling(10)).test({"orders": lines})
    assert [record.value for record in output.records("out")] == flushed


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_rests_in_a_step_and_is_left_as_it_was(on: bool) -> None:
    seen: set[bool] = set()

    def look(order: dict[str, int]) -> bool:
        seen.add(gc.isenabled())
        if order["x"] > 1:
            raise ValueError("too much")
        return True

    pipeline = Pipeline("looking")
    pipeline.source("orders", time="t").filter(look).to("out")
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with millstream.open(":memory:") as store:
            fill(store, [b'{"t":1,"x":1}', b'{"t":2,"x":2}'])
            with pytest.raises(RecordError, match="too much"):
                pipeline.run(store, until="end")
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == {False}


def test_records_without_a_key_stay_so_beside_others() -> None:
    pipeline = Pipeline("copy")
    pipeline.source("orders", time="t").filter(lambda order: order["t"] != 2).to("out")
    with millstream.open(":memory:") as store:
        store.create_topic("orders")
        values = [b'{"t":%d}' % time for time in range(5)]
        store.append_many("orders", values[:3])
        store.append_many("orders", values[3:], [b"", b"k"])
        pipeline.run(store, until="end")
        assert [None, None, b"", b"k"] == [record.key for record in store.read("out")]
        store.append_many("orders", values)
        pipeline.run(store, until="end")
        assert [None] * 4 == [record.key for record in store.read("out")][4:]


def test_tombstones_and_raw_bytes_are_written_beside_values_in_their_order() -> None:
    results = [{"n": 0}, b"raw", None, "text", b"", None, 7, {"n": 7}]
    pipeline = Pipeline("mixed")
    rows = pipeline.source("orders", time="t", type=dict[str, int])
    rows.key_by(lambda row: f"k{row['t'] % 3}").map(lambda row: results[row["t"]]).to("out")
    expected = [b'{"n":0}', b"raw", None, b'"text"', b"", None, b"7", b'{"n":7}']
    for batch_records in (None, 1, 3):
        with millstream.open(":memory:") as store:
            fill(store, [b'{"t":%d}' % time for time in range(len(results))])
            pipeline.run(store, until="end", batch_records=batch_records)
            assert expected == [record.value for record in store.read("out")]
            keys = [record.key for record in store.read("out")]
            assert [b"k%d" % (time % 3) for time in range(len(results))] == keys


def test_an_epoch_of_more_than_a_batch_holds_is_written_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millstream.processor.cutting.BATCH_BYTES_MAX", 100)
    monkeypatch.setattr("millstream.processor.cutting.BATCH_RECORDS_MAX", 7)
    values = [b'{"t":%d,"x":"%s"}' % (time, b"x" * (time * 7 % 130)) for time in range(60)]
    pipeline = Pipeline("cut")
    pipeline.source("orders", time="t").key_by("x").to("out")
    with millstream.open(":memory:") as store:
        fill(store, values)
        pipeline.run(store, until="end", epoch_ms=100_000)
        assert values == [record.value for record in store.read("out")]
        assert len(list(store.read("out").batches())) > 10


def test_keys_of_input_records_follow_them_whether_all_have_one_or_not() -> None:
    pipeline = Pipeline("keys")
    pipeline.source("orders", time="t", type=dict[str, int]).to("out")
    keys = [None] * 4 + [b"a", None, b"b"] + [None] * 4
    values = [b'{"t":%d}' % time for time in range(len(keys))]
    for batch_records in (None, 1, 3, 4):
        with millstream.open(":memory:") as store:
            store.create_topic("orders")
            store.append_many("orders", values, keys)
            pipeline.run(store, until="end", batch_records=batch_records, epoch_ms=100_000)
            records = list(store.read("out"))
            assert keys == [record.key for record in records]
            assert values == [record.value for record in records]


def test_grouping_keys_are_written_as_their_bytes_whatever_they_are() -> None:
    keys = ["a", "b", "\u00e4", "", "c", 7, ("x", 1), "\u65e5\u672c", "d", "e"]
    expected = [
        b"a",
        b"b",
        "\u00e4".encode(),
        b"",
        b"c",
        b"7",
        b'["x",1]',
        "\u65e5\u672c".encode(),
        b"d",
        b"e",
    ]
    pipeline = Pipeline("keys")
    rows = pipeline.source("orders", time="t", type=dict[str, int])
    rows.key_by(lambda row: keys[row["t"]]).to("out")
    # A row without a key of its own, between those that have one.
    rows.filter(lambda row: row["t"] == 4).to("out")
    expected.insert(5, None)
    for batch_records in (None, 1, 2, 5):
        with millstream.open(":memory:") as store:
            store.create_topic("orders")
            store.append_many("orders", [b'{"t":%d}' % time for time in range(len(keys))])
            pipeline.run(store, until="end", batch_records=batch_records, epoch_ms=100_000)
            assert expected == [record.key for record in store.read("out")]
