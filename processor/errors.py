"""Errors of user functions, told with the record that caused them.

A column of values goes through a function in one C-level pass. When it raises, the iterator still
knows how many values it has not handed out, so the culprit is found at no cost per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import NoReturn, TypeVar

from millstream import RecordError

from .columns import Chunk, MicroBatch

T = TypeVar("T")
U = TypeVar("U")


def reason(error: BaseException) -> str:
    """The error in one line: `KeyError: 'amount'`."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def record_error(message: str, batch: MicroBatch, row: int) -> RecordError:
    """A RecordError that names the input record of `row`."""
    place = batch.place(row)
    if place is None:
        return RecordError(message)
    return RecordError(message, topic=place.topic, partition=place.partition, offset=place.offset)


def fail(label: str, error: Exception, batch: MicroBatch, row: int) -> NoReturn:
    """Raise what a user function raised, as a RecordError naming operator and record.

    An error of our own kind raised inside (by a store the function uses, say) is chained as well:
    the caller must see which record was being processed.
    """
    raise record_error(f"{label}: {reason(error)}", batch, row) from error


def apply(
    function: Callable[[T], U], column: Sequence[T], label: str, batch: MicroBatch, chunk: Chunk
) -> list[U]:
    """`function` of every value of a column of `chunk`.

    Raises:
        RecordError: It raised; the message names the operator `label` and the record.
    """
    remaining = iter(column)
    try:
        results = list(map(function, remaining))
    except Exception as error:
        fail(label, error, batch, chunk.rows[failed_index(column, remaining)])
    if len(results) != len(column):
        # map() takes a StopIteration of the function for the end of its input.
        stopped = RuntimeError("the function raised StopIteration")
        fail(label, stopped, batch, chunk.rows[len(results)])
    return results


def failed_index(column: Sequence[T], remaining: Iterator[T] | Iterable[T]) -> int:
    """Index of the value last taken from `remaining`, an iterator over `column`."""
    return len(column) - length_hint(remaining) - 1
