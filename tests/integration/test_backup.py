"""Backups taken while others write, and stores made from them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import pyarrow as pa
import pytest
import zstandard
from backed_up import at_work, check_copy, create
from simulated_stores import abandon, open_quietly

import millstream
from millstream import (
    DataError,
    FormatVersionError,
    LockedError,
    StorageError,
    Store,
    TopicPartition,
    UsageError,
    restore,
)
from millstream.cli.main import main
from millstream.database_file import CHECKED_VFS
from millstream.storage import PosixStorage
from millstream.testing import MemoryStorage

COPIES = int(os.environ.get("MILLSTREAM_BACKUPS", "3"))


def fill(store: Store) -> None:
    store.create_topic("t", partitions=2, compression="lz4", retention="7d")
    for number in range(9):
        store.append("t", b"%d" % number, key=b"k%d" % number, partition=number % 2)
        if number % 4 == 3:
            store.roll("t", 0)
    with store.transaction() as transaction:
        transaction.append("t", b"committed", partition=0)
        transaction.commit_offsets("g", {TopicPartition("t", 0): 3})
        transaction.put_checkpoint("c", b"state")
    with store.transaction() as transaction:
        transaction.append("t", b"aborted", partition=0)
        transaction.abort()


def content(store: Store) -> dict[str, object]:
    return {
        "topics": store.topics(),
        "records": [tuple(record) for record in map(as_tuple, store.read("t"))],
        "checkpoint": store.checkpoint("c"),
        "offsets": store.group("g").offsets,
    }


def as_tuple(record: millstream.Record) -> tuple[object, ...]:
    return (record.partition, record.offset, record.timestamp_ms, record.key, record.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with millstream.open(tmp_path / "store") as store:
        fill(store)
    return tmp_path / "store"


@pytest.fixture(params=["copy", "copy.tar.zst"])
def backup(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> Path:
    target = tmp_path / request.param
    with millstream.open(path) as store:
        store.backup(target)
    return target


# --- the way there and back --------------------------------------------------------------------


def test_a_restored_store_is_the_same(path: Path, backup: Path, tmp_path: Path) -> None:
    with millstream.open(path) as store:
        expected = content(store)

    report = restore(backup, tmp_path / "restored")

    assert report.ok
    assert report.deep
    with millstream.open(tmp_path / "restored") as store:
        assert expected == content(store)
        assert 6 == store.append("t", b"goes on", partition=0).offset - 1
    with millstream.open(path) as store:
        assert expected == content(store)
    assert {"store", backup.name, "restored"} == {each.name for each in tmp_path.iterdir()}
    assert "backup.stage" not in {each.name for each in path.iterdir()}


@pytest.mark.parametrize("name", ["copy", "copy.tar.zst"])
def test_columns_are_kept_by_a_backup_and_restored_without_pyarrow(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = pa.schema([pa.field("k", pa.int32(), nullable=False), pa.field("x", pa.float32())])
    wide = pa.schema([pa.field("k", pa.int64(), nullable=False), pa.field("x", pa.float64())])
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("rows", schema=narrow, key="k", compact=True, compression="zstd")
        store.append_columns("rows", {"k": [n % 5 for n in range(500)], "x": range(500)})
        store.compact("rows")
        store.configure_topic("rows", schema=wide.append(pa.field("note", pa.string())))
        store.append_columns("rows", {"k": [1 << 40, 3], "note": ["new", None]})
        with store.transaction() as transaction:
            transaction.append("rows", b'{"k":9}')
        records = list(map(as_tuple, store.read("rows")))
        table = store.read("rows").arrow().read_all()
        info = store.topic("rows")
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "pyarrow", None)
            store.backup(tmp_path / name)
            assert restore(tmp_path / name, tmp_path / "restored").ok
    assert [8, 500] == [len(records), records[5][1]]

    with millstream.open(tmp_path / "restored") as store:
        assert info == store.topic("rows")
        assert records == list(map(as_tuple, store.read("rows")))
        assert table.equals(store.read("rows").arrow().read_all())
        store.append_columns("rows", {"k": [4], "note": ["goes on"]})
        assert b"goes on" in (store.latest("rows", b"4").value or b"")
        assert store.verify(deep=True).ok


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("later", "reason"), [(False, "were whole when it was taken"), (True, "")])
def test_a_backup_whose_rows_have_rotten_is_refused(
    tmp_path: Path, columns: bool, later: bool, reason: str, deep: bool
) -> None:
    """Its last batch, too: in a store that would be the trace of an append nobody was told of."""
    schema = pa.schema([("n", pa.string())])
    rows = [b'{"n":"value %03d"}' % number for number in range(1000)]
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("rows", schema=schema if columns else None)
        store.append_many("rows", rows)
        if later:
            store.append("rows", rows[0])
        store.backup(tmp_path / "copy")
    (segment,) = (tmp_path / "copy/topics/rows/0").glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[data.index(b"value 500")] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DataError, match=f"damaged.*{reason}.*repair") as caught:
        restore(tmp_path / "copy", tmp_path / "restored", deep=deep)
    assert ("rows", 0, 128) == (caught.value.topic, caught.value.partition, caught.value.position)
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "cut", "header"])
def test_a_rotten_backup_that_is_opened_as_it_is_is_not_cut(
    tmp_path: Path, damage: str, read_only: bool
) -> None:
    """In a store the damaged last batch is cut; a backup has promised all that it holds."""
    copy = tmp_path / "copy"
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")
        store.append("t", b"first")
        store.roll("t", 0)
        store.append("t", b"value last")
        store.backup(copy)
    segment = max((copy / "topics/t/0").glob("*.segment"))
    data = bytearray(segment.read_bytes())
    at = data.index(b"value last")
    if damage == "flipped":
        data[at] ^= 1
    elif damage == "header":
        data[at - 100] ^= 1
    else:
        data[at:] = bytes(len(data) - at) if damage == "zeroed" else b""
    segment.write_bytes(data)
    for _ in range(2):
        with (
            millstream.open(copy, read_only=read_only) as store,
            pytest.raises(DataError, match=r"is a backup.*Use another") as caught,
        ):
            list(store.read("t"))
        assert ("t", 0) == (caught.value.topic, caught.value.partition)
        assert bytes(data) == segment.read_bytes()


def test_a_backup_that_was_gone_on_with_is_a_store_like_others(tmp_path: Path) -> None:
    """What was written to it since may be torn, and is cut as everywhere."""
    copy = tmp_path / "copy"
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")
        store.append("t", b"first")
        store.backup(copy)
    (segment,) = (copy / "topics/t/0").glob("*.segment")
    with segment.open("ab") as file:
        file.write(b"torn")
    for number in range(2):
        with millstream.open(copy) as store:
            assert 1 + number == store.append("t", b"more").offset
            assert [b"first", *[b"more"] * (number + 1)] == [r.value for r in store.read("t")]


def test_a_store_that_lost_what_a_group_had_read_is_restored(tmp_path: Path) -> None:
    """Offsets behind the end of a log are the trace of a power failure, not of a damaged backup."""
    storage = MemoryStorage()
    store = open_quietly(storage, durability="os")
    store.create_topic("t")
    store.append("t", b"kept", durability="sync")
    store.append("t", b"lost")
    group = store.consumer("t", group="g", start="earliest")
    assert 2 == len(group.poll(timeout=1))
    group.commit()
    abandon(store)
    with open_quietly(storage.crash(keep="none")) as store:
        assert [b"kept"] == [record.value for record in store.read("t")]
        store.backup(tmp_path / "copy")

    restore(tmp_path / "copy", tmp_path / "restored")

    with millstream.open(tmp_path / "restored") as store:
        assert 2 == store.append("t", b"new").offset


def test_a_directory_is_a_store_and_shares_sealed_segments(path: Path, tmp_path: Path) -> None:
    with millstream.open(path) as store:
        report = store.backup(tmp_path / "copy")
        expected = content(store)
        store.append("t", b"later", partition=0)
    sealed = sorted((path / "topics/t/0").glob("*.segment"))[:-1]
    assert 2 == len(sealed)
    for file in sealed:
        assert file.samefile(tmp_path / "copy" / file.relative_to(path))
    assert sum(file.stat().st_size for file in sealed) == report.shared_bytes
    assert (2, 4) == (report.partitions, report.segments)
    with millstream.open(tmp_path / "copy", read_only=True) as store:
        assert expected == content(store)
    with millstream.open(tmp_path / "copy") as store:
        store.append("t", b"other", partition=0)
    with millstream.open(path) as store:
        assert b"later" == list(store.read("t", partition=0))[-1].value


def test_a_backup_to_another_file_system(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(source: str, target: str, *, original: Callable[..., None] = os.rename) -> None:
        if ".segment" in source:
            raise OSError(errno.EXDEV, "other file system")
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with millstream.open(path) as store:
        report = store.backup(tmp_path / "copy")
        expected = content(store)
    assert 0 == report.shared_bytes
    restore(tmp_path / "copy", tmp_path / "restored")
    with millstream.open(tmp_path / "restored") as store:
        assert expected == content(store)


@pytest.mark.parametrize("name", ["copy", "copy.tzst"])
def test_a_store_in_memory_is_kept_by_a_backup(tmp_path: Path, name: str) -> None:
    with millstream.open(":memory:") as store:
        fill(store)
        store.backup(tmp_path / name)
        expected = content(store)
    restore(tmp_path / name, tmp_path / "store", deep=False)
    with millstream.open(tmp_path / "store") as store:
        assert expected == content(store)


def test_an_open_transaction_is_aborted_in_the_copy(path: Path, tmp_path: Path) -> None:
    with millstream.open(path) as store, store.transaction() as transaction:
        transaction.append("t", b"open", partition=0)
        store.backup(tmp_path / "copy")
    with millstream.open(tmp_path / "copy") as store:
        values = [record.value for record in store.read("t", partition=0)]
        assert b"open" not in values
        store.append("t", b"more", partition=0)
        with store.transaction() as transaction:
            transaction.append("t", b"new", partition=0)
        assert [*values, b"more", b"new"] == [r.value for r in store.read("t", partition=0)]


@pytest.mark.slow
@pytest.mark.crash
def test_every_backup_beside_writers_is_one_moment(tmp_path: Path) -> None:
    """Transactions, a pipeline, retention and compaction in processes of their own."""
    path = tmp_path / "store"
    create(path)
    counts = []
    roles = ("transactions", "produce", "churn", "process")
    with at_work(path, *roles), millstream.open(path) as store:
        for number in range(COPIES):
            name = f"{number}.tar.zst" if number % 3 == 2 else f"{number}"
            store.backup(tmp_path / name)
            restore(tmp_path / name, tmp_path / "restored", deep=bool(number % 2))
            counts.append(check_copy(tmp_path / "restored"))
            shutil.rmtree(tmp_path / "restored")
    assert sorted(counts) == counts
    assert counts[0] < counts[-1]
    with millstream.open(path) as store:
        assert store.verify(deep=True).ok


# --- what is refused ---------------------------------------------------------------------------


def test_a_backup_replaces_nothing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with millstream.open(path) as store, pytest.raises(UsageError, match="exists"):
        store.backup(tmp_path / "there")
    with millstream.open(path, read_only=True) as store, pytest.raises(UsageError, match="read"):
        store.backup(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_restore_replaces_nothing(backup: Path, path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        restore(backup, path)
    with pytest.raises(UsageError, match="no backup"):
        restore(tmp_path / "nothing", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    restore(backup, tmp_path / "empty")
    with millstream.open(tmp_path / "empty") as store:
        assert ["t"] == [info.name for info in store.topics()]


def test_one_backup_at_a_time(path: Path, tmp_path: Path) -> None:
    lock = PosixStorage(path).lock("backup.lock")
    assert lock.try_acquire()
    with millstream.open(path) as store:
        with pytest.raises(LockedError, match="another backup"):
            store.backup(tmp_path / "copy")
        lock.close()
        store.backup(tmp_path / "copy")


def test_a_backup_that_fails_leaves_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = min((path / "topics/t/1").glob("*.segment"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[:30] + b"x" + whole[31:])
    (path / "tail").unlink()
    with millstream.open(path) as store:
        with pytest.raises(DataError):
            store.backup(tmp_path / "copy")
        segment.write_bytes(whole)

        def refuse(*_: object) -> None:
            raise StorageError("no space", errno=errno.ENOSPC, path="x")

        with monkeypatch.context() as patched:
            patched.setattr("millstream.backup.copy_between", refuse)
            with pytest.raises(StorageError, match="no space"):
                store.backup(tmp_path / "copy")
        assert {"store"} == {each.name for each in tmp_path.iterdir()}
        store.backup(tmp_path / "copy")


@pytest.mark.parametrize(
    "damage", ["manifest", "catalog", "empty", "segment", "short", "schema", "json"]
)
def test_an_incomplete_directory_is_refused(path: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    with millstream.open(path) as store:
        store.backup(copy)
    segment = max((copy / "topics/t/0").glob("*.segment"))
    manifest = copy / "backup.json"
    if damage == "manifest":
        manifest.unlink()
    elif damage == "catalog":
        (copy / "catalog.db").unlink()
    elif damage == "empty":
        (copy / "catalog.db").write_bytes(b"")
    elif damage == "segment":
        segment.unlink()
    elif damage == "short":
        segment.write_bytes(segment.read_bytes()[:-1])
    elif damage == "json":
        manifest.write_bytes(b"[]")
    else:
        manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(FormatVersionError if damage == "schema" else DataError):
        restore(copy, tmp_path / "restored")
    assert {"store", "copy"} == {each.name for each in tmp_path.iterdir()}


def test_a_rotten_backup_is_refused(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with millstream.open(path) as store:
        store.backup(copy)
    segment = max((copy / "topics/t/0").glob("*.segment"))
    data = bytearray(segment.read_bytes())
    data[330] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DataError, match="checksum") as caught:
        restore(copy, tmp_path / "restored")
    assert ("t", 0) == (caught.value.topic, caught.value.partition)
    assert not (tmp_path / "restored").exists()


def test_catalog_and_log_of_different_backups_are_refused(path: Path, tmp_path: Path) -> None:
    """An older catalog, a newer one, and that of another store."""
    with millstream.open(path) as store:
        store.backup(tmp_path / "older")
    for number in range(3):
        with millstream.open(path) as store:
            for partition in range(2):
                with store.transaction() as transaction:
                    transaction.append("t", b"%d" % number, partition=partition)
            if number == 2:
                store.backup(tmp_path / "newer")
    with millstream.open(tmp_path / "other") as store:
        fill(store)
        store.backup(tmp_path / "foreign")
    for log, catalog in (("newer", "older"), ("older", "newer"), ("newer", "foreign")):
        mixed = tmp_path / f"{log}-{catalog}"
        shutil.copytree(tmp_path / log, mixed)
        shutil.copy(tmp_path / catalog / "catalog.db", mixed / "catalog.db")
        with pytest.raises(DataError):
            restore(mixed, tmp_path / "restored", deep=False)


# --- hostile archives --------------------------------------------------------------------------

Members = list[tuple[str, bytes, dict[str, object]]]


def repack(archive: Path, change: Callable[[Members], object]) -> None:
    raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive.read_bytes())).read()
    members: Members = []
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            members.append((member.name, file.read() if file else b"", {}))
    change(members)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    archive.write_bytes(zstandard.ZstdCompressor().compress(buffer.getvalue()))


def rewrite_manifest(members: Members, edit: Callable[[dict[str, object]], object]) -> None:
    document = json.loads(members[0][1])
    edit(document)
    members[0] = (members[0][0], json.dumps(document).encode(), {})


HOSTILE: dict[str, Callable[[Members], object]] = {
    "outside": lambda members: rewrite_manifest(
        members, lambda document: document.update(files=[["../../x.segment", 5]])
    ),
    "absolute": lambda members: rewrite_manifest(
        members, lambda document: document.update(files=[["/x.segment", 5]])
    ),
    "no segment": lambda members: rewrite_manifest(
        members, lambda document: document.update(files=[["catalog.db", 5]])
    ),
    "twice": lambda members: rewrite_manifest(
        members, lambda document: document.update(files=[["a/x.segment", 5]] * 2)
    ),
    "negative": lambda members: rewrite_manifest(
        members, lambda document: document.update(files=[["a/x.segment", -5]])
    ),
    "larger": lambda members: members.__setitem__(2, (members[2][0], members[2][1] + b"more", {})),
    "link": lambda members: members.__setitem__(
        2, (members[2][0], b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})
    ),
    "other order": lambda members: members.insert(2, members.pop()),
    "other first": lambda members: members.insert(0, members.pop()),
    "missing": lambda members: members.pop(),
    "empty": lambda members: members.clear(),
    "long header": lambda members: members.insert(
        0, ("x", b"", {"pax_headers": {"comment": "x" * (3 << 20)}})
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_no_backup_wrote_is_refused(path: Path, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "copy.tar.zst"
    with millstream.open(path) as store:
        store.backup(archive)
    repack(archive, HOSTILE[kind])
    with pytest.raises(DataError):
        restore(archive, tmp_path / "restored")
    assert {"store", "copy.tar.zst"} == {each.name for each in tmp_path.iterdir()}


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "checksum", "empty"])
def test_a_damaged_archive_is_refused(path: Path, tmp_path: Path, damage: str) -> None:
    archive = tmp_path / "copy.tar.zst"
    with millstream.open(path) as store:
        store.backup(archive)
    data = archive.read_bytes()
    middle = len(data) // 2
    # Damage can make the content longer, so that the checksum comes later than what is looked for.
    content = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    longer = zstandard.ZstdCompressor(write_checksum=True).compress(content + bytes(20480))
    archive.write_bytes(
        {
            "cut": data[:middle],
            "garbage": b"garbage" * 100,
            # Of a single bit the same content may come.
            "flipped": data[:middle] + bytes(255 - byte for byte in data[middle:-8]) + data[-8:],
            "checksum": longer[:-1] + bytes([longer[-1] ^ 1]),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DataError):
        restore(archive, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


# --- beside threads of the same process, and on the command line -------------------------------


def test_backups_beside_threads_that_roll_and_remove(tmp_path: Path) -> None:
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("t", segment_bytes="4KiB", retention_bytes="8KiB")
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                store.append("t", b"%06d" % number * 50)
                number += 1
                if number % 20 == 0:
                    store.apply_retention()
                if number % 100 == 50:
                    store.create_topic(f"n{number}", exist_ok=True)
                    store.append(f"n{number}", b"x")
                if number % 100 == 99:
                    store.delete_topic(f"n{number - 49}")

        store.append("t", b"first")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(12):
                store.backup(tmp_path / f"{number}")
        finally:
            stop.set()
            writer.join()
    for number in range(12):
        assert restore(tmp_path / f"{number}", tmp_path / f"r{number}").ok
        with millstream.open(tmp_path / f"r{number}") as copy:
            offsets = [record.offset for record in copy.read("t")]
            assert list(range(offsets[0], offsets[-1] + 1)) == offsets


def test_backup_and_restore_on_the_command_line(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_DIR", str(path))
    archive = str(tmp_path / "copy.tar.zst")
    assert 0 == main(["backup", archive, "--json"])
    document = json.loads(capfd.readouterr().out)
    assert (archive, 2) == (document["path"], document["partitions"])
    assert 2 == main(["backup", archive])
    assert 2 == main(["restore", archive])
    restored = str(tmp_path / "restored")
    assert 0 == main(["--dir", restored, "restore", archive])
    assert "restored" in capfd.readouterr().err
    assert 0 == main(["--dir", restored, "verify", "--deep"])
    Path(archive).write_bytes(b"")
    assert 4 == main(["--dir", restored + "2", "restore", archive])
    assert 2 == main(["--dir", restored + "2", "restore", str(tmp_path / "none")])
    assert 5 == main(["--dir", str(tmp_path / "none"), "backup", str(tmp_path / "b")])


def test_the_catalog_of_an_archive_is_no_file_beside_it(path: Path, tmp_path: Path) -> None:
    with millstream.open(path) as store:
        store.backup(tmp_path / "copy.tar.zst")
    assert {"store", "copy.tar.zst"} == {each.name for each in tmp_path.iterdir()}
    with contextlib.closing(apsw.Connection(str(path / "catalog.db"), vfs=CHECKED_VFS)) as catalog:
        assert [("ok",)] == catalog.execute("PRAGMA integrity_check").fetchall()
