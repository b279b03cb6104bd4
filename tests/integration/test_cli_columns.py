"""Topics with a schema on the command line: made from a file, written, read, exported, imported."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import millstream
from millstream.cli.main import main
from millstream.cli.schema_file import read_schema, schema_fields

Cli = Callable[..., tuple[int, bytes, str]]
FIELDS = {
    "auction": "int64",
    "price": "float64",
    "ts": "timestamp[us, tz=UTC]",
    "raw": "binary?",
    "tags": {"list?": "string?"},
    "place": {"struct?": {"city": "string", "days": {"large_list": "date32"}}},
}
ROWS = [
    b'{"auction":7,"price":1.5,"ts":"2024-01-01T00:00:00Z","raw":"AP8=","tags":["a",null],'
    b'"place":{"city":"caf\xc3\xa9","days":["2024-02-29"]}}',
    b'{"auction":-1,"price":-0.0,"ts":"1969-12-31T23:59:59.999999Z","raw":null,"tags":null,'
    b'"place":null}',
]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """Run a command in this process, beside a file bid.json: (exit code, stdout, stderr)."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    Path("bid.json").write_text(json.dumps(FIELDS), encoding="utf-8")

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        with tempfile.TemporaryFile() as file, monkeypatch.context() as patch:
            file.write(stdin)
            file.seek(0)
            patch.setattr(sys, "stdin", file)
            code = main(arguments)
        printed = capfdbinary.readouterr()
        return code, printed.out, printed.err.decode()

    return run


def make(cli: Cli, topic: str, *options: str) -> None:
    arguments = ("topics", "create", topic, "--schema", "bid.json", *options)
    code, _, err = cli(*arguments)
    assert code == 0, err


def test_the_schema_of_a_file_is_that_of_the_topic_and_shown(cli: Cli, tmp_path: Path) -> None:
    make(cli, "bids", "--key", "auction", "--time", "ts", "-z", "zstd")

    with millstream.open(tmp_path / "store", read_only=True) as store:
        topic = store.topic("bids")
    days = pa.large_list(pa.field("item", pa.date32(), nullable=False))
    city = pa.field("city", pa.string(), nullable=False)
    assert topic.schema == pa.schema(
        [
            pa.field("auction", pa.int64(), nullable=False),
            pa.field("price", pa.float64(), nullable=False),
            pa.field("ts", pa.timestamp("us", "UTC"), nullable=False),
            pa.field("raw", pa.binary()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("place", pa.struct([city, pa.field("days", days, nullable=False)])),
        ]
    )
    assert topic.config.columnar
    shown = json.loads(cli("topics", "describe", "bids", "--output", "json")[1])
    assert (shown["schema"], shown["values"]) == (1, "columns")
    assert (shown["key"], shown["time"]) == ("auction", "ts")
    again = tmp_path / "again.json"
    again.write_text(json.dumps(shown["fields"]), encoding="utf-8")
    assert read_schema(str(again)) == topic.schema
    assert schema_fields(topic.schema) == shown["fields"]
    table = cli("topics", "describe", "bids", "--output", "table")[1].decode()
    assert (
        "FIELD    TYPE\nauction  int64\nprice    double\nts       timestamp[us, tz=UTC]\n" in table
    )
    assert 'tags     {"list?": "string?"}\n' in table


def test_a_topic_without_a_schema_shows_none(cli: Cli) -> None:
    cli("topics", "create", "plain")
    shown = json.loads(cli("topics", "describe", "plain", "--output", "json")[1])
    assert not {"fields", "values", "key", "time"} & set(shown)


@pytest.mark.parametrize("form", ["columns", "json"])
def test_rows_come_out_as_they_went_in(cli: Cli, tmp_path: Path, form: str) -> None:
    make(cli, "one", "--key", "auction", "--time", "ts", "--values", form)
    make(cli, "two", "--values", form)

    code, _, err = cli("produce", "one", stdin=b"\n".join(ROWS))
    assert code == 0, err
    assert cli("consume", "one", "-e")[1].splitlines() == ROWS
    lines = cli("consume", "one", "-J", "-e")[1]
    envelopes = [json.loads(line) for line in lines.splitlines()]
    assert [each["key"] for each in envelopes] == ["7", "-1"]
    code, _, err = cli("produce", "two", "-J", stdin=lines)

    assert code == 0, err
    with millstream.open(tmp_path / "store", read_only=True) as store:
        one, two = (
            [(each.timestamp_ms, each.key, each.value) for each in store.read(topic)]
            for topic in ("one", "two")
        )
        assert one == two
        assert [each[0] for each in one] == [1_704_067_200_000, -1]
        columns = [store.read(topic).arrow().read_all() for topic in ("one", "two")]
        assert columns[0].equals(columns[1])
        assert next(store.read("two").batches()).columnar == (form == "columns")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "arrow"])
