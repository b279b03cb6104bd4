"""`millstream bench`: numbers that hang together, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import millstream
from millstream.cli.main import main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(tmp_path / "deep" / "store"))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_rates_ratios_and_latencies_are_printed_and_nothing_is_left(
    cli: Cli, tmp_path: Path
) -> None:
    code, out, err = cli("bench", "--seconds", "0.1", "--json")

    found = json.loads(out)
    assert (0, 100, str(tmp_path)) == (code, found["size_bytes"], found["directory"])
    assert err.startswith(f"measuring in {tmp_path}")
    results = found["results"]
    assert ["append one", "append 1000", "read back"] == [each["workload"] for each in results]
    for each in results:
        assert min(each["records_per_s"], each["limit_records_per_s"]) > 0
        assert each["ratio"] > 0
    for each in results[:2]:
        assert 0 < each["p50_ms"] <= each["p99_ms"]
        assert 0 < each["limit_p50_ms"] <= each["limit_p99_ms"]
    assert [] == list(tmp_path.iterdir())


def test_it_measures_where_the_store_is_and_leaves_it_alone(cli: Cli, tmp_path: Path) -> None:
    store_path = tmp_path / "deep" / "store"
    with millstream.open(store_path) as store:
        store.create_topic("t")
        store.append("t", b"x")
        before = sorted(store_path.rglob("*"))
        code, out, err = cli("bench", "--seconds", "0.1", "--size", "1kB")
        assert before == sorted(store_path.rglob("*"))
    assert (0, 4) == (code, len(out.splitlines()))
    assert str(store_path) in err


def test_wrong_sizes_and_places_are_refused(cli: Cli, tmp_path: Path) -> None:
    assert 2 == cli("bench", "--size", "0")[0]
    assert 2 == cli("bench", "--size", "128001")[0]
    assert 2 == cli("bench", "--seconds", "0")[0]
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_and_nothing_is_left(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "millstream", "bench", "--seconds", "600"],
        env={**os.environ, "MILLSTREAM_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("measuring in")
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (code, "") == (process.returncode, out)
    assert [] == list(tmp_path.iterdir())
