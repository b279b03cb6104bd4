"""Groups, pipelines and the tools that look at files, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

import millstream
from millstream import TopicPartition
from millstream.cli.main import cli as root, main
from millstream.cli.settings import Settings

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def cli(
    store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Cli:
    """Run a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(store_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def fill(store_path: Path, count: int = 10) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("t", partitions=2)
        for partition in (0, 1):
            values = [b"%d" % number for number in range(count)]
            times = [1_700_000_000_000 + number for number in range(count)]
            store.append_many("t", values, timestamps_ms=times, partition=partition)


def committed(store_path: Path, group: str = "g") -> dict[int, int]:
    with millstream.open(store_path, read_only=True) as store:
        return {each.partition: offset for each, offset in store.group(group).offsets.items()}


def test_a_group_goes_on_where_it_stood(cli: Cli, store_path: Path) -> None:
    fill(store_path, 3)
    code, out, err = cli("consume", "t", "-g", "g", "-e", "-f", "%p%s ")
    assert (code, sorted(out.split()), err) == (0, ["00", "01", "02", "10", "11", "12"], "")
    assert cli("consume", "t", "-g", "g", "-e") == (0, "", "")
    with millstream.open(store_path) as store:
        store.append("t", b"new", partition=1)
    assert cli("consume", "t", "-g", "g", "-e") == (0, "new\n", "")
    assert committed(store_path) == {0: 3, 1: 4}


def test_num_commits_what_was_printed_and_no_more(cli: Cli, store_path: Path) -> None:
    fill(store_path)
    assert cli("consume", "t", "-g", "g", "-n", "13", "-f", "%s ")[0] == 0
    assert sum(committed(store_path).values()) == 13
    code, out, _ = cli("consume", "t", "-g", "g", "-e", "-f", "%s ")
    assert (code, len(out.split())) == (0, 7)


def test_a_group_prints_the_whole_of_a_large_batch(cli: Cli, store_path: Path) -> None:
    """Larger than what is printed at once: the rest comes next, now or in the next run."""
    with millstream.open(store_path) as store:
        store.create_topic("t")
        store.append_many("t", [b"%d" % number for number in range(25_000)])
        store.append("t", b"last")
    _, first, _ = cli("consume", "t", "-g", "g", "-n", "12000")
    assert committed(store_path) == {0: 12_000}
    _, second, _ = cli("consume", "t", "-g", "g", "-e")
    assert (first + second).split() == [*map(str, range(25_000)), "last"]
    assert committed(store_path) == {0: 25_001}


def test_commit_never_leaves_the_group_where_it_was(cli: Cli, store_path: Path) -> None:
    fill(store_path, 2)
    for _ in range(2):
        assert len(cli("consume", "t", "-g", "g", "-e", "--commit", "never")[1].split()) == 4
    assert cli("consume", "t", "-g", "g", "-e", "--commit", "batch", "-o", "end") == (0, "", "")


def test_lag_and_describe_have_the_columns_everybody_knows(cli: Cli, store_path: Path) -> None:
    fill(store_path)
    cli("consume", "t", "-g", "g", "-n", "13")
    code, out, _ = cli("groups", "lag", "g", "--output", "json")
    rows = json.loads(out)["partitions"]
    assert code == 0
    assert [row["log_end_offset"] for row in rows] == [10, 10]
    assert sum(row["lag"] for row in rows) == 7
    code, out, _ = cli("groups", "describe", "g", "--output", "table")
    assert out.splitlines()[0].split() == [
        "GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG", "LAG-MS",
        "CONSUMER-ID", "HOST", "CLIENT-ID",
    ]  # fmt: skip
    assert cli("groups", "ls")[1] == "group\tmembers\tpartitions\tlag\ng\t0\t2\t7\n"


def test_a_live_member_is_described_and_guards_its_group(cli: Cli, store_path: Path) -> None:
    fill(store_path)
    with millstream.open(store_path) as store, store.consumer("t", group="g") as consumer:
        consumer.poll()
        rows = json.loads(cli("groups", "describe", "g", "--output", "json")[1])["partitions"]
        assert [row["consumer_id"] for row in rows] == [consumer.member_id] * 2
        assert cli("groups", "ls")[1].splitlines()[1].startswith("g\t1\t2")
        for arguments in (
            ("groups", "reset", "g", "--to-earliest", "--yes"),
            ("groups", "rm", "g", "--yes"),
        ):
            code, _, err = cli(*arguments)
            assert code == 3
            assert "live member" in err


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        (["--to-earliest"], {0: 0, 1: 0}),
        (["--to-latest"], {0: 10, 1: 10}),
        (["--to-current"], {0: 5, 1: 7}),
        (["--to-offset", "3"], {0: 3, 1: 3}),
        (["--to-offset", "99"], {0: 10, 1: 10}),
        (["--shift-by", "-6"], {0: 0, 1: 1}),
        (["--shift-by", "2", "--topic", "t:1"], {0: 5, 1: 9}),
        (["--to-datetime", "1700000000004"], {0: 4, 1: 4}),
        (["--by-duration", "PT1H"], {0: 10, 1: 10}),
        (["--to-earliest", "--topic", "t"], {0: 0, 1: 0}),
    ],
    ids=str,
)
def test_reset_shows_its_plan_and_then_does_it(
    cli: Cli, store_path: Path, switch: list[str], expected: dict[int, int]
) -> None:
    fill(store_path)
    with millstream.open(store_path) as store, store.consumer("t", group="g") as consumer:
        consumer.poll(0, 20)
        consumer.commit({TopicPartition("t", 0): 5, TopicPartition("t", 1): 7})

    code, out, err = cli("groups", "reset", "g", *switch)
    assert code == 0
    assert "--yes does it" in err
    plan = {int(line.split("\t")[2]): int(line.split("\t")[4]) for line in out.splitlines()[1:]}
    assert {0: 5, 1: 7} | plan == expected
    assert committed(store_path) == {0: 5, 1: 7}

    assert cli("groups", "reset", "g", *switch, "--yes")[0] == 0
    assert committed(store_path) == expected


