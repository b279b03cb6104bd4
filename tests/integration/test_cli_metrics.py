"""`millstream metrics`: printed once, served until stopped, and without its extra."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

import millstream
from millstream.cli.main import main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")
        store.append_many("t", [b"x"] * 3)
    return tmp_path / "store"


@pytest.fixture
def cli(path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(path))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_metrics_are_printed_once(cli: Cli) -> None:
    code, out, err = cli("metrics")
    assert (0, "") == (code, err)
    assert 'kafka_topic_partition_current_offset{partition="0",topic="t"} 3.0\n' in out
    assert "# TYPE millstream_disk_bytes gauge\n" in out


def test_metrics_as_json_need_no_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    code, out, _ = cli("metrics", "--output", "json")
    found = json.loads(out)
    assert (0, 1) == (code, found["schema"])
    assert ("t", 3) == tuple(found["partitions"][0][name] for name in ("topic", "records"))

    code, _, err = cli("metrics")
    assert 2 == code
    assert "pip install 'millstream[metrics]'" in err


def test_metrics_are_served_anew_for_each_scrape_until_stopped(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "millstream", "metrics", "--listen", "0"],
        env={**os.environ, "MILLSTREAM_DIR": str(path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:")
        with millstream.open(path) as store:
            for count in (3, 4):
                with urllib.request.urlopen(url, timeout=30) as answer:
                    text = answer.read().decode()
                assert f'millstream_records{{partition="0",topic="t"}} {count}.0' in text
                store.append("t", b"y")
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(30)
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken_and_one_that_is_none(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = cli("metrics", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert 1 == code
    assert "cannot listen at 127.0.0.1:" in err
    for wrong in ("here", "127.0.0.1:", "1:99999"):
        assert 2 == cli("metrics", "--listen", wrong)[0]
