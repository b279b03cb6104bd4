"""Pipelines from the command line: graph, checkpoints, state, fork, verify, dry run, metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_here

import millstream

APP = """
from millstream.processor import Pipeline, agg, tumbling

pipeline = Pipeline("revenue")
orders = pipeline.source("orders", type=dict, time="ts")
totals = orders.key_by("user").window(tumbling("1m")).agg(n=agg.count(), total=agg.sum("amount"))
totals.to("totals")
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    with millstream.open(tmp_path / "data") as store:
        store.create_topic("orders")
        rows = [("u1", 5, 1), ("u2", 7, 2), ("u1", 6, 60_001)]
        lines = [b'{"user":"%s","amount":%d,"ts":%d}' % (u.encode(), a, t) for u, a, t in rows]
        store.append_many("orders", lines)
    return tmp_path


def run(home: Path, *arguments: str, code: int = 0) -> str:
    """The same as `run_here`, as a process."""
    command = [sys.executable, "-m", "millstream", "--dir", "data", *arguments]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert code == done.returncode, done.stderr
    return done.stdout


def test_a_pipeline_from_end_to_end(home: Path) -> None:
    assert "flowchart TD" in run(home, "graph", "app:pipeline")
    assert run_here(home, "graph", "app:pipeline", "--text").startswith("pipeline revenue")

    lines = run_here(home, "process", "app:pipeline", "--dry-run").splitlines()
    assert ["u1", "u2", "u1"] == [json.loads(line)["key"] for line in lines]
    lines = run_here(home, "process", "app:pipeline", "--dry-run", "--from", "-1").splitlines()
    assert ["u1"] == [json.loads(line)["key"] for line in lines]
    run_here(home, "process", "app:pipeline", "--from", "-1", code=2)

    table = run(home, "process", "app:pipeline", "--until", "end", "--metrics", "--output", "json")
    window = next(one for one in json.loads(table)["operators"] if "window" in one["label"])
    assert (3, 2, 1) == (window["records_in"], window["records_out"], window["state_records"])

    (row,) = json.loads(run_here(home, "checkpoints", "--output", "json"))["checkpoints"]
    assert ("revenue", 1, "orders", 0, 3, 0) == tuple(row.values())[:6]
    run_here(home, "checkpoints", "other", code=5)

    (info,) = json.loads(run_here(home, "state", "ls", "--output", "json"))["state"]
    assert ("revenue", "orders.window", 1) == tuple(info.values())[:3]
    item = json.loads(run(home, "state", "get", "revenue", "orders.window", "u1"))
    assert {"path": [120_000, "u1"], "value": [1, 6]} == item
    assert item == json.loads(run_here(home, "state", "dump", "revenue", "orders.window"))
    run_here(home, "state", "get", "revenue", "orders.window", "nobody", code=5)
    run_here(home, "state", "dump", "revenue", "nothing", code=5)


def test_verify_replays_a_pipeline(home: Path) -> None:
    run_here(home, "process", "app:pipeline", "--until", "end")
    found = json.loads(run_here(home, "verify", "app:pipeline", "--json"))
    assert (True, 3, 2) == (found["ok"], found["records_in"], found["records_compared"])
    run_here(home, "fork", "revenue", "point")
    with millstream.open(home / "data") as store:
        store.append("orders", b'{"user":"u9","amount":1,"ts":200000}')
    run_here(home, "process", "app:pipeline", "--until", "end")
    found = json.loads(run_here(home, "verify", "app:pipeline", "--since", "point", "--json"))
    assert (True, 1, 1) == (found["ok"], found["records_in"], found["records_compared"])

    (home / "app.py").write_text(APP.replace('agg.sum("amount")', 'agg.mean("amount")'))
    assert "the replay gives" in run_here(home, "verify", "app:pipeline", code=1)
    run_here(home, "verify", "orders", "--since", "point", code=2)


