"""Ticks: what a pipeline learns from the wall clock, as facts that can be read again.

Results depend on the log alone, so whatever else a pipeline is told must be in a log too. A tick
says what the run loop saw at a certain place in the input: the time of the clock, and which
partitions had been read to their end and had got nothing for so long that they count as idle. It
is written into the pipeline's journal, the internal topic `@journal/<pipeline>/ticks`, in the same
commit as the results it led to. A run that reads the same input with the same journal gives the
same results; that is what `verify` does.
"""

from __future__ import annotations

from typing import Final

import msgspec

from millstream import TopicPartition

from .serde import StoredForm

JOURNAL_VERSION: Final = b"\x01"


class Tick(msgspec.Struct, frozen=True):
    """One look at the clock, between two steps."""

    now_ms: int
    """The wall clock, UTC ms. Never less than at the tick before."""
    caught_up: bool = False
    """Whether all that was visible had been read: then W may follow the clock."""
    idle: dict[str, list[int]] = {}
    """Partitions that have become idle, by topic."""
    quiet: list[str] = []
    """Topics of which every partition is idle now."""
    flush: bool = False
    """The input was said to end here: everything that waits for time was ended. No look at the
    clock."""
    level: int | None = None
    """W was raised to this by decree, in a test."""


class JournalEntry(msgspec.Struct, frozen=True):
    """A tick and its place in the input."""

    positions: list[tuple[str, int, int]]
    """(topic, partition, next offset): everything before it had been processed, nothing after."""
    tick: Tick

    def next_offsets(self) -> dict[TopicPartition, int]:
        """The positions as the store takes them."""
        return {
            TopicPartition(topic, partition): offset for topic, partition, offset in self.positions
        }


_FORM: Final = StoredForm(JournalEntry, JOURNAL_VERSION)


def journal_topic(pipeline: str) -> str:
    """The internal topic that holds the ticks of a pipeline."""
    return f"@journal/{pipeline}/ticks"


def encode_entry(entry: JournalEntry) -> bytes:
    """The value of a journal record."""
    return _FORM.encode(entry)


def decode_journal(value: bytes | None) -> JournalEntry:
    """A journal entry from the value of a record.

    Raises:
        FormatVersionError: Of a newer version.
        DataError: Not a journal entry.
    """
    return _FORM.decode(value or b"", "the journal entry")
