"""Decide what makes the log of one damaged partition whole again. Reads only.

Every segment is read to the end. Which ones belong to the log is told by the links in their
headers; which batches, by `salvage.py`. What is lost, and was durable, becomes a gap, in the
damaged segment written anew or in one of its own, so that what is left keeps its offsets. What was
never durable is left to `recovery.py`. `partition_repair.py` carries a plan out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from .catalog import LogCheckpoint
from .errors import CorruptBatchError, CorruptSegmentError, DataError, FormatVersionError
from .format import (
    REWRITTEN_DATA_START,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    parse_header,
    parse_segment_header,
)
from .index import SparseIndex
from .salvage import Hole, PatientFile, Salvage, State, examine_segment
from .segment import base_offset_of, check_writable, index_path, segment_path
from .segment_chain import PartitionFacts, holds_batches, obsolete
from .segment_walk import HEADERS_BYTES, Window, find_header, walk
from .storage import Storage


class Lost(NamedTuple):
    """A range of offsets whose records cannot be read any more."""

    start: int
    end: int
    """Exclusive."""
    reason: str
    path: str
    position: int | None = None


class SetAside(NamedTuple):
    """Move a file that is no part of the log into quarantine."""

    name: str
    reason: str


class Rename(NamedTuple):
    """A segment lies under a wrong name."""

    name: str
    base: int


class Rewrite(NamedTuple):
    """Write a segment from what is whole of an old one, and gaps."""

    first: SegmentHeader
    """Header of the segment it stands for."""
    source: Salvage | None
    """None: nothing but a gap."""
    end_offset: int
    link_uid: int
    """What the segment behind it names as the one before."""
    link_hash: int
    reason: str
    sequence: int = 0
    """Without a source: of the last batch before it."""


class MoveStart(NamedTuple):
    """Let the log start later, because nothing before is left."""

    offset: int
    reason: str


class ForgetCheckpoint(NamedTuple):
    """Let the next recovery start at the first segment."""

    reason: str


Step: TypeAlias = SetAside | Rename | Rewrite | MoveStart | ForgetCheckpoint


@dataclass(slots=True)
class PartitionPlan:
    """What is to be done, in this order, and what it costs."""

    facts: PartitionFacts
    steps: list[Step] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    refused: str | None = None
    """Why nothing may be done."""
    records: int = 0
    """Records that can be read, deleted and aborted ones included."""
    last_sequence: int = 0
    transactions: dict[int, set[int]] = field(default_factory=dict)
    """See `Salvage.transactions`."""


def plan_partition(
    storage: Storage,
    facts: PartitionFacts,
    *,
    uids: Mapping[int, int] | None = None,
    decided: Mapping[int, int] | None = None,
) -> PartitionPlan:
    """Examine a partition, deeply.

    Args:
        storage: The store. Nobody may be writing to the partition.
        facts: What is known of it from outside.
        uids: Segment uids by base offset, from wherever they are known: they open a segment whose
            own header is lost.
        decided: Last decided transaction of each owner.

    Raises:
        StorageError: Something cannot be read, other than for a failing device.
    """
    return _Planner(storage, facts, uids or {}, decided or {}).run()


class _Newer(Exception):  # noqa: N818 - never leaves this module
    """A newer version has written here: do not touch."""


class _Planner:
    def __init__(
        self,
        storage: Storage,
        facts: PartitionFacts,
        uids: Mapping[int, int],
        decided: Mapping[int, int],
    ) -> None:
        self._storage = storage
        self._facts = facts
        self._uids = dict(uids)
        self._decided = dict(decided)
        self._plan = PartitionPlan(facts)
        self._names: dict[int, str] = {}
        """Names of the files, by base offset of the segments in them."""
        if facts.checkpoint is not None:
            self._uids.setdefault(facts.checkpoint.segment_base, facts.checkpoint.segment_uid)

    def run(self) -> PartitionPlan:
        plan = self._plan
        try:
            headers, broken = self._headers()
            chain = self._scan(self._chain(headers, broken))
        except _Newer as error:
            return PartitionPlan(self._facts, refused=str(error))
        watermark = max([self._facts.durable_offset, *(each.durable_offset for each in chain)])
        plan.records = sum(each.records for each in chain)
        for each in chain:
            plan.last_sequence = max(plan.last_sequence, each.end.sequence)
            for owner, numbers in each.transactions.items():
                plan.transactions.setdefault(owner, set()).update(numbers)
        self._repair(chain, watermark)
        return plan

    # --- which files -----------------------------------------------------------------------------

    def _headers(self) -> tuple[list[SegmentHeader], list[int]]:
        """The segments whose headers are whole and right, and the base offsets of the others."""
        storage, facts = self._storage, self._facts
        names = storage.list(facts.directory)
        bases = sorted(base for name in names if (base := base_offset_of(name)) is not None)
        bases = bases[len(obsolete(storage, facts, bases)) :]
        headers: dict[int, SegmentHeader] = {}
        broken: list[int] = []
        misnamed: list[tuple[int, SegmentHeader]] = []
        for base in bases:
            self._names[base] = segment_path("", base)[1:]
            try:
                header = self._header(base)
            except CorruptSegmentError:
                broken.append(base)
                continue
            if (header.partition_uid, header.store_uid) != (facts.partition_uid, facts.store_uid):
                self._set_aside(base, "it belongs to another partition or store")
            elif header.base_offset != base:
                misnamed.append((base, header))
            else:
                headers[base] = header
        for base, header in misnamed:
            wanted = header.base_offset
            if wanted in headers or wanted < facts.start_offset:
                self._set_aside(base, f"it is a copy of the segment at {wanted}")
                continue
            if wanted in broken:
                broken.remove(wanted)
                self._set_aside(wanted, "its header is damaged, and there is a whole copy")
            name = self._names.pop(base)
            self._plan.steps.append(Rename(name, wanted))
            self._names[wanted] = name
            headers[wanted] = header
        return [headers[base] for base in sorted(headers)], broken

    def _header(self, base: int) -> SegmentHeader:
        with self._open(base) as file:
            try:
                header = parse_segment_header(file.read(REWRITTEN_DATA_START, 0))
                check_writable(header, self._path(base))
            except FormatVersionError as error:
                raise _Newer(f"{self._path(base)}: {error.message}") from None
            return header

    def _chain(self, headers: list[SegmentHeader], broken: list[int]) -> list[Salvage]:
        """The segments that make up the log, oldest first; the others are set aside."""
        covered, found = 0, []
        for header in headers:
            if header.base_offset >= covered:  # else recovery removes what a compaction has left
                found.append(self._salvage(header))
                covered = header.rewrite.end_offset if header.rewrite else covered
        for base in broken:
            made_up = self._without_header(base, headers)
            if made_up is not None:
                found.append(made_up)
            elif not self._never_used(base, headers):
                self._set_aside(base, "its header is damaged, and nothing in it can be read")
        found.sort(key=lambda each: each.base)
        return self._linked_up(found)

    def _linked_up(self, found: list[Salvage]) -> list[Salvage]:
        by_link = {each.segment.link_uid: each for each in found}
        chain: list[Salvage] = found[-1:]
        while chain:
            first = chain[0]
            linked = by_link.get(first.segment.previous_segment_uid)
            if linked is None or linked.base >= first.base or first.header_problem:
                before = [each for each in found if each.base < first.base]
                linked = before[-1] if before else None
            if linked is None:
                break
            chain.insert(0, linked)
        linked_bases = {each.base for each in chain}
        for each in found:
            if each.base not in linked_bases:
                self._set_aside(each.base, "no other segment links to it")
        return chain

    def _never_used(self, base: int, headers: list[SegmentHeader]) -> bool:
        """Whether it was just being made when the machine died: recovery makes it anew."""
        last = base >= max([each.base_offset for each in headers], default=0)
        if not last or base < self._facts.durable_offset:
            return False
        return not holds_batches(self._storage, self._path(base))

    def _salvage(self, header: SegmentHeader) -> Salvage:
        path = self._path(header.base_offset)
        return Salvage(header.base_offset, header, self._storage.size(path))

    def _without_header(self, base: int, headers: list[SegmentHeader]) -> Salvage | None:
        """What can be known of a segment whose header is damaged, if its uid is known elsewhere."""
        following = [header for header in headers if header.base_offset > base]
        guesses = [self._uid_in_index(base), self._uids.get(base)]
        guesses += [header.previous_segment_uid for header in following[:1]]
        for uid in dict.fromkeys(guess for guess in guesses if guess):
            with self._open(base) as file:
                start = _first_batch(file, uid, self._storage.size(self._path(base)))
            if start is None:
                continue
            facts = self._facts
            header = SegmentHeader(facts.store_uid, uid, facts.partition_uid, base, start[1])
            found = self._salvage(header)
            found.header_problem = "the header of the segment is damaged"
            found.start = State(start[0], base, 0, 0)
            return found
        return None

    def _uid_in_index(self, base: int) -> int | None:
        """An index proves its segment's uid: it seeds its hash."""
        path = index_path(self._facts.directory, base)
        if not self._storage.exists(path):
            return None
        with contextlib.closing(self._storage.open(path, "r")) as file:
            content = file.read(file.size(), 0)
        uid = int.from_bytes(content[16:24], "little")
        try:
            SparseIndex.decode(content, uid)
        except CorruptBatchError:
            return None
        return uid

    # --- what is in them -------------------------------------------------------------------------

    def _scan(self, chain: list[Salvage]) -> list[Salvage]:
        """Read all of them; the last one goes if it was written before the one in front of it."""
        sequence = 0
        for number, found in enumerate(chain):
            after = chain[number + 1].segment if number + 1 < len(chain) else None
            self._examine(found, sequence, _data_end(found, after))
            if after is not None and number + 2 == len(chain) and self._outlives(found, after):
                self._set_aside(after.base_offset, "the log went on without it")
                self._examine(found, sequence, found.file_bytes)
                return chain[:-1]
            sequence = max(sequence, found.end.sequence)
            if after is not None and after.base_offset != found.end.next_offset:
                sequence += 1  # that of the gap between them
        return chain

    def _examine(self, found: Salvage, sequence: int, stop: int) -> None:
        fresh = Salvage(found.base, found.segment, found.file_bytes, found.header_problem)
        position = found.start.position or found.segment.data_start
        hashed = 0 if found.header_problem else found.segment.header_hash
        newest = found.segment.prior_max_timestamp_ms
        start = State(position, found.base, sequence, hashed, newest)
        with self._open(found.base) as file:
            examine_segment(file, fresh, start, stop, self._decided)
        if fresh.newer is not None:
            raise _Newer(f"{self._path(found.base)}: {fresh.newer}")
        for name in Salvage.__slots__:
            setattr(found, name, getattr(fresh, name))

    def _outlives(self, found: Salvage, after: SegmentHeader) -> bool:
        """Whether a segment, undamaged, goes past the one behind it and does not lead to it."""
        if found.segment.rewrite or found.header_problem:
            return False
        whole = Salvage(found.base, found.segment, found.file_bytes)
        with self._open(found.base) as file:
            examine_segment(file, whole, found.start, found.file_bytes, {})
        fits = (found.end.next_offset, found.end.link) == (after.base_offset, after.previous_hash)
        return not fits and not whole.holes and whole.end.next_offset > after.base_offset

    # --- what to do ------------------------------------------------------------------------------

    def _repair(self, chain: list[Salvage], watermark: int) -> None:
        plan, start = self._plan, self._facts.start_offset
        if not chain:
            self._nothing_left(watermark)
            return
        chain, torn = _cut_torn(chain, watermark)
        if chain[0].base > start:
            reason = "the first segments are missing"
            plan.steps.append(MoveStart(chain[0].base, reason))
            plan.lost.append(Lost(start, chain[0].base, reason, self._facts.directory))
        rewrites: list[Rewrite] = []
        for number, found in enumerate(chain):
            after = chain[number + 1] if number + 1 < len(chain) else None
            rewrites += self._make_whole(found, after, watermark, chain[:number])
        if rewrites and rewrites[-1].end_offset >= chain[-1].end.next_offset:
            # Nothing can be appended to what is rewritten, so what follows is no continuation.
            for each in torn:
                self._set_aside(each.base, "it follows a torn write that was never acknowledged")
        plan.steps += rewrites
        self._check_checkpoint(chain, rewrites)

    def _nothing_left(self, watermark: int) -> None:
        plan, facts = self._plan, self._facts
        start = facts.start_offset
        if watermark <= start and facts.checkpoint is None and not plan.steps:
            return
        end = max(watermark, start)
        reason = "all segments are missing or unreadable"
        plan.steps += [MoveStart(end, reason), ForgetCheckpoint(reason)]
        if end > start:
            plan.lost.append(Lost(start, end, reason, facts.directory))

    def _make_whole(
        self,
        found: Salvage,
        after: Salvage | None,
        watermark: int,
        before: list[Salvage],
    ) -> Iterator[Rewrite]:
        """What makes a segment, and the way to the one behind it, whole."""
        end, path = found.end, self._path(found.base)
        target = after.base if after else max(end.next_offset, watermark)
        holes = [hole for hole in found.holes if hole.before.next_offset < target]
        for hole in holes:
            lost_to = hole.end_offset if hole.end_offset > hole.before.next_offset else target
            start, position = hole.before.next_offset, hole.before.position
            self._plan.lost.append(Lost(start, lost_to, hole.reason, path, position))
        reason = found.header_problem or (holes[0].reason if holes else None)
        if reason is None and found.relinked:
            reason = "batches do not link to each other"
        if reason is None and found.segment.rewrite:
            reason = _rewrite_problem(found)
        missing = end.next_offset < target
        if missing and not (holes and holes[-1].before.next_offset == end.next_offset):
            why = "a segment is missing" if after else "the log ends before what was durable"
            self._plan.lost.append(Lost(end.next_offset, target, why, path, end.position))
        shown = _shown_link(found)
        wanted = shown
        if after is not None and after.header_problem is None:
            wanted = after.segment.previous_segment_uid, after.segment.previous_hash
        if reason is None and not missing and shown != wanted:
            reason = "the segment behind it links to another one"
        first = self._linked(found, before)
        if reason is None and missing and end.next_offset == found.base:
            reason = "all its batches are missing"
        if reason is not None:
            yield Rewrite(first, found, target, *wanted, reason)
        elif missing:
            uid, link = shown
            filler = first._replace(
                segment_uid=uid,
                base_offset=end.next_offset,
                previous_segment_uid=uid,
                previous_hash=link,
                previous_bytes=end.position,
                prior_max_timestamp_ms=end.max_timestamp_ms,
            )
            reason = "records are missing"
            yield Rewrite(filler, None, target, *wanted, reason, end.sequence)

    def _linked(self, found: Salvage, before: list[Salvage]) -> SegmentHeader:
        """The header of a segment; if it was made up, with the links its neighbour expects."""
        header = found.segment._replace(rewrite=None)
        if not found.header_problem or not before:
            return header
        previous = before[-1]
        uid, link = _shown_link(previous)
        return header._replace(
            previous_segment_uid=uid,
            previous_hash=link,
            previous_bytes=previous.end.position,
            prior_max_timestamp_ms=previous.end.max_timestamp_ms,
        )

    def _check_checkpoint(self, chain: list[Salvage], rewrites: list[Rewrite]) -> None:
        checkpoint = self._facts.checkpoint
        if checkpoint is None or chain[0].base >= checkpoint.next_offset:
            return
        base = checkpoint.segment_base
        if any(each.first.base_offset <= base < each.end_offset for each in rewrites):
            return
        for found in chain:
            rewrite = found.segment.rewrite
            if rewrite and found.base <= base < rewrite.end_offset:
                return
            if found.base == base and found.segment.segment_uid == checkpoint.segment_uid:
                with self._open(base) as file:
                    if _is_boundary(file, found, checkpoint):
                        return
        reason = "the checkpoint in the catalog is not at a batch"
        self._plan.steps.append(ForgetCheckpoint(reason))

    # --- files -----------------------------------------------------------------------------------

    def _set_aside(self, base: int, reason: str) -> None:
        self._plan.steps.append(SetAside(self._names[base], reason))

    def _path(self, base: int) -> str:
        return f"{self._facts.directory}/{self._names[base]}"

    @contextlib.contextmanager
    def _open(self, base: int) -> Iterator[PatientFile]:
        with contextlib.closing(self._storage.open(self._path(base), "r")) as file:
            yield PatientFile(file)


