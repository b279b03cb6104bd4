"""Queues from the command line: a command for each job, dead letters, what there is."""

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
def path(tmp_path: Path) -> Path:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("jobs")
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


def put(path: Path, *values: bytes | None, key: bytes | None = None) -> None:
    with millstream.open(path) as store:
        for value in values:
            store.append("jobs", value, key=key)


def test_a_command_runs_for_each_job_until_there_is_none(path: Path, cli: Cli) -> None:
    put(path, b"a b", b"c")

    code, out, err = cli("queue", "work", "jobs", "-e", "--", "printf", "[%s]", "{}")

    assert (0, "[a b][c]") == (code, out)
    assert "printf '[%s]' '{}': 2 acked, 0 failed\n" == err
    assert (0, "") == cli("queue", "work", "jobs", "-e", "-q", "--", "printf", "{}")[:2]


def test_without_braces_the_value_comes_on_standard_input(path: Path, cli: Cli) -> None:
    put(path, b"x" * 200_000, None)

    code, out, _ = cli("queue", "work", "jobs", "-e", "--", "wc", "-c")

    assert (0, ["200000", "0"]) == (code, out.split())
    put(path, b"x" * 200_000)
    assert 0 == cli("queue", "work", "jobs", "-e", "--", "true")[0], "it need not read"


def test_the_environment_says_which_job_it_is(path: Path, cli: Cli) -> None:
    put(path, b"v", key=b"k 1")
    script = (
        'echo "$MILLSTREAM_TOPIC/$MILLSTREAM_PARTITION/$MILLSTREAM_OFFSET"'
        ' "$MILLSTREAM_KEY" "$MILLSTREAM_DELIVERIES" "$0" "$1"'
    )

    code, out, _ = cli("queue", "work", "jobs", "-c", "1", "--", "sh", "-c", script, "{key}", "{}!")

    assert (0, "jobs/0/0 k 1 1 k 1 v!\n") == (code, out)


def test_a_command_that_fails_gives_the_job_back(path: Path, cli: Cli) -> None:
    put(path, b"good", b"bad", b"fine")
    failing = ("sh", "-c", 'test "$0" != bad', "{}")

    code, _, err = cli(
        "queue",
        "work",
        "jobs",
        "-e",
        "--retry",
        "0",
        "--max-deliveries",
        "3",
        "--dead-letter",
        "dead",
        "--",
        *failing,
    )

    assert 1 == code
    assert "jobs/0 offset 1: exit code 1, delivery 3" in err
    assert "2 acked, 3 failed" in err
    code, out, _ = cli("queue", "ls", "--output", "json")
    (row,) = json.loads(out)["queues"]
    assert ("jobs", "workers", 0, 0, 0, 0, 1, "dead") == tuple(row.values())

    assert "1 given back, 0 appended again, 0 left" in cli("queue", "redrive", "dead")[2]
    assert "bad" == cli("queue", "work", "jobs", "-e", "--", "printf", "{}")[1]


def test_a_retry_can_wait(path: Path, cli: Cli) -> None:
    put(path, b"x")
    assert 1 == cli("queue", "work", "jobs", "-e", "--retry", "1h", "--", "false")[0]
    code, out, _ = cli("queue", "describe", "jobs", "--output", "json")
    (row,) = json.loads(out)["partitions"]
    assert (0, "workers", 1, 1, 0, 0, 1) == (
        code,
        row["group"],
        row["next_offset"],
        row["log_end_offset"],
        row["ready"],
        row["leased"],
        row["delayed"],
    )


def test_several_commands_run_at_a_time(path: Path, cli: Cli, tmp_path: Path) -> None:
    """Each waits for the other."""
    put(path, b"1", b"2")
    for name in ("1", "2"):
        os.mkfifo(tmp_path / name)
    script = 'if [ "$0" = 1 ]; then : > 1; : < 2; else : < 1; : > 2; fi'

    code, _, err = cli(
        "queue", "work", "jobs", "-e", "-j", "2", "--", "sh", "-c", f"cd {tmp_path}; {script}", "{}"
    )

    assert (0, True) == (code, "2 acked, 0 failed" in err)


