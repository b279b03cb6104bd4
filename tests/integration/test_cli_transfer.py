"""`export` and `import`: every byte comes back, files are whole or not there, errors say where."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from pyarrow import parquet

import millstream
from millstream import Headers, Store
from millstream.cli.main import main

SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))
FORMATS = ("jsonl", "csv", "parquet", "arrow")

Cli = Callable[..., tuple[int, bytes, str]]
Row = tuple[int, int, bytes | None, bytes | None, Headers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def cli(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """Run a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(path))
    monkeypatch.chdir(path.parent)

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        with tempfile.TemporaryFile() as file, monkeypatch.context() as patch:
            file.write(stdin)
            file.seek(0)
            patch.setattr(sys, "stdin", file)
            code = main(arguments)
        printed = capfdbinary.readouterr()
        return code, printed.out, printed.err.decode()

    return run


def fill(store: Store, topic: str, columns: Sequence[Sequence[object]], partitions: int) -> None:
    store.create_topic(topic, partitions=partitions)
    for number, (value, key, timestamp_ms, headers) in enumerate(zip(*columns, strict=True)):
        store.append_many(
            topic,
            [value],  # type: ignore[list-item]  # the columns of `odd_columns`
            [key],  # type: ignore[list-item]
            [timestamp_ms],  # type: ignore[list-item]
            number % partitions,
            headers=[headers],  # type: ignore[list-item]
            durability="os",
        )


def odd_columns() -> tuple[list[bytes | None], list[bytes | None], list[int], list[Headers]]:
    """What a text format may stumble over, then random bytes."""
    random = Random(SEED)
    odd: list[bytes | None] = [
        *(None, b"", b"plain", b'a,"b"\r\nc', b"\r", b"\n", b"\x00", b"\xff\xfe", b"key=null"),
        *("caf\u00e9 \u2028 \U0001f600 \ufeff".encode(), b'{"$base64":true}', b"NULL", b" ", b'"'),
        *(random.randbytes(random.randrange(40)) for _ in range(60)),
    ]
    keys = odd[::-1]
    stamps = [0, -5, 2**62, 1_700_000_000_000] + [random.randrange(2**45) for _ in odd[4:]]
    headers: list[Headers] = [
        (),
        (("a", None),),
        (("a", b""), ("a", b"\xff")),
        (("\u00e9,", b"x\ny"),),
    ]
    headers += [(("h", value),) for value in odd[4:]]
    return odd, keys, stamps, headers


def rows(path: Path, topic: str) -> list[list[Row]]:
    with millstream.open(path, read_only=True) as store:
        return [
            [
                (each.offset, each.timestamp_ms, each.key, each.value, each.headers)
                for each in store.read(topic, partition=number)
            ]
            for number in range(store.topic(topic).partitions)
        ]


@pytest.mark.parametrize("form", FORMATS)
def test_every_byte_comes_back(path: Path, cli: Cli, form: str) -> None:
    with millstream.open(path) as store:
        fill(store, "one", odd_columns(), partitions=3)

    code, out, err = cli("export", "one", f"one.{form}")
    assert (0, b"", f"74 records in one.{form}\n") == (code, out, err)
    assert [f"one.{form}", "store"] == sorted(each.name for each in path.parent.iterdir())
    code, _, err = cli("import", "two", f"one.{form}", "--partitions", "3")
    assert (0, "created topic 'two', partitions: 3\n74 records in 'two'\n") == (code, err)

    copied = rows(path, "two")
    expected = rows(path, "one")
    # An import is a transaction, which takes no offset of its own here.
    assert expected == copied


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_text_goes_through_a_pipe(path: Path, cli: Cli, form: str) -> None:
    with millstream.open(path) as store:
        fill(store, "one", odd_columns(), partitions=1)
    code, text, _ = cli("export", "one", "--format", form)
    assert 0 == code
    assert 0 == cli("import", "two", "-", "--format", form, stdin=text)[0]
    assert rows(path, "one") == rows(path, "two")
    if form == "jsonl":
        assert text == cli("consume", "one", "-J", "-e")[1]


