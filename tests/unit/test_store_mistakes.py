"""Calls that are wrong are UsageErrors that say what is, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream
from millstream import MillstreamError, Store, UnknownTopicError, UsageError


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as store:
        store.create_topic("t", partitions=2)
        store.create_topic("ids", partitions=2, dedup="1h")
        with store.consumer("t", group="g") as consumer:
            consumer.commit()
        yield store


def send(store: Any, topic: Any, name: str | None = None, **record: Any) -> None:
    with store.producer(name=name) as producer:
        producer.send(topic, b"x", **record)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.append("t", "text"), "must be bytes or None, not str"),
        (lambda s: s.append("t", b"x", key="k"), "key must be bytes or None, not str"),
        (lambda s: s.append("t", b"x", key=5, durability="os"), "key must be bytes or None, not"),
        (
            lambda s: s.append("t", b"x", partition=True),
            "a partition must be a whole number, not T",
        ),
        (
            lambda s: s.append("t", b"x", partition="0"),
            "a partition must be a whole number, not '0",
        ),
        (lambda s: s.append("t", b"x", partition=1.0, durability="os"), "a whole number, not 1.0"),
        (lambda s: s.append_many("t", [b"x"], partition=True), "partition must be a whole number"),
        (lambda s: s.read(["t"]), "'t'.* is not the name of a topic: give a str, one topic"),
        (lambda s: s.queue(["t"]), "is not the name of a topic"),
        (lambda s: s.latest({}, b"k"), "{} is not the name of a topic"),
        (lambda s: s.create_topic(1.5), "1.5 is not a topic name"),
        (lambda s: s.reader("t"), "takes the offset of each partition"),
        (lambda s: s.trim("t", 5), r"takes the offset of each partition, \{0: 5\} say"),
        (lambda s: s.queue("t").ack([]), r"\[\] is not a job: .*ack\(\*jobs\)"),
        (lambda s: s.queue("t").nack([], delay=1), "is not a job: give"),
        (lambda s: s.queue("t").extend([]), "is not a job"),
        (lambda s: s.queue("t").reject(None), "None is not a job"),
        (lambda s: s.queue("t").get(timeout="1s"), "a timeout is a number of seconds"),
        (lambda s: s.queue("t").get(timeout=float("nan")), "seconds, or None, not nan"),
        (lambda s: s.queue("t").get_many("5"), "count must be a whole number"),
        (lambda s: s.queue("t", max_deliveries="3", dead_letter="d"), "max_deliveries must be"),
        (lambda s: s.redrive("t", limit="3"), "limit must be a whole number"),
        (lambda s: s.consumer("t").poll("1s"), "seconds, or None, not '1s'"),
        (lambda s: s.consumer("t").poll(0, "5"), "max_records must be a whole number"),
        (lambda s: s.producer(batch_bytes="1MB"), "batch_bytes must be a whole number"),
        (lambda s: s.producer(buffer_bytes=1e9), "buffer_bytes must be a whole number"),
        (lambda s: s.own(3), "3 is not a name to own"),
        (lambda s: s.own("\udc80"), "udc80' is not a name to own"),
        (lambda s: s.append("t", b"x", timestamp_ms=1.5), "int of UTC milliseconds"),
        (lambda s: s.append("t", b"x", headers={"a": b"b"}), r"\(name, value\) pairs"),
        (lambda s: s.append("t", b"x", durability="synced"), "'synced'; choose sync, interval, os"),
        (lambda s: s.append_many("t", [b"x"], durability="none"), "'none'; choose sync"),
        (lambda s: s.append_many("t", [b"a"], [b"a", b"b"]), "headers must be of equal length"),
        (lambda s: s.append_many("t", [b"a"], [b"a"], [1, 2]), "of equal length"),
        (lambda s: s.append_many("t", (b"x" for _ in "a")), "values must be a sequence, such as a"),
        (lambda s: s.append_many("t", [b"a"], ["k"]), "keys must be bytes or None"),
        (lambda s: s.producer(durability="x"), "'x'; choose sync"),
        (lambda s: s.producer(linger_ms="5"), "linger_ms must be 0 to 1000000000000, not '5'"),
        (
            lambda s: s.producer(linger_ms=float("nan")),
            "linger_ms must be 0 to 1000000000000, not nan",
        ),
        (lambda s: s.append("t", b"x", timestamp_ms=-(2**63)), r"-\(2\*\*63\) \+ 1 to 2\*\*63 - 1"),
        (
            lambda s: send(s, "t", timestamp_ms=-(2**63)),
            r"timestamp_ms must be .* -\(2\*\*63\) \+ 1 to 2\*\*63 - 1",
        ),
        (lambda s: s.append("t", {"a": 1}), r"not dict: encode it, msgspec\.json\.encode\("),
        (lambda s: s.append("t", "text"), r"not str: encode it, 'text'\.encode\(\) say"),
        (lambda s: s.append_many("t", "text"), "one entry per record, not str"),
        (lambda s: s.append_many("t", None), "one entry per record, not NoneType"),
        (lambda s: s.append_many("t", [b"x"], 5), "keys must be a sequence"),
        (lambda s: s.consumer(5), "5 are no topics: give a name, or a list of them"),
        (lambda s: s.consumer([["t"]]), "are no topics"),
        (lambda s: s.consumer("t").seek("t", 0), r"'t' is not a partition: give TopicPartition\("),
        (lambda s: s.reader({"t": 0}), "partition: give TopicPartition"),
        (lambda s: s.reader({("t", 0): "x"}), "an offset must be a whole number, not 'x'"),
        (lambda s: s.reader({("t", 0): 0}).poll("5"), "max_records must be .* not '5'"),
        (lambda s: s.reader({("t", 0): 0}).seek(("t", 1), 0), r"does not read .* add\(\) it first"),
        (lambda s: s.reader({("t", 0): 0}).remove(("t", 1)), r"does not read .*partition 1"),
        (lambda s: s.reader({("t", 0): 0}).remove("t"), "'t' is not a partition"),
        (lambda s: s.plan_reset("g", {"t": 0}), r"give .*\(topic, number\)"),
        (lambda s: s.plan_reset("g", 0, topics=5), "5 are no topics"),
        (lambda s: s.plan_reset("g", shift_by="1"), "shift_by must be a whole number, not '1'"),
        (lambda s: s.reset_group("g"), r"'g' is not a plan: give what plan_reset\(\) returns"),
        (lambda s: s.append("ids", b"x", headers=[("record-id", "7")]), "must be bytes, not str"),
    ],
)
def test_a_wrong_call_is_told_and_appends_nothing(
    store: Store, call: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(store)
    assert list(store.read("t", isolation="uncommitted")) == []
    assert {offsets.end for offsets in store.offsets("t").values()} == {0}


def test_a_wrong_durability_does_not_open_a_store() -> None:
    with pytest.raises(UsageError, match="choose sync, interval, os"):
        millstream.open(durability="fsync")  # type: ignore[arg-type]  # the point


def test_an_empty_path_is_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"the current directory is '\.'"):
        millstream.open("")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["a\0b", "a\udcff", None, 5, b"a"])
def test_what_is_no_path_is_told_and_makes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (
        millstream.open,
        millstream.plan_repair,
        millstream.repair,
        millstream.diagnose,
        millstream.dump_segment,
        millstream.UserDatabase,
        store.backup,
        lambda path: millstream.restore(path, "new"),
        lambda path: millstream.restore(tmp_path, path),
    ):
        with pytest.raises(UsageError, match=r"NUL byte|not UTF-8|is no path"):
            call(path)
    assert [] == list(tmp_path.iterdir())


def test_a_backup_that_would_be_none_is_refused(tmp_path: Path) -> None:
    with millstream.open(tmp_path / "store") as store:
        (tmp_path / "link").symlink_to(tmp_path / "store")
        for inside in ("store/b", "link/b", "store/topics/b.tar.zst"):
            with pytest.raises(UsageError, match="is inside the store, and would be lost with it"):
                store.backup(tmp_path / inside)
        for name in ("b.tar.gz", "b.zst", "b.zip", "b.tar"):
            with pytest.raises(UsageError, match=r"one file ends in \.tar\.zst or \.tzst"):
                store.backup(tmp_path / name)
    assert ["link", "store"] == sorted(each.name for each in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("before", "error", "message"),
    [
        ({0: 1, 1: -1}, UsageError, "is -1; give a whole number .*partition 1"),
        ({0: 1, 1: "latest"}, UsageError, "'latest'; give a whole number"),
        ({0: 1, 1: True}, UsageError, "True; give a whole number"),
        ({0: 1, 9: 1}, UnknownTopicError, "partitions 0 to"),
    ],
)
def test_a_wrong_trim_is_told_and_trims_nothing(
    store: Store, before: dict[int, Any], error: type[MillstreamError], message: str
) -> None:
    store.append("t", b"x", partition=0)
    with pytest.raises(error, match=message):
        store.trim("t", before)
    assert {offsets.start for offsets in store.offsets("t").values()} == {0}


def commit_in_transaction(store: Any, group: Any) -> None:
    with store.transaction() as transaction:
        transaction.commit_offsets(group, {("t", 0): 0})


def checkpoint_in_transaction(store: Any, name: Any) -> None:
    with store.transaction() as transaction:
        transaction.put_checkpoint(name, b"x")


def append_in_transaction(store: Any, topic: Any) -> None:
    with store.transaction() as transaction:
        transaction.append(topic, b"x")


TAKE_TOPICS: list[Callable[[Any, Any], object]] = [
    lambda s, topic: s.append(topic, b"x"),
    lambda s, topic: s.append_many(topic, [b"x"]),
    append_in_transaction,
    send,
    lambda s, topic: send(s, topic, "name"),
    lambda s, topic: s.topic(topic),
    lambda s, topic: s.read(topic),
    lambda s, topic: s.offsets(topic),
    lambda s, topic: s.latest(topic, b"k"),
    lambda s, topic: list(s.latest_all(topic)),
    lambda s, topic: s.reader({(topic, 0): 0} if isinstance(topic, int | bytes) else topic),
    lambda s, topic: s.queue(topic),
    lambda s, topic: s.skip_jobs(topic, "q", "latest"),
    lambda s, topic: s.redrive(topic),
    lambda s, topic: s.configure_topic(topic),
    lambda s, topic: s.delete_topic(topic),
]
TAKE_GROUPS: list[Callable[[Any, Any], object]] = [
    lambda s, group: s.group(group),
    lambda s, group: s.group_lag(group),
    lambda s, group: s.delete_group(group),
    lambda s, group: s.plan_reset(group, "earliest"),
    lambda s, group: s.consumer("t", group=[] if group is None else group),
    lambda s, group: s.queue("t", group=group),
    lambda s, group: s.skip_jobs("t", group, "latest"),
    commit_in_transaction,
    lambda s, name: s.checkpoint(name),
    checkpoint_in_transaction,
    lambda s, name: s.own(name),
    lambda s, name: s.cache_database(name),
    lambda s, name: s.remove_cache(name),
]


@pytest.mark.parametrize("name", [5, None, b"t", ["t"], {"t": 0}])
def test_what_is_no_name_is_told_at_every_door(store: Store, name: Any) -> None:
    for call in TAKE_TOPICS:
        with pytest.raises(
            UsageError, match=r"is not the name of|is not a partition|a reader takes"
        ):
            call(store, name)
    for call in TAKE_GROUPS:
        with pytest.raises(UsageError, match=r"is not a group name|is not a name|checkpoint|cache"):
            call(store, name)
    with pytest.raises(UnknownTopicError) as error:
        store.append("nothing", b"x")
    assert str(error.value) == (
        "there is no such topic: make it with create_topic() (topic nothing)"
    )


def test_as_many_jobs_as_one_likes_can_be_asked_for(store: Store) -> None:
    store.append("t", b"x")
    with store.queue("t") as queue:
        assert [b"x"] == [job.value for job in queue.get_many(2**70, timeout=0)]


@pytest.mark.parametrize("values", ["columns", "json"])
def test_a_value_that_is_not_encoded_for_its_schema_is_told_how(store: Store, values: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    store.create_topic("rows", schema=pa.schema([("a", pa.int64())]), values=values)
    for call in (
        lambda: store.append("rows", {"a": 1}),  # type: ignore[arg-type]  # the point
        lambda: store.append_many("rows", [b'{"a": 1}', {"a": 1}]),  # type: ignore[list-item]
    ):
        with pytest.raises(UsageError, match=r"JSON in bytes, not dict: .*append_columns, .*rows"):
            call()
    for wrong in (5, "ab", b"ab", {"a": [1]}, None):
        with pytest.raises(UsageError, match="values must be a sequence"):
            store.append_many("rows", wrong)  # type: ignore[arg-type]  # the point
    for columns in (5, [[]]):
        with pytest.raises(UsageError, match=r"give a list of names|there is no column"):
            store.read("rows", columns=columns)  # type: ignore[arg-type]  # the point
    assert 0 == store.offsets("rows")[0].end
