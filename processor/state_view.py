"""State seen from outside: what there is, and what it holds, also while its pipeline runs.

It is read from the state topics, as of the last commit, and needs no pipeline: paths and values as
state.py describes them. What an operator files under which path is said in its module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from millstream import OffsetOutOfRangeError, Store, TopicPartition, UnknownPipelineError

from .checkpoint import Checkpoint, OperatorState
from .kept import kept_checkpoint, read_kept
from .state_log import read_checkpoint, state_entries, state_topic

_PREFIX = "@state/"


class StateInfo(NamedTuple):
    """One operator with state."""

    pipeline: str
    operator: str
    identity: str
    """What it computes; empty when nothing was committed yet."""
    live_count: int
    """About how many state records are alive."""
    change_count: int
    """State records that a restart reads."""
    size_bytes: int
    """Of the state topic on disk."""


class StateItem(NamedTuple):
    """One thing an operator keeps."""

    path: tuple[Any, ...]
    """What it is filed under: `(key,)`, `(window_end, key)`, `(key, first_time)`, ..."""
    value: list[Any]
    """What it holds: accumulators, or a packed row."""


def _has_key(path: tuple[Any, ...], key: object) -> bool:
    return any(part == key and type(part) is type(key) for part in path)


class PipelineInfo(NamedTuple):
    """Where a pipeline stood at its last commit, or at a checkpoint that was kept."""

    name: str
    epoch: int
    positions: dict[TopicPartition, int]
    """Next offset of each input partition."""
    watermarks_ms: dict[str, int | None]
    """W of each source by topic; None before the first row."""
    kept_ms: int | None = None
    """When this checkpoint was kept, UTC ms; None: it is that of the last commit."""


def list_pipelines(store: Store) -> list[PipelineInfo]:
    """The pipelines that have run in a store, by name."""
    found = []
    for group in sorted(store.groups()):
        checkpoint = read_checkpoint(store, group)
        if checkpoint.epoch:
            found.append(_info(group, checkpoint))
    return found


def list_checkpoints(store: Store, pipeline: str) -> list[PipelineInfo]:
    """Where a pipeline stood at the checkpoints that are kept of it, and stands, in this order."""
    kept = [_info(pipeline, each.checkpoint, each.at_ms) for each in read_kept(store, pipeline)]
    kept.sort(key=lambda info: info.epoch)
    last = read_checkpoint(store, pipeline)
    return [*kept, _info(pipeline, last)] if last.epoch else kept


def _info(name: str, checkpoint: Checkpoint, kept_ms: int | None = None) -> PipelineInfo:
    levels = {topic: source.level for topic, source in checkpoint.sources.items()}
    return PipelineInfo(name, checkpoint.epoch, checkpoint.next_offsets(), levels, kept_ms)


def list_state(store: Store, pipeline: str | None = None) -> list[StateInfo]:
    """The operators with state in a store, or of one pipeline."""
    found = []
    for topic in store.topics(internal=True):
        if not topic.name.startswith(_PREFIX):
            continue
        _, name, operator = topic.name.split("/")
        if pipeline not in {None, name}:
            continue
        known = read_checkpoint(store, name).operators.get(operator)
        size_bytes = sum(segment.size_bytes for segment in store.segments(topic.name, 0))
        if known is None:
            found.append(StateInfo(name, operator, "", 0, 0, size_bytes))
        else:
            counts = known.live_count, known.change_count
            found.append(StateInfo(name, operator, known.identity, *counts, size_bytes))
    return found


def read_state(
    store: Store, pipeline: str, operator: str, key: object = None, *, epoch: int | None = None
) -> Iterator[StateItem]:
    """What an operator keeps, as of its pipeline's last commit.

    All records of its state topic are read; what is asked for is in memory at once.

    Args:
        store: May be open read-only, while the pipeline runs in another process.
        pipeline: Its name.
        operator: The name of the state; `list_state` and `explain()` tell it.
        key: Only what is kept for this grouping key; None for everything.
        epoch: Of a checkpoint that was kept, to read the state as it was then.

    Raises:
        UnknownPipelineError: There is no such pipeline, or no such state.
        UsageError: No such checkpoint is kept.
        DataError: It is damaged.
    """
    while True:
        if epoch is None:
            checkpoint = read_checkpoint(store, pipeline)
        else:
            checkpoint = kept_checkpoint(store, pipeline, epoch)
        known = checkpoint.operators.get(operator)
        if known is None:
            names = sorted(checkpoint.operators)
            if not checkpoint.epoch:
                raise UnknownPipelineError(
                    f"pipeline {pipeline!r} has committed nothing here yet: nothing is kept"
                )
            raise UnknownPipelineError(
                f"pipeline {pipeline!r} has no state called {operator!r}; it has"
                f" {', '.join(names) or 'none'}"
            )
        try:
            items = state_as_of(store, pipeline, operator, known, key)
        except OffsetOutOfRangeError:
            # A sweep has ended since the checkpoint was read, and what came before it is gone.
            now = read_checkpoint(store, pipeline).operators.get(operator)
            if epoch is not None or now == known:
                raise
            continue
        yield from items
        return


def state_as_of(
    store: Store, pipeline: str, operator: str, known: OperatorState, key: object = None
) -> list[StateItem]:
    """What an operator kept as of a checkpoint, also when the pipeline has gone on since.

    Raises:
        OffsetOutOfRangeError: It was written again since, and the records of then are gone.
        DataError: It is damaged.
    """
    items: dict[tuple[Any, ...], list[Any]] = {}
    for path, value in state_entries(store, state_topic(pipeline, operator), known):
        if value is not None:
            if key is None or _has_key(path, key):
                items[path] = value
        elif items.pop(path, None) is None:
            for gone in [each for each in items if each[: len(path)] == path]:
                del items[gone]
    return [StateItem(path, value) for path, value in items.items()]
