"""What processes do that are going to be killed, and what must be true of the store then.

A value says which record it is, so that a store explains itself: whoever checks it needs to know
nothing but what the dead have reported. Each role reports what was acknowledged to it; a check
takes these reports. `create` makes a store for all roles.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import msgspec
from zygote import READY, Report, tell

import millstream
from millstream import StorageError, Store, TopicPartition, restore
from millstream.config import Durability

GROUP, JOBS, ROWS, BOTH = "g", "jobs", "rows", "jobs in rows"
DATABASE = "rows.db"
"""Beside the catalog: a database of the user's."""
MODES: tuple[Durability, ...] = ("sync", "sync", "os", "interval")
LOG, KEYED, FIRST, SECOND, WORK = "log", "keyed", "first", "second", "work"
SINGLE = "single"
WEAK = b"weak"
COPIED, RESULTS = "copied", "results"
FRAMES, FRAMES_KEYED = "frames", "frames-keyed"
PARTITIONS = 2
KEYS = 7
BALLAST_BYTES = 384 * 1024
"""Room that is made when the disk is full: the catalog needs some to record a trim."""
IDLE: Report = (-3, -3, 0, 0)
"""Nothing to do just now."""


class Numbered(msgspec.Struct):
    """A row of a topic of columns: its offset, and a key."""

    number: int
    key: int
    text: str | None = None


def create(path: Path, random: Random) -> None:
    """A store with the topics of all roles."""
    with millstream.open(path) as store:
        size = random.choice(("4KiB", "64KiB", "64MiB"))
        codec = random.choice(("none", "lz4", "zstd"))
        common = {"segment_bytes": size, "compression": codec}
        store.create_topic(LOG, partitions=PARTITIONS, retention_bytes="64KiB", **common)
        store.create_topic(KEYED, compact=True, **common)
        store.create_topic(FIRST, **common)
        store.create_topic(SECOND, partitions=PARTITIONS, **common)
        store.create_topic(SINGLE, **common)
        store.create_topic(WORK, **common)
        store.create_topic(COPIED, **common)
        store.create_topic(RESULTS, **common)
        store.create_topic(FRAMES, schema=Numbered, **common)
        store.create_topic(FRAMES_KEYED, schema=Numbered, key="key", compact=True, **common)
        store.append_many(WORK, [b"%d" % number for number in range(2000)])
    with contextlib.closing(sqlite3.connect(path / DATABASE)) as rows:
        rows.execute(f"PRAGMA journal_mode = {random.choice(('WAL', 'DELETE', 'TRUNCATE'))}")
        rows.execute("CREATE TABLE numbers (number)")
        rows.execute("CREATE TABLE jobs (number)")


# --- roles -------------------------------------------------------------------------------------


def appends(pipe: int, path: str, seed: int, *, full: bool = False) -> None:
    """Number the records of a partition by their offsets; roll, trim, apply retention."""
    random = Random(seed)
    with millstream.open(path) as store:
        tell(pipe, *READY)
        while True:
            partition = random.randrange(PARTITIONS)
            mode = random.choice(MODES)
            end = _append_numbered(store, random, partition, mode)
            tell(pipe, partition, end)
            chance = random.random()
            if chance < 0.1:
                store.roll(LOG, partition)
            elif chance < 0.2:
                store.apply_retention()
            elif chance < 0.25:
                store.trim(LOG, {partition: random.randrange(end)})
            if full:
                _fill_up(store, random)


def _append_numbered(store: Store, random: Random, partition: int, mode: Durability) -> int:
    """Another process may append at the same time: then the number is not that of the offset."""
    count = random.choice((1, 1, 3, random.randrange(1, 60)))
    padding = b"." * random.choice((0, 10, 900))
    if count == 1:
        # Nobody knows the offset before; the record says who wrote it and how it goes on.
        where = store.append(LOG, b"one" + padding, partition=partition, durability=mode)
        return where.offset + 1
    values = [b"%d/%d" % (number, count) + padding for number in range(count)]
    (written,) = store.append_many(LOG, values, partition=partition, durability=mode)
    return written.base_offset + count


