"""Hold what a fork has written against what the original has written since.

Where the original's outputs ended is kept when the fork is made (`fork/<name>`, a checkpoint of the
catalog), as both go on from there. Topics are compared record for record, in order, in every
partition: key, value, headers and timestamp. Both should have come as far in the input; what only
one of them has yet is a difference, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

import msgspec

from millstream import Record, Store, TopicPartition, UnknownPipelineError, UsageError

from .outputs import same_record
from .serde import StoredForm

FORK_VERSION: Final = b"\x01"


class ForkPoint(msgspec.Struct, frozen=True):
    """Where a fork was made."""

    pipeline: str
    """The original."""
    outputs: list[tuple[str, int, int]]
    """(topic, partition, next offset) behind the newest record it had written."""
    journal_end: int | None = None
    """Where its journal ended: that of the fork begins anew. None in forks of early versions."""


_FORM: Final = StoredForm(ForkPoint, FORK_VERSION)


@dataclass(frozen=True, slots=True)
class ForkDifference:
    """The first place where a fork and its original have written something else."""

    topic: str
    """Of the original."""
    copy: str
    """Of the fork."""
    partition: int
    original: Record | None
    """None where only the fork has one."""
    forked: Record | None
    """None where only the original has one."""

    def __str__(self) -> str:
        if self.original is None:
            return f"{self.copy}/{self.partition}: only the fork has {self.forked}"
        if self.forked is None:
            return f"{self.topic}/{self.partition}: only the original has {self.original}"
        return (
            f"{self.topic}/{self.partition}: the original has {self.original}, the fork"
            f" {self.forked}"
        )


@dataclass(slots=True)
class ForkComparison:
    """What a comparison found."""

    pipeline: str
    """The original."""
    records_compared: int = 0
    """Of the fork, up to the first difference of each partition."""
    differences: list[ForkDifference] = field(default_factory=list)
    """The first of each partition that differs."""

    @property
    def ok(self) -> bool:
        """Whether both have written the same."""
        return not self.differences


def fork_checkpoint(name: str) -> str:
    """The checkpoint of the catalog that says where a fork was made."""
    return f"fork/{name}"


def encode_fork_point(point: ForkPoint) -> bytes:
    """The bytes of that checkpoint."""
    return _FORM.encode(point)


def compare_fork(store: Store, name: str, topics: Mapping[str, str]) -> ForkComparison:
    """Compare what a fork has written with what its original has written since.

    Args:
        store: Where both are; may be open read-only.
        name: Of the fork.
        topics: The topics of the fork by those of the original that they stand for.

    Raises:
        UnknownPipelineError: There is no such fork.
        UsageError: Topics have not as many partitions.
        UnknownTopicError: There is no such topic.
        OffsetOutOfRangeError: What the original wrote first behind the fork was removed.
    """
    point = fork_point(store, name)
    if point is None:
        raise UnknownPipelineError(
            f"there is no fork {name!r} here: make one with fork(), or `millstream fork`"
        )
    starts = {TopicPartition(topic, partition): end for topic, partition, end in point.outputs}
    result = ForkComparison(point.pipeline)
    for topic, copy in topics.items():
        ends, copied = store.offsets(topic), store.offsets(copy)
        if len(ends) != len(copied):
            raise UsageError(
                f"{topic!r} has {len(ends)} partitions, {copy!r} {len(copied)}: they can only be"
                " compared with as many",
                topic=copy,
            )
        for partition, held in ends.items():
            start = starts.get(TopicPartition(topic, partition), 0)
            written = store.read(topic, start, held.end, partition=partition)
            forked = store.read(copy, 0, copied[partition].end, partition=partition)
            for left, right in zip_longest(written, forked):
                if left is None or right is None or not same_record(left, right):
                    result.differences.append(ForkDifference(topic, copy, partition, left, right))
                    break
                result.records_compared += 1
    return result


def fork_point(store: Store, name: str) -> ForkPoint | None:
    """Where a fork was made; None if there is none of that name.

    Raises:
        DataError: What says so is damaged, or of a newer version.
    """
    data = store.checkpoint(fork_checkpoint(name))
    if data is None:
        return None
    return decode_fork_point(data, name)


def decode_fork_point(data: bytes, name: str) -> ForkPoint:
    """Where a fork was made, from the bytes of its checkpoint.

    Raises:
        DataError: They are damaged, or of a newer version.
    """
    return _FORM.decode(data, f"the place of the fork {name!r}")
