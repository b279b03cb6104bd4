"""State topics and checkpoints in a store: their names, and how they are written and read.

What their records mean is said in state.py and checkpoint.py; when they are written, in epoch.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from millstream import DataError, RecordBatch, Store, Transaction

from .checkpoint import Checkpoint, OperatorState, decode_checkpoint
from .cutting import cuts
from .state import StateEntry, StatePiece, StateRecords, decode_entry, decode_piece

PIECE_RECORDS: Final = 300
"""Records decoded at a time: so few that Python's garbage collector, which counts what is alive at
once, does not look through the state that grows meanwhile: that took half of a restart."""


def checkpoint_name(pipeline: str) -> str:
    """The name of a pipeline's lock and checkpoint in a store."""
    return f"pipeline/{pipeline}"


def state_topic(pipeline: str, operator: str) -> str:
    """The internal topic that holds the state of an operator."""
    return f"@state/{pipeline}/{operator}"


def read_checkpoint(store: Store, pipeline: str) -> Checkpoint:
    """The last committed checkpoint of a pipeline; an empty one when it has never run.

    Raises:
        DataError: It is damaged, or of a newer version.
    """
    return decode_checkpoint(store.checkpoint(checkpoint_name(pipeline)))


class LoggedEntries:
    """The records that make up the state of an operator as of a checkpoint, in order.

    Args:
        store: Where they are.
        topic: The operator's.
        known: As of the checkpoint.
        start: Leave out those before this offset.
    """

    def __init__(
        self, store: Store, topic: str, known: OperatorState, start: int | None = None
    ) -> None:
        self._batches = partial(state_batches, store, topic, known, start)

    def __iter__(self) -> Iterator[StateEntry]:
        """One by one.

        Raises:
            DataError: A record is damaged, or the topic is shorter than the checkpoint says: it
                was restored from an older copy.
        """
        for batch in self._batches():
            yield from _decoded(batch)

    def pieces(self) -> Iterator[StatePiece]:
        """Some at a time. Errors as one by one."""
        for batch in self._batches():
            keys, values = batch.keys, batch.values
            for start in range(0, len(keys), PIECE_RECORDS):
                stop = start + PIECE_RECORDS
                try:
                    piece = decode_piece(keys[start:stop], values[start:stop])
                except DataError:
                    # Which record it is, and that it is one, is found out again one by one.
                    paths, contents = zip(*_decoded(batch), strict=True)
                    piece = StatePiece(list(paths[start:stop]), list(contents[start:stop]))
                yield piece


def state_entries(
    store: Store, topic: str, known: OperatorState, start: int | None = None
) -> LoggedEntries:
    """The records that make up the state of an operator as of a checkpoint; see `LoggedEntries`."""
    return LoggedEntries(store, topic, known, start)


def state_batches(
    store: Store, topic: str, known: OperatorState, start: int | None = None
) -> Iterator[RecordBatch]:
    """The same, not decoded.

    Raises:
        DataError: See `LoggedEntries`.
    """
    end = known.end_offset
    start = known.snapshot_offset if start is None else start
    if end == start:
        return
    visible = store.offsets(topic)[0].end
    if end is not None and end > visible:
        raise DataError(
            f"the state ends at offset {visible}, its checkpoint was made at {end}: state and"
            " catalog are of different times. Restore both from one backup",
            topic=topic,
            partition=0,
            offset=visible,
        )
    stop = visible if end is None else end
    yield from store.read(topic, start, stop).batches()


def _decoded(batch: RecordBatch) -> Iterator[StateEntry]:
    for offset, key, value in zip(batch.offsets, batch.keys, batch.values, strict=True):
        try:
            yield decode_entry(key, value)
        except DataError as error:
            raise error.at(topic=batch.topic, partition=batch.partition, offset=offset) from None


def write_state_records(
    transaction: Transaction, topic: str, records: StateRecords
) -> tuple[int, int] | None:
    """Append state records in a transaction.

    Returns:
        The first offset and the one behind the last; None when there are no records.
    """
    first: int | None = None
    end = 0
    for start, stop in cuts(records.values):
        written = transaction.append_many(
            topic, records.values[start:stop], records.keys[start:stop], None, 0
        )
        first = written[0].base_offset if first is None else first
        end = written[-1].base_offset + written[-1].record_count
    return None if first is None else (first, end)
