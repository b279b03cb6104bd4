"""What tables are declared with: checked, and made into the nodes of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias, cast

from millstream import UsageError, parse_duration_ms

from . import agg
from .accumulator_codec import result_types
from .aggregate import Aggregate, AnyAggregate, require_invertible
from .connectors import Source
from .field_types import require_key_type
from .fields import Field, describe, label, require_fields, require_function, require_readable
from .plan import PlanBuilder
from .row_codec import RowCodec, needed_type
from .row_shapes import aggregated_type
from .row_types import returned_type
from .serde import key_decoder
from .source_options import Reading, SourceOptions, source_node
from .table_nodes import OnValues, RecordKeyNode, RegroupNode, RunningNode, Where, ttl_text
from .value_aggregates import Fold
from .window_declaration import checked_aggregates

Ttl: TypeAlias = str | int | timedelta | None


def ttl_ms(ttl: Ttl) -> int | None:
    """A time to live in ms.

    Raises:
        UsageError: It is no time at all.
    """
    if ttl is None:
        return None
    given = parse_duration_ms(ttl)
    if given < 1:
        raise UsageError(f"ttl={ttl!r}: at least 1 ms, or None to keep every key")
    return given


def counting_node(builder: PlanBuilder, parent: int, ttl: Ttl, name: str | None) -> RunningNode:
    """The node of `count()`."""
    return _single(builder, parent, ("count", agg.count(), int), ttl, name)


def reducing_node(
    builder: PlanBuilder,
    parent: int,
    function: Callable[[Any, Any], Any],
    ttl: Ttl,
    name: str | None,
) -> RunningNode:
    """The node of `reduce()`."""
    aggregate = agg.reduce(function)
    return _single(builder, parent, ("reduce", aggregate, builder.type_of(parent)), ttl, name)


def folding_node(
    builder: PlanBuilder,
    parent: int,
    init: Callable[[], Any],
    step: Callable[[Any, Any], Any],
    options: tuple[Ttl, str | None],
) -> RunningNode:
    """The node of `fold()`; the options are ttl and name."""
    aggregate = Fold(init, step)
    value_type = needed_type(aggregate.accumulator_type)
    if value_type is None:
        value_type = returned_type(init)
    if value_type is None:
        value_type = returned_type(step)
    return _single(builder, parent, ("fold", aggregate, value_type), *options)


def _single(
    builder: PlanBuilder,
    parent: int,
    what: tuple[str, Aggregate[Any, Any, Any], object],
    ttl: Ttl,
    name: str | None,
) -> RunningNode:
    kind, aggregate, value_type = what
    RowCodec(value_type, kind)  # refuses what state could never keep, before anything runs
    lifetime_ms = ttl_ms(ttl)
    return RunningNode(
        id=builder.next_id,
        parents=(parent,),
        label=f"{aggregate.describe()}{ttl_text(lifetime_ms)}",
        name=builder.state_name((parent,), kind, name),
        aggregates=((kind, aggregate),),
        single=True,
        value_type=value_type,
        row_type=None,
        ttl_ms=lifetime_ms,
    )


def running_node(
    builder: PlanBuilder,
    parent: int,
    aggregates: Mapping[str, AnyAggregate[Any, Any]],
    ttl: Ttl,
    name: str | None,
) -> RunningNode:
    """The node of `agg()` without windows.

    Raises:
        UsageError: No aggregate, a reserved name, or a field the rows' type lacks.
    """
    for option, given in (("ttl", ttl), ("name", name)):
        if isinstance(given, Aggregate):
            raise UsageError(f"an aggregate cannot be called {option!r} here: it is an option")
    row_type = builder.type_of(parent)
    checked = checked_aggregates(aggregates, row_type)
    lifetime_ms = ttl_ms(ttl)
    return RunningNode(
        id=builder.next_id,
        parents=(parent,),
        label=f"agg {_in_words(checked)}{ttl_text(lifetime_ms)}",
        name=builder.state_name((parent,), "agg", name),
        aggregates=tuple(checked.items()),
        single=False,
        value_type=aggregated_type(tuple(checked), result_types(tuple(checked.items()), row_type)),
        row_type=row_type,
        ttl_ms=lifetime_ms,
    )


def regrouping_node(
    builder: PlanBuilder,
    parent: int,
    key: Field,
    aggregates: Mapping[str, AnyAggregate[Any, Any]],
    name: str | None,
) -> RegroupNode:
    """The node of `group_by().agg()` of a table.

    Raises:
        UsageError: See `running_node`; or an aggregate cannot take a value back.
    """
    row_type = builder.type_of(parent)
    require_readable(key, "group_by()")
    require_fields(row_type, key, "group_by")
    require_key_type(row_type, key, "group_by")
    checked = checked_aggregates(aggregates, row_type)
    for column, aggregate in checked.items():
        require_invertible(aggregate, f"agg {column}")
    RowCodec(row_type, "group_by()")
    return RegroupNode(
        id=builder.next_id,
        parents=(parent,),
        label=f"group_by {describe(key)}, agg {_in_words(checked)}",
        name=builder.state_name((parent,), RegroupNode.kind, name),
        key=key,
        row_type=row_type,
        aggregates=tuple(checked.items()),
        value_type=aggregated_type(tuple(checked), None),
    )


def _in_words(aggregates: Mapping[str, Aggregate[Any, Any, Any]]) -> str:
    return ", ".join(f"{column}={one.describe()}" for column, one in aggregates.items())


class TableOptions(SourceOptions, total=False):
    """See `Pipeline.table`."""

    time: str | Callable[[Any], Any] | None
    disorder: str | int | timedelta
    versioned: bool
    ttl: Ttl


class TableSource(NamedTuple):
    """What a topic that is read as a table holds."""

    topic: str | Source
    type: Any
    key: Field
    key_type: Any


def source_table_node(
    builder: PlanBuilder, declared: TableSource, options: TableOptions
) -> tuple[int, int | None]:
    """Add the nodes that read a topic as a table; the id of the last, and the time to live.

    Raises:
        UsageError: See `Pipeline.table`.
    """
    topic, value_type, key, key_type = declared
    key_decoder(key_type)
    name = topic if isinstance(topic, str) else getattr(topic, "name", topic)
    if key is not None:
        require_readable(key, f"table {name}: key")
        require_fields(value_type, key, f"table {name}")
        require_key_type(value_type, key, f"table {name}: key")
    others = cast(
        "SourceOptions",
        {
            name: value
            for name, value in options.items()
            if name not in {"time", "disorder", "versioned", "ttl"}
        },
    )
    lifetime_ms = ttl_ms(options.get("ttl"))
    reading = Reading(
        topic, value_type, options.get("time"), options.get("disorder", 0), tombstones=True
    )
    source = builder.add(source_node(builder, reading, others), value_type)
    node = RecordKeyNode(
        id=builder.next_id,
        parent=source,
        label="table by record key" if key is None else label("table by", key),
        key=key,
        key_type=key_type,
    )
    return builder.add(node, value_type), lifetime_ms


def on_values(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of the values of a table, for its updates."""
    require_function(function, "map()")
    return OnValues(function)


def where(predicate: Callable[[Any], object]) -> Callable[[Any], Any]:
    """The values of a table for which `predicate` holds, for its updates."""
    require_function(predicate, "filter()")
    return Where(predicate)
