"""Random pipelines on columns and on rows: the same records, in order, byte for byte.

MILLSTREAM_SEED gives other pipelines, MILLSTREAM_PLANS more of them.
"""

from __future__ import annotations

import os
import random
from unittest import mock

import pytest
from lane_runs import outcome, rows

PLANS = int(os.environ.get("MILLSTREAM_PLANS", "100"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))


@pytest.mark.slow
def test_columns_say_what_rows_say() -> None:
    said = 0
    for number in range(PLANS):
        seed = SEED * 1_000_003 + number
        rng = random.Random(seed)
        data = rows(rng, rng.choice((1, 30, 400)))
        # Windows have slots for all keys, for their own, or for all until there are too many.
        sizes = {
            "_WIDE_CELLS_MAX": rng.choice((0, 1 << 20, 1 << 20)),
            "_WIDE_KEYS_MIN": rng.choice((0, 1024)),
            "_TABLE_KEYS_MIN": rng.choice((8, 1 << 16)),
        }
        try:
            with mock.patch.multiple("millstream.processor.frame_windowing", **sizes):
                expected = outcome(seed, data, lambda _run: False)
                assert expected == outcome(seed, data, lambda _run: True)
                # A restart may go on in the other lane, with what the former left as state.
                first = rng.randrange(2)
                turns = outcome(seed, data, lambda run, first=first: (run + first) % 2 == 0)
                assert expected == turns
                assert expected == outcome(seed, data, lambda _run: True, columnar=False)
        except BaseException as error:
            error.add_note(f"plan {seed}")
            raise
        said += expected.error is None and bool(expected.records["out"])
    assert said > PLANS / 2, "too few pipelines had results"
