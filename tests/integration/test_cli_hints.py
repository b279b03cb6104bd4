"""What the command line says when something is mistyped or missing: true, and what to type next."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import millstream
from millstream.cli.main import cli as root, main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process, on a store with topic t: exit code, stdout, stderr."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t", partitions=2)
        store.append_many("t", [b"1", b"0"], partition=0)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_an_empty_directory_option_does_not_stand_for_another_store(cli: Cli) -> None:
    for arguments in (("topics", "rm", "t", "--dir", ""), ("--dir", "", "topics", "ls")):
        code, _, told = cli(*arguments)
        assert 2 == code
        assert "'--dir': is empty" in told
    assert 0 == cli("topics", "describe", "t")[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tail", "t", "--num", "9" * 20, "--no-follow"), "is not in the range 0<=x<="),
        (("queue", "work", "t", "-j", "9" * 20, "--", "true"), "is not in the range 1<=x<=1024"),
        (("query", "select \udcff"), "is no query: give it as a str, in UTF-8"),
    ],
)
def test_what_no_machine_can_do_is_refused(cli: Cli, arguments: tuple[str, ...], told: str) -> None:
    if arguments[0] == "query":
        pytest.importorskip("duckdb")
    code, _, error = cli(*arguments)
    assert (2, True) == (code, told in error)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("prodcue", "t"), "Did you mean 'produce' or 'process'?"),
        (("topic", "ls"), "Did you mean 'topics'?"),
        (("topics", "lst"), "Did you mean 'ls'"),
        (("groups", "descibe"), "Did you mean 'describe'?"),
        (("consume", "t", "--offst", "0"), "--offset'?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(
    cli: Cli, arguments: tuple[str, ...], hint: str
) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert hint in err


@pytest.mark.parametrize("arguments", [("consume", "u", "-e"), ("topics", "rm", "u", "-y")])
def test_for_a_missing_topic_commands_are_named_and_no_python(
    cli: Cli, arguments: tuple[str, ...]
) -> None:
    code, _, err = cli(*arguments)
    assert code == 5
    assert "`millstream topics create u`" in err
    assert "create_topic(" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("state", "get", "p", "window", "k"),
        ("state", "dump", "p", "window"),
        ("fork", "p", "q"),
        ("diff", "q", "a=b"),
        ("checkpoints", "p"),
    ],
    ids=" ".join,
)
def test_a_missing_pipeline_is_not_found(cli: Cli, arguments: tuple[str, ...]) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (5, "")
    assert "here" in err


def test_how_to_compact_is_not_told_in_python(cli: Cli) -> None:
    code, _, err = cli("compact", "t")
    assert code == 2
    assert "configure `compact`, or `recompress` as zstd" in err


def test_records_of_consume_that_are_taken_for_text_are_noticed(cli: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    _, out, _ = cli("consume", "t", "-J", "-e", "-n", "1")
    lines.write_text(out)
    assert "`consume -J`: -J makes" in cli("produce", "u", "-l", str(lines))[2]
    assert "-J makes" not in cli("produce", "u", "-J", "-l", str(lines))[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("consume", "t", "-e", "-p", "1,3"),
        ("produce", "t", "-p", "3"),
        ("topics", "roll", "t", "-p", "3"),
        ("groups", "reset", "g", "--to-latest", "--topic", "t:3"),
    ],
)
def test_a_partition_that_is_not_there_is_named_with_those_that_are(
    cli: Cli, arguments: tuple[str, ...]
) -> None:
    cli("consume", "t", "-e", "-g", "g")
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert "topic 't' has 2 partitions, 0 to 1; there is no 3" in err


def test_produce_refuses_before_it_creates_a_topic(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("produce", "new", "-p", "1")
    assert code == 2
    assert "`millstream topics create new -p N` first" in err
    with millstream.open(tmp_path / "store", read_only=True) as store:
        assert [topic.name for topic in store.topics()] == ["t"]


APP = """
from millstream.processor import Pipeline

def build():
    return Pipeline("bad name")

def divide(value):
    return 1 // int(value)

copy = Pipeline("copy")
copy.source("t", type=bytes).map(divide).to("out")

same = Pipeline("same")
same.source("t", type=bytes).to("out")
"""


def test_a_fault_of_the_pipelines_code_is_shown_by_its_own_lines(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "hinted.py").write_text(APP)
    (tmp_path / "unreadable.py").write_text("x = = 1\n")
    for target, line, last in (
        ("hinted:build", 'return Pipeline("bad name")', "a pipeline's name is"),
        ("hinted:divide", None, "TypeError: divide() missing 1 required positional argument"),
        ("hinted:copy", "return 1 // int(value)", "map divide: ZeroDivisionError: "),
        ("unreadable:app", "x = = 1", "cannot load unreadable:app: SyntaxError"),
    ):
        code, _, err = cli("process", target, "--until", "end")
        assert code in {1, 2}
        assert last in err.splitlines()[-1]
        assert line is None or line in err
        files = {text.split('"')[1] for text in err.splitlines() if text.startswith('  File "')}
        assert {Path(name).parent for name in files} <= {tmp_path}, err


@pytest.mark.parametrize("target", ["hinted.py:same", "./hinted.py:same", "hinted.py:"])
def test_a_file_given_for_a_module_is_answered_with_the_module(
    cli: Cli, tmp_path: Path, target: str
) -> None:
    (tmp_path / "hinted.py").write_text(APP)
    code, _, err = cli("process", target)
    assert code == 2
    assert "hinted:same" in err or "such as app:pipeline" in err


def test_the_offsets_of_a_pipeline_are_not_reset(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "app_not_reset.py").write_text(APP)
    assert cli("process", "app_not_reset:same", "--until", "end")[0] == 0
    for arguments in (("--to-earliest",), ("--to-earliest", "--yes")):
        code, out, err = cli("groups", "reset", "same", *arguments)
        assert (code, out) == (2, "")
        assert "'same' is a pipeline" in err
    assert cli("groups", "lag", "same", "--output", "jsonl")[1].count('"lag": 0') == 2


def test_no_line_of_a_list_of_commands_is_cut(cli: Cli) -> None:
    for path in ((), ("topics",), ("groups",), ("state",), ("queue",)):
        _, out, _ = cli(*path, "--help")
        assert "..." not in out.partition("Commands:")[2]


def test_every_topic_option_of_the_reference_is_taken() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference.md"
    rows = [line.split("|") for line in page.read_text().splitlines() if line.startswith("| `")]
    options = [row[2].strip(" `") for row in rows if re.match(r" `[a-z_]+=", row[2])]
    assert len(options) == 11
    with millstream.open(":memory:") as store:
        for number, option in enumerate(options):
            name, _, value = option.partition("=")
            # Some go with others only.
            config: dict[str, Any] = {"compact": True, "retention_groups": ["billing"]}
            config[name] = ast.literal_eval(value)
            store.create_topic(f"t{number}", **config)


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millstream", "topcs"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Did you mean 'topics'?" in done.stderr) == (2, True)
    assert isinstance(root, click.Group)