def _data_end(found: Salvage, after: SegmentHeader | None) -> int:
    if found.segment.rewrite:
        return min(found.file_bytes, found.segment.rewrite.data_bytes)
    if after is not None and after.previous_segment_uid == found.segment.link_uid:
        return min(found.file_bytes, after.previous_bytes)
    return found.file_bytes


def _first_batch(file: PatientFile, uid: int, size: int) -> tuple[int, int] | None:
    """Where batches of a segment with that uid may begin, and when it was made; None: none is."""
    for start in (SEGMENT_HEADER_BYTES, REWRITTEN_DATA_START):
        with contextlib.suppress(DataError):  # not there, or damaged: the search finds the next
            return start, parse_header(file.read(4096, start), 0, uid).append_timestamp_ms
    position = find_header(Window(file, HEADERS_BYTES), uid, SEGMENT_HEADER_BYTES, size)
    if position is None:
        return None
    header = parse_header(file.read(4096, position), 0, uid)
    return SEGMENT_HEADER_BYTES, header.append_timestamp_ms


def _cut_torn(chain: list[Salvage], watermark: int) -> tuple[list[Salvage], list[Salvage]]:
    """The segments up to a tear of what was never durable, and those behind it.

    What was accepted of the torn segment ends at the tear: recovery keeps no more either.
    """
    for number, found in enumerate(chain):
        ends_at = found.end.next_offset
        for index, hole in enumerate(found.holes):
            if hole.before.next_offset >= watermark:
                found.holes[index:] = []
                found.end = hole.before
                return chain[: number + 1], chain[number + 1 :]
        after = chain[number + 1 : number + 2]
        if after and watermark <= ends_at < after[0].base:
            return chain[: number + 1], chain[number + 1 :]
    return chain, []