def test_a_pipeline_from_files_begins_without_a_store(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"n":1}\n')
    (tmp_path / "app.py").write_text(
        "from millstream.processor import Pipeline, jsonl_files, to_jsonl\n"
        "pipeline = Pipeline('p')\n"
        "pipeline.source(jsonl_files('in.jsonl')).to(to_jsonl('out'))\n"
    )
    run_here(tmp_path, "process", "app:pipeline", "--until", "end")
    (path,) = (tmp_path / "out").iterdir()
    assert '{"n":1}\n' == path.read_text()
    (tmp_path / "topic.py").write_text(APP)
    (tmp_path / "data").rename(tmp_path / "other")
    run_here(tmp_path, "process", "topic:pipeline", "--until", "end", code=5)
    assert not (tmp_path / "data").exists()


def test_a_pipeline_that_prints_into_a_closed_pipe_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from millstream.processor import Pipeline, from_iterable, to_stdout\n"
        "pipeline = Pipeline('p')\n"
        "rows = pipeline.source(from_iterable([{'n': n} for n in range(50_000)], name='rows'))\n"
        "rows.to(to_stdout())\n"
    )
    command = [sys.executable, "-m", "millstream", "--dir", "data", "process", "app:pipeline"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},  # where Python itself drops the rest
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b'{"n":0}\n' == process.stdout.readline()
        process.stdout.close()
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert 0 == process.returncode
    said = errors.decode()
    assert "at least once" in said
    assert 1 == said.count("\n")
    lines = run_here(tmp_path, "process", "app:pipeline", "--until", "end").splitlines()
    assert {"n": 49_999} == json.loads(lines[-1])


def test_verify_says_what_differs_in_sinks_and_which_are_not_compared(home: Path) -> None:
    sinks = "rows.to(to_jsonl('out'))\nrows.to(to_stdout())\n"
    (home / "app.py").write_text(
        "from millstream.processor import Pipeline, to_jsonl, to_stdout\n"
        f"pipeline = Pipeline('p')\nrows = pipeline.source('orders')\n{sinks}"
    )
    run_here(home, "process", "app:pipeline", "--until", "end")
    assert "" == run_here(home, "verify", "app:pipeline")
    found = json.loads(run_here(home, "verify", "app:pipeline", "--json"))
    files, stdout = found["sinks"]
    assert {"sink": "out", "records_compared": 3, "difference": None, "skipped": None} == files
    assert "what it was given cannot be read back" == stdout["skipped"]
    (path,) = (home / "out").iterdir()
    path.write_bytes(path.read_bytes().replace(b"u1", b"u2", 1))
    said = run_here(home, "verify", "app:pipeline", code=1)
    assert said.startswith(f"sink out: out/{path.name}, line 1: found {{")
    difference = json.loads(run_here(home, "verify", "app:pipeline", "--json", code=1))["sinks"][0]
    assert f"out/{path.name}, line 1" == difference["difference"]["place"]


def test_checkpoints_are_kept_and_gone_back_to(home: Path) -> None:
    run_here(
        home, "process", "app:pipeline", "--until", "end", "--keep-every", "0ms", "--keep", "1"
    )
    shown = json.loads(run_here(home, "checkpoints", "--output", "json"))["checkpoints"]
    assert [1, 1] == [row["epoch"] for row in shown]
    assert [True, False] == [row["kept"] is not None for row in shown]
    with millstream.open(home / "data") as store:
        store.append("orders", b'{"user":"u1","amount":1,"ts":60002}')
        store.append("orders", b'{"user":"u9","amount":1,"ts":200000}')
    run_here(home, "process", "app:pipeline", "--until", "end")
    for option, value in (("--since", "1"), ("--from", "3"), ("--from", "-2")):
        found = json.loads(run_here(home, "verify", "app:pipeline", option, value, "--json"))
        assert (True, 1) == (found["ok"], found["records_compared"])
        assert ("the checkpoint of epoch 1", 2) == (found["started_at"], found["records_in"])

    get = ("state", "get", "revenue", "orders.window", "u1", "--at", "1")
    assert {"path": [120_000, "u1"], "value": [1, 6]} == json.loads(run_here(home, *get))
    run_here(home, "fork", "revenue", "then", "--at", "1")
    with millstream.open(home / "data", read_only=True) as store:
        assert {2} == {each.lag for each in store.group_lag("then")}

    (home / "app.py").write_text(APP.replace("n=agg.count()", 'n=agg.max("amount")'))
    found = run_here(home, "verify", "app:pipeline", code=1)
    assert found.startswith("totals/0: offset 0 holds key u1, value {")
    assert found.count("\n") == 1
    for wrong in (("--since", "7"), ("--from", "someday"), ("--deep",)):
        run_here(home, "verify", "app:pipeline", *wrong, code=2)
    run_here(home, "verify", "app:pipeline", "--since", "nobody", code=5)
    run_here(home, "checkpoints", "revenue", "--forget", "7", code=2)
    run_here(home, "checkpoints", "--keep", code=2)
    run_here(home, "checkpoints", "revenue", "--forget", "1", "--keep")
    shown = json.loads(run_here(home, "checkpoints", "revenue", "--output", "json"))["checkpoints"]
    assert [2, 2] == [row["epoch"] for row in shown]


