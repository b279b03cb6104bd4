"""Give state a result more: what each record holds when an aggregate was added. Pure.

Those that were there must be there still, under the same names; their order may be another one. An
aggregate that is new begins empty in every window, session and key that is open. In a grouped table
it cannot begin empty: a row that leaves its group would be taken back from an aggregate that never
had it. But the rows are there, so it is made of them; regrouping.py does that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .accumulator_codec import AccumulatorCodec
from .nodes import AggregatingNode, CountNode, SessionNode, StatefulNode
from .plan import Plan
from .table_nodes import RegroupNode, RunningNode

_AGGREGATES: Final = re.compile(r"^(.*[; ])agg (\w+=.*?)(, ttl \w+)?$", re.DOTALL)
_NEXT: Final = re.compile(r", (?=\w+=\w+\()")

Value = list[Any]


class AddedColumns(NamedTuple):
    """What an operator says more than it did, or in another order."""

    names: tuple[str, ...]
    """The results that are new; none if their order alone has changed."""
    extend: Callable[[Value], Value]
    """Makes what a record holds of what it held; of a group, without the rows' part in it."""
    regrouped: RegroupNode | None
    """The grouped table whose rows they are made of; None if they begin empty."""

    @property
    def reason(self) -> str:
        """What is to be said of them."""
        if not self.names:
            return "results in another order"
        one = len(self.names) == 1
        if self.regrouped is None:
            return f"{', '.join(self.names)} begin{'s' * one} empty"
        return f"{', '.join(self.names)} {'is' if one else 'are'} made of the rows of the table"


def added_columns(plan: Plan, operator: str, former: str) -> AddedColumns | None:
    """What was added to an operator, or moved; None if that is not all that has changed.

    Args:
        plan: The new one.
        operator: Its name there.
        former: The identity it had.
    """
    node = next((each for each in plan.stateful() if each.name == operator), None)
    if not isinstance(node, AggregatingNode | RunningNode | RegroupNode):
        return None
    was, now = (_split(text) for text in (former, plan.identities()[operator]))
    if was is None or now is None or was[0] != now[0]:
        return None
    order = [now[1].index(each) for each in was[1] if each in now[1]]
    names = tuple(name for name, _ in node.aggregates)
    if len(order) < len(was[1]) or len(now[1]) != len(names) or was[1] == now[1]:
        return None
    added = tuple(name for number, name in enumerate(names) if number not in order)
    regrouped = node if isinstance(node, RegroupNode) else None
    return AddedColumns(added, _extender(node, order), regrouped)


def _split(identity: str) -> tuple[str, list[str]] | None:
    """An identity without its aggregates, and these."""
    found = _AGGREGATES.match(identity)
    if found is None:
        return None
    return f"{found[1]}{found[3]}", _NEXT.split(found[2])


def _extender(node: StatefulNode, order: list[int]) -> Callable[[Value], Value]:
    """The function that puts accumulators into their places, and fresh ones into the others."""
    assert isinstance(node, AggregatingNode | RunningNode | RegroupNode)
    row_type = None if isinstance(node, RegroupNode) else node.row_type
    codec = AccumulatorCodec(node.label, node.aggregates, row_type)

    def filled(accumulators: Value) -> Value:
        made = codec.fresh()
        for place, accumulator in zip(order, accumulators, strict=True):
            made[place] = accumulator
        return made

    if isinstance(node, RegroupNode):
        return lambda value: [value[0], *filled(value[1:])]
    if isinstance(node, RunningNode):
        return lambda value: [filled(value[0]), *value[1:]]
    start = 3 if isinstance(node, SessionNode | CountNode) else 0
    stop = start + len(order)
    return lambda value: [*value[:start], *filled(value[start:stop]), *value[stop:]]
