"""The command line with real files, descriptors and exit codes; most of it in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import millstream
from millstream.cli.main import main


class Done(NamedTuple):
    """What a finished command left behind."""

    code: int
    out: bytes
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """Run `millstream` in this process, on a store in a temporary directory."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        with tempfile.TemporaryFile() as file, monkeypatch.context() as patch:
            file.write(stdin)
            file.seek(0)
            patch.setattr(sys, "stdin", file)
            code = main(arguments)
        printed = capfdbinary.readouterr()
        return Done(code, printed.out, printed.err.decode())

    return run


def test_the_first_lines_of_the_manual_work_in_a_shell(tmp_path: Path) -> None:
    script = f"""
        set -e
        millstream() {{ "{sys.executable}" -m millstream "$@"; }}
        printf 'a\\nb\\nc\\n' | millstream produce t && millstream consume t -o beginning -e
        millstream consume t -J -e | millstream produce t2 -J
        millstream consume t2 -e
        millstream consume nope || echo $?
    """
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"a\nb\nc\n" * 2 + b"5\n"), done.stderr.decode()
    assert (tmp_path / "millstream-data").is_dir()


def test_lines_come_out_as_they_went_in(cli: Cli) -> None:
    produced = cli("produce", "t", stdin=b"a\nb\nc\n")
    assert (produced.code, produced.out) == (0, b"")
    assert "created topic 't' with 1 partition" in produced.err

    consumed = cli("consume", "t", "-o", "beginning", "-e")
    assert consumed == Done(0, b"a\nb\nc\n", "")


def test_json_reproduces_records_bit_for_bit(cli: Cli, tmp_path: Path) -> None:
    """Also across partitions: the envelope's partition is kept where the target has it."""
    values = [b"plain", None, b"", b"\xff\x00\n\r", "caf\u00e9 \u2028".encode(), b'{"a": 1}']
    keys = [b"k", None, b"", b"\xfe", "\U0001f600".encode(), None]
    timestamps = [0, -5, 2**62, 1_700_000_000_000, 1, 2]
    headers = [(), (("a", None),), (("a", b""), ("a", b"\xff")), (), (("\u00e9", b"x"),), ()]
    with millstream.open(tmp_path / "store") as store:
        for topic in ("one", "two"):
            store.create_topic(topic, partitions=2)
        for partition in (1, 0):
            store.append_many("one", values, keys, timestamps, partition, headers=headers)

    lines = cli("consume", "one", "-J", "-e").out
    assert cli("produce", "two", "-J", stdin=lines).code == 0

    with millstream.open(tmp_path / "store", read_only=True) as store:
        for partition in (0, 1):
            one, two = (
                [
                    (each.offset, each.timestamp_ms, each.key, each.value, each.headers)
                    for each in store.read(topic, partition=partition)
                ]
                for topic in ("one", "two")
            )
            assert one == two
            assert len(one) == len(values)
    assert [json.loads(line)["partition"] for line in lines.splitlines()] == [1] * 6 + [0] * 6


def test_json_partition_the_target_lacks_is_chosen_anew(cli: Cli) -> None:
    line = b'{"value":"v","partition":7}\n'
    assert cli("produce", "t", "-J", stdin=line).code == 0
    assert cli("consume", "t", "-e", "-f", r"%p %s\n").out == b"0 v\n"


def test_a_line_that_is_not_json_is_named_and_all_before_it_are_kept(cli: Cli) -> None:
    done = cli("produce", "t", "-J", stdin=b'{"value":"a"}\n{"value":"b"}\nnope\n{"value":"c"}\n')
    assert done.code == 1
    assert "line 3: not JSON" in done.err
    assert "2 records before it are in 't'" in done.err
    assert cli("consume", "t", "-e").out == b"a\nb\n"


def test_a_bad_line_in_a_file_names_the_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"value":"a"}\n{}\n')
    done = cli("produce", "t", "in.jsonl", "-J")
    assert done.code == 1
    assert 'in.jsonl, line 2: no "value"' in done.err


