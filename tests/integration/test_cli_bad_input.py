"""What goes wrong around the command line: it says what and where, exits as told, loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import millstream
from millstream import Record

SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))

PIPELINE = """
from millstream.processor import Pipeline, agg, tumbling
pipeline = Pipeline("sums")
rows = pipeline.source("rows", time="ts").key_by("k")
rows.window(tumbling(10)).agg(total=agg.sum("x"), n=agg.count()).to("sums")
"""

WITHOUT_RIGHTS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
if os.getuid() == 0:
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs Python as a root that has to respect permissions; as anybody else as it is."""

Cli = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def cli(tmp_path: Path, store_path: Path) -> Cli:
    """Run `millstream`; exit code, stdout, stderr."""
    (tmp_path / "app.py").write_text(PIPELINE)

    def run(*arguments: str, stdin: bytes = b"", rights: bool = True) -> tuple[int, bytes, str]:
        done = subprocess.run(
            [
                *(sys.executable,),
                *(() if rights else ("-c", WITHOUT_RIGHTS)),
                *("-m", "millstream", *arguments),
            ],
            input=stdin,
            capture_output=True,
            env={**os.environ, "MILLSTREAM_DIR": str(store_path), "NO_COLOR": "1"},
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
        error = done.stderr.decode()
        assert "Traceback" not in error
        return done.returncode, done.stdout, error

    return run


def shell(script: str, tmp_path: Path, *wrapper: str) -> subprocess.CompletedProcess[bytes]:
    """Run lines in which `millstream` is the command, on the same store as `cli`."""
    millstream_function = f'millstream() {{ "{sys.executable}" -m millstream "$@"; }}\n'
    return subprocess.run(
        [*wrapper, "sh", "-c", millstream_function + script],
        env={**os.environ, "MILLSTREAM_DIR": str(tmp_path / "store"), "NO_COLOR": "1"},
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )


def rows(count: int) -> list[bytes]:
    return [b'{"k":"k%d","ts":%d,"x":%d}' % (n % 3, n, n) for n in range(count)]


def content(records: list[Record]) -> list[tuple[object, ...]]:
    return [(r.partition, r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in records]


def digests(directory: Path) -> dict[str, str]:
    """What the files of the records hold."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*.segment")
    }


def test_any_records_pass_through_two_commands(store_path: Path, tmp_path: Path) -> None:
    """Random bytes in keys, values and headers, nulls, empty and large ones, over partitions."""
    choice = Random(SEED)

    def some_bytes(longest: int) -> bytes | None:
        kind = choice.randrange(4)
        if kind == 0:
            return None
        if kind == 1:
            return "".join(choices('a{}"\\\n\0\x7f\u00e9\u2028\U0001f600')).encode()
        return choice.randbytes(choice.choice((0, 1, 10, longest)))

    def choices(letters: str) -> list[str]:
        return choice.choices(letters, k=choice.randrange(8))

    def some_headers() -> tuple[tuple[str, bytes | None], ...]:
        count = choice.choice((0, 0, 1, 3))
        return tuple(("".join(choices("aB-\u00e9\n ")), some_bytes(30)) for _ in range(count))

    with millstream.open(store_path) as store:
        store.create_topic("one", partitions=3, compression="zstd")
        store.create_topic("two", partitions=3)
        for number in range(60):
            values = [some_bytes(5_000) for _ in range(choice.randrange(1, 60))]
            store.append_many(
                "one",
                values,
                [some_bytes(20) for _ in values],
                [choice.choice((0, -1, 1_700_000_000_000 + number, 2**60)) for _ in values],
                choice.randrange(3),
                headers=[some_headers() for _ in values],
            )
    done = shell("millstream consume one -J -e | millstream produce two -J", tmp_path)

    assert (done.returncode, done.stderr) == (0, b"")
    with millstream.open(store_path, read_only=True) as store:
        for partition in range(3):
            one, two = (
                content(list(store.read(topic, partition=partition))) for topic in ("one", "two")
            )
            assert one == two, f"seed {SEED}"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"nope", "JSON"),
        (b'{"k":"a","x":1}', "ts"),
        (b'{"k":"a","ts":null,"x":1}', "event time is missing"),
        (b'{"k":"a","ts":"yesterday","x":1}', "is not RFC 3339"),
        (b'{"k":null,"ts":7,"x":1}', "key"),
    ],
)
def test_a_record_that_cannot_be_processed_is_named(
    cli: Cli, store_path: Path, line: bytes, fault: str
) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("rows")
        store.append_many("rows", [*rows(50), line, *rows(3)])
    kept = digests(store_path / "topics/rows")

    code, out, error = cli("process", "app:pipeline", "--until", "end")

    assert (code, out) == (1, b"")
    assert "(topic rows, partition 0, offset 50)" in error
    assert fault in error
    assert cli("consume", "sums", "-e") == (0, b"", "")
    assert kept == digests(store_path / "topics/rows")


def test_a_pipeline_over_an_unknown_topic_is_5(cli: Cli) -> None:
    assert cli("produce", "t", stdin=b"a\n")[0] == 0
    code, _, error = cli("process", "app:pipeline", "--until", "end")
    assert code == 5
    assert "no topic 'rows'" in error


def test_where_nothing_may_be_written_one_can_read(cli: Cli, store_path: Path) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("rows")
        store.append_many("rows", [b"a", b"b"])
    paths = [store_path, *store_path.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & 0o555)
    kept = digests(store_path)
    try:
        for command in (
            ("produce", "rows"),
            ("topics", "create", "t"),
            ("consume", "rows", "-e", "-g", "g"),
            ("process", "app:pipeline", "--until", "end"),
            ("--dir", f"{store_path}/topics/new", "produce", "t"),
        ):
            code, out, error = cli(*command, stdin=b"c\n", rights=False)
            assert (code, out) == (1, b""), command
            assert str(store_path) in error
            assert "permission denied" in error or "cannot be written" in error
        assert cli("consume", "rows", "-e", rights=False) == (0, b"a\nb\n", "")
        assert cli("verify", rights=False)[0] == 0
        assert kept == digests(store_path)
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)
    assert cli("produce", "rows", stdin=b"c\n") == (0, b"", "")
    assert cli("consume", "rows", "-e") == (0, b"a\nb\nc\n", "")


def test_damaged_state_stops_the_pipeline_and_changes_nothing(cli: Cli, store_path: Path) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("rows")
        store.append_many("rows", rows(25))
    assert cli("process", "app:pipeline", "--until", "end")[0] == 0
    expected = cli("consume", "sums", "-e")
    (state,) = (store_path / "state").rglob("*.segment")
    damaged = bytearray(state.read_bytes())
    damaged[330] ^= 1
    state.write_bytes(damaged)
    with millstream.open(store_path) as store:
        store.append_many("rows", rows(60)[25:])
    kept = digests(store_path)

    code, _, error = cli("process", "app:pipeline", "--until", "end")

    assert code == 4
    assert f"file {state.relative_to(store_path)}, position 128" in error
    assert expected == cli("consume", "sums", "-e")
    assert kept == digests(store_path)


def test_a_damaged_or_lost_catalog_is_refused(cli: Cli, store_path: Path) -> None:
    assert cli("produce", "t", stdin=b"a\n")[0] == 0
    catalog = store_path / "catalog.db"
    whole = catalog.read_bytes()
    kept = digests(store_path)

    catalog.write_bytes(b"no database" * 500)
    for command in (("produce", "t"), ("consume", "t", "-e"), ("topics", "ls")):
        code, out, error = cli(*command, stdin=b"b\n")
        assert (code, out) == (4, b"")
        assert str(catalog) in error
    catalog.unlink()
    for command in (("consume", "t", "-e"), ("topics", "ls"), ("produce", "t")):
        code, _, error = cli(*command, stdin=b"b\n")
        assert code == 4
        assert "catalog.db was missing" in error
    assert kept == digests(store_path)

    for path in store_path.glob("catalog.db*"):
        path.unlink()
    catalog.write_bytes(whole)
    assert cli("produce", "t", stdin=b"b\n") == (0, b"", "")
    assert cli("consume", "t", "-e") == (0, b"a\nb\n", "")


FULL_DISK = """
mount -t tmpfs -o size=1m none "$MILLSTREAM_DIR" || exit 77
say() { echo "$? $*"; }
millstream topics create rows; say create
cat rows | head -n 1000 | millstream produce rows; say produce
head -c 2000000 /dev/zero > "$MILLSTREAM_DIR/ballast"
cat rows | tail -n +1001 | millstream produce rows; say produce on a full disk
millstream process app:pipeline --until end; say process on a full disk
millstream consume rows -e > consumed; say consume on a full disk
cmp -n $(stat -c %s consumed) rows consumed; say compare
truncate -s -256K "$MILLSTREAM_DIR/ballast"
millstream retention > removed; say retention with some space
rm "$MILLSTREAM_DIR/ballast"
tail -n +$(($(wc -l < consumed) + 1)) rows | millstream produce rows; say produce
millstream process app:pipeline --until end --on-end flush; say process
millstream verify > /dev/null; say verify
millstream consume sums -e > sums; say consume
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, for a disk of its own")
def test_on_a_full_disk_nothing_is_lost_and_with_space_it_goes_on(tmp_path: Path) -> None:
    """A real one, in a mount namespace of its own: no space for records, state or the catalog."""
    lines = rows(3_000)
    (tmp_path / "rows").write_bytes(b"".join(line + b"\n" for line in lines))
    (tmp_path / "app.py").write_text(PIPELINE)
    (tmp_path / "store").mkdir()
    done = shell(FULL_DISK, tmp_path, "unshare", "--map-root-user", "--mount")
    if done.returncode == 77 or done.stderr.startswith(b"unshare: "):
        pytest.skip("may not mount a disk of its own")

    error = done.stderr.decode()
    assert done.stdout.decode().splitlines() == [
        "0 create",
        "0 produce",
        "1 produce on a full disk",
        "1 process on a full disk",
        "0 consume on a full disk",
        "0 compare",
        "0 retention with some space",
        "0 produce",
        "0 process",
        "0 verify",
        "0 consume",
    ], error
    assert error.count("the disk is full") == error.count(": free space and try again") == 2
    assert "Traceback" not in error
    sums = [json.loads(line) for line in (tmp_path / "sums").read_bytes().splitlines()]
    assert sum(range(3_000)) == sum(each["total"] for each in sums)
    assert len(lines) == sum(each["n"] for each in sums)