def test_a_plan_goes_through_a_file(cli: Cli, store_path: Path, tmp_path: Path) -> None:
    fill(store_path)
    cli("consume", "t", "-g", "g", "-e")
    code, out, _ = cli("groups", "reset", "g", "--to-offset", "4", "--export")
    assert (code, out) == (0, "t,0,4\nt,1,4\n")
    (tmp_path / "plan.csv").write_text(out.replace("t,1,4", "t,1,6"))
    assert cli("groups", "reset", "g", "--from-file", "plan.csv", "--yes")[0] == 0
    assert committed(store_path) == {0: 4, 1: 6}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("groups", "lag", "nope"), 5),
        (("groups", "describe", "nope"), 5),
        (("groups", "reset", "nope", "--to-latest"), 5),
        (("groups", "rm", "nope", "-y"), 5),
        (("groups", "reset", "g"), 2),
        (("groups", "reset", "g", "--to-latest", "--to-earliest"), 2),
        (("groups", "reset", "g", "--to-latest", "--dry-run", "--yes"), 2),
        (("groups", "reset", "g", "--to-latest", "--topic", "t:9"), 2),
        (("groups", "reset", "g", "--to-datetime", "noon"), 2),
        (("groups", "rm", "g"), 2),
        (("process", "app"), 2),
        (("process", "no_such_module:pipeline"), 2),
        (("process", "json:dumps_nothing"), 2),
        (("dump", "nowhere.segment"), 2),
        (("verify", "nope"), 5),
    ],
    ids=str,
)
def test_mistakes_have_their_exit_codes(
    cli: Cli, store_path: Path, arguments: tuple[str, ...], expected: int
) -> None:
    fill(store_path)
    cli("consume", "t", "-g", "g", "-e")
    code, out, err = cli(*arguments)
    assert (code, out) == (expected, "")
    assert err
    assert "Traceback" not in err


