"""What every operator with state is: rows and progress in, rows out, and its state as records.

The epoch commits what `changes` returns together with the outputs, so state and results never part.
`sweep` writes everything again in bounded pieces, so that the log of changes can be cut without
ever stopping the pipeline. An operator must give the same rows and the same state for any cut of
its input into steps: what happens at an input row happens in the order of the row numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from .columns import MicroBatch, Rows
from .nodes import StatefulNode
from .state import StateEntry, StateRecords
from .watermark import Progress

MAIN: Final = ""
"""The port of an operator's results."""

SWEEP_RECORDS: Final = 5_000
"""About how much state a sweep gives at a time: some milliseconds of encoding."""


class Step(NamedTuple):
    """What an operator works on at a time."""

    chunks: Sequence[Any]
    """One for each input, in the order of the node's inputs: a `Chunk`, or any `Rows` for an
    operator that runs on columns."""
    progress: Progress
    """How the W of this operator moves over the input rows of the step."""
    batch: MicroBatch
    now_ms: int = 0
    """The wall clock at the last tick, UTC ms; 0 before the first. The same in a replay."""
    ticked: bool = False
    """Whether the step is a tick: it has no rows, and what waits for the wall clock is due."""


class StatefulOperator(ABC):
    """An operator with state. Not thread-safe.

    Args:
        node: What it does.
        delay_ms: How far behind the W of the sources its input rows may lie, because operators
            above hold results back. W - delay_ms is what its rows are judged against.
    """

    keyed_only: bool = False
    """Whether all its state is in keyed states, of `States.make`."""

    def __init__(self, node: StatefulNode, delay_ms: int) -> None:
        self.name = node.name
        self.delay_ms = delay_ms
        self.late_count = 0
        """Rows that came too late, so far."""
        self.skipped_count = 0
        """Rows that nothing comes of, so far: duplicates, and those in gaps between windows."""

    @property
    @abstractmethod
    def live_count(self) -> int:
        """Number of state records that everything alive makes, about."""

    @property
    @abstractmethod
    def required_level(self) -> int | None:
        """The W that ends everything the operator waits for; None when it waits for nothing."""

    @property
    def judges_rows(self) -> bool:
        """Whether it asks for W before single rows, or only for where W has come to."""
        return True

    @property
    def required_wall_ms(self) -> int | None:
        """The earliest wall clock time the operator waits for, UTC ms; None for none."""
        return None

    @abstractmethod
    def process(self, step: Step) -> Mapping[str, Rows]:
        """Take in the rows of a step.

        Returns:
            The rows of each port; `MAIN` is there always.

        Raises:
            RecordError: A user function raised.
        """

    @abstractmethod
    def changes(self) -> StateRecords:
        """What changed since the last call, and take it for written.

        Raises:
            UsageError: Something cannot be kept in state.
        """

    @abstractmethod
    def sweep(self) -> Iterator[StateRecords]:
        """All that is alive now, in pieces of about `SWEEP_RECORDS`.

        Between two pieces the operator goes on: each piece is as of when it is taken, what was
        made since the sweep began is left to `changes`, and what has gone is left out. Taken
        right after `changes`, always.
        """

    @abstractmethod
    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take state from records, in the order they were written.

        Raises:
            DataError: A record is not one of this operator's.
        """