def test_a_fork_is_compared_with_its_original(home: Path) -> None:
    run_here(home, "process", "app:pipeline", "--until", "end")
    run_here(home, "fork", "revenue", "trial")
    trial = APP.replace('"revenue"', '"trial"').replace('to("totals")', 'to("trial.totals")')
    (home / "trial.py").write_text(trial)
    with millstream.open(home / "data") as store:
        store.append("orders", b'{"user":"u1","amount":8,"ts":130000}')
    for module in ("app", "trial"):
        run_here(home, "process", f"{module}:pipeline", "--until", "end")
    found = json.loads(run_here(home, "diff", "trial", "totals=trial.totals", "--output", "json"))
    assert (True, "revenue", 1) == (found["ok"], found["pipeline"], found["records_compared"])
    with millstream.open(home / "data") as store:
        store.append("trial.totals", b"more")
    assert "trial.totals/0: only the fork has" in run_here(
        home, "diff", "trial", "totals=trial.totals", code=1
    )
    run_here(home, "diff", "trial", "totals", code=2)
    run_here(home, "diff", "revenue", "totals=trial.totals", code=5)


def test_a_key_read_by_a_function_from_now_on_needs_a_word(home: Path) -> None:
    run_here(home, "process", "app:pipeline", "--until", "end")
    assert 'key_by("user")' in APP
    (home / "app.py").write_text(APP.replace('key_by("user")', 'key_by(lambda row: row["user"])'))
    run_here(home, "process", "app:pipeline", "--until", "end", code=2)
    run_here(home, "state", "migrate", "app:pipeline", code=2)
    run_here(home, "state", "migrate", "app:pipeline", "--same", "orders.windov", code=2)
    run_here(home, "state", "migrate", "app:pipeline", "--same", "orders.window", "--yes")
    run_here(home, "process", "app:pipeline", "--until", "end")
    item = json.loads(run_here(home, "state", "get", "revenue", "orders.window", "u1"))
    assert {"path": [120_000, "u1"], "value": [1, 6]} == item


def test_state_is_migrated_after_its_plan_was_shown(home: Path) -> None:
    run_here(home, "process", "app:pipeline", "--until", "end")
    named = APP.replace('tumbling("1m")', 'tumbling("1m"), name="minutes"')
    (home / "app.py").write_text(named)
    options = ["--rename", "orders.window=minutes"]

    assert "" == run_here(home, "process", "app:pipeline", "--until", "end", code=2)
    run_here(home, "state", "migrate", "app:pipeline", code=2)
    run_here(home, "state", "migrate", "app:pipeline", "--rename", "orders.window", code=2)
    run_here(home, "state", "migrate", "app:pipeline", "--rename", "orders.window=other", code=2)
    for yes, former in (
        ([], "orders.window"),
        (["--yes"], "orders.window"),
        (["--yes"], "minutes"),
    ):
        shown = run_here(
            home, "state", "migrate", "app:pipeline", *options, *yes, "--output", "json"
        )
        (step,) = json.loads(shown)["steps"]
        assert ("minutes", former, 1) == (step["operator"], step["former"], step["live_count"])
        assert ("keep" if former == "minutes" else "carry") == step["action"]
    run_here(home, "process", "app:pipeline", "--until", "end")
    item = json.loads(run_here(home, "state", "get", "revenue", "minutes", "u1"))
    assert {"path": [120_000, "u1"], "value": [1, 6]} == item
