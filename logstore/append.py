"""From what users pass to `append` to encoded batches with their logs.

Partitioning lives here: a keyed record belongs to partition xxh3_64(key) mod n, frozen by golden
vectors, because a key that moved would lose its order; unkeyed calls take the partitions in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from xxhash import xxh3_64_intdigest

from .batch import EncodedBatch
from .column_batch import declared_keys, encode_values
from .config import Durability, TopicInfo, whole_number
from .engine import Engine
from .errors import UsageError, missing_key, not_bytes
from .group_append import GroupAppend
from .log import Log
from .lone_append import Row
from .record import Headers, RecordMetadata
from .record_ids import record_id
from .tail import TOPICS_VERSION_WORD


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key. Part of the format: the same for ever, in every process.

    Raises:
        UsageError: The key is not bytes, or there are no partitions.

    >>> partition_of(b"u1", 4), partition_of(b"", 4)
    (1, 2)
    """
    try:
        return xxh3_64_intdigest(key) % partitions
    except (TypeError, ZeroDivisionError):  # looked at only now: this is done for every record
        if key is None:
            raise UsageError("records without a key take the partitions in turn") from None
        if not isinstance(key, bytes | bytearray | memoryview):
            raise not_bytes("key", key) from None
        raise UsageError(f"a topic has one partition or more, not {partitions!r}") from None


def _partition_of_id(headers: Headers, partitions: int) -> int | None:
    """Where a record without a key goes, so that one with the same id finds it; None: no id."""
    found = record_id(headers) if headers else None
    return None if found is None else partition_of(found, partitions)


_COLUMNS: Final = ("values", "keys", "timestamps_ms", "headers")


class _Route(NamedTuple):
    topic: str
    version: int
    needs_key: bool
    has_schema: bool
    groups: list[GroupAppend | None]


