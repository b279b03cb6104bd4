"""Repair a damaged store: find out what is lost, keep the rest at its offsets, say what was done.

For damage that opening and reading refuse; a torn tail needs no repair. `plan_repair` changes
nothing, `repair` does what it says. Nothing is deleted: what is taken out of the log is moved to
quarantine. What was readable before is there afterwards, at the same offsets; lost records become
gaps. A crash in the middle leaves a store that is refused as before, or whole; repairing again
finishes it.

Decisions about one partition are in `partition_plan.py`, about the catalog in `catalog_rebuild.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, NamedTuple

from . import catalog_repair
from .catalog import REFUSED, Catalog
from .catalog_checks import decided_transactions, possible_transactions
from .catalog_rebuild import catalog_problem, rebuild_catalog
from .clock import Clock, SystemClock
from .components import partition_directory, topic_directory
from .engine import OPEN_LOCK, in_use
from .errors import DataError, LockedError, UsageError
from .found_topics import (
    FoundTopic,
    beyond_problem,
    find_topics,
    original_of,
    partitions_beyond,
    unknown_problem,
)
from .partition_plan import (
    ForgetCheckpoint,
    MoveStart,
    PartitionPlan,
    Rename,
    Rewrite,
    SetAside,
    Step,
    plan_partition,
)
from .partition_repair import PartitionRepair
from .quarantine import free_name
from .recovery import examine
from .segment import segment_path
from .segment_chain import PartitionFacts
from .storage import CATALOG_NAME, PosixStorage, Storage
from .tail import COUNTER_BITS, Slot, Tail, durable_check, to_unsigned

REPORT_SCHEMA: Final = 1


class RepairAction(NamedTuple):
    """One thing that was done, or would be."""

    topic: str | None
    partition: int | None
    path: str | None
    action: str
    reason: str


class LostRange(NamedTuple):
    """Offsets whose records cannot be read any more; they are gaps from now on."""

    topic: str
    partition: int
    start: int
    end: int
    """Exclusive."""
    reason: str
    path: str
    position: int | None


@dataclass(slots=True)
class RepairPlan:
    """What `repair` did, or would do. Empty: there is nothing to repair."""

    done: bool = False
    actions: list[RepairAction] = field(default_factory=list)
    lost: list[LostRange] = field(default_factory=list)
    refused: list[RepairAction] = field(default_factory=list)
    """What cannot be repaired, and why; it is as it was."""
    undecided: int = 0
    """Transactions in the log of whose end the catalog knows nothing."""
    report_path: str | None = None
    """Where, below the store, the report was written."""

    @property
    def empty(self) -> bool:
        """Whether nothing needs to be done."""
        return not self.actions and not self.refused


def plan_repair(
    path: str | os.PathLike[str] = "",
    *,
    storage: Storage | None = None,
    clock: Clock | None = None,
) -> RepairPlan:
    """Examine a store as deeply as possible and say what `repair` would do. Changes nothing.

    Args:
        path: Directory of the store.
        storage: Instead of `path`.
        clock: Source of time, for tests.

    Raises:
        UsageError: There is no store.
        LockedError: A process has it open for writing.
        FormatVersionError: The catalog is of a newer version.
        StorageError: Something cannot be read, other than for a failing device.

    >>> import millstream
    >>> from millstream.testing import MemoryStorage
    >>> storage = MemoryStorage()
    >>> with millstream.open(storage=storage) as store:
    ...     info = store.create_topic("t")
    >>> plan_repair(storage=storage).empty
    True
    """
    storage = storage or PosixStorage(path, read_only=True)
    return _StoreRepair(storage, clock or SystemClock(), act=False).run()


def repair(
    path: str | os.PathLike[str] = "",
    *,
    show_undecided: bool = False,
    storage: Storage | None = None,
    clock: Clock | None = None,
) -> RepairPlan:
    """Repair a store, and say what was done; durable when it returns.

    Args:
        path: Directory of the store. No process may have it open.
        show_undecided: What becomes of transactions of whose end a lost or older catalog knows
            nothing. False: they are aborted, so their records stay hidden. True: committed.
        storage: Instead of `path`.
        clock: Source of time, for tests.

    Raises:
        As `plan_repair`. What has been done then stays done; repairing again goes on.
    """
    if storage is None:
        PosixStorage(path, read_only=True)  # not to create what is not there
        storage = PosixStorage(path)
    return _StoreRepair(
        storage, clock or SystemClock(), act=True, show_undecided=show_undecided
    ).run()


class _StoreRepair:
    def __init__(
        self, storage: Storage, clock: Clock, *, act: bool, show_undecided: bool = False
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._act = act
        self._show_undecided = show_undecided
        self._report = RepairPlan(done=act)
        self._generation = 0
        """Highest generation in any log."""
        self._transactions: dict[int, set[int]] = {}

    def run(self) -> RepairPlan:
        storage = self._storage
        found = find_topics(storage)
        if not found and not storage.exists(CATALOG_NAME) and not storage.in_memory:
            raise UsageError("there is no store here", path=storage.root)
        with self._alone():
            problem = catalog_problem(storage, self._clock, found)
            if problem is not None:
                action = (
                    "make the catalog anew, from what can be read of it and from the segments; what"
                    " it alone knew of groups, checkpoints and settings is lost"
                )
                self._add(None, CATALOG_NAME, action, problem)
                if self._act:
                    rebuild_catalog(storage, self._clock, found, problem)
                else:
                    self._plan_without_catalog(found)
                    return self._report
            read_only = not self._act
            catalog = Catalog(storage.catalog_filename(), clock=self._clock, read_only=read_only)
            with contextlib.closing(catalog):
                self._with_catalog(catalog, found)
        if self._act and self._report.actions:
            self._write_report()
        return self._report

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else has the store open; with something to do, nobody can open it meanwhile."""
        if not self._act:
            if in_use(self._storage):
                raise _in_use()
            yield
            return
        lock = self._storage.lock(OPEN_LOCK)
        try:
            if not lock.try_acquire():
                raise _in_use()
            yield
            # What they say may not be true any more: the next to open the store starts anew.
            with contextlib.closing(Tail(self._storage, self._clock)) as tail:
                tail.set("magic", 0)
        finally:
            lock.close()

    # --- with a catalog --------------------------------------------------------------------------

    def _with_catalog(self, catalog: Catalog, found: list[FoundTopic]) -> None:
        self._adopt(catalog, found)
        tail = Tail(self._storage, self._clock)
        try:
            decided = decided_transactions(catalog.database)
            for info in catalog.topics():
                self._refuse_beyond(info.name, topic_directory(info.name), info.partitions)
                for number in range(info.partitions):
                    facts, uids = _facts(catalog, tail, info.name, info.id, number)
                    plan = plan_partition(self._storage, facts, uids=uids, decided=decided)
                    self._take(plan)
                    if self._act and plan.steps:
                        PartitionRepair(self._storage, catalog, self._clock, info.id, plan).run()
                        facts, _ = _facts(catalog, tail, info.name, info.id, number)
                        self._check(facts)
        finally:
            tail.close()
        unknown = self._undecided(possible_transactions(catalog.database))
        if unknown and self._act:
            show = self._show_undecided
            catalog_repair.decide_unknown(catalog.database, unknown, show=show)
        if self._generation > catalog.generation or catalog.checkpoint_names(REFUSED):
            self._plan_generation()
            if self._act:
                catalog_repair.raise_generation(catalog.database, self._generation)

    def _adopt(self, catalog: Catalog, found: list[FoundTopic]) -> None:
        """Enter topics of which there are segments and no row."""
        known = {info.name for info in catalog.topics()}
        owners = catalog_repair.partition_owners(catalog.database)
        for topic in found:
            if topic.name in known or self._refuse_copy(topic, owners):
                continue
            reason = unknown_problem(topic, {})
            self._add(None, topic.path, "enter the topic into the catalog", reason)
            if self._act:
                catalog_repair.adopt_topic(catalog.database, topic)
            else:
                self._plan_found(topic, catalog.store_uid)

    def _refuse_copy(self, topic: FoundTopic, owners: dict[int, str]) -> bool:
        """Whether a topic is another one's, which `owners` knows; else it is entered there."""
        if original_of(topic, owners) is None:
            owners.update((each.uid, topic.name) for each in topic.partitions)
            return False
        reason = unknown_problem(topic, owners)
        self._report.refused.append(RepairAction(None, None, topic.path, "none", reason))
        return True

    def _refuse_beyond(self, topic: str, directory: str, count: int) -> None:
        """Name directories that are no partition of their topic, and leave them alone."""
        for number, path in partitions_beyond(self._storage, directory, count):
            reason = beyond_problem(topic, number, count)
            self._report.refused.append(RepairAction(topic, number, path, "none", reason))

    def _check(self, facts: PartitionFacts) -> None:
        """See that opening the partition will be fine."""
        try:
            examine(self._storage, facts)
        except DataError as error:
            where = (facts.topic, facts.partition, error.path)
            self._report.refused.append(RepairAction(*where, "none", error.message))

    def _undecided(self, possible: Mapping[int, int]) -> dict[int, set[int]]:
        """Plan for transactions beyond the next one of an owner: they cannot be open any more.

        Args:
            possible: By owner, the number of the last one that its row can speak of.
        """
        unknown = {
            owner: numbers
            for owner, numbers in self._transactions.items()
            if max(numbers) > possible.get(owner, 0)
        }
        self._report.undecided = sum(map(len, unknown.values()))
        if unknown:
            what = "commit" if self._show_undecided else "abort"
            action = f"{what} {self._report.undecided} transactions that are in the log"
            self._add(None, CATALOG_NAME, action, "the catalog knows nothing of them")
        return unknown

    def _plan_generation(self) -> None:
        reason = f"segments were written in generation {self._generation}"
        self._add(None, CATALOG_NAME, "raise the generation in the catalog", reason)

    # --- without one -----------------------------------------------------------------------------

    def _plan_without_catalog(self, found: list[FoundTopic]) -> None:
        """As if nothing of it could be read; what can be may spare the last of these steps."""
        owners: dict[int, str] = {}
        for topic in found:
            if not self._refuse_copy(topic, owners):
                self._plan_found(topic, None)
        self._undecided({})
        if self._generation:
            self._plan_generation()

    def _plan_found(self, topic: FoundTopic, store_uid: bytes | None) -> None:
        self._refuse_beyond(topic.name, topic.path, len(topic.partitions))
        for number, each in enumerate(topic.partitions):
            facts = PartitionFacts(
                each.directory,
                topic.name,
                number,
                each.uid,
                store_uid or each.store_uid or bytes(16),
                each.start_offset,
                0,
                None,
            )
            self._take(plan_partition(self._storage, facts))

    # --- the report ------------------------------------------------------------------------------

    def _take(self, plan: PartitionPlan) -> None:
        """Enter the plan of a partition into the report."""
        facts, report = plan.facts, self._report
        place = facts.topic, facts.partition
        self._generation = max(self._generation, plan.last_sequence >> COUNTER_BITS)
        for owner, numbers in plan.transactions.items():
            self._transactions.setdefault(owner, set()).update(numbers)
        if plan.refused is not None:
            refused = RepairAction(*place, facts.directory, "none", plan.refused)
            report.refused.append(refused)
        for step in plan.steps:
            path, action, reason = _described(facts.directory, step)
            self._add(place, path, action, reason)
        for lost in plan.lost:
            report.lost.append(
                LostRange(*place, lost.start, lost.end, lost.reason, lost.path, lost.position)
            )

    def _add(
        self, place: tuple[str, int] | None, path: str | None, action: str, reason: str
    ) -> None:
        topic, partition = place or (None, None)
        self._report.actions.append(RepairAction(topic, partition, path, action, reason))

    def _write_report(self) -> None:
        now_ms, storage = self._clock.now_ms(), self._storage
        path = free_name(storage, "", f"repair-{now_ms}.json")
        self._report.report_path = path
        document = {"schema": REPORT_SCHEMA, "repaired_ms": now_ms, **asdict(self._report)}
        for name in ("actions", "lost", "refused"):
            document[name] = [each._asdict() for each in getattr(self._report, name)]
        file = storage.open(path, "x")
        try:
            file.write([json.dumps(document, indent=1).encode() + b"\n"], 0)
            file.sync()
        finally:
            file.close()
        storage.sync_directory(path.rpartition("/")[0])


