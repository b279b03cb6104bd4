"""Processes that work on a store until they are done, or killed: a function for each.

    python store_children.py FUNCTION STORE ARGUMENT...

They report by single bytes or lines on standard output, unbuffered, so that what was reported
before a kill arrives. `spawn` starts one; the parent reads from it instead of sleeping.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from log_model import Model
from workload import Driver, Workload

import millstream
from millstream import MillstreamError, TopicPartition
from millstream.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 200
"""Seconds a child lives at most, so that one that hangs ends the test. Some are needed for all of a
test, which takes a minute on a busy machine."""
KEPT_FOR_EVER: list[object] = []
"""Lives as long as the interpreter."""
T0 = TopicPartition("t", 0)


@contextmanager
def spawn(function: str, store: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A child that runs one of the functions below; killed at the end if it still lives."""
    command = [sys.executable, "-W", "error", __file__, function, str(store)]
    child = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    watchdog = threading.Timer(TIMEOUT, child.kill)
    watchdog.start()
    try:
        yield child
    finally:
        watchdog.cancel()
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
        child.kill()
        child.communicate()


def finish(child: subprocess.Popen[bytes]) -> bytes:
    """Wait for a child that ends by itself, and well; what it wrote."""
    output, errors = child.communicate()
    assert 0 == child.returncode, errors.decode()
    return output


def hear(child: subprocess.Popen[bytes], count: int = 1) -> bytes:
    """Read that many bytes from a child; fewer only when it has died."""
    assert child.stdout is not None
    heard = b""
    while len(heard) < count and (more := child.stdout.read(count - len(heard))):
        heard += more
    return heard


def say(child: subprocess.Popen[bytes], word: bytes = b".") -> None:
    """Let a child go on that waits for a byte."""
    assert child.stdin is not None
    try:
        child.stdin.write(word)
    except BrokenPipeError:
        _, errors = child.communicate()
        raise AssertionError(f"died with {child.returncode}: {errors.decode()}") from None


def tell(word: bytes = b".") -> None:
    """In the child: report."""
    os.write(1, word)


def listen() -> bytes:
    """In the child: wait for the parent."""
    return os.read(0, 1)


# --- children ----------------------------------------------------------------------------------


def live(path: str, seed: str, segment_bytes: str, now_ms: str, summary: str) -> None:
    """Take the steps of a workload for ever; one byte for each that is finished."""
    clock = ManualClock(int(now_ms))
    workload = Workload(seed=int(seed), segment_bytes=int(segment_bytes))
    store = millstream.open(path, clock=clock)
    driver = Driver(store, Model.resume(summary), clock, workload)
    tell(b"r")
    while True:
        driver.step()
        tell()


def append(path: str, name: str, count: str, durability: str, batch: str) -> None:
    """Append numbered records under a name to all partitions in turn; a byte for each call."""
    with millstream.open(path, durability=durability) as store:
        tell(b"r")
        listen()
        number = 0
        while number < int(count):
            values = [b"%s %d" % (name.encode(), number + row) for row in range(int(batch))]
            if len(values) == 1:
                store.append("t", values[0])
            else:
                store.append_many("t", values)
            number += len(values)
            tell()


def send_identified(path: str, count: str, manner: str) -> None:
    """Append the records 0, 1, 2, ... with ids, in one of three manners; a byte for each call."""
    with millstream.open(path) as store, store.producer(durability="os") as producer:
        tell(b"r")
        for start in range(0, int(count), 5):
            numbers = range(start, min(start + 5, int(count)))
            headers = [[("record-id", b"%d" % number)] for number in numbers]
            values = [b"%d" % number for number in numbers]
            if int(manner) % 3 == 0:
                store.append_many("t", values, headers=headers)
            elif int(manner) % 3 == 1:
                for value, header in zip(values, headers, strict=True):
                    producer.send("t", value, headers=header)
                producer.flush()
            else:
                with suppress(millstream.ConflictError), store.transaction() as transaction:
                    transaction.append_many("t", values, headers=headers)
            tell()


def update(path: str, name: str, keys: str) -> None:
    """Append numbered values to so many keys in turn: one per byte of the parent, and one back."""
    with millstream.open(path) as store:
        tell(b"r")
        number = 0
        while listen():
            key = b"%s-%d" % (name.encode(), number % int(keys))
            store.append("t", b"%d" % number, key=key)
            number += 1
            tell()


def compact(path: str) -> None:
    """Compact for ever, in the middle of appends of others; a byte for each time."""
    with millstream.open(path) as store:
        tell(b"r")
        while True:
            with suppress(millstream.LockedError):
                store.compact("t")
            tell()


def hold_the_append_lock(path: str) -> None:
    """Stop with the append lock held; go on, append, and end when continued."""
    with millstream.open(path) as store:
        with store._engine.append_lock:
            tell(b"r")
            os.kill(os.getpid(), signal.SIGSTOP)
        store.append("t", b"continued")


def send_lines(path: str, total: str) -> None:
    """Send numbered lines under a name, from where all is written; a byte for some of them."""
    with (
        millstream.open(path) as store,
        store.producer(name="import", linger_ms=1, batch_bytes=2000) as producer,
    ):
        tell(b"r")
        for number in range(producer.resume_from("t"), int(total)):
            key = b"k%d" % (number % 7) if number % 3 else None
            future = producer.send("t", b"%d" % number, key=key, sequence=number)
            if number % 50 == 0:
                future.result()
                tell()


