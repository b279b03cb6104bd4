"""The checkpoint: where a pipeline stands, as the bytes that commit with each epoch.

It is the one thing a restart begins with. Whatever is not in it never happened; outputs and state
of an epoch become visible in the same commit. The bytes are msgpack behind a version byte.
"""

from __future__ import annotations

from typing import Final

import msgspec

from millstream import TopicPartition

from .serde import StoredForm
from .source import SourceStage
from .topology import Resumed
from .watermark import BEFORE_TIME, Watermark

CHECKPOINT_VERSION: Final = b"\x01"


class SourceState(msgspec.Struct, frozen=True):
    """Event-time progress of one source."""

    maxima: list[tuple[int, int]]
    """(partition, greatest time), of partitions that have had a row."""
    level: int | None
    """W, or None before the first row."""
    idle: list[int] = []
    """Partitions that are idle."""
    quiet: bool = False
    """Whether all partitions are idle."""
    appended: list[tuple[int, int]] = []
    """(partition, when its last batch was appended), UTC ms."""


class OperatorState(msgspec.Struct, frozen=True):
    """Where the state of one operator is."""

    identity: str
    """What the operator computed when the state was written."""
    snapshot_offset: int
    """Offset in the state topic of the newest snapshot; the changes follow it."""
    change_count: int
    """State records since that snapshot, itself included."""
    live_count: int
    """About how many state records everything alive makes."""
    end_offset: int | None = None
    """Where the state topic ended with this epoch."""


class Checkpoint(msgspec.Struct, frozen=True):
    """Everything a restart needs beside the state topics."""

    epoch: int
    positions: list[tuple[str, int, int]]
    """(topic, partition, next offset) of the input."""
    sources: dict[str, SourceState]
    """By topic."""
    operators: dict[str, OperatorState]
    """By state name."""
    topics: dict[str, int]
    """Ids of the input and state topics, by name: one that was made anew has another."""
    shared: dict[str, int] = {}
    """W where several sources meet, by their topics."""
    now_ms: int = 0
    """The wall clock at the last tick, UTC ms."""
    outputs: list[tuple[str, int, int]] = []
    """(topic, partition, next offset) behind the newest record the pipeline has written."""
    journal_end: int = 0
    """Where the journal ended with this epoch."""
    migrated_epoch: int = 0
    """That of the last migration: what was written before it came of another plan. 0: none."""

    def next_offsets(self) -> dict[TopicPartition, int]:
        """The input positions as the store takes them."""
        return {
            TopicPartition(topic, partition): offset for topic, partition, offset in self.positions
        }

    def output_ends(self) -> dict[TopicPartition, int]:
        """Where what the pipeline has written ends, as the store takes it."""
        return {
            TopicPartition(topic, partition): offset for topic, partition, offset in self.outputs
        }

    def state_of(self, operator: str, identity: str) -> OperatorState | None:
        """Where the state of an operator is; None if there is none of this identity.

        That of another one is dead, or the plan would have been refused: it is nobody's.
        """
        known = self.operators.get(operator)
        return known if known is not None and known.identity == identity else None

    def resumed(self) -> Resumed:
        """Event time as a topology takes it; the disorder is the plan's to say."""
        return Resumed(
            watermarks={
                topic: Watermark(
                    0,
                    dict(state.maxima),
                    BEFORE_TIME if state.level is None else state.level,
                    state.idle,
                )
                for topic, state in self.sources.items()
            },
            quiet=frozenset(topic for topic, state in self.sources.items() if state.quiet),
            appended_ms={topic: dict(state.appended) for topic, state in self.sources.items()},
            shared=self.shared,
            now_ms=self.now_ms,
        )


EMPTY: Final = Checkpoint(0, [], {}, {}, {})
"""Where a pipeline stands that has never run."""

_FORM: Final = StoredForm(Checkpoint, CHECKPOINT_VERSION)


def source_state(source: SourceStage) -> SourceState:
    """The progress of a source as a checkpoint keeps it."""
    watermark = source.watermark
    return SourceState(
        sorted(watermark.maxima.items()),
        None if watermark.level == BEFORE_TIME else watermark.level,
        sorted(watermark.idle),
        source.quiet,
        sorted(source.appended_ms.items()),
    )


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint."""
    return _FORM.encode(checkpoint)


def decode_checkpoint(data: bytes | None) -> Checkpoint:
    """A checkpoint from its bytes; `EMPTY` when there are none.

    Raises:
        FormatVersionError: Written by a newer version.
        DataError: Not a checkpoint.
    """
    return EMPTY if data is None else _FORM.decode(data, "the checkpoint")
