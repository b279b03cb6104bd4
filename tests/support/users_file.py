"""A SQLite database of the user's in a file, which can be put back to how it was.

And work with it that is cut by a failing power: the store is simulated, the file is real. So it is
saved at each place of a crash, and put back for each of the outcomes there.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from millstream.testing import CrashCase, MemoryStorage, crash_cases

JOURNALS = ("delete", "wal")


class UsersFile:
    """One table `rows` of a `number`. Not for use while the store has the file open."""

    def __init__(self, path: Path, journal: str) -> None:
        self.path = path
        self.journal = journal

    def create(self) -> None:
        self._remove()
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"PRAGMA journal_mode = {self.journal}")
            connection.execute("CREATE TABLE rows (number)")

    def numbers(self) -> list[int]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT number FROM rows ORDER BY rowid").fetchall()
        return [number for (number,) in rows]

    def save(self) -> None:
        self._copy(self.path.parent, self.path.parent / "saved")

    def put_back(self) -> None:
        self._remove()
        self._copy(self.path.parent / "saved", self.path.parent)

    def _copy(self, source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for left in target.glob(f"{self.path.name}*"):
            left.unlink()
        for file in source.glob(f"{self.path.name}*"):
            shutil.copy(file, target)

    def _remove(self) -> None:
        for file in self.path.parent.glob(f"{self.path.name}*"):
            file.unlink()


def cut_everywhere(
    database: UsersFile,
    new_store: Callable[[MemoryStorage], None],
    work: Callable[[MemoryStorage], None],
    *,
    seed: int,
    every: int,
) -> Iterator[CrashCase]:
    """The power fails at each operation of `work`, in every manner; the file is as it was then."""

    def start() -> MemoryStorage:
        database.create()
        storage = MemoryStorage()
        new_store(storage)
        return storage

    at = -1
    for case in crash_cases(work, start=start, seeds=(seed,), every=every):
        if case.index == at:
            database.put_back()
        else:
            at = case.index
            database.save()
        yield case
