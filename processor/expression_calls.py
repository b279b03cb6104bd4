"""Function calls of expressions, checked as they are built: by method or from text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, Final

from millstream import UsageError

from .expression_functions import FUNCTIONS
from .expression_tree import TYPES, Call, Case, Cast, FillNull, Literal, Tree

_SPECIAL: Final = ("fill_null", "when")


def call(name: str, operands: Sequence[Tree]) -> Tree:
    """A call as a tree: of a function, a type, `fill_null` or `when`.

    Raises:
        UsageError: There is no such function, or it takes other operands.
    """
    for type_name in TYPES:
        if name == type_name:
            _require_count(name, operands, 1, 1)
            return Cast(type_name, operands[0])
    if name == "fill_null":
        _require_count(name, operands, 2, 2)
        return FillNull(operands[0], operands[1])
    if name == "when":
        return _case(operands)
    function = FUNCTIONS.get(name)
    if function is None:
        raise UsageError(f"there is no function {name!r}{_suggestion(name)}")
    _require_count(
        name, operands, 1 + function.further - len(function.defaults), 1 + function.further
    )
    checked = Call(name, tuple(operands))
    if function.bind is not None:
        bound(checked)
    return checked


def bound(node: Call) -> Callable[[Any], Any]:
    """The function of the first operand that a call with constants comes to.

    Raises:
        UsageError: An operand behind the first is no constant, or none it has a meaning for.
    """
    constants = []
    for operand in node.operands[1:]:
        if not isinstance(operand, Literal):
            raise UsageError(f"{node.function}() takes a constant behind its first operand")
        constants.append(operand.value)
    return _bound(node.function, tuple(constants))


@cache
def _bound(name: str, constants: tuple[object, ...]) -> Callable[[Any], Any]:
    function = FUNCTIONS[name]
    assert function.bind is not None
    missing = function.further - len(constants)
    return function.bind(*constants, *function.defaults[len(function.defaults) - missing :])


def _case(operands: Sequence[Tree]) -> Case:
    if len(operands) < 3 or len(operands) % 2 == 0:
        raise UsageError(
            "when() takes a condition and a value, more of them, and a last value:"
            f" an odd number of at least 3, not {len(operands)}"
        )
    pairs = zip(operands[0:-1:2], operands[1:-1:2], strict=True)
    return Case(tuple(pairs), operands[-1])


def _require_count(name: str, operands: Sequence[Tree], least: int, most: int) -> None:
    if not least <= len(operands) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        plural = "" if wanted == "1" else "s"
        raise UsageError(f"{name}() takes {wanted} operand{plural}, not {len(operands)}")


def _suggestion(name: str) -> str:
    known = sorted({*FUNCTIONS, *TYPES, *_SPECIAL})
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return f"; is it {near[0]}()?" if near else f"; there are {', '.join(known)}"