def _in_use() -> LockedError:
    return LockedError("a process has the store open: close it before repairing", path=OPEN_LOCK)


def _facts(
    catalog: Catalog, tail: Tail, topic: str, topic_id: int, partition: int
) -> tuple[PartitionFacts, dict[int, int]]:
    """What catalog and tail words say of a partition; and the uid of its active segment."""
    row = catalog.partition(topic_id, partition)
    slot = tail.slot(row.slot)
    durable = row.checkpoint.next_offset if row.checkpoint else 0
    claimed = slot[Slot.DURABLE_OFFSET]
    uids: dict[int, int] = {}
    if claimed > 0 and slot[Slot.DURABLE_CHECK] == durable_check(row.uid, claimed):
        durable = max(durable, claimed)
        uids[slot[Slot.ACTIVE_BASE]] = to_unsigned(slot[Slot.ACTIVE_UID])
    facts = PartitionFacts(
        partition_directory(topic, partition),
        topic,
        partition,
        row.uid,
        catalog.store_uid,
        row.start_offset,
        durable,
        row.checkpoint,
    )
    return facts, uids


def _described(directory: str, step: Step) -> tuple[str, str, str]:
    """Path, action and reason of a step, for people."""
    if isinstance(step, SetAside):
        return f"{directory}/{step.name}", "move to quarantine", step.reason
    if isinstance(step, Rename):
        path = f"{directory}/{step.name}"
        return path, f"rename to that of offset {step.base}", "its header says what it is"
    if isinstance(step, Rewrite):
        path = segment_path(directory, step.first.base_offset)
        action = f"write anew, up to offset {step.end_offset}; the old one goes to quarantine"
        if step.source is None:
            action = f"write a gap up to offset {step.end_offset}"
        return path, action, step.reason
    if isinstance(step, MoveStart):
        return directory, f"let the log start at offset {step.offset}", step.reason
    assert isinstance(step, ForgetCheckpoint)
    return directory, "forget the checkpoint in the catalog", step.reason
