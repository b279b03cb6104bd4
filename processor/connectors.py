"""What a source or sink outside the store is: two protocols, and the values they exchange.

A source is *ingested*: `ingest.py` copies its records into an internal topic and keeps its position
in the same transaction, so that it becomes a log like any other. What is to leave the store waits
in an internal topic too, the outbox, from where `deliver.py` hands it to a sink. Nothing here does
any of that, and no pipeline is known here; docs/concepts/connectors.md shows how to write your own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from millstream import (
    Clock,
    Headers,
    PosixStorage,
    Record,
    Storage,
    SystemClock,
    UsageError,
    UserDatabase,
)

from .printing import print_text

SOURCES: Final = "millstream.sources"
SINKS: Final = "millstream.sinks"
"""The entry points under which packages offer theirs."""

Position: TypeAlias = Any
"""Where a source stands: plain data (None, bool, int, float, str, bytes, lists and dicts of them).
None is the beginning. What it means is the source's own business."""

DeliveryKind: TypeAlias = Literal["transactional", "idempotent", "at_least_once"]
"""What a sink makes of a delivery that is repeated after a crash.

transactional: it keeps the position together with the rows, and is asked for it at the start.
idempotent: the same records, cut at the same offsets, replace what was there. at_least_once: they
come twice, and a warning in the log says so."""

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,80}")


class SourceRecord(NamedTuple):
    """A record of a source, where a value alone is not enough.

    >>> SourceRecord(b"1", key=b"u1")
    SourceRecord(value=b'1', key=b'u1', timestamp_ms=None, headers=())
    """

    value: object
    """Bytes as they are, None a tombstone, anything else becomes JSON."""
    key: bytes | None = None
    timestamp_ms: int | None = None
    """UTC ms; None for the time at which it is taken in."""
    headers: Headers = ()


