"""`millstream state`: what pipelines keep, seen from outside, also while they run."""

from __future__ import annotations

import click
import msgspec

from millstream.processor import StateItem, list_state, read_state

from .command import Group, examples
from .output import Row, print_rows
from .settings import settings

EXIT_NOT_FOUND = 5

_COLUMNS = (
    "pipeline",
    "operator",
    "live_count",
    "change_count",
    "size_bytes",
    "identity",
)


@click.group(
    cls=Group,
    epilog=examples(
        "millstream state ls",
        "millstream state get revenue orders.window u1",
        "millstream state dump revenue orders.window",
    ),
)
def state() -> None:
    """Show what pipelines keep. Reads the last commit; changes nothing."""


@state.command(epilog=examples("millstream state ls", "millstream state ls revenue"))
@click.argument("pipeline", required=False)
def ls(pipeline: str | None) -> None:
    """List the operators with state, of PIPELINE or of all."""
    current = settings()
    with current.open(read_only=True) as store:
        rows: list[Row] = [info._asdict() for info in list_state(store, pipeline)]
    print_rows("state", rows, _COLUMNS, current.mode)


@state.command(
    epilog=examples(
        "millstream state get revenue orders.window u1",
        "millstream state get revenue orders.window 7      a number, where there is no text 7",
    )
)
@click.argument("pipeline")
@click.argument("operator")
@click.argument("key")
def get(pipeline: str, operator: str, key: str) -> int:
    """Print what OPERATOR of PIPELINE keeps for KEY: JSON lines with path and value.

    KEY is text; where nothing is kept for the text, it is read as JSON. Exit code 5 if there is
    nothing.
    """
    with settings().open(read_only=True) as store:
        items = list(read_state(store, pipeline, operator))
    found = [item for item in items if item.has_key(key)]
    if not found:
        try:
            other = msgspec.json.decode(key)
        except msgspec.DecodeError:
            other = None
        other = tuple(other) if isinstance(other, list) else other
        found = [item for item in items if other is not None and item.has_key(other)]
    for item in found:
        _print(item)
    return 0 if found else EXIT_NOT_FOUND


@state.command(epilog=examples("millstream state dump revenue orders.window | head"))
@click.argument("pipeline")
@click.argument("operator")
def dump(pipeline: str, operator: str) -> None:
    """Print everything OPERATOR of PIPELINE keeps: JSON lines with path and value."""
    with settings().open(read_only=True) as store:
        for item in read_state(store, pipeline, operator):
            _print(item)


def _print(item: StateItem) -> None:
    """Bytes are printed as base64, as JSON has none."""
    click.echo(msgspec.json.encode({"path": item.path, "value": item.value}).decode())