def test_keys_headers_nulls_and_delimiters(cli: Cli) -> None:
    assert cli("produce", "t", "-K:", "-Z", "-H", "h=1", "-H", "n", stdin=b"k:v\n:\nx\n").code == 0
    assert cli("produce", "t", "-k", "fixed", "-D", r"\0", "-p", "0", stdin=b"a\nb\0").code == 0
    printed = cli("consume", "t", "-e", "-Z", "-f", r"%k|%s|%h;")
    assert printed.out == b"k|v|h=1,n=NULL;NULL|NULL|h=1,n=NULL;NULL|x|h=1,n=NULL;fixed|a\nb|;"
    assert cli("consume", "t", "-o", "-1", "-e", "-K", "=", "-D", r"\t").out == b"fixed=a\nb\t"


def test_files_are_records_or_lines(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"1\n2\n")
    (tmp_path / "b.txt").write_bytes(b"")
    assert cli("produce", "whole", "a.txt", "b.txt").code == 0
    assert cli("produce", "lines", "a.txt", "-", "-l", stdin=b"3").code == 0
    assert cli("consume", "whole", "-e", "-f", r"%s|").out == b"1\n2\n||"
    assert cli("consume", "lines", "-e").out == b"1\n2\n3\n"
    assert cli("produce", "t", "missing.txt").code == 2


def test_tee_repeats_and_num_stops(cli: Cli) -> None:
    assert cli("produce", "t", "-T", "-n", "2", stdin=b"a\nb\nc\n").out == b"a\nb\n"
    assert cli("consume", "t", "-e").out == b"a\nb\n"
    assert cli("consume", "t", "-n", "1").out == b"a\n"


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("beginning", b"0123456789"),
        ("-3", b"789"),
        ("+8", b"89"),
        ("7", b"789"),
        ("2:5", b"234"),
        (":2", b"01"),
        ("-3:-1", b"78"),
        ("@1700000000004", b"456789"),
        ("@1700000000004:1700000000006", b"45"),
        ("s@1700000000008", b"89"),
        ("e@1700000000002", b"01"),
        ("@2023-11-14T22:13:20.009Z:end", b"9"),
        ("end", b""),
        ("10", b""),
    ],
)
def test_positions_choose_what_is_printed(
    cli: Cli, tmp_path: Path, position: str, expected: bytes
) -> None:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")
        values = [b"%d" % number for number in range(10)]
        store.append_many("t", values, timestamps_ms=[1_700_000_000_000 + n for n in range(10)])
    done = cli("consume", "t", "-o", position, "-e", "-f", "%s")
    assert done == Done(0, expected, "")


def test_several_topics_and_partitions_come_in_append_order(cli: Cli, tmp_path: Path) -> None:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("a", partitions=3)
        store.create_topic("b")
        for number in range(20):
            if number % 4:
                store.append("a", b"%d " % number, partition=number % 3)
            else:
                store.append("b", b"%d " % number)
    everything = cli("consume", "a", "b", "-e", "-f", "%s").out
    assert everything.split() == [b"%d" % number for number in range(20)]
    assert cli("consume", "a", "-e", "-f", "%s", "-p", "1-2").out.split() == [
        b"%d" % number for number in range(20) if number % 4 and number % 3
    ]
    assert cli("consume", "a", "-e", "-p", "3").code == 2


def test_timeout_is_124_unless_the_wish_came_true(cli: Cli) -> None:
    cli("produce", "t", stdin=b"a\nb\n")
    assert cli("consume", "t", "--timeout", "100ms", "-n", "3") == Done(124, b"a\nb\n", "")
    assert cli("consume", "t", "--timeout", "100ms", "-o", "end").code == 124
    assert cli("consume", "t", "--timeout", "100ms").code == 0
    assert cli("consume", "t", "--timeout", "10s", "-n", "2").code == 0


