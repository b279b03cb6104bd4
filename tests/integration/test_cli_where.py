"""`consume --where`: records selected by an expression, and those it has no value for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import millstream
from millstream.cli.main import main

ORDERS = [
    {"user": "u1", "amount": 60, "at": "2013-01-31T12:00:00Z"},
    {"user": "u2", "amount": 70},
    {"user": "u1", "amount": 40, "tags": ["new"]},
    {"user": "u1", "amount": 90.5, "address": {"city": "Rome"}},
    {"amount": None},
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = str(tmp_path / "store")
    monkeypatch.setenv("MILLSTREAM_DIR", path)
    with millstream.open(path, durability="os") as store:
        store.create_topic("orders")
        for number, order in enumerate(ORDERS):
            store.append(
                "orders",
                json.dumps(order).encode(),
                key=f"k{number}".encode(),
                timestamp_ms=number * 1000,
                headers=[("trace", b"t%d" % number)],
            )
    return path


def offsets(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[int]:
    """Offsets of the records that are printed."""
    done = main(["consume", "orders", "-f", "%o\\n", "-e", *arguments])
    captured = capfd.readouterr()
    assert (code, "" if code == 0 else captured.err) == (done, captured.err)
    return list(map(int, captured.out.split()))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('amount > 50 and user == "u1"', [0, 3]),
        ("amount > 50", [0, 1, 3]),
        ("user is null", [4]),
        ("not (amount > 50)", [2]),
        ('contains(tags, "new")', [2]),
        ("address.city = 'Rome'", [3]),
        ('at >= "2013"', [0]),
        ("parse_time(at) < 1359634000000", [0]),
        ("_offset in (1, 4)", [1, 4]),
        ('_key == "k2"', [2]),
        ("_timestamp >= 3000 and _partition == 0", [3, 4]),
        ('_topic != "orders"', []),
        ('_headers.trace == "t3"', [3]),
        ("_value.amount == 60", [0]),
        ('contains(_text, "Rome")', [3]),
        ("true", [0, 1, 2, 3, 4]),
        ("null", []),
    ],
)
def test_only_records_the_expression_is_true_for_are_printed(
    store: str, capfd: pytest.CaptureFixture[str], where: str, expected: list[int]
) -> None:
    assert expected == offsets(capfd, "--where", where)


def test_the_number_of_records_is_that_of_those_printed(
    store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [0, 3] == offsets(capfd, "-n", "2", "-w", 'user == "u1" and amount > 50')
    assert [0, 1] == offsets(capfd, "-n", "2", "-w", "amount > 1")


def test_a_group_goes_on_behind_the_last_record_it_has_seen(
    store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [0] == offsets(capfd, "-g", "g", "-n", "1", "-w", 'user == "u1"')
    assert [2] == offsets(capfd, "-g", "g", "-n", "1", "-w", 'user == "u1"')
    assert [3] == offsets(capfd, "-g", "g", "-w", "amount > 50")
    assert [] == offsets(capfd, "-g", "g", "-w", "true")


def test_a_mistake_is_shown_before_anything_is_read(
    store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(["consume", "orders", "-e", "--where", "amount > and 5"])
    captured = capfd.readouterr()
    assert "" == captured.out
    assert captured.err.splitlines() == [
        "millstream: --where: position 10 of the expression: expected a value, found 'and 5'",
        "  amount > and 5",
        "           ^",
    ]


@pytest.mark.parametrize("value", [b"not json", b"\xff\xfe", b'{"amount": }'])
def test_a_value_that_is_no_json_is_an_error_that_names_it(
    store: str, capfd: pytest.CaptureFixture[str], value: bytes
) -> None:
    with millstream.open(store) as opened:
        opened.append("orders", value)
        opened.append("orders", b'{"amount": 99}')
    assert 1 == main(["consume", "orders", "-f", "%o\\n", "-e", "-w", "amount > 50"])
    captured = capfd.readouterr()
    assert "0\n1\n3\n" == captured.out, "what stands before it is printed"
    assert "--where: the value is no JSON" in captured.err
    assert "offset 5" in captured.err
    # Enough of them before it, or nothing asked of the value: no error.
    assert [0, 1, 3] == offsets(capfd, "-n", "3", "-w", "amount > 50")
    assert [5] == offsets(capfd, "-w", "_offset == 5")


@pytest.mark.parametrize(
    ("where", "problem"),
    [("user > 5", "TypeError"), ("amount", "true, false or null"), ("1 / 0 > 1", "ZeroDivision")],
)
def test_a_record_the_expression_has_no_value_for_is_named(
    store: str, capfd: pytest.CaptureFixture[str], where: str, problem: str
) -> None:
    assert 1 == main(["consume", "orders", "-e", "-w", where])
    captured = capfd.readouterr()
    assert "" == captured.out
    assert problem in captured.err
    assert "offset 0" in captured.err


def test_values_that_are_no_objects_have_no_fields(
    store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with millstream.open(store) as opened:
        for value in (b"5", b"[1]", b'"text"', b"null", None):
            opened.append("orders", value)
    assert [5, 6, 7, 8, 9] == offsets(capfd, "-w", "amount is null and _offset > 4")
    assert [5] == offsets(capfd, "-w", "_offset > 4 and _offset < 6 and _value == 5")
    assert [9] == offsets(capfd, "-w", "_text is null")


def test_a_key_that_is_no_text_equals_none(store: str, capfd: pytest.CaptureFixture[str]) -> None:
    with millstream.open(store) as opened:
        opened.append("orders", b"{}", key=b"\xff")
    assert [5] == offsets(capfd, "-w", '_key not in ("k0", "k1", "k2", "k3", "k4")')


def test_the_field_of_the_record_comes_before_one_of_the_value(
    store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with millstream.open(store) as opened:
        opened.append("orders", b'{"_key": "inner", "amount": 1}', key=b"outer")
    assert [5] == offsets(capfd, "-w", '_key == "outer" and _value._key == "inner"')
    assert [] == offsets(capfd, "-w", '_key == "inner" and amount == 1')


def test_a_field_that_no_record_has_is_told_when_nothing_was_printed(
    store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert 0 == main(["consume", "orders", "-e", "-w", "amont > 5 or user == 'nobody'"])
    assert "millstream: --where: no record had a field amont\n" == capfd.readouterr().err
    assert [] == offsets(capfd, "-q", "-w", "amont > 5")
    assert [0] == offsets(capfd, "-w", "_offset == 0 and amont is null")


def test_without_an_expression_the_processor_is_not_loaded(store: str) -> None:
    program = """
import json, sys
from millstream.cli.main import main
code = main(["consume", "orders", "-e", *sys.argv[1:]])
sys.stderr.write(json.dumps([code, "millstream.processor" in sys.modules]))
"""

    def loaded(*arguments: str) -> object:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, timeout=60, check=True
        )
        return json.loads(done.stderr)

    assert [0, False] == loaded()
    assert [0, True] == loaded("--where", "true")
