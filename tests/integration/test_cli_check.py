"""`millstream check`: the line, the numbers and the exit code a monitor expects."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import millstream
from millstream import UsageError
from millstream.cli.main import main
from millstream.cli.thresholds import parse_free_limit, parse_lag_limit, parse_named
from millstream.processor import Pipeline, agg
from millstream.testing import ManualClock

HOUR_MS = 3_600_000

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store whose records were appended an hour ago; group `billing` has read two of five."""
    clock = ManualClock(time.time_ns() // 1_000_000 - HOUR_MS)
    with millstream.open(tmp_path / "store", clock=clock) as store:
        store.create_topic("orders")
        store.create_topic("quiet")
        store.append_many("orders", [b"x"] * 5)
        with store.consumer("orders", group="billing") as consumer:
            consumer.poll(max_records=2)
            consumer.commit()
    return tmp_path / "store"


@pytest.fixture
def check(path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Check:
    """Run `millstream check` in this process: (exit code, the line)."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(path))

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["check", "--min-free", "0%", *arguments])
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out

    return run


def test_all_is_well(check: Check) -> None:
    code, line = check()
    assert 0 == code
    assert line.startswith("MILLSTREAM OK - 2 topics with 5 offsets | 'free'=")
    assert 1 == line.count("\n")
    assert re.fullmatch(
        r"'free'=\d+B;;0 'open_transaction'=0s;600;3600", line.partition(" | ")[2].strip()
    )


@pytest.mark.parametrize(
    ("limit", "code", "text"),
    [
        ("billing=3", 0, "MILLSTREAM OK - "),
        ("billing=2:3", 1, "MILLSTREAM WARNING - group 'billing' is 3 records behind |"),
        ("billing=1:2", 2, "MILLSTREAM CRITICAL - group 'billing' is 3 records behind |"),
        ("*=2", 2, "MILLSTREAM CRITICAL - group 'billing'"),
        ("billing=2h", 0, "MILLSTREAM OK - "),
        ("billing=30m:2h", 1, "MILLSTREAM WARNING - group 'billing' is 36"),
        ("audit=5", 3, "MILLSTREAM UNKNOWN - there is no group 'audit'"),
        ("billing", 3, "MILLSTREAM UNKNOWN - 'billing' is not NAME=[WARN:]CRIT"),
        ("billing=x", 3, "MILLSTREAM UNKNOWN - 'x' is not a duration"),
        ("billing=5:1", 3, "MILLSTREAM UNKNOWN - '5:1' would never warn: 5 is to be less than 1"),
    ],
)
def test_lag_in_records_and_in_time(check: Check, limit: str, code: int, text: str) -> None:
    found, line = check("--max-lag", limit)
    assert (code, text) == (found, line[: len(text)])
    if code < 3 and limit.endswith("3"):
        assert " 'lag_billing'=3;" in line or "| 'lag_billing'=3;" in line


def test_a_named_group_is_not_among_the_others(check: Check) -> None:
    assert 0 == check("--max-lag", "*=1", "--max-lag", "billing=9")[0]


def test_a_group_that_has_committed_nothing_is_behind_by_all(path: Path, check: Check) -> None:
    with (
        millstream.open(path) as store,
        store.consumer("orders", group="new") as consumer,
    ):
        consumer.poll(max_records=1)
        code, line = check("--max-lag", "new=4")
    assert 2 == code
    assert "group 'new' is 5 records behind" in line


@pytest.mark.parametrize(
    ("limit", "code", "text"),
    [
        ("orders=2h", 0, "OK"),
        ("orders=30m:2h", 1, "the last append to 'orders' was 36"),
        ("orders=30m", 2, "the last append to 'orders' was 36"),
        ("quiet=1h", 2, "nothing was ever appended to 'quiet'"),
        ("nope=1h", 3, "there is no topic 'nope'"),
    ],
)
def test_age_of_the_last_append(check: Check, limit: str, code: int, text: str) -> None:
    found, line = check("--max-age", limit)
    assert code == found
    assert text in line


def test_room_and_open_transactions(path: Path, check: Check) -> None:
    code, line = check("--min-free", "99999TB")
    assert (2, True) == (code, " MiB are free |" in line)
    assert 1 == check("--min-free", "99999TB:1B")[0]
    # Which is less depends on the file system: the default must be good for a small one, too.
    assert 2 == check("--min-free", "1%:99999TB")[0]
    assert 0 == check("--min-free", "0%:1B")[0]
    code, line = check("--min-free", "1B:99999TB")
    assert (3, True) == (code, "never warn: 99999TB is to be less than 1B" in line)
    with millstream.open(path) as store, store.transaction() as txn:
        txn.append("quiet", b"x")
        code, line = check("--max-open", "0s")
        assert 0 == check()[0]
    assert 2 == code
    assert "in quiet/0 at offset 0" in line


def test_a_pipeline_that_stands_still(path: Path, check: Check) -> None:
    pipeline = Pipeline("sums")
    pipeline.source("rows", time="ts").key_by("k").agg(n=agg.count()).to("out")
    clock = ManualClock(time.time_ns() // 1_000_000 - HOUR_MS)
    with millstream.open(path, clock=clock) as store:
        store.create_topic("rows")
        store.append("rows", b'{"k":1,"ts":1}')
        pipeline.run(store, until="end")
        assert 0 == check("--max-stall", "1m")[0]
        store.append("rows", b'{"k":1,"ts":2}')
    code, line = check("--max-stall", "1m:2h")
    assert 1 == code
    assert "pipeline 'sums' has left input unprocessed for 36" in line


def test_damage_is_critical(path: Path, check: Check) -> None:
    (segment,) = (path / "topics/orders/0").glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[300] ^= 1  # in the header of the first batch
    segment.write_bytes(data)
    code, line = check()
    assert 2 == code
    assert "orders/0" in line
    assert 1 == line.count("\n")


def test_the_same_damage_is_said_once(path: Path, check: Check) -> None:
    (segment,) = (path / "topics/orders/0").glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[20] ^= 1  # in the header of the segment
    segment.write_bytes(data)
    code, line = check()
    assert 2 == code
    said = line.partition(" - ")[2].partition(" | ")[0].split("; ")
    assert len(said) == len(set(said))
    assert 1 == line.count("\n")


def test_a_damaged_catalog_is_critical(path: Path, check: Check) -> None:
    (path / "catalog.db").write_bytes(b"no database" * 1000)
    code, line = check()
    assert 2 == code
    assert line.startswith("MILLSTREAM CRITICAL - ")


def test_what_cannot_be_checked_is_unknown(
    path: Path, check: Check, capfd: pytest.CaptureFixture[str]
) -> None:
    code, line = check("--dir", str(path / "nowhere"))
    assert (3, True) == (code, line.startswith("MILLSTREAM UNKNOWN - no store in "))
    assert 3 == main(["check", "--max-leg", "x=1"])
    assert "No such option" in capfd.readouterr().err


def test_json_says_the_same(check: Check) -> None:
    code, text = check("--json", "--max-lag", "billing=2:9")
    found = json.loads(text)
    assert (1, "WARNING", 1) == (code, found["status"], found["schema"])
    by_check = {each["check"]: each["status"] for each in found["checks"]}
    assert {"lag": "WARNING", "free": "OK", "damage": "OK", "store": "OK"} == by_check
    lag = next(each for each in found["values"] if each["name"] == "lag_billing")
    assert (3, 2, 9, "") == (lag["value"], lag["warning"], lag["critical"], lag["unit"])


def test_nothing_is_changed(path: Path, check: Check) -> None:
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*") if each.is_file()}
    assert 0 == check()[0]
    after = {each: each.stat().st_mtime_ns for each in path.rglob("*") if each.is_file()}
    assert before == {each: stamp for each, stamp in after.items() if each in before}


@pytest.mark.parametrize(
    "wrong", ["", ":", ":5", "5:", "1:2:3", "-1", "5x", "\u0665", "9" * 19, "1.5"]
)
def test_bad_limits_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        parse_lag_limit(wrong)
    with pytest.raises(UsageError):
        parse_named(f"={wrong}", parse_lag_limit)


@pytest.mark.parametrize("wrong", ["%", "101%", "-1%", "1.5%", "\u0665%", "x", "5%:"])
def test_bad_room_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        parse_free_limit(wrong, 1000)
