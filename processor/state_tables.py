"""The state of pipelines as tables for `millstream.sql`: what `read_state` says, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import msgspec

from millstream import Store
from millstream.sql import RowTable

from .state_view import list_state, read_state

_SCHEMA: Final = "state"
_COLUMNS: Final = ("path", "value")


def state_tables(store: Store) -> list[RowTable]:
    """A table `state."pipeline.operator"` for each operator that keeps something.

    Columns: `path`, what a thing is filed under, and `value`, what is kept; both JSON arrays, bytes
    in them as base64. Each pass shows the last commit of the pipeline at its time, and has what
    the operator keeps in memory.

    >>> import millstream
    >>> with millstream.open(":memory:") as store:
    ...     state_tables(store)
    []
    """
    return [
        RowTable(
            _SCHEMA,
            f"{info.pipeline}.{info.operator}",
            _COLUMNS,
            partial(_rows, store, info.pipeline, info.operator),
        )
        for info in list_state(store)
        if info.identity
    ]


def _rows(store: Store, pipeline: str, operator: str) -> Iterator[tuple[str, str]]:
    encode = msgspec.json.encode
    for item in read_state(store, pipeline, operator):
        yield encode(item.path).decode(), encode(item.value).decode()
