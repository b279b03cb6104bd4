"""What somebody tries in the first hour: windows counted, rows printed, an output misspelt."""

from __future__ import annotations

import pytest

import millstream
from millstream import UsageError
from millstream.processor import Pipeline, Row, dry_run, session, tumbling


def test_windows_count_reduce_and_fold_as_keyed_streams_do() -> None:
    pipeline = Pipeline("p")
    windows = pipeline.source("in", time="t").key_by("k").window(tumbling(10))
    windows.count().to("counts")
    windows.reduce(lambda left, right: max(left, right, key=lambda row: row["x"])).to("largest")
    windows.fold(lambda: 0, lambda total, row: total + row["x"]).to("sums")
    rows = [{"k": "a", "t": 1, "x": 3}, {"k": "a", "t": 2, "x": 5}, {"k": "a", "t": 12, "x": 4}]
    output = pipeline.test({"in": rows})
    assert [2, 1] == [row["count"] for row in output["counts"]]
    assert [rows[1], rows[2]] == [row["value"] for row in output["largest"]]
    assert [8, 4] == [row["value"] for row in output["sums"]]

    sessions = pipeline.source("visits", time="t").key_by("k").window(session(10))
    with pytest.raises(UsageError, match=r"has no merge\(\)"):
        sessions.fold(list, lambda so_far, row: [*so_far, row["x"]])
    merged = sessions.fold(
        list, lambda so_far, row: [*so_far, row["x"]], merge=lambda left, right: left + right
    )
    merged.to("merged")
    assert [[3, 5]] == [row["value"] for row in pipeline.test({"visits": rows[:2]})["merged"]]


def test_a_pipeline_that_only_shows_its_rows_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """They are shown once: a replay and a dry run show nothing."""
    pipeline = Pipeline("p")
    pipeline.source("in", type=str).print("saw")
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append("in", b"ant")
        pipeline.run(store, until="end")
        assert "saw 'ant'\n" == capsys.readouterr().out
        assert 1 == pipeline.verify(store).records_in
        assert [] == list(dry_run(pipeline.plan, store, "earliest"))
        assert "" == capsys.readouterr().out


def test_an_output_that_there_is_not_is_told_with_those_there_are() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").to("out")
    output = pipeline.test({"in": []})
    for read in (output.__getitem__, output.records):
        with pytest.raises(KeyError, match=r"writes nothing called 'ot'; it writes \['out'\]"):
            read("ot")
    assert "ot" not in output


def test_text_in_a_list_is_text_to_a_source_of_text() -> None:
    """As it is in a store, and for a driver: without the quotes of JSON."""
    pipeline = Pipeline("p")
    pipeline.source("in", type=str).map(len).to("lengths")
    pipeline.source("values").to("same")
    output = pipeline.test(
        {"in": ["ant", ("bees", 5), Row("", 6), b"moth"], "values": [{"w": "ant"}]}
    )
    assert [3, 4, 0, 4] == output["lengths"]
    assert [{"w": "ant"}] == output["same"]
    with pipeline.driver() as driver:
        driver.send_all("in", ["ant", Row("bees", 5)])
        assert [3, 4] == driver.rows("lengths")
