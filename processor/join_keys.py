"""Whether keys of the two sides of a join can be equal: those of `int` and `str` never are.

Such a join is no error to anything else; it gives nothing, silently. Where types are declared, by a
source, an annotation or a table's `key_type`, it is refused before anything runs. Where they are
not, keys say what they are as they come: `KeyWatch` looks until one of each side could be equal to
one of the other. It only tells: rows of more types than have come so far are nobody's mistake.

What equals what is said in serde.py: numbers of any type, text, bytes, and tuples of these.
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Sequence
from functools import reduce
from operator import or_
from types import NoneType
from typing import Any, Final

from millstream import UsageError

from .columns import Rows
from .field_types import read_type
from .join_nodes import JoinNode, TableJoinNode
from .nodes import KeyByNode, MergeNode
from .plan import PlanBuilder
from .row_types import members
from .table_nodes import RecordKeyNode, RegroupNode

_FAMILIES: Final[dict[type, type]] = {
    str: str,
    bytes: bytes,
    int: float,
    float: float,
    tuple: tuple,
}
"""What keys may be, by what their equality is that of."""

_logger = logging.getLogger("millstream")


def require_equal_keys(builder: PlanBuilder, left: int, right: int, what: str) -> None:
    """Refuse a join whose keys are known to be of types that are never equal.

    Raises:
        UsageError: They are.
    """
    known = key_type(builder, left), key_type(builder, right)
    if not may_equal(*known):
        one, other = map(_named, known)
        table = "; those of a table are of its key_type, str by default" if "table" in what else ""
        raise UsageError(
            f"{what}: the left side has keys of {one}, the right side of {other}: no two of them"
            f" could ever be equal{table}. Group both by keys of one type, such as"
            " key_by(lambda row: str(row.id))"
        )


def key_type(builder: PlanBuilder, node_id: int) -> object:
    """The type of the keys that rows of a node are grouped by; None where nobody said."""
    node = builder.nodes[node_id]
    if isinstance(node, KeyByNode):
        return read_type(builder.type_of(node.parent), node.key)
    if isinstance(node, RegroupNode):
        return read_type(node.row_type, node.key)
    if isinstance(node, RecordKeyNode):
        return node.key_type
    if isinstance(node, MergeNode | JoinNode):
        return _union([key_type(builder, each) for each in node.inputs])
    return key_type(builder, node.inputs[0]) if node.inputs else None


def _union(parts: Sequence[Any]) -> Any:
    return None if None in parts else reduce(or_, parts)


def may_equal(left: object, right: object) -> bool:
    """Whether a key of one type may equal one of the other; a type that is not known may be any.

    >>> may_equal(int, float), may_equal(int, str | None), may_equal(None, str)
    (True, False, True)
    >>> may_equal(tuple[str, int], tuple[str, bool]), may_equal(tuple[str, int], tuple[str, str])
    (True, False)
    """
    lefts, rights = _members(left), _members(right)
    return not lefts or not rights or any(_alike(one, other) for one in lefts for other in rights)


def _members(key_type: Any) -> list[Any]:
    """The types that keys of a type may have; none where one of them is not known."""
    # Rows whose key is None have no key.
    kinds = [each for each in members(key_type) if each is not NoneType]
    return kinds if None not in map(_family, kinds) else []


def _family(key_type: Any) -> type | None:
    kind = typing.get_origin(key_type) or key_type
    if not isinstance(kind, type):
        return None
    return next((found for each, found in _FAMILIES.items() if issubclass(kind, each)), None)


def _alike(left: Any, right: Any) -> bool:
    if _family(left) is not _family(right):
        return False
    ours, theirs = _elements(left), _elements(right)
    if ours is None or theirs is None:
        return True
    return len(ours) == len(theirs) and all(map(may_equal, ours, theirs))


def _elements(key_type: Any) -> Sequence[object] | None:
    """The types of the elements of a tuple of known length; None for anything else."""
    elements = typing.get_args(key_type)
    return None if not elements or Ellipsis in elements else elements


def _named(key_type: Any) -> str:
    if NoneType in typing.get_args(key_type):
        return " | ".join(_named(e) for e in typing.get_args(key_type) if e is not NoneType)
    return key_type.__name__ if isinstance(key_type, type | typing.NewType) else str(key_type)


class KeyWatch:
    """Tells, once, that nothing that a join has got can match. Not thread-safe.

    Args:
        pipeline: Its name, for the message.
        node: The join.
    """

    def __init__(self, pipeline: str, node: JoinNode) -> None:
        self._pipeline = pipeline
        self._node = node
        self._seen: tuple[set[type], set[type]] = set(), set()
        self._done = False

    def see(self, sides: Sequence[Rows]) -> None:
        """Look at the keys of a step: nothing is left to do as soon as some may be equal."""
        if self._done:
            return
        for seen, rows in zip(self._seen, sides, strict=True):
            seen.update(rows.key_types())
        left, right = (set(map(_family, seen)) for seen in self._seen)
        self._done = bool(left and right)
        if self._done and not left & right:
            self._tell()

    def _tell(self) -> None:
        one, other = (" and ".join(sorted(each.__name__ for each in seen)) for seen in self._seen)
        table = isinstance(self._node, TableJoinNode)
        _logger.warning(
            "join %r of pipeline %r (%s): all keys of its left side are %s so far, and all of its"
            " right side %s: none can be equal. Group both sides by keys of one type%s",
            self._node.name,
            self._pipeline,
            self._node.label,
            one,
            other,
            ", or declare the key_type of the table" if table else "",
        )