def send_when_told(path: str) -> None:
    """Send a record under a name; when told, another, and report whether that was fenced."""
    with millstream.open(path) as store:
        producer = store.producer(name="import")
        producer.send("t", b"old", sequence=0).result()
        tell(b"r")
        listen()
        error = producer.send("t", b"zombie", sequence=1).exception()
        tell(b"f" if isinstance(error, millstream.FencedError) else b"?")
        with suppress(millstream.FencedError):
            producer.close()


def own(path: str, name: str) -> None:
    """Own a name until told to end."""
    with millstream.open(path) as store, store.own(name):
        tell(b"r")
        listen()


def leave_a_transaction_open(path: str) -> None:
    """Write in a transaction, and wait to be killed."""
    with millstream.open(path) as store, store.transaction() as transaction:
        transaction.append("t", b"never")
        tell(b"r")
        listen()


def commit_when_told(path: str, timeout: str) -> None:
    """Write in a transaction; when told, commit, and report whether that was fenced."""
    with millstream.open(path) as store:
        try:
            with store.transaction(timeout=timeout) as transaction:
                transaction.append("t", b"never")
                tell(b"r")
                listen()
        except millstream.FencedError:
            tell(b"f")
        else:
            tell(b"c")


def follow(path: str) -> None:
    """Follow a topic and report each record, as a line."""
    with millstream.open(path) as store:
        tell(b"r\n")
        for record in store.read("t", stop=None):
            tell((record.value or b"") + b"\n")


def fork(path: str) -> None:
    """Fork with a store in use; parent and child report what they could do."""
    store = millstream.open(path)
    store.append("t", b"before")
    reader = store.reader({T0: 0})
    scan = store.read("t")
    producer = store.producer()
    refused = 0
    pid = os.fork()
    if not pid:
        attempts = (
            lambda: store.append("t", b"child"),
            lambda: store.append_many("t", [b"child"]),
            lambda: store.create_topic("u"),
            lambda: list(scan),
            reader.poll,
            lambda: producer.send("t", b"child"),
            store.sync,
            lambda: store.roll("t", 0),
            lambda: store.transaction().__enter__(),
        )
        for attempt in attempts:
            try:
                attempt()
            except MillstreamError as error:
                refused += isinstance(error, millstream.StoreClosedError)
        store.close()
        with millstream.open(path) as own_store:
            own_store.append("t", b"a store of its own")
        tell(b"%d of %d refused\n" % (refused, len(attempts)))
        os._exit(0)
    os.waitpid(pid, 0)
    store.append("t", b"after")
    producer.send("t", b"produced").result(10)
    reader.close()
    producer.close()
    store.close()


def leave_in_child(path: str) -> None:
    """Fork with a job, and a transaction with rows, in hand; the child leaves all blocks."""
    with millstream.open(path) as store:
        with store.transaction(database=path + ".db") as transaction:
            transaction.execute("CREATE TABLE rows (number)")
        with store.queue("t") as queue, millstream.UserDatabase(path + ".db") as database:
            job = queue.get(timeout=0)
            assert job is not None
            with store.transaction(database=path + ".db") as transaction:
                transaction.append("t", b"with a row")
                transaction.execute("INSERT INTO rows VALUES (1)")
                if not os.fork():
                    try:
                        database.query("SELECT 1")
                    except millstream.StoreClosedError:
                        sys.exit(7)
                    sys.exit("the child may use what is the parent's")
                status = os.waitstatus_to_exitcode(os.wait()[1])
                journal = os.path.exists(path + ".db-journal")
                transaction.ack(job)
            rows = database.query("SELECT * FROM rows")
        tell(b"%d %d %r\n" % (status, journal, rows))


def exit_without_close(path: str, how: str) -> None:
    """Leave the interpreter with everything open."""
    store = millstream.open(path)
    kept = [store.reader({T0: 0}), store.consumer("t", group="g"), store.producer()]
    KEPT_FOR_EVER.extend((store, kept))
    store.append("t", b"durable")
    store.append("t", b"written", durability="os")
    kept[1].poll()
    kept[2].send("t", b"perhaps")
    tell(b"r")
    if how == "_exit":
        os._exit(0)
    if how == "abort":
        os.abort()
    if how == "error":
        raise SystemExit(3)


def interrupt_yourself(path: str, times: str) -> None:
    """Append from two threads until signals interrupted one of them so often; report what was."""
    chance = Random(1)
    store = millstream.open(path, durability="os")
    stop = threading.Event()
    acknowledged: list[bytes] = []
    interrupts = 0

    def beside() -> None:
        number = 0
        while not stop.is_set():
            store.append("t", b"beside %d" % number)
            number += 1
        acknowledged.extend(b"beside %d" % each for each in range(number))

    armed = threading.Event()

    def interrupt(*_: object) -> None:
        if armed.is_set():
            armed.clear()
            raise KeyboardInterrupt

    thread = threading.Thread(target=beside)
    thread.start()
    signal.signal(signal.SIGALRM, interrupt)
    number = 0
    while interrupts < int(times):
        try:
            armed.set()
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.002))
            for _ in range(500):  # an interrupt that arrives in a finalizer is lost
                number += 1
                value = b"here %d" % number
                store.append("t", value)
                acknowledged.append(value)
            armed.clear()
        except KeyboardInterrupt:
            interrupts += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    stop.set()
    thread.join()
    store.close()
    tell(b"\n".join(acknowledged))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
