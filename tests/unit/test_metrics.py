"""`Store.metrics`: what it says is what was done, and what is damaged does not hide the rest."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from outside_world import SimulatedOutside, put
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from simulated_stores import START_MS, kill, log_of, open_quietly

import millstream
from millstream import MissingExtraError, Store, prometheus
from millstream.clock import SystemClock
from millstream.counters import SYNC_BOUNDS_S, Counters
from millstream.format import SEGMENT_HEADER_BYTES
from millstream.processor import (
    Metrics,
    Pipeline,
    agg,
    jsonl_files,
    list_pipelines,
    tumbling,
)
from millstream.testing import ManualClock, MemoryStorage
from millstream.transaction import Transaction


def of(store: Store, topic: str = "t", partition: int = 0) -> millstream.PartitionMetrics:
    (found,) = (
        each
        for each in store.metrics(internal=True).partitions
        if (each.topic, each.partition) == (topic, partition)
    )
    return found


def test_partitions_are_measured_while_they_grow_roll_and_are_trimmed() -> None:
    clock = ManualClock(START_MS)
    with open_quietly(MemoryStorage(), clock) as store:
        store.create_topic("t", partitions=2)
        assert (0, 0, 0, 1, None) == of(store, partition=1)[2:5] + of(store, partition=1)[6:8]

        for _ in range(3):
            clock.advance(1)
            store.append_many("t", [b"x" * 100] * 10, partition=0)
            store.roll("t", 0)
        clock.advance(1)
        store.append("t", b"y", partition=0)

        now = of(store)
        segments = store.segments("t", 0)
        assert (0, 31, 31) == now[2:5]
        assert (sum(each.size_bytes for each in segments), 4) == (now.data_bytes, now.segments)
        assert clock.now_ms() == now.last_append_ms
        assert not now.poisoned

        store.trim("t", {0: 15})
        later = of(store)
        assert (15, 31, 16, 3) == (*later[2:5], later.segments)
        assert later.data_bytes < now.data_bytes


def test_sealed_segments_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t")
        for _ in range(4):
            store.append("t", b"x")
            store.roll("t", 0)
        files = log_of(store).files
        first = of(store)

        def refuse() -> None:
            raise AssertionError("all segment headers were read again")

        monkeypatch.setattr(files, "infos", refuse)
        assert first == of(store)
        store.append("t", b"x")
        assert first.records + 1 == of(store).records


def test_another_process_appends_rolls_and_creates() -> None:
    storage = MemoryStorage()
    with open_quietly(storage, SystemClock()) as writer:
        writer.create_topic("t")
        writer.append("t", b"1")
        with open_quietly(storage, SystemClock(), read_only=True) as reader:
            assert 1 == of(reader).records
            writer.roll("t", 0)
            writer.append("t", b"2")
            writer.create_topic("u")
            assert (2, 2) == (of(reader).records, of(reader).segments)
            assert of(writer) == of(reader)
            assert 0 == of(reader, "u").records
            writer.delete_topic("t")
            assert ["u"] == [each.topic for each in reader.metrics().partitions]


def test_a_reader_that_was_there_first_sees_the_writer(tmp_path: Path) -> None:
    with millstream.open(tmp_path) as store:
        store.create_topic("t")
    with millstream.open(tmp_path, read_only=True) as reader:
        assert 0 == of(reader).records
        with millstream.open(tmp_path) as writer:
            writer.append("t", b"1")
            assert 1 == of(reader).records
        metrics = reader.metrics()
    assert metrics.free_bytes is not None
    assert metrics.total_bytes is not None
    assert 0 < metrics.free_bytes <= metrics.total_bytes


def test_the_handle_counts_batches_records_bytes_and_syncs() -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t")
        store.append_many("t", [b"x"] * 1000)
        store.append("t", b"y")
        store.append("t", b"z", durability="os")
        handle = store.metrics().handle
        written = of(store).data_bytes - SEGMENT_HEADER_BYTES
        assert (3, 1002, written) == handle[:3]
        assert (2, 0) == (handle.syncs, handle.sync_failures)
        assert 2 == sum(handle.sync_buckets)
        assert len(SYNC_BOUNDS_S) + 1 == len(handle.sync_buckets)


def test_syncs_are_timed_and_failures_counted() -> None:
    clock = ManualClock(START_MS)
    counters = Counters(clock)

    class Disk:
        ms = 0

        def sync(self) -> None:
            clock.advance(self.ms)
            if self.ms > 4000:
                raise OSError("the disk is gone")

    disk = Disk()
    for ms in (0, 3, 3000):
        disk.ms = ms
        counters.sync(disk)
    disk.ms = 5000
    with pytest.raises(OSError, match="gone"):
        counters.sync(disk)
    handle = counters.read()
    assert (3, 1) == (handle.syncs, handle.sync_failures)
    assert 3.0 == pytest.approx(handle.sync_max_s)
    assert 3.003 == pytest.approx(handle.sync_s)
    assert [0, 5, 14] == [n for n, count in enumerate(handle.sync_buckets) for _ in range(count)]


def test_compaction_and_retention_are_counted() -> None:
    clock = ManualClock(START_MS)
    with open_quietly(MemoryStorage(), clock) as store:
        store.create_topic("kept", compact=True)
        for _ in range(5):
            store.append("kept", b"x" * 500, key=b"k")
        (done,) = store.compact("kept")
        store.create_topic("gone", retention="1s")
        store.append("gone", b"x")
        store.roll("gone", 0)
        size = store.segments("gone", 0)[0].size_bytes
        clock.advance(2000)
        store.apply_retention(dry_run=True)
        store.compact("kept", dry_run=True)
        store.apply_retention()
        handle = store.metrics().handle
    assert (1, 4, done.bytes_before - done.bytes_after) == (
        handle.compactions,
        handle.compacted_records,
        handle.compacted_bytes,
    )
    assert (1, size) == (handle.retained_segments, handle.retained_bytes)


def test_groups_and_queues_are_there_with_their_lag() -> None:
    clock = ManualClock(START_MS)
    with open_quietly(MemoryStorage(), clock) as store:
        store.create_topic("t", partitions=2)
        store.append_many("t", [b"x"] * 5, partition=0)
        with store.consumer("t", group="billing") as consumer:
            consumer.poll(max_records=2)
            consumer.commit()
            clock.advance(7000)
            (group,) = store.metrics().groups
            assert ("billing", 1) == (group.group, len(group.members))
            assert tuple(store.group_lag("billing")) == group.lags
            assert (3, 7000) == (group.lag, group.lag_ms)
        with store.queue("t") as queue:
            queue.get(timeout=0)
            (found,) = store.metrics().queues
            assert (5, 1) == (found.depth, len(found.workers))


def test_open_transactions_are_found_until_they_end() -> None:
    clock = ManualClock(START_MS)
    with open_quietly(MemoryStorage(), clock) as store:
        store.create_topic("t", partitions=2)
        store.append("t", b"0", partition=0)
        assert () == store.metrics().open_transactions
        with store.transaction() as txn:
            clock.advance(1000)
            for _ in range(2):
                txn.append("t", b"1", partition=0)
            txn.append("t", b"2", partition=1)
            store.append("t", b"3", partition=0)
            store.roll("t", 0)
            clock.advance(5000)
            found = store.metrics().open_transactions
            assert [("t", 0, 1), ("t", 1, 0)] == [each[:3] for each in found]
            assert {START_MS + 1000} == {each.began_ms for each in found}
            assert found == store.metrics().open_transactions
        assert () == store.metrics().open_transactions
        with store.transaction() as other:
            other.append("t", b"4", partition=0)
            assert [("t", 0, 4)] == [each[:3] for each in store.metrics().open_transactions]
            other.abort()
        assert () == store.metrics().open_transactions


def test_a_transaction_that_was_cut_off_is_open_until_its_owner_comes_back() -> None:
    storage = MemoryStorage()
    dying = open_quietly(storage, SystemClock())
    dying.create_topic("t")
    owner = dying.own("importer")
    Transaction(dying._engine, owner).append("t", b"1")
    kill(dying)
    owner.close()
    with open_quietly(storage, SystemClock()) as store:
        assert [("t", 0, 0)] == [each[:3] for each in store.metrics().open_transactions]
        with store.own("importer"):
            assert () == store.metrics().open_transactions


def test_what_is_damaged_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    with millstream.open(tmp_path) as store:
        store.create_topic("bad")
        store.create_topic("good")
        for topic in ("bad", "good"):
            store.append(topic, b"x")
            with store.consumer(topic, group=topic) as consumer:
                consumer.poll()
                consumer.commit()
    (segment,) = (tmp_path / "topics/bad/0").glob("*.segment")
    segment.write_bytes(b"\0" * segment.stat().st_size)

    with millstream.open(tmp_path, read_only=True) as store:
        metrics = store.metrics()

    assert ["good"] == [each.topic for each in metrics.partitions]
    (part,) = metrics.unreadable
    assert ("partition", "bad", 0) == part[:3]
    assert "00000000000000000000.segment" in part.error


# --- Prometheus ----------------------------------------------------------------------------------


def scraped(store: Store) -> dict[tuple[str, tuple[str, ...]], float]:
    registry = CollectorRegistry()
    prometheus.register(store, registry, pipelines=list_pipelines)
    found = [sample for family in registry.collect() for sample in family.samples]
    text = generate_latest(registry).decode()
    parsed = [s.name for family in text_string_to_metric_families(text) for s in family.samples]
    assert {sample.name for sample in found} <= set(parsed)
    return {(sample.name, tuple(sample.labels.values())): sample.value for sample in found}


def test_prometheus_gets_the_names_of_kafka_exporter() -> None:
    with millstream.open() as store:
        store.create_topic("orders", partitions=2)
        store.append_many("orders", [b'{"u":"a"}'] * 5, partition=1)
        with store.consumer("orders", group="billing") as consumer:
            consumer.poll(max_records=2)
            consumer.commit()
            found = scraped(store)
    expected = {
        ("kafka_topic_partitions", ("orders",)): 2,
        ("kafka_topic_partition_current_offset", ("orders", "1")): 5,
        ("kafka_topic_partition_oldest_offset", ("orders", "1")): 0,
        ("kafka_consumergroup_members", ("billing",)): 1,
        ("kafka_consumergroup_current_offset", ("billing", "orders", "1")): 2,
        ("kafka_consumergroup_lag", ("billing", "orders", "1")): 3,
        ("kafka_consumergroup_lag_sum", ("billing", "orders")): 3,
        ("millstream_records", ("orders", "1")): 5,
        ("millstream_records_appended_total", ()): 5,
        ("millstream_fsync_seconds_count", ()): 1,
        ("millstream_fsync_seconds_bucket", ("+Inf",)): 1,
        ("millstream_unreadable", ()): 0,
        ("millstream_open_transactions", ()): 0,
    }
    assert expected == {name: found[name] for name in expected}
    assert found["kafka_consumergroup_group_lag_seconds", ("billing", "orders", "1")] >= 0


def test_a_partition_without_a_commit_lags_minus_one() -> None:
    with millstream.open() as store:
        store.create_topic("t", partitions=2)
        with store.consumer("t", group="g") as consumer:
            consumer.poll()
            found = scraped(store)
    lags = [value for (name, _), value in found.items() if name == "kafka_consumergroup_lag"]
    assert [-1, -1] == lags
    assert 0 == found["kafka_consumergroup_lag_sum", ("g", "t")]


def test_pipelines_queues_and_transactions_are_told() -> None:
    pipeline = Pipeline("sums")
    pipeline.source("rows", time="ts").key_by("k").agg(n=agg.count()).to("out")
    with millstream.open() as store:
        store.create_topic("rows")
        store.append("rows", b'{"k":1,"ts":1000}')
        pipeline.run(store, until="end")
        with store.queue("rows") as queue, store.transaction() as txn:
            queue.get(timeout=0)
            txn.append("rows", b"{}")
            found = scraped(store)
    assert 1 == found["millstream_pipeline_epoch", ("sums",)]
    assert found["millstream_watermark_lag_seconds", ("sums", "rows")] > 1e9
    assert 0 == found["kafka_consumergroup_lag", ("sums", "rows", "0")]
    assert 1 == found["millstream_queue_jobs", ("rows", "workers", "leased")]
    assert 1 == found["millstream_queue_workers", ("rows", "workers")]
    assert 1 == found["millstream_open_transactions", ()]
    assert 0 <= found["millstream_open_transaction_age_seconds", ("rows", "0")] < 60


def test_a_run_tells_how_many_bytes_of_files_it_has_not_taken_in() -> None:
    outside = SimulatedOutside()
    put(outside.storage, "a.jsonl", b"1\n2\n345")
    pipeline = Pipeline("lines")
    files = replace(jsonl_files("*.jsonl", name="files", follow=True), outside=outside)
    pipeline.source(files, type=int).to("out")
    progress = prometheus.PipelineCollector("lines")
    registry = CollectorRegistry()
    registry.register(progress)
    stop = threading.Event()

    def note(metrics: Metrics) -> None:
        progress(metrics)
        stop.set()

    with millstream.open() as store:
        metrics = pipeline.run(store, stop=stop, on_progress=note)
    assert ({"files": 2}, {"files": 3}) == (metrics.taken_in, metrics.source_lag_bytes)
    sample = 'millstream_pipeline_source_lag_bytes{pipeline="lines",source="files"} 3.0'
    assert sample in generate_latest(registry).decode()


def test_a_run_tells_what_each_operator_has_done() -> None:
    pipeline = Pipeline("sums")
    source = pipeline.source("rows", time="ts")
    source.dead_letters.to("bad")
    rows = source.filter(lambda _: True).filter(lambda _: True)
    rows.key_by("k").window(tumbling("1s")).agg(n=agg.count()).to("out")
    progress = prometheus.PipelineCollector("sums", now_ms=lambda: 12_000)
    registry = CollectorRegistry()
    registry.register(progress)
    assert [] == list(registry.collect())
    with millstream.open() as store:
        store.create_topic("rows")
        for stamp in (1000, 5000, 1500, 9000):
            store.append("rows", b'{"k":1,"ts":%d}' % stamp)
        store.append("rows", b"no JSON")
        said = pipeline.run(store, until="end", batch_records=1, on_progress=progress)

    text = generate_latest(registry).decode()
    found = {
        (sample.name, *(sample.labels[each] for each in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    whole = {
        "millstream_pipeline_epochs_total": said.epochs,
        "millstream_pipeline_dead_letters_total": 1,
        "millstream_pipeline_commit_seconds": said.epoch_s,
        "millstream_pipeline_lag": 0,
        "millstream_pipeline_watermark_lag_seconds": 3,
    }
    assert whole == {name: found[name, "sums"] for name in whole}
    for number, each in enumerate(said.operators):
        operator = (str(number), each.label, "sums")
        assert each.records_in == found["millstream_operator_records_in_total", *operator]
        assert each.records_out == found["millstream_operator_records_out_total", *operator]
        assert each.late == found["millstream_operator_late_records_total", *operator]
        assert each.skipped == found["millstream_operator_skipped_records_total", *operator]
        assert each.busy_s == found["millstream_operator_busy_seconds_total", *operator]
        assert each.state_records == found["millstream_operator_state_records", *operator]
        behind = found["millstream_operator_watermark_lag_seconds", *operator]
        assert each.watermark_lag_ms == behind * 1000
    assert 1 == sum(each.late for each in said.operators)
    assert 1 == sum(each.state_records for each in said.operators)
    assert 7 * len(said.operators) + len(whole) == len(found)


def test_a_read_only_store_does_not_count_what_others_do(tmp_path: Path) -> None:
    with millstream.open(tmp_path) as store:
        store.create_topic("t")
    with millstream.open(tmp_path, read_only=True) as reader:
        names = {name for name, _ in scraped(reader)}
    assert "millstream_free_bytes" in names
    assert "millstream_records_appended_total" not in names


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        millstream.open() as store,
        pytest.raises(MissingExtraError, match=r"pip install 'millstream\[metrics\]'") as caught,
    ):
        prometheus.register(store)
    assert isinstance(caught.value, ImportError)
    with pytest.raises(MissingExtraError, match=r"pip install 'millstream\[metrics\]'"):
        prometheus.PipelineCollector("sums")
