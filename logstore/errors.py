"""The exception tree: every error says whether to retry, to fix the call or to give up.

    MillstreamError
        UsageError (ValueError)          fix the call
            UnknownTopicError (KeyError)     no such topic
            UnknownGroupError (KeyError)     no such consumer group
            UnknownPipelineError (KeyError)  no such pipeline has run, or it keeps no such state
            TopicExistsError
            MissingKeyError                  a record without a key for a compacted topic
            OffsetOutOfRangeError (IndexError)
            SequenceGapError                 a producer left out records
            MissingExtraError (ImportError)  a package of an extra is not installed
        DataError                        restore or skip; retrying will not help
            CorruptBatchError                a batch on disk fails its checks
            CorruptSegmentError              a segment is missing, foreign or out of place
            FormatVersionError               written by a newer or unknown format
            RecordError                      one record cannot be decoded or processed
        UnavailableError                 try again later, or after the named remedy
            LockedError                      another live process holds it
            StoreClosedError                 the handle was closed, or crossed a fork
            StorageError (OSError)           the operating system refused (full, read-only, denied)
            PoisonedError                    a sync failed: close and reopen the store
            BackpressureTimeoutError (TimeoutError)
            ConnectorError                   a source or sink outside the store failed
        FencedError                      somebody newer owns it: stop writing
        ConflictError                    somebody else appended first: look, and decide anew

Each carries `topic`, `partition`, `offset`, `path` and `position` (bytes) where known; they are
part of the message. Nothing here does any work beyond formatting.
"""

from __future__ import annotations

from typing import Self


class MillstreamError(Exception):
    """Base of all errors raised by Millstream.

    Attributes:
        topic: Topic name, or None.
        partition: Partition number, or None.
        offset: Record offset, or None.
        path: File or directory, or None.
        position: Byte position in `path`, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        topic: str | None = None,
        partition: int | None = None,
        offset: int | None = None,
        path: str | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.path = path
        self.position = position

    def at(
        self,
        *,
        topic: str | None = None,
        partition: int | None = None,
        offset: int | None = None,
        path: str | None = None,
        position: int | None = None,
    ) -> Self:
        """Fill in the places this error does not know yet; `raise error.at(...)`."""
        self.topic = topic if self.topic is None else self.topic
        self.partition = partition if self.partition is None else self.partition
        self.offset = offset if self.offset is None else self.offset
        self.path = path if self.path is None else self.path
        self.position = position if self.position is None else self.position
        return self

    def __str__(self) -> str:
        places = [
            f"{name} {value}"
            for name, value in (
                ("topic", self.topic),
                ("partition", self.partition),
                ("offset", self.offset),
                ("file", self.path),
                ("position", self.position),
            )
            if value is not None
        ]
        return f"{self.message} ({', '.join(places)})" if places else self.message


class UsageError(MillstreamError, ValueError):
    """The call is wrong; the message says what to change."""


class UnknownTopicError(UsageError, KeyError):
    """No topic of that name exists in this store."""


class UnknownGroupError(UsageError, KeyError):
    """No consumer group of that name exists in this store."""


class UnknownPipelineError(UsageError, KeyError):
    """No pipeline of that name has run over this store, or it has no such state."""


class TopicExistsError(UsageError):
    """The topic exists already, with other partitions or configuration."""


class MissingKeyError(UsageError):
    """A record for a compacted topic has no key, so nothing could ever replace it."""


class OffsetOutOfRangeError(UsageError, IndexError):
    """The offset is before the log start (retention removed it) or past the log end."""


class SequenceGapError(UsageError):
    """A named producer sent a record although those before it are missing. Send them first.

    `expected` is the sequence of the first one missing.
    """

    def __init__(self, message: str, *, expected: int, topic: str | None = None) -> None:
        super().__init__(message, topic=topic)
        self.expected = expected


class MissingExtraError(UsageError, ImportError):
    """Needs a package that is not installed; the message says which extra brings it."""


def missing_extra(what: str, package: str, extra: str) -> MissingExtraError:
    """The error for something that needs an extra.

    >>> str(missing_extra("Parquet", "pyarrow", "arrow"))
    "Parquet needs the package pyarrow: pip install 'millstream[arrow]'"
    """
    return MissingExtraError(
        f"{what} needs the package {package}: pip install 'millstream[{extra}]'"
    )


class DataError(MillstreamError):
    """The data is not what it should be. Restore or skip it; retrying will not help."""


class CorruptBatchError(DataError):
    """A batch on disk fails its checks below the durable watermark. Restore the segment."""


class CorruptSegmentError(DataError):
    """A segment file is missing, damaged in its header, foreign or out of place."""


class FormatVersionError(DataError):
    """The bytes were written by a format version or feature this version does not know."""


class RecordError(DataError):
    """One record cannot be decoded or processed; topic, partition and offset say which."""


class UnavailableError(MillstreamError):
    """Not possible now. Try again later, or after the remedy the message names."""


class LockedError(UnavailableError):
    """Another live process holds the lock; the message names it where known."""


class UndecidedError(UnavailableError):
    """The database that knows what became of a transaction is gone: its records stay unseen.

    `path` is where it was. Put it back, or give the transaction up.
    """


class StoreClosedError(UnavailableError):
    """The store, producer or consumer was closed, or belongs to the process before a fork."""


class StorageError(UnavailableError, OSError):
    """The operating system refused a file operation: disk full, read-only, permission, I/O.

    `errno` is the operating system's number.
    """

    def __init__(self, message: str, *, errno: int, path: str, position: int | None = None) -> None:
        super().__init__(message, path=path, position=position)
        self.errno = errno


class PoisonedError(UnavailableError):
    """A sync of this partition failed, so what is on disk is unknown. Close and reopen the store.

    The operating system may have dropped the dirty pages, so a second sync would report a success
    that means nothing. Reopening re-verifies the log from disk.
    """


class BackpressureTimeoutError(UnavailableError, TimeoutError):
    """The producer's byte bound stayed full for the whole timeout."""


