"""The machine loses power, or one process is killed, at every operation of a store's life.

What must hold is in `support/log_model.py`, the life in `support/workload.py`. `make crash` runs
more of the same with other seeds (`crash/campaign.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from matrix import CELLS
from restarts import crash_everywhere, kill_everywhere
from workload import Workload

from millstream import segment_list

if TYPE_CHECKING:
    from matrix import Cell

MANY_SEGMENTS = 4096
ONE_SEGMENT = 1 << 26


@pytest.fixture(autouse=True)
def chain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a partition have one from its second sealed segment on, not from some thousand."""
    monkeypatch.setattr(segment_list, "UNSAVED_MIN", 0)


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=4)
def test_scenario_36_37_38_84_nothing_acknowledged_is_lost_whenever_the_power_goes(
    cell: Cell,
) -> None:
    seed = 1 + CELLS.index(cell)
    workload = Workload(seed=seed, compression=cell.codec, segment_bytes=cell.segment_bytes)

    assert crash_everywhere(workload, seeds=(seed, seed + 100), restarts=cell.restarts) > 200


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize(
    ("seed", "compression", "segment_bytes"),
    [(8, "none", MANY_SEGMENTS), (9, "lz4", ONE_SEGMENT)],
)
def test_scenario_36_37_38_no_row_of_columns_is_lost_whenever_the_power_goes(
    seed: int, compression: str, segment_bytes: int
) -> None:
    workload = Workload(
        seed=seed, compression=compression, segment_bytes=segment_bytes, columns=True
    )

    assert crash_everywhere(workload, seeds=(seed,)) > 100


@pytest.mark.slow
@pytest.mark.crash
def test_scenario_47_48_a_killed_process_leaves_others_every_row_of_columns() -> None:
    assert kill_everywhere(Workload(seed=3, segment_bytes=MANY_SEGMENTS, columns=True)) > 50


@pytest.mark.slow
@pytest.mark.crash
def test_nothing_acknowledged_is_lost_of_what_several_processes_wrote() -> None:
    workload = Workload(seed=7, segment_bytes=MANY_SEGMENTS, processes=3)

    assert crash_everywhere(workload, seeds=(7,)) > 200


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
def test_scenario_47_48_a_killed_process_leaves_others_everything_it_acknowledged(
    cell: Cell,
) -> None:
    workload = Workload(seed=3, compression=cell.codec, segment_bytes=cell.segment_bytes)

    assert kill_everywhere(workload, restarts=cell.restarts) > 50
