"""Types that are made for rows: one of a kind, for as long as it is in use."""

from __future__ import annotations

import gc
import pickle  # noqa: TID251 - another engine may, not we
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from weakref import ref

import msgspec
import pytest

from millstream.processor import Pipeline, agg, tumbling
from millstream.processor.row_shapes import aggregated_type, windowed_type


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_make_one_type_of_a_kind() -> None:
    start = Barrier(4)

    def make(number: int) -> type:
        start.wait(10)
        return windowed_type((f"field_{number}",), (int,), False)

    with ThreadPoolExecutor(4) as pool:
        for number in range(20):
            assert 1 == len(set(pool.map(make, [number] * 4)))


def test_types_that_nothing_holds_go() -> None:
    class Sale(msgspec.Struct):
        user: str
        ts: int

    pipeline = Pipeline("sales")
    keyed = pipeline.source("sales", type=Sale, time="ts").key_by("user")
    keyed.window(tumbling("1m")).agg(this_test=agg.count()).to("counts")
    kept = ref(pipeline.plan.nodes[2].result_type)  # type: ignore[attr-defined]
    again = ref(aggregated_type(("this_test",), None))

    del pipeline, keyed
    gc.collect()

    assert (kept(), again()) == (None, None)


def test_a_type_that_is_held_stays_the_one_of_its_kind() -> None:
    row = aggregated_type(("this_row",), None)("ann", 1)
    gc.collect()

    assert type(row) is aggregated_type(("this_row",), None)
    assert pickle.loads(pickle.dumps(row)) == row
