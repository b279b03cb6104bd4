"""The status line of long commands, as a terminal shows it."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from pathlib import Path

import pytest

import millstream
from millstream.cli import progress
from millstream.cli.main import main
from millstream.cli.progress import CatchUp, Progress, StatusLine

COLUMNS = 40


class Terminal(io.StringIO):
    """What is written to a terminal, and the lines it then shows."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def lines(self) -> list[str]:
        """Without those that are empty. A character beyond the width goes to the next line."""
        shown, column = [""], 0
        for character in self.getvalue().replace("\x1b[K", "\0"):
            if character == "\n":
                shown, column = [*shown, ""], 0
            elif character == "\r":
                column = 0
            elif character == "\0":
                shown[-1] = shown[-1][:column]
            else:
                if column == COLUMNS:
                    shown, column = [*shown, ""], 0
                shown[-1], column = shown[-1][:column] + character, column + 1
        return [line for line in shown if line]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = COLUMNS) -> Terminal:
    made = Terminal()
    size = os.terminal_size((columns, 24))
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: size)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0)
    return made


def test_a_status_line_is_one_line_however_much_there_is_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_a_terminal(monkeypatch)
    with StatusLine(None) as status:
        status.show("a" * 2 * COLUMNS)
        status.show("b" * 2 * COLUMNS)
        (line,) = terminal.lines()
        assert {"b"} == set(line)
    sys.stderr.write("done")
    assert ["done"] == terminal.lines(), "what comes next has a line of its own"


def test_counts_stay_at_the_end_and_go_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with Progress(None) as counts:
        counts.add(2, 7)
        counts.end()
    assert ["2 records"] == [line.split(",")[0] for line in terminal.lines()]
    with pytest.raises(ValueError, match="no record"):
        fail_behind_a_count(terminal)
    assert 1 == len(terminal.lines())


def fail_behind_a_count(terminal: Terminal) -> None:
    with Progress(None) as counts:
        counts.add(3, 7)
        assert 2 == len(terminal.lines())
        raise ValueError("no record")


def test_a_terminal_of_no_known_width_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch, 0)
    StatusLine(None).show("a" * 2 * COLUMNS)
    assert "a" * 2 * COLUMNS in terminal.getvalue()


@pytest.mark.parametrize(("last", "code"), [(1, 0), (0, 1)])
def test_what_a_run_says_at_its_end_is_not_behind_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, code: int
) -> None:
    terminal = on_a_terminal(monkeypatch)
    (tmp_path / "app_shown.py").write_text(
        "from millstream.processor import Pipeline\n"
        "pipeline = Pipeline('p')\n"
        "pipeline.source('in').map(lambda row: 1 // row['n']).to('out')\n"
    )
    with millstream.open(tmp_path / "data") as store:
        store.create_topic("in")
        store.append_many("in", [b'{"n":1}', b'{"n":1}', b'{"n":%d}' % last])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    run = ["process", "app_shown:pipeline", "--until", "end", "--batch-records", "1"]
    assert code == main(["--dir", "data", *run, "--epoch", "0"])
    assert "\x1b[Klag 2, 1 records in" in terminal.getvalue()
    assert not any("lag 2" in line for line in terminal.lines())
    assert terminal.lines()[0].startswith("p: 3 records" if last else "Traceback")


def test_a_run_that_is_not_on_a_terminal_says_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "app_told.py").write_text(
        "from millstream.processor import Pipeline\n"
        "pipeline = Pipeline('p')\n"
        "pipeline.source('in').to('out')\n"
    )
    with millstream.open(tmp_path / "data") as store:
        store.create_topic("in")
        store.append_many("in", [b'{"n":1}', b'{"n":2}'])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0)
    run = ["process", "app_told:pipeline", "--until", "end", "--batch-records", "1", "--epoch", "0"]
    assert 0 == main(["--dir", "data", *run, "--progress"])
    first, second, result = capsys.readouterr().err.splitlines()
    assert first.startswith("lag 1, 1 records in, 1 out, 0 late, 0 dead letters, 1 epochs, commit ")
    assert re.match(
        r"lag 0, \d+ rec/s, caught up in 0 s, 2 records in,.* commit \d+ ms, wat", second
    )
    assert result.startswith("p: 2 records in, 2 out, 0 late, 0 dead letters, 2 epochs, lag 0, wat")


def test_the_rate_of_a_run_and_the_time_left_are_those_of_some_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commits come unevenly: what was between the last two says little."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = CatchUp()
    said = []
    for second, records_in in ((0, 0), (1, 100), (2, 200), (2.1, 400), (6, 600), (7, 600)):
        now[0] = second
        said.append(rate.text(records_in, 1000 - records_in))
    assert ["", "100 rec/s, caught up in 9 s", "100 rec/s, caught up in 8 s"] == said[:3]
    assert ["190 rec/s, caught up in 3 s", "100 rec/s, caught up in 4 s"] == said[3:5]
    assert "80 rec/s, caught up in 5 s" == said[5], "the last five seconds"
    now[0] = 9
    assert "29 rec/s" == rate.text(600, 900), "it falls behind"
