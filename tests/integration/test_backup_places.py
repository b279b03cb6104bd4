"""Where backups and restored stores may not be, and what a restore leaves that fails."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import millstream
from millstream import (
    DataError,
    LockedError,
    PosixStorage,
    StorageError,
    UnavailableError,
    UsageError,
    restore,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")
        store.append("t", b"record")
    return tmp_path / "store"


@pytest.mark.parametrize("place", ["{0}/new", "{0}/topics/t/new", "link/new", "{0}/../now"])
def test_a_restore_over_its_backup_is_refused(path: Path, tmp_path: Path, place: str) -> None:
    source = tmp_path / "now.partial"  # where a restore to "now" would write first
    with millstream.open(path) as store:
        store.backup(source)
    (tmp_path / "link").symlink_to(source)
    before = sorted(source.rglob("*"))

    with pytest.raises(UsageError, match="choose another place"):
        restore(source, tmp_path / place.format(source))

    assert before == sorted(source.rglob("*"))
    restore(source, tmp_path / "restored")


def test_a_backup_is_not_made_where_the_store_is(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy.partial"
    for directory in (place, place / "inner"):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(path, directory)
        with millstream.open(directory) as store:
            with pytest.raises(UsageError, match="where the store is"):
                store.backup(tmp_path / "copy")
            assert store.verify(deep=True).ok
        assert (directory / "catalog.db").exists()


def test_a_restore_that_cannot_remove_its_rest_says_why_it_failed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with millstream.open(path) as store:
        store.backup(tmp_path / "copy")
    (tmp_path / "copy" / "catalog.db").unlink()

    def refuse(path: str) -> None:
        raise OSError(errno.EIO, "refused", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        with pytest.raises(DataError):
            restore(tmp_path / "copy", tmp_path / "new")

    assert ["new.partial"] == [each for each in os.listdir(tmp_path) if each.startswith("new")]
    with pytest.raises(DataError):
        restore(tmp_path / "copy", tmp_path / "new")
    assert ["copy", "store"] == sorted(os.listdir(tmp_path))


def others(kind: str, place: Path) -> None:
    """Something that is no unfinished backup."""
    if kind == "link":
        place.symlink_to(place.parent / "store")
    elif kind == "file":
        place.write_bytes(b"theirs")
    else:
        place.mkdir()
        (place / "theirs").touch()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_not_an_unfinished_backup_stays(path: Path, tmp_path: Path, kind: str) -> None:
    with millstream.open(path) as store:
        store.backup(tmp_path / "backup")
        for name in ("copy", "copy.tar.zst", "new"):
            others(kind, tmp_path / f"{name}.partial")
        before = sorted(tmp_path.glob("*.partial/*"))
        for call in (
            lambda: store.backup(tmp_path / "copy"),
            lambda: store.backup(tmp_path / "copy.tar.zst"),
            lambda: restore(tmp_path / "backup", tmp_path / "new"),
        ):
            with pytest.raises(UsageError, match=r"partial(,| is there,) where"):
                call()
        assert before == sorted(tmp_path.glob("*.partial/*"))
        assert 3 == len(list(tmp_path.glob("*.partial")))


def test_two_processes_do_not_make_the_same_place(path: Path, tmp_path: Path) -> None:
    with millstream.open(path) as store:
        store.backup(tmp_path / "backup")
    making = tmp_path / "new.partial"
    making.mkdir()
    (making / "new").touch()
    lock = PosixStorage(str(making)).lock("millstream.lock")
    assert lock.try_acquire()
    with pytest.raises(LockedError, match=r"another process .*new"):
        restore(tmp_path / "backup", tmp_path / "new")
    assert (making / "new").exists()
    lock.close()
    restore(tmp_path / "backup", tmp_path / "new")
    assert not making.exists()


def test_a_link_to_where_a_store_is_restored_stays_one(path: Path, tmp_path: Path) -> None:
    with millstream.open(path) as store:
        store.backup(tmp_path / "backup")
    (tmp_path / "disk").mkdir()
    for name, target in (("a", "disk"), ("b", "disk2")):
        (tmp_path / name).symlink_to(tmp_path / target)
        restore(tmp_path / "backup", tmp_path / name)
        assert (tmp_path / name).is_symlink()
        with millstream.open(tmp_path / target) as store:
            assert [b"record"] == [record.value for record in store.read("t")]


def test_what_a_killed_backup_left_is_removed(path: Path, tmp_path: Path) -> None:
    stage = path / "backup.stage/topics/t/0"
    stage.mkdir(parents=True)
    os.link(min((path / "topics/t/0").glob("*.segment")), stage / "x.segment")
    for name in ("copy", "restored"):
        (tmp_path / f"{name}.partial/new/topics").mkdir(parents=True)
        (tmp_path / f"{name}.partial/new/topics/junk").touch()
        (tmp_path / f"{name}.partial/millstream.lock").touch()
    (tmp_path / "copy.tzst.partial").mkdir()
    with millstream.open(path) as store:
        store.backup(tmp_path / "copy")
        store.backup(tmp_path / "copy.tzst")
    assert not (path / "backup.stage").exists()
    restore(tmp_path / "copy", tmp_path / "restored")
    assert [] == list(tmp_path.glob("*.partial"))


def test_a_handle_on_a_store_that_was_moved_away_does_not_write_to_its_successor(
    tmp_path: Path,
) -> None:
    place, gone = tmp_path / "store", tmp_path / "gone"
    with millstream.open(place) as store:
        store.create_topic("t", segment_bytes=4096)
        store.append("t", b"first")
        store.backup(tmp_path / "backup")
        place.rename(gone)
        restore(tmp_path / "backup", place)
        store.append("t", b"to the old one")
        with pytest.raises(StorageError, match="was moved, removed or replaced"):
            store.roll("t", 0)
        with pytest.raises(UnavailableError, match="open it again"):
            store.append("t", b"x")
        with millstream.open(place) as successor:
            successor.append("t", b"second")
    for directory, last in ((place, b"second"), (gone, b"to the old one")):
        with millstream.open(directory) as store:
            assert [b"first", last] == [record.value for record in store.read("t")]
            assert store.verify(deep=True).ok


def test_a_store_that_was_moved_away_can_be_closed(tmp_path: Path) -> None:
    place, gone = tmp_path / "store", tmp_path / "gone"
    with millstream.open(place) as store:
        store.create_topic("t")
        with store.transaction() as transaction:  # has a lock file of its own
            transaction.append("t", b"first")
        place.rename(gone)
    with millstream.open(gone) as store, store.transaction() as transaction:
        transaction.append("t", b"second")


def test_a_topic_that_was_moved_elsewhere_by_a_link_can_be_deleted(
    path: Path, tmp_path: Path
) -> None:
    (path / "topics/t").rename(tmp_path / "elsewhere")
    (path / "topics/t").symlink_to(tmp_path / "elsewhere")
    with millstream.open(path) as store:
        store.append("t", b"more")
        store.delete_topic("t")
        assert not (path / "topics/t").is_symlink()
        store.create_topic("t")
        assert 0 == store.append("t", b"new").offset
