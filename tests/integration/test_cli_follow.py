"""Commands that run until they are stopped: following, signals, closed pipes, slow input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import millstream
from millstream import TopicPartition

TIMEOUT = 60

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def start(tmp_path: Path, store_path: Path) -> Iterator[Start]:
    """Start `millstream` with pipes on all three ends; killed at the end if it still runs."""
    environment = {**os.environ, "MILLSTREAM_DIR": str(store_path)}
    with ExitStack() as stack:

        def popen(*arguments: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "millstream", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=tmp_path,
            )
            stack.enter_context(process)  # waits and closes the pipes
            stack.callback(process.kill)  # before that
            return process

        yield popen


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """Close its input, wait, and return exit code, rest of stdout, stderr."""
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err.decode()


def test_a_typed_line_reaches_a_follower_at_once(start: Start, store_path: Path) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("t")
        store.append("t", b"ready")
    consumer, producer = start("consume", "t"), start("produce", "t")
    assert read_line(consumer) == b"ready\n"
    write(producer, b"warm\n")
    assert read_line(consumer) == b"warm\n"

    seconds = []
    for number in range(10):
        line = b"line %d\n" % number
        begun = time.monotonic()
        write(producer, line)
        assert read_line(consumer) == line
        seconds.append(time.monotonic() - begun)

    # Well under what a human notices; the median, because the machine may be busy.
    assert sorted(seconds)[5] < 0.05
    assert end(producer)[0] == 0
    consumer.send_signal(signal.SIGTERM)
    assert end(consumer) == (0, b"", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_consume(
    start: Start, store_path: Path, number: signal.Signals, code: int
) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("t")
        store.append("t", b"a")
    consumer = start("consume", "t", "-g", "g")
    assert read_line(consumer) == b"a\n"
    consumer.send_signal(number)
    assert end(consumer) == (code, b"", "")
    with millstream.open(store_path, read_only=True) as store:
        assert store.group("g").offsets == {TopicPartition("t", 0): 1}


def test_ctrl_c_keeps_the_whole_lines_of_produce(start: Start, store_path: Path) -> None:
    producer = start("produce", "t", "-T")
    write(producer, b"a\nb\nhalf")
    assert [read_line(producer), read_line(producer)] == [b"a\n", b"b\n"]
    producer.send_signal(signal.SIGINT)
    code, out, err = end(producer)
    assert (code, out) == (130, b"")
    assert "the last 4 bytes were no whole record" in err
    with millstream.open(store_path, read_only=True) as store:
        assert [record.value for record in store.read("t")] == [b"a", b"b"]


def test_a_second_signal_ends_the_process_at_once(start: Start, tmp_path: Path) -> None:
    """The pipeline sleeps in a step, so that the first signal cannot end it."""
    (tmp_path / "app.py").write_text(
        "import sys, threading\n"
        "from millstream.processor import Pipeline\n"
        "def stuck(order):\n"
        "    print('stuck', flush=True)\n"
        "    threading.Event().wait(60)\n"
        "pipeline = Pipeline('p')\n"
        "pipeline.source('t', type=dict).map(stuck).to('out')\n"
    )
    assert end(start("produce", "t"))[0] == 0
    producer = start("produce", "t")
    write(producer, b"{}\n")
    assert end(producer)[0] == 0
    process = start("process", "app:pipeline")
    assert read_line(process) == b"stuck\n"
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 143


def test_a_reader_that_goes_away_ends_consume_silently(start: Start, store_path: Path) -> None:
    """Also when there is nothing more to print: `consume | head -1` must come back."""
    with millstream.open(store_path) as store:
        store.create_topic("t")
        store.append("t", b"a")
    for arguments in (("consume", "t"), ("consume", "t", "-g", "g"), ("tail", "t")):
        consumer = start(*arguments)
        assert read_line(consumer)
        assert consumer.stdout is not None
        consumer.stdout.close()
        assert consumer.wait(TIMEOUT) == 0, arguments
        assert consumer.stderr is not None
        assert consumer.stderr.read() == b""


def test_what_a_vanished_reader_did_not_get_is_not_committed(
    start: Start, store_path: Path
) -> None:
    """More than a pipe holds: the write fails, and that batch comes again."""
    count, size = 400, 10_000
    with millstream.open(store_path) as store:
        store.create_topic("t")
        for number in range(count):
            store.append("t", b"%d".ljust(size) % number, durability="os")
    consumer = start("consume", "t", "-g", "g", "--commit", "batch")
    assert read_line(consumer).strip() == b"0"
    assert consumer.stdout is not None
    consumer.stdout.close()
    assert consumer.wait(TIMEOUT) == 0
    again = start("consume", "t", "-g", "g", "-n", "1", "--commit", "never")
    first = int(read_line(again))
    assert end(again)[0] == 0
    pipe_bytes = 1 << 20
    assert 0 <= first <= pipe_bytes // size + 1


@pytest.mark.parametrize("arguments", [("topics", "ls"), ("--help",)])
def test_lists_into_a_closed_pipe_are_no_error(
    start: Start, store_path: Path, arguments: tuple[str, ...]
) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("t")
    process = start(*arguments)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(TIMEOUT) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_tail_shows_the_end_and_goes_on(start: Start, store_path: Path) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("t")
        store.append_many("t", [b"a", b"b", b"c"])
        tail = start("tail", "t", "-n", "2")
        assert read_line(tail).endswith(b"  0:1  -  b\n")
        assert read_line(tail).endswith(b"  0:2  -  c\n")
        store.append("t", b"d", key=b"k")
        assert read_line(tail).endswith(b"  0:3  k  d\n")
    tail.send_signal(signal.SIGINT)
    assert end(tail) == (130, b"", "")


def test_num_ends_a_follower(start: Start, store_path: Path) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("t")
        consumer = start("consume", "t", "-n", "3", "-o", "0:5")
        store.append_many("t", [b"a", b"b"])
        assert [read_line(consumer), read_line(consumer)] == [b"a\n", b"b\n"]
        store.append_many("t", [b"c", b"d"])
        assert end(consumer) == (0, b"c\n", "")


def test_a_range_that_lies_ahead_is_waited_for(start: Start, store_path: Path) -> None:
    with millstream.open(store_path) as store:
        store.create_topic("t")
        consumer = start("consume", "t", "-o", ":3")
        for value in (b"a", b"b", b"c", b"d"):
            store.append("t", value)
        assert end(consumer) == (0, b"a\nb\nc\n", "")


def test_closed_descriptors_are_never_taken_for_the_store(tmp_path: Path, store_path: Path) -> None:
    """With stdout closed, the first file opened would get its number, and the records."""
    with millstream.open(store_path) as store:
        store.create_topic("t")
        store.append_many("t", [b"x" * 100] * 1000)
    script = f"""
        export MILLSTREAM_DIR="{store_path}"
        millstream() {{ "{sys.executable}" -m millstream "$@"; }}
        millstream consume t -e -g g >&- 2>&- <&- || exit 1
        millstream topics ls >&- || exit 2
        millstream produce t <&- || exit 3
        millstream verify -q || exit 4
        millstream consume t -e > /dev/full && exit 5
        exit 0
    """
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stderr == b"millstream: cannot write the output: No space left on device\n"


def test_a_full_disk_stops_produce_and_says_what_is_in(tmp_path: Path, store_path: Path) -> None:
    """The limit on the size of files stands in for the disk."""
    script = f"""
        export MILLSTREAM_DIR="{store_path}"
        millstream() {{ "{sys.executable}" -m millstream "$@"; }}
        echo kept | millstream produce t || exit 9
        ulimit -f 2000
        head -c 4000000 /dev/zero | tr '\\0' '\\n' | millstream produce t
    """
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    message = done.stderr.decode().splitlines()
    assert "file topics/t/0/" in message[-2]
    assert "before this are in 't'" in message[-1]
    with millstream.open(store_path, read_only=True) as store:
        assert store.verify().ok
        assert next(iter(store.read("t"))).value == b"kept"


def test_members_hand_over_without_loss_or_repeats(start: Start, store_path: Path) -> None:
    """A second member joins and leaves while records come; each record is printed once."""
    deadline = time.monotonic() + TIMEOUT
    with millstream.open(store_path) as store:
        store.create_topic("t", partitions=4)
        appended = 0

        def produce() -> None:
            nonlocal appended
            for _ in range(50):
                for partition in range(4):
                    store.append("t", b"%d" % appended, partition=partition, durability="os")
                    appended += 1

        def wait_until(condition: Callable[[], bool]) -> None:
            while not condition():
                assert time.monotonic() < deadline
                produce()

        def members_reading() -> int:
            return len({each.member_id for each in store.group_lag("g")} - {None})

        store.append("t", b"first", partition=0)
        one = start("consume", "t", "-g", "g")
        assert read_line(one) == b"first\n"
        with ThreadPoolExecutor() as pool, ExitStack() as ended:
            # Should the test fail, the pool would wait for them for ever.
            ended.callback(one.kill)
            lines_of_one = pool.submit(one.communicate)
            two = start("consume", "t", "-g", "g")
            ended.callback(two.kill)
            lines_of_two = pool.submit(two.communicate)
            wait_until(lambda: members_reading() == 2)
            produce()
            two.send_signal(signal.SIGTERM)
            two_out, two_err = lines_of_two.result(TIMEOUT)
            wait_until(lambda: members_reading() == 1)
            while sum(each.lag or 0 for each in store.group_lag("g")):
                assert time.monotonic() < deadline
            one.send_signal(signal.SIGTERM)
            one_out, one_err = lines_of_one.result(TIMEOUT)
    assert (one.returncode, two.returncode, one_err, two_err) == (0, 0, b"", b"")
    assert two_out
    printed = sorted(map(int, (one_out + two_out).split()))
    assert printed == list(range(appended))