class ConnectorError(UnavailableError):
    """A source or sink outside the store failed, as often as it was tried.

    `connector` is its name; for a sink, topic, partition and offset say from which record on the
    delivery is still to be done. What has been taken in or delivered before stays so.
    """

    def __init__(
        self,
        message: str,
        *,
        connector: str,
        topic: str | None = None,
        partition: int | None = None,
        offset: int | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message, topic=topic, partition=partition, offset=offset, path=path)
        self.connector = connector


class FencedError(MillstreamError):
    """Somebody newer owns the partition, transaction or pipeline. Stop writing and start again."""


def unknown_topic(name: str) -> UnknownTopicError:
    """The error for a topic that is not there."""
    return UnknownTopicError("there is no such topic: make it with create_topic()", topic=name)


def outside_log(
    topic: str, partition: int, offset: int, start: int, end: int
) -> OffsetOutOfRangeError:
    """The error for an offset that cannot be read next in a log that holds [start, end)."""
    return OffsetOutOfRangeError(
        f"offset {offset} is outside the log, which holds {start} to {end}",
        topic=topic,
        partition=partition,
        offset=offset,
    )


def full_partition(topic: str, partition: int, log_end: int) -> UsageError:
    """The error for records beyond the last offset there is."""
    return UsageError(
        "the partition is full: offsets stay below 2**63 - 1. Append to another topic",
        topic=topic,
        partition=partition,
        offset=log_end,
    )


def not_bytes(what: str, value: object) -> UsageError:
    """The error for a key or value of another type.

    >>> str(not_bytes("key", "u1"))
    "key must be bytes or None, not str: encode it, 'u1'.encode() say"
    """
    how = f"{value[:20]!r}.encode()" if isinstance(value, str) else "msgspec.json.encode(...)"
    return UsageError(
        f"{what} must be bytes or None, not {type(value).__name__}: encode it, {how} say"
    )


def missing_key(topic: str, partition: int | None = None) -> MissingKeyError:
    """The error for a record without a key in a compacted topic."""
    return MissingKeyError(
        "the topic is compacted, and a record without a key can never be replaced: give every"
        " record a key",
        topic=topic,
        partition=partition,
    )


class ConflictError(MillstreamError):
    """The log was not as a conditional append expects it; nothing was appended.

    Read what is new, and decide again. `offset` is what was found: the log end, or the offset of
    the last record of the key (-1: there is none).
    """
