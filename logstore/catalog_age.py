"""Whether the catalog is older than the log.

A catalog that was restored alone, copied without its `-wal`, or lost by a disk that only said it
had synced, does not know what it has decided since, and would give out again what it gave out then.
The log tells: a batch has its place in the numbers that the catalog had counted up to by then, and
that count was durable before the batch was written.
"""

from __future__ import annotations

import contextlib

from .catalog import Catalog
from .errors import DataError, MillstreamError
from .tail import COUNTER_BITS

_REMEDY = (
    "catalog.db is older than the log. Restore both from the same backup; or close the store and"
    " run `millstream repair`, which keeps the log"
)


def check_generation(sequence: int, generation: int) -> None:
    """Refuse a log whose last batch was written in a generation that is still to come.

    Args:
        sequence: Of that batch.
        generation: Of the store, in which nothing was written to the log yet.

    Raises:
        DataError: The catalog has counted fewer generations than there were.
    """
    written = sequence >> COUNTER_BITS
    if written >= generation:
        raise DataError(
            f"the log was written in generation {written} of the store, the catalog knows only"
            f" those before {generation}: {_REMEDY}"
        )


def check_partition(
    catalog: Catalog, topic_id: int, partition: int, generation: int, sequence: int
) -> None:
    """As `check_generation`, and for ever: the catalog counts on with each opening of the store.

    Raises:
        DataError: As there, now or at the first use of the partition that found it.
    """
    first = catalog.refused_in(topic_id, partition)
    try:
        check_generation(sequence, generation if first is None else first)
    except DataError:
        if first is None:
            with contextlib.suppress(MillstreamError):  # else it is refused again next time
                catalog.refuse(topic_id, partition, generation)
        raise


def check_transaction(owner_id: int, number: int, last_possible: int | None) -> None:
    """Refuse a batch of a transaction that cannot have begun.

    Args:
        owner_id: Whose transaction it is.
        number: Its number.
        last_possible: As `OwnerState.last_possible` of that owner, asked after the batch was seen;
            None: there is no such owner.

    Raises:
        DataError: The catalog knows nothing of the owner, or of what it decided before.
    """
    if last_possible is None:
        known = "does not know that owner"
    elif number > last_possible:
        known = f"has seen it begin none after {last_possible}"
    else:
        return
    raise DataError(
        f"the log holds transaction {number} of owner {owner_id}, the catalog {known}: {_REMEDY}",
        path="catalog.db",
    )
