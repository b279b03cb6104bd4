"""What `process()` declares: checked, and made into the node of its operator."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

from millstream import UsageError

from .fields import label, require_function
from .nodes import ProcessNode
from .plan import PlanBuilder
from .row_codec import RowCodec, merged_type
from .row_types import element_type, returned_type


def process_node(  # noqa: PLR0913 - a process function has that many parts
    builder: PlanBuilder,
    parent: int,
    functions: tuple[Callable[..., Any], Callable[..., Any] | None],
    state_type: Any,
    ttl_ms: int | None,
    *,
    wall_clock: bool,
    name: str | None,
) -> ProcessNode:
    """The node of a process function.

    Args:
        builder: Of the pipeline.
        parent: The keyed stream.
        functions: For rows and for timers.
        state_type: What is kept per key; None for nothing.
        ttl_ms: How long it is kept.
        wall_clock: Whether the clock may be seen.
        name: Of the state.

    Raises:
        UsageError: What is given does not fit together.
    """
    function, on_timer = functions
    require_function(function, "process()")
    if on_timer is not None:
        require_function(on_timer, "process() on_timer")
    if state_type is None and ttl_ms is not None:
        raise UsageError("process(ttl=...) needs state=TYPE: there is nothing to forget")
    if ttl_ms is not None and ttl_ms < 1:
        raise UsageError("process(ttl=...) is at least 1 ms")
    chosen = builder.state_name((parent,), ProcessNode.kind, name)
    if state_type is not None:
        if not callable(state_type):
            raise UsageError(
                f"process(state=...) takes a type to make state of, not {state_type!r}"
            )
        RowCodec(state_type, f"the state of {chosen!r}")
    return ProcessNode(
        id=builder.next_id,
        label=label("process", function),
        name=chosen,
        parents=(parent,),
        function=function,
        on_timer=on_timer,
        state_type=state_type,
        ttl_ms=ttl_ms,
        wall_clock=wall_clock,
    )


def process_type(function: Callable[..., Any], on_timer: Callable[..., Any] | None) -> object:
    """The type of the rows of a process function, as far as it and `on_timer` say it."""
    said = returned_type(function)
    timed = None if on_timer is None else element_type(returned_type(on_timer))
    if said is NoneType:  # it has no rows
        return timed
    rows = element_type(said)
    return rows if timed is None else merged_type([rows, timed])
