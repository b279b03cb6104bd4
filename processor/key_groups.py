"""Operators whose state falls into groups, one for each key, that can leave memory and come back.

What such an operator does at a row concerns the group of the row's key, and what it does as W rises
the groups that wait for it. So a group may be elsewhere while it is not needed: it can be taken
from state records, it says what it waits for, and it can be forgotten. Where groups are meanwhile,
and when they come back, is said in spilled_groups.py; in memory all of them stay.

Levels here are those the operator judges by: W of the sources without its `delay_ms`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from millstream import DataError

from .state import StateEntry, StateRecords
from .stateful import StatefulOperator

Path: TypeAlias = tuple[Any, ...]


class Filed(NamedTuple):
    """To what a path of state belongs."""

    key: Any
    """The group; None for a path that removes a bucket."""
    bucket: Path | None
    """The shorter path that removes this one with others, of any group, or None."""


Places: TypeAlias = tuple[Sequence[Any], Sequence[Path | None] | None]
"""The group and the bucket of each path; None for the buckets where no path has one."""


class Wake(NamedTuple):
    """What a group waits for."""

    due: int | None
    """The level by which it must be in memory; None: it waits for its next row alone."""
    last: int | None
    """The level that ends all that it waits for; see `StatefulOperator.required_level`."""
    wall_ms: int | None = None
    """The wall clock time by which it must be in memory, UTC ms."""


class GroupedOperator(StatefulOperator):
    """An operator whose state falls into groups. Not thread-safe."""

    @property
    def divisible(self) -> bool:
        """Whether W may rise in several steps instead of one without changing any result."""
        return True

    ends_whole: bool = True
    """Whether all groups with something in a bucket are in memory when it ends."""

    removes_single: bool = False
    """Whether state may lose a path of a bucket without the bucket."""

    def ended(self) -> Iterable[Path]:
        """The buckets that are over, of which `changes` will say so."""
        return ()

    @abstractmethod
    def filed(self, path: Path) -> Filed:
        """To what a path belongs: one of a state record, or one that removes a bucket.

        Raises:
            DataError: It is no path of this operator.
        """

    def placed(self, paths: Sequence[Path]) -> Places:
        """The same of many paths. Errors as `filed`."""
        filed = list(map(self.filed, paths))
        return [each.key for each in filed], [each.bucket for each in filed]

    @abstractmethod
    def records(self, keys: Sequence[object]) -> StateRecords:
        """All that groups hold, as `changes` has it; for those that have not changed since.

        Raises:
            UsageError: Something cannot be kept in state.
        """

    @abstractmethod
    def take(self, entries: Sequence[StateEntry]) -> None:
        """Bring whole groups into memory, of which it has nothing, as state has them.

        Raises:
            DataError: Not the state of this operator.
        """

    @abstractmethod
    def wakes(self, keys: Sequence[object]) -> Iterable[Wake | None]:
        """What each of the groups waits for; None for one that waits for nothing but rows."""

    @abstractmethod
    def changed(self) -> set[object]:
        """The groups of which state has not all as it is: those that `changes` has not given."""

    @property
    @abstractmethod
    def changed_count(self) -> int:
        """How many records `changes` would give, about."""

    @abstractmethod
    def forget(self, keys: Sequence[object]) -> None:
        """Let go of groups that have not changed."""

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """See `StatefulOperator.restore`."""
        self.take(self._alive(entries))

    def _alive(self, entries: Iterable[StateEntry]) -> list[StateEntry]:
        """What records leave in the end, in the order it first came."""
        buckets: dict[Path | None, dict[Path, list[Any]]] = {}
        for path, value in entries:
            bucket = self.bucket_of(path, value)
            if value is not None:
                buckets.setdefault(bucket, {})[path] = value
            elif bucket == path:
                buckets.pop(bucket, None)
            else:
                buckets.get(bucket, {}).pop(path, None)
        return [StateEntry(*each) for bucket in buckets.values() for each in bucket.items()]

    def bucket_of(self, path: Path, value: object) -> Path | None:
        """See `Filed.bucket`.

        Raises:
            DataError: It is no path of this operator, or one that holds nothing ever.
        """
        bucket = self.filed(path).bucket
        if bucket is not None:
            removes = bucket == path
            if removes != (value is None) and (removes or not self.removes_single):
                raise DataError(f"not the state of {self.name!r}: {path!r} {value!r}")
        return bucket
