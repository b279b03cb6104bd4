"""Errors of user functions, told with the record that caused them.

A column of values goes through a function in one C-level pass. When it raises, the iterator still
knows how many values it has not handed out, so the culprit is found at no cost per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import length_hint
from typing import Any, Final, NoReturn, TypeVar

from millstream import ConnectorError, MillstreamError, RecordError

from .columns import Chunk, MicroBatch
from .connectors import NotComparable
from .fields import ComputedField
from .printing import NobodyReadsError

T = TypeVar("T")
U = TypeVar("U")

_ONE_ROW: Final = (str, bytes, dict)
"""Types that can be iterated over, but which a function that returns one meant as a row."""


def several(rows: object) -> Iterable[Any]:
    """The rows that a user function returned.

    Raises:
        TypeError: It returned one, or none at all. One str is iterable, too, and so is a dict.
    """
    if isinstance(rows, Iterable) and not isinstance(rows, _ONE_ROW):
        return rows
    raise TypeError(
        f"the function must return an iterable of rows, not {type(rows).__name__}: a list of one"
        " where there is one"
    )


def reason(error: BaseException) -> str:
    """The error in one line: `KeyError: 'amount'`."""
    try:
        text = str(error)
    except Exception:  # it is of the user's kind, and cannot even say what it is
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def connector_errors(connector: str, topic: str, what: str) -> Iterator[None]:
    """What a source or sink raises, as a ConnectorError that begins with `what`.

    Errors of ours are raised as they are, and so is what says that a sink cannot be compared.
    """
    try:
        yield
    except (MillstreamError, NotComparable):
        raise
    except Exception as error:
        message = f"{what}: {reason(error)}"
        raise ConnectorError(message, connector=connector, topic=topic) from error


def record_error(message: str, batch: MicroBatch, row: int) -> RecordError:
    """A RecordError that names the input record of `row`."""
    place = batch.place(row)
    if place is None:
        return RecordError(message)
    return RecordError(message, topic=place.topic, partition=place.partition, offset=place.offset)


def fail(label: str, error: Exception, batch: MicroBatch, row: int) -> NoReturn:
    """Raise what a user function raised, as a RecordError naming operator and record.

    An error of our own kind raised inside (by a store the function uses, say) is chained as well:
    the caller must see which record was being processed. That nobody reads what is printed is no
    fault of a record.
    """
    if isinstance(error, NobodyReadsError):
        raise error
    raise record_error(f"{label}: {reason(error)}", batch, row) from error


def stopped() -> RuntimeError:
    """For a function that raised StopIteration, which map() takes for the end of its input."""
    return RuntimeError("the function raised StopIteration")


class _Rejected:
    """Stands for the result of a function that raised."""


REJECTED: Final = _Rejected()


def convert(
    column: Sequence[T], function: Callable[[T], U], reject: Callable[[int, Exception], None]
) -> list[U]:
    """`function` of every value, in one C-level pass as long as nothing is wrong.

    Where it raises, `reject` is called with index and error, and `REJECTED` stands for the result.
    """
    if isinstance(function, ComputedField):
        # Where it raises, the passes below find out which values are to blame.
        with suppress(Exception):
            return function.evaluate(column)
    remaining = iter(column)
    results: list[U] = []
    while True:
        error: Exception
        try:
            results += map(function, remaining)
        except Exception as raised:
            error = raised
        else:
            if len(results) == len(column):
                return results
            error = stopped()
        reject(len(results), error)
        results.append(REJECTED)  # type: ignore[arg-type]  # for those who asked for it


def apply(
    function: Callable[[T], U], column: Sequence[T], label: str, batch: MicroBatch, chunk: Chunk
) -> list[U]:
    """`function` of every value of a column of `chunk`.

    Raises:
        RecordError: It raised; the message names the operator `label` and the record.
    """

    def reject(index: int, error: Exception) -> NoReturn:
        fail(label, error, batch, chunk.rows[index])

    return convert(column, function, reject)


def failed_index(column: Sequence[T], remaining: Iterator[T] | Iterable[T]) -> int:
    """Index of the value last taken from `remaining`, an iterator over `column`."""
    return len(column) - length_hint(remaining) - 1
