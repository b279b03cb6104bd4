"""Random pipelines of all operators held against models that look at one row at a time.

Random plans, disorder, cuts into steps, ends of the input in the midst of it, crashes before and
after a commit: the records of every topic must be equal one by one, in order. MILLSTREAM_SEED gives
other plans, MILLSTREAM_PLANS more of them.
"""

from __future__ import annotations

import os

import pytest
from random_runs import check

PLANS = int(os.environ.get("MILLSTREAM_PLANS", "300"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))


@pytest.mark.slow
def test_e60_any_pipeline_writes_what_its_model_says() -> None:
    aggregates = 0
    for number in range(PLANS):
        seed = SEED * 1_000_003 + number
        try:
            aggregates += check(seed)
        except Exception as error:
            error.add_note(f"plan {seed}")
            raise
    assert aggregates >= PLANS, "too few results of aggregates were looked at"
