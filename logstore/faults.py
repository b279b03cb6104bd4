"""What goes wrong in a test, and when: the plan a `MemoryStorage` consults. No I/O, no clock.

An *operation* is anything that changes the storage. Operations are numbered from 0 in the order in
which they happen; `MemoryStorage.trace` lists them, so that a test can run its work once, count,
and then crash at each of them.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from .errors import UsageError

FaultKey: TypeAlias = int | str | tuple[str, int]
"""Operation number | kind (all of them) | (kind, n): the n-th of that kind, from 0."""

OPERATION_KINDS = frozenset(
    {
        "create",
        "make_directory",
        "remove",
        "remove_directory",
        "rename",
        "sync",
        "sync_directory",
        "truncate",
        "write",
    }
)
"""Kinds in the trace, besides announced ones, which contain a dot ("catalog.commit")."""

_NEEDS_SPACE = frozenset({"create", "make_directory", "truncate", "write", "catalog.commit"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class SimulatedCrash(BaseException):
    """The simulated machine lost power: the storage object that raises it is dead for good.

    Not an `Exception`, so that no handler survives what a power failure would not let survive.
    Take `MemoryStorage.crash()` to see what is left on the disk.
    """


@dataclass(slots=True)
class FaultPlan:
    """Faults for a `MemoryStorage`. May be changed while the storage is in use.

    >>> plan = FaultPlan(fail={("sync", 2): errno.EIO})  # the third sync fails, others succeed
    >>> plan.error_for("sync", index=9, nth=2) == errno.EIO
    True
    """

    seed: int = 0
    """Decides how writes are cut where `short_writes` or `partial_writes` cut them."""

    crash_at: int | None = None
    """Raise `SimulatedCrash` instead of this operation, and from then on at every use."""

    crash_after: int | None = None
    """The same once this operation has taken effect. At an announced step (`sync_point`) the
    step itself is still taken; the crash is raised at the next use."""

    fail: dict[FaultKey, int] = field(default_factory=dict)
    """Errno by operation number, kind or (kind, n). ENOSPC and EDQUOT stay: once they were hit,
    whatever needs space fails until `clear()`. "read" is a kind too, though not an operation."""

    short_writes: bool = False
    """Every write reaches the file in several pieces, each an operation of its own."""

    partial_writes: bool = False
    """A write that fails leaves a beginning of its bytes, as a disk does that fills up."""

    _full: int = field(default=0, init=False)
    _next: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for key in self.fail:
            _check_kind(key)

    def fail_next(self, kind: str, number: int) -> None:
        """Let the next operation of this kind, and only that, fail with errno `number`."""
        _check_kind(kind)
        self._next[kind] = number

    def clear(self) -> None:
        """From now on nothing fails or crashes: space was freed, the device repaired."""
        self.crash_at = self.crash_after = None
        self.fail.clear()
        self._next.clear()
        self._full = 0

    @property
    def is_full(self) -> bool:
        """True once an ENOSPC or EDQUOT was hit, until `clear()`."""
        return self._full != 0

    def error_for(self, kind: str, *, index: int | None, nth: int) -> int:
        """Errno with which this operation has to fail, or 0.

        Args:
            kind: Kind of the operation, or "read".
            index: Number of the operation; None for a read.
            nth: How many of this kind there were before.
        """
        number = self._next.pop(kind, 0)
        if not number:
            number = _first(self.fail, (kind, nth), kind, index)
        if number in _FULL:
            self._full = number
        return number or (self._full if kind in _NEEDS_SPACE else 0)


def _first(fail: Mapping[FaultKey, int], *keys: FaultKey | None) -> int:
    for key in keys:
        if key is not None and key in fail:
            return fail[key]
    return 0


def _check_kind(key: FaultKey) -> None:
    kind = key[0] if isinstance(key, tuple) else key
    if isinstance(kind, str) and kind != "read" and "." not in kind and kind not in OPERATION_KINDS:
        known = ", ".join(sorted(OPERATION_KINDS))
        raise UsageError(f"unknown kind of operation {kind!r}: use read, {known}")