def test_ranges_and_partitions_are_those_of_consume(path: Path, cli: Cli) -> None:
    with millstream.open(path) as store:
        store.create_topic("t", partitions=2)
        for partition in (0, 1):
            values = [b"%d-%d" % (partition, number) for number in range(5)]
            store.append_many("t", values, None, list(range(5)), partition)

    def exported(*arguments: str) -> list[str]:
        code, out, _ = cli("export", "t", *arguments)
        assert 0 == code
        return [json.loads(line)["value"] for line in out.splitlines()]

    assert ["0-1", "0-2"] == exported("-p", "0", "-o", "1:3")
    assert ["0-4", "1-4"] == exported("-o", "-1")
    assert ["1-3", "1-4"] == exported("-p", "1", "-o", "3:99")
    assert [] == exported("-o", "end")
    assert 2 == cli("export", "t", "-p", "2")[0]
    assert 5 == cli("export", "nope")[0]


def test_what_others_read_is_plain(path: Path, cli: Cli) -> None:
    with millstream.open(path) as store:
        store.create_topic("t")
        store.append(
            "t", b"v", key=b"k", timestamp_ms=1_700_000_000_123, headers=[("a", b"1"), ("b", None)]
        )
    for form in FORMATS:
        assert 0 == cli("export", "t", f"t.{form}")[0]

    (row,) = csv.DictReader(io.StringIO((path.parent / "t.csv").read_text()))
    assert ("0", "0", "1700000000123", "k", "v", '[["a","1"],["b",null]]', "") == tuple(
        row.values()
    )
    tables = [parquet.read_table(path.parent / "t.parquet")]
    with pa.OSFile(str(path.parent / "t.arrow")) as file:
        tables.append(pa.ipc.open_file(file).read_all())
    for table in tables:
        (record,) = table.to_pylist()
        assert datetime(2023, 11, 14, 22, 13, 20, 123000, UTC) == record["timestamp"]
        assert (b"k", b"v", 0, 0) == tuple(
            record[name] for name in ("key", "value", "partition", "offset")
        )
        assert [{"name": "a", "value": b"1"}, {"name": "b", "value": None}] == record["headers"]


