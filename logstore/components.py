"""What the parts of an open store share: its components, and where partitions live."""

from __future__ import annotations

from dataclasses import dataclass

from .append_lock import AppendLock
from .catalog import Catalog
from .clock import Clock
from .counters import Counters
from .storage import Storage
from .tail import Tail


@dataclass(frozen=True, slots=True)
class Components:
    """The components every partition of an open store works with."""

    storage: Storage
    clock: Clock
    catalog: Catalog
    tail: Tail
    append_lock: AppendLock
    store_uid: bytes
    counters: Counters


def partition_directory(topic: str, partition: int) -> str:
    """Where a partition lives: user topics under topics/, pipeline state under state/.

    >>> partition_directory("orders", 0), partition_directory("@state/p/window", 1)
    ('topics/orders/0', 'state/p/window/1')
    """
    return f"{topic_directory(topic)}/{partition}"


def topic_directory(topic: str) -> str:
    """Where the partitions of a topic live."""
    return topic[1:] if topic.startswith("@") else f"topics/{topic}"