class Appender:
    """Encodes records for an engine. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shared = engine.tail.shared
        self._turn = itertools.count()
        self._routes: dict[str, _Route] = {}
        self._groups: WeakKeyDictionary[Log, GroupAppend] = WeakKeyDictionary()

    def encode_one(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        timestamp_ms: int | None,
        headers: Headers,
        partition: int | None,
    ) -> tuple[Log, EncodedBatch]:
        """One record as a batch and the log it goes to."""
        info = self._engine.topic(topic)
        if key is None and (keys := self._declared_keys(info, (value,), None)):
            (key,) = keys
        if key is None and info.config.compact:
            raise missing_key(topic)
        if key is None and partition is None and info.config.dedup_ms is not None:
            partition = _partition_of_id(headers, info.partitions)
        log = self._log_of(info, key, partition)
        columns = (
            (value,),
            None if key is None else (key,),
            None if timestamp_ms is None else (timestamp_ms,),
            (headers,) if headers else None,
        )
        return log, _encoded(info, columns)

    def looks_at_ids(self, topic: str) -> bool:
        """Whether records of the topic are told apart by their ids."""
        return self._engine.topic(topic).config.dedup_ms is not None

    def append(
        self, topic: str, row: Row, partition: int | None, mode: Durability
    ) -> RecordMetadata | None:
        """Append one record, sharing batch and sync, if any, with other threads that do so now.

        None if its topic has a schema: nothing was done.
        """
        try:
            route = self._routes.get(topic)
        except TypeError:  # a list, say: to be told
            route = None
        words = self._shared.view
        if route is None or not words or route.version != words[TOPICS_VERSION_WORD]:
            route = self._route(topic)
        if route.has_schema:
            return None
        if route.needs_key and row[1] is None:
            raise missing_key(topic)
        if partition is None:
            partition = self._partition(len(route.groups), row[1])
        elif partition.__class__ is not int:
            partition = whole_number(partition, "a partition")
        group = route.groups[partition] if 0 <= partition < len(route.groups) else None
        if group is None:
            group = self._group(route, partition)
        offset, timestamp_ms = group.append(row, mode)
        return tuple.__new__(RecordMetadata, (topic, partition, offset, timestamp_ms))

    def _route(self, topic: str) -> _Route:
        engine = self._engine
        version = engine.tail.get("topics_version")
        info = engine.topic(topic)
        route = self._routes[topic] = _Route(
            topic,
            version,
            info.config.compact,
            info.config.schema is not None,
            [None] * info.partitions,
        )
        return route

    def _group(self, route: _Route, partition: int) -> GroupAppend:
        log = self._engine.log(route.topic, partition)
        group = self._groups.get(log)
        if group is None:
            group = self._groups.setdefault(log, GroupAppend(self._engine, log))
        route.groups[partition] = group
        return group

    def _partition(self, partitions: int, key: bytes | None) -> int:
        if partitions == 1:
            return 0
        if key is None:
            return next(self._turn) % partitions
        return partition_of(key, partitions)

    def _log_of(self, info: TopicInfo, key: bytes | None, partition: int | None) -> Log:
        if partition is None:
            partition = self._partition(info.partitions, key)
        return self._engine.log(info.name, partition)

    def _declared_keys(
        self,
        info: TopicInfo,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
    ) -> Sequence[bytes | None] | None:
        """The keys as given, and as the declared column says where there is none."""
        if info.config.key_column is None or (keys is not None and None not in keys):
            return keys
        try:
            declared = declared_keys(info.config, values)
        except UsageError as error:
            raise error.at(topic=info.name) from error.__cause__
        if keys is None:
            return declared
        if len(keys) != len(declared):
            return keys  # refused later, as are other columns of another length
        return [own if key is None else key for key, own in zip(keys, declared, strict=True)]

    def encode_many(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        timestamps_ms: Sequence[int] | None,
        partition: int | None,
        *,
        headers: Sequence[Headers] | None,
    ) -> list[tuple[Log, EncodedBatch]]:
        """Columns of records as one batch per partition, in partition order."""
        info = self._engine.topic(topic)
        _require_columns(info, (values, keys, timestamps_ms, headers))
        if not len(values):
            return []
        keys = self._declared_keys(info, values, keys)
        columns = (values, keys, timestamps_ms, headers)
        if info.config.compact and (keys is None or None in keys):
            raise missing_key(topic)
        if partition is None and info.partitions == 1:
            partition = 0
        by_id = headers is not None and info.config.dedup_ms is not None
        if partition is None and keys is None and by_id:
            keys = [None] * len(values)
            columns = (values, keys, timestamps_ms, headers)
        if partition is None and keys is None:
            partition = next(self._turn) % info.partitions
        if partition is not None:
            log = self._engine.log(topic, partition)
            return [(log, _encoded(info, columns))]
        assert keys is not None
        if len({len(column) for column in columns if column is not None}) != 1:
            raise UsageError("values, keys, timestamps_ms and headers must be of equal length")
        batches = []
        numbers = self._rows_by_partition(info, keys, headers if by_id else None)
        for number, rows in enumerate(numbers):
            if rows:
                parts = [
                    None if column is None else [column[row] for row in rows] for column in columns
                ]
                log = self._engine.log(topic, number)
                batches.append((log, _encoded(info, parts, rows)))
        return batches

    def _rows_by_partition(
        self, info: TopicInfo, keys: Sequence[bytes | None], headers: Sequence[Headers] | None
    ) -> list[list[int]]:
        """The rows of each partition; those without a key follow their ids in `headers`."""
        rows: list[list[int]] = [[] for _ in range(info.partitions)]
        unkeyed = next(self._turn) % info.partitions
        try:
            numbers = [
                unkeyed if key is None else xxh3_64_intdigest(key) % info.partitions for key in keys
            ]
        except TypeError as error:
            raise UsageError(f"keys must be bytes or None: {error}", topic=info.name) from None
        if headers is not None:
            for row, key in enumerate(keys):
                number = _partition_of_id(headers[row], info.partitions) if key is None else None
                numbers[row] = numbers[row] if number is None else number
        for row, number in enumerate(numbers):
            rows[number].append(row)
        return rows


def _require_columns(info: TopicInfo, columns: tuple[object, ...]) -> None:
    """Refuse what has no entries, one per record: text and a frame have others."""
    if columns[0].__class__ is list and columns[1] is columns[2] is columns[3] is None:
        return  # as most calls are
    for name, column in zip(_COLUMNS, columns, strict=True):
        if column.__class__ is list or (column is None and name != "values"):
            continue
        if isinstance(column, str | bytes | Mapping) or not isinstance(column, Sized):
            raise UsageError(
                f"{name} must be a sequence, such as a list, with one entry per record, not"
                f" {type(column).__name__}",
                topic=info.name,
            )


def _encoded(
    info: TopicInfo, columns: Sequence[Any], numbers: Sequence[int] | None = None
) -> EncodedBatch:
    """A batch of records; one that does not fit is told with the topic and its number in the call.

    Args:
        info: The topic.
        columns: Values, keys, timestamps and headers.
        numbers: Which of the records of the call these are, if not all.
    """
    values, keys, timestamps_ms, headers = columns
    try:
        return encode_values(info.config, values, keys, timestamps_ms, headers, numbers)
    except UsageError as error:
        raise error.at(topic=info.name) from error.__cause__
