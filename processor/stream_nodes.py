"""What all nodes have, and those of sources, sinks, streams and windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Literal, TypeAlias

from .accumulator_codec import result_types
from .agg import Aggregate
from .calendar_windows import CalendarWindows
from .connectors import DEFAULT_RETRY, Retry, Sink, Source
from .count_windows import CountWindows
from .fields import Field, describe
from .made_types import named, typed
from .parts import Parted
from .row_shapes import Windowed, windowed_type
from .sessions import SessionWindows
from .windows import FixedWindows, duration_text

LATE: Final = "late"
"""The port of rows that came too late for an operator."""

OnError: TypeAlias = Literal["stop", "dead_letter"]
"""What a row becomes that a user function raises on: an error, or a dead letter of its source."""

MissingTime: TypeAlias = Literal["dead_letter", "append_time"]
"""What a row without an event time becomes: a dead letter, or as old as its record in the log."""

SourceClock: TypeAlias = Literal["event", "wall"]
"""Whether W moves by rows alone, or also by the wall clock."""


@dataclass(frozen=True, slots=True)
class Emission:
    """When a window says what it has: once as it closes, or before that, too."""

    every_rows: int | None = None
    """After so many rows of a key, counted from its last result."""
    every_ms: int | None = None
    """Whenever W passes a multiple of this, for the keys that have changed."""
    corrections_ms: int = 0
    """First when W reaches end + grace, and with each row that comes up to this much later."""

    @property
    def updating(self) -> bool:
        """Whether there are results before the final one."""
        return self != FINAL

    def __str__(self) -> str:
        if self.every_rows is not None:
            return f", update every {self.every_rows} rows"
        if self.every_ms is not None:
            return f", update every {duration_text(self.every_ms)}"
        return f", corrections {duration_text(self.corrections_ms)}" if self.updating else ""


FINAL: Final = Emission()
"""Once, as the window closes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node(Parted):
    """What all operators have."""

    id: int
    label: str
    """What messages and explain() call it."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The nodes whose rows it takes; rows of one input row come in this order."""
        return ()

    @property
    def timed_inputs(self) -> tuple[int, ...]:
        """Those of `inputs` whose event time it waits for; their W is its own."""
        return self.inputs

    @property
    def needs_ticks(self) -> bool:
        """Whether what it does depends on the wall clock, too."""
        return False

    @property
    def grouping(self) -> str | None:
        """How it groups its rows, in words; None where they stay as they come."""
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Types of rows that are made for them have no name that a pickle could look up."""
        values = {one.name: named(getattr(self, one.name)) for one in fields(self)}
        return _node, (type(self), values)


def _node(kind: type[Node], values: dict[str, Any]) -> Node:
    """The node that `Node.__reduce__` takes apart."""
    return kind(**{name: typed(value) for name, value in values.items()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceNode(Node):
    """Reads a topic and gives every row its event time."""

    topic: str
    type: object
    time: Field
    """Field or function of the value; None for the timestamp of the record."""
    disorder_ms: int
    missing_time: MissingTime = "dead_letter"
    max_ahead_ms: int | None = None
    """How far a row may be ahead of the clock of whoever appended it."""
    idle_ms: int | None = None
    """A partition that got nothing for so long holds W back no more."""
    clock: SourceClock = "event"
    tombstones: bool = False
    """Whether a record without a value is a row, whose value is None."""
    source: Source | None = None
    """What is copied into the topic; None if others write to it."""

    @property
    def input_name(self) -> str:
        """What users call it: the name of the source, or the topic."""
        return self.topic if self.source is None else self.source.name

    @property
    def needs_ticks(self) -> bool:
        """Whether event time depends on more than rows."""
        return self.idle_ms is not None or self.clock == "wall"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChildNode(Node):
    """An operator on the rows of another."""

    parent: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """The parent."""
        return (self.parent,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapNode(ChildNode):
    """One row for one row; event time and key stay."""

    function: Callable[[Any], object]
    on_error: OnError = "stop"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapBatchNode(ChildNode):
    """One row for one row, by a function of a list of values, or of columns."""

    function: Callable[[Any], Any]
    columns: bool = False
    """Whether it takes and returns Arrow data."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeekNode(ChildNode):
    """Shows every row to a function; the rows pass unchanged."""

    function: Callable[[Any], object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilterNode(ChildNode):
    """Keeps the rows the predicate holds for."""

    predicate: Callable[[Any], object]
    on_error: OnError = "stop"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlatMapNode(ChildNode):
    """Any number of rows for one row; event time and key stay."""

    function: Callable[[Any], object]
    on_error: OnError = "stop"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyByNode(ChildNode):
    """Groups the rows by a field or function."""

    key: Field

    @property
    def grouping(self) -> str:
        """The field or function."""
        return describe(self.key)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchNode(ChildNode):
    """Sends each row to the port of the first predicate that holds, or to the last port."""

    predicates: tuple[Callable[[Any], object], ...]
    ports: tuple[str, ...]
    """One per predicate, and one for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeNode(Node):
    """The rows of several streams as one, in the order of the input rows that caused them."""

    parents: tuple[int, ...]
    keyed: bool

    @property
    def inputs(self) -> tuple[int, ...]:
        """The streams, in the order they were named."""
        return self.parents


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PortNode(ChildNode):
    """Another output of the operator above: late rows, a branch."""

    port: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeadLettersNode(ChildNode):
    """The records of a source that could not be read or keyed, as they were."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SinkNode(ChildNode):
    """Writes the rows to a topic."""

    topic: str
    sink: Sink | None = None
    """Where the records of the topic, an outbox, are delivered to; None if they stay there."""
    dead_letters: str | None = None
    """Topic for records the sink refuses; None if they are errors."""
    retry: Retry = DEFAULT_RETRY

    @property
    def output_name(self) -> str:
        """What users call it: the name of the sink, or the topic."""
        return self.topic if self.sink is None else self.sink.name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StatefulNode(Node):
    """An operator with state, which has a name of its own in the store."""

    kind: ClassVar[str]
    """Names the state when the user does not: `<source topic>.<kind>`."""

    name: str
    """Of the operator's state; unique in the pipeline."""
    parents: tuple[int, ...]

    @property
    def place_text(self) -> str:
        """Where its state is, in words, in a pipeline whose state may spill."""
        return "spills"

    @property
    def inputs(self) -> tuple[int, ...]:
        """The streams, in the order of the operator's arguments."""
        return self.parents

    @property
    def delay_ms(self) -> int:
        """How far behind W the event times of its results may lie."""
        return 0

    @property
    def passes_rows(self) -> bool:
        """Whether its results are rows it was given, and no others."""
        return False

    def identity(self, keys: Sequence[str]) -> str:
        """What must not change while there is live state.

        Args:
            keys: How the rows of each input are grouped, in words.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AggregatingNode(StatefulNode):
    """Aggregates rows per key and window."""

    kind: ClassVar[str] = "window"

    aggregates: tuple[tuple[str, Aggregate[Any, Any, Any]], ...]
    row_type: object = None
    """What is aggregated, for accumulators that keep some of it; None: unknown."""
    emission: Emission = FINAL

    @property
    def windows_text(self) -> str:
        """The windows in words."""
        raise NotImplementedError

    @property
    def result_type(self) -> type[Windowed[Any, Any]]:
        """Makes its rows, of key, start, end, the aggregates in order and, of updates, a status."""
        names = tuple(name for name, _ in self.aggregates)
        types = result_types(self.aggregates, self.row_type)
        return windowed_type(names, types, self.emission.updating)

    def identity(self, keys: Sequence[str]) -> str:
        """Key, windows, aggregates and when they are emitted."""
        parts = ", ".join(f"{name}={one.describe()}" for name, one in self.aggregates)
        return f"key_by {keys[0]}; window {self.windows_text}{self.emission}; agg {parts}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowNode(AggregatingNode):
    """Windows that are the same for all keys: tumbling, hopping, daily."""

    windows: FixedWindows | CalendarWindows
    grace_ms: int

    @property
    def windows_text(self) -> str:
        """The windows in words."""
        return f"{self.windows}, grace {duration_text(self.grace_ms)}"

    @property
    def delay_ms(self) -> int:
        """A window that ends at e emits at the latest when W reaches e + grace + corrections."""
        return self.grace_ms + self.emission.corrections_ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionNode(AggregatingNode):
    """Windows of activity of a key."""

    windows: SessionWindows
    grace_ms: int

    @property
    def windows_text(self) -> str:
        """The windows in words."""
        return f"{self.windows}, grace {duration_text(self.grace_ms)}"

    @property
    def delay_ms(self) -> int:
        """A session that ends at e emits at the latest when W reaches e + grace."""
        return self.grace_ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountNode(AggregatingNode):
    """Windows of a number of rows of a key."""

    windows: CountWindows

    @property
    def windows_text(self) -> str:
        """The windows in words."""
        return str(self.windows)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DedupNode(StatefulNode):
    """Lets the first of rows that say the same pass."""

    kind: ClassVar[str] = "dedup"

    on: Field
    """What makes duplicates; None for the value itself."""
    within_ms: int
    keyed: bool
    """Whether only rows of one key can be duplicates."""

    @property
    def passes_rows(self) -> bool:
        """It does."""
        return True

    def identity(self, keys: Sequence[str]) -> str:
        """Key, what makes duplicates and for how long."""
        by = f"key_by {keys[0]}; " if self.keyed else ""
        return f"{by}dedup on {describe(self.on)} within {duration_text(self.within_ms)}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProcessNode(StatefulNode):
    """Calls a function for every row of a key, with state and timers."""

    kind: ClassVar[str] = "process"

    function: Callable[[Any, Any], object]
    on_timer: Callable[[Any, Any], object] | None
    state_type: object
    ttl_ms: int | None
    wall_clock: bool

    @property
    def needs_ticks(self) -> bool:
        """Whether it may ask for the time of the wall clock."""
        return self.wall_clock

    def identity(self, keys: Sequence[str]) -> str:
        """Key, function and the type of the state."""
        kept = getattr(self.state_type, "__qualname__", repr(self.state_type))
        ttl = "" if self.ttl_ms is None else f", ttl {duration_text(self.ttl_ms)}"
        return f"key_by {keys[0]}; process {describe(self.function)}, state {kept}{ttl}"
