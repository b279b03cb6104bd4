"""What a check of a store has found, and what it has looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

FindingKind: TypeAlias = Literal[
    "rotten",  # bytes of durable records have changed
    "missing",  # records, or a segment, that should be there are not
    "misplaced",  # whole bytes in the wrong place: another partition, twice, out of order
    "header",  # the header of a segment: nothing in the file can be read
    "newer",  # written by a newer version of Millstream
    "unreadable",  # the operating system refused to read
    "catalog",  # the catalog, or its agreement with the log
    "index",  # derived: it is built again when it is needed
    "torn",  # an append cut by a crash, never acknowledged: cut off when a writer opens the store
]
HARMLESS: Final = frozenset({"index", "torn"})
"""Kinds that cost no acknowledged record and go away by themselves."""


class VerifyFinding(NamedTuple):
    """One thing that is wrong, and where."""

    topic: str | None
    partition: int | None
    path: str | None
    position: int | None
    offset: int | None
    """Next offset expected there, None if unknown."""
    problem: str
    kind: FindingKind = "rotten"
    size_bytes: int | None = None
    """How many bytes are concerned, from `position`."""
    next_offset: int | None = None
    """Where whole batches go on; readers cannot have the offsets before it. None if unknown."""


@dataclass(slots=True)
class VerifyReport:
    """What `Store.verify` saw. Without findings everything that was checked is whole."""

    deep: bool = False
    partitions: int = 0
    segments: int = 0
    batches: int = 0
    records: int = 0
    data_bytes: int = 0
    findings: list[VerifyFinding] = field(default_factory=list)
    notes: list[VerifyFinding] = field(default_factory=list)
    """What is not as it should be but costs nothing: torn tails, indexes to be built again."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def add(self, finding: VerifyFinding) -> None:
        """Put it where it belongs."""
        (self.notes if finding.kind in HARMLESS else self.findings).append(finding)