def test_an_export_is_imported_again_with_keys_and_partitions(
    cli: Cli, tmp_path: Path, form: str
) -> None:
    make(cli, "one", "-p", "3", "--key", "auction", "--time", "ts")
    make(cli, "two", "-p", "3")
    with millstream.open(tmp_path / "store") as store:
        value = b'{"auction":%d,"price":1,"ts":"2024-01-01T00:00:00Z"}'
        store.append_many("one", [*ROWS, *(value % number for number in range(50))])

    code, _, err = cli("export", "one", f"one.{form}")
    assert code == 0, err
    code, _, err = cli("import", "two", f"one.{form}")

    assert (code, err) == (0, "52 records in 'two'\n")
    with millstream.open(tmp_path / "store", read_only=True) as store:
        for partition in range(3):
            one, two = (
                [
                    (each.offset, each.timestamp_ms, each.key, each.value)
                    for each in store.read(topic, partition=partition)
                ]
                for topic in ("one", "two")
            )
            assert one == two
            assert one
        assert store.verify(deep=True).ok


def test_what_does_not_fit_is_refused_and_named(cli: Cli, tmp_path: Path) -> None:
    make(cli, "bids")
    bad = b'{"auction":"x","price":1,"ts":"2024-01-01T00:00:00Z"}'

    code, _, err = cli("produce", "bids", stdin=bad)
    assert code != 0
    assert "does not fit the schema" in err
    Path("bad.csv").write_bytes(b'value\n"' + ROWS[1].replace(b'"', b'""') + b'"\nno row\n')
    code, _, err = cli("import", "bids", "bad.csv")
    assert code != 0
    assert "values[1] does not fit the schema" in err
    assert "nothing was imported" in err

    with millstream.open(tmp_path / "store", read_only=True) as store:
        assert list(store.read("bids")) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no schema"),
        ("[]", "not an object of fields"),
        ('{"a": "int64", "a": "int8"}', "'a' is there twice"),
        ('{"a": "integer"}', "field 'a': 'integer' is no type; write int8"),
        ('{"a": "timestamp[us, tz=Europe/Berlin]"}', "is no type"),
        ('{"a": 1}', "a type is a name"),
        ('{"a": {"map": "string"}}', "'map' is not list"),
        ('{"a": {"struct": {"b": {"list": "?"}}}}', r"field 'a.b[]': '' is no type"),
        ('{"a": ' + '{"list":' * 40 + '"int8"' + "}" * 40 + "}", "nested too deeply"),
        ('{"a": ' + '{"list":' * 99_999 + "1" + "}" * 99_999 + "}", "is no schema"),
        ('{"a": "timestamp[ns]"}', "use timestamp('us')"),
        ('{"_a": "int8"}', "do not start with _"),
        ("{}", "1 to 4096 fields"),
        (" " * (1 << 20) + "{}", "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_schema_leaves_no_store_behind(
    cli: Cli, tmp_path: Path, text: str, reason: str
) -> None:
    Path("bid.json").write_text(text, encoding="utf-8")

    code, out, err = cli("topics", "create", "bids", "--schema", "bid.json")

    assert code in {1, 2}
    assert out == b""
    assert reason in err
    assert not (tmp_path / "store").exists()


def test_options_of_a_schema_are_checked_before_anything_is_made(cli: Cli, tmp_path: Path) -> None:
    schema = ("--schema", "bid.json")
    for arguments, reason in (
        (("--key", "auction"), "give --schema"),
        (("--values", "json"), "give --schema"),
        ((*schema, "--key", "nowhere"), "no such field"),
        ((*schema, "--time", "raw"), "timestamp"),
        (("--schema", "missing.json"), "cannot read missing.json"),
    ):
        code, _, err = cli("topics", "create", "bids", *arguments)
        assert code in {1, 2}
        assert reason in err
    assert not (tmp_path / "store").exists()


def test_without_the_extra_it_says_what_to_install(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(cli, "bids")
    cli("produce", "bids", stdin=ROWS[0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    install = "pip install 'millstream[arrow]'"

    for arguments in (
        ("topics", "create", "more", "--schema", "bid.json"),
        ("consume", "bids", "-e"),
        ("export", "bids"),
        ("import", "bids", "one.jsonl"),
    ):
        Path("one.jsonl").write_bytes(b'{"value":"{}"}\n')
        code, _, err = cli(*arguments)
        assert code != 0, arguments
        assert install in err, arguments
    code, out, err = cli("topics", "describe", "bids", "--output", "json")
    assert (code, json.loads(out)["fields"]) == (0, None)
    assert install in err
    code, _, err = cli("produce", "bids", stdin=ROWS[0])
    assert code != 0
    assert install in err
    with millstream.open(tmp_path / "store", read_only=True) as store:
        assert store.offsets("bids")[0].end == 1
