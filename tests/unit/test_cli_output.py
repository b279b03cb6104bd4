"""Lists as table, JSON, CSV and TSV; raw records to a descriptor."""

from __future__ import annotations

import io
import json
import os

import pytest

from millstream.cli.output import RecordOutput, choose_mode, print_object, print_rows

ROWS = [
    {"topic": "a\tb", "lag": 12, "member": None},
    {"topic": 'q"', "lag": 3, "member": "x,y"},
]
COLUMNS = ["topic", "lag", "member"]


def test_json_is_versioned_and_has_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("partitions", ROWS, COLUMNS, "json")
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "partitions": ROWS}


def test_json_lines_are_one_object_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("partitions", ROWS, COLUMNS, "jsonl")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_tsv_escapes_what_would_shift_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("partitions", ROWS, COLUMNS, "tsv")
    assert capsys.readouterr().out == 'topic\tlag\tmember\na\\tb\t12\t\nq"\t3\tx,y\n'


def test_csv_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("partitions", ROWS, COLUMNS, "csv")
    assert capsys.readouterr().out == 'topic,lag,member\na\tb,12,\n"q""",3,"x,y"\n'


def test_table_aligns_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("partitions", ROWS, COLUMNS, "table")
    assert capsys.readouterr().out == 'TOPIC  LAG  MEMBER\na\\tb    12  -\nq"       3  x,y\n'


def test_an_empty_list_still_has_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("partitions", [], COLUMNS, "tsv")
    print_rows("partitions", [], COLUMNS, "table")
    assert capsys.readouterr().out == "topic\tlag\tmember\nTOPIC  LAG  MEMBER\n"


def test_one_object_prints_in_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    print_object({"a": 1}, "jsonl")
    print_object({"a": 1}, "tsv")
    assert capsys.readouterr().out == '{"schema": 1, "a": 1}\nname\tvalue\na\t1\n'


def test_auto_is_tsv_in_a_pipe() -> None:
    assert choose_mode("auto", io.StringIO()) == "tsv"
    assert choose_mode("json", io.StringIO()) == "json"


def test_records_are_written_whole_and_counted() -> None:
    read_end, write_end = os.pipe()
    output = RecordOutput(write_end)
    output.write([b"a", b"bc"])
    output.check_reader()
    assert os.read(read_end, 10) == b"abc"
    assert output.bytes_written == 3
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        output.check_reader()
    with pytest.raises(BrokenPipeError):
        output.write([b"x"])
    os.close(write_end)
