"""Joins, sessions, timers, tables and sinks killed again and again give what a quiet run gives."""

from __future__ import annotations

import os

import pytest
from killed_operators import DELIVER, PHASES, START, STEP, SWEEP
from operators_rounds import kill_operators

KILLS = int(os.environ.get("MILLSTREAM_KILLS", "12"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))

pytestmark = pytest.mark.crash


@pytest.mark.slow
@pytest.mark.parametrize("spilled", [False, True], ids=["in memory", "spilled"])
def test_killed_at_random_moments_everything_comes_out_exactly_once(spilled: bool) -> None:
    done = kill_operators(SEED, KILLS, spilled=spilled)
    said = ", ".join(f"{done.phases[phase]} in {phase.decode()}" for phase in PHASES)
    print(  # noqa: T201 - for the table of robustness, shown with -rP
        f"seed {SEED}: {KILLS} kills at {len(done.places)} places: {said}; {done.records} records"
    )
    assert len(done.places) > KILLS / 3, "the kills did not hit different moments"
    if KILLS >= 100:
        assert {START, STEP, SWEEP, DELIVER} <= set(done.phases)
