"""The benchmarks run and report; how fast is for `make bench` to say, not for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_workload_runs_and_is_reported(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--dir", tmp_path, "--json", results],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    workloads = json.loads(results.read_text())["workloads"]
    log = ["L1", "L2", "L3", "L4", "L5", "threads", "opening"]
    log += ["segments", "follow", "queue", "transactions", "verify", "columns", "C1", "C2"]
    processor = ["P1", "P2", "epochs", "P3", "P1 columns", "P2 columns", "P3 columns", "P4", "R1"]
    processor += ["spill", "sessions", "sessions columns", "running columns", "different columns"]
    processor += ["join", "nexmark"]
    assert [*log, *processor] == list(workloads)
    for name, workload in workloads.items():
        assert f"{name}: {workload['title']}" in done.stdout
        assert all(isinstance(target["met"], bool) for target in workload["targets"])
        assert workload["durability"]
        assert workload["versions"]["millstream"]
    assert [results] == list(tmp_path.iterdir())


def test_an_unknown_workload_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "L1,nonsense"],
        cwd=ROOT,
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no such workload: nonsense" in done.stderr


def test_pipelines_of_rows_are_measured_without_arrow() -> None:
    code = "import sys, benchmarks.__main__; print(sorted({'pyarrow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert "[]\n" == done.stdout
