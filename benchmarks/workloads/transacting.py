"""Transactions of 1,000 records, each committed durably, beside the syncs that takes.

One file of records and one of decisions are two syncs, two partitions three. The limits write the
same bytes and sync one file after the other, as a program does that says nothing to the disk twice.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import millstream
from benchmarks.harness import Context, Sample, Target, Workload
from benchmarks.workloads import durable

DECISION_BYTES = 100


def _limit(context: Context, partitions: int) -> Sample:
    """Join 1,000 records, write, fdatasync, per partition; write a decision, fdatasync."""
    groups = durable.groups(context)
    directory = Path(context.directory)
    names = [f"log{number}" for number in range(partitions)]
    with ExitStack() as files:
        *logs, decisions = [
            files.enter_context(directory.joinpath(name).open("wb", buffering=0))
            for name in [*names, "decisions"]
        ]

        def commit(number: int) -> None:
            keys, values = groups[number % len(groups)]
            for index, log in enumerate(logs):
                pairs = zip(keys[index::partitions], values[index::partitions], strict=True)
                log.write(b"".join([part for pair in pairs for part in pair]))
            for log in logs:
                os.fdatasync(log.fileno())
            decisions.write(b"%0*d" % (DECISION_BYTES, number))
            os.fdatasync(decisions.fileno())

        return durable.sample(context, commit, durable.GROUP_RECORDS)


def _ours(context: Context, partitions: int, *, owned: bool = True) -> Sample:
    groups = durable.groups(context)
    with millstream.open(context.directory) as store:
        store.create_topic("t", partitions=partitions)
        owner = store.own("benchmark") if owned else None

        def commit(number: int) -> None:
            keys, values = groups[number % len(groups)]
            with store.transaction(owner=owner) as transaction:
                transaction.append_many("t", values, keys)

        return durable.sample(context, commit, durable.GROUP_RECORDS)


def two_syncs(context: Context) -> Sample:
    """The limit for one partition."""
    return _limit(context, 1)


def three_syncs(context: Context) -> Sample:
    """The limit for two partitions."""
    return _limit(context, 2)


def transactions(context: Context) -> Sample:
    """Ours: a named owner, as somebody has who commits again and again."""
    return _ours(context, 1)


def anonymous(context: Context) -> Sample:
    """The same without an owner: `with store.transaction()`."""
    return _ours(context, 1, owned=False)


def two_partitions(context: Context) -> Sample:
    """The records go to two partitions, by their keys."""
    return _ours(context, 2)


WORKLOAD = Workload(
    name="transactions",
    title="transactions of 1,000 records",
    durability="sync",
    contestants={
        "two write + fdatasync": two_syncs,
        "owner": transactions,
        "without": anonymous,
        "three write + fdatasync": three_syncs,
        "two partitions": two_partitions,
    },
    targets=(
        Target("owner", "rate", 1.0, "two write + fdatasync"),
        Target("without", "rate", 1.0, "two write + fdatasync"),
        Target("two partitions", "rate", 1.0, "three write + fdatasync"),
    ),
)