def _fill_up(store: Store, random: Random) -> None:
    """Let the next writes be refused for want of room, as by a quota; then have room again."""
    if random.random() < 0.2:
        limit = random.randrange(1, 64) * 1024
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            for _ in range(5):
                with contextlib.suppress(StorageError):
                    store.append_many(LOG, [b"0/2" + b"." * 9000, b"1/2"], partition=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def full_disk(pipe: int, path: str, seed: int) -> None:
    """As `appends`, with a disk that is full now and then."""
    appends(pipe, path, seed, full=True)


def small_disk(pipe: int, path: str, seed: int) -> None:
    """Fill the disk up, make room by a trim, and again. For a file system of a few MiB."""
    random = Random(seed)
    ballast = Path(path).parent / "ballast"
    with contextlib.suppress(OSError):
        ballast.unlink(missing_ok=True)
    with millstream.open(path) as store:
        tell(pipe, *READY)
        while True:
            with contextlib.suppress(OSError):
                ballast.write_bytes(bytes(BALLAST_BYTES))
            try:
                while True:
                    end = _append_numbered(store, random, 0, random.choice(MODES))
                    tell(pipe, 0, end)
            except StorageError as error:
                assert error.errno == errno.ENOSPC, error  # noqa: PT017 - what it is for
            ballast.unlink(missing_ok=True)
            with contextlib.suppress(StorageError):
                store.trim(LOG, {0: store.offsets(LOG)[0].end})
                store.roll(LOG, 0)


def transactions(pipe: int, path: str, seed: int) -> None:
    """The same numbers to several partitions, with an offset and a checkpoint, all or nothing."""
    random = Random(seed)
    with millstream.open(path) as store, contextlib.closing(store.own("writer")) as owner:
        number = int(store.checkpoint("number") or b"0")
        tell(pipe, *READY)
        while True:
            with store.transaction(owner=owner) as transaction:
                count = random.randrange(1, 4)
                values = [b"%d" % (number + each) for each in range(count)]
                for value in values:
                    transaction.append(FIRST, value)
                transaction.append_many(SECOND, values, partition=random.randrange(PARTITIONS))
                if random.random() < 0.3:
                    transaction.abort()
                    continue
                transaction.commit_offsets(GROUP, {TopicPartition(FIRST, 0): number})
                transaction.put_checkpoint("number", b"%d" % (number + count))
            number += count
            tell(pipe, number)


def single_batches(pipe: int, path: str, seed: int) -> None:
    """Transactions of one batch, decided while it is synced; appends between them are not."""
    random = Random(seed)
    with millstream.open(path) as store, contextlib.closing(store.own("single")) as owner:
        number = len(_committed_singles(store))
        tell(pipe, *READY)
        while True:
            count = random.randrange(1, 5)
            with store.transaction(owner=owner) as transaction:
                transaction.append_many(SINGLE, [b"%d" % (number + each) for each in range(count)])
                if random.random() < 0.3:
                    store.append(SINGLE, WEAK, durability="os")
                if random.random() < 0.2:
                    transaction.abort()
                    continue
            number += count
            tell(pipe, number)


def _committed_singles(store: Store) -> list[int]:
    values = [record.value or b"" for record in store.read(SINGLE)]
    return [int(value) for value in values if value != WEAK]


def compacts(pipe: int, path: str, seed: int) -> None:
    """Write numbers under a few keys while the topic is compacted, without pause."""
    random = Random(seed)
    with millstream.open(path) as store:
        end = store.offsets(KEYED)[0].end
        tell(pipe, *READY)
        compactor = threading.Thread(target=_compact, args=(store,), daemon=True)
        compactor.start()
        while compactor.is_alive():
            keys = [b"%d" % random.randrange(KEYS) for _ in range(random.randrange(1, 30))]
            values = [
                None if random.random() < 0.1 else b"%d" % (end + number)
                for number in range(len(keys))
            ]
            store.append_many(KEYED, values, keys, durability=random.choice(MODES))
            end += len(keys)
            tell(pipe, end)
            if random.random() < 0.2:
                store.roll(KEYED, 0)
    raise AssertionError("the compaction has ended")


def _compact(store: Store) -> None:
    while True:
        store.compact(KEYED)


def columns(pipe: int, path: str, seed: int) -> None:
    """Number the rows of two topics of columns by their offsets, one of them compacted."""
    random = Random(seed)
    with millstream.open(path) as store:
        plain, keyed = (store.offsets(topic)[0].end for topic in (FRAMES, FRAMES_KEYED))
        tell(pipe, *READY)
        while True:
            plain = _append_rows(store, random, FRAMES, plain)
            keyed = _append_rows(store, random, FRAMES_KEYED, keyed)
            tell(pipe, plain, keyed)
            chance = random.random()
            if chance < 0.2:
                store.roll(random.choice((FRAMES, FRAMES_KEYED)), 0)
            elif chance < 0.4:
                store.compact(FRAMES_KEYED)


def _append_rows(store: Store, random: Random, topic: str, start: int) -> int:
    """As columns or as JSON; the next number."""
    count = random.choice((1, 3, random.randrange(1, 200)))
    numbers = range(start, start + count)
    keys = [random.randrange(KEYS) for _ in numbers]
    texts = [random.choice((None, "", "." * 40)) for _ in numbers]
    mode = random.choice(MODES)
    if random.random() < 0.7:
        rows = {"number": numbers, "key": keys, "text": texts}
        (written,) = store.append_columns(topic, rows, durability=mode)
    else:
        values = [
            msgspec.json.encode(Numbered(*row)) for row in zip(numbers, keys, texts, strict=True)
        ]
        (written,) = store.append_many(topic, values, durability=mode)
    assert written.base_offset == start
    return start + count


def members(pipe: int, path: str, seed: int) -> None:
    """Process numbers as a member of a group; report each before it is committed."""
    random = Random(seed)
    with (
        millstream.open(path) as store,
        store.consumer(WORK, group=GROUP, start="earliest") as consumer,
    ):
        tell(pipe, *READY)
        while True:
            records = consumer.poll(max_records=random.randrange(1, 9), timeout=0.05)
            for record in records:
                tell(pipe, record.offset, int(record.value or b"-1"))
            if not records:
                tell(pipe, *IDLE)
            consumer.commit()


def writes_rows(pipe: int, path: str, seed: int) -> None:
    """Copy numbers to a topic and to a table, as a member of a group: each exactly once."""
    random = Random(seed)
    with (
        millstream.open(path) as store,
        store.consumer(WORK, group=ROWS, start="earliest") as consumer,
    ):
        tell(pipe, *READY)
        while True:
            records = consumer.poll(max_records=random.randrange(1, 9), timeout=0.05)
            if not records:
                tell(pipe, *IDLE)
                continue
            with store.transaction(database=f"{path}/{DATABASE}") as transaction:
                rows = [(int(record.value or b"-1"),) for record in records]
                transaction.execute_many("INSERT INTO numbers (number) VALUES (?)", rows)
                transaction.append_many(COPIED, [record.value for record in records])
                if random.random() < 0.2:
                    transaction.abort()
                    consumer.seek((WORK, 0), records[0].offset)
                    continue
                transaction.commit_offsets(ROWS, {TopicPartition(WORK, 0): records[-1].offset + 1})
            tell(pipe, records[-1].offset + 1)


def workers(pipe: int, path: str, seed: int) -> None:
    """Take jobs from a queue; report each before it is acknowledged."""
    random = Random(seed)
    with millstream.open(path) as store, store.queue(WORK, group=JOBS, visibility="5m") as queue:
        tell(pipe, *READY)
        while True:
            jobs = queue.get_many(random.randrange(1, 9), timeout=0.05)
            if not jobs:
                tell(pipe, *IDLE)
            for job in jobs:
                tell(pipe, job.offset, int(job.value or b"-1"))
                if random.random() < 0.9:
                    queue.ack(job)
                else:
                    queue.nack(job)


def jobs_in_rows(pipe: int, path: str, seed: int) -> None:
    """Ack jobs together with their results and rows; report how many at once."""
    random = Random(seed)
    with millstream.open(path) as store, store.queue(WORK, group=BOTH, visibility="5m") as queue:
        tell(pipe, *READY)
        while True:
            jobs = queue.get_many(random.randrange(1, 9), timeout=0.05)
            if not jobs:
                tell(pipe, *IDLE)
                continue
            with store.transaction(database=f"{path}/{DATABASE}") as transaction:
                rows = [(int(job.value or b"-1"),) for job in jobs]
                transaction.execute_many("INSERT INTO jobs (number) VALUES (?)", rows)
                transaction.append_many(RESULTS, [job.value for job in jobs])
                transaction.ack(*jobs)
                if random.random() < 0.2:
                    transaction.abort()
            if transaction.state == "aborted":
                queue.nack(*jobs)
            else:
                tell(pipe, *[len(jobs), jobs[0].offset])


def backs_up(pipe: int, path: str, seed: int) -> None:
    """Take one backup after another."""
    with millstream.open(path) as store:
        tell(pipe, *READY)
        number = 0
        while True:
            store.backup(f"{path}.{seed}.{number}")
            tell(pipe, number)
            number += 1


ROLES: dict[str, Callable[..., None]] = {
    each.__name__: each
    for each in (
        *(appends, full_disk, small_disk, transactions, single_batches, compacts, columns),
        *(members, writes_rows, workers, jobs_in_rows, backs_up),
    )
}
ANYWHERE = sorted(set(ROLES) - {"small_disk"})
ALONE = frozenset({"transactions", "single_batches", "compacts", "columns", "backs_up"})
"""Roles of which there is one process at a time."""


# --- checks ------------------------------------------------------------------------------------


def check_log(store: Store, reports: Sequence[Report]) -> None:
    """Offsets without a hole, batches whole, and all that was acknowledged."""
    ends = dict.fromkeys(range(PARTITIONS), 0)
    for partition, end, *_ in reports:
        ends[partition] = max(ends[partition], end)
    for partition, end in ends.items():
        records = list(store.read(LOG, partition=partition))
        start, stop = store.offsets(LOG)[partition]
        assert stop >= end, (partition, stop, end)
        assert list(range(start, stop)) == [record.offset for record in records]
        _check_whole([(record.value or b"").rstrip(b".") for record in records])


def _check_whole(values: list[bytes]) -> None:
    """Batches are there from their first to their last record; the oldest may have lost some."""
    position = 0
    while position < len(values):
        if values[position] == b"one":
            position += 1
            continue
        number, count = map(int, values[position].split(b"/"))
        assert number == 0 or position == 0, values[position]
        rest = [b"%d/%d" % (each, count) for each in range(number, count)]
        assert rest == values[position : position + len(rest)]
        position += len(rest)


def check_transactions(store: Store, reports: Sequence[Report]) -> None:
    """All of a transaction or nothing, in every place it wrote to."""
    count = int(store.checkpoint("number") or b"0")
    expected = list(range(count))
    assert count >= max([number for number, *_ in reports], default=0)
    assert expected == [int(record.value or b"") for record in store.read(FIRST)]
    assert expected == [int(record.value or b"") for record in store.read(SECOND)]


def check_single_batches(store: Store, reports: Sequence[Report]) -> None:
    """Every batch is there as a whole or not at all, and those acknowledged are there."""
    found = _committed_singles(store)
    assert list(range(len(found))) == found
    assert len(found) >= max([number for number, *_ in reports], default=0)
    ends = {number for number, *_ in reports}
    batches = [
        [int(record.value or b"") for record in batch.records() if record.value != WEAK]
        for batch in store.read(SINGLE).batches()
    ]
    starts = {numbers[0] for numbers in batches if numbers}
    assert {end for end in ends if 0 < end < len(found)} <= starts


def check_keyed(store: Store, reports: Sequence[Report]) -> None:
    """Of each key at least the last record, and no record but those written."""
    end = store.offsets(KEYED)[0].end
    assert end >= max([number for number, *_ in reports], default=0)
    last: dict[bytes | None, int] = {}
    for record in store.read(KEYED):
        assert record.value in {None, b"%d" % record.offset}
        assert record.offset > last.get(record.key, -1)
        last[record.key] = record.offset
    for number in range(KEYS):
        key = b"%d" % number
        found = store.latest(KEYED, key, tombstone=True)
        assert (found.offset if found else None) == last.get(key)


def check_columns(store: Store, reports: Sequence[Report]) -> None:
    """Every row is there, as a record and in columns; of a compacted key at least the last."""
    for place, topic in enumerate((FRAMES, FRAMES_KEYED)):
        end = store.offsets(topic)[0].end
        assert end >= max([report[place] for report in reports], default=0)
        records = list(store.read(topic))
        rows = [msgspec.json.decode(record.value or b"", type=Numbered) for record in records]
        assert [record.offset for record in records] == [row.number for row in rows]
        table = store.read(topic, columns=["_offset", "number", "key"]).arrow().read_all()
        assert table["_offset"].to_pylist() == table["number"].to_pylist()
        assert table["key"].to_pylist() == [row.key for row in rows]
        if topic == FRAMES:
            assert list(range(end)) == [row.number for row in rows]
            continue
        last = {record.key: record.offset for record in records}
        assert {record.key for record in records} == {b"%d" % row.key for row in rows}
        for number in range(KEYS):
            found = store.latest(topic, b"%d" % number)
            assert (found.offset if found else None) == last.get(b"%d" % number)
        if rows:
            assert max(last.values()) == end - 1  # the last record of all is the last of its key


def check_members(store: Store, reports: Sequence[Report]) -> None:
    """Nothing was committed that was not processed before."""
    processed = _processed(reports)
    if GROUP in store.groups():
        committed = store.group(GROUP).offsets.get(TopicPartition(WORK, 0), 0)
        assert processed >= set(range(committed)), committed


def check_rows(store: Store, reports: Sequence[Report]) -> None:
    """Rows, records and the offset of the group say the same, whoever died between them."""
    copied = [int(record.value or b"") for record in store.read(COPIED)]
    with contextlib.closing(sqlite3.connect(f"{store._engine.storage.root}/{DATABASE}")) as rows:
        found = rows.execute("SELECT number FROM numbers ORDER BY rowid").fetchall()
    assert list(range(len(copied))) == copied
    assert copied == [number for (number,) in found]
    assert len(copied) >= max([number for number, *_ in reports], default=0)
    if ROWS in store.groups():
        assert len(copied) == store.group(ROWS).offsets.get(TopicPartition(WORK, 0), 0)


def check_jobs_in_rows(store: Store, reports: Sequence[Report]) -> None:
    """A job that is done has one row and one result, any other none."""
    results = [int(record.value or b"") for record in store.read(RESULTS)]
    with contextlib.closing(sqlite3.connect(f"{store._engine.storage.root}/{DATABASE}")) as rows:
        found = [number for (number,) in rows.execute("SELECT number FROM jobs ORDER BY rowid")]
    assert sorted(results) == sorted(found)
    assert len(set(found)) == len(found)
    assert len(found) >= sum(count for count, *_ in reports if count > 0)
    for info in store.queues(WORK):
        if info.group == BOTH:
            assert store.offsets(WORK)[0].end - info.depth == len(found)


def check_jobs(store: Store, reports: Sequence[Report]) -> None:
    """No job is done that was not processed."""
    processed = _processed(reports)
    for info in store.queues(WORK):
        if info.group == BOTH:
            continue
        done = store.offsets(WORK)[0].end - info.depth
        assert 0 <= done <= len(processed), (done, len(processed))


def _processed(reports: Sequence[Report]) -> set[int]:
    work = [report for report in reports if report != IDLE]
    assert all(offset == value for offset, value, *_ in work)
    return {offset for offset, *_ in work}


def check_backups(store: Store, reports: Sequence[Report]) -> None:
    """Another backup can be taken, and what a killed one has left is gone after it."""
    del reports
    root = Path(store._engine.storage.root)
    target = root.parent / f"{root.name}.check"
    store.backup(target)
    assert not (root / "backup.stage").exists()
    restored = root.parent / f"{root.name}.restored"
    assert restore(target, restored).ok
    for directory in (target, restored):
        _remove(directory)


def _remove(directory: Path) -> None:
    import shutil  # noqa: PLC0415 - tests only

    shutil.rmtree(directory)


def go_on(store: Store) -> None:
    """Write to every partition, as whoever comes next would."""
    for partition in range(PARTITIONS):
        store.append(LOG, b"one", partition=partition)
    end = store.offsets(WORK)[0].end
    store.append_many(WORK, [b"%d" % (end + number) for number in range(20)])
    end = store.offsets(KEYED)[0].end
    store.append(KEYED, b"%d" % end, key=b"0")


CHECKS: dict[str, Callable[[Store, Sequence[Report]], None]] = {
    "appends": check_log,
    "full_disk": check_log,
    "small_disk": check_log,
    "transactions": check_transactions,
    "single_batches": check_single_batches,
    "compacts": check_keyed,
    "columns": check_columns,
    "members": check_members,
    "writes_rows": check_rows,
    "workers": check_jobs,
    "jobs_in_rows": check_jobs_in_rows,
    "backs_up": check_backups,
}
