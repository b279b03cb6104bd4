"""Consumer groups seen from outside: members, lag, resetting offsets, deleting.

What a member does for itself is `membership.py`; the stored state is `group_catalog.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from .catalog import GroupOffset
from .claiming import remove_dead_workers
from .config import check_group_name, checked_place, topic_names, whole_number
from .engine import Engine
from .errors import UnknownTopicError, UsageError
from .group_catalog import GroupCatalog, GroupPartition, MemberRow
from .membership import remove_dead_members
from .positions import Position, parse_position
from .queue_catalog import QueueCatalog, refuse_queue
from .reader import LogReader
from .record import TopicPartition
from .topics import resolve

Place: TypeAlias = int | str | datetime | Position


class GroupMember(NamedTuple):
    """One live member of a group."""

    member_id: str
    host: str
    pid: int
    client: str
    topics: tuple[str, ...]
    partitions: tuple[TopicPartition, ...]
    """What it reads now."""


class GroupInfo(NamedTuple):
    """A consumer group: its live members and committed offsets."""

    name: str
    members: tuple[GroupMember, ...]
    offsets: dict[TopicPartition, int]
    """Next offset to read of each partition the group ever committed."""


class PartitionLag(NamedTuple):
    """How far a group is behind in one partition."""

    topic: str
    partition: int
    committed: int | None
    """Next offset to read; None if the group never committed one."""
    log_end: int
    lag: int | None
    """Offsets from there to the visible end; None without a commit."""
    lag_ms: int | None
    """How long the oldest unread record has been in the log; None without a commit."""
    member_id: str | None
    """Who reads the partition now, and where; None if nobody does."""
    host: str | None
    client: str | None


class OffsetChange(NamedTuple):
    """One line of a reset plan."""

    topic: str
    partition: int
    current: int | None
    new: int


class ResetPlan(NamedTuple):
    """What `Store.reset_group` would change; made by `Store.plan_reset`, which changes nothing."""

    group: str
    changes: tuple[OffsetChange, ...]


def names(engine: Engine) -> list[str]:
    """Names of all groups, sorted."""
    engine.ensure_open()
    return sorted(GroupCatalog(engine.catalog).groups())


def describe(engine: Engine, name: str) -> GroupInfo:
    """One group; dead members are removed first, unless the store is read-only.

    Raises:
        UnknownGroupError: There is none of that name.
    """
    rows, members = _look(engine, name)
    return GroupInfo(
        name,
        tuple(
            GroupMember(
                member.member_id,
                member.host,
                member.pid,
                member.client,
                tuple(sorted(member.topics)),
                tuple(
                    TopicPartition(row.topic, row.partition)
                    for row in rows
                    if row.owner == member.member_id
                ),
            )
            for member in members.values()
        ),
        {
            TopicPartition(row.topic, row.partition): row.committed_offset
            for row in rows
            if row.committed_offset is not None
        },
    )


def lag(engine: Engine, name: str) -> list[PartitionLag]:
    """How far the group is behind in each partition it owns or has committed; errors as above.

    Reads one batch per partition that is behind.
    """
    rows, members = _look(engine, name)
    return [_partition_lag(engine, row, members.get(row.owner or "")) for row in rows]


def _look(engine: Engine, name: str) -> tuple[list[GroupPartition], dict[str, MemberRow]]:
    engine.ensure_open()
    groups = GroupCatalog(engine.catalog)
    groups.require(check_group_name(name))
    remove_dead_members(engine, name)
    members = {member.member_id: member for member in groups.members(name)}
    return groups.partitions(name), members


def _partition_lag(engine: Engine, row: GroupPartition, member: MemberRow | None) -> PartitionLag:
    log = engine.log(row.topic, row.partition)
    end = log.visible_offset
    behind = behind_ms = None
    if row.committed_offset is not None:
        # What retention removed will not be read any more.
        next_offset = min(max(row.committed_offset, log.start_offset), end)
        behind = end - next_offset
        behind_ms = _age_ms(engine, TopicPartition(row.topic, row.partition), next_offset)
    return PartitionLag(
        row.topic,
        row.partition,
        row.committed_offset,
        end,
        behind,
        behind_ms,
        member.member_id if member else None,
        member.host if member else None,
        member.client if member else None,
    )


def _age_ms(engine: Engine, partition: TopicPartition, offset: int) -> int:
    """Milliseconds since the next readable record was appended; 0 if there is none."""
    with LogReader(engine, {partition: offset}, isolation="committed") as reader:
        for batch in reader.poll(max_records=1):
            return max(0, engine.clock.now_ms() - batch.header.append_timestamp_ms)
    return 0


def plan_reset(
    engine: Engine,
    name: str,
    to: Place | Mapping[TopicPartition, Place] | None = None,
    *,
    topics: Sequence[str] = (),
    shift_by: int | None = None,
) -> ResetPlan:
    """What a reset would do; changes nothing.

    Offsets are brought into what the log holds. Partitions the group has not committed are left
    out where the new offset depends on the committed one ("stored", `shift_by`).

    Args:
        engine: The open store.
        name: An existing group.
        to: Position for all partitions, or one for each of some; "stored" keeps what is committed.
        topics: All partitions of these topics; otherwise those the group owns or has committed.
        shift_by: Instead of `to`: that many records on, or back.

    Raises:
        UnknownGroupError, UnknownTopicError: No such group or topic.
        UsageError: Neither or both of `to` and `shift_by`; a bad position; nothing to reset; the
            group is a pipeline or that of a queue.
    """
    engine.ensure_open()
    refuse_queue(engine.catalog, check_group_name(name))
    if engine.catalog.is_pipeline(name):
        raise UsageError(
            f"{name!r} is a pipeline: its offsets belong to its state and are not moved alone. Run"
            " it under another name to start from the beginning"
        )
    if (to is None) == (shift_by is None):
        raise UsageError("give either a position or shift_by")
    if shift_by is not None:
        shift_by = whole_number(shift_by, "shift_by")
    groups = GroupCatalog(engine.catalog)
    groups.require(name)
    known = {TopicPartition(row.topic, row.partition): row for row in groups.partitions(name)}
    chosen: list[TopicPartition]
    if isinstance(to, Mapping):
        chosen = [checked_place(place) for place in to]
    elif topics:
        chosen = [
            TopicPartition(topic, number)
            for topic in topic_names(topics)
            for number in range(engine.topic(topic).partitions)
        ]
    else:
        chosen = list(known)
    if not chosen:
        raise UsageError(f"group {name!r} has committed nothing yet: name the topics to reset")
    changes = []
    for partition in sorted(chosen):
        row = known.get(partition)
        current = row.committed_offset if row else None
        place = to[partition] if isinstance(to, Mapping) else to
        new = _new_offset(engine, partition, current, place, shift_by)
        if new is not None:
            changes.append(OffsetChange(*partition, current, new))
    return ResetPlan(name, tuple(changes))


def _new_offset(
    engine: Engine,
    partition: TopicPartition,
    current: int | None,
    place: Place | None,
    shift_by: int | None,
) -> int | None:
    position = None if place is None else parse_position(place, engine.clock.now_ms())
    if position is None or position.kind == "stored":
        if current is None:
            return None
        offset = current + (shift_by or 0)
    else:
        offset = resolve(engine, partition, position)
    log = engine.log(*partition)
    return min(max(offset, log.start_offset), log.visible_offset)


def reset(engine: Engine, plan: ResetPlan) -> None:
    """Commit the new offsets of a plan, all or none.

    Raises:
        LockedError: The group has live members; close them first.
        UnknownGroupError, UnknownTopicError: It, or a topic, was deleted since.
    """
    engine.ensure_writable()
    if not isinstance(plan, ResetPlan):
        raise UsageError(f"{plan!r:.60} is not a plan: give what plan_reset() returns")
    remove_dead_members(engine, check_group_name(plan.group))
    offsets = []
    for change in plan.changes:
        info = engine.topic(change.topic)
        if not 0 <= change.partition < info.partitions:
            raise UnknownTopicError(
                "no such partition", topic=change.topic, partition=change.partition
            )
        offsets.append(GroupOffset(plan.group, info.id, change.partition, change.new))
    GroupCatalog(engine.catalog).reset(plan.group, offsets)
    engine.tail.bump("groups_version")


def delete(engine: Engine, name: str) -> None:
    """Forget a group and what it committed; errors as `reset`."""
    engine.ensure_writable()
    check_group_name(name)
    remove_dead_members(engine, name)
    for queue in QueueCatalog(engine.catalog).listing():
        if queue.group == name:
            remove_dead_workers(engine, queue)
    GroupCatalog(engine.catalog).delete(name)
    engine.tail.bump("groups_version")
