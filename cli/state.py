"""`millstream state`: what pipelines keep, seen from outside, and carried over to changed ones."""

from __future__ import annotations

from collections.abc import Iterable

import click
import msgspec

from millstream.processor import StateItem, list_state, read_state

from .command import YES, Group, examples
from .loading import load_pipeline
from .output import Row, print_document, print_rows
from .settings import settings

EXIT_REFUSED = 2
EXIT_NOT_FOUND = 5

_COLUMNS = (
    "pipeline",
    "operator",
    "live_count",
    "change_count",
    "size_bytes",
    "identity",
)


_STEP_COLUMNS = ("operator", "action", "former", "live_count", "reason")


@click.group(
    cls=Group,
    short_help="Show what pipelines keep; carry it to changed code.",
    epilog=examples(
        "millstream state ls",
        "millstream state get revenue orders.window u1",
        "millstream state dump revenue orders.window",
        "millstream state migrate app:pipeline",
    ),
)
def state() -> None:
    """Show what pipelines keep, as of the last commit, and carry it over to changed ones."""


@state.command(epilog=examples("millstream state ls", "millstream state ls revenue"))
@click.argument("pipeline", required=False)
def ls(pipeline: str | None) -> None:
    """List the operators with state, of PIPELINE or of all."""
    current = settings()
    with current.open(read_only=True) as store:
        rows: list[Row] = [info._asdict() for info in list_state(store, pipeline)]
    print_rows("state", rows, _COLUMNS, current.mode)


@state.command(
    short_help="Print what an operator keeps for a key.",
    epilog=examples(
        "millstream state get revenue orders.window u1",
        "millstream state get revenue orders.window 7      a number, where there is no text 7",
    ),
)
@click.argument("pipeline")
@click.argument("operator")
@click.argument("key")
@click.option("--at", "epoch", metavar="EPOCH", type=int, help="As of a checkpoint that was kept.")
def get(pipeline: str, operator: str, key: str, epoch: int | None) -> int:
    """Print what OPERATOR of PIPELINE keeps for KEY: JSON lines with path and value.

    KEY is text; where nothing is kept for the text, it is read as JSON. Exit code 5 if there is
    nothing.
    """
    with settings().open(read_only=True) as store:
        found = list(read_state(store, pipeline, operator, key, epoch=epoch))
        other = None if found else _decoded(key)
        if other is not None:
            found = list(read_state(store, pipeline, operator, other, epoch=epoch))
    _print(found)
    return 0 if found else EXIT_NOT_FOUND


def _decoded(key: str) -> object:
    """The key that a text is in JSON; None if it is none."""
    try:
        other: object = msgspec.json.decode(key)
    except (msgspec.DecodeError, RecursionError):
        return None
    return tuple(other) if isinstance(other, list) else other


@state.command(
    short_help="Print everything an operator keeps.",
    epilog=examples("millstream state dump revenue orders.window | head"),
)
@click.argument("pipeline")
@click.argument("operator")
@click.option("--at", "epoch", metavar="EPOCH", type=int, help="As of a checkpoint that was kept.")
def dump(pipeline: str, operator: str, epoch: int | None) -> None:
    """Print everything OPERATOR of PIPELINE keeps: JSON lines with path and value."""
    with settings().open(read_only=True) as store:
        _print(read_state(store, pipeline, operator, epoch=epoch))


@state.command(
    short_help="Carry state over to changed code; shows the plan first.",
    epilog=examples(
        "millstream state migrate app:pipeline",
        "millstream state migrate app:pipeline --rename orders.window=daily --drop orders.dedup",
        "millstream state migrate app:pipeline --rename orders.window=daily --yes",
    ),
)
@click.argument("target", metavar="MODULE:PIPELINE")
@click.option(
    "--rename",
    "renames",
    multiple=True,
    metavar="OLD=NEW",
    help="Carry the state of OLD over to the operator NEW.",
)
@click.option(
    "--same",
    multiple=True,
    metavar="NAME",
    help="NAME means what it meant, though its sources or functions read differently.",
)
@click.option("--drop", multiple=True, metavar="NAME", help="Let the state of NAME go for good.")
@YES
def migrate(
    target: str,
    renames: tuple[str, ...],
    same: tuple[str, ...],
    drop: tuple[str, ...],
    yes: bool,
) -> int:
    """Carry state over to the changed code of a pipeline; shows the plan unless --yes is given.

    State whose operator is the same stays; new operators begin empty. What is refused must be
    renamed, if it only has another name, called the same, if only sources or functions read
    differently and mean what they meant, or dropped (exit code 2 as long as it is not). All or
    nothing, and no process may run the pipeline meanwhile (exit code 3 otherwise).
    """
    current = settings()
    pipeline = load_pipeline(target)
    rename = _renames(renames)
    with current.open(read_only=not yes) as store:
        found = pipeline.migrate(store, rename=rename, same=same, drop=drop, dry_run=True)
        if yes and not found.refused:
            found = pipeline.migrate(store, rename=rename, same=same, drop=drop)
    rows: list[Row] = [each._asdict() for each in found.steps]
    print_rows("steps", rows, _STEP_COLUMNS, current.mode)
    for name in found.unknown:
        current.say(f"nothing is kept for {name!r}: it was migrated before, or is misspelt")
    for topic in found.new_inputs:
        current.say(f"{topic} has not been read yet: it will be, from its log start")
    for topic in found.left_inputs:
        current.say(f"{topic} will no longer be read")
    for topic in found.recreated:
        current.say(f"{topic} was created again: it will be read from its log start")
    if found.refused:
        click.echo(
            "millstream: nothing was changed: rename, call the same or drop what is refused",
            err=True,
        )
        return EXIT_REFUSED
    if found.done:
        current.say(f"{pipeline.name} was migrated" if found.changes else "there was nothing to do")
    elif found.changes:
        current.say("nothing was changed: this is the plan, --yes does it")
    else:
        current.say("there is nothing to do")
    return 0


def _renames(renames: tuple[str, ...]) -> dict[str, str]:
    """Former names and new ones."""
    found = {}
    for each in renames:
        old, equals, new = each.partition("=")
        if not (old and equals and new) or old in found:
            raise click.BadParameter(f"{each!r} is not OLD=NEW, or OLD is there twice")
        found[old] = new
    return found


def _print(items: Iterable[StateItem]) -> None:
    """As lines of JSON or one document of them. Bytes become base64, as JSON has none."""
    mode = settings().mode
    if mode == "json":
        plain = msgspec.json.decode(msgspec.json.encode([each._asdict() for each in items]))
        print_document({"items": plain}, mode)
        return
    for item in items:
        click.echo(msgspec.json.encode(item._asdict()).decode())