class Rejected(NamedTuple):
    """Something in a source that is no record."""

    value: bytes
    """As found."""
    reason: str
    line: int | None = None
    """Its first line, from 1; of what has no lines, the number of the item."""


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Some records of one partition of a source, as columns, and the position behind them.

    >>> SourceBatch([b"1", b"2"], position=2).position
    2
    """

    values: Sequence[bytes | None]
    position: Position
    keys: Sequence[bytes | None] | None = None
    timestamps_ms: Sequence[int] | None = None
    """None for the time at which they are taken in."""
    headers: Sequence[Headers] | None = None
    rejected: Sequence[Rejected] = ()
    path: str | None = None
    """The file they are from, for messages."""
    lines: Sequence[int] | None = None
    """The line each value begins on, or the number of the item, for messages."""


class Source(Protocol):
    """Records from outside: partitioned, and readable again from any position it has given.

    Called from one thread. Whatever it raises that is not a `MillstreamError` becomes a
    `ConnectorError`. It may be any object with these members; a class that inherits from this one
    has the defaults.

    >>> class Squares(Source):
    ...     name = "squares"
    ...
    ...     def partitions(self) -> Sequence[str]:
    ...         return ["all"]
    ...
    ...     def open(self, partition: str, position: Position) -> Iterator[SourceBatch]:
    ...         for number in range(position or 0, 3):
    ...             yield SourceBatch([b"%d" % number**2], position=number + 1)
    >>> [batch.values for batch in Squares().open("all", 1)]
    [[b'1'], [b'4']]
    """

    name: str
    """1 to 80 of A-Z a-z 0-9 . _ -: its identity within a pipeline."""

    blocking: bool = True
    """Whether a batch may be long in coming. If so, the pipeline commits before it asks for one."""

    topic_partitions: int = 1
    """Partitions of the topic it is copied into; partition i of the source goes to partition i
    modulo this. With 1 the topic has the records in the order they were taken in."""

    def partitions(self) -> Sequence[str]:
        """The parts of the source, in the order they are read; asked again now and then.

        A part keeps its name. New ones are added at the end if `topic_partitions` is not 1.
        """
        ...

    def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
        """The records behind `position`, in bounded batches.

        None, or a batch without records, says that there is nothing now: it is asked again later.
        The end of the iterator is the end of the partition.
        """
        ...


class MeasuredSource(Source, Protocol):
    """A source that can say how far behind reading is, for metrics."""

    def behind_bytes(self, partition: str, position: Position) -> int | None:
        """Bytes of a partition behind a position; None if that cannot be told now."""
        ...


class RefusedRecords(Exception):  # noqa: N818 - says what a sink does, not that something broke
    """Raised by a `SinkWriter`: it cannot take some records, and has delivered nothing.

    Args:
        reasons: Why, by offset.
        retry: Whether trying again may help.

    >>> RefusedRecords({7: "no such user"}).reasons
    {7: 'no such user'}
    """

    def __init__(self, reasons: Mapping[int, str], *, retry: bool = False) -> None:
        super().__init__(", ".join(f"offset {at}: {why}" for at, why in reasons.items()))
        self.reasons = dict(reasons)
        self.retry = retry


class SinkWriter(Protocol):
    """A sink that has been opened. Used by one thread."""

    def position(self) -> int | None:
        """The offset up to which a transactional sink has the outbox; None if it has nothing of it.

        Other sinks return None.
        """
        ...

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        """Deliver the records of the outbox in the offsets [first, following), all or nothing.

        They are the outputs of whole epochs, in order. `RefusedRecords` names those that cannot
        be delivered: they may become dead letters, and the rest comes again without them. A
        `UsageError`, `DataError` or `FencedError` ends the delivery; any other exception is tried
        again, with the same arguments.
        """
        ...

    def close(self) -> None:
        """Let go. Idempotent."""
        ...


class Sink(Protocol):
    """A place outside the store that takes records.

    >>> class Collected(Sink):
    ...     name = "collected"
    ...     delivery = "at_least_once"
    ...
    ...     def __init__(self) -> None:
    ...         self.values: list[bytes | None] = []
    ...
    ...     def open(self, outbox: str) -> "Collected":
    ...         return self
    ...
    ...     def position(self) -> None:
    ...         return None
    ...
    ...     def write(self, records: Sequence[Record], first: int, following: int) -> None:
    ...         self.values += [record.value for record in records]
    ...
    ...     def close(self) -> None:
    ...         pass
    """

    name: str
    """1 to 80 of A-Z a-z 0-9 . _ -: its identity within a pipeline."""

    delivery: DeliveryKind

    def open(self, outbox: str) -> SinkWriter:
        """Begin to write.

        Args:
            outbox: Names the outbox among those of all stores, for ever: positions in one say
                nothing about another.
        """
        ...


class CheckingSink(Sink, Protocol):
    """A sink that can say what it would refuse without being opened: `Pipeline.test` asks it."""

    def check(self, records: Sequence[Record]) -> None:
        """Look at records that might be delivered.

        Raises:
            RefusedRecords: Some cannot be, wherever the sink is and whatever it holds.
        """
        ...


class SinkDifference(NamedTuple):
    """The first place where a sink holds something else than a replay gives."""

    place: str
    """Where it was found: file and line, or table, row and column."""
    expected: str | None
    """What a replay gives, as text; None where it gives nothing."""
    found: str | None
    """What is there; None where nothing is."""

    def __str__(self) -> str:
        found = "nothing" if self.found is None else self.found
        expected = "nothing" if self.expected is None else self.expected
        return f"{self.place}: found {found}, a replay gives {expected}"


class NotComparable(Exception):  # noqa: N818 - says what cannot be done, not that something broke
    """Raised by a `ComparableSink`: what it holds cannot be told, for the reason given.

    >>> str(NotComparable("the queue was emptied"))
    'the queue was emptied'
    """


class Replayed(Protocol):
    """What a replay gives for a sink: what it should have been delivered."""

    start: int
    """Offset of the outbox where it begins. 0: with the first record there ever was; otherwise the
    sink holds more, of before."""

    passed: int
    """So many of the first records may be others than those that were delivered. They are here
    because as many were."""

    position: int
    """Up to this offset of the outbox the sink was delivered to, as the store knows, and the replay
    goes. A pipeline that is running may have delivered more."""

    def records(self, position: int | None = None, *, begin: int = 0) -> Iterator[Record]:
        """The records up to an offset of the outbox, but for those which the sink has refused.

        Their own offsets number them; those of the outbox are not known any more.

        Args:
            position: `self.position` if None. A sink that knows its position better says so.
            begin: Passes over so many.

        Raises:
            OffsetOutOfRangeError: The outbox does not reach there, or does not begin before it.
        """
        ...


class ComparableSink(Sink, Protocol):
    """A sink that can be read back: `verify` compares it with what a replay gives."""

    def compare(self, outbox: str, replayed: Replayed) -> SinkDifference | None:
        """Hold what the sink has against what a replay gives; changes nothing.

        Args:
            outbox: As in `open`.
            replayed: The records which should have been delivered.

        Returns:
            The first difference; None if there is none.

        Raises:
            NotComparable: It cannot be told.
        """
        ...


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a delivery that fails is tried, and how long the pauses are.

    >>> [Retry(attempts=4, pause_ms=100, pause_max_ms=300).pause_after(n) for n in (1, 2, 3)]
    [100, 200, 300]
    """

    attempts: int = 6
    """The first one included. A delivery that comes further has them all again."""
    pause_ms: int = 100
    """After the first failure; it doubles each time."""
    pause_max_ms: int = 10_000

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.pause_ms < 0 or self.pause_max_ms < 0:
            raise UsageError("retry: at least one attempt, and pauses that are not negative")

    def pause_after(self, failures: int) -> int:
        """Milliseconds to wait after so many failures."""
        return min(self.pause_max_ms, self.pause_ms << min(failures - 1, 30))


