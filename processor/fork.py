"""Fork a pipeline: its state and its place in the input, under another name.

The fork goes on from where the original stood at its last commit, over the same log, with its own
state and outputs of its own: to try new code on live input, and compare. It is also a point that a
replay can start from (replay.py).

A source outside the store is read by each pipeline on its own, into a topic of its own (ingest.py).
So a fork gets the positions of the original, and a copy of what was taken in and not yet processed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from millstream import (
    OffsetOutOfRangeError,
    Store,
    TopicInfo,
    TopicPartition,
    Transaction,
    UnknownPipelineError,
    UsageError,
)

from .checkpoint import Checkpoint, OperatorState, encode_checkpoint
from .fork_diff import ForkPoint, encode_fork_point, fork_checkpoint
from .ingest import (
    ensure_topic,
    is_source_of_another,
    moved_position,
    position_prefix,
    source_topic,
)
from .kept import kept_checkpoint
from .plan import PlanBuilder
from .state import encode_entries
from .state_log import checkpoint_name, read_checkpoint, state_topic, write_state_records
from .state_view import StateItem, state_as_of

_PIECE: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Original:
    """What is forked, as of one commit of the pipeline."""

    checkpoint: Checkpoint
    items: dict[str, list[StateItem]]
    """What each operator keeps."""
    sources: dict[str, str]
    """Topics of sources outside the store, and their names."""
    source_positions: dict[str, bytes]
    """What is kept of how far they have been taken in, by the name it is kept under."""
    source_ends: dict[TopicPartition, int]
    """Where what was taken in up to there ends."""


def fork(store: Store, pipeline: str, name: str, *, epoch: int | None = None) -> None:
    """Copy state, offsets and event time of a pipeline to a new one, as of its last commit.

    All or nothing. The original may be running. Run the fork as `Pipeline(name)` with the same
    operators, or with others where nothing is kept; let it write to topics of its own.

    Sources outside the store, which both have under the same names, are forked too: the copy goes
    on taking them in where the original stands. What the original had taken in but not processed
    comes to the copy behind what is in the topics of the store by now.

    Args:
        store: Where both are.
        pipeline: The one to copy.
        name: Of the copy; has never run here.
        epoch: Of a checkpoint that was kept, to fork the pipeline as it was then.

    Raises:
        UnknownPipelineError: The original has never run.
        UsageError: The name is taken, or no such checkpoint is kept.
        LockedError: A pipeline called `name` is running.
    """
    PlanBuilder(name)  # checks the name
    with store.own(checkpoint_name(name)) as ownership:
        if store.checkpoint(checkpoint_name(name)) is not None:
            raise UsageError(f"there is a pipeline {name!r} already: choose another name")
        original = _settled(store, pipeline, epoch)
        checkpoint = original.checkpoint
        topics = dict(checkpoint.topics)
        operators: dict[str, OperatorState] = {}
        for operator in checkpoint.operators:
            topics.pop(state_topic(pipeline, operator), None)
            topic = store.create_topic(state_topic(name, operator), exist_ok=True)
            topics[topic.name] = topic.id
        copies = {
            topic: _source_copy(store, topic, source_topic(name, source))
            for topic, source in original.sources.items()
        }
        with store.transaction(owner=ownership) as transaction:
            for operator, known in checkpoint.operators.items():
                items = original.items[operator]
                start, end = _copy(transaction, state_topic(name, operator), items, store)
                operators[operator] = msgspec.structs.replace(
                    known, snapshot_offset=start, end_offset=end, change_count=len(items)
                )
            copied = msgspec.structs.replace(
                checkpoint, operators=operators, topics=topics, journal_end=0
            )
            copied = _with_sources(copied, copies, store)
            _copy_sources(transaction, store, original, copies)
            for kept, data in _moved_positions(pipeline, name, original, copies).items():
                transaction.put_checkpoint(kept, data)
            own = {
                place: offset
                for place, offset in copied.next_offsets().items()
                if not is_source_of_another(place.topic, name)
            }
            transaction.commit_offsets(name, own)
            point = ForkPoint(pipeline, checkpoint.outputs, checkpoint.journal_end)
            transaction.put_checkpoint(fork_checkpoint(name), encode_fork_point(point))
            transaction.put_checkpoint(checkpoint_name(name), encode_checkpoint(copied))


def _settled(store: Store, pipeline: str, epoch: int | None) -> _Original:
    """Everything as of one commit, though the pipeline goes on meanwhile."""
    while True:
        if epoch is None:
            checkpoint = read_checkpoint(store, pipeline)
        else:
            checkpoint = kept_checkpoint(store, pipeline, epoch)
        if checkpoint.epoch == 0:
            raise UnknownPipelineError(
                f"pipeline {pipeline!r} has never run here: there is nothing to fork"
            )
        own = source_topic(pipeline, "")
        sources = {
            topic: topic.removeprefix(own)
            for topic, _, _ in checkpoint.positions
            if topic.startswith(own)
        }
        positions, ends = _taken_in(store, pipeline, sources)
        try:
            items = {
                operator: state_as_of(store, pipeline, operator, known)
                for operator, known in checkpoint.operators.items()
            }
        except OffsetOutOfRangeError:
            # A sweep has ended since the checkpoint was read, and what came before it is gone.
            if epoch is not None or read_checkpoint(store, pipeline).epoch == checkpoint.epoch:
                raise
            continue
        dated = all(known.end_offset is not None for known in checkpoint.operators.values())
        if not dated and read_checkpoint(store, pipeline).epoch != checkpoint.epoch:
            continue  # a checkpoint of an early version does not say where its state ended
        return _Original(checkpoint, items, sources, positions, ends)


def _taken_in(
    store: Store, pipeline: str, sources: Mapping[str, str]
) -> tuple[dict[str, bytes], dict[TopicPartition, int]]:
    """How far sources have been taken in, and where the topics ended by then."""
    while True:
        positions = _positions(store, pipeline, sources.values())
        ends = {
            TopicPartition(topic, partition): held.end
            for topic in sources
            for partition, held in store.offsets(topic).items()
        }
        if positions == _positions(store, pipeline, sources.values()):
            return positions, ends


# --- sources outside the store -------------------------------------------------------------------


def _positions(store: Store, pipeline: str, sources: Iterable[str]) -> dict[str, bytes]:
    """How far sources have been taken in, by the names that is kept under."""
    return {
        kept: store.checkpoint(kept) or b""
        for source in sources
        for kept in store.checkpoint_names(position_prefix(pipeline, source))
    }


def _source_copy(store: Store, topic: str, copy: str) -> TopicInfo:
    """The topic a source is taken into by the fork."""
    partitions = store.topic(topic).partitions
    made = ensure_topic(store, copy, partitions)
    if made.partitions != partitions:
        raise UsageError(
            f"the topic is left of another pipeline and has {made.partitions} partitions, the one"
            f" to fork has {partitions}: choose another name, or delete it",
            topic=copy,
        )
    return made


def _with_sources(
    checkpoint: Checkpoint, copies: Mapping[str, TopicInfo], store: Store
) -> Checkpoint:
    """The checkpoint with all it says of the original's sources said of the copies as well.

    What it says of the original's stays: a replay of the original may start here.
    """
    positions = [
        (copies[topic].name, partition, store.offsets(copies[topic].name)[partition].end)
        for topic, partition, _ in checkpoint.positions
        if topic in copies
    ]
    shared = {
        " + ".join(
            copies[each].name if each in copies else each for each in met.split(" + ")
        ): level
        for met, level in checkpoint.shared.items()
    }
    seen = {
        copies[topic].name: state for topic, state in checkpoint.sources.items() if topic in copies
    }
    return msgspec.structs.replace(
        checkpoint,
        positions=checkpoint.positions + positions,
        sources=checkpoint.sources | seen,
        shared=checkpoint.shared | shared,
        topics=checkpoint.topics | {made.name: made.id for made in copies.values()},
    )


def _copy_sources(
    transaction: Transaction, store: Store, original: _Original, copies: Mapping[str, TopicInfo]
) -> None:
    """Copy what was taken in and not processed, in the order in which it was taken in."""
    starts = original.checkpoint.next_offsets()
    ends = {place: end for place, end in original.source_ends.items() if end > starts[place]}
    if not ends:
        return
    with store.reader({place: starts[place] for place in ends}) as reader:
        while any(reader.positions[place] < end for place, end in ends.items()):
            for batch in reader.poll():
                place = TopicPartition(batch.topic, batch.partition)
                part = batch.slice(0, batch.index_of(ends[place]))
                if part.record_count:
                    transaction.append_many(
                        copies[place.topic].name,
                        part.values,
                        part.keys,
                        part.timestamps_ms,
                        place.partition,
                        headers=part.headers,
                    )


def _moved_positions(
    pipeline: str, name: str, original: _Original, copies: Mapping[str, TopicInfo]
) -> dict[str, bytes]:
    """The positions of the sources as those of the fork."""
    moved = {}
    for topic, source in original.sources.items():
        prefix = position_prefix(pipeline, source)
        for kept, data in original.source_positions.items():
            if kept.startswith(prefix):
                renamed = position_prefix(name, source) + kept.removeprefix(prefix)
                moved[renamed] = moved_position(data, copies[topic].id)
    return moved


# --- state ---------------------------------------------------------------------------------------


def _copy(
    transaction: Transaction, topic: str, items: Iterable[StateItem], store: Store
) -> tuple[int, int]:
    """Write items to a state topic; returns where they begin and end."""
    start = end = store.offsets(topic)[0].end
    first = True
    for piece in _pieces(items):
        paths, values = [item.path for item in piece], [tuple(item.value) for item in piece]
        written = write_state_records(transaction, topic, encode_entries(topic, paths, values))
        if written is not None:
            start, end, first = written[0] if first else start, written[1], False
    return start, end


def _pieces(items: Iterable[StateItem]) -> Iterator[list[StateItem]]:
    remaining = iter(items)
    while piece := list(islice(remaining, _PIECE)):
        yield piece
