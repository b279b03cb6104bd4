"""Fork a pipeline: its state and its place in the input, under another name.

The fork goes on from where the original stood at its last commit, over the same log, with its own
state and outputs of its own: to try new code on live input, and compare. It is also a point that a
replay can start from (replay.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from millstream import Store, Transaction, UsageError

from .checkpoint import Checkpoint, OperatorState, encode_checkpoint
from .plan import PlanBuilder
from .state import encode_entries
from .state_log import checkpoint_name, read_checkpoint, state_topic, write_state_records
from .state_view import StateItem, read_state

_PIECE: Final = 10_000


def fork(store: Store, pipeline: str, name: str) -> None:
    """Copy state, offsets and event time of a pipeline to a new one, as of its last commit.

    All or nothing. The original may be running. Run the fork as `Pipeline(name)` with the same
    operators, or with others where nothing is kept; let it write to topics of its own.

    Args:
        store: Where both are.
        pipeline: The one to copy.
        name: Of the copy; has never run here.

    Raises:
        UsageError: The original has never run, or the name is taken.
        LockedError: A pipeline called `name` is running.
    """
    PlanBuilder(name)  # checks the name
    with store.own(checkpoint_name(name)) as ownership:
        if store.checkpoint(checkpoint_name(name)) is not None:
            raise UsageError(f"there is a pipeline {name!r} already: choose another name")
        while True:
            checkpoint = read_checkpoint(store, pipeline)
            if checkpoint.epoch == 0:
                raise UsageError(
                    f"pipeline {pipeline!r} has never run here: there is nothing to fork"
                )
            _refuse_sources(pipeline, checkpoint)
            items = {
                operator: list(read_state(store, pipeline, operator))
                for operator in checkpoint.operators
            }
            if read_checkpoint(store, pipeline).epoch == checkpoint.epoch:
                break
        topics = dict(checkpoint.topics)
        operators: dict[str, OperatorState] = {}
        for operator in checkpoint.operators:
            topics.pop(state_topic(pipeline, operator), None)
            topic = store.create_topic(state_topic(name, operator), exist_ok=True)
            topics[topic.name] = topic.id
        with store.transaction(owner=ownership) as transaction:
            for operator, known in checkpoint.operators.items():
                start, end = _copy(transaction, state_topic(name, operator), items[operator], store)
                operators[operator] = msgspec.structs.replace(
                    known,
                    snapshot_offset=start,
                    end_offset=end,
                    change_count=len(items[operator]),
                )
            copied = msgspec.structs.replace(checkpoint, operators=operators, topics=topics)
            transaction.commit_offsets(name, copied.next_offsets())
            transaction.put_checkpoint(checkpoint_name(name), encode_checkpoint(copied))


def _refuse_sources(pipeline: str, checkpoint: Checkpoint) -> None:
    for topic, _, _ in checkpoint.positions:
        if topic.startswith("@source/"):
            raise UsageError(
                f"pipeline {pipeline!r} takes in a source from outside the store, which a fork"
                " would take in once more: put it into a topic of its own first",
                topic=topic,
            )


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
