"""What keeps a store in order, as its users see it: segments, trim, retention, compaction."""

from __future__ import annotations

from collections.abc import Mapping

from . import maintenance, topics
from .compactor import CompactionResult
from .engine import Engine
from .retention import SegmentInfo
from .retention_schedule import RetentionReport


class StoreUpkeep:
    """The part of `Store` that removes what is not kept. Thread-safe."""

    _engine: Engine

    def trim(
        self, topic: str, before: Mapping[int, int], *, dry_run: bool = False
    ) -> RetentionReport:
        """Forget the records of each partition below the given offset; files go when empty.

        The report names the segments that go, and those of the topic's `retention_groups` which
        have not read everything below: a trim does not wait for them. With `dry_run` nothing
        happens, and the store may be read-only.

        Raises:
            UsageError: An offset is no whole number, or negative; nothing is trimmed.
            UnknownTopicError: No such topic or partition; nothing is trimmed.
        """
        return maintenance.trim(self._engine, topic, before, dry_run=dry_run)

    def roll(self, topic: str, partition: int) -> None:
        """Seal the active segment and start a new one."""
        topics.roll(self._engine, topic, partition)

    def segments(self, topic: str, partition: int) -> list[SegmentInfo]:
        """The segments of a partition, oldest first."""
        return self._engine.log(topic, partition).files.infos()

    def apply_retention(
        self, topic: str | None = None, *, dry_run: bool = False
    ) -> RetentionReport:
        """Remove what the topics' configuration no longer keeps; also done in the background.

        Args:
            topic: Only this one.
            dry_run: Only say what would go, and which groups hold back what.

        >>> import millstream
        >>> with millstream.open(":memory:") as store:
        ...     info = store.create_topic("t", retention_groups=["billing"])
        ...     metadata = store.append("t", b"a")
        ...     store.roll("t", 0)
        ...     [(each.group, each.offset) for each in store.apply_retention().blockers]
        [('billing', 0)]
        """
        return maintenance.retain_all(self._engine, topic, dry_run=dry_run)

    def compact(
        self, topic: str, partition: int | None = None, *, dry_run: bool = False
    ) -> list[CompactionResult]:
        """Compact a topic now, with `compact=True`; also done in the background when it pays.

        Rolls first, so that of every key one record is left of all that has been acknowledged,
        up to the first open transaction. Appends and reads go on meanwhile. Offsets stay; those
        of removed records are gaps.

        Args:
            topic: Configured with `compact=True`.
            partition: Only this one.
            dry_run: Only say what would be removed from the sealed segments; also read-only.

        Raises:
            UsageError: The topic is not compacted.
            LockedError: Another process is compacting it.
            DataError: Damage; nothing from there on was changed.
            StorageError: The disk is full: a segment is written anew before the old one goes.

        >>> import millstream
        >>> with millstream.open(":memory:") as store:
        ...     info = store.create_topic("t", compact=True)
        ...     for value in (b"1", b"2"):
        ...         metadata = store.append("t", value, key=b"k")
        ...     [result.removed_records for result in store.compact("t")]
        [1]
        """
        return maintenance.compact(self._engine, topic, partition, dry_run=dry_run)
