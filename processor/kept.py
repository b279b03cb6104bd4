"""Kept checkpoints: commits of a pipeline that can be gone back to, beside the last one.

A checkpoint says where everything was: input, outputs, event time, and where in its topic the state
of each operator begins and ends. State topics only grow, so to keep a checkpoint is to keep these
few bytes, and not to trim what they point to; nothing is copied. A replay starts there, a fork is
made from there, state is read as it was (replay.py, fork.py, state_view.py).

The list of them is one checkpoint of the catalog, `kept/<pipeline>`, written in the commit of the
epoch that is kept: a version byte, and msgpack.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from millstream import DataError, Store, UnknownPipelineError, UsageError

from .checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from .serde import StoredForm
from .state_log import checkpoint_name, read_checkpoint, state_topic

KEPT_VERSION: Final = b"\x01"

KEPT_COUNT: Final = 10
"""As many are kept by a run that keeps some, unless it is told otherwise."""


class Kept(msgspec.Struct, frozen=True):
    """One checkpoint that is kept."""

    at_ms: int
    """When it was committed, or kept by hand; UTC ms."""
    by_hand: bool
    """Whether it stays until it is forgotten by hand."""
    data: bytes
    """The checkpoint, encoded."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint.

        Raises:
            DataError: It is damaged, or of a newer version.
        """
        return decode_checkpoint(self.data)


class Keeping(NamedTuple):
    """Which checkpoints a run keeps."""

    every_ms: int | None = None
    """By the clock; None: none."""
    limit: int = KEPT_COUNT
    """Those of runs, at most; the oldest goes first."""

    def extended(self, kept: Sequence[Kept], at_ms: int, data: bytes) -> list[Kept] | None:
        """What is kept with a commit made now; None if it is none to be kept.

        >>> keeping = Keeping(every_ms=10, limit=2)
        >>> kept = keeping.extended([], 100, b"a") or []
        >>> kept = keeping.extended(kept, 110, b"b") or []
        >>> keeping.extended(kept, 119, b"c") is None
        True
        >>> [each.data for each in keeping.extended(kept, 120, b"c") or []]
        [b'b', b'c']
        """
        if self.every_ms is None:
            return None
        own = [each for each in kept if not each.by_hand]
        if own and own[-1].at_ms <= at_ms < own[-1].at_ms + self.every_ms:
            return None
        surplus = {each.data for each in own[: max(len(own) + 1 - self.limit, 0)]}
        left = [each for each in kept if each.by_hand or each.data not in surplus]
        return [*left, Kept(at_ms, by_hand=False, data=data)]


NOTHING_KEPT: Final = Keeping()
"""What a run keeps that is told nothing: the last commit alone."""

_FORM: Final = StoredForm(list[Kept], KEPT_VERSION)


def kept_name(pipeline: str) -> str:
    """The checkpoint of the catalog that lists those kept of a pipeline."""
    return f"kept/{pipeline}"


def encode_kept(kept: list[Kept]) -> bytes:
    """The bytes of that list."""
    return _FORM.encode(kept)


def read_kept(store: Store, pipeline: str) -> list[Kept]:
    """The kept checkpoints of a pipeline, in the order in which they were kept.

    Raises:
        DataError: The list is damaged, or of a newer version.
    """
    data = store.checkpoint(kept_name(pipeline))
    if data is None:
        return []
    return decode_kept(data, pipeline)


def decode_kept(data: bytes, pipeline: str) -> list[Kept]:
    """The list from its bytes.

    Raises:
        DataError: It is damaged, or of a newer version.
    """
    return _FORM.decode(data, f"the list of kept checkpoints of {pipeline!r}")


def kept_checkpoint(store: Store, pipeline: str, epoch: int) -> Checkpoint:
    """The kept checkpoint of an epoch.

    Raises:
        UsageError: None is kept of this epoch; the message says of which there are.
        DataError: It is damaged, or its state topics have been deleted since.
    """
    checkpoint = _find(read_kept(store, pipeline), pipeline, epoch)
    _check_topics(store, pipeline, checkpoint)
    return checkpoint


def _find(kept: Sequence[Kept], pipeline: str, epoch: int) -> Checkpoint:
    found = {checkpoint.epoch: checkpoint for checkpoint in (each.checkpoint for each in kept)}
    if epoch not in found:
        epochs = ", ".join(map(str, found))
        raise UsageError(
            f"no checkpoint of epoch {epoch} is kept of pipeline {pipeline!r}; kept are:"
            f" {epochs or 'none'}. A run keeps some with keep_every (process --keep-every 1h)"
        )
    return found[epoch]


def _check_topics(store: Store, pipeline: str, checkpoint: Checkpoint) -> None:
    there = {info.name: info.id for info in store.topics(internal=True)}
    for operator, state in checkpoint.operators.items():
        topic = state_topic(pipeline, operator)
        if state.end_offset != state.snapshot_offset and (
            there.get(topic) != checkpoint.topics.get(topic)
        ):
            raise DataError(
                f"the state of {operator!r} as of epoch {checkpoint.epoch} was deleted with its"
                " topic: restore the store from a backup, or start elsewhere",
                topic=topic,
            )


def kept_starts(kept: Sequence[Kept], pipeline: str, topics: Mapping[str, int]) -> dict[str, int]:
    """From which offset on the state topic of each operator is needed by what is kept.

    Args:
        kept: The kept checkpoints.
        pipeline: Theirs.
        topics: Ids of the topics there are now: of others nothing can be needed.
    """
    starts: dict[str, int] = {}
    for each in kept:
        checkpoint = each.checkpoint
        for operator, state in checkpoint.operators.items():
            topic = state_topic(pipeline, operator)
            empty = state.end_offset == state.snapshot_offset
            if not empty and topics.get(topic) == checkpoint.topics.get(topic):
                known = starts.get(operator, state.snapshot_offset)
                starts[operator] = min(known, state.snapshot_offset)
    return starts


def kept_state_topics(store: Store, pipeline: str) -> set[str]:
    """The state topics that kept checkpoints point to."""
    return {
        state_topic(pipeline, operator)
        for each in read_kept(store, pipeline)
        for operator in each.checkpoint.operators
    }


def keep_checkpoint(store: Store, pipeline: str) -> int:
    """Keep the last commit of a pipeline until it is forgotten; returns its epoch.

    Nothing is copied: the state topics are not trimmed beyond it any more. It takes effect with a
    durable commit. A replay can start there (`verify(since=epoch)`), a fork be made from it, and
    state be read as it was. That the input is there from then on is for retention to see to.

    Args:
        store: Where the pipeline has run.
        pipeline: Its name. It must not be running; `fork` copies one that is.

    Raises:
        UnknownPipelineError: It has never run.
        LockedError: A process runs it.
    """
    with store.own(checkpoint_name(pipeline)) as ownership:
        checkpoint = read_checkpoint(store, pipeline)
        if checkpoint.epoch == 0:
            raise UnknownPipelineError(
                f"pipeline {pipeline!r} has never run here: there is nothing to keep"
            )
        others = [
            each for each in read_kept(store, pipeline) if each.checkpoint.epoch != checkpoint.epoch
        ]
        data = encode_checkpoint(checkpoint)
        kept = [*others, Kept(store.clock.now_ms(), by_hand=True, data=data)]
        with store.transaction(owner=ownership) as transaction:
            transaction.put_checkpoint(kept_name(pipeline), encode_kept(kept))
    return checkpoint.epoch


def forget_checkpoints(store: Store, pipeline: str, epochs: Collection[int]) -> None:
    """Keep the checkpoints of these epochs no more; state that nobody needs goes when it is swept.

    Raises:
        UsageError: One of them is not kept; nothing was changed.
        LockedError: A process runs the pipeline.
    """
    with store.own(checkpoint_name(pipeline)) as ownership:
        kept = read_kept(store, pipeline)
        for epoch in epochs:
            _find(kept, pipeline, epoch)
        left = [each for each in kept if each.checkpoint.epoch not in epochs]
        with store.transaction(owner=ownership) as transaction:
            transaction.put_checkpoint(kept_name(pipeline), encode_kept(left))
