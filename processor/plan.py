"""The plan: what a pipeline does, as plain frozen nodes that can be walked from outside.

Nodes are numbered in the order they were declared, so a parent always comes before its children.
Nothing here runs anything: topology.py builds operators from a plan, explain() tells it in words,
and another engine could be handed the same nodes (kinds, parameters, functions, types).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from millstream import UsageError

from .agg import Aggregate
from .fields import Field, describe
from .windows import FixedWindows, duration_text

_STATE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_NOT_STATE_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What all operators have."""

    id: int
    label: str
    """What messages and explain() call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNode(Node):
    """Reads a topic and gives every row its event time."""

    topic: str
    type: object
    time: Field
    """Field or function of the value; None for the timestamp of the record."""
    disorder_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildNode(Node):
    """An operator on the rows of another."""

    parent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapNode(ChildNode):
    """One row for one row; event time and key stay."""

    function: Callable[[Any], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterNode(ChildNode):
    """Keeps the rows the predicate holds for."""

    predicate: Callable[[Any], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatMapNode(ChildNode):
    """Any number of rows for one row; event time and key stay."""

    function: Callable[[Any], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyByNode(ChildNode):
    """Groups the rows by a field or function."""

    key: Field


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowNode(ChildNode):
    """Aggregates per key and window; one row per closed window."""

    name: str
    """Of the operator's state; unique in the pipeline."""
    windows: FixedWindows
    grace_ms: int
    aggregates: tuple[tuple[str, Aggregate[Any, Any, Any]], ...]

    def identity(self, key: str) -> str:
        """What must not change while there is live state."""
        parts = ", ".join(f"{name}={one.describe()}" for name, one in self.aggregates)
        grace = duration_text(self.grace_ms)
        return f"key_by {key}; window {self.windows}, grace {grace}; agg {parts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LateNode(ChildNode):
    """The rows a window operator refused because all of their windows were closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersNode(ChildNode):
    """The records of a source that could not be read or keyed, as they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkNode(ChildNode):
    """Writes the rows to a topic."""

    topic: str


AnyNode: TypeAlias = (
    SourceNode
    | MapNode
    | FilterNode
    | FlatMapNode
    | KeyByNode
    | WindowNode
    | LateNode
    | DeadLettersNode
    | SinkNode
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole pipeline. Node i has id i."""

    name: str
    nodes: tuple[AnyNode, ...]

    def sources(self) -> Iterator[SourceNode]:
        """Where rows come from."""
        return (node for node in self.nodes if isinstance(node, SourceNode))

    def sinks(self) -> Iterator[SinkNode]:
        """Where rows go to."""
        return (node for node in self.nodes if isinstance(node, SinkNode))

    def children(self, node_id: int) -> Iterator[AnyNode]:
        """The operators that read from node `node_id`."""
        return (
            node for node in self.nodes if isinstance(node, ChildNode) and node.parent == node_id
        )

    def ancestors(self, node: AnyNode) -> Iterator[AnyNode]:
        """The operators above `node`, nearest first."""
        while isinstance(node, ChildNode):
            node = self.nodes[node.parent]
            yield node

    def key_of(self, node: AnyNode) -> str:
        """How the rows that enter `node` are grouped, in words."""
        for above in self.ancestors(node):
            if isinstance(above, KeyByNode):
                return describe(above.key)
        return "nothing"

    def input_topics(self) -> list[str]:
        """Topics the pipeline reads, in order of declaration."""
        return [node.topic for node in self.sources()]

    def output_topics(self) -> list[str]:
        """Topics the pipeline writes, each once."""
        return list(dict.fromkeys(node.topic for node in self.sinks()))

    def identities(self) -> dict[str, str]:
        """What each stateful operator does, by its name; compared with a checkpoint's."""
        return {
            node.name: f"source {self._source_topic(node)}; {node.identity(self.key_of(node))}"
            for node in self.nodes
            if isinstance(node, WindowNode)
        }

    def _source_topic(self, node: AnyNode) -> str:
        source = list(self.ancestors(node))[-1]
        assert isinstance(source, SourceNode)
        return source.topic

    def check(self) -> None:
        """Refuse a plan that cannot run.

        Raises:
            UsageError: It has no source or no sink, or reads what it writes.
        """
        if not any(self.sources()):
            raise UsageError(f"pipeline {self.name!r} reads nothing: add .source(topic)")
        if not any(self.sinks()):
            raise UsageError(f"pipeline {self.name!r} writes nothing: add .to(topic)")
        loops = set(self.input_topics()) & set(self.output_topics())
        if loops:
            raise UsageError(f"pipeline {self.name!r} reads what it writes: {sorted(loops)}")

    def explain(self) -> str:
        """The plan as an indented tree."""
        lines = [f"pipeline {self.name}"]

        def walk(node: AnyNode, depth: int) -> None:
            state = f"  [state {node.name}]" if isinstance(node, WindowNode) else ""
            lines.append(f"{'  ' * depth}{node.label}{state}")
            for child in self.children(node.id):
                walk(child, depth + 1)

        for source in self.sources():
            walk(source, 1)
        return "\n".join(lines)


class PlanBuilder:
    """Collects nodes while a pipeline is declared."""

    def __init__(self, name: str) -> None:
        if not _STATE_NAME.fullmatch(name) or name in {".", ".."}:
            raise UsageError(
                f"a pipeline's name is 1 to 100 of A-Z a-z 0-9 . _ -, not {name!r}; it names"
                " the state, the offsets and the lock"
            )
        self.name = name
        self.nodes: list[AnyNode] = []

    @property
    def next_id(self) -> int:
        """The id the next node must have."""
        return len(self.nodes)

    def add(self, node: AnyNode) -> int:
        """Take in a node and return its id."""
        assert node.id == self.next_id
        self.nodes.append(node)
        return node.id

    def plan(self) -> Plan:
        """The nodes so far."""
        return Plan(self.name, tuple(self.nodes))

    def state_name(self, parent: int, given: str | None) -> str:
        """A name for state that stays when stateless operators come and go.

        Without a given one it is the source's topic and the number of the window operator on it.
        """
        taken = {node.name for node in self.nodes if isinstance(node, WindowNode)}
        if given is not None:
            if not _STATE_NAME.fullmatch(given) or given in {".", ".."}:
                raise UsageError(f"a state name is 1 to 100 of A-Z a-z 0-9 . _ -, not {given!r}")
            if given in taken:
                raise UsageError(f"two operators of {self.name!r} are called {given!r}")
            return given
        node = self.nodes[parent]
        while isinstance(node, ChildNode):
            node = self.nodes[node.parent]
        assert isinstance(node, SourceNode)
        stem = f"{_NOT_STATE_NAME.sub('_', node.topic)[:80]}.window"
        number = 1
        name = stem
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        return name
