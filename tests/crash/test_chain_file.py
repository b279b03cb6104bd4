"""The file of what many segments say is replaced, and the power fails at any step of that.

`test_power_loss.py` crashes whole lives of stores with such files; here is each step of one swap.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from damaged_log import DIRECTORY, read_all
from simulated_stores import abandon, log_of, open_quietly

from millstream import segment_list
from millstream.chain_file import CHAIN_NAME, known_segments, write_chain
from millstream.segment import base_offset_of
from millstream.testing import FaultPlan, Keep, MemoryStorage, SimulatedCrash

if TYPE_CHECKING:
    from matrix import Cell

    from millstream import Store
    from millstream.retention import SegmentInfo

OLD, NEW = 3, 6
"""So many segments are sealed when the file is written, and when it is replaced."""


def sealed(store: Store) -> tuple[int, list[SegmentInfo]]:
    """Uid of the partition and what is known of its sealed segments."""
    files = log_of(store).files
    files.infos()
    assert files._known.last is not None
    return files._known.last.partition_uid, list(files._known.sealed)


@pytest.mark.parametrize("keep", ["none", "random", "all"])
@pytest.mark.parametrize("before", [False, True], ids=["the first", "in place of another"])
def test_power_fails_at_each_step_of_a_swap(
    cell: Cell, before: bool, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_list, "UNSAVED_MIN", 1 << 20)  # only the test writes one
    whole = MemoryStorage()
    store = open_quietly(whole)
    store.create_topic("t", compression=cell.codec)
    for number in range(NEW):
        store.append("t", b"%d" % number)
        store.roll("t", 0)
        if before and number == OLD - 1:
            write_chain(whole, DIRECTORY, *sealed(store))
            whole.sync_directory(DIRECTORY)
    partition_uid, infos = sealed(store)
    abandon(store)
    expected = [b"%d" % number for number in range(NEW)]
    kinds: list[str] = []
    for step in range(100):
        storage = whole.crash(keep="all")
        start = len(storage.trace)
        storage.faults = FaultPlan(crash_at=start + step)
        with contextlib.suppress(SimulatedCrash):
            write_chain(storage, DIRECTORY, partition_uid, infos)
        done = not storage.is_dead
        kinds = [kind for kind, _ in storage.trace[start:]]
        storage = storage.crash(seed=step, keep=keep)
        for _ in range(cell.restarts):
            bases = sorted(
                base
                for name in storage.list(DIRECTORY)
                if (base := base_offset_of(name)) is not None
            )
            # The old one, the new one or none: never a mixture.
            assert known_segments(storage, DIRECTORY, bases) in ([], infos[: OLD - 1], infos[:-1])
            store = open_quietly(storage)
            assert expected == read_all(store)
            assert not [name for name in storage.list(DIRECTORY) if name.endswith(".tmp")]
            abandon(store)
            storage = storage.crash(keep="none")
        if done:
            break
    assert {"create", "write", "rename"} <= set(kinds), kinds
    assert keep != "all" or CHAIN_NAME in storage.list(DIRECTORY)
