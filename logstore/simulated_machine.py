"""The machine under a `MemoryStorage`: numbers the operations, and dies or fails as planned.

Holds what all handles of one storage share. What the disk keeps is in simulated_disk.py, the plan
in faults.py, the storage protocol itself in memory.py.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, NoReturn

from .faults import FaultPlan, SimulatedCrash
from .simulated_disk import NameTable
from .storage_protocols import storage_error

if TYPE_CHECKING:
    import apsw

ROOT = ":memory:"

_catalog_numbers = itertools.count(1)


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class Machine:
    """What all handles of one `MemoryStorage` share: the disk, the plan, who is alive."""

    def __init__(self, faults: FaultPlan, names: NameTable, *, crashable: bool) -> None:
        self.faults = faults
        self.names = names
        self.crashable = crashable
        # Taken by itself: an interrupt on the way out of `Condition.__enter__` would leave it held.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.bells = defaultdict[str, threading.Lock](_held_lock)
        self.trace: list[tuple[str, str]] = []
        self.operations = 0
        self._counts: Counter[str] = Counter()
        self.dead = False
        self.catalog_filename = f"file:/millstream-{next(_catalog_numbers)}?vfs=memdb"
        self.catalog_keeper: apsw.Connection | None = None
        self.synced_catalog: bytes | None = None
        """What the catalog held before its first commit that was not synced, nor any since."""
        self._random = Random(faults.seed)  # noqa: S311 - repeatable faults, no secrets

    @contextlib.contextmanager
    def operation(self, kind: str, path: str, action: str) -> Iterator[None]:
        """Run one operation, unless dead, subject to the plan. Lock held."""
        index = self.begin(kind, path, action)
        yield
        self.end(index)

    def begin(self, kind: str, path: str, action: str) -> int:
        """Count the operation, and crash or fail it if that is planned. Returns its number."""
        self.ensure_alive()
        index = self.operations
        self.operations += 1
        if self.crashable:
            self.trace.append((kind, path))
        if self.faults.crash_at == index:
            self.die()
        self._fail_if_planned(kind, path, action, index)
        return index

    def end(self, index: int) -> None:
        """Crash after the operation if that is planned."""
        if self.faults.crash_after == index:
            self.die()

    def begin_read(self, path: str, action: str, position: int | None = None) -> None:
        """Fail a read if that is planned."""
        self.ensure_alive()
        self._fail_if_planned("read", path, action, None, position)

    def _fail_if_planned(
        self, kind: str, path: str, action: str, index: int | None, position: int | None = None
    ) -> None:
        nth = self._counts[kind]
        self._counts[kind] += 1
        number = self.faults.error_for(kind, index=index, nth=nth)
        if number:
            raise storage_error(action, ROOT, number, path, position)

    def beginning(self, content: bytes) -> bytes:
        """Some of the first bytes, for a write that does not get through."""
        return content[: self._random.randrange(len(content))]

    def pieces(self, content: bytes) -> list[bytes]:
        """The content in the pieces in which it is written."""
        if not self.faults.short_writes or len(content) < 2:
            return [content]
        cuts = sorted({self._random.randrange(1, len(content)) for _ in range(3)})
        return [content[a:b] for a, b in itertools.pairwise([0, *cuts, len(content)])]

    def die(self) -> NoReturn:
        """Lose power."""
        self.dead = True
        with self.lock:
            self.changed.notify_all()
        raise SimulatedCrash("the simulated machine lost power")

    def ensure_alive(self) -> None:
        """Refuse everything once dead."""
        if self.dead:
            raise SimulatedCrash("the simulated machine has no power: take storage.crash()")
