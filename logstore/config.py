"""What a topic is and how it may be configured: frozen, validated values. No I/O.

Values arrive from users in their own units ("7d", "10GB", timedelta) through `from_options`, and
are whole numbers with the unit in the name from there on. The stored form is JSON
(`to_json`/`from_json`) in the catalog; a field missing there takes its default, so a field can be
added later, and an unknown one was written by a newer version and is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, SupportsIndex, TypeAlias, get_args

from .errors import DataError, FormatVersionError, UsageError
from .positions import parse_duration_ms, parse_size_bytes
from .record import TopicPartition
from .topic_schema import stored_schema

Durability: TypeAlias = Literal["sync", "interval", "os"]
"""When an append is acknowledged. sync: after fdatasync, shared by all who wait. interval: after
the write, synced at most some 100 ms later. os: after the write; the kernel decides the rest."""

_DURABILITIES: Final = get_args(Durability)

Isolation: TypeAlias = Literal["committed", "uncommitted"]
"""committed: wait for open transactions and skip aborted ones. uncommitted: read everything."""

Compression: TypeAlias = Literal["none", "lz4", "zstd"]
"""Codec of the batches appended from now on; batches already written keep theirs."""

KIB: Final = 1024
MIB: Final = 1024 * KIB
DAY_MS: Final = 86_400_000

SEGMENT_BYTES_MIN: Final = 4 * KIB
SEGMENT_BYTES_MAX: Final = 2048 * MIB
PARTITIONS_MAX: Final = 4096
"""Each partition is a directory, an open file and a row; more than this is a mistake."""

INTERNAL_KINDS: Final = ("@state", "@source", "@sink", "@journal")
"""Topics kept for pipelines: state, what came from outside, what is to go there, ticks."""

_SCHEMA_FIELDS: Final = ("schema", "values", "key_column", "time_column")

_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,200}", re.ASCII)


def check_durability(durability: str) -> str:
    """Return `durability` if it is one, else raise UsageError: a typo must not weaken it.

    >>> check_durability("os")
    'os'
    """
    if durability not in _DURABILITIES:
        raise UsageError(f"durability is {durability!r}; choose {', '.join(_DURABILITIES)}")
    return durability


def check_topic_name(name: str) -> str:
    """Return `name` if it is a user's topic name, else raise UsageError.

    A topic is a directory, so the alphabet is what every file system takes.

    >>> check_topic_name("orders.late")
    'orders.late'
    """
    if not isinstance(name, str) or not _TOPIC_NAME.fullmatch(name) or name in {".", ".."}:
        raise UsageError(
            f"{name!r} is not a topic name: use 1 to 200 of A-Z a-z 0-9 . _ - (not '.' or '..')"
        )
    return name


def path_text(path: str | os.PathLike[str]) -> str:
    """`path` as text that the system and SQLite take, else raise UsageError.

    >>> path_text("shop/store")
    'shop/store'
    """
    try:
        place: object = os.fspath(path)
    except TypeError:
        place = path
    if not isinstance(place, str):
        raise UsageError(f"{place!r:.300} is no path: give a str, or a pathlib.Path")
    try:
        place.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the path {place!r} is not UTF-8: rename the directory") from None
    if "\0" in place:
        raise UsageError(f"the path {place!r} has a NUL byte, which no file name can have")
    return place


def check_internal_name(name: str) -> str:
    """Return `name` if it is an internal topic ("@state/<pipeline>/<operator>"), else UsageError.

    >>> check_internal_name("@state/revenue/window-1")
    '@state/revenue/window-1'
    """
    parts = name.split("/")
    if len(parts) != 3 or parts[0] not in INTERNAL_KINDS:
        kinds = ", ".join(INTERNAL_KINDS)
        raise UsageError(
            f"{name!r} is not an internal topic name: <kind>/<pipeline>/<name>, a kind is {kinds}"
        )
    for part in parts[1:]:
        check_topic_name(part)
    return name


def check_group_name(name: str) -> str:
    """Return `name` if a consumer group can have it, else raise UsageError.

    >>> check_group_name("billing")
    'billing'
    """
    return check_printable_name(name, "a group name")


def check_checkpoint_name(name: str) -> str:
    """Return `name` if a checkpoint can have it, else raise UsageError."""
    # Pipelines join several names of their users.
    return check_printable_name(name, "the name of a checkpoint", most=1000)


def check_printable_name(name: str, what: str, *, most: int = 200) -> str:
    """Return `name` if it has 1 to `most` printable characters, else raise UsageError."""
    if not isinstance(name, str) or not 1 <= len(name) <= most or not name.isprintable():
        raise UsageError(f"{name!r:.300} is not {what}: use 1 to {most} printable characters")
    return name


def whole_number(value: object, what: str) -> int:
    """`value` as an int: one of NumPy, too, but no bool and no float, else raise UsageError.

    >>> whole_number(3, "a partition")
    3
    """
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        return value.__index__()
    raise UsageError(f"{what} must be a whole number, not {value!r:.60}")


def topic_names(topics: object) -> tuple[str, ...]:
    """One name or several as a tuple, each once, else raise UsageError. They are not looked up.

    >>> topic_names("a"), topic_names(["a", "b", "a"])
    (('a',), ('a', 'b'))
    """
    try:
        names = (topics,) if isinstance(topics, str) else tuple(dict.fromkeys(topics))  # type: ignore[call-overload]  # TypeError is an answer
    except TypeError:
        raise UsageError(f"{topics!r:.60} are no topics: give a name, or a list of them") from None
    return names


def checked_place(place: object) -> TopicPartition:
    """`place` as a partition of a topic, else raise UsageError. Whether it exists is not asked.

    >>> checked_place(("orders", 0))
    TopicPartition(topic='orders', partition=0)
    """
    if not isinstance(place, tuple) or len(place) != 2 or not isinstance(place[0], str):
        raise UsageError(
            f"{place!r:.60} is not a partition: give TopicPartition(topic, number), or such a tuple"
        )
    return TopicPartition(place[0], whole_number(place[1], "a partition"))


def check_timeout(timeout: float | None) -> float | None:
    """Return `timeout` if it is a number of seconds, or None for ever, else raise UsageError.

    >>> check_timeout(0.5)
    0.5
    """
    # NaN is not even equal to itself.
    if timeout is None or (isinstance(timeout, (int, float)) and timeout == timeout):  # noqa: PLR0124
        return timeout
    raise UsageError(f"a timeout is a number of seconds, or None, not {timeout!r:.60}")


def is_internal(name: str) -> bool:
    """Whether `name` belongs to Millstream itself and is hidden from `Store.topics()`.

    >>> is_internal("@state/revenue/window-1"), is_internal("orders")
    (True, False)
    """
    return isinstance(name, str) and name.startswith("@")


def check_partition_count(partitions: int) -> int:
    """Return `partitions` if a topic can have that many, else raise UsageError."""
    if not _is_int(partitions) or not 1 <= partitions <= PARTITIONS_MAX:
        raise UsageError(f"partitions is {partitions!r}; give a number from 1 to {PARTITIONS_MAX}")
    return partitions


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """Configuration of one topic.

    Raises:
        UsageError: A value is of the wrong type or out of range; the message names the field.

    >>> TopicConfig.from_options(retention="7d", compression="lz4").retention_ms
    604800000
    """

    retention_ms: int | None = None
    """Remove sealed segments whose newest record is older than this. None: keep for ever."""

    retention_bytes: int | None = None
    """Remove the oldest sealed segments of a partition while at least this much stays. None: keep
    everything."""

    retention_groups: tuple[str, ...] = ()
    """Remove nothing these groups have not read (or, as queues, done). Without `retention_ms` and
    `retention_bytes` a sealed segment goes when all of them have; with one of these, when that
    wants it to go as well. A group that never committed has read nothing."""

    retention_limit_bytes: int | None = None
    """With `retention_groups`: above this size of a partition the oldest sealed segments go, read
    or not. None: groups may hold back anything."""

    compact: bool = False
    """Keep the last record of each key: a background task removes from sealed segments what later
    records have replaced. Every record needs a key. Together with a retention both apply."""

    tombstone_retention_ms: int = DAY_MS
    """Compaction keeps a tombstone this long after it has removed what the tombstone replaces, so
    that a reader who is slow, but not slower, learns of the deletion."""

    dedup_ms: int | None = None
    """A record is not appended again if one with the same header `record-id` was appended to the
    partition less than this long before. None: the header means nothing."""

    recompress: Literal["zstd"] | None = None
    """zstd: write sealed segments anew in larger batches with this codec, once, where that saves
    an eighth. Appends keep `compression`, which may be faster."""

    compression: Compression = "none"
    """none: fastest, readable in place. lz4: about half the size of JSON at little cost. zstd:
    smallest."""

    segment_bytes: int = 64 * MIB
    """Roll to a new file at this size. Larger: fewer files; smaller: retention and compaction act
    sooner. 4 KiB to 2 GiB. A larger batch gets a segment of its own."""

    segment_ms: int = 7 * DAY_MS
    """Roll a file that is older than this at the next append, so that retention by age can remove
    it even in a quiet topic."""

    schema: str | None = None
    """Stored form of the declared schema; None: values are bytes. `TopicInfo.schema` opens it."""

    values: Literal["columns", "json"] = "columns"
    """With a schema: whether values are stored as Arrow columns, or as the JSON they came as."""

    key_column: str | None = None
    """The field that is the key of records appended without one."""

    time_column: str | None = None
    """The field that is the timestamp of records appended without one."""

    def __post_init__(self) -> None:
        _check_count("retention_ms", self.retention_ms, optional=True)
        _check_count("retention_bytes", self.retention_bytes, optional=True)
        _check_count("retention_limit_bytes", self.retention_limit_bytes, optional=True)
        # The stored form, JSON, knows lists only.
        object.__setattr__(self, "retention_groups", _group_names(self.retention_groups))
        if self.retention_limit_bytes is not None and not self.retention_groups:
            raise UsageError(
                "retention_limit_bytes bounds what retention_groups hold back: name some"
            )
        if not isinstance(self.compact, bool):
            raise UsageError(f"compact is {self.compact!r}; give True or False")
        _check_count("tombstone_retention_ms", self.tombstone_retention_ms, minimum=0)
        _check_count("dedup_ms", self.dedup_ms, optional=True)
        if self.recompress not in (None, "zstd"):
            raise UsageError(f"recompress is {self.recompress!r}; choose zstd or None")
        if self.compression not in get_args(Compression):
            known = ", ".join(get_args(Compression))
            raise UsageError(f"compression is {self.compression!r}; choose one of {known}")
        _check_count("segment_bytes", self.segment_bytes)
        if not SEGMENT_BYTES_MIN <= self.segment_bytes <= SEGMENT_BYTES_MAX:
            raise UsageError(
                f"segment_bytes is {self.segment_bytes}; "
                f"give {SEGMENT_BYTES_MIN} (4 KiB) to {SEGMENT_BYTES_MAX} (2 GiB)"
            )
        _check_count("segment_ms", self.segment_ms)
        if self.values not in ("columns", "json"):
            raise UsageError(f"values is {self.values!r}; choose columns or json")

    @property
    def columnar(self) -> bool:
        """Whether appended values become columns."""
        return self.schema is not None and self.values == "columns"

    @property
    def removes_segments(self) -> bool:
        """Whether some retention is configured."""
        return (
            self.retention_ms is not None
            or self.retention_bytes is not None
            or bool(self.retention_groups)
        )

    @property
    def rewrites_segments(self) -> bool:
        """Whether sealed segments are written anew: compacted by key, or compressed."""
        return self.compact or self.recompress is not None

    @classmethod
    def from_options(cls, **options: object) -> TopicConfig:
        """Build a configuration from what a user writes; see `with_options`."""
        return cls().with_options(**options)

    def with_options(self, **options: object) -> TopicConfig:
        """This configuration with some options changed.

        Options are the field names, and `retention` for `retention_ms`. Durations are "7d",
        "1h30m", timedelta or milliseconds; sizes are "10GB", "64MiB" or bytes. None clears a
        retention.

        Raises:
            UsageError: Unknown option (the message lists the known ones) or bad value.

        >>> TopicConfig().with_options(retention_bytes="1MiB").retention_bytes
        1048576
        """
        changes: dict[str, Any] = {}
        for option, value in options.items():
            if option not in _OPTIONS:
                known = ", ".join(sorted(_OPTIONS))
                raise UsageError(f"unknown topic option {option!r}; the options are {known}")
            field, parse = _OPTIONS[option]
            if field in changes:
                raise UsageError(f"{option!r} sets {field} a second time; give it once")
            changes[field] = parse(value)
        # __post_init__ checks every value, so the loose type of the dict hides nothing.
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The stored form: a JSON object of every field; what schemas brought only with one."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        if self.schema is None:
            for name in _SCHEMA_FIELDS:  # so that older versions go on reading the others
                del fields[name]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    @lru_cache(maxsize=1024)  # most topics of a store are alike, and all are listed again and again
    def from_json(cls, text: str) -> TopicConfig:
        """Read the stored form.

        Raises:
            FormatVersionError: It has a field this version does not know.
            DataError: It is not what `to_json` writes.

        >>> TopicConfig.from_json(TopicConfig().to_json()) == TopicConfig()
        True
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"a stored topic configuration is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DataError("a stored topic configuration is not a JSON object")
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise FormatVersionError(
                f"a stored topic configuration has unknown fields: {', '.join(unknown)}; "
                "open the store with a newer version"
            )
        try:
            return cls(**fields)
        except UsageError as error:
            raise DataError(f"a stored topic configuration is invalid: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicInfo:
    """One topic as the catalog knows it."""

    id: int
    """Number of the topic, never reused: a topic created again under the same name differs."""
    name: str
    """Unique in the store; internal topics start with "@"."""
    partitions: int
    """How many partitions; fixed at creation, because a key belongs to one of them."""
    config: TopicConfig
    """Its configuration at the time of reading."""
    created_ms: int
    """When it was created, UTC milliseconds."""

    @property
    def schema(self) -> Any:
        """The declared pyarrow.Schema; None if there is none.

        Raises:
            MissingExtraError: There is one, and pyarrow is not installed.
        """
        return None if self.config.schema is None else stored_schema(self.config.schema)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(name: str, value: object, *, optional: bool = False, minimum: int = 1) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        hint = f"a whole number of at least {minimum}" + (" or None" if optional else "")
        raise UsageError(f"{name} is {value!r}; give {hint}")


def _duration(value: object) -> object:
    # A wrong type is refused by parse_duration_ms itself, with its own message.
    return None if value is None else parse_duration_ms(value)  # type: ignore[arg-type]


def _size(value: object) -> object:
    return None if value is None else parse_size_bytes(value)  # type: ignore[arg-type]  # as above


def _names(value: object) -> object:
    if value is None:
        return ()
    return value.split(",") if isinstance(value, str) else value


def _group_names(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UsageError(f"retention_groups is {value!r}; give a list of group names")
    return tuple(dict.fromkeys(check_group_name(name) for name in value))


def _flag(value: object) -> object:
    words = {"true": True, "yes": True, "false": False, "no": False}
    return words.get(value, value) if isinstance(value, str) else value


def _as_is(value: object) -> object:
    return value


_OPTIONS: Final[Mapping[str, tuple[str, Callable[[object], object]]]] = {
    "retention": ("retention_ms", _duration),
    "retention_ms": ("retention_ms", _duration),
    "retention_bytes": ("retention_bytes", _size),
    "retention_groups": ("retention_groups", _names),
    "retention_limit_bytes": ("retention_limit_bytes", _size),
    "compact": ("compact", _flag),
    "tombstone_retention": ("tombstone_retention_ms", _duration),
    "tombstone_retention_ms": ("tombstone_retention_ms", _duration),
    "dedup": ("dedup_ms", _duration),
    "dedup_ms": ("dedup_ms", _duration),
    "recompress": ("recompress", _as_is),
    "compression": ("compression", _as_is),
    "segment_bytes": ("segment_bytes", _size),
    "segment_ms": ("segment_ms", _duration),
}