def test_a_group_is_deleted(cli: Cli, store_path: Path) -> None:
    fill(store_path)
    cli("consume", "t", "-g", "g", "-e")
    assert cli("groups", "rm", "g", "--yes")[0] == 0
    assert cli("groups", "ls", "--output", "jsonl") == (0, "", "")


PIPELINE = """
from millstream.processor import Pipeline, agg, tumbling

def build():
    pipeline = Pipeline("counts")
    numbers = pipeline.source("numbers", type=dict, time="ts")
    windows = numbers.key_by("user").window(tumbling("1s"), grace="0s")
    windows.agg(n=agg.count(), total=agg.sum("n")).to("totals")
    return pipeline

pipeline = build()

broken = Pipeline("broken")
def divide(row):
    return {"x": 1 // (row["n"] - 1)}
broken.source("numbers", type=dict, time="ts").map(divide).to("out")
"""


def write_app(directory: Path, name: str) -> None:
    (directory / f"{name}.py").write_text(PIPELINE)


def produce_numbers(store_path: Path) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("numbers", exist_ok=True)
        rows = [{"user": "u", "n": n, "ts": 1_000 * n} for n in range(4)]
        store.append_many("numbers", [json.dumps(row).encode() for row in rows])


def test_process_runs_a_pipeline_to_the_end(cli: Cli, store_path: Path, tmp_path: Path) -> None:
    write_app(tmp_path, "app_to_the_end")
    produce_numbers(store_path)
    code, out, err = cli("process", "app_to_the_end:pipeline", "--until", "end")
    assert (code, out) == (0, "")
    assert "counts: 4 records in" in err
    code, out, err = cli("process", "app_to_the_end:build", "--until", "end", "--on-end", "flush")
    assert code == 0
    totals = [json.loads(line) for line in cli("consume", "totals", "-e")[1].splitlines()]
    assert [total["total"] for total in totals] == [0, 1, 2, 3]
    assert cli("-q", "process", "app_to_the_end:pipeline", "--until", "end") == (0, "", "")
    code, out, _ = cli("process", "app_to_the_end:pipeline", "--explain")
    assert (code, "totals" in out) == (0, True)


def test_process_names_the_record_and_the_line_of_a_fault(
    cli: Cli, store_path: Path, tmp_path: Path
) -> None:
    write_app(tmp_path, "app_with_a_fault")
    produce_numbers(store_path)
    code, out, err = cli("process", "app_with_a_fault:broken", "--until", "end")
    assert (code, out) == (1, "")
    assert 'return {"x": 1 // (row["n"] - 1)}' in err
    assert "ZeroDivisionError" in err
    assert "offset 1" in err.splitlines()[-1]
    assert cli("process", "app_with_a_fault:nothing")[0] == 2


def test_a_module_that_fails_to_import_shows_why(
    cli: Cli, store_path: Path, tmp_path: Path
) -> None:
    fill(store_path)
    (tmp_path / "app_failing.py").write_text("import a_module_that_is_not_there\n")
    code, _, err = cli("process", "app_failing:pipeline")
    assert code == 1
    assert "a_module_that_is_not_there" in err
    assert "app_failing.py" in err


def test_a_pipeline_that_runs_elsewhere_is_busy(cli: Cli, store_path: Path, tmp_path: Path) -> None:
    write_app(tmp_path, "app_busy")
    produce_numbers(store_path)
    with millstream.open(store_path) as store, store.own("pipeline/counts"):
        code, _, err = cli("process", "app_busy:pipeline", "--until", "end")
    assert code == 3
    assert str(os.getpid()) in err


