"""Operators whose state is larger than memory: over real files, with a limit, and killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import spilled_operators
from spilled_operators import DONE, KEYS, KILLED, KINDS, TEXT, fill
from zygote import Report, Zygote

import millstream

ROOM_BYTES = 40 << 20
"""What a run may take beside what it takes with nothing in its state."""
KILL_KEYS = 1_500

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's"),
]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """Processes whose threads share one heap, so that address space tells what they keep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_ARENA_MAX", "1")
        started = Zygote(spilled_operators.__name__)
    with started:
        yield started


def run(
    zygote: Zygote,
    home: Path,
    kind: str,
    *,
    spills: bool = True,
    room_bytes: int = 0,
    kill_at: int = 0,
    flush: bool = False,
) -> list[Report]:
    """All that a process reports until it ends."""
    role = f"{kind} {'sqlite' if spills else 'memory'}"
    with zygote.spawn(role, home, room_bytes, kill_at, flush) as child:
        return child.hear(2)


def has_room(zygote: Zygote, home: Path, kind: str) -> bool:
    """Whether the state has room in memory.

    Without, the interpreter or a library in C ends, one way or another.
    """
    try:
        return [DONE] == run(zygote, home, kind, spills=False, room_bytes=ROOM_BYTES)
    except AssertionError:
        return False


def results(home: Path) -> list[bytes | None]:
    with millstream.open(home, read_only=True) as store:
        return [record.value for record in store.read("out")]


@kinds
def test_state_may_be_larger_than_memory(tmp_path: Path, zygote: Zygote, kind: str) -> None:
    fill(tmp_path, kind, KEYS)
    assert not has_room(zygote, tmp_path, kind)
    assert [DONE] == run(zygote, tmp_path, kind, room_bytes=ROOM_BYTES)
    # A restart reads all of the state, and ends what waits for time.
    assert [DONE] == run(zygote, tmp_path, kind, room_bytes=ROOM_BYTES, flush=True)
    written = [msgspec.json.decode(value or b"") for value in results(tmp_path)]
    expected = [[f"key {key}", len(f"{key} {TEXT}")] for key in range(KEYS)]
    assert expected == sorted(written, key=lambda row: int(row[0][4:]))


@pytest.mark.crash
@kinds
def test_operators_that_spill_go_on_after_kill_9(tmp_path: Path, zygote: Zygote, kind: str) -> None:
    for name, spills in [("killed", True), ("whole", False)]:
        home = tmp_path / name
        fill(home, kind, KILL_KEYS)
        if spills:
            for kill_at in (1, 2, 1):
                assert [KILLED] == run(zygote, home, kind, kill_at=kill_at)
        assert [DONE] == run(zygote, home, kind, spills=spills, flush=True)
    assert KILL_KEYS == len(results(tmp_path / "whole"))
    assert results(tmp_path / "whole") == results(tmp_path / "killed")
