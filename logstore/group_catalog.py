"""Consumer groups in the catalog: members, who owns which partition, committed offsets.

Each method is one statement or one transaction, so a group is never seen half changed. Which
member is dead is decided by the caller (`membership.py`), who can ask for locks; what follows from
it is decided here, under the catalog's write lock, by `assignment.assign`.

A partition has an owner, who may read it and commit, and a target, who shall. They differ while a
live owner has not yet handed over. The generation rises whenever the owner changes, so that a
commit of a former owner is recognised even if it owns the partition again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from .assignment import assign
from .catalog import Catalog, GroupOffset
from .errors import DataError, LockedError, UnknownGroupError
from .queue_catalog import refuse_live_workers
from .record import TopicPartition
from .sql_values import Row, SQLValue, as_int, as_number, as_text


class MemberRow(NamedTuple):
    """One member of a group."""

    member_id: str
    lock_path: str
    """It lives as long as somebody holds this lock."""
    host: str
    pid: int
    client: str
    topics: frozenset[str]
    lease_end_ms: int
    """By the monotonic clock of the machine: it must have polled again before."""


class GroupPartition(NamedTuple):
    """One partition as a group sees it."""

    topic_id: int
    topic: str
    partition: int
    owner: str | None
    target: str | None
    generation: int
    committed_offset: int | None
    """Next offset to read; None if the group never committed one."""
    commit_ms: int | None


class GroupCatalog:
    """The groups of one catalog. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._database = catalog.database

    # Reading

    def groups(self) -> list[str]:
        """Names of all groups that have, or had, members or offsets."""
        return [as_text(row[0]) for row in self._database.query("SELECT name FROM groups")]

    def require(self, group: str) -> None:
        """Raise UnknownGroupError unless the group exists."""
        if not self._database.query("SELECT 1 FROM groups WHERE name = ?", (group,)):
            raise UnknownGroupError(f"there is no consumer group {group!r}")

    def members(self, group: str) -> list[MemberRow]:
        """The members, in the order of their ids, dead ones nobody has noticed yet included."""
        rows = self._database.query(
            "SELECT member_id, lock_path, host, pid, client, topics, lease_end_ms"
            " FROM group_members WHERE group_name = ? ORDER BY member_id",
            (group,),
        )
        return [_member_row(row) for row in rows]

    def partitions(self, group: str) -> list[GroupPartition]:
        """All partitions the group ever owned or committed, by topic and number."""
        return self._partitions("group_name = ?", group)

    def concerning(self, group: str, member_id: str) -> list[GroupPartition]:
        """The partitions this member owns or shall own, by topic and number."""
        return self._partitions("group_name = ? AND ? IN (owner, target)", group, member_id)

    def group_offsets(self, group: str) -> dict[TopicPartition, tuple[int, int]]:
        """What the group committed: partition to (next offset, UTC ms of the commit)."""
        return {
            TopicPartition(row.topic, row.partition): (row.committed_offset, row.commit_ms or 0)
            for row in self.partitions(group)
            if row.committed_offset is not None
        }

    # Membership

    def join(self, group: str, member: MemberRow, dead: Collection[MemberRow] = ()) -> None:
        """Add a member, remove dead ones, rebalance."""
        with self._database.transaction(f"join group {group}"):
            self._database.query(
                "INSERT INTO groups (name) VALUES (?) ON CONFLICT DO NOTHING", (group,)
            )
            self._database.query(
                "INSERT OR REPLACE INTO group_members (group_name, member_id, lock_path, host, pid,"
                " client, topics, lease_end_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (group, *member[:5], json.dumps(sorted(member.topics)), member.lease_end_ms),
            )
            self._remove(group, dead)
            self._rebalance(group)

    def leave(self, group: str, member_id: str) -> None:
        """Remove a member and give its partitions to the others. Again is fine."""
        with self._database.transaction(f"leave group {group}"):
            self._delete_member(group, member_id)
            self._rebalance(group)

    def remove_dead(self, group: str, dead: Collection[MemberRow]) -> bool:
        """Remove members seen dead and rebalance; False if others have done so already.

        A member that has renewed its lease since it was seen stays.
        """
        with self._database.transaction(f"rebalance group {group}"):
            removed = self._remove(group, dead)
            if removed:
                self._rebalance(group)
            return removed

    def rebalance(self, group: str) -> None:
        """Adapt the assignment to the topics as they are now."""
        with self._database.transaction(f"rebalance group {group}"):
            self._rebalance(group)

    def hand_over(self, group: str, member_id: str) -> bool:
        """Give up the partitions of this member that shall be others'; False if there are none."""
        with self._database.transaction(f"hand over partitions of group {group}"):
            changed = self._database.query(
                "UPDATE group_partitions SET owner = target, generation = generation + 1"
                " WHERE group_name = ? AND owner = ? AND target IS NOT owner RETURNING partition",
                (group, member_id),
            )
            return bool(changed)

    def renew(self, group: str, member_id: str, lease_end_ms: int) -> bool:
        """Extend the lease; False if this is no member any more."""
        with self._database.transaction(f"renew a lease of group {group}"):
            changed = self._database.query(
                "UPDATE group_members SET lease_end_ms = ?"
                " WHERE group_name = ? AND member_id = ? RETURNING pid",
                (lease_end_ms, group, member_id),
            )
            return bool(changed)

    # Offsets

    def commit(self, offsets: Sequence[GroupOffset]) -> None:
        """Commit offsets, all or none.

        Raises:
            FencedError: A partition is not owned any more by the member that commits.
            UnknownTopicError: A topic was deleted.
        """
        with self._database.transaction("commit group offsets"):
            self._catalog.write_group_offsets(offsets)

    def reset(self, group: str, offsets: Sequence[GroupOffset]) -> None:
        """Set the offsets of a group without members.

        Raises:
            UnknownGroupError: There is no such group.
            LockedError: It has members.
        """
        with self._database.transaction(f"reset group {group}"):
            self._require_empty(group, "reset")
            self._catalog.write_group_offsets(offsets)

    def delete(self, group: str) -> None:
        """Forget a group without members.

        Raises:
            UnknownGroupError: There is no such group.
            LockedError: It has members.
        """
        with self._database.transaction(f"delete group {group}"):
            self._require_empty(group, "delete")
            self._database.query("DELETE FROM groups WHERE name = ?", (group,))

    def _require_empty(self, group: str, what: str) -> None:
        self.require(group)
        members = self.members(group)
        if members:
            first = members[0]
            raise LockedError(
                f"cannot {what} group {group!r}: it has {len(members)} live member(s), one is"
                f" {first.client!r} in process {first.pid} on {first.host}. Close them first"
            )
        refuse_live_workers(self._catalog, group, what)

    def _remove(self, group: str, dead: Collection[MemberRow]) -> bool:
        removed = False
        for member in dead:
            removed |= self._delete_member(group, member.member_id, member.lease_end_ms)
        return removed

    def _delete_member(self, group: str, member_id: str, lease_end_ms: int | None = None) -> bool:
        deleted = self._database.query(
            "DELETE FROM group_members WHERE group_name = ? AND member_id = ?"
            " AND lease_end_ms = coalesce(?, lease_end_ms) RETURNING pid",
            (group, member_id, lease_end_ms),
        )
        return bool(deleted)

    def _rebalance(self, group: str) -> None:
        members = {member.member_id: member.topics for member in self.members(group)}
        rows = {TopicPartition(row.topic, row.partition): row for row in self.partitions(group)}
        topics = {
            topic: found
            for topic in frozenset[str]().union(*members.values())
            if (found := self._catalog.topic(topic)) is not None
        }
        everything = [
            TopicPartition(topic.name, number)
            for topic in topics.values()
            for number in range(topic.partitions)
        ]
        # A live owner keeps reading, whatever was planned; what has none stays with the plan.
        current = {
            partition: owner
            for partition, row in rows.items()
            if (owner := row.owner if row.owner in members else row.target) is not None
        }
        targets = assign(everything, members, current)
        ids = {partition: topics[partition.topic].id for partition in everything}
        ids.update((partition, row.topic_id) for partition, row in rows.items())
        for partition, topic_id in ids.items():
            row = rows.get(partition) or GroupPartition(
                topic_id, partition.topic, partition.partition, None, None, 0, None, None
            )
            self._give(group, row, targets.get(partition), members)

    def _give(
        self, group: str, row: GroupPartition, target: str | None, members: Collection[str]
    ) -> None:
        owner, generation = row.owner, row.generation
        # Only a live owner hands over by itself, once what it delivered can have been committed.
        if owner not in members and owner != target:
            owner, generation = target, generation + 1
        if (row.owner, row.target) == (owner, target):
            return
        self._database.query(
            "INSERT INTO group_partitions (group_name, topic_id, partition, owner, target,"
            " generation) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (group_name, topic_id, partition) DO UPDATE SET"
            " owner = excluded.owner, target = excluded.target, generation = excluded.generation",
            (group, row.topic_id, row.partition, owner, target, generation),
        )

    def _partitions(self, where: str, *bindings: SQLValue) -> list[GroupPartition]:
        rows = self._database.query(
            "SELECT topic_id, topics.name, partition, owner, target, generation,"  # noqa: S608 - ours
            " committed_offset, commit_ms FROM group_partitions JOIN topics ON id = topic_id"
            f" WHERE {where} ORDER BY topics.name, partition",
            bindings,
        )
        return [_group_partition(row) for row in rows]


def _member_row(row: Row) -> MemberRow:
    member_id, lock_path, host, pid, client, topics, lease_end_ms = row
    return MemberRow(
        as_text(member_id),
        as_text(lock_path),
        as_text(host),
        as_int(pid),
        as_text(client),
        _names(as_text(topics)),
        as_int(lease_end_ms),
    )


def _names(stored: str) -> frozenset[str]:
    try:
        names = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the topics of a member are not a list of names: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"the topics of a member are {names!r:.60}, not a list of names")
    return frozenset(names)


def _group_partition(row: Row) -> GroupPartition:
    topic_id, topic, partition, owner, target, generation, committed, commit_ms = row
    return GroupPartition(
        as_int(topic_id),
        as_text(topic),
        as_int(partition),
        None if owner is None else as_text(owner),
        None if target is None else as_text(target),
        as_number(generation),
        None if committed is None else as_int(committed),
        None if commit_ms is None else as_int(commit_ms),
    )
