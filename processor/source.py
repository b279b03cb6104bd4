"""The first stage: bytes become values with an event time, and event time moves on.

A record that cannot be decoded or has no event time is rejected: it becomes a dead letter, or the
pipeline stops with an error that names it. A rejected record does not move the watermark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress, repeat
from typing import TYPE_CHECKING, Protocol

import msgspec

from .columns import Chunk, InputBatch, MicroBatch, Rows
from .errors import REJECTED, convert, reason, record_error
from .event_time import newest_ms, to_ms
from .fields import Field, field_getter
from .ingest import rejection
from .nodes import SourceNode
from .serde import objects_decoder, value_decoder
from .ticks import Tick
from .watermark import IDLE, Progress, Watermark

if TYPE_CHECKING:
    from .frame_source import FrameReader


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
    """Decodes and times the records of one source. Not thread-safe.

    Args:
        node: What to read.
        watermark: W so far.
        faults: Takes bad records.
        quiet: Whether all of its partitions are idle.
    """

    def __init__(
        self, node: SourceNode, watermark: Watermark, faults: Faults, *, quiet: bool = False
    ) -> None:
        self.node = node
        self.watermark = watermark
        self.faults = faults
        self.quiet = quiet
        """Whether it holds nothing back where it meets other sources."""
        self.exact = True
        """Whether some operator asks how W moved row by row, or only where it has come to."""
        self.appended_ms: dict[int, int] = {}
        """When the last batch of each partition was appended, as far as that is known."""
        self._columns: FrameReader | None = None
        self._newest_ms: int | None = None
        """The greatest time of the batch that was read last, if that is known."""
        self._decode = value_decoder(node.type)
        self._decode_joined = None if node.tombstones else objects_decoder(node.type)
        if node.tombstones:
            self._decode = _TableDecoder(self._decode)
        self._kind = None if node.tombstones else _exact_type(node.type)
        self._timed_by_int = _is_int(self._kind, node.time)

    def read_columns(self) -> None:
        """Give rows as columns from now on, where they can be had. Needs the extra `arrow`."""
        from .frame_source import FrameReader  # noqa: PLC0415 - an extra

        self._columns = FrameReader(self.node)

    def process(self, batch: MicroBatch) -> tuple[Rows, Progress, Progress]:
        """Take the source's rows from a micro-batch.

        Returns:
            The rows, how W moved over them, and what the source contributes to a W it shares.

        Raises:
            RecordError: A record is bad and dead letters go nowhere.
        """
        start = self.watermark.level
        pieces: list[Rows] = []
        moved_rows: list[int] = []
        levels: list[int] = []
        woken: tuple[int, int] | None = None
        if self._columns is not None:
            self._columns.prepare(batch)
        for number, part in enumerate(batch.batches):
            if part.topic != self.node.topic:
                continue
            piece = self._piece(batch, number)
            if part.append_timestamp_ms is not None:
                self.appended_ms[part.partition] = part.append_timestamp_ms
            moved, reached = self._advance(part.partition, piece)
            if self.quiet and piece.row_count:
                self.quiet = False
                woken = (int(piece.rows[0]), start)
            moved_rows += moved
            levels += reached
            pieces.append(piece)
        progress = Progress(start, moved_rows, levels)
        return self._whole(pieces, batch), progress, self._contribution(progress, woken)

    def _piece(self, batch: MicroBatch, number: int) -> Rows:
        """The good records of one batch."""
        found = None if self._columns is None else self._columns.read(batch, number)
        return found or Chunk(*self._read(batch, number), None, self._kind)

    def _advance(self, partition: int, piece: Rows) -> tuple[Sequence[int], Sequence[int]]:
        """Let W move by the rows of one batch; see `Watermark.advance`."""
        if not piece.row_count or partition not in self.watermark.idle:
            return self._advance_awake(partition, piece)
        risen, level = self.watermark.wake(partition), self.watermark.level
        moved, reached = self._advance_awake(partition, piece)
        first = int(piece.rows[0])
        if risen and (not len(moved) or moved[0] != first):
            return [first, *moved], [level, *reached]
        return moved, reached

    def _advance_awake(self, partition: int, piece: Rows) -> tuple[Sequence[int], Sequence[int]]:
        if self._columns is not None and not isinstance(piece, Chunk):
            return self._columns.advance(self.watermark, partition, piece, exact=self.exact)
        rows = piece.as_chunk()
        if self.exact:
            return self.watermark.advance(partition, rows.rows, rows.times)
        return self.watermark.jump(partition, rows.rows, rows.times, self._newest_ms)

    def _whole(self, pieces: Sequence[Rows], batch: MicroBatch) -> Rows:
        """The rows of all batches, as columns where they can be."""
        whole = pieces[0].followed_by(pieces[1:]) if pieces else None
        if whole is None:
            whole = _joined([piece.as_chunk() for piece in pieces], self._kind)
        if isinstance(whole, Chunk):
            if len(whole.values) == batch.row_count:
                # A range costs nothing to search and says that every input row is here.
                whole = Chunk(range(batch.row_count), whole.times, whole.values, None, whole.kind)
            if self._columns is not None:
                return self._columns.framed(whole)
        return whole

    def _contribution(self, progress: Progress, woken: tuple[int, int] | None) -> Progress:
        """What the source contributes where others come in: nothing as long as it is quiet."""
        if self.node.clock == "wall" or (woken is None and not self.quiet):
            return progress
        if woken is None:
            return Progress(IDLE, [], [])
        row, level = woken
        if progress.rows and progress.rows[0] == row:
            return Progress(IDLE, progress.rows, progress.levels)
        return Progress(IDLE, [row, *progress.rows], [level, *progress.levels])

    def tick(self, tick: Tick) -> tuple[Progress, Progress]:
        """Let W rise by what a tick says; as `process` without rows."""
        before = self.watermark.level
        self.watermark.mark_idle(tick.idle.get(self.node.topic, ()))
        if self.node.clock == "wall" and tick.caught_up:
            self.watermark.raise_to(tick.now_ms - self.watermark.disorder_ms)
        if tick.level is not None:
            self.watermark.raise_to(tick.level)
        self.quiet = self.quiet or self.node.topic in tick.quiet
        level = self.watermark.level
        moved = level > before
        progress = Progress(before, [0] * moved, [level] * moved)
        return progress, self._contribution(progress, None)

    def _read(
        self, batch: MicroBatch, number: int
    ) -> tuple[Sequence[int], Sequence[int], list[object]]:
        """Row numbers, times and values of the good records of one batch."""
        part, node = batch.batches[number], self.node
        first = batch.first_rows[number]
        rows = range(first, first + part.record_count)
        rejected_before = self.faults.count
        values = self._decoded(batch, number, rows)
        newest: int | None = None
        if node.time is None:
            times: Sequence[object] = part.timestamps_ms
        else:
            # What is wrapped is called for each value, where reading many at once is of no use.
            kind = None if node.missing_time == "append_time" else self._kind
            getter = field_getter(node.time, values, kind)
            assert getter is not None
            if node.missing_time == "append_time":
                getter = _or_none(getter)
            if node.tombstones:
                getter = _or_deleted(getter)
            times = self._convert(values, getter, "cannot read the event time", batch, rows)
            if node.missing_time == "append_time" and None in times:
                times = _filled(times, part)
            if node.tombstones and None in values:
                times = _timed(times, values, part)
            ints = self._timed_by_int and self.faults.count == rejected_before
            newest = newest_ms(times, ints=ints, unsigned=ints and _is_unsigned(part))
            if newest is None:
                times = self._convert(times, to_ms, "bad event time", batch, rows)
        if node.max_ahead_ms is not None and part.append_timestamp_ms is not None:
            times = self._not_ahead(times, part.append_timestamp_ms, batch, rows)
        self._newest_ms = newest if self.faults.count == rejected_before else None
        if self.faults.count == rejected_before:
            return rows, times, values  # type: ignore[return-value]  # newest_ms or to_ms made sure
        good = [
            time is not REJECTED and value is not REJECTED
            for time, value in zip(times, values, strict=True)
        ]
        return (
            list(compress(rows, good)),
            list(compress(times, good)),  # type: ignore[arg-type]  # newest_ms or to_ms made sure
            list(compress(values, good)),
        )

    def _decoded(self, batch: MicroBatch, number: int, rows: range) -> list[object]:
        """The values of a batch, in one call where that is possible."""
        part = batch.batches[number]
        taken_in = self.node.source is not None and any(part.headers)
        if self._decode_joined is not None and not taken_in:
            joined = part.joined_values
            together = None if joined is None else self._decode_joined(*joined)
            if together is not None:
                return together
        raw: Sequence[object] = part.values
        if taken_in:
            raw = self._not_rejected(batch, number)
        return self._convert(raw, self._decode, "cannot decode the value", batch, rows)

    def _not_rejected(self, batch: MicroBatch, number: int) -> Sequence[object]:
        """The values of a batch, without what was no record when it was taken in."""
        part, first = batch.batches[number], batch.first_rows[number]
        values: Sequence[object] = part.values
        for index, headers in enumerate(part.headers):
            if headers and (reason := rejection(headers)) is not None:
                self.faults.reject(f"source {self.node.input_name}: {reason}", batch, first + index)
                values = list(values) if values is part.values else values
                values[index] = REJECTED  # type: ignore[index]  # a list by now
        return values

    def _not_ahead(
        self, times: Sequence[object], append_ms: int, batch: MicroBatch, rows: range
    ) -> Sequence[object]:
        """The times, those too far ahead of the append rejected: one bad clock must not move W."""
        limit_ms = append_ms + (self.node.max_ahead_ms or 0)
        if max((time for time in times if isinstance(time, int)), default=limit_ms) <= limit_ms:
            return times
        checked = list(times)
        for index, time in enumerate(times):
            if isinstance(time, int) and time > limit_ms:
                message = (
                    f"source {self.node.input_name}: the event time {time} is {time - append_ms} ms"
                    f" ahead of the append; max_ahead is {self.node.max_ahead_ms} ms"
                )
                self.faults.reject(message, batch, rows[index])
                checked[index] = REJECTED
        return checked

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
                message = f"source {self.node.input_name}: {problem}: {cause}"
                self.faults.reject(message, batch, rows[index], error)

        return convert(column, function, reject)


def _joined(pieces: Sequence[Chunk], kind: type | None) -> Chunk:
    """The rows of several batches, of one type."""
    rows: list[int] = []
    times: list[int] = []
    values: list[object] = []
    for piece in pieces:
        rows += piece.rows
        times += piece.times
        values += piece.values
    return Chunk(rows, times, values, None, kind)


def _exact_type(value_type: object) -> type | None:
    """The one type of all values that are decoded as `value_type`, if there is just one."""
    if value_type is dict:
        return dict
    struct = isinstance(value_type, type) and issubclass(value_type, msgspec.Struct)
    return value_type if struct else None  # type: ignore[return-value]  # a type if a struct


def _is_int(kind: type | None, field: Field) -> bool:
    """Whether the decoder has seen to it that `field` of a value is an int."""
    if kind is None or not isinstance(field, str) or not issubclass(kind, msgspec.Struct):
        return False
    if hasattr(kind, "__post_init__"):
        return False
    # A default is taken as it is.
    known = msgspec.structs.fields(kind)
    return any(each.name == field and each.type is int and each.required for each in known)


def _is_unsigned(part: InputBatch) -> bool:
    """Whether no number in the values of a batch can be negative: there is no minus in them."""
    joined = part.joined_values
    return joined is not None and joined[0].find(b"-", joined[1][0], joined[1][-1]) < 0


def _or_none(getter: Callable[[object], object]) -> Callable[[object], object]:
    """The getter, giving None for what is not there."""

    def read(value: object) -> object:
        try:
            return getter(value)
        except (KeyError, AttributeError):
            return None

    return read


class _TableDecoder:
    """Decodes the values of a table, where a record without a value says that its key is gone."""

    def __init__(self, decode: Callable[[object], object]) -> None:
        self._decode = decode

    def __call__(self, value: object) -> object:
        if value is None:
            return None
        decoded = self._decode(value)
        if decoded is None:
            raise ValueError("null is no value: a record without a value deletes its key")
        return decoded


def _or_deleted(getter: Callable[[object], object]) -> Callable[[object], object]:
    """The getter, giving None for a tombstone."""
    return lambda value: None if value is None else getter(value)


def _timed(times: Sequence[object], values: Sequence[object], part: InputBatch) -> list[object]:
    """The times, with the record's timestamp where there is no value to read one from."""
    return [
        own if value is None else time
        for time, value, own in zip(times, values, part.timestamps_ms, strict=True)
    ]


def _filled(times: Sequence[object], part: InputBatch) -> list[object]:
    """The times, with the record's own where there is none."""
    appended = part.append_timestamp_ms
    own = part.timestamps_ms if appended is None else repeat(appended)
    return [other if time is None else time for time, other in zip(times, own, strict=False)]