def _rewrite_problem(found: Salvage) -> str | None:
    rewrite = found.segment.rewrite
    assert rewrite is not None
    if (found.end.next_offset, found.end.link) == (rewrite.end_offset, rewrite.last_hash):
        return None
    return f"the segment does not reach its end offset {rewrite.end_offset}"


def _shown_link(found: Salvage) -> tuple[int, int]:
    """What the segment behind it has to name."""
    rewrite = found.segment.rewrite
    return found.segment.link_uid, rewrite.replaced_hash if rewrite else found.end.link


def _is_boundary(file: PatientFile, found: Salvage, checkpoint: LogCheckpoint) -> bool:
    window, uid = Window(file, HEADERS_BYTES), found.segment.segment_uid
    place = (found.segment.data_start, found.base, found.segment.header_hash)
    expected = (checkpoint.position, checkpoint.next_offset, checkpoint.previous_hash)
    for stretch in walk(window, uid, found.segment.data_start, found.end.position):
        if place == expected:
            return True
        if stretch.header is None or stretch.position > checkpoint.position:
            return False
        header = stretch.header
        place = (
            stretch.position + stretch.size_bytes,
            header.next_offset,
            header.header_hash,
        )
    return place == expected


__all__ = ["Hole", "Lost", "PartitionPlan", "plan_partition"]
