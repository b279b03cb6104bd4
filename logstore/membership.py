"""One member of a consumer group: joins, keeps its lease, notices the dead, hands over, leaves.

A group lives wholly in the catalog (`group_catalog.py`); there is no coordinator. Every member
looks after it while it polls: it re-reads the catalog when the tail word `groups_version` has
changed, asks at most every 200 ms for the locks of the others, and removes those whose lock is
free or whose lease ran out. So a killed member's partitions move within a fraction of a second, as
soon as any other member polls, and nothing is left to clean up.

A member that is alive keeps its partitions until it hands them over itself. What it commits is
checked against the generation of its ownership, so a member that lost a partition without knowing
commits nothing.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import sys
from collections.abc import Mapping
from typing import Final

from .catalog import GroupOffset
from .config import check_group_name, checked_place, whole_number
from .engine import Engine
from .errors import FencedError, OffsetOutOfRangeError, UsageError
from .group_catalog import GroupCatalog, GroupPartition, MemberRow
from .queue_catalog import refuse_queue
from .record import TopicPartition

LIVENESS_INTERVAL_SECONDS: Final = 0.2
LEASE_MS: Final = 300_000
"""A member that is alive but has not polled for this long loses its partitions."""
_PROBES_MAX: Final = 8
"""Locks asked for at one check; the members of a large group take turns."""

_logger = logging.getLogger("millstream")


def checked_offsets(offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """What a user wants to commit, if it is next offsets of partitions at all; else UsageError."""
    if not isinstance(offsets, Mapping):
        raise UsageError(
            "offsets are given as {TopicPartition(topic, partition): offset}, not"
            f" {offsets!r:.60}"
        )
    checked: dict[TopicPartition, int] = {}
    for place, offset in offsets.items():
        checked[checked_place(place)] = whole_number(offset, "an offset")
    return checked


def check_committable(engine: Engine, place: TopicPartition, offset: int) -> None:
    """Refuse to commit an offset past the end: records that come there would be skipped.

    Raises:
        OffsetOutOfRangeError: It is past the log end, or negative.
        UnknownTopicError: No such topic or partition.
    """
    end = engine.log(*place).visible_offset
    if not 0 <= offset <= end:
        raise OffsetOutOfRangeError(
            f"cannot commit offset {offset}: the log ends at {end}",
            topic=place.topic,
            partition=place.partition,
            offset=offset,
        )


class Membership:
    """A member of `group` subscribing to `topics`. Joins at construction. For one thread at a time.

    Args:
        engine: The open store.
        group: Name of the group; made if there is none.
        topics: Topics whose partitions it reads.

    Raises:
        UsageError: The store is open read-only, or the group is a pipeline or that of a queue.
    """

    def __init__(self, engine: Engine, group: str, topics: frozenset[str]) -> None:
        engine.ensure_writable()
        self.group = check_group_name(group)
        refuse_queue(engine.catalog, group)
        if engine.catalog.is_pipeline(group):
            raise UsageError(
                f"{group!r} is a pipeline, whose offsets are its own: choose another group"
            )
        self._client = os.path.basename(sys.argv[0]) or "python"
        self.member_id = f"{self._client}-{secrets.token_hex(6)}"
        self.owned: dict[TopicPartition, GroupPartition] = {}
        """The partitions this member may read and commit, as of the last `poll`."""
        self.expecting = False
        """Whether another member still holds a partition that shall be this one's."""
        self.must_hand_over = False
        """Whether this member holds a partition that shall be another's."""
        self._engine = engine
        self._groups = GroupCatalog(engine.catalog)
        self._topics = topics
        self._renew_at = 0.0
        self._check_at = 0.0
        self._probed = 0
        self._versions: tuple[int, int] | None = None
        self._topic_ids: dict[str, int] = {}
        self._left = False
        self._join()
        try:
            self.poll()
        except BaseException:
            self.leave()
            raise

    # Looking after the group

    def poll(self) -> bool:
        """Do what is due; True if `owned` changed. Cheap when nothing is due.

        Raises:
            StoreClosedError, StorageError, LockedError: From the catalog.
        """
        self._engine.ensure_open()
        now = self._engine.clock.monotonic()
        tail = self._engine.tail
        versions = (tail.get("groups_version"), tail.get("topics_version"))
        if versions == self._versions and now < self._check_at:
            return False
        self._check_at = now + LIVENESS_INTERVAL_SECONDS
        if self._versions is None or versions[1] != self._versions[1]:
            self._follow_topics()
        # Noted before reading: what changes in between is seen at the next call.
        self._versions = versions
        self._maintain(now)
        return self._refresh()

    def hand_over(self) -> bool:
        """Give up partitions which shall be others'; True if `owned` changed.

        Call it when what was delivered has been committed, or will not be.
        """
        if not self.must_hand_over:
            return False
        if self._groups.hand_over(self.group, self.member_id):
            self._changed()
        return self._refresh()

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the next offset to read of some owned partitions: all of them, or none.

        Raises:
            FencedError: This member does not own one of the partitions, or not any more.
        """
        self._engine.ensure_open()
        entries = []
        for partition, offset in offsets.items():
            row = self.owned.get(partition)
            if row is None:
                raise FencedError(
                    f"member {self.member_id} of group {self.group!r} does not own the partition."
                    " Nothing was committed",
                    topic=partition.topic,
                    partition=partition.partition,
                )
            entries.append(
                GroupOffset(
                    self.group,
                    row.topic_id,
                    row.partition,
                    offset,
                    self.member_id,
                    row.generation,
                )
            )
        try:
            self._groups.commit(entries)
        except FencedError:
            self._versions = None  # whatever the words say, there is something to learn
            raise

    def committed_offsets(self) -> dict[TopicPartition, int]:
        """What the group has committed."""
        stored = self._groups.group_offsets(self.group)
        return {partition: offset for partition, (offset, _) in stored.items()}

    def leave(self) -> None:
        """Leave the group; others take the partitions over at once. Idempotent."""
        if self._left:
            return
        self._left = True
        self.owned = {}
        self._groups.leave(self.group, self.member_id)
        self._changed()

    # Steps

    def _join(self) -> None:
        self._engine.decisions.settle_dead()
        now = self._engine.clock.monotonic()
        member = MemberRow(
            self.member_id,
            self._engine.liveness.path,
            platform.node(),
            os.getpid(),
            self._client,
            self._topics,
            self._lease_end_ms(now),
        )
        self._groups.join(self.group, member)
        self._topic_ids = self._current_topic_ids()
        self._changed()

    def _maintain(self, now: float) -> None:
        members = self._groups.members(self.group)
        if all(member.member_id != self.member_id for member in members):
            _logger.warning(
                "member %s was removed from group %r because it had not polled for %d s; it joins"
                " again and starts from the committed offsets",
                self.member_id,
                self.group,
                LEASE_MS // 1000,
            )
            self._join()
            return
        if now >= self._renew_at:
            # False: removed just now. The next poll notices.
            self._groups.renew(self.group, self.member_id, self._lease_end_ms(now))
        self._bury(members, now)

    def _follow_topics(self) -> None:
        """Rebalance if a topic was deleted, or created again as another one."""
        topic_ids = self._current_topic_ids()
        if topic_ids != self._topic_ids:
            self._topic_ids = topic_ids
            self._groups.rebalance(self.group)
            self._changed()

    def _bury(self, members: list[MemberRow], now: float) -> None:
        """Remove members that are dead or stuck, and the lock files of the dead."""
        others = [member for member in members if member.member_id != self.member_id]
        expired = [member for member in others if member.lease_end_ms < now * 1000]
        locks = sorted({member.lock_path for member in others})
        self._probed = (self._probed + _PROBES_MAX) % max(len(locks), 1)
        probed = (locks[self._probed :] + locks[: self._probed])[:_PROBES_MAX]
        liveness = self._engine.liveness
        free = {path for path in probed if not liveness.is_alive(path)}
        dead = [member for member in others if member in expired or member.lock_path in free]
        dead = settled(self._engine, dead)
        if dead and self._groups.remove_dead(self.group, dead):
            _logger.info("group %r: removed %s", self.group, [member.member_id for member in dead])
            self._changed()
        for path in free:
            liveness.bury(path)

    def _refresh(self) -> bool:
        rows = self._groups.concerning(self.group, self.member_id)
        before = self._generations()
        self.owned = {
            TopicPartition(row.topic, row.partition): row
            for row in rows
            if row.owner == self.member_id
        }
        self.expecting = len(self.owned) < len(rows)
        self.must_hand_over = any(row.target != self.member_id for row in self.owned.values())
        return before != self._generations()

    def _generations(self) -> dict[TopicPartition, tuple[int, int]]:
        return {partition: (row.topic_id, row.generation) for partition, row in self.owned.items()}

    def _changed(self) -> None:
        self._engine.tail.bump("groups_version")

    def _lease_end_ms(self, now: float) -> int:
        self._renew_at = now + LEASE_MS / 3000
        return int(now * 1000) + LEASE_MS

    def _current_topic_ids(self) -> dict[str, int]:
        known = {info.name: info.id for info in self._engine.topics()}
        return {topic: known[topic] for topic in self._topics if topic in known}


def settled(engine: Engine, dead: list[MemberRow]) -> list[MemberRow]:
    """Those of the dead members whose transactions are decided: what they committed is known."""
    if not dead:
        return dead
    left = engine.decisions.settle_dead()
    return [member for member in dead if member.lock_path not in left]


def remove_dead_members(engine: Engine, group: str) -> None:
    """What a polling member does for its group, for those who look at it from outside."""
    if engine.read_only:
        return
    groups = GroupCatalog(engine.catalog)
    now_ms = engine.clock.monotonic() * 1000
    liveness = engine.liveness
    members = groups.members(group)
    free = {m.lock_path for m in members if not liveness.is_alive(m.lock_path)}
    dead = [m for m in members if m.lock_path in free or m.lease_end_ms < now_ms]
    dead = settled(engine, dead)
    if dead and groups.remove_dead(group, dead):
        engine.tail.bump("groups_version")
    for path in free:
        liveness.bury(path)
