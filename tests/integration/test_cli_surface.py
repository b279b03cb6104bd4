"""One surface: a letter means the same everywhere, and every command has its JSON."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import millstream
from millstream.cli.main import cli as root, main

APP = """
from millstream.processor import Pipeline

pipeline = Pipeline("copies")
pipeline.source("letters", type=bytes).to("copies")
"""

TWO_MEANINGS = {
    "-f": {"--format", "--follow"},  # kcat's, and that of `tail -f`
    "-p": {"--partition", "--partitions"},
}


def commands(
    group: click.Group, names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))
        else:
            yield (*names, name), command


def test_a_letter_is_the_same_option_everywhere() -> None:
    meanings: dict[str, set[str]] = defaultdict(set)
    for _, command in commands(root):
        for parameter in command.get_params(click.Context(command)):
            options = [*parameter.opts, *parameter.secondary_opts]
            words = [each for each in options if each.startswith("--")]
            for letter in (each for each in options if not each.startswith("--")):
                meanings[letter].update(words[:1])
    assert TWO_MEANINGS == {each: words for each, words in meanings.items() if len(words) > 1}


def test_only_yes_does_what_cannot_be_taken_back() -> None:
    spelt = {
        names: words & {"--yes", "--force", "-f", "-y"}
        for names, command in commands(root)
        if (words := {opt for each in command.params for opt in each.opts})
        & {"--yes", "--force", "--execute"}
    }
    assert {"--yes", "-y"} == set().union(*spelt.values())
    assert {
        ("groups", "reset"),
        ("groups", "rm"),
        ("queue", "skip"),
        ("repair",),
        ("state", "migrate"),
        ("topics", "rm"),
        ("topics", "trim"),
    } == set(spelt)


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --output json in a directory with a store: exit code and stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "surface_app.py").write_text(APP)
    (tmp_path / "letters").write_bytes(b"a\nb\nc\n")

    def call(*arguments: str, output: str = "json") -> tuple[int, str]:
        code = main(["--output", output, *arguments])
        return code, capfd.readouterr().out

    return call


DOCUMENTS = """
produce letters -l letters
topics create jobs
topics create users --compact
topics ls
topics describe letters
topics set letters retention=7d
topics roll letters
topics trim letters --before 0
process surface_app:pipeline --explain
process surface_app:pipeline --until end
graph surface_app:pipeline
graph surface_app:pipeline --text
checkpoints
checkpoints copies --keep
fork copies copies-fix
diff copies-fix copies=copies
state ls
state migrate surface_app:pipeline
verify surface_app:pipeline
verify
verify --explain
groups ls
groups describe billing
groups lag billing
groups reset billing --to-earliest
export letters letters.jsonl
import more letters.jsonl
produce jobs -l letters
queue work jobs -n 1 -- true
queue ls
queue describe jobs
queue skip jobs --before latest
queue skip jobs --before latest --yes
queue redrive more
compact users
retention
repair
doctor
check --min-free 1B
metrics
query "select 1 as one"
dump millstream-data/topics/jobs/0/00000000000000000000.segment
backup backup
restore backup --dir restored
config
version
groups rm billing --yes
topics rm jobs --yes
"""
LINES = """
consume letters -e
tail letters --no-follow
export letters
process surface_app:pipeline --dry-run
"""
MISSING = {
    ("bench",): "tests/integration/test_cli_bench.py",
    ("demo",): "refused below",
    ("state", "get"): "below: it needs an operator with state",
    ("state", "dump"): "below",
}


def split(line: str) -> list[str]:
    return [part.strip('"') for part in line.split(maxsplit=1 if "query" in line else -1)]


def test_every_command_prints_one_document(run: Run) -> None:
    called = [split(line) for line in (DOCUMENTS + LINES).split("\n") if line]
    known = {names for names, _ in commands(root)} - set(MISSING)
    assert known == {
        names for names in known if any(list(names) == c[: len(names)] for c in called)
    }
    run("produce", "letters", "-l", "letters")
    run("consume", "letters", "-g", "billing", "-e")
    for line in filter(None, DOCUMENTS.split("\n")):
        code, out = run(*split(line))
        assert code <= (line.split()[0] in {"doctor", "diff"}), line  # they may find something
        document: dict[str, Any] = json.loads(out)
        assert 1 == document["schema"], line
        assert len(document) > 1, line
    assert 2 == run("demo")[0]


def test_records_are_lines_as_there_may_be_no_end_of_them(run: Run) -> None:
    assert 0 == run("produce", "letters", "-l", "letters")[0]
    for line in filter(None, LINES.split("\n")):
        code, out = run(*split(line))
        assert 0 == code, line
        assert ["a", "b", "c"] == [json.loads(each)["value"] for each in out.splitlines()], line
    assert 2 == run("tail", "letters", "--no-follow", output="csv")[0]
    assert "value" in run("export", "letters", output="csv")[1].splitlines()[0]


def test_documents_say_what_was_done(run: Run) -> None:
    def document(*arguments: str) -> dict[str, Any]:
        code, out = run(*arguments)
        assert 0 == code, out
        found: dict[str, Any] = json.loads(out)
        return found

    assert {"schema": 1, "topic": "letters", "records": 3, "duplicates": 0} == document(
        "produce", "letters", "-l", "letters"
    )
    with millstream.open("millstream-data") as store:
        store.backup("saved")
    assert 3 == document("restore", "saved", "--dir", "restored")["records"]
    done = document("process", "surface_app:pipeline", "--until", "end")
    assert ("copies", 3, 3) == (done["pipeline"], done["records_in"], done["records_out"])
    assert 1 == document("queue", "work", "letters", "-n", "1", "--", "true")["acked"]
    assert 5 == run("checkpoints", "nowhere")[0]


ROOT = Path(__file__).parents[2]
OPTION = r"(?<![^\s(])--?[A-Za-z][a-z-]*"
EVERY_OPTION = {
    option
    for _, command in commands(root)
    for parameter in command.get_params(click.Context(command))
    for option in (*parameter.opts, *parameter.secondary_opts)
}
SOURCES = [
    path
    for folder in ("logstore", "processor", "cli")
    for path in sorted((ROOT / folder).glob("*.py"))
]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("concepts/*.md")]


def options_of(line: str) -> set[str]:
    """All that the command in a line takes, its groups included."""
    command: click.Command = root
    taken: set[str] = set()
    for word in ["", *line.split()]:
        found = command.get_command(click.Context(command), word) if word else command
        if found is None:
            break
        command = found
        for parameter in command.get_params(click.Context(command)):
            taken.update(parameter.opts, parameter.secondary_opts)
        if not isinstance(command, click.Group):
            break
    return taken


def test_options_that_are_told_are_there() -> None:
    for path in [*SOURCES, *PAGES]:
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"\bmillstream ((?:[a-z]+ )+[^\n`|;\"]*)", text):
            told = set(re.findall(OPTION, line.partition(" -- ")[0]))
            assert told <= options_of(line), f"{path.name}: millstream {line}"
        if path.suffix == ".py":
            told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
            assert told <= EVERY_OPTION, path.name