def test_tail_shows_the_last_of_the_topic(cli: Cli, tmp_path: Path) -> None:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t", partitions=2)
        for number in range(6):
            key = b"k" if number % 2 else None
            store.append("t", b"v\n%d" % number, key=key, partition=number % 2, timestamp_ms=number)
    done = cli("tail", "t", "-n", "3", "--no-follow")
    assert done.out.decode().splitlines() == [
        "1970-01-01T00:00:00.003Z  1:1  k  v\\n3",
        "1970-01-01T00:00:00.004Z  0:2  -  v\\n4",
        "1970-01-01T00:00:00.005Z  1:2  k  v\\n5",
    ]
    assert len(cli("tail", "t", "--no-follow", "-J").out.splitlines()) == 6


def test_what_is_not_there_is_5(cli: Cli, tmp_path: Path) -> None:
    nothing = cli("consume", "t", "-e")
    assert nothing.code == 5
    assert "no store in" in nothing.err
    (tmp_path / "store").mkdir()
    for command in ("verify", "repair", "doctor"):
        assert (command, 5) == (command, cli(command).code)
    cli("produce", "t", stdin=b"a\n")
    for arguments in (
        ("consume", "nope", "-e"),
        ("tail", "nope"),
        ("topics", "describe", "nope"),
        ("topics", "rm", "nope", "-y"),
        ("consume", "t", "-o", "99", "-e"),
        ("--dir", "elsewhere", "topics", "ls"),
    ):
        done = cli(*arguments, stdin=b"a\n")
        assert (done.code, done.out) == (5, b""), arguments
        assert done.err.startswith("millstream: "), arguments
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("consume", "t", "-o", "x"),
        ("consume", "t", "-f", "%z"),
        ("consume", "t", "-f", "%s", "-J"),
        ("consume", "t", "-o", "stored"),
        ("consume", "t", "-g", "g", "-p", "0"),
        ("consume", "t", "-p", "a"),
        ("consume", "t", "--timeout", "5"),
        ("consume", "t", "--output", "csv"),
        ("consume",),
        ("consume", "t", "--nope"),
        ("produce", "bad name"),
        ("produce", "t", "-p", "9"),
        ("produce", "new", "-p", "1"),
        ("produce", "@state/p/w"),
        ("topics", "create", "@state/p/w"),
        ("produce", "t", "-J", "-K:"),
        ("produce", "t", "-k", "a", "-K:"),
        ("produce", "t", "-D", ""),
        ("produce", "t", "-K", ""),
        ("produce", "t", "-z", "lz4"),
        ("topics", "create", "u", "nope=1"),
        ("topics", "create", "u", "nope"),
        ("topics", "create", "u", "--retention", "7"),
        ("topics", "set", "t", "retention=x"),
        ("topics", "rm", "t"),
        ("nope",),
        ("--output", "xml", "topics", "ls"),
    ],
)
def test_wrong_usage_is_2(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: no command gets as far as reading its input."""
    monkeypatch.setenv("MILLSTREAM_DIR", str(tmp_path / "store"))
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")

    assert main(arguments) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err
    assert "Traceback" not in printed.err


def test_topics_are_created_listed_changed_and_deleted(cli: Cli) -> None:
    created = cli("topics", "create", "t", "-p", "2", "--retention", "7d", "segment_bytes=1MiB")
    assert (created.code, created.err) == (0, "topic 't' has 2 partitions\n")
    assert cli("topics", "create", "t", "-p", "2").code == 1
    assert cli("topics", "create", "t", "-p", "2", "--exist-ok").code == 0
    assert cli("topics", "set", "t", "retention=none", "compression=lz4").code == 0
    cli("produce", "t", "-p", "1", stdin=b"a\nb\nc\n")

    (listed,) = json.loads(cli("topics", "ls", "--output", "json").out)["topics"]
    assert (listed["topic"], listed["partitions"], listed["offsets"]) == ("t", 2, 3)
    info = json.loads(cli("--output", "json", "topics", "describe", "t").out)
    assert (info["retention_ms"], info["compression"]) == (None, "lz4")
    assert info["segment_bytes"] == 1 << 20
    assert [each["end_offset"] for each in info["partitions"]] == [0, 3]
    assert cli("topics", "ls").out.splitlines()[0].startswith(b"topic\tpartitions\toffsets")

    assert cli("topics", "rm", "t", "--yes").code == 0
    assert json.loads(cli("topics", "ls", "--output", "json").out) == {"schema": 1, "topics": []}


def test_compact_shows_what_it_would_remove_and_removes_it(cli: Cli) -> None:
    cli("topics", "create", "t", "--compact", "-p", "2")
    cli("produce", "t", "-K", ":", stdin=b"a:1\nb:1\na:2\nc:1\na:3\n")
    cli("topics", "roll", "t")

    would = json.loads(cli("compact", "t", "--dry-run", "--output", "json").out)["compaction"]
    assert [2] == [row["removed_records"] for row in would if row["removed_records"]]
    assert b"a:3" not in cli("compact", "t").out
    assert {b"a:3", b"b:1", b"c:1"} == set(cli("consume", "t", "-e", "-K", ":").out.split())
    again = json.loads(cli("compact", "t", "-p", "0", "--output", "json").out)["compaction"]
    assert [(0, 0)] == [(row["partition"], row["removed_records"]) for row in again]
    assert (2, b"") == cli("produce", "t", stdin=b"no key\n")[:2]
    cli("topics", "create", "plain")
    assert 2 == cli("compact", "plain").code


def test_retention_shows_what_goes_and_who_holds_back_what(cli: Cli) -> None:
    cli("topics", "create", "t", "retention_groups=billing")
    for _ in range(2):
        cli("produce", "t", stdin=b"a\nb\n")
        cli("topics", "roll", "t")
    cli("consume", "t", "-g", "billing", "-e", "-c", "2")

    would = json.loads(cli("retention", "--dry-run", "--output", "json").out)
    assert [0] == [row["base_offset"] for row in would["removed"]]
    (blocker,) = would["blockers"]
    assert ("t", 0, "billing", 2) == tuple(blocker.values())[:4]
    printed = cli("retention", "t").out
    assert b"billing" in printed
    assert b"newest" in printed
    assert [] == json.loads(cli("retention", "--output", "json").out)["removed"]


def test_trim_shows_its_plan_first(cli: Cli) -> None:
    cli("produce", "t", stdin=b"a\nb\nc\n")
    plan = cli("topics", "trim", "t", "--before", "2")
    assert plan.out == (
        b"topic\tpartition\tstart_offset\tnew_start_offset\tremoved\nt\t0\t0\t2\t2\n"
    )
    assert "nothing was deleted" in plan.err
    assert cli("consume", "t", "-e").out == b"a\nb\nc\n"

    assert cli("topics", "trim", "t", "--before", "2", "--yes").code == 0
    assert cli("consume", "t", "-e").out == b"c\n"
    assert cli("consume", "t", "-e", "-o", "0").code == 5
    assert cli("topics", "trim", "t", "--before", "9", "--yes").code == 5


def test_roll_starts_a_new_segment(cli: Cli) -> None:
    cli("produce", "t", stdin=b"a\n")
    assert cli("topics", "roll", "t").code == 0
    cli("produce", "t", stdin=b"b\n")
    info = json.loads(cli("topics", "describe", "t", "--output", "json").out)
    assert info["partitions"][0]["segments"] == 2
    assert cli("consume", "t", "-e").out == b"a\nb\n"


def test_settings_follow_option_environment_default(cli: Cli, tmp_path: Path) -> None:
    environment = str(tmp_path / "store")
    assert f"dir\t{environment}\tenvironment" in cli("config").out.decode()
    assert b"dir\tx\toption" in cli("--dir", "x", "config").out
    assert b"dir\ty\toption" in cli("--dir", "x", "config", "--dir", "y").out
    assert json.loads(cli("version", "--json").out)["millstream"] == millstream.__version__
    assert cli("--version").out.decode().strip() == f"millstream {millstream.__version__}"


def test_quiet_says_nothing_and_verbose_shows_the_traceback(cli: Cli) -> None:
    assert cli("-q", "produce", "t", stdin=b"a\n").err == ""
    assert "Traceback" in cli("-v", "consume", "nope").err


def test_progress_lines_are_on_stderr_when_asked_for(cli: Cli) -> None:
    done = cli("produce", "t", "--progress", stdin=b"a\nb\n")
    assert "2 records, 0.0 MB" in done.err
    assert "2 records" in cli("consume", "t", "-e", "--progress").err


def test_a_directory_that_cannot_be_made_is_an_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = cli("--dir", "file/store", "produce", "t", stdin=b"a\n")
    assert done.code == 1
    assert "file" in done.err
    assert "Traceback" not in done.err


def test_python_dash_m_and_the_script_are_one_command() -> None:
    """The script's entry point is what `python -m millstream` calls; help needs no store."""
    script = Path(sys.executable).with_name("millstream")
    for command in ([str(script)], [sys.executable, "-m", "millstream"]):
        done = subprocess.run([*command, "--help"], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        text = done.stdout.decode()
        assert text.startswith("Usage: millstream ")
        assert text.index("Examples:") < text.index("Options:") < text.index("Commands:")


def test_produce_under_a_name_can_be_run_again(cli: Cli, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_bytes(b"a\nb\n")
    assert 0 == cli("produce", "log", "-l", str(log), "--producer", "app").code
    log.write_bytes(b"a\nb\nc\nd\n")
    again = cli("produce", "log", "-l", str(log), "--producer", "app")

    assert 0 == again.code
    assert "2 records were there already" in again.err
    assert b"a\nb\nc\nd\n" == cli("consume", "log", "-e").out


def test_produce_under_a_name_keeps_keys_and_partitions(cli: Cli) -> None:
    assert 0 == cli("topics", "create", "t", "-p", "3").code
    lines = b"".join(b'{"key": "k%d", "value": "v%d"}\n' % (n % 5, n) for n in range(30))
    for _ in range(2):
        assert 0 == cli("produce", "t", "-J", "--producer", "app", stdin=lines).code
    copy = cli("consume", "t", "-J", "-e").out
    assert 0 == cli("topics", "create", "u", "-p", "3").code
    for _ in range(2):
        assert 0 == cli("produce", "u", "-J", "--producer", "copy", stdin=copy).code

    assert 30 == len(copy.splitlines())
    assert copy.replace(b'"topic":"t"', b'"topic":"u"') == cli("consume", "u", "-J", "-e").out


def test_produce_leaves_out_ids_that_are_there(cli: Cli) -> None:
    assert 0 == cli("topics", "create", "t", "dedup=10m", "-p", "3").code
    lines = b"".join(b'{"id": %d, "value": "v%d"}\n' % (n, n) for n in range(9))
    assert 0 == cli("produce", "t", "-J", stdin=lines[: len(lines) // 3]).code
    again = cli("produce", "t", "-J", stdin=lines)
    assert (0, True) == (again.code, "3 records were there already" in again.err)
    nats = b"".join(
        b'{"value": "v%d", "headers": {"Nats-Msg-Id": "%d", "h": "x"}}\n' % (n, n)
        for n in range(12)
    )
    other = cli("produce", "t", "-J", "--id-header", "Nats-Msg-Id", stdin=nats)
    assert (0, True) == (other.code, "9 records were there already" in other.err)
    copy = cli("produce", "t", "-J", stdin=cli("consume", "t", "-J", "-e").out)
    assert (0, True) == (copy.code, "12 records were there already" in copy.err)
    one = [cli("produce", "t", "-H", "record-id=one", stdin=b"a\nb\n").err for _ in range(2)]
    assert ["1 record was" in one[0], "2 records were" in one[1]] == [True, True]

    assert 13 == len(cli("consume", "t", "-e").out.splitlines())


def test_produce_where_the_log_is_expected_to_end(cli: Cli) -> None:
    assert 0 == cli("produce", "t", "--expected-offset", "0", stdin=b"a\nb\n").code
    late = cli("produce", "t", "--expected-offset", "1", stdin=b"c\n")
    assert 0 == cli("produce", "t", "--expected-offset", "2", stdin=b"c\n").code

    assert (6, True) == (late.code, "it ends at 2" in late.err)
    assert b"a\nb\nc\n" == cli("consume", "t", "-e").out
    assert 2 == cli("produce", "t", "--expected-offset", "3", "--producer", "x", stdin=b"d\n").code
