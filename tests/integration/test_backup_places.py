"""Where backups and restored stores may not be, and what a restore leaves that fails."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import millstream
from millstream import DataError, UsageError, restore


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