def test_the_lease_is_renewed(path: Path, tmp_path: Path) -> None:
    put(path, b"slow")
    os.mkfifo(tmp_path / "end")
    with millstream.open(path) as store, store.queue("jobs") as other:
        command = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "millstream",
                "--dir",
                str(path),
                "queue",
                "work",
                "jobs",
                "-c",
                "1",
                "--visibility",
                "300ms",
                "--",
                "sh",
                "-c",
                f"echo begun; : < {tmp_path}/end",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert command.stdout is not None
        assert b"begun\n" == command.stdout.readline()
        assert other.get(timeout=1.0) is None
        (tmp_path / "end").write_bytes(b"")
        errors = command.communicate(timeout=30)[1]
        assert (0, True) == (command.returncode, b"1 acked, 0 failed" in errors)


def test_a_signal_lets_the_running_command_finish(path: Path, tmp_path: Path) -> None:
    put(path, b"first", b"second")
    os.mkfifo(tmp_path / "end")
    command = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "millstream",
            "--dir",
            str(path),
            "queue",
            "work",
            "jobs",
            "--",
            "sh",
            "-c",
            f"echo begun; : < {tmp_path}/end",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert command.stdout is not None
    assert b"begun\n" == command.stdout.readline()
    os.killpg(command.pid, signal.SIGINT)
    assert command.stderr is not None
    assert b"finishing what runs; once more to stop at once\n" == command.stderr.readline()
    (tmp_path / "end").write_bytes(b"")
    errors = command.communicate(timeout=30)[1]
    assert (130, True) == (command.returncode, b"1 acked, 0 failed" in errors)
    with millstream.open(path) as store:
        assert 1 == store.queues()[0].depth


def test_jobs_are_skipped_after_a_plan(path: Path, cli: Cli) -> None:
    put(path, b"1", b"2", b"3")
    assert 0 == cli("queue", "work", "jobs", "-c", "1", "--", "true")[0]
    assert "2 would be skipped" in cli("queue", "skip", "jobs", "--before", "latest")[2]
    assert "2 skipped" in cli("queue", "skip", "jobs", "--before", "latest", "--yes")[2]
    assert "0 acked" in cli("queue", "work", "jobs", "-e", "--", "false")[2]


def test_workers_are_listed(path: Path, cli: Cli) -> None:
    with millstream.open(path) as store, store.queue("jobs"):
        code, out, _ = cli("queue", "describe", "jobs", "--workers", "--output", "json")
        (row,) = json.loads(out)["workers"]
        assert (0, os.getpid()) == (code, row["pid"])
        assert (0, "") != cli("queue", "describe", "jobs", "-g", "workers")[:2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("work", "nothing", "--", "true"), 5, "there is no topic 'nothing'"),
        (("work", "jobs", "--", "no-such-command"), 2, "there is no command 'no-such-command'"),
        (("work", "jobs", "-e", "--", "./{}"), 1, "cannot run './{}'"),
        (("work", "jobs"), 2, "Missing argument"),
        (("work", "jobs", "--max-deliveries", "2", "--", "true"), 2, "needs dead_letter"),
        (("work", "jobs", "--retry", "soon", "--", "true"), 2, "not a duration"),
        (("describe", "jobs", "-g", "nobody"), 5, "no queue over the topic"),
        (("skip", "jobs", "--before", "latest"), 5, "no queue over the topic"),
        (("redrive", "nothing"), 5, "there is no topic"),
    ],
)
def test_mistakes_are_named(
    path: Path, cli: Cli, arguments: tuple[str, ...], code: int, message: str
) -> None:
    put(path, b"no-such-file")
    found, _, err = cli("queue", *arguments)
    assert (code, True) == (found, message in err), err
    with millstream.open(path) as store:
        assert [1] * len(store.queues()) == [info.depth for info in store.queues()]


def test_a_value_with_a_nul_byte_is_no_argument(path: Path, cli: Cli) -> None:
    put(path, b"a\0b")
    code, _, err = cli("queue", "work", "jobs", "-e", "--retry", "1h", "--", "echo", "{}")
    assert (1, True) == (code, "cannot hold a NUL byte" in err)