def test_a_running_pipeline_finishes_its_epoch_on_sigterm(store_path: Path, tmp_path: Path) -> None:
    write_app(tmp_path, "app_stopped")
    produce_numbers(store_path)
    with subprocess.Popen(
        [sys.executable, "-m", "millstream", "process", "app_stopped:pipeline", "--progress"],
        stderr=subprocess.PIPE,
        env={**os.environ, "MILLSTREAM_DIR": str(store_path)},
        cwd=tmp_path,
    ) as process:
        deadline = time.monotonic() + 30
        with millstream.open(store_path, read_only=True) as store:
            while not any(each.name == "totals" for each in store.topics()):
                assert time.monotonic() < deadline
            with store.reader({TopicPartition("totals", 0): 0}) as reader:
                while not reader.poll():
                    assert reader.wait(30)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"counts: 4 records in" in err


def segments(store_path: Path) -> list[Path]:
    return sorted((store_path / "topics" / "t" / "0").glob("*.segment"))


def test_dump_shows_batches_and_records(cli: Cli, store_path: Path) -> None:
    fill(store_path, 2)
    (segment,) = segments(store_path)
    code, out, _ = cli("dump", str(segment))
    assert code == 0
    assert "base offset 0" in out.splitlines()[0]
    assert "position 128: offsets 0 to 1 count 2" in out.splitlines()[1]
    assert out.splitlines()[1].endswith("valid")
    code, out, _ = cli("dump", "--print", str(segment))
    assert out.splitlines()[-1].endswith("key null value 1 headers 0 None: b'1'")
    assert len(cli("dump", "--deep", str(segment))[1].splitlines()) == 4
    (document,) = json.loads(cli("dump", "--json", "--print", str(segment))[1])["segments"]
    line = json.loads(cli("dump", "--output", "jsonl", "--print", str(segment))[1])
    assert line == {"schema": 1, **document}
    assert document["batches"][0]["record_count"] == 2
    assert document["batches"][0]["records"][1]["value"] == "1"


def test_damage_is_found_and_named(cli: Cli, store_path: Path) -> None:
    """In a sealed segment, below everything recovery may repair."""
    fill(store_path)
    with millstream.open(store_path) as store:
        store.roll("t", 0)
    assert cli("verify")[0] == 0
    assert json.loads(cli("verify", "t", "--json")[1])["ok"] is True

    segment = segments(store_path)[0]
    content = bytearray(segment.read_bytes())
    content[330] ^= 1
    segment.write_bytes(content)

    code, out, err = cli("dump", str(segment))
    assert code == 4
    assert "INVALID" in out
    assert "problems found: 1" in err
    code, out, err = cli("verify", "--deep", "--output", "json")
    document = json.loads(out)
    assert (code, document["ok"]) == (4, False)
    (finding,) = document["findings"]
    assert (finding["topic"], finding["partition"], finding["position"]) == ("t", 0, 128)
    code, out, err = cli("consume", "t", "-e", "-p", "0")
    assert code == 4
    assert "offset 0" in err
    assert cli("consume", "t", "-e", "-p", "1")[0] == 0


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    found = [path]
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        found += commands(inner, (*path, name))
    return found


@pytest.mark.parametrize("path", commands(root), ids=lambda path: " ".join(path) or "millstream")
def test_every_command_has_help_with_an_example(cli: Cli, path: tuple[str, ...]) -> None:
    code, out, err = cli(*path, "--help")
    assert (code, err) == (0, "")
    assert "Examples:" in out
    assert f"millstream {' '.join(path)}".strip() in out
    assert "--dir DIR" in out
    assert "\\b" not in out


def test_completion_offers_topics_and_groups(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store_path)
    monkeypatch.setenv("MILLSTREAM_DIR", str(store_path))

    def offered(*words: str) -> list[str]:
        completer = BashComplete(root, {"obj": Settings()}, "millstream", "X")
        return [item.value for item in completer.get_completions(list(words[:-1]), words[-1])]

    with millstream.open(store_path) as store, store.consumer("t", group="billing"):
        assert offered("consume", "") == ["t"]
        assert offered("topics", "describe", "x") == []
        assert offered("groups", "lag", "b") == ["billing"]
    monkeypatch.setenv("MILLSTREAM_DIR", str(store_path / "nowhere"))
    assert offered("consume", "") == []