DEFAULT_RETRY: Final = Retry()


class Outside:
    """Where sources and sinks find files, databases and time: the seam for tests of them."""

    clock: Clock = SystemClock()

    def directory(self, path: str, *, read_only: bool = False) -> Storage:
        """The directory at `path`, created unless `read_only`.

        Raises:
            StorageError: It is not there (ENOENT), or the system refuses.
        """
        return PosixStorage(path, read_only=read_only)

    def database(self, path: str, *, read_only: bool = False) -> UserDatabase:
        """The SQLite database at `path`; see `UserDatabase`."""
        return UserDatabase(path, clock=self.clock, read_only=read_only)

    def print_lines(self, lines: Iterable[str]) -> None:
        """Write lines to standard output, all of them, and flush it; see `print_text`."""
        print_text("".join([f"{line}\n" for line in lines]), flush=True)


OUTSIDE: Final = Outside()
"""The world as it is."""


def check_connector_name(name: str, what: str) -> str:
    """Return `name` if a source or sink can have it, else raise UsageError.

    >>> check_connector_name("orders", "sink")
    'orders'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {".", ".."}:
        raise UsageError(f"{name!r} is not the name of a {what}: use 1 to 80 of A-Z a-z 0-9 . _ -")
    return name


def name_from(text: str, fallback: str) -> str:
    """A name for what the user gave none: what is legal of `text`.

    >>> name_from("in/2026-*.jsonl", "files")
    'in-2026.jsonl'
    """
    legal = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return re.sub(r"-+\.", ".", legal)[-80:].strip("-.") or fallback


def plugin(group: str, name: str) -> Callable[..., Any]:
    """What an installed package offers under an entry point: it makes the source or sink.

    Args:
        group: `SOURCES` or `SINKS`.
        name: Of the entry point.

    Raises:
        UsageError: Nobody offers it, or two packages do; nothing else is offered under `group`.

    >>> plugin(SOURCES, "jsonl")("in/*.jsonl").name
    'in.jsonl'
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - loads half of email

    if group not in {SOURCES, SINKS}:
        raise UsageError(f"plugin({group!r}): packages offer {SOURCES!r} and {SINKS!r}")
    offers = list(entry_points(group=group, name=name))
    if len(offers) != 1:
        known = ", ".join(sorted(entry_points(group=group).names))
        number = "several installed packages offer" if offers else "no installed package offers"
        raise UsageError(f"{number} {name!r} as {group}; there are: {known}")
    made: Callable[..., Any] = offers[0].load()
    return made