def test_tables_of_others_are_read(path: Path, cli: Cli) -> None:
    """Text for bytes, dictionaries, other units of time; IPC streams; no more than values."""
    table = pa.table(
        {
            "value": pa.array(["a", None, "a"]).dictionary_encode(),
            "key": pa.array([b"k", b"", None], pa.large_binary()),
            "timestamp": pa.array([1_999_999, -1, None], pa.timestamp("us")),
            "more": [1, 2, 3],
        }
    )
    parquet.write_table(table, path.parent / "t.parquet")
    with (
        pa.OSFile(str(path.parent / "s.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    parquet.write_table(table.select(["value"]), path.parent / "v.parquet")

    for topic, name in (("t", "t.parquet"), ("s", "s.arrow"), ("v", "v.parquet")):
        assert 0 == cli("import", topic, name)[0]
    for topic in ("t", "s"):
        (found,) = rows(path, topic)
        assert [(b"k", b"a"), (b"", None), (None, b"a")] == [row[2:4] for row in found]
        assert [1999, -1] == [row[1] for row in found[:2]]
        assert found[2][1] > 1_700_000_000_000
    assert [None, None, None] == [row[2] for row in rows(path, "v")[0]]


def test_a_byte_order_mark_is_no_part_of_the_first_line(path: Path, cli: Cli) -> None:
    lines = b'{"value":"a"}\n{"value":"b"}\n'
    assert 0 == cli("import", "rows", stdin=codecs.BOM_UTF8 + lines)[0]
    with millstream.open(path) as store:
        assert [b"a", b"b"] == [record.value for record in store.read("rows")]


def test_csv_of_others_is_read(path: Path, cli: Cli) -> None:
    text = "\ufeffkey,value,comment\r\n,a,x\r\nk,,y\r\n"
    assert 0 == cli("import", "t", "--format", "csv", stdin=text.encode())[0]
    assert [(None, b"a"), (b"k", b"")] == [row[2:4] for row in rows(path, "t")[0]]


GOOD_JSON = b'{"value":"a"}\n'
GOOD_CSV = b"partition,timestamp,key,value,headers,marks\n0,1,k,v,,\n"


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("jsonl", GOOD_JSON + b"\nnope\n", "line 3: not JSON"),
        ("jsonl", GOOD_JSON + b'{"key":"k"}\n', 'line 2: no "value"'),
        ("csv", b"a,b\n1,2\n", 'line 1: the first line names no column "value"'),
        ("csv", b"value,value\n1,2\n", "line 1: the first line names the column 'value' t"),
        ("csv", GOOD_CSV + b"0,1,k\n", "line 3: 3 cells, but there are 6 columns"),
        ("csv", GOOD_CSV + b'0,1,"a\nb",v,,\n0,x,k,v,,\n', "line 5: timestamp is 'x'"),
        ("csv", GOOD_CSV + b"0,9223372036854775808,k,v,,\n", "line 3: timestamp is 922"),
        ("csv", GOOD_CSV + b'0,1,k,"v', "line 3: unexpected end of data"),
        ("csv", GOOD_CSV + b"0,1,k,\xff,,\n", "line 3: not UTF-8"),
        ("csv", GOOD_CSV + b"0,1,k,v,[,\n", "line 3: headers are not JSON"),
        ("csv", GOOD_CSV + b"0,1,k,v,[1],\n", "line 3: a header is not a"),
        ("csv", GOOD_CSV + b"0,1,k,v,,value=null\n", "line 3: value is marked as null"),
        ("csv", GOOD_CSV + b"0,1,k,v,,value=base64\n", "line 3: value is not base64"),
        ("csv", GOOD_CSV + b"0,1,k,v,,what\n", 'line 3: "what=" is no mark'),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(
    path: Path, cli: Cli, form: str, text: bytes, message: str
) -> None:
    with millstream.open(path) as store:
        store.create_topic("t")
        store.append("t", b"before")
    (path.parent / f"in.{form}").write_bytes(text)

    code, _, err = cli("import", "t", f"in.{form}")

    assert 1 == code
    assert f"in.{form}, {message}" in err
    assert "nothing was imported" in err
    assert [b"before"] == [row[3] for row in rows(path, "t")[0]]


def test_blocks_before_a_bad_line_are_taken_back(path: Path, cli: Cli) -> None:
    """The bad line comes after some blocks have been appended."""
    line = b'{"value":"%s"}\n' % (b"x" * 100_000)
    code, _, err = cli("import", "t", stdin=line * 130 + b"{}\n" + line)
    assert 1 == code
    assert "line 131" in err
    assert [[]] == rows(path, "t")
    assert 0 == cli("import", "t", stdin=line)[0]
    assert 1 == len(rows(path, "t")[0])


def test_damaged_tables_and_wrong_columns_are_named(path: Path, cli: Cli) -> None:
    folder = path.parent
    table = pa.table({"value": [b"x" * 50] * 5000})
    parquet.write_table(table, folder / "cut.parquet", compression="none", use_dictionary=False)
    whole = (folder / "cut.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "text.arrow").write_bytes(b"not a table at all")
    (folder / "empty.arrow").write_bytes(b"")
    for name in ("cut.parquet", "text.arrow", "empty.arrow"):
        code, _, err = cli("import", "t", name)
        assert (1, True) == (code, f"{name}, after row 0: " in err), err
    for name, columns, message in (
        ("n", {"key": [b"a"]}, 'no column is called "value"; there are key'),
        ("i", {"value": [1]}, 'the column "value" is int64'),
        ("h", {"value": [b"a"], "headers": [[1]]}, "row 0: headers are not"),
        ("t", {"value": [b"a"], "timestamp": ["x"]}, 'the column "timestamp" is string, rows 0'),
    ):
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet")
        code, _, err = cli("import", "t", f"{name}.parquet")
        assert (2, True) == (code, message in err), err


def test_a_failed_export_leaves_the_old_file(path: Path, cli: Cli) -> None:
    with millstream.open(path) as store:
        store.create_topic("t", segment_bytes="4KiB")
        for _ in range(4):
            store.append_many("t", [os.urandom(100)] * 20)
    broken = sorted((path / "topics/t/0").glob("*.segment"))[1]
    data = bytearray(broken.read_bytes())
    data[-100] ^= 1
    broken.write_bytes(data)
    out = path.parent / "t.jsonl"
    out.write_bytes(b"old")

    assert 4 == cli("export", "t", "t.jsonl")[0]

    assert b"old" == out.read_bytes()
    assert ["store", "t.jsonl"] == sorted(each.name for each in path.parent.iterdir())


def test_a_file_may_be_a_pipe_with_a_name(path: Path, cli: Cli) -> None:
    """As in `millstream import t <(zcat file)`."""
    reading, writing = os.pipe()
    os.write(writing, b'{"value":"a"}\n')
    os.close(writing)
    pipe = f"/dev/fd/{reading}"
    for form in ("parquet", "arrow"):
        code, _, err = cli("import", "t", pipe, "--format", form)
        assert (2, True) == (code, "no regular file" in err)
    assert 0 == cli("import", "t", pipe, "--format", "jsonl")[0]
    os.close(reading)
    with millstream.open(path, read_only=True) as store:
        assert [b"a"] == [record.value for record in store.read("t")]


def test_a_partition_that_will_not_be_makes_no_topic(path: Path, cli: Cli) -> None:
    assert 2 == cli("import", "t", "--partitions", "2", "-p", "2", stdin=b'{"value":"a"}\n')[0]
    with millstream.open(path, read_only=True) as store:
        assert [] == store.topics()


def test_what_cannot_be_done_is_refused_at_once(path: Path, cli: Cli) -> None:
    with millstream.open(path) as store:
        store.create_topic("t")
    for arguments in (
        ("export", "t", "--format", "parquet"),
        ("export", "t", "t.what"),
        ("import", "t", "--format", "arrow"),
        ("import", "t", "missing.csv"),
        ("import", "@state/x/y", "t.csv"),
        ("import", "t", "-p", "1"),
    ):
        assert 2 == cli(*arguments)[0], arguments
    assert 1 == cli("export", "t", "no/such/folder.csv")[0]
    assert 1 == cli("export", "t", "--format", "csv", str(path))[0]
    os.mkfifo(path.parent / "pipe.csv")
    assert 1 == cli("export", "t", "pipe.csv")[0]
    assert (path.parent / "pipe.csv").is_fifo()
    (path.parent / "link.csv").symlink_to("real.csv")
    assert 0 == cli("export", "t", "link.csv")[0]
    assert (path.parent / "real.csv").is_file()
    assert (path.parent / "link.csv").is_symlink()


def test_what_a_killed_export_left_goes_with_the_next_one(path: Path, cli: Cli) -> None:
    """Not what a living process writes, nor what belongs to another file."""
    dead = subprocess.Popen([sys.executable, "-Sc", ""])
    dead.wait()
    with millstream.open(path) as store:
        store.create_topic("t")
    for name in (f"t.csv.{dead.pid}", f"t.csv.{os.getppid()}", f"u.csv.{dead.pid}"):
        (path.parent / f".{name}.tmp").touch()

    assert 0 == cli("export", "t", "t.csv")[0]

    left = {f".t.csv.{os.getppid()}.tmp", f".u.csv.{dead.pid}.tmp"}
    assert {*left, "store", "t.csv"} == {each.name for each in path.parent.iterdir()}


def test_an_open_transaction_is_said_to_be_left_out(path: Path, cli: Cli) -> None:
    with millstream.open(path) as store:
        store.create_topic("t")
        store.append("t", b"a")
        with store.transaction() as txn:
            txn.append("t", b"b")
            store.append("t", b"c")
            code, out, err = cli("export", "t")
    assert (0, 1) == (code, len(out.splitlines()))
    assert "2 offsets are behind an open transaction: left out" in err


def test_without_the_extra_text_goes_and_tables_say_what_to_install(
    path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with millstream.open(path) as store:
        store.create_topic("t")
    (path.parent / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 0 == cli("export", "t", "t.csv")[0]
    for arguments in (("export", "t", "u.parquet"), ("import", "t", "t.parquet")):
        code, _, err = cli(*arguments)
        assert (2, True) == (code, "pip install 'millstream[arrow]'" in err)
    assert not (path.parent / "u.parquet").exists()


def test_an_interrupted_import_leaves_nothing(path: Path) -> None:
    with millstream.open(path) as store:
        store.create_topic("t")
    process = subprocess.Popen(
        [sys.executable, "-m", "millstream", "import", "t", "--progress"],
        env={**os.environ, "MILLSTREAM_DIR": str(path)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        assert process.stderr is not None
        line = b'{"value":"%s"}\n' % (b"x" * 1000)
        with millstream.open(path, read_only=True) as store:
            while not store.metrics().open_transactions:
                process.stdin.write(line)
                process.stdin.flush()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert 130 == process.returncode
    assert b"interrupted: nothing was imported" in err
    assert [[]] == rows(path, "t")
