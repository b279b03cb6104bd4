"""Scenario 85: bits of the catalog have changed that nobody wrote. Never wrong data, never a crash.

SQLite verifies nothing but its own structure; the checksum of each page does the rest. By default
some bits are flipped, by the seed; `MILLSTREAM_CATALOG_FLIPS=all` flips each of them as SQLite
meets it, and some thousand as a store does, which takes four times as long for one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import apsw
import pytest

import millstream
from millstream import DataError, Store, TopicPartition, UnavailableError, repair
from millstream.database_copy import page_checksums
from millstream.database_file import CHECKED_VFS

ALL = os.environ.get("MILLSTREAM_CATALOG_FLIPS") == "all"
FLIPS = 2000 if ALL else int(os.environ.get("MILLSTREAM_CATALOG_FLIPS", "120"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with something in most tables."""
    path = tmp_path_factory.mktemp("whole") / "store"
    with millstream.open(path) as store:
        store.create_topic("t", partitions=2, retention="7d")
        store.create_topic("other")
        for number in range(6):
            store.append("t", b"%d" % number, partition=number % 2)
        for number in range(4):
            with store.transaction() as transaction:
                transaction.append("t", b"transaction %d" % number, partition=0)
                transaction.commit_offsets("g", {TopicPartition("t", 0): number})
                transaction.put_checkpoint("c", b"%d" % number * 50)
                if number % 2:
                    transaction.abort()
        store.trim("t", {1: 1})
        with store.queue("other") as queue:
            store.append("other", b"job")
            queue.ack(*queue.get_many(1, timeout=0))
    assert [path / "catalog.db"] == sorted(path.glob("catalog.db*"))
    return path


def content(store: Store) -> dict[str, object]:
    return {
        "topics": store.topics(internal=True),
        "offsets": store.offsets("t"),
        "records": list(store.read("t")),
        "checkpoint": store.checkpoint("c"),
        "groups": {name: store.group(name).offsets for name in store.groups()},
    }


def places(size: int) -> list[int]:
    """Bits to flip: some of the header, of the beginning and of the rest of every page."""
    random = Random(SEED)
    bits = [random.randrange(100 * 8) for _ in range(FLIPS // 4)]
    pages = range(0, size, 4096)
    while len(bits) < FLIPS:
        page = random.choice(pages)
        length = random.choice((200, 4096, 4096))
        bits.append(8 * page + random.randrange(8 * length))
    return sorted(set(bits))


def everything_of(filename: str) -> tuple[list[object], bool]:
    """All rows of all tables as SQLite reads them with the checksums of pages; if all is well."""
    flags = apsw.SQLITE_OPEN_READONLY
    with contextlib.closing(apsw.Connection(filename, flags=flags, vfs=CHECKED_VFS)) as connection:
        names = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
        tables = [str(name) for (name,) in connection.execute(names)]
        rows: list[object] = [
            connection.execute(f'SELECT * FROM "{each}"').fetchall() for each in tables
        ]
        return rows, [("ok",)] == connection.execute("PRAGMA quick_check").fetchall()


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """The file with one bit changed; as it was afterwards."""
    position, shift = divmod(bit, 8)
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, position)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << shift]), position)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), byte, position)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(8))
def test_scenario_85_every_bit_of_a_catalog(whole: Path, tmp_path: Path, share: int) -> None:
    """Refused as SQLite reads it; what is not, is nothing to a store or refused by it."""
    path = tmp_path / "store/catalog.db"
    shutil.copytree(whole, path.parent)
    with millstream.open(path.parent, read_only=True) as store:  # the first loads the checksums
        expected = content(store)
    good = everything_of(str(path))
    assert good[1]
    bits = range(share, path.stat().st_size * 8, 8)
    refused = unseen = 0
    for bit in bits if ALL else itertools.chain(bits[:100], Random(SEED).sample(bits, 150)):
        with flipped(path, bit):
            try:
                if good == everything_of(str(path)):
                    unseen += 1
            except apsw.Error:
                refused += 1
                continue
            try:
                with millstream.open(path.parent, read_only=True) as store:
                    assert expected == content(store), bit
            except DataError:
                refused += 1
    assert refused > 20 * unseen


