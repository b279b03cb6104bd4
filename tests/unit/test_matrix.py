"""The matrix that scenarios run over says what it promises, and no scenario leaves it silently."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from matrix import CELLS, COLUMNS, axes, chosen

TOOL = Path(__file__).parents[2] / "tools" / "write_robustness_tests.py"


@pytest.fixture
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLSTREAM_CELLS", raising=False)
    monkeypatch.delenv("MILLSTREAM_SEED", raising=False)


def test_each_codec_meets_one_and_three_segments_and_one_and_two_restarts() -> None:
    assert 12 == len({(cell.codec, cell.segments, cell.restarts) for cell in CELLS})
    assert [*CELLS] == chosen("test_x")
    assert [*CELLS, *COLUMNS] == chosen("test_x", columns=True)
    assert 6 == len(chosen("test_x", segments=3))


@pytest.mark.parametrize("count", [3, 4, 6])
@pytest.mark.parametrize("seed", range(20))
def test_drawn_cells_hold_every_value(
    count: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_SEED", str(seed))
    found = chosen("test_x", count=count)

    assert count == len(set(found))
    assert {value for cell in CELLS for value in axes(cell)} == {
        value for cell in found for value in axes(cell)
    }
    assert found == chosen("test_x", count=count)


def test_another_seed_draws_others_and_all_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()
    for seed in range(20):
        monkeypatch.setenv("MILLSTREAM_SEED", str(seed))
        drawn |= set(chosen("test_x", count=3))
    assert set(CELLS) == drawn
    monkeypatch.setenv("MILLSTREAM_CELLS", "all")
    assert [*CELLS] == chosen("test_x", count=3)


def test_a_scenario_that_falls_out_of_the_matrix_is_told(tool: dict[str, Any]) -> None:
    matrix = tool["matrix"]
    assert "| no. 1 |" in matrix()
    over = list(tool["tests_with_cells"]())
    without = [(name, cells) for name, cells in over if "scenario_07" not in name]
    matrix.__globals__["tests_with_cells"] = lambda: iter(without)

    with pytest.raises(ValueError, match="scenario 7 must either have a test"):
        matrix()


def test_a_scenario_that_came_into_the_matrix_needs_no_reason(tool: dict[str, Any]) -> None:
    tool["NOT_OVER_THE_MATRIX"][7] = "no reason"

    with pytest.raises(ValueError, match="scenario 7"):
        tool["matrix"]()
