"""The rows that operators make of others: named aggregates of a key or a window, and pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from .made_types import made_once, named, typed

K_co = TypeVar("K_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
LeftT_co = TypeVar("LeftT_co", covariant=True)
RightT_co = TypeVar("RightT_co", covariant=True)


class MadeRow(msgspec.Struct, frozen=True, gc=False):
    """A row of a type that is made for it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Its type is in no module where a pickle would look for it."""
        return _row, (named(type(self)), msgspec.structs.astuple(self))


class Windowed(MadeRow, Generic[K_co, R_co], frozen=True, gc=False):
    """The result of one window of one key, as it flows on and as it is written to a topic.

    Aggregates are read by name, `result["total"]`. As JSON it is
    `{"key": ..., "window_start": ms, "window_end": ms, <aggregates>}`.
    """

    key: K_co
    start: int = msgspec.field(name="window_start")
    """UTC milliseconds, inclusive."""
    end: int = msgspec.field(name="window_end")
    """UTC milliseconds, exclusive."""

    def __getitem__(self, name: str) -> R_co:
        """The aggregate called `name`; KeyError if there is none."""
        if name not in self.__struct_fields__[3:]:
            raise KeyError(name)
        value: R_co = getattr(self, name)
        return value


class Aggregated(MadeRow, Generic[K_co, R_co], frozen=True, gc=False):
    """The aggregates of one key, as they flow on and as they are written to a topic.

    They are read by name, `row["total"]`. As JSON it is `{"key": ..., <aggregates>}`.
    """

    key: K_co

    def __getitem__(self, name: str) -> R_co:
        """The aggregate called `name`; KeyError if there is none."""
        if name not in self.__struct_fields__[1:]:
            raise KeyError(name)
        value: R_co = getattr(self, name)
        return value


class Joined(msgspec.Struct, Generic[LeftT_co, RightT_co], frozen=True):
    """Two rows that belong together. As JSON it is `{"left": ..., "right": ...}`.

    A side without a match is None, where the join keeps such rows.

    >>> left, right = Joined({"n": 1}, None)
    >>> left, right
    ({'n': 1}, None)
    """

    left: LeftT_co
    right: RightT_co

    def __iter__(self) -> Iterator[LeftT_co | RightT_co]:
        """Left, then right: a pair can be taken apart like a tuple."""
        return iter((self.left, self.right))


def _row(name: Any, fields: tuple[Any, ...]) -> Any:
    """The row of such a type; see `named`."""
    return typed(name)(*fields)


@made_once
def windowed_type(
    names: tuple[str, ...], types: tuple[Any, ...], updating: bool
) -> type[Windowed[Any, Any]]:
    """A Struct like `Windowed`, with one field per aggregate and, of updates, their status."""
    fields: list[tuple[str, Any]] = list(zip(names, types, strict=True))
    if updating:
        fields.append(("status", str))
    return msgspec.defstruct(  # type: ignore[return-value]  # its base says what it is
        "Windowed", fields, bases=(Windowed,), frozen=True, gc=False
    )


@made_once
def aggregated_type(
    names: tuple[str, ...], types: tuple[Any, ...] | None
) -> type[Aggregated[Any, Any]]:
    """A Struct with the key and one field per aggregate; None stands for types not known."""
    return msgspec.defstruct(  # type: ignore[return-value]  # its base says what it is
        "Aggregated",
        list(zip(names, types or (Any,) * len(names), strict=True)),
        bases=(Aggregated,),
        frozen=True,
        gc=False,
    )


def joined_type(left: object, right: object) -> object:
    """The type of pairs of rows of two types, None standing for an unknown one."""
    return Joined[Any if left is None else left, Any if right is None else right]  # type: ignore[misc]  # at run time