@pytest.mark.slow
def test_scenario_85_bits_of_a_catalog(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(whole, path)
    with millstream.open(path, read_only=True) as store:
        expected = content(store)
    good = (path / "catalog.db").read_bytes()
    refused = 0
    for number, bit in enumerate(places(len(good))):
        position, shift = divmod(bit, 8)
        bad = good[:position] + bytes([good[position] ^ 1 << shift]) + good[position + 1 :]
        for left in path.glob("catalog.db*"):
            left.unlink()
        (path / "catalog.db").write_bytes(bad)
        try:
            with millstream.open(path, read_only=bool(number % 8)) as store:
                assert expected == content(store), bit
                # In a page that nobody has read so far.
                assert "catalog" in {each.kind for each in store.verify(deep=True).findings}, bit
        except DataError:
            refused += 1
    assert refused > FLIPS // 3


@pytest.mark.parametrize("page", range(0, 40, 7))
def test_scenario_85_a_catalog_with_a_rotten_page_is_repaired(
    whole: Path, tmp_path: Path, page: int
) -> None:
    path = tmp_path / "store"
    shutil.copytree(whole, path)
    with millstream.open(path, read_only=True) as store:
        plain = [r for r in store.read("t") if not (r.value or b"").startswith(b"transaction")]
    data = bytearray((path / "catalog.db").read_bytes())
    data[(page * 4096 + 1000) % len(data)] ^= 4
    (path / "catalog.db").write_bytes(data)

    assert [] == repair(path).refused

    with millstream.open(path) as store:
        found = [r for r in store.read("t") if not (r.value or b"").startswith(b"transaction")]
        # That the oldest record of partition 1 was trimmed is known to the catalog alone.
        assert plain == [r for r in found if (r.partition, r.offset) != (1, 0)]
        assert store.verify(deep=True).ok
    assert page_checksums(str(path / "catalog.db"))


def test_a_catalog_without_checksums_is_used_as_it_is_and_its_copies_have_them(
    tmp_path: Path,
) -> None:
    """One of an earlier version."""
    golden = Path(__file__).parent.parent / "compat/golden/v1"
    shutil.copytree(golden, tmp_path / "store")
    with millstream.open(tmp_path / "store") as store:
        store.append("none", b"new", partition=0)
        store.backup(tmp_path / "copy")
        records = [record.value for record in store.read("none")]
    assert not page_checksums(str(tmp_path / "store/catalog.db"))
    assert page_checksums(str(tmp_path / "copy/catalog.db"))
    with millstream.open(tmp_path / "copy") as store:
        assert records == [record.value for record in store.read("none")]
        assert store.verify(deep=True).ok


def test_without_the_library_a_checked_catalog_is_only_read(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    shutil.copytree(whole, path)
    monkeypatch.setattr("millstream.database_file.checked_vfs", lambda: None)
    with millstream.open(path, read_only=True) as store:
        assert ["other", "t"] == [info.name for info in store.topics()]
    with pytest.raises(UnavailableError, match="wheel"):
        millstream.open(path)
    with millstream.open(tmp_path / "plain") as store:
        store.create_topic("t")
        store.append("t", b"1")
    assert not page_checksums(str(tmp_path / "plain/catalog.db"))


def test_databases_of_others_are_left_alone(tmp_path: Path) -> None:
    """The library stays loaded, but is neither the default nor asked for them."""
    with millstream.open(tmp_path / "store"):
        assert CHECKED_VFS != apsw.vfs_names()[0]
        other = apsw.Connection(str(tmp_path / "other.db"))
        other.execute("CREATE TABLE t (a)").fetchall()
        assert 0 == other.reserve_bytes("main")
        other.close()
