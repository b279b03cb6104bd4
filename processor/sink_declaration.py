"""Where a stream ends: a topic, or a sink outside the store; checked, and put into a node."""

from __future__ import annotations

from typing import TypedDict

from millstream import UsageError, check_topic_name

from .connectors import DEFAULT_RETRY, Retry, Sink, check_connector_name
from .deliver import sink_topic
from .nodes import SinkNode
from .plan import PlanBuilder


class SinkOptions(TypedDict, total=False):
    """See `Stream.to`."""

    dead_letters: str | None
    retry: Retry | None


def sink_node(
    builder: PlanBuilder, parent: int, target: str | Sink, options: SinkOptions
) -> SinkNode:
    """The node of a sink.

    Raises:
        UsageError: Neither a topic nor a sink; options of a topic; two sinks of one name.
    """
    unknown = set(options) - set(SinkOptions.__annotations__)
    if unknown:
        known = sorted(SinkOptions.__annotations__)
        raise UsageError(f"to(): unknown options {sorted(unknown)}; there are {known}")
    if isinstance(target, str):
        if options:
            raise UsageError(f"to({target!r}): {sorted(options)} are for sinks outside the store")
        topic = check_topic_name(target)
        node = SinkNode(id=builder.next_id, parent=parent, label=f"to {topic}", topic=topic)
    else:
        node = _outside(builder, parent, target, options)
    for other in builder.plan().sinks():
        if other.output_name == node.output_name and other.sink is not node.sink:
            raise UsageError(
                f"{builder.name!r} writes to something else called {node.output_name!r}: give the"
                " sink another name"
            )
        if other.sink is node.sink and _settings(other) != _settings(node):
            raise UsageError(f"to({node.output_name!r}) with other options than before")
    return node


def _outside(builder: PlanBuilder, parent: int, sink: Sink, options: SinkOptions) -> SinkNode:
    name, kind = getattr(sink, "name", None), getattr(sink, "delivery", None)
    if name is None or not callable(getattr(sink, "open", None)):
        raise UsageError(f"{sink!r} is neither a topic nor a sink")
    check_connector_name(name, "sink")
    if kind not in {"transactional", "idempotent", "at_least_once"}:
        raise UsageError(
            f"sink {name!r}: delivery={kind!r}, use 'transactional', 'idempotent' or"
            " 'at_least_once'"
        )
    dead_letters = options.get("dead_letters")
    if dead_letters is not None:
        check_topic_name(dead_letters)
    return SinkNode(
        id=builder.next_id,
        parent=parent,
        label=f"to {name}, {kind.replace('_', ' ')}",
        topic=sink_topic(builder.name, name),
        sink=sink,
        dead_letters=dead_letters,
        retry=options.get("retry") or DEFAULT_RETRY,
    )


def _settings(node: SinkNode) -> tuple[str | None, Retry]:
    return node.dead_letters, node.retry
