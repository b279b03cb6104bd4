"""Pipelines whose topics are trimmed, deleted or made anew, between two runs or during one.

What cannot be continued is refused with the reason: results are a function of one log, and a log
of the same name is another one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import millstream
from millstream import DataError, OffsetOutOfRangeError, Store, UnknownTopicError, UsageError
from millstream.processor import Pipeline, agg, tumbling


def counts(source: str = "in") -> Pipeline:
    pipeline = Pipeline("counts")
    keyed = pipeline.source(source, time="t").key_by("k")
    keyed.window(tumbling(10)).agg(n=agg.count()).to("out")
    return pipeline


def rows(start: int, stop: int) -> list[bytes]:
    return [b'{"k":"a","t":%d}' % time for time in range(start, stop)]


@pytest.fixture
def store() -> Iterator[Store]:
    """A store whose pipeline has read 25 rows; the window of the last 5 is open."""
    with millstream.open(":memory:") as opened:
        opened.create_topic("in")
        opened.append_many("in", rows(0, 25))
        counts().run(opened, until="end")
        yield opened


def test_an_input_trimmed_up_to_where_the_pipeline_stands_changes_nothing(store: Store) -> None:
    store.append_many("in", rows(25, 40))
    store.trim("in", {0: 25})
    counts().run(store, until="end")
    assert [record.value for record in store.read("out", "-1")] == [
        b'{"key":"a","window_start":20,"window_end":30,"n":10}'
    ]


def test_an_input_trimmed_further_is_refused_with_the_reason(store: Store) -> None:
    store.append_many("in", rows(25, 40))
    store.trim("in", {0: 26})
    with pytest.raises(OffsetOutOfRangeError, match="removed the records up to 26") as caught:
        counts().run(store, until="end")
    assert "'counts' goes on at offset 25" in str(caught.value)


@pytest.mark.parametrize("count", [5, 60])
def test_an_input_made_anew_is_not_taken_for_the_old_one(store: Store, count: int) -> None:
    store.delete_topic("in")
    with pytest.raises(UnknownTopicError):
        counts().run(store, until="end")
    store.create_topic("in")
    store.append_many("in", rows(30, 30 + count))
    for _ in range(2):
        with pytest.raises(UsageError, match="deleted and created again") as caught:
            counts().run(store, until="end")
        assert caught.value.topic == "in"


def test_state_that_was_deleted_is_missed(store: Store) -> None:
    store.delete_topic("@state/counts/in.window")
    store.append_many("in", rows(25, 40))
    for _ in range(2):
        with pytest.raises(DataError, match=r"the state of 'in\.window' in pipeline 'counts'"):
            counts().run(store, until="end")


def test_an_output_that_was_deleted_is_made_anew(store: Store) -> None:
    store.delete_topic("out")
    store.append_many("in", rows(25, 31))
    counts().run(store, until="end")
    assert [record.value for record in store.read("out")] == [
        b'{"key":"a","window_start":20,"window_end":30,"n":10}'
    ]


def test_a_missing_source_creates_no_output(store: Store) -> None:
    pipeline = Pipeline("typo")
    pipeline.source("inn").to("copy")
    with pytest.raises(UnknownTopicError, match="inn"):
        pipeline.run(store, until="end")
    assert [topic.name for topic in store.topics()] == ["in", "out"]
