"""Where a replay starts: with nothing, with a checkpoint that was kept, or with that of a fork.

A place that is named is taken. Where only input from a position on is to be compared, it is the
nearest kept checkpoint before that, if its state is of the same plan. How a replay runs from there
is in replay.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from millstream import (
    OffsetOutOfRangeError,
    Position,
    Store,
    TopicPartition,
    UnknownPipelineError,
    UsageError,
)

from .changed_plan import plan_changes
from .checkpoint import EMPTY, Checkpoint
from .fork_diff import fork_point
from .kept import kept_checkpoint, read_kept
from .plan import Plan
from .state_log import read_checkpoint
from .ticks import JournalEntry, decode_journal, journal_topic


class Start(NamedTuple):
    """Where a replay starts, and where it begins to compare."""

    checkpoint: Checkpoint
    pipeline: str
    """In whose name the state is kept."""
    text: str
    compared: dict[TopicPartition, int]
    """Passes over what was written before a record at or behind these offsets is processed."""


def find_start(
    plan: Plan, store: Store, since: str | int | None, start: int | str | Position | None
) -> Start:
    """What `Pipeline.verify` is told, or else the nearest place before what is to be compared."""
    compared = {} if start is None else positions_at(plan, store, start)
    if isinstance(since, int):
        checkpoint = kept_checkpoint(store, plan.name, since)
        checkpoint = with_own_journal(store, plan.name, checkpoint)
        return Start(checkpoint, plan.name, f"the checkpoint of epoch {since}", compared)
    if since is not None:
        checkpoint = read_checkpoint(store, since)
        if checkpoint.epoch == 0:
            raise UnknownPipelineError(
                f"there is no pipeline {since!r} here to start from: fork one first, or give the"
                " epoch of a checkpoint that is kept"
            )
        point = fork_point(store, since)
        if point is not None and point.journal_end is not None:
            checkpoint = msgspec.structs.replace(checkpoint, journal_end=point.journal_end)
        return Start(checkpoint, since, f"fork {since!r}", compared)
    for kept in reversed(read_kept(store, plan.name)) if compared else ():
        checkpoint = kept.checkpoint
        reached = checkpoint.next_offsets()
        before = all(reached.get(place, 0) <= offset for place, offset in compared.items())
        if before and not plan_changes(plan, checkpoint):
            return find_start(plan, store, checkpoint.epoch, start)
    if fork_point(store, plan.name) is not None:
        raise UsageError(
            f"{plan.name!r} is a fork: what came before was written by its original, so it cannot"
            f" be verified from the beginning. {_elsewhere(store, plan.name)}; or keep_checkpoint"
        )
    return Start(EMPTY, plan.name, "the beginning", compared)


def with_own_journal(store: Store, pipeline: str, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the end of the journal of its pipeline, though a fork may have kept it.

    In forks of early versions a checkpoint says where the journal of the original ended, until the
    first tick of the fork. What it calls the last tick must be one of the past.
    """
    point, end = fork_point(store, pipeline), checkpoint.journal_end
    if point is None or point.journal_end is not None or not end:
        return checkpoint
    topic, reached = journal_topic(pipeline), checkpoint.next_offsets()
    known = {info.name for info in store.topics(internal=True)}
    if topic in known and store.offsets(topic)[0].end >= end:
        (last,) = journal_entries(store, pipeline, end - 1, end)
        passed = (at <= reached.get(place, 0) for place, at in last.next_offsets().items())
        if last.tick.now_ms <= checkpoint.now_ms and all(passed):
            return checkpoint
    return msgspec.structs.replace(checkpoint, journal_end=0)


def positions_at(
    plan: Plan, store: Store, start: int | str | Position
) -> dict[TopicPartition, int]:
    """Where that is in each input partition."""
    return {
        TopicPartition(topic, partition): store.offset_at(topic, partition, start)
        for topic in plan.input_topics()
        for partition in store.offsets(topic)
    }


def input_positions(plan: Plan, store: Store, start: Start) -> dict[TopicPartition, int]:
    """From where the input is read.

    Raises:
        OffsetOutOfRangeError: It is gone.
    """
    known = start.checkpoint.next_offsets()
    positions = {}
    for topic in plan.input_topics():
        for partition, held in store.offsets(topic).items():
            place = TopicPartition(topic, partition)
            positions[place] = known.get(place, 0)
            if positions[place] < held.start:
                raise OffsetOutOfRangeError(
                    f"the input from offset {positions[place]} to {held.start} is gone: a replay"
                    f" from {start.text} is not possible any more. {_elsewhere(store, plan.name)}",
                    topic=topic,
                    partition=partition,
                    offset=positions[place],
                )
    return positions


def _elsewhere(store: Store, pipeline: str) -> str:
    epochs = ", ".join(str(kept.checkpoint.epoch) for kept in read_kept(store, pipeline))
    if epochs:
        return f"Start from a checkpoint that is kept (since=): there is epoch {epochs}"
    return (
        "Start from a fork (since=NAME, `--since NAME`); runs with keep_every, `--keep-every`, keep"
        " checkpoints to start from"
    )


def journal_entries(store: Store, pipeline: str, start: int, end: int) -> Iterator[JournalEntry]:
    """The ticks of a pipeline that stand at some offsets of its journal."""
    if start < end:
        for record in store.read(journal_topic(pipeline), start, end):
            yield decode_journal(record.value)
