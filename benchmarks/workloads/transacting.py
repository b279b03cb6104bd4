"""Transactions of 1,000 records, each committed durably, beside the two syncs that takes.

The records have to be on the disk before the decision is, so nobody needs less than two.
"""

from __future__ import annotations

import os
from pathlib import Path

import millstream
from benchmarks.harness import Context, Sample, Target, Workload
from benchmarks.workloads import durable

DECISION_BYTES = 100


def two_syncs(context: Context) -> Sample:
    """The limit: join 1,000 records, write, fdatasync; write a decision beside it, fdatasync."""
    groups = durable.groups(context)
    directory = Path(context.directory)
    with (
        directory.joinpath("log").open("wb", buffering=0) as log,
        directory.joinpath("decisions").open("wb", buffering=0) as decisions,
    ):

        def commit(number: int) -> None:
            keys, values = groups[number % len(groups)]
            pairs = zip(keys, values, strict=True)
            log.write(b"".join([part for pair in pairs for part in pair]))
            os.fdatasync(log.fileno())
            decisions.write(b"%0*d" % (DECISION_BYTES, number))
            os.fdatasync(decisions.fileno())

        return durable.sample(context, commit, durable.GROUP_RECORDS)


def transactions(context: Context) -> Sample:
    """Ours: a named owner, as somebody has who commits again and again."""
    groups = durable.groups(context)
    with millstream.open(context.directory) as store:
        store.create_topic("t")
        owner = store.own("benchmark")

        def commit(number: int) -> None:
            keys, values = groups[number % len(groups)]
            with store.transaction(owner=owner) as transaction:
                transaction.append_many("t", values, keys)

        return durable.sample(context, commit, durable.GROUP_RECORDS)


def anonymous(context: Context) -> Sample:
    """The same without an owner: `with store.transaction()`."""
    groups = durable.groups(context)
    with millstream.open(context.directory) as store:
        store.create_topic("t")

        def commit(number: int) -> None:
            keys, values = groups[number % len(groups)]
            with store.transaction() as transaction:
                transaction.append_many("t", values, keys)

        return durable.sample(context, commit, durable.GROUP_RECORDS)


WORKLOAD = Workload(
    name="transactions",
    title="transactions of 1,000 records",
    durability="sync",
    contestants={
        "two write + fdatasync": two_syncs,
        "owner": transactions,
        "without": anonymous,
    },
    targets=(
        Target("owner", "rate", 1.0, "two write + fdatasync"),
        Target("without", "rate", 1.0, "two write + fdatasync"),
    ),
)
