"""Topics as they can be told from their files alone, for a catalog that has lost them. Reads only.

The directory gives a topic's name and its partitions, the headers of the segments give the uids and
times. Configuration, groups, transactions and checkpoints are not in the files.
"""

from __future__ import annotations

import errno
import secrets
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import Final, NamedTuple

from .config import INTERNAL_KINDS, PARTITIONS_MAX, TopicConfig
from .errors import CorruptSegmentError, FormatVersionError, StorageError
from .format import SegmentHeader
from .segment import base_offset_of, read_segment_header
from .storage import Storage

DELETED_MARK: Final = "deleted"
"""A file with this name beside the partitions says that they are being deleted."""
_TOPICS: Final = "topics"
_DEPTH_MAX: Final = 8


class FoundPartition(NamedTuple):
    """One partition's directory."""

    directory: str
    uid: int
    store_uid: bytes | None
    """None: no header can be read."""
    start_offset: int
    created_ms: int


class FoundTopic(NamedTuple):
    """A topic's directories."""

    name: str
    partitions: tuple[FoundPartition, ...]

    @property
    def path(self) -> str:
        """The directory of its partitions."""
        return self.partitions[0].directory.rpartition("/")[0]

    @property
    def created_ms(self) -> int:
        """When its first segment that is left was made."""
        return min(partition.created_ms for partition in self.partitions)

    @property
    def config(self) -> str:
        """The default: what it was is not in the files."""
        return TopicConfig().to_json()


def original_of(topic: FoundTopic, owners: Mapping[int, str]) -> str | None:
    """The topic whose partitions a copied or renamed directory holds; None: they are its own.

    Args:
        topic: What was found.
        owners: By the uid of each partition that is known, the name of its topic.
    """
    named = (owners.get(partition.uid, topic.name) for partition in topic.partitions)
    return next((name for name in named if name != topic.name), None)


def unknown_problem(topic: FoundTopic, owners: Mapping[int, str]) -> str:
    """What to say of a topic that the catalog does not know; `owners` as in `original_of`."""
    original = original_of(topic, owners)
    if original is None:
        return f"there are segments of topic {topic.name!r}, which the catalog does not know"
    return (
        f"its segments are those of topic {original!r}: it is a copy, or has been renamed. Move"
        " it out of the store, or back"
    )


def find_topics(storage: Storage, *, known: Container[str] = ()) -> list[FoundTopic]:
    """All topics that have at least one segment, internal ones too, without deleted ones.

    Args:
        storage: Of the store.
        known: Names of topics to leave out.
    """
    found = []
    for directory, numbers in _topic_directories(storage):
        top, _, rest = directory.partition("/")
        name = rest if top == _TOPICS else f"@{directory}"
        if name in known:
            continue
        partitions = [
            _partition(storage, f"{directory}/{number}") for number in range(max(numbers) + 1)
        ]
        found.append(FoundTopic(name, tuple(partitions)))
    return found


def partitions_beyond(storage: Storage, directory: str, count: int) -> list[tuple[int, str]]:
    """Number and path of directories with segments that are no partition of a topic that has some.

    Args:
        storage: Of the store.
        directory: Of the topic.
        count: How many partitions it has.
    """
    names = _list(storage, directory)
    if DELETED_MARK in names:
        return []
    numbers = sorted(number for name in names if (number := _number(name)) is not None)
    beyond = [(number, f"{directory}/{number}") for number in numbers if number >= count]
    return [(number, path) for number, path in beyond if _has_segments(storage, path)]


def beyond_problem(topic: str, number: int, count: int) -> str:
    """What to say of a directory that is no partition of the topic it is in."""
    return (
        f"there are segments of a partition {number}, and topic {topic!r} has {count}: nobody reads"
        " them. `millstream dump` shows what they hold; move the directory out of the store"
    )


def _topic_directories(storage: Storage) -> Iterator[tuple[str, list[int]]]:
    """As `_directories`. What else lies in the store, `lost+found` say, need not be readable."""
    for top in (_TOPICS, *(kind.removeprefix("@") for kind in INTERNAL_KINDS)):
        yield from _directories(storage, top, 1)


def _directories(storage: Storage, path: str, depth: int) -> Iterator[tuple[str, list[int]]]:
    """Directories that hold partitions, with the numbers of those that have segments."""
    names = _list(storage, path)
    if DELETED_MARK in names or depth > _DEPTH_MAX:
        return
    numbers = []
    for name in names:
        below = f"{path}/{name}"
        if (number := _number(name)) is not None and depth > 1:
            # A larger number is no partition, and all up to it would be looked for.
            if number < PARTITIONS_MAX and _has_segments(storage, below):
                numbers.append(number)
        else:
            yield from _directories(storage, below, depth + 1)
    if numbers:
        yield path, numbers


def _number(name: str) -> int | None:
    """The partition that a directory of this name is; None if it is none."""
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else None


def _has_segments(storage: Storage, directory: str) -> bool:
    return any(base_offset_of(name) is not None for name in _list(storage, directory))


def _list(storage: Storage, path: str) -> list[str]:
    try:
        return storage.list(path)
    except StorageError as error:
        if error.errno != errno.ENOTDIR:
            raise
        return []


def _partition(storage: Storage, directory: str) -> FoundPartition:
    names = _list(storage, directory)
    bases = sorted(base for name in names if (base := base_offset_of(name)) is not None)
    headers: list[SegmentHeader] = []
    for base in bases:
        try:
            headers.append(read_segment_header(storage, directory, base))
        except (CorruptSegmentError, FormatVersionError):
            continue  # planning the repair of the partition looks at it again
    start_offset = bases[0] if bases else 0
    if not headers:
        uid = secrets.randbelow(2**63 - 1) + 1
        return FoundPartition(directory, uid, None, start_offset, 0)
    owners = Counter((header.partition_uid, header.store_uid) for header in headers)
    (uid, store_uid), _ = owners.most_common(1)[0]
    return FoundPartition(directory, uid, store_uid, start_offset, headers[0].created_ms)
