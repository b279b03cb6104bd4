"""What random pipelines are made of: values, and nodes of both the engine and the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from operator_models import Model, Row

from millstream.processor import Table

Inputs = Sequence[list[Row]]


class Item(msgspec.Struct):
    """A value, in the pipelines that have types."""

    t: int
    k: str
    x: int
    ids: list[int]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)


def plain(value: Any) -> Any:
    """A value as the functions here take it."""
    return msgspec.structs.asdict(value) if isinstance(value, Item) else value


@dataclass
class Node:
    """A node of the model."""

    inputs: tuple[int, ...]
    sources: tuple[int, ...]
    """Whose W is its own."""
    delay: int
    """How far behind W its rows may be."""
    run: Callable[[Inputs, int, int], list[Row]]
    held_ms: int = 0
    """How far behind W the rows it takes may be."""
    model: Model | None = None


class Known(NamedTuple):
    """A stream of both."""

    stream: Any
    node: int
    keyed: bool


class KnownTable(NamedTuple):
    """A table of both; its updates are the rows of the node."""

    table: Table[Any, Any]
    node: int
    ttl: int | None
    versioned: bool = False
