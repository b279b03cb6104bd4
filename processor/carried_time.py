"""Carry event time over with state whose sources have changed. Pure.

W of an operator is that of its sources, and it never falls: what has closed must not open again.
An operator that is read by other sources from now on goes on with the W it has come to. Where
these sources have a W of their own already, which others go by, it cannot be given to them: if it
is less, the state cannot be carried over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .checkpoint import Checkpoint, SourceState
from .ingest import source_topic
from .plan import Plan
from .watermark import BEFORE_TIME

_BETWEEN = " + "


class CarriedTime(NamedTuple):
    """Event time after a migration."""

    sources: dict[str, SourceState]
    """As in a checkpoint, by topic."""
    shared: dict[str, int]
    """As in a checkpoint, by the topics that meet."""
    refused: dict[str, str]
    """Operators whose event time cannot be carried over, and why."""


def carry_time(plan: Plan, checkpoint: Checkpoint, carried: Mapping[str, str]) -> CarriedTime:
    """Where event time goes on.

    Args:
        plan: The new one.
        checkpoint: Of the former one.
        carried: The operators whose state goes on, with the identities they had.
    """
    sources, shared = dict(checkpoint.sources), dict(checkpoint.shared)
    refused: dict[str, str] = {}
    timed_by, fed_by = plan.timing_sources_by_node(), plan.sources_by_node()
    going_on = [node for node in plan.stateful() if node.name in carried]
    timings = {node.name: tuple(each.topic for each in timed_by[node.id]) for node in going_on}
    above = {node.name: tuple(each.topic for each in fed_by[node.id]) for node in going_on}
    former = {
        name: _former_topics(plan.name, checkpoint, identity) for name, identity in carried.items()
    }
    # Those that stay have the W of their sources, whatever it is.
    fixed = {timings[name]: name for name in carried if former[name] == above[name]}
    for name in carried:
        timing = timings[name]
        if former[name] == above[name]:
            continue
        level = _level(checkpoint, former[name], whole=timing == above[name])
        if level == BEFORE_TIME:
            continue
        at = _at(sources, shared, timing)
        if at >= level and timing not in fixed:
            fixed[timing] = name
        elif at == BEFORE_TIME and timing not in fixed:
            fixed[timing] = name
            if len(timing) == 1:
                sources[timing[0]] = SourceState([], level)
            else:
                shared[_BETWEEN.join(timing)] = level
        elif at < level:
            refused[name] = (
                f"it has come to W {level}, and {_BETWEEN.join(timing)}"
                f" {'is at ' + str(at) if at != BEFORE_TIME else 'has none yet'}: what has closed"
                " would open again. Let it catch up with the former code first, or drop the state"
            )
    return CarriedTime(sources, shared, refused)


def _former_topics(pipeline: str, checkpoint: Checkpoint, identity: str) -> tuple[str, ...]:
    """The topics of the sources an identity names."""
    names = identity.partition("; ")[0].removeprefix("source ").split(_BETWEEN)
    taken_in = (source_topic(pipeline, name) for name in names)
    return tuple(
        topic if topic in checkpoint.sources else name
        for name, topic in zip(names, taken_in, strict=True)
    )


def _level(checkpoint: Checkpoint, topics: tuple[str, ...], *, whole: bool) -> int:
    """The W of an operator below these sources.

    Args:
        checkpoint: Where event time was.
        topics: In order of declaration.
        whole: Whether all of them told it the time. Otherwise some did, it is not known which:
            then it is the greatest it can have been.
    """
    if len(topics) == 1 or whole:
        return _at(checkpoint.sources, checkpoint.shared, topics)
    met = [
        level for names, level in checkpoint.shared.items() if {*names.split(_BETWEEN)} <= {*topics}
    ]
    alone = [_at(checkpoint.sources, checkpoint.shared, (topic,)) for topic in topics]
    return max([*met, *alone])


def _at(
    sources: Mapping[str, SourceState], shared: Mapping[str, int], timing: tuple[str, ...]
) -> int:
    """W where these sources meet; `BEFORE_TIME` if there is none yet."""
    if len(timing) > 1:
        return shared.get(_BETWEEN.join(timing), BEFORE_TIME)
    state = sources.get(timing[0])
    return BEFORE_TIME if state is None or state.level is None else state.level
