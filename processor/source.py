"""The first stage: bytes become values with an event time, and event time moves on.

A record that cannot be decoded or has no event time is rejected: it becomes a dead letter, or the
pipeline stops with an error that names it. A rejected record does not move the watermark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Protocol

from .columns import Chunk, MicroBatch
from .errors import REJECTED, convert, reason, record_error
from .event_time import all_ms, to_ms
from .fields import field_getter
from .nodes import SourceNode
from .serde import value_decoder
from .watermark import Progress, Watermark


class Rejects(Protocol):
    """Takes the rows that cannot be processed."""

    def reject(
        self, message: str, batch: MicroBatch, row: int, cause: BaseException | None = None
    ) -> None:
        """Note that a row is bad.

        Raises:
            RecordError: Dead letters go nowhere.
        """
        ...


class Faults:
    """Rows of one source that cannot be processed. With nobody to take them, each is an error."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self.messages: dict[int, str] = {}
        """Why, by row of the current micro-batch."""
        self.count = 0

    def reject(
        self, message: str, batch: MicroBatch, row: int, cause: BaseException | None = None
    ) -> None:
        """Note that a row is bad.

        Raises:
            RecordError: Dead letters go nowhere.
        """
        if not self._keep:
            raise record_error(message, batch, row) from cause
        if row not in self.messages:
            self.messages[row] = message
            self.count += 1


class RoutedFaults:
    """The faults of several sources, for streams they share: a row goes to those of its topic."""

    def __init__(self, by_topic: Mapping[str, Faults]) -> None:
        self._by_topic = by_topic

    def reject(
        self, message: str, batch: MicroBatch, row: int, cause: BaseException | None = None
    ) -> None:
        """Note that a row is bad.

        Raises:
            RecordError: The dead letters of its source go nowhere.
        """
        place = batch.place(row)
        if place is None:
            raise record_error(message, batch, row) from cause
        self._by_topic[place.topic].reject(message, batch, row, cause)


class SourceStage:
    """Decodes and times the records of one source. Not thread-safe."""

    def __init__(self, node: SourceNode, watermark: Watermark, faults: Faults) -> None:
        self.node = node
        self.watermark = watermark
        self.faults = faults
        self._decode = value_decoder(node.type)

    def process(self, batch: MicroBatch) -> tuple[Chunk, Progress]:
        """The source's rows of a micro-batch, and how W moved over all of its rows.

        Raises:
            RecordError: A record is bad and dead letters go nowhere.
        """
        start = self.watermark.level
        rows: list[int] = []
        times: list[int] = []
        values: list[object] = []
        moved_rows: list[int] = []
        levels: list[int] = []
        for number, part in enumerate(batch.batches):
            if part.topic != self.node.topic:
                continue
            part_rows, part_times, part_values = self._read(batch, number)
            moved, reached = self.watermark.advance(part.partition, part_rows, part_times)
            moved_rows += moved
            levels += reached
            rows += part_rows
            times += part_times
            values += part_values
        # A range costs nothing to search and says that every input row is here.
        whole = len(rows) == batch.row_count
        numbers = range(batch.row_count) if whole else rows
        return Chunk(numbers, times, values, None), Progress(start, moved_rows, levels)

    def _read(
        self, batch: MicroBatch, number: int
    ) -> tuple[Sequence[int], Sequence[int], list[object]]:
        """Row numbers, times and values of the good records of one batch."""
        part = batch.batches[number]
        first = batch.first_rows[number]
        rows = range(first, first + part.record_count)
        rejected_before = self.faults.count
        values = self._convert(part.values, self._decode, "cannot decode the value", batch, rows)
        times: Sequence[object] = part.timestamps_ms
        if self.node.time is not None:
            getter = field_getter(self.node.time, values)
            assert getter is not None
            times = self._convert(values, getter, "cannot read the event time", batch, rows)
            if not all_ms(times):
                times = self._convert(times, to_ms, "bad event time", batch, rows)
        if self.faults.count == rejected_before:
            return rows, times, values  # type: ignore[return-value]  # all_ms or to_ms made sure
        good = [
            time is not REJECTED and value is not REJECTED
            for time, value in zip(times, values, strict=True)
        ]
        return (
            list(compress(rows, good)),
            list(compress(times, good)),  # type: ignore[arg-type]  # all_ms or to_ms made sure
            list(compress(values, good)),
        )

    def _convert(
        self,
        column: Sequence[object],
        function: Callable[[object], object],
        problem: str,
        batch: MicroBatch,
        rows: range,
    ) -> list[object]:
        """`function` of every value; rows it raises on are rejected, if they are not already."""

        def reject(index: int, error: Exception) -> None:
            value = column[index]
            if value is not REJECTED:
                tombstone = value is None and function is self._decode
                cause = "the record has no value (a tombstone)" if tombstone else reason(error)
                message = f"source {self.node.topic}: {problem}: {cause}"
                self.faults.reject(message, batch, rows[index], error)

        return convert(column, function, reject)
