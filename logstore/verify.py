"""Check a store: every segment, batch and index, and the catalog against them. Changes nothing.

The plain check reads headers: hashes, links, offsets, sequences, sizes; indexes and the catalog.
The deep one also checks the hash of every section and that every record decodes, at the speed
of the disk. Damage does not end it: it goes on with what is whole behind it, so one bad spot does
not hide another.
"""

from __future__ import annotations

from . import catalog_checks
from .catalog import REFUSED
from .catalog_age import check_generation, check_transaction
from .catalog_repair import partition_owners
from .components import topic_directory
from .engine import Engine
from .errors import (
    DataError,
    UnknownTopicError,
)
from .found_topics import (
    FoundTopic,
    beyond_problem,
    find_topics,
    partitions_beyond,
    unknown_problem,
)
from .partition_verifier import PartitionVerifier
from .storage import CATALOG_NAME
from .verify_report import VerifyFinding, VerifyReport


def verify(engine: Engine, topic: str | None = None, *, deep: bool = False) -> VerifyReport:
    """Check a topic, or the whole store with its internal topics and its catalog.

    Raises:
        UnknownTopicError: There is no such topic.
    """
    engine.ensure_open()
    infos = [engine.topic(topic)] if topic is not None else engine.topics()
    report = VerifyReport(deep)
    offsets = catalog_checks.committed_offsets(engine.catalog.database)
    transactions: dict[int, int] = {}
    ends: dict[tuple[str, int], int] = {}
    sequence = 0
    for info in infos:
        for number in range(info.partitions):
            report.partitions += 1
            try:
                verifier = PartitionVerifier(engine, info, number, report, transactions)
                verifier.run()
            except UnknownTopicError:
                continue  # deleted meanwhile; or missing in the catalog, which is checked below
            sequence = max(sequence, verifier.last_sequence)
            if verifier.whole:
                ends[info.name, number] = verifier.log_end
    for each in offsets:
        end = ends.get((each.topic, each.partition))
        if end is not None and each.offset > end:
            problem = f"group {each.group!r} has committed offset {each.offset}"
            report.add(_past_the_end(each.topic, each.partition, problem, end))
    if topic is None:
        _verify_catalog(engine, report, transactions, sequence)
        _verify_directories(engine, report)
    return report


def _past_the_end(topic: str, partition: int, problem: str, end: int) -> VerifyFinding:
    # Opened by a writer, the log skips the offsets which were seen and are lost.
    problem = f"{problem}, but the log ends at {end}: a machine that died has lost the rest"
    return VerifyFinding(topic, partition, CATALOG_NAME, None, end, problem, "torn")


def _verify_catalog(
    engine: Engine, report: VerifyReport, transactions: dict[int, int], sequence: int
) -> None:
    database = engine.catalog.database

    def add(problem: str) -> None:
        report.add(VerifyFinding(None, None, CATALOG_NAME, None, None, problem, "catalog"))

    try:
        for problem in catalog_checks.problems(database, deep=report.deep):
            add(problem)
        possible = catalog_checks.possible_transactions(database)
    except DataError as error:
        add(error.message)
        return
    try:
        check_generation(sequence, engine.catalog.generation + 1)
    except DataError as error:
        add(error.message)
    for name in engine.catalog.checkpoint_names(REFUSED):
        place = name.removeprefix(REFUSED).replace("/", " partition ")
        add(
            f"topic {place} is refused, as catalog.db was older than its log: run millstream repair"
        )
    for owner_id, number in sorted(transactions.items()):
        try:
            check_transaction(owner_id, number, possible.get(owner_id))
        except DataError as error:
            add(error.message)


def _verify_directories(engine: Engine, report: VerifyReport) -> None:
    """Report topics and partitions that the catalog does not know: nobody reads their records."""
    beyond = _beyond(engine)
    for finding in _beyond(engine) if beyond else ():
        if finding in beyond:  # else the topic was made anew meanwhile, with more of them
            report.add(finding)
    found = _unknown_topics(engine)
    if not found:
        return
    # One that is being deleted is marked, then forgotten, then removed: it was between the looks.
    still = {topic.name for topic in _unknown_topics(engine)}
    owners = partition_owners(engine.catalog.database)
    for topic in found:
        if topic.name in still:
            problem = unknown_problem(topic, owners)
            report.add(VerifyFinding(None, None, topic.path, None, None, problem, "misplaced"))


def _beyond(engine: Engine) -> list[VerifyFinding]:
    found = []
    for info in engine.topics():
        directory = topic_directory(info.name)
        for number, path in partitions_beyond(engine.storage, directory, info.partitions):
            problem = beyond_problem(info.name, number, info.partitions)
            place = info.name, number, path, None, None
            found.append(VerifyFinding(*place, problem, "misplaced"))
    return found


def _unknown_topics(engine: Engine) -> list[FoundTopic]:
    # The files first: a topic is entered into the catalog before it has any.
    found = find_topics(engine.storage, known={info.name for info in engine.topics()})
    known = {info.name for info in engine.topics()}
    return [topic for topic in found if topic.name not in known]
