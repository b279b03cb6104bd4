"""The plan: what a pipeline does, as plain frozen nodes that can be walked from outside.

Nodes are numbered in the order they were declared, so what a node reads always comes before it.
Nothing here runs anything: topology.py builds operators from a plan, explain() tells it in words,
and another engine could be handed the same nodes (kinds, parameters, functions, types).
The kinds of nodes are in nodes.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from millstream import UsageError

from .aggregate import Aggregate
from .fields import MARK, fields_marked
from .holding import HELD_IN_MEMORY, StateHolding
from .made_types import named, typed
from .nodes import (
    LATE,
    AggregatingNode,
    DeadLettersNode,
    Node,
    PeekNode,
    PortNode,
    SinkNode,
    SourceNode,
    StatefulNode,
)
from .table_nodes import RegroupNode, RunningNode

_STATE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_NOT_STATE_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")
_ANY_NAME: Final = re.compile(r"\0([\w,]*)\0")
"""Stands for the name of a result, which is none of those listed."""
_Aggregates: TypeAlias = tuple[tuple[str, Aggregate[Any, Any, Any]], ...]
_QUOTES: Final = "'\""
_IN_MERMAID: Final = str.maketrans(
    {'"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "#": "#35;", "\n": "<br/>"}
)
_ANY_FIELD: Final = r"(?:(?!, \w+=\w+\(|; ).)+?"
"""A pattern for what `describe` says of a field; it does not reach into another aggregate."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole pipeline. Node i has id i."""

    name: str
    nodes: tuple[Node, ...]
    holding: StateHolding = HELD_IN_MEMORY
    """Where state is held while it runs; results do not depend on it."""

    def __repr__(self) -> str:
        sources, sinks = self.input_names(), self.output_names()
        return f"<Plan {self.name}: {', '.join(sources)} -> {', '.join(sinks)}>"

    def unseen(self) -> Plan:
        """The same plan, whose peeks show nobody anything: for what is only computed again."""
        nodes = (
            replace(node, function=_show_nobody) if isinstance(node, PeekNode) else node
            for node in self.nodes
        )
        return replace(self, nodes=tuple(nodes))

    def sources(self) -> Iterator[SourceNode]:
        """Where rows come from."""
        return (node for node in self.nodes if isinstance(node, SourceNode))

    def sinks(self) -> Iterator[SinkNode]:
        """Where rows go to."""
        return (node for node in self.nodes if isinstance(node, SinkNode))

    def stateful(self) -> Iterator[StatefulNode]:
        """The operators with state."""
        return (node for node in self.nodes if isinstance(node, StatefulNode))

    def children(self, node_id: int) -> Iterator[Node]:
        """The operators that read from node `node_id`."""
        return (node for node in self.nodes if node_id in node.inputs)

    def readers(self) -> list[list[Node]]:
        """The operators that read from each node, by its id."""
        readers: list[list[Node]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for each in dict.fromkeys(node.inputs):
                readers[each].append(node)
        return readers

    def sources_by_node(self) -> list[tuple[SourceNode, ...]]:
        """The sources whose rows reach each node, by its id, in order of declaration."""
        return self._sources_along(lambda node: node.inputs)

    def timing_sources_by_node(self) -> list[tuple[SourceNode, ...]]:
        """The sources whose W is that of each node, by its id, in order of declaration."""
        return self._sources_along(lambda node: node.timed_inputs)

    def _sources_along(
        self, inputs: Callable[[Node], Sequence[int]]
    ) -> list[tuple[SourceNode, ...]]:
        # One pass from above: a plan may be thousands of operators deep.
        found: list[tuple[SourceNode, ...]] = []
        for node in self.nodes:
            above = {each.id: each for parent in inputs(node) for each in found[parent]}
            if isinstance(node, SourceNode):
                above[node.id] = node
            found.append(tuple(above[each] for each in sorted(above)))
        return found

    def derived(self) -> list[bool]:
        """Whether results of an operator with state, not just its late rows, reach each node."""
        derived: list[bool] = []
        for node in self.nodes:
            if isinstance(node, PortNode) and node.port == LATE:
                # They are as they came to the operator.
                above = self.nodes[node.parent].inputs
                derived.append(any(derived[each] for each in above))
            else:
                made = [derived[each] or _makes_rows(self.nodes[each]) for each in node.inputs]
                derived.append(any(made))
        return derived

    def delays_ms(self) -> list[int]:
        """How far behind the W of its sources the rows that enter each node may lie."""
        entering: list[int] = []
        leaving: list[int] = []
        for node in self.nodes:
            entering.append(max((leaving[each] for each in node.timed_inputs), default=0))
            leaving.append(entering[-1] + self._own_delay_ms(node))
        return entering

    def _own_delay_ms(self, node: Node) -> int:
        """What a node adds to the delay of its rows."""
        if isinstance(node, StatefulNode):
            return node.delay_ms
        if isinstance(node, PortNode) and node.port == LATE:
            # Late rows are not held back: they are as they came.
            above = self.nodes[node.parent]
            return -above.delay_ms if isinstance(above, StatefulNode) else 0
        return 0

    def _key_above(self, node_id: int) -> str:
        """How the rows of a node are grouped, in words."""
        node = self.nodes[node_id]
        while node.grouping is None and node.inputs:
            node = self.nodes[node.inputs[0]]
        return node.grouping or "nothing"

    def input_topics(self) -> list[str]:
        """Topics the pipeline reads, in order of declaration."""
        return [node.topic for node in self.sources()]

    def output_topics(self) -> list[str]:
        """Topics the pipeline writes, each once."""
        return list(dict.fromkeys(node.topic for node in self.sinks()))

    def input_names(self) -> dict[str, str]:
        """What users call the input topics, with the topics."""
        return {node.input_name: node.topic for node in self.sources()}

    def text_inputs(self) -> set[str]:
        """The input topics, as users call them, whose values are read as text, not as JSON."""
        return {node.input_name for node in self.sources() if node.type is str}

    def output_names(self) -> dict[str, str]:
        """What users call the output topics, with the topics."""
        return {node.output_name: node.topic for node in self.sinks()}

    def keeps_dead_letters(self, source: SourceNode) -> bool:
        """Whether rows of `source` that cannot be processed go somewhere."""
        return any(isinstance(child, DeadLettersNode) for child in self.children(source.id))

    def needs_ticks(self) -> bool:
        """Whether results depend on the wall clock, through the journal."""
        return any(node.needs_ticks for node in self.nodes)

    def identities(self) -> dict[str, str]:
        """What each stateful operator does, by its name; compared with a checkpoint's."""
        sources = self.sources_by_node()
        return {node.name: self._identity(node, sources[node.id]) for node in self.stateful()}

    def same_state(self) -> dict[str, re.Pattern[str]]:
        """By operator, the identities whose state means the same: results may have other names.

        But not that of a result that is there still, computed alike, in another place.
        """
        return {name: re.compile(_literal(text)) for name, text in self._unnamed().items()}

    def alike_state(self) -> dict[str, re.Pattern[str]]:
        """By operator, the identities whose state means the same if the user says so.

        Sources may be others, functions may be called otherwise, and a field may have been read by
        a function, or is now. Two different names of fields are two different things.
        """
        with fields_marked():
            return {name: _alike(text) for name, text in self._unnamed().items()}

    def _unnamed(self) -> dict[str, str]:
        """The identities with results of any name."""
        texts = {}
        sources = self.sources_by_node()
        for node in self.stateful():
            unnamed = node
            if isinstance(node, AggregatingNode | RunningNode | RegroupNode):
                unnamed = replace(node, aggregates=_unnamed(node.aggregates))
            texts[node.name] = self._identity(unnamed, sources[node.id])
        return texts

    def _identity(self, node: StatefulNode, sources: Sequence[SourceNode]) -> str:
        names = " + ".join(each.input_name for each in sources)
        keys = [self._key_above(each) for each in node.inputs]
        return f"source {names}; {node.identity(keys)}"

    def check(self) -> None:
        """Refuse a plan that cannot run.

        Raises:
            UsageError: It has no source or no sink, or reads what it writes.
        """
        if not any(self.sources()):
            raise UsageError(f"pipeline {self.name!r} reads nothing: add .source(topic)")
        if not any(self.sinks()) and not any(isinstance(node, PeekNode) for node in self.nodes):
            raise UsageError(f"pipeline {self.name!r} writes nothing: add .to(topic) or .print()")
        loops = set(self.input_names()) & set(self.output_topics())
        if loops:
            raise UsageError(f"pipeline {self.name!r} reads what it writes: {sorted(loops)}")

    def check_portable(self, dumps: Callable[[Node], object]) -> None:
        """Refuse a plan that cannot be sent to another process, and say which operator is why.

        Args:
            dumps: What it would be sent with: `pickle.dumps` takes functions and types of modules,
                `cloudpickle.dumps` lambdas and functions of a notebook as well.

        Raises:
            UsageError: A function holds what is of this process, such as an open file.

        >>> import pickle
        >>> from millstream.processor import Pipeline
        >>> pipeline = Pipeline("shout")
        >>> words = pipeline.source("words", type=str)
        >>> _ = words.map(str.upper).to("shouts")
        >>> pipeline.plan.check_portable(pickle.dumps)
        """
        for node in self.nodes:
            try:
                dumps(node)
            except Exception as error:
                raise UsageError(
                    f"pipeline {self.name!r} cannot be sent to another process because of"
                    f" {node.label!r}: {error}. Give it functions and types that a module declares,"
                    " and let functions open what they need where they run"
                ) from error

    def explain(self, notes: Mapping[int, str] | None = None) -> str:
        """The plan as an indented tree. What reads several streams stands below the last.

        Where state may spill, it says of each operator whether its state does.

        Args:
            notes: What else is to be said of an operator, by id.
        """
        notes = notes or {}
        lines = [f"pipeline {self.name}"]
        readers = self.readers()
        waiting: list[tuple[Node, int]] = [(source, 1) for source in self.sources()]
        waiting.reverse()
        while waiting:
            node, depth = waiting.pop()
            state = ""
            if isinstance(node, StatefulNode):
                place = f", {node.place_text}" if self.holding.spills else ""
                state = f"  [state {node.name}{place}]"
            note = f"  [{notes[node.id]}]" if node.id in notes else ""
            lines.append(f"{'  ' * depth}{node.label}{state}{note}")
            below = [each for each in readers[node.id] if each.inputs[-1] == node.id]
            waiting += [(each, depth + 1) for each in reversed(below)]
        return "\n".join(lines)

    def mermaid(self) -> str:
        """The plan as a Mermaid flowchart: sources are stadiums, what has state is a cylinder."""
        lines = ["flowchart TD"]
        for node in self.nodes:
            text = node.label.translate(_IN_MERMAID)
            if isinstance(node, StatefulNode):
                lines.append(f'  n{node.id}[("{text}<br/>state {node.name}")]')
            elif isinstance(node, SourceNode | SinkNode):
                lines.append(f'  n{node.id}(["{text}"])')
            else:
                lines.append(f'  n{node.id}["{text}"]')
            lines += [f"  n{above} --> n{node.id}" for above in node.inputs]
        return "\n".join(lines)


def _makes_rows(node: Node) -> bool:
    """Whether the rows that leave a node are not those that came."""
    return isinstance(node, StatefulNode) and not node.passes_rows


def _unnamed(aggregates: _Aggregates) -> _Aggregates:
    """Aggregates with what stands for their names: not those of others that compute the same."""
    made = []
    for name, one in aggregates:
        alike = [each for each, other in aggregates if other.describe() == one.describe()]
        alike.remove(name)
        made.append((f"\0{','.join(alike)}\0", one))
    return tuple(made)


def _literal(text: str) -> str:
    """A pattern for the text with results of any name that it may be."""
    return _ANY_NAME.sub(_name_pattern, re.escape(text))


def _name_pattern(found: re.Match[str]) -> str:
    others = found[1].replace(",", "|")
    return rf"(?!(?:{others})=)\w+" if others else r"\w+"


def _alike(text: str) -> re.Pattern[str]:
    """A pattern for an identity whose fields are between marks."""
    _, _, rest = text.partition("; ")
    parts = [
        _any_field(part) if number % 2 else _literal(part)
        for number, part in enumerate(rest.split(MARK))
    ]
    return re.compile("source [^;]+; " + "".join(parts), re.DOTALL)


def _any_field(text: str) -> str:
    if text[0] in _QUOTES:
        return f"(?:{re.escape(text)}|(?![{_QUOTES}]){_ANY_FIELD})"
    return _ANY_FIELD


class PlanBuilder:
    """Collects nodes while a pipeline is declared."""

    def __init__(self, name: str, holding: StateHolding | None = None) -> None:
        if not _STATE_NAME.fullmatch(name) or name in {".", ".."}:
            raise UsageError(
                f"a pipeline's name is 1 to 100 of A-Z a-z 0-9 . _ -, not {name!r}; it names"
                " the state, the offsets and the lock"
            )
        self.name = name
        self.holding = holding or HELD_IN_MEMORY
        self.nodes: list[Node] = []
        self._types: list[object] = []

    @property
    def next_id(self) -> int:
        """The id the next node must have."""
        return len(self.nodes)

    def add(self, node: Node, row_type: object = None) -> int:
        """Take in a node and return its id.

        Args:
            node: Has `next_id`.
            row_type: The type of its rows where it is known; checks fields, and brings rows that
                are kept in state back as what they were.
        """
        assert node.id == self.next_id
        self.nodes.append(node)
        self._types.append(row_type)
        return node.id

    def replace(self, node: Node, row_type: object = None) -> None:
        """Put `node` in the place of the one with its id, which nothing may read yet."""
        self.nodes[node.id] = node
        self._types[node.id] = row_type

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "nodes": list(self.nodes), "_types": list(map(named, self._types))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _types=list(map(typed, state["_types"])))

    def type_of(self, node_id: int) -> object:
        """The type of a node's rows, or None where nobody said."""
        return self._types[node_id]

    def plan(self) -> Plan:
        """The nodes so far."""
        return Plan(self.name, tuple(self.nodes), self.holding)

    def state_name(self, parents: Sequence[int], kind: str, given: str | None) -> str:
        """A name for state that stays when stateless operators come and go.

        Without a given one it is the topic of the first source above, the kind of the operator,
        and its number among those.
        """
        taken = {node.name for node in self.nodes if isinstance(node, StatefulNode)}
        if given is not None:
            if not _STATE_NAME.fullmatch(given) or given in {".", ".."}:
                raise UsageError(f"a state name is 1 to 100 of A-Z a-z 0-9 . _ -, not {given!r}")
            if given in taken:
                raise UsageError(f"two operators of {self.name!r} are called {given!r}")
            return given
        node = self.nodes[parents[0]]
        while node.inputs:
            node = self.nodes[node.inputs[0]]
        assert isinstance(node, SourceNode)
        stem = f"{_NOT_STATE_NAME.sub('_', node.input_name)[:80]}.{kind}"
        number = 1
        name = stem
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        return name


def _show_nobody(value: object) -> None:
    """Stands for the function of a peek."""
