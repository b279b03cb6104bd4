"""Handles of files whose names are gone are closed by a thread, or at once if there are many."""

from __future__ import annotations

import pytest

from millstream.errors import StorageError
from millstream.freeing import HELD_MAX, Freeing
from millstream.storage import File
from millstream.testing import MemoryStorage


def opened(storage: MemoryStorage, name: str) -> File:
    file = storage.open(name, "x")
    storage.remove(name)
    return file


def is_closed(file: File) -> bool:
    try:
        file.size()
    except StorageError:
        return True
    return False


def test_handles_are_held_until_their_release_and_closed_beside_what_follows() -> None:
    storage, freeing = MemoryStorage(), Freeing()
    first, second = opened(storage, "a"), opened(storage, "b")
    freeing.hold(first)
    assert not is_closed(first)
    freeing.release()
    freeing.hold(second)
    freeing.wait()
    assert [is_closed(first), is_closed(second)] == [True, False]
    freeing.release()
    freeing.wait()
    assert is_closed(second)


def test_more_handles_than_are_held_are_closed_at_once() -> None:
    storage, freeing = MemoryStorage(), Freeing()
    files = [opened(storage, str(number)) for number in range(HELD_MAX + 2)]
    for file in files:
        freeing.hold(file)
    assert [is_closed(file) for file in files] == [False] * HELD_MAX + [True] * 2
    freeing.release()
    freeing.wait()
    assert all(map(is_closed, files))


@pytest.mark.parametrize("times", [0, 1])
def test_to_release_and_to_wait_for_nothing_is_fine(times: int) -> None:
    freeing = Freeing()
    for _ in range(times):
        freeing.release()
    freeing.wait()
