"""Constants are given to Arrow with their types.

To find the type of one it looks for dateutil each time, on the disk where that is not installed:
more than the work itself, for a batch of some hundred rows.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

import millstream
from millstream.processor import Pipeline, agg, col, tumbling

ROWS = 20
AT = datetime(2024, 5, 1, tzinfo=UTC)


class NotInstalled:
    """Stands before all who find modules: there is no dateutil, and who asks for it is counted."""

    def __init__(self) -> None:
        self.asked = 0

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "dateutil":
            self.asked += 1
            raise ModuleNotFoundError(name=name)


@pytest.fixture
def dateutil(monkeypatch: pytest.MonkeyPatch) -> NotInstalled:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dateutil"]:
        monkeypatch.delitem(sys.modules, name)
    finder = NotInstalled()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    pa.array([1])
    assert finder.asked  # Arrow still does; or this has to find out by something else
    finder.asked = 0
    return finder


@pytest.mark.parametrize("values", ["columns", "json"])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_appends_of_columns_guess_no_types(dateutil: NotInstalled, unit: str, values: Any) -> None:
    at = pa.field("at", pa.timestamp(unit, "UTC"), nullable=False)
    schema = pa.schema([at, ("k", pa.string())])
    columns = {"at": pa.array([AT] * ROWS, at.type), "k": pa.array(["a", "b"] * 10, pa.string())}
    with millstream.open() as store:
        store.create_topic("t", schema=schema, partitions=3, key="k", time="at", values=values)

        store.append_arrow("t", pa.table(columns, schema))
        store.append_columns("t", columns)
        times = pa.array(range(ROWS), pa.int64())
        store.append_arrow("t", pa.table(columns, schema), timestamps_ms=times)
        store.append_many("t", [b'{"at":"2024-05-01T00:00:00Z","k":"a"}'] * ROWS)

        assert 4 * ROWS == len(list(store.read("t")))
    assert 0 == dateutil.asked


def test_pipelines_on_columns_guess_no_types(dateutil: NotInstalled) -> None:
    schema = pa.schema([("k", pa.string()), ("x", pa.float64()), ("n", pa.int64())])
    job = Pipeline("job")
    source = job.source("t", type=dict).filter((col("n") > 2) & col("x").is_not_null())
    keyed = source.with_columns(y=col("x") * 2 + 1).key_by("k")
    keyed.window(tumbling("1m")).agg(d=agg.distinct("y"), s=agg.sum("y")).to("windows")
    keyed.agg(d=agg.distinct("y"), s=agg.mean("n")).to("rows")
    with millstream.open() as store:
        store.create_topic("t", schema=schema)
        columns = {"k": ["a", "b"] * 10, "x": [0.5, -0.0] * 10, "n": range(ROWS)}
        store.append_columns("t", columns)
        assert "rows:" not in job.explain(store).replace("[rows: the topic stores no columns]", "")
        job.run(store, until="end", on_end="flush")
        assert 17 == len(list(store.read("rows")))
    assert 0 == dateutil.asked
